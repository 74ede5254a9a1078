//! Weights of two groups, unpacked and joined to vectors of 512 bits, as products take them.

use std::arch::x86_64::*;

use super::small::has_small_sums;
use crate::cpu::avx2::quant::{Format, Head, Quants, Scales, fetch_part, has_exact_blocks};

pub(in crate::cpu) use crate::cpu::avx2::quant::holds_scales;

/// 32 k of both groups, unpacked. What a format has no use for isn't written.
#[repr(C)]
pub(super) struct Part {
    pub(super) d: __m512,
    pub(super) m: __m512,
    pub(super) min: __m512,
    /// Integer scales of both halves, in f32: some processors multiply such twice as fast as integers of 32 bits (NOTES.md). Or, in a panel for
    /// Q8K rows where sums [are small](has_small_sums), side by side in 16 bits, those of the halves, or of the part and the next one, if its
    /// number is even.
    pub(super) scales: __m512i,
    /// Of each half, for Q8K rows the scales as integers; or integer minima, in every byte.
    pub(super) halves: [__m512i; 2],
    /// In a panel for Q8K rows, [`part_mins`] of the part and the next one, if its number is even.
    pub(super) pair_mins: __m512i,
    /// Eight of four unsigned bytes a lane, and, where both bytes of Q11 make one sum, the same times 8; or, where they are multiplied in
    /// 16 bits, eight of the even ones and eight of the odd.
    pub(super) words: [__m512i; 16],
}

/// Vectors of a part: with rows of one byte there are eight words only.
pub(super) const fn vectors<const BYTES: usize>() -> usize {
    size_of::<Part>() / size_of::<__m512i>() - if BYTES == 1 { 8 } else { 0 }
}

/// Part `i` of a panel, whose parts lie close together in the first-level cache.
pub(super) fn part_of<const BYTES: usize>(panel: *const __m512i, i: usize) -> *const Part {
    panel.wrapping_add(i * vectors::<BYTES>()).cast()
}

/// Whether weights are signed.
pub(in crate::cpu) const fn is_signed<F: Format>() -> bool {
    matches!(F::QUANTS, Quants::SignedLow | Quants::Signed)
}

/// What weights are raised by where they are multiplied by bytes, to be unsigned.
pub(super) const fn raised<F: Format>() -> i32 {
    match F::QUANTS {
        Quants::SignedLow => 32,
        Quants::Signed => 128,
        _ => F::RAISED,
    }
}

/// What sums of a raised format start from is this many times the sum of the activations, negative ([`each_slice`]). Of two bytes
/// it starts the high one's sums, which are shifted by three later.
///
/// [`each_slice`]: crate::cpu::avx2::quant::each_slice
pub(super) const fn unit<F: Format, const BYTES: usize>() -> i32 {
    match BYTES {
        2 => raised::<F>() / 8,
        _ => raised::<F>(),
    }
}

/// Whether halves of a part are summed apart, each with its scale.
pub(super) const fn has_halves<F: Format>() -> bool {
    matches!(F::SCALES, Scales::Halves) && !holds_scales::<F>()
}

/// Whether weights are multiplied in 16 bits. With Q11 rows that takes as many products as two bytes apart do, but integer
/// scales of halves are multiplied into weights, once for all tokens: with such rows they would leave f32's 24 bits.
pub(super) const fn is_wide<F: Format, const BYTES: usize>() -> bool {
    BYTES == 2 && matches!(F::QUANTS, Quants::SignedLow)
}

/// Whether both bytes of Q11 may be multiplied into one sum, by 8 * weight and by the weight: 8 * weight fits a byte.
pub(in crate::cpu) const fn is_joined<F: Format, const BYTES: usize>() -> bool {
    BYTES == 2 && matches!(F::QUANTS, Quants::Nibbles | Quants::Low)
}

/// Unpacks the parts of a block of both groups to a panel, number `first` and following, and fetches those that come next, which may be anywhere.
///
/// # Safety
/// Each of `at` points at a block; the panel has room.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn unpack_block<F: Format, const BYTES: usize, const JOINED: bool>(
    at: [*const u8; 2],
    panel: *mut __m512i,
    first: usize,
    next: [*const u8; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = at.map(|at| F::head(at));
        for i in 0..F::PARTS {
            let at = at.map(|at| at.add(F::HEADER + i * F::PART));
            for next in next {
                fetch_part::<F, _MM_HINT_T1>(next, i);
            }
            let to = part_of::<BYTES>(panel, first + i).cast_mut();
            Part::unpack::<F, BYTES, JOINED>(&heads, at, to);
            if F::HAS_PART_MINS && i % 2 == 0 && has_exact_blocks::<F, BYTES>() {
                (*to).pair_mins = part_mins::<F>(at);
            }
            if has_exact_blocks::<F, BYTES>() && has_small_sums::<F>() {
                (*to).scales = pair_scales::<F>(at, i);
            }
        }
    }
}

impl Part {
    /// Unpacks and joins parts of two groups, from their blocks' heads. JOINED: with the words times 8 ([`is_joined`]).
    ///
    /// # Safety
    /// Each of `at` points at a part; `to` may be written.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn unpack<F: Format, const BYTES: usize, const JOINED: bool>(
        heads: &[Head; 2],
        at: [*const u8; 2],
        to: *mut Part,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (
                [F::half::<0>(at[0]), F::half::<0>(at[1])],
                [F::half::<1>(at[0]), F::half::<1>(at[1])],
            );
            let mut words = [
                join(low[0][0], low[1][0]),
                join(low[0][1], low[1][1]),
                join(low[0][2], low[1][2]),
                join(low[0][3], low[1][3]),
                join(high[0][0], high[1][0]),
                join(high[0][1], high[1][1]),
                join(high[0][2], high[1][2]),
                join(high[0][3], high[1][3]),
            ];
            (*to).d = join_floats(heads[0].d, heads[1].d);
            if F::HAS_MIN && has_exact_blocks::<F, BYTES>() {
                (*to).m = join_floats(heads[0].m, heads[1].m);
            } else if F::HAS_MIN {
                (*to).min = min::<F>(heads, at);
            }
            if let ([Some(low), Some(low_second)], [Some(high), Some(high_second)]) = (
                [F::half_min::<0>(at[0]), F::half_min::<0>(at[1])],
                [F::half_min::<1>(at[0]), F::half_min::<1>(at[1])],
            ) {
                (*to).m = join_floats(heads[0].m, heads[1].m);
                (*to).halves = [
                    in_every_byte(join(low, low_second)),
                    in_every_byte(join(high, high_second)),
                ];
            }
            let scales = scales::<F>(at);
            if is_wide::<F, BYTES>() {
                for (j, word) in words.into_iter().enumerate() {
                    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(word));
                    let odd = _mm512_srai_epi16::<8>(word);
                    (*to).words[j] = times::<F>(even, scales[j / 4]);
                    (*to).words[8 + j] = times::<F>(odd, scales[j / 4]);
                }
                return;
            }
            if holds_scales::<F>() {
                // Both bytes of 16 bits at once: neither product leaves its byte.
                for (j, word) in words.iter_mut().enumerate() {
                    *word = _mm512_mullo_epi16(*word, scales[j / 4]);
                }
            } else if has_exact_blocks::<F, BYTES>() {
                (*to).halves = wide_scales::<F>(at);
            } else if !matches!(F::SCALES, Scales::None) {
                (*to).scales = _mm512_castps_si512(float_scale::<F>(at));
            }
            for (j, word) in words.into_iter().enumerate() {
                (*to).words[j] = match is_signed::<F>() {
                    true => _mm512_add_epi8(word, _mm512_set1_epi8(raised::<F>() as i8)),
                    false => word,
                };
                if JOINED {
                    (*to).words[8 + j] = _mm512_slli_epi16::<3>(word);
                }
            }
        }
    }
}

/// Integer scales of each half of a part of both groups, twice in a lane, in 16 bits.
///
/// # Safety
/// Each of `at` points at a part.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(in crate::cpu) unsafe fn scales<F: Format>(at: [*const u8; 2]) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        match F::SCALES {
            Scales::None => [_mm512_setzero_si512(); 2],
            Scales::Whole => [join(F::scale::<0>(at[0]), F::scale::<0>(at[1])); 2],
            Scales::Halves => [
                join(F::scale::<0>(at[0]), F::scale::<0>(at[1])),
                join(F::scale::<1>(at[0]), F::scale::<1>(at[1])),
            ],
        }
    }
}

/// The same in 32 bits, of a format whose scales are bytes, with which its parts begin: those of the eight rows' first halves, or
/// of all, then those of the second ones.
///
/// # Safety
/// As [`scales`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn wide_scales<F: Format>(at: [*const u8; 2]) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    let [first, second] = unsafe { leading_bytes(at) };
    let second = match F::SCALES {
        Scales::Halves => second,
        _ => first,
    };
    match is_signed::<F>() {
        true => [_mm512_cvtepi8_epi32(first), _mm512_cvtepi8_epi32(second)],
        false => [_mm512_cvtepu8_epi32(first), _mm512_cvtepu8_epi32(second)],
    }
}

/// As [`wide_scales`], in f32, of a format whose halves have the same.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(in crate::cpu) unsafe fn float_scale<F: Format>(at: [*const u8; 2]) -> __m512 {
    // SAFETY: the caller's promise.
    let [scale, _] = unsafe { wide_scales::<F>(at) };
    _mm512_cvtepi32_ps(scale)
}

/// [`Format::part_mins`] of both groups, of a format that has them.
///
/// # Safety
/// Each of `at` points at a part, which another one follows.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn part_mins<F: Format>(at: [*const u8; 2]) -> __m512i {
    let next = at.map(|at| at.wrapping_add(F::PART));
    // SAFETY: the caller's promise.
    match unsafe { [F::part_mins(at[0], next[0]), F::part_mins(at[1], next[1])] } {
        [Some(first), Some(second)] => join(first, second),
        _ => _mm512_setzero_si512(),
    }
}

/// Scales of the halves of part `i` of both groups, or of the part and the next one, where there is one: 16 bits each, side by side in a lane.
///
/// # Safety
/// Each of `at` points at the part.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn pair_scales<F: Format>(at: [*const u8; 2], i: usize) -> __m512i {
    // SAFETY: the caller's promise.
    let [first, mut second] = unsafe { scales::<F>(at) };
    if !has_halves::<F>() && i + 1 < F::PARTS {
        // SAFETY: the next part follows.
        [second, _] = unsafe { scales::<F>(at.map(|at| at.add(F::PART))) };
    }
    _mm512_mask_blend_epi16(0xaaaa_aaaa, first, second)
}

/// What is added to every weight of a part of both groups.
///
/// # Safety
/// As [`scales`], of a format that has it, and its blocks' heads.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(in crate::cpu) unsafe fn min<F: Format>(heads: &[Head; 2], at: [*const u8; 2]) -> __m512 {
    let m = join_floats(heads[0].m, heads[1].m);
    match F::SCALES {
        Scales::None => m,
        // Times the integer minima, bytes behind the scales.
        _ => {
            // SAFETY: the caller's promise.
            let [_, mins] = unsafe { leading_bytes(at) };
            _mm512_mul_ps(m, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(mins)))
        }
    }
}

/// The first eight bytes of both parts, and the next eight.
///
/// # Safety
/// Each of `at` points at sixteen bytes.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn leading_bytes(at: [*const u8; 2]) -> [__m128i; 2] {
    // SAFETY: the caller's promise.
    let [first, second] = at.map(|at| unsafe { _mm_loadu_si128(at.cast()) });
    [
        _mm_unpacklo_epi64(first, second),
        _mm_unpackhi_epi64(first, second),
    ]
}

/// Weights of 16 bits times their integer scales, which they hold: 32 * 128 is the most.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn times<F: Format>(words: __m512i, scale: __m512i) -> __m512i {
    match F::SCALES {
        Scales::None => words,
        _ => _mm512_mullo_epi16(words, scale),
    }
}

/// Numbers below 256 in 16 bits, in both bytes.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn in_every_byte(x: __m512i) -> __m512i {
    _mm512_or_si512(x, _mm512_slli_epi16::<8>(x))
}

/// The rows of two groups in one vector.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(in crate::cpu) fn join(first: __m256i, second: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
}

/// As [`join`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(in crate::cpu) fn join_floats(first: __m256, second: __m256) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
}
