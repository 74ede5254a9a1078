//! Golden texts of every pass over a small model. `BLESS=1 cargo test -p fastc --test passes` writes them anew.

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

/// A layer whose values are in f16 and whose queries and keys are quantised, with a table in bf16 that is the head, too, and a product
/// over `cols` features in f16.
fn mixed(cols: u32) -> Graph {
    let text = format!(
        "graph mixed
kv f16 layers=1 heads=2 dim=32
tensor @e bf16 [96, 64] file
tensor @f f32 [1, 16] rope_freqs base=10000.0 dim=32
tensor @n f32 [1, 64] file
tensor @q q4_0 [64, 64] file
tensor @k q8_0 [64, 64] file
tensor @v f16 [64, 64] file
tensor @o q4_0 [{cols}, 64] file
tensor @d f16 [64, {cols}] file
%0:u32[T,1] = input tokens # tokens
%1:u32[T,1] = input positions # positions
%2:u32[T,1] = input slots=0 # slots
%3:u32[R,1] = input rows # rows
%4:f32[T,64] = embed %0 @e scale=1.0 # embed
%5:f32[T,32] = rope_table %1 @f mscale=1.0 # rope
%6:f32[T,64] = rms_norm %4 @n eps=1e-5 # blk.0.attn_norm
%7:f32[T,64] = matmul %6 {{ @q -> store }} # blk.0.q
%8:f32[T,64] = rope %7 %5 head_dim=32 halves # blk.0.q_rope
%9:f32[T,64] = matmul %6 {{ @k -> store }} # blk.0.k
%10:f32[T,64] = rope %9 %5 head_dim=32 halves # blk.0.k_rope
%11:kv = kv_write %10 %2 kv=0.0.key # blk.0.k_write
%12:f32[T,64] = matmul %6 {{ @v -> store }} # blk.0.v
%13:kv = kv_write %12 %2 kv=0.0.value # blk.0.v_write
%14:f32[T,64] = attention %8 %11 %13 group=0 layer=0 heads=2 scale=0.125 # blk.0.attention
%15:f32[T,{cols}] = matmul %14 {{ @o -> store }} # blk.0.o
%16:f32[T,64] = matmul %15 {{ @d -> store }} # blk.0.d
%17:f32[R,64] = gather_rows %16 %3 # last
%18:f32[R,64] = rms_norm %17 @n eps=1e-5 # output_norm
%19:f32[R,96] = matmul %18 {{ @e -> store }} # head
logits %19
"
    );
    text::parse(&text).unwrap()
}

fn run(graph: Graph, activations: Activations, disabled: &[&str]) -> Graph {
    let settings = Settings {
        disabled: disabled.iter().map(|d| d.to_string()).collect(),
        activations,
        prologues: false,
        early_gather: false,
        mixed_launches: false,
        epilogue_features: None,
    };
    passes::run(graph, &settings, |_| {}).unwrap()
}

/// Each matmul's name, and the type of its rows.
fn products(graph: &Graph) -> Vec<(&str, DType)> {
    let product = |n: &&Node| matches!(n.op, Op::MatMul { .. });
    let rows = |n: &Node| match graph.ty(n.inputs[0]) {
        Type::Rows { dtype, .. } => dtype,
        other => panic!("{other:?} is multiplied"),
    };
    let nodes = graph.nodes.iter().filter(product);
    nodes.map(|n| (n.name.as_str(), rows(n))).collect()
}

fn lowered(graph: &Graph, target: Target) -> Plan {
    let limits = Limits {
        max_tokens: 64,
        max_seqs: 4,
        max_rows: 4,
        context: 64,
    };
    lower::lower(graph, target, limits).unwrap()
}

/// A norm that is read by matmuls of several kinds is quantised for each, and no launch joins them.
#[test]
fn weights_of_16_bits_are_multiplied_with_rows_of_14() {
    use DType::{F32, Q8, Q11, Q14};
    let found = run(mixed(96), Activations::Auto, &[]);
    // This model is small.
    let expected = [
        ("blk.0.qkv", Q11),
        ("blk.0.v", Q14),
        ("blk.0.o", Q11),
        ("blk.0.d", Q14),
        ("head", Q14),
    ];
    assert_eq!(products(&found), expected);
    let printed = text::print(&found);
    golden("mixed.txt", &printed);
    assert_eq!(text::parse(&printed).unwrap(), found);

    // What is chosen for quantised weights changes nothing; nor do the passes.
    for (activations, quantised) in [(Activations::Q8, Q8), (Activations::Q11, Q11)] {
        let found = run(mixed(96), activations, &[]);
        let expected = expected.map(|(name, rows)| match rows {
            Q14 => (name, rows),
            _ => (name, quantised),
        });
        assert_eq!(products(&found), expected);
        let plain: Vec<&str> = PASSES
            .iter()
            .filter(|p| p.optional)
            .map(|p| p.name)
            .collect();
        let plain = run(mixed(96), activations, &plain);
        let rows: Vec<DType> = products(&plain).into_iter().map(|(_, rows)| rows).collect();
        assert_eq!(rows, [quantised, quantised, Q14, quantised, Q14, Q14]);
        // One for each value and type.
        let quantises = plain.nodes.iter().filter(|n| n.op.name() == "quantise");
        assert_eq!(quantises.count(), 5);
    }

    // Columns that are not whole blocks.
    let found = run(mixed(80), Activations::Auto, &[]);
    assert_eq!(products(&found)[3], ("blk.0.d", F32));
    let found = run(mixed(96), Activations::F16, &[]);
    assert!(products(&found).iter().all(|(_, rows)| *rows == DType::F16));
}

/// Rows of 8 bits have a scale for as many columns as blocks of the weights have: norms quantise them, what works in epilogues does not.
#[test]
fn weights_in_blocks_of_256_are_multiplied_with_rows_of_as_large_ones() {
    use Encoding::{IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K};
    for (encoding, rows) in [
        (Q2_K, DType::Q8K),
        (Q3_K, DType::Q8K),
        (Q4_K, DType::Q8K),
        (Q5_K, DType::Q8K),
        (Q6_K, DType::Q8K),
        (IQ4_XS, DType::Q8K),
        (Q4_0, DType::Q8),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = model_in(folder.path(), "tiny256", encoding);
        let mut options = Options::new(Target::X86_64V3);
        options.passes.activations = Activations::Q8;
        let gguf = Gguf::parse(&bytes).unwrap();
        let plan = driver::compile_graph(&gguf, &options, |_| {}, |_| {})
            .unwrap()
            .plan;
        let of = |op: &plan::Op| match op {
            plan::Op::MatMul { x, .. } => Some(plan.buffers[*x as usize].dtype),
            _ => None,
        };
        let products: Vec<DType> = plan.launches.iter().filter_map(|l| of(&l.op)).collect();
        assert!(products.len() >= 5 && products.iter().all(|dtype| *dtype == rows));
        let quantises = plan.launches.iter().filter(|l| match &l.op {
            plan::Op::Region { region, .. } => region.name.starts_with("quantise"),
            _ => false,
        });
        // What attention and SwiGLU make, in each of two layers, but for the last attention's, which is gathered.
        let expected = if rows == DType::Q8K { 3 } else { 0 };
        assert_eq!(quantises.count(), expected, "{encoding:?}");
    }
}

/// A layer of attention and nothing else, whose matrices are of one encoding.
fn attends(encoding: &str, features: u32) -> Graph {
    let heads = features / 32;
    let text = format!(
        "graph attends
kv f16 layers=1 heads={heads} dim=32
tensor @e q8_0 [96, {features}] file
tensor @f f32 [1, 16] rope_freqs base=10000.0 dim=32
tensor @n f32 [1, {features}] file
tensor @q {encoding} [{features}, {features}] file
tensor @k {encoding} [{features}, {features}] file
tensor @v {encoding} [{features}, {features}] file
tensor @o {encoding} [{features}, {features}] file
%0:u32[T,1] = input tokens # tokens
%1:u32[T,1] = input positions # positions
%2:u32[T,1] = input slots=0 # slots
%3:u32[R,1] = input rows # rows
%4:f32[T,{features}] = embed %0 @e scale=1.0 # embed
%5:f32[T,32] = rope_table %1 @f mscale=1.0 # rope
%6:f32[T,{features}] = rms_norm %4 @n eps=1e-5 # blk.0.attn_norm
%7:f32[T,{features}] = matmul %6 {{ @q -> store }} # blk.0.q
%8:f32[T,{features}] = rope %7 %5 head_dim=32 halves # blk.0.q_rope
%9:f32[T,{features}] = matmul %6 {{ @k -> store }} # blk.0.k
%10:f32[T,{features}] = rope %9 %5 head_dim=32 halves # blk.0.k_rope
%11:kv = kv_write %10 %2 kv=0.0.key # blk.0.k_write
%12:f32[T,{features}] = matmul %6 {{ @v -> store }} # blk.0.v
%13:kv = kv_write %12 %2 kv=0.0.value # blk.0.v_write
%14:f32[T,{features}] = attention %8 %11 %13 group=0 layer=0 heads={heads} scale=0.125 # blk.0.attention
%15:f32[T,{features}] = matmul %14 {{ @o -> store }} # blk.0.o
%16:f32[R,{features}] = gather_rows %15 %3 # last
%17:f32[R,{features}] = rms_norm %16 @n eps=1e-5 # output_norm
%18:f32[R,96] = matmul %17 {{ @e -> store }} # head
logits %18
"
    );
    text::parse(&text).unwrap()
}

/// In a small model attention's results have 8 bits where they are many and have a scale for 32, gathered or not; all other rows have 11.
#[test]
fn averages_have_8_bits_in_small_blocks() {
    use DType::{Q8, Q8K, Q11};
    for (encoding, features, activations, others, averages) in [
        ("q4_1", 512, Activations::Auto, Q11, Q8),
        ("q8_0", 992, Activations::Auto, Q11, Q8),
        ("q4_1", 480, Activations::Auto, Q11, Q11),
        ("q4_k", 768, Activations::Auto, Q11, Q11),
        ("q4_1", 512, Activations::Q11, Q11, Q11),
        ("q4_k", 768, Activations::Q8, Q8K, Q8K),
        ("q4_1", 1024, Activations::Auto, Q8, Q8),
    ] {
        for early_gather in [false, true] {
            let settings = Settings {
                disabled: Default::default(),
                activations,
                prologues: false,
                early_gather,
                mixed_launches: false,
                epilogue_features: None,
            };
            let found = passes::run(attends(encoding, features), &settings, |_| {}).unwrap();
            let head = if activations == Activations::Q8 {
                Q8
            } else {
                Q11
            };
            let expected = [("blk.0.qkv", others), ("blk.0.o", averages), ("head", head)];
            assert_eq!(
                products(&found),
                expected,
                "{encoding}, {features}, {early_gather}"
            );
        }
    }
}

/// What rows of 14 bits are multiplied with lies in pairs, for whatever else reads it, too.
#[test]
fn weights_of_16_bits_lie_in_pairs() {
    use kernels::abi::id;
    let layouts = |plan: &Plan| -> Vec<(String, WeightLayout)> {
        let matrices = plan.weights.iter().filter(|w| w.rows > 1);
        matrices.map(|w| (w.name.clone(), w.layout)).collect()
    };
    let layouts_of = |cols| {
        layouts(&lowered(
            &run(mixed(cols), Activations::Auto, &[]),
            Target::X86_64V3,
        ))
    };
    use WeightLayout::{Fragment16, Interleave8, Pairs8};
    let expected = [
        ("e", Pairs8),
        ("q", Interleave8),
        ("k", Interleave8),
        ("v", Pairs8),
        ("o", Interleave8),
        ("d", Pairs8),
    ];
    let mut expected = expected.map(|(name, layout)| (name.to_string(), layout));
    assert_eq!(layouts_of(96), expected);
    expected[5].1 = Interleave8;
    assert_eq!(layouts_of(80), expected);
    // Left as they are.
    let exact = run(mixed(96), Activations::F32, &[]);
    let exact = layouts(&lowered(&exact, Target::X86_64V3));
    assert!(exact.iter().all(|(_, layout)| *layout == Interleave8));
    let graph = run(mixed(128), Activations::F16, &[]);
    let on_gpu = layouts(&lowered(&graph, Target::Sm90a));
    assert!(on_gpu.iter().all(|(_, layout)| *layout == Fragment16));

    let target = Target::X86_64V3;
    let mut plan = lowered(&run(mixed(96), Activations::Auto, &[]), target);
    let code = codegen::generate(&mut plan, &Options::new(target)).unwrap();
    bundle_format::validate::plan(&plan, code.bytes.len() as u64).unwrap();
    let micros = |name: &str| -> Vec<u32> {
        let launch = plan.launches.iter().find(|l| l.name == name).unwrap();
        let parts = launch.variants.iter().flat_map(|v| &v.parts);
        parts.filter_map(|p| p.micro).collect()
    };
    assert_eq!(micros("embed"), [id::EMBED_PAIRS]);
    assert_eq!(micros("blk.0.v"), [id::MATMUL_PAIRS; 2]);
    assert_eq!(micros("head"), [id::MATMUL_PAIRS]);
}

/// Rows of each type are for the encodings that take them.
#[test]
fn rows_that_an_encoding_doesnt_take_are_refused() {
    let printed = text::print(&run(mixed(96), Activations::Q8, &[]));
    for (tensor, text) in [
        ("@v f16", "multiplies Q14 with Q4_0 of 'v'"),
        ("@k q8_0", "multiplies Q8 with BF16 of 'k'"),
    ] {
        let (name, encoding) = tensor.split_once(' ').unwrap();
        let other = if encoding == "f16" { "q4_0" } else { "bf16" };
        let broken = printed.replace(tensor, &format!("{name} {other}"));
        let error = verify::verify(&text::parse(&broken).unwrap()).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

/// All matrices of a model in 16 bits, those of experts too, but routers.
#[test]
fn a_model_of_16_bits_lies_in_pairs() {
    for shape in ["tiny", "tiny-qwen2moe", "tiny-mixtral"] {
        for encoding in [Encoding::F16, Encoding::BF16] {
            let folder = tempfile::tempdir().unwrap();
            let bytes = model_in(folder.path(), shape, encoding);
            let plan = compile(&bytes, &[]).compiled.plan;
            let of = |layout| plan.weights.iter().filter(move |w| w.layout == layout);
            assert!(of(WeightLayout::Pairs8).all(|w| w.encoding == encoding));
            assert!(of(WeightLayout::Pairs8).count() >= 5);
            let others = of(WeightLayout::Interleave8);
            let others: Vec<&str> = others
                .filter(|w| w.encoding != Encoding::F32)
                .map(|w| w.name.as_str())
                .collect();
            assert_eq!(others, ["token_embd.weight"], "{shape} {encoding:?}");
            // As much memory as with rows of 11 bits, which are as long.
            let bytes = model_in(folder.path(), shape, Encoding::Q8_0);
            let other = compile(&bytes, &[]).compiled.plan;
            assert_eq!(plan.arena_bytes, other.arena_bytes, "{shape} {encoding:?}");
        }
    }
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
