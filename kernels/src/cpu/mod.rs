//! The table of CPU microkernels.
//!
//! A microkernel computes one unit of work of a launch: a tile of a matmul, some heads of an attention, some rows of a
//! table. Each exists at every instruction-set [`Level`], under one id of [`crate::abi::id`], with **the same bits** from
//! all of them. The orders of summation that this rests on:
//!
//! - **Quantised matmul.** One f32 accumulator an output, from +0. For each block of 32 k, ascending: `isum` is the exact
//!   int32 inner product of the quants; `acc = fma(isum as f32, d * s, acc)` with the block's scale d and the
//!   activations' scale s; then, for Q4_1, `acc = fma(m, sum, acc)` with the activations' scaled sum, and for Q4_0 the
//!   same with m = -8 d (exact). With Q16 activations, isum is the inner product with their 15-bit quants, 128 * high + low:
//!   at most 32 * 15 * 16256 < 2^23 for 4-bit weights, so that `isum as f32` is exact, and 32 * 128 * 16256 < 2^27 for
//!   8-bit ones, where it rounds to nearest, ties to even.
//! - **F16 and F32 matmul.** One accumulator an output, from +0: `acc = fma(w, x, acc)` for each k, ascending. Speed comes
//!   from the independent chains of many outputs.
//! - **Attention.** The query is multiplied by the scale first. A score is `s = fma(q, k, s)` over ascending dimensions,
//!   from +0. Positions are cut into tiles of [`TILE`], from position 0, whatever the window. Tiles that hold no position
//!   that the query sees are skipped; for each other, ascending: m' = max(m, scores seen); c = exp(m - m'); each p = exp(s -
//!   m'), 0 where not seen; l = fma(l, c, [`lane sum`](math::sum_tile) of p); o = o * c, then o = fma(p, v, o) for each
//!   position seen, ascending. At the end o * (1 / l).
//! - **exp, sin, cos** are polynomials of our own ([`math`]), so that nothing depends on a system's library.
//!
//! None of it depends on the tile's size, the number of tokens or heads in a call, or the number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod math;
mod scalar;

use std::sync::OnceLock;

use crate::abi::{MicroFn, id};

/// Positions of an attention tile.
pub const TILE: usize = 64;

/// Largest head size of the attention microkernels; sizes are multiples of 8.
pub const MAX_HEAD_DIM: usize = 256;

/// One microkernel at one level.
#[derive(Clone, Copy, Debug)]
pub struct MicroKernel {
    /// Its id in plans ([`crate::abi::id`]).
    pub id: u32,
    /// For people: `matmul_q4_1`.
    pub name: &'static str,
    pub level: Level,
    pub func: MicroFn,
}

/// Instruction sets that microkernels exist for, by ascending preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Portable Rust.
    Scalar,
    /// x86-64 with AVX2, FMA, F16C and BMI2.
    Avx2,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 2] = [Level::Scalar, Level::Avx2];

    /// The name that diagnostics show.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
        }
    }

    /// Processor features that the level needs, by the names of `std::arch::is_x86_feature_detected!`.
    pub fn required_features(self) -> &'static [&'static str] {
        match self {
            Level::Scalar => &[],
            Level::Avx2 => &["avx2", "bmi2", "f16c", "fma"],
        }
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 => false,
        }
    }

    /// The best level of this processor.
    pub fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            if Level::Avx2.is_available() {
                Level::Avx2
            } else {
                Level::Scalar
            }
        })
    }
}

/// The microkernels of a level. Calling one on a processor that lacks the level is undefined behaviour.
pub fn table(level: Level) -> &'static [MicroKernel] {
    match level {
        Level::Scalar => &SCALAR,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &AVX2,
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 => &[],
    }
}

/// The microkernel of an id at the best level of this processor; none for an id that this version doesn't know.
pub fn lookup(id: u32) -> Option<&'static MicroKernel> {
    lookup_at(Level::detect(), id)
}

/// The microkernel of an id at a level; none for an id that this version doesn't know.
pub fn lookup_at(level: Level, id: u32) -> Option<&'static MicroKernel> {
    table(level).iter().find(|kernel| kernel.id == id)
}

/// The rows of a table. Both levels name the same functions, so the macro cannot leave one out.
macro_rules! microkernels {
    ($level:expr, $module:ident) => {{
        const fn row(id: u32, name: &'static str, func: MicroFn) -> MicroKernel {
            MicroKernel {
                id,
                name,
                level: $level,
                func,
            }
        }
        [
            row(
                id::MATMUL_F32,
                "matmul_f32",
                MicroFn::MatMul($module::matmul_f32),
            ),
            row(
                id::MATMUL_F16,
                "matmul_f16",
                MicroFn::MatMul($module::matmul_f16),
            ),
            row(
                id::MATMUL_Q4_0,
                "matmul_q4_0",
                MicroFn::MatMul($module::matmul_q4_0),
            ),
            row(
                id::MATMUL_Q4_1,
                "matmul_q4_1",
                MicroFn::MatMul($module::matmul_q4_1),
            ),
            row(
                id::MATMUL_Q8_0,
                "matmul_q8_0",
                MicroFn::MatMul($module::matmul_q8_0),
            ),
            row(
                id::MATMUL_Q4_0_Q16,
                "matmul_q4_0_q16",
                MicroFn::MatMul($module::matmul_q4_0_q16),
            ),
            row(
                id::MATMUL_Q4_1_Q16,
                "matmul_q4_1_q16",
                MicroFn::MatMul($module::matmul_q4_1_q16),
            ),
            row(
                id::MATMUL_Q8_0_Q16,
                "matmul_q8_0_q16",
                MicroFn::MatMul($module::matmul_q8_0_q16),
            ),
            row(
                id::EMBED_F32,
                "embed_f32",
                MicroFn::Embed($module::embed_f32),
            ),
            row(
                id::EMBED_F16,
                "embed_f16",
                MicroFn::Embed($module::embed_f16),
            ),
            row(
                id::EMBED_Q4_0,
                "embed_q4_0",
                MicroFn::Embed($module::embed_q4_0),
            ),
            row(
                id::EMBED_Q4_1,
                "embed_q4_1",
                MicroFn::Embed($module::embed_q4_1),
            ),
            row(
                id::EMBED_Q8_0,
                "embed_q8_0",
                MicroFn::Embed($module::embed_q8_0),
            ),
            row(
                id::ATTENTION_F16,
                "attention_f16",
                MicroFn::Attention($module::attention_f16),
            ),
            row(
                id::ROPE_TABLE,
                "rope_table",
                MicroFn::RopeTable($module::rope_table),
            ),
        ]
    }};
}

static SCALAR: [MicroKernel; 15] = microkernels!(Level::Scalar, scalar);
#[cfg(target_arch = "x86_64")]
static AVX2: [MicroKernel; 15] = microkernels!(Level::Avx2, avx2);
