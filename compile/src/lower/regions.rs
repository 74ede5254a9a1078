//! The element-wise code of nodes and epilogues, as regions.

use bundle_format::plan::DType;
use bundle_format::region::{
    Binary, ColMap, Inst, KvPart, Operand, OperandId, Region, RowMap, Unary, Val,
};

use crate::ir::Activation;

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
    /// Whole quantisation blocks if the result is quantised.
    fn for_result(to: DType) -> Units {
        let block = to.block() as u32;
        Units {
            unit: block,
            width: block,
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

    fn row_value(&mut self, buffer: u32, col: u32) -> Val {
        let src = self.operand(Operand::Buffer(buffer));
        self.push(Inst::RowValue { src, col })
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
        let inst = match to {
            DType::Q8 | DType::Q11 | DType::Q14 | DType::Q8K => Inst::StoreQuant { dst, col, x },
            DType::F32 | DType::U32 | DType::F16 => Inst::Store { dst, col, x },
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

    /// activation(gate) * up
    fn gated(&mut self, activation: Activation, gate: Val, up: Val) -> Val {
        // Both activations are gate / (1 + e^-z).
        let minus_z = match activation {
            Activation::Silu => self.unary(Unary::Neg, gate),
            Activation::GeluTanh => {
                // -z = -2 sqrt(2 / pi) (x + 0.044715 x^3) = x * (c1 + c3 x^2)
                let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let c1 = self.constant(-c as f32);
                let c3 = self.constant((-c * 0.044715) as f32);
                let square = self.binary(Binary::Mul, gate, gate);
                let factor = self.push(Inst::Fma {
                    a: square,
                    b: c3,
                    c: c1,
                });
                self.binary(Binary::Mul, gate, factor)
            }
        };
        let one = self.constant(1.0);
        let exp = self.unary(Unary::Exp, minus_z);
        let below = self.binary(Binary::Add, one, exp);
        let activated = self.binary(Binary::Div, gate, below);
        self.binary(Binary::Mul, activated, up)
    }

    /// 1 / sqrt(mean of the squares + eps), over `count` values: those of the unit, or of the row.
    fn inverse_rms(&mut self, values: &[Val], count: u32, eps: f32, of_unit: bool) -> Val {
        let mut squares = self.binary(Binary::Mul, values[0], values[0]);
        for &v in &values[1..] {
            squares = self.push(Inst::Fma {
                a: v,
                b: v,
                c: squares,
            });
        }
        let sum = self.push(match of_unit {
            true => Inst::UnitSum { x: squares },
            false => Inst::RowSum { x: squares },
        });
        let per_value = self.constant(1.0 / count as f32);
        let eps = self.constant(eps);
        let mean = self.push(Inst::Fma {
            a: sum,
            b: per_value,
            c: eps,
        });
        let root = self.unary(Unary::Sqrt, mean);
        self.unary(Unary::Recip, root)
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
        DType::Q11 => format!("{name}_q11"),
        DType::F16 => format!("{name}_f16"),
        DType::Q14 => format!("{name}_q14"),
        DType::Q8K => format!("{name}_q8k"),
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
pub fn gather(x: u32, rows: u32, out: u32, cols: u32, to: DType) -> Region {
    let mut builder = Builder::new(&named("gather_rows", to), Units::for_result(to), cols);
    let own = builder.own();
    let rows = builder.operand(Operand::Buffer(rows));
    let x = builder.load(x, RowMap::Via(rows), own);
    builder.store(out, own, x, to);
    builder.region
}

/// out = x, quantised
pub fn quantise(x: u32, out: u32, cols: u32, to: DType) -> Region {
    let mut builder = Builder::new(&named("quantise", to), Units::for_result(to), cols);
    let own = builder.own();
    let x = builder.load(x, RowMap::Same, own);
    builder.store(out, own, x, to);
    builder.region
}

/// out = activation(gate) * up
pub fn glu(activation: Activation, gate: u32, up: u32, out: u32, cols: u32, to: DType) -> Region {
    let name = named(activation.glu_name(), to);
    let mut builder = Builder::new(&name, Units::for_result(to), cols);
    let own = builder.own();
    let gate = builder.load(gate, RowMap::Same, own);
    let up = builder.load(up, RowMap::Same, own);
    let product = builder.gated(activation, gate, up);
    builder.store(out, own, product, to);
    builder.region
}

/// The epilogue of interleaved gate and up: `block` features of each in turn.
pub fn glu_epilogue(activation: Activation, out: u32, cols: u32, to: DType, block: u32) -> Region {
    let units = Units {
        unit: 2 * block,
        width: block,
    };
    let mut builder = Builder::new(&named(activation.glu_name(), to), units, cols);
    let (gate, up) = (builder.tile(0), builder.tile(block));
    let product = builder.gated(activation, gate, up);
    let own = builder.own();
    builder.store(out, own, product, to);
    builder.region
}

/// What happens to features between their matmul and where they are used: bias, norm of each head, rotation, store. As an
/// epilogue they come from the tile, as a launch of their own from a buffer.
#[derive(Clone, Copy)]
pub struct Chain {
    /// The buffer they come from; none: the tile.
    pub from: Option<u32>,
    /// A weight that is added.
    pub bias: Option<u32>,
    /// The weight and the eps of the heads' norm.
    pub norm: Option<(u32, f32)>,
    /// The rope table to rotate halves of heads by.
    pub table: Option<u32>,
    pub to: Sink,
    /// Features of a head, where any step works on heads.
    pub head_dim: Option<u32>,
    pub cols: u32,
}

/// Where features go.
#[derive(Clone, Copy)]
pub enum Sink {
    Buffer(u32),
    Kv { place: KvPlace, slots: u32 },
}

impl Chain {
    /// The chain as a region; none if it works on heads and has no head size.
    pub fn build(&self) -> Option<Region> {
        let on_heads =
            self.norm.is_some() || self.table.is_some() || matches!(self.to, Sink::Kv { .. });
        let head_dim = if on_heads { Some(self.head_dim?) } else { None };
        let (units, offsets) = match head_dim {
            None => (Units::FLAT, vec![0]),
            Some(unit) if self.table.is_some() => (
                Units {
                    unit,
                    width: unit / 2,
                },
                vec![0, unit / 2],
            ),
            Some(unit) => (Units { unit, width: unit }, vec![0]),
        };
        let mut builder = Builder::new(&self.name(), units, self.cols);
        let at = |offset: u32| ColMap {
            per_unit: units.unit,
            offset,
        };
        let mut values: Vec<Val> = Vec::new();
        for &offset in &offsets {
            let mut value = match self.from {
                Some(buffer) => builder.load(buffer, RowMap::Same, at(offset)),
                None => builder.tile(offset),
            };
            if let Some(bias) = self.bias {
                let bias = builder.weight(bias, at(offset));
                value = builder.binary(Binary::Add, value, bias);
            }
            values.push(value);
        }
        if let (Some((weight, eps)), Some(head_dim)) = (self.norm, head_dim) {
            let inverse = builder.inverse_rms(&values, head_dim, eps, true);
            for (value, &offset) in values.iter_mut().zip(&offsets) {
                let weight = builder.weight(
                    weight,
                    ColMap {
                        per_unit: 0,
                        offset,
                    },
                );
                let normed = builder.binary(Binary::Mul, *value, inverse);
                *value = builder.binary(Binary::Mul, normed, weight);
            }
        }
        if let (Some(table), [a, b]) = (self.table, &values[..]) {
            let (low, high) = builder.rotate(*a, *b, table, units.width);
            values = vec![low, high];
        }
        for (value, offset) in values.into_iter().zip(offsets) {
            match self.to {
                Sink::Buffer(out) => builder.store(out, at(offset), value, DType::F32),
                Sink::Kv { place, slots } => builder.store_kv(place, slots, offset, value),
            }
        }
        Some(builder.region)
    }

    /// The steps by name, `bias_rope_kv_write`; a plain store is `store`.
    fn name(&self) -> String {
        let mut steps = Vec::new();
        let mut step = |on: bool, name| on.then(|| steps.push(name));
        step(self.bias.is_some(), "bias");
        step(self.norm.is_some(), "norm");
        step(self.table.is_some(), "rope");
        step(matches!(self.to, Sink::Kv { .. }), "kv_write");
        if steps.is_empty() {
            "store".to_string()
        } else {
            steps.join("_")
        }
    }
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

/// The sum of what a token's experts made of it.
pub struct Combine {
    /// f32, a row for each pair.
    pub y: u32,
    /// The rows of each token's slots.
    pub places: u32,
    /// The factors of each token's slots.
    pub weights: u32,
    /// Slots of a token.
    pub used: u32,
    /// What the expert of every token made, and the logit of its factor.
    pub shared: Option<(u32, u32)>,
    pub out: u32,
    pub cols: u32,
}

impl Combine {
    /// The slots' products are added in ascending order, whatever expert each is of.
    pub fn build(&self) -> Region {
        let name = match self.shared {
            Some(_) => "combine_shared",
            None => "combine",
        };
        let mut builder = Builder::new(name, Units::FLAT, self.cols);
        let own = builder.own();
        let index = builder.operand(Operand::Buffer(self.places));
        let mut sum = None;
        for slot in 0..self.used {
            let weight = builder.row_value(self.weights, slot);
            let y = builder.load(self.y, RowMap::At { index, col: slot }, own);
            sum = Some(match sum {
                None => builder.binary(Binary::Mul, y, weight),
                Some(sum) => builder.push(Inst::Fma {
                    a: y,
                    b: weight,
                    c: sum,
                }),
            });
        }
        if let Some((shared, gate)) = self.shared {
            let gate = builder.row_value(gate, 0);
            let minus = builder.unary(Unary::Neg, gate);
            let exp = builder.unary(Unary::Exp, minus);
            let one = builder.constant(1.0);
            let below = builder.binary(Binary::Add, one, exp);
            let factor = builder.unary(Unary::Recip, below);
            let shared = builder.load(shared, RowMap::Same, own);
            sum = Some(match sum {
                None => builder.binary(Binary::Mul, shared, factor),
                Some(sum) => builder.push(Inst::Fma {
                    a: shared,
                    b: factor,
                    c: sum,
                }),
            });
        }
        let sum = sum.unwrap_or_else(|| builder.constant(0.0));
        builder.store(self.out, own, sum, DType::F32);
        builder.region
    }
}

/// A norm with all that may be fused into it.
pub struct RmsNorm {
    pub x: u32,
    /// Added to x first.
    pub residual: Option<u32>,
    /// The weight of the residual's own norm, before it is added.
    pub post: Option<u32>,
    /// The token rows to compute, instead of all.
    pub rows: Option<u32>,
    /// Where x + residual goes.
    pub sum: Option<u32>,
    /// Where the result goes, too, and as what.
    pub kept: Option<(u32, DType)>,
    pub weight: u32,
    pub eps: f32,
    pub out: u32,
    pub to: DType,
    pub cols: u32,
}

impl RmsNorm {
    pub fn build(&self) -> Region {
        let name = match (self.residual, self.post) {
            (_, Some(_)) => "norm_add_rms_norm",
            (Some(_), None) => "add_rms_norm",
            (None, None) => "rms_norm",
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
            let mut residual = builder.load(residual, row, own);
            if let Some(post) = self.post {
                residual = self.normed(&mut builder, residual, post);
            }
            h = builder.binary(Binary::Add, h, residual);
        }
        if let Some(sum) = self.sum {
            builder.store(sum, own, h, DType::F32);
        }
        let out = self.normed(&mut builder, h, self.weight);
        if let Some((kept, dtype)) = self.kept {
            builder.store(kept, own, out, dtype);
        }
        builder.store(self.out, own, out, self.to);
        builder.region
    }

    /// x / sqrt(mean(x^2) + eps) * weight
    fn normed(&self, builder: &mut Builder, x: Val, weight: u32) -> Val {
        let own = builder.own();
        let inverse = builder.inverse_rms(&[x], self.cols, self.eps, false);
        let normed = builder.binary(Binary::Mul, x, inverse);
        let weight = builder.weight(weight, own);
        builder.binary(Binary::Mul, normed, weight)
    }
}
