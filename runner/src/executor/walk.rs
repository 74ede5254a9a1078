//! One thread's way through a program: its part of each launch, meeting the others where launches depend on one another.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kernels::abi::{AttentionArgs, EmbedArgs, MatMulArgs, RegionFn, RopeTableArgs, RouteArgs};

use super::barrier::Poisoned;
use super::partition::{bound_in_groups, bound_in_run, even};
use super::program::{
    Attention, Embed, ExpertMatMul, Extent, MatMul, Program, Region, RopeTable, Route, Routed,
    Segment, SegmentCode, Variant, Work, pieces, variant,
};
use super::route::{Rows, list_pairs};
use super::team::Member;

/// What a program needs to know of a step.
pub struct StepView<'a> {
    /// T
    pub tokens: usize,
    /// R
    pub rows: usize,
    /// Whether launches run that do nothing but to make logits.
    pub logits: bool,
    /// For each KV group the block table of each sequence.
    pub tables: &'a [Vec<*const u32>],
}

// SAFETY: the tables are only read, and outlive the step.
unsafe impl Sync for StepView<'_> {}

/// Nanoseconds spent on each launch, over all steps.
#[derive(Debug)]
pub struct Profile {
    pub nanoseconds: Box<[AtomicU64]>,
}

impl Profile {
    pub fn new(launches: usize) -> Self {
        Self {
            nanoseconds: (0..launches).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

/// Runs `member`'s part of every launch. `tile` is this thread's own memory of [`Program::tile_len`] elements, aligned to a
/// cache line.
///
/// # Errors
/// [`Poisoned`] where another thread failed.
///
/// # Safety
/// The program's pointers are valid, the step is within the limits of its plan, its inputs are in place, and all members
/// of one team (and nobody else) run it at the same time, each with a tile of its own.
pub unsafe fn walk(
    program: &Program,
    step: &StepView<'_>,
    member: Member<'_>,
    tile: *mut f32,
    profile: Option<&Profile>,
) -> Result<(), Poisoned> {
    let mut clock = profile
        .filter(|_| member.index == 0)
        .map(|profile| (profile, Instant::now()));
    for (i, launch) in program.launches.iter().enumerate() {
        if launch.meet {
            member.meet()?;
        }
        // A launch's time ends when the next one starts: it includes the wait for the slowest thread.
        if let Some((profile, last)) = &mut clock {
            let now = Instant::now();
            if i > 0 {
                record(profile, i - 1, now - *last);
            }
            *last = now;
        }
        let rows = match launch.extent {
            Extent::Tokens => step.tokens,
            Extent::Rows => step.rows,
            Extent::Pairs(each) => step.tokens * each,
            Extent::One => 1,
        };
        if rows == 0 || launch.only_logits && !step.logits {
            continue;
        }
        let part = Part {
            index: member.index,
            of: member.of,
            rows,
            tile,
        };
        // SAFETY: the caller's promises, handed on.
        unsafe {
            match &launch.work {
                Work::Embed(op) => part.embed(op),
                Work::RopeTable(op) => part.rope_table(op),
                Work::Region(op) => part.region(op),
                Work::MatMul(op) => part.matmul(op),
                Work::Attention(op) => part.attention(op, program, step),
                Work::Route(op) => part.route(op, i, &member, &program.routed)?,
                Work::ExpertMatMul(op) => part.expert_matmul(op, &program.routed),
            }
        }
    }
    if let Some((profile, last)) = clock {
        // The last launch's time includes the wait for its slowest thread, too.
        member.meet()?;
        if let Some(i) = program.launches.len().checked_sub(1) {
            record(profile, i, last.elapsed());
        }
    } else if profile.is_some() {
        member.meet()?;
    }
    Ok(())
}

fn record(profile: &Profile, launch: usize, time: std::time::Duration) {
    profile.nanoseconds[launch].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
}

/// A thread's part of a launch over `rows` rows, of which there is at least one.
#[derive(Clone, Copy)]
struct Part {
    index: usize,
    of: usize,
    rows: usize,
    tile: *mut f32,
}

impl Part {
    /// This part of equal units.
    fn even(&self, units: usize) -> Range<usize> {
        even(units, self.index, self.of)
    }

    /// The rows of this part, in pieces of a tile.
    fn row_pieces(&self, tile_rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(self.even(self.rows), tile_rows)
    }

    /// # Safety
    /// As for [`walk`].
    unsafe fn embed(&self, op: &Embed) {
        let variant = variant(&op.variants, self.rows);
        for rows in self.row_pieces(variant.tile_rows) {
            let args = EmbedArgs {
                tokens: op.args.tokens.wrapping_add(rows.start),
                out: op
                    .args
                    .out
                    .wrapping_add(rows.start * op.args.out_stride as usize),
                rows: rows.len() as u64,
                ..op.args
            };
            // SAFETY: the rows are the step's, and this thread's alone.
            unsafe { (variant.code)(&args) };
        }
    }

    /// # Safety
    /// As for [`walk`].
    unsafe fn rope_table(&self, op: &RopeTable) {
        let variant = variant(&op.variants, self.rows);
        for rows in self.row_pieces(variant.tile_rows) {
            let args = RopeTableArgs {
                positions: op.args.positions.wrapping_add(rows.start),
                out: op
                    .args
                    .out
                    .wrapping_add(rows.start * op.args.out_stride as usize),
                rows: rows.len() as u64,
                ..op.args
            };
            // SAFETY: the rows are the step's, and this thread's alone.
            unsafe { (variant.code)(&args) };
        }
    }

    /// # Safety
    /// As for [`walk`].
    unsafe fn region(&self, op: &Region) {
        let variant = variant(&op.variants, self.rows);
        let granules = op.cols.div_ceil(op.granule) as usize;
        // Whole rows where there are enough of them for everyone; else each row is cut.
        let (cuts, mine) = if self.rows >= self.of || granules == 1 {
            (1, self.even(self.rows))
        } else {
            (granules, self.even(self.rows * granules))
        };
        if cuts == 1 {
            let tile_cols = if op.granule == op.cols {
                op.cols
            } else {
                variant.tile_cols
            };
            for rows in pieces(mine, variant.tile_rows) {
                for cols in pieces(0..op.cols as usize, tile_cols as usize) {
                    // SAFETY: the rows are the step's, and this thread's alone.
                    unsafe { op.call(variant.code, rows.clone(), cols) };
                }
            }
            return;
        }
        let mut at = mine.start;
        while at < mine.end {
            let (row, first) = (at / cuts, at % cuts);
            let last = cuts.min(first + mine.end - at);
            let granule = op.granule as usize;
            let cols = first * granule..(last * granule).min(op.cols as usize);
            // SAFETY: the row is the step's, and its columns are this thread's alone.
            unsafe { op.call(variant.code, row..row + 1, cols) };
            at += last - first;
        }
    }

    /// # Safety
    /// As for [`walk`].
    unsafe fn matmul(&self, op: &MatMul) {
        let variant = variant(&op.variants, self.rows);
        let row_tiles = self.rows.div_ceil(variant.tile_rows) as u64;
        let tile_rows = self.rows.min(variant.tile_rows) as u64;
        let total = op
            .segments
            .iter()
            .map(|s| s.units(row_tiles) * s.unit_cost(op.k, tile_rows))
            .sum();
        let mut before = 0;
        for (segment, code) in op.segments.iter().zip(&variant.code) {
            let units = segment.units(row_tiles);
            let cost = segment.unit_cost(op.k, tile_rows);
            let bound =
                |part: usize| bound_in_run(units, cost, before, part as u64, self.of as u64, total);
            let mine = bound(self.index)..bound(self.index + 1);
            before += units * cost;
            for rectangle in rectangles(mine, row_tiles, variant.tile_cols / segment.granule) {
                let col0 = rectangle.granules.start * segment.granule;
                let cols = (rectangle.granules.end * segment.granule).min(segment.features) - col0;
                for row_tile in rectangle.row_tiles {
                    let row0 = row_tile as usize * variant.tile_rows;
                    let tile = Tile {
                        row0,
                        rows: (self.rows - row0).min(variant.tile_rows),
                        col0,
                        cols,
                        weight_row: col0,
                        index: None,
                    };
                    // SAFETY: rows and columns are the launch's, and this thread's alone.
                    unsafe { self.tile(op, variant, (segment, code), &tile) };
                }
            }
        }
    }

    /// # Safety
    /// The tile's rows and columns are the launch's, and its variant's size at most; the epilogue stores what belongs to
    /// them, which is this thread's alone. Rows by an index are rows of x.
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
        // SAFETY: the tile is this thread's memory and holds tile_rows * tile_cols elements; the caller's promise.
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

    /// Chooses the experts of this part's tokens. Who is last lists the pairs: with few tokens the first thread alone does
    /// all.
    ///
    /// # Safety
    /// As for [`walk`].
    unsafe fn route(
        &self,
        op: &Route,
        launch: usize,
        member: &Member<'_>,
        routed: &Routed,
    ) -> Result<(), Poisoned> {
        let alone = self.rows <= ROUTED_ALONE || self.of == 1;
        let mine = match alone {
            true if self.index == 0 => 0..self.rows,
            true => return Ok(()),
            false => self.even(self.rows),
        };
        let mut bad = u64::MAX;
        let args = RouteArgs {
            logits: op
                .args
                .logits
                .wrapping_add(mine.start * op.args.logits_stride as usize),
            weights: op
                .args
                .weights
                .wrapping_add(mine.start * op.args.weights_stride as usize),
            chosen: op
                .args
                .chosen
                .wrapping_add(mine.start * op.args.chosen_stride as usize),
            rows: mine.len() as u64,
            bad: &mut bad,
            ..op.args
        };
        // SAFETY: the rows are the step's, and this thread's alone.
        unsafe { (variant(&op.variants, self.rows).code)(&args) };
        if bad != u64::MAX {
            let token = mine.start as u64 + bad;
            let found = (launch as u64) << 32 | token;
            routed.bad.fetch_min(found, Ordering::Relaxed);
        }
        if !alone {
            member.meet()?;
        }
        if self.index != 0 {
            return Ok(());
        }
        let used = op.args.used as usize;
        let slots = Rows {
            start: op.args.chosen,
            stride: op.args.chosen_stride as usize,
            cols: used,
        };
        // SAFETY: the buffers are of these sizes, all rows have been written, and the other threads wait for what depends
        // on this launch; experts are below their number.
        unsafe {
            let tokens = std::slice::from_raw_parts_mut(op.tokens, self.rows * used);
            let starts = std::slice::from_raw_parts_mut(op.starts, op.args.experts as usize + 1);
            list_pairs(&slots, self.rows, tokens, starts);
        }
        Ok(())
    }

    /// Units of work are those of a matmul for each expert that has any rows.
    ///
    /// # Safety
    /// As for [`walk`].
    unsafe fn expert_matmul(&self, op: &ExpertMatMul, routed: &Routed) {
        let variant = variant(&op.product.variants, self.rows);
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
        let row_tiles = |expert: &Expert| expert.rows.div_ceil(variant.tile_rows) as u64;
        let unit_cost = |segment: &Segment, expert: &Expert| {
            segment.unit_cost(op.product.k, expert.rows.min(variant.tile_rows) as u64)
        };
        let cost = |expert: Expert| -> u64 {
            let of = |s: &Segment| s.units(row_tiles(&expert)) * unit_cost(s, &expert);
            op.product.segments.iter().map(of).sum()
        };
        let total = experts().map(cost).sum();
        if self.index == 0 {
            let bytes: u64 = op.product.segments.iter().map(Segment::bytes).sum();
            let read = bytes * experts().count() as u64;
            routed.expert_bytes.fetch_add(read, Ordering::Relaxed);
        }
        let mut before = 0;
        for expert in experts() {
            let tiles = row_tiles(&expert);
            for (segment, code) in op.product.segments.iter().zip(&variant.code) {
                let (units, cost) = (segment.units(tiles), unit_cost(segment, &expert));
                let bound = |part: usize| {
                    bound_in_run(units, cost, before, part as u64, self.of as u64, total)
                };
                let mine = bound(self.index)..bound(self.index + 1);
                before += units * cost;
                for rectangle in rectangles(mine, tiles, variant.tile_cols / segment.granule) {
                    let col0 = rectangle.granules.start * segment.granule;
                    let cols =
                        (rectangle.granules.end * segment.granule).min(segment.features) - col0;
                    for row_tile in rectangle.row_tiles {
                        let done = row_tile as usize * variant.tile_rows;
                        let tile = Tile {
                            row0: expert.first + done,
                            rows: (expert.rows - done).min(variant.tile_rows),
                            col0,
                            cols,
                            weight_row: expert.index * segment.features + col0,
                            index: op.index,
                        };
                        // SAFETY: rows and columns are the launch's, and this thread's alone; tokens of the list are
                        // rows of x.
                        unsafe { self.tile(&op.product, variant, (segment, code), &tile) };
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`walk`].
    unsafe fn attention(&self, op: &Attention, program: &Program, step: &StepView<'_>) {
        let variant = variant(&op.variants, self.rows);
        let chunking = &program.chunkings[variant.code.chunking];
        let chunks = &chunking.chunks;
        // A unit is a chunk's tokens for as many heads as a tile holds; units of one set of heads follow one another.
        let unit_heads = variant.tile_cols / op.head_dim;
        let head_sets = op.heads.div_ceil(unit_heads);
        let bound =
            |part: usize| bound_in_groups(&chunking.ends, head_sets, part as u64, self.of as u64);
        for unit in bound(self.index)..bound(self.index + 1) {
            let head0 = unit / chunks.len() as u64 * unit_heads;
            let heads = unit_heads.min(op.heads - head0);
            let chunk = chunks[(unit % chunks.len() as u64) as usize];
            let args = AttentionArgs {
                q: op.q.wrapping_add(chunk.row0 * op.q_stride as usize),
                q_stride: op.q_stride,
                out: self.tile,
                out_stride: variant.tile_cols,
                keys: op.keys,
                values: op.values,
                block_stride: op.block_stride,
                table: step.tables[op.group][chunk.sequence],
                position: chunk.position,
                tokens: chunk.rows as u64,
                head0,
                heads,
                group_size: op.group_size,
                head_dim: op.head_dim,
                window: op.window,
                scale: op.scale,
            };
            // SAFETY: the chunk's rows are the step's, its table covers its positions, the tile is this thread's, and
            // the epilogue stores what belongs to these rows and heads, which are this thread's alone.
            unsafe {
                (variant.code.micro)(&args);
                (variant.code.epilogue)(
                    op.operands.as_ptr(),
                    self.tile,
                    chunk.row0 as u64,
                    chunk.rows as u64,
                    head0 * op.head_dim,
                    heads * op.head_dim,
                );
            }
        }
    }
}

/// Tokens up to which one thread routes alone: less than the others' waiting once more would take.
const ROUTED_ALONE: usize = 4;

/// An expert with any rows: its part of the list of pairs.
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

impl Region {
    /// # Safety
    /// As for [`walk`].
    unsafe fn call(&self, code: RegionFn, rows: Range<usize>, cols: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            code(
                self.operands.as_ptr(),
                std::ptr::null_mut(),
                rows.start as u64,
                rows.len() as u64,
                cols.start as u64,
                cols.len() as u64,
            );
        }
    }
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
