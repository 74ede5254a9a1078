//! Q4_0 and Q4_1 weights times Q8 rows.
//!
//! A packed block is 8 rows by 32 k. Its 4 vectors of nibbles unpack to 8 vectors of unsigned bytes, each with 4 k of
//! every row. For a token, the same 4 k of its quants are broadcast to all lanes, and `vpmaddubsw` gives 16 sums of two
//! products. Eight of them add up without overflow (8 * 2 * 15 * 127 = 30480 < 2^15), so the widening `vpmaddwd` comes
//! once a block. A tile is one group by up to [`TOKENS`] tokens: the unpacked weights stay in registers while the tokens
//! pass.

use std::arch::x86_64::*;

use crate::abi::MatMulArgs;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 4;

/// How far ahead of the block in work a lone token's weights are fetched, in bytes: a lone token waits for memory alone.
const PREFETCH: usize = 2048;

/// Q4_0 weights times Q8 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_0(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<false>(args) }
}

/// Q4_1 weights times Q8 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_1(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<true>(args) }
}

/// Bytes of a packed block. `MIN`: the block has minima (Q4_1); otherwise they are -8 d (Q4_0).
const fn block_bytes(min: bool) -> usize {
    if min { 160 } else { 144 }
}

/// # Safety
/// As [`matmul_q4_1`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<const MIN: bool>(args: &MatMulArgs) {
    let blocks = args.k as usize / BLOCK;
    let group_bytes = blocks * block_bytes(MIN);
    let first = args.col0 as usize / GROUP;
    let rows = args.rows as usize;
    for g in 0..(args.cols as usize).div_ceil(GROUP) {
        let mut row = 0;
        while row < rows {
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let tile = Tile {
                    w: args.w.add((first + g) * group_bytes),
                    blocks,
                    x: args.x.add(row * args.x_stride as usize),
                    x_stride: args.x_stride as usize,
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                match rows - row {
                    1 => tile.run::<MIN, 1>(),
                    2 => tile.run::<MIN, 2>(),
                    3 => tile.run::<MIN, 3>(),
                    _ => tile.run::<MIN, TOKENS>(),
                }
            }
            row += TOKENS;
        }
    }
}

/// One group of weights and some tokens.
struct Tile {
    w: *const u8,
    blocks: usize,
    x: *const u8,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, `x` has T Q8 rows of as many blocks, `out` T rows of 8 columns.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<const MIN: bool, const T: usize>(&self) {
        let k = self.blocks * BLOCK;
        let ones = _mm256_set1_epi16(1);
        let mut acc = [_mm256_setzero_ps(); T];
        for b in 0..self.blocks {
            // SAFETY: block b is within the group.
            let block = unsafe { Block::load::<MIN>(self.w.add(b * block_bytes(MIN))) };
            if T == 1 {
                prefetch(self.w.wrapping_add(b * block_bytes(MIN)));
            }
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row t of x has k quants, then a scale and a sum for each block.
                let (quants, scale, sum) = unsafe {
                    let row = self.x.add(t * self.x_stride);
                    let factors = row.add(k).cast::<f32>();
                    (
                        row.add(b * BLOCK),
                        _mm256_broadcast_ss(&*factors.add(b)),
                        _mm256_broadcast_ss(&*factors.add(self.blocks + b)),
                    )
                };
                // SAFETY: 32 quants from `quants`.
                let isum = unsafe { block.dot(quants, ones) };
                let factor = _mm256_mul_ps(block.d, scale);
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), factor, *acc);
                *acc = _mm256_fmadd_ps(block.m, sum, *acc);
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: row t of out has 8 columns.
            unsafe { _mm256_storeu_ps(self.out.add(t * self.out_stride), *acc) };
        }
    }
}

/// Fetches what a lone token needs soon.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn prefetch(block: *const u8) {
    for line in 0..3 {
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(PREFETCH + line * 64).cast());
    }
}

/// A block of eight rows, unpacked.
struct Block {
    d: __m256,
    m: __m256,
    /// Vector j has k = 4j..4j+4 of each row.
    quants: [__m256i; 8],
}

impl Block {
    /// # Safety
    /// `block` points at a packed block.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn load<const MIN: bool>(block: *const u8) -> Block {
        // SAFETY: the header is 16 bytes of d and, with minima, 16 of m.
        let d = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(block.cast())) };
        let m = if MIN {
            // SAFETY: as above.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(block.add(16).cast())) }
        } else {
            _mm256_mul_ps(d, _mm256_set1_ps(-8.0))
        };
        let low = _mm256_set1_epi8(15);
        let mut quants = [_mm256_setzero_si256(); 8];
        for j in 0..4 {
            // SAFETY: four vectors follow the header and end the block.
            let v =
                unsafe { _mm256_loadu_si256(block.add(block_bytes(MIN) - 128 + j * 32).cast()) };
            quants[j] = _mm256_and_si256(v, low);
            quants[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
        }
        Block { d, m, quants }
    }

    /// The exact inner products of the eight rows with 32 activations.
    ///
    /// # Safety
    /// `x` points at 32 quants.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn dot(&self, x: *const u8, ones: __m256i) -> __m256i {
        let product = |j: usize| {
            // SAFETY: word j is within the 32 quants.
            let x = unsafe { _mm256_set1_epi32(x.cast::<i32>().add(j).read_unaligned()) };
            _mm256_maddubs_epi16(self.quants[j], x)
        };
        let mut sum = product(0);
        for j in 1..8 {
            sum = _mm256_add_epi16(sum, product(j));
        }
        _mm256_madd_epi16(sum, ones)
    }
}
