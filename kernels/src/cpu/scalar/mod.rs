//! Microkernels in portable Rust: what runs where no vector level fits, and what the vector levels equal bit for bit.

mod attention;
mod attention_f16;
mod attention_q8_0;
mod embed;
mod matmul;
mod rope;
mod route;

pub use attention_f16::attention_f16;
pub use attention_q8_0::attention_q8_0;
pub use embed::{
    embed_bf16, embed_f16, embed_f32, embed_iq4_nl, embed_iq4_xs, embed_mxfp4, embed_pairs,
    embed_q2_k, embed_q3_k, embed_q4_0, embed_q4_1, embed_q4_k, embed_q5_0, embed_q5_1, embed_q5_k,
    embed_q6_k, embed_q8_0,
};
pub use matmul::{
    matmul_bf16, matmul_f16, matmul_f32, matmul_iq4_nl, matmul_iq4_nl_q11, matmul_iq4_xs_q8k,
    matmul_iq4_xs_q11, matmul_mxfp4, matmul_mxfp4_q11, matmul_pairs, matmul_q2_k_q8k,
    matmul_q2_k_q11, matmul_q3_k_q8k, matmul_q3_k_q11, matmul_q4_0, matmul_q4_0_q11, matmul_q4_1,
    matmul_q4_1_q11, matmul_q4_k_q8k, matmul_q4_k_q11, matmul_q5_0, matmul_q5_0_q11, matmul_q5_1,
    matmul_q5_1_q11, matmul_q5_k_q8k, matmul_q5_k_q11, matmul_q6_k_q8k, matmul_q6_k_q11,
    matmul_q8_0, matmul_q8_0_q11,
};
pub use rope::rope_table;
pub use route::route;

pub(super) use embed::{embed, embed_of_pairs};
pub(super) use rope::rope;
pub(super) use route::choose;
