//! `phi3`: Phi-3 and Phi-4-mini. One tensor for query, key and value, one for gate and up; long contexts by factors of the
//! rotary frequencies, one set for contexts within the first training and one beyond.

use super::config::Config;
use super::decoder::Decoder;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// The graph of a phi3 model, for sequences of up to `context` positions.
pub fn build(gguf: &Gguf<'_>, context: u32) -> Result<Graph, Error> {
    let arch = "phi3";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    config.refuse_mixture()?;
    let original = config.optional("rope.scaling.original_context_length")?;
    let factors = match original.is_some_and(|original| context > original) {
        true => "rope_factors_long.weight",
        false => "rope_factors_short.weight",
    };
    let rope = config.rope(sizes.head_dim, Some(factors))?;
    let decoder = Decoder {
        joined: true,
        unused: &["rope_factors_long.weight", "rope_factors_short.weight"],
        ..Decoder::plain(arch, sizes, rope)
    };
    decoder.build(gguf)
}
