//! Microkernels for x86-64 with AVX-512 VNNI and AMX int8 tiles. Each equals its scalar twin bit for bit.
//!
//! Quantised matmuls of enough tokens are this level's own; what isn't defined here is that of AVX-512.

mod quant;
mod tiles;

pub use super::avx512::*;

use super::avx2::quant as formats;

each_quantised! { compiled_for! @matmul "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma", }
