//! Products of signed weights with a scale a half and Q11 rows, in 16 bits.

use std::arch::asm;
use std::arch::x86_64::*;

use super::part::join;
use super::quant::TOKENS;
use crate::cpu::avx2::quant::Format;
use crate::quant::BLOCK;

/// Widens 32 quants of two bytes of each of some tokens to 16 bits, two tokens side by side: of each four, the even ones of all the
/// block, then the odd ones. Of an odd number of tokens the last has itself for company.
///
/// # Safety
/// `at` points at the blocks of as many tokens; `to` has room for a vector a token, rounded up to pairs.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn widen(at: [*const u8; TOKENS], tokens: usize, to: *mut __m512i) {
    for t in (0..tokens).step_by(2) {
        // SAFETY: a token has 32 quants of each byte, two tokens 64 bytes in each array.
        unsafe {
            let both = |byte: usize| {
                let load = |t: usize| _mm256_loadu_si256(at[t].add(byte * BLOCK).cast());
                join(load(t), load((t + 1).min(tokens - 1)))
            };
            let (high, low) = (both(0), both(1));
            let even = _mm512_add_epi16(
                _mm512_srai_epi16::<5>(_mm512_slli_epi16::<8>(high)),
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(low)),
            );
            let odd = _mm512_add_epi16(
                _mm512_slli_epi16::<3>(_mm512_srai_epi16::<8>(high)),
                _mm512_srai_epi16::<8>(low),
            );
            to.add(t).write(even);
            to.add(t + 1).write(odd);
        }
    }
}

/// Up to so many tokens, sums are two chains each.
const CHAINS: usize = 4;

/// The exact inner products of widened activations with a part's words: of up to [`CHAINS`] tokens those of even words and of odd
/// ones, lest each token waits for one chain.
///
/// # Safety
/// `pairs` has T tokens' ([`widen`]); `words` may be read.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn wide_sums<F: Format, const T: usize, const SHARED: bool>(
    pairs: *const __m512i,
    words: *const [__m512i; 16],
) -> [__m512i; T] {
    let (mut even, mut odd) = ([_mm512_setzero_si512(); T], [_mm512_setzero_si512(); T]);
    macro_rules! add_words {
        ($($j:literal)*) => {$(
            let sums = if T <= CHAINS && $j % 2 == 1 { &mut odd } else { &mut even };
            // SAFETY: the caller's promise; a token has 16 pairs.
            unsafe {
                let word = (*words)[$j];
                for (t, sum) in sums.iter_mut().enumerate() {
                    let at = pairs.cast::<[i16; 16]>().add(t / 2 * 4 + t % 2);
                    // The intrinsic becomes `vpmaddwd` and `vpaddd`, on one pipe each, for what it saves of latency. Not
                    // `pure`: it stays in the order of the source: a word for all tokens before the next.
                    asm!(
                        "vpdpwssd {sum}, {word}, dword ptr [{at} + {offset}]{{1to16}}",
                        sum = inout(zmm_reg) *sum,
                        word = in(zmm_reg) word,
                        at = in(reg) at,
                        offset = const 4 * $j + $j / 8 * 32,
                        options(readonly, nostack, preserves_flags),
                    );
                }
            }
        )*};
    }
    add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    if T <= CHAINS {
        for (even, odd) in even.iter_mut().zip(odd) {
            *even = _mm512_add_epi32(*even, odd);
        }
    }
    even
}
