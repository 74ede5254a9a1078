//! Maps and runs a FastInference bundle.

pub mod device;
mod error;
pub mod executor;
pub mod load;
pub mod sampler;

pub use error::Error;
