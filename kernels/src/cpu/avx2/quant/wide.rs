//! Products in 16 bits of blocks of one part: tiles of up to [`TOKENS`] tokens by [`GROUPS`] groups.
//!
//! Words of activations are widened once a call, those of weights as a tile meets them: each word of a group serves all tokens of the
//! tile, and each word of a token both groups. So a product takes three quarters of a load, where one of [`super::dot`] takes a whole one,
//! and nothing is written and held as a [panel](super::panel) is, for which a word is unpacked for each tile again.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::dot::WideBlock;
use super::many::{each_word, even_share, settle};
use super::panel::is_wide;
use super::starts::each_slice;
use super::{Format, Quants, Scales, fetch_part};
use crate::abi::MatMulArgs;
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 4;

/// Groups of a full tile: what a token adds to is eight registers.
const GROUPS: usize = 2;

/// Tokens of a call that are done at a time.
const SLICE: usize = 16;

/// Blocks of activations that are widened at a time: with the weights that they meet they stay in the L1 cache.
const ROOM: usize = 288;

/// Whether a format's products with rows whose quants have BYTES bytes can be these: in 16 bits, without integer scales.
pub(super) const fn has_tiles<F: Format, const BYTES: usize>() -> bool {
    is_wide::<F, BYTES, false>() && F::PARTS == 1 && matches!(F::SCALES, Scales::None)
}

/// Whether so many tokens are faster with these tiles than with others, or with panels, which cost the less the more tokens share them
/// (NOTES.md, "Tiles in 16 bits"). A lone one waits for memory, two where weights have four bits.
pub(super) fn is_best<F: Format, const BYTES: usize>(tokens: usize) -> bool {
    if !has_tiles::<F, BYTES>() {
        return false;
    }
    // Quants that need no unpacking.
    let is_bytes = F::PART == GROUP * BLOCK;
    let (least, most) = match (F::QUANTS, is_amd()) {
        (Quants::Signed, true) if is_bytes => (2, usize::MAX),
        (Quants::Signed, false) if is_bytes => (2, 16),
        (Quants::Signed, true) => (2, 4),
        (Quants::Signed, false) if BYTES == 2 => (2, 4),
        (Quants::Nibbles, true) if F::HAS_MIN => (3, usize::MAX),
        (Quants::Nibbles, true) => (3, 32),
        (Quants::Nibbles, false) => (3, 8),
        (Quants::Low, true) => (3, 8),
        _ => return false,
    };
    (least..=most).contains(&tokens)
}

/// Weights of a format times rows.
///
/// # Safety
/// As [`super::matmul`]; the format [has such tiles](has_tiles).
#[inline(never)]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        each_slice::<F, BYTES, false>(args, F::RAISED, |rows, starts| {
            let mut scratch = MaybeUninit::uninit();
            let per_row = args.k as usize / BLOCK;
            for first in rows.clone().step_by(SLICE) {
                let starts = starts.wrapping_add((first - rows.start) * per_row);
                let rows = first..rows.end.min(first + SLICE);
                slice::<F, BYTES>(args, rows, starts, &mut scratch);
            }
        })
    };
}

/// Up to [`SLICE`] rows, with what their sums start from ([`each_slice`]).
///
/// # Safety
/// As [`matmul`]; the call has the rows, and `starts` a number for each of their blocks if the format is raised.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn slice<F: Format, const BYTES: usize>(
    args: &MatMulArgs,
    rows: Range<usize>,
    starts: *const i32,
    scratch: &mut MaybeUninit<[WideBlock; ROOM]>,
) {
    let (blocks, tokens) = (args.k as usize / BLOCK, rows.len());
    let groups = (args.cols as usize).div_ceil(GROUP);
    let most = even_share(blocks, ROOM / tokens);
    let x = scratch.as_mut_ptr().cast::<WideBlock>();
    for chunk in (0..blocks).step_by(most) {
        let count = most.min(blocks - chunk);
        for (t, row) in rows.clone().enumerate() {
            // SAFETY: the row has the chunk's quants, and the scratch room for so many blocks of each token.
            unsafe {
                let row = args.x_row(row).add(chunk * BYTES * BLOCK);
                for i in 0..count {
                    let block = WideBlock::widen::<BYTES>(row.add(i * BYTES * BLOCK));
                    x.add(t * count + i).write(block);
                }
            }
        }
        for g in (0..groups).step_by(GROUPS) {
            let strip = Strip {
                args,
                rows: rows.clone(),
                starts,
                chunk: chunk..chunk + count,
                groups: g..groups.min(g + GROUPS),
                x,
            };
            // SAFETY: the caller's promise; the scratch has the tokens' activations.
            unsafe {
                match strip.groups.len() {
                    GROUPS => strip.run::<F, BYTES, GROUPS>(),
                    _ => strip.run::<F, BYTES, 1>(),
                }
            }
        }
    }
}

/// Some groups of a call over a chunk of blocks, and the rows that meet them.
struct Strip<'a> {
    args: &'a MatMulArgs,
    rows: Range<usize>,
    /// What the rows' sums start from, all blocks of a row after those of the one before, if the format is raised.
    starts: *const i32,
    /// Blocks.
    chunk: Range<usize>,
    /// Of the call's.
    groups: Range<usize>,
    /// The rows' activations, all blocks of a chunk after those of the row before.
    x: *const WideBlock,
}

impl Strip<'_> {
    /// Adds all rows' products with G groups to what out holds, or writes them.
    ///
    /// # Safety
    /// As [`slice`]; `x` has the activations.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<F: Format, const BYTES: usize, const G: usize>(&self) {
        let args = self.args;
        let (k, count) = (args.k as usize, self.chunk.len());
        let blocks = k / BLOCK;
        let block_bytes = F::HEADER + F::PART;
        let group_bytes = blocks * block_bytes;
        let first = args
            .w
            .wrapping_add(args.col0 as usize / GROUP * group_bytes);
        let w = first
            .wrapping_add(self.groups.start * group_bytes)
            .wrapping_add(self.chunk.start * block_bytes);
        // What tiles meet next: the next groups, the first ones of the next chunk, or those of the next columns.
        let groups = (args.cols as usize).div_ceil(GROUP);
        let next = match (self.groups.end < groups, self.chunk.end < blocks) {
            (true, _) => w.wrapping_add(G * group_bytes),
            (false, true) => first.wrapping_add(self.chunk.end * block_bytes),
            (false, false) => first.wrapping_add(groups * group_bytes),
        };
        let tiles = self.rows.len().div_ceil(TOKENS);
        let mut row = self.rows.start;
        for n in 0..tiles {
            // Tiles are about as large as one another.
            let tokens = (self.rows.end - row).div_ceil(tiles - n);
            let t = row - self.rows.start;
            // The first tile fetches what comes next of the first group, the second of the other, or a lone one of both.
            let fetches = std::array::from_fn(|g| tiles == 1 || n == g);
            // SAFETY: the call has the groups' weights, and rows of x and out.
            unsafe {
                let tile = Tile {
                    w,
                    group_bytes,
                    next,
                    fetches,
                    x: self.x.add(t * count),
                    count,
                    starts: self.starts.wrapping_add(t * blocks + self.chunk.start),
                    factors: args
                        .x_rows(row)
                        .map(|x| x.add(BYTES * k).cast::<f32>().add(self.chunk.start)),
                    blocks,
                    out: args
                        .out
                        .add(row * args.out_stride as usize + self.groups.start * GROUP),
                    out_stride: args.out_stride as usize,
                    resumes: self.chunk.start > 0,
                };
                match tokens {
                    1 => tile.run::<F, BYTES, 1, G>(),
                    2 => tile.run::<F, BYTES, 2, G>(),
                    3 => tile.run::<F, BYTES, 3, G>(),
                    _ => tile.run::<F, BYTES, TOKENS, G>(),
                }
            }
            row += tokens;
        }
    }
}

/// Some groups of weights and some tokens, over a chunk of blocks.
struct Tile {
    /// The first group's blocks of the chunk.
    w: *const u8,
    group_bytes: usize,
    /// What tiles meet next, and of which groups this one fetches it.
    next: *const u8,
    fetches: [bool; GROUPS],
    /// The first token's `count` blocks; those of the others are behind them.
    x: *const WideBlock,
    count: usize,
    /// What the first token's sums start from; those of the next begin `blocks` further on.
    starts: *const i32,
    /// The scales of the tokens' blocks; `blocks` further on are the scaled sums.
    factors: [*const f32; TOKENS],
    /// Blocks of a row.
    blocks: usize,
    out: *mut f32,
    out_stride: usize,
    /// Whether out holds the sums of chunks before.
    resumes: bool,
}

impl Tile {
    /// T tokens and G groups. BYTES has each function use one of its own, which becomes part of it.
    ///
    /// # Safety
    /// There are so many of each; out has T rows of G groups.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<F: Format, const BYTES: usize, const T: usize, const G: usize>(&self) {
        let mut acc = [[_mm256_setzero_ps(); G]; T];
        // SAFETY: the caller's promise.
        let out = |t: usize, g: usize| unsafe { self.out.add(t * self.out_stride + g * GROUP) };
        if self.resumes {
            for (t, acc) in acc.iter_mut().enumerate() {
                for (g, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: eight columns of a group.
                    *acc = unsafe { _mm256_loadu_ps(out(t, g)) };
                }
            }
        }
        for i in 0..self.count {
            let offset = i * (F::HEADER + F::PART);
            for g in 0..G {
                if self.fetches[g] {
                    let next = self.next.wrapping_add(g * self.group_bytes + offset);
                    fetch_part::<F, _MM_HINT_T1>(next, 0);
                }
            }
            // SAFETY: block `i` of each group and token.
            unsafe {
                let at: [*const u8; G] =
                    std::array::from_fn(|g| self.w.add(g * self.group_bytes + offset));
                let isums = self.isums::<F, BYTES, T, G>(at, i);
                for (g, at) in at.into_iter().enumerate() {
                    let head = F::head(at);
                    let min = F::min(&head, at.add(F::HEADER));
                    for t in 0..T {
                        let isum = _mm256_cvtepi32_ps(isums[t][g]);
                        let scale = _mm256_broadcast_ss(&*self.factors[t].add(i));
                        let factor = _mm256_mul_ps(scale, head.d);
                        acc[t][g] = _mm256_fmadd_ps(isum, factor, acc[t][g]);
                        if let Some(min) = min {
                            let sum = _mm256_broadcast_ss(&*self.factors[t].add(self.blocks + i));
                            acc[t][g] = _mm256_fmadd_ps(min, sum, acc[t][g]);
                        }
                    }
                }
            }
        }
        for (t, acc) in acc.into_iter().enumerate() {
            for (g, acc) in acc.into_iter().enumerate() {
                // SAFETY: eight columns of a group.
                unsafe { _mm256_storeu_ps(out(t, g), acc) };
            }
        }
    }

    /// The exact products of blocks `at` with block `i` of each token. BYTES as with [`Tile::run`].
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn isums<F: Format, const BYTES: usize, const T: usize, const G: usize>(
        &self,
        at: [*const u8; G],
        i: usize,
    ) -> [[__m256i; G]; T] {
        let mut isums = [[_mm256_setzero_si256(); G]; T];
        // SAFETY: the caller's promise; a block of activations has eight words of either kind.
        unsafe {
            if F::RAISED != 0 {
                for (t, isums) in isums.iter_mut().enumerate() {
                    *isums = [_mm256_set1_epi32(*self.starts.add(t * self.blocks + i)); G];
                }
            }
            let x: [*const i32; T] = std::array::from_fn(|t| self.x.add(t * self.count + i).cast());
            /// Adds the products with words J of weights and of tokens, which are `$from` words into a block.
            macro_rules! add {
                ($w:ident, $from:expr, $j:ident) => {
                    for (t, isums) in isums.iter_mut().enumerate() {
                        let word = _mm256_set1_epi32(x[t].add($from + $j).read());
                        for (g, isum) in isums.iter_mut().enumerate() {
                            *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(word, $w[g]));
                            settle(isum);
                        }
                    }
                };
            }
            each_word!(|J| {
                // What isn't used of a half is not computed.
                let words: [__m256i; G] = std::array::from_fn(|g| {
                    let part = at[g].add(F::HEADER);
                    match J / 4 {
                        0 => F::half::<0>(part)[J % 4],
                        _ => F::half::<1>(part)[J % 4],
                    }
                });
                let even: [__m256i; G] = std::array::from_fn(|g| even::<F>(words[g]));
                add!(even, 0, J);
                let odd: [__m256i; G] = std::array::from_fn(|g| odd::<F>(words[g]));
                add!(odd, 8, J);
            });
        }
        isums
    }
}

/// The even bytes of words, in 16 bits.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn even<F: Format>(word: __m256i) -> __m256i {
    match F::QUANTS {
        Quants::Signed | Quants::SignedLow => _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(word)),
        Quants::Crumbs | Quants::Nibbles | Quants::Low => {
            _mm256_and_si256(word, _mm256_set1_epi16(0xff))
        }
    }
}

/// The odd ones.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn odd<F: Format>(word: __m256i) -> __m256i {
    match F::QUANTS {
        Quants::Signed | Quants::SignedLow => _mm256_srai_epi16::<8>(word),
        Quants::Crumbs | Quants::Nibbles | Quants::Low => _mm256_srli_epi16::<8>(word),
    }
}

#[cfg(test)]
mod tests {
    use bundle_format::plan::{DType, Encoding, row_bytes};

    use super::super::{IQ4_NL, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, many, tiles};
    use super::*;
    use crate::cpu::Level;
    use crate::pack::pack;
    use crate::reference::{q8, q11};

    /// (tokens, features, first column, columns, k): tiles of all sizes, one group alone, several slices, several chunks.
    const CASES: [(usize, usize, usize, usize, usize); 9] = [
        (2, 8, 0, 8, 32),
        (3, 24, 8, 13, 64),
        (4, 40, 0, 40, 576),
        (5, 16, 0, 16, 96),
        (9, 24, 16, 8, 320),
        (16, 32, 0, 32, 608),
        (17, 16, 0, 16, 576),
        (33, 24, 0, 19, 1536),
        (3, 16, 0, 16, 97 * 32),
    ];

    /// Numbers from 0 to 255.
    fn bytes(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..count).map(next).collect()
    }

    /// Weights of an encoding whose factors are numbers of a usual size.
    fn weights(encoding: Encoding, features: usize, k: usize, seed: u32) -> Vec<u8> {
        let block = crate::quant::row_bytes(encoding, BLOCK as u64).unwrap() as usize;
        let mut w = bytes(features * k / BLOCK * block, seed);
        let factors = match encoding {
            Encoding::MXFP4 => 0,
            Encoding::Q4_1 | Encoding::Q5_1 => 2,
            _ => 1,
        };
        for (i, block) in w.chunks_exact_mut(block).enumerate() {
            match factors {
                0 => block[0] = 120 + (i % 9) as u8,
                _ => {
                    for f16 in block[..2 * factors].chunks_exact_mut(2) {
                        f16[1] = (f16[1] & 0x80) | 0x20 | (f16[1] & 0x0f);
                    }
                }
            }
        }
        pack(encoding, features, k, &w)
    }

    /// The bits of what tiles in 16 bits, other tiles and panels make of a case are the same, whichever of these the processor takes.
    fn check<F: Format, const BYTES: usize>(encoding: Encoding) {
        assert!(Level::Avx2.is_available(), "the tests need AVX2");
        for (case, (tokens, features, col0, cols, k)) in CASES.into_iter().enumerate() {
            let dtype = [DType::Q8, DType::Q11][BYTES - 1];
            let stride = row_bytes(dtype, k as u32) as usize;
            let mut x = vec![0u8; tokens * stride];
            let noise = bytes(tokens * k, case as u32 + 1);
            for (row, noise) in x.chunks_exact_mut(stride).zip(noise.chunks_exact(k)) {
                let values: Vec<f32> = noise.iter().map(|b| f32::from(*b) - 120.0).collect();
                match BYTES {
                    1 => q8::quantise_row(&values, row),
                    _ => q11::quantise_row(&values, row),
                }
            }
            let w = weights(encoding, features, k, case as u32 + 100);
            // Rows in another order, one of them twice.
            let index: Vec<u32> = (0..tokens as u32).rev().map(|row| row.max(1)).collect();
            let run = |matmul: &dyn Fn(&MatMulArgs)| {
                let mut out = vec![f32::NAN; tokens * cols.next_multiple_of(GROUP)];
                matmul(&MatMulArgs {
                    x: x.as_ptr(),
                    x_stride: stride as u64,
                    index: index.as_ptr(),
                    w: w.as_ptr(),
                    out: out.as_mut_ptr(),
                    out_stride: cols.next_multiple_of(GROUP) as u64,
                    k: k as u64,
                    rows: tokens as u64,
                    col0: col0 as u64,
                    cols: cols as u64,
                });
                out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            // SAFETY: rows of k quants, packed weights of the features, room for all groups; the test has asked for the level.
            let found = unsafe {
                [
                    run(&|args| matmul::<F, BYTES>(args)),
                    run(&|args| tiles::<F, BYTES>(args)),
                    run(&|args| many::matmul::<F, BYTES, false>(args)),
                ]
            };
            let name = format!("{encoding:?}, {BYTES} bytes, {:?}", CASES[case]);
            assert!(
                found[0]
                    .iter()
                    .all(|bits| f32::from_bits(*bits).is_finite()),
                "{name}"
            );
            assert!(found[0].iter().any(|bits| *bits != 0), "{name}");
            assert_eq!(found[0], found[1], "other tiles, {name}");
            assert_eq!(found[0], found[2], "panels, {name}");
        }
    }

    #[test]
    fn all_ways_agree() {
        check::<Q4_0, 2>(Encoding::Q4_0);
        check::<Q4_1, 2>(Encoding::Q4_1);
        check::<Q5_0, 2>(Encoding::Q5_0);
        check::<Q5_1, 2>(Encoding::Q5_1);
        check::<MXFP4, 2>(Encoding::MXFP4);
        check::<Q8_0, 1>(Encoding::Q8_0);
        check::<Q8_0, 2>(Encoding::Q8_0);
        check::<IQ4_NL, 1>(Encoding::IQ4_NL);
        check::<IQ4_NL, 2>(Encoding::IQ4_NL);
    }
}
