//! The part of AMD's HIP runtime that `fastrun` loads, with the gfx1151 simulator for a GPU: libgfx11_hip.so stands in for
//! libamdhip64.so (`FASTRUN_HIP=…/libgfx11_hip.so`), so that the real loader, argument packing and launch code run.
//!
//! [`queue`] is what a GPU's streams do: work that was put into one runs late, when somebody asks for its end, so that memory
//! of the host that is written too early, or read before its copy, shows. [`runtime`] is the state behind the functions,
//! [`exports`] the functions themselves, with the signatures, numbers and structures of hip_runtime_api.h (version 6 and later).
//!
//! Environment variables, for tests: `GFX11_HIP_MEMORY`, bytes of the GPU's memory (4 GiB); `GFX11_HIP_FAULT_AT`, the number of
//! the launch that fails with an illegal address, from 1 on (`GFX11_HIP_FAULT_ONCE` names a file that is made then, and while
//! it is there nothing fails); `GFX11_HIP_CAPTURE=0`, streams can't be
//! captured; `GFX11_HIP_CHECKS=0`, bounds alone are checked, not reads of what nothing wrote, nor
//! races; and, as AMD's has it, `AMD_SERIALIZE_KERNEL=3`, a launch has run when its function returns.

mod exports;
mod properties;
mod queue;
mod runtime;
mod status;

pub use exports::*;

/// What the first fault was: kernel, lane, address and instruction. HIP's statuses say no more than that there was one.
pub fn last_fault() -> Option<String> {
    runtime::runtime().told().map(String::from)
}

/// Lets a launch fail with an illegal address, so many after the last one that ran.
pub fn fail_launch(after: u64) {
    runtime::runtime().fail_launch(after);
}
pub use status::Status;
