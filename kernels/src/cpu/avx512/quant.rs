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

use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Head, Quants, Scales};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 8;

/// Weights of a format times rows whose quants have BYTES bytes: 1 in Q8, 2 in Q16.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    if args.rows == 1 {
        // SAFETY: the caller's promise.
        return unsafe { super::lone::matmul::<F, BYTES>(args) };
    }
    let blocks = args.k as usize / (F::PARTS * BLOCK);
    let group_bytes = blocks * (F::HEADER + F::PARTS * F::PART);
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let rows = args.rows as usize;
    for g in (0..groups).step_by(2) {
        let pair = g + 1 < groups;
        let mut row = 0;
        while row < rows {
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let tile = Tile {
                    w: args.w.add((first + g) * group_bytes),
                    pair,
                    second: if pair { group_bytes } else { 0 },
                    blocks,
                    k: args.k as usize,
                    x: args.x.add(row * args.x_stride as usize),
                    x_stride: args.x_stride as usize,
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                row += match rows - row {
                    1 => tile.run::<F, BYTES, 1>(),
                    2 | 3 => tile.run::<F, BYTES, 2>(),
                    4..TOKENS => tile.run::<F, BYTES, 4>(),
                    _ => tile.run::<F, BYTES, TOKENS>(),
                };
            }
        }
    }
}

/// Two groups of weights and some tokens.
struct Tile {
    w: *const u8,
    /// Whether there is a second group; where there is none, the first is taken twice.
    pair: bool,
    /// Bytes from the first group to the second.
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
    /// Computes T tokens and returns their number.
    ///
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, and so is what lies `second` bytes behind it; `x` has T rows of k quants of
    /// BYTES bytes, `out` as many rows of 16 columns, or of 8 unless `pair`.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format, const BYTES: usize, const T: usize>(&self) -> usize {
        let mut acc = [_mm512_setzero_ps(); T];
        for block in 0..self.blocks {
            // SAFETY: the block is within the group, and each part within the block.
            unsafe {
                let at = self.w.add(block * (F::HEADER + F::PARTS * F::PART));
                let heads = [F::head(at), F::head(at.add(self.second))];
                for i in 0..F::PARTS {
                    let part = at.add(F::HEADER + i * F::PART);
                    let part = Part::new::<F, BYTES>(&heads, [part, part.add(self.second)]);
                    self.add::<F, BYTES, T>(&part, block * F::PARTS + i, &mut acc);
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: row t of out has 16 columns, or 8.
            unsafe {
                let out = self.out.add(t * self.out_stride);
                match self.pair {
                    true => _mm512_storeu_ps(out, *acc),
                    false => _mm256_storeu_ps(out, _mm512_castps512_ps256(*acc)),
                }
            }
        }
        T
    }

    /// Adds the products with 32 activations of each token, number `b` of their blocks.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add<F: Format, const BYTES: usize, const T: usize>(
        &self,
        part: &Part,
        b: usize,
        acc: &mut [__m512; T],
    ) {
        // SAFETY: the caller's promise; the quants of a row are followed by a scale and a sum for each 32.
        unsafe {
            let x = self.quants(b);
            let isums = x.isums::<F, BYTES, T>(part);
            let imins = match part.half_mins {
                Some([low, high]) => {
                    let mins = [low, low, low, low, high, high, high, high];
                    Some(x.sums::<F, false, BYTES, T, 0, 8>(&mins, _mm512_setzero_si512()))
                }
                None => None,
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                let row = self.x.add(t * self.x_stride);
                let factors = row.add(BYTES * self.k).cast::<f32>();
                let scale = _mm512_set1_ps(*factors.add(b));
                let factor = _mm512_mul_ps(part.d, scale);
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isums[t]), factor, *acc);
                if let Some(min) = part.min {
                    let sum = _mm512_set1_ps(*factors.add(self.k / BLOCK + b));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
                if let Some(imins) = imins {
                    let factor = _mm512_mul_ps(part.m, scale);
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(imins[t]), factor, *acc);
                }
            }
        }
    }

    /// Block `b` of the tokens.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn quants(&self, b: usize) -> XBlock {
        XBlock {
            // SAFETY: the caller's promise.
            at: unsafe { self.x.add(b * BLOCK) },
            token: self.x_stride,
            byte: self.k,
        }
    }
}

/// Where a block of 32 quants of some tokens is.
#[derive(Clone, Copy)]
struct XBlock {
    /// The first token's.
    at: *const u8,
    /// Bytes from a token to the next.
    token: usize,
    /// Bytes from the high bytes of Q16 to the low ones.
    byte: usize,
}

/// The same quants, raised by 128.
#[repr(align(64))]
struct Raised<const BYTES: usize, const T: usize>([[[u8; BLOCK]; BYTES]; T]);

impl<const BYTES: usize, const T: usize> Raised<BYTES, T> {
    /// # Safety
    /// `x` has T tokens.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn new(x: XBlock) -> Self {
        let mut raised = Raised([[[0; BLOCK]; BYTES]; T]);
        for (t, token) in raised.0.iter_mut().enumerate() {
            for (byte, quants) in token.iter_mut().enumerate() {
                // SAFETY: 32 quants each.
                unsafe {
                    let x = _mm256_loadu_si256(x.at.add(t * x.token + byte * x.byte).cast());
                    let x = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
                    _mm256_storeu_si256(quants.as_mut_ptr().cast(), x);
                }
            }
        }
        raised
    }

    fn quants(&self) -> XBlock {
        XBlock {
            // Hidden, so that words are loaded to all lanes at once: the compiler would rather shuffle what was stored.
            at: std::hint::black_box(self.0.as_ptr().cast()),
            token: BYTES * BLOCK,
            byte: BLOCK,
        }
    }
}

impl XBlock {
    /// The exact inner products of a part's rows with T tokens, integer scales included.
    ///
    /// # Safety
    /// It has T tokens.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn isums<F: Format, const BYTES: usize, const T: usize>(
        self,
        part: &Part,
    ) -> [__m512i; T] {
        // SAFETY: the caller's promise.
        unsafe {
            if !is_signed::<F>() {
                return self.scaled_sums::<F, false, BYTES, T>(part);
            }
            let raised = Raised::<BYTES, T>::new(self);
            raised.quants().scaled_sums::<F, true, BYTES, T>(part)
        }
    }

    /// [`XBlock::isums`] of quants that are raised if weights are SIGNED.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn scaled_sums<F: Format, const SIGNED: bool, const BYTES: usize, const T: usize>(
        self,
        part: &Part,
    ) -> [__m512i; T] {
        let [low, high] = part.start;
        let scales = match holds_scales::<F>() {
            true => Scales::None,
            false => F::SCALES,
        };
        // SAFETY: the caller's promise.
        unsafe {
            match scales {
                Scales::None => self.sums::<F, SIGNED, BYTES, T, 0, 8>(&part.words, low),
                Scales::Whole => {
                    let mut sums = self.sums::<F, SIGNED, BYTES, T, 0, 8>(&part.words, low);
                    for sum in &mut sums {
                        *sum = _mm512_mullo_epi32(*sum, part.scales[0]);
                    }
                    sums
                }
                Scales::Halves => {
                    let mut sums = self.sums::<F, SIGNED, BYTES, T, 0, 4>(&part.words, low);
                    let second = self.sums::<F, SIGNED, BYTES, T, 4, 8>(&part.words, high);
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

    /// The products of words `FROM .. TO` of weights with T tokens, added to `start`. Instantiated once in each microkernel
    /// (therefore F) and written out, so that it is inlined and all of it stays in registers.
    ///
    /// # Safety
    /// It has T tokens.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn sums<
        F: Format,
        const SIGNED: bool,
        const BYTES: usize,
        const T: usize,
        const FROM: usize,
        const TO: usize,
    >(
        self,
        words: &[__m512i; 8],
        start: __m512i,
    ) -> [__m512i; T] {
        let mut sums = [start; T];
        macro_rules! add_words {
            ($byte:literal: $($j:literal)*) => {$(
                if FROM <= $j && $j < TO {
                    for (t, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the caller's promise; word j is 4 j bytes on.
                        let x = unsafe {
                            let at = self.at.add($byte * self.byte + t * self.token + 4 * $j);
                            _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
                        };
                        *sum = match SIGNED {
                            true => _mm512_dpbusd_epi32(*sum, x, words[$j]),
                            false => _mm512_dpbusd_epi32(*sum, words[$j], x),
                        };
                    }
                }
            )*};
        }
        add_words!(0: 0 1 2 3 4 5 6 7);
        if BYTES == 2 {
            for sum in &mut sums {
                *sum = _mm512_slli_epi32::<7>(*sum);
            }
            add_words!(1: 0 1 2 3 4 5 6 7);
        }
        sums
    }
}

/// Whether weights are the signed factor.
pub(super) const fn is_signed<F: Format>() -> bool {
    matches!(F::QUANTS, Quants::SignedLow | Quants::Signed)
}

/// Whether products of weights and integer scales fit a byte, so that they are what is multiplied: 3 * 15 does.
pub(super) const fn holds_scales<F: Format>() -> bool {
    matches!((F::QUANTS, F::SCALES), (Quants::Crumbs, Scales::Halves))
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
            let mut words = [
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
            if holds_scales::<F>() {
                // Both bytes of 16 bits at once: neither product leaves its byte.
                for (j, word) in words.iter_mut().enumerate() {
                    *word = _mm512_mullo_epi16(*word, if j < 4 { scale } else { second_scale });
                }
            }
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
    // Chains of two: all products of the part wait for this.
    let mut sum = _mm512_setzero_si512();
    for w in words.chunks_exact(2) {
        let first = _mm512_dpbusd_epi32(_mm512_setzero_si512(), raised_by, w[0]);
        sum = _mm512_add_epi32(sum, _mm512_dpbusd_epi32(first, raised_by, w[1]));
    }
    _mm512_sub_epi32(_mm512_setzero_si512(), sum)
}

/// Numbers below 256 in 16 bits, in both bytes.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn in_every_byte(x: __m512i) -> __m512i {
    _mm512_or_si512(x, _mm512_slli_epi16::<8>(x))
}

/// The rows of two groups in one vector.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn join(first: __m256i, second: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
}

/// As [`join`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn join_floats(first: __m256, second: __m256) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
}
