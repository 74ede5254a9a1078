//! Weights in pairs ([`crate::pack::pairs`]) times Q14 rows, by `vpdpwssd`.
//!
//! Two groups of eight rows are a vector, whose lanes of 32 bits are pairs of a row's integers, and are multiplied with pairs of a token's
//! quants.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::part::join;
use crate::abi::MatMulArgs;
use crate::cpu::avx2;
use crate::pack::GROUP;
use crate::pack::pairs::{BLOCK_BYTES, PAIR, bytes_of_group};
use crate::quant::BLOCK;

/// Tokens of a full tile: as many as there are registers for addresses of.
const TOKENS: usize = 10;

/// Blocks of a chunk: 16 KiB of two groups, beside a tile's quants in the L1 cache.
const CHUNK: usize = 16;

/// Up to so many tokens, sums are two chains each: the latency of a product is more than as many products take.
const CHAINS: usize = 4;

/// How far ahead of the block in work a single tile's weights are fetched, in bytes.
const AHEAD: usize = 8192;

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Lines of a block.
const LINES: usize = BLOCK_BYTES / LINE;

/// Weights in pairs times Q14 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub unsafe fn matmul_pairs(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match args.rows as usize {
            // Which waits for memory, with as many streams as the processor likes.
            1 => avx2::matmul_pairs(args),
            ..=TOKENS => few(args),
            _ => many(args),
        }
    }
}

/// Tokens of one tile.
///
/// # Safety
/// As [`matmul_pairs`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn few(args: &MatMulArgs) {
    for g in (0..(args.cols as usize).div_ceil(GROUP)).step_by(2) {
        let weights = Weights::new(args, g);
        let tile = Tile {
            args,
            row: 0,
            g,
            blocks: 0..weights.blocks,
            fetched: 0..LINES,
        };
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe { tile.run_any(&weights, args.rows as usize) };
    }
}

/// More tokens. A chunk of k after the other, so that weights of it stay in the L1 cache and the tokens' quants in the L2 cache.
///
/// # Safety
/// As [`matmul_pairs`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn many(args: &MatMulArgs) {
    let (rows, blocks) = (args.rows as usize, args.k as usize / BLOCK);
    for chunk in (0..blocks).step_by(CHUNK) {
        let chunk = chunk..blocks.min(chunk + CHUNK);
        for g in (0..(args.cols as usize).div_ceil(GROUP)).step_by(2) {
            let weights = Weights::new(args, g);
            for b in chunk.clone() {
                weights.fetch_exponents(weights.blocks + b);
            }
            let tiles = rows.div_ceil(TOKENS);
            let (mut row, mut n) = (0, 0);
            while row < rows {
                // Tiles of about one size: a few last tokens would wait for their chains.
                let left = rows - row;
                let tokens = left.div_ceil(left.div_ceil(TOKENS));
                let tile = Tile {
                    args,
                    row,
                    g,
                    blocks: chunk.clone(),
                    fetched: n * LINES / tiles..(n + 1) * LINES / tiles,
                };
                // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
                unsafe { tile.run_any(&weights, tokens) };
                row += tokens;
                n += 1;
            }
        }
    }
}

/// Two packed groups; where there is no second, the first is taken twice.
struct Weights {
    at: *const u8,
    group_bytes: usize,
    /// Bytes from the first to the second.
    second: usize,
    /// Blocks of a group.
    blocks: usize,
}

impl Weights {
    /// Those from the call's `g`-th on.
    fn new(args: &MatMulArgs, g: usize) -> Weights {
        let blocks = args.k as usize / BLOCK;
        let group_bytes = bytes_of_group(blocks);
        let is_pair = g + 1 < (args.cols as usize).div_ceil(GROUP);
        let first = args.col0 as usize / GROUP + g;
        Weights {
            at: args.w.wrapping_add(first * group_bytes),
            group_bytes,
            second: if is_pair { group_bytes } else { 0 },
            blocks,
        }
    }

    /// Fetches lines of what is `ahead` bytes behind block `b` of both.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    fn fetch(&self, b: usize, ahead: usize, lines: Range<usize>) {
        for second in [0, self.second] {
            let at = self.at.wrapping_add(second + b * BLOCK_BYTES + ahead);
            for line in lines.clone() {
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * LINE).cast());
            }
        }
    }

    /// Fetches the exponents of block `b`, counted on to the two groups behind these.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    fn fetch_exponents(&self, b: usize) {
        let (next, b) = match b < self.blocks {
            true => (0, b),
            false => (2 * self.group_bytes, b - self.blocks),
        };
        for second in [0, self.second] {
            let at = self.at.wrapping_add(next + second);
            let at = at.wrapping_add(self.blocks * BLOCK_BYTES + b * GROUP);
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }

    /// The factors of the integers of block `b`.
    ///
    /// # Safety
    /// The groups have the block.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn factors(&self, b: usize) -> __m512 {
        // SAFETY: the caller's promise; a group's exponents are behind its pairs.
        let exponents = unsafe {
            let at = self.at.add(self.blocks * BLOCK_BYTES + b * GROUP);
            let second = _mm_loadl_epi64(at.add(self.second).cast());
            _mm_unpacklo_epi64(_mm_loadl_epi64(at.cast()), second)
        };
        let biased = _mm512_add_epi32(_mm512_cvtepi8_epi32(exponents), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }

    /// The exact inner products of block `b` with 32 quants of T tokens.
    ///
    /// # Safety
    /// The groups have the block, and there are the quants.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn isums<const T: usize>(&self, b: usize, x: [*const u8; T]) -> [__m512i; T] {
        let at = self.at.wrapping_add(b * BLOCK_BYTES);
        let (mut even, mut odd) = ([_mm512_setzero_si512(); T], [_mm512_setzero_si512(); T]);
        macro_rules! add_pairs {
            ($($j:literal)*) => {$(
                let sums = if T <= CHAINS && $j % 2 == 1 { &mut odd } else { &mut even };
                // SAFETY: the caller's promise.
                unsafe {
                    let of = |second: usize| _mm256_loadu_si256(at.add(second + $j * PAIR).cast());
                    let pair = join(of(0), of(self.second));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        // In the order of the source, a pair for all tokens before the next; the intrinsic becomes two instructions.
                        asm!(
                            "vpdpwssd {sum}, {pair}, dword ptr [{x} + {offset}]{{1to16}}",
                            sum = inout(zmm_reg) *sum,
                            pair = in(zmm_reg) pair,
                            x = in(reg) x,
                            offset = const 4 * $j,
                            options(readonly, nostack, preserves_flags),
                        );
                    }
                }
            )*};
        }
        add_pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        if T <= CHAINS {
            for (even, odd) in even.iter_mut().zip(odd) {
                *even = _mm512_add_epi32(*even, odd);
            }
        }
        even
    }
}

/// Some blocks of two groups, and some tokens.
struct Tile<'a> {
    args: &'a MatMulArgs,
    /// The first token.
    row: usize,
    /// The first group of the call's.
    g: usize,
    /// Sums of those before them are in `out`.
    blocks: Range<usize>,
    /// Lines of blocks further on that are fetched, of each: all would wait for one another where other tiles meet them, too.
    fetched: Range<usize>,
}

impl Tile<'_> {
    /// [`Tile::run`] of some tokens.
    ///
    /// # Safety
    /// As there; up to [`TOKENS`].
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run_any(&self, weights: &Weights, tokens: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match tokens {
                1 => self.run::<1>(weights),
                2 => self.run::<2>(weights),
                3 => self.run::<3>(weights),
                4 => self.run::<4>(weights),
                5 => self.run::<5>(weights),
                6 => self.run::<6>(weights),
                7 => self.run::<7>(weights),
                8 => self.run::<8>(weights),
                9 => self.run::<9>(weights),
                10 => self.run::<10>(weights),
                11 => self.run::<11>(weights),
                _ => self.run::<TOKENS>(weights),
            }
        }
    }

    /// T tokens.
    ///
    /// # Safety
    /// The call has them and the weights, which have the blocks.
    #[inline(never)]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<const T: usize>(&self, weights: &Weights) {
        let args = self.args;
        // SAFETY: the caller's promise; rows of out have 16 columns, or 8 where there is one group, and quants of a row are followed by
        // a scale for each 32.
        unsafe {
            let x: [*const u8; T] = args.x_rows(self.row);
            let mut out = [args.out.add(self.g * GROUP); T];
            for (t, out) in out.iter_mut().enumerate() {
                *out = out.add((self.row + t) * args.out_stride as usize);
            }
            let mut acc = [_mm512_setzero_ps(); T];
            if self.blocks.start > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = match weights.second {
                        0 => _mm512_zextps256_ps512(_mm256_loadu_ps(out[t])),
                        _ => _mm512_loadu_ps(out[t]),
                    };
                }
            }
            for b in self.blocks.clone() {
                let is_whole = self.blocks.len() == weights.blocks;
                // Each chunk of a group is too short for the processor to see what comes next: the next groups' of it. What is ahead of
                // two whole groups' last blocks is there, too.
                let ends = (b + 1) * BLOCK_BYTES + AHEAD > weights.group_bytes;
                let ahead = match (is_whole, ends) {
                    (false, _) => 2 * weights.group_bytes,
                    (true, false) => AHEAD,
                    (true, true) => AHEAD + weights.second,
                };
                weights.fetch(b, ahead, self.fetched.clone());
                if is_whole && b.is_multiple_of(LINE / GROUP) {
                    weights.fetch_exponents(b + 2 * LINE / GROUP);
                }
                let factors = weights.factors(b);
                let mut quants = x;
                for quants in &mut quants {
                    *quants = quants.add(2 * b * BLOCK);
                }
                let isums = weights.isums(b, quants);
                for (t, acc) in acc.iter_mut().enumerate() {
                    let scales = x[t].add(2 * args.k as usize).cast::<f32>();
                    let factor = _mm512_mul_ps(factors, _mm512_set1_ps(*scales.add(b)));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isums[t]), factor, *acc);
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                match weights.second {
                    0 => _mm256_storeu_ps(out[t], _mm512_castps512_ps256(acc)),
                    _ => _mm512_storeu_ps(out[t], acc),
                }
            }
        }
    }
}
