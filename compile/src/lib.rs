//! Compiles a GGUF model into a FastInference bundle.
//!
//! In the order in which data flows: [`source`] the model's files,
//! [`gguf`] what is in them, [`arch`] its graph, [`ir`] what a graph is, [`passes`] its
//! rewriting, [`lower`] the plan, [`codegen`] its code, [`tokenizer`] its vocabulary, [`pack`] its weights,
//! [`emit`] the file,
//! [`output`] how files come to be. [`driver`] is the
//! pipeline on one screen, [`explain`] shows each of its stages, [`inspect`] what a
//! model file holds, [`synth`] makes models with random weights.

pub mod arch;
pub mod codegen;
pub mod driver;
pub mod emit;
pub mod error;
pub mod explain;
pub mod gguf;
pub mod inspect;
pub mod ir;
pub mod lower;
pub mod output;
pub mod pack;
pub mod passes;
pub mod progress;
pub mod source;
pub mod synth;
pub mod tokenizer;
