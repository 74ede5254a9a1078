//! Maps and runs a FastInference bundle.
//!
//! In the order in which data flows: [`chat`] turns messages into a prompt and [`tokenizer`] that into tokens; [`engine`]
//! serves requests, with [`kv`] to count memory and [`step`] to put a step together; a [`device`] runs it.

pub mod chat;
pub mod device;
pub mod engine;
mod error;
pub mod kv;
mod scheduler;
mod sequence;
pub mod step;
pub mod tokenizer;

pub use engine::{Config, Engine, Event, FinishReason, Progress, Request, RequestId};
pub use error::Error;
