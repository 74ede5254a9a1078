//! The element-wise code of nodes and epilogues, as regions.

use bundle_format::plan::{DType, Q8_BLOCK};
use bundle_format::region::{
    Binary, ColMap, Inst, KvPart, Operand, OperandId, Region, RowMap, Unary, Val,
};

use crate::ir::Epilogue;

/// Makes regions instruction by instruction.
struct Builder {
    region: Region,
}

/// The layout of an iteration: how columns are cut into units.
#[derive(Clone, Copy)]
struct Units {
    unit: u32,
    width: u32,
}

impl Units {
    /// Plain columns.
    const FLAT: Units = Units { unit: 1, width: 1 };
    /// Whole quantisation blocks.
    const BLOCKS: Units = Units {
        unit: Q8_BLOCK as u32,
        width: Q8_BLOCK as u32,
    };

    /// Blocks if the result is quantised.
    fn for_result(to: DType) -> Units {
        if to == DType::F32 {
            Units::FLAT
        } else {
            Units::BLOCKS
        }
    }
}

impl Builder {
    fn new(name: &str, units: Units, cols: u32) -> Builder {
        let Units { unit, width } = units;
        let (operands, body) = (Vec::new(), Vec::new());
        Builder {
            region: Region {
                name: name.to_string(),
                unit,
                width,
                cols,
                operands,
                body,
            },
        }
    }

    fn operand(&mut self, operand: Operand) -> OperandId {
        let known = self.region.operands.iter().position(|&o| o == operand);
        known.unwrap_or_else(|| {
            self.region.operands.push(operand);
            self.region.operands.len() - 1
        }) as OperandId
    }

    fn push(&mut self, inst: Inst) -> Val {
        self.region.body.push(inst);
        self.region.body.len() as Val - 1
    }

    /// A column map over the iteration's own columns.
    fn own(&self) -> ColMap {
        ColMap {
            per_unit: self.region.width,
            offset: 0,
        }
    }

    fn load(&mut self, buffer: u32, row: RowMap, col: ColMap) -> Val {
        let src = self.operand(Operand::Buffer(buffer));
        self.push(Inst::Load { src, row, col })
    }

    fn weight(&mut self, weight: u32, col: ColMap) -> Val {
        let src = self.operand(Operand::Weight(weight));
        self.push(Inst::Load {
            src,
            row: RowMap::Zero,
            col,
        })
    }

    fn tile(&mut self, offset: u32) -> Val {
        self.push(Inst::Tile { offset })
    }

    fn constant(&mut self, value: f32) -> Val {
        self.push(Inst::Const { value })
    }

    fn unary(&mut self, op: Unary, x: Val) -> Val {
        self.push(Inst::Unary { op, x })
    }

    fn binary(&mut self, op: Binary, a: Val, b: Val) -> Val {
        self.push(Inst::Binary { op, a, b })
    }

    fn store(&mut self, buffer: u32, col: ColMap, x: Val, to: DType) {
        let dst = self.operand(Operand::Buffer(buffer));
        let inst = if to != DType::F32 {
            Inst::StoreQuant { dst, col, x }
        } else {
            Inst::Store { dst, col, x }
        };
        self.push(inst);
    }

    fn store_kv(&mut self, kv: KvPlace, slots: u32, offset: u32, x: Val) {
        let dst = self.operand(Operand::Kv {
            group: kv.group,
            layer: kv.layer,
            part: kv.part,
        });
        let slots = self.operand(Operand::Buffer(slots));
        self.push(Inst::StoreKv {
            dst,
            slots,
            offset,
            x,
        });
    }

    /// gate / (1 + e^-gate) * up
    fn silu_times(&mut self, gate: Val, up: Val) -> Val {
        let one = self.constant(1.0);
        let minus = self.unary(Unary::Neg, gate);
        let exp = self.unary(Unary::Exp, minus);
        let below = self.binary(Binary::Add, one, exp);
        let silu = self.binary(Binary::Div, gate, below);
        self.binary(Binary::Mul, silu, up)
    }

    /// Rotates the pair (a, b) = (x[c], x[half + c]) by the angles in a table row of `half` cosines and `half` sines.
    fn rotate(&mut self, a: Val, b: Val, table: u32, half: u32) -> (Val, Val) {
        let cos = self.load(
            table,
            RowMap::Same,
            ColMap {
                per_unit: 0,
                offset: 0,
            },
        );
        let sin = self.load(
            table,
            RowMap::Same,
            ColMap {
                per_unit: 0,
                offset: half,
            },
        );
        let b_sin = self.binary(Binary::Mul, b, sin);
        let minus = self.unary(Unary::Neg, b_sin);
        let low = self.push(Inst::Fma {
            a,
            b: cos,
            c: minus,
        });
        let a_sin = self.binary(Binary::Mul, a, sin);
        let high = self.push(Inst::Fma {
            a: b,
            b: cos,
            c: a_sin,
        });
        (low, high)
    }
}

/// A region's name, with the type of its result if that is quantised.
fn named(name: &str, to: DType) -> String {
    match to {
        DType::F32 | DType::U32 => name.to_string(),
        DType::Q8 => format!("{name}_q8"),
        DType::Q16 => format!("{name}_q16"),
    }
}

/// Where keys or values of a layer go.
#[derive(Clone, Copy)]
pub struct KvPlace {
    pub group: u32,
    pub layer: u32,
    pub part: KvPart,
}

/// out = a + b
pub fn add(a: u32, b: u32, out: u32, cols: u32) -> Region {
    let mut builder = Builder::new("add", Units::FLAT, cols);
    let own = builder.own();
    let (a, b) = (
        builder.load(a, RowMap::Same, own),
        builder.load(b, RowMap::Same, own),
    );
    let sum = builder.binary(Binary::Add, a, b);
    builder.store(out, own, sum, DType::F32);
    builder.region
}

/// out[r] = x[rows[r]]
pub fn gather(x: u32, rows: u32, out: u32, cols: u32) -> Region {
    let mut builder = Builder::new("gather_rows", Units::FLAT, cols);
    let own = builder.own();
    let rows = builder.operand(Operand::Buffer(rows));
    let x = builder.load(x, RowMap::Via(rows), own);
    builder.store(out, own, x, DType::F32);
    builder.region
}

/// out = x, quantised
pub fn quantise(x: u32, out: u32, cols: u32, to: DType) -> Region {
    let mut builder = Builder::new(&named("quantise", to), Units::BLOCKS, cols);
    let own = builder.own();
    let x = builder.load(x, RowMap::Same, own);
    builder.store(out, own, x, to);
    builder.region
}

/// out = gate / (1 + e^-gate) * up
pub fn swiglu(gate: u32, up: u32, out: u32, cols: u32, to: DType) -> Region {
    let mut builder = Builder::new(&named("swiglu", to), Units::for_result(to), cols);
    let own = builder.own();
    let (gate, up) = (
        builder.load(gate, RowMap::Same, own),
        builder.load(up, RowMap::Same, own),
    );
    let product = builder.silu_times(gate, up);
    builder.store(out, own, product, to);
    builder.region
}

/// Rotates whole heads.
pub fn rope(x: u32, table: u32, out: u32, cols: u32, head_dim: u32) -> Region {
    let half = head_dim / 2;
    let mut builder = Builder::new(
        "rope",
        Units {
            unit: head_dim,
            width: half,
        },
        cols,
    );
    let (low, high) = (
        ColMap {
            per_unit: head_dim,
            offset: 0,
        },
        ColMap {
            per_unit: head_dim,
            offset: half,
        },
    );
    let (a, b) = (
        builder.load(x, RowMap::Same, low),
        builder.load(x, RowMap::Same, high),
    );
    let (a, b) = builder.rotate(a, b, table, half);
    builder.store(out, low, a, DType::F32);
    builder.store(out, high, b, DType::F32);
    builder.region
}

/// Writes rows of keys or values to their slots.
pub fn kv_write(x: u32, slots: u32, kv: KvPlace, cols: u32, head_dim: u32) -> Region {
    let mut builder = Builder::new(
        "kv_write",
        Units {
            unit: head_dim,
            width: head_dim,
        },
        cols,
    );
    let own = builder.own();
    let x = builder.load(x, RowMap::Same, own);
    builder.store_kv(kv, slots, 0, x);
    builder.region
}

/// Stores attention's results, a head a unit.
pub fn attention_epilogue(out: u32, cols: u32, head_dim: u32, to: DType) -> Region {
    let mut builder = Builder::new(
        &named("store", to),
        Units {
            unit: head_dim,
            width: head_dim,
        },
        cols,
    );
    let own = builder.own();
    let x = builder.tile(0);
    builder.store(out, own, x, to);
    builder.region
}

/// A norm with all that may be fused into it.
pub struct RmsNorm {
    pub x: u32,
    /// Added to x first.
    pub residual: Option<u32>,
    /// The token rows to compute, instead of all.
    pub rows: Option<u32>,
    /// Where x + residual goes.
    pub sum: Option<u32>,
    pub weight: u32,
    pub eps: f32,
    pub out: u32,
    pub to: DType,
    pub cols: u32,
}

impl RmsNorm {
    pub fn build(&self) -> Region {
        let name = if self.residual.is_some() {
            "add_rms_norm"
        } else {
            "rms_norm"
        };
        let name = named(name, self.to);
        let mut builder = Builder::new(&name, Units::for_result(self.to), self.cols);
        let own = builder.own();
        let row = match self.rows {
            Some(rows) => RowMap::Via(builder.operand(Operand::Buffer(rows))),
            None => RowMap::Same,
        };
        let mut h = builder.load(self.x, row, own);
        if let Some(residual) = self.residual {
            let residual = builder.load(residual, row, own);
            h = builder.binary(Binary::Add, h, residual);
        }
        if let Some(sum) = self.sum {
            builder.store(sum, own, h, DType::F32);
        }
        let square = builder.binary(Binary::Mul, h, h);
        let squares = builder.push(Inst::RowSum { x: square });
        let per_column = builder.constant(1.0 / self.cols as f32);
        let eps = builder.constant(self.eps);
        let mean = builder.push(Inst::Fma {
            a: squares,
            b: per_column,
            c: eps,
        });
        let root = builder.unary(Unary::Sqrt, mean);
        let inverse = builder.unary(Unary::Recip, root);
        let normed = builder.binary(Binary::Mul, h, inverse);
        let weight = builder.weight(self.weight, own);
        let out = builder.binary(Binary::Mul, normed, weight);
        builder.store(self.out, own, out, self.to);
        builder.region
    }
}

/// The buffers that a matmul's epilogue may read and write.
#[derive(Clone, Copy)]
pub struct Operands {
    pub table: Option<u32>,
    pub slots: Option<u32>,
    pub out: Option<u32>,
}

/// The epilogue of `cols` output features; none if an operand that it needs is missing. `head_dim` gives the head size of a
/// KV group.
pub fn matmul_epilogue(
    epilogue: Epilogue,
    operands: Operands,
    cols: u32,
    head_dim: impl Fn(u32) -> u32,
) -> Option<Region> {
    match epilogue {
        Epilogue::Store => {
            let mut builder = Builder::new("store", Units::FLAT, cols);
            let own = builder.own();
            let x = builder.tile(0);
            builder.store(operands.out?, own, x, DType::F32);
            Some(builder.region)
        }
        Epilogue::Rope { head_dim } => {
            let half = head_dim / 2;
            let mut builder = Builder::new(
                "rope",
                Units {
                    unit: head_dim,
                    width: half,
                },
                cols,
            );
            let (a, b) = (builder.tile(0), builder.tile(half));
            let (a, b) = builder.rotate(a, b, operands.table?, half);
            builder.store(
                operands.out?,
                ColMap {
                    per_unit: head_dim,
                    offset: 0,
                },
                a,
                DType::F32,
            );
            builder.store(
                operands.out?,
                ColMap {
                    per_unit: head_dim,
                    offset: half,
                },
                b,
                DType::F32,
            );
            Some(builder.region)
        }
        Epilogue::KvWrite {
            rope: None,
            group,
            layer,
            part,
        } => {
            let head_dim = head_dim(group);
            let mut builder = Builder::new(
                "kv_write",
                Units {
                    unit: head_dim,
                    width: head_dim,
                },
                cols,
            );
            let x = builder.tile(0);
            builder.store_kv(KvPlace { group, layer, part }, operands.slots?, 0, x);
            Some(builder.region)
        }
        Epilogue::KvWrite {
            rope: Some(head_dim),
            group,
            layer,
            part,
        } => {
            let half = head_dim / 2;
            let mut builder = Builder::new(
                "rope_kv_write",
                Units {
                    unit: head_dim,
                    width: half,
                },
                cols,
            );
            let (a, b) = (builder.tile(0), builder.tile(half));
            let (a, b) = builder.rotate(a, b, operands.table?, half);
            let kv = KvPlace { group, layer, part };
            builder.store_kv(kv, operands.slots?, 0, a);
            builder.store_kv(kv, operands.slots?, half, b);
            Some(builder.region)
        }
        Epilogue::SwiGlu { to } => {
            let block = Q8_BLOCK as u32;
            let mut builder = Builder::new(
                &named("swiglu", to),
                Units {
                    unit: 2 * block,
                    width: block,
                },
                cols,
            );
            let (gate, up) = (builder.tile(0), builder.tile(block));
            let product = builder.silu_times(gate, up);
            let own = builder.own();
            builder.store(operands.out?, own, product, to);
            Some(builder.region)
        }
    }
}
