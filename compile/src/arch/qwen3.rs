//! `qwen3`: Qwen 3. Each head's query and key is normed before the rotation.

use super::config::Config;
use super::decoder::Decoder;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a qwen3 model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "qwen3";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    config.refuse_mixture()?;
    let rope = config.rope(sizes.head_dim, None)?;
    let decoder = Decoder {
        qk_norm: true,
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
