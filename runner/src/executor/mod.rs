//! The executor of the CPU: all threads walk one list of launches together.
//!
//! From the ground up: [`barrier`] where threads meet, [`claims`] how they share out what is to do, [`team`] the threads,
//! [`partition`] what the parts of a launch are, [`program`] launches as pointers, ready to run, [`part`] a thread's part of one,
//! [`route`] who goes to which expert, [`products`] parts of matmuls, [`walk`] one thread's way through all launches.

pub mod barrier;
pub mod claims;
pub mod part;
pub mod partition;
pub mod products;
pub mod program;
pub mod route;
pub mod team;
pub mod walk;
