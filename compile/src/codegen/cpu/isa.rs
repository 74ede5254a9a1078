//! Cranelift's side: processor features, and from a function to bytes.

use bundle_format::target::Target;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::Function;
use cranelift_codegen::isa::{CallConv, OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, isa};

/// The calling convention of `kernels::abi::RegionFn`, on every operating system.
pub const CALL_CONV: CallConv = CallConv::SystemV;

/// Name and version of the code generator, for the manifest: `cranelift 0.135.8`.
pub fn toolchain() -> String {
    format!("cranelift {}", cranelift_codegen::VERSION)
}

/// Machine code of `function`, which refers to nothing outside itself: its constants lie behind its instructions.
pub fn compile(function: Function, isa: &dyn TargetIsa) -> Result<Vec<u8>, String> {
    let mut context = Context::for_function(function);
    let compiled = context
        .compile(isa, &mut ControlPlane::default())
        .map_err(|e| format!("cranelift: {:?}\n{}", e.inner, e.func))?;
    let relocations = compiled.buffer.relocs();
    if !relocations.is_empty() {
        return Err(format!(
            "code refers to the outside, first by {:?}",
            relocations[0]
        ));
    }
    if let Some(trap) = compiled.buffer.traps().first() {
        return Err(format!("code may trap: {trap:?}"));
    }
    Ok(compiled.code_buffer().to_vec())
}

/// Flags are all explicit: nothing is read from the machine that compiles.
pub fn target_isa(target: Target) -> Result<OwnedTargetIsa, String> {
    let (triple, features) = match target {
        // Without vectors over 128 bits, nothing of the fourth level is of use: its flags change no byte of a model's code.
        Target::X86_64V3 | Target::X86_64V4 => ("x86_64-unknown-linux-gnu", X86_64_V3),
        _ => {
            return Err(format!(
                "{target} is no processor that Cranelift generates code for"
            ));
        }
    };
    let mut builder = isa::lookup_by_name(triple).map_err(|e| e.to_string())?;
    for feature in features {
        builder.enable(feature).map_err(|e| e.to_string())?;
    }
    let mut flags = settings::builder();
    for (name, value) in SHARED_FLAGS {
        flags.set(name, value).map_err(|e| e.to_string())?;
    }
    builder
        .finish(settings::Flags::new(flags))
        .map_err(|e| e.to_string())
}

/// Cranelift's names of what the third psABI level has.
const X86_64_V3: &[&str] = &[
    "has_cmpxchg16b",
    "has_popcnt",
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_avx",
    "has_avx2",
    "has_fma",
    "has_bmi1",
    "has_bmi2",
    "has_lzcnt",
];

/// No optimiser: [`super::emit`] already folds, hoists and orders, and the optimiser would undo the order, which keeps
/// the registers from overflowing (it keeps every vector constant in a register of its own).
const SHARED_FLAGS: &[(&str, &str)] = &[
    ("opt_level", "none"),
    ("regalloc_algorithm", "backtracking"),
    ("enable_verifier", "true"),
    ("is_pic", "true"),
    ("enable_probestack", "false"),
    ("unwind_info", "false"),
];
