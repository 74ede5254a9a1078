//! F16 and BF16 weights times Q14 rows, by `vpmaddwd`, or AVX-VNNI's `vpdpwssd`.
//!
//! Weights of a group of eight rows become integers of a vector's 16 lanes of 16 bits, a pair of columns a row ([`crate::pack::pairs`]),
//! and are multiplied with pairs of a token's quants. Few tokens convert weights as they meet them; more share panels of what is
//! converted, a chunk of k of [`GROUPS`] groups at a time.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::float::{BF16, Element, F16};
use crate::abi::MatMulArgs;
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::pack::pairs::{BLOCK_BYTES, PAIR};
use crate::quant::BLOCK;

/// Tokens that meet weights as these are converted.
const FEW: usize = 4;

/// Groups that a token meets at a time, of a panel; and those that a lone token does, on processors that read several streams
/// faster than one.
const GROUPS: usize = 4;

/// Pairs of columns of a block.
const PAIRS: usize = BLOCK / 2;

/// Blocks of a panel: 16 KiB for four groups.
const PANEL: usize = 8;

/// Tokens of a call that are done at a time: weights are converted for each so many, and their quants of a chunk stay in the L2
/// cache.
const TOKENS: usize = 128;

/// How far ahead of the block in work few tokens' weights are fetched, in bytes.
const AHEAD: usize = 4096;

macro_rules! matmuls {
    ($($name:ident: $element:ident $vnni:literal, $doc:literal;)*) => {$(
        #[doc = $doc]
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = "avx2,bmi2,f16c,fma")]
        pub unsafe fn $name(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { matmul::<$element, $vnni>(args) }
        }
    )*};
}

matmuls! {
    matmul_f16_q14: F16 false, "F16 weights times Q14 rows.";
    matmul_bf16_q14: BF16 false, "BF16 weights times Q14 rows.";
    vnni_matmul_f16_q14: F16 true, "[`matmul_f16_q14`] of a processor that has AVX-VNNI, too.";
    vnni_matmul_bf16_q14: BF16 true, "[`matmul_bf16_q14`] of a processor that has AVX-VNNI, too.";
}

/// # Safety
/// As the scalar twin; with VNNI the processor has AVX-VNNI.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<E: Element, const VNNI: bool>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.rows as usize {
            1 if !is_amd() => few::<E, VNNI, GROUPS, 1>(args),
            1 => few::<E, VNNI, 1, 1>(args),
            2 => few::<E, VNNI, 1, 2>(args),
            3 => few::<E, VNNI, 1, 3>(args),
            FEW => few::<E, VNNI, 1, FEW>(args),
            _ => many::<E, VNNI>(args),
        }
    }
}

/// The packed groups of a call's columns, from the `g`-th on.
fn packed(args: &MatMulArgs, g: usize) -> *const u8 {
    let group_bytes = args.k as usize / BLOCK * BLOCK_BYTES;
    let first = args.col0 as usize / GROUP;
    args.w.wrapping_add((first + g) * group_bytes)
}

/// T tokens, G groups side by side as far as there are so many.
///
/// # Safety
/// As [`matmul`], with T rows.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn few<E: Element, const VNNI: bool, const G: usize, const T: usize>(args: &MatMulArgs) {
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut g = 0;
    while g < groups {
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        g += unsafe {
            match groups - g >= G {
                true => converted::<E, VNNI, G, T>(args, g),
                false => converted::<E, VNNI, 1, T>(args, g),
            }
        };
    }
}

/// T tokens and the G groups from `g` on; the number of these.
///
/// # Safety
/// As [`few`], and the call has the groups.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn converted<E: Element, const VNNI: bool, const G: usize, const T: usize>(
    args: &MatMulArgs,
    g: usize,
) -> usize {
    let (k, blocks) = (args.k as usize, args.k as usize / BLOCK);
    let group_bytes = blocks * BLOCK_BYTES;
    let w = packed(args, g);
    let mut acc = [[_mm256_setzero_ps(); T]; G];
    // SAFETY: the caller's promise; quants of a row are followed by a scale for each 32.
    unsafe {
        let x: [*const u8; T] = args.x_rows(0);
        for b in 0..blocks {
            // What is ahead of a group's last blocks is in the group that takes its place.
            let ends = (b + 1) * BLOCK_BYTES + AHEAD > group_bytes;
            let ahead = AHEAD + if ends { (G - 1) * group_bytes } else { 0 };
            for (g, acc) in acc.iter_mut().enumerate() {
                let at = w.add(g * group_bytes + b * BLOCK_BYTES);
                let block = Block::<E>::new(at);
                let mut isums = [_mm256_setzero_si256(); T];
                for j in 0..PAIRS {
                    if j.is_multiple_of(2) {
                        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(ahead + j * PAIR).cast());
                    }
                    let word = block.word(j);
                    for (isum, x) in isums.iter_mut().zip(x) {
                        let pair = x.add(2 * b * BLOCK + 4 * j).cast::<i32>();
                        let pair = _mm256_set1_epi32(pair.read_unaligned());
                        *isum = add_product::<VNNI>(*isum, word, pair);
                    }
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    let scale = _mm256_broadcast_ss(&*x[t].add(2 * k).cast::<f32>().add(b));
                    let isum = _mm256_cvtepi32_ps(isums[t]);
                    *acc = _mm256_fmadd_ps(isum, _mm256_mul_ps(block.factors, scale), *acc);
                }
            }
        }
        for (n, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                let out = args.out.add(t * args.out_stride as usize);
                _mm256_storeu_ps(out.add((g + n) * GROUP), acc);
            }
        }
    }
    G
}

/// Adds products of pairs, in 32 bits.
///
/// # Safety
/// With VNNI the processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn add_product<const VNNI: bool>(sum: __m256i, word: __m256i, pair: __m256i) -> __m256i {
    if !VNNI {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(word, pair));
    }
    let mut sum = sum;
    // SAFETY: the caller's promise. In AVX-VNNI's encoding; it reads and writes no memory.
    unsafe {
        asm!(
            "{{vex}} vpdpwssd {sum}, {word}, {pair}",
            sum = inout(ymm_reg) sum,
            word = in(ymm_reg) word,
            pair = in(ymm_reg) pair,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// A packed block of eight rows, to be converted.
struct Block<E> {
    at: *const u8,
    /// The factors of the rows' integers.
    factors: __m256,
    /// 2^-x of the rows of each half of a pair.
    inverses: [__m256; 2],
    element: PhantomData<E>,
}

impl<E: Element> Block<E> {
    /// # Safety
    /// `at` points at a packed block.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn new(at: *const u8) -> Block<E> {
        // SAFETY: the caller's promise; a block begins with eight exponents.
        let exponents = unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())) };
        let bias = _mm256_set1_epi32(127);
        let power = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(x));
        let inverse = power(_mm256_sub_epi32(bias, exponents));
        Block {
            at: at.wrapping_add(GROUP),
            factors: power(_mm256_add_epi32(bias, exponents)),
            // Of 128 bits two rows, twice each: 0 and 1, 4 and 5; then 2 and 3, 6 and 7.
            inverses: [
                _mm256_unpacklo_ps(inverse, inverse),
                _mm256_unpackhi_ps(inverse, inverse),
            ],
            element: PhantomData,
        }
    }

    /// Word `j`: a pair of columns of each row.
    ///
    /// # Safety
    /// There are [`PAIRS`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn word(&self, j: usize) -> __m256i {
        let half = |i: usize| {
            // SAFETY: eight elements of the pair.
            let elements = unsafe { E::load(self.at.add(j * PAIR + i * PAIR / 2)) };
            _mm256_cvtps_epi32(_mm256_mul_ps(elements, self.inverses[i]))
        };
        _mm256_packs_epi32(half(0), half(1))
    }
}

/// What is converted of a chunk: of each block the words of G groups in turn, and their factors.
struct Panels {
    words: [[__m256i; GROUPS * PAIRS]; PANEL],
    factors: [[__m256; GROUPS]; PANEL],
}

/// More tokens than [`FEW`].
///
/// # Safety
/// As [`matmul`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn many<E: Element, const VNNI: bool>(args: &MatMulArgs) {
    let (rows, blocks) = (args.rows as usize, args.k as usize / BLOCK);
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut panels = MaybeUninit::<Panels>::uninit();
    // Slices of about one size: weights are converted for each.
    let step = rows.div_ceil(rows.div_ceil(TOKENS));
    for first in (0..rows).step_by(step) {
        let tokens = step.min(rows - first);
        for chunk in (0..blocks).step_by(PANEL) {
            let count = PANEL.min(blocks - chunk);
            let mut g = 0;
            while g < groups {
                let strip = Strip {
                    args,
                    first,
                    tokens,
                    chunk,
                    count,
                    g,
                };
                // SAFETY: the caller's promise.
                g += unsafe {
                    match groups - g {
                        GROUPS.. => strip.groups::<E, VNNI, GROUPS>(panels.as_mut_ptr()),
                        2.. => strip.groups::<E, VNNI, 2>(panels.as_mut_ptr()),
                        _ => strip.groups::<E, VNNI, 1>(panels.as_mut_ptr()),
                    }
                };
            }
        }
    }
}

/// Some groups and tokens of a call over a chunk.
struct Strip<'a> {
    args: &'a MatMulArgs,
    first: usize,
    tokens: usize,
    /// The first block.
    chunk: usize,
    /// Blocks of the chunk.
    count: usize,
    /// The first group of the call's.
    g: usize,
}

impl Strip<'_> {
    /// G groups; their number.
    ///
    /// # Safety
    /// The call has them and the tokens; the panels may be written.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn groups<E: Element, const VNNI: bool, const G: usize>(
        &self,
        panels: *mut Panels,
    ) -> usize {
        let args = self.args;
        let group_bytes = args.k as usize / BLOCK * BLOCK_BYTES;
        for g in 0..G {
            for b in 0..self.count {
                // SAFETY: the caller promises the groups from `col0` on; there is room for the panels.
                unsafe {
                    let at = packed(args, self.g + g).add((self.chunk + b) * BLOCK_BYTES);
                    // Each chunk of a group is too short for the processor to see what comes next: the next groups' of it.
                    let next = at.wrapping_add(G * group_bytes);
                    let block = Block::<E>::new(at);
                    (*panels).factors[b][g] = block.factors;
                    for j in 0..PAIRS {
                        if j.is_multiple_of(2) {
                            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(j * PAIR).cast());
                        }
                        (*panels).words[b][j * G + g] = block.word(j);
                    }
                }
            }
        }
        for row in self.first..self.first + self.tokens {
            // SAFETY: rows of out have the groups' columns.
            unsafe {
                let out = args
                    .out
                    .add(row * args.out_stride as usize + self.g * GROUP);
                self.token::<VNNI, G>(&*panels, args.x_row(row), out);
            }
        }
        G
    }

    /// Adds the products of the chunk with a token's row to what `out` holds of those before it.
    ///
    /// # Safety
    /// The panels have the chunk of G groups, `out` as many.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn token<const VNNI: bool, const G: usize>(
        &self,
        panels: &Panels,
        row: *const u8,
        out: *mut f32,
    ) {
        // SAFETY: the caller's promise; the row has the chunk, and scales behind its quants.
        unsafe {
            let scales = row.add(2 * self.args.k as usize).cast::<f32>();
            let mut acc: [__m256; G] = std::array::from_fn(|g| match self.chunk {
                0 => _mm256_setzero_ps(),
                _ => _mm256_loadu_ps(out.add(g * GROUP)),
            });
            for b in 0..self.count {
                let x = row.add(2 * (self.chunk + b) * BLOCK).cast::<i32>();
                let words = panels.words.as_ptr().add(b).cast::<__m256i>();
                let isums = isums::<VNNI, G>(x, words);
                let scale = _mm256_broadcast_ss(&*scales.add(self.chunk + b));
                for (g, acc) in acc.iter_mut().enumerate() {
                    let factor = _mm256_mul_ps(panels.factors.get_unchecked(b)[g], scale);
                    *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isums[g]), factor, *acc);
                }
            }
            for (g, acc) in acc.into_iter().enumerate() {
                _mm256_storeu_ps(out.add(g * GROUP), acc);
            }
        }
    }
}

/// The exact inner products of a token's 32 quants with a block of G groups, by words of all of these in turn.
///
/// # Safety
/// Both are there; with VNNI the processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn isums<const VNNI: bool, const G: usize>(
    x: *const i32,
    words: *const __m256i,
) -> [__m256i; G] {
    let mut isums = [_mm256_setzero_si256(); G];
    macro_rules! add_words {
        ($($j:literal)*) => {$(
            // SAFETY: the caller's promise.
            unsafe {
                let pair = _mm256_set1_epi32(x.add($j).read_unaligned());
                for (g, isum) in isums.iter_mut().enumerate() {
                    let word = words.add($j * G + g);
                    *isum = add_product::<VNNI>(*isum, *word, pair);
                    // In the order of the source: a pair for all groups before the next.
                    asm!("/* {} */", inout(ymm_reg) *isum, options(nomem, nostack, preserves_flags));
                }
            }
        )*};
    }
    add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    isums
}
