//! `qwen3moe`: Qwen 3 with experts in every layer. Each head's query and key is normed before the rotation.

use super::config::Config;
use super::decoder::Decoder;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a qwen3moe model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "qwen3moe";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    let rope = config.rope(sizes.head_dim, None)?;
    let mixture = config.required_mixture(&sizes, true)?;
    let decoder = Decoder {
        qk_norm: true,
        mixture: Some(mixture),
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
