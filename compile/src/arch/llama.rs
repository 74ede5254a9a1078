//! `llama`: Llama 1 to 3, TinyLlama, SmolLM2, Mistral; Mixtral, which has experts. Rotates neighbouring dimensions; Llama 3's frequencies come with
//! factors.

use super::config::Config;
use super::decoder::Decoder;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a llama model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "llama";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    let rope = config.rope(sizes.head_dim, Some("rope_freqs.weight"))?;
    // A softmax over the chosen experts is that over all, renormalised.
    let mixture = config.mixture(&sizes, true)?;
    let decoder = Decoder {
        rope_halves: false,
        mixture,
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
