//! `qwen2`: Qwen 2 and 2.5. Biases on query, key and value.

use super::config::{Config, Sizes};
use super::decoder::{Decoder, LayerKind};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Activation, Graph};

/// The graph of a qwen2 model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let config = Config {
        gguf,
        arch: "qwen2",
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
        arch: "qwen2",
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
        qkv_bias: true,
        qk_norm: false,
        post_norms: false,
        joined: false,
        activation: Activation::Silu,
        unused: &[],
    };
    decoder.build(gguf)
}
