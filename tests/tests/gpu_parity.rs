//! What only a GPU can show: that its device gives what the host and the reference device give.
//!
//! `cargo test --release -p e2e --test gpu_parity -- --ignored` on a machine that has one; FASTINFER_GPU names its target
//! (default: sm_90a). The models are random ones in the shapes of known ones, made here.
#![cfg(target_os = "linux")]

use e2e::gpu::Machine;
use e2e::gpu::model::{
    Model, RAGGED, draws_are_the_hosts, logits_are_the_references, steps_ahead_are_steps_one_by_one,
};
use fastrun::device::Device;
use fastrun::device::gpu::{GpuDevice, GpuOptions};

fn model(shape: &str, quant: &str, layers: u32, options: &[&str]) -> Model {
    Model::new(Machine::card(), shape, quant, layers, options)
}

#[test]
#[ignore = "needs a GPU"]
fn tokens_of_small_and_large_vocabularies_are_the_hosts() {
    draws_are_the_hosts(&model("tinyllama", "q4_0", 1, &[]), 40);
    draws_are_the_hosts(&model("smollm2-135m", "q4_0", 1, &[]), 20);
    draws_are_the_hosts(&model("llama3-8b", "q4_0", 1, &[]), 10);
}

#[test]
#[ignore = "needs a GPU"]
fn steps_ahead() {
    steps_ahead_are_steps_one_by_one(&model("smollm2-135m", "q4_0", 3, &[]), 40);
}

#[test]
#[ignore = "needs a GPU"]
fn logits_over_a_cache_of_f16_are_the_references() {
    logits_are_the_references(&model("smollm2-135m", "f16", 2, &[]), &RAGGED, 0.005);
    logits_are_the_references(&model("llama3-8b", "q4_0", 1, &[]), &RAGGED, 0.005);
}

#[test]
#[ignore = "needs a GPU"]
fn logits_over_a_cache_of_8_bits_are_the_references() {
    let options = ["--kv", "q8_0"];
    logits_are_the_references(&model("smollm2-135m", "f16", 2, &options), &RAGGED, 0.03);
    logits_are_the_references(&model("llama3-8b", "q4_0", 1, &options), &RAGGED, 0.03);
}

/// What can't be done says so with numbers.
#[test]
#[ignore = "needs a GPU"]
fn too_little_memory_is_told_with_numbers() {
    let model = model("smollm2-135m", "q4_0", 1, &[]);
    let open = |kv_bytes| {
        let options = GpuOptions {
            kv_bytes: Some(kv_bytes),
            ..GpuOptions::default()
        };
        GpuDevice::open(model.loaded.clone(), &options)
    };
    let text = match open(100) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("100 bytes suffice"),
    };
    assert!(text.contains("100 bytes"), "{text}");
    let blocks = 10 * model.loaded.plan().kv[0].block_bytes();
    assert_eq!(open(blocks).unwrap().kv_blocks(), [10]);
}
