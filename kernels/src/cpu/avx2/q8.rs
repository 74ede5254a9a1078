//! Q8_0 weights times Q8 rows.
//!
//! `vpmaddubsw` wants one unsigned factor: the weights' magnitudes, with their signs moved to the activations. Two
//! products reach 2 * 128 * 127 = 32512, so 16-bit sums hold no more than the one instruction makes and each is widened by
//! `vpmaddwd`. The magnitudes are computed once for all tokens of a tile.

use std::arch::x86_64::*;

use crate::abi::MatMulArgs;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 4;

/// Vectors of quants in a packed block.
const VECTORS: usize = 8;

/// Bytes of a packed block: 8 f16 and 8 vectors.
const BLOCK_BYTES: usize = 272;

/// How far ahead of the block in work a lone token's weights are fetched, in bytes.
const PREFETCH: usize = 2048;

/// Q8_0 weights times Q8 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q8_0(args: &MatMulArgs) {
    let blocks = args.k as usize / BLOCK;
    let first = args.col0 as usize / GROUP;
    let rows = args.rows as usize;
    // A variable, so that the loop over a block's vectors stays a loop: unrolled, the compiler spills its registers.
    let vectors = std::hint::black_box(VECTORS);
    for g in 0..(args.cols as usize).div_ceil(GROUP) {
        let mut row = 0;
        while row < rows {
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let tile = Tile {
                    vectors,
                    w: args.w.add((first + g) * blocks * BLOCK_BYTES),
                    blocks,
                    x: args.x.add(row * args.x_stride as usize),
                    x_stride: args.x_stride as usize,
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                match rows - row {
                    1 => tile.run::<1>(),
                    2 => tile.run::<2>(),
                    3 => tile.run::<3>(),
                    _ => tile.run::<TOKENS>(),
                }
            }
            row += TOKENS;
        }
    }
}

/// One group of weights and some tokens.
struct Tile {
    /// [`VECTORS`]
    vectors: usize,
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
    unsafe fn run<const T: usize>(&self) {
        let k = self.blocks * BLOCK;
        let mut acc = [_mm256_setzero_ps(); T];
        for b in 0..self.blocks {
            // SAFETY: block b is within the group.
            let (block, d) = unsafe {
                let block = self.w.add(b * BLOCK_BYTES);
                (block, _mm256_cvtph_ps(_mm_loadu_si128(block.cast())))
            };
            if T == 1 {
                for line in 0..5 {
                    let ahead = block.wrapping_add(PREFETCH + line * 64);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                }
            }
            // SAFETY: the block's vectors, and block b of the T rows of x.
            let isum = unsafe { self.dot::<T>(block.add(16), self.x.add(b * BLOCK)) };
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the scales of row t of x follow its k quants.
                let scale = unsafe {
                    let scales = self.x.add(t * self.x_stride + k).cast::<f32>();
                    _mm256_broadcast_ss(&*scales.add(b))
                };
                let factor = _mm256_mul_ps(d, scale);
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[t]), factor, *acc);
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: row t of out has 8 columns.
            unsafe { _mm256_storeu_ps(self.out.add(t * self.out_stride), *acc) };
        }
    }

    /// The exact inner products of the eight rows with 32 activations of each token.
    ///
    /// # Safety
    /// `w` points at 8 vectors of quants and `x` at 32 quants, `x_stride` bytes apart for T tokens.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn dot<const T: usize>(&self, w: *const u8, x: *const u8) -> [__m256i; T] {
        let ones = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_si256(); T];
        for j in 0..self.vectors {
            // SAFETY: vector j of eight.
            let w = unsafe { _mm256_loadu_si256(w.add(j * 32).cast()) };
            let magnitude = _mm256_abs_epi8(w);
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: word j of token t's 32 quants.
                let x = unsafe {
                    let words = x.add(t * self.x_stride).cast::<i32>();
                    _mm256_set1_epi32(words.add(j).read_unaligned())
                };
                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        sums
    }
}
