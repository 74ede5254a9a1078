//! The functions that every level has for each encoding: their names, once, and their form where levels differ in nothing but
//! their features.

/// Hands `make!` what it is given and the lookups of all encodings, `name: encoding,`.
macro_rules! each_embed {
    ($make:ident! $($given:tt)*) => {
        $make! { $($given)*
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
    };
}

/// Hands `make!` what it is given and the products of all quantised encodings, `name with Q8 or Q8K rows, name with Q11
/// rows: encoding,`.
macro_rules! each_quantised {
    ($make:ident! $($given:tt)*) => {
        $make! { $($given)*
            matmul_q4_0, matmul_q4_0_q11: Q4_0,
            matmul_q4_1, matmul_q4_1_q11: Q4_1,
            matmul_q5_0, matmul_q5_0_q11: Q5_0,
            matmul_q5_1, matmul_q5_1_q11: Q5_1,
            matmul_q8_0, matmul_q8_0_q11: Q8_0,
            matmul_q2_k_q8k, matmul_q2_k_q11: Q2_K,
            matmul_q3_k_q8k, matmul_q3_k_q11: Q3_K,
            matmul_q4_k_q8k, matmul_q4_k_q11: Q4_K,
            matmul_q5_k_q8k, matmul_q5_k_q11: Q5_K,
            matmul_q6_k_q8k, matmul_q6_k_q11: Q6_K,
            matmul_iq4_nl, matmul_iq4_nl_q11: IQ4_NL,
            matmul_iq4_xs_q8k, matmul_iq4_xs_q11: IQ4_XS,
            matmul_mxfp4, matmul_mxfp4_q11: MXFP4,
        }
    };
}

/// Defines the functions of a level with a set of features. Where it stands, `quant::matmul` is the level's and `formats` has
/// the encodings.
#[cfg(target_arch = "x86_64")]
macro_rules! compiled_for {
    ($features:literal) => {
        each_embed! { compiled_for! @embed $features, }
        each_quantised! { compiled_for! @matmul $features, }

        /// Looks up and dequantises rows of pairs: the portable body, compiled for this level.
        ///
        /// # Safety
        /// As `scalar::embed_pairs`, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn embed_pairs(args: &crate::abi::EmbedArgs) {
            // SAFETY: the caller's promise.
            unsafe { crate::cpu::scalar::embed_of_pairs(args) }
        }

        /// Cosines and sines of each position: the portable body, compiled for this level.
        ///
        /// # Safety
        /// As `scalar::rope_table`, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn rope_table(args: &crate::abi::RopeTableArgs) {
            // SAFETY: the caller's promise.
            unsafe { crate::cpu::scalar::rope(args) }
        }

        /// Chooses each token's experts: the portable body, compiled for this level.
        ///
        /// # Safety
        /// As `scalar::route`, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn route(args: &crate::abi::RouteArgs) {
            // SAFETY: the caller's promise.
            unsafe { crate::cpu::scalar::choose(args) }
        }
    };
    (@embed $features:literal, $($name:ident: $encoding:ident,)*) => {$(
        /// Looks up and dequantises packed rows: the portable body, compiled for this level.
        ///
        /// # Safety
        /// As `scalar::embed`, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn $name(args: &crate::abi::EmbedArgs) {
            // SAFETY: the caller's promise.
            unsafe { crate::cpu::scalar::embed(args, bundle_format::plan::Encoding::$encoding) }
        }
    )*};
    (@matmul $features:literal, $($q8:ident, $q11:ident: $format:ident,)*) => {$(
        /// Quantised weights times Q8 rows, or Q8K rows where a block has 256 weights.
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn $q8(args: &crate::abi::MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quant::matmul::<formats::$format, 1>(args) }
        }

        /// Quantised weights times Q11 rows.
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = $features)]
        pub unsafe fn $q11(args: &crate::abi::MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quant::matmul::<formats::$format, 2>(args) }
        }
    )*};
}
