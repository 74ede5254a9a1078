//! Exact integer products of unpacked weights and activations.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits. How many of its results may be added before
//! `vpmaddwd` widens them, with activations of at most 127:
//!
//! | weights | sums of | reach |
//! |---|---|---|
//! | 0 to 15 ([`Quants::Crumbs`], [`Quants::Nibbles`]) | all 8 words | 8 * 2 * 15 * 127 = 30480 |
//! | 0 to 31 ([`Quants::Low`]) | 4 words | 4 * 2 * 31 * 127 = 31496 |
//! | -32 to 32 ([`Quants::SignedLow`]) | 4 words | 4 * 2 * 32 * 127 = 32512 |
//! | -128 to 127 ([`Quants::Signed`]) | 1 word | 2 * 128 * 127 = 32512 |
//!
//! Signed weights become magnitudes, and their signs move to the activations. `vpmaddwd` multiplies as it widens: by 1 or
//! by the integer scales.
//!
//! The quants of Q11 rows are 8 * high + low. With unsigned weights both bytes take the same way, each into sums of its
//! own, and the high sums are widened times 8. Signed weights are widened to 16 bits instead, and so are the
//! activations: a vector becomes its even and its odd bytes, a lane of `vpmaddwd` has quants 4j and 4j + 2, or 4j + 1 and
//! 4j + 3, of both.

use std::arch::x86_64::*;

use super::{Format, Quants, Scales, Tile};
use crate::quant::BLOCK;

impl Tile {
    /// The exact inner products of a part's eight rows with block `b` of each token, integer scales included.
    ///
    /// # Safety
    /// `part` is a part of F; T rows of x have the block.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) unsafe fn isums<F: Format, const BYTES: usize, const T: usize>(
        &self,
        part: *const u8,
        b: usize,
    ) -> [__m256i; T] {
        // SAFETY: the caller's promise.
        unsafe {
            match (F::QUANTS, BYTES) {
                (Quants::Crumbs | Quants::Nibbles | Quants::Low, _) => {
                    self.unsigned::<F, BYTES, T>(part, b)
                }
                (Quants::SignedLow, 1) => self.signed_low::<F, T>(part, b),
                (Quants::Signed, 1) => self.signed::<F, T>(part, b),
                (Quants::SignedLow | Quants::Signed, _) => self.wide::<F, T>(part, b),
            }
        }
    }

    /// Integer minima times exact sums of activations, for a format that has them.
    ///
    /// # Safety
    /// As [`Tile::isums`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) unsafe fn imins<F: Format, const BYTES: usize, const T: usize>(
        &self,
        part: *const u8,
        b: usize,
    ) -> Option<[__m256i; T]> {
        // SAFETY: the caller's promise.
        let mins = unsafe { [F::half_min::<0>(part)?, F::half_min::<1>(part)?] };
        let ones = _mm256_set1_epi8(1);
        let mut isums = [_mm256_setzero_si256(); T];
        for (half, min) in mins.into_iter().enumerate() {
            for (t, isum) in isums.iter_mut().enumerate() {
                let mut sums = [_mm256_setzero_si256(); BYTES];
                for (byte, sum) in sums.iter_mut().enumerate() {
                    for j in 0..4 {
                        // SAFETY: one of eight words.
                        let x = unsafe { self.word::<BYTES>(t, byte, b, 4 * half + j) };
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(ones, x));
                    }
                }
                *isum = _mm256_add_epi32(*isum, widen_sums(sums, min));
            }
        }
        Some(isums)
    }

    /// Half a part is unpacked at a time, so that weights, 16-bit sums and accumulators fit the sixteen registers.
    ///
    /// # Safety
    /// As [`Tile::isums`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn unsigned<F: Format, const BYTES: usize, const T: usize>(
        &self,
        part: *const u8,
        b: usize,
    ) -> [__m256i; T] {
        // One set of 16-bit sums for the part, or one a half.
        let at_once = F::QUANTS != Quants::Low && F::SCALES != Scales::Halves;
        let mut isums = [_mm256_setzero_si256(); T];
        let mut sums = [[_mm256_setzero_si256(); BYTES]; T];
        for half in 0..2 {
            // SAFETY: the caller's promise.
            let (w, scale) = unsafe {
                match (half, F::SCALES) {
                    (0, _) => (F::half::<0>(part), F::scale::<0>(part)),
                    (_, Scales::Halves) => (F::half::<1>(part), F::scale::<1>(part)),
                    _ => (F::half::<1>(part), F::scale::<0>(part)),
                }
            };
            for (t, sums) in sums.iter_mut().enumerate() {
                for (byte, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: words of the block.
                    let product = |j: usize| unsafe {
                        _mm256_maddubs_epi16(w[j], self.word::<BYTES>(t, byte, b, 4 * half + j))
                    };
                    let first = _mm256_add_epi16(product(0), product(1));
                    let second = _mm256_add_epi16(product(2), product(3));
                    let four = _mm256_add_epi16(first, second);
                    *sum = match at_once && half == 1 {
                        true => _mm256_add_epi16(*sum, four),
                        false => four,
                    };
                }
                if !at_once || half == 1 {
                    let widened = widen_sums(*sums, scale);
                    isums[t] = match at_once || half == 0 {
                        true => widened,
                        false => _mm256_add_epi32(isums[t], widened),
                    };
                }
            }
        }
        isums
    }

    /// # Safety
    /// As [`Tile::isums`], of Q8K rows.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn signed_low<F: Format, const T: usize>(
        &self,
        part: *const u8,
        b: usize,
    ) -> [__m256i; T] {
        let mut isums = [_mm256_setzero_si256(); T];
        for half in 0..2 {
            // SAFETY: the caller's promise.
            let (w, scale) = unsafe {
                match half {
                    0 => (F::half::<0>(part), F::scale::<0>(part)),
                    _ => (F::half::<1>(part), F::scale::<1>(part)),
                }
            };
            for (t, isum) in isums.iter_mut().enumerate() {
                // SAFETY: words of the block.
                let product = |j: usize| unsafe {
                    let x = _mm256_sign_epi8(self.word::<1>(t, 0, b, 4 * half + j), w[j]);
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), x)
                };
                let first = _mm256_add_epi16(product(0), product(1));
                let second = _mm256_add_epi16(product(2), product(3));
                let sum = _mm256_madd_epi16(_mm256_add_epi16(first, second), scale);
                *isum = _mm256_add_epi32(*isum, sum);
            }
        }
        isums
    }

    /// # Safety
    /// As [`Tile::isums`], of Q8 or Q8K rows and a format without scales of halves.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn signed<F: Format, const T: usize>(&self, part: *const u8, b: usize) -> [__m256i; T] {
        let mut scratch = [_mm256_setzero_si256(); 8];
        // SAFETY: the caller's promise.
        let (words, scale) = unsafe { (F::words(part, &mut scratch), F::scale::<0>(part)) };
        let mut isums = [_mm256_setzero_si256(); T];
        for j in 0..2 * self.half_words {
            // SAFETY: one of eight words.
            let w = unsafe { _mm256_loadu_si256(words.add(j)) };
            let magnitude = _mm256_abs_epi8(w);
            for (t, isum) in isums.iter_mut().enumerate() {
                // SAFETY: one of eight words.
                let x = unsafe { self.word::<1>(t, 0, b, j) };
                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
                *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(pairs, scale));
            }
        }
        isums
    }

    /// # Safety
    /// As [`Tile::isums`], of Q11 rows.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn wide<F: Format, const T: usize>(&self, part: *const u8, b: usize) -> [__m256i; T] {
        let mut scratch = [_mm256_setzero_si256(); 8];
        // SAFETY: the caller's promise.
        let (words, x) = unsafe {
            let words = F::words(part, &mut scratch);
            let x: [WideBlock; T] = std::array::from_fn(|t| {
                let high = self.x[t].add(2 * b * BLOCK);
                WideBlock::new(high, high.add(BLOCK))
            });
            (words, x)
        };
        // SAFETY: the words; each x has eight.
        unsafe {
            match F::SCALES {
                Scales::None => wide_sums(words, &x, 0, 2 * self.half_words),
                Scales::Whole => {
                    let sums = wide_sums(words, &x, 0, 2 * self.half_words);
                    let scale = _mm256_srai_epi32::<16>(F::scale::<0>(part));
                    sums.map(|sum| _mm256_mullo_epi32(sum, scale))
                }
                Scales::Halves => {
                    let first = wide_sums(words, &x, 0, self.half_words);
                    let second = wide_sums(words, &x, 4, self.half_words);
                    let first_scale = _mm256_srai_epi32::<16>(F::scale::<0>(part));
                    let second_scale = _mm256_srai_epi32::<16>(F::scale::<1>(part));
                    std::array::from_fn(|t| {
                        _mm256_add_epi32(
                            _mm256_mullo_epi32(first[t], first_scale),
                            _mm256_mullo_epi32(second[t], second_scale),
                        )
                    })
                }
            }
        }
    }
}

/// Widens 16-bit sums of the bytes of activations, multiplied with a scale.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn widen_sums<const BYTES: usize>(sums: [__m256i; BYTES], scale: __m256i) -> __m256i {
    match sums.as_slice() {
        [high, low] => _mm256_add_epi32(
            _mm256_madd_epi16(*high, _mm256_slli_epi16::<3>(scale)),
            _mm256_madd_epi16(*low, scale),
        ),
        _ => _mm256_madd_epi16(sums[0], scale),
    }
}

/// 32 quants of a token in 16 bits: word j of `even` is quants 4j and 4j + 2, word j of `odd` 4j + 1 and 4j + 3.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct WideBlock {
    even: [i32; 8],
    odd: [i32; 8],
}

impl WideBlock {
    /// Widens 32 quants of BYTES bytes.
    ///
    /// # Safety
    /// `at` points at them.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) unsafe fn widen<const BYTES: usize>(at: *const u8) -> WideBlock {
        // SAFETY: the caller's promise; high bytes come before low ones.
        unsafe {
            match BYTES {
                2 => WideBlock::new(at, at.add(BLOCK)),
                _ => WideBlock::of_bytes(_mm256_loadu_si256(at.cast())),
            }
        }
    }

    /// Joins 32 high and 32 low bytes.
    ///
    /// # Safety
    /// Both point at 32 bytes.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) unsafe fn new(high: *const u8, low: *const u8) -> WideBlock {
        // SAFETY: the caller's promise.
        let (high, low) = unsafe {
            (
                _mm256_loadu_si256(high.cast()),
                _mm256_loadu_si256(low.cast()),
            )
        };
        // A byte on top of its word, shifted down by five: 8 times the byte.
        let high_even = _mm256_srai_epi16::<5>(_mm256_slli_epi16::<8>(high));
        let high_odd = _mm256_srai_epi16::<5>(_mm256_and_si256(high, _mm256_set1_epi16(-256)));
        let low_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low));
        let low_odd = _mm256_srai_epi16::<8>(low);
        WideBlock::of(
            _mm256_add_epi16(high_even, low_even),
            _mm256_add_epi16(high_odd, low_odd),
        )
    }

    /// Widens 32 bytes.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(super) fn of_bytes(x: __m256i) -> WideBlock {
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
        WideBlock::of(even, _mm256_srai_epi16::<8>(x))
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn of(even: __m256i, odd: __m256i) -> WideBlock {
        let mut block = WideBlock {
            even: [0; 8],
            odd: [0; 8],
        };
        // SAFETY: each array has 32 bytes.
        unsafe {
            _mm256_storeu_si256(block.even.as_mut_ptr().cast(), even);
            _mm256_storeu_si256(block.odd.as_mut_ptr().cast(), odd);
        }
        block
    }
}

/// The products of `count` words from `first` on.
///
/// # Safety
/// Those are among the eight of `words` and of each x.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn wide_sums<const T: usize>(
    words: *const __m256i,
    x: &[WideBlock; T],
    first: usize,
    count: usize,
) -> [__m256i; T] {
    let mut sums = [_mm256_setzero_si256(); T];
    for j in first..first + count {
        // SAFETY: the caller's promise.
        let w = unsafe { _mm256_loadu_si256(words.add(j)) };
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
        let odd = _mm256_srai_epi16::<8>(w);
        for (sum, x) in sums.iter_mut().zip(x) {
            // SAFETY: the caller's promise.
            let (x_even, x_odd) = unsafe { (x.even.get_unchecked(j), x.odd.get_unchecked(j)) };
            let evens = _mm256_madd_epi16(even, _mm256_set1_epi32(*x_even));
            let odds = _mm256_madd_epi16(odd, _mm256_set1_epi32(*x_odd));
            *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(evens, odds));
        }
    }
    sums
}
