//! The executor of the CPU: all threads walk one list of launches together.
//!
//! From the ground up: [`barrier`] where threads meet, [`team`] the threads, [`partition`] who does which part of a launch,
//! [`program`] launches as pointers, ready to run, [`route`] who goes to which expert, [`walk`] one thread's way through them.

pub mod barrier;
pub mod partition;
pub mod program;
pub mod route;
pub mod team;
pub mod walk;
