//! Compiles a GGUF model into a FastInference bundle.
//!
//! In the order in which data flows: [`gguf`] the model file, [`arch`] its graph, [`ir`] what a graph is, [`passes`] its

pub mod arch;
pub mod error;
pub mod gguf;
pub mod ir;
pub mod lower;
pub mod passes;
