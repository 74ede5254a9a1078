//! Quantised block layouts, a naive reference of every op, CPU microkernels and their launch ABI, sources of GPU kernels.
//!
//! In reading order: [`abi`] how the runner calls code, [`quant`] GGUF's blocks, [`pack`] the layout of packed weights,
//! [`reference`] what every op means, [`cpu`] the microkernels, [`device`] what GPUs run.

pub mod abi;
pub mod cpu;
pub mod device;
pub mod pack;
pub mod quant;
pub mod reference;
