//! Random regions against the interpreter, to the bit.
//!
//! Inputs are small integers, and only sums that are exact in any order are summed: then every result is the same
//! whatever the order. `Exp` is left to [`super::arithmetic`].

use bundle_format::plan::DType;
use bundle_format::region::{Binary, ColMap, Inst, KvPart, RowMap, Unary, Val};
use proptest::prelude::*;

use super::check;
use super::memory::Memory;
use super::regions::{Case, at};
use crate::codegen::cpu::check as rules;

/// Largest magnitude of an input.
const INPUT: f64 = 8.0;

/// Sums below this are exact.
const EXACT: f64 = (1 << 24) as f64;

/// Unit, width, columns.
const SHAPES: [(u32, u32, u32); 14] = [
    (1, 1, 1),
    (1, 1, 43),
    (1, 1, 64),
    (32, 32, 96),
    (160, 160, 160),
    (64, 32, 192),
    (64, 64, 128),
    (7, 7, 21),
    (10, 5, 30),
    (100, 37, 300),
    (5, 9, 20),
    (128, 96, 384),
    (256, 256, 512),
    (512, 256, 1024),
];

/// An instruction's kind, and choices.
type Choice = (u8, u8, u8, u8);

/// Ids of the operands that each case has.
struct Operands {
    /// Read and written, of twice the columns that the iteration space needs.
    floats: [u32; 3],
    weight: u32,
    indices: u32,
    /// Of each type of block.
    quants: [u32; 4],
    pools: [u32; 2],
}

struct Fuzz {
    case: Case,
    operands: Operands,
    /// By value: its largest magnitude if it is an integer for sure.
    bounds: Vec<Option<f64>>,
    values: Vec<Val>,
}

impl Fuzz {
    fn new((unit, width, cols): (u32, u32, u32)) -> Fuzz {
        let mut case = Case::new("fuzz", unit, width, cols);
        let units = cols / unit;
        let wide = units * unit.max(width) * 2;
        let mut float = || case.buffer(DType::F32, wide);
        let floats = [float(), float(), float()];
        let operands = Operands {
            floats,
            weight: case.weight(wide),
            indices: case.buffer(DType::U32, 1),
            quants: DType::QUANTISED
                .map(|dtype| case.buffer(dtype, wide.next_multiple_of(dtype.block() as u32))),
            pools: [
                case.pool(KvPart::Key, units, width * 2),
                case.pool(KvPart::Value, units, width * 2 + 1),
            ],
        };
        Fuzz {
            case,
            operands,
            bounds: vec![],
            values: vec![],
        }
    }

    /// Adds the instruction that the choice stands for, if it keeps the rules.
    fn add(&mut self, (kind, x, y, z): Choice) {
        let Some((inst, bound)) = self.inst(kind, x, y, z) else {
            return;
        };
        self.case.push(inst);
        if rules::check(&self.case.region, &self.case.context()).is_err() {
            self.case.region.body.pop();
            return;
        }
        self.bounds.push(bound);
        if !rules::is_store(&inst) {
            self.values.push(self.case.region.body.len() as Val - 1);
        }
    }

    fn inst(&self, kind: u8, x: u8, y: u8, z: u8) -> Option<(Inst, Option<f64>)> {
        let region = &self.case.region;
        let pick = |choice: u8| -> Option<Val> {
            let count = self.values.len();
            (count > 0).then(|| self.values[count - 1 - choice as usize % count])
        };
        let bound = |value: Val| self.bounds[value as usize];
        let float = self.operands.floats[x as usize % 3];
        let col = self.col(y, 1);
        Some(match kind % 16 {
            0 => (
                Inst::Const {
                    value: x as f32 % 3.0 - 1.0,
                },
                Some(1.0),
            ),
            1 => {
                let offset = y as u32 % 2 * (region.unit - region.width.min(region.unit));
                (Inst::Tile { offset }, Some(INPUT))
            }
            2 | 3 => {
                let (src, row) = match z % 5 {
                    0 => (self.operands.weight, RowMap::Zero),
                    1 => (float, RowMap::Via(self.operands.indices)),
                    _ => (float, RowMap::Same),
                };
                (Inst::Load { src, row, col }, Some(INPUT))
            }
            4 => {
                let op = [Unary::Neg, Unary::Sqrt, Unary::Recip][y as usize % 3];
                let x = pick(x)?;
                let result = bound(x).filter(|_| op == Unary::Neg);
                (Inst::Unary { op, x }, result)
            }
            5 | 6 => {
                let (a, b) = (pick(x)?, pick(y)?);
                let both = bound(a).zip(bound(b));
                let (op, result) = match z % 4 {
                    0 => (Binary::Add, both.map(|(a, b)| a + b)),
                    1 => (Binary::Sub, both.map(|(a, b)| a + b)),
                    2 => (Binary::Mul, both.map(|(a, b)| a * b)),
                    _ => (Binary::Div, None),
                };
                (Inst::Binary { op, a, b }, result.filter(|b| *b < EXACT))
            }
            7 => {
                let (a, b, c) = (pick(x)?, pick(y)?, pick(z)?);
                let bounds = bound(a).zip(bound(b)).zip(bound(c));
                let result = bounds.map(|((a, b), c)| a * b + c);
                (Inst::Fma { a, b, c }, result.filter(|b| *b < EXACT))
            }
            8 | 9 => {
                let x = pick(x)?;
                let iterations = (region.cols / region.unit * region.width) as f64;
                let sum = bound(x)? * iterations;
                (sum < EXACT).then_some((Inst::RowSum { x }, Some(sum)))?
            }
            10 | 11 => (
                Inst::Store {
                    dst: float,
                    col,
                    x: pick(z)?,
                },
                None,
            ),
            12 => (
                Inst::StoreQuant {
                    dst: self.operands.quants[x as usize % 4],
                    col: self.col(y, DType::QUANTISED[x as usize % 4].block() as u32),
                    x: pick(z)?,
                },
                None,
            ),
            13 | 14 => {
                let x = pick(x)?;
                let sum = bound(x)? * region.width as f64;
                (sum < EXACT).then_some((Inst::UnitSum { x }, Some(sum)))?
            }
            _ => (
                Inst::StoreKv {
                    dst: self.operands.pools[x as usize % 2],
                    slots: self.operands.indices,
                    offset: y as u32 % 2 * region.width,
                    x: pick(z)?,
                },
                None,
            ),
        })
    }

    /// A column map: packed or with gaps, at one of two offsets.
    fn col(&self, choice: u8, granule: u32) -> ColMap {
        let region = &self.case.region;
        let offset = match choice / 4 % 3 {
            0 | 1 => 0,
            _ => region.width.next_multiple_of(granule),
        };
        let per_unit = match choice % 4 {
            0 => region.width,
            1 => region.unit.max(region.width),
            2 => 0,
            _ => region.width * 2,
        };
        at(per_unit, offset)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_regions(
        shape in 0..SHAPES.len(),
        choices in prop::collection::vec(any::<Choice>(), 4..40),
        seed in any::<u64>(),
    ) {
        let mut fuzz = Fuzz::new(SHAPES[shape]);
        for choice in choices {
            fuzz.add(choice);
        }
        let stores = fuzz.case.region.body.iter().any(rules::is_store);
        prop_assume!(stores);
        let mut next = super::floats(seed);
        let memory = Memory::new(&fuzz.case, || next().round());
        check(&fuzz.case, &memory, 0.0);
    }
}
