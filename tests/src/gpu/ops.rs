//! A bundle with a launch of every op and kind of region but products: embeddings in each encoding, norms, gates, rotations,
//! writes of keys and values, and attention with heads of many sizes. Nothing of it is a model: each launch is compared by itself.

use std::path::Path;

use bundle_format::plan::{
    DType, Dim, Encoding, Input, KvDType, KvGroup, Limits, Op, Output, Role,
};
use bundle_format::region::KvPart;
use fastc::driver::Options;
use fastc::ir::Activation;
use fastc::lower::regions::{self, Chain, KvPlace, RmsNorm, Sink};

use super::plans::Parts;
use super::products::encodings;

/// Ids of tokens, which are columns of the logits too.
const VOCAB: u32 = 64;

/// Columns of regions: a row is no multiple of what a block of threads takes at a time.
const WIDTH: u32 = 768;

/// Heads of an attention: features of one, heads of keys, queries to each of them, the cache, positions that are seen, whether
/// queries and keys are normed.
struct Heads(u32, u32, u32, KvDType, Option<u32>, bool);

use KvDType::{F16Rows, Q8Rows};

/// Sizes around those of the kernels' cases, each with another number of queries to a key.
const HEADS: [Heads; 8] = [
    Heads(32, 2, 4, F16Rows, None, false),
    Heads(64, 1, 3, F16Rows, None, true),
    Heads(64, 2, 1, Q8Rows, None, false),
    Heads(80, 1, 5, F16Rows, None, false),
    Heads(128, 1, 8, F16Rows, None, false),
    Heads(128, 1, 4, Q8Rows, Some(48), false),
    Heads(256, 1, 2, F16Rows, Some(48), true),
    Heads(256, 1, 3, Q8Rows, None, false),
];

/// The widest of them.
const WIDEST: u32 = 1024;

/// Writes the bundle.
pub fn write(options: &Options, path: &Path) {
    let limits = Limits {
        max_tokens: 256,
        max_seqs: 8,
        max_rows: 8,
        context: 512,
    };
    let group = |&Heads(head_dim, kv_heads, _, dtype, window, _): &Heads| KvGroup {
        dtype,
        layers: 1,
        kv_heads,
        head_dim,
        window,
    };
    let mut parts = Parts::new(limits, HEADS.iter().map(group).collect());
    let plain = embed(&mut parts, Encoding::F16, WIDTH);
    for encoding in encodings() {
        embed(&mut parts, encoding, WIDTH);
    }
    element_wise(&mut parts, plain);
    let rows = [(); 3].map(|()| embed(&mut parts, Encoding::Q8_0, WIDEST));
    for (group, heads) in (0..).zip(&HEADS) {
        attention(&mut parts, group, heads, rows);
    }
    let logits = Role::Output(Output::Logits);
    let logits = parts.buffer("logits", DType::F32, Dim::Rows, VOCAB, logits);
    let region = regions::gather(plain, parts.of(Input::Rows), logits, VOCAB, DType::F32);
    let extent = Dim::Rows;
    parts.launch("logits", Op::Region { extent, region });
    parts.write("ops", options, VOCAB, path);
}

/// Rows of a random table.
fn embed(parts: &mut Parts, encoding: Encoding, cols: u32) -> u32 {
    let name = format!("{encoding:?}");
    let tokens = parts.of(Input::Tokens);
    let table = parts.random_matrix(&name, encoding, (VOCAB, cols), 1.0);
    let out = parts.scratch(&name, DType::F32, cols);
    let op = Op::Embed {
        tokens,
        table,
        out,
        scale: 0.7,
    };
    parts.launch(&format!("embed {name}"), op);
    out
}

/// Norms, sums and gates of x and another row.
fn element_wise(parts: &mut Parts, x: u32) {
    let other = embed(parts, Encoding::Q8_0, WIDTH);
    let [weight, post] = ["weight", "post"].map(|name| parts.random_vector(name, WIDTH));
    let norm = |out| RmsNorm {
        x,
        residual: None,
        post: None,
        rows: None,
        sum: None,
        kept: None,
        weight,
        eps: 1e-5,
        out,
        to: DType::F16,
        cols: WIDTH,
    };
    let f16 = |parts: &mut Parts| parts.scratch("f16", DType::F16, WIDTH);
    let mut all = vec![
        regions::add(x, other, parts.scratch("sum", DType::F32, WIDTH), WIDTH),
        regions::quantise(x, f16(parts), WIDTH, DType::F16),
        norm(f16(parts)).build(),
        RmsNorm {
            residual: Some(other),
            sum: Some(parts.scratch("sum", DType::F32, WIDTH)),
            ..norm(f16(parts))
        }
        .build(),
        RmsNorm {
            residual: Some(other),
            post: Some(post),
            sum: Some(parts.scratch("sum", DType::F32, WIDTH)),
            ..norm(f16(parts))
        }
        .build(),
    ];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let out = f16(parts);
        all.push(regions::glu(activation, x, other, out, WIDTH, DType::F16));
    }
    for region in all {
        let extent = Dim::Tokens;
        parts.launch(&region.name.clone(), Op::Region { extent, region });
    }
}

/// Queries and keys, rotated, values, and what attention makes of them.
fn attention(parts: &mut Parts, group: u32, heads: &Heads, [q, k, v]: [u32; 3]) {
    let &Heads(dim, kv_heads, each, .., normed) = heads;
    let (cols, kv_cols) = (dim * kv_heads * each, dim * kv_heads);
    let angles: Vec<f32> = (0..dim / 2)
        .map(|i| 1e4f32.powf(-2.0 * i as f32 / dim as f32))
        .collect();
    let freqs = parts.vector("freqs", &angles);
    let table = parts.scratch("angles", DType::F32, dim);
    let op = Op::RopeTable {
        positions: parts.of(Input::Positions),
        freqs,
        out: table,
        mscale: 1.0,
    };
    parts.launch(&format!("angles {dim}"), op);

    let slots = parts.of(Input::Slots(group));
    let rotated = parts.scratch("q", DType::F32, cols);
    let weight = normed.then(|| parts.random_vector("head", dim));
    let place = |part| Sink::Kv {
        place: KvPlace {
            group,
            layer: 0,
            part,
        },
        slots,
    };
    let chain = |from, table, to, cols| Chain {
        from: Some(from),
        bias: None,
        norm: weight.filter(|_| table).map(|weight| (weight, 1e-5)),
        table: None,
        to,
        head_dim: Some(dim),
        cols,
    };
    let rotate = |chain: Chain| Chain {
        table: Some(table),
        ..chain
    };
    for chain in [
        rotate(chain(q, true, Sink::Buffer(rotated), cols)),
        rotate(chain(k, true, place(KvPart::Key), kv_cols)),
        chain(v, false, place(KvPart::Value), kv_cols),
    ] {
        let region = chain.build().expect("the size of heads is known");
        let name = format!("{} {dim}", region.name);
        let extent = Dim::Tokens;
        parts.launch(&name, Op::Region { extent, region });
    }
    let out = parts.scratch("attention", DType::F16, cols);
    let epilogue = regions::attention_epilogue(out, cols, dim, DType::F16);
    let op = Op::Attention {
        q: rotated,
        group,
        layer: 0,
        heads: kv_heads * each,
        scale: (dim as f32).powf(-0.5),
        epilogue,
    };
    parts.launch(&format!("attention {dim} x {each}"), op);
}
