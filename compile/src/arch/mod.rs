//! Architectures: from a GGUF's metadata and tensors to the graph of one step. One file each.

mod config;
mod decoder;
mod gemma3;
mod import;
mod llama;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;

use bundle_format::model::Model;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;

/// An architecture that can be compiled.
struct Arch {
    /// GGUF's `general.architecture`.
    name: &'static str,
    /// Given the positions of a sequence.
    build: fn(&Gguf<'_>, u32) -> Result<Graph, Error>,
}

const ARCHS: &[Arch] = &[
    Arch {
        name: "llama",
        build: llama::build,
    },
    Arch {
        name: "qwen2",
        build: qwen2::build,
    },
    Arch {
        name: "qwen3",
        build: qwen3::build,
    },
    Arch {
        name: "qwen2moe",
        build: qwen2moe::build,
    },
    Arch {
        name: "qwen3moe",
        build: qwen3moe::build,
    },
    Arch {
        name: "gemma3",
        build: gemma3::build,
    },
    Arch {
        name: "phi3",
        build: phi3::build,
    },
];

/// The architecture that a file names.
///
/// # Errors
/// It names none, or one that is not known.
fn of(gguf: &Gguf<'_>) -> Result<&'static Arch, Error> {
    let name: &str = gguf.metadata.required("general.architecture")?;
    ARCHS.iter().find(|a| a.name == name).ok_or_else(|| {
        let known = known();
        Error::Unsupported(format!(
            "architecture '{name}'; this build compiles: {known}"
        ))
    })
}

/// The names of all architectures.
fn known() -> String {
    let names: Vec<&str> = ARCHS.iter().map(|a| a.name).collect();
    names.join(", ")
}

/// The positions that a model was trained for, and the metadata key that says so.
///
/// # Errors
/// The architecture is not known, or the key is missing.
pub fn trained_context(gguf: &Gguf<'_>) -> Result<(u32, String), Error> {
    let key = format!("{}.context_length", of(gguf)?.name);
    Ok((gguf.metadata.required(&key)?, key))
}

/// The graph of a model for sequences of `context` positions, of an architecture that is known by name.
pub fn build(gguf: &Gguf<'_>, context: u32) -> Result<Graph, Error> {
    (of(gguf)?.build)(gguf, context)
}

/// The facts of a model that its bundle records.
pub fn describe(gguf: &Gguf<'_>, vocab: u32) -> Result<Model, Error> {
    let arch: &str = gguf.metadata.required("general.architecture")?;
    let text = |key: &str| -> Result<String, Error> {
        Ok(gguf
            .metadata
            .optional::<&str>(key)?
            .unwrap_or_default()
            .to_string())
    };
    let number =
        |key: &str| -> Result<u32, Error> { Ok(gguf.metadata.required(&format!("{arch}.{key}"))?) };
    Ok(Model {
        arch: arch.to_string(),
        name: text("general.name")?,
        quantisation: gguf
            .metadata
            .optional::<u32>("general.file_type")?
            .map(file_type_name)
            .unwrap_or_default()
            .to_string(),
        parameters: gguf.tensors().iter().map(|t| t.elements()).sum(),
        layers: number("block_count")?,
        embedding: number("embedding_length")?,
        vocab,
        trained_context: number("context_length")?,
    })
}

/// Names of `general.file_type` (enum llama_ftype of llama.cpp's llama.h); the type of most tensors.
fn file_type_name(id: u32) -> &'static str {
    match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        25 => "IQ4_NL",
        30 => "IQ4_XS",
        32 => "BF16",
        38 => "MXFP4",
        _ => "",
    }
}
