//! Regions as a model's lowering makes them, with the tables of the plan that they refer to.

use super::RegionContext;
use bundle_format::plan::{
    Buffer, DType, Dim, Encoding, KvDType, KvGroup, Place, Role, Weight, WeightLayout,
};
use bundle_format::region::{
    Binary, ColMap, Inst, KvPart, Operand, OperandId, Region, RowMap, Unary, Val,
};
use bundle_format::target::Target;

/// A region under construction, and the tables.
pub struct Case {
    pub region: Region,
    pub buffers: Vec<Buffer>,
    pub weights: Vec<Weight>,
    pub kv: Vec<KvGroup>,
    pub tile_stride: u32,
}

/// Column `c` of every unit of `per_unit` columns, from `offset` on.
pub fn at(per_unit: u32, offset: u32) -> ColMap {
    ColMap { per_unit, offset }
}

impl Case {
    pub fn new(name: &str, unit: u32, width: u32, cols: u32) -> Case {
        Case {
            region: Region {
                name: name.into(),
                unit,
                width,
                cols,
                operands: vec![],
                body: vec![],
            },
            buffers: vec![],
            weights: vec![],
            kv: vec![],
            tile_stride: cols,
        }
    }

    pub fn context(&self) -> RegionContext {
        RegionContext::new(
            Target::X86_64V3,
            &self.region,
            &self.buffers,
            &self.weights,
            &self.kv,
            self.tile_stride,
        )
        .expect("the case's tables fit the region")
    }

    fn operand(&mut self, operand: Operand) -> OperandId {
        self.region.operands.push(operand);
        (self.region.operands.len() - 1) as OperandId
    }

    pub fn buffer(&mut self, dtype: DType, cols: u32) -> OperandId {
        self.buffers.push(Buffer {
            name: format!("b{}", self.buffers.len()),
            dtype,
            extent: Dim::Tokens,
            cols,
            place: Place {
                offset: 0,
                role: Role::Scratch,
            },
        });
        self.operand(Operand::Buffer(self.buffers.len() as u32 - 1))
    }

    pub fn weight(&mut self, cols: u32) -> OperandId {
        self.weights.push(Weight {
            name: format!("w{}", self.weights.len()),
            encoding: Encoding::F32,
            layout: WeightLayout::RowMajor,
            rows: 1,
            cols,
            offset: 0,
            len: cols as u64 * 4,
            slices: vec![],
            interleave: 0,
            pairs: 0,
            shard: None,
        });
        self.operand(Operand::Weight(self.weights.len() as u32 - 1))
    }

    pub fn pool(&mut self, part: KvPart, kv_heads: u32, head_dim: u32) -> OperandId {
        self.kv.push(KvGroup {
            dtype: KvDType::F16,
            layers: 2,
            kv_heads,
            head_dim,
            window: None,
        });
        self.operand(Operand::Kv {
            group: self.kv.len() as u32 - 1,
            layer: 1,
            part,
        })
    }

    pub fn push(&mut self, inst: Inst) -> Val {
        self.region.body.push(inst);
        (self.region.body.len() - 1) as Val
    }

    pub fn constant(&mut self, value: f32) -> Val {
        self.push(Inst::Const { value })
    }

    pub fn tile(&mut self, offset: u32) -> Val {
        self.push(Inst::Tile { offset })
    }

    pub fn load(&mut self, src: OperandId, col: ColMap) -> Val {
        self.load_row(src, RowMap::Same, col)
    }

    pub fn load_row(&mut self, src: OperandId, row: RowMap, col: ColMap) -> Val {
        self.push(Inst::Load { src, row, col })
    }

    pub fn unary(&mut self, op: Unary, x: Val) -> Val {
        self.push(Inst::Unary { op, x })
    }

    pub fn binary(&mut self, op: Binary, a: Val, b: Val) -> Val {
        self.push(Inst::Binary { op, a, b })
    }

    pub fn row_sum(&mut self, x: Val) -> Val {
        self.push(Inst::RowSum { x })
    }

    pub fn unit_sum(&mut self, x: Val) -> Val {
        self.push(Inst::UnitSum { x })
    }

    pub fn store(&mut self, dst: OperandId, col: ColMap, x: Val) {
        self.push(Inst::Store { dst, col, x });
    }

    pub fn store_quant(&mut self, dst: OperandId, col: ColMap, x: Val) {
        self.push(Inst::StoreQuant { dst, col, x });
    }

    pub fn store_kv(&mut self, dst: OperandId, slots: OperandId, offset: u32, x: Val) {
        self.push(Inst::StoreKv {
            dst,
            slots,
            offset,
            x,
        });
    }
}

/// The region's name, after the type of blocks that it stores.
fn named(what: &str, dtype: DType) -> String {
    format!("{what}_{dtype:?}").to_lowercase()
}

/// The rows of a matmul, as they are.
pub fn store(cols: u32) -> Case {
    let mut case = Case::new("store", 1, 1, cols);
    let out = case.buffer(DType::F32, cols);
    let x = case.tile(0);
    case.store(out, at(1, 0), x);
    case
}

/// A matmul's result added to the residual in place.
pub fn add(cols: u32) -> Case {
    let mut case = Case::new("add", 1, 1, cols);
    let hidden = case.buffer(DType::F32, cols);
    let a = case.load(hidden, at(1, 0));
    let x = case.tile(0);
    let sum = case.binary(Binary::Add, a, x);
    case.store(hidden, at(1, 0), sum);
    case
}

/// `1 / sqrt(sum / n + eps)`
fn norm_factor(case: &mut Case, sum: Val, n: u32) -> Val {
    let n = case.constant(n as f32);
    let mean = case.binary(Binary::Div, sum, n);
    let eps = case.constant(1e-5);
    let mean = case.binary(Binary::Add, mean, eps);
    let root = case.unary(Unary::Sqrt, mean);
    case.unary(Unary::Recip, root)
}

/// `x * factor * w`
fn scaled(case: &mut Case, x: Val, factor: Val, weight: OperandId, col: ColMap) -> Val {
    let x = case.binary(Binary::Mul, x, factor);
    let w = case.load_row(weight, RowMap::Zero, col);
    case.binary(Binary::Mul, x, w)
}

/// `x / sqrt(mean(x * x) + eps) * w`
fn norm(case: &mut Case, x: Val, weight: OperandId, col: ColMap) -> Val {
    let square = case.binary(Binary::Mul, x, x);
    let sum = case.row_sum(square);
    let factor = norm_factor(case, sum, case.region.cols);
    scaled(case, x, factor, weight, col)
}

pub fn rms_norm(cols: u32) -> Case {
    let mut case = Case::new("rms_norm", 1, 1, cols);
    let (x, w) = (case.buffer(DType::F32, cols), case.weight(cols));
    let out = case.buffer(DType::F32, cols);
    let x = case.load(x, at(1, 0));
    let y = norm(&mut case, x, w, at(1, 0));
    case.store(out, at(1, 0), y);
    case
}

pub fn rms_norm_quant(dtype: DType, cols: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("rms_norm", dtype), block, block, cols);
    let (x, w) = (case.buffer(DType::F32, cols), case.weight(cols));
    let out = case.buffer(dtype, cols);
    let x = case.load(x, at(block, 0));
    let y = norm(&mut case, x, w, at(block, 0));
    case.store_quant(out, at(block, 0), y);
    case
}

/// `h += x`, then the norm of h.
pub fn add_rms_norm_quant(dtype: DType, cols: u32) -> Case {
    let mut case = Case::new(&named("add_rms_norm", dtype), cols, cols, cols);
    let (hidden, x) = (case.buffer(DType::F32, cols), case.buffer(DType::F32, cols));
    let (w, out) = (case.weight(cols), case.buffer(dtype, cols));
    let col = at(cols, 0);
    let (a, b) = (case.load(hidden, col), case.load(x, col));
    let sum = case.binary(Binary::Add, a, b);
    case.store(hidden, col, sum);
    let y = norm(&mut case, sum, w, col);
    case.store_quant(out, col, y);
    case
}

/// `h = x + norm(y)`, then the norm of h: a second sum of what depends on the first.
pub fn norm_add_norm_quant(dtype: DType, cols: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("norm_add_norm", dtype), block, block, cols);
    let (hidden, y) = (case.buffer(DType::F32, cols), case.buffer(DType::F32, cols));
    let (first, second) = (case.weight(cols), case.weight(cols));
    let out = case.buffer(dtype, cols);
    let col = at(block, 0);
    let (x, y) = (case.load(hidden, col), case.load(y, col));
    let y = norm(&mut case, y, first, col);
    let h = case.binary(Binary::Add, x, y);
    case.store(hidden, col, h);
    let normed = norm(&mut case, h, second, col);
    case.store_quant(out, col, normed);
    case
}

/// The rows whose logits are wanted, normed.
pub fn final_norm_quant(dtype: DType, cols: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("final_norm", dtype), block, block, cols);
    let (x, rows) = (case.buffer(DType::F32, cols), case.buffer(DType::U32, 1));
    let (w, out) = (case.weight(cols), case.buffer(dtype, cols));
    let x = case.load_row(x, RowMap::Via(rows), at(block, 0));
    let y = norm(&mut case, x, w, at(block, 0));
    case.store_quant(out, at(block, 0), y);
    case
}

pub fn quantise(dtype: DType, cols: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("quantise", dtype), block, block, cols);
    let (x, out) = (case.buffer(DType::F32, cols), case.buffer(dtype, cols));
    let x = case.load(x, at(block, 0));
    case.store_quant(out, at(block, 0), x);
    case
}

/// `silu(gate) * up`, of a matmul whose columns are a block of gate, a block of up in turn.
pub fn swiglu_quant(dtype: DType, ffn: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("swiglu", dtype), 2 * block, block, ffn * 2);
    let out = case.buffer(dtype, ffn);
    let (gate, up) = (case.tile(0), case.tile(block));
    let negative = case.unary(Unary::Neg, gate);
    let e = case.unary(Unary::Exp, negative);
    let one = case.constant(1.0);
    let denominator = case.binary(Binary::Add, e, one);
    let silu = case.binary(Binary::Div, gate, denominator);
    let y = case.binary(Binary::Mul, silu, up);
    case.store_quant(out, at(block, 0), y);
    case
}

/// `gelu(gate) * up` by the tanh approximation: `tanh(u) = 2 / (1 + exp(-2u)) - 1`.
pub fn geglu_quant(dtype: DType, ffn: u32) -> Case {
    let block = dtype.block() as u32;
    let mut case = Case::new(&named("geglu", dtype), 2 * block, block, ffn * 2);
    let out = case.buffer(dtype, ffn);
    let (gate, up) = (case.tile(0), case.tile(block));
    let square = case.binary(Binary::Mul, gate, gate);
    let cubic = case.constant(2.0 * 0.797_884_6 * 0.044_715);
    let linear = case.constant(2.0 * 0.797_884_6);
    let factor = case.push(Inst::Fma {
        a: square,
        b: cubic,
        c: linear,
    });
    let twice = case.binary(Binary::Mul, gate, factor);
    let negative = case.unary(Unary::Neg, twice);
    let e = case.unary(Unary::Exp, negative);
    let one = case.constant(1.0);
    let denominator = case.binary(Binary::Add, e, one);
    let sigmoid = case.unary(Unary::Recip, denominator);
    let gelu = case.binary(Binary::Mul, gate, sigmoid);
    let y = case.binary(Binary::Mul, gelu, up);
    case.store_quant(out, at(block, 0), y);
    case
}

/// Both halves of a rotated head: of columns `a` and `b` of each half.
fn rotate(case: &mut Case, head_dim: u32, (a, b): (Val, Val)) -> (Val, Val) {
    let half = head_dim / 2;
    let table = case.buffer(DType::F32, head_dim);
    let cos = case.load(table, at(0, 0));
    let sin = case.load(table, at(0, half));
    let (ac, bs) = (
        case.binary(Binary::Mul, a, cos),
        case.binary(Binary::Mul, b, sin),
    );
    let first = case.binary(Binary::Sub, ac, bs);
    let as_ = case.binary(Binary::Mul, a, sin);
    let second = case.push(Inst::Fma {
        a: b,
        b: cos,
        c: as_,
    });
    (first, second)
}

/// Both halves of a tile's head.
fn halves(case: &mut Case, head_dim: u32) -> (Val, Val) {
    (case.tile(0), case.tile(head_dim / 2))
}

/// The halves of a head, normed by the head.
fn norm_halves(case: &mut Case, head_dim: u32) -> (Val, Val) {
    let half = head_dim / 2;
    let weight = case.weight(head_dim);
    let (a, b) = halves(case, head_dim);
    let square = case.binary(Binary::Mul, a, a);
    let squares = case.push(Inst::Fma { a: b, b, c: square });
    let sum = case.unit_sum(squares);
    let factor = norm_factor(case, sum, head_dim);
    (
        scaled(case, a, factor, weight, at(0, 0)),
        scaled(case, b, factor, weight, at(0, half)),
    )
}

/// A bias added to both halves.
fn add_bias(case: &mut Case, heads: u32, head_dim: u32) -> (Val, Val) {
    let bias = case.weight(heads * head_dim);
    let (a, b) = halves(case, head_dim);
    let mut add = |x: Val, offset: u32| {
        let bias = case.load_row(bias, RowMap::Zero, at(head_dim, offset));
        case.binary(Binary::Add, x, bias)
    };
    (add(a, 0), add(b, head_dim / 2))
}

fn rotate_and_store(case: &mut Case, head_dim: u32, head: (Val, Val)) {
    let out = case.buffer(DType::F32, case.region.cols);
    let (first, second) = rotate(case, head_dim, head);
    case.store(out, at(head_dim, 0), first);
    case.store(out, at(head_dim, head_dim / 2), second);
}

fn rotate_and_store_key(case: &mut Case, head_dim: u32, head: (Val, Val)) {
    let slots = case.buffer(DType::U32, 1);
    let pool = case.pool(KvPart::Key, case.region.cols / head_dim, head_dim);
    let (first, second) = rotate(case, head_dim, head);
    case.store_kv(pool, slots, 0, first);
    case.store_kv(pool, slots, head_dim / 2, second);
}

fn by_halves(name: &str, heads: u32, head_dim: u32) -> Case {
    Case::new(name, head_dim, head_dim / 2, heads * head_dim)
}

pub fn rope(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("rope", heads, head_dim);
    let head = halves(&mut case, head_dim);
    rotate_and_store(&mut case, head_dim, head);
    case
}

pub fn rope_key(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("rope_key", heads, head_dim);
    let head = halves(&mut case, head_dim);
    rotate_and_store_key(&mut case, head_dim, head);
    case
}

pub fn bias_rope(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("bias_rope", heads, head_dim);
    let head = add_bias(&mut case, heads, head_dim);
    rotate_and_store(&mut case, head_dim, head);
    case
}

pub fn bias_rope_key(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("bias_rope_key", heads, head_dim);
    let head = add_bias(&mut case, heads, head_dim);
    rotate_and_store_key(&mut case, head_dim, head);
    case
}

pub fn norm_rope(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("norm_rope", heads, head_dim);
    let head = norm_halves(&mut case, head_dim);
    rotate_and_store(&mut case, head_dim, head);
    case
}

pub fn norm_rope_key(heads: u32, head_dim: u32) -> Case {
    let mut case = by_halves("norm_rope_key", heads, head_dim);
    let head = norm_halves(&mut case, head_dim);
    rotate_and_store_key(&mut case, head_dim, head);
    case
}

/// Heads normed in place, by a region of its own.
pub fn head_norm(heads: u32, head_dim: u32) -> Case {
    let mut case = Case::new("head_norm", head_dim, head_dim, heads * head_dim);
    let (x, weight) = (
        case.buffer(DType::F32, heads * head_dim),
        case.weight(head_dim),
    );
    let value = case.load(x, at(head_dim, 0));
    let square = case.binary(Binary::Mul, value, value);
    let sum = case.unit_sum(square);
    let factor = norm_factor(&mut case, sum, head_dim);
    let y = scaled(&mut case, value, factor, weight, at(0, 0));
    case.store(x, at(head_dim, 0), y);
    case
}

pub fn value(heads: u32, head_dim: u32) -> Case {
    let mut case = Case::new("value", head_dim, head_dim, heads * head_dim);
    let slots = case.buffer(DType::U32, 1);
    let pool = case.pool(KvPart::Value, heads, head_dim);
    let x = case.tile(0);
    case.store_kv(pool, slots, 0, x);
    case
}

/// The same, to a quantised cache.
pub fn cached_in_8_bits(mut case: Case) -> Case {
    for group in &mut case.kv {
        group.dtype = KvDType::Q8_0;
    }
    case.region.name += "_q8_0";
    case
}

/// What attention hands to the output projection.
pub fn attention_quant(dtype: DType, heads: u32, head_dim: u32) -> Case {
    let mut case = Case::new(
        &named("attention", dtype),
        head_dim,
        head_dim,
        heads * head_dim,
    );
    let out = case.buffer(dtype, heads * head_dim);
    let x = case.tile(0);
    case.store_quant(out, at(head_dim, 0), x);
    case
}

/// Regions of models of real sizes, SmolLM2-135M's for most, and some of odd ones.
pub fn model() -> Vec<Case> {
    let plain = vec![
        store(576),
        store(1),
        store(49153),
        add(576),
        add(7),
        rms_norm(576),
        rms_norm(37),
        rms_norm(3),
        rope(9, 64),
        rope(3, 80),
        rope(2, 6),
        rope_key(3, 64),
        rope_key(2, 10),
        value(3, 64),
        value(1, 128),
        value(5, 23),
        cached_in_8_bits(rope_key(3, 64)),
        cached_in_8_bits(rope_key(1, 128)),
        cached_in_8_bits(rope_key(2, 256)),
        cached_in_8_bits(bias_rope_key(5, 64)),
        cached_in_8_bits(value(1, 32)),
        cached_in_8_bits(value(3, 64)),
        cached_in_8_bits(value(2, 96)),
        cached_in_8_bits(value(1, 256)),
        cached_in_8_bits(value(1, 480)),
        bias_rope(14, 64),
        bias_rope_key(2, 64),
        head_norm(16, 128),
        head_norm(4, 256),
        head_norm(5, 23),
        head_norm(3, 1),
    ];
    let quantised = [DType::Q8, DType::Q11, DType::Q14]
        .into_iter()
        .flat_map(|dtype| {
            [
                rms_norm_quant(dtype, 576),
                rms_norm_quant(dtype, 32),
                add_rms_norm_quant(dtype, 576),
                final_norm_quant(dtype, 576),
                combine(3, 576),
                combine(1, 13),
                quantise(dtype, 576),
                quantise(dtype, 1536),
                swiglu_quant(dtype, 1536),
                swiglu_quant(dtype, 32),
                geglu_quant(dtype, 2048),
                geglu_quant(dtype, 96),
                attention_quant(dtype, 9, 64),
                attention_quant(dtype, 2, 256),
            ]
        });
    let wide = [
        rms_norm_quant(DType::Q8K, 256),
        rms_norm_quant(DType::Q8K, 768),
        add_rms_norm_quant(DType::Q8K, 1024),
        final_norm_quant(DType::Q8K, 512),
        quantise(DType::Q8K, 256),
        quantise(DType::Q8K, 1536),
        swiglu_quant(DType::Q8K, 1536),
        geglu_quant(DType::Q8K, 2048),
        attention_quant(DType::Q8K, 2, 256),
    ];
    plain.into_iter().chain(quantised).chain(wide).collect()
}

/// Regions that add up what was scaled by a sum: where terms cancel, the sum's rounding shows.
pub fn cancelling() -> Vec<Case> {
    let plain = vec![
        norm_rope(16, 128),
        norm_rope(4, 256),
        norm_rope(3, 80),
        norm_rope(2, 6),
        norm_rope_key(8, 128),
        norm_rope_key(1, 256),
        norm_rope_key(2, 10),
        cached_in_8_bits(norm_rope_key(2, 128)),
    ];
    let quantised = [DType::Q8, DType::Q11, DType::Q14]
        .into_iter()
        .flat_map(|dtype| [640, 1152, 32].map(|cols| norm_add_norm_quant(dtype, cols)))
        .chain([256, 1280].map(|cols| norm_add_norm_quant(DType::Q8K, cols)));
    plain.into_iter().chain(quantised).collect()
}

pub fn all() -> Vec<Case> {
    model().into_iter().chain(cancelling()).collect()
}

/// The weighted sum of the rows of a token's slots, and of a row with a gate.
pub fn combine(used: u32, cols: u32) -> Case {
    let mut case = Case::new("combine", 1, 1, cols);
    let (y, places) = (case.buffer(DType::F32, cols), case.buffer(DType::U32, used));
    let (weights, gate) = (case.buffer(DType::F32, used), case.buffer(DType::F32, 1));
    let (shared, out) = (case.buffer(DType::F32, cols), case.buffer(DType::F32, cols));
    let mut sum = case.constant(0.0);
    for col in 0..used {
        let weight = case.push(Inst::RowValue { src: weights, col });
        let index = places;
        let y = case.load_row(y, RowMap::At { index, col }, at(1, 0));
        sum = case.push(Inst::Fma {
            a: y,
            b: weight,
            c: sum,
        });
    }
    let gate = case.push(Inst::RowValue { src: gate, col: 0 });
    let negative = case.unary(Unary::Neg, gate);
    let e = case.unary(Unary::Exp, negative);
    let one = case.constant(1.0);
    let below = case.binary(Binary::Add, e, one);
    let factor = case.unary(Unary::Recip, below);
    let shared = case.load(shared, at(1, 0));
    let sum = case.push(Inst::Fma {
        a: shared,
        b: factor,
        c: sum,
    });
    case.store(out, at(1, 0), sum);
    case
}
