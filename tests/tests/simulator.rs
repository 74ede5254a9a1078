//! The kernels for gfx1151, executed by the simulator of that chip with all its checks: products, whole small models, drawing,
//! and the real one. An access outside of memory, a read of what nothing wrote or a race fails the step that it happens in.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::sync::Arc;

use bundle_format::plan::Encoding;
use bundle_format::target::Target;
use e2e::architectures::{self, worst};
use e2e::gpu::Machine;
use e2e::gpu::model::{
    Model, draws_are_the_hosts, logits_are_the_references, steps_ahead_are_steps_one_by_one,
};
use e2e::gpu::product::Product;
use e2e::gpu::products::{SHAPES, agree, encodings};
use e2e::models;
use fastc::progress::Silent;
use fastc::synth::{self, Shape};
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::load::Loaded;
use tempfile::TempDir;

const KV_BYTES: u64 = 16 << 20;

fn model(shape: &str, quant: &str, layers: u32, options: &[&str]) -> Model {
    Model::new(Machine::simulator(), shape, quant, layers, options).with_kv_bytes(KV_BYTES)
}

/// Every encoding, in one of two shapes, by each kernel: for one row, for up to 16 and 32, and for many. Rows of the last
/// group of 16, and of 64, are there or not.
#[test]
fn products_agree_with_f32_arithmetic() {
    let products = encodings().enumerate().map(|(i, encoding)| {
        let (features, depth) = SHAPES[i % SHAPES.len()];
        Product {
            encoding,
            features,
            depth,
            target: Target::Gfx1151,
            portable: false,
        }
    });
    let folder = TempDir::new().unwrap();
    agree(
        &Machine::simulator(),
        products,
        &[1, 2, 16, 17, 33, 70],
        |product| {
            let path = folder.path().join(product.name());
            product.write(&path);
            Arc::new(Loaded::open(&path).unwrap())
        },
    );
}

/// Every architecture against transformers' logits: all in one step, in steps of odd sizes, and the last tokens one by one.
fn architecture(name: &str) {
    let gguf = e2e::golden(&format!("architectures/{name}.gguf"));
    let options = ["--ctx", "64", "--max-batch", "2"];
    let model = Model::of(Machine::simulator(), &gguf, &options).with_kv_bytes(KV_BYTES);
    let expected = architectures::expected(name);
    let groups = model.loaded.plan().kv.len();
    let spread = expected.logits.iter().flatten().map(|x| x * x).sum::<f32>();
    let spread = (spread / (expected.logits.len() * expected.logits[0].len()) as f32).sqrt();
    let mut device = model.run().device;
    for chunks in [&[40][..], &[17, 20, 1, 1, 1]] {
        let found = architectures::run(&mut device, &expected.ids, chunks, groups);
        let error = worst(&found, &expected.logits) / spread;
        println!("{name} in chunks of {chunks:?}: {error}");
        assert!(error < 0.02, "{name}, {chunks:?}: {error}");
    }
}

macro_rules! architectures {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                architecture($name);
            }
        )*
    };
}

architectures! {
    architecture_llama: "llama",
    architecture_llama_with_yarn: "llama-yarn",
    architecture_mistral: "mistral",
    architecture_qwen2: "qwen2",
    architecture_qwen3: "qwen3",
    architecture_gemma3: "gemma3",
    architecture_phi3: "phi3",
}

/// A model of one layer whose heads are as wide as `head_dim`, `group` queries to a key.
fn heads(head_dim: u32, group: u32, folder: &TempDir) -> PathBuf {
    let shape = Shape {
        name: "heads",
        layers: 1,
        embedding: head_dim * group.max(2),
        heads: group.max(2),
        kv_heads: group.max(2) / group,
        head_dim,
        feed_forward: 128,
        ..*Shape::named("tiny256").unwrap()
    };
    let path = folder.path().join("heads.gguf");
    let options = synth::Options {
        shape: &shape,
        encoding: Encoding::Q4_0,
        layers: None,
        vocab: None,
        seed: 1,
        output: &path,
    };
    synth::synth(&options, &Silent).unwrap();
    path
}

/// Chunks of odd sizes beside sequences that decode, to contexts of more than one share of decode attention.
const STEPS: [[u32; 3]; 5] = [[1, 17, 70], [1, 1, 1], [33, 100, 1], [1, 1, 1], [2, 1, 130]];

fn attention(head_dim: u32, group: u32, options: &[&str], error: f32) {
    let folder = TempDir::new().unwrap();
    let gguf = heads(head_dim, group, &folder);
    let model = Model::of(Machine::simulator(), &gguf, options).with_kv_bytes(KV_BYTES);
    logits_are_the_references(&model, &STEPS, error);
}

#[test]
fn heads_of_32_in_f16() {
    attention(32, 4, &[], 0.005);
}

#[test]
fn heads_of_64_in_f16_and_8_bits() {
    attention(64, 1, &[], 0.005);
    attention(64, 3, &["--kv", "q8_0"], 0.03);
}

#[test]
fn heads_of_128_in_f16_and_8_bits() {
    attention(128, 8, &[], 0.005);
    attention(128, 4, &["--kv", "q8_0"], 0.03);
}

#[test]
fn tokens_drawn_are_the_hosts() {
    draws_are_the_hosts(&model("tiny", "q4_0", 1, &[]), 3);
}

#[test]
fn steps_ahead_are_those_one_by_one() {
    steps_ahead_are_steps_one_by_one(&model("tiny", "q4_0", 2, &[]), 6);
}

/// A step of 32 sequences that decode, beside one with a prompt, each with a context of its own.
#[test]
fn a_batch_of_32_touches_only_what_is_its_own() {
    let options = ["--ctx", "256", "--max-batch", "33"];
    let model = model("tiny256", "q4_0", 1, &options);
    let prompts = std::array::from_fn::<u32, 33, _>(|s| 1 + 5 * s as u32 % 61);
    let mut beside_a_prompt = [1; 33];
    beside_a_prompt[7] = 40;
    logits_are_the_references(&model, &[prompts, [1; 33], beside_a_prompt], 0.005);
}

/// The model of the README, on a text whose next token is known: the likeliest tokens are the CPU's, wherever these are
/// likelier than the next by a margin.
#[test]
fn the_likeliest_tokens_of_a_real_model_are_the_cpus() {
    const MARGIN: f32 = 0.3;
    let ids: Vec<u32> = std::fs::read_to_string(e2e::golden("text.smollm2.ids"))
        .unwrap()
        .split_whitespace()
        .take(8)
        .map(|id| id.parse().unwrap())
        .collect();
    let cpu = Arc::new(Loaded::open(e2e::bundle()).unwrap());
    let mut cpu = CpuDevice::open(cpu, &CpuOptions::default()).unwrap();
    let expected = architectures::run(&mut cpu, &ids, &[8], 1);

    let options = ["--ctx", "256", "--max-batch", "1"];
    let model = Model::of(Machine::simulator(), &models::smollm2(), &options);
    let mut device = model.with_kv_bytes(KV_BYTES).run().device;
    let found = architectures::run(&mut device, &ids, &[5, 1, 1, 1], 1);
    let mut certain = 0;
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let likeliest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let first = likeliest(expected).unwrap();
        let others = (0..expected.len()).filter(|&id| id != first);
        let second = others.map(|id| expected[id]).fold(f32::MIN, f32::max);
        if expected[first] - second > MARGIN {
            certain += 1;
            assert_eq!(likeliest(found), Some(first), "token {i}");
        }
    }
    assert!(certain >= 4, "{certain} of the text's tokens are certain");
}
