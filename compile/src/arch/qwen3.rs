//! `qwen3`: Qwen 3. Each head's query and key is normed before the rotation.

use super::config::{Config, Sizes};
use super::decoder::{Decoder, LayerKind};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Activation, Graph};

/// The graph of a qwen3 model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let config = Config {
        gguf,
        arch: "qwen3",
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
        arch: "qwen3",
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
        ropes: vec![config.rope(head_dim, None)?],
        rope_halves: true,
        kinds: vec![
            LayerKind {
                window: None,
                rope: 0
            };
            layers as usize
        ],
        qkv_bias: false,
        qk_norm: true,
        post_norms: false,
        joined: false,
        activation: Activation::Silu,
        unused: &[],
    };
    decoder.build(gguf)
}
