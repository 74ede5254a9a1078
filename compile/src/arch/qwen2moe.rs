//! `qwen2moe`: Qwen 1.5 and 2 MoE. Queries, keys and values have biases; every layer has experts and a shared one with a gate.

use super::config::Config;
use super::decoder::{Decoder, Mixture};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a qwen2moe model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "qwen2moe";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    let rope = config.rope(sizes.head_dim, None)?;
    // Its weights are those of the softmax over all experts.
    let mixture = config.required_mixture(&sizes, false)?;
    // Files that don't say its size have the dense model's there.
    let shared = match config.optional("expert_shared_feed_forward_length")? {
        Some(_) => config.size("expert_shared_feed_forward_length")?,
        None => sizes.feed_forward,
    };
    let decoder = Decoder {
        qkv_bias: true,
        mixture: Some(Mixture {
            shared: Some(shared),
            ..mixture
        }),
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
