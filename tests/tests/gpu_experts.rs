//! Mixtures of experts on a GPU, against the reference device and against an independent implementation.
//!
//! `cargo test --release -p e2e --test gpu_experts -- --ignored` on a machine that has one; FASTINFER_GPU names its target
//! (default: sm_90a), which has the kernels of its own and those of other chips (`--portable-kernels`).
#![cfg(target_os = "linux")]

use std::path::Path;
use std::sync::Arc;

use e2e::architectures;
use e2e::experts::{
    COUNTS, SHAPES, agree_within, bits, compiled, differences, ids, model, run, step, with_router,
};
use e2e::gpu::Machine;
use fastrun::Error;
use fastrun::device::gpu::GpuDevice;
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::load::Loaded;

/// Activations are f16: rows differ by less, but for tokens that go elsewhere.
const TOLERANCE: f32 = 0.01;

fn gpu(loaded: &Arc<Loaded>) -> GpuDevice {
    Machine::card().open(loaded.clone(), 64 << 20, None)
}

fn reference(loaded: &Arc<Loaded>) -> ReferenceDevice {
    ReferenceDevice::open(loaded.clone(), &ReferenceOptions::default()).unwrap()
}

/// A model for the GPU; with its own kernels or those of every chip.
fn for_gpu(model: &Path, portable: bool, options: &[&str]) -> Arc<Loaded> {
    let target = Machine::card().target.to_string();
    let mut all = vec!["--target", &target];
    all.extend(portable.then_some("--portable-kernels"));
    all.extend(options);
    compiled(model, &all)
}

/// Compares steps of so many tokens with the reference device, and each with itself.
fn agrees(loaded: &Arc<Loaded>, counts: &[usize], what: &str) {
    let (mut device, mut reference) = (gpu(loaded), reference(loaded));
    for &count in counts {
        let ids = ids(count);
        let found = run(&mut device, step(&ids, 0, count)).unwrap();
        let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
        let rows = differences(&found, &expected);
        println!("{what}, {count} tokens: {}", rows[(rows.len() - 1) * 7 / 8]);
        agree_within(
            TOLERANCE,
            &found,
            &expected,
            &format!("{what}, {count} tokens"),
        );
        let again = run(&mut device, step(&ids, 0, count)).unwrap();
        assert!(
            bits(&found) == bits(&again),
            "{what}, {count} tokens: other bits"
        );
    }
}

fn every_number_of_tokens(portable: bool) {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q4_0");
        for options in [&[][..], &["--disable-pass", "index-experts"]] {
            let loaded = for_gpu(&model, portable, options);
            let what = format!("{shape} {options:?}");
            agrees(
                &loaded,
                &[&COUNTS[..], &[4, 8, 9, 65, 130, 300]].concat(),
                &what,
            );
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_number_of_tokens_agrees_with_the_reference() {
    every_number_of_tokens(false);
}

#[test]
#[ignore = "needs a GPU"]
fn every_number_of_tokens_agrees_with_the_reference_by_the_kernels_of_other_chips() {
    every_number_of_tokens(true);
}

#[test]
#[ignore = "needs a GPU"]
fn encodings_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for quant in ["f16", "bf16", "q8_0", "q4_k", "q5_k", "q6_k", "mxfp4"] {
        let model = model(folder.path(), "tiny-mixtral", quant);
        agrees(&for_gpu(&model, false, &[]), &[1, 5, 40, 130], quant);
    }
}

/// The sizes of models that are used, of a layer.
#[test]
#[ignore = "needs a GPU"]
fn layers_of_known_models_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for shape in ["qwen15-moe", "qwen3-30b-a3b"] {
        let path = folder.path().join(format!("{shape}.gguf"));
        e2e::gpu::model::synth(shape, "q4_0", 1, &path);
        agrees(&for_gpu(&path, false, &[]), &[1, 2, 8, 33, 100], shape);
        std::fs::remove_file(path).unwrap();
    }
}

/// Equal logits: every token goes to the first experts, and nobody to the others.
#[test]
#[ignore = "needs a GPU"]
fn ties_send_all_tokens_to_the_first_experts() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q8_0");
        let loaded = for_gpu(&with_router(&model, "ties", |_| 0.0), false, &[]);
        let (mut device, mut reference) = (gpu(&loaded), reference(&loaded));
        for count in [1, 2, 70, 512] {
            let ids = ids(count);
            let found = run(&mut device, step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            // Nothing lies close: all is equal.
            let rows = differences(&found, &expected);
            let worst = rows[rows.len() - 1];
            assert!(worst < TOLERANCE, "{shape}, {count} tokens: {worst}");
        }
    }
}

/// Each token goes to one of two experts first, whose blocks then have all their rows.
#[test]
#[ignore = "needs a GPU"]
fn all_tokens_may_go_to_two_experts() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q4_0");
        let noise = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        // Embeddings have 128 features. Of opposite signs, one of the two is far above all others.
        let path = with_router(&model, "two", |i| match i / 128 {
            2 => 10.0 * noise(i % 128),
            3 => -10.0 * noise(i % 128),
            _ => 0.01 * noise(i),
        });
        agrees(&for_gpu(&path, false, &[]), &[1, 3, 64, 200, 512], shape);
    }
}

/// A router whose logits are no numbers is an error of the step that says where; it doesn't hang, and the device goes on.
#[test]
#[ignore = "needs a GPU"]
fn logits_that_are_not_finite_are_an_error_of_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "tiny-qwen3moe", "q4_0");
    for (name, value) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let path = with_router(&model, name, |i| if i == 200 { value } else { 0.01 });
        let mut device = gpu(&for_gpu(&path, false, &[]));
        for count in [1, 40, 300] {
            let text = match run(&mut device, step(&ids(count), 0, count)) {
                Err(error @ Error::User(_)) => error.to_string(),
                other => panic!("{name}: {count} tokens: {other:?}"),
            };
            for says in ["blk.0.route", "token 0 of", "position 0", "finite"] {
                assert!(text.contains(says), "{text}");
            }
        }
    }
}

/// What transformers computed, for those of its models whose matrices have whole fragments.
#[test]
#[ignore = "needs a GPU"]
fn small_models_agree_with_another_implementation() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2moe", "qwen3moe", "mixtral"] {
        let model = e2e::golden(&format!("architectures/{name}.gguf"));
        let expected = architectures::expected(name);
        let bundle = folder.path().join(format!("{name}.fib"));
        let target = Machine::card().target.to_string();
        e2e::compile(Path::new(&model), &bundle, &["--target", &target]);
        let loaded = Arc::new(Loaded::open(&bundle).unwrap());
        for chunks in [&[40][..], &[1; 40], &[3, 20, 17]] {
            let mut device = gpu(&loaded);
            let groups = loaded.plan().kv.len();
            let found = architectures::run(&mut device, &expected.ids, chunks, groups);
            let error = architectures::worst(&found, &expected.logits);
            println!("{name}, {} chunks: {error}", chunks.len());
            // Activations are f16 between all launches that multiply.
            assert!(error < 1e-2, "{name}, {} chunks: {error}", chunks.len());
        }
    }
}
