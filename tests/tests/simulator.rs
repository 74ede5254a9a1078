//! The kernels for gfx1151, executed by the simulator of that chip with all its checks: products, whole small models, drawing,
//! and the real one. An access outside of memory, a read of what nothing wrote or a race fails the step that it happens in.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use bundle_format::plan::Encoding;
use bundle_format::stability::Stability;
use bundle_format::target::Target;
use e2e::architectures::{self, worst};
use e2e::gpu::Machine;
use e2e::gpu::alone::{launches_are_the_references, launches_of};
use e2e::gpu::experts;
use e2e::gpu::model::{
    Model, compile_for, draws_are_the_hosts, logits_are_the_references,
    steps_ahead_are_steps_one_by_one, synth,
};
use e2e::gpu::ops;
use e2e::gpu::product::Product;
use e2e::gpu::products::{NORMED, SHAPES, agree, encodings};
use e2e::models;
use fastc::driver::Options;
use fastc::progress::Silent;
use fastc::synth::{self as synthetic, Shape};
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::{Device, TokenSource, Want};
use fastrun::load::Loaded;
use gfx11_sim::isa::Kind;
use gfx11_sim::{Code, CodeObject, Memory, disassemble, mnemonic};

const KV_BYTES: u64 = 16 << 20;

/// Where a model comes from.
#[derive(Clone, Copy)]
enum Source {
    /// A shape that has a name, an encoding, and layers.
    Shape(&'static str, &'static str, u32),
    /// A shape that has a name, made small: its layers, dimensions of a head, queries to a key.
    Like(&'static str, u32, u32, u32),
    /// A file of tests/golden/architectures.
    Architecture(&'static str),
    /// The one of the README.
    Real,
}

/// What runs here: a name, a model, and options of its compilation.
const MODELS: &[(&str, Source, &[&str])] = &[
    ("qwen2", Source::Architecture("qwen2"), SMALL),
    ("phi3", Source::Architecture("phi3"), SMALL),
    ("phi3-long", Source::Architecture("phi3-long"), SMALL),
    ("qwen2moe", Source::Architecture("qwen2moe"), SMALL),
    ("qwen3moe", Source::Architecture("qwen3moe"), SMALL),
    ("mixtral", Source::Architecture("mixtral"), SMALL),
    // Norms of queries and keys; and with them norms behind each part, windows, GeGLU and heads of 256.
    (
        "qwen3",
        Source::Like("qwen3-8b", 1, 64, 2),
        &["--host-draws"],
    ),
    (
        "gemma3",
        Source::Like("gemma3-1b", 6, 256, 2),
        &["--host-draws"],
    ),
    // Heads whose halves are no whole blocks of a cache of 8 bits.
    (
        "heads-96",
        Source::Like("llama3-8b", 1, 96, 2),
        &[
            "--kv",
            "q8_0",
            "--ctx",
            "512",
            "--stability",
            "fast",
            "--host-draws",
        ],
    ),
    // Tokens are drawn from its logits.
    ("tiny", Source::Shape("tiny", "q4_0", 2), &["--ctx", "512"]),
    (
        "batch",
        Source::Shape("tiny256", "q4_0", 1),
        &[
            "--ctx",
            "256",
            "--max-batch",
            "33",
            "--stability",
            "fast",
            "--host-draws",
        ],
    ),
    (
        "smollm2",
        Source::Real,
        &["--ctx", "256", "--max-batch", "1", "--host-draws"],
    ),
];

const SMALL: &[&str] = &["--ctx", "64", "--max-batch", "3", "--host-draws"];

/// A bundle that is made once.
type Slot = Arc<OnceLock<Arc<Loaded>>>;

/// A bundle that several tests use.
fn bundle(name: &str, make: impl FnOnce(&Path)) -> Arc<Loaded> {
    static ALL: Mutex<BTreeMap<String, Slot>> = Mutex::new(BTreeMap::new());
    let slot = ALL.lock().unwrap().entry(name.into()).or_default().clone();
    let make = || {
        let folder = e2e::root().join("target/e2e/simulator");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.fib"));
        make(&path);
        Arc::new(Loaded::open(&path).unwrap())
    };
    slot.get_or_init(make).clone()
}

fn model(name: &str) -> Model {
    let (_, source, options) = MODELS.iter().find(|(n, ..)| *n == name).unwrap();
    let loaded = bundle(name, |path| {
        let own = tempfile::tempdir().unwrap();
        let made = own.path().join("model.gguf");
        let gguf = match *source {
            Source::Architecture(name) => e2e::golden(&format!("architectures/{name}.gguf")),
            Source::Real => models::smollm2(),
            Source::Shape(shape, quant, layers) => {
                synth(shape, quant, layers, &made);
                made
            }
            Source::Like(name, layers, head_dim, group) => {
                small(name, layers, head_dim, group, &made);
                made
            }
        };
        compile_for(Machine::simulator(), &gguf, path, options);
    });
    Model::of(Machine::simulator(), loaded).with_kv_bytes(KV_BYTES)
}

/// Makes a model like one whose shape has a name, with heads of `head_dim` dimensions, `group` queries to a key.
fn small(name: &str, layers: u32, head_dim: u32, group: u32, path: &Path) {
    let like = Shape::named(name).unwrap();
    let heads = group.max(2);
    let shape = Shape {
        layers,
        embedding: head_dim * heads,
        heads,
        kv_heads: heads / group,
        head_dim,
        feed_forward: 128,
        vocab: None,
        context: 1024,
        window: like.window.map(|_| 48),
        ..*like
    };
    let options = synthetic::Options {
        shape: &shape,
        encoding: Encoding::Q4_0,
        layers: None,
        vocab: None,
        seed: 1,
        output: path,
    };
    synthetic::synth(&options, &Silent).unwrap();
}

fn products() -> impl Iterator<Item = Product> {
    encodings().enumerate().map(|(i, encoding)| {
        let (features, depth) = SHAPES[i % SHAPES.len()];
        Product {
            encoding,
            features,
            depth,
            target: Target::Gfx1151,
            portable: false,
            // With a norm in the prologue, of each form of the kernel for one row.
            normed: NORMED.contains(&encoding),
        }
    })
}

fn product(product: &Product) -> Arc<Loaded> {
    bundle(&product.name(), |path| product.write(path))
}

/// Every encoding, in one of two shapes, by each kernel: for one row, for up to 16 and 32, and for many. Rows of the last
/// group of 16, and of 64, are there or not.
#[test]
fn products_agree_with_f32_arithmetic() {
    let machine = Machine::simulator();
    agree(&machine, products(), &[1, 2, 16, 17, 33, 70], product);
}

/// Some architectures against transformers' logits: all in one step, in steps of odd sizes, and the last tokens one by one.
fn architecture(name: &str) {
    let model = model(name);
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
    biases: "qwen2",
    matrices_that_are_one_in_the_file: "phi3",
    rope_beyond_its_first_context: "phi3-long",
    experts_and_a_shared_one: "qwen2moe",
    many_experts: "qwen3moe",
    mixtral: "mixtral",
}

/// Chunks of odd sizes beside sequences that decode, to contexts of more than one share of decode attention.
const STEPS: [[u32; 3]; 5] = [[1, 17, 70], [1, 1, 1], [33, 100, 1], [1, 1, 1], [2, 1, 130]];

/// Each launch by itself, by every profile that the bundle has.
fn launches<const N: usize>(name: &str, steps: &[[u32; N]]) {
    for profile in model(name).loaded.plan().stability.clone() {
        launches_are_the_references(&model(name).by(profile.stability), steps);
    }
}

/// Every op and kind of region but products: embeddings in each encoding, norms, gates, rotations, writes of keys and values,
/// attention with heads of many sizes.
#[test]
fn each_op_is_the_references() {
    let loaded = single_ops();
    for profile in loaded.plan().stability.clone() {
        let model = Model::of(Machine::simulator(), loaded.clone()).with_kv_bytes(KV_BYTES);
        launches_are_the_references(&model.by(profile.stability), &STEPS);
    }
}

fn single_ops() -> Arc<Loaded> {
    bundle("ops", |path| {
        ops::write(&Options::new(Target::Gfx1151), path);
    })
}

fn mixture() -> Arc<Loaded> {
    bundle("experts", |path| {
        experts::write(&Options::new(Target::Gfx1151), path);
    })
}

/// Routers and products of experts, over numbers of tokens; all of them to one expert, and to those of equal logits.
#[test]
fn each_product_of_experts_is_the_references() {
    let loaded = mixture();
    for profile in loaded.plan().stability.clone() {
        let model = Model::of(Machine::simulator(), loaded.clone()).with_kv_bytes(KV_BYTES);
        let steps = [[1], [2], [33], [90]];
        launches_of(&model.by(profile.stability), &steps, experts::BAD);
    }
}

/// Launches of a lone token that one kernel does: a router and its route, beside the shared expert's gate and up; its down beside
/// the experts' gate and up; the experts' down and the sum.
#[test]
fn joined_launches_are_the_references() {
    for (name, joined) in [("qwen2moe", 3), ("mixtral", 2)] {
        let plan = model(name).loaded.plan().clone();
        let of_layer = plan.launches.iter().filter(|l| {
            let balanced = l
                .variants
                .iter()
                .filter(|v| v.profiles.has(Stability::Balanced));
            l.name.starts_with("blk.0.") && balanced.clone().any(|v| v.is_joined())
        });
        assert_eq!(of_layer.count(), joined, "{name}");
        launches(name, &[[1], [1], [3]]);
    }
}

/// A token that can't be sent anywhere is an error of its step, which names it; the device goes on.
#[test]
fn a_router_without_numbers_is_an_error() {
    let model = Model::of(Machine::simulator(), mixture()).with_kv_bytes(KV_BYTES);
    let mut run = model.run();
    let want = Want {
        logits: true,
        ..Want::default()
    };
    for count in [1, 20] {
        let mut tokens: Vec<TokenSource> = (0..count).map(TokenSource::Id).collect();
        *tokens.last_mut().unwrap() = TokenSource::Id(experts::BAD);
        let step = run.step(&[tokens], &[vec![want.clone()]]);
        let ticket = run.device.submit(step).unwrap();
        let error = loop {
            match run.device.poll(ticket) {
                Ok(None) => {}
                Ok(Some(_)) => panic!("a NaN was routed"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("route 0"), "{error}");
        assert!(
            error.contains(&format!("position {}", count - 1)),
            "{error}"
        );
        run.forget();
    }
    let step = run.step(&[vec![TokenSource::Id(3)]], &[vec![want]]);
    let ticket = run.device.submit(step).unwrap();
    assert_eq!(run.wait(ticket).rows.len(), 1);
}

#[test]
fn norms_of_queries_and_keys() {
    launches("qwen3", &STEPS[..3]);
    logits_are_the_references(&model("qwen3"), &STEPS, 0.005);
}

#[test]
fn heads_of_96_in_8_bits() {
    launches("heads-96", &STEPS[..3]);
}

#[test]
fn windows_and_heads_of_256() {
    launches("gemma3", &STEPS[..3]);
    logits_are_the_references(&model("gemma3"), &STEPS, 0.01);
}

#[test]
fn tokens_drawn_are_the_hosts() {
    draws_are_the_hosts(&model("tiny"), 3);
}

#[test]
fn steps_ahead_are_those_one_by_one() {
    steps_ahead_are_steps_one_by_one(&model("tiny"), 6);
}

/// Steps of 32 sequences that decode, and one more that does or has a prompt, each with a context of its own, by every
/// stability profile.
#[test]
fn a_batch_of_32_touches_only_what_is_its_own() {
    let prompts = std::array::from_fn::<u32, 33, _>(|s| 1 + 3 * s as u32 % 29);
    let mut beside_a_prompt = [1; 33];
    beside_a_prompt[7] = 40;
    let profiles = model("batch").loaded.plan().stability.clone();
    assert_eq!(profiles.len(), Stability::ALL.len());
    for profile in profiles {
        let model = model("batch").by(profile.stability);
        launches_are_the_references(&model, &[prompts, [1; 33], beside_a_prompt]);
    }
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

    let mut device = model("smollm2").run().device;
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

/// All the code that is executed here, by the bundles' names.
fn objects() -> Vec<(String, Arc<Loaded>)> {
    let products = products().map(|p| (p.name(), product(&p)));
    let models = MODELS
        .iter()
        .map(|(name, ..)| (name.to_string(), model(name).loaded));
    let others = [("ops", single_ops()), ("experts", mixture())];
    let others = others.map(|(name, loaded)| (name.to_string(), loaded));
    products.chain(models).chain(others).collect()
}

/// Calls `f` with the instructions of each code object.
fn for_each_code(mut f: impl FnMut(&str, &[u8], &Code)) {
    for (name, loaded) in objects() {
        let file = loaded.bundle().code();
        let object = CodeObject::load(&Memory::new(), file).unwrap();
        f(&name, file, object.kernels().next().unwrap().code());
    }
}

/// What LLVM prints of a code object's instructions.
fn objdump(file: &[u8]) -> Vec<String> {
    let object = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(object.path(), file).unwrap();
    let mut command = Command::new("llvm-objdump-19");
    command
        .args(["-d", "--no-show-raw-insn", "--no-leading-addr"])
        .arg(object.path());
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(['\t', ' ']));
    // Behind // is the address; behind < the name of a branch's target.
    let plain = |line: &str| {
        line.split("//")
            .next()
            .unwrap_or_default()
            .split(" <")
            .next()
            .unwrap_or_default()
            .to_string()
    };
    lines
        .map(plain)
        .map(|line| words(&line))
        .filter(|line| !line.is_empty() && line != "...")
        .collect()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The simulator's decoder reads every instruction as LLVM's does.
#[test]
fn our_code_is_decoded_as_llvm_decodes_it() {
    let mut count = 0;
    for_each_code(|name, file, code| {
        let theirs = objdump(file);
        let ours: Vec<String> = code
            .insts()
            .iter()
            .map(|inst| words(&disassemble(inst)))
            .collect();
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours, theirs, "{name}, instruction {i}");
        }
        // LLVM leaves zeros at the end out.
        assert!(ours.len() >= theirs.len(), "{name}");
        count += theirs.len();
    });
    assert!(count > 100_000, "{count}");
}

/// What a row of the case table is about: an operation without the suffix of its encoding, and a pattern of lanes.
fn subjects(text: &str) -> Vec<String> {
    let mut subjects = vec![];
    for part in text.split(" :: ") {
        let name = part.split_whitespace().next().unwrap_or_default();
        let mut name = name;
        for suffix in ["_dpp", "_e32", "_e64"] {
            name = name.strip_suffix(suffix).unwrap_or(name);
        }
        subjects.push(name.to_string());
    }
    let patterns = [
        "quad_perm",
        "row_shl",
        "row_shr",
        "row_ror",
        "row_mirror",
        "row_half_mirror",
        "row_share",
        "row_xmask",
        "dpp8",
    ];
    let has = |pattern: &&str| {
        text.split_whitespace()
            .any(|word| word.split(':').next() == Some(*pattern))
    };
    subjects.extend(patterns.into_iter().filter(has).map(String::from));
    subjects
}

/// An operation that our code has and the table of cases lacks fails here (tests/gfx11-sim/tests/cases.txt).
#[test]
fn every_operation_of_our_code_has_a_case() {
    let table =
        std::fs::read_to_string(e2e::root().join("tests/gfx11-sim/tests/cases.txt")).unwrap();
    let first = |line: &str| {
        line.split(" | ")
            .next()
            .unwrap_or_default()
            .split("; ")
            .next()
            .unwrap_or_default()
            .to_string()
    };
    let known: BTreeSet<String> = table
        .lines()
        .flat_map(|line| subjects(&first(line)))
        .collect();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for_each_code(|name, _, code| {
        for inst in code.insts() {
            // What fills the space behind a kernel is not executed.
            if matches!(inst.kind, Kind::Unknown) || mnemonic(inst) == "s_code_end" {
                continue;
            }
            for subject in subjects(&disassemble(inst)) {
                if !known.contains(&subject) {
                    missing.insert(subject.clone(), format!("{name}: {}", disassemble(inst)));
                }
                found.insert(subject);
            }
        }
    });
    assert!(missing.is_empty(), "no case for: {missing:#?}");
    assert!(found.len() > 150, "{found:?}");
}
