//! Microkernels for x86-64 with AVX-512 (F, BW, CD, DQ, VL) and VNNI. Each equals its scalar twin bit for bit.
//!
//! Quantised matmuls take the packed formats as AVX2 unpacks them, attention its driver. Float matmuls, and products of f16
//! attention but with three queries, are those of AVX2: where 512 bits are multiplied once a cycle and 256 twice, as on the processor measured,
//! converting in vectors of 512 costs up to a tenth (NOTES.md). [`float`] and [`wide_attention_f16`] are for levels above.

mod attention_f16;
mod attention_q8_0;
mod dot;
pub(super) mod float;
mod lone;
mod many;
mod pairs;
pub(super) mod part;
pub(super) mod quant;
mod small;
mod softmax;
mod tile;
mod wide;

pub use super::avx2::{matmul_bf16, matmul_f16, matmul_f32};
pub use attention_f16::{attention_f16, wide_attention_f16};
pub use attention_q8_0::attention_q8_0;
pub use pairs::matmul_pairs;

use super::avx2::quant as formats;

compiled_for!("avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2");
