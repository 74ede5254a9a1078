//! A tiny transformer as a bundle, put together by hand: every op, in the fusions that the compiler makes.

// With a path, since another test includes this file, too.
#[path = "region_builder.rs"]
mod region_builder;

use std::io::Write;
use std::path::Path;

use bundle_format::Writer;
use bundle_format::model::{Manifest, Model};
use bundle_format::plan::{
    Buffer, DType, Dim, Encoding, Input, KvDType, KvGroup, Launch, Limits, Op, Output, Part, Place,
    Plan, Role, Segment, Variant, Weight, WeightLayout,
};
use bundle_format::region::{
    Binary, ColMap, Inst, KvPart, Operand, OperandId, Region, RowMap, Unary, Val,
};
use bundle_format::stability::Profiles;
use bundle_format::target::Target;
use bundle_format::write::Contents;
use fastc::codegen::cpu::{CodeSection, RegionContext};
use kernels::abi::id;
use kernels::{pack, quant};
use region_builder::{BLOCKS, FLAT, RegionBuilder};

/// Sizes of a model and of its steps.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub vocab: u32,
    pub max_tokens: u32,
    pub max_rows: u32,
    pub max_seqs: u32,
    pub context: u32,
    pub layers: u32,
    pub embedding: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub hidden: u32,
}

pub const TINY: Shape = Shape {
    vocab: 101,
    max_tokens: 64,
    max_rows: 64,
    max_seqs: 8,
    context: 256,
    layers: 2,
    embedding: 96,
    heads: 6,
    kv_heads: 3,
    head_dim: 32,
    hidden: 160,
};

/// What a tiny bundle is like.
#[derive(Clone, Debug)]
pub struct Spec {
    pub shape: Shape,
    /// Of the matrices.
    pub encoding: Encoding,
    /// The type of the activations that are multiplied with them.
    pub rows: DType,
    /// Of the cached keys and values.
    pub kv: KvDType,
    /// Positions that a query sees.
    pub window: Option<u32>,
    /// Whether the hidden states are an output.
    pub hidden: bool,
    /// The last norm's weight is not a number at one column.
    pub nan: bool,
    /// Changes the manifest before it is written.
    pub manifest: fn(&mut Manifest),
    /// Changes the plan before it is written.
    pub plan: fn(&mut Plan),
}

impl Spec {
    pub fn new(encoding: Encoding) -> Spec {
        Spec {
            shape: TINY,
            encoding,
            rows: match quant::activation_types(encoding) {
                // As the compiler does.
                [.., DType::Q14] => DType::Q14,
                types => types[0],
            },
            kv: KvDType::F16,
            window: None,
            hidden: true,
            nan: false,
            manifest: |_| (),
            plan: |_| (),
        }
    }
}

/// Writes the bundle of `spec` to `path`.
pub fn write(spec: &Spec, path: &Path) {
    let mut builder = Builder::new(spec);
    builder.model();
    builder.write(path);
}

struct Builder<'a> {
    spec: &'a Spec,
    shape: Shape,
    random: u64,
    plan: Plan,
    weights: Vec<Vec<u8>>,
    code: CodeSection,
}

impl<'a> Builder<'a> {
    fn new(spec: &'a Spec) -> Builder<'a> {
        Builder {
            spec,
            shape: spec.shape,
            random: 0x1234_5678_9abc_def1,
            plan: Plan {
                limits: Limits {
                    max_tokens: spec.shape.max_tokens,
                    max_seqs: spec.shape.max_seqs,
                    max_rows: spec.shape.max_rows,
                    context: spec.shape.context,
                },
                world_size: 1,
                kv: vec![KvGroup {
                    dtype: spec.kv,
                    layers: spec.shape.layers,
                    kv_heads: spec.shape.kv_heads,
                    head_dim: spec.shape.head_dim,
                    window: spec.window,
                }],
                buffers: vec![],
                arena_bytes: 0,
                weights: vec![],
                launches: vec![],
                sampling: None,
                stability: vec![],
            },
            weights: vec![],
            code: CodeSection::new(),
        }
    }

    /// How the matrices lie.
    fn layout(&self) -> WeightLayout {
        match self.spec.rows {
            DType::Q14 => WeightLayout::Pairs8,
            _ => WeightLayout::Interleave8,
        }
    }

    fn model(&mut self) {
        let u32s = |input| (DType::U32, Role::Input(input));
        let scratch = |dtype| (dtype, Role::Scratch);
        let x = self.spec.rows;
        let tokens = self.buffer("tokens", Dim::Tokens, 1, u32s(Input::Tokens));
        let positions = self.buffer("positions", Dim::Tokens, 1, u32s(Input::Positions));
        self.buffer("sequences", Dim::Tokens, 1, u32s(Input::Sequences));
        let slots = self.buffer("slots", Dim::Tokens, 1, u32s(Input::Slots(0)));
        let rows = self.buffer("rows", Dim::Rows, 1, u32s(Input::Rows));
        let h = self.buffer("h", Dim::Tokens, self.shape.embedding, scratch(DType::F32));
        let rope = self.buffer(
            "rope",
            Dim::Tokens,
            self.shape.head_dim,
            scratch(DType::F32),
        );
        let normed = self.buffer("normed", Dim::Tokens, self.shape.embedding, scratch(x));
        let q = self.buffer(
            "q",
            Dim::Tokens,
            self.shape.heads * self.shape.head_dim,
            scratch(DType::F32),
        );
        let attended = self.buffer(
            "attended",
            Dim::Tokens,
            self.shape.heads * self.shape.head_dim,
            scratch(x),
        );
        let hidden = self.buffer("hidden", Dim::Tokens, self.shape.hidden, scratch(x));
        let last = self.buffer("last", Dim::Rows, self.shape.embedding, scratch(x));
        let kept = (DType::F32, Role::Output(Output::Hidden));
        let kept = self
            .spec
            .hidden
            .then(|| self.buffer("hidden states", Dim::Rows, self.shape.embedding, kept));
        let logits = (DType::F32, Role::Output(Output::Logits));
        let logits = self.buffer("logits", Dim::Rows, self.shape.vocab, logits);

        let table = self.matrix("embedding", self.shape.vocab, self.shape.embedding);
        self.launch(
            "embed",
            &[],
            Op::Embed {
                tokens,
                table,
                out: h,
                scale: 1.5,
            },
        );
        let freqs: Vec<f32> = (0..self.shape.head_dim / 2)
            .map(|i| 10_000f32.powf(-2.0 * i as f32 / self.shape.head_dim as f32))
            .collect();
        let freqs = self.vector("freqs", &freqs);
        self.launch(
            "rope",
            &[],
            Op::RopeTable {
                positions,
                freqs,
                out: rope,
                mscale: 1.0,
            },
        );
        for layer in 0..self.shape.layers {
            let to = (normed, None);
            self.norm(&format!("blk.{layer}.norm"), Dim::Tokens, h, to, None);
            self.qkv(layer, normed, (q, rope, slots));
            let epilogue = self.pass_on(
                "attention",
                self.shape.head_dim,
                self.shape.heads * self.shape.head_dim,
                attended,
            );
            self.launch_after(
                &format!("blk.{layer}.attention"),
                Op::Attention {
                    q,
                    group: 0,
                    layer,
                    heads: self.shape.heads,
                    scale: (self.shape.head_dim as f32).powf(-0.5),
                    epilogue,
                },
            );
            let o = self.matrix(
                "o",
                self.shape.embedding,
                self.shape.heads * self.shape.head_dim,
            );
            self.add_to(&format!("blk.{layer}.o"), o, attended, h);
            self.norm(&format!("blk.{layer}.norm2"), Dim::Tokens, h, to, None);
            self.gate_up(layer, normed, hidden);
            let down = self.matrix("down", self.shape.embedding, self.shape.hidden);
            self.add_to(&format!("blk.{layer}.down"), down, hidden, h);
        }
        self.norm("last_norm", Dim::Rows, h, (last, kept), Some(rows));
        let head = self.matrix("head", self.shape.vocab, self.shape.embedding);
        let mut region = RegionBuilder::flat("logits", self.shape.vocab);
        let out = region.operand(Operand::Buffer(logits));
        let y = region.push(Inst::Tile { offset: 0 });
        region.store(out, FLAT, y);
        self.launch_after(
            "logits",
            Op::MatMul {
                x: last,
                prologue: None,
                segments: vec![Segment {
                    weight: head,
                    epilogue: region.finish(),
                }],
            },
        );
    }

    /// RMS norm of `from` (of its rows at `via`) into the type of activations and, where there is a second place, into f32.
    fn norm(
        &mut self,
        name: &str,
        extent: Dim,
        from: u32,
        (to, kept): (u32, Option<u32>),
        via: Option<u32>,
    ) {
        let mut scales: Vec<f32> = (0..self.shape.embedding)
            .map(|_| 1.0 + 0.2 * self.normal())
            .collect();
        if self.spec.nan && via.is_some() {
            scales[17] = f32::NAN;
        }
        let scales = self.vector(name, &scales);
        let mut region = RegionBuilder::units("norm", 32, 32, self.shape.embedding);
        let from = region.operand(Operand::Buffer(from));
        let scales = region.operand(Operand::Weight(scales));
        let to = region.operand(Operand::Buffer(to));
        let kept = kept.map(|kept| region.operand(Operand::Buffer(kept)));
        let row = match via {
            Some(rows) => RowMap::Via(region.operand(Operand::Buffer(rows))),
            None => RowMap::Same,
        };
        let x = region.push(Inst::Load {
            src: from,
            row,
            col: BLOCKS,
        });
        let square = region.binary(Binary::Mul, x, x);
        let sum = region.push(Inst::RowSum { x: square });
        let count = region.constant(1.0 / self.shape.embedding as f32);
        let mean = region.binary(Binary::Mul, sum, count);
        let epsilon = region.constant(1e-5);
        let shifted = region.binary(Binary::Add, mean, epsilon);
        let root = region.unary(Unary::Sqrt, shifted);
        let inverse = region.unary(Unary::Recip, root);
        let unit = region.binary(Binary::Mul, x, inverse);
        let scale = region.push(Inst::Load {
            src: scales,
            row: RowMap::Zero,
            col: BLOCKS,
        });
        let y = region.binary(Binary::Mul, unit, scale);
        self.store_activation(&mut region, to, BLOCKS, y);
        if let Some(kept) = kept {
            region.store(kept, BLOCKS, y);
        }
        let region = region.finish();
        self.launch_after(name, Op::Region { extent, region });
    }

    /// Queries, keys and values of a layer, queries and keys rotated, keys and values stored to the cache.
    fn qkv(&mut self, layer: u32, x: u32, (q, rope, slots): (u32, u32, u32)) {
        let kv = |part| Operand::Kv {
            group: 0,
            layer,
            part,
        };
        let half = self.shape.head_dim / 2;
        let rotate = |heads: u32, to: Operand| {
            let mut region = RegionBuilder::units(
                "rotate",
                self.shape.head_dim,
                half,
                heads * self.shape.head_dim,
            );
            let rope = region.operand(Operand::Buffer(rope));
            let to_id = region.operand(to);
            let slots = region.operand(Operand::Buffer(slots));
            let [cos, sin] = [0, half].map(|offset| {
                region.push(Inst::Load {
                    src: rope,
                    row: RowMap::Same,
                    col: ColMap {
                        per_unit: 0,
                        offset,
                    },
                })
            });
            let [a, b] = [0, half].map(|offset| region.push(Inst::Tile { offset }));
            let b_sin = region.binary(Binary::Mul, b, sin);
            let a_cos = region.binary(Binary::Mul, a, cos);
            let first = region.binary(Binary::Sub, a_cos, b_sin);
            let a_sin = region.binary(Binary::Mul, a, sin);
            let second = region.push(Inst::Fma {
                a: b,
                b: cos,
                c: a_sin,
            });
            for (offset, x) in [(0, first), (half, second)] {
                region.push(match to {
                    Operand::Kv { .. } => Inst::StoreKv {
                        dst: to_id,
                        slots,
                        offset,
                        x,
                    },
                    _ => Inst::Store {
                        dst: to_id,
                        col: ColMap {
                            per_unit: self.shape.head_dim,
                            offset,
                        },
                        x,
                    },
                });
            }
            region.finish()
        };
        let mut values = RegionBuilder::units(
            "values",
            self.shape.head_dim,
            self.shape.head_dim,
            self.shape.kv_heads * self.shape.head_dim,
        );
        let to = values.operand(kv(KvPart::Value));
        let at = values.operand(Operand::Buffer(slots));
        let y = values.push(Inst::Tile { offset: 0 });
        values.push(Inst::StoreKv {
            dst: to,
            slots: at,
            offset: 0,
            x: y,
        });
        let epilogues = [
            (
                self.shape.heads,
                rotate(self.shape.heads, Operand::Buffer(q)),
            ),
            (
                self.shape.kv_heads,
                rotate(self.shape.kv_heads, kv(KvPart::Key)),
            ),
            (self.shape.kv_heads, values.finish()),
        ];
        let segments = epilogues
            .into_iter()
            .map(|(heads, epilogue)| Segment {
                weight: self.matrix("qkv", heads * self.shape.head_dim, self.shape.embedding),
                epilogue,
            })
            .collect();
        self.launch_after(
            &format!("blk.{layer}.qkv"),
            Op::MatMul {
                x,
                prologue: None,
                segments,
            },
        );
    }

    /// The SwiGLU of a layer; gate and up rows lie in turns of 32.
    fn gate_up(&mut self, layer: u32, x: u32, hidden: u32) {
        let mut region = RegionBuilder::units("swiglu", 64, 32, 2 * self.shape.hidden);
        let to = region.operand(Operand::Buffer(hidden));
        let [gate, up] = [0, 32].map(|offset| region.push(Inst::Tile { offset }));
        let minus = region.unary(Unary::Neg, gate);
        let power = region.unary(Unary::Exp, minus);
        let one = region.constant(1.0);
        let bottom = region.binary(Binary::Add, one, power);
        let silu = region.binary(Binary::Div, gate, bottom);
        let y = region.binary(Binary::Mul, silu, up);
        let col = ColMap {
            per_unit: 32,
            offset: 0,
        };
        self.store_activation(&mut region, to, col, y);
        let segment = Segment {
            weight: self.matrix("gate_up", 2 * self.shape.hidden, self.shape.embedding),
            epilogue: region.finish(),
        };
        self.launch_after(
            &format!("blk.{layer}.gate_up"),
            Op::MatMul {
                x,
                prologue: None,
                segments: vec![segment],
            },
        );
    }

    /// A matrix product added to `h` in place.
    fn add_to(&mut self, name: &str, weight: u32, x: u32, h: u32) {
        let mut region = RegionBuilder::flat("add", self.shape.embedding);
        let h = region.operand(Operand::Buffer(h));
        let y = region.push(Inst::Tile { offset: 0 });
        let before = region.push(Inst::Load {
            src: h,
            row: RowMap::Same,
            col: FLAT,
        });
        let sum = region.binary(Binary::Add, before, y);
        region.store(h, FLAT, sum);
        let segments = vec![Segment {
            weight,
            epilogue: region.finish(),
        }];
        self.launch_after(
            name,
            Op::MatMul {
                x,
                prologue: None,
                segments,
            },
        );
    }

    /// An epilogue that stores its tile as activations.
    fn pass_on(&mut self, name: &str, unit: u32, cols: u32, to: u32) -> Region {
        let mut region = RegionBuilder::units(name, unit, unit, cols);
        let to = region.operand(Operand::Buffer(to));
        let y = region.push(Inst::Tile { offset: 0 });
        let col = ColMap {
            per_unit: unit,
            offset: 0,
        };
        self.store_activation(&mut region, to, col, y);
        region.finish()
    }

    fn store_activation(&self, region: &mut RegionBuilder, dst: OperandId, col: ColMap, x: Val) {
        region.push(match self.spec.rows {
            DType::F32 => Inst::Store { dst, col, x },
            _ => Inst::StoreQuant { dst, col, x },
        });
    }

    fn buffer(&mut self, name: &str, extent: Dim, cols: u32, (dtype, role): (DType, Role)) -> u32 {
        let buffer = Buffer {
            name: name.into(),
            dtype,
            extent,
            cols,
            place: Place {
                offset: self.plan.arena_bytes,
                role,
            },
        };
        let rows = extent.rows(self.shape.max_tokens as usize, self.shape.max_rows as usize);
        let bytes = buffer.row_bytes() * rows as u64;
        self.plan.arena_bytes += bytes.next_multiple_of(64);
        self.plan.buffers.push(buffer);
        self.plan.buffers.len() as u32 - 1
    }

    fn vector(&mut self, name: &str, elements: &[f32]) -> u32 {
        let bytes = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        let shape = (1, elements.len() as u32);
        self.weight(name, Encoding::F32, WeightLayout::RowMajor, shape, bytes)
    }

    /// A random matrix, its products about as large as what it is multiplied with.
    fn matrix(&mut self, name: &str, rows: u32, cols: u32) -> u32 {
        let scale = (cols as f32).powf(-0.5);
        let values: Vec<f32> = (0..rows * cols).map(|_| self.normal() * scale).collect();
        let row_bytes = quant::row_bytes(self.spec.encoding, cols as u64).expect("whole blocks");
        let mut bytes = vec![0; rows as usize * row_bytes as usize];
        fastc::synth::encode::encode(self.spec.encoding, &values, &mut bytes);
        let (encoding, layout) = (self.spec.encoding, self.layout());
        let packed = match layout {
            WeightLayout::Pairs8 => pack::pairs::pack(encoding, cols as usize, &bytes),
            _ => pack::pack(encoding, rows as usize, cols as usize, &bytes),
        };
        self.weight(name, encoding, layout, (rows, cols), packed)
    }

    fn weight(
        &mut self,
        name: &str,
        encoding: Encoding,
        layout: WeightLayout,
        (rows, cols): (u32, u32),
        bytes: Vec<u8>,
    ) -> u32 {
        let offset = self.plan.weights.last().map_or(0, |w| w.offset + w.len);
        self.plan.weights.push(Weight {
            name: format!("{name}.{}", self.plan.weights.len()),
            encoding,
            layout,
            rows,
            cols,
            offset: offset.next_multiple_of(64),
            len: bytes.len() as u64,
            slices: vec![],
            interleave: 0,
            pairs: 0,
            shard: None,
        });
        self.weights.push(bytes);
        self.weights.len() as u32 - 1
    }

    /// A launch that depends on all before it: on the last one, and where that is not enough, on the first ones.
    fn launch_after(&mut self, name: &str, op: Op) {
        let last = self.plan.launches.len() as u32 - 1;
        self.launch(name, &[0, last], op);
    }

    fn launch(&mut self, name: &str, deps: &[u32], op: Op) {
        let encoding = self.spec.encoding;
        let (tile_cols, regions, micro): (u32, Vec<&Region>, Option<u32>) = match &op {
            Op::Embed { .. } => (8, vec![], Some(id::embed(encoding, self.layout()))),
            Op::RopeTable { .. } => (8, vec![], Some(id::ROPE_TABLE)),
            Op::Region { region, .. } => (region.cols, vec![region], None),
            Op::MatMul { segments, .. } => {
                let epilogues = segments.iter().map(|s| &s.epilogue).collect();
                (64, epilogues, id::matmul(encoding, self.spec.rows))
            }
            Op::Attention { epilogue, .. } => {
                let micro = id::attention(self.plan.kv[0].dtype).unwrap();
                let group = self.shape.heads / self.shape.kv_heads;
                (group * self.shape.head_dim, vec![epilogue], Some(micro))
            }
            other => unreachable!("this model has no {other:?}"),
        };
        let mut codes = Vec::new();
        for region in &regions {
            let Plan {
                buffers,
                weights,
                kv,
                ..
            } = &self.plan;
            let target = Target::X86_64V3;
            let context = RegionContext::new(target, region, buffers, weights, kv, tile_cols)
                .expect("the plan has the region's operands");
            codes.push(Some(
                self.code
                    .add_region(region, &context)
                    .expect("the region compiles"),
            ));
        }
        if codes.is_empty() {
            codes.push(None);
        }
        let variant = |min_rows, max_rows, tile_rows| Variant {
            min_rows,
            max_rows,
            tile_rows,
            tile_cols,
            parts: codes.iter().map(|&code| Part { micro, code }).collect(),
            kernels: vec![],
            profiles: Profiles::NONE,
            reason: "a test".into(),
        };
        let limit = match &op {
            Op::Region {
                extent: Dim::Rows, ..
            } => self.shape.max_rows,
            Op::MatMul { x, .. } if self.plan.buffers[*x as usize].extent == Dim::Rows => {
                self.shape.max_rows
            }
            _ => self.shape.max_tokens,
        };
        let variants = vec![variant(1, 1, 1), variant(2, 9, 3), variant(10, limit, 8)];
        self.plan.launches.push(Launch {
            name: name.into(),
            deps: deps.to_vec(),
            op,
            variants,
        });
    }

    fn write(mut self, path: &Path) {
        (self.spec.plan)(&mut self.plan);
        let mut manifest = Manifest {
            compiler: "a test".into(),
            toolchain: vec![],
            zstd: bundle_format::codec::zstd_version().into(),
            source_hash: [0; 32],
            target: Target::X86_64V3,
            features: vec![],
            kernel_abi: kernels::abi::VERSION,
            options: vec![],
            model: Model {
                arch: "tiny".into(),
                name: String::new(),
                quantisation: String::new(),
                parameters: 0,
                layers: self.shape.layers,
                embedding: self.shape.embedding,
                vocab: self.shape.vocab,
                trained_context: self.shape.context,
            },
        };
        (self.spec.manifest)(&mut manifest);
        let file = std::fs::File::create(path).expect("the folder is writable");
        let code = std::mem::take(&mut self.code).finish();
        let contents = Contents {
            manifest: &manifest,
            plan: &self.plan,
            code: &code,
            tokenizer: b"none",
        };
        let mut writer = Writer::new(file, contents).expect("the plan is valid");
        for (i, bytes) in self.weights.iter().enumerate() {
            writer.start_weight(i).expect("weights come in order");
            writer.write_all(bytes).expect("the disk has room");
        }
        writer.finish().expect("the disk has room");
    }

    /// A random number (xorshift64*).
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    /// A random number of mean 0 and variance 1.
    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12)
            .map(|_| (self.next() & 0xffff) as f32 / 65536.0)
            .sum();
        sum - 6.0
    }
}
