//! A small but complete model's bundle, and a second implementation of the format, after FORMAT.md, that writes whatever it
//! is told to, with hashes that hold.

#![allow(dead_code)] // Each test program uses some of it.

pub mod edits;

use std::io::{Cursor, Write};

use bundle_format::codec;
use bundle_format::model::{Manifest, Model};
use bundle_format::plan::*;
use bundle_format::read::AlignedBytes;
use bundle_format::region::*;
use bundle_format::stability::Profiles;
use bundle_format::target::Target;
use bundle_format::write::{Contents, Writer};
use bundle_format::{Bundle, Error};

const MAX_TOKENS: u32 = 8;
const MAX_ROWS: u32 = 2;
pub const DIM: u32 = 64;
const HEAD: u32 = 32;

pub fn manifest(vocab: u32) -> Manifest {
    Manifest {
        compiler: "fastc 0.1.0".into(),
        toolchain: vec!["cranelift 0.135.8".into()],
        zstd: codec::zstd_version().into(),
        source_hash: [7; 32],
        target: Target::X86_64V3,
        features: vec!["avx2".into(), "f16c".into(), "fma".into()],
        kernel_abi: 1,
        options: vec!["ctx=128".into(), "kv=f16".into()],
        model: Model {
            arch: "llama".into(),
            name: "tiny".into(),
            quantisation: "Q4_1".into(),
            parameters: 12345,
            layers: 1,
            embedding: DIM,
            vocab,
            trained_context: 128,
        },
    }
}

pub fn code() -> Vec<u8> {
    (0..500u32).map(|i| (i * 31 % 251) as u8).collect()
}

pub fn tokenizer() -> Vec<u8> {
    (0..777u32).map(|i| (i * 17 % 253) as u8).collect()
}

/// Buffers of [`plan`], by name.
pub mod buf {
    pub const TOKENS: u32 = 0;
    pub const POSITIONS: u32 = 1;
    pub const SEQUENCES: u32 = 2;
    pub const SLOTS: u32 = 3;
    pub const ROWS: u32 = 4;
    pub const X: u32 = 5;
    pub const ROPE: u32 = 6;
    pub const NORMED: u32 = 7;
    pub const QUERY: u32 = 8;
    pub const HEADS: u32 = 9;
    pub const LAST: u32 = 10;
    pub const LOGITS: u32 = 11;
}

/// One layer of a llama without its feed-forward half.
pub fn plan(vocab: u32) -> Plan {
    let mut plan = Plan {
        limits: Limits {
            max_tokens: MAX_TOKENS,
            max_seqs: 4,
            max_rows: MAX_ROWS,
            context: 128,
        },
        world_size: 1,
        kv: vec![KvGroup {
            dtype: KvDType::F16,
            layers: 1,
            kv_heads: 1,
            head_dim: HEAD,
            window: None,
        }],
        buffers: Vec::new(),
        arena_bytes: 0,
        weights: Vec::new(),
        launches: Vec::new(),
        sampling: None,
        stability: Vec::new(),
    };
    add_buffers(&mut plan, vocab);
    add_weights(&mut plan, vocab);
    add_launches(&mut plan, vocab);
    plan
}

fn add_buffers(plan: &mut Plan, vocab: u32) {
    let input = Role::Input;
    let all = [
        ("tokens", DType::U32, Dim::Tokens, 1, input(Input::Tokens)),
        (
            "positions",
            DType::U32,
            Dim::Tokens,
            1,
            input(Input::Positions),
        ),
        (
            "sequences",
            DType::U32,
            Dim::Tokens,
            1,
            input(Input::Sequences),
        ),
        ("slots", DType::U32, Dim::Tokens, 1, input(Input::Slots(0))),
        ("rows", DType::U32, Dim::Rows, 1, input(Input::Rows)),
        ("x", DType::F32, Dim::Tokens, DIM, Role::Scratch),
        ("rope", DType::F32, Dim::Tokens, HEAD, Role::Scratch),
        ("normed", DType::Q8, Dim::Tokens, DIM, Role::Scratch),
        ("query", DType::F32, Dim::Tokens, DIM, Role::Scratch),
        ("heads", DType::Q8, Dim::Tokens, DIM, Role::Scratch),
        ("last", DType::Q8, Dim::Rows, DIM, Role::Scratch),
        (
            "logits",
            DType::F32,
            Dim::Rows,
            vocab,
            Role::Output(Output::Logits),
        ),
    ];
    for (name, dtype, extent, cols, role) in all {
        // The logits take the place of the queries, which are dead by then, and beyond.
        let offset = match role {
            Role::Output(_) => plan.buffers[buf::QUERY as usize].place.offset,
            _ => plan.arena_bytes,
        };
        // In the logits' way otherwise: `last` and `heads` live with them.
        let offset = if name == "heads" {
            offset.max(plan.arena_bytes) + row_bytes(DType::F32, vocab) * MAX_ROWS as u64
        } else {
            offset
        };
        let buffer = Buffer {
            name: name.into(),
            dtype,
            extent,
            cols,
            place: Place { offset, role },
        };
        let rows = plan.limits.rows(extent);
        let end = offset + buffer.row_bytes() * rows as u64;
        plan.arena_bytes = plan.arena_bytes.max(end.next_multiple_of(ALIGN as u64));
        plan.buffers.push(buffer);
    }
}

fn add_weights(plan: &mut Plan, vocab: u32) {
    use Encoding::*;
    use WeightLayout::*;
    let all = [
        ("token_embd", Q4_1, Interleave8, vocab, DIM),
        ("rope_freqs", F32, RowMajor, 1, HEAD / 2),
        ("norm", F32, RowMajor, 1, DIM),
        ("q", Q8_0, Interleave8, DIM, DIM),
        ("k", Q8_0, Interleave8, HEAD, DIM),
        ("v", Q4_1, Interleave8, HEAD, DIM),
        ("o", Q4_0, Interleave8, DIM, DIM),
        ("output", Q8_0, RowMajor, vocab, DIM),
        ("unused", F32, RowMajor, 1, 20),
    ];
    let mut offset = 0u64;
    for (name, encoding, layout, rows, cols) in all {
        let bytes = match encoding {
            F32 => cols * 4,
            F16 => cols * 2,
            Q4_0 => cols / 32 * 18,
            Q4_1 => cols / 32 * 20,
            Q8_0 => cols / 32 * 34,
            other => panic!("{other:?} is not in this plan"),
        } as u64;
        let packed = match layout {
            RowMajor => rows,
            Interleave8 => rows.next_multiple_of(8),
            Fragment16 | Pairs8 => panic!("the sample has none in {layout:?}"),
        };
        let len = bytes * packed as u64;
        plan.weights.push(Weight {
            name: name.into(),
            encoding,
            layout,
            rows,
            cols,
            offset,
            len,
            slices: vec![Slice {
                tensor: format!("{name}.weight"),
                rows,
            }],
            interleave: 0,
            pairs: 0,
            shard: None,
        });
        offset = (offset + len).next_multiple_of(ALIGN as u64);
    }
}

fn add_launches(plan: &mut Plan, vocab: u32) {
    let tokens = |parts, tile_cols| {
        let rows = [(1, 1), (2, MAX_TOKENS)];
        rows.map(|r| variant(r, tile_cols, parts)).to_vec()
    };
    let rows = |tile_cols| vec![variant((1, MAX_ROWS), tile_cols, 1)];
    let no_code = |mut variants: Vec<Variant>| {
        for v in &mut variants {
            v.parts[0].code = None;
        }
        variants
    };
    let all = [
        (
            "embed",
            Op::Embed {
                tokens: buf::TOKENS,
                table: 0,
                out: buf::X,
                scale: 1.0,
            },
            no_code(tokens(1, DIM)),
        ),
        (
            "rope",
            Op::RopeTable {
                positions: buf::POSITIONS,
                freqs: 1,
                out: buf::ROPE,
                mscale: 1.0,
            },
            no_code(tokens(1, HEAD)),
        ),
        (
            "norm",
            Op::Region {
                extent: Dim::Tokens,
                region: norm(buf::NORMED, None),
            },
            tokens(1, DIM),
        ),
        (
            "qkv",
            Op::MatMul {
                x: buf::NORMED,
                prologue: None,
                segments: vec![
                    segment(3, rotate(DIM, Operand::Buffer(buf::QUERY))),
                    segment(4, rotate(HEAD, kv(KvPart::Key))),
                    segment(5, store_value()),
                ],
            },
            tokens(3, 32),
        ),
        (
            "attention",
            Op::Attention {
                q: buf::QUERY,
                group: 0,
                layer: 0,
                heads: DIM / HEAD,
                scale: 0.125,
                epilogue: quantise(),
            },
            tokens(1, HEAD),
        ),
        (
            "o",
            Op::MatMul {
                x: buf::HEADS,
                prologue: None,
                segments: vec![segment(6, add_in_place())],
            },
            tokens(1, 32),
        ),
        (
            "last norm",
            Op::Region {
                extent: Dim::Rows,
                region: norm(buf::LAST, Some(buf::ROWS)),
            },
            rows(DIM),
        ),
        (
            "output",
            Op::MatMul {
                x: buf::LAST,
                prologue: None,
                segments: vec![segment(7, store_logits(vocab))],
            },
            rows(64),
        ),
    ];
    for (i, (name, op, variants)) in (0u32..).zip(all) {
        plan.launches.push(Launch {
            name: name.into(),
            deps: i.checked_sub(1).into_iter().collect(),
            op,
            variants,
        });
    }
}

pub fn variant((min_rows, max_rows): (u32, u32), tile_cols: u32, parts: usize) -> Variant {
    Variant {
        min_rows,
        max_rows,
        tile_rows: max_rows,
        tile_cols,
        parts: (0..parts as u64)
            .map(|i| Part {
                micro: Some(3),
                code: Some(CodeRef {
                    offset: i * 64,
                    len: 50,
                }),
            })
            .collect(),
        kernels: Vec::new(),
        profiles: Profiles::NONE,
        reason: "the only one".into(),
    }
}

fn segment(weight: u32, epilogue: Region) -> Segment {
    Segment { weight, epilogue }
}

fn kv(part: KvPart) -> Operand {
    Operand::Kv {
        group: 0,
        layer: 0,
        part,
    }
}

fn col(per_unit: u32, offset: u32) -> ColMap {
    ColMap { per_unit, offset }
}

/// RMS norm of `x`, of its own rows or of those that a buffer names.
fn norm(dst: u32, rows: Option<u32>) -> Region {
    let mut operands = vec![
        Operand::Buffer(buf::X),
        Operand::Weight(2),
        Operand::Buffer(dst),
    ];
    operands.extend(rows.map(Operand::Buffer));
    let row = match rows {
        Some(_) => RowMap::Via(3),
        None => RowMap::Same,
    };
    let binary = |op, a, b| Inst::Binary { op, a, b };
    Region {
        name: "rms_norm_q8".into(),
        unit: 32,
        width: 32,
        cols: DIM,
        operands,
        body: vec![
            Inst::Load {
                src: 0,
                row,
                col: col(32, 0),
            },
            binary(Binary::Mul, 0, 0),
            Inst::RowSum { x: 1 },
            Inst::Const { value: 1.0 / 64.0 },
            Inst::Const { value: 1e-5 },
            Inst::Fma { a: 2, b: 3, c: 4 },
            Inst::Unary {
                op: Unary::Sqrt,
                x: 5,
            },
            Inst::Unary {
                op: Unary::Recip,
                x: 6,
            },
            binary(Binary::Mul, 0, 7),
            Inst::Load {
                src: 1,
                row: RowMap::Zero,
                col: col(32, 0),
            },
            binary(Binary::Mul, 8, 9),
            Inst::StoreQuant {
                dst: 2,
                col: col(32, 0),
                x: 10,
            },
        ],
    }
}

/// Rotary embedding of heads, into a buffer or a KV pool.
fn rotate(cols: u32, dst: Operand) -> Region {
    let half = HEAD / 2;
    let rope = |offset| Inst::Load {
        src: 0,
        row: RowMap::Same,
        col: col(0, offset),
    };
    let binary = |op, a, b| Inst::Binary { op, a, b };
    let store = |offset, x| match dst {
        Operand::Kv { .. } => Inst::StoreKv {
            dst: 1,
            slots: 2,
            offset,
            x,
        },
        _ => Inst::Store {
            dst: 1,
            col: col(HEAD, offset),
            x,
        },
    };
    Region {
        name: "rotate".into(),
        unit: HEAD,
        width: half,
        cols,
        operands: vec![Operand::Buffer(buf::ROPE), dst, Operand::Buffer(buf::SLOTS)],
        body: vec![
            Inst::Tile { offset: 0 },
            Inst::Tile { offset: half },
            rope(0),
            rope(half),
            binary(Binary::Mul, 0, 2),
            binary(Binary::Mul, 1, 3),
            binary(Binary::Sub, 4, 5),
            binary(Binary::Mul, 1, 2),
            Inst::Fma { a: 0, b: 3, c: 7 },
            store(0, 6),
            store(half, 8),
        ],
    }
}

fn store_value() -> Region {
    Region {
        name: "store_value".into(),
        unit: HEAD,
        width: HEAD,
        cols: HEAD,
        operands: vec![kv(KvPart::Value), Operand::Buffer(buf::SLOTS)],
        body: vec![
            Inst::Tile { offset: 0 },
            Inst::StoreKv {
                dst: 0,
                slots: 1,
                offset: 0,
                x: 0,
            },
        ],
    }
}

fn quantise() -> Region {
    Region {
        name: "quantise".into(),
        unit: HEAD,
        width: HEAD,
        cols: DIM,
        operands: vec![Operand::Buffer(buf::HEADS)],
        body: vec![
            Inst::Tile { offset: 0 },
            Inst::StoreQuant {
                dst: 0,
                col: col(HEAD, 0),
                x: 0,
            },
        ],
    }
}

fn add_in_place() -> Region {
    Region {
        name: "residual".into(),
        unit: 1,
        width: 1,
        cols: DIM,
        operands: vec![Operand::Buffer(buf::X)],
        body: vec![
            Inst::Tile { offset: 0 },
            Inst::Load {
                src: 0,
                row: RowMap::Same,
                col: col(1, 0),
            },
            Inst::Binary {
                op: Binary::Add,
                a: 0,
                b: 1,
            },
            Inst::Store {
                dst: 0,
                col: col(1, 0),
                x: 2,
            },
        ],
    }
}

fn store_logits(vocab: u32) -> Region {
    Region {
        name: "logits".into(),
        unit: 1,
        width: 1,
        cols: vocab,
        operands: vec![Operand::Buffer(buf::LOGITS)],
        body: vec![
            Inst::Tile { offset: 0 },
            Inst::Store {
                dst: 0,
                col: col(1, 0),
                x: 0,
            },
        ],
    }
}

/// Bytes of weight `index`.
pub fn weight_bytes(plan: &Plan, index: usize) -> Vec<u8> {
    let seed = index as u64 * 1000 + 1;
    (0..plan.weights[index].len)
        .map(|i| ((i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

/// The weights section: all weights in place, zeros between.
pub fn weights_section(plan: &Plan) -> Vec<u8> {
    let mut all = Vec::new();
    for (i, weight) in plan.weights.iter().enumerate() {
        all.resize(weight.offset as usize, 0);
        all.extend(weight_bytes(plan, i));
    }
    all.resize(all.len().next_multiple_of(ALIGN), 0);
    all
}

/// The sample bundle, by the writer, its weights given in pieces of `piece` bytes.
pub fn written(vocab: u32, piece: usize) -> Vec<u8> {
    let (manifest, plan) = (manifest(vocab), plan(vocab));
    let contents = Contents {
        manifest: &manifest,
        plan: &plan,
        code: &code(),
        tokenizer: &tokenizer(),
    };
    let mut writer = Writer::new(Cursor::new(Vec::new()), contents).unwrap();
    for i in 0..plan.weights.len() {
        writer.start_weight(i).unwrap();
        for bytes in weight_bytes(&plan, i).chunks(piece) {
            writer.write_all(bytes).unwrap();
        }
    }
    let (sink, written) = writer.finish().unwrap();
    let file = sink.into_inner();
    assert_eq!(written.file_len, file.len() as u64);
    file
}

/// Opens a copy of the bytes and drops what comes of it.
pub fn open(bytes: &[u8]) -> Result<(), Error> {
    Bundle::open(&AlignedBytes::copy_of(bytes)).map(drop)
}

/// A section of [`Raw`].
#[derive(Clone, Debug)]
pub struct RawSection {
    pub kind: u32,
    pub flags: u32,
    pub context: &'static str,
    pub align: usize,
    pub stored: Vec<u8>,
    pub raw_len: u64,
}

/// A file in the making, by FORMAT.md alone. Fields may be anything; the hashes hold all the same.
#[derive(Clone, Debug)]
pub struct Raw {
    pub version: u32,
    pub header_len: u32,
    pub section_count: u32,
    pub chunk_len: u32,
    pub code_hash: [u8; 32],
    pub sections: Vec<RawSection>,
    /// Bytes put over the header, at offsets, before it is hashed.
    pub patches: Vec<(usize, Vec<u8>)>,
    /// The root hash, if not the right one.
    pub root: Option<[u8; 32]>,
}

pub const MANIFEST: usize = 0;
pub const PLAN: usize = 1;
pub const CODE: usize = 2;
pub const TOKENIZER: usize = 3;
pub const SIGNATURE: usize = 4;
pub const TREE: usize = 5;
pub const WEIGHTS: usize = 6;

fn derive(context: &str, bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(context, bytes)
}

impl Raw {
    pub fn sample(vocab: u32) -> Raw {
        Raw::of(&manifest(vocab), &plan(vocab))
    }

    /// With the weights that the plan's offsets and lengths ask for, which must be small.
    pub fn of(manifest: &Manifest, plan: &Plan) -> Raw {
        let manifest = codec::encode(manifest).unwrap();
        let encoded = codec::encode(plan).unwrap();
        Raw::from_bytes(&manifest, &encoded, &weights_section(plan))
    }

    pub fn from_bytes(manifest: &[u8], plan: &[u8], weights: &[u8]) -> Raw {
        let code = code();
        let tree: Vec<u8> = weights
            .chunks(1 << 20)
            .flat_map(|c| derive("FastInference bundle 3: weights chunk", c))
            .collect();
        let small = |kind, context, raw: &[u8]| RawSection {
            kind,
            flags: 1,
            context,
            align: 64,
            stored: zstd::bulk::compress(raw, 12).unwrap(),
            raw_len: raw.len() as u64,
        };
        let raw = |kind, context, align, bytes: &[u8]| RawSection {
            kind,
            flags: 0,
            context,
            align,
            stored: bytes.to_vec(),
            raw_len: bytes.len() as u64,
        };
        Raw {
            version: 5,
            header_len: 1024,
            section_count: 7,
            chunk_len: 1 << 20,
            code_hash: derive("FastInference bundle 3: raw code", &code),
            sections: vec![
                small(1, "FastInference bundle 3: section manifest", manifest),
                small(2, "FastInference bundle 3: section plan", plan),
                small(3, "FastInference bundle 3: section code", &code),
                raw(
                    4,
                    "FastInference bundle 3: section tokenizer",
                    64,
                    &tokenizer(),
                ),
                raw(5, "FastInference bundle 3: section signature", 64, &[]),
                raw(6, "FastInference bundle 3: section weights-tree", 64, &tree),
                raw(7, "FastInference bundle 3: section weights", 4096, weights),
            ],
            patches: Vec::new(),
            root: None,
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = vec![0; 1024];
        let mut table = Vec::new();
        let mut rooted = Vec::new();
        rooted.extend(b"\x89FIB\r\n\x1a\n");
        for field in [
            self.version,
            self.header_len,
            self.section_count,
            self.chunk_len,
        ] {
            rooted.extend(field.to_le_bytes());
        }
        rooted.extend(self.code_hash);
        for section in &self.sections {
            file.resize(file.len().next_multiple_of(section.align), 0);
            let hash = match section.kind {
                7 => {
                    let mut hashed = section.raw_len.to_le_bytes().to_vec();
                    let tree = self.sections.iter().find(|s| s.kind == 6);
                    hashed.extend(tree.map(|s| s.stored.as_slice()).unwrap_or_default());
                    derive(section.context, &hashed)
                }
                _ => derive(section.context, &section.stored),
            };
            let mut head = Vec::new();
            head.extend(section.kind.to_le_bytes());
            head.extend(section.flags.to_le_bytes());
            let mut tail = Vec::new();
            tail.extend((section.stored.len() as u64).to_le_bytes());
            tail.extend(section.raw_len.to_le_bytes());
            tail.extend(hash);
            table.extend(&head);
            table.extend((file.len() as u64).to_le_bytes());
            table.extend(&tail);
            if section.kind != 5 {
                rooted.extend(head);
                rooted.extend(tail);
            }
            file.extend(&section.stored);
        }
        let mut header = b"\x89FIB\r\n\x1a\n".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend(self.header_len.to_le_bytes());
        header.extend((file.len() as u64).to_le_bytes());
        header.extend(self.section_count.to_le_bytes());
        header.extend(self.chunk_len.to_le_bytes());
        header.extend([0; 32]);
        let root = derive("FastInference bundle 3: root", &rooted);
        header.extend(self.root.unwrap_or(root));
        header.extend(self.code_hash);
        header.extend(table);
        header.resize(1024, 0);
        for (at, bytes) in &self.patches {
            header[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let hash = derive("FastInference bundle 3: header", &header);
        header[32..64].copy_from_slice(&hash);
        file[..1024].copy_from_slice(&header);
        file
    }

    /// Offset of a field of a section's entry in the file.
    pub fn entry_at(section: usize, field: usize) -> usize {
        128 + section * 64 + field
    }
}
