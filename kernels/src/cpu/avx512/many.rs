//! Many tokens with Q8K rows, which share unpacked weights.
//!
//! 512 k of two groups are unpacked at a time, and met by all tokens before the next two groups' are: so of the tokens' rows there are 512 k in
//! work, which stay in the second-level cache for all groups of a call, and what their sums start from is as little. Copies of these, side by
//! side, cost more than they gain (NOTES.md, "Rows of 8 bits with a scale for 256").

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::part::{raised, unpack_block, vectors};
use super::quant::TOKENS;
use super::small::{Small, are_small, has_small_sums};
use super::tile::{Tile, starts_of};

use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Quants, starts_of_blocks};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a call from which on weights of more than 4 bits are unpacked once for all of them (NOTES.md, "Rows of 8 bits with a scale for
/// 256"): nibbles are as fast to unpack again.
pub(super) fn are_many<F: Format>(tokens: u64) -> bool {
    F::QUANTS != Quants::Nibbles && tokens >= 64
}

/// Parts of both groups that are unpacked at a time, at most.
const PANEL: usize = 16;

/// Tokens that share them, at most.
const ROWS: usize = 256;

/// Weights of a format times many rows of Q8K.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn matmul<F: Format>(args: &MatMulArgs) {
    let rows = args.rows as usize;
    let at_once = rows.div_ceil(rows.div_ceil(ROWS)).next_multiple_of(TOKENS);
    let parts = args.k as usize / BLOCK;
    for first in (0..rows).step_by(at_once) {
        let rows = first..rows.min(first + at_once);
        for part in (0..parts).step_by(PANEL) {
            // SAFETY: the caller's promise.
            unsafe { chunk::<F>(args, rows.clone(), part..parts.min(part + PANEL)) };
        }
    }
}

/// Some parts of all groups times up to [`ROWS`] rows: those before are in `out`, unless they are the first.
///
/// # Safety
/// As [`matmul`]; the parts are whole blocks, up to [`PANEL`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn chunk<F: Format>(args: &MatMulArgs, rows: Range<usize>, parts: Range<usize>) {
    let k = args.k as usize;
    let block_bytes = F::HEADER + F::PARTS * F::PART;
    let group_bytes = k / (F::PARTS * BLOCK) * block_bytes;
    let (first, blocks) = (parts.start / F::PARTS, parts.len() / F::PARTS);
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut panel = [const { MaybeUninit::<__m512i>::uninit() }; PANEL * vectors::<1>()];
    let panel: *mut __m512i = panel.as_mut_ptr().cast();
    let mut starts = MaybeUninit::<[i32; ROWS * PANEL * 2]>::uninit();
    let starts: *mut i32 = starts.as_mut_ptr().cast();
    let of_a_row = starts_of_a_row::<F>();
    let mut order = Order::default();
    if has_small_sums::<F>() {
        // SAFETY: the caller's promise; there is room for the starts of all rows.
        unsafe { order.fill::<F>(args, rows.clone(), &parts, starts) };
    } else if raised::<F>() != 0 {
        for i in 0..rows.len() {
            // SAFETY: the caller's promise; there is room for the starts of all rows.
            unsafe {
                let row = args.x_row(rows.start + i);
                starts_of_parts::<F>(row, k, parts.clone(), starts.add(i * of_a_row));
            }
        }
    }
    for g in (0..groups).step_by(2) {
        let pair = g + 1 < groups;
        let second = if pair { group_bytes } else { 0 };
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            let group = args.col0 as usize / GROUP + g;
            let w = args.w.add(group * group_bytes + first * block_bytes);
            // Behind the last groups come the first ones' next parts, or the next call's.
            let next = match (g + 2 < groups, parts.end < k / BLOCK) {
                (true, _) => w.wrapping_add(2 * group_bytes),
                (_, true) => args.w.wrapping_add(
                    args.col0 as usize / GROUP * group_bytes + (first + blocks) * block_bytes,
                ),
                _ => args.w.wrapping_add((group + 2) * group_bytes),
            };
            for i in 0..blocks {
                let (at, next) = (w.add(i * block_bytes), next.wrapping_add(i * block_bytes));
                let (at, next) = ([at, at.add(second)], [next, next.wrapping_add(second)]);
                unpack_block::<F, 1, false>(at, panel, i * F::PARTS, next);
            }
            let tile = Tile {
                w,
                second,
                panel,
                blocks,
                first: parts.start,
                goes_on: parts.start > 0,
                pair,
                k,
                x: [std::ptr::null(); TOKENS],
                starts,
                starts_of_a_row: of_a_row,
                widened: std::ptr::null(),
                out: args.out.add(g * GROUP),
                out_stride: args.out_stride as usize,
                fetches: false,
                few: false,
                is_far: false,
            };
            if has_small_sums::<F>() {
                // Each two groups' products fetch a share of the rows' next parts.
                let ahead = parts.end * BLOCK..k.min((parts.end + PANEL) * BLOCK);
                let (lines, pairs) = (ahead.len() / 64, groups.div_ceil(2));
                let line = |pair: usize| ahead.start + 64 * (lines * pair / pairs);
                order.run::<F>(&tile, line(g / 2)..line(g / 2 + 1));
                continue;
            }
            let mut row = rows.start;
            while row < rows.end {
                let tile = Tile {
                    x: args.x_rows(row),
                    starts: starts.wrapping_add((row - rows.start) * of_a_row),
                    out: tile.out.add(row * tile.out_stride),
                    ..tile
                };
                row += match rows.end - row {
                    1 => tile.run::<F, 1, 1, true, false>(),
                    2 | 3 => tile.run::<F, 1, 2, true, false>(),
                    4..TOKENS => tile.run::<F, 1, 4, true, false>(),
                    _ => tile.run::<F, 1, TOKENS, true, false>(),
                };
            }
        }
    }
}

/// From what sums of a row start from to the next one's.
pub(super) const fn starts_of_a_row<F: Format>() -> usize {
    PANEL * starts_of::<F>()
}

/// What sums of some parts of a row start from.
///
/// # Safety
/// The row has the parts, and `to` room for them.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn starts_of_parts<F: Format>(row: *const u8, k: usize, parts: Range<usize>, to: *mut i32) {
    // SAFETY: the caller's promise.
    unsafe {
        match starts_of::<F>() {
            2 => starts_of_blocks::<true>(row, k, parts, raised::<F>(), to),
            _ => starts_of_blocks::<false>(row, k, parts, raised::<F>(), to),
        }
    }
}

/// The rows of a chunk whose format may have small sums: first full tiles of rows that have, then the others.
struct Order {
    small: usize,
    count: usize,
    x: [*const u8; ROWS],
    /// Where results go, in elements.
    out: [usize; ROWS],
}

impl Default for Order {
    fn default() -> Order {
        Order {
            small: 0,
            count: 0,
            x: [std::ptr::null(); ROWS],
            out: [0; ROWS],
        }
    }
}

impl Order {
    /// Sorts rows by what they have in some parts, and writes what sums of these start from.
    ///
    /// # Safety
    /// The call's rows have the parts, and `starts` room for [`ROWS`].
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn fill<F: Format>(
        &mut self,
        args: &MatMulArgs,
        rows: Range<usize>,
        parts: &Range<usize>,
        starts: *mut i32,
    ) {
        let k = args.k as usize;
        let blocks = parts.start / F::PARTS..parts.end / F::PARTS;
        self.count = rows.len();
        let (mut front, mut back) = (0, self.count);
        for row in rows {
            // SAFETY: the caller's promise.
            let (x, is_small) = unsafe {
                let x = args.x_row(row);
                (x, are_small::<F>(x, k, blocks.clone()))
            };
            let at = if is_small { front } else { back - 1 };
            self.x[at] = x;
            self.out[at] = row * args.out_stride as usize;
            match is_small {
                true => front += 1,
                false => back -= 1,
            }
        }
        self.small = front / TOKENS * TOKENS;
        if raised::<F>() == 0 {
            return;
        }
        for (i, x) in self.x[..self.count].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let to = starts.add(i * starts_of_a_row::<F>());
                starts_of_parts::<F>(*x, k, parts.clone(), to);
            }
        }
    }

    /// All rows times unpacked weights: what `tile`, which is of no rows yet, says of these. These bytes of rows are fetched.
    ///
    /// # Safety
    /// As [`chunk`].
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format>(&self, tile: &Tile, fetch: Range<usize>) {
        let small = Small {
            x: &self.x[..self.small],
            rows: &self.out[..self.small],
            tile,
            fetch,
        };
        // SAFETY: the caller's promise.
        unsafe {
            small.run::<F>();
            for at in (self.small..self.count).step_by(TOKENS) {
                self.run_others::<F>(tile, at);
            }
        }
    }

    /// Rows number `at` and following, up to a tile, by way of a copy of their results so far.
    ///
    /// # Safety
    /// As [`chunk`]; there is the first.
    #[inline(never)]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run_others<F: Format>(&self, tile: &Tile, at: usize) {
        let cols = if tile.pair { 2 * GROUP } else { GROUP };
        let rows = at..self.count.min(at + TOKENS);
        let mut results = [[0f32; 2 * GROUP]; TOKENS];
        // SAFETY: the caller's promise.
        unsafe {
            if tile.goes_on {
                for (results, row) in results.iter_mut().zip(rows.clone()) {
                    let out = tile.out.add(self.out[row]);
                    std::ptr::copy_nonoverlapping(out, results.as_mut_ptr(), cols);
                }
            }
            let tile = Tile {
                // Behind the last row comes that one again.
                x: std::array::from_fn(|t| self.x[(at + t).min(self.count - 1)]),
                starts: tile.starts.wrapping_add(at * tile.starts_of_a_row),
                out: results.as_mut_ptr().cast(),
                out_stride: 2 * GROUP,
                ..*tile
            };
            match rows.len() {
                1 => tile.run::<F, 1, 1, true, false>(),
                2 => tile.run::<F, 1, 2, true, false>(),
                3 | 4 => tile.run::<F, 1, 4, true, false>(),
                _ => tile.run::<F, 1, TOKENS, true, false>(),
            };
        }
        for (results, row) in results.iter().zip(rows) {
            // SAFETY: the caller's promise.
            unsafe {
                let out = tile.out.add(self.out[row]);
                std::ptr::copy_nonoverlapping(results.as_ptr(), out, cols);
            }
        }
    }
}
