//! Microkernels for x86-64 with AVX2, FMA, F16C and BMI2. Each equals its scalar twin bit for bit.

pub(super) mod attention;
pub(super) mod attention_f16;
pub(super) mod attention_q8_0;
pub(super) mod float;
mod pairs;
pub(super) mod quant;

pub use attention_f16::attention_f16;
pub use attention_q8_0::attention_q8_0;
pub use float::{matmul_bf16, matmul_f16, matmul_f32};
pub use pairs::{matmul_pairs, vnni_matmul_pairs};

use quant as formats;

compiled_for!("avx2,bmi2,f16c,fma");
