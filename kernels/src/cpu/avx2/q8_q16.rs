//! Q8_0 weights times Q16 rows.
//!
//! Products of 8 by 15 bits need `vpmaddwd`, so both factors are widened to 16 bits: a vector of weights becomes its even
//! and its odd bytes, and so do a token's 32 quants, high and low bytes joined. A lane of `vpmaddwd` then has quants 4j and
//! 4j + 2, or 4j + 1 and 4j + 3, of both. Two products reach 2 * 128 * 16256 < 2^22, and a block's 32 stay below 2^27.

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

/// Q8_0 weights times Q16 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_q8_0_q16(args: &MatMulArgs) {
    let blocks = args.k as usize / BLOCK;
    let first = args.col0 as usize / GROUP;
    let rows = args.rows as usize;
    // A variable, so that the loop over a block's vectors stays a loop: unrolled, the compiler spills its registers.
    let vectors = std::hint::black_box(VECTORS);
    for g in 0..(args.cols as usize).div_ceil(GROUP) {
        for row in (0..rows).step_by(TOKENS) {
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

/// 32 quants of a token in 16 bits: word j of `even` is quants 4j and 4j + 2, word j of `odd` 4j + 1 and 4j + 3.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Quants {
    even: [i32; VECTORS],
    odd: [i32; VECTORS],
}

impl Tile {
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, `x` has T Q16 rows of as many blocks, `out` T rows of 8 columns.
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
            // SAFETY: block b of row t has its high bytes among the first k of the row, its low ones among the next.
            let x: [Quants; T] = std::array::from_fn(|t| unsafe {
                let high = self.x.add(t * self.x_stride + b * BLOCK);
                widen(high, high.add(k))
            });
            // SAFETY: the block's vectors.
            let isum = unsafe { self.dot(block.add(16), &x) };
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the scales of row t of x follow its 2 k bytes of quants.
                let scale = unsafe {
                    let scales = self.x.add(t * self.x_stride + 2 * k).cast::<f32>();
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
    /// `w` points at 8 vectors of quants, and `vectors` is 8.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn dot<const T: usize>(&self, w: *const u8, x: &[Quants; T]) -> [__m256i; T] {
        let mut sums = [_mm256_setzero_si256(); T];
        for j in 0..self.vectors {
            // SAFETY: vector j of eight.
            let w = unsafe { _mm256_loadu_si256(w.add(j * 32).cast()) };
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
            let odd = _mm256_srai_epi16::<8>(w);
            for (sum, x) in sums.iter_mut().zip(x) {
                // SAFETY: word j of eight.
                let (x_even, x_odd) = unsafe { (x.even.get_unchecked(j), x.odd.get_unchecked(j)) };
                let evens = _mm256_madd_epi16(even, _mm256_set1_epi32(*x_even));
                let odds = _mm256_madd_epi16(odd, _mm256_set1_epi32(*x_odd));
                *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(evens, odds));
            }
        }
        sums
    }
}

/// Joins 32 high and 32 low bytes.
///
/// # Safety
/// Both point at 32 bytes.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn widen(high: *const u8, low: *const u8) -> Quants {
    // SAFETY: the caller's promise.
    let (high, low) = unsafe {
        (
            _mm256_loadu_si256(high.cast()),
            _mm256_loadu_si256(low.cast()),
        )
    };
    // A byte on top of its word, shifted down by one: 128 times the byte.
    let high_even = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(high));
    let high_odd = _mm256_srai_epi16::<1>(_mm256_and_si256(high, _mm256_set1_epi16(-256)));
    let low_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low));
    let low_odd = _mm256_srai_epi16::<8>(low);
    let mut quants = Quants {
        even: [0; VECTORS],
        odd: [0; VECTORS],
    };
    // SAFETY: each array has 32 bytes.
    unsafe {
        let (even, odd) = (quants.even.as_mut_ptr(), quants.odd.as_mut_ptr());
        _mm256_storeu_si256(even.cast(), _mm256_add_epi16(high_even, low_even));
        _mm256_storeu_si256(odd.cast(), _mm256_add_epi16(high_odd, low_odd));
    }
    quants
}
