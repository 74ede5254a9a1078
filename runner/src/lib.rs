//! Maps and runs a FastInference bundle.
//!
//! A [`Runner`] is all that an application needs: it opens a bundle, and answers requests from any number of threads.
//!
//! ```no_run
//! use fastrun::{GenerateRequest, Runner, Update};
//!
//! # fn main() -> Result<(), fastrun::Error> {
//! let runner = Runner::open("model.fib")?;
//! for update in runner.generate(GenerateRequest::new("Once upon a time"))? {
//!     match update {
//!         Update::Delta { text, .. } => print!("{text}"),
//!         Update::Prompt { .. } => {}
//!         Update::Finished { reason, usage, .. } => println!("\n({reason}, {} tokens)", usage.completion_tokens),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Beneath it, in the order in which data flows: [`load`] opens a bundle; [`chat`] turns messages into a prompt and
//! [`tokenizer`] that into tokens; [`engine`] serves requests, with [`kv`] to count memory, [`spec`] to guess ahead,
//! [`grammar`] to say what may follow, and [`step`] to put a step together; a [`device`] runs it, on the CPU through the
//! [`executor`], and draws tokens with the [`sampler`]. [`stop`] finds the strings that end an answer. [`supervise`] puts
//! the engine into a process of its own. Without the runner and its thread:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fastrun::device::SampleParams;
//! use fastrun::device::cpu::{CpuDevice, CpuOptions};
//! use fastrun::load::Loaded;
//! use fastrun::tokenizer::{EncodeOptions, Tokenizer};
//! use fastrun::{Config, Engine, Event, Progress, Request};
//!
//! # fn main() -> Result<(), fastrun::Error> {
//! let loaded = Arc::new(Loaded::open("model.fib".as_ref())?);
//! let tokenizer = Tokenizer::open(loaded.bundle().tokenizer())?;
//! let device = CpuDevice::open(loaded.clone(), &CpuOptions::default())?;
//! let config = Config::new(loaded.plan().limits, loaded.manifest().model.vocab);
//! let mut engine = Engine::new(device, config);
//! let options = EncodeOptions {
//!     parse_special: false,
//!     add_special: true,
//! };
//! engine.add(Request {
//!     prompt: tokenizer.encode("Once upon a time", options),
//!     max_tokens: Some(20),
//!     sampling: SampleParams {
//!         top_k: 40,
//!         top_p: 0.95,
//!         temperature: 0.8,
//!         seed: 1,
//!         ..SampleParams::default()
//!     },
//!     stop: tokenizer.vocab().end_of_generation().collect(),
//!     ..Request::default()
//! })?;
//! let mut text = tokenizer.decode_stream(false);
//! while engine.step() != Progress::Idle {
//!     for event in engine.take_events() {
//!         match event {
//!             Event::Token { token, .. } => print!("{}", text.push(token)?),
//!             Event::Finished { reason, .. } => println!("\n({reason})"),
//!             Event::Scored { .. } | Event::Hidden { .. } => {}
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod admission;
pub mod chat;
pub mod device;
#[cfg(target_os = "linux")]
pub mod doctor;
pub mod engine;
mod error;
pub mod executor;
pub mod grammar;
pub mod kv;
pub mod load;
mod masks;
mod pace;
mod request;
pub mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
#[cfg(feature = "server")]
pub mod serve;
pub mod spec;
pub mod step;
pub mod stop;
pub mod supervise;
pub mod tokenizer;

pub use engine::{Config, Engine, Progress, Stats};
pub use error::Error;
pub use request::{Event, FinishReason, Request, RequestId};
pub use runner::{GenerateRequest, Generation, Input, Runner, RunnerOptions, Update};
