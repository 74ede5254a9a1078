//! A bundle whose logits are one matrix product: rows of a table in f16, times a matrix.

use std::io::Write;
use std::path::Path;

use bundle_format::Writer;
use bundle_format::model::{Manifest, Model};
use bundle_format::plan::{
    Buffer, DType, Dim, Encoding, Input, KvDType, KvGroup, Launch, Limits, Op, Output, Place, Plan,
    Role, Segment, Weight, WeightLayout,
};
use bundle_format::region::{Binary, ColMap, Inst, Operand, Region, RowMap, Unary};
use bundle_format::target::Target;
use bundle_format::write::Contents;
use fastc::driver::Options;
use kernels::pack::{self, fragment};
use kernels::quant;

/// Most rows of a step: whole tiles of the kernels for many.
pub const ROWS: u32 = 384;

/// Of the table: an f16 holds its numbers' product with a scale as well as an f32 that is rounded to one.
const TABLE: Encoding = Encoding::Q8_0;

/// A product with a matrix of `features` rows and `depth` columns.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub encoding: Encoding,
    pub features: u32,
    pub depth: u32,
    /// Whose kernels.
    pub target: Target,
    /// Whether the kernels are those that every chip could have.
    pub portable: bool,
    /// Whether the rows are normed in the product's prologue, which gives them as hidden states, too.
    pub normed: bool,
}

impl Product {
    /// A name for files.
    pub fn name(&self) -> String {
        let kernels = if self.portable { "portable" } else { "own" };
        let (encoding, n, k) = (self.encoding, self.features, self.depth);
        let normed = if self.normed { "-normed" } else { "" };
        format!("{encoding:?}-{n}x{k}-{}-{kernels}{normed}", self.target)
    }

    /// The row-major bytes of the table and of the matrix, whose products are about as large as the table's numbers.
    pub fn matrices(&self) -> [(Encoding, Vec<u8>); 2] {
        let scale = (self.depth as f32).powf(-0.5);
        let made = |encoding, seed, scale| (encoding, self.matrix(encoding, seed, scale));
        [made(TABLE, 1, 1.0), made(self.encoding, 2, scale)]
    }

    fn matrix(&self, encoding: Encoding, seed: u64, scale: f32) -> Vec<u8> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (rows, cols) = (self.features as usize, self.depth as usize);
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() * scale).collect();
        let row = quant::row_bytes(encoding, cols as u64).expect("whole blocks");
        let mut bytes = vec![0; rows * row as usize];
        fastc::synth::encode::encode(encoding, &values, &mut bytes);
        bytes
    }

    /// Writes the bundle.
    pub fn write(&self, path: &Path) {
        let matrices = self.matrices();
        let packed: Vec<Vec<u8>> = matrices
            .iter()
            .map(|(encoding, bytes)| self.pack(*encoding, bytes))
            .collect();
        let mut plan = self.plan();
        let options = Options {
            portable: self.portable,
            ..Options::new(self.target)
        };
        let code = fastc::codegen::generate(&mut plan, &options);
        let code = code.unwrap_or_else(|e| panic!("{self:?}: {e}")).bytes;
        let manifest = Manifest {
            compiler: "a test".into(),
            toolchain: vec![],
            zstd: bundle_format::codec::zstd_version().into(),
            source_hash: [0; 32],
            target: self.target,
            features: vec![],
            kernel_abi: kernels::abi::VERSION,
            options: vec![],
            model: Model {
                arch: "product".into(),
                name: String::new(),
                quantisation: String::new(),
                parameters: 0,
                layers: 1,
                embedding: self.depth,
                vocab: self.features,
                trained_context: ROWS,
            },
        };
        let contents = Contents {
            manifest: &manifest,
            plan: &plan,
            code: &code,
            tokenizer: b"none",
        };
        let file = std::fs::File::create(path).expect("the folder is writable");
        let mut writer = Writer::new(file, contents).expect("the plan is valid");
        for (i, bytes) in packed.iter().enumerate() {
            writer.start_weight(i).expect("weights come in order");
            writer.write_all(bytes).expect("the disk has room");
        }
        writer.finish().expect("the disk has room");
    }

    fn pack(&self, encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        let row = quant::row_bytes(encoding, self.depth as u64).expect("whole blocks");
        let rows: Vec<&[u8]> = bytes.chunks_exact(row as usize).collect();
        let tile = fragment::tile_bytes(encoding, self.depth as u64).expect("whole fragments");
        let mut packed = vec![0; tile as usize * rows.len().div_ceil(fragment::TILE)];
        let tiles = packed.chunks_exact_mut(tile as usize);
        for (rows, out) in rows.chunks(fragment::TILE).zip(tiles) {
            fragment::pack_tile(encoding, self.depth as usize, rows, out);
        }
        packed
    }

    /// h = rows of the table; x = h's rows that results are wanted of, in f16; logits = x times the matrix.
    fn plan(&self) -> Plan {
        let mut plan = Plan {
            limits: Limits {
                max_tokens: ROWS,
                max_seqs: 1,
                max_rows: ROWS,
                context: ROWS,
            },
            world_size: 1,
            kv: vec![KvGroup {
                dtype: KvDType::F16Rows,
                layers: 1,
                kv_heads: 1,
                head_dim: 16,
                window: None,
            }],
            buffers: vec![],
            arena_bytes: 0,
            weights: vec![],
            launches: vec![],
            sampling: None,
            stability: vec![],
        };
        let mut buffer = |name: &str, dtype, extent, cols, role| {
            let offset = plan.arena_bytes;
            let buffer = Buffer {
                name: name.into(),
                dtype,
                extent,
                cols,
                place: Place { offset, role },
            };
            plan.arena_bytes += (buffer.row_bytes() * ROWS as u64).next_multiple_of(64);
            plan.buffers.push(buffer);
            plan.buffers.len() as u32 - 1
        };
        let mut input =
            |name, extent, input| buffer(name, DType::U32, extent, 1, Role::Input(input));
        let tokens = input("tokens", Dim::Tokens, Input::Tokens);
        input("positions", Dim::Tokens, Input::Positions);
        input("sequences", Dim::Tokens, Input::Sequences);
        input("slots", Dim::Tokens, Input::Slots(0));
        let rows = input("rows", Dim::Rows, Input::Rows);
        let h = buffer("h", DType::F32, Dim::Tokens, self.depth, Role::Scratch);
        let x = buffer("x", DType::F16, Dim::Rows, self.depth, Role::Scratch);
        let logits = Role::Output(Output::Logits);
        let logits = buffer("logits", DType::F32, Dim::Rows, self.features, logits);
        let hidden = self.normed.then(|| {
            let hidden = Role::Output(Output::Hidden);
            buffer("hidden", DType::F32, Dim::Rows, self.depth, hidden)
        });

        let mut offset = 0;
        for (name, encoding) in [("table", TABLE), ("matrix", self.encoding)] {
            let layout = WeightLayout::Fragment16;
            let (n, k) = (self.features as u64, self.depth as u64);
            let len = pack::weight_len(encoding, layout, n, k).expect("whole fragments");
            plan.weights.push(Weight {
                name: name.into(),
                encoding,
                layout,
                rows: self.features,
                cols: self.depth,
                offset,
                len,
                slices: vec![],
                interleave: 0,
                pairs: 0,
                shard: None,
            });
            offset = (offset + len).next_multiple_of(64);
        }

        let col = ColMap {
            per_unit: 1,
            offset: 0,
        };
        let region = |name: &str, cols, operands: &[u32], value| Region {
            name: name.into(),
            unit: 1,
            width: 1,
            cols,
            operands: operands.iter().map(|&b| Operand::Buffer(b)).collect(),
            body: vec![value, Inst::Store { dst: 0, col, x: 0 }],
        };
        let gathered = Inst::Load {
            src: 1,
            row: RowMap::Via(2),
            col,
        };
        let gather = region("gather_f16", self.depth, &[x, h, rows], gathered);
        let product = Inst::Tile { offset: 0 };
        let store = region("logits", self.features, &[logits], product);
        let prologue = hidden.map(|hidden| norm(self.depth, [x, h, rows, hidden]));
        let gather = match prologue {
            Some(_) => None,
            None => Some(Op::Region {
                extent: Dim::Rows,
                region: gather,
            }),
        };
        let ops = [
            Some(Op::Embed {
                tokens,
                table: 0,
                out: h,
                scale: 1.0,
            }),
            gather,
            Some(Op::MatMul {
                x,
                prologue,
                segments: vec![Segment {
                    weight: 1,
                    epilogue: store,
                }],
            }),
        ];
        plan.launches = (0u32..)
            .zip(ops.into_iter().flatten())
            .map(|(i, op)| Launch {
                name: format!("launch {i}"),
                deps: i.checked_sub(1).into_iter().collect(),
                op,
                variants: vec![],
            })
            .collect();
        plan
    }
}

/// out = h's rows, which are kept too, over the root of the mean of their squares.
fn norm(depth: u32, [out, h, rows, kept]: [u32; 4]) -> Region {
    let col = ColMap {
        per_unit: 1,
        offset: 0,
    };
    let operands = [out, h, rows, kept].map(Operand::Buffer).to_vec();
    let binary = |op, a, b| Inst::Binary { op, a, b };
    let store = |dst, x| Inst::Store { dst, col, x };
    let body = vec![
        Inst::Load {
            src: 1,
            row: RowMap::Via(2),
            col,
        },
        store(3, 0),
        binary(Binary::Mul, 0, 0),
        Inst::RowSum { x: 2 },
        Inst::Const {
            value: 1.0 / depth as f32,
        },
        Inst::Const { value: 1e-5 },
        Inst::Fma { a: 3, b: 4, c: 5 },
        Inst::Unary {
            op: Unary::Sqrt,
            x: 6,
        },
        Inst::Unary {
            op: Unary::Recip,
            x: 7,
        },
        binary(Binary::Mul, 0, 8),
        store(0, 9),
    ];
    Region {
        name: "norm_f16".into(),
        unit: 1,
        width: 1,
        cols: depth,
        operands,
        body,
    }
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    /// A number of mean 0 and variance 1.
    fn normal(&mut self) -> f32 {
        let part = |x: u64| (x & 0xffff) as f32 / 65536.0;
        (0..12).map(|_| part(self.next())).sum::<f32>() - 6.0
    }
}
