//! An interpreter of regions: one row at a time, one instruction at a time, each a vector over the row's columns.

use std::ops::Range;

use bundle_format::region::{Binary, ColMap, Inst, OperandId, Region, RowMap, Unary};

/// What a region reads and writes. Ids index `Region::operands`; rows and columns are the operand's.
///
/// The implementation decides what a store keeps: the oracle keeps f32 of [`Operands::store_q8`] and
/// [`Operands::store_kv`], a parity test the bytes that a target writes (`super::q8`, f16).
pub trait Operands {
    /// An element of an f32 buffer or weight.
    fn load(&self, operand: OperandId, row: usize, col: usize) -> f32;
    /// An element of a u32 buffer.
    fn index(&self, operand: OperandId, row: usize, col: usize) -> u32;
    /// Stores an element of an f32 buffer.
    fn store(&mut self, operand: OperandId, row: usize, col: usize, value: f32);
    /// Stores elements from column `col` of a quantised buffer on, whole blocks of its type.
    fn store_quant(&mut self, operand: OperandId, row: usize, col: usize, values: &[f32]);
    /// Stores dimension `dim` of head `head` at `slot` of a KV pool.
    fn store_kv(&mut self, operand: OperandId, slot: u32, head: usize, dim: usize, value: f32);
}

/// The f32 tile that an epilogue reads: the element at row `row0 + r`, column `col0 + c` of the iteration space is
/// `data[r * stride + c]`.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Rows and columns of the iteration space that a call covers, as in `abi::RegionFn`.
#[derive(Clone, Debug)]
pub struct TileRange {
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

/// Runs a region over a range. A region with `RowSum` needs all columns. `tile` is none for a region that reads no tile.
///
/// # Panics
/// Where the region is malformed or the range no whole number of units: the plan's verifier rules both out.
pub fn run_region(
    region: &Region,
    range: &TileRange,
    tile: Option<Tile<'_>>,
    operands: &mut impl Operands,
) {
    let unit = region.unit as usize;
    assert!(
        range.cols.start.is_multiple_of(unit) && range.cols.len().is_multiple_of(unit),
        "columns {:?} of region {} are whole units of {unit}",
        range.cols,
        region.name
    );
    let mut values = vec![Vec::new(); region.body.len()];
    for row in range.rows.clone() {
        let call = Row {
            region,
            range,
            tile,
            row,
        };
        for (i, inst) in region.body.iter().enumerate() {
            // Taken out so that the instruction can read earlier values; its buffer is reused from row to row.
            let mut out = std::mem::take(&mut values[i]);
            out.clear();
            call.run(inst, &values, &mut out, operands);
            values[i] = out;
        }
    }
}

/// One row of a call.
struct Row<'a> {
    region: &'a Region,
    range: &'a TileRange,
    tile: Option<Tile<'a>>,
    row: usize,
}

impl Row<'_> {
    fn run(
        &self,
        inst: &Inst,
        values: &[Vec<f32>],
        out: &mut Vec<f32>,
        operands: &mut impl Operands,
    ) {
        let value = |v: u32| &values[v as usize];
        match *inst {
            Inst::Const { value } => out.extend(self.points().map(|_| value)),
            Inst::Tile { offset } => {
                let tile = self.tile.expect("an epilogue is called with a tile");
                let base = (self.row - self.range.rows.start) * tile.stride;
                out.extend(self.points().map(|(unit, c)| {
                    let col = unit * self.region.unit as usize + offset as usize + c;
                    tile.data[base + col - self.range.cols.start]
                }));
            }
            Inst::Load { src, row, col } => {
                let row = match row {
                    RowMap::Same => self.row,
                    RowMap::Zero => 0,
                    RowMap::Via(index) => operands.index(index, self.row, 0) as usize,
                    RowMap::At { index, col } => {
                        operands.index(index, self.row, col as usize) as usize
                    }
                };
                out.extend(
                    self.points()
                        .map(|(unit, c)| operands.load(src, row, column(col, unit, c))),
                );
            }
            Inst::RowValue { src, col } => {
                let value = operands.load(src, self.row, col as usize);
                out.extend(self.points().map(|_| value));
            }
            Inst::Unary { op, x } => out.extend(value(x).iter().map(|x| unary(op, *x))),
            Inst::Binary { op, a, b } => {
                out.extend(
                    value(a)
                        .iter()
                        .zip(value(b))
                        .map(|(a, b)| binary(op, *a, *b)),
                );
            }
            Inst::Fma { a, b, c } => {
                let ab = value(a).iter().zip(value(b));
                out.extend(ab.zip(value(c)).map(|((a, b), c)| a.mul_add(*b, *c)));
            }
            Inst::RowSum { x } => {
                let sum: f64 = value(x).iter().map(|x| f64::from(*x)).sum();
                out.extend(self.points().map(|_| sum as f32));
            }
            Inst::UnitSum { x } => {
                let width = self.region.width as usize;
                for unit in value(x).chunks_exact(width) {
                    let sum: f64 = unit.iter().map(|x| f64::from(*x)).sum();
                    out.extend(std::iter::repeat_n(sum as f32, width));
                }
            }
            Inst::Store { dst, col, x } => {
                for ((unit, c), x) in self.points().zip(value(x)) {
                    operands.store(dst, self.row, column(col, unit, c), *x);
                }
            }
            Inst::StoreQuant { dst, col, x } => self.store_quant(dst, col, value(x), operands),
            Inst::StoreKv {
                dst,
                slots,
                offset,
                x,
            } => {
                let slot = operands.index(slots, self.row, 0);
                for ((unit, c), x) in self.points().zip(value(x)) {
                    operands.store_kv(dst, slot, unit, offset as usize + c, *x);
                }
            }
        }
    }

    /// A flat region has units of one column, whose blocks are cut from the call's columns; otherwise a unit is whole blocks.
    fn store_quant(
        &self,
        dst: OperandId,
        col: ColMap,
        values: &[f32],
        operands: &mut impl Operands,
    ) {
        // Of a region of units of one column, the call's columns lie side by side.
        let run = match self.region.width {
            1 => values.len(),
            width => width as usize,
        };
        let mut points = self.points();
        for values in values.chunks_exact(run) {
            let (unit, c) = points.next().expect("a value for every point");
            operands.store_quant(dst, self.row, column(col, unit, c), values);
            points.nth(run - 2);
        }
    }

    /// (unit, c) of every iteration of the row, in order.
    fn points(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let unit = self.region.unit as usize;
        let width = self.region.width as usize;
        let units = self.range.cols.start / unit..self.range.cols.end / unit;
        units.flat_map(move |u| (0..width).map(move |c| (u, c)))
    }
}

fn column(map: ColMap, unit: usize, c: usize) -> usize {
    unit * map.per_unit as usize + map.offset as usize + c
}

fn unary(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Sqrt => x.sqrt(),
        Unary::Recip => 1.0 / x,
    }
}

fn binary(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::region::Operand;

    /// Operand 0: f32 input; 1: f32 weight; 2: u32 indices; 3: output. Stores are logged.
    #[derive(Default)]
    struct Log {
        stored: Vec<(usize, usize, f32)>,
        q8: Vec<(usize, usize, f32)>,
        kv: Vec<(u32, usize, usize, f32)>,
    }

    impl Operands for Log {
        fn load(&self, operand: OperandId, row: usize, col: usize) -> f32 {
            match operand {
                0 => (row * 100 + col) as f32,
                _ => {
                    assert_eq!(row, 0);
                    col as f32 / 2.0
                }
            }
        }
        fn index(&self, _: OperandId, row: usize, _: usize) -> u32 {
            7 - row as u32
        }
        fn store(&mut self, _: OperandId, row: usize, col: usize, value: f32) {
            self.stored.push((row, col, value));
        }
        fn store_quant(&mut self, _: OperandId, row: usize, col: usize, values: &[f32]) {
            let blocks = values.chunks_exact(32).enumerate();
            self.q8
                .extend(blocks.map(|(b, block)| (row, col + 32 * b, block[31])));
        }
        fn store_kv(&mut self, _: OperandId, slot: u32, head: usize, dim: usize, value: f32) {
            self.kv.push((slot, head, dim, value));
        }
    }

    fn region(unit: u32, width: u32, cols: u32, body: Vec<Inst>) -> Region {
        Region {
            name: "test".into(),
            unit,
            width,
            cols,
            operands: vec![Operand::Buffer(0); 4],
            body,
        }
    }

    const FLAT: ColMap = ColMap {
        per_unit: 1,
        offset: 0,
    };

    #[test]
    fn row_sums_and_gathers() {
        let body = vec![
            Inst::Load {
                src: 0,
                row: RowMap::Via(2),
                col: FLAT,
            },
            Inst::RowSum { x: 0 },
            Inst::Load {
                src: 1,
                row: RowMap::Zero,
                col: FLAT,
            },
            Inst::Fma { a: 2, b: 1, c: 0 },
            Inst::Store {
                dst: 3,
                col: FLAT,
                x: 3,
            },
        ];
        let mut log = Log::default();
        let range = TileRange {
            rows: 2..3,
            cols: 0..3,
        };
        run_region(&region(1, 1, 3, body), &range, None, &mut log);
        // Row 7 - 2 = 5: 500, 501, 502, sum 1503.
        assert_eq!(
            log.stored,
            [(2, 0, 500.0), (2, 1, 501.0 + 751.5), (2, 2, 502.0 + 1503.0)]
        );
    }

    #[test]
    fn units_of_an_epilogue() {
        let tile: Vec<f32> = (0..2 * 8).map(|i| i as f32).collect();
        let body = vec![
            Inst::Tile { offset: 0 },
            Inst::Tile { offset: 2 },
            Inst::Binary {
                op: Binary::Mul,
                a: 0,
                b: 1,
            },
            Inst::Store {
                dst: 3,
                col: ColMap {
                    per_unit: 2,
                    offset: 0,
                },
                x: 2,
            },
            Inst::StoreKv {
                dst: 3,
                slots: 2,
                offset: 2,
                x: 1,
            },
        ];
        let mut log = Log::default();
        let range = TileRange {
            rows: 4..6,
            cols: 4..8,
        };
        let tile = Tile {
            data: &tile,
            stride: 8,
        };
        run_region(&region(4, 2, 8, body), &range, Some(tile), &mut log);
        assert_eq!(
            log.stored,
            [(4, 2, 0.0), (4, 3, 3.0), (5, 2, 80.0), (5, 3, 99.0)]
        );
        assert_eq!(
            log.kv,
            [
                (3, 1, 2, 2.0),
                (3, 1, 3, 3.0),
                (2, 1, 2, 10.0),
                (2, 1, 3, 11.0)
            ]
        );
    }

    #[test]
    fn unit_sums_of_an_epilogue() {
        let tile: Vec<f32> = (0..2 * 8).map(|i| i as f32).collect();
        let body = vec![
            Inst::Tile { offset: 2 },
            Inst::UnitSum { x: 0 },
            Inst::Store {
                dst: 3,
                col: ColMap {
                    per_unit: 2,
                    offset: 0,
                },
                x: 1,
            },
        ];
        let mut log = Log::default();
        let range = TileRange {
            rows: 0..2,
            cols: 0..8,
        };
        let tile = Tile {
            data: &tile,
            stride: 8,
        };
        run_region(&region(4, 2, 8, body), &range, Some(tile), &mut log);
        // Columns 2 and 3 of each unit of 4.
        let sums = [(0, 5.0), (0, 13.0), (1, 21.0), (1, 29.0)];
        let stored: Vec<_> = sums
            .iter()
            .enumerate()
            .flat_map(|(i, &(row, sum))| (0..2).map(move |c| (row, i % 2 * 2 + c, sum)))
            .collect();
        assert_eq!(log.stored, stored);
    }

    #[test]
    fn q8_blocks_of_flat_and_unit_regions() {
        let load = |col| Inst::Load {
            src: 0,
            row: RowMap::Same,
            col,
        };
        let store = |col| Inst::StoreQuant { dst: 3, col, x: 0 };
        let range = TileRange {
            rows: 1..2,
            cols: 64..128,
        };
        let mut log = Log::default();
        let flat = region(1, 1, 128, vec![load(FLAT), store(FLAT)]);
        run_region(&flat, &range, None, &mut log);
        assert_eq!(log.q8, [(1, 64, 195.0), (1, 96, 227.0)]);

        let half = ColMap {
            per_unit: 32,
            offset: 0,
        };
        let mut log = Log::default();
        let units = region(64, 32, 128, vec![load(half), store(half)]);
        run_region(&units, &range, None, &mut log);
        assert_eq!(log.q8, [(1, 32, 163.0)]);
    }
}
