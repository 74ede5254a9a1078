//! The bundle: one hashed file that holds everything a runner needs to serve a model.
//!
//! This crate is the ground that the compiler and the runner share. It owns the byte layout (FORMAT.md), the types of the
//! plan, the hashes, a reader that checks every bound, and a deterministic writer. It opens no file and takes no decision.
//!
//! In the order in which data flows:
//! [`target`] what a bundle runs on, [`region`] element-wise code, [`plan`] launches, buffers and weights, [`model`] the
//! manifest.

pub mod model;
pub mod plan;
pub mod region;
pub mod target;
pub mod tokenizer;
