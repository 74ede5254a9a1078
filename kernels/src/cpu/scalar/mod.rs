//! Microkernels in portable Rust: what runs where no vector level fits, and what the vector levels equal bit for bit.

mod attention;
mod embed;
mod matmul;
mod rope;

pub use attention::attention_f16;
pub use embed::{embed_f16, embed_f32, embed_q4_0, embed_q4_1, embed_q8_0};
pub use matmul::{
    matmul_f16, matmul_f32, matmul_q4_0, matmul_q4_0_q16, matmul_q4_1, matmul_q4_1_q16,
    matmul_q8_0, matmul_q8_0_q16,
};
pub use rope::rope_table;

pub(super) use embed::embed;
pub(super) use rope::rope;
