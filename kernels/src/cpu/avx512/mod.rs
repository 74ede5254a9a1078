//! Microkernels for x86-64 with AVX-512 (F, BW, CD, DQ, VL) and VNNI. Each equals its scalar twin bit for bit.
//!
//! Quantised matmuls are this level's own, over the packed formats as AVX2 unpacks them. Attention and float matmuls are those of
//! AVX2: they are bound by fused multiply-adds, of which wider registers make no more on the processors measured (NOTES.md).

pub(super) mod quant;

pub use super::avx2::{attention_f16, attention_q8_0, matmul_bf16, matmul_f16, matmul_f32};

use super::avx2::quant as formats;

compiled_for!("avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2");
