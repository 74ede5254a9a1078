//! A thread's part of a product: matmuls, and those of the experts that have any rows, one after the other.

use std::ops::Range;
use std::sync::atomic::Ordering;

use kernels::abi::MatMulArgs;

use super::part::Part;
use super::partition::{Parts, Run};
use super::program::{ExpertMatMul, MatMul, Routed, Segment, SegmentCode, Variant, variant};

impl Part<'_> {
    /// # Safety
    /// As for [`Part::product`].
    pub(super) unsafe fn matmul(&self, op: &MatMul) {
        let all = Expert {
            index: 0,
            first: 0,
            rows: self.rows,
        };
        // SAFETY: the caller's promise.
        unsafe { self.product(op, None, || std::iter::once(all)) };
    }

    /// # Safety
    /// As for [`Part::product`].
    pub(super) unsafe fn expert_matmul(&self, op: &ExpertMatMul, routed: &Routed) {
        // SAFETY: a launch before has written them.
        let starts = unsafe { std::slice::from_raw_parts(op.starts, op.experts + 1) };
        let experts = || {
            let parts = starts.windows(2).enumerate();
            parts
                .filter(|(_, part)| part[0] < part[1])
                .map(|(e, part)| Expert {
                    index: e as u64,
                    first: part[0] as usize,
                    rows: (part[1] - part[0]) as usize,
                })
        };
        if self.member.index == 0 {
            let bytes: u64 = op.product.segments.iter().map(Segment::bytes).sum();
            let read = bytes * experts().count() as u64;
            routed.expert_bytes.fetch_add(read, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise; tokens of the list are rows of x.
        unsafe { self.product(&op.product, op.index, experts) };
    }

    /// Products of each expert's weights with its rows. Units of work are a granule's features for a tile's rows.
    ///
    /// # Safety
    /// The program's pointers are valid, the rows are the step's, and all of the team's members do it; an index has the experts' rows, and leads to rows of x.
    unsafe fn product<I: Iterator<Item = Expert>>(
        &self,
        op: &MatMul,
        index: Option<*const u32>,
        experts: impl Fn() -> I,
    ) {
        let variant = variant(&op.variants, self.rows);
        let row_tiles = |expert: &Expert| expert.rows.div_ceil(variant.tile_rows) as u64;
        let unit_cost = |segment: &Segment, expert: &Expert| {
            segment.unit_cost(op.k, expert.rows.min(variant.tile_rows) as u64)
        };
        let cost = |expert: Expert| -> u64 {
            let of = |s: &Segment| s.units(row_tiles(&expert)) * unit_cost(s, &expert);
            op.segments.iter().map(of).sum()
        };
        let tile_rows = self.rows.min(variant.tile_rows) as u64;
        let tile_cost = |s: &Segment| variant.tile_cols / s.granule * s.unit_cost(op.k, tile_rows);
        let tile = op.segments.iter().map(tile_cost).max().unwrap_or(0);
        let parts = Parts::new(experts().map(cost).sum(), self.member.of as u64, tile);
        for part in self.member.parts(self.round, parts.each) {
            let mut before = 0;
            for expert in experts() {
                let row_tiles = row_tiles(&expert);
                for (segment, code) in op.segments.iter().zip(&variant.code) {
                    let run = Run {
                        units: segment.units(row_tiles),
                        cost: unit_cost(segment, &expert),
                        before,
                    };
                    before += run.units * run.cost;
                    let tile_granules = variant.tile_cols / segment.granule;
                    let units = parts.units(part, &run, [row_tiles, tile_granules]);
                    // One row has a tile's room to itself: the fewer calls, the steadier its weights flow.
                    let wide = match expert.rows {
                        1 => tile_granules * variant.tile_rows as u64,
                        _ => tile_granules,
                    };
                    for rectangle in rectangles(units, row_tiles, wide) {
                        let col0 = rectangle.granules.start * segment.granule;
                        let end = rectangle.granules.end * segment.granule;
                        for row_tile in rectangle.row_tiles {
                            let done = row_tile as usize * variant.tile_rows;
                            let tile = Tile {
                                row0: expert.first + done,
                                rows: (expert.rows - done).min(variant.tile_rows),
                                col0,
                                cols: end.min(segment.features) - col0,
                                weight_row: expert.index * segment.features + col0,
                                index,
                            };
                            // SAFETY: rows and columns are the launch's, and this thread's alone; the caller's promise.
                            unsafe { self.tile(op, variant, (segment, code), &tile) };
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// The tile's rows and columns are the launch's, and its variant's size at most, or one row of as many elements; the epilogue
    /// stores what belongs to them, which is this thread's alone. Rows by an index are rows of x.
    unsafe fn tile(
        &self,
        op: &MatMul,
        variant: &Variant<Box<[SegmentCode]>>,
        (segment, code): (&Segment, &SegmentCode),
        tile: &Tile,
    ) {
        let (x, index) = match tile.index {
            None => (tile.row0, std::ptr::null()),
            Some(index) if tile.rows == 1 => {
                // SAFETY: the caller's promise: the index has the tile's row.
                (unsafe { *index.add(tile.row0) as usize }, std::ptr::null())
            }
            Some(index) => (0, index.wrapping_add(tile.row0)),
        };
        let args = MatMulArgs {
            x: op.x.wrapping_add(x * op.x_stride as usize),
            x_stride: op.x_stride,
            index,
            w: segment.w,
            out: self.tile,
            out_stride: variant.tile_cols,
            k: op.k,
            rows: tile.rows as u64,
            col0: tile.weight_row,
            cols: tile.cols,
        };
        // SAFETY: the tile is this thread's memory and holds tile_rows * tile_cols elements, which is enough for rows of
        // tile_cols, or for one of any length up to that; the caller's promise.
        unsafe {
            (code.micro)(&args);
            (code.epilogue)(
                segment.operands.as_ptr(),
                self.tile,
                tile.row0 as u64,
                tile.rows as u64,
                tile.col0,
                tile.cols,
            );
        }
    }
}

/// Some rows of a product's, and the expert whose weights they are multiplied with.
#[derive(Clone, Copy)]
struct Expert {
    index: u64,
    first: usize,
    rows: usize,
}

/// A tile of a product.
struct Tile {
    /// First row, as the epilogue counts them, and how many.
    row0: usize,
    rows: usize,
    /// First column, as the epilogue counts them, and how many.
    col0: u64,
    cols: u64,
    /// The weight's row of the first column.
    weight_row: u64,
    /// The rows of x, by row; none: they are the same.
    index: Option<*const u32>,
}

/// Multiplications that take as long as fetching a byte of weights: it weighs segments of different encodings.
const MACS_A_BYTE: u64 = 8;

impl Segment {
    /// Units of work: a granule's features for a tile's rows.
    fn units(&self, row_tiles: u64) -> u64 {
        self.features.div_ceil(self.granule) * row_tiles
    }

    /// Bytes of packed weights, of one expert.
    fn bytes(&self) -> u64 {
        self.features.div_ceil(self.granule) * self.granule_bytes
    }

    /// What a unit costs, about: fetching the weights, and multiplying them. In KiB of weights, so that sums stay small.
    fn unit_cost(&self, k: u64, tile_rows: u64) -> u64 {
        let multiplying = self.granule * k * tile_rows / MACS_A_BYTE;
        (self.granule_bytes + multiplying).div_ceil(1024)
    }
}

/// Some granules of features by some tiles of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rectangle {
    granules: Range<u64>,
    row_tiles: Range<u64>,
}

/// Cuts a range of units (row tiles of granule 0, row tiles of granule 1, …) into rectangles: whole granules, as many at a
/// time as a tile holds, and at either end what is left of a granule.
fn rectangles(
    units: Range<u64>,
    row_tiles: u64,
    tile_granules: u64,
) -> impl Iterator<Item = Rectangle> {
    let mut at = units.start;
    std::iter::from_fn(move || {
        let left = units.end.checked_sub(at).filter(|&left| left > 0)?;
        let (granule, row_tile) = (at / row_tiles, at % row_tiles);
        let rectangle = if row_tile == 0 && left >= row_tiles {
            let granules = (left / row_tiles).min(tile_granules);
            Rectangle {
                granules: granule..granule + granules,
                row_tiles: 0..row_tiles,
            }
        } else {
            Rectangle {
                granules: granule..granule + 1,
                row_tiles: row_tile..row_tiles.min(row_tile + left),
            }
        };
        let Rectangle {
            granules,
            row_tiles,
        } = &rectangle;
        at += (granules.end - granules.start) * (row_tiles.end - row_tiles.start);
        Some(rectangle)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_cover_their_units_once() {
        for row_tiles in 1..6 {
            for tile_granules in 1..5 {
                for start in 0..15 {
                    for end in start..40 {
                        let mut seen = [0; 40];
                        for r in rectangles(start..end, row_tiles, tile_granules) {
                            assert!(r.granules.end - r.granules.start <= tile_granules);
                            for granule in r.granules {
                                for tile in r.row_tiles.clone() {
                                    assert!(tile < row_tiles);
                                    seen[(granule * row_tiles + tile) as usize] += 1;
                                }
                            }
                        }
                        for (unit, &times) in seen.iter().enumerate() {
                            let inside = (start..end).contains(&(unit as u64));
                            assert_eq!(times, inside as i32, "unit {unit} of {start}..{end}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn whole_features_come_in_full_tiles() {
        let cut: Vec<Rectangle> = rectangles(3..24, 4, 3).collect();
        let rectangle = |granules, row_tiles| Rectangle {
            granules,
            row_tiles,
        };
        assert_eq!(
            cut,
            [
                rectangle(0..1, 3..4),
                rectangle(1..4, 0..4),
                rectangle(4..6, 0..4)
            ]
        );
    }
}
