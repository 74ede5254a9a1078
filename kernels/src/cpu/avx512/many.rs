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
const ROWS: usize = 128;

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
    let of_a_row = parts.len() * starts_of::<F>();
    if raised::<F>() != 0 {
        for i in 0..rows.len() {
            // SAFETY: the caller's promise; there is room for the starts of all rows.
            unsafe {
                let (row, to) = (args.x_row(rows.start + i), starts.add(i * of_a_row));
                let parts = parts.clone();
                match starts_of::<F>() {
                    2 => starts_of_blocks::<true>(row, k, parts, raised::<F>(), to),
                    _ => starts_of_blocks::<false>(row, k, parts, raised::<F>(), to),
                }
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
            for i in 0..blocks {
                let at = w.add(i * block_bytes);
                let next = at.wrapping_add(2 * group_bytes);
                let (at, next) = ([at, at.add(second)], [next, next.wrapping_add(second)]);
                unpack_block::<F, 1, false>(at, panel, i * F::PARTS, next);
            }
            let mut row = rows.start;
            while row < rows.end {
                let tile = Tile {
                    w,
                    second,
                    panel,
                    blocks,
                    first: parts.start,
                    goes_on: parts.start > 0,
                    pair,
                    k,
                    x: args.x_rows(row),
                    starts: starts.wrapping_add((row - rows.start) * of_a_row),
                    starts_of_a_row: of_a_row,
                    widened: std::ptr::null(),
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                    fetches: false,
                    few: false,
                    is_far: false,
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
