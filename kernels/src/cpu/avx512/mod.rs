//! Microkernels for x86-64 with AVX-512 (F, BW, CD, DQ, VL) and VNNI. Each equals its scalar twin bit for bit.
//!
//! Quantised matmuls take the packed formats as AVX2 unpacks them, attention its driver. Where a processor multiplies 512 bits
//! no faster than 256, as NOTES.md measures, float matmuls and attention gain little here, and lose nothing.

mod attention_f16;
mod attention_q8_0;
mod float;
pub(super) mod quant;

pub use attention_f16::attention_f16;
pub use attention_q8_0::attention_q8_0;
pub use float::{matmul_bf16, matmul_f16, matmul_f32};

use super::avx2::quant as formats;

compiled_for!("avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2");
