//! Plans that hash right and are wrong: each rule of validate.rs by a plan that breaks it.

mod common;

use bundle_format::plan::*;
use bundle_format::region::*;
use bundle_format::{ErrorKind, codec, validate};
use common::edits::*;
use common::*;

#[test]
fn limits() {
    bad(&["limits.max_tokens"], |p| p.limits.max_tokens = 0);
    bad(&["limits.max_seqs"], |p| p.limits.max_seqs = 0);
    bad(&["limits.max_rows"], |p| p.limits.max_rows = u32::MAX);
    bad(&["limits.context"], |p| p.limits.context = u32::MAX);
    unsupported(&["world_size", "expected 1"], |p| p.world_size = 2);
}

#[test]
fn kv_groups() {
    bad(&["KV group 0: layers"], |p| p.kv[0].layers = 0);
    bad(&["KV group 0: kv_heads"], |p| p.kv[0].kv_heads = 0);
    bad(&["KV group 0: head_dim"], |p| p.kv[0].head_dim = 1 << 31);
    bad(&["KV group 0: window"], |p| p.kv[0].window = Some(0));
    bad(&["KV group 0: head_dim in Q8_0", "multiple of 32"], |p| {
        (p.kv[0].dtype, p.kv[0].head_dim) = (KvDType::Q8_0, 48)
    });
}

#[test]
fn buffers() {
    let x = buf::X as usize;
    let logits = buf::LOGITS as usize;
    bad(&["buffer 5 (x): offset", "multiple of 64"], |p| {
        p.buffers[x].place.offset += 4
    });
    bad(&["buffer 5 (x): range in the arena"], |p| {
        p.buffers[x].place.offset = p.arena_bytes
    });
    bad(&["buffer 5 (x): range in the arena"], |p| {
        p.buffers[x].place.offset = u64::MAX - 63
    });
    bad(&["range in the arena"], |p| p.arena_bytes -= 64);
    bad(&["range in the arena"], |p| p.limits.max_tokens = 1 << 20);
    bad(&["buffer 5 (x): cols"], |p| p.buffers[x].cols = 0);
    bad(&["buffer 5 (x): cols"], |p| p.buffers[x].cols = u32::MAX);
    bad(&["buffer 7 (normed): cols of a quantised buffer"], |p| {
        p.buffers[buf::NORMED as usize].cols = 33
    });
    bad(&["buffer 5", "name"], |p| {
        p.buffers[x].name = "x".repeat(5000)
    });
    bad(&["buffer 5", "control"], |p| {
        p.buffers[x].name = "\x1b[2J".into()
    });
    bad(&["buffer 0", "type of Input(Tokens)"], |p| {
        p.buffers[0].dtype = DType::F32
    });
    bad(&["buffer 4", "type of Input(Rows)"], |p| {
        p.buffers[4].extent = Dim::Tokens
    });
    bad(&["buffer 3", "KV group of the slots"], |p| {
        p.buffers[3].place.role = Role::Input(Input::Slots(1))
    });
    bad(&["buffer 11", "type of Output(Logits)"], |p| {
        p.buffers[logits].dtype = DType::U32
    });
    bad(&["buffer 5", "type of Output(Hidden)"], |p| {
        p.buffers[x].place.role = Role::Output(Output::Hidden)
    });
    bad(&["each input and output once"], |p| {
        p.buffers[2].place.role = Role::Input(Input::Positions)
    });
    bad(&["one of the role Output(Logits)"], |p| {
        p.buffers[logits].place.role = Role::Scratch
    });
    bad(&["one of the role Input(Tokens)"], |p| {
        p.buffers[0].place.role = Role::Scratch
    });
    unsupported(&["arena_bytes"], |p| p.arena_bytes = u64::MAX);
}

#[test]
fn weights() {
    bad(&["weight 0 (token_embd): len"], |p| p.weights[0].len -= 1);
    bad(&["weight 0 (token_embd): len"], |p| {
        p.weights[0].layout = WeightLayout::RowMajor
    });
    bad(&["weight 0 (token_embd): len"], |p| {
        p.weights[0].encoding = Encoding::Q4_0
    });
    bad(&["weight 0 (token_embd): rows"], |p| {
        p.weights[0].rows = u32::MAX
    });
    bad(&["weight 0 (token_embd): cols"], |p| p.weights[0].cols = 0);
    bad(&["weight 0", "cols", "multiple of 32"], |p| {
        p.weights[0].cols = 65
    });
    bad(&["weight 1 (rope_freqs): offset", "multiple of 64"], |p| {
        p.weights[1].offset += 1
    });
    bad(&["weight 1 (rope_freqs): offset", "behind"], |p| {
        p.weights[1].offset -= 64
    });
    unsupported(&["weight 8", "end in the weights"], |p| {
        p.weights[8].offset = u64::MAX - 63
    });
    unsupported(&["weight 8", "end in the weights"], |p| {
        p.weights[8].offset = 1 << 60
    });
    bad(&["weight 0", "rows of all slices"], |p| {
        p.weights[0].slices[0].rows += 1
    });
    bad(&["weight 3", "rows of slice 0"], |p| {
        p.weights[3].interleave = 48
    });
}

/// A section longer or shorter than the plan's weights is the weights' fault.
#[test]
fn weights_beyond_the_section() {
    let good = plan(SMALL);
    let mut far = good.clone();
    far.weights[8].offset += 64;
    let file = Raw::from_bytes(
        &codec::encode(&manifest(SMALL)).unwrap(),
        &codec::encode(&far).unwrap(),
        &weights_section(&good),
    );
    let error = open(&file.build()).unwrap_err();
    assert_eq!(error.section(), Some("weights"));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn deps() {
    bad(&["launch 3 (qkv): deps"], |p| p.launches[3].deps = vec![3]);
    bad(&["launch 0 (embed): deps"], |p| {
        p.launches[0].deps = vec![0]
    });
    bad(&["launch 3 (qkv): deps"], |p| {
        p.launches[3].deps = vec![1, u32::MAX]
    });
}

/// Q11 activations go where Q8 ones go.
#[test]
fn activations_of_16_bits() {
    let q11 = |buffer: u32| {
        move |p: &mut Plan| {
            let rows = p.limits.max_tokens as u64;
            let offset = p.arena_bytes;
            let b = &mut p.buffers[buffer as usize];
            b.dtype = DType::Q11;
            b.place.offset = offset;
            p.arena_bytes += rows * b.row_bytes();
        }
    };
    for buffer in [buf::NORMED, buf::HEADS, buf::LAST] {
        check(q11(buffer)).unwrap();
    }
    for dtype in [DType::F32, DType::U32] {
        bad(
            &[
                "type of the stored buffer",
                "expected Q8 or Q11 or Q14 or Q8K over Tokens",
            ],
            |p| {
                q11(buf::NORMED)(p);
                let b = &mut p.buffers[buf::NORMED as usize];
                b.dtype = dtype;
                p.arena_bytes += 1 << 20;
            },
        );
    }
    bad(&["type of the loaded buffer"], |p| {
        q11(buf::NORMED)(p);
        region(p, NORM).operands[0] = Operand::Buffer(buf::NORMED);
    });
    bad(&["buffer 7 (normed): cols of a quantised buffer"], |p| {
        p.buffers[buf::NORMED as usize].dtype = DType::Q11;
        p.buffers[buf::NORMED as usize].cols = 48;
    });
}

#[test]
fn weights_of_16_bits_as_integers() {
    // The product behind attention.
    let (o, heads) = (6, buf::HEADS as usize);
    let product = |encoding, layout, dtype| {
        move |p: &mut Plan| {
            let w = &mut p.weights[o];
            (w.encoding, w.layout) = (encoding, layout);
            w.len = validate::packed_len(encoding, layout, w.rows, w.cols).unwrap_or(w.len);
            let mut end = 0;
            for weight in &mut p.weights {
                weight.offset = weight.offset.max(end);
                end = (weight.offset + weight.len).next_multiple_of(ALIGN as u64);
            }
            let rows = p.limits.max_tokens as u64;
            let b = &mut p.buffers[heads];
            (b.dtype, b.place.offset) = (dtype, p.arena_bytes);
            p.arena_bytes += rows * b.row_bytes();
        }
    };
    use WeightLayout::{Interleave8, Pairs8, RowMajor};
    for encoding in [Encoding::F16, Encoding::BF16] {
        check(product(encoding, Pairs8, DType::Q14)).unwrap();
        let x = format!("segment 0: type of x for a weight in {encoding:?}");
        for dtype in [DType::Q8, DType::F32] {
            bad(
                &[&x, "expected Q14", &format!("found {dtype:?}")],
                |p: &mut Plan| {
                    product(encoding, Pairs8, dtype)(p);
                    if dtype == DType::F32 {
                        store_plainly(p);
                    }
                },
            );
        }
        for layout in [Interleave8, RowMajor] {
            bad(
                &[&x, "expected F32, found Q14"],
                product(encoding, layout, DType::Q14),
            );
        }
        bad(
            &[
                "weight 6 (o)",
                "cols of a weight",
                "multiple of 32, found 48",
            ],
            |p| {
                product(encoding, Pairs8, DType::Q14)(p);
                p.weights[o].cols = 48;
            },
        );
    }
    bad(
        &["weight 6 (o): layout of a weight in Q4_0", "found Pairs8"],
        product(Encoding::Q4_0, Pairs8, DType::Q14),
    );
    // A table of pairs is looked up, too.
    check(|p| {
        let w = &mut p.weights[0];
        (w.encoding, w.layout) = (Encoding::BF16, Pairs8);
        w.len = validate::packed_len(w.encoding, w.layout, w.rows, w.cols).unwrap();
        let more = w.len;
        for weight in &mut p.weights[1..] {
            weight.offset += more.next_multiple_of(ALIGN as u64);
        }
    })
    .unwrap();
}

/// Attention's results in f32, as they are.
fn store_plainly(plan: &mut Plan) {
    for inst in &mut region(plan, ATTENTION).body {
        if let Inst::StoreQuant { dst, col, x } = *inst {
            *inst = Inst::Store { dst, col, x };
        }
    }
}

#[test]
fn variants() {
    let first = |p: &mut Plan, change: fn(&mut Variant)| {
        change(&mut p.launches[QKV].variants[0]);
    };
    bad(&["launch 3 (qkv): variants", "up to 0"], |p| {
        p.launches[QKV].variants.clear()
    });
    bad(&["launch 3 (qkv): variants", "up to 1"], |p| {
        p.launches[QKV].variants.truncate(1)
    });
    bad(&["variant 0: min_rows", "expected 1"], |p| {
        first(p, |v| v.min_rows = 0)
    });
    bad(&["variant 1: min_rows", "expected 2"], |p| {
        p.launches[QKV].variants[1].min_rows = 3
    });
    bad(&["variant 0: max_rows"], |p| first(p, |v| v.max_rows = 0));
    bad(&["variant 1: max_rows"], |p| {
        p.launches[QKV].variants[1].max_rows = u32::MAX
    });
    bad(&["variant 0: tile_rows"], |p| first(p, |v| v.tile_rows = 0));
    bad(&["variant 0: tile_cols"], |p| first(p, |v| v.tile_cols = 0));
    bad(&["variant 0: tile_cols", "multiple of 32"], |p| {
        first(p, |v| v.tile_cols = 40)
    });
    bad(&["variant 0: tile_cols", "multiple of 8"], |p| {
        p.launches[OUTPUT].variants[0].tile_cols = 63
    });
    bad(&["variant 0: tile_cols", "at least 64"], |p| {
        p.launches[NORM].variants[0].tile_cols = 32
    });
    bad(&["variant 0: tile_rows * tile_cols"], |p| {
        first(p, |v| v.tile_rows = u32::MAX)
    });
    bad(&["variant 0: parts", "expected 3"], |p| {
        first(p, |v| v.parts.truncate(2))
    });
    bad(&["variant 0: reason"], |p| {
        first(p, |v| v.reason = "\n".into())
    });
}

#[test]
fn code() {
    let code = |p: &mut Plan, offset, len| {
        p.launches[QKV].variants[0].parts[1].code = Some(CodeRef { offset, len });
    };
    bad(&["part 1: offset of the code"], |p| code(p, 8, 10));
    bad(&["part 1: code", "500"], |p| code(p, 448, 53));
    bad(&["part 1: code"], |p| code(p, 64, 0));
    bad(&["part 1: code"], |p| code(p, u64::MAX - 63, 64));
    bad(&["launch 0", "no region"], |p| {
        p.launches[EMBED].variants[0].parts[0].code = Some(CodeRef { offset: 0, len: 10 })
    });
}

fn op(plan: &mut Plan, launch: usize, change: impl Fn(&mut Op)) {
    change(&mut plan.launches[launch].op);
}

/// Sets one field of an op.
macro_rules! set {
    ($launch:expr, $variant:ident, $field:ident, $value:expr) => {
        |p: &mut Plan| {
            op(p, $launch, |o| {
                let Op::$variant { $field, .. } = o else {
                    panic!("{o:?}")
                };
                *$field = $value;
            })
        }
    };
}

#[test]
fn embed() {
    bad(
        &["launch 0 (embed): tokens"],
        set!(EMBED, Embed, tokens, 99),
    );
    bad(
        &["launch 0 (embed): tokens", "Positions"],
        set!(EMBED, Embed, tokens, buf::POSITIONS),
    );
    bad(&["launch 0 (embed): table"], set!(EMBED, Embed, table, 9));
    bad(
        &["launch 0: rows of the embedding table"],
        set!(EMBED, Embed, table, 4),
    );
    bad(&["launch 0 (embed): out"], set!(EMBED, Embed, out, 99));
    bad(&["type of out"], set!(EMBED, Embed, out, buf::ROPE));
    bad(&["scale"], set!(EMBED, Embed, scale, f32::INFINITY));
}

#[test]
fn rope_table() {
    bad(
        &["launch 1 (rope): positions"],
        set!(ROPE, RopeTable, positions, buf::TOKENS),
    );
    bad(&["freqs"], set!(ROPE, RopeTable, freqs, 0));
    bad(&["type of out"], set!(ROPE, RopeTable, freqs, 2));
    bad(&["type of out"], set!(ROPE, RopeTable, out, buf::NORMED));
    bad(&["mscale"], set!(ROPE, RopeTable, mscale, f32::INFINITY));
}

#[test]
fn matmul() {
    bad(&["launch 3 (qkv): x"], set!(QKV, MatMul, x, 99));
    // The weights of q, k and v are quantised, and so must the activations be.
    bad(
        &["segment 0: type of x for a weight in Q8_0: expected Q8 or Q11, found F32"],
        set!(QKV, MatMul, x, buf::X),
    );
    for dtype in [DType::F32, DType::U32] {
        bad(&["segment 0: type of x", "expected Q8 or Q11"], |p| {
            p.buffers.push(Buffer {
                name: "other".into(),
                dtype,
                ..p.buffers[buf::NORMED as usize].clone()
            });
            set!(QKV, MatMul, x, buf::LOGITS + 1)(p);
        });
    }
    for encoding in [Encoding::F16, Encoding::F32] {
        let text =
            format!("segment 2: type of x for a weight in {encoding:?}: expected F32, found Q8");
        bad(&[&text], |p| {
            let weight = &mut p.weights[5];
            weight.encoding = encoding;
            weight.layout = WeightLayout::Interleave8;
            weight.len =
                validate::packed_len(encoding, weight.layout, weight.rows, weight.cols).unwrap();
            let mut end = 0;
            for weight in &mut p.weights {
                weight.offset = weight.offset.max(end);
                end = (weight.offset + weight.len).next_multiple_of(ALIGN as u64);
            }
        });
    }
    bad(&["cols of the weight"], set!(QKV, MatMul, x, buf::ROPE));
    bad(&["segments"], set!(QKV, MatMul, segments, Vec::new()));
    bad(&["segment 1: weight"], |p| {
        op(p, QKV, |o| {
            if let Op::MatMul { segments, .. } = o {
                segments[1].weight = 9;
            }
        })
    });
    bad(&["segment 1", "cols of the epilogue"], |p| {
        op(p, QKV, |o| {
            if let Op::MatMul { segments, .. } = o {
                segments[1].weight = 3;
            }
        })
    });
    bad(&["segment 0", "RowSum"], |p| {
        epilogue(p, O, 0).body[1] = Inst::RowSum { x: 0 }
    });
    bad(&["store to buffer", "its input"], |p| {
        // The last product is of f32 and takes its own results.
        let last = p.weights.len();
        let offset = validate::weights_len(p).unwrap();
        p.weights.push(Weight {
            encoding: Encoding::F32,
            len: (DIM * DIM * 4) as u64,
            offset,
            ..p.weights[6].clone()
        });
        op(p, O, |o| {
            if let Op::MatMul { x, segments, .. } = o {
                *x = buf::X;
                segments[0].weight = last as u32;
            }
        })
    });
}

#[test]
fn attention() {
    bad(
        &["launch 4 (attention): KV group"],
        set!(ATTENTION, Attention, group, 1),
    );
    bad(&["layer"], set!(ATTENTION, Attention, layer, 1));
    bad(&["heads"], set!(ATTENTION, Attention, heads, 0));
    bad(&["type of q"], set!(ATTENTION, Attention, heads, 3));
    bad(&["type of q"], set!(ATTENTION, Attention, heads, u32::MAX));
    bad(&["type of q"], set!(ATTENTION, Attention, q, buf::NORMED));
    bad(&["scale"], set!(ATTENTION, Attention, scale, f32::INFINITY));
    bad(&["epilogue", "cols"], |p| region(p, ATTENTION).cols = 32);
    bad(&["tile_cols", "multiple of 32"], |p| {
        p.launches[ATTENTION].variants[1].tile_cols = 16
    });
}

#[test]
fn region_shape() {
    bad(&["region (rms_norm_q8): width"], |p| {
        region(p, NORM).width = 0
    });
    bad(&["width"], |p| region(p, NORM).width = 64);
    bad(&["width"], |p| region(p, NORM).unit = 0);
    bad(&["cols"], |p| region(p, NORM).cols = 0);
    bad(&["cols"], |p| region(p, NORM).cols = 65);
    bad(&["columns", "inside the operand's 64"], |p| {
        region(p, NORM).cols = 96
    });
    bad(&["instructions"], |p| region(p, NORM).body.clear());
    bad(&["instructions"], |p| {
        region(p, NORM).body = vec![Inst::Const { value: 0.0 }; 5000]
    });
    bad(&["operands"], |p| {
        region(p, NORM).operands = vec![Operand::Buffer(0); 5000]
    });
}

#[test]
fn region_operands() {
    bad(&["operand 0: buffer"], |p| {
        region(p, NORM).operands[0] = Operand::Buffer(99)
    });
    bad(&["operand 1: weight"], |p| {
        region(p, NORM).operands[1] = Operand::Weight(9)
    });
    bad(&["operand 1: weight", "F32 weight of 1 row"], |p| {
        region(p, NORM).operands[1] = Operand::Weight(0)
    });
    let kv = |group, layer| Operand::Kv {
        group,
        layer,
        part: KvPart::Key,
    };
    bad(&["operand 1: KV group"], |p| {
        epilogue(p, QKV, 1).operands[1] = kv(1, 0)
    });
    bad(&["operand 1: layer of the KV group"], |p| {
        epilogue(p, QKV, 1).operands[1] = kv(0, 1)
    });
    bad(&["load", "an f32 operand"], |p| {
        region(p, NORM).operands[0] = kv(0, 0)
    });
    bad(&["type of the loaded buffer"], |p| {
        region(p, NORM).operands[0] = Operand::Buffer(buf::TOKENS)
    });
    bad(&["type of the stored buffer"], |p| {
        region(p, NORM).operands[2] = Operand::Buffer(buf::QUERY)
    });
    bad(&["operand", "a buffer", "Weight"], |p| {
        region(p, NORM).operands[2] = Operand::Weight(2)
    });
    bad(&["instruction 9: row of a weight"], |p| {
        if let Inst::Load { row, .. } = &mut region(p, NORM).body[9] {
            *row = RowMap::Same;
        }
    });
}

/// Puts another load in place of the norm's first instruction.
fn load(
    launch: usize,
    src: OperandId,
    row: RowMap,
    per_unit: u32,
    offset: u32,
) -> impl Fn(&mut Plan) {
    move |p| {
        region(p, launch).body[0] = Inst::Load {
            src,
            row,
            col: ColMap { per_unit, offset },
        }
    }
}

#[test]
fn loads() {
    bad(
        &["instruction 0: operand"],
        load(NORM, 9, RowMap::Same, 32, 0),
    );
    bad(&["columns", "up to 65"], load(NORM, 0, RowMap::Same, 32, 1));
    bad(
        &["columns"],
        load(NORM, 0, RowMap::Same, u32::MAX, u32::MAX),
    );
    bad(
        &["extent of the loaded buffer"],
        load(LAST, 0, RowMap::Same, 32, 0),
    );
    bad(&["operand", "below"], load(LAST, 0, RowMap::Via(9), 32, 0));
    bad(&["gathered rows"], load(LAST, 0, RowMap::Via(0), 32, 0));
    bad(&["gathered rows"], |p| {
        region(p, LAST).operands[3] = Operand::Buffer(buf::SEQUENCES)
    });
    bad(&["constant"], |p| {
        let rest = region(p, NORM);
        rest.body[3] = Inst::Const { value: f32::NAN };
    });
}

#[test]
fn values() {
    let norm = |p: &mut Plan, at: usize, inst| region(p, NORM).body[at] = inst;
    bad(&["instruction 1: value"], |p| {
        norm(p, 1, Inst::RowSum { x: 1 })
    });
    bad(&["instruction 1: value"], |p| {
        norm(p, 1, Inst::RowSum { x: 5 })
    });
    bad(&["instruction 1: value"], |p| {
        norm(p, 1, Inst::UnitSum { x: 1 })
    });
    bad(&["instruction 5: value"], |p| {
        norm(
            p,
            5,
            Inst::Fma {
                a: 0,
                b: 1,
                c: u32::MAX,
            },
        )
    });
    // Sums of units may stand where sums of rows may, and in epilogues too, but not before what they add up.
    check(|p| norm(p, 2, Inst::UnitSum { x: 1 })).unwrap();
    check(|p| epilogue(p, O, 0).body[2] = Inst::UnitSum { x: 1 }).unwrap();
    bad(&["instruction 2: value"], |p| {
        norm(p, 2, Inst::UnitSum { x: 2 })
    });
    // A store makes no value.
    bad(&["instruction 10: value"], |p| {
        let body = &mut epilogue(p, QKV, 0).body;
        let last = body.last_mut().unwrap();
        if let Inst::Store { x, .. } = last {
            *x = 9;
        }
    });
    bad(&["instruction 0: Tile"], |p| {
        norm(p, 0, Inst::Tile { offset: 0 })
    });
    bad(&["columns of the tile"], |p| {
        epilogue(p, QKV, 0).body[1] = Inst::Tile { offset: 17 }
    });
    bad(&["columns of the tile"], |p| {
        epilogue(p, QKV, 0).body[1] = Inst::Tile { offset: u32::MAX }
    });
}

/// In a region of its own and in an epilogue.
#[test]
fn unit_sums_are_values() {
    let mut plan = plan(SMALL);
    region(&mut plan, NORM).body[2] = Inst::UnitSum { x: 1 };
    epilogue(&mut plan, QKV, 0).body[4] = Inst::UnitSum { x: 0 };
    let encoded = codec::encode(&plan).unwrap();
    let manifest = codec::encode(&manifest(SMALL)).unwrap();
    let file = Raw::from_bytes(&manifest, &encoded, &weights_section(&plan)).build();
    open(&file).unwrap();
}

#[test]
fn stores() {
    let store = |per_unit, offset| {
        move |p: &mut Plan| {
            epilogue(p, QKV, 0).body[9] = Inst::Store {
                dst: 1,
                col: ColMap { per_unit, offset },
                x: 6,
            }
        }
    };
    bad(&["columns"], store(64, 0));
    bad(&["stored columns", "at least the width"], store(8, 0));
    bad(&["stores that meet no other access"], store(32, 1));
    let q8 = |per_unit, offset| {
        move |p: &mut Plan| {
            region(p, NORM).body[11] = Inst::StoreQuant {
                dst: 2,
                col: ColMap { per_unit, offset },
                x: 10,
            }
        }
    };
    bad(&["per_unit of a quantised store"], q8(48, 0));
    bad(&["offset of a quantised store"], q8(32, 16));
    bad(&["columns"], q8(32, 32));
    bad(&["width of a quantised store"], |p| {
        region(p, NORM).width = 16;
    });
    // The residual's load after its store.
    bad(&["columns that the region hasn't stored before"], |p| {
        let body = &mut epilogue(p, O, 0).body;
        body[2] = Inst::Store {
            dst: 0,
            col: ColMap {
                per_unit: 1,
                offset: 0,
            },
            x: 0,
        };
        body[3] = body[1];
    });
    // Row 0 is read by every row's iteration while row 0's own updates it.
    bad(&["stores that meet no other access"], |p| {
        if let Inst::Load { row, .. } = &mut epilogue(p, O, 0).body[1] {
            *row = RowMap::Zero;
        }
    });
}

#[test]
fn kv_stores() {
    let store = |dst, slots, offset| {
        move |p: &mut Plan| {
            epilogue(p, QKV, 1).body[9] = Inst::StoreKv {
                dst,
                slots,
                offset,
                x: 6,
            }
        }
    };
    bad(&["operand", "a KV pool"], store(0, 2, 0));
    bad(&["slots", "Scratch"], store(1, 0, 0));
    bad(&["operand", "a buffer"], store(1, 1, 0));
    bad(&["dimensions of a KV store"], store(1, 2, 17));
    bad(&["dimensions of a KV store"], store(1, 2, u32::MAX));
    bad(&["units of a KV store"], |p| p.kv[0].kv_heads = 2);
    // Halves of heads of 32.
    bad(
        &["width of a store to a KV pool in Q8_0", "found 16"],
        |p| p.kv[0].dtype = KvDType::Q8_0,
    );
}

#[test]
fn arena() {
    // Nothing has written the queries when the norm reads them.
    bad(&["launch 2 (norm)", "read of buffer 8 (query)"], |p| {
        region(p, NORM).operands[0] = Operand::Buffer(buf::QUERY)
    });
    // Two buffers of one launch in one place.
    bad(&["launch 2 (norm): buffers of one launch"], |p| {
        p.buffers[buf::NORMED as usize].place.offset = p.buffers[buf::X as usize].place.offset
    });
    // The norm overwrites the rotation table before the product reads it.
    bad(&["launch 3 (qkv)", "read of buffer 6 (rope)"], |p| {
        p.buffers[buf::NORMED as usize].place.offset = p.buffers[buf::ROPE as usize].place.offset
    });
    // A launch that writes over the slots, which a later one stores by.
    bad(&["read of buffer 3 (slots)"], |p| {
        p.buffers[buf::SLOTS as usize].place.offset = p.buffers[buf::ROPE as usize].place.offset
    });
    bad(&["inputs in the arena"], |p| {
        p.buffers[1].place.offset = p.buffers[0].place.offset
    });
    bad(&["output buffer 11 (logits)"], |p| p.launches.truncate(7));
    // Reading in an order that the launches' own order does not give.
    bad(&["launch 2", "read of buffer"], |p| {
        p.launches.swap(2, 3);
        p.launches[2].deps.clear();
    });
}

/// Unknown variants of enumerations are a later version's.
#[test]
fn unknown_op() {
    let good = codec::encode(&plan(SMALL)).unwrap();
    // The last launch: its name, one dep (6), and the op's number.
    let name = b"\x06output\x01\x06";
    let at = good.windows(name.len()).rposition(|w| w == name).unwrap() + name.len();
    let mut bytes = good;
    assert_eq!(bytes[at], 3);
    bytes[at] = 200;
    let manifest = codec::encode(&manifest(SMALL)).unwrap();
    let file = Raw::from_bytes(&manifest, &bytes, &weights_section(&plan(SMALL)));
    let error = open(&file.build()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(error.section(), Some("plan"));
}

/// The checks stand alone too, for a compiler that wants them before it writes.
#[test]
fn plan_alone() {
    validate::plan(&plan(SMALL), 500).unwrap();
    let error = validate::plan(&plan(SMALL), 10).unwrap_err();
    assert!(error.at.contains("part 0"), "{error:?}");
    let end = validate::weights_len(&plan(SMALL)).unwrap();
    assert_eq!(end as usize, weights_section(&plan(SMALL)).len());
}
