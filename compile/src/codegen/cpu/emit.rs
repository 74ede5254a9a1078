//! The loops of a region's function: rows, passes over a row, units or strips of columns.
//!
//! A *strip* is a fixed number of consecutive columns, evaluated without a loop ([`super::strip`]). The columns of a
//! region are walked in one of two shapes ([`Shape`]).

use std::collections::BTreeSet;
use std::ops::Range;

use bundle_format::plan::{KV_BLOCK, KvDType};
use bundle_format::region::{Inst, OperandId, Region, RowMap};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    AbiParam, Endianness, Function, InstBuilder, MemFlagsData, Signature, Value,
};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

use super::isa::CALL_CONV;
use super::layout::{KvScales, KvStrides, Layout, RegionContext};
use super::loops::Count;
use super::math::LANES;
use super::quantise::STRIP_BLOCK_VECTORS;
use super::schedule::{Pass, Phase, Schedule, Scope, Step};
use super::strip::{Lanes, Point};
use super::sums::{PARTIAL_SUMS, Sums};

/// Vectors of a strip without quantised stores or sums.
const STRIP_VECTORS: usize = 4;

/// The function of a region that passed the check.
pub fn emit(
    region: &Region,
    context: &RegionContext,
    schedule: &Schedule,
    config: TargetFrontendConfig,
) -> Function {
    let mut function = Function::new();
    function.signature = signature();
    let mut builder_context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut function, &mut builder_context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let params = b.block_params(entry);
    let (args, tile, row0, rows, col0, cols) = match *params {
        [args, tile, row0, rows, col0, cols] => (args, tile, row0, rows, col0, cols),
        _ => unreachable!("the signature has six parameters"),
    };
    let mut emitter = Emitter {
        b,
        region,
        context,
        schedule,
        shape: Shape::of(region, &context.operands),
        args,
        row: Row::default(),
        uniforms: vec![None; region.body.len()],
        place: Place::default(),
        scratch: Vec::new(),
    };
    emitter.make_scratch();
    emitter.rows(tile, row0, rows, col0, cols);
    emitter.b.ins().return_(&[]);
    emitter.b.seal_all_blocks();
    emitter.b.finalize(config);
    function
}

/// That of `kernels::abi::RegionFn`: all parameters are 64 bits.
fn signature() -> Signature {
    let mut signature = Signature::new(CALL_CONV);
    signature.params = vec![AbiParam::new(I64); 6];
    signature
}

/// How columns are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Every map is the identity but for its offset: units don't matter, and one loop runs over all columns of a call,
    /// a multiple of `granule`.
    Linear { granule: u32 },
    /// A loop over units, within it one over `c`.
    Units,
}

impl Shape {
    fn of(region: &Region, operands: &[Layout]) -> Shape {
        let identity = |per_unit: u32| per_unit == region.unit || region.cols == region.unit;
        let linear = region.unit == region.width
            && region.body.iter().all(|inst| match *inst {
                Inst::Load { col, .. } | Inst::Store { col, .. } | Inst::StoreQuant { col, .. } => {
                    identity(col.per_unit)
                }
                Inst::StoreKv { .. } | Inst::UnitSum { .. } => false,
                _ => true,
            });
        let blocks = region.body.iter().filter_map(|i| match *i {
            Inst::StoreQuant { dst, .. } => match operands[dst as usize] {
                Layout::Quant { ty, .. } => Some(ty.block()),
                _ => None,
            },
            _ => None,
        });
        match linear {
            false => Shape::Units,
            true => Shape::Linear {
                granule: blocks.max().unwrap_or(1),
            },
        }
    }
}

/// Where the operands of the current rows are.
#[derive(Default)]
pub struct Row {
    /// By operand and row map.
    pub pointers: Vec<(OperandId, RowMap, Value)>,
    /// Where the tile's row would begin if it had all columns from 0 on.
    pub tile: Option<Value>,
    /// By the index of the `StoreKv`.
    pub kv: Vec<(usize, KvSlot)>,
    /// Consecutive rows that go together, from this one on.
    together: u32,
}

/// A row's slot in a KV pool.
#[derive(Clone, Copy)]
pub struct KvSlot {
    /// Head 0, dimension 0.
    pub elements: Value,
    /// The scale of that, in a quantised pool.
    pub scales: Option<Value>,
}

pub struct Emitter<'a> {
    pub b: FunctionBuilder<'a>,
    pub region: &'a Region,
    pub context: &'a RegionContext,
    pub schedule: &'a Schedule,
    pub shape: Shape,
    args: Value,
    pub row: Row,
    /// By instruction: values that are the same for the whole row or the current unit, once they are known.
    pub uniforms: Vec<Option<Value>>,
    pub place: Place,
    /// By the index of the `StoreQuant`: room for a strip's elements.
    pub scratch: Vec<(usize, Value)>,
}

/// Where the current strip begins.
#[derive(Clone, Default)]
pub struct Place {
    /// By `ColMap::per_unit`: the first column of a map without offset, where it isn't 0.
    pub columns: Vec<(u32, Value)>,
    /// The unit; none in the linear shape.
    pub unit: Option<Value>,
    /// `c` within the unit, where it isn't 0.
    pub c: Option<Value>,
}

impl Place {
    pub fn column(&self, per_unit: u32) -> Option<Value> {
        let found = self.columns.iter().find(|(d, _)| *d == per_unit);
        found.map(|&(_, column)| column)
    }
}

impl Emitter<'_> {
    fn rows(&mut self, tile: Value, row0: Value, rows: Value, col0: Value, cols: Value) {
        let end = self.b.ins().iadd(row0, rows);
        let mut carried = Vec::new();
        if self.region.reads_tile() {
            let skipped = self.b.ins().ishl_imm_u(col0, 2);
            carried.push(self.b.ins().isub(tile, skipped));
        }
        let columns = self.column_range(col0, cols);
        let mut at = row0;
        let together = self.rows_together();
        for step in BTreeSet::from([together, 1]).into_iter().rev() {
            let count = Count {
                start: at,
                last: self.b.ins().iadd_imm_s(end, -(step as i64)),
                step,
                nonempty: false,
            };
            (at, carried) = self.repeat(count, &carried, |this, row, carried| {
                this.row = this.begin_row(row, carried.first().copied());
                this.row.together = step;
                for pass in &this.schedule.passes {
                    this.pass(pass, columns);
                }
                let distance = this.context.tile_stride as i64 * 4 * step as i64;
                carried
                    .iter()
                    .map(|&tile| this.b.ins().iadd_imm_s(tile, distance))
                    .collect()
            });
        }
    }

    /// Rows that go together, so that their blocks fill a strip: tiles often have a single block a row.
    fn rows_together(&self) -> u32 {
        /// Bytes between rows up to which offsets of all of them surely fit an address.
        const NEAR: u64 = 1 << 26;
        let stores_blocks = |inst: &Inst| matches!(inst, Inst::StoreQuant { .. });
        let by_offset = self.region.body.iter().all(|inst| match *inst {
            Inst::Load { src, row, .. } => {
                matches!(row, RowMap::Same | RowMap::Zero) && self.row_stride(src, row) <= NEAR
            }
            Inst::Store { dst, .. } | Inst::StoreQuant { dst, .. } => {
                self.row_stride(dst, RowMap::Same) <= NEAR
            }
            Inst::Tile { .. } => self.tile_stride() <= NEAR,
            Inst::StoreKv { .. }
            | Inst::RowSum { .. }
            | Inst::UnitSum { .. }
            | Inst::RowValue { .. } => false,
            _ => true,
        });
        if !by_offset || !self.region.reads_tile() || !self.region.body.iter().any(stores_blocks) {
            return 1;
        }
        let strip = (STRIP_BLOCK_VECTORS * LANES) as u32;
        (strip / self.region.width).max(1)
    }

    /// Bytes from row to row of an operand.
    pub fn row_stride(&self, operand: OperandId, map: RowMap) -> u64 {
        match (map, self.context.operands[operand as usize]) {
            (RowMap::Zero, _) => 0,
            (
                _,
                Layout::F32 { row_bytes, .. }
                | Layout::Quant { row_bytes, .. }
                | Layout::Indices { row_bytes, .. },
            ) => row_bytes,
            (_, Layout::Vector { .. } | Layout::Kv { .. }) => 0,
        }
    }

    /// Bytes from row to row of the tile.
    pub fn tile_stride(&self) -> u64 {
        self.context.tile_stride as u64 * 4
    }

    /// The columns of a call, in the units of the shape's outermost loop: first, and one past the last.
    fn column_range(&mut self, col0: Value, cols: Value) -> (Value, Value) {
        let unit = match self.shape {
            Shape::Linear { .. } => 1,
            Shape::Units => self.region.unit,
        };
        if self.region.has_row_sum() {
            // Such a region is called with whole rows.
            let start = self.b.ins().iconst(I64, 0);
            let end = self.b.ins().iconst(I64, (self.region.cols / unit) as i64);
            return (start, end);
        }
        let start = self.exact_quotient(col0, unit);
        let count = self.exact_quotient(cols, unit);
        (start, self.b.ins().iadd(start, count))
    }

    /// `x / divisor` where that leaves no rest and x is at most 2^28: a division would cost more than a small call's work.
    ///
    /// With x = q * divisor and m = (2^36 + e) / divisor, 0 <= e < divisor: x * m = q * 2^36 + q * e, and q * e < x.
    fn exact_quotient(&mut self, x: Value, divisor: u32) -> Value {
        if divisor.is_power_of_two() {
            return match divisor.trailing_zeros() {
                0 => x,
                shift => self.b.ins().ushr_imm_u(x, shift as i64),
            };
        }
        let factor = (1u64 << 36).div_ceil(divisor as u64);
        let product = self.b.ins().imul_imm_s(x, factor as i64);
        self.b.ins().ushr_imm_u(product, 36)
    }

    /// Finds the operands' rows.
    fn begin_row(&mut self, row: Value, tile: Option<Value>) -> Row {
        let mut found = Row {
            tile,
            together: 1,
            ..Row::default()
        };
        for (index, inst) in self.region.body.iter().enumerate() {
            let (operand, map) = match *inst {
                Inst::Load { src, row, .. } => (src, row),
                Inst::RowValue { src, .. } => (src, RowMap::Same),
                Inst::Store { dst, .. } | Inst::StoreQuant { dst, .. } => (dst, RowMap::Same),
                Inst::StoreKv { dst, slots, .. } => {
                    let slot = self.kv_slot(dst, slots, row);
                    found.kv.push((index, slot));
                    continue;
                }
                _ => continue,
            };
            if !found
                .pointers
                .iter()
                .any(|(o, m, _)| (*o, *m) == (operand, map))
            {
                let pointer = self.row_pointer(operand, map, row);
                found.pointers.push((operand, map, pointer));
            }
        }
        found
    }

    fn row_pointer(&mut self, operand: OperandId, map: RowMap, row: Value) -> Value {
        let base = self.base(operand);
        let stride = self.row_stride(operand, map);
        let row = match map {
            RowMap::Same => row,
            RowMap::Zero => return base,
            RowMap::Via(indices) => self.index(indices, row, 0),
            RowMap::At { index, col } => self.index(index, row, col),
        };
        let offset = self.b.ins().imul_imm_s(row, stride as i64);
        self.b.ins().iadd(base, offset)
    }

    /// The slot that `slots` holds for the row.
    fn kv_slot(&mut self, pool: OperandId, slots: OperandId, row: Value) -> KvSlot {
        let Layout::Kv {
            dtype,
            part,
            head_dim,
            block_bytes,
            ..
        } = self.context.operands[pool as usize]
        else {
            unreachable!("the check found a KV pool");
        };
        let slot = self.index(slots, row, 0);
        let block_log2 = KV_BLOCK.trailing_zeros() as i64;
        let block = self.b.ins().ushr_imm_u(slot, block_log2);
        let position = self.b.ins().band_imm_u(slot, KV_BLOCK as i64 - 1);
        let base = self.base(pool);
        let offset = self.b.ins().imul_imm_s(block, block_bytes as i64);
        let base = self.b.ins().iadd(base, offset);
        let strides = KvStrides::of(dtype, part, head_dim);
        let elements = if strides.two_positions == 2 * strides.position {
            let offset = self.b.ins().imul_imm_s(position, strides.position as i64);
            self.b.ins().iadd(base, offset)
        } else {
            let pair = self.b.ins().ushr_imm_u(position, 1);
            let pair = self.b.ins().imul_imm_s(pair, strides.two_positions as i64);
            let odd = self.b.ins().band_imm_u(position, 1);
            let odd = self.b.ins().imul_imm_s(odd, strides.position as i64);
            let pair = self.b.ins().iadd(base, pair);
            self.b.ins().iadd(pair, odd)
        };
        let scales = (dtype == KvDType::Q8_0).then(|| {
            let scales = KvScales::of(head_dim);
            let offset = self.b.ins().imul_imm_s(position, scales.position as i64);
            let start = self.b.ins().iadd_imm_s(base, scales.start as i64);
            self.b.ins().iadd(start, offset)
        });
        KvSlot { elements, scales }
    }

    /// The u32 that an operand of indices holds for a row.
    fn index(&mut self, indices: OperandId, row: Value, col: u32) -> Value {
        let base = self.base(indices);
        let stride = self.row_stride(indices, RowMap::Same) as u32;
        let offset = self.scaled(row, stride);
        let address = self.b.ins().iadd(base, offset);
        let index = self.b.ins().load(I32, flags(), address, col as i32 * 4);
        self.b.ins().uextend(I64, index)
    }

    /// An operand's address. It is loaded anew for each row, rather than keep a register over the row before.
    fn base(&mut self, operand: OperandId) -> Value {
        self.b
            .ins()
            .load(I64, flags(), self.args, operand as i32 * 8)
    }

    /// One walk over the row.
    fn pass(&mut self, pass: &Pass, columns: (Value, Value)) {
        for &value in &pass.once {
            self.eval_once(value);
        }
        let sums = self.begin_sums(&pass.sums);
        let sums = match self.shape {
            Shape::Linear { granule } => self.linear(pass, granule, columns, sums),
            Shape::Units => self.units(pass, columns, sums),
        };
        self.end_sums(&pass.sums, &sums);
    }

    /// Columns of a full strip of this phase, of one of the rows that go together.
    fn strip_columns(&self, phase: &Phase) -> u32 {
        let adds = |step: &Step| matches!(step, Step::Accumulate { .. });
        let blocks = self.quant_stores(phase);
        let vectors = if let Some(vectors) = blocks.iter().map(|s| self.strip_vectors(s)).max() {
            vectors
        } else if phase.steps.iter().any(adds) {
            PARTIAL_SUMS
        } else {
            STRIP_VECTORS
        };
        (vectors * LANES) as u32 / self.row.together
    }

    /// All columns of the call in strips that get shorter towards the end.
    fn linear(
        &mut self,
        pass: &Pass,
        granule: u32,
        (start, end): (Value, Value),
        mut sums: Sums,
    ) -> Sums {
        let [phase] = &*pass.phases else {
            unreachable!("the linear shape has no unit sums");
        };
        let full = self.strip_columns(phase);
        let whole_rows = self.region.has_row_sum();
        let rest = self.region.cols % full;
        let steps = match (whole_rows, granule) {
            // The end of a row is known: at most one strip for its vectors, one for what is left.
            (true, _) => vec![
                full,
                rest / LANES as u32 * LANES as u32,
                rest % LANES as u32,
            ],
            (false, 1) => vec![full, LANES as u32, 1],
            (false, _) => vec![full, granule],
        };
        let mut at = start;
        let mut left = self.region.cols;
        for step in steps {
            if step == 0 || left < step {
                continue;
            }
            let last = if whole_rows {
                left %= step;
                let end = self.region.cols - left;
                self.b.ins().iconst(I64, (end - step) as i64)
            } else {
                self.b.ins().iadd_imm_s(end, -(step as i64))
            };
            let count = Count {
                start: at,
                last,
                step,
                nonempty: whole_rows,
            };
            (at, sums) = self.repeat_sums(count, sums, |this, c, mut sums| {
                let distances = this.distances();
                this.place.columns = distances.into_iter().map(|d| (d, c)).collect();
                this.run(phase, 0..1, 0..step, &mut sums);
                sums
            });
        }
        sums
    }

    /// Writes a loop that adds to sums.
    fn repeat_sums(
        &mut self,
        count: Count,
        sums: Sums,
        body: impl FnOnce(&mut Self, Value, Sums) -> Sums,
    ) -> (Value, Sums) {
        let (at, parts) = self.repeat(count, &sums.parts, |this, i, parts| {
            body(this, i, sums.with_parts(parts)).parts
        });
        (at, sums.with_parts(&parts))
    }

    /// Does a phase for columns of units, both counted from the current place, without a loop: one strip for the columns that
    /// fill vectors, one for the rest.
    fn run(&mut self, phase: &Phase, units: Range<u32>, columns: Range<u32>, sums: &mut Sums) {
        let lanes = LANES as u32;
        let whole = columns.start + columns.len() as u32 / lanes * lanes;
        for (lanes, columns, step) in [
            (Lanes::All, columns.start..whole, LANES),
            (Lanes::First, whole..columns.end, 1),
        ] {
            let points: Vec<Point> = (0..self.row.together)
                .flat_map(|row| units.clone().map(move |unit| (row, unit)))
                .flat_map(|(row, unit)| {
                    let columns = columns.clone().step_by(step);
                    columns.map(move |c| Point { row, unit, c })
                })
                .collect();
            if !points.is_empty() {
                self.strip(phase, &points, lanes, sums);
            }
        }
    }

    /// The units of the call: several at a time where they are narrow, then one by one.
    fn units(&mut self, pass: &Pass, (start, end): (Value, Value), mut sums: Sums) -> Sums {
        let whole_rows = self.region.has_row_sum();
        let units = self.region.cols / self.region.unit;
        let together = match &*pass.phases {
            [phase] => (self.strip_columns(phase) / self.region.width).clamp(1, units),
            // Each unit has sums of its own.
            _ => 1,
        };
        let steps = match (whole_rows, together) {
            (_, 1) => vec![1],
            (true, _) => vec![together, units % together],
            (false, _) => vec![together, 1],
        };
        let mut at = start;
        for step in steps.into_iter().filter(|step| *step > 0) {
            let count = Count {
                start: at,
                last: self.b.ins().iadd_imm_s(end, -(step as i64)),
                step,
                nonempty: whole_rows,
            };
            (at, sums) = self.repeat_sums(count, sums, |this, unit, mut sums| {
                let distances = this.distances();
                this.place = Place {
                    columns: distances
                        .into_iter()
                        .filter(|&distance| distance > 0)
                        .map(|distance| (distance, this.scaled(unit, distance)))
                        .collect(),
                    unit: Some(unit),
                    c: None,
                };
                if step == 1 {
                    return this.unit(pass, sums);
                }
                let width = this.region.width;
                for phase in &pass.phases {
                    this.run(phase, 0..step, 0..width, &mut sums);
                }
                sums
            });
        }
        sums
    }

    /// Columns from unit to unit of every map.
    fn distances(&self) -> BTreeSet<u32> {
        let body = self.region.body.iter();
        body.filter_map(|inst| match *inst {
            Inst::Load { col, .. } | Inst::Store { col, .. } | Inst::StoreQuant { col, .. } => {
                Some(col.per_unit)
            }
            Inst::Tile { .. } => Some(self.region.unit),
            _ => None,
        })
        .collect()
    }

    pub fn scaled(&mut self, x: Value, factor: u32) -> Value {
        match factor {
            1 => x,
            f if f.is_power_of_two() => self.b.ins().ishl_imm_u(x, f.trailing_zeros() as i64),
            f => self.b.ins().imul_imm_s(x, f as i64),
        }
    }

    /// One unit, phase by phase.
    fn unit(&mut self, pass: &Pass, mut row_sums: Sums) -> Sums {
        for phase in &pass.phases {
            for &value in &phase.once {
                self.eval_once(value);
            }
            let sums = row_sums.added_in(phase).and(self.begin_sums(&phase.sums));
            let sums = self.unit_columns(phase, sums);
            self.end_sums(&phase.sums, &sums);
            row_sums.update(&sums);
        }
        // What is known of this unit says nothing of the next.
        for (known, scope) in self.uniforms.iter_mut().zip(&self.schedule.scopes) {
            if *scope == Scope::Unit {
                *known = None;
            }
        }
        row_sums
    }

    /// The columns of one unit: its width is known, so only long ones need a loop.
    fn unit_columns(&mut self, phase: &Phase, mut sums: Sums) -> Sums {
        /// Strips that are written out rather than looped over.
        const UNROLLED: u32 = 2;
        let width = self.region.width;
        let step = self.strip_columns(phase);
        let mut done = 0;
        if width / step > UNROLLED {
            done = width / step * step;
            let count = Count {
                start: self.b.ins().iconst(I64, 0),
                last: self.b.ins().iconst(I64, (done - step) as i64),
                step,
                nonempty: true,
            };
            (_, sums) = self.repeat_sums(count, sums, |this, c, mut sums| {
                let unit = this.place.clone();
                this.place.columns = this
                    .distances()
                    .into_iter()
                    .map(|distance| match unit.column(distance) {
                        Some(column) => (distance, this.b.ins().iadd(column, c)),
                        None => (distance, c),
                    })
                    .collect();
                this.place.c = Some(c);
                this.run(phase, 0..1, 0..step, &mut sums);
                this.place = unit;
                sums
            });
        }
        while done < width {
            let end = width.min(done + step);
            self.run(phase, 0..1, done..end, &mut sums);
            done = end;
        }
        sums
    }
}

/// Of every access: nothing is known about alignment beyond an element's, and nothing can fault in a checked region.
pub fn flags() -> MemFlagsData {
    MemFlagsData::new()
        .with_notrap()
        .with_endianness(Endianness::Little)
}
