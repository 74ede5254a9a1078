//! `qwen2`: Qwen 2 and 2.5. Biases on query, key and value.

use super::config::Config;
use super::decoder::Decoder;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a qwen2 model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "qwen2";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    config.refuse_mixture()?;
    let rope = config.rope(sizes.head_dim, None)?;
    let decoder = Decoder {
        qkv_bias: true,
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
