//! `llama`: Llama 1 to 3, TinyLlama, SmolLM2, Mistral. Rotates neighbouring dimensions; Llama 3's frequencies come with
//! factors.

use super::config::{Config, Sizes};
use super::decoder::{Decoder, LayerKind};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Activation, Graph};

/// The graph of a llama model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let config = Config {
        gguf,
        arch: "llama",
    };
    let Sizes {
        layers,
        embedding,
        feed_forward,
        heads,
        kv_heads,
        head_dim,
        vocab,
        eps,
    } = config.sizes()?;
    let decoder = Decoder {
        arch: "llama",
        layers,
        embedding,
        feed_forward,
        heads,
        kv_heads,
        head_dim,
        vocab,
        eps,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        ropes: vec![config.rope(head_dim, Some("rope_freqs.weight"))?],
        rope_halves: false,
        kinds: vec![
            LayerKind {
                window: None,
                rope: 0
            };
            layers as usize
        ],
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        joined: false,
        activation: Activation::Silu,
        unused: &[],
    };
    decoder.build(gguf)
}
