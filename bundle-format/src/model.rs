//! The manifest: what the bundle was made from, by what, and for what.

use serde::{Deserialize, Serialize};

use crate::target::Target;

/// The first section of a bundle. It holds no path, time or host name: the same input gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `fastc` and its version.
    pub compiler: String,
    /// Exact versions of the code generators that made the code section, `cranelift 0.135.8`.
    pub toolchain: Vec<String>,
    /// Version of the zstd library that compressed the small sections.
    pub zstd: String,
    /// blake3 of the GGUF file.
    pub source_hash: [u8; 32],
    pub target: Target,
    /// Processor features that the code needs; a runner refuses those that it doesn't know or the processor lacks.
    pub features: Vec<String>,
    /// Version of the microkernel table and launch ABI (`kernels::abi::VERSION`).
    pub kernel_abi: u32,
    /// The options that shaped the bundle, as `name=value`, sorted.
    pub options: Vec<String>,
    pub model: Model,
}

/// Facts about the model that the runner shows or needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// GGUF's `general.architecture`.
    pub arch: String,
    /// GGUF's `general.name`, or empty.
    pub name: String,
    /// GGUF's `general.file_type` by name, or empty: `Q4_1`.
    pub quantisation: String,
    pub parameters: u64,
    pub layers: u32,
    pub embedding: u32,
    pub vocab: u32,
    /// Positions that the model was trained for; the plan's context may be smaller.
    pub trained_context: u32,
}
