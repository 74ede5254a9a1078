//! The static gate: what assembler and machine code say of each kernel, and what no kernel may do.

use bundle_format::gpu::Kernel;

use super::nvrtc::Compiled;
use super::sass;
use super::target::Chip;
use crate::error::Error;

/// Registers a thread has at most, and those of all of a processor's threads, which a warp takes 256 at a time.
const MAX_REGISTERS: u32 = 255;
const PROCESSOR_REGISTERS: u32 = 65536;
const WARP_REGISTERS: u32 = 256;

/// What the assembler says when it gives up the overlap of matrix instructions.
const SERIALISED: &str = "Potential Performance Loss";

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    symbol: String,
    registers: u32,
    /// Bytes of shared memory that the object has.
    shared: u32,
    stack: u32,
    spills: u32,
}

/// The kernels that spill registers, by the assembler's word.
pub fn spilling(compiled: &Compiled) -> Vec<String> {
    let reports = parse(&compiled.log).into_iter();
    reports.filter(|r| r.spills > 0).map(|r| r.symbol).collect()
}

/// Enters into kernels what the object takes of a processor, and refuses an object in which one is missing, spills
/// registers, keeps arrays in memory or does not fit the chip.
pub fn check<'k>(
    compiled: &Compiled,
    chip: &Chip,
    kernels: impl Iterator<Item = &'k mut Kernel>,
    shape: impl Fn(&str) -> String,
) -> Result<(), Error> {
    if let Some(line) = compiled.log.lines().find(|l| l.contains(SERIALISED)) {
        return Err(Error::Bug(format!("the assembler warns: {}", line.trim())));
    }
    let reports = parse(&compiled.log);
    let accesses = sass::local_accesses(&compiled.cubin)?;
    for kernel in kernels {
        one(kernel, &reports, &accesses)
            .and_then(|()| fits(kernel, chip))
            .map_err(|e| e.context(shape(&kernel.symbol)))?;
    }
    Ok(())
}

/// Checks one kernel's code, and enters what it takes.
fn one(kernel: &mut Kernel, reports: &[Report], accesses: &[(String, usize)]) -> Result<(), Error> {
    let symbol = &kernel.symbol;
    let report = reports
        .iter()
        .find(|r| r.symbol == *symbol)
        .ok_or_else(|| Error::Bug(format!("the assembler says nothing of kernel {symbol}")))?;
    report.check()?;
    match accesses.iter().find(|(name, _)| name == symbol) {
        Some((_, 0)) => {}
        Some((_, n)) => {
            return Err(Error::Bug(format!(
                "kernel {symbol} has {n} instructions on local memory; expected none"
            )));
        }
        None => {
            return Err(Error::Bug(format!("the object has no kernel {symbol}")));
        }
    }
    kernel.registers = report.registers;
    kernel.fixed_shared = report.shared;
    Ok(())
}

impl Report {
    fn check(&self) -> Result<(), Error> {
        let symbol = &self.symbol;
        if self.registers == 0 || self.registers > MAX_REGISTERS {
            return Err(Error::Bug(format!(
                "kernel {symbol} has {} registers; expected 1 to {MAX_REGISTERS}",
                self.registers
            )));
        }
        if self.spills > 0 || self.stack > 0 {
            return Err(Error::Bug(format!(
                "kernel {symbol} spills {} bytes of registers and has {} bytes of stack; expected none of either",
                self.spills, self.stack
            )));
        }
        Ok(())
    }
}

/// Whether a block of a kernel fits a processor.
fn fits(kernel: &Kernel, chip: &Chip) -> Result<(), Error> {
    let symbol = &kernel.symbol;
    let warp = (kernel.registers * 32).next_multiple_of(WARP_REGISTERS);
    let block = warp * kernel.threads.div_ceil(32);
    if block > PROCESSOR_REGISTERS {
        return Err(Error::Bug(format!(
            "kernel {symbol}: {} threads of {} registers take {block}; a processor has {PROCESSOR_REGISTERS}",
            kernel.threads, kernel.registers
        )));
    }
    let shared = kernel.fixed_shared + kernel.shared;
    if shared > chip.shared {
        return Err(Error::Unsupported(format!(
            "kernel {symbol} of this model takes {shared} bytes of shared memory; {} has {}. Compile the model for a chip that \
             has more, or for cpu",
            chip.arch, chip.shared
        )));
    }
    Ok(())
}

/// Reads lines as
///
/// ```text
/// ptxas info    : Compiling entry function 'matmul_3' for 'sm_90a'
/// ptxas info    : Function properties for matmul_3
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 64 registers, used 1 barriers, 4228 bytes smem
/// ```
fn parse(log: &str) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let symbol = rest.split('\'').next().unwrap_or_default().to_string();
            reports.push(Report {
                symbol,
                ..Report::default()
            });
            continue;
        }
        let Some(report) = reports.last_mut() else {
            continue;
        };
        if let Some((_, rest)) = line.split_once("Used ") {
            report.registers = number(rest);
            let smem = rest.split(',').find(|part| part.contains("bytes smem"));
            report.shared = smem.map_or(0, number);
        } else if line.contains("bytes stack frame") {
            let mut parts = line.split(',');
            // Behind `ptxas .`, or not.
            let stack = parts.next().and_then(|part| part.split(" bytes").next());
            let stack = stack.and_then(|part| part.split_whitespace().next_back());
            report.stack = stack.map_or(0, number);
            report.spills = parts.map(number).sum();
        }
    }
    reports
}

/// The number that a text begins with; 0 where there is none.
fn number(text: &str) -> u32 {
    let digits: String = text
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use bundle_format::gpu::Extent;

    use super::super::nvrtc;
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 4228 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
ptxas         .     8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
";

    fn reports() -> Vec<Report> {
        parse(LOG)
    }

    #[test]
    fn reports_say_what_the_assembler_says() {
        let one = Report {
            symbol: "one".into(),
            registers: 64,
            shared: 4228,
            stack: 0,
            spills: 0,
        };
        assert_eq!(reports()[0], one);
        assert!(one.check().is_ok());
        let text = reports()[1].check().unwrap_err().to_string();
        assert!(text.contains("kernel two spills 28 bytes"), "{text}");
        assert!(text.contains("8 bytes of stack"), "{text}");
    }

    const CHIP: Chip = Chip {
        arch: "sm_86",
        processors: 84,
        shared: 99 << 10,
        hopper: false,
    };

    fn kernel(symbol: &str, threads: u32, shared: u32) -> Kernel {
        Kernel {
            symbol: symbol.into(),
            grid: [Extent::Fixed(1); 3],
            threads,
            registers: 0,
            fixed_shared: 0,
            shared,
            workspace: 0,
            tickets: 0,
            args: Vec::new(),
        }
    }

    /// The whole gate over what a compiler makes of these functions.
    fn gate(source: &str, arch: &'static str, kernel: &mut Kernel) -> Result<(), Error> {
        let chip = Chip { arch, ..CHIP };
        check(
            &nvrtc::compile(source, arch).unwrap(),
            &chip,
            std::iter::once(kernel),
            |symbol| format!("the shape of {symbol}"),
        )
    }

    const ARCHS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"];

    #[test]
    fn a_clean_kernel_passes_and_what_it_takes_is_entered() {
        let source = "extern \"C\" __global__ void __launch_bounds__(256) f(float* p) {
            __shared__ float s[300]; s[threadIdx.x] = p[threadIdx.x]; __syncthreads(); p[threadIdx.x] = s[255 - threadIdx.x]; }";
        for arch in ARCHS {
            let mut f = kernel("f", 256, 1000);
            gate(source, arch, &mut f).unwrap();
            assert!((4..=64).contains(&f.registers), "{f:?}");
            assert!((1200..1200 + 1025).contains(&f.fixed_shared), "{f:?}");
            let text = gate(source, arch, &mut kernel("g", 256, 0)).unwrap_err();
            assert!(text.to_string().contains("kernel g"), "{text}");
            let text = gate(source, arch, &mut kernel("f", 256, 99 << 10)).unwrap_err();
            assert!(
                text.to_string().contains("bytes of shared memory"),
                "{text}"
            );
        }
    }

    /// 96 values that are all alive, in 32 registers; an array by a number that is not known: both are refused, by the
    /// assembler's words and by the instructions alone.
    #[test]
    fn a_kernel_that_spills_is_refused() {
        let spills = "extern \"C\" __global__ void __launch_bounds__(1024, 2) f(float* p) {
            float v[96];
            for (int i = 0; i < 96; i++) v[i] = p[i * 1024 + threadIdx.x];
            __syncthreads();
            for (int j = 0; j < 9; j++) for (int i = 0; i < 96; i++) v[i] = v[i] * v[(i + 1) % 96] + p[j];
            for (int i = 0; i < 96; i++) p[i * 1024 + threadIdx.x] = v[i]; }";
        let indexed = "extern \"C\" __global__ void f(float* p, int n) {
            float v[32];
            for (int i = 0; i < 32; i++) v[i] = p[i * 7];
            for (int i = 0; i < n; i++) v[(i * n) & 31] += p[i];
            for (int i = 0; i < 32; i++) p[i * 7] = v[i]; }";
        for arch in ARCHS {
            for source in [spills, indexed] {
                let text = gate(source, arch, &mut kernel("f", 32, 0)).unwrap_err();
                let text = text.to_string();
                // For some chips the assembler says nothing of it.
                let told = ["kernel f spills", "kernel f has"];
                assert!(text.contains("the shape of f: "), "{text}");
                assert!(told.iter().any(|t| text.contains(t)), "{arch}: {text}");
                let mut compiled = nvrtc::compile(source, arch).unwrap();
                compiled.log = LOG.replace("'one'", "'f'");
                let chip = Chip { arch, ..CHIP };
                let mut f = kernel("f", 32, 0);
                let text = check(&compiled, &chip, std::iter::once(&mut f), |_| String::new());
                let text = text.unwrap_err().to_string();
                assert!(
                    text.contains("instructions on local memory"),
                    "{arch}: {text}"
                );
            }
        }
    }

    #[test]
    fn too_many_registers_for_a_block_are_refused() {
        let mut big = kernel("one", 1024, 0);
        big.registers = 72;
        let text = fits(&big, &CHIP).unwrap_err().to_string();
        assert!(text.contains("take 73728"), "{text}");
    }

    #[test]
    fn a_warning_of_the_assembler_is_an_error() {
        let compiled = Compiled {
            cubin: Vec::new(),
            log:
                "ptxas info : (C7510) Potential Performance Loss: wgmma instructions are serialized"
                    .into(),
            version: String::new(),
        };
        let shape = |_: &str| String::new();
        assert!(check(&compiled, &CHIP, std::iter::empty(), shape).is_err());
    }
}
