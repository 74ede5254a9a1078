//! Maps and runs a FastInference bundle.
//!
//! In the order in which data flows: [`device`] runs steps; [`kv`] counts its memory; [`step`] puts a step together;
//! [`engine`] serves requests on it.

pub mod device;
pub mod engine;
mod error;
pub mod kv;
mod scheduler;
mod sequence;
pub mod step;

pub use engine::{Config, Engine, Event, FinishReason, Progress, Request, RequestId};
pub use error::Error;
