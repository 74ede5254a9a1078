//! Microkernels for x86-64 with AVX-512 VNNI and AMX int8 tiles. Each equals its scalar twin bit for bit.
//!
//! Quantised matmuls of enough tokens are this level's own. Processors with tiles multiply 512 bits twice a cycle, so float
//! matmuls and attention are in such vectors throughout. What isn't named here is that of AVX-512.

mod blocks;
mod panel;
mod planes;
mod quant;
mod run;
mod step;
mod tiles;

pub use super::avx512::float::{matmul_bf16, matmul_f16, matmul_f32};
pub use super::avx512::wide_attention_f16 as attention_f16;
pub use super::avx512::*;

use super::avx2::quant as formats;

each_quantised! { compiled_for! @matmul "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma", }
