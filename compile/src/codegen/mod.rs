//! Code generation: from lowered regions to the bytes of a bundle's code section.

pub mod cpu;
mod cuda;
mod generate;
mod gpu;
mod hip;

pub use generate::{Code, choose, epilogue_features, generate, has_mixed_launches, has_prologues};
pub use gpu::work::{Context, Count, Turns, Work};
