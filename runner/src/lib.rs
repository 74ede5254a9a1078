//! Maps and runs a FastInference bundle.

pub mod device;
mod error;

pub use error::Error;
