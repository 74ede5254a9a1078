//! What exact sums of products start from where weights are raised to be unsigned: `sum of (w + r) x - r sum of x` is the sum of w x.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Format, has_exact_blocks, q8k_factors};
use crate::abi::MatMulArgs;
use crate::quant::BLOCK;

/// Starts that are made at a time, at most: 64 KiB of the stack, rows of half a million quants.
const ROOM: usize = 16 * 1024;

/// Starts of most calls for few tokens, which need not touch as many pages of the stack.
const FEW: usize = 1024;

/// Rows whose starts are made at a time are a multiple of this, so that tiles are full.
const FULL: usize = 8;

/// Calls `run` with ranges of a call's rows that together are all of them, and, unless `unit` is 0, with `-unit` times the sum of
/// the quants of each block of those rows, or with HALVES of each half of a block, a row after the other.
///
/// # Safety
/// The call's rows hold quants of BYTES bytes, and are Q8K where F [has exact blocks](has_exact_blocks).
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn each_slice<F: Format, const BYTES: usize, const HALVES: bool>(
    args: &MatMulArgs,
    unit: i32,
    run: impl Fn(Range<usize>, *const i32),
) {
    // SAFETY: the caller's promise.
    unsafe {
        match has_exact_blocks::<F, BYTES>() {
            true => each::<BYTES, HALVES, true>(args, unit, run),
            false => each::<BYTES, HALVES, false>(args, unit, run),
        }
    }
}

/// [`each_slice`] of rows that have the quants' own SUMS (Q8K), or scaled ones.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn each<const BYTES: usize, const HALVES: bool, const SUMS: bool>(
    args: &MatMulArgs,
    unit: i32,
    run: impl Fn(Range<usize>, *const i32),
) {
    let rows = args.rows as usize;
    if unit == 0 {
        run(0..rows, std::ptr::null());
    } else if rows * of_a_row::<HALVES>(args.k) <= FEW {
        let mut starts = MaybeUninit::<[i32; FEW]>::uninit();
        let starts = starts.as_mut_ptr().cast();
        // SAFETY: the caller's promise; there is room for the starts of all rows.
        unsafe { of_rows::<BYTES, HALVES, SUMS>(args, 0..rows, unit, starts) };
        run(0..rows, starts);
    } else {
        // SAFETY: the caller's promise.
        unsafe { each_large_slice::<BYTES, HALVES, SUMS>(args, unit, &run) };
    }
}

/// Starts of a row of k quants.
const fn of_a_row<const HALVES: bool>(k: u64) -> usize {
    k as usize / BLOCK * (1 + HALVES as usize)
}

/// [`each_slice`] of a raised format and more rows.
///
/// # Safety
/// As there.
#[inline(never)]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn each_large_slice<const BYTES: usize, const HALVES: bool, const SUMS: bool>(
    args: &MatMulArgs,
    unit: i32,
    run: &dyn Fn(Range<usize>, *const i32),
) {
    let rows = args.rows as usize;
    let of_a_row = of_a_row::<HALVES>(args.k);
    let mut stack = MaybeUninit::<[i32; ROOM]>::uninit();
    let mut heap = Vec::<i32>::new();
    let starts = match of_a_row <= ROOM {
        true => stack.as_mut_ptr().cast::<i32>(),
        false => {
            heap.reserve_exact(of_a_row);
            heap.as_mut_ptr()
        }
    };
    let at_once = match ROOM / of_a_row {
        few @ ..FULL => few.max(1),
        many => many / FULL * FULL,
    };
    for first in (0..rows).step_by(at_once) {
        let slice = first..rows.min(first + at_once);
        // SAFETY: the caller's promise; there is room for the starts of `at_once` rows.
        unsafe { of_rows::<BYTES, HALVES, SUMS>(args, slice.clone(), unit, starts) };
        run(slice, starts);
    }
}

/// The starts of some rows.
///
/// # Safety
/// As [`of_row`] or [`of_sums`], of each.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn of_rows<const BYTES: usize, const HALVES: bool, const SUMS: bool>(
    args: &MatMulArgs,
    rows: Range<usize>,
    unit: i32,
    starts: *mut i32,
) {
    let k = args.k as usize;
    for (i, row) in rows.enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let (row, starts) = (args.x_row(row), starts.add(i * of_a_row::<HALVES>(args.k)));
            match (HALVES, SUMS) {
                (true, _) => of_halves::<BYTES>(row, k, unit, starts),
                (false, true) => starts_of_blocks::<false>(row, k, 0..k / BLOCK, unit, starts),
                (false, false) => of_row::<BYTES>(row, k, unit, starts),
            }
        }
    }
}

/// The starts of a row of k quants, Q8 or Q11.
///
/// Such a row has the scaled sum of each block, not the sum. The quotient of that and the scale is the sum but for errors far below a half:
/// the estimate of 1 / scale has 11 bits (`vrcpps`), 22 after a step of Newton's method, and sums are below 2^15.
///
/// # Safety
/// The row holds them; `starts` has room for one a block.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn of_row<const BYTES: usize>(row: *const u8, k: usize, unit: i32, starts: *mut i32) {
    let blocks = k / BLOCK;
    // SAFETY: the quants of a row are followed by a scale and a sum for each 32.
    let (scales, sums) = unsafe {
        let scales = row.add(BYTES * k).cast::<f32>();
        (scales, scales.add(blocks))
    };
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let (least, most) = (_mm256_set1_ps(LEAST), _mm256_set1_ps(1.0 / LEAST));
    for b in (0..blocks).step_by(8) {
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((blocks - b) as i32), lanes);
        // SAFETY: lanes behind the last block are neither read nor written.
        unsafe {
            let scale = _mm256_maskload_ps(scales.add(b), mask);
            let sum = _mm256_maskload_ps(sums.add(b), mask);
            let usual = _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_GE_OQ>(scale, least),
                _mm256_cmp_ps::<_CMP_LE_OQ>(scale, most),
            );
            let zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(scale, _mm256_setzero_ps());
            if _mm256_movemask_ps(_mm256_or_ps(usual, zero)) != 0xff {
                return by_quants::<BYTES>(row, k, unit, starts);
            }
            let estimate = _mm256_rcp_ps(scale);
            let error = _mm256_fnmadd_ps(scale, estimate, _mm256_set1_ps(2.0));
            let quotient = _mm256_mul_ps(sum, _mm256_mul_ps(estimate, error));
            // All quants of a block whose scale is 0 are 0.
            let sum = _mm256_and_si256(_mm256_cvtps_epi32(quotient), _mm256_castps_si256(usual));
            let start = _mm256_mullo_epi32(sum, _mm256_set1_epi32(-unit));
            // Where all lanes count: on AMD's cores a masked store takes as long as all else here.
            match blocks - b {
                8.. => _mm256_storeu_si256(starts.add(b).cast(), start),
                _ => _mm256_maskstore_epi32(starts.add(b), mask, start),
            }
        }
    }
}

/// As [`of_row`], of some blocks of a Q8K row, which has the sums, whole eights; or with HALVES [`of_halves`].
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn starts_of_blocks<const HALVES: bool>(
    row: *const u8,
    k: usize,
    blocks: Range<usize>,
    unit: i32,
    starts: *mut i32,
) {
    if HALVES {
        // SAFETY: the caller's promise.
        return unsafe {
            of_halves::<1>(
                row.add(blocks.start * BLOCK),
                blocks.len() * BLOCK,
                unit,
                starts,
            )
        };
    }
    let (_, sums) = q8k_factors(row, k);
    for b in blocks.clone().step_by(8) {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = _mm256_cvtepi16_epi32(_mm_loadu_si128(sums.add(b).cast()));
            let values = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-unit));
            _mm256_storeu_si256(starts.add(b - blocks.start).cast(), values);
        }
    }
}

/// As [`of_row`], of each half of a block: a row has no such sums, so these are the quants'.
///
/// # Safety
/// As there; `starts` has room for two a block.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn of_halves<const BYTES: usize>(row: *const u8, k: usize, unit: i32, starts: *mut i32) {
    let blocks = k / BLOCK;
    for b in (0..blocks).step_by(4) {
        let most = blocks - 1 - b;
        // SAFETY: the row has the blocks, and `starts` room for two of each.
        unsafe {
            // Behind the last, that one again.
            let [first, second, third, fourth] =
                [0, 1, 2, 3].map(|i| fours::<BYTES>(row.add((b + i.min(most)) * BYTES * BLOCK)));
            // Lanes of the lower 128 bits have sums of first halves, in the order of blocks, those of the upper ones of second halves.
            let sums = _mm256_hadd_epi32(
                _mm256_hadd_epi32(first, second),
                _mm256_hadd_epi32(third, fourth),
            );
            let pairs = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let sums = _mm256_permutevar8x32_epi32(sums, pairs);
            let values = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-unit));
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(2 * (most as i32 + 1)), lanes);
            match most {
                3.. => _mm256_storeu_si256(starts.add(2 * b).cast(), values),
                _ => _mm256_maskstore_epi32(starts.add(2 * b), mask, values),
            }
        }
    }
}

/// The sums of both halves of a block of quants.
///
/// # Safety
/// `at` points at BYTES times 32 quants.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) unsafe fn half_sums<const BYTES: usize>(at: *const u8) -> [i32; 2] {
    // SAFETY: the caller's promise.
    let sums = unsafe { fours::<BYTES>(at) };
    // Each half's in its 128 bits.
    let sums = _mm256_hadd_epi32(sums, sums);
    let sums = _mm256_hadd_epi32(sums, sums);
    [
        _mm256_extract_epi32::<0>(sums),
        _mm256_extract_epi32::<4>(sums),
    ]
}

/// The sums of fours of a block of quants, a half's in its 128 bits.
///
/// # Safety
/// As [`half_sums`].
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn fours<const BYTES: usize>(at: *const u8) -> __m256i {
    let of = |byte: usize| {
        // SAFETY: the caller's promise.
        let x = unsafe { _mm256_loadu_si256(at.add(byte * BLOCK).cast()) };
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), x);
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    };
    match BYTES {
        2 => _mm256_add_epi32(_mm256_slli_epi32::<3>(of(0)), of(1)),
        _ => of(0),
    }
}

/// Scales from this to its inverse have normal estimates and quotients.
const LEAST: f32 = 1e-30;

/// [`of_row`] for a row with scales beyond what quotients are good for.
///
/// # Safety
/// As there.
#[cold]
unsafe fn by_quants<const BYTES: usize>(row: *const u8, k: usize, unit: i32, starts: *mut i32) {
    for b in 0..k / BLOCK {
        let byte = |plane: usize, i: usize| {
            // SAFETY: the caller's promise.
            i32::from(unsafe { *row.add((b * BYTES + plane) * BLOCK + i).cast::<i8>() })
        };
        let quant = |i: usize| match BYTES {
            1 => byte(0, i),
            _ => 8 * byte(0, i) + byte(1, i),
        };
        // SAFETY: the caller's promise.
        unsafe { *starts.add(b) = -unit * (0..BLOCK).map(quant).sum::<i32>() };
    }
}

#[cfg(test)]
mod tests {
    use bundle_format::plan::{DType, row_bytes};

    use super::super::{Q4_0, Q6_K};
    use super::*;
    use crate::cpu::Level;
    use crate::reference::{q8, q8k, q11};

    /// A row of activations.
    fn quantised<const BYTES: usize>(x: &[f32]) -> Vec<u8> {
        let dtype = [DType::Q8, DType::Q11][BYTES - 1];
        let mut row = vec![0; row_bytes(dtype, x.len() as u32) as usize];
        match dtype {
            DType::Q8 => q8::quantise_row(x, &mut row),
            _ => q11::quantise_row(x, &mut row),
        }
        row
    }

    /// Starts by quotients, and by quants.
    fn both<const BYTES: usize>(x: &[f32], unit: i32) -> [Vec<i32>; 2] {
        let row = quantised::<BYTES>(x);
        let (mut quick, mut exact) = (vec![0; x.len() / BLOCK], vec![0; x.len() / BLOCK]);
        // SAFETY: a row of so many quants, and room for a start a block; the test has asked for the level.
        unsafe {
            of_row::<BYTES>(row.as_ptr(), x.len(), unit, quick.as_mut_ptr());
            by_quants::<BYTES>(row.as_ptr(), x.len(), unit, exact.as_mut_ptr());
        }
        [quick, exact]
    }

    #[test]
    fn quotients_are_the_sums() {
        assert!(Level::Avx2.is_available(), "the tests need AVX2");
        // The largest sums, odd ones, zeros, and scales from the smallest to the largest.
        let value = |i: usize| match i / BLOCK % 5 {
            0 => 1.0,
            1 => -1.0,
            2 => 0.0,
            3 => ((i * 37) % 101) as f32 - 50.0,
            _ => ((i * 53) % 17) as f32 - 3.0,
        };
        for exponent in -38..=38 {
            let scale = 10f32.powi(exponent) / 101.0;
            for k in [32, 5 * 32, 8 * 32, 21 * 32] {
                let x: Vec<f32> = (0..k).map(|i| value(i) * scale).collect();
                for unit in [1, 8, 16] {
                    let [quick, exact] = both::<1>(&x, unit);
                    assert_eq!(quick, exact, "Q8, 10^{exponent}, k {k}");
                    let [quick, exact] = both::<2>(&x, unit);
                    assert_eq!(quick, exact, "Q11, 10^{exponent}, k {k}");
                    assert!(exact.iter().any(|start| *start != 0));
                }
            }
        }
    }

    /// The starts of halves, against sums of quants one by one.
    fn check_halves<const BYTES: usize>(x: &[f32], unit: i32) {
        let row = quantised::<BYTES>(x);
        let quant = |i: usize| {
            let at = i / BLOCK * BYTES * BLOCK + i % BLOCK;
            let high = i32::from(row[at] as i8);
            match BYTES {
                1 => high,
                _ => 8 * high + i32::from(row[at + BLOCK] as i8),
            }
        };
        let halves = x.len() / BLOCK * 2;
        let sum = |half: usize| {
            (half * BLOCK / 2..(half + 1) * BLOCK / 2)
                .map(quant)
                .sum::<i32>()
        };
        let expected: Vec<i32> = (0..halves).map(|half| -unit * sum(half)).collect();
        let mut found = vec![0; halves];
        // SAFETY: a row of so many quants, and room for two starts a block; the test has asked for the level.
        unsafe { of_halves::<BYTES>(row.as_ptr(), x.len(), unit, found.as_mut_ptr()) };
        assert_eq!(found, expected, "{BYTES} bytes, {halves} halves");
    }

    #[test]
    fn halves_are_the_sums() {
        assert!(Level::Avx2.is_available(), "the tests need AVX2");
        for k in [32, 96, 2048] {
            let rising = |i: usize| ((i * 37) % 101) as f32 - 50.0;
            let extreme = |i: usize| [1.0, -1.0][i / 16 % 2];
            for x in [
                (0..k).map(rising).collect::<Vec<f32>>(),
                (0..k).map(extreme).collect(),
            ] {
                check_halves::<1>(&x, 32);
                check_halves::<2>(&x, 4);
            }
        }
    }

    /// Q8K rows: their own sums, and those of halves, against sums of quants one by one.
    #[test]
    fn sums_of_q8k_are_the_rows() {
        assert!(Level::Avx2.is_available(), "the tests need AVX2");
        for (rows, k) in [(1, 256), (3, 1280), (70, 512)] {
            let stride = row_bytes(DType::Q8K, k as u32) as usize;
            let mut x = vec![0u8; rows * stride];
            for (n, row) in x.chunks_exact_mut(stride).enumerate() {
                let values: Vec<f32> = (0..k)
                    .map(|i| ((i * 37 + n * 11) % 101) as f32 - 40.0)
                    .collect();
                q8k::quantise_row(&values, row);
            }
            let args = MatMulArgs {
                x: x.as_ptr(),
                x_stride: stride as u64,
                index: std::ptr::null(),
                w: std::ptr::null(),
                out: std::ptr::null_mut(),
                out_stride: 0,
                k: k as u64,
                rows: rows as u64,
                col0: 0,
                cols: 0,
            };
            let check = |slice: Range<usize>, starts: *const i32, size: usize| {
                for (i, row) in slice.enumerate() {
                    for b in 0..k / size {
                        let quants = &x[row * stride + b * size..][..size];
                        let sum: i32 = quants.iter().map(|q| i32::from(*q as i8)).sum();
                        // SAFETY: so many starts of each row.
                        let start = unsafe { *starts.add(i * (k / size) + b) };
                        assert_eq!(start, -32 * sum, "row {row}, {b} of {size}");
                    }
                }
            };
            // SAFETY: rows of k quants; the test has asked for the level.
            unsafe {
                each_slice::<Q6_K, 1, false>(&args, 32, |rows, starts| check(rows, starts, BLOCK));
                each_slice::<Q6_K, 1, true>(&args, 32, |rows, starts| {
                    check(rows, starts, BLOCK / 2)
                });
            }
        }
    }

    /// Rows of ones, twos, ...: however many, each is met once, with its own starts.
    #[test]
    fn slices_are_all_rows() {
        assert!(Level::Avx2.is_available(), "the tests need AVX2");
        let sum = |row: usize| BLOCK as i32 * (row % 100 + 1) as i32;
        for (rows, k) in [
            (1, 32),
            (8, 2048),
            (65, 512),
            (33, 32 * 1024),
            (3, 32 * (ROOM + 5)),
        ] {
            let blocks = k / BLOCK;
            let stride = row_bytes(DType::Q8, k as u32) as usize;
            let mut x = vec![0u8; rows * stride];
            for (i, row) in x.chunks_exact_mut(stride).enumerate() {
                row[..k].fill((i % 100 + 1) as u8);
                for (b, factor) in row[k..].chunks_exact_mut(4).take(2 * blocks).enumerate() {
                    let value = if b < blocks { 0.5 } else { 0.5 * sum(i) as f32 };
                    factor.copy_from_slice(&value.to_le_bytes());
                }
            }
            let args = MatMulArgs {
                x: x.as_ptr(),
                x_stride: stride as u64,
                index: std::ptr::null(),
                w: std::ptr::null(),
                out: std::ptr::null_mut(),
                out_stride: 0,
                k: k as u64,
                rows: rows as u64,
                col0: 0,
                cols: 0,
            };
            for halves in [1, 2] {
                let met = std::cell::RefCell::new(Vec::new());
                let meet = |slice: Range<usize>, starts: *const i32| {
                    for (i, row) in slice.enumerate() {
                        let count = blocks * halves;
                        // SAFETY: a start a block, or two, of each row.
                        let starts =
                            unsafe { std::slice::from_raw_parts(starts.add(i * count), count) };
                        let expected = -8 * sum(row) / halves as i32;
                        assert!(
                            starts.iter().all(|start| *start == expected),
                            "row {row} of {rows}"
                        );
                        met.borrow_mut().push(row);
                    }
                };
                // SAFETY: rows of k quants; the test has asked for the level.
                unsafe {
                    match halves {
                        1 => each_slice::<Q4_0, 1, false>(&args, 8, meet),
                        _ => each_slice::<Q4_0, 1, true>(&args, 8, meet),
                    }
                }
                let all: Vec<usize> = (0..rows).collect();
                assert_eq!(
                    met.into_inner(),
                    all,
                    "{rows} rows of {k}, {halves} a block"
                );
            }
        }
    }
}
