//! Regions: element-wise code over a tile, as straight-line SSA.
//!
//! A region is what fusion leaves between the matrix products: a norm, an activation, a rotation, a store. It is either a
//! launch of its own (over whole rows, possibly with row sums) or the epilogue of a matmul or an attention, called on a
//! tile of f32 results that is still in cache.
//!
//! # Iteration space
//! A call covers rows `row0 .. row0 + rows` and columns `col0 .. col0 + cols`. Columns are cut into *units* of
//! [`Region::unit`] columns (`col0` and `cols` are multiples of it, the last unit of a flat region excepted). Within a
//! unit, `c` runs over `0 .. width`. Every instruction is evaluated for each (row, unit, `c`); what it yields is an f32
//! (or, for [`Inst::RowSum`], one f32 a row, and for [`Inst::UnitSum`] one a unit). With `unit == width == 1` the region
//! is *flat*: plain columns.
//!
//! `unit` exceeds `width` where several input columns make one iteration: SwiGLU reads `gate` at `c` and `up` at
//! `32 + c` of a 64-column unit; a rotation reads and writes both halves of a head.

use serde::{Deserialize, Serialize};

/// An SSA value: the index of the instruction that makes it.
pub type Val = u32;

/// Index into [`Region::operands`].
pub type OperandId = u32;

/// What an operand's base address is. The executor passes one pointer per operand, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// A buffer of the plan ([`crate::plan::Plan::buffers`]), at its row 0.
    Buffer(u32),
    /// A weight of the plan: an f32 vector ([`crate::plan::Encoding::F32`], one row).
    Weight(u32),
    /// The key or value pool of one layer of a KV group, at its block 0.
    Kv {
        group: u32,
        layer: u32,
        part: KvPart,
    },
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvPart {
    Key,
    Value,
}

/// Which column of an operand an iteration touches: `unit_index * per_unit + offset + c`, where `unit_index` counts from
/// the region's column 0 (not from the call's `col0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColMap {
    pub per_unit: u32,
    pub offset: u32,
}

/// Which row of an operand an iteration touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowMap {
    /// The iteration's own row.
    Same,
    /// Row 0, whatever the iteration's row: weight vectors.
    Zero,
    /// The row that a u32 buffer of one column holds at the iteration's row: gathers.
    Via(OperandId),
    /// The row that column `col` of a u32 buffer holds at the iteration's row.
    At { index: OperandId, col: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unary {
    Neg,
    /// e^x, to within 2 ulp over the normal range; 0 below -87.34, +inf above 88.73, NaN for NaN.
    Exp,
    Sqrt,
    /// 1 / x, correctly rounded.
    Recip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
}

/// One instruction. A value may be used by later instructions only.
///
/// Stores take effect in order. A load of a column that an earlier instruction of the same region stored is not allowed
/// (use the value), so a region may update a buffer in place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Inst {
    /// A constant.
    Const {
        value: f32,
    },
    /// The tile at (row, unit * [`Region::unit`] + offset + c). Only in epilogues.
    Tile {
        offset: u32,
    },
    /// An f32 operand's element.
    Load {
        src: OperandId,
        row: RowMap,
        col: ColMap,
    },
    Unary {
        op: Unary,
        x: Val,
    },
    Binary {
        op: Binary,
        a: Val,
        b: Val,
    },
    /// a * b + c, rounded once.
    Fma {
        a: Val,
        b: Val,
        c: Val,
    },
    /// The sum of `x` over all units and `c` of the row: the same value for the whole row. Not in epilogues. The order of
    /// summation is fixed by the code generator and does not depend on the call.
    RowSum {
        x: Val,
    },
    /// The sum of `x` over the `c` of the unit: the same value for the whole unit, of a head's norm for one. Also in
    /// epilogues, whose tiles hold whole units. The order of summation is fixed by the code generator.
    UnitSum {
        x: Val,
    },
    /// Stores f32.
    Store {
        dst: OperandId,
        col: ColMap,
        x: Val,
    },
    /// Quantises groups of consecutive `c`, as many as a block of the destination's type has
    /// ([`crate::plan::DType::block`]), and stores them. `width` and the column map are multiples of that.
    StoreQuant {
        dst: OperandId,
        col: ColMap,
        x: Val,
    },
    /// Stores into a KV pool at the slot that u32 buffer `slots` holds for the row: head `unit`, dimension `offset + c`. Into
    /// a quantised pool ([`crate::plan::KvDType::Q8_0`]) whole blocks are stored: `width` and `offset` are multiples of
    /// theirs.
    StoreKv {
        dst: OperandId,
        slots: OperandId,
        offset: u32,
        x: Val,
    },
    /// An f32 buffer's element at the iteration's row and column `col`: the same value for the whole row.
    RowValue {
        src: OperandId,
        col: u32,
    },
}

/// Element-wise code over a tile; see the module's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// What the region does, for people: `add_rms_norm_q8`.
    pub name: String,
    /// Columns of the iteration space a unit.
    pub unit: u32,
    /// Values of `c` in a unit.
    pub width: u32,
    /// Columns of the whole iteration space: a multiple of `unit`.
    pub cols: u32,
    pub operands: Vec<Operand>,
    pub body: Vec<Inst>,
}

impl Region {
    /// Plain columns, no units.
    pub fn is_flat(&self) -> bool {
        self.unit == 1 && self.width == 1
    }

    /// Whether the region reads a tile: it is an epilogue.
    pub fn reads_tile(&self) -> bool {
        self.body.iter().any(|i| matches!(i, Inst::Tile { .. }))
    }

    /// Whether the region needs whole rows at a call.
    pub fn has_row_sum(&self) -> bool {
        self.body.iter().any(|i| matches!(i, Inst::RowSum { .. }))
    }
}
