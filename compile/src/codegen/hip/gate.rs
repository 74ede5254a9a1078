//! The static gate: what metadata and machine code say of each kernel, and what no kernel may do.

use bundle_format::gpu::Kernel;

use super::isa::{self, Mix};
use super::object::{Function, Object};
use super::target::Chip;
use crate::error::Error;

/// `EF_AMDGPU_MACH_AMDGCN_GFX1151`, and nothing of xnack or sramecc, which the chip doesn't have.
const FLAGS: u32 = 0x4a;

/// Lanes of a wavefront.
const WAVEFRONT: u32 = 32;

/// Bytes of an argument: each is a pointer or a number as wide as one.
const ARGUMENT: u32 = 8;

/// Vector registers of a unit for each lane, and how many a wavefront takes at a time; wavefronts of a unit, at most.
const UNIT_REGISTERS: u32 = 1536;
const GRANULE: u32 = 24;
const UNIT_WAVES: u32 = 16;

/// Shared memory of a pair of compute units, which have four vector units together.
const PAIR_SHARED: u32 = 128 << 10;
const PAIR_UNITS: u32 = 4;

/// What a kernel promises and may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Vector registers.
    pub registers: u32,
    /// Whether it is made of matrix instructions, and of dot products.
    pub matrix: bool,
    pub dot: bool,
}

/// The budget of a kernel, by what its name begins with: names are what templates are called.
pub fn budget(symbol: &str) -> Budget {
    let is = |name: &str| symbol.starts_with(name);
    Budget {
        // Those of many waves, with as few as five under way where results fill registers.
        registers: match () {
            () if is("matmul_many") || is("prefill") => 256,
            () if is("matmul_") || is("decode") => 256,
            () => 96,
        },
        matrix: is("matmul_few") || is("matmul_many") || is("prefill"),
        dot: is("matmul_one") || is("decode"),
    }
}

/// Enters into kernels what the object takes of a processor, and refuses an object that is for another chip, or in which a
/// kernel is missing, spills registers, uses scratch memory, takes other arguments than it is given, lacks the instructions
/// that it is for, or doesn't fit the chip.
pub fn check<'k>(
    object: &[u8],
    chip: &Chip,
    kernels: impl Iterator<Item = &'k mut Kernel>,
) -> Result<(), Error> {
    let object = Object::parse(object)?;
    is_for(&object, chip)?;
    for kernel in kernels {
        let function = object.functions.iter().find(|f| f.symbol == kernel.symbol);
        let function = function
            .ok_or_else(|| Error::Bug(format!("the object has no kernel {}", kernel.symbol)))?;
        one(kernel, function, chip)
            .map_err(|e| e.context(format_args!("kernel {}", kernel.symbol)))?;
        kernel.registers = function.vector_registers;
        kernel.fixed_shared = function.shared;
    }
    Ok(())
}

fn is_for(object: &Object, chip: &Chip) -> Result<(), Error> {
    let expected = format!("amdgcn-amd-amdhsa--{}", chip.arch);
    match object.flags == FLAGS && object.target == expected {
        true => Ok(()),
        false => Err(Error::Bug(format!(
            "the object is for {} with flags {:#x}; expected {expected} with {FLAGS:#x}",
            object.target, object.flags
        ))),
    }
}

/// Checks one kernel.
fn one(kernel: &Kernel, function: &Function, chip: &Chip) -> Result<(), Error> {
    let mix = isa::mix(function.code)
        .ok_or_else(|| Error::Bug("has an instruction that is not known".into()))?;
    let budget = budget(&kernel.symbol);
    memory(function, &mix)?;
    arguments(kernel, function)?;
    size(kernel, function, &budget, chip)?;
    promises(&budget, &mix)
}

/// Registers are registers.
fn memory(function: &Function, mix: &Mix) -> Result<(), Error> {
    let (vector, scalar) = (function.vector_spills, function.scalar_spills);
    if vector > 0 || scalar > 0 {
        return Err(Error::Bug(format!(
            "spills {vector} vector and {scalar} scalar registers; expected none of either"
        )));
    }
    if function.private > 0 || function.dynamic_stack || mix.scratch > 0 {
        return Err(Error::Bug(format!(
            "has {} bytes of scratch memory and {} instructions on it; expected none of either",
            function.private, mix.scratch
        )));
    }
    Ok(())
}

/// Arguments lie where the runner puts them: one behind the other, of eight bytes each, and there are no hidden ones.
fn arguments(kernel: &Kernel, function: &Function) -> Result<(), Error> {
    let (given, taken) = (kernel.args.len(), function.arguments.len());
    if given != taken {
        return Err(Error::Bug(format!(
            "takes {taken} arguments; the plan gives {given}"
        )));
    }
    for (i, argument) in function.arguments.iter().enumerate() {
        let offset = i as u32 * ARGUMENT;
        let known = matches!(argument.kind.as_str(), "global_buffer" | "by_value");
        if argument.offset != offset || argument.size != ARGUMENT || !known {
            return Err(Error::Bug(format!(
                "takes argument {i} as {} of {} bytes at {}; expected {ARGUMENT} bytes at {offset}",
                argument.kind, argument.size, argument.offset
            )));
        }
    }
    let size = given as u32 * ARGUMENT;
    if function.arguments_size != size {
        return Err(Error::Bug(format!(
            "takes {} bytes of arguments; expected {size}",
            function.arguments_size
        )));
    }
    Ok(())
}

/// A block of a kernel fits the chip, and its registers the budget.
fn size(kernel: &Kernel, function: &Function, budget: &Budget, chip: &Chip) -> Result<(), Error> {
    let registers = function.vector_registers;
    if !(1..=budget.registers).contains(&registers) {
        return Err(Error::Bug(format!(
            "has {registers} vector registers; expected 1 to {}",
            budget.registers
        )));
    }
    if function.wavefront != WAVEFRONT || function.threads != kernel.threads {
        return Err(Error::Bug(format!(
            "is for blocks of {} threads in wavefronts of {}; expected {} in wavefronts of {WAVEFRONT}",
            function.threads, function.wavefront, kernel.threads
        )));
    }
    let shared = function.shared + kernel.shared;
    if shared > chip.shared {
        return Err(Error::Unsupported(format!(
            "takes {shared} bytes of shared memory for this model; {} has {}. Compile the model for cpu",
            chip.arch, chip.shared
        )));
    }
    Ok(())
}

/// The instructions that a kernel is for are there.
fn promises(budget: &Budget, mix: &Mix) -> Result<(), Error> {
    let lacks = |what: &str| {
        Err(Error::Bug(format!(
            "has no {what} among {} instructions",
            mix.instructions
        )))
    };
    match () {
        () if budget.matrix && mix.matrix == 0 => lacks("matrix instruction"),
        () if budget.dot && mix.dot == 0 => lacks("dot product"),
        () => Ok(()),
    }
}

/// Wavefronts of a kernel that a vector unit has under way at a time: what registers and shared memory leave room for.
pub fn waves_of_unit(kernel: &Kernel) -> u32 {
    let registers = kernel.registers.max(1).next_multiple_of(GRANULE);
    let by_registers = UNIT_REGISTERS / registers;
    let of_block = kernel.threads.div_ceil(WAVEFRONT).max(1);
    let shared = (kernel.fixed_shared + kernel.shared).max(1);
    let by_shared = PAIR_SHARED / shared * of_block / PAIR_UNITS;
    UNIT_WAVES.min(by_registers).min(by_shared.max(1))
}
