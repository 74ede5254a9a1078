//! The part of NVIDIA's driver that `fastrun` loads, with a GPU that only remembers: libfake_cuda.so stands in for
//! libcuda.so.1 in a folder of LD_LIBRARY_PATH, so that what finds, judges and fills a GPU runs where there is none.
//!
//! Memory is the host's, copies copy, launches do nothing. As on a GPU, work that was put into a stream runs late, when
//! somebody asks for its end, so that memory of the host that is written too early, or read before its copy, shows.
//! [`gpu`] is the state behind the functions, [`exports`] the functions, with the signatures and numbers of cuda.h (version 13).
//!
//! Environment variables, for tests: `FAKE_CUDA_DRIVER`, what `cuDriverGetVersion` tells (13000); `FAKE_CUDA_INIT`, what `cuInit`
//! ends with (0); `FAKE_CUDA_DEVICES` (1); `FAKE_CUDA_NAME`; `FAKE_CUDA_CAPABILITY`, major * 10 + minor (90);
//! `FAKE_CUDA_MEMORY`, bytes of the GPU's memory (4 GiB); `FAKE_CUDA_CAPTURE=0`, streams can't be captured;
//! `FAKE_CUDA_FAULT_AT`, the number of the launch that fails with an illegal address when it runs, from 1 on;
//! `FAKE_CUDA_LOG`, a file that gets a line for each allocation, copy to the GPU and launch; `FAKE_CUDA_DUMP`, a file that gets the
//! GPU's memory, as allocations follow one another, when the first launch comes.

mod exports;
mod gpu;
#[allow(dead_code, reason = "the simulator's runtime uses more of it")]
#[path = "../../gfx11-hip/src/queue.rs"]
mod queue;
