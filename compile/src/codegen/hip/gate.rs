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
            () if is("matmul_many") || is("experts_many") || is("prefill") => 256,
            () if is("matmul_") || is("experts_") || is("router") || is("decode") => 256,
            () => 96,
        },
        matrix: [
            "matmul_few",
            "matmul_many",
            "experts_few",
            "experts_many",
            "prefill",
        ]
        .into_iter()
        .any(is),
        dot: ["matmul_one", "experts_one", "decode"].into_iter().any(is),
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

#[cfg(test)]
mod tests {
    use bundle_format::gpu::{Arg, Extent};
    use bundle_format::stability::Stability;

    use super::super::clang;
    use super::*;

    const CHIP: Chip = Chip {
        arch: "gfx1151",
        units: 40,
        shared: 64 << 10,
        stability: Stability::Balanced,
    };

    const PRELUDE: &str = "
#define GLOBAL extern \"C\" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(64, 64)))
#define DEVICE static __attribute__((device)) inline
DEVICE unsigned me() { return __builtin_amdgcn_workitem_id_x(); }
";

    fn kernel(symbol: &str, args: usize) -> Kernel {
        Kernel {
            symbol: symbol.into(),
            grid: [Extent::Fixed(1); 3],
            threads: 64,
            registers: 0,
            fixed_shared: 0,
            shared: 0,
            workspace: 0,
            tickets: 0,
            args: vec![Arg::Counts; args],
        }
    }

    /// The whole gate over what the compiler makes of some functions.
    fn gate(source: &str, kernel: &mut Kernel) -> Result<(), Error> {
        let compiled = clang::compile(&format!("{PRELUDE}{source}"), CHIP.arch).unwrap();
        check(&compiled.object, &CHIP, std::iter::once(kernel))
    }

    fn refused(source: &str, mut kernel: Kernel, texts: &[&str]) {
        let text = gate(source, &mut kernel).unwrap_err().to_string();
        for expected in texts {
            assert!(text.contains(expected), "no {expected:?} in: {text}");
        }
    }

    const CLEAN: &str = "GLOBAL void f(float* p, unsigned long n) {
        __attribute__((shared)) static float s[64]; s[me()] = p[me()]; __builtin_amdgcn_s_barrier(); p[me()] = s[63 - me()] + n; }";

    #[test]
    fn a_clean_kernel_passes_and_what_it_takes_is_entered() {
        let mut f = kernel("f", 2);
        gate(CLEAN, &mut f).unwrap();
        assert!((1..=24).contains(&f.registers), "{f:?}");
        assert_eq!(f.fixed_shared, 256);
        refused(CLEAN, kernel("g", 2), &["no kernel g"]);
    }

    #[test]
    fn spills_and_scratch_memory_are_refused() {
        let spills = "GLOBAL __attribute__((amdgpu_num_vgpr(24))) void f(float* p) {
            float v[96];
            for (int i = 0; i < 96; i++) v[i] = p[i * 64 + me()];
            __builtin_amdgcn_s_barrier();
            for (int j = 0; j < 9; j++) for (int i = 0; i < 96; i++) v[i] = v[i] * v[(i + 1) % 96] + p[j];
            for (int i = 0; i < 96; i++) p[i * 64 + me()] = v[i]; }";
        refused(spills, kernel("f", 1), &["kernel f: ", "spills"]);
        let indexed = "GLOBAL void f(float* p, unsigned long n) {
            float v[64];
            for (int i = 0; i < 64; i++) v[i] = p[i * 7];
            for (int i = 0; i < n; i++) v[(me() * i) & 63] += p[i];
            for (int i = 0; i < 64; i++) p[i * 64 + me()] = v[i]; }";
        refused(
            indexed,
            kernel("f", 2),
            &["kernel f: ", "bytes of scratch memory"],
        );
    }

    #[test]
    fn arguments_are_those_that_the_runner_passes() {
        refused(
            CLEAN,
            kernel("f", 3),
            &["takes 2 arguments; the plan gives 3"],
        );
        let narrow = "GLOBAL void f(float* p, unsigned n, float* q) { p[me()] = q[n]; }";
        refused(
            narrow,
            kernel("f", 3),
            &["argument 1 as by_value of 4 bytes at 8"],
        );
        let hidden = "GLOBAL void f(float* p) { p[me()] = __builtin_amdgcn_workgroup_size_x(); }";
        refused(hidden, kernel("f", 1), &["kernel f: takes"]);
    }

    #[test]
    fn sizes_are_those_of_the_plan_and_the_chip() {
        let mut wide = kernel("f", 2);
        wide.threads = 128;
        refused(CLEAN, wide, &["blocks of 64 threads", "expected 128"]);
        let mut large = kernel("f", 2);
        large.shared = 64 << 10;
        refused(
            CLEAN,
            large,
            &["bytes of shared memory", "gfx1151 has 65536"],
        );
        let many = "GLOBAL void f(float* p) {
            float v[160];
            for (int i = 0; i < 160; i++) v[i] = p[i * 64 + me()];
            __builtin_amdgcn_sched_barrier(0); __builtin_amdgcn_s_barrier();
            for (int i = 0; i < 160; i++) p[i * 64 + me()] = v[i] * v[159 - i]; }";
        refused(
            many,
            kernel("f", 1),
            &["vector registers; expected 1 to 96"],
        );
    }

    #[test]
    fn promised_instructions_are_there() {
        let none = CLEAN.replace(" f(", " matmul_many_0(");
        refused(
            &none,
            kernel("matmul_many_0", 2),
            &["no matrix instruction among"],
        );
        let none = CLEAN.replace(" f(", " decode_0(");
        refused(&none, kernel("decode_0", 2), &["no dot product among"]);
        let both = "
            typedef _Float16 H2 __attribute__((ext_vector_type(2)));
            typedef _Float16 H16 __attribute__((ext_vector_type(16)));
            typedef float F8 __attribute__((ext_vector_type(8)));
            GLOBAL void decode_0(H2* p, float* q) { q[me()] = __builtin_amdgcn_fdot2(p[me()], p[me() + 64], 0.f, false); }
            GLOBAL void prefill_0(H16* p, F8* q) { q[me()] = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(p[0], p[me()], q[me()]); }";
        gate(both, &mut kernel("decode_0", 2)).unwrap();
        gate(both, &mut kernel("prefill_0", 2)).unwrap();
    }

    #[test]
    fn objects_for_other_chips_are_refused() {
        let compiled = clang::compile(&format!("{PRELUDE}{CLEAN}"), "gfx1100").unwrap();
        let mut f = kernel("f", 2);
        let text = check(&compiled.object, &CHIP, std::iter::once(&mut f)).unwrap_err();
        assert!(text.to_string().contains("gfx1100"), "{text}");
        let mut cut = compiled.object;
        cut.truncate(100);
        assert!(check(&cut, &CHIP, std::iter::empty()).is_err());
    }
}
