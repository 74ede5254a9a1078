//! The graph IR: what one step of a model computes, before anything of a target is chosen.
//!
//! [`op`] the operations and their types, [`graph`] the graph and how to edit it, [`text`] a text form that parses back,
//! [`verify`] the rules, checked after every pass.

pub mod graph;
pub mod op;
pub mod text;
pub mod verify;

pub use graph::{
    Graph, Node, RopeFreqs, RopeScaling, Tensor, TensorId, TensorSource, Transform, ValueId,
};
pub use op::{Activation, Epilogue, HeadNorm, Op, Part, Prologue, Type};
