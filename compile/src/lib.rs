//! Compiles a GGUF model into a FastInference bundle.

pub mod error;
pub mod gguf;
pub mod synth;
pub mod tokenizer;
