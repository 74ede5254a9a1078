//! What the tests share: clang, `llvm-mc` and `llvm-objdump`, and kernels assembled on the spot.
#![allow(dead_code)] // each test binary uses a part

use std::io::Write;
use std::process::{Command, Stdio};

use gfx11_sim::{CodeObject, Fault, Kernel, Memory, Options, Stats, launch};

/// Runs a tool of LLVM 19 on `input` and gives what it prints.
pub fn llvm(tool: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    run_llvm(tool, args, input, false)
}

/// As `llvm`, for input of which the tool refuses a part.
pub fn llvm_of_parts(tool: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    run_llvm(tool, args, input, true)
}

fn run_llvm(tool: &str, args: &[&str], input: &[u8], failing: bool) -> Vec<u8> {
    let child = Command::new(tool)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!("{tool} can't be started ({error}): these tests need LLVM 19 (Debian: apt install clang-19 lld-19 llvm-19)")
    });
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("a child that was started");
    // A tool that fails may not read all its input; its message is better than that of the broken pipe.
    let _ = writer.join();
    assert!(
        (failing || output.status.success()),
        "{tool} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Compiles HIP for gfx1151, as the compiler of bundles does.
pub fn compile(source: &str) -> Vec<u8> {
    compile_with(source, &[])
}

pub fn compile_with(source: &str, flags: &[&str]) -> Vec<u8> {
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = out.path().to_str().expect("a path in UTF-8").to_string();
    let mut args = vec![
        "-x",
        "hip",
        "--cuda-device-only",
        "--offload-arch=gfx1151",
        "--no-gpu-bundle-output",
    ];
    args.extend(["-nogpulib", "-nogpuinc", "-O3", "-"]);
    args.extend(flags);
    args.extend(["-o", &path]);
    let source = format!("{PRELUDE}{source}");
    llvm("clang-19", &args, source.as_bytes());
    std::fs::read(&path).expect("what clang wrote")
}

const PRELUDE: &str = r#"
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __device__ __attribute__((device))
#define KERNEL extern "C" __global__ void
typedef _Float16 half;
typedef unsigned int uint;
typedef unsigned long long ulong;
static inline __device__ int tid() { return __builtin_amdgcn_workitem_id_x(); }
static inline __device__ int bid() { return __builtin_amdgcn_workgroup_id_x(); }
static inline __device__ int bdim() { return __builtin_amdgcn_workgroup_size_x(); }
static inline __device__ void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
"#;

/// A code object in a memory of its own.
pub struct Gpu {
    pub memory: Memory,
    pub object: CodeObject,
}

impl Gpu {
    pub fn new(object: &[u8]) -> Self {
        let memory = Memory::new();
        let object = CodeObject::load(&memory, object).expect("a code object of clang loads");
        Self { memory, object }
    }

    pub fn kernel(&self, name: &str) -> &Kernel {
        self.object
            .kernel(name)
            .unwrap_or_else(|| panic!("no kernel {name}"))
    }

    pub fn upload<T: Bytes>(&self, data: &[T]) -> u64 {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.bytes()).collect();
        let address = self.memory.alloc(bytes.len() as u64);
        self.memory
            .write(address, &bytes)
            .expect("a fresh allocation");
        address
    }

    pub fn download<T: Bytes>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.memory
            .read(address, &mut bytes)
            .expect("an allocation of this size");
        bytes
            .chunks_exact(size_of::<T>())
            .map(T::from_bytes)
            .collect()
    }

    pub fn try_run(
        &self,
        name: &str,
        grid: u32,
        block: u32,
        args: &[Arg],
        options: &Options,
    ) -> Result<Stats, Box<Fault>> {
        launch(
            &self.memory,
            self.kernel(name),
            [grid, 1, 1],
            [block, 1, 1],
            0,
            &pack(args),
            options,
        )
    }

    pub fn run(&self, name: &str, grid: u32, block: u32, args: &[Arg]) -> Stats {
        self.try_run(name, grid, block, args, &Options::default())
            .unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// A kernel's argument.
#[derive(Clone, Copy)]
pub enum Arg {
    Ptr(u64),
    Int(i32),
    Float(f32),
}

/// Arguments one after another, each aligned to its size.
pub fn pack(args: &[Arg]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for arg in args {
        match arg {
            Arg::Ptr(address) => {
                out.resize(out.len().next_multiple_of(8), 0);
                out.extend(address.to_le_bytes());
            }
            Arg::Int(n) => out.extend(n.to_le_bytes()),
            Arg::Float(x) => out.extend(x.to_le_bytes()),
        }
    }
    out
}

/// Plain data of the host.
pub trait Bytes: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! bytes {
    ($($ty:ty)*) => {$(
        impl Bytes for $ty {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("as many bytes as the type has"))
            }
        }
    )*};
}
bytes!(u8 i8 u16 i16 u32 i32 f32 u64 i64 f64);

impl Bytes for half::f16 {
    fn bytes(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("two bytes"))
    }
}

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        self.bits() as i32 as f32 / 2f32.powi(31)
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}
