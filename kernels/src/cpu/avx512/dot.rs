//! Exact products of unpacked weights and a block of 32 quants of some tokens, by `vpdpbusd` and `vpdpwssd`.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::part::{Part, has_halves, holds_scales, is_wide, raised};
use super::quant::TOKENS;
use super::wide::{wide_sums, widen};
use crate::cpu::avx2::quant::{Format, Scales};
use crate::quant::BLOCK;

/// What sums of a block start from: numbers of the first token, and how many further on are those of the next.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    pub(super) at: *const i32,
    pub(super) token: usize,
}

impl Starts {
    /// Those of a half of each of T tokens, or of both, the first.
    ///
    /// # Safety
    /// There are the numbers, if weights of F are raised.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn of<F: Format, const T: usize>(self, half: usize) -> [__m512i; T] {
        std::array::from_fn(|t| match raised::<F>() {
            0 => _mm512_setzero_si512(),
            // SAFETY: the caller's promise.
            _ => _mm512_set1_epi32(unsafe { *self.at.add(t * self.token + half) }),
        })
    }
}

/// Where a block of 32 quants of each of some tokens is. Behind the high bytes of Q11 are the low ones.
#[derive(Clone, Copy)]
pub(super) struct XBlock {
    pub(super) at: [*const u8; TOKENS],
    /// The same in 16 bits ([`widen`]), or null.
    pub(super) widened: *const __m512i,
}

impl XBlock {
    /// The inner products of a part's rows with T tokens, from what sums of each half start from (or of both, the first) where weights
    /// are raised, integer scales included: exact numbers, in f32.
    ///
    /// # Safety
    /// It has T tokens.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn isums<
        F: Format,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
        const JOINED: bool,
    >(
        self,
        part: *const Part,
        starts: Starts,
    ) -> [__m512; T] {
        // SAFETY: the caller's promise.
        unsafe {
            if is_wide::<F, BYTES>() {
                let mut own = MaybeUninit::<[[__m512i; 2]; T]>::uninit();
                let mut pairs = self.widened;
                if pairs.is_null() {
                    widen(self.at, T, own.as_mut_ptr().cast());
                    pairs = own.as_ptr().cast();
                }
                return floats(wide_sums::<F, T, SHARED>(pairs, &raw const (*part).words));
            }
            self.scaled_sums::<F, BYTES, T, SHARED, JOINED>(part, starts)
        }
    }

    /// [`XBlock::isums`] of bytes.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn scaled_sums<
        F: Format,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
        const JOINED: bool,
    >(
        self,
        part: *const Part,
        starts: Starts,
    ) -> [__m512; T] {
        // Halves with a scale each are wide, or meet Q8K rows.
        debug_assert!(!has_halves::<F>());
        // SAFETY: the caller's promise.
        unsafe {
            let words = (&raw const (*part).words).cast();
            let mut sums =
                floats(self.sums::<F, BYTES, T, SHARED, JOINED, 0, 8>(words, starts.of::<F, T>(0)));
            if F::SCALES == Scales::Whole {
                // The sums are below 2^24, so that a product rounds as the conversion of the exact integer does.
                for sum in &mut sums {
                    *sum = _mm512_mul_ps(*sum, _mm512_castsi512_ps((*part).scales));
                }
            }
            sums
        }
    }

    /// Adds [`XBlock::isums`] with Q8K rows, as integers, a half after the other where each has a scale.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn add_exactly<F: Format, const T: usize, const SHARED: bool>(
        self,
        part: *const Part,
        starts: Starts,
        to: &mut [__m512i; T],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = (&raw const (*part).words).cast();
            if has_halves::<F>() {
                let first = self.sums::<F, 1, T, SHARED, false, 0, 4>(words, starts.of::<F, T>(0));
                add_scaled(first, (*part).halves[0], to);
                let second = self.sums::<F, 1, T, SHARED, false, 4, 8>(words, starts.of::<F, T>(1));
                return add_scaled(second, (*part).halves[1], to);
            }
            let sums = self.sums::<F, 1, T, SHARED, false, 0, 8>(words, starts.of::<F, T>(0));
            match holds_scales::<F>() {
                true => (0..T).for_each(|t| to[t] = _mm512_add_epi32(to[t], sums[t])),
                false => add_scaled(sums, (*part).halves[0], to),
            }
        }
    }

    /// The products of words `FROM .. TO` of weights with T tokens, added to `starts`. Instantiated once in each microkernel
    /// (therefore F) and written out, so that it is inlined and all of it stays in registers.
    ///
    /// # Safety
    /// It has T tokens.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn sums<
        F: Format,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
        const JOINED: bool,
        const FROM: usize,
        const TO: usize,
    >(
        self,
        words: *const __m512i,
        starts: [__m512i; T],
    ) -> [__m512i; T] {
        let (mut sums, mut more) = (starts, [_mm512_setzero_si512(); T]);
        macro_rules! add_word {
            ($sums:expr, $byte:literal, $j:literal) => {
                if FROM <= $j && $j < TO {
                    let times_8 = JOINED && $byte == 0;
                    // SAFETY: the caller's promise.
                    let word = unsafe { *words.add(if times_8 { 8 + $j } else { $j }) };
                    for (t, sum) in $sums.iter_mut().enumerate() {
                        // SAFETY: the caller's promise; word j is 4 j bytes on.
                        *sum = unsafe { add_word::<$byte, $j>(*sum, word, self.at[t]) };
                    }
                }
            };
        }
        macro_rules! add_words {
            ($($j:literal)*) => {$(
                match BYTES {
                    2 if JOINED && !has_two_chains::<T>(TO - FROM) => {
                        add_word!(sums, 0, $j);
                        add_word!(sums, 1, $j);
                    }
                    2 => {
                        add_word!(sums, 0, $j);
                        add_word!(more, 1, $j);
                    }
                    _ if has_two_chains::<T>(TO - FROM) && $j % 2 == 1 => add_word!(more, 0, $j),
                    _ => add_word!(sums, 0, $j),
                }
            )*};
        }
        add_words!(0 1 2 3 4 5 6 7);
        let is_apart = BYTES == 2 && !JOINED;
        for (sum, more) in sums.iter_mut().zip(more) {
            if is_apart {
                *sum = _mm512_slli_epi32::<3>(*sum);
            }
            if is_apart || has_two_chains::<T>(TO - FROM) {
                *sum = _mm512_add_epi32(*sum, more);
            }
        }
        sums
    }
}

/// `sum` plus the products of a word of weights with four activations, word number WORD of block BLOCKS behind `at`. In the order of the source, a
/// word for all tokens before the next word, since a token's products are one chain or two.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn add_word<const BLOCKS: usize, const WORD: usize>(
    mut sum: __m512i,
    word: __m512i,
    at: *const u8,
) -> __m512i {
    // SAFETY: the caller's promise. With an index, which the compiler would have in it, the instruction is two operations.
    unsafe {
        asm!(
            "vpdpbusd {sum}, {word}, dword ptr [{at} + {offset}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            word = in(zmm_reg) word,
            at = in(reg) at,
            offset = const BLOCKS * BLOCK + 4 * WORD,
            options(readonly, nostack, preserves_flags),
        );
    }
    sum
}

/// `sum` plus the products of pairs of 16 bits with the pair `OFFSET` bytes behind `at`. Of the intrinsic the compiler makes two operations, and
/// it is in the order of the source, as [`XBlock::sums`] is.
///
/// # Safety
/// The pair is there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn add_pairs<const OFFSET: usize>(
    mut sum: __m512i,
    pairs: __m512i,
    at: *const i16,
) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {pairs}, dword ptr [{at} + {offset}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            pairs = in(zmm_reg) pairs,
            at = in(reg) at,
            offset = const OFFSET,
            options(readonly, nostack, preserves_flags),
        );
    }
    sum
}

/// Whether a token's products of some words of one byte are two chains: few tokens would wait for one (NOTES.md, "Few tokens"). Those
/// of both bytes of Q11 are two by themselves.
const fn has_two_chains<const T: usize>(words: usize) -> bool {
    T <= 5 && words == 8
}

/// Integers in f32.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn floats<const T: usize>(sums: [__m512i; T]) -> [__m512; T] {
    let mut floats = [_mm512_setzero_ps(); T];
    for (float, sum) in floats.iter_mut().zip(sums) {
        *float = _mm512_cvtepi32_ps(sum);
    }
    floats
}

/// Adds integers times a factor each lane.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn add_scaled<const T: usize>(sums: [__m512i; T], scale: __m512i, to: &mut [__m512i; T]) {
    for (to, sum) in to.iter_mut().zip(sums) {
        *to = _mm512_add_epi32(*to, _mm512_mullo_epi32(sum, scale));
    }
}
