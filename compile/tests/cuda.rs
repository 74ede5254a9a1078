//! NVIDIA targets, as far as no GPU is needed: every kernel of small models in every encoding compiles, for Hopper and, in a
//! choice of forms, for every other chip (in all of them with `--ignored`), and passes the static gate, which fails the
//! compilation otherwise. NVRTC must be there: `examples/setup.sh` fetches it.

use std::collections::BTreeSet;
use std::path::Path;

use bundle_format::plan::{Encoding, KvDType, Plan, WeightLayout};
use bundle_format::target::Target;
use fastc::driver::{self, Compiled, Options};
use fastc::explain::{self, Scope};
use fastc::gguf::Gguf;
use fastc::progress::Silent;
use fastc::synth;

/// A random model in one of the named shapes, of one layer.
fn model(shape: &str, encoding: Encoding, folder: &Path) -> Vec<u8> {
    let path = folder.join("model.gguf");
    let options = synth::Options {
        shape: synth::Shape::named(shape).unwrap(),
        encoding,
        layers: Some(1),
        vocab: None,
        seed: 1,
        output: &path,
    };
    synth::synth(&options, &Silent).unwrap();
    std::fs::read(path).unwrap()
}

fn compile(model: &[u8], target: Target) -> Compiled {
    let gguf = Gguf::parse(model).unwrap();
    driver::compile_graph(&gguf, &Options::new(target), |_| {}, |_| {})
        .unwrap_or_else(|e| panic!("{target}: {e}"))
}

/// What the gate promises of a plan, said again here: it entered what each kernel takes, and all fits.
fn check(plan: &Plan, target: Target) {
    let most = target.block_shared().unwrap();
    let mut symbols = BTreeSet::new();
    for (i, launch) in plan.launches.iter().enumerate() {
        for variant in &launch.variants {
            // Or the next launch's kernels do its work, for one token.
            let joined = variant.is_joined()
                && variant.min_rows == 1
                && !plan.launches[i + 1].variants[0].kernels.is_empty();
            assert!(joined || !variant.kernels.is_empty(), "{}", launch.name);
        }
    }
    assert!(plan.sampling.is_some());
    for kernel in plan.kernels() {
        assert!((1..=255).contains(&kernel.registers), "{kernel:?}");
        assert!(kernel.registers * kernel.threads <= 65536, "{kernel:?}");
        assert!(kernel.fixed_shared + kernel.shared <= most, "{kernel:?}");
        symbols.insert(&kernel.symbol);
    }
    assert!(symbols.len() > 10, "{symbols:?}");
}

/// Compiles a shape in encodings for targets, and checks that its matrices are in the encoding.
fn compiles(shape: &str, encodings: &[Encoding], targets: &[Target]) {
    for &encoding in encodings {
        let folder = tempfile::tempdir().unwrap();
        let model = model(shape, encoding, folder.path());
        for &target in targets {
            let plan = compile(&model, target).plan;
            check(&plan, target);
            let mut matrices = plan
                .weights
                .iter()
                .filter(|w| w.layout == WeightLayout::Fragment16);
            assert!(matrices.any(|w| w.encoding == encoding), "{encoding:?}");
        }
    }
}

const GPUS: [Target; 6] = [
    Target::Sm80,
    Target::Sm86,
    Target::Sm89,
    Target::Sm90a,
    Target::Sm100a,
    Target::Sm120a,
];

// Some tests of like length, which run side by side.

/// Every form of codes and of scales.
const FORMS: [Encoding; 6] = [
    Encoding::F16,
    Encoding::Q4_0,
    Encoding::Q8_0,
    Encoding::Q4_K,
    Encoding::Q6_K,
    Encoding::MXFP4,
];

/// The chips but Hopper's have one source: it is the assembler that differs, so two forms do where all are done for the first.
const SOME: [Encoding; 2] = [Encoding::Q4_K, Encoding::F16];

#[test]
fn forms_for_ampere() {
    compiles("tiny256", &FORMS, &GPUS[..1]);
    compiles("tiny256", &SOME, &GPUS[1..2]);
}

#[test]
fn forms_for_ada_and_hopper() {
    compiles("tiny256", &SOME, &GPUS[2..3]);
    compiles("tiny256", &FORMS, &GPUS[3..4]);
}

#[test]
fn forms_for_blackwell() {
    compiles("tiny256", &SOME, &GPUS[4..]);
}

#[test]
#[ignore = "takes minutes: part of tests/run.sh --full"]
fn every_form_for_every_chip() {
    compiles("tiny256", &FORMS, &GPUS);
    compiles("tiny", &[Encoding::Q4_1], &GPUS);
    compiles("tiny-mixtral", &[Encoding::Q4_0], &GPUS);
}

/// Routers, and the kernels of experts for one token, few and many.
#[test]
fn mixtures_of_experts() {
    compiles(
        "tiny-mixtral",
        &[Encoding::Q4_0],
        &[Target::Sm80, Target::Sm90a, Target::Sm120a],
    );
}

#[test]
fn experts_that_are_shared_and_whose_rows_are_gathered() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny-qwen2moe", Encoding::Q8_0, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    for disabled in [vec![], vec!["index-experts".to_string()]] {
        let mut options = Options::new(Target::Sm90a);
        options.passes.disabled = disabled;
        let plan = driver::compile_graph(&gguf, &options, |_| {}, |_| {})
            .unwrap()
            .plan;
        check(&plan, Target::Sm90a);
        // Routers are done with the routes behind them.
        let joined: Vec<&str> = plan
            .launches
            .iter()
            .filter(|l| l.joins())
            .map(|l| l.name.as_str())
            .collect();
        assert_eq!(joined, ["blk.0.router"]);
    }
}

#[test]
fn the_other_encodings() {
    let others = [
        Encoding::BF16,
        Encoding::Q4_1,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q2_K,
        Encoding::Q3_K,
        Encoding::Q5_K,
        Encoding::IQ4_NL,
        Encoding::IQ4_XS,
    ];
    let all: BTreeSet<String> = others
        .iter()
        .chain(&FORMS)
        .map(|e| format!("{e:?}"))
        .collect();
    // F32 has no fragments.
    assert_eq!(all.len() + 1, Encoding::ALL.len());
    compiles("tiny256", &others, &[Target::Sm90a]);
    // Heads of 32, and a depth that no warp count divides.
    compiles("tiny", &[Encoding::Q4_1], &[Target::Sm86, Target::Sm90a]);
}

#[test]
fn two_compilations_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    model("tiny", Encoding::Q4_0, folder.path());
    let input = folder.path().join("model.gguf");
    let bytes = |name: &str| {
        let output = folder.path().join(name);
        driver::compile(&input, &output, &Options::new(Target::Sm90a), &Silent).unwrap();
        std::fs::read(output).unwrap()
    };
    let (first, second) = (bytes("a.fib"), bytes("b.fib"));
    assert!(first == second, "two compilations differ");
}

#[test]
fn explain_shows_kernels_and_what_they_take() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny", Encoding::Q4_0, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    let options = Options::new(Target::Sm86);
    let scope = Scope {
        layer: Some(0),
        tokens: 1,
        depth: None,
    };
    let text = explain::explain(&gguf, &options, scope).unwrap();
    let plan = compile(&model, Target::Sm86).plan;
    for kernel in plan.launches.iter().flat_map(|l| &l.variants[0].kernels) {
        let line = format!(
            "{} of {} threads, {} registers, {} bytes shared",
            kernel.symbol,
            kernel.threads,
            kernel.registers,
            kernel.fixed_shared + kernel.shared
        );
        assert!(text.contains(&line), "no {line:?} in: {text}");
    }
    assert!(text.contains("by nvrtc 13.0"), "{text}");
    let page = explain::page(&gguf, &options, "tiny").unwrap();
    let first = &plan.launches[0].variants[0].kernels[0];
    assert!(page.contains(&first.symbol));
}

/// Heads of 64 and of 128.
#[test]
fn keys_and_values_of_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let options = |target| Options {
        kv: KvDType::Q8_0,
        ..Options::new(target)
    };
    for (shape, targets) in [
        ("smollm2-135m", &[Target::Sm80, Target::Sm90a][..]),
        ("llama2-7b", &[Target::Sm90a]),
    ] {
        let model = model(shape, Encoding::Q4_0, folder.path());
        let gguf = Gguf::parse(&model).unwrap();
        for &target in targets {
            let compiled = driver::compile_graph(&gguf, &options(target), |_| {}, |_| {});
            let plan = compiled.unwrap_or_else(|e| panic!("{target}: {e}")).plan;
            assert_eq!(plan.kv[0].dtype, KvDType::Q8Rows);
            check(&plan, target);
        }
    }
}

#[test]
fn what_has_no_kernels_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny", Encoding::F32, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    let error = driver::compile_graph(&gguf, &Options::new(Target::Sm90a), |_| {}, |_| {});
    let text = error.err().unwrap().to_string();
    assert!(text.starts_with("unsupported: "), "{text}");
    assert!(
        text.contains("'token_embd.weight' is f32") && text.contains("for cpu"),
        "{text}"
    );
}
