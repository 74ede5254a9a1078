//! What a pass does for a strip of columns: straight-line code over vectors of four columns.
//!
//! Vectors go through the pass a few at a time ([`GROUP`]), each instruction for all of the group: their latencies overlap,
//! they share constants, and few registers are live at once.

use bundle_format::plan::{Q8_BLOCK, q8_scales_offset, q8_sums_offset};
use bundle_format::region::{Binary, ColMap, Inst, OperandId, RowMap, Unary, Val};
use cranelift_codegen::ir::types::{F32, F32X4, F64X2};
use cranelift_codegen::ir::{InstBuilder, Value};

use super::emit::{Emitter, PARTIAL_SUMS, flags};
use super::layout::{KvStrides, Layout};
use super::math::{self, LANES, Q8_VECTORS};
use super::schedule::{Pass, Step};

/// Vectors that go through the instructions together.
const GROUP: usize = 2;

/// Which lanes of a vector stand for columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    All,
    /// The others hold values of no meaning: the rest of a row goes through the same instructions, and so gets the same
    /// bits, as everything else.
    First,
}

impl Lanes {
    pub fn columns(self, vectors: usize) -> usize {
        match self {
            Lanes::All => vectors * LANES,
            Lanes::First => vectors,
        }
    }
}

/// The vectors that go together.
struct Group<'v> {
    /// First column of each, from the strip's [`super::emit::Place`] on.
    points: Vec<u32>,
    lanes: Lanes,
    /// By instruction: its value for each vector, once evaluated.
    values: &'v mut [Vec<Value>],
}

impl Emitter<'_> {
    /// Does a pass for `vectors` vectors, from column `start` after the current place on. `sums` are [`PARTIAL_SUMS`] vectors for each of the pass's sums.
    pub fn strip(
        &mut self,
        pass: &Pass,
        start: u32,
        vectors: usize,
        lanes: Lanes,
        sums: &mut [Value],
    ) {
        let mut to_quantise: Vec<(usize, Vec<Value>)> = Vec::new();
        for first in (0..vectors).step_by(GROUP) {
            let points = (first..vectors.min(first + GROUP))
                .map(|i| start + lanes.columns(i) as u32)
                .collect();
            let mut values = vec![Vec::new(); self.region.body.len()];
            let mut group = Group {
                points,
                lanes,
                values: &mut values,
            };
            for step in &pass.steps {
                match *step {
                    Step::Accumulate { sum, x } => {
                        let which = pass.sums.iter().position(|s| *s == sum);
                        let which = which.expect("a pass accumulates its own sums");
                        let parts = &mut sums[which * PARTIAL_SUMS..][..PARTIAL_SUMS];
                        self.accumulate(&group, first, x, parts);
                    }
                    Step::Store(index) => {
                        if let Inst::StoreQ8 { x, .. } = self.region.body[index] {
                            let xs = self.values(x, group.values, group.points.len());
                            match to_quantise.iter_mut().find(|(i, _)| *i == index) {
                                Some((_, gathered)) => gathered.extend(xs),
                                None => to_quantise.push((index, xs)),
                            }
                        } else {
                            self.store(&group, index);
                        }
                    }
                    Step::Reload { value, from, col } => {
                        group.values[value as usize] = self.load(&group, from, RowMap::Same, col);
                    }
                    Step::Eval(value) => self.eval_group(&mut group, value),
                }
            }
        }
        for (index, xs) in to_quantise {
            for (block, xs) in xs.chunks(Q8_VECTORS).enumerate() {
                let at = start + (block * Q8_BLOCK) as u32;
                self.store_q8(index, at, xs);
            }
        }
    }

    /// Whether a pass stores Q8 blocks, and so needs strips of whole blocks.
    pub fn stores_q8(&self, pass: &Pass) -> bool {
        pass.steps.iter().any(|step| match *step {
            Step::Store(index) => matches!(self.region.body[index], Inst::StoreQ8 { .. }),
            _ => false,
        })
    }

    fn eval_group(&mut self, group: &mut Group, value: Val) {
        let vectors = group.points.len();
        group.values[value as usize] = match self.region.body[value as usize] {
            Inst::Load { src, row, col } => self.load(group, src, row, col),
            Inst::Tile { offset } => {
                let tile = self.row.tile.expect("a region that reads a tile has one");
                let col = ColMap {
                    per_unit: self.region.unit,
                    offset,
                };
                self.load_from(group, tile, col)
            }
            _ => self.eval(value, group.values, vectors),
        };
    }

    /// An instruction on values, for so many vectors.
    pub fn eval(&mut self, value: Val, values: &[Vec<Value>], vectors: usize) -> Vec<Value> {
        match self.region.body[value as usize] {
            Inst::Unary { op, x } => {
                let xs = self.values(x, values, vectors);
                self.unary(op, &xs)
            }
            Inst::Binary { op, a, b } => {
                let a = self.values(a, values, vectors);
                let b = self.values(b, values, vectors);
                a.into_iter()
                    .zip(b)
                    .map(|(a, b)| match op {
                        Binary::Add => self.b.ins().fadd(a, b),
                        Binary::Sub => self.b.ins().fsub(a, b),
                        Binary::Mul => self.b.ins().fmul(a, b),
                        Binary::Div => self.b.ins().fdiv(a, b),
                    })
                    .collect()
            }
            Inst::Fma { a, b, c } => {
                let a = self.values(a, values, vectors);
                let b = self.values(b, values, vectors);
                let c = self.values(c, values, vectors);
                (0..vectors)
                    .map(|i| self.b.ins().fma(a[i], b[i], c[i]))
                    .collect()
            }
            ref other => unreachable!("{other:?} is no arithmetic"),
        }
    }

    fn unary(&mut self, op: Unary, xs: &[Value]) -> Vec<Value> {
        match op {
            Unary::Neg => math::neg(&mut self.b, xs),
            Unary::Exp => math::exp(&mut self.b, xs),
            Unary::Sqrt => xs.iter().map(|&x| self.b.ins().sqrt(x)).collect(),
            Unary::Recip => {
                let one = math::splat(&mut self.b, 1.0);
                xs.iter().map(|&x| self.b.ins().fdiv(one, x)).collect()
            }
        }
    }

    /// The operand of an instruction, for so many vectors. A constant is made where it is used: it costs a load there, but
    /// no register elsewhere.
    fn values(&mut self, value: Val, values: &[Vec<Value>], vectors: usize) -> Vec<Value> {
        if let Inst::Const { value } = self.region.body[value as usize] {
            return vec![math::splat(&mut self.b, value); vectors];
        }
        match self.uniforms[value as usize] {
            Some(uniform) => vec![uniform; vectors],
            None => values[value as usize].clone(),
        }
    }

    fn accumulate(&mut self, group: &Group, first: usize, x: Val, parts: &mut [Value]) {
        let xs = self.values(x, group.values, group.points.len());
        for (i, mut x) in xs.into_iter().enumerate() {
            if group.lanes == Lanes::First {
                let first = math::constant(&mut self.b, F32X4, [u32::MAX, 0, 0, 0]);
                let nothing = (-0.0f32).to_bits();
                let rest = math::constant(&mut self.b, F32X4, [0, nothing, nothing, nothing]);
                x = self.b.ins().band(x, first);
                x = self.b.ins().bor(x, rest);
            }
            let part = &mut parts[(first + i) % PARTIAL_SUMS];
            *part = self.b.ins().fadd(*part, x);
        }
    }

    fn load(&mut self, group: &Group, src: OperandId, row: RowMap, col: ColMap) -> Vec<Value> {
        let pointer = self.row_of(src, row);
        self.load_from(group, pointer, col)
    }

    fn load_from(&mut self, group: &Group, row: Value, col: ColMap) -> Vec<Value> {
        group
            .points
            .iter()
            .map(|&point| {
                let (address, offset) = self.address(row, col, point, 2);
                match group.lanes {
                    Lanes::All => self.b.ins().load(F32X4, flags(), address, offset),
                    Lanes::First => {
                        let x = self.b.ins().load(F32, flags(), address, offset);
                        self.b.ins().scalar_to_vector(F32X4, x)
                    }
                }
            })
            .collect()
    }

    fn store(&mut self, group: &Group, index: usize) {
        match self.region.body[index] {
            Inst::Store { dst, col, x } => {
                let xs = self.values(x, group.values, group.points.len());
                let row = self.row_of(dst, RowMap::Same);
                for (&point, x) in group.points.iter().zip(xs) {
                    let (address, offset) = self.address(row, col, point, 2);
                    let x = match group.lanes {
                        Lanes::All => x,
                        Lanes::First => self.b.ins().extractlane(x, 0),
                    };
                    self.b.ins().store(flags(), x, address, offset);
                }
            }
            Inst::StoreKv { dst, offset, x, .. } => {
                let xs = self.values(x, group.values, group.points.len());
                for (&point, x) in group.points.iter().zip(xs) {
                    let x = math::to_f16(&mut self.b, x);
                    self.store_kv(index, dst, offset, point, group.lanes, x);
                }
            }
            ref other => unreachable!("{other:?} is stored elsewhere"),
        }
    }

    /// Stores the low f16 of `x` to a KV slot: four dimensions from the point's on, or one.
    fn store_kv(
        &mut self,
        index: usize,
        dst: OperandId,
        offset: u32,
        point: u32,
        lanes: Lanes,
        x: Value,
    ) {
        let Layout::Kv { part, head_dim, .. } = self.context.operands[dst as usize] else {
            unreachable!("the check found a KV pool");
        };
        let strides = KvStrides::of(part, head_dim);
        let slot = self.row.kv.iter().find(|(i, _)| *i == index);
        let (_, slot) = *slot.expect("the row has a pointer for each KV store");
        let unit = self.place.unit.expect("KV stores make no linear shape");
        let head = self.scaled(unit, strides.head as u32);
        let mut address = self.b.ins().iadd(slot, head);
        if let Some(c) = self.place.c {
            let c = self.scaled(c, strides.dim as u32);
            address = self.b.ins().iadd(address, c);
        }
        let at = (offset + point) as i32 * strides.dim as i32;
        if lanes == Lanes::All && strides.dim == 2 {
            let packed = math::cast(&mut self.b, F64X2, x);
            let packed = self.b.ins().extractlane(packed, 0);
            self.b.ins().store(flags(), packed, address, at);
            return;
        }
        for lane in 0..lanes.columns(1) as u8 {
            let element = self.b.ins().extractlane(x, lane);
            let at = at + lane as i32 * strides.dim as i32;
            self.b.ins().store(flags(), element, address, at);
        }
    }

    fn store_q8(&mut self, index: usize, point: u32, xs: &[Value]) {
        let Inst::StoreQ8 { dst, col, .. } = self.region.body[index] else {
            unreachable!("only Q8 stores are gathered");
        };
        let Layout::Q8 { cols, .. } = self.context.operands[dst as usize] else {
            unreachable!("the check found a Q8 buffer");
        };
        let block = math::quantise(&mut self.b, xs);
        let row = self.row_of(dst, RowMap::Same);
        let (address, offset) = self.address(row, col, point, 0);
        for (i, quants) in block.quants.into_iter().enumerate() {
            let at = offset + (i * Q8_BLOCK / 2) as i32;
            self.b.ins().store(flags(), quants, address, at);
        }
        // A block's four bytes of scale (and of sum) lie at an eighth of its first column.
        let column = self.place.column(col.per_unit);
        let address = match column {
            None => row,
            Some(column) => {
                let eighth = self.b.ins().ushr_imm_u(column, 3);
                self.b.ins().iadd(row, eighth)
            }
        };
        let offset = (col.offset + point) as i32 / 8;
        for (part, value) in [
            (q8_scales_offset(cols), block.scale),
            (q8_sums_offset(cols), block.scaled_sum),
        ] {
            let value = self.b.ins().extractlane(value, 0);
            let at = part as i32 + offset;
            self.b.ins().store(flags(), value, address, at);
        }
    }

    fn row_of(&self, operand: OperandId, map: RowMap) -> Value {
        let found = self
            .row
            .pointers
            .iter()
            .find(|(o, m, _)| (*o, *m) == (operand, map));
        found.expect("the row has a pointer for each operand").2
    }

    /// Address and constant offset of a column, of elements of `1 << size_log2` bytes.
    fn address(&mut self, row: Value, col: ColMap, point: u32, size_log2: u8) -> (Value, i32) {
        let offset = ((col.offset + point) << size_log2) as i32;
        let Some(column) = self.place.column(col.per_unit) else {
            return (row, offset);
        };
        // Written anew for each access, it becomes part of the access's addressing mode.
        let scaled = match size_log2 {
            0 => column,
            log2 => self.b.ins().ishl_imm_u(column, log2 as i64),
        };
        (self.b.ins().iadd(row, scaled), offset)
    }
}
