//! Quantised weights times Q8 and Q16 rows, by `vpdpbusd`.
//!
//! A tile is two groups of eight rows of weights, a half of a vector each, by up to [`TOKENS`] tokens. [`Format`]s unpack as
//! for AVX2, each group by itself. `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32
//! bits, without a bound on the sums but the lane's. Unsigned weights are its first factor. Signed ones are its second:
//! then activations are raised by 128, and sums start from what that adds, -128 times the weights' sum, which all
//! tokens share.
//!
//! The quants of Q16 rows are 128 * high + low: the sums of the high bytes are shifted left by seven before those of the low
//! ones come on top. With raised activations they start from -129 times the weights' sum, since 128 * 129 = 128 * 128 + 128.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Head, Quants, Scales};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 8;

/// How far ahead of the part in work a lone token's weights are fetched, in bytes: a lone token waits for memory alone.
const PREFETCH: usize = 2048;

/// Weights of a format times rows whose quants have BYTES bytes: 1 in Q8, 2 in Q16.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    let blocks = args.k as usize / (F::PARTS * BLOCK);
    let group_bytes = blocks * (F::HEADER + F::PARTS * F::PART);
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let rows = args.rows as usize;
    for g in (0..groups).step_by(2) {
        let has_second = g + 1 < groups;
        let mut row = 0;
        while row < rows {
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let tile = Tile {
                    w: args.w.add((first + g) * group_bytes),
                    second: if has_second { group_bytes } else { 0 },
                    blocks,
                    k: args.k as usize,
                    x: args.x.add(row * args.x_stride as usize),
                    x_stride: args.x_stride as usize,
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                row += match rows - row {
                    1 => tile.run::<F, BYTES, 1, 1>(),
                    2 | 3 => tile.run::<F, BYTES, 1, 2>(),
                    4..TOKENS => tile.run::<F, BYTES, 1, 4>(),
                    _ => tile.run::<F, BYTES, { TOKENS / 4 }, 4>(),
                };
            }
        }
    }
}

/// Two groups of weights and some tokens.
struct Tile {
    w: *const u8,
    /// Bytes from the first group to the second; 0 where there is none, and the first is taken twice.
    second: usize,
    /// Blocks of a row of weights.
    blocks: usize,
    k: usize,
    x: *const u8,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

/// A part of both groups, unpacked.
struct Part {
    words: [__m512i; 8],
    /// What sums of each half start from.
    start: [__m512i; 2],
    /// Integer scales of each half.
    scales: [__m512i; 2],
    d: __m512,
    m: __m512,
    min: Option<__m512>,
    /// Integer minima of each half, in every byte.
    half_mins: Option<[__m512i; 2]>,
}

impl Tile {
    /// Computes N times C tokens and returns their number.
    ///
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, and so is what lies `second` bytes behind it; `x` has N C rows of k quants of
    /// BYTES bytes, `out` as many rows of 16 columns, or of 8 without a second group.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format, const BYTES: usize, const N: usize, const C: usize>(&self) -> usize {
        let mut acc = [[_mm512_setzero_ps(); C]; N];
        for block in 0..self.blocks {
            // SAFETY: the block is within the group, and each part within the block.
            unsafe {
                let at = self.w.add(block * (F::HEADER + F::PARTS * F::PART));
                let heads = [F::head(at), F::head(at.add(self.second))];
                for i in 0..F::PARTS {
                    let part = at.add(F::HEADER + i * F::PART);
                    if N * C == 1 {
                        for line in 0..F::PART.div_ceil(64) {
                            let ahead = part.wrapping_add(PREFETCH + line * 64);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(self.second).cast());
                        }
                    }
                    let part = Part::new::<F, BYTES>(&heads, [part, part.add(self.second)]);
                    for (n, acc) in acc.iter_mut().enumerate() {
                        self.add::<F, BYTES, C>(&part, block * F::PARTS + i, n * C, acc);
                    }
                }
            }
        }
        for (t, acc) in acc.as_flattened().iter().enumerate() {
            // SAFETY: row t of out has 16 columns, or 8.
            unsafe {
                let out = self.out.add(t * self.out_stride);
                match self.second {
                    0 => _mm256_storeu_ps(out, _mm512_castps512_ps256(*acc)),
                    _ => _mm512_storeu_ps(out, *acc),
                }
            }
        }
        N * C
    }

    /// Adds the products with 32 activations of C tokens from `first` on, number `b` of their blocks.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add<F: Format, const BYTES: usize, const C: usize>(
        &self,
        part: &Part,
        b: usize,
        first: usize,
        acc: &mut [__m512; C],
    ) {
        // SAFETY: the caller's promise; the quants of a row are followed by a scale and a sum for each 32.
        unsafe {
            let isums = self.isums::<F, BYTES, C>(part, b, first);
            let imins = match part.half_mins {
                Some([low, high]) => {
                    let mins = [low, low, low, low, high, high, high, high];
                    let zero = [_mm512_setzero_si512(); C];
                    Some(self.sums::<false, BYTES, C>(&mins, 0..8, b, first, zero))
                }
                None => None,
            };
            for (c, acc) in acc.iter_mut().enumerate() {
                let row = self.x.add((first + c) * self.x_stride);
                let factors = row.add(BYTES * self.k).cast::<f32>();
                let scale = _mm512_set1_ps(*factors.add(b));
                let factor = _mm512_mul_ps(part.d, scale);
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isums[c]), factor, *acc);
                if let Some(min) = part.min {
                    let sum = _mm512_set1_ps(*factors.add(self.k / BLOCK + b));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
                if let Some(imins) = imins {
                    let factor = _mm512_mul_ps(part.m, scale);
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(imins[c]), factor, *acc);
                }
            }
        }
    }

    /// The exact inner products of a part's rows with block `b` of C tokens, integer scales included.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn isums<F: Format, const BYTES: usize, const C: usize>(
        &self,
        part: &Part,
        b: usize,
        first: usize,
    ) -> [__m512i; C] {
        // SAFETY: the caller's promise.
        unsafe {
            match F::SCALES {
                Scales::None => self.part_sums::<F, BYTES, C>(part, 0, 0..8, b, first),
                Scales::Whole => {
                    let mut sums = self.part_sums::<F, BYTES, C>(part, 0, 0..8, b, first);
                    for sum in &mut sums {
                        *sum = _mm512_mullo_epi32(*sum, part.scales[0]);
                    }
                    sums
                }
                Scales::Halves => {
                    let mut sums = self.part_sums::<F, BYTES, C>(part, 0, 0..4, b, first);
                    let second = self.part_sums::<F, BYTES, C>(part, 1, 4..8, b, first);
                    for (sum, second) in sums.iter_mut().zip(second) {
                        *sum = _mm512_add_epi32(
                            _mm512_mullo_epi32(*sum, part.scales[0]),
                            _mm512_mullo_epi32(second, part.scales[1]),
                        );
                    }
                    sums
                }
            }
        }
    }

    /// The sums of some words of a part, from where those of half `half` start.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn part_sums<F: Format, const BYTES: usize, const C: usize>(
        &self,
        part: &Part,
        half: usize,
        range: Range<usize>,
        b: usize,
        first: usize,
    ) -> [__m512i; C] {
        let start = [part.start[half]; C];
        // SAFETY: the caller's promise.
        unsafe {
            match is_signed::<F>() {
                true => self.sums::<true, BYTES, C>(&part.words, range, b, first, start),
                false => self.sums::<false, BYTES, C>(&part.words, range, b, first, start),
            }
        }
    }

    /// Adds the products of some words of weights with those of C tokens to `sums`.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn sums<const SIGNED: bool, const BYTES: usize, const C: usize>(
        &self,
        words: &[__m512i; 8],
        range: Range<usize>,
        b: usize,
        first: usize,
        mut sums: [__m512i; C],
    ) -> [__m512i; C] {
        for byte in 0..BYTES {
            for j in range.clone() {
                for (c, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    let x = unsafe { self.word(first + c, byte, b, j) };
                    *sum = match SIGNED {
                        true => {
                            let raised = _mm512_xor_si512(x, _mm512_set1_epi8(-128));
                            _mm512_dpbusd_epi32(*sum, raised, words[j])
                        }
                        false => _mm512_dpbusd_epi32(*sum, words[j], x),
                    };
                }
            }
            if byte + 1 < BYTES {
                for sum in &mut sums {
                    *sum = _mm512_slli_epi32::<7>(*sum);
                }
            }
        }
        sums
    }

    /// Word `j` (4 quants) of block `b` of token `t`, in every lane. `byte`: 0 is the only one of Q8 and the high one of Q16.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn word(&self, t: usize, byte: usize, b: usize, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let quants = self.x.add(t * self.x_stride + byte * self.k + b * BLOCK);
            _mm512_set1_epi32(quants.cast::<i32>().add(j).read_unaligned())
        }
    }
}

/// Whether weights are the signed factor.
const fn is_signed<F: Format>() -> bool {
    matches!(F::QUANTS, Quants::SignedLow | Quants::Signed)
}

impl Part {
    /// Unpacks and joins parts of two groups, from their blocks' heads.
    ///
    /// # Safety
    /// Each of `at` points at a part.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn new<F: Format, const BYTES: usize>(heads: &[Head; 2], at: [*const u8; 2]) -> Part {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (
                [F::half::<0>(at[0]), F::half::<0>(at[1])],
                [F::half::<1>(at[0]), F::half::<1>(at[1])],
            );
            let words = [
                join(low[0][0], low[1][0]),
                join(low[0][1], low[1][1]),
                join(low[0][2], low[1][2]),
                join(low[0][3], low[1][3]),
                join(high[0][0], high[1][0]),
                join(high[0][1], high[1][1]),
                join(high[0][2], high[1][2]),
                join(high[0][3], high[1][3]),
            ];
            let scale = match F::SCALES {
                Scales::None => _mm512_setzero_si512(),
                _ => join(F::scale::<0>(at[0]), F::scale::<0>(at[1])),
            };
            let second_scale = match F::SCALES {
                Scales::Halves => join(F::scale::<1>(at[0]), F::scale::<1>(at[1])),
                _ => scale,
            };
            let start = match (is_signed::<F>(), F::SCALES) {
                (false, _) => [_mm512_setzero_si512(); 2],
                (true, Scales::Halves) => {
                    [start::<BYTES>(&words[..4]), start::<BYTES>(&words[4..])]
                }
                (true, _) => [start::<BYTES>(&words); 2],
            };
            let min = match (F::min(&heads[0], at[0]), F::min(&heads[1], at[1])) {
                (Some(first), Some(second)) => Some(join_floats(first, second)),
                _ => None,
            };
            let half_mins = match (
                [F::half_min::<0>(at[0]), F::half_min::<0>(at[1])],
                [F::half_min::<1>(at[0]), F::half_min::<1>(at[1])],
            ) {
                ([Some(low), Some(low_second)], [Some(high), Some(high_second)]) => Some([
                    in_every_byte(join(low, low_second)),
                    in_every_byte(join(high, high_second)),
                ]),
                _ => None,
            };
            Part {
                words,
                start,
                scales: [
                    _mm512_srai_epi32::<16>(scale),
                    _mm512_srai_epi32::<16>(second_scale),
                ],
                d: join_floats(heads[0].d, heads[1].d),
                m: join_floats(heads[0].m, heads[1].m),
                min,
                half_mins,
            }
        }
    }
}

/// What sums of products with raised activations start from.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn start<const BYTES: usize>(words: &[__m512i]) -> __m512i {
    let raised_by = _mm512_set1_epi8(if BYTES == 2 { 129u8 } else { 128 } as i8);
    let mut sum = _mm512_setzero_si512();
    for w in words {
        sum = _mm512_dpbusd_epi32(sum, raised_by, *w);
    }
    _mm512_sub_epi32(_mm512_setzero_si512(), sum)
}

/// Numbers below 256 in 16 bits, in both bytes.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn in_every_byte(x: __m512i) -> __m512i {
    _mm512_or_si512(x, _mm512_slli_epi16::<8>(x))
}

#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn join(first: __m256i, second: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
}

#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn join_floats(first: __m256, second: __m256) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
}
