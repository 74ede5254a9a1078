//! Q4_0 and Q4_1 weights times Q8 and Q16 rows.
//!
//! A packed block is 8 rows by 32 k. Its 4 vectors of nibbles unpack to 8 vectors of unsigned bytes, each with 4 k of
//! every row. For a token, the same 4 k of its quants are broadcast to all lanes, and `vpmaddubsw` gives 16 sums of two
//! products. Eight of them add up without overflow (8 * 2 * 15 * 127 = 30480 < 2^15), so the widening `vpmaddwd` comes
//! once a block. A tile is one group by up to [`TOKENS`] tokens: the unpacked weights stay in registers while the tokens
//! pass.
//!
//! The quants of Q16 rows are 128 * high + low. Both bytes take the same way, each into sums of its own: the low ones reach
//! 8 * 2 * 15 * 64 = 15360. `vpmaddwd` widens the high sums times 128, so that adding the two gives the exact inner
//! product.

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
    unsafe { matmul::<false, 1>(args) }
}

/// Q4_1 weights times Q8 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_1(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<true, 1>(args) }
}

/// Q4_0 weights times Q16 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_0_q16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<false, 2>(args) }
}

/// Q4_1 weights times Q16 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q4_1_q16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<true, 2>(args) }
}

/// Bytes of a packed block. `MIN`: the block has minima (Q4_1); otherwise they are -8 d (Q4_0).
const fn block_bytes(min: bool) -> usize {
    if min { 160 } else { 144 }
}

/// `BYTES`: of an activation's quant, 1 or 2.
///
/// # Safety
/// As [`matmul_q4_1`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<const MIN: bool, const BYTES: usize>(args: &MatMulArgs) {
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
                    1 => tile.run::<MIN, BYTES, 1>(),
                    2 => tile.run::<MIN, BYTES, 2>(),
                    3 => tile.run::<MIN, BYTES, 3>(),
                    _ => tile.run::<MIN, BYTES, TOKENS>(),
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
    /// `w` is a packed group of `blocks` blocks, `x` has T rows of as many blocks, with quants of
    /// BYTES bytes, `out` T rows of 8 columns.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<const MIN: bool, const BYTES: usize, const T: usize>(&self) {
        let mut acc = [_mm256_setzero_ps(); T];
        for b in 0..self.blocks {
            // SAFETY: block b is within the group.
            let block = unsafe { self.w.add(b * block_bytes(MIN)) };
            if T == 1 {
                prefetch(block);
            }
            // SAFETY: the block's four vectors end it, and the rows of x have block b.
            let isums = unsafe {
                let quants = block.add(block_bytes(MIN) - 128);
                self.dot::<BYTES, T>(quants, self.x.add(b * BLOCK))
            };
            // SAFETY: the header is 16 bytes of d and, with minima, 16 of m.
            let (d, m) = unsafe {
                let d = _mm256_cvtph_ps(_mm_loadu_si128(block.cast()));
                let m = match MIN {
                    true => _mm256_cvtph_ps(_mm_loadu_si128(block.add(16).cast())),
                    false => _mm256_mul_ps(d, _mm256_set1_ps(-8.0)),
                };
                (d, m)
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the quants of row t are followed by a scale and a sum for each block.
                let (scale, sum) = unsafe {
                    let row = self.x.add(t * self.x_stride);
                    let factors = row.add(BYTES * self.blocks * BLOCK).cast::<f32>();
                    (
                        _mm256_broadcast_ss(&*factors.add(b)),
                        _mm256_broadcast_ss(&*factors.add(self.blocks + b)),
                    )
                };
                let factor = _mm256_mul_ps(d, scale);
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isums[t]), factor, *acc);
                *acc = _mm256_fmadd_ps(m, sum, *acc);
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: row t of out has 8 columns.
            unsafe { _mm256_storeu_ps(self.out.add(t * self.out_stride), *acc) };
        }
    }

    /// The exact inner products of the block's eight rows with 32 activations of each token. Two vectors of nibbles are
    /// unpacked at a time, so that weights, 16-bit sums and the caller's accumulators fit the sixteen registers.
    ///
    /// # Safety
    /// `w` points at 4 vectors of nibbles. `x` points at 32 bytes of quants, `x_stride` bytes apart for T tokens; with two
    /// BYTES, those are the high ones and the low ones lie k bytes behind.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn dot<const BYTES: usize, const T: usize>(
        &self,
        w: *const u8,
        x: *const u8,
    ) -> [__m256i; T] {
        let low = _mm256_set1_epi8(15);
        let mut sums = [[_mm256_setzero_si256(); BYTES]; T];
        for half in 0..2 {
            // SAFETY: two of the four vectors.
            let (a, b) = unsafe {
                let w = w.add(half * 64);
                (
                    _mm256_loadu_si256(w.cast()),
                    _mm256_loadu_si256(w.add(32).cast()),
                )
            };
            let a_low = _mm256_and_si256(a, low);
            let b_low = _mm256_and_si256(b, low);
            let a_high = _mm256_and_si256(_mm256_srli_epi16::<4>(a), low);
            let b_high = _mm256_and_si256(_mm256_srli_epi16::<4>(b), low);
            for (t, sums) in sums.iter_mut().enumerate() {
                for (byte, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: words 2 half, 2 half + 1 and those 16 quants behind of token t.
                    let x = |word: usize| unsafe {
                        let bytes = x.add(t * self.x_stride + byte * self.blocks * BLOCK);
                        let words = bytes.cast::<i32>();
                        _mm256_set1_epi32(words.add(2 * half + word).read_unaligned())
                    };
                    let lows = _mm256_add_epi16(
                        _mm256_maddubs_epi16(a_low, x(0)),
                        _mm256_maddubs_epi16(b_low, x(1)),
                    );
                    let highs = _mm256_add_epi16(
                        _mm256_maddubs_epi16(a_high, x(4)),
                        _mm256_maddubs_epi16(b_high, x(5)),
                    );
                    *sum = _mm256_add_epi16(*sum, _mm256_add_epi16(lows, highs));
                }
            }
        }
        sums.map(|sums| match sums.as_slice() {
            [high, low] => _mm256_add_epi32(
                _mm256_madd_epi16(*high, _mm256_set1_epi16(128)),
                _mm256_madd_epi16(*low, _mm256_set1_epi16(1)),
            ),
            _ => _mm256_madd_epi16(sums[0], _mm256_set1_epi16(1)),
        })
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
