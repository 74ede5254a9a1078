//! The AMD target, as far as no GPU is needed: every kernel of small models in every encoding compiles and passes the static gate,
//! which fails the compilation otherwise. clang and lld 19 must be there: `examples/setup.sh --amd` installs them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use bundle_format::plan::{Encoding, KvDType, Launch, Plan, WeightLayout};
use bundle_format::stability::Stability;
use bundle_format::target::Target;
use fastc::codegen;
use fastc::driver::{self, Compiled, Options};
use fastc::explain;
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

fn compile(model: &[u8], kv: KvDType) -> Compiled {
    let gguf = Gguf::parse(model).unwrap();
    driver::compile_graph(&gguf, &options(kv), |_| {}, |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Kernels that draw tokens are the same for all models: those of one are enough.
fn options(kv: KvDType) -> Options {
    Options {
        kv,
        draws: kv == KvDType::Q8_0,
        ..Options::new(Target::Gfx1151)
    }
}

/// A plan's stability profiles and what they choose, without what a version of clang decides.
fn profiles(plan: &Plan) -> String {
    let mut out = String::new();
    for profile in &plan.stability {
        let _ = writeln!(out, "{}, eager: {}", profile.stability, profile.eager);
        for rule in &profile.rules {
            let _ = writeln!(out, "  {}: {} ({})", rule.when, rule.choice, rule.reason);
        }
    }
    let shown = |l: &&Launch| !l.name.starts_with("blk.") || l.name.starts_with("blk.0.");
    for launch in plan.launches.iter().filter(shown) {
        let _ = writeln!(out, "{}", launch.name);
        for v in &launch.variants {
            let names: Vec<String> = v.profiles.iter().map(|p| p.to_string()).collect();
            let (first, last) = (v.min_rows, v.max_rows);
            let _ = writeln!(
                out,
                "  {first}..={last} [{}] {}",
                names.join(", "),
                v.reason
            );
            for k in &v.kernels {
                let name = k.symbol.rsplit_once('_').map_or("", |(name, _)| name);
                let grid = k.grid.map(|extent| format!("{extent:?}")).join(" x ");
                let (threads, shared, workspace) = (k.threads, k.shared, k.workspace);
                let _ = writeln!(
                    out,
                    "    {name}: {grid}, {threads} threads, {shared} bytes shared, {workspace} of workspace"
                );
            }
        }
    }
    out
}

/// What each profile chooses, as text. `BLESS=1 cargo test -p fastc --test hip` writes them anew.
#[test]
fn profiles_choose_as_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny", Encoding::Q4_1, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    for stability in Stability::ALL {
        let options = Options {
            stability,
            ..options(KvDType::F16)
        };
        let (_, mut plan) = driver::plan_graph(&gguf, &options, |_| {}, |_| {}).unwrap();
        codegen::choose(&mut plan, &options).unwrap();
        assert_eq!(plan.stability[0].stability, stability);
        let found = profiles(&plan);
        let name = format!("tests/golden/stability-{stability}.txt");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, found).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; run with BLESS=1", path.display()));
        assert!(
            expected == found,
            "{} differs from what is found; if that is meant, run with BLESS=1:\n{found}",
            path.display()
        );
    }
}

/// What the gate promises of a plan, said again here: it entered what each kernel takes, and all fits.
fn check(plan: &Plan) {
    let mut symbols = BTreeSet::new();
    for launch in &plan.launches {
        for variant in &launch.variants {
            // Or the next launch's kernels do its work, for one token.
            let joined = variant.is_joined() && variant.min_rows == 1;
            assert!(joined || !variant.kernels.is_empty(), "{}", launch.name);
        }
    }
    for kernel in plan.kernels() {
        assert!((1..=256).contains(&kernel.registers), "{kernel:?}");
        assert!(
            kernel.fixed_shared + kernel.shared <= 64 << 10,
            "{kernel:?}"
        );
        symbols.insert(&kernel.symbol);
    }
    let kinds = [
        "embed",
        "matmul_one",
        "matmul_few",
        "matmul_many",
        "decode",
        "prefill",
    ];
    let draws = plan.sampling.iter().map(|_| "sample_draw");
    for kind in kinds.into_iter().chain(draws) {
        assert!(
            symbols.iter().any(|s| s.starts_with(kind)),
            "no {kind} in {symbols:?}"
        );
    }
}

fn compiles(shape: &str, encodings: &[Encoding], kv: KvDType) -> Vec<Plan> {
    let compiled = encodings.iter().map(|&encoding| {
        let folder = tempfile::tempdir().unwrap();
        let plan = compile(&model(shape, encoding, folder.path()), kv).plan;
        check(&plan);
        let mut matrices = plan
            .weights
            .iter()
            .filter(|w| w.layout == WeightLayout::Fragment16);
        assert!(matrices.any(|w| w.encoding == encoding), "{encoding:?}");
        plan
    });
    compiled.collect()
}

/// An encoding of each kind of code and of scale, in whole models. Products of every encoding are compiled, and executed, by the
/// tests of the simulator.
#[test]
fn encodings_of_each_form() {
    let encodings = [
        Encoding::F16,
        Encoding::Q5_1,
        Encoding::Q3_K,
        Encoding::MXFP4,
    ];
    compiles("tiny256", &encodings, KvDType::F16);
}

/// Heads of 64 and of 128, of either kind of cache, in the widths of real models.
#[test]
fn heads_and_caches() {
    compiles("llama2-7b", &[Encoding::Q4_0], KvDType::F16);
    let drawing = compiles("smollm2-135m", &[Encoding::Q4_0], KvDType::Q8_0);
    assert!(drawing.iter().all(|plan| plan.sampling.is_some()));
}

/// The page tells of profiles and of speed.
#[test]
fn the_page_has_profiles_and_speed() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny", Encoding::Q4_1, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    let page = explain::page(&gguf, &options(KvDType::F16), "tiny").unwrap();
    let (_, rest) = page.split_once(r#"type="application/json">"#).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    let data: serde_json::Value = serde_json::from_str(json).unwrap();
    let names: Vec<&str> = data["stability"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["balanced", "strict"]);
    assert_eq!(data["speed"]["of"], "gfx1151, profile balanced");
    for step in data["speed"]["steps"].as_array().unwrap() {
        assert!(step["rate"].as_f64().unwrap() > 1.0, "{step}");
        assert!(!step["kernels"].as_array().unwrap().is_empty());
    }
}

#[test]
fn two_compilations_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    model("tiny", Encoding::Q4_0, folder.path());
    let input = folder.path().join("model.gguf");
    let bytes = |name: &str| {
        let output = folder.path().join(name);
        driver::compile(&input, &output, &options(KvDType::F16), &Silent).unwrap();
        std::fs::read(output).unwrap()
    };
    let (first, second) = (bytes("a.fib"), bytes("b.fib"));
    assert!(first == second, "two compilations differ");
}

#[test]
fn what_has_no_kernels_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny", Encoding::F32, folder.path());
    let gguf = Gguf::parse(&model).unwrap();
    let error = driver::compile_graph(&gguf, &options(KvDType::F16), |_| {}, |_| {});
    let text = error.err().unwrap().to_string();
    assert!(text.starts_with("unsupported: "), "{text}");
}
