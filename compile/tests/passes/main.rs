//! Golden texts of every pass over a small model. `BLESS=1 cargo test -p fastc --test passes` writes them anew.

mod activations;

use std::path::{Path, PathBuf};

use bundle_format::plan::{self, DType, Dim, Encoding, KvDType, Limits, Plan, WeightLayout};
use bundle_format::target::Target;
use fastc::codegen;
use fastc::driver::{self, Compiled, Options};
use fastc::explain::{self, Scope};
use fastc::gguf::Gguf;
use fastc::ir::{Graph, Node, Op, Type, text, verify};
use fastc::lower;
use fastc::passes::{self, Activations, PASSES, Settings, Stage};
use fastc::progress::Silent;
use fastc::synth;

/// A two-layer model with grouped-query attention and a head of its own.
fn model(folder: &Path) -> Vec<u8> {
    model_of(folder, "tiny")
}

fn model_of(folder: &Path, shape: &str) -> Vec<u8> {
    model_in(folder, shape, Encoding::Q4_1)
}

fn model_in(folder: &Path, shape: &str, encoding: Encoding) -> Vec<u8> {
    let path = folder.join("tiny.gguf");
    let options = synth::Options {
        shape: synth::Shape::named(shape).unwrap(),
        encoding,
        layers: None,
        vocab: None,
        seed: 1,
        output: &path,
    };
    synth::synth(&options, &Silent).unwrap();
    std::fs::read(path).unwrap()
}

struct Story {
    imported: Graph,
    stages: Vec<Stage>,
    compiled: Compiled,
}

fn compile(bytes: &[u8], disabled: &[&str]) -> Story {
    compile_with(bytes, disabled, KvDType::F16)
}

fn compile_with(bytes: &[u8], disabled: &[&str], kv: KvDType) -> Story {
    let gguf = Gguf::parse(bytes).unwrap();
    let disabled = disabled.iter().map(|d| d.to_string()).collect();
    let mut options = Options::new(Target::X86_64V3);
    options.passes.disabled = disabled;
    options.kv = kv;
    let (mut imported, mut stages) = (None, Vec::new());
    let compiled = driver::compile_graph(
        &gguf,
        &options,
        |s| stages.push(s),
        |g| imported = Some(g.clone()),
    )
    .unwrap();
    Story {
        imported: imported.unwrap(),
        stages,
        compiled,
    }
}

fn golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run with BLESS=1", path.display()));
    if expected != found {
        let line = expected
            .lines()
            .zip(found.lines())
            .position(|(a, b)| a != b);
        let at = line.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
        panic!(
            "{name}, line {}:\n  expected {:?}\n  found    {:?}\nIf the change is meant, run with BLESS=1.",
            at + 1,
            expected.lines().nth(at),
            found.lines().nth(at)
        );
    }
}

#[test]
fn each_stage_has_its_golden_text_and_parses_back() {
    let folder = tempfile::tempdir().unwrap();
    let story = compile(&model(folder.path()), &[]);
    let mut graphs = vec![("imported".to_string(), &story.imported)];
    graphs.extend(
        story
            .stages
            .iter()
            .map(|s| (s.pass.name.to_string(), &s.graph)),
    );
    assert_eq!(graphs.len(), PASSES.len() + 1);
    for (index, (name, graph)) in graphs.iter().enumerate() {
        let found = text::print(graph);
        golden(&format!("{index:02}-{name}.txt"), &found);
        let parsed = text::parse(&found).unwrap();
        assert_eq!(&parsed, *graph, "{name} does not parse back to itself");
        verify::verify(&parsed).unwrap();
    }
}

#[test]
fn the_plan_has_its_golden_texts() {
    let folder = tempfile::tempdir().unwrap();
    let plan = compile(&model(folder.path()), &[]).compiled.plan;
    let scope = Scope {
        layer: None,
        tokens: 1,
        depth: Some(64),
    };
    golden("20-pack.txt", &explain::print_pack(&plan, scope));
    golden("21-memory_plan.txt", &explain::print_memory(&plan, scope));
    golden("22-specialise.txt", &explain::print_variants(&plan, scope));
    golden("23-cost.txt", &explain::print_cost(&plan, scope));
}

/// Halves of these heads are half a block: keys go through memory between rotation and cache, values don't.
#[test]
fn a_cache_of_8_bits_has_its_golden_text() {
    let folder = tempfile::tempdir().unwrap();
    let story = compile_with(&model(folder.path()), &[], KvDType::Q8_0);
    let found = text::print(&story.compiled.graph);
    golden("kv-q8_0.txt", &found);
    assert_eq!(text::parse(&found).unwrap(), story.compiled.graph);
    let group = &story.compiled.plan.kv[0];
    let elements = group.kv_heads as u64 * group.head_dim as u64 * 16;
    assert_eq!(group.part_bytes(), elements + elements / 16);
}

#[test]
fn each_optional_pass_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = model(folder.path());
    let whole = compile(&bytes, &[]).compiled.plan.launches.len();
    for pass in PASSES.iter().filter(|p| p.optional) {
        let story = compile(&bytes, &[pass.name]);
        golden(
            &format!("without-{}.txt", pass.name),
            &text::print(&story.compiled.graph),
        );
        let launches = story.compiled.plan.launches.len();
        // An early gather is of two values, in launches of their own.
        let more = if pass.name == "gather-early" { 2 } else { 0 };
        assert!(
            launches + more >= whole,
            "{}: {launches} launches without it, {whole} with it",
            pass.name
        );
    }
    let all: Vec<&str> = PASSES
        .iter()
        .filter(|p| p.optional)
        .map(|p| p.name)
        .collect();
    golden(
        "without-all.txt",
        &text::print(&compile(&bytes, &all).compiled.graph),
    );
}

/// Behind the last attention all products have the wanted rows, before it all tokens'; in a mixture, whose pairs are of all tokens, nothing
/// moves.
#[test]
fn what_only_wanted_rows_need_is_behind_their_gather() {
    let folder = tempfile::tempdir().unwrap();
    let stages = |bytes: &[u8]| {
        let story = compile(bytes, &[]);
        let at = story
            .stages
            .iter()
            .position(|s| s.pass.name == "gather-early");
        let at = at.expect("there is the pass");
        (
            story.stages[at - 1].graph.clone(),
            story.stages[at].graph.clone(),
        )
    };
    let (before, after) = stages(&model(folder.path()));
    let rows_of = |graph: &Graph| -> Vec<(String, Dim)> {
        let product = |n: &&Node| matches!(n.op, Op::MatMul { .. });
        let nodes = graph.nodes.iter().filter(product);
        let dim = |n: &Node| match graph.ty(n.outputs[0]) {
            Type::Rows { dim, .. } => (n.name.clone(), dim),
            other => panic!("{other:?} is a product"),
        };
        nodes.map(dim).collect()
    };
    let wanted = |graph: &Graph| -> Vec<String> {
        let rows = rows_of(graph).into_iter();
        rows.filter(|(_, dim)| *dim == Dim::Rows)
            .map(|(name, _)| name)
            .collect()
    };
    assert_eq!(wanted(&before), ["output"]);
    let last = ["attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut last = last.map(|name| format!("blk.1.{name}")).to_vec();
    last.push("output".into());
    assert_eq!(wanted(&after), last);
    assert_eq!(rows_of(&before).len(), rows_of(&after).len());
    let gathers = |graph: &Graph| {
        graph
            .nodes
            .iter()
            .filter(|n| n.op.name() == "gather_rows")
            .count()
    };
    assert_eq!((gathers(&before), gathers(&after)), (1, 2));
    verify::verify(&after).unwrap();

    let (before, after) = stages(&model_of(folder.path(), "tiny-qwen3moe"));
    assert_eq!(before, after);
}

/// Each kind of mixture: the graph with and without the optional passes, in text that parses back, and what explain says of
/// its experts.
#[test]
fn mixtures_have_their_golden_texts() {
    let all: Vec<&str> = PASSES
        .iter()
        .filter(|p| p.optional)
        .map(|p| p.name)
        .collect();
    for shape in ["tiny-qwen2moe", "tiny-qwen3moe", "tiny-mixtral"] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = model_of(folder.path(), shape);
        for (disabled, name) in [(&[][..], "fused"), (&all, "plain")] {
            let story = compile(&bytes, disabled);
            for graph in story.stages.iter().map(|s| &s.graph) {
                assert_eq!(&text::parse(&text::print(graph)).unwrap(), graph);
            }
            let printed = text::print(&story.compiled.graph);
            let gathers = printed
                .lines()
                .filter(|l| l.contains("gather_exps"))
                .count();
            assert_eq!(gathers, if name == "fused" { 0 } else { 2 }, "{printed}");
            golden(&format!("{shape}-{name}.txt"), &printed);
        }
        let plan = compile(&bytes, &[]).compiled.plan;
        golden(
            &format!("{shape}-experts.txt"),
            &explain::print_experts(&plan),
        );
    }
}

/// As for NVIDIA's GPUs, whose matmuls have prologues: each norm goes into the product behind it but the last, whose result is
/// wanted without the head's.
#[test]
fn norms_in_prologues_have_their_golden_text() {
    let folder = tempfile::tempdir().unwrap();
    let imported = compile(&model(folder.path()), &[]).imported;
    let graph = |disabled: &[&str], prologues| {
        let settings = Settings {
            disabled: disabled.iter().map(|d| d.to_string()).collect(),
            activations: Activations::F16,
            early_gather: false,
            prologues,
            mixed_launches: false,
            epilogue_features: None,
        };
        passes::run(imported.clone(), &settings, |_| {}).unwrap()
    };
    let whole = graph(&[], true);
    let found = text::print(&whole);
    golden("prologues.txt", &found);
    assert_eq!(text::parse(&found).unwrap(), whole);
    let count = |graph: &Graph| {
        let norm = |n: &&Node| matches!(n.op, Op::RmsNorm { .. });
        let prologue = |n: &&Node| {
            matches!(
                n.op,
                Op::MatMul {
                    prologue: Some(_),
                    ..
                }
            )
        };
        (
            graph.nodes.iter().filter(norm).count(),
            graph.nodes.iter().filter(prologue).count(),
        )
    };
    assert_eq!(count(&whole), (1, 4));
    assert_eq!(count(&graph(&["fuse-norm-matmul"], true)), (5, 0));
    assert_eq!(count(&graph(&[], false)), (5, 0));
    // Three products read one norm.
    assert_eq!(count(&graph(&["fuse-qkv"], true)), (3, 2));
    // A sum that isn't the norm's is added before, by a launch of its own.
    assert_eq!(count(&graph(&["fuse-add-norm"], true)), (1, 4));
    let broken = found.replacen(" add {", " {", 1);
    assert!(broken != found);
    verify::verify(&text::parse(&broken).unwrap()).unwrap_err();
}

/// As for gfx1151: the shared expert's gate and up go with the router, whose norm is kept for the experts; without a shared expert
/// nothing changes.
#[test]
fn a_shared_expert_goes_with_the_router() {
    let folder = tempfile::tempdir().unwrap();
    let graph = |shape: &str, mixed_launches| {
        let imported = compile(&model_of(folder.path(), shape), &[]).imported;
        let settings = Settings {
            disabled: Vec::new(),
            activations: Activations::F16,
            early_gather: false,
            prologues: true,
            mixed_launches,
            epilogue_features: None,
        };
        passes::run(imported, &settings, |_| {}).unwrap()
    };
    let fused = graph("tiny-qwen2moe", true);
    let found = text::print(&fused);
    golden("shared.txt", &found);
    assert_eq!(text::parse(&found).unwrap(), fused);
    let products = |graph: &Graph| {
        let products = graph.nodes.iter().map(|n| &n.op);
        products
            .filter(|op| matches!(op, Op::MatMul { .. }))
            .count()
    };
    let layers = fused.kv.iter().map(|kv| kv.layers as usize).sum::<usize>();
    let apart = graph("tiny-qwen2moe", false);
    assert_eq!(products(&apart), products(&fused) + layers);
    let kept = |op: &Op| matches!(op, Op::MatMul { prologue: Some(norm), .. } if norm.keep);
    let kept = |graph: &Graph| graph.nodes.iter().filter(|n| kept(&n.op)).count();
    assert_eq!((kept(&fused), kept(&apart)), (layers, layers));
    assert_eq!(
        text::print(&graph("tiny-mixtral", true)),
        text::print(&graph("tiny-mixtral", false))
    );
}

/// Gemma's heads of 256: more than some targets' epilogues have together.
#[test]
fn heads_that_an_epilogue_has_no_room_for_are_normed_apart() {
    let text_of = |kv: &str| {
        format!(
            "graph gemma3
kv {kv} layers=1 heads=1 dim=256
tensor @e q4_0 [64, 64] file
tensor @f f32 [1, 128] rope_freqs base=10000.0 dim=256
tensor @q q4_0 [512, 64] file
tensor @k q4_0 [256, 64] file
tensor @v q4_0 [256, 64] file
tensor @n f32 [1, 256] file
tensor @o q4_0 [64, 512] file
%0:u32[T,1] = input tokens # tokens
%1:u32[T,1] = input positions # positions
%2:u32[T,1] = input slots=0 # slots
%3:u32[R,1] = input rows # rows
%4:f32[T,64] = embed %0 @e scale=1.0 # embed
%5:f32[T,256] = rope_table %1 @f mscale=1.0 # rope
%6:f32[T,512] = matmul %4 {{ @q -> store }} # blk.0.q
%7:f32[T,512] = head_norm %6 @n eps=1e-6 # blk.0.q_norm
%8:f32[T,512] = rope %7 %5 head_dim=256 halves # blk.0.q_rope
%9:f32[T,256] = matmul %4 {{ @k -> store }} # blk.0.k
%10:f32[T,256] = head_norm %9 @n eps=1e-6 # blk.0.k_norm
%11:f32[T,256] = rope %10 %5 head_dim=256 halves # blk.0.k_rope
%12:kv = kv_write %11 %2 kv=0.0.key # blk.0.k_write
%13:f32[T,256] = matmul %4 {{ @v -> store }} # blk.0.v
%14:kv = kv_write %13 %2 kv=0.0.value # blk.0.v_write
%15:f32[T,512] = attention %8 %12 %14 group=0 layer=0 heads=2 scale=0.0625 # blk.0.attention
%16:f32[T,64] = matmul %15 {{ @o -> store }} # blk.0.o
%17:f32[R,64] = gather_rows %16 %3 # last
%18:f32[R,64] = matmul %17 {{ @e -> store }} # head
logits %18
"
        )
    };
    let nodes = |kv: &str, epilogue_features| {
        let settings = Settings {
            disabled: Vec::new(),
            activations: Activations::F16,
            early_gather: false,
            prologues: false,
            mixed_launches: false,
            epilogue_features,
        };
        let graph = text::parse(&text_of(kv)).unwrap();
        let graph = passes::run(graph, &settings, |_| {}).unwrap();
        let count = |name: &str| graph.nodes.iter().filter(|n| n.op.name() == name).count();
        ["head_norm", "rope", "kv_write"].map(count)
    };
    assert_eq!(nodes("f16", None), [0, 0, 0]);
    assert_eq!(nodes("f16", Some(256)), [0, 0, 0]);
    // Values need no norm.
    assert_eq!(nodes("f16", Some(128)), [2, 2, 1]);
    // But a scale for some of a head.
    assert_eq!(nodes("q8_0", Some(128)), [2, 2, 2]);
}

#[test]
fn a_pass_that_is_needed_or_unknown_cant_be_disabled() {
    for (name, expected) in [("fold-rope", "needed"), ("fuse-everything", "no such pass")] {
        let error = fastc::passes::check_disabled(&[name.to_string()])
            .unwrap_err()
            .to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

/// Buffers that share memory are never both alive: no launch may see a byte that another live buffer owns.
#[test]
fn live_buffers_do_not_overlap() {
    for shape in ["tiny", "tiny-qwen2moe"] {
        let folder = tempfile::tempdir().unwrap();
        check_lives(&compile(&model_of(folder.path(), shape), &[]).compiled.plan);
    }
}

fn check_lives(plan: &bundle_format::plan::Plan) {
    use bundle_format::plan::{Op, Role};
    let used_by = |op: &Op| -> Vec<u32> {
        use bundle_format::region::{Operand, Region};
        let of = |r: &Region| {
            r.operands
                .iter()
                .filter_map(|o| match *o {
                    Operand::Buffer(b) => Some(b),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        match op {
            Op::Embed { tokens, out, .. } => vec![*tokens, *out],
            Op::RopeTable { positions, out, .. } => vec![*positions, *out],
            Op::Region { region, .. } => of(region),
            Op::MatMul {
                x,
                prologue,
                segments,
            } => segments
                .iter()
                .map(|s| &s.epilogue)
                .chain(prologue)
                .flat_map(of)
                .chain([*x])
                .collect(),
            Op::Attention { q, epilogue, .. } => of(epilogue).into_iter().chain([*q]).collect(),
            Op::Route {
                logits,
                weights,
                places,
                tokens,
                starts,
                ..
            } => vec![*logits, *weights, *places, *tokens, *starts],
            Op::ExpertMatMul {
                x,
                tokens,
                starts,
                segments,
            } => segments
                .iter()
                .flat_map(|s| of(&s.epilogue))
                .chain([*x, *tokens, *starts])
                .collect(),
        }
    };
    let range = |b: u32| {
        let buffer = &plan.buffers[b as usize];
        let rows = plan.limits.rows(buffer.extent);
        (
            buffer.place.offset,
            buffer.place.offset + rows as u64 * buffer.row_bytes(),
        )
    };
    let life = |b: u32| {
        let uses: Vec<usize> = (0..plan.launches.len())
            .filter(|&i| used_by(&plan.launches[i].op).contains(&b))
            .collect();
        match plan.buffers[b as usize].place.role {
            Role::Scratch => (*uses.first().unwrap(), *uses.last().unwrap()),
            _ => (0, plan.launches.len()),
        }
    };
    let mut shared = 0;
    for a in 0..plan.buffers.len() as u32 {
        for b in 0..a {
            let (ra, rb, la, lb) = (range(a), range(b), life(a), life(b));
            let overlap = ra.0 < rb.1 && rb.0 < ra.1;
            shared += overlap as u32;
            assert!(
                !overlap || la.1 < lb.0 || lb.1 < la.0,
                "buffers {a} and {b} are alive together in one place"
            );
        }
    }
    assert!(shared > 0, "nothing shares memory");
}

#[test]
fn the_verifier_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let good = text::print(&compile(&model(folder.path()), &[]).compiled.graph);
    let broken = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in\n{good}");
        let graph = text::parse(&good.replacen(from, to, 1)).unwrap();
        verify::verify(&graph).unwrap_err()
    };
    let error = broken("= embed %0", "= embed %5");
    assert!(
        error.contains("embed") && error.contains("before it is made"),
        "{error}"
    );
    let error = broken(
        "{ @blk.0.attn_v.weight -> kv=0.0.value }",
        "{ @blk.0.attn_v.weight -> kv=1.0.value }",
    );
    assert!(error.contains("no KV group 1"), "{error}");
    let error = broken(
        "{ @blk.0.ffn_gate.weight @blk.0.ffn_up.weight -> swiglu q11 }",
        "{ @blk.0.ffn_gate.weight -> swiglu q11 }",
    );
    assert!(error.contains("two tensors"), "{error}");
    for (from, to) in [
        ("graph llama", "nonsense"),
        ("logits %", "logits ?"),
        ("eps=", "epsilon="),
    ] {
        text::parse(&good.replacen(from, to, 1)).unwrap_err();
    }
}
