//! `gemma3`: Gemma 3. Five layers with a sliding window, then one that sees everything; each kind has a rotary base of its
//! own. Norms before and after attention and feed forward, and of each head's query and key; GeGLU; embeddings are scaled.
//! (GGUF files hold the norms' weights with their offset of one added.)

use super::config::Config;
use super::decoder::{Decoder, LayerKind, Rope};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Activation, Graph, RopeFreqs, RopeScaling};

/// Every so many layers, one sees all positions.
const PATTERN: u32 = 6;

/// The rotary base of windowed layers.
const WINDOWED_BASE: f32 = 10_000.0;

/// The number of layers of the 27B model, whose scores are scaled by the embedding size a head instead of the head's own.
const LAYERS_OF_27B: u32 = 62;

/// The graph of a gemma3 model.
pub fn build(gguf: &Gguf<'_>, _context: u32) -> Result<Graph, Error> {
    let arch = "gemma3";
    let config = Config { gguf, arch };
    let sizes = config.sizes()?;
    config.refuse_mixture()?;
    let window = config
        .optional("attention.sliding_window")?
        .filter(|&w| w > 0);
    let whole = config.rope(sizes.head_dim, None)?;
    let windowed = Rope {
        freqs: RopeFreqs {
            base: WINDOWED_BASE,
            dim: sizes.head_dim,
            scaling: RopeScaling::None,
            factors: None,
        },
        mscale: 1.0,
    };
    let kind = |layer: u32| match window {
        Some(_) if layer % PATTERN < PATTERN - 1 => LayerKind { window, rope: 0 },
        _ => LayerKind {
            window: None,
            rope: 1,
        },
    };
    let scaled_by = match sizes.layers {
        LAYERS_OF_27B => sizes.embedding / sizes.heads,
        _ => sizes.head_dim,
    };
    let decoder = Decoder {
        embedding_scale: (sizes.embedding as f32).sqrt(),
        attention_scale: 1.0 / (scaled_by as f32).sqrt(),
        kinds: (0..sizes.layers).map(kind).collect(),
        ropes: vec![windowed, whole.clone()],
        qk_norm: true,
        post_norms: true,
        activation: Activation::GeluTanh,
        ..Decoder::plain(arch, sizes, whole)
    };
    decoder.build(gguf)
}
