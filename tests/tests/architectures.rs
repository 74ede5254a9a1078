//! Every architecture against an independent implementation: transformers' logits of small random models, whose GGUF files
//! lie beside them (tests/golden/architectures/make.py made both).

use std::path::Path;
use std::sync::Arc;

use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

/// What transformers computed: token ids, and the logits of each position.
struct Expected {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(e2e::golden(&format!("architectures/{name}.logits"))).unwrap();
    let words: Vec<[u8; 4]> = bytes.as_chunks::<4>().0.to_vec();
    let (tokens, vocab) = (
        u32::from_le_bytes(words[0]) as usize,
        u32::from_le_bytes(words[1]) as usize,
    );
    assert_eq!(words.len(), 2 + tokens + tokens * vocab);
    let ids = words[2..2 + tokens]
        .iter()
        .map(|w| u32::from_le_bytes(*w))
        .collect();
    let floats: Vec<f32> = words[2 + tokens..]
        .iter()
        .map(|w| f32::from_le_bytes(*w))
        .collect();
    Expected {
        ids,
        logits: floats.chunks(vocab).map(<[f32]>::to_vec).collect(),
    }
}

/// Logits of every position, run in chunks of a size.
fn run(device: &mut dyn Device, ids: &[u32], chunk: usize, groups: usize) -> Vec<Vec<f32>> {
    let table: Arc<[u32]> = (0..ids.len().div_ceil(16) as u32).rev().collect();
    let mut logits = Vec::new();
    for start in (0..ids.len()).step_by(chunk) {
        let end = (start + chunk).min(ids.len());
        let slots: Vec<u32> = (start..end)
            .map(|p| table[p / 16] * 16 + p as u32 % 16)
            .collect();
        let step = Step {
            tokens: ids[start..end]
                .iter()
                .map(|&id| TokenSource::Id(id))
                .collect(),
            positions: (start as u32..end as u32).collect(),
            sequences: vec![0; end - start],
            kv: vec![
                StepKv {
                    slots,
                    tables: vec![table[..end.div_ceil(16)].into()],
                    ..StepKv::default()
                };
                groups
            ],
            rows: (0..(end - start) as u32).collect(),
            wants: vec![
                Want {
                    logits: true,
                    ..Want::default()
                };
                end - start
            ],
        };
        let ticket = device.submit(step).unwrap();
        let outcome = device
            .poll(ticket)
            .unwrap()
            .expect("both devices run a step when it is submitted");
        logits.extend(outcome.rows.into_iter().map(|r| r.logits.unwrap()));
    }
    logits
}

fn worst(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Compiles the model of a name, with and without fusions, and compares both devices with transformers.
fn check(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let model = e2e::golden(&format!("architectures/{name}.gguf"));
    let expected = expected(name);
    let compile = |file: &str, options: &[&str]| {
        let path = folder.path().join(file);
        e2e::compile(Path::new(&model), &path, options);
        Arc::new(Loaded::open(&path).unwrap())
    };
    let fused = compile("fused.fib", &[]);
    let groups = fused.plan().kv.len();
    let mut reference = ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
    let found = run(&mut reference, &expected.ids, 40, groups);
    let error = worst(&found, &expected.logits);
    assert!(
        error < 2e-4,
        "{name}: the reference device differs by {error}"
    );

    let options = CpuOptions {
        threads: Some(2),
        ..CpuOptions::default()
    };
    // The cache is f16.
    let mut cpu = CpuDevice::open(fused, &options).unwrap();
    let whole = run(&mut cpu, &expected.ids, 40, groups);
    let error = worst(&whole, &expected.logits);
    assert!(error < 6e-3, "{name}: the CPU differs by {error}");
    let one_by_one = run(&mut cpu, &expected.ids, 1, groups);
    let bits = |rows: &[Vec<f32>]| {
        rows.iter()
            .flatten()
            .map(|x| x.to_bits())
            .collect::<Vec<_>>()
    };
    assert!(
        bits(&whole) == bits(&one_by_one),
        "{name}: other bits token by token"
    );

    let optional = fastc::passes::PASSES.iter().filter(|p| p.optional);
    let disabled: Vec<&str> = optional.flat_map(|p| ["--disable-pass", p.name]).collect();
    let mut plain = CpuDevice::open(compile("plain.fib", &disabled), &options).unwrap();
    let error = worst(
        &run(&mut plain, &expected.ids, 40, groups),
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
