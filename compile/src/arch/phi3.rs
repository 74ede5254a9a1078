//! `phi3`: Phi-3 and Phi-4-mini. One tensor for query, key and value, one for gate and up; long contexts by factors of the
//! rotary frequencies, one set for contexts within the first training and one beyond.

use super::config::{Config, Sizes};
use super::decoder::{Decoder, LayerKind};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Activation, Graph};

/// The graph of a phi3 model, for sequences of up to `context` positions.
pub fn build(gguf: &Gguf<'_>, context: u32) -> Result<Graph, Error> {
    let config = Config { gguf, arch: "phi3" };
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
    let original = config.optional("rope.scaling.original_context_length")?;
    let long = original.is_some_and(|original| context > original);
    let factors = if long {
        "rope_factors_long.weight"
    } else {
        "rope_factors_short.weight"
    };
    let decoder = Decoder {
        arch: "phi3",
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
        ropes: vec![config.rope(head_dim, Some(factors))?],
        rope_halves: true,
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
        joined: true,
        activation: Activation::Silu,
        unused: &["rope_factors_long.weight", "rope_factors_short.weight"],
    };
    decoder.build(gguf)
}
