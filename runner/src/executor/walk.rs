//! One thread's way through a program: its part of each launch, meeting the others where launches depend on one another.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kernels::abi::{AttentionArgs, EmbedArgs, RegionFn, RopeTableArgs, RouteArgs};

use super::barrier::Poisoned;
use super::part::Part;
use super::partition::{bound_in_groups, parts_each};
use super::program::{
    Attention, Embed, Extent, Program, Region, RopeTable, Route, Routed, Work, pieces, variant,
};
use super::route::{Rows, list_pairs};
use super::team::Member;

/// What a program needs to know of a step.
pub struct StepView<'a> {
    /// Its number among the steps that a team walks.
    pub number: u64,
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

impl StepView<'_> {
    /// The round ([`super::claims`]) of a launch, or of what comes behind the last.
    pub fn round(&self, program: &Program, launch: usize) -> u64 {
        1 + self.number * (program.launches.len() as u64 + 1) + launch as u64
    }
}

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
            member,
            round: step.round(program, i),
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
                Work::Route(op) => part.route(op, i, &program.routed)?,
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

impl Part<'_> {
    /// # Safety
    /// As for [`walk`].
    unsafe fn embed(&self, op: &Embed) {
        let variant = variant(&op.variants, self.rows);
        for rows in self.row_pieces(variant.tile_rows, op.args.out_stride) {
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
        for rows in self.row_pieces(variant.tile_rows, op.args.out_stride) {
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
        if self.rows >= self.member.of || granules == 1 {
            let tile_cols = if op.granule == op.cols {
                op.cols
            } else {
                variant.tile_cols
            };
            for rows in self.row_pieces(variant.tile_rows, op.cols) {
                for cols in pieces(0..op.cols as usize, tile_cols as usize) {
                    // SAFETY: the rows are the step's, and this thread's alone.
                    unsafe { op.call(variant.code, rows.clone(), cols) };
                }
            }
            return;
        }
        let mine = self.even(self.rows * granules);
        let mut at = mine.start;
        while at < mine.end {
            let (row, first) = (at / granules, at % granules);
            let last = granules.min(first + mine.end - at);
            let granule = op.granule as usize;
            let cols = first * granule..(last * granule).min(op.cols as usize);
            // SAFETY: the row is the step's, and its columns are this thread's alone.
            unsafe { op.call(variant.code, row..row + 1, cols) };
            at += last - first;
        }
    }

    /// Chooses the experts of this part's tokens. Who is last lists the pairs: with few tokens the first thread alone does
    /// all.
    ///
    /// # Safety
    /// As for [`walk`].
    unsafe fn route(&self, op: &Route, launch: usize, routed: &Routed) -> Result<(), Poisoned> {
        let alone = self.rows <= ROUTED_ALONE || self.member.of == 1;
        let mine = match alone {
            true if self.member.index == 0 => 0..self.rows,
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
            self.member.meet()?;
        }
        if self.member.index != 0 {
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

    /// # Safety
    /// As for [`walk`].
    unsafe fn attention(&self, op: &Attention, program: &Program, step: &StepView<'_>) {
        let variant = variant(&op.variants, self.rows);
        let chunking = &program.chunkings[variant.code.chunking];
        let chunks = &chunking.chunks;
        // A unit is a chunk's tokens for as many heads as a tile holds; units of one set of heads follow one another.
        let unit_heads = variant.tile_cols / op.head_dim;
        let head_sets = op.heads.div_ceil(unit_heads);
        let cost = chunking.ends.last().map_or(0, |cost| cost * head_sets);
        let of = self.member.of as u64;
        let each = parts_each(cost, of, ATTENTION_PART);
        let bound = |part: u64| bound_in_groups(&chunking.ends, head_sets, part, of * each);
        let units = self.member.parts(self.round, each);
        for unit in units.flat_map(|part| bound(part)..bound(part + 1)) {
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

/// What attention costs that is worth a part of its own, in positions seen ([`super::program::Chunking`])
/// by a tile's heads: some 10 us.
const ATTENTION_PART: u64 = 512;

/// Tokens up to which one thread routes alone: less than the others' waiting once more would take.
const ROUTED_ALONE: usize = 4;

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
