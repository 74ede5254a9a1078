//! What the rows that matrices are multiplied with are quantised to, and how their weights lie.

use super::*;

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
