//! Quantised weights times Q8, Q8K and Q11 rows, by `vpdpbusd` and `vpdpwssd`.
//!
//! A tile is two groups of eight rows of weights, a half of a vector each, by up to [`TOKENS`] tokens. [`Format`]s unpack as
//! for AVX2, each group by itself. `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32
//! bits, without a bound on the sums but the lane's. Its first factor is weights: signed ones are raised, and sums start from minus what
//! that adds ([`each_slice`]).
//!
//! The quants of Q11 rows are 8 * high + low: the sums of the high bytes are shifted left by three before those of the low
//! ones come on top, or high bytes are multiplied with weights times 8 ([`is_joined`]). Signed weights whose halves have a scale each are multiplied with these in 16 bits instead ([`is_wide`]).

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::many;
use super::part::{has_halves, is_joined, is_wide, raised, unit, unpack_block, vectors};
use super::tile::{Tile, starts_of};
use super::wide::widen;
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, each_slice, has_exact_blocks, has_inner_sums};
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
pub(super) const TOKENS: usize = 8;

/// Tokens of the next tile where there are so many: a full one, or fewer where that makes the last ones larger.
const fn tile_of<F: Format, const BYTES: usize>(tokens: usize) -> usize {
    // Sums of blocks and minima besides are more than a full tile has registers for.
    let full = match has_inner_sums::<F>() && F::HAS_MIN && !has_exact_blocks::<F, BYTES>() {
        true => TOKENS - 1,
        false => TOKENS,
    };
    match tokens {
        ..=TOKENS => tokens,
        _ => tokens.div_ceil(tokens.div_ceil(full)),
    }
}

/// Parts of both groups that are unpacked at a time where tokens share them, at most: 256 k.
const PANEL: usize = 8;

/// Whether weights are unpacked once for all tokens, to a panel, and not for each tile, which takes less than a chunk's ends do (NOTES.md,
/// "Factors of blocks"). With Q8K rows that is [`many`]'s.
const fn share<F: Format, const BYTES: usize>(tokens: usize) -> bool {
    is_wide::<F, BYTES>() && tokens > TOKENS
}

/// Weights of a format times rows whose quants have BYTES bytes: 1 in Q8 and Q8K, 2 in Q11.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    if args.rows == 1 {
        // SAFETY: the caller's promise.
        return unsafe { super::lone::matmul::<F, BYTES>(args) };
    }
    if has_exact_blocks::<F, BYTES>() && many::are_many::<F>(args.rows) {
        // SAFETY: the caller's promise.
        return unsafe { many::matmul::<F>(args) };
    }
    // SAFETY: the caller's promise.
    unsafe {
        match is_joined::<F, BYTES>() && is_amd() {
            true => each_rows::<F, BYTES, true>(args, raised::<F>()),
            false if is_wide::<F, BYTES>() => each_rows::<F, BYTES, false>(args, 0),
            false => each_rows::<F, BYTES, false>(args, unit::<F, BYTES>()),
        }
    }
}

/// All rows of a call of several, whose sums start from `-unit` times those of activations. JOINED: both bytes of Q11 make one sum, as
/// the format allows. That leaves registers free, which is what Zen 4 gains from; Intel's cores have two pipes for products, which wait for
/// chains of as many (NOTES.md, "Factors of blocks").
///
/// # Safety
/// As [`matmul`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn each_rows<F: Format, const BYTES: usize, const JOINED: bool>(
    args: &MatMulArgs,
    unit: i32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let run = |rows, starts| slice::<F, BYTES, JOINED>(args, rows, starts);
        match has_halves::<F>() {
            true => each_slice::<F, BYTES, true>(args, unit, run),
            false => each_slice::<F, BYTES, false>(args, unit, run),
        }
    }
}

/// Some of the tile's rows, with what their sums start from.
///
/// # Safety
/// As [`matmul`]; `starts` has a number for each block of the rows if the format is raised.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn slice<F: Format, const BYTES: usize, const JOINED: bool>(
    args: &MatMulArgs,
    rows: Range<usize>,
    starts: *const i32,
) {
    let bytes = args.k as usize / BLOCK * rows.len().next_multiple_of(2) * size_of::<__m512i>();
    // One tile, whose rows are widened once for all groups.
    if is_wide::<F, BYTES>() && (2..=TOKENS).contains(&rows.len()) && bytes <= ROOM {
        // SAFETY: the caller's promise.
        return unsafe { widened::<F, BYTES>(args, rows, starts) };
    }
    // SAFETY: the caller's promise.
    unsafe { groups::<F, BYTES, JOINED>(args, rows, starts, std::ptr::null()) };
}

/// Bytes of rows that are widened at once, at most: eight of 4096 quants.
const ROOM: usize = 64 * 1024;

/// [`slice`] of a tile of rows that fit.
///
/// # Safety
/// As there.
#[inline(never)]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn widened<F: Format, const BYTES: usize>(
    args: &MatMulArgs,
    rows: Range<usize>,
    starts: *const i32,
) {
    let mut pairs = MaybeUninit::<[__m512i; ROOM / size_of::<__m512i>()]>::uninit();
    let pairs = pairs.as_mut_ptr().cast::<__m512i>();
    let tokens = rows.len();
    // SAFETY: the caller's promise.
    let x: [*const u8; TOKENS] = unsafe { args.x_rows(rows.start) };
    for b in 0..args.k as usize / BLOCK {
        // SAFETY: there is room for the rows, which have the block.
        unsafe {
            let at = x.map(|x| x.add(b * BYTES * BLOCK));
            widen(at, tokens, pairs.add(b * tokens.next_multiple_of(2)));
        }
    }
    // SAFETY: the caller's promise.
    unsafe { groups::<F, BYTES, false>(args, rows, starts, pairs) };
}

/// All groups times some rows, `widened` if that is not null.
///
/// # Safety
/// As [`slice`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn groups<F: Format, const BYTES: usize, const JOINED: bool>(
    args: &MatMulArgs,
    rows: Range<usize>,
    starts: *const i32,
    widened: *const __m512i,
) {
    let blocks = args.k as usize / (F::PARTS * BLOCK);
    let block_bytes = F::HEADER + F::PARTS * F::PART;
    let group_bytes = blocks * block_bytes;
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut panel = [const { MaybeUninit::<__m512i>::uninit() }; PANEL * vectors::<2>()];
    let shared = share::<F, BYTES>(rows.len());
    let step = if shared { PANEL / F::PARTS } else { blocks };
    let few = rows.len() <= TOKENS;
    let is_far = is_amd() && few;
    let starts_of_a_row = args.k as usize / BLOCK * starts_of::<F>();
    for g in (0..groups).step_by(2) {
        let pair = g + 1 < groups;
        let second = if pair { group_bytes } else { 0 };
        for block in (0..blocks).step_by(step) {
            let count = step.min(blocks - block);
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let w = args.w.add((first + g) * group_bytes + block * block_bytes);
                if shared {
                    for i in 0..count {
                        let at = w.add(i * block_bytes);
                        let next = at.wrapping_add(2 * group_bytes);
                        let next = [next, next.wrapping_add(second)];
                        let to = panel.as_mut_ptr().cast();
                        let at = [at, at.add(second)];
                        unpack_block::<F, BYTES, JOINED>(at, to, i * F::PARTS, next);
                    }
                }
                let mut row = rows.start;
                while row < rows.end {
                    let tile = Tile {
                        w,
                        second,
                        panel: panel.as_ptr().cast(),
                        blocks: count,
                        first: block * F::PARTS,
                        goes_on: block > 0,
                        pair,
                        k: args.k as usize,
                        x: args.x_rows(row),
                        starts: starts.wrapping_add((row - rows.start) * starts_of_a_row),
                        starts_of_a_row,
                        widened,
                        out: args.out.add(row * args.out_stride as usize + g * GROUP),
                        out_stride: args.out_stride as usize,
                        fetches: row == rows.start,
                        few,
                        is_far,
                    };
                    let left = rows.end - row;
                    let tokens = if shared {
                        left
                    } else {
                        tile_of::<F, BYTES>(left)
                    };
                    row += match (shared, tokens) {
                        (true, 1) => tile.run::<F, BYTES, 1, true, JOINED>(),
                        (true, 2 | 3) => tile.run::<F, BYTES, 2, true, JOINED>(),
                        (true, 4..TOKENS) => tile.run::<F, BYTES, 4, true, JOINED>(),
                        (true, _) => tile.run::<F, BYTES, TOKENS, true, JOINED>(),
                        (false, 1) => tile.run::<F, BYTES, 1, false, JOINED>(),
                        (false, 2) => tile.run::<F, BYTES, 2, false, JOINED>(),
                        (false, 3) => tile.run::<F, BYTES, 3, false, JOINED>(),
                        (false, 4) => tile.run::<F, BYTES, 4, false, JOINED>(),
                        (false, 5) => tile.run::<F, BYTES, 5, false, JOINED>(),
                        (false, 6) => tile.run::<F, BYTES, 6, false, JOINED>(),
                        (false, 7) => tile.run::<F, BYTES, 7, false, JOINED>(),
                        (false, _) => tile.run::<F, BYTES, TOKENS, false, JOINED>(),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bundle_format::plan::{DType, Encoding, row_bytes};

    use super::*;
    use crate::cpu::Level;
    use crate::cpu::avx2::quant as formats;
    use crate::pack::pack;
    use crate::quant::row_bytes as packed_row;
    use crate::reference::q11;

    /// Both ways of multiplying Q11's bytes have the same bits, whichever this processor takes.
    fn check<F: Format>(encoding: Encoding) {
        assert!(is_joined::<F, 2>());
        let (k, features) = (512, 24);
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let bytes = features as u64 * packed_row(encoding, k as u64).expect("whole blocks");
        // Without a byte of ones: factors are finite.
        let w: Vec<u8> = (0..bytes).map(|_| next() as u8 & 0x3f).collect();
        let w = pack(encoding, features, k, &w);
        let stride = row_bytes(DType::Q11, k as u32) as usize;
        for rows in 1..=19 {
            let mut x = vec![0u8; rows * stride];
            for (i, row) in x.chunks_exact_mut(stride).enumerate() {
                let values: Vec<f32> = (0..k)
                    .map(|_| (next() & 0xffff) as f32 / 32768.0 - 1.0)
                    // Some rows have the largest quants only.
                    .map(|x| if i % 3 == 2 { x.signum() } else { x })
                    .collect();
                q11::quantise_row(&values, row);
            }
            let run = |joined: bool| {
                let mut out = vec![-1.0f32; rows * features];
                let args = MatMulArgs {
                    x: x.as_ptr(),
                    x_stride: stride as u64,
                    index: std::ptr::null(),
                    w: w.as_ptr(),
                    out: out.as_mut_ptr(),
                    out_stride: features as u64,
                    k: k as u64,
                    rows: rows as u64,
                    col0: 0,
                    cols: features as u64,
                };
                // SAFETY: buffers of these sizes; the test has asked for the level.
                unsafe {
                    match joined {
                        true => each_rows::<F, 2, true>(&args, raised::<F>()),
                        false => each_rows::<F, 2, false>(&args, unit::<F, 2>()),
                    }
                }
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let joined = run(true);
            assert_eq!(joined, run(false), "{encoding:?}, {rows} rows");
            assert!(joined.iter().any(|bits| *bits != 0));
        }
    }

    #[test]
    fn joined_bytes_have_the_bits_of_bytes_apart() {
        if !Level::Avx512.is_available() {
            println!("not run: this processor lacks AVX-512 VNNI");
            return;
        }
        check::<formats::Q4_0>(Encoding::Q4_0);
        check::<formats::Q4_1>(Encoding::Q4_1);
        check::<formats::Q5_0>(Encoding::Q5_0);
        check::<formats::Q5_1>(Encoding::Q5_1);
        check::<formats::MXFP4>(Encoding::MXFP4);
        check::<formats::Q4_K>(Encoding::Q4_K);
        check::<formats::Q5_K>(Encoding::Q5_K);
    }
}
