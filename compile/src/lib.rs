//! Compiles a GGUF model into a FastInference bundle.

pub mod codegen;
pub mod error;
