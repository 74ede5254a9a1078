//! Regions, instruction by instruction.

use bundle_format::region::{Binary, ColMap, Inst, Operand, OperandId, Region, Unary, Val};

/// Plain columns.
pub const FLAT: ColMap = ColMap {
    per_unit: 1,
    offset: 0,
};

/// In units of a Q8 block.
pub const BLOCKS: ColMap = ColMap {
    per_unit: 32,
    offset: 0,
};

/// Collects operands and instructions.
pub struct RegionBuilder(Region);

impl RegionBuilder {
    pub fn flat(name: &str, cols: u32) -> RegionBuilder {
        RegionBuilder::units(name, 1, 1, cols)
    }

    pub fn units(name: &str, unit: u32, width: u32, cols: u32) -> RegionBuilder {
        RegionBuilder(Region {
            name: name.into(),
            unit,
            width,
            cols,
            operands: vec![],
            body: vec![],
        })
    }

    pub fn operand(&mut self, operand: Operand) -> OperandId {
        self.0.operands.push(operand);
        self.0.operands.len() as OperandId - 1
    }

    pub fn push(&mut self, inst: Inst) -> Val {
        self.0.body.push(inst);
        self.0.body.len() as Val - 1
    }

    pub fn constant(&mut self, value: f32) -> Val {
        self.push(Inst::Const { value })
    }

    pub fn unary(&mut self, op: Unary, x: Val) -> Val {
        self.push(Inst::Unary { op, x })
    }

    pub fn binary(&mut self, op: Binary, a: Val, b: Val) -> Val {
        self.push(Inst::Binary { op, a, b })
    }

    pub fn store(&mut self, dst: OperandId, col: ColMap, x: Val) {
        self.push(Inst::Store { dst, col, x });
    }

    pub fn finish(self) -> Region {
        self.0
    }
}
