//! The bundle: one hashed file that holds everything a runner needs to serve a model.
//!
//! This crate is the ground that the compiler and the runner share. It owns the byte layout (FORMAT.md), the types of the
//! plan, the hashes, a reader that checks every bound, and a deterministic writer. It opens no file and takes no decision.
//!
//! In the order in which data flows:
//! [`target`] what a bundle runs on, [`region`] element-wise code, [`stability`] profiles of GPUs, [`plan`] launches, buffers and weights, [`model`] the
//! manifest, [`layout`] where sections lie, [`hash`] and [`codec`] their hashes and encoding, [`mod@write`] the writer, [`read`]
//! the reader, [`validate`] what it checks before anyone may use a plan, [`tokenizer`] the vocabulary's section, [`error`]
//! what can be wrong.

pub mod codec;
pub mod error;
pub mod gpu;
pub mod hash;
pub mod layout;
pub mod model;
pub mod plan;
pub mod read;
pub mod region;
pub mod stability;
pub mod target;
pub mod tokenizer;
pub mod validate;
pub mod write;

pub use error::{Error, ErrorKind};
pub use read::Bundle;
pub use write::Writer;
