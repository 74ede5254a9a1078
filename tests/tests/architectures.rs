//! Every architecture against an independent implementation: transformers' logits of small random models, whose GGUF files
//! lie beside them (tests/golden/architectures/make.py made both).

use std::path::Path;
use std::sync::Arc;

use e2e::architectures::{expected, run, worst};
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::load::Loaded;

/// Compiles the model of a name, with weights as they are or as integers, with and without fusions, and compares both devices with
/// transformers.
fn check(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let model = e2e::golden(&format!("architectures/{name}.gguf"));
    let expected = expected(name);
    let compile = |file: &str, options: &[&str]| {
        let path = folder.path().join(file);
        e2e::compile(Path::new(&model), &path, options);
        Arc::new(Loaded::open(&path).unwrap())
    };
    // Weights as they are.
    let exact = compile("exact.fib", &["--activations", "f32"]);
    let groups = exact.plan().kv.len();
    let mut reference = ReferenceDevice::open(exact.clone(), &ReferenceOptions::default()).unwrap();
    let found = run(&mut reference, &expected.ids, &[40], groups);
    let error = worst(&found, &expected.logits);
    assert!(
        error < 2e-4,
        "{name}: the reference device differs by {error}"
    );

    let options = CpuOptions {
        threads: Some(2),
        ..CpuOptions::default()
    };
    let bits = |rows: &[Vec<f32>]| {
        rows.iter()
            .flatten()
            .map(|x| x.to_bits())
            .collect::<Vec<_>>()
    };
    for (what, fused) in [("exact", exact), ("fused", compile("fused.fib", &[]))] {
        // The cache is f16.
        let mut cpu = CpuDevice::open(fused, &options).unwrap();
        let whole = run(&mut cpu, &expected.ids, &[40], groups);
        let error = worst(&whole, &expected.logits);
        assert!(error < 6e-3, "{name}, {what}: the CPU differs by {error}");
        let one_by_one = run(&mut cpu, &expected.ids, &[1; 40], groups);
        assert!(
            bits(&whole) == bits(&one_by_one),
            "{name}, {what}: other bits token by token"
        );
    }

    let optional = fastc::passes::PASSES.iter().filter(|p| p.optional);
    let disabled: Vec<&str> = optional.flat_map(|p| ["--disable-pass", p.name]).collect();
    let mut plain = CpuDevice::open(compile("plain.fib", &disabled), &options).unwrap();
    let error = worst(
        &run(&mut plain, &expected.ids, &[40], groups),
        &expected.logits,
    );
    assert!(
        error < 6e-3,
        "{name}: the CPU without fusions differs by {error}"
    );
}

macro_rules! architectures {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*

        /// No model without its test.
        #[test]
        fn every_model_of_the_folder_is_tested() {
            let tested = [$($name),*];
            let files = std::fs::read_dir(e2e::golden("architectures")).unwrap();
            let models = files.filter_map(|f| f.unwrap().file_name().into_string().ok());
            for model in models.filter_map(|f| f.strip_suffix(".gguf").map(str::to_string)) {
                assert!(tested.contains(&model.as_str()), "{model}");
            }
        }
    };
}

architectures! {
    llama: "llama",
    llama_with_linear_rope: "llama-linear",
    llama_with_rope_factors: "llama-factors",
    llama_with_yarn: "llama-yarn",
    mistral: "mistral",
    qwen2: "qwen2",
    qwen3: "qwen3",
    gemma3: "gemma3",
    qwen2moe: "qwen2moe",
    qwen3moe: "qwen3moe",
    mixtral: "mixtral",
    mixtral_with_a_tensor_for_each_expert: "mixtral-split",
    phi3: "phi3",
    phi3_beyond_its_first_context: "phi3-long",
}
