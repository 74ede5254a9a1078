//! What a phase does for a strip of columns: straight-line code over vectors of four columns.
//!
//! Vectors go through the phase a few at a time ([`GROUP`]), each instruction for all of the group: their latencies overlap,
//! they share constants, and few registers are live at once.

use bundle_format::region::{Binary, ColMap, Inst, OperandId, RowMap, Unary, Val};
use cranelift_codegen::ir::types::{F32, F32X4, F64X2};
use cranelift_codegen::ir::{InstBuilder, Value};

use super::check::{destination, same_memory};
use super::emit::{Emitter, KvSlot, flags};
use super::layout::{KvStrides, Layout};
use super::math::{self, LANES, Sign};
use super::schedule::{Phase, Step};
use super::sums::Sums;

/// Vectors that go through the instructions together.
const GROUP: usize = 4;

/// Where a vector begins, from the current [`super::emit::Place`] on: the first of its columns.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Rows ahead.
    pub row: u32,
    /// Units ahead.
    pub unit: u32,
    /// Columns ahead in that unit.
    pub c: u32,
}

/// Where the rows of an operand or of the tile lie that go together.
#[derive(Clone, Copy, Debug)]
pub struct RowAddress {
    /// Of the first one.
    pub first: Value,
    /// Bytes from row to row.
    pub stride: u64,
}

impl RowAddress {
    /// Bytes from the first row to a point's.
    pub fn ahead(self, point: Point) -> i32 {
        (point.row as u64 * self.stride) as i32
    }
}

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
pub struct Group {
    pub points: Vec<Point>,
    pub lanes: Lanes,
    /// By instruction: its value for each vector, once evaluated.
    pub values: Vec<Vec<Value>>,
}

impl Emitter<'_> {
    /// Does a phase for a vector at each of the points.
    ///
    /// Where the phase stores quantised blocks, the points are those of whole blocks, as many as a strip of the stores has.
    pub fn strip(&mut self, phase: &Phase, points: &[Point], lanes: Lanes, sums: &mut Sums) {
        let mut blocks = self.quant_stores(phase);
        for (nth, points) in points.chunks(GROUP).enumerate() {
            let first = nth * GROUP;
            let mut group = Group {
                points: points.to_vec(),
                lanes,
                values: vec![Vec::new(); self.region.body.len()],
            };
            for step in &phase.steps {
                match *step {
                    Step::Accumulate { sum, x } => {
                        self.accumulate(&group, first, x, sum, sums);
                    }
                    Step::Store(store) => {
                        match blocks.iter_mut().find(|blocks| blocks.index == store) {
                            Some(blocks) => self.gather(&group, first, blocks),
                            None => self.store(&group, store),
                        }
                    }
                    Step::Reload { value, from, col } => {
                        group.values[value as usize] = self.load(&group, from, RowMap::Same, col);
                    }
                    Step::Eval(value) if self.loads_at_use(value) => {}
                    Step::Eval(value) => group.values[value as usize] = self.eval(value, &group),
                }
            }
        }
        for gathered in blocks {
            self.store_quant(&gathered, points);
        }
    }

    /// Evaluates, before a pass or a phase, a value that is the same for the whole row or unit.
    pub fn eval_once(&mut self, value: Val) {
        let group = Group {
            points: vec![Point {
                row: 0,
                unit: 0,
                c: 0,
            }],
            lanes: Lanes::All,
            values: Vec::new(),
        };
        self.uniforms[value as usize] = Some(self.eval(value, &group)[0]);
    }

    pub fn eval(&mut self, value: Val, group: &Group) -> Vec<Value> {
        match self.region.body[value as usize] {
            Inst::Load { src, row, col } => self.load(group, src, row, col),
            Inst::Tile { offset } => {
                let tile = self.row.tile.expect("a region that reads a tile has one");
                let tile = RowAddress {
                    first: tile,
                    stride: self.tile_stride(),
                };
                let col = ColMap {
                    per_unit: self.region.unit,
                    offset,
                };
                self.load_from(group, tile, col)
            }
            // The sign goes into the constants of the exponential.
            Inst::Unary { op: Unary::Exp, x } => {
                let (x, sign) = match self.region.body[x as usize] {
                    Inst::Unary { op: Unary::Neg, x } => (x, Sign::Opposite),
                    _ => (x, Sign::Same),
                };
                let xs = self.values(x, group);
                math::exp(&mut self.b, &xs, sign)
            }
            Inst::Unary { op, x } => {
                let xs = self.values(x, group);
                self.unary(op, &xs)
            }
            Inst::Binary { op, a, b } => {
                let [a, b] = self.operands([a, b], group);
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
                let [a, b, c] = self.operands([a, b, c], group);
                (0..c.len())
                    .map(|i| self.b.ins().fma(a[i], b[i], c[i]))
                    .collect()
            }
            Inst::RowValue { src, col } => {
                let row = self.row_of(src, RowMap::Same);
                let x = self.b.ins().load(F32, flags(), row.first, col as i32 * 4);
                vec![self.b.ins().splat(F32X4, x); group.points.len()]
            }
            ref other => unreachable!("{other:?} is no value of a column"),
        }
    }

    fn unary(&mut self, op: Unary, xs: &[Value]) -> Vec<Value> {
        match op {
            Unary::Neg => math::neg(&mut self.b, xs),
            Unary::Exp => math::exp(&mut self.b, xs, Sign::Same),
            Unary::Sqrt => xs.iter().map(|&x| self.b.ins().sqrt(x)).collect(),
            Unary::Recip => {
                let one = math::splat(&mut self.b, 1.0);
                xs.iter().map(|&x| self.b.ins().fdiv(one, x)).collect()
            }
        }
    }

    /// The operands of an instruction; one that it uses twice is made once.
    fn operands<const N: usize>(&mut self, operands: [Val; N], group: &Group) -> [Vec<Value>; N] {
        let mut made: Vec<(Val, Vec<Value>)> = Vec::with_capacity(N);
        operands.map(|operand| {
            if let Some((_, values)) = made.iter().find(|(known, _)| *known == operand) {
                return values.clone();
            }
            let values = self.values(operand, group);
            made.push((operand, values.clone()));
            values
        })
    }

    /// The operand of an instruction, for each vector of the group. Constants, and loads of what nothing overwrites, are
    /// made where they are used: that costs no register elsewhere, and the load often becomes part of the instruction.
    pub fn values(&mut self, value: Val, group: &Group) -> Vec<Value> {
        let vectors = group.points.len();
        if let Inst::Const { value } = self.region.body[value as usize] {
            return vec![math::splat(&mut self.b, value); vectors];
        }
        if let Some(uniform) = self.uniforms[value as usize] {
            return vec![uniform; vectors];
        }
        if self.loads_at_use(value) {
            return self.eval(value, group);
        }
        group.values[value as usize].clone()
    }

    /// Whether the value is a load of memory that the region doesn't store to.
    pub fn loads_at_use(&self, value: Val) -> bool {
        let body = &self.region.body;
        match body[value as usize] {
            Inst::Tile { .. } => true,
            Inst::Load { src, .. } => !body
                .iter()
                .filter_map(destination)
                .any(|dst| same_memory(self.region, src, dst)),
            _ => false,
        }
    }

    fn load(&mut self, group: &Group, src: OperandId, row: RowMap, col: ColMap) -> Vec<Value> {
        let pointer = self.row_of(src, row);
        self.load_from(group, pointer, col)
    }

    fn load_from(&mut self, group: &Group, row: RowAddress, col: ColMap) -> Vec<Value> {
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
                let xs = self.values(x, group);
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
            Inst::StoreKv { x, .. } => {
                let xs = self.values(x, group);
                let xs = math::to_f16(&mut self.b, &xs);
                for (&point, x) in group.points.iter().zip(xs) {
                    self.store_kv(index, point, group.lanes, x);
                }
            }
            ref other => unreachable!("{other:?} is stored elsewhere"),
        }
    }

    /// Stores the low f16 of `x` to a KV slot: at four dimensions, or one.
    fn store_kv(&mut self, index: usize, point: Point, lanes: Lanes, x: Value) {
        let Inst::StoreKv { dst, offset, .. } = self.region.body[index] else {
            unreachable!("the caller found a KV store");
        };
        let Layout::Kv {
            dtype,
            part,
            head_dim,
            ..
        } = self.context.operands[dst as usize]
        else {
            unreachable!("the check found a KV pool");
        };
        let strides = KvStrides::of(dtype, part, head_dim);
        let slot = self.kv_slot_of(index);
        let address = self.kv_address(slot.elements, strides.head, strides.dim);
        let at = point.unit as u64 * strides.head + (offset + point.c) as u64 * strides.dim;
        let at = at as i32;
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

    /// The row's slot for a KV store.
    pub fn kv_slot_of(&self, index: usize) -> KvSlot {
        let slot = self.row.kv.iter().find(|(i, _)| *i == index);
        slot.expect("the row has a slot for each KV store").1
    }

    /// The current place in a slot, `from` being that of head 0, dimension 0.
    pub fn kv_address(&mut self, from: Value, head: u64, dim: u64) -> Value {
        let unit = self.place.unit.expect("KV stores make no linear shape");
        let head = self.scaled(unit, head as u32);
        let address = self.b.ins().iadd(from, head);
        match self.place.c {
            None => address,
            Some(c) => {
                let c = self.scaled(c, dim as u32);
                self.b.ins().iadd(address, c)
            }
        }
    }

    pub fn row_of(&self, operand: OperandId, map: RowMap) -> RowAddress {
        let found = self
            .row
            .pointers
            .iter()
            .find(|(o, m, _)| (*o, *m) == (operand, map));
        RowAddress {
            first: found.expect("the row has a pointer for each operand").2,
            stride: self.row_stride(operand, map),
        }
    }

    /// Address and constant offset of a column, of elements of `1 << size_log2` bytes.
    pub fn address(
        &mut self,
        row: RowAddress,
        col: ColMap,
        point: Point,
        size_log2: u8,
    ) -> (Value, i32) {
        let offset = self.constant_column(col, point) << size_log2;
        let offset = offset as i32 + row.ahead(point);
        let Some(column) = self.place.column(col.per_unit) else {
            return (row.first, offset);
        };
        // Written anew for each access, it becomes part of the access's addressing mode.
        let scaled = match size_log2 {
            0 => column,
            log2 => self.b.ins().ishl_imm_u(column, log2 as i64),
        };
        (self.b.ins().iadd(row.first, scaled), offset)
    }

    /// The part of a column's number that is known: it is added to the current place's.
    pub fn constant_column(&self, col: ColMap, point: Point) -> u32 {
        point.unit * col.per_unit + col.offset + point.c
    }
}
