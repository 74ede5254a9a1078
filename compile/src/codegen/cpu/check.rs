//! The rules of `bundle_format::region`, checked. What passes addresses only columns that its operands have, and means
//! the same in whichever order columns are visited.

use bundle_format::region::{ColMap, Inst, OperandId, Region, RowMap, Val};

use super::broken;
use super::layout::{Layout, RegionContext};
use crate::error::Error;

/// Columns of the largest iteration space or operand: a column's byte offset fits 32 bits with room to spare.
const MAX_COLS: u32 = 1 << 28;

/// Checks every rule.
///
/// # Errors
/// [`Error::Bug`], naming the region and the instruction.
pub fn check(region: &Region, context: &RegionContext) -> Result<(), Error> {
    check_shape(region, context)?;
    for (index, inst) in region.body.iter().enumerate() {
        for &value in operands_of(inst).as_slice() {
            check_value(region, index, value)?;
        }
        check_inst(region, context, index, inst)?;
    }
    check_aliasing(region)
}

/// The values that an instruction uses.
pub fn operands_of(inst: &Inst) -> Vec<Val> {
    match *inst {
        Inst::Const { .. } | Inst::Tile { .. } | Inst::Load { .. } | Inst::RowValue { .. } => {
            vec![]
        }
        Inst::Unary { x, .. }
        | Inst::RowSum { x }
        | Inst::UnitSum { x }
        | Inst::Store { x, .. }
        | Inst::StoreQuant { x, .. }
        | Inst::StoreKv { x, .. } => vec![x],
        Inst::Binary { a, b, .. } => vec![a, b],
        Inst::Fma { a, b, c } => vec![a, b, c],
    }
}

pub fn is_store(inst: &Inst) -> bool {
    destination(inst).is_some()
}

/// The operand that an instruction stores to.
pub fn destination(inst: &Inst) -> Option<OperandId> {
    match *inst {
        Inst::Store { dst, .. } | Inst::StoreQuant { dst, .. } | Inst::StoreKv { dst, .. } => {
            Some(dst)
        }
        _ => None,
    }
}

fn check_shape(region: &Region, context: &RegionContext) -> Result<(), Error> {
    let bug = |what: String| Err(Error::Bug(format!("region {}: {what}", region.name)));
    let Region {
        unit, width, cols, ..
    } = *region;
    if unit == 0 || width == 0 || cols == 0 || cols % unit != 0 || cols > MAX_COLS {
        return bug(format!(
            "unit {unit}, width {width}, {cols} columns: expected none of them zero, columns a multiple of the unit and \
             at most {MAX_COLS}"
        ));
    }
    if context.operands.len() != region.operands.len() {
        return bug(format!(
            "{} operands, but the context lays out {}",
            region.operands.len(),
            context.operands.len()
        ));
    }
    if region.reads_tile() && region.has_row_sum() {
        return bug("a tile has no whole rows to sum".into());
    }
    if region.reads_tile()
        && (context.tile_stride == 0 || !context.tile_stride.is_multiple_of(unit))
    {
        return bug(format!(
            "tile rows of {} elements, expected a multiple of the unit {unit}",
            context.tile_stride
        ));
    }
    Ok(())
}

fn check_value(region: &Region, index: usize, value: Val) -> Result<(), Error> {
    match region.body.get(value as usize) {
        Some(_) if value as usize >= index => Err(broken(
            region,
            index,
            format!("uses the later value {value}"),
        )),
        Some(inst) if is_store(inst) => {
            Err(broken(region, index, format!("uses {value}, a store")))
        }
        Some(_) => Ok(()),
        None => Err(broken(region, index, format!("uses {value}, past the end"))),
    }
}

fn check_inst(
    region: &Region,
    context: &RegionContext,
    index: usize,
    inst: &Inst,
) -> Result<(), Error> {
    let fail = |what: String| Err(broken(region, index, what));
    let layout = |operand: OperandId| match context.operands.get(operand as usize) {
        Some(layout) => Ok(*layout),
        None => Err(broken(region, index, format!("no operand {operand}"))),
    };
    match *inst {
        Inst::Tile { offset } => {
            if offset as u64 + region.width as u64 > region.unit as u64 {
                return fail(format!("reads past its unit of {} columns", region.unit));
            }
        }
        Inst::Load { src, row, col } => {
            let cols = match (layout(src)?, row) {
                (Layout::F32 { cols, .. }, _) | (Layout::Vector { cols }, RowMap::Zero) => cols,
                (other, _) => return fail(format!("can't load from {other:?} this way")),
            };
            check_cols(region, index, col, cols)?;
            let indices = match row {
                RowMap::Same | RowMap::Zero => None,
                RowMap::Via(rows) => Some((rows, 0)),
                RowMap::At { index, col } => Some((index, col)),
            };
            if let Some((rows, col)) = indices
                && !matches!(layout(rows)?, Layout::Indices { cols, .. } if col < cols)
            {
                return fail(format!(
                    "operand {rows} holds no indices, or no column {col}"
                ));
            }
        }
        Inst::Store { dst, col, .. } => match layout(dst)? {
            Layout::F32 { cols, .. } => check_stored_cols(region, index, col, cols)?,
            other => return fail(format!("can't store f32 to {other:?}")),
        },
        Inst::StoreQuant { dst, col, .. } => {
            let (ty, cols) = match layout(dst)? {
                Layout::Quant { ty, cols, .. } => (ty, cols),
                other => return fail(format!("can't store quantised blocks to {other:?}")),
            };
            let block = ty.block();
            if [region.width, col.per_unit, col.offset, cols]
                .iter()
                .any(|n| !n.is_multiple_of(block))
            {
                return fail(format!(
                    "width {}, column map or number of columns {cols} isn't a multiple of the block of {block}",
                    region.width
                ));
            }
            check_stored_cols(region, index, col, cols)?
        }
        Inst::StoreKv {
            dst, slots, offset, ..
        } => {
            let Layout::Kv {
                dtype,
                heads,
                head_dim,
                ..
            } = layout(dst)?
            else {
                return fail("the destination is no KV pool".into());
            };
            let block = dtype.block();
            if [region.width, offset, head_dim]
                .iter()
                .any(|n| !n.is_multiple_of(block))
            {
                return fail(format!(
                    "width {}, offset {offset} or heads of {head_dim} aren't whole blocks of {block}",
                    region.width
                ));
            }
            if !matches!(layout(slots)?, Layout::Indices { cols: 1, .. }) {
                return fail(format!("operand {slots} holds no indices"));
            }
            if region.cols / region.unit > heads
                || offset as u64 + region.width as u64 > head_dim as u64
            {
                return fail(format!("stores past {heads} heads of {head_dim}"));
            }
        }
        Inst::RowValue { src, col } => {
            if !matches!(layout(src)?, Layout::F32 { cols, .. } if col < cols.min(MAX_COLS)) {
                return fail(format!("no column {col} of f32 in operand {src}"));
            }
            let stores =
                |inst: &Inst| destination(inst).is_some_and(|d| same_memory(region, d, src));
            if region.body.iter().any(stores) {
                return fail("reads a value of the row that the region stores to".into());
            }
        }
        Inst::Const { .. }
        | Inst::Unary { .. }
        | Inst::Binary { .. }
        | Inst::Fma { .. }
        | Inst::RowSum { .. }
        | Inst::UnitSum { .. } => {}
    }
    Ok(())
}

/// Whether the last column that the map touches is one of `cols`.
fn check_cols(region: &Region, index: usize, col: ColMap, cols: u32) -> Result<(), Error> {
    let last_unit = (region.cols / region.unit - 1) as u64;
    let end = last_unit * col.per_unit as u64 + col.offset as u64 + region.width as u64;
    if end > cols.min(MAX_COLS) as u64 {
        return Err(broken(
            region,
            index,
            format!("touches column {} of {cols}", end - 1),
        ));
    }
    Ok(())
}

/// Besides, whether no two iterations store to one column.
fn check_stored_cols(region: &Region, index: usize, col: ColMap, cols: u32) -> Result<(), Error> {
    if region.cols > region.unit && col.per_unit < region.width {
        return Err(broken(region, index, "units store to the same columns"));
    }
    check_cols(region, index, col, cols)
}

/// Whether no instruction touches columns that another iteration stores, and none loads what was stored before.
fn check_aliasing(region: &Region) -> Result<(), Error> {
    for (store, inst) in region.body.iter().enumerate() {
        match *inst {
            Inst::Store { dst, col, .. } | Inst::StoreQuant { dst, col, .. } => {
                check_column_store(region, store, dst, col)?
            }
            Inst::StoreKv { dst, offset, .. } => check_kv_store(region, store, dst, offset)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_column_store(
    region: &Region,
    store: usize,
    dst: OperandId,
    col: ColMap,
) -> Result<(), Error> {
    for (index, inst) in region.body.iter().enumerate() {
        match *inst {
            Inst::Load {
                src, row, col: at, ..
            } if same_memory(region, src, dst) => match overlap(region, at, col) {
                Overlap::None => {}
                Overlap::Same if index < store && row == RowMap::Same => {}
                Overlap::Same if index > store => {
                    return Err(broken(
                        region,
                        index,
                        format!("loads what instruction {store} stored"),
                    ));
                }
                Overlap::Same | Overlap::Partial => {
                    return Err(broken(
                        region,
                        index,
                        format!("loads what instruction {store} stores in another iteration"),
                    ));
                }
            },
            Inst::Store {
                dst: other,
                col: at,
                ..
            }
            | Inst::StoreQuant {
                dst: other,
                col: at,
                ..
            } if same_memory(region, other, dst)
                && overlap(region, at, col) == Overlap::Partial =>
            {
                return Err(broken(
                    region,
                    index,
                    format!("stores to columns of instruction {store} in another iteration"),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_kv_store(region: &Region, store: usize, dst: OperandId, offset: u32) -> Result<(), Error> {
    for (index, inst) in region.body.iter().enumerate() {
        if let Inst::StoreKv {
            dst: other,
            offset: at,
            ..
        } = *inst
            && same_memory(region, other, dst)
            && (1..region.width).contains(&at.abs_diff(offset))
        {
            return Err(broken(
                region,
                index,
                format!("stores to dimensions of instruction {store} in another iteration"),
            ));
        }
    }
    Ok(())
}

/// Whether two operands are the same buffer or pool.
pub fn same_memory(region: &Region, a: OperandId, b: OperandId) -> bool {
    region.operands[a as usize] == region.operands[b as usize]
}

/// How the columns of two maps of one row meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    None,
    /// Every iteration touches the same column by both.
    Same,
    /// Some iteration touches a column that another one touches by the other map.
    Partial,
}

pub fn overlap(region: &Region, a: ColMap, b: ColMap) -> Overlap {
    let units = (region.cols / region.unit) as i64;
    let width = region.width as i64;
    let (a_start, b_start) = (a.offset as i64, b.offset as i64);
    let distance = a_start - b_start;
    if distance == 0 && (a.per_unit == b.per_unit || units == 1) {
        return Overlap::Same;
    }
    let meet = if a.per_unit == b.per_unit && a.per_unit > 0 {
        // Units k apart meet where k * per_unit + distance lies within a width of 0.
        let per_unit = a.per_unit as i64;
        let nearest = -distance.div_euclid(per_unit);
        [nearest - 1, nearest]
            .into_iter()
            .any(|k| k.abs() < units && (k * per_unit + distance).abs() < width)
    } else {
        let end = |start: i64, per_unit: u32| start + (units - 1) * per_unit as i64 + width;
        a_start < end(b_start, b.per_unit) && b_start < end(a_start, a.per_unit)
    };
    if meet {
        Overlap::Partial
    } else {
        Overlap::None
    }
}
