//! Checks of one region: SSA order, operands, column bounds, and that its tiles may run at the same time.

use super::arena::{Effects, Pool};
use super::launch::{buffer, vector};
use super::{Invalid, ensure, name, one_of};
use crate::plan::{Buffer, DType, Dim, Input, KvGroup, Plan, Role};
use crate::region::{ColMap, Inst, Operand, OperandId, Region, RowMap, Val};

const MAX_INSTS: usize = 4096;
const MAX_OPERANDS: usize = 1024;
/// Different column ranges that one launch touches.
const MAX_SPANS: usize = 256;

/// The tile that a region reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// None: the region is a launch of its own.
    None,
    /// Results of so many columns: the region is an epilogue.
    Cols(u64),
}

/// Columns of a buffer that a region touches: `u * per_unit + offset + c` for u below `units`, c below `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    units: u32,
    per_unit: u32,
    offset: u32,
    width: u32,
}

impl Span {
    /// One past the last column.
    fn end(self) -> u64 {
        (self.units as u64 - 1) * self.per_unit as u64 + self.offset as u64 + self.width as u64
    }

    /// Whether no column belongs to two units.
    fn units_are_disjoint(self) -> bool {
        self.units == 1 || self.per_unit >= self.width
    }

    /// Whether two spans share a column. Exact where their strides are equal; otherwise it may err towards yes.
    fn meets(self, other: Span) -> bool {
        if self.per_unit != other.per_unit || self.per_unit == 0 {
            return (self.offset as u64) < other.end() && (other.offset as u64) < self.end();
        }
        // Columns are shared where, for some difference k of units, distance + k * stride lies in
        // -(self.width - 1) ..= other.width - 1.
        let stride = self.per_unit as i64;
        let distance = self.offset as i64 - other.offset as i64;
        let low = ceil_div(1 - self.width as i64 - distance, stride);
        let high = (other.width as i64 - 1 - distance).div_euclid(stride);
        low.max(1 - other.units as i64) <= high.min(self.units as i64 - 1)
    }
}

fn ceil_div(a: i64, b: i64) -> i64 {
    -(-a).div_euclid(b)
}

/// How a launch's regions touch a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    buffer: u32,
    /// The region, counted within the launch.
    region: u32,
    span: Span,
    /// Whether it is the iteration's own row, not any.
    own_row: bool,
    writes: bool,
}

/// What the regions of one launch touch.
#[derive(Debug, Default)]
pub struct Footprint {
    regions: u32,
    accesses: Vec<Access>,
    /// U32 buffers that rows and slots are taken from.
    indices: Vec<u32>,
    /// KV pools stored to.
    pools: Vec<Pool>,
}

impl Footprint {
    fn add(&mut self, access: Access) -> Result<(), Invalid> {
        if self.accesses.contains(&access) {
            return Ok(());
        }
        if self.accesses.len() == MAX_SPANS {
            return Err(Invalid::unsupported(
                "column ranges that the launch touches",
                format!("at most {MAX_SPANS}"),
                "more",
            ));
        }
        self.accesses.push(access);
        Ok(())
    }

    /// Checks that tiles don't race, and gives what the launch does to the arena. `inputs` are buffers that the launch
    /// reads outside of its regions.
    pub fn effects(&self, inputs: &[u32]) -> Result<Effects, Invalid> {
        for (i, a) in self.accesses.iter().enumerate() {
            for b in &self.accesses[..i] {
                // An element that is updated in place is its own iteration's only.
                let in_place = a.region == b.region && a.span == b.span && a.own_row && b.own_row;
                let race = a.buffer == b.buffer
                    && (a.writes || b.writes)
                    && !in_place
                    && a.span.meets(b.span);
                ensure!(
                    !race,
                    format!("columns of buffer {}", a.buffer),
                    "stores that meet no other access of the launch, except in place",
                    format!("{:?} and {:?}", a.span, b.span)
                );
            }
            ensure!(
                !a.writes || !inputs.contains(&a.buffer),
                format!("store to buffer {}", a.buffer),
                "a buffer other than the launch's input",
                "its input"
            );
        }
        let buffers = |writes| {
            let some = self.accesses.iter().filter(move |a| a.writes == writes);
            some.map(|a| a.buffer)
        };
        let mut reads: Vec<u32> = inputs.to_vec();
        reads.extend(&self.indices);
        reads.extend(buffers(false));
        let mut writes: Vec<u32> = buffers(true).collect();
        for list in [&mut reads, &mut writes] {
            list.sort_unstable();
            list.dedup();
        }
        let mut pool_writes = self.pools.clone();
        pool_writes.sort_unstable();
        pool_writes.dedup();
        Ok(Effects {
            reads,
            writes,
            pool_reads: Vec::new(),
            pool_writes,
            own: None,
        })
    }

    /// Whether the regions store all columns of a buffer, from the first to the last of `cols`.
    pub fn stores_all_of(&self, buffer: u32, cols: u32) -> bool {
        let of_it = self
            .accesses
            .iter()
            .filter(|a| a.writes && a.buffer == buffer);
        // The columns of one unit are its spans' together, and units follow one another.
        let mut spans: Vec<Span> = of_it.map(|a| a.span).collect();
        spans.sort_unstable_by_key(|s| s.offset);
        let Some(Span {
            units, per_unit, ..
        }) = spans.first().copied()
        else {
            return false;
        };
        let mut end = 0;
        for span in &spans {
            if (span.units, span.per_unit) != (units, per_unit) || span.offset > end {
                return false;
            }
            end = end.max(span.offset + span.width);
        }
        let whole_units = units == 1 || end >= per_unit;
        whole_units
            && u64::from(units - 1) * u64::from(per_unit) + u64::from(end) == u64::from(cols)
    }
}

/// Checks a region over rows of `extent`, and adds what it touches to the launch's footprint.
pub fn check(
    plan: &Plan,
    region: &Region,
    extent: Dim,
    tile: Tile,
    footprint: &mut Footprint,
) -> Result<(), Invalid> {
    let mut check = || {
        name(&region.name)?;
        shape(region, tile)?;
        for (i, operand) in region.operands.iter().enumerate() {
            self::operand(plan, operand).map_err(|e| e.within(format_args!("operand {i}")))?;
        }
        let mut body = Body {
            plan,
            region,
            extent,
            tile,
            footprint: &mut *footprint,
            yields: Vec::with_capacity(region.body.len()),
            stored: Vec::new(),
        };
        for (i, inst) in region.body.iter().enumerate() {
            body.inst(inst)
                .map_err(|e| e.within(format_args!("instruction {i}")))?;
        }
        footprint.regions += 1;
        Ok(())
    };
    check().map_err(|e: Invalid| e.within(format_args!("region ({})", super::shown(&region.name))))
}

fn shape(region: &Region, tile: Tile) -> Result<(), Invalid> {
    let Region {
        unit, width, cols, ..
    } = *region;
    ensure!(
        1 <= width && width <= unit,
        "width",
        format!("1 to the unit, {unit}"),
        width
    );
    ensure!(
        cols >= 1 && cols.is_multiple_of(unit),
        "cols",
        format!("a multiple of the unit, {unit}"),
        cols
    );
    if let Tile::Cols(expected) = tile {
        ensure!(
            cols as u64 == expected,
            "cols of the epilogue",
            expected,
            cols
        );
    }
    ensure!(
        region.operands.len() <= MAX_OPERANDS,
        "operands",
        format!("at most {MAX_OPERANDS}"),
        region.operands.len()
    );
    ensure!(
        (1..=MAX_INSTS).contains(&region.body.len()),
        "instructions",
        format!("1 to {MAX_INSTS}"),
        region.body.len()
    );
    Ok(())
}

/// Whether a buffer is of indices that a route alone writes, so that they are in range: nothing else stores u32.
fn is_list(buffer: &Buffer, extent: Dim, cols: u32) -> bool {
    buffer.dtype == DType::U32
        && buffer.place.role == Role::Scratch
        && buffer.extent == extent
        && buffer.cols == cols
}

fn operand(plan: &Plan, operand: &Operand) -> Result<(), Invalid> {
    match *operand {
        Operand::Buffer(index) => buffer(plan, "buffer", index).map(drop),
        Operand::Weight(index) => vector(plan, "weight", index).map(drop),
        Operand::Kv { group, layer, .. } => kv_layer(plan, group, layer).map(drop),
    }
}

/// The KV group of an index, which must have the layer.
pub fn kv_layer(plan: &Plan, group: u32, layer: u32) -> Result<&KvGroup, Invalid> {
    let Some(kv) = plan.kv.get(group as usize) else {
        let expected = format!("a group below {}", plan.kv.len());
        return Err(Invalid::new("KV group", expected, group));
    };
    ensure!(
        layer < kv.layers,
        "layer of the KV group",
        format!("below {}", kv.layers),
        layer
    );
    Ok(kv)
}

/// The walk over a region's instructions.
struct Body<'a> {
    plan: &'a Plan,
    region: &'a Region,
    extent: Dim,
    tile: Tile,
    footprint: &'a mut Footprint,
    /// For each instruction so far, whether it makes a value.
    yields: Vec<bool>,
    /// Buffers and columns stored so far.
    stored: Vec<(u32, Span)>,
}

impl Body<'_> {
    fn inst(&mut self, inst: &Inst) -> Result<(), Invalid> {
        let yields = match *inst {
            Inst::Const { value } => {
                ensure!(!value.is_nan(), "constant", "a number", value);
                true
            }
            Inst::Tile { offset } => self.tile(offset)?,
            Inst::Load { src, row, col } => self.load(src, row, col)?,
            Inst::Unary { x, .. } | Inst::UnitSum { x } => self.uses(&[x])?,
            Inst::Binary { a, b, .. } => self.uses(&[a, b])?,
            Inst::Fma { a, b, c } => self.uses(&[a, b, c])?,
            Inst::RowSum { x } => {
                ensure!(
                    self.tile == Tile::None,
                    "RowSum",
                    "none in an epilogue, which sees no whole rows",
                    "one"
                );
                self.uses(&[x])?
            }
            Inst::Store { dst, col, x } => {
                self.uses(&[x])?;
                self.store(dst, col, &[DType::F32, DType::F16])?
            }
            Inst::StoreQuant { dst, col, x } => {
                self.uses(&[x])?;
                let dtype = self.buffer(dst)?.1.dtype;
                self.whole_blocks(col, dtype)?;
                self.store(dst, col, &DType::QUANTISED)?
            }
            Inst::StoreKv {
                dst,
                slots,
                offset,
                x,
            } => {
                self.uses(&[x])?;
                self.store_kv(dst, slots, offset)?
            }
            Inst::RowValue { src, col } => self.row_value(src, col)?,
        };
        self.yields.push(yields);
        Ok(())
    }

    /// Checks that values come from earlier instructions that make one.
    fn uses(&self, values: &[Val]) -> Result<bool, Invalid> {
        for &v in values {
            ensure!(
                self.yields.get(v as usize) == Some(&true),
                "value",
                format!(
                    "one that an earlier instruction makes, below {}",
                    self.yields.len()
                ),
                v
            );
        }
        Ok(true)
    }

    fn tile(&self, offset: u32) -> Result<bool, Invalid> {
        ensure!(
            self.tile != Tile::None,
            "Tile",
            "an epilogue around it",
            "a region that is a launch of its own"
        );
        let end = offset as u64 + self.region.width as u64;
        ensure!(
            end <= self.region.unit as u64,
            "columns of the tile",
            format!("inside the unit of {}", self.region.unit),
            format!("{offset} to {end}")
        );
        Ok(true)
    }

    fn operand(&self, id: OperandId) -> Result<Operand, Invalid> {
        let operands = &self.region.operands;
        operands.get(id as usize).copied().ok_or_else(|| {
            let expected = format!("an operand below {}", operands.len());
            Invalid::new("operand", expected, id)
        })
    }

    /// The buffer of an operand and its index.
    fn buffer(&self, id: OperandId) -> Result<(u32, &Buffer), Invalid> {
        match self.operand(id)? {
            Operand::Buffer(index) => {
                buffer(self.plan, "buffer", index).map(|buffer| (index, buffer))
            }
            other => Err(Invalid::new("operand", "a buffer", format!("{other:?}"))),
        }
    }

    fn span(&self, col: ColMap, cols: u32) -> Result<Span, Invalid> {
        let units = self.region.cols / self.region.unit;
        let span = Span {
            units,
            // A single unit has no stride: the same columns are the same span.
            per_unit: if units == 1 { 0 } else { col.per_unit },
            offset: col.offset,
            width: self.region.width,
        };
        ensure!(
            span.end() <= cols as u64,
            "columns",
            format!("inside the operand's {cols}"),
            format!("up to {}", span.end())
        );
        Ok(span)
    }

    fn load(&mut self, src: OperandId, row: RowMap, col: ColMap) -> Result<bool, Invalid> {
        let (index, b) = match self.operand(src)? {
            Operand::Buffer(_) => self.buffer(src)?,
            Operand::Weight(index) => {
                let cols = vector(self.plan, "weight", index)?.cols;
                ensure!(
                    row == RowMap::Zero,
                    "row of a weight",
                    "Zero",
                    format!("{row:?}")
                );
                return self.span(col, cols).map(|_| true);
            }
            kv => return Err(Invalid::new("load", "an f32 operand", format!("{kv:?}"))),
        };
        ensure!(
            b.dtype == DType::F32,
            "type of the loaded buffer",
            "F32",
            format!("{:?}", b.dtype)
        );
        let span = self.span(col, b.cols)?;
        let from = b.extent;
        match row {
            RowMap::Zero => {}
            RowMap::Same => ensure!(
                from == self.extent,
                "extent of the loaded buffer",
                format!("{:?}", self.extent),
                format!("{from:?}")
            ),
            RowMap::Via(id) => {
                // Only the host's rows and a route's tokens are known to be rows of the step.
                let (rows, by) = self.buffer(id)?;
                let known = match self.extent {
                    Dim::Rows => by.place.role == Role::Input(Input::Rows),
                    Dim::Pairs(_) => is_list(by, self.extent, 1),
                    Dim::Tokens | Dim::One => false,
                };
                ensure!(
                    known && from == Dim::Tokens,
                    "gathered rows",
                    "rows of a buffer of Tokens by the input Rows, or by the tokens of a route",
                    format!(
                        "rows of {from:?} by {:?} in a region over {:?}",
                        by.place.role, self.extent
                    )
                );
                self.footprint.indices.push(rows);
            }
            RowMap::At { index: id, col } => {
                let (places, by) = self.buffer(id)?;
                ensure!(
                    self.extent == Dim::Tokens
                        && is_list(by, Dim::Tokens, by.cols)
                        && from == Dim::Pairs(by.cols)
                        && col < by.cols,
                    "rows by a column of indices",
                    "rows of a buffer of Pairs by one of as many columns of the places of a route",
                    format!(
                        "rows of {from:?} by column {col} of {:?} [{:?}, {}] in a region over {:?}",
                        by.dtype, by.extent, by.cols, self.extent
                    )
                );
                self.footprint.indices.push(places);
            }
        }
        let own_row = row == RowMap::Same;
        let mut stores = self.stored.iter();
        ensure!(
            !stores.any(|&(stored, at)| stored == index && at.meets(span)),
            format!("load of buffer {index}"),
            "columns that the region hasn't stored before",
            format!("{span:?}")
        );
        self.touch(index, span, own_row, false)?;
        Ok(true)
    }

    /// A value of the row.
    fn row_value(&mut self, src: OperandId, col: u32) -> Result<bool, Invalid> {
        let (index, b) = self.buffer(src)?;
        ensure!(
            b.dtype == DType::F32 && b.extent == self.extent && col < b.cols,
            "value of the row",
            format!("a column of an F32 buffer over {:?}", self.extent),
            format!("column {col} of {:?} [{:?}, {}]", b.dtype, b.extent, b.cols)
        );
        let span = Span {
            units: 1,
            per_unit: 0,
            offset: col,
            width: 1,
        };
        // Other columns' iterations read it: whatever stores there would race.
        self.touch(index, span, false, false)?;
        Ok(true)
    }

    fn store(&mut self, dst: OperandId, col: ColMap, types: &[DType]) -> Result<bool, Invalid> {
        let (index, b) = self.buffer(dst)?;
        ensure!(
            types.contains(&b.dtype) && b.extent == self.extent,
            "type of the stored buffer",
            format!("{} over {:?}", one_of(types), self.extent),
            format!("{:?} over {:?}", b.dtype, b.extent)
        );
        let span = self.span(col, b.cols)?;
        ensure!(
            span.units_are_disjoint(),
            "stored columns",
            format!("a distance of units of at least the width, {}", span.width),
            span.per_unit
        );
        if !self.stored.contains(&(index, span)) {
            self.stored.push((index, span));
        }
        self.touch(index, span, true, true)?;
        Ok(false)
    }

    fn whole_blocks(&self, col: ColMap, dtype: DType) -> Result<(), Invalid> {
        let block = dtype.block() as u32;
        let parts = [
            ("width", self.region.width),
            ("per_unit", col.per_unit),
            ("offset", col.offset),
        ];
        for (at, found) in parts {
            ensure!(
                found.is_multiple_of(block),
                format!("{at} of a quantised store"),
                format!("a multiple of {block}"),
                found
            );
        }
        Ok(())
    }

    fn store_kv(&mut self, dst: OperandId, slots: OperandId, offset: u32) -> Result<bool, Invalid> {
        let (group, pool) = match self.operand(dst)? {
            Operand::Kv { group, layer, part } => (group, Pool::new(group, layer, part)),
            other => return Err(Invalid::new("operand", "a KV pool", format!("{other:?}"))),
        };
        let (index, role) = self.buffer(slots).map(|(i, b)| (i, b.place.role))?;
        ensure!(
            role == Role::Input(Input::Slots(group)) && self.extent == Dim::Tokens,
            "slots",
            format!("the input Slots({group}), in a region over Tokens"),
            format!("{role:?}, over {:?}", self.extent)
        );
        // `operand` has checked the group.
        let kv = &self.plan.kv[group as usize];
        let heads = self.region.cols / self.region.unit;
        ensure!(
            heads == kv.kv_heads,
            "units of a KV store",
            format!("one for each KV head, {}", kv.kv_heads),
            heads
        );
        let end = offset as u64 + self.region.width as u64;
        ensure!(
            end <= kv.head_dim as u64,
            "dimensions of a KV store",
            format!("inside the head's {}", kv.head_dim),
            format!("{offset} to {end}")
        );
        let block = kv.dtype.block();
        for (at, found) in [("width", self.region.width), ("offset", offset)] {
            ensure!(
                found.is_multiple_of(block),
                format!("{at} of a store to a KV pool in {:?}", kv.dtype),
                format!("a multiple of {block}"),
                found
            );
        }
        self.footprint.indices.push(index);
        self.footprint.pools.push(pool);
        Ok(false)
    }

    fn touch(
        &mut self,
        buffer: u32,
        span: Span,
        own_row: bool,
        writes: bool,
    ) -> Result<(), Invalid> {
        let region = self.footprint.regions;
        self.footprint.add(Access {
            buffer,
            region,
            span,
            own_row,
            writes,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::Span;

    fn span() -> impl Strategy<Value = Span> {
        (1u32..6, 0u32..8, 0u32..20, 1u32..6).prop_map(|(units, per_unit, offset, width)| Span {
            units,
            per_unit: if units == 1 { 0 } else { per_unit },
            offset,
            width,
        })
    }

    /// Columns one by one, as the definition says.
    fn columns(span: Span) -> Vec<u32> {
        let units = 0..span.units;
        units
            .flat_map(|u| (0..span.width).map(move |c| u * span.per_unit + span.offset + c))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn spans_meet_where_columns_do(a in span(), b in span()) {
            let all: HashSet<u32> = columns(a).into_iter().collect();
            let shared = columns(b).iter().any(|c| all.contains(c));
            if a.per_unit == b.per_unit {
                prop_assert_eq!(a.meets(b), shared);
            } else {
                prop_assert!(a.meets(b) || !shared);
            }
            prop_assert_eq!(a.meets(b), b.meets(a));
        }

        #[test]
        fn ends_and_units_are_what_columns_say(a in span()) {
            let columns = columns(a);
            let last = columns.iter().max().copied();
            prop_assert_eq!(last.map(|c| c as u64 + 1), Some(a.end()));
            let distinct: HashSet<u32> = columns.iter().copied().collect();
            prop_assert_eq!(a.units_are_disjoint(), distinct.len() == columns.len());
        }
    }
}
