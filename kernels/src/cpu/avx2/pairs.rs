//! Weights in pairs ([`crate::pack::pairs`]) times Q14 rows, by `vpmaddwd`, or AVX-VNNI's `vpdpwssd`.
//!
//! The lanes of 32 bits of a vector are pairs of integers of a group's eight rows, and are multiplied with pairs of a token's quants. Many
//! tokens meet a chunk of k of [`GROUPS`] groups at a time, which stays in the L1 cache.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::abi::MatMulArgs;
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::pack::pairs::{BLOCK_BYTES, PAIR, bytes_of_group};
use crate::quant::BLOCK;

/// Tokens that meet weights from memory.
const FEW: usize = 4;

/// Groups that a token meets at a time. A lone token waits for memory, which has more reads under way with as many streams than with one.
const GROUPS: usize = 4;

/// Blocks of a chunk: 16 KiB of four groups.
const CHUNK: usize = 8;

/// Tokens of a call that are done at a time, so that their quants of a chunk stay in the L2 cache.
const TOKENS: usize = 128;

/// How far ahead of the block in work few tokens' weights are fetched, in bytes.
const AHEAD: usize = 8192;

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Weights in pairs times Q14 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_pairs(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<false>(args) }
}

/// [`matmul_pairs`] of a processor that has AVX-VNNI, too.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn vnni_matmul_pairs(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<true>(args) }
}

/// # Safety
/// As the scalar twin; with VNNI the processor has AVX-VNNI.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<const VNNI: bool>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.rows as usize {
            // AMD's cores fetch so many streams by themselves (NOTES.md, "Weights of 16 bits").
            1 => few::<VNNI, GROUPS, 1>(args, !is_amd()),
            2 => few::<VNNI, 1, 2>(args, true),
            3 => few::<VNNI, 1, 3>(args, true),
            FEW => few::<VNNI, 1, FEW>(args, true),
            _ => many::<VNNI>(args),
        }
    }
}

/// T tokens, G groups side by side as far as there are so many; whether their pairs are fetched ahead.
///
/// # Safety
/// As [`matmul`], with T rows.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn few<const VNNI: bool, const G: usize, const T: usize>(args: &MatMulArgs, fetches: bool) {
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut g = 0;
    while g < groups {
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        g += unsafe {
            match groups - g >= G {
                true => side_by_side::<VNNI, G, T>(args, g, fetches),
                false => side_by_side::<VNNI, 1, T>(args, g, fetches),
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
unsafe fn side_by_side<const VNNI: bool, const G: usize, const T: usize>(
    args: &MatMulArgs,
    g: usize,
    fetches: bool,
) -> usize {
    let weights = Weights::<G>::new(args, g);
    // SAFETY: the caller's promise; rows have the blocks.
    unsafe {
        let x: [*const u8; T] = args.x_rows(0);
        let mut acc = [[_mm256_setzero_ps(); G]; T];
        for b in 0..weights.blocks {
            // What is ahead of a group's last blocks is in the group that takes its place.
            let ends = (b + 1) * BLOCK_BYTES + AHEAD > weights.group_bytes;
            let ahead = match ends {
                true => AHEAD + (G - 1) * weights.group_bytes,
                false => AHEAD,
            };
            if fetches {
                weights.fetch(b, ahead);
            }
            if b.is_multiple_of(LINE / GROUP) {
                weights.fetch_exponents(b + 2 * LINE / GROUP);
            }
            let factors = weights.factors(b);
            weights.add::<VNNI, T, true>(b, &factors, x, &mut acc);
        }
        for (t, acc) in acc.into_iter().enumerate() {
            let out = args.out.add(t * args.out_stride as usize + g * GROUP);
            for (g, acc) in acc.into_iter().enumerate() {
                _mm256_storeu_ps(out.add(g * GROUP), acc);
            }
        }
    }
    G
}

/// More tokens than [`FEW`].
///
/// # Safety
/// As [`matmul`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn many<const VNNI: bool>(args: &MatMulArgs) {
    let (rows, blocks) = (args.rows as usize, args.k as usize / BLOCK);
    let groups = (args.cols as usize).div_ceil(GROUP);
    for first in (0..rows).step_by(TOKENS) {
        let rows = first..rows.min(first + TOKENS);
        for chunk in (0..blocks).step_by(CHUNK) {
            let chunk = chunk..blocks.min(chunk + CHUNK);
            let mut g = 0;
            while g < groups {
                // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
                g += unsafe {
                    match groups - g {
                        GROUPS.. => strip::<VNNI, GROUPS>(args, g, rows.clone(), chunk.clone()),
                        2.. => strip::<VNNI, 2>(args, g, rows.clone(), chunk.clone()),
                        _ => strip::<VNNI, 1>(args, g, rows.clone(), chunk.clone()),
                    }
                };
            }
        }
    }
}

/// Some rows and some blocks of the G groups from `g` on; the number of these. Sums of blocks before those are in `out`.
///
/// # Safety
/// As [`matmul`], and the call has them.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn strip<const VNNI: bool, const G: usize>(
    args: &MatMulArgs,
    g: usize,
    rows: Range<usize>,
    chunk: Range<usize>,
) -> usize {
    let weights = Weights::<G>::new(args, g);
    let mut factors = [[_mm256_setzero_ps(); G]; CHUNK];
    for (b, factors) in chunk.clone().zip(&mut factors) {
        weights.fetch_exponents(weights.blocks + b);
        // SAFETY: the caller's promise.
        *factors = unsafe { weights.factors(b) };
    }
    let tokens = rows.len();
    for (n, row) in rows.enumerate() {
        // Each chunk of a group is too short for the processor to see what comes next, the next groups' of it. All blocks at once would
        // wait for one another, so each token fetches its share of them.
        let share = n * chunk.len() / tokens..(n + 1) * chunk.len() / tokens;
        for b in share {
            weights.fetch(chunk.start + b, G * weights.group_bytes);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let x = args.x_row(row);
            let out = args.out.add(row * args.out_stride as usize + g * GROUP);
            let mut acc = [[_mm256_setzero_ps(); G]; 1];
            if chunk.start > 0 {
                for (g, acc) in acc[0].iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(out.add(g * GROUP));
                }
            }
            for (b, factors) in chunk.clone().zip(&factors) {
                weights.add::<VNNI, 1, false>(b, factors, [x], &mut acc);
            }
            for (g, acc) in acc[0].into_iter().enumerate() {
                _mm256_storeu_ps(out.add(g * GROUP), acc);
            }
        }
    }
    G
}

/// G packed groups.
struct Weights<const G: usize> {
    at: *const u8,
    group_bytes: usize,
    /// Blocks of a group.
    blocks: usize,
}

impl<const G: usize> Weights<G> {
    /// Those from the call's `g`-th on.
    fn new(args: &MatMulArgs, g: usize) -> Weights<G> {
        let blocks = args.k as usize / BLOCK;
        let group_bytes = bytes_of_group(blocks);
        let first = args.col0 as usize / GROUP + g;
        Weights {
            at: args.w.wrapping_add(first * group_bytes),
            group_bytes,
            blocks,
        }
    }

    /// Fetches what is `ahead` bytes behind block `b` of each group.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn fetch(&self, b: usize, ahead: usize) {
        for g in 0..G {
            let at = self
                .at
                .wrapping_add(g * self.group_bytes + b * BLOCK_BYTES + ahead);
            for line in 0..BLOCK_BYTES / LINE {
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * LINE).cast());
            }
        }
    }

    /// Fetches the exponents of block `b`, counted on to the groups behind these.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn fetch_exponents(&self, b: usize) {
        let (next, b) = match b < self.blocks {
            true => (0, b),
            false => (G, b - self.blocks),
        };
        for g in next..next + G {
            let at = self.at.wrapping_add(g * self.group_bytes);
            let at = at.wrapping_add(self.blocks * BLOCK_BYTES + b * GROUP);
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }

    /// The factors of the integers of block `b`.
    ///
    /// # Safety
    /// The groups have the block.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn factors(&self, b: usize) -> [__m256; G] {
        let mut factors = [_mm256_setzero_ps(); G];
        for (g, factor) in factors.iter_mut().enumerate() {
            // SAFETY: the caller's promise; a group's exponents are behind its pairs.
            let exponents = unsafe {
                let at = self
                    .at
                    .add(g * self.group_bytes + self.blocks * BLOCK_BYTES);
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(b * GROUP).cast()))
            };
            let biased = _mm256_add_epi32(exponents, _mm256_set1_epi32(127));
            *factor = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
        }
        factors
    }

    /// Adds the products of block `b`, whose factors these are, with those of T rows. Instantiated once for each place that it is used at
    /// (therefore FEW), so that it is inlined and accumulators stay in registers.
    ///
    /// # Safety
    /// The groups have the block, and so have the Q14 rows; with VNNI the processor has AVX-VNNI.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add<const VNNI: bool, const T: usize, const FEW: bool>(
        &self,
        b: usize,
        factors: &[__m256; G],
        rows: [*const u8; T],
        acc: &mut [[__m256; G]; T],
    ) {
        // SAFETY: the caller's promise; a row's scales are behind its quants.
        unsafe {
            let mut quants = rows;
            for quants in &mut quants {
                *quants = quants.add(2 * b * BLOCK);
            }
            let isums = self.isums::<VNNI, T, FEW>(b, quants);
            for (t, acc) in acc.iter_mut().enumerate() {
                let scales = rows[t].add(2 * self.blocks * BLOCK).cast::<f32>();
                let scale = _mm256_broadcast_ss(&*scales.add(b));
                for (g, acc) in acc.iter_mut().enumerate() {
                    let factor = _mm256_mul_ps(factors[g], scale);
                    *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isums[t][g]), factor, *acc);
                }
            }
        }
    }

    /// The exact inner products of block `b` with 32 quants of T tokens.
    ///
    /// # Safety
    /// As [`Weights::add`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn isums<const VNNI: bool, const T: usize, const FEW: bool>(
        &self,
        b: usize,
        x: [*const u8; T],
    ) -> [[__m256i; G]; T] {
        let at = self.at.wrapping_add(b * BLOCK_BYTES);
        let mut isums = [[_mm256_setzero_si256(); G]; T];
        macro_rules! add_pairs {
            ($($j:literal)*) => {$(
                // SAFETY: the caller's promise.
                unsafe {
                    let mut quants = [_mm256_setzero_si256(); T];
                    for (quants, x) in quants.iter_mut().zip(x) {
                        let pair = x.add(4 * $j).cast::<i32>().read_unaligned();
                        *quants = _mm256_set1_epi32(pair);
                    }
                    for g in 0..G {
                        let pair = at.add(g * self.group_bytes + $j * PAIR);
                        let pair = _mm256_loadu_si256(pair.cast());
                        for (isums, quants) in isums.iter_mut().zip(quants) {
                            isums[g] = add_product::<VNNI>(isums[g], pair, quants);
                        }
                    }
                }
            )*};
        }
        add_pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        isums
    }
}

/// Adds products of pairs, in 32 bits.
///
/// # Safety
/// With VNNI the processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn add_product<const VNNI: bool>(sum: __m256i, pair: __m256i, quants: __m256i) -> __m256i {
    let mut sum = sum;
    // SAFETY: the caller's promise. In AVX-VNNI's encoding.
    unsafe {
        if VNNI {
            asm!(
                "{{vex}} vpdpwssd {sum}, {pair}, {quants}",
                sum = inout(ymm_reg) sum,
                pair = in(ymm_reg) pair,
                quants = in(ymm_reg) quants,
                options(nomem, nostack, preserves_flags),
            );
        } else {
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, quants));
            // No instruction: sums are computed in the order of the source, the quants of a pair with all groups before the next. The
            // compiler would rather do a group after the other, and keep the quants where sums could be.
            asm!("/* {} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags));
        }
    }
    sum
}
