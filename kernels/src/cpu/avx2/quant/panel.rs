//! A group's weights, unpacked to memory for all tokens of a call.
//!
//! Products take them as the second factor, from memory, and a word of activations, spread over a register, as the first: one
//! such serves several groups. The second factor of `vpmaddubsw` and `vpdpbusd` is the signed one. So weights are signed, unsigned
//! ones of up to 7 bits being as good, and activations are raised by 128; sums start from what that adds.

use std::arch::x86_64::*;

use super::dot::WideBlock;
use super::starts::half_sums;
use super::{Format, Head, Quants, Scales, has_exact_blocks};
use crate::quant::BLOCK;

/// 32 k of a group of eight rows. What a format has no use for isn't written.
#[repr(C, align(32))]
pub(super) struct Panel {
    /// Eight of four bytes a lane; or, where they are multiplied in 16 bits ([`is_wide`]), eight of the even ones and eight of the odd.
    pub(super) words: [__m256i; 16],
    /// What sums of each half start from, or those of both; with `vpmaddubsw` of pairs, in 16 bits.
    pub(super) start: [__m256i; 2],
    /// Integer scales of each half, in 16 bits. By AVX-VNNI they multiply sums, as integers, or in f32 ([`has_float_scales`]).
    pub(super) scales: [__m256i; 2],
    pub(super) d: __m256,
    /// The factor of the integer minima.
    pub(super) m: __m256,
    /// What is added to every weight.
    pub(super) min: __m256,
    /// The integer minima of both halves, side by side in a lane; or, in the first of two parts whose sums are exact, of both of these.
    pub(super) mins: __m256i,
}

/// Whether weights and activations are multiplied in 16 bits: two bytes of a quant apart would be as many products, and what
/// `vpmaddubsw` adds of signed bytes and raised activations doesn't fit there.
pub(super) const fn is_wide<F: Format, const BYTES: usize, const VNNI: bool>() -> bool {
    !VNNI && (BYTES == 2 || matches!(F::QUANTS, Quants::Signed))
}

/// Whether products of weights and integer scales are what is multiplied: by AVX-VNNI, where they fit a byte.
pub(super) const fn holds_scales<F: Format, const VNNI: bool>() -> bool {
    VNNI && super::holds_scales::<F>()
}

/// Whether halves are summed apart, each with its scale.
pub(super) const fn has_halves<F: Format, const BYTES: usize, const VNNI: bool>() -> bool {
    let by_scales = holds_scales::<F, VNNI>() || is_wide::<F, BYTES, VNNI>();
    matches!(F::SCALES, Scales::Halves) && !by_scales
}

/// Whether sums are multiplied with integer scales in f32: they are below 2^24, so that a product rounds as the conversion of the exact
/// integer does.
pub(super) const fn has_float_scales<F: Format, const BYTES: usize, const VNNI: bool>() -> bool {
    VNNI && matches!(F::SCALES, Scales::Whole) && !has_exact_blocks::<F, BYTES>()
}

/// Whether sums of four weights fit a signed byte: 4 * 31 does, -4 * 32 and 4 * 32 do not.
const fn has_byte_sums<F: Format, const VNNI: bool>() -> bool {
    matches!(F::QUANTS, Quants::Crumbs | Quants::Nibbles | Quants::Low)
        && !holds_scales::<F, VNNI>()
}

/// Whether a part's results of `vpmaddubsw` are one sum in 16 bits, not one a half.
pub(super) const fn has_one_chain<F: Format>() -> bool {
    matches!(F::QUANTS, Quants::Crumbs | Quants::Nibbles) && !matches!(F::SCALES, Scales::Halves)
}

/// Bytes of 32 activations of a token, as [`prepare`] writes them.
pub(super) const fn block_bytes<F: Format, const BYTES: usize, const VNNI: bool>() -> usize {
    if is_wide::<F, BYTES, VNNI>() {
        size_of::<WideBlock>()
    } else {
        BYTES * BLOCK
    }
}

impl Panel {
    /// Unpacks part `i` of a block.
    ///
    /// # Safety
    /// `part` is that of F, behind `head`; `to` may be written.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) unsafe fn unpack<F: Format, const BYTES: usize, const VNNI: bool>(
        head: &Head,
        part: *const u8,
        i: usize,
        to: *mut Panel,
    ) {
        // SAFETY: the caller's promise; behind an even part of several is an odd one.
        unsafe {
            (*to).d = head.d;
            if !has_exact_blocks::<F, BYTES>() {
                if let Some(min) = F::min(head, part) {
                    (*to).min = min;
                }
            } else if i.is_multiple_of(2)
                && let Some(mins) = F::part_mins(part, part.wrapping_add(F::PART))
            {
                (*to).m = head.m;
                (*to).mins = mins;
            }
            if let (Some(low), Some(high)) = (F::half_min::<0>(part), F::half_min::<1>(part)) {
                (*to).m = head.m;
                (*to).mins = _mm256_blend_epi16::<0b1010_1010>(low, high);
            }
            let scales = match F::SCALES {
                Scales::Halves => [F::scale::<0>(part), F::scale::<1>(part)],
                _ => [F::scale::<0>(part); 2],
            };
            let halves = [F::half::<0>(part), F::half::<1>(part)];
            let less = |word| match F::RAISED {
                0 => word,
                _ => _mm256_sub_epi8(word, _mm256_set1_epi8(F::RAISED as i8)),
            };
            if is_wide::<F, BYTES, VNNI>() {
                for (h, words) in halves.into_iter().enumerate() {
                    for (j, word) in words.into_iter().enumerate() {
                        let word = less(word);
                        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(word));
                        let odd = _mm256_srai_epi16::<8>(word);
                        (*to).words[4 * h + j] = times::<F>(even, scales[h]);
                        (*to).words[8 + 4 * h + j] = times::<F>(odd, scales[h]);
                    }
                }
                return;
            }
            let ones = _mm256_set1_epi8(1);
            let mut pairs = [_mm256_setzero_si256(); 2];
            for (h, words) in halves.into_iter().enumerate() {
                let mut bytes = _mm256_setzero_si256();
                for (j, word) in words.into_iter().enumerate() {
                    let word = match holds_scales::<F, VNNI>() {
                        // Both bytes of 16 bits at once: neither product leaves its byte.
                        true => _mm256_mullo_epi16(word, scales[h]),
                        false => less(word),
                    };
                    (*to).words[4 * h + j] = word;
                    if has_byte_sums::<F, VNNI>() {
                        bytes = _mm256_add_epi8(bytes, word);
                    } else {
                        pairs[h] = _mm256_add_epi16(pairs[h], _mm256_maddubs_epi16(ones, word));
                    }
                }
                if has_byte_sums::<F, VNNI>() {
                    pairs[h] = _mm256_maddubs_epi16(ones, bytes);
                }
            }
            (*to).start = starts::<F, BYTES, VNNI>(pairs);
            if F::SCALES == Scales::None || holds_scales::<F, VNNI>() {
                return;
            }
            (*to).scales = match VNNI {
                false => scales,
                true if has_float_scales::<F, BYTES, true>() => scales
                    .map(|s| _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_srai_epi32::<16>(s)))),
                true => scales.map(|s| _mm256_srai_epi32::<16>(s)),
            };
        }
    }
}

/// What sums start from, of the weights' sums by pairs of each half: -128 times their sums, for each byte of activations. By
/// AVX-VNNI sums of the high bytes start from it, which are shifted by three later.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn starts<F: Format, const BYTES: usize, const VNNI: bool>(pairs: [__m256i; 2]) -> [__m256i; 2] {
    if !VNNI {
        let pairs = match has_one_chain::<F>() {
            true => [_mm256_add_epi16(pairs[0], pairs[1]); 2],
            false => pairs,
        };
        // Sums of 16 bits may leave those on their way, which adding does not mind.
        let zero = _mm256_setzero_si256();
        return pairs.map(|pairs| _mm256_sub_epi16(zero, _mm256_slli_epi16::<7>(pairs)));
    }
    let less = _mm256_set1_epi16(if BYTES == 2 { -128 - 128 / 8 } else { -128 });
    let sums = pairs.map(|pairs| _mm256_madd_epi16(pairs, less));
    match has_halves::<F, BYTES, VNNI>() {
        true => sums,
        false => [_mm256_add_epi32(sums[0], sums[1]); 2],
    }
}

/// Weights of 16 bits times their integer scales, which they hold: 32 * 128 is the most.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn times<F: Format>(words: __m256i, scale: __m256i) -> __m256i {
    match F::SCALES {
        Scales::None => words,
        _ => _mm256_mullo_epi16(words, scale),
    }
}

/// Writes 32 activations of a token as products take them: raised by 128, or in 16 bits. Of a format with integer minima returns the
/// sums of both halves, in 16 bits each: at most 16 * 1023.
///
/// # Safety
/// `at` points at BYTES times 32 quants; `to` has room for [`block_bytes`].
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) unsafe fn prepare<F: Format, const BYTES: usize, const VNNI: bool>(
    at: *const u8,
    to: *mut u8,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes: [__m256i; BYTES] =
            std::array::from_fn(|byte| _mm256_loadu_si256(at.add(byte * BLOCK).cast()));
        if is_wide::<F, BYTES, VNNI>() {
            let block = match BYTES {
                2 => WideBlock::new(at, at.add(BLOCK)),
                _ => WideBlock::of_bytes(bytes[0]),
            };
            to.cast::<WideBlock>().write(block);
        } else {
            for (byte, x) in bytes.into_iter().enumerate() {
                let raised = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
                _mm256_storeu_si256(to.add(byte * BLOCK).cast(), raised);
            }
        }
        if !F::HAS_HALF_MINS {
            return 0;
        }
        let [low, high] = half_sums::<BYTES>(at);
        (low & 0xffff) | (high << 16)
    }
}
