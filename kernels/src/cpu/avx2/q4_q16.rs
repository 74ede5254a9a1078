//! Q4_0 and Q4_1 weights times Q16 rows.
//!
//! As for Q8 rows (`q4`), with two passes of `vpmaddubsw` over the same unpacked weights: one for the high bytes of the
//! quants, one for the low ones. Sixteen products of each add up in 16 bits: 16 * 15 * 127 = 30480 and 16 * 15 * 64 =
//! 15360, below 2^15. `vpmaddwd` widens both, the high one times 128, and their sum is the exact inner product.
//!
//! Eight vectors of unpacked weights fill half of the registers. So each token is finished for a block before the next
//! begins, and its accumulator waits in memory meanwhile; then a tile may be many tokens long, and the unpacking is
//! hardly felt.

use std::arch::x86_64::*;

use crate::abi::MatMulArgs;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 8;

/// How far ahead of the block in work a lone token's weights are fetched, in bytes.
const PREFETCH: usize = 2048;

/// Q4_0 weights times Q16 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_0_q16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<false>(args) }
}

/// Q4_1 weights times Q16 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_1_q16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<true>(args) }
}

/// Bytes of a packed block. `MIN`: the block has minima (Q4_1); otherwise they are -8 d (Q4_0).
const fn block_bytes(min: bool) -> usize {
    if min { 160 } else { 144 }
}

/// # Safety
/// As [`matmul_q4_1_q16`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<const MIN: bool>(args: &MatMulArgs) {
    let blocks = args.k as usize / BLOCK;
    let group_bytes = blocks * block_bytes(MIN);
    let first = args.col0 as usize / GROUP;
    let rows = args.rows as usize;
    for g in 0..(args.cols as usize).div_ceil(GROUP) {
        for row in (0..rows).step_by(TOKENS) {
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
                    1 => tile.run::<MIN, true>(1),
                    tokens => tile.run::<MIN, false>(tokens.min(TOKENS)),
                }
            }
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
    /// `LONE`: there is one token.
    ///
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, `x` has `tokens` Q16 rows of as many blocks, `out` as many rows of 8
    /// columns. At most [`TOKENS`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<const MIN: bool, const LONE: bool>(&self, tokens: usize) {
        let tokens = if LONE { 1 } else { tokens };
        let mut acc = [_mm256_setzero_ps(); TOKENS];
        let acc = &mut acc[..tokens];
        for b in 0..self.blocks {
            // SAFETY: block b is within the group.
            let block = unsafe { self.w.add(b * block_bytes(MIN)) };
            if LONE {
                prefetch(block);
            }
            // SAFETY: the block's four vectors end it; its header is 16 bytes of d and, with minima, 16 of m.
            let (w, d, m) = unsafe {
                let w = unpack(block.add(block_bytes(MIN) - 128));
                let d = _mm256_cvtph_ps(_mm_loadu_si128(block.cast()));
                let m = match MIN {
                    true => _mm256_cvtph_ps(_mm_loadu_si128(block.add(16).cast())),
                    false => _mm256_mul_ps(d, _mm256_set1_ps(-8.0)),
                };
                (w, d, m)
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row t of x has block b in both halves of its 64 bytes a block of quants, which are followed by a
                // scale and a sum for each block.
                let (isum, scale, sum) = unsafe {
                    let row = self.x.add(t * self.x_stride);
                    let high = row.add(b * BLOCK);
                    let factors = row.add(self.blocks * 2 * BLOCK).cast::<f32>();
                    (
                        dot(&w, high, high.add(self.blocks * BLOCK)),
                        _mm256_broadcast_ss(&*factors.add(b)),
                        _mm256_broadcast_ss(&*factors.add(self.blocks + b)),
                    )
                };
                let factor = _mm256_mul_ps(d, scale);
                let part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), factor, *acc);
                *acc = _mm256_fmadd_ps(m, sum, part);
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: row t of out has 8 columns.
            unsafe { _mm256_storeu_ps(self.out.add(t * self.out_stride), *acc) };
        }
    }
}

/// A block's quants: vector j has quants 4j .. 4j + 4 of each row.
///
/// # Safety
/// `w` points at 4 vectors of nibbles.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn unpack(w: *const u8) -> [__m256i; 8] {
    let low = _mm256_set1_epi8(15);
    std::array::from_fn(|j| {
        // SAFETY: vector j % 4 of four.
        let bytes = unsafe { _mm256_loadu_si256(w.add(j % 4 * 32).cast()) };
        let half = if j < 4 {
            bytes
        } else {
            _mm256_srli_epi16::<4>(bytes)
        };
        _mm256_and_si256(half, low)
    })
}

/// The exact inner products of the block's eight rows with 32 activations.
///
/// # Safety
/// `high` and `low` point at 32 bytes each.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn dot(w: &[__m256i; 8], high: *const u8, low: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    let (high, low) = unsafe { (sum16(w, high), sum16(w, low)) };
    _mm256_add_epi32(
        _mm256_madd_epi16(high, _mm256_set1_epi16(128)),
        _mm256_madd_epi16(low, _mm256_set1_epi16(1)),
    )
}

/// Two 16-bit sums of products for each row.
///
/// # Safety
/// `x` points at 32 bytes.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn sum16(w: &[__m256i; 8], x: *const u8) -> __m256i {
    let pairs = |j: usize| {
        // SAFETY: word j of eight.
        let x = unsafe { _mm256_set1_epi32(x.cast::<i32>().add(j).read_unaligned()) };
        _mm256_maddubs_epi16(w[j], x)
    };
    (1..8).fold(pairs(0), |sum, j| _mm256_add_epi16(sum, pairs(j)))
}

/// Fetches what a lone token needs soon.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn prefetch(block: *const u8) {
    for line in 0..3 {
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(PREFETCH + line * 64).cast());
    }
}
