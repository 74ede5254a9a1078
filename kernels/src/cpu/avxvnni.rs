//! Microkernels for x86-64 with AVX-VNNI, but not AVX-512. Each equals its scalar twin bit for bit.
//!
//! Matmuls of integers are those of AVX2 with products of this level's own. What isn't named here is that of AVX2.

pub use super::avx2::vnni_matmul_pairs as matmul_pairs;
pub use super::avx2::*;

use super::avx2::quant as formats;

mod quant {
    pub use crate::cpu::avx2::quant::vnni_matmul as matmul;
}

each_quantised! { compiled_for! @matmul "avx2,bmi2,f16c,fma", }
