//! Blocks of activations, as products read them: where they are, or prepared for all features of a call.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::quant::{PANEL, ROWS};
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::Format;
use crate::quant::BLOCK;

/// Where blocks of 32 quants of some tokens are.
#[derive(Clone, Copy)]
pub struct XBlock {
    /// The first token's.
    pub at: *const u8,
    /// Bytes from a token to the next.
    pub token: usize,
    /// Bytes from the high bytes of Q16 to the low ones.
    pub byte: usize,
}

/// How a block is prepared.
pub trait Block {
    const BYTES: usize;

    /// # Safety
    /// `x` is a block's (high) bytes, the low ones `byte` behind them; `to` has room for BYTES, and is aligned to 32.
    unsafe fn prepare(x: *const u8, byte: usize, to: *mut u8);
}

/// Q8, raised by 128.
pub enum RaisedBlock {}

impl Block for RaisedBlock {
    const BYTES: usize = 32;

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn prepare(x: *const u8, _: usize, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm256_loadu_si256(x.cast());
            _mm256_store_si256(to.cast(), _mm256_xor_si256(x, _mm256_set1_epi8(-128)));
        }
    }
}

/// Q16 in 16 bits: of each four quants the even ones, and behind all these the odd ones.
pub enum PairedBlock {}

impl Block for PairedBlock {
    const BYTES: usize = 64;

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn prepare(x: *const u8, byte: usize, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            let high = _mm256_loadu_si256(x.cast());
            let low = _mm256_loadu_si256(x.add(byte).cast());
            let even = _mm256_add_epi16(
                _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(high)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low)),
            );
            let odd = _mm256_add_epi16(
                _mm256_slli_epi16::<7>(_mm256_srai_epi16::<8>(high)),
                _mm256_srai_epi16::<8>(low),
            );
            _mm256_store_si256(to.cast(), even);
            _mm256_store_si256(to.add(32).cast(), odd);
        }
    }
}

/// Room for the activations of a chunk.
#[repr(align(64))]
pub struct Prepared([MaybeUninit<u8>; PANEL * ROWS * 2 * BLOCK]);

impl Prepared {
    pub fn new() -> Prepared {
        Prepared([const { MaybeUninit::uninit() }; PANEL * ROWS * 2 * BLOCK])
    }

    /// Prepares `parts` blocks of `rows` tokens and says where they are: a block after the other, of [`ROWS`] tokens each.
    ///
    /// # Safety
    /// `x` is where they are in the first row; they are PANEL and ROWS at most.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub unsafe fn fill<B: Block>(
        &mut self,
        args: &MatMulArgs,
        x: *const u8,
        rows: usize,
        parts: usize,
    ) -> *const u8 {
        let to: *mut u8 = self.0.as_mut_ptr().cast();
        for row in 0..rows {
            for i in 0..parts {
                // SAFETY: the caller's promise, and the room's size.
                unsafe {
                    let from = x.add(row * args.x_stride as usize + i * BLOCK);
                    let to = to.add((i * ROWS + row) * B::BYTES);
                    B::prepare(from, args.k as usize, to);
                }
            }
        }
        // Hidden, so that words are loaded to all lanes at once: the compiler would rather shuffle what was stored.
        std::hint::black_box(to)
    }
}

impl XBlock {
    /// The exact inner products of T tokens of a [`PairedBlock`] with weights of 16 bits: eight vectors of even elements,
    /// eight of odd ones.
    ///
    /// # Safety
    /// It has T tokens; `words` may be read.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub unsafe fn wide_sums<F: Format, const T: usize, const SHARED: bool>(
        self,
        words: *const [__m512i; 16],
    ) -> [__m512i; T] {
        let mut sums = [_mm512_setzero_si512(); T];
        let at = self.at;
        // Written out: an address is a register and a constant.
        macro_rules! add_words {
            ($($j:literal)*) => {$({
                // SAFETY: the caller's promise.
                let word = unsafe { (*words)[$j] };
                add_tokens!($j, word: 0 1 2 3 4 5 6 7);
            })*};
        }
        macro_rules! add_tokens {
            ($j:literal, $word:ident: $($t:literal)*) => {$(
                if $t < T {
                    // SAFETY: the caller's promise; a token has 16 pairs. The intrinsic becomes `vpmaddwd` and `vpaddd`, for what
                    // that saves of latency: twice the operations.
                    unsafe {
                        asm!(
                            "vpdpwssd {sum}, {word}, dword ptr [{at} + {offset}]{{1to16}}",
                            sum = inout(zmm_reg) sums[$t],
                            word = in(zmm_reg) $word,
                            at = in(reg) at,
                            offset = const $t * PairedBlock::BYTES + 4 * $j,
                            options(pure, readonly, nostack, preserves_flags),
                        );
                    }
                }
            )*};
        }
        add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        sums
    }
}
