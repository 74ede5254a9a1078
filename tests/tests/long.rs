//! Tests that take minutes (tests/run.sh --full).
#![cfg(all(feature = "full", target_os = "linux"))]

use e2e::gates;
use e2e::gpu::model::compile_for;
use e2e::gpu::{Machine, hip_library};

/// SmolLM2's kernels for gfx1151, in windows of 512 tokens, as whoever has such a GPU runs them: within the gates that hold for
/// the CPU, and without a fault of any kind.
#[test]
fn the_real_model_on_the_simulator_is_within_the_gates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smollm2.fib");
    let options = ["--ctx", "512", "--max-batch", "1"];
    compile_for(
        Machine::simulator(),
        &e2e::models::smollm2(),
        &path,
        &options,
    );
    let mut command = gates::perplexity(&path, "windows.smollm2.bin");
    command
        .args(["--kv-memory", "32M"])
        .env("FASTRUN_HIP", hip_library());
    gates::SMOLLM2.hold(command);
}
