//! Quantised block layouts, a naive reference of every op, CPU microkernels and their launch ABI.

pub mod abi;
