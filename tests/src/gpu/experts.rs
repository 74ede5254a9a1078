//! A bundle of routers and of products of experts: with logits that differ, that are all the same, and that send every token to
//! one expert; from rows of tokens and from rows of pairs.

use std::path::Path;

use bundle_format::plan::{
    DType, Dim, Encoding, Input, KvDType, KvGroup, Limits, Op, Output, Role, Segment,
};
use fastc::driver::Options;
use fastc::ir::Activation;
use fastc::lower::regions::{self, Combine};
use kernels::quant;

use super::plans::Parts;

/// Ids of tokens.
pub const VOCAB: u32 = 64;

/// The token whose logits the routers can't use.
pub const BAD: u32 = VOCAB - 1;

/// Experts, those of a token, columns of a row, features of an expert's hidden row: neither a whole number of wavefronts or of items.
const EXPERTS: u32 = 40;
const USED: u32 = 3;
const COLS: u32 = 256;
const HIDDEN: u32 = 192;

/// Encodings of the experts: of each kind of code and of scale.
const ENCODINGS: [Encoding; 4] = [
    Encoding::Q4_0,
    Encoding::F16,
    Encoding::Q4_K,
    Encoding::Q6_K,
];

/// A list of pairs, as a router has made it.
struct List {
    weights: u32,
    places: u32,
    tokens: u32,
    starts: u32,
}

/// Writes the bundle.
pub fn write(options: &Options, path: &Path) {
    let limits = Limits {
        max_tokens: 256,
        max_seqs: 8,
        max_rows: 8,
        context: 512,
    };
    let kv = KvGroup {
        dtype: KvDType::F16Rows,
        layers: 1,
        kv_heads: 1,
        head_dim: 16,
        window: None,
    };
    let mut parts = Parts::new(limits, vec![kv]);
    let random = parts.random_matrix("rows", Encoding::Q8_0, (VOCAB, COLS), 1.0);
    let h = embed(&mut parts, "h", random, COLS);
    let x = parts.scratch("x", DType::F16, COLS);
    region(&mut parts, regions::quantise(h, x, COLS, DType::F16));
    // Each token has logits of its own; one expert is far above all others; none is above another.
    let logits: [fn(u32, u32) -> f32; 3] = [
        |token, expert| ((token * 37 + expert * 101) % 199) as f32 / 25.0,
        |_, expert| {
            if expert == 17 {
                50.0
            } else {
                0.25 * (expert % 4) as f32
            }
        },
        |_, _| 1.5,
    ];
    let lists: Vec<List> = logits
        .iter()
        .enumerate()
        .map(|(i, logits)| route(&mut parts, i, logits))
        .collect();
    for (i, list) in lists.iter().enumerate() {
        let encodings = if i == 0 {
            &ENCODINGS[..]
        } else {
            &ENCODINGS[..1]
        };
        for &encoding in encodings {
            product(&mut parts, encoding, x, list);
        }
    }
    let logits = Role::Output(Output::Logits);
    let logits = parts.buffer("logits", DType::F32, Dim::Rows, VOCAB, logits);
    let region = regions::gather(h, parts.of(Input::Rows), logits, VOCAB, DType::F32);
    let extent = Dim::Rows;
    parts.launch("logits", Op::Region { extent, region });
    parts.write("experts", options, VOCAB, path);
}

fn embed(parts: &mut Parts, name: &str, table: u32, cols: u32) -> u32 {
    let tokens = parts.of(Input::Tokens);
    let out = parts.scratch(name, DType::F32, cols);
    let op = Op::Embed {
        tokens,
        table,
        out,
        scale: 1.0,
    };
    parts.launch(name, op);
    out
}

fn region(parts: &mut Parts, region: bundle_format::region::Region) {
    let extent = Dim::Tokens;
    parts.launch(&region.name.clone(), Op::Region { extent, region });
}

/// A router whose logits are a function of token and expert, of which one token has none that are numbers.
fn route(parts: &mut Parts, i: usize, logits: &fn(u32, u32) -> f32) -> List {
    // Columns of a table are whole fragments.
    let cols = EXPERTS.next_multiple_of(64);
    let values: Vec<f32> = (0..VOCAB)
        .flat_map(|t| (0..cols).map(move |e| (t, e)))
        .map(|(t, e)| {
            if t == BAD && e == 5 {
                f32::NAN
            } else {
                logits(t, e)
            }
        })
        .collect();
    let row = quant::row_bytes(Encoding::F16, cols.into()).expect("whole blocks") as usize;
    let mut bytes = vec![0; VOCAB as usize * row];
    fastc::synth::encode::encode(Encoding::F16, &values, &mut bytes);
    let table = parts.matrix("table", Encoding::F16, cols, &bytes);
    let wide = embed(parts, "wide", table, cols);
    let logits = parts.scratch("router", DType::F32, EXPERTS);
    let zero = parts.vector("nothing", &vec![0.0; EXPERTS as usize]);
    region(
        parts,
        regions::Chain {
            from: Some(wide),
            bias: Some(zero),
            norm: None,
            table: None,
            to: regions::Sink::Buffer(logits),
            head_dim: None,
            cols: EXPERTS,
        }
        .build()
        .expect("it has no heads"),
    );
    let mut buffer =
        |name: &str, dtype, extent, cols| parts.buffer(name, dtype, extent, cols, Role::Scratch);
    let list = List {
        weights: buffer("weights", DType::F32, Dim::Tokens, USED),
        places: buffer("places", DType::U32, Dim::Tokens, USED),
        tokens: buffer("tokens", DType::U32, Dim::Pairs(USED), 1),
        starts: buffer("starts", DType::U32, Dim::One, EXPERTS + 1),
    };
    let op = Op::Route {
        logits,
        renormalise: i != 1,
        scale: 1.0 + i as f32 / 2.0,
        weights: list.weights,
        places: list.places,
        tokens: list.tokens,
        starts: list.starts,
    };
    parts.launch(&format!("route {i}"), op);
    list
}

/// Gate and up, down, and the sum.
fn product(parts: &mut Parts, encoding: Encoding, x: u32, list: &List) {
    let spread = |cols: u32| (cols as f32).powf(-0.5);
    let mut experts = |name: &str, features: u32, cols: u32| {
        parts.random_matrix(name, encoding, (EXPERTS * features, cols), spread(cols))
    };
    // Columns of the second one are what the encoding has blocks of.
    let hidden = match quant::block_elements(encoding) {
        256 => COLS,
        _ => HIDDEN,
    };
    let up = experts("gate_up", 2 * hidden, COLS);
    let down = experts("down", COLS, hidden);
    let mut buffer =
        |name: &str, dtype, cols| parts.buffer(name, dtype, Dim::Pairs(USED), cols, Role::Scratch);
    let between = buffer("hidden", DType::F16, hidden);
    let y = buffer("y", DType::F32, COLS);
    let gated = regions::glu_epilogue(Activation::Silu, between, 2 * hidden, DType::F16, 8);
    let plain = regions::attention_epilogue(y, COLS, 16, DType::F32);
    for (name, x, weight, epilogue) in [("gate_up", x, up, gated), ("down", between, down, plain)] {
        let op = Op::ExpertMatMul {
            x,
            tokens: list.tokens,
            starts: list.starts,
            segments: vec![Segment { weight, epilogue }],
        };
        parts.launch(&format!("{name} {encoding:?}"), op);
    }
    let out = parts.scratch("out", DType::F32, COLS);
    let combine = Combine {
        y,
        places: list.places,
        weights: list.weights,
        used: USED,
        shared: None,
        out,
        cols: COLS,
    };
    region(parts, combine.build());
}
