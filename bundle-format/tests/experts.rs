//! Mixtures of experts in a plan: what a route makes, who may read it, and what is refused.

mod common;

use bundle_format::plan::*;
use bundle_format::region::*;
use bundle_format::validate;
use common::*;

const EXPERTS: u32 = 4;
const USED: u32 = 2;
const HIDDEN: u32 = 32;

/// Indices of what [`plan_of_experts`] adds to the sample.
#[derive(Clone, Copy)]
struct At {
    /// logits, weights, places, tokens, starts, y, out
    buffers: [u32; 7],
    weight: u32,
    /// Of the route; a matmul and a combining region follow.
    launch: usize,
}

/// The sample, and behind it a mixture that reads the normed activations.
fn plan_of_experts() -> (Plan, At) {
    let mut plan = plan(60);
    let first = plan.buffers.len() as u32;
    let all = [
        ("logits", DType::F32, Dim::Tokens, EXPERTS),
        ("weights", DType::F32, Dim::Tokens, USED),
        ("places", DType::U32, Dim::Tokens, USED),
        ("list", DType::U32, Dim::Pairs(USED), 1),
        ("starts", DType::U32, Dim::One, EXPERTS + 1),
        ("y", DType::F32, Dim::Pairs(USED), HIDDEN),
        ("out", DType::F32, Dim::Tokens, HIDDEN),
    ];
    for (name, dtype, extent, cols) in all {
        let buffer = Buffer {
            name: name.into(),
            dtype,
            extent,
            cols,
            place: Place {
                offset: plan.arena_bytes,
                role: Role::Scratch,
            },
        };
        let bytes = plan.limits.rows(extent) as u64 * buffer.row_bytes();
        plan.arena_bytes += bytes.next_multiple_of(ALIGN as u64);
        plan.buffers.push(buffer);
    }
    let like = plan.weights[3].clone();
    let end = plan.weights.iter().map(|w| w.offset + w.len).max().unwrap();
    let rows = EXPERTS * HIDDEN;
    let weight = plan.weights.len() as u32;
    plan.weights.push(Weight {
        name: "experts".into(),
        rows,
        offset: end.next_multiple_of(ALIGN as u64),
        len: like.len / like.rows as u64 * rows as u64,
        slices: vec![],
        ..like
    });
    let at = At {
        buffers: std::array::from_fn(|i| first + i as u32),
        weight,
        launch: plan.launches.len(),
    };
    let [logits, weights, places, tokens, starts, y, out] = at.buffers;
    let own = ColMap {
        per_unit: 1,
        offset: 0,
    };
    let region = |name: &str, operands: Vec<u32>, body: Vec<Inst>, cols: u32| Region {
        name: name.into(),
        unit: 1,
        width: 1,
        cols,
        operands: operands.into_iter().map(Operand::Buffer).collect(),
        body,
    };
    let zero = Inst::Const { value: 0.0 };
    let store = |dst, x| Inst::Store { dst, col: own, x };
    let combine = vec![
        Inst::Load {
            src: 0,
            row: RowMap::At { index: 1, col: 1 },
            col: own,
        },
        Inst::RowValue { src: 2, col: 1 },
        Inst::Binary {
            op: Binary::Mul,
            a: 0,
            b: 1,
        },
        store(3, 2),
    ];
    let ops = [
        Op::Region {
            extent: Dim::Tokens,
            region: region("logits", vec![logits], vec![zero, store(0, 0)], EXPERTS),
        },
        Op::Route {
            logits,
            renormalise: true,
            scale: 1.0,
            weights,
            places,
            tokens,
            starts,
        },
        Op::ExpertMatMul {
            x: buf::NORMED,
            tokens,
            starts,
            segments: vec![Segment {
                weight,
                epilogue: region(
                    "store",
                    vec![y],
                    vec![Inst::Tile { offset: 0 }, store(0, 0)],
                    HIDDEN,
                ),
            }],
        },
        Op::Region {
            extent: Dim::Tokens,
            region: region("combine", vec![y, places, weights, out], combine, HIDDEN),
        },
    ];
    for op in ops {
        let last = plan.launches.len() as u32 - 1;
        let extent = match &op {
            Op::ExpertMatMul { .. } => Dim::Pairs(USED),
            _ => Dim::Tokens,
        };
        let code = !matches!(op, Op::Route { .. });
        let mut variant = variant((1, plan.limits.rows(extent)), 32, 1);
        if !code {
            variant.parts[0].code = None;
        }
        plan.launches.push(Launch {
            name: format!("moe.{last}"),
            deps: (0..=last).collect(),
            op,
            variants: vec![variant],
        });
    }
    let at = At {
        launch: at.launch + 1,
        ..at
    };
    (plan, at)
}

/// Refused, with all of these words.
fn bad(texts: &[&str], change: impl Fn(&mut Plan, At)) {
    let (mut plan, at) = plan_of_experts();
    change(&mut plan, at);
    let error = validate::plan(&plan, 500).expect_err("it is broken");
    let error = format!(
        "{}: expected {}, found {}",
        error.at, error.expected, error.found
    );
    for text in texts {
        assert!(error.contains(text), "no {text:?} in: {error}");
    }
}

fn buffer(plan: &mut Plan, index: u32) -> &mut Buffer {
    &mut plan.buffers[index as usize]
}

#[test]
fn a_mixture_passes() {
    let (plan, _) = plan_of_experts();
    validate::plan(&plan, 500).unwrap();
    let encoded = bundle_format::codec::encode(&plan).unwrap();
    let manifest = bundle_format::codec::encode(&manifest(60)).unwrap();
    let file = Raw::from_bytes(&manifest, &encoded, &weights_section(&plan)).build();
    open(&file).unwrap();
}

#[test]
fn a_route_makes_what_its_readers_count_on() {
    bad(&["type of weights", "F32 [Tokens, 2]"], |p, at| {
        buffer(p, at.buffers[1]).dtype = DType::U32
    });
    bad(&["type of places", "U32 [Tokens, 2]"], |p, at| {
        buffer(p, at.buffers[2]).cols = 3
    });
    bad(&["type of tokens", "U32 [Pairs(2), 1]"], |p, at| {
        buffer(p, at.buffers[3]).extent = Dim::Pairs(1)
    });
    bad(&["type of starts", "U32 [One, 5]"], |p, at| {
        buffer(p, at.buffers[4]).cols = 4
    });
    bad(&["type of starts", "One"], |p, at| {
        buffer(p, at.buffers[4]).extent = Dim::Tokens
    });
    bad(&["experts of a token", "1 to 4"], |p, at| {
        p.buffers[at.buffers[1] as usize].cols = 5
    });
    bad(&["experts of a token", "1 to 256"], |p, at| {
        buffer(p, at.buffers[3]).extent = Dim::Pairs(0)
    });
    bad(&["scale", "finite"], |p, at| {
        if let Op::Route { scale, .. } = &mut p.launches[at.launch].op {
            *scale = f32::NAN;
        }
    });
    // Of the host's, anything might be there.
    bad(&["type of places"], |p, at| {
        if let Op::Route { places, .. } = &mut p.launches[at.launch].op {
            *places = buf::POSITIONS;
        }
    });
    bad(&["variants", "up to the limit"], |p, at| {
        p.launches[at.launch].variants[0].max_rows -= 1
    });
}

#[test]
fn a_matmul_reads_the_list_of_one_route() {
    bad(&["tokens and starts", "one route"], |p, at| {
        let extra = p.buffers[at.buffers[3] as usize].clone();
        p.buffers.push(extra);
        let last = p.buffers.len() as u32 - 1;
        if let Op::ExpertMatMul { tokens, .. } = &mut p.launches[at.launch + 1].op {
            *tokens = last;
        }
    });
    bad(&["tokens and starts", "together"], |p, at| {
        // Another route with the same starts, and a list of its own.
        let extra = p.buffers[at.buffers[3] as usize].clone();
        p.buffers.push(extra);
        let last = p.buffers.len() as u32 - 1;
        let mut other = p.launches[at.launch].clone();
        if let Op::Route { tokens, .. } = &mut other.op {
            *tokens = last;
        }
        other.deps = (0..p.launches.len() as u32).collect();
        p.launches.push(other);
    });
    bad(&["rows of the weight", "16 for each of 4"], |p, at| {
        p.weights[at.weight as usize].rows = 120;
        p.weights[at.weight as usize].len = p.weights[at.weight as usize].len / 128 * 120;
    });
    bad(&["cols of the epilogue", "32"], |p, at| {
        if let Op::ExpertMatMul { segments, .. } = &mut p.launches[at.launch + 1].op {
            segments[0].epilogue.cols = 64;
        }
    });
    bad(&["stored buffer", "Pairs(2)"], |p, at| {
        let out = at.buffers[6];
        if let Op::ExpertMatMul { segments, .. } = &mut p.launches[at.launch + 1].op {
            segments[0].epilogue.operands = vec![Operand::Buffer(out)];
        }
    });
    bad(&["rows of x", "Tokens or Pairs(2)"], |p, at| {
        if let Op::ExpertMatMul { x, .. } = &mut p.launches[at.launch + 1].op {
            *x = buf::LAST;
        }
    });
    bad(&["undefined bytes"], |p, at| {
        let route = p.launches.remove(at.launch);
        p.launches.push(route);
        for (i, launch) in p.launches.iter_mut().enumerate() {
            launch.deps = (0..i as u32).collect();
        }
    });
}

#[test]
fn rows_by_a_list_are_rows_of_the_step() {
    let combine = |p: &mut Plan, at: At, change: &dyn Fn(&mut Region)| {
        if let Op::Region { region, .. } = &mut p.launches[at.launch + 2].op {
            change(region);
        }
    };
    bad(&["rows by a column", "column 2"], |p, at| {
        combine(p, at, &|r| {
            r.body[0] = Inst::Load {
                src: 0,
                row: RowMap::At { index: 1, col: 2 },
                col: ColMap {
                    per_unit: 1,
                    offset: 0,
                },
            }
        })
    });
    bad(&["rows by a column"], |p, at| {
        // Places of another width than the pairs.
        buffer(p, at.buffers[5]).extent = Dim::Pairs(1);
        if let Op::ExpertMatMul { segments, .. } = &mut p.launches[at.launch + 1].op {
            segments[0].epilogue.operands = vec![Operand::Buffer(at.buffers[5])];
        }
        p.launches.remove(at.launch + 1);
        p.launches[at.launch + 1].deps.pop();
    });
    bad(&["gathered rows"], |p, at| {
        combine(p, at, &|r| {
            r.body[0] = Inst::Load {
                src: 0,
                row: RowMap::Via(1),
                col: ColMap {
                    per_unit: 1,
                    offset: 0,
                },
            }
        })
    });
    bad(&["value of the row", "column 2"], |p, at| {
        combine(p, at, &|r| r.body[1] = Inst::RowValue { src: 2, col: 2 })
    });
    bad(&["value of the row", "F32"], |p, at| {
        combine(p, at, &|r| r.body[1] = Inst::RowValue { src: 1, col: 0 })
    });
    bad(
        &["columns of buffer", "stores that meet no other"],
        |p, at| combine(p, at, &|r| r.body[1] = Inst::RowValue { src: 3, col: 0 }),
    );
}
