//! Microkernels for x86-64 with AVX2, FMA, F16C and BMI2. Each equals its scalar twin bit for bit.

mod attention;
mod float;
mod q4;
mod q8;
mod q8_q16;

pub use attention::attention_f16;
pub use float::{matmul_f16, matmul_f32};
pub use q4::{matmul_q4_0, matmul_q4_0_q16, matmul_q4_1, matmul_q4_1_q16};
pub use q8::matmul_q8_0;
pub use q8_q16::matmul_q8_0_q16;

use bundle_format::plan::Encoding;

use super::scalar;
use crate::abi::{EmbedArgs, RopeTableArgs};

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
    embed_q4_0: Q4_0,
    embed_q4_1: Q4_1,
    embed_q8_0: Q8_0,
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
