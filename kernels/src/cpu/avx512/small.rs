//! Full tiles of many tokens with Q8K rows, whose sums of products fit 16 bits: integer scales take half the operations that they take else.
//!
//! `vpmulld` takes the pipe that products take on AMD's cores, and is two operations on Intel's. Two sums of 16 bits, of parts that follow one
//! another or of a part's halves, are put side by side in a lane, and one `vpdpwssd` multiplies each with its scale and adds both. That
//! they fit is known from the activations alone, whose rows tell their bounds ([`DType::Q8K`]): nearly all do, since a block's scale is that
//! of its largest.
//!
//! Nothing but results and minima is stored here, and each token has one pointer, which all offsets of a block are near to.
//!
//! [`DType::Q8K`]: bundle_format::plan::DType::Q8K

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::{Q8K_BLOCK, q8k_bounds_offset, q8k_sums_offset};

use super::dot::{add_pairs, add_word};
use super::many::starts_of_a_row;
use super::part::{has_halves, part_of, raised, vectors};
use super::quant::TOKENS;
use super::tile::{Tile, opaque, starts_of};
use crate::cpu::avx2::quant::{Format, Quants, Scales};

/// Parts of a block.
const PARTS: usize = 8;

/// Whether sums of 32 products with Q8K rows, or of 16 where halves have scales, fit 16 bits but for few rows.
pub(super) const fn has_small_sums<F: Format>() -> bool {
    match F::QUANTS {
        Quants::Low => matches!(F::SCALES, Scales::Whole),
        _ => has_halves::<F>(),
    }
}

/// The bound of a block up to which all sums of products with weights of F fit: weights of 5 bits are up to 31, and 32 products are at most
/// half of the first bound times that; those of 6 bits are -32 .. 31, and 16 products at most the second bound times 32.
const fn most<F: Format>() -> i16 {
    match has_halves::<F>() {
        true => (i16::MAX as i32 / 32) as i16,
        false => (2 * i16::MAX as i32 / 31) as i16,
    }
}

/// Whether all sums of some blocks of a row of k quants are small.
///
/// # Safety
/// The row is Q8K and has them.
pub(super) unsafe fn are_small<F: Format>(
    row: *const u8,
    k: usize,
    mut blocks: Range<usize>,
) -> bool {
    let bounds = row.wrapping_add(q8k_bounds_offset(k as u32) as usize);
    blocks.all(|block| {
        // SAFETY: the caller's promise: each block has both bounds.
        let [of_32, of_16] = unsafe { bounds.add(4 * block).cast::<[i16; 2]>().read_unaligned() };
        let bound = if has_halves::<F>() { of_16 } else { of_32 };
        bound <= most::<F>()
    })
}

/// Full tiles of tokens whose sums of some blocks are small.
pub(super) struct Small<'a> {
    pub(super) x: &'a [*const u8],
    /// Where each token's results go, in elements behind the tile's.
    pub(super) rows: &'a [usize],
    /// The blocks of two groups, unpacked, and what all tokens' sums start from.
    pub(super) tile: &'a Tile,
    /// Bytes of rows that are fetched to the second level, for what comes next.
    pub(super) fetch: Range<usize>,
}

/// Sums of a block of a tile.
struct Sums {
    /// Of products, integer scales included.
    products: [__m512i; TOKENS],
    /// Two sums that come to each yet, in 16 bits, and their scales.
    last: [__m512i; TOKENS],
    scales: __m512i,
}

impl Sums {
    /// Adds the last sums of token `t`, scaled. In the order of the source, beside products: those of all tokens at once would wait for the
    /// products before them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    fn add_last(&mut self, t: usize) {
        // SAFETY: an operation of registers, which the level has.
        unsafe {
            asm!(
                "vpdpwssd {to}, {sums}, {scales}",
                to = inout(zmm_reg) self.products[t],
                sums = in(zmm_reg) self.last[t],
                scales = in(zmm_reg) self.scales,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

impl Small<'_> {
    /// Adds the products of the blocks to the results of all tokens.
    ///
    /// # Safety
    /// The rows have the blocks, results 16 columns, or 8 unless `pair`, and the panel is of F.
    #[inline(never)]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn run<F: Format>(&self) {
        const { assert!(F::PARTS == PARTS || !has_small_sums::<F>()) };
        let (x, _) = self.x.as_chunks::<TOKENS>();
        let (rows, _) = self.rows.as_chunks::<TOKENS>();
        let mut starts = self.tile.starts;
        for (x, rows) in x.iter().zip(rows) {
            for line in self.fetch.clone().step_by(64) {
                for x in x {
                    _mm_prefetch::<_MM_HINT_T1>(x.wrapping_add(line).cast());
                }
            }
            for block in 0..self.tile.blocks {
                let starts = starts.wrapping_add(block * PARTS * starts_of::<F>());
                // SAFETY: the caller's promise.
                unsafe { self.block::<F>(x, rows, block, starts) };
            }
            starts = starts.wrapping_add(TOKENS * starts_of_a_row::<F>());
        }
    }

    /// Adds a block's products.
    ///
    /// # Safety
    /// As [`Small::run`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn block<F: Format>(
        &self,
        x: &[*const u8; TOKENS],
        rows: &[usize; TOKENS],
        block: usize,
        starts: *const i32,
    ) {
        let zero = _mm512_setzero_si512();
        let tile = self.tile;
        let panel = tile.panel.wrapping_add(block * PARTS * vectors::<1>());
        let number = tile.first / PARTS + block;
        let mut mins = [zero; TOKENS];
        if F::HAS_PART_MINS {
            let at = opaque(q8k_sums_offset(tile.k as u32) as usize + 2 * PARTS * number);
            macro_rules! add {
                ($($i:literal)*) => {$(
                    // SAFETY: the caller's promise: rows have a sum of 16 bits for each 32.
                    unsafe {
                        let pairs = (*part_of::<1>(panel, $i)).pair_mins;
                        for (sum, x) in mins.iter_mut().zip(x) {
                            *sum = add_pairs::<{ 2 * $i }>(*sum, pairs, x.wrapping_add(at).cast());
                        }
                    }
                )*};
            }
            add!(0 2 4 6);
        }
        let x_block: [*const u8; TOKENS] = x.map(|x| x.wrapping_add(number * Q8K_BLOCK));
        let mut sums = Sums {
            products: [zero; TOKENS],
            last: [zero; TOKENS],
            scales: zero,
        };
        // SAFETY: the caller's promise.
        unsafe {
            if has_halves::<F>() {
                two::<F, false, 0>(&x_block, panel, starts, &mut sums);
                two::<F, true, 1>(&x_block, panel, starts, &mut sums);
                two::<F, true, 2>(&x_block, panel, starts, &mut sums);
                two::<F, true, 3>(&x_block, panel, starts, &mut sums);
                two::<F, true, 4>(&x_block, panel, starts, &mut sums);
                two::<F, true, 5>(&x_block, panel, starts, &mut sums);
                two::<F, true, 6>(&x_block, panel, starts, &mut sums);
                two::<F, true, 7>(&x_block, panel, starts, &mut sums);
            } else {
                two::<F, false, 0>(&x_block, panel, starts, &mut sums);
                two::<F, true, 2>(&x_block, panel, starts, &mut sums);
                two::<F, true, 4>(&x_block, panel, starts, &mut sums);
                two::<F, true, 6>(&x_block, panel, starts, &mut sums);
            }
        }
        for t in 0..TOKENS {
            sums.add_last(t);
        }
        let before = match (tile.goes_on || block > 0, tile.pair) {
            (false, _) => 0,
            (_, true) => 0xffff,
            (_, false) => 0xff,
        };
        let at = opaque(tile.k + 4 * number);
        let part = part_of::<1>(panel, 0);
        for t in 0..TOKENS {
            // SAFETY: the caller's promise; a row has a scale for each block.
            unsafe {
                let mut sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums.products[t]), (*part).d);
                if F::HAS_PART_MINS {
                    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(mins[t]), (*part).m, sum);
                }
                let scale = _mm512_set1_ps(*x[t].add(at).cast::<f32>());
                let out = tile.out.wrapping_add(rows[t]);
                let acc = _mm512_maskz_loadu_ps(before, out);
                let acc = _mm512_fmadd_ps(sum, scale, acc);
                match tile.pair {
                    true => _mm512_storeu_ps(out, acc),
                    false => _mm256_storeu_ps(out, _mm512_castps512_ps256(acc)),
                }
            }
        }
    }
}

/// Has the sums of parts `I` and `I + 1` of a block, or of the halves of part `I`, wait to be added. ADD: and adds those that wait.
///
/// # Safety
/// As [`Small::run`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn two<F: Format, const ADD: bool, const I: usize>(
    x: &[*const u8; TOKENS],
    panel: *const __m512i,
    starts: *const i32,
    sums: &mut Sums,
) {
    let mut both = [[_mm512_setzero_si512(); TOKENS]; 2];
    let words = if has_halves::<F>() { 4 } else { 8 };
    // SAFETY: the caller's promise.
    unsafe {
        if raised::<F>() != 0 {
            for (half, both) in both.iter_mut().enumerate() {
                for (t, sum) in both.iter_mut().enumerate() {
                    let at = t * starts_of_a_row::<F>() + I * starts_of::<F>() + half;
                    *sum = _mm512_set1_epi32(*starts.wrapping_add(at));
                }
            }
        }
        macro_rules! add_words {
            ($($j:literal)*) => {$(
                if $j < 2 * words {
                    let part = part_of::<1>(panel, I + $j / 8);
                    let word = (*part).words[$j % 8];
                    let sums_of = &mut both[usize::from($j >= words)];
                    for (sum, x) in sums_of.iter_mut().zip(x) {
                        *sum = add_word::<I, $j>(*sum, word, *x);
                    }
                    if ADD && $j < words {
                        let each = TOKENS / words;
                        for t in $j * each..($j + 1) * each {
                            sums.add_last(t);
                        }
                    }
                }
            )*};
        }
        add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        let [first, second] = both;
        for ((last, first), second) in sums.last.iter_mut().zip(first).zip(second) {
            *last = _mm512_mask_blend_epi16(0xaaaa_aaaa, first, _mm512_slli_epi32::<16>(second));
        }
        sums.scales = (*part_of::<1>(panel, I)).scales;
    }
}

#[cfg(test)]
mod tests {
    //! Against the scalar twin, tests/op_parity's other half: rows at the bounds, which random ones do not meet.

    use bundle_format::plan::{DType, Encoding, row_bytes};
    use half::f16;

    use super::*;
    use crate::abi::{MatMulArgs, MicroFn, id};
    use crate::cpu::avx2::quant as formats;
    use crate::cpu::{Level, lookup_at};
    use crate::pack::pack;
    use crate::quant::block_bytes;
    use crate::reference::q8k;

    const K: usize = 768;
    const FEATURES: usize = 24;

    /// Quants whose bounds are as large as a format's sums of 32 (or of 16) may be, or just beyond, in some places.
    fn row(number: usize, most: i32, len: usize) -> Vec<f32> {
        let mut state = number as u32 + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as i32
        };
        // Small numbers, but for one in a block: scales are 1.
        let mut row: Vec<i32> = (0..K).map(|_| next() % 21 - 10).collect();
        for block in row.chunks_mut(Q8K_BLOCK) {
            block[Q8K_BLOCK - 1] = 127;
        }
        let sum = match number % 5 {
            // Nothing special.
            0 => return row.into_iter().map(|x| x as f32).collect(),
            1 | 2 => most,
            _ => most + 1,
        };
        let sign = if number.is_multiple_of(2) { 1 } else { -1 };
        let at = next() as usize % (K / len) * len;
        let mut left = sum;
        for x in &mut row[at..at + len] {
            *x = left.min(127) * sign;
            left -= left.min(127);
        }
        assert_eq!(left, 0);
        row.into_iter().map(|x| x as f32).collect()
    }

    fn check<F: Format>(
        encoding: Encoding,
        most: i32,
        len: usize,
        weights: &[(u8, u8)],
        scales: Range<usize>,
        factors: &[usize],
    ) {
        let micro = id::matmul(encoding, DType::Q8K).expect("the pair is one");
        let find = |level| match lookup_at(level, micro).expect("it is there").func {
            MicroFn::MatMul(func) => func,
            _ => panic!("a matmul"),
        };
        let (scalar, wide) = (find(Level::Scalar), find(Level::Avx512));
        for &(quants, scale) in weights {
            let len_of_block = block_bytes(encoding);
            let mut w = vec![quants; FEATURES * K / 256 * len_of_block];
            for (i, block) in w.chunks_exact_mut(len_of_block).enumerate() {
                block[scales.clone()].fill(scale);
                for at in factors {
                    let factor = f16::from_f32(0.01 + i as f32 / 1024.0);
                    block[*at..*at + 2].copy_from_slice(&factor.to_le_bytes());
                }
            }
            let w = pack(encoding, FEATURES, K, &w);
            for tokens in [64, 77, 131] {
                let stride = row_bytes(DType::Q8K, K as u32) as usize;
                let mut x = vec![0u8; tokens * stride];
                let mut small = [0; 2];
                for (i, x) in x.chunks_exact_mut(stride).enumerate() {
                    q8k::quantise_row(&row(i, most, len), x);
                    // SAFETY: the row has three blocks.
                    let is_small = unsafe { are_small::<F>(x.as_ptr(), K, 0..3) };
                    assert_eq!(is_small, i % 5 < 3, "row {i}");
                    small[usize::from(is_small)] += 1;
                }
                assert!(small[0] > 8 && small[1] > 8, "{small:?}");
                let run = |func: unsafe fn(&MatMulArgs)| {
                    let mut out = vec![-1.0f32; tokens * FEATURES];
                    let args = MatMulArgs {
                        x: x.as_ptr(),
                        x_stride: stride as u64,
                        index: std::ptr::null(),
                        w: w.as_ptr(),
                        out: out.as_mut_ptr(),
                        out_stride: FEATURES as u64,
                        k: K as u64,
                        rows: tokens as u64,
                        col0: 0,
                        cols: FEATURES as u64,
                    };
                    // SAFETY: buffers of these sizes; the test has asked for the level.
                    unsafe { func(&args) };
                    out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                assert!(
                    run(wide) == run(scalar),
                    "{encoding:?} {quants:x} {scale:x} {tokens} tokens"
                );
            }
        }
    }

    #[test]
    fn sums_at_their_bounds_are_exact() {
        if !Level::Avx512.is_available() {
            println!("not run: this processor lacks AVX-512 VNNI");
            return;
        }
        // 31 and 0 times scales and minima of 63; scales are bytes 4 to 16.
        let weights = [(0xff, 0xff), (0, 0xff)];
        check::<formats::Q5_K>(Encoding::Q5_K, 1057, 32, &weights, 4..16, &[0, 2]);
        // 31 and -32, scales of -128 and 127.
        let weights = [(0xff, 0x80), (0, 0x80), (0, 0x7f)];
        check::<formats::Q6_K>(Encoding::Q6_K, 1023, 16, &weights, 192..208, &[208]);
        // -4 and 3, scales of -32 and 31.
        let weights = [(0, 0), (0xff, 0xff)];
        check::<formats::Q3_K>(Encoding::Q3_K, 1023, 16, &weights, 96..108, &[108]);
    }
}
