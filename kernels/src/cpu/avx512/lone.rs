//! Quantised weights times one Q8, Q8K or Q11 row, which waits for memory: what counts is how many reads are under way. AMD's cores
//! run ahead of one ascending stream by themselves; Intel's stop at the end of a page, and have more under way with some
//! streams side by side. So a tile is one group, or some, in vectors of 256 bits; the instructions are those of wider ones.
//!
//! `vpdpbusd` takes unsigned bytes times signed ones: signed weights are raised.

use std::arch::x86_64::*;
use std::ops::Range;

use super::part::{has_halves, holds_scales, is_signed, raised, unit};
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{
    Format, Head, Scales, each_slice, has_exact_blocks, has_inner_sums, q8k_factors,
};
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// As [`super::quant::matmul`], of a call with one row.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        let run = |_: Range<usize>, starts| match is_amd() {
            true => run::<F, BYTES, true>(args, starts),
            false => run::<F, BYTES, false>(args, starts),
        };
        match has_halves::<F>() {
            true => each_slice::<F, BYTES, true>(args, unit::<F, BYTES>(), run),
            false => each_slice::<F, BYTES, false>(args, unit::<F, BYTES>(), run),
        }
    }
}

/// Groups that are read side by side, on Intel's cores: their own prefetching ends at a page, so that one stream
/// gets 20 GB/s where four get 36 (NOTES.md).
const STREAMS: usize = 4;

/// How far ahead of the part in work weights are fetched, in bytes. AMD's cores follow one stream by themselves, and reads further ahead
/// are in their way: it is only for where a page ends (NOTES.md, "One token: one stream").
const fn ahead_of(is_amd: bool) -> usize {
    if is_amd { 256 } else { 2048 }
}

/// Fetches what a part ahead holds. Measured (NOTES.md): AMD's cores do best with what goes past the second-level cache,
/// whose every victim else moves on to the third; Intel's can have three times the lines under way to the second-level cache
/// that they can to the first.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn prefetch<F: Format, const AMD: bool>(part: *const u8) {
    for line in 0..F::PART.div_ceil(64) {
        // Hints, which may point anywhere.
        match AMD {
            true => _mm_prefetch::<_MM_HINT_NTA>(part.wrapping_add(line * 64).cast()),
            false => _mm_prefetch::<_MM_HINT_T1>(part.wrapping_add(line * 64).cast()),
        }
    }
}

/// # Safety
/// As [`matmul`]; `starts` has a number for each block if the format is raised.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn run<F: Format, const BYTES: usize, const AMD: bool>(
    args: &MatMulArgs,
    starts: *const i32,
) {
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut g = 0;
    while g < groups {
        // SAFETY: the caller's promise: there are the groups.
        g += unsafe {
            match groups - g >= STREAMS && !AMD {
                true => some_groups::<F, BYTES, AMD, STREAMS>(args, starts, g),
                false => some_groups::<F, BYTES, AMD, 1>(args, starts, g),
            }
        };
    }
}

/// N groups from the call's `g`-th on, side by side; their number.
///
/// # Safety
/// As [`run`], and the call has the groups.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn some_groups<F: Format, const BYTES: usize, const AMD: bool, const N: usize>(
    args: &MatMulArgs,
    starts: *const i32,
    g: usize,
) -> usize {
    let blocks = args.k as usize / (F::PARTS * BLOCK);
    let block_bytes = F::HEADER + F::PARTS * F::PART;
    let group_bytes = blocks * block_bytes;
    let first = args.col0 as usize / GROUP + g;
    let row = Row {
        // SAFETY: the call has a row.
        quants: unsafe { args.x_row(0) },
        k: args.k as usize,
        starts,
    };
    let mut acc = [_mm256_setzero_ps(); N];
    for block in 0..blocks {
        let (mut inner, mut mins) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
        // With Q8K rows the block's sums of products and of minima.
        let mut exact = [[_mm256_setzero_si256(); 2]; N];
        // What is ahead of a group's last parts is in the group that takes its place.
        let ends = (block + 1) * block_bytes + ahead_of(AMD) > group_bytes;
        let ahead = ahead_of(AMD) + if ends { (N - 1) * group_bytes } else { 0 };
        // SAFETY: the caller promises the groups from `col0` on and a row of k; the parts are the block's.
        unsafe {
            let at = args.w.add(first * group_bytes + block * block_bytes);
            let heads: [Head; N] = std::array::from_fn(|n| F::head(at.add(n * group_bytes)));
            for i in 0..F::PARTS {
                let b = block * F::PARTS + i;
                let scale = match has_exact_blocks::<F, BYTES>() {
                    true => _mm256_setzero_ps(),
                    false => _mm256_set1_ps(row.factor(BYTES, b)),
                };
                for n in 0..N {
                    let part = at.add(n * group_bytes + F::HEADER + i * F::PART);
                    prefetch::<F, AMD>(part.wrapping_add(ahead));
                    let (head, acc) = (&heads[n], &mut acc[n]);
                    if has_exact_blocks::<F, BYTES>() {
                        let [isum, imin] = &mut exact[n];
                        *isum = _mm256_add_epi32(*isum, row.isum::<F, BYTES>(part, b));
                        if i % 2 == 1
                            && let Some(mins) = F::part_mins(part.wrapping_sub(F::PART), part)
                        {
                            *imin = _mm256_dpwssd_epi32(*imin, mins, row.sums_of(b - 1));
                        }
                        if let Some(min) = row.imin::<F, BYTES>(part, b) {
                            *imin = _mm256_add_epi32(*imin, min);
                        }
                        continue;
                    }
                    let isum = _mm256_cvtepi32_ps(row.isum::<F, BYTES>(part, b));
                    match has_inner_sums::<F>() {
                        true => inner[n] = _mm256_fmadd_ps(isum, scale, inner[n]),
                        false => *acc = _mm256_fmadd_ps(isum, _mm256_mul_ps(head.d, scale), *acc),
                    }
                    if let Some(min) = F::min(head, part) {
                        let sum = row.factor(BYTES, row.k / BLOCK + b);
                        *acc = _mm256_fmadd_ps(min, _mm256_set1_ps(sum), *acc);
                    }
                    if let Some(imin) = row.imin::<F, BYTES>(part, b) {
                        mins[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(imin), scale, mins[n]);
                    }
                }
            }
            if has_exact_blocks::<F, BYTES>() {
                let scale = _mm256_set1_ps(row.factor(BYTES, block));
                for (n, acc) in acc.iter_mut().enumerate() {
                    let [isum, imin] = exact[n];
                    let mut sum = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), heads[n].d);
                    if F::HAS_PART_MINS || F::HAS_HALF_MINS {
                        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(imin), heads[n].m, sum);
                    }
                    *acc = _mm256_fmadd_ps(sum, scale, *acc);
                }
            } else if has_inner_sums::<F>() {
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_fmadd_ps(inner[n], heads[n].d, *acc);
                    if F::HAS_HALF_MINS {
                        *acc = _mm256_fmadd_ps(mins[n], heads[n].m, *acc);
                    }
                }
            }
        }
    }
    for (n, acc) in acc.into_iter().enumerate() {
        // SAFETY: out has the columns, rounded up to whole groups.
        unsafe { _mm256_storeu_ps(args.out.add((g + n) * GROUP), acc) };
    }
    N
}

/// A row of activations.
#[derive(Clone, Copy)]
struct Row {
    quants: *const u8,
    k: usize,
    /// What each block's sums start from, if the format is raised.
    starts: *const i32,
}

impl Row {
    /// Number `i` of the floats behind quants of `bytes` bytes.
    ///
    /// # Safety
    /// The row has it.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn factor(&self, bytes: usize, i: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.quants.add(bytes * self.k).cast::<f32>().add(i) }
    }

    /// The sums of block `b` of 32 and of the next one of a Q8K row, in every lane.
    ///
    /// # Safety
    /// The row has them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn sums_of(&self, b: usize) -> __m256i {
        let (_, sums) = q8k_factors(self.quants, self.k);
        // SAFETY: the caller's promise.
        _mm256_set1_epi32(unsafe { sums.add(b).cast::<i32>().read_unaligned() })
    }

    /// Word `j` (4 quants) of block `b`, in every lane; `byte` as in [`Row::sum`].
    ///
    /// # Safety
    /// The row has it.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn word<const BYTES: usize>(&self, byte: usize, b: usize, j: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.quants.add((b * BYTES + byte) * BLOCK + 4 * j);
            _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
        }
    }

    /// The exact inner products of a part's rows with block `b`, integer scales included.
    ///
    /// # Safety
    /// `part` is a part of F, and the row has the block.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn isum<F: Format, const BYTES: usize>(&self, part: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut low, mut high) = (F::half::<0>(part), F::half::<1>(part));
            if holds_scales::<F>() {
                // Both bytes of 16 bits at once: neither product leaves its byte.
                let (first, second) = (F::scale::<0>(part), F::scale::<1>(part));
                low = low.map(|w| _mm256_mullo_epi16(w, first));
                high = high.map(|w| _mm256_mullo_epi16(w, second));
            }
            if is_signed::<F>() {
                let by = _mm256_set1_epi8(raised::<F>() as i8);
                low = low.map(|w| _mm256_add_epi8(w, by));
                high = high.map(|w| _mm256_add_epi8(w, by));
            }
            let zero = _mm256_setzero_si256();
            let start = |i: usize| match raised::<F>() {
                0 => zero,
                _ => _mm256_set1_epi32(*self.starts.add(i)),
            };
            let [first, second] = match has_halves::<F>() {
                true => [start(2 * b), start(2 * b + 1)],
                false => [start(b), zero],
            };
            let low = self.sum::<BYTES>(first, low, b, 0);
            let high = self.sum::<BYTES>(second, high, b, 4);
            match F::SCALES {
                Scales::Halves if has_halves::<F>() => {
                    let first = _mm256_srai_epi32::<16>(F::scale::<0>(part));
                    let second = _mm256_srai_epi32::<16>(F::scale::<1>(part));
                    _mm256_add_epi32(
                        _mm256_mullo_epi32(low, first),
                        _mm256_mullo_epi32(high, second),
                    )
                }
                Scales::Whole => {
                    let scale = _mm256_srai_epi32::<16>(F::scale::<0>(part));
                    _mm256_mullo_epi32(_mm256_add_epi32(low, high), scale)
                }
                _ => _mm256_add_epi32(low, high),
            }
        }
    }

    /// Integer minima times exact sums of activations, for a format that has them.
    ///
    /// # Safety
    /// As [`Row::isum`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn imin<F: Format, const BYTES: usize>(
        &self,
        part: *const u8,
        b: usize,
    ) -> Option<__m256i> {
        // SAFETY: the caller's promise.
        unsafe {
            let mins = [F::half_min::<0>(part)?, F::half_min::<1>(part)?];
            let [low, high] =
                mins.map(|min| [_mm256_or_si256(min, _mm256_slli_epi16::<8>(min)); 4]);
            Some(_mm256_add_epi32(
                self.sum::<BYTES>(_mm256_setzero_si256(), low, b, 0),
                self.sum::<BYTES>(_mm256_setzero_si256(), high, b, 4),
            ))
        }
    }

    /// The products of four words of unsigned weights with words `from ..` of block `b`, added to `start` (of two bytes, to the high one's
    /// sums). The quants of Q11 rows are 8 * high + low: byte 0 is the high one, or that of Q8.
    ///
    /// # Safety
    /// The row has the block.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn sum<const BYTES: usize>(
        &self,
        start: __m256i,
        w: [__m256i; 4],
        b: usize,
        from: usize,
    ) -> __m256i {
        let mut sum = start;
        for byte in 0..BYTES {
            if byte == 1 {
                sum = _mm256_slli_epi32::<3>(sum);
            }
            for (j, w) in w.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                sum = _mm256_dpbusd_epi32(sum, w, unsafe { self.word::<BYTES>(byte, b, from + j) });
            }
        }
        sum
    }
}
