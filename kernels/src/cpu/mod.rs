//! The table of CPU microkernels.
//!
//! A microkernel computes one unit of work of a launch: a tile of a matmul, some heads of an attention, some rows of a
//! table. Each exists at every instruction-set [`Level`], under one id of [`crate::abi::id`], with **the same bits** from
//! all of them. The orders of summation that this rests on:
//!
//! - **Quantised matmul.** One f32 accumulator an output, from +0. For each 32 k, ascending: `isum` is the exact int32
//!   inner product of the quants (q - 8 in Q4_0, q - 16 in Q5_0, the value looked up in MXFP4), with the integer scales of each
//!   16 or 32 k multiplied in where the encoding has such; `acc = fma(isum as f32, d * s, acc)` with the block's factor d and the
//!   activations' scale s. Then what is added to all elements: m in Q4_1 and Q5_1, -m * n (n the integer minimum, an exact product)
//!   in Q4_K and Q5_K: `acc = fma(that, sum, acc)` with the activations' scaled sum. In Q2_K, whose minima are of 16 k: `acc =
//!   fma(imin as f32, -m * s, acc)`, imin the exact int32 sum of minima times activations. With Q11 activations, 8 * high + low,
//!   every isum stays below 2^31 (32 * 32 * 128 * 1016 in Q6_K) and `isum as f32` rounds to nearest, ties to even.
//! - **K-quants and IQ4_XS with Q8K rows.** For each 256 k, ascending, isum and imin are exact int32 sums over all of these (below
//!   2^27: 256 * 32 * 127 * 128 in Q6_K), imin that of the integer minima, of 16 or 32 k, times the quants. `sum = isum as f32 * d`, where there
//!   are minima `sum = fma(imin as f32, -m, sum)`, and `acc = fma(sum, s, acc)`.
//! - **F16 and BF16 matmul in [pairs](crate::pack::pairs).** As the quantised one, with the integers that 32 weights are and their
//!   factor, but isum wraps around: it does so only where weights are not finite, and then so is no product with the factor.
//! - **F32, F16 and BF16 matmul.** One accumulator an output, from +0: `acc = fma(w, x, acc)` for each k, ascending. Speed comes
//!   from the independent chains of many outputs.
//! - **Attention.** The query is multiplied by the scale first. A score is `s = fma(q, k, s)` over ascending dimensions,
//!   from +0. Positions are cut into tiles of [`TILE`], from position 0, whatever the window. Tiles that hold no position
//!   that the query sees are skipped; for each other, ascending: m' = max(m, scores seen); c = exp(m - m'); each p = exp(s -
//!   m'), 0 where not seen; l = fma(l, c, [`lane sum`](math::sum_tile) of p); o = o * c, then o = fma(p, v, o) for each
//!   position seen, ascending. At the end o * (1 / l).
//! - **Attention over Q8_0** is the same but for its products, which are integer. The scaled query is quantised by 32
//!   dimensions: its scale is amax / 16256, a quant round-half-to-even(x * (16256 / amax)), all 0 where amax is below
//!   [`LEAST`]. A score is, from +0, `s = fma(isum as f32, dq * dk, s)` over ascending 32 dimensions, isum the exact int32 inner
//!   product, dq and dk the scales. For the values a tile's w = p * dv, 0 where p is 0, are quantised alike, all 64
//!   positions of 32 dimensions together, and o = fma(isum as f32, dw, o) with the exact int32 sum over the tile.
//! - **Route.** Weights are e^(logit - the highest), divided by their sum from +0, ascending over all experts or, renormalised,
//!   over the token's slots; then they are scaled.
//! - **exp, sin, cos** are polynomials of our own ([`math`]), so that nothing depends on a system's library.
//!
//! None of it depends on the tile's size, the number of tokens or heads in a call, or the number of threads.

#[macro_use]
mod compiled;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod features;
mod math;
mod scalar;

use std::sync::OnceLock;

use bundle_format::target::Target;

use crate::abi::{MicroFn, id};

pub use features::has_feature;

/// Positions of an attention tile.
pub const TILE: usize = 64;

/// Magnitudes below which factors of an integer product count as 0, lest their quotients overflow: 2^-100.
pub const LEAST: f32 = 7.888_609e-31;

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
    /// And AVX-VNNI, the 256-bit products of processors without AVX-512.
    AvxVnni,
    /// AVX2 and the like, and AVX-512 (F, BW, CD, DQ, VL) with VNNI.
    Avx512,
    /// And AMX tiles of int8, which the system lets this process use.
    Amx,
}

/// The features of [`Level::AvxVnni`]: those of AVX2, and its own.
const AVX_VNNI_FEATURES: [&str; Target::X86_64V3.required_features().len() + 1] =
    and(Target::X86_64V3, ["avxvnni"]);

/// The features of [`Level::Amx`]: those of AVX-512, and the tiles.
const AMX_FEATURES: [&str; Target::X86_64V4.required_features().len() + 2] =
    and(Target::X86_64V4, ["amx-tile", "amx-int8"]);

/// The features of a target, and more.
const fn and<const MORE: usize, const ALL: usize>(
    target: Target,
    more: [&'static str; MORE],
) -> [&'static str; ALL] {
    let below = target.required_features();
    let mut all = [""; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = if i < below.len() {
            below[i]
        } else {
            more[i - below.len()]
        };
        i += 1;
    }
    all
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 5] = [
        Level::Scalar,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Amx,
    ];

    /// The name that diagnostics show.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512vnni",
            Level::Amx => "amx",
        }
    }

    /// Processor features that the level needs, by the names of `std::arch::is_x86_feature_detected!`.
    pub fn required_features(self) -> &'static [&'static str] {
        match self {
            Level::Scalar => &[],
            Level::Avx2 => Target::X86_64V3.required_features(),
            Level::AvxVnni => &AVX_VNNI_FEATURES,
            Level::Avx512 => Target::X86_64V4.required_features(),
            Level::Amx => &AMX_FEATURES,
        }
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        self.required_features()
            .iter()
            .all(|name| has_feature(name) == Some(true))
    }

    /// The best level of this processor.
    pub fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Level::ALL.into_iter().rfind(|level| level.is_available());
            best.unwrap_or(Level::Scalar)
        })
    }
}

/// The microkernels of a level. Calling one on a processor that lacks the level is undefined behaviour.
pub fn table(level: Level) -> &'static [MicroKernel] {
    match level {
        Level::Scalar => &SCALAR,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &AVX2,
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => &AVX_VNNI,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &AVX512,
        #[cfg(target_arch = "x86_64")]
        Level::Amx => &AMX,
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Amx => &[],
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

/// The rows of a table. All levels name the same functions, so the macro cannot leave one out.
macro_rules! microkernels {
    ($level:expr, $module:ident) => {
        microkernels! {
            $level, $module,
            MatMul MATMUL_F32 matmul_f32,
            MatMul MATMUL_F16 matmul_f16,
            MatMul MATMUL_BF16 matmul_bf16,
            MatMul MATMUL_Q4_0 matmul_q4_0,
            MatMul MATMUL_Q4_1 matmul_q4_1,
            MatMul MATMUL_Q5_0 matmul_q5_0,
            MatMul MATMUL_Q5_1 matmul_q5_1,
            MatMul MATMUL_Q8_0 matmul_q8_0,
            MatMul MATMUL_Q2_K_Q8K matmul_q2_k_q8k,
            MatMul MATMUL_Q3_K_Q8K matmul_q3_k_q8k,
            MatMul MATMUL_Q4_K_Q8K matmul_q4_k_q8k,
            MatMul MATMUL_Q5_K_Q8K matmul_q5_k_q8k,
            MatMul MATMUL_Q6_K_Q8K matmul_q6_k_q8k,
            MatMul MATMUL_IQ4_NL matmul_iq4_nl,
            MatMul MATMUL_IQ4_XS_Q8K matmul_iq4_xs_q8k,
            MatMul MATMUL_MXFP4 matmul_mxfp4,
            MatMul MATMUL_Q4_0_Q11 matmul_q4_0_q11,
            MatMul MATMUL_Q4_1_Q11 matmul_q4_1_q11,
            MatMul MATMUL_Q5_0_Q11 matmul_q5_0_q11,
            MatMul MATMUL_Q5_1_Q11 matmul_q5_1_q11,
            MatMul MATMUL_Q8_0_Q11 matmul_q8_0_q11,
            MatMul MATMUL_Q2_K_Q11 matmul_q2_k_q11,
            MatMul MATMUL_Q3_K_Q11 matmul_q3_k_q11,
            MatMul MATMUL_Q4_K_Q11 matmul_q4_k_q11,
            MatMul MATMUL_Q5_K_Q11 matmul_q5_k_q11,
            MatMul MATMUL_Q6_K_Q11 matmul_q6_k_q11,
            MatMul MATMUL_IQ4_NL_Q11 matmul_iq4_nl_q11,
            MatMul MATMUL_IQ4_XS_Q11 matmul_iq4_xs_q11,
            MatMul MATMUL_MXFP4_Q11 matmul_mxfp4_q11,
            MatMul MATMUL_PAIRS matmul_pairs,
            Embed EMBED_F32 embed_f32,
            Embed EMBED_F16 embed_f16,
            Embed EMBED_BF16 embed_bf16,
            Embed EMBED_Q4_0 embed_q4_0,
            Embed EMBED_Q4_1 embed_q4_1,
            Embed EMBED_Q5_0 embed_q5_0,
            Embed EMBED_Q5_1 embed_q5_1,
            Embed EMBED_Q8_0 embed_q8_0,
            Embed EMBED_Q2_K embed_q2_k,
            Embed EMBED_Q3_K embed_q3_k,
            Embed EMBED_Q4_K embed_q4_k,
            Embed EMBED_Q5_K embed_q5_k,
            Embed EMBED_Q6_K embed_q6_k,
            Embed EMBED_IQ4_NL embed_iq4_nl,
            Embed EMBED_IQ4_XS embed_iq4_xs,
            Embed EMBED_MXFP4 embed_mxfp4,
            Embed EMBED_PAIRS embed_pairs,
            Attention ATTENTION_F16 attention_f16,
            Attention ATTENTION_Q8_0 attention_q8_0,
            RopeTable ROPE_TABLE rope_table,
            Route ROUTE route,
        }
    };
    ($level:expr, $module:ident, $($kind:ident $id:ident $func:ident,)*) => {
        [$(MicroKernel {
            id: id::$id,
            name: stringify!($func),
            level: $level,
            func: MicroFn::$kind($module::$func),
        }),*]
    };
}

static SCALAR: [MicroKernel; 51] = microkernels!(Level::Scalar, scalar);
#[cfg(target_arch = "x86_64")]
static AVX2: [MicroKernel; 51] = microkernels!(Level::Avx2, avx2);
#[cfg(target_arch = "x86_64")]
static AVX_VNNI: [MicroKernel; 51] = microkernels!(Level::AvxVnni, avxvnni);
#[cfg(target_arch = "x86_64")]
static AVX512: [MicroKernel; 51] = microkernels!(Level::Avx512, avx512);
#[cfg(target_arch = "x86_64")]
static AMX: [MicroKernel; 51] = microkernels!(Level::Amx, amx);
