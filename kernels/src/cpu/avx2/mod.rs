//! Microkernels for x86-64 with AVX2, FMA, F16C and BMI2. Each equals its scalar twin bit for bit.

mod attention;
mod attention_q8_0;
mod float;
mod quant;

pub use attention::attention_f16;
pub use attention_q8_0::attention_q8_0;
pub use float::{matmul_bf16, matmul_f16, matmul_f32};

use bundle_format::plan::Encoding;

use super::scalar;
use crate::abi::{EmbedArgs, MatMulArgs, RopeTableArgs};

macro_rules! embed_of {
    ($($name:ident: $encoding:ident,)*) => {$(
        /// Looks up and dequantises packed rows: the portable body, compiled for this level.
        ///
        /// # Safety
        /// As `scalar::embed`, and the processor has the level.
        #[target_feature(enable = "avx2,bmi2,f16c,fma")]
        pub unsafe fn $name(args: &EmbedArgs) {
            // SAFETY: the caller's promise.
            unsafe { scalar::embed(args, Encoding::$encoding) }
        }
    )*};
}

embed_of! {
    embed_f32: F32,
    embed_f16: F16,
    embed_bf16: BF16,
    embed_q4_0: Q4_0,
    embed_q4_1: Q4_1,
    embed_q5_0: Q5_0,
    embed_q5_1: Q5_1,
    embed_q8_0: Q8_0,
    embed_q2_k: Q2_K,
    embed_q3_k: Q3_K,
    embed_q4_k: Q4_K,
    embed_q5_k: Q5_K,
    embed_q6_k: Q6_K,
    embed_iq4_nl: IQ4_NL,
    embed_iq4_xs: IQ4_XS,
    embed_mxfp4: MXFP4,
}

macro_rules! matmul_of {
    ($($q8:ident, $q16:ident: $format:ident,)*) => {$(
        /// Quantised weights times Q8 rows.
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = "avx2,bmi2,f16c,fma")]
        pub unsafe fn $q8(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quant::matmul::<quant::$format, 1>(args) }
        }

        /// Quantised weights times Q16 rows.
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = "avx2,bmi2,f16c,fma")]
        pub unsafe fn $q16(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quant::matmul::<quant::$format, 2>(args) }
        }
    )*};
}

matmul_of! {
    matmul_q4_0, matmul_q4_0_q16: Q4_0,
    matmul_q4_1, matmul_q4_1_q16: Q4_1,
    matmul_q5_0, matmul_q5_0_q16: Q5_0,
    matmul_q5_1, matmul_q5_1_q16: Q5_1,
    matmul_q8_0, matmul_q8_0_q16: Q8_0,
    matmul_q2_k, matmul_q2_k_q16: Q2_K,
    matmul_q3_k, matmul_q3_k_q16: Q3_K,
    matmul_q4_k, matmul_q4_k_q16: Q4_K,
    matmul_q5_k, matmul_q5_k_q16: Q5_K,
    matmul_q6_k, matmul_q6_k_q16: Q6_K,
    matmul_iq4_nl, matmul_iq4_nl_q16: IQ4_NL,
    matmul_iq4_xs, matmul_iq4_xs_q16: IQ4_XS,
    matmul_mxfp4, matmul_mxfp4_q16: MXFP4,
}

/// Cosines and sines of each position: the portable body, compiled for this level.
///
/// # Safety
/// As `scalar::rope_table`, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn rope_table(args: &RopeTableArgs) {
    // SAFETY: the caller's promise.
    unsafe { scalar::rope(args) }
}
