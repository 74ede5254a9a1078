//! Maps and runs a FastInference bundle.

pub mod chat;
pub mod device;
mod error;
pub mod executor;
pub mod load;
pub mod sampler;
pub mod tokenizer;

pub use error::Error;
