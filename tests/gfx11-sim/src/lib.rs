//! Executes code objects of AMD's gfx1151 (RDNA 3.5), instruction by instruction, on a processor.
//!
//! There is an ELF of clang or `llvm-mc`, and no card: this crate loads it as the driver does, sets registers up as the
//! command processor does, and executes what the code says, in waves of 32 lanes. The arithmetic follows the pseudo-code
//! of the published "RDNA 3.5 Instruction Set Architecture" reference guide, opcode by opcode; encodings are LLVM's, which
//! the tests compare with.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use gfx11_sim::{CodeObject, Memory, Options, launch};
//!
//! let memory = Memory::new();
//! let object = CodeObject::load(&memory, &std::fs::read("kernels.hsaco")?)?;
//! let kernel = object.kernel("scale").ok_or("no such kernel")?;
//! let data = memory.alloc(4096);
//! memory.fill(data, 0, 4096)?;
//! let mut kernarg = data.to_le_bytes().to_vec();
//! kernarg.extend(2.5f32.to_le_bytes());
//! let stats = launch(&memory, kernel, [4, 1, 1], [256, 1, 1], 0, &kernarg, &Options::default())?;
//! println!("{} instructions", stats.instructions);
//! # Ok(())
//! # }
//! ```
//!
//! What is checked, always: every access of global memory, LDS and scratch lies inside an allocation; atomics are aligned;
//! code, constants and arguments are not written; instructions are known. What [`Options`] add: reads of bytes and of
//! registers that nothing wrote, races between waves on LDS. A [`Fault`] says what, where, which lane, and the text of the
//! instruction.
//!
//! What is not modelled: time (counters in [`Stats`] are inputs for a model of it), caches, and the counters of
//! `s_waitcnt`: loads are complete when the next instruction runs, so a missing wait is not noticed. f32 rounds to nearest
//! even only. Transcendentals (`v_exp_f32`, `v_rcp_f32`, ...) are correctly rounded or nearly so, where the chip is within
//! one unit in the last place, and flush denormals, as the chip does. Graphics, images and buffer resources are unknown
//! instructions.

mod code;
mod decode;
mod disasm;
mod dispatch;
mod exec;
mod fault;
mod float;
pub mod isa;
mod kernarg;
mod lds;
mod memory;
pub mod memory_op;
mod object;
mod operands;
mod probe;
mod stats;
mod wave;

pub use code::Code;
pub use decode::{decode, decode_all};
pub use disasm::{disassemble, mnemonic};
pub use dispatch::{Options, launch, launch_profiled};
pub use fault::{Fault, FaultKind};
pub use memory::{Access, Memory, MemoryError, Nearest};
pub use object::{Arg, CodeObject, Descriptor, Kernel, KernelMetadata, ObjectError, UserRegisters};
pub use probe::Probe;
pub use stats::{Classes, Profile, Stats};
