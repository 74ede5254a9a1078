//! Quantised weights times Q8 and Q16 rows, by `vpdpbusd` and `vpdpwssd`.
//!
//! A tile is two groups of eight rows of weights, a half of a vector each, by up to [`TOKENS`] tokens. [`Format`]s unpack as
//! for AVX2, each group by itself: for many tokens to a panel of 256 k, which all of them read.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32 bits, without a bound on the sums but
//! the lane's. Unsigned weights are its first factor. Signed ones are its second: then activations are raised by 128, and sums
//! start from what that adds, -128 times the weights' sum, which all tokens share. The quants of Q16 rows are 128 * high +
//! low: the sums of the high bytes are shifted left by seven before those of the low ones come on top. Signed weights are
//! multiplied with these in 16 bits instead ([`is_wide`]).

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::activations::{PairedBlock, Prepared, RaisedBlock, XBlock};
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Head, Quants, Scales};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 8;

/// Parts of both groups that are worked on at a time, all tokens by all features: 256 k.
pub(super) const PANEL: usize = 8;

/// Tokens that are worked on at a time: with their activations of 256 k, in 16 bits, a panel is in the first-level cache.
pub(super) const ROWS: usize = 32;

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
    let mut prepared = Prepared::new();
    let mut panel = [const { MaybeUninit::<Part>::uninit() }; PANEL];
    for row in (0..args.rows as usize).step_by(ROWS) {
        for block in (0..blocks).step_by(PANEL / F::PARTS) {
            let chunk = Chunk {
                args,
                row,
                rows: ROWS.min(args.rows as usize - row),
                block,
                blocks: (PANEL / F::PARTS).min(blocks - block),
            };
            // SAFETY: the caller's promise; the chunk is of its rows and blocks.
            unsafe { chunk.run::<F, BYTES>(&mut prepared, &mut panel) };
        }
    }
}

/// Some rows of activations by some blocks of all weights.
struct Chunk<'a> {
    args: &'a MatMulArgs,
    row: usize,
    /// Up to [`ROWS`].
    rows: usize,
    block: usize,
    /// Up to [`PANEL`] parts.
    blocks: usize,
}

impl Chunk<'_> {
    /// Adds the chunk's products to the outputs, or begins them if it is the first.
    ///
    /// # Safety
    /// As [`matmul`]; the chunk is within it.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format, const BYTES: usize>(
        &self,
        prepared: &mut Prepared,
        panel: &mut [MaybeUninit<Part>; PANEL],
    ) {
        let args = self.args;
        let k = args.k as usize;
        let block_bytes = F::HEADER + F::PARTS * F::PART;
        let group_bytes = k / (F::PARTS * BLOCK) * block_bytes;
        let groups = (args.cols as usize).div_ceil(GROUP);
        let first = self.block * F::PARTS;
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            let rows = args.x.add(self.row * args.x_stride as usize);
            let x = rows.add(first * BLOCK);
            let parts = self.blocks * F::PARTS;
            let prepared = match (is_wide::<F, BYTES>(), is_signed::<F>()) {
                (true, _) => prepared.fill::<PairedBlock>(args, x, self.rows, parts),
                (false, true) => prepared.fill::<RaisedBlock>(args, x, self.rows, parts),
                (false, false) => x,
            };
            for g in (0..groups).step_by(2) {
                let pair = g + 1 < groups;
                let group = args.col0 as usize / GROUP + g;
                let weights = Weights {
                    at: args.w.add(group * group_bytes + self.block * block_bytes),
                    second: if pair { group_bytes } else { 0 },
                };
                let mut tile = Tile {
                    weights,
                    panel: panel.as_ptr().cast(),
                    blocks: self.blocks,
                    first,
                    pair,
                    k,
                    x: rows,
                    x_stride: args.x_stride as usize,
                    prepared,
                    out: args
                        .out
                        .add(self.row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                let shared = is_signed::<F>() && self.rows > TOKENS;
                if shared {
                    weights.unpack::<F, BYTES>(self.blocks, panel);
                }
                let mut left = self.rows;
                while left > 0 {
                    let done = match (shared, left) {
                        (true, 1) => tile.run::<F, BYTES, 1, true>(),
                        (true, 2 | 3) => tile.run::<F, BYTES, 2, true>(),
                        (true, 4..TOKENS) => tile.run::<F, BYTES, 4, true>(),
                        (true, _) => tile.run::<F, BYTES, TOKENS, true>(),
                        (false, 1) => tile.run::<F, BYTES, 1, false>(),
                        (false, 2 | 3) => tile.run::<F, BYTES, 2, false>(),
                        (false, 4..TOKENS) => tile.run::<F, BYTES, 4, false>(),
                        (false, _) => tile.run::<F, BYTES, TOKENS, false>(),
                    };
                    left -= done;
                    tile.x = tile.x.wrapping_add(done * tile.x_stride);
                    tile.prepared = tile.prepared.wrapping_add(done * BYTES * BLOCK);
                    tile.out = tile.out.wrapping_add(done * tile.out_stride);
                }
            }
        }
    }
}

/// Blocks of two groups of weights.
#[derive(Clone, Copy)]
struct Weights {
    at: *const u8,
    /// Bytes from the first group to the second, 0 where there is none: then the first is taken twice.
    second: usize,
}

impl Weights {
    /// Unpacks `blocks` blocks.
    ///
    /// # Safety
    /// They are there, and have as many parts as `panel` at most.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn unpack<F: Format, const BYTES: usize>(
        &self,
        blocks: usize,
        panel: &mut [MaybeUninit<Part>; PANEL],
    ) {
        for (block, parts) in panel.chunks_exact_mut(F::PARTS).take(blocks).enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let heads = self.heads::<F>(block);
                for (i, part) in parts.iter_mut().enumerate() {
                    Part::unpack::<F, BYTES>(&heads, self.part::<F>(block, i), part.as_mut_ptr());
                }
            }
        }
    }

    /// The heads of a block.
    ///
    /// # Safety
    /// It is there.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn heads<F: Format>(&self, block: usize) -> [Head; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.at.add(block * (F::HEADER + F::PARTS * F::PART));
            [F::head(at), F::head(at.add(self.second))]
        }
    }

    /// Part `i` of a block.
    ///
    /// # Safety
    /// It is there.
    #[inline]
    unsafe fn part<F: Format>(&self, block: usize, i: usize) -> [*const u8; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.at.add(block * (F::HEADER + F::PARTS * F::PART));
            let at = at.add(F::HEADER + i * F::PART);
            [at, at.add(self.second)]
        }
    }
}

/// Some blocks of two groups of weights, and some tokens.
struct Tile {
    weights: Weights,
    /// Their parts, unpacked, if tokens share that.
    panel: *const Part,
    blocks: usize,
    /// The number of the first part: of those before it, the sums are in `out`.
    first: usize,
    /// Whether there is a second group.
    pair: bool,
    k: usize,
    x: *const u8,
    x_stride: usize,
    /// The tile's part of x, prepared, where it is.
    prepared: *const u8,
    out: *mut f32,
    out_stride: usize,
}

/// 32 k of both groups, unpacked. What a format has no use for isn't written.
struct Part {
    /// Eight of four bytes a lane, or, where they are multiplied in 16 bits, eight of the even ones and eight of the odd.
    words: [__m512i; 16],
    /// What sums of each half start from.
    start: [__m512i; 2],
    /// Integer scales of each half.
    scales: [__m512i; 2],
    d: __m512,
    m: __m512,
    min: __m512,
    /// Integer minima of each half, in every byte.
    half_mins: [__m512i; 2],
}

impl Tile {
    /// Computes T tokens and returns their number.
    ///
    /// # Safety
    /// The blocks are there, and in the panel if it is SHARED; `x` and the factors are of T rows, `out` has as many of 16
    /// columns, or of 8 unless `pair`.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        &self,
    ) -> usize {
        let mut acc = [_mm512_setzero_ps(); T];
        // SAFETY: the caller's promise.
        unsafe {
            if self.first > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    let out = self.out.add(t * self.out_stride);
                    *acc = match self.pair {
                        true => _mm512_loadu_ps(out),
                        false => _mm512_zextps256_ps512(_mm256_loadu_ps(out)),
                    };
                }
            }
            if SHARED {
                for i in 0..self.blocks * F::PARTS {
                    self.add::<F, BYTES, T, SHARED>(self.panel.add(i), i, &mut acc);
                }
            } else {
                for block in 0..self.blocks {
                    let heads = self.weights.heads::<F>(block);
                    for i in 0..F::PARTS {
                        let mut part = MaybeUninit::uninit();
                        let at = self.weights.part::<F>(block, i);
                        Part::unpack::<F, BYTES>(&heads, at, part.as_mut_ptr());
                        self.add::<F, BYTES, T, SHARED>(
                            part.as_ptr(),
                            block * F::PARTS + i,
                            &mut acc,
                        );
                    }
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                let out = self.out.add(t * self.out_stride);
                match self.pair {
                    true => _mm512_storeu_ps(out, *acc),
                    false => _mm256_storeu_ps(out, _mm512_castps512_ps256(*acc)),
                }
            }
        }
        T
    }

    /// Adds the products of part number `i` of the tile's.
    ///
    /// # Safety
    /// As [`Tile::run`], and the part is unpacked.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        &self,
        part: *const Part,
        i: usize,
        acc: &mut [__m512; T],
    ) {
        // SAFETY: the caller's promise; the quants of a row are followed by a scale and a sum for each 32.
        unsafe {
            let b = self.first + i;
            let x = match is_signed::<F>() {
                true => XBlock {
                    at: self.prepared.add(i * ROWS * BYTES * BLOCK),
                    token: BYTES * BLOCK,
                    byte: 0,
                },
                false => XBlock {
                    at: self.x.add(b * BLOCK),
                    token: self.x_stride,
                    byte: self.k,
                },
            };
            let isums = x.isums::<F, BYTES, T, SHARED>(part);
            let imins = match F::HAS_HALF_MINS {
                true => {
                    let [low, high] = (*part).half_mins;
                    let mins = [low, low, low, low, high, high, high, high];
                    x.sums::<F, false, BYTES, T, SHARED, 0, 8>(
                        mins.as_ptr(),
                        _mm512_setzero_si512(),
                    )
                }
                false => [_mm512_setzero_si512(); T],
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                let row = self.x.add(t * self.x_stride);
                let factors = row.add(BYTES * self.k).cast::<f32>();
                let scale = _mm512_set1_ps(*factors.add(b));
                let factor = _mm512_mul_ps((*part).d, scale);
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isums[t]), factor, *acc);
                if F::HAS_MIN {
                    let sum = _mm512_set1_ps(*factors.add(self.k / BLOCK + b));
                    *acc = _mm512_fmadd_ps((*part).min, sum, *acc);
                }
                if F::HAS_HALF_MINS {
                    let factor = _mm512_mul_ps((*part).m, scale);
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(imins[t]), factor, *acc);
                }
            }
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
    unsafe fn isums<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        self,
        part: *const Part,
    ) -> [__m512i; T] {
        // SAFETY: the caller's promise.
        unsafe {
            match (is_wide::<F, BYTES>(), is_signed::<F>()) {
                (true, _) => self.wide_sums::<F, T, SHARED>(&raw const (*part).words),
                (false, true) => self.scaled_sums::<F, true, BYTES, T, SHARED>(part),
                (false, false) => self.scaled_sums::<F, false, BYTES, T, SHARED>(part),
            }
        }
    }

    /// [`XBlock::isums`] of quants that are raised if weights are SIGNED.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn scaled_sums<
        F: Format,
        const SIGNED: bool,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
    >(
        self,
        part: *const Part,
    ) -> [__m512i; T] {
        let scales = match holds_scales::<F>() {
            true => Scales::None,
            false => F::SCALES,
        };
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = match is_signed::<F>() {
                true => (*part).start,
                false => [_mm512_setzero_si512(); 2],
            };
            let words = (&raw const (*part).words).cast();
            match scales {
                Scales::None => self.sums::<F, SIGNED, BYTES, T, SHARED, 0, 8>(words, low),
                Scales::Whole => {
                    let mut sums = self.sums::<F, SIGNED, BYTES, T, SHARED, 0, 8>(words, low);
                    for sum in &mut sums {
                        *sum = _mm512_mullo_epi32(*sum, (*part).scales[0]);
                    }
                    sums
                }
                Scales::Halves => {
                    let mut sums = self.sums::<F, SIGNED, BYTES, T, SHARED, 0, 4>(words, low);
                    let second = self.sums::<F, SIGNED, BYTES, T, SHARED, 4, 8>(words, high);
                    for (sum, second) in sums.iter_mut().zip(second) {
                        *sum = _mm512_add_epi32(
                            _mm512_mullo_epi32(*sum, (*part).scales[0]),
                            _mm512_mullo_epi32(second, (*part).scales[1]),
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
        const SHARED: bool,
        const FROM: usize,
        const TO: usize,
    >(
        self,
        words: *const __m512i,
        start: __m512i,
    ) -> [__m512i; T] {
        let mut sums = [start; T];
        macro_rules! add_words {
            ($byte:literal: $($j:literal)*) => {$(
                if FROM <= $j && $j < TO {
                    // SAFETY: the caller's promise.
                    let word = unsafe { *words.add($j) };
                    for (t, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the caller's promise; word j is 4 j bytes on.
                        let x = unsafe {
                            let at = self.at.add($byte * self.byte + t * self.token + 4 * $j);
                            _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
                        };
                        *sum = match SIGNED {
                            true => _mm512_dpbusd_epi32(*sum, x, word),
                            false => _mm512_dpbusd_epi32(*sum, word, x),
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

/// Whether weights are multiplied in 16 bits. With Q16 rows that takes as many products as two bytes apart do, but integer
/// scales are multiplied into weights, once for all tokens, and signed weights need no raised activations.
const fn is_wide<F: Format, const BYTES: usize>() -> bool {
    BYTES == 2 && is_signed::<F>()
}

impl Part {
    /// Unpacks and joins parts of two groups, from their blocks' heads.
    ///
    /// # Safety
    /// Each of `at` points at a part; `to` may be written.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn unpack<F: Format, const BYTES: usize>(
        heads: &[Head; 2],
        at: [*const u8; 2],
        to: *mut Part,
    ) {
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
            (*to).d = join_floats(heads[0].d, heads[1].d);
            if let (Some(first), Some(second)) =
                (F::min(&heads[0], at[0]), F::min(&heads[1], at[1]))
            {
                (*to).min = join_floats(first, second);
            }
            if let ([Some(low), Some(low_second)], [Some(high), Some(high_second)]) = (
                [F::half_min::<0>(at[0]), F::half_min::<0>(at[1])],
                [F::half_min::<1>(at[0]), F::half_min::<1>(at[1])],
            ) {
                (*to).m = join_floats(heads[0].m, heads[1].m);
                (*to).half_mins = [
                    in_every_byte(join(low, low_second)),
                    in_every_byte(join(high, high_second)),
                ];
            }
            if is_wide::<F, BYTES>() {
                for (j, word) in words.into_iter().enumerate() {
                    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(word));
                    let odd = _mm512_srai_epi16::<8>(word);
                    let scale = if j < 4 { scale } else { second_scale };
                    (*to).words[j] = times::<F>(even, scale);
                    (*to).words[8 + j] = times::<F>(odd, scale);
                }
                return;
            }
            if holds_scales::<F>() {
                // Both bytes of 16 bits at once: neither product leaves its byte.
                for (j, word) in words.iter_mut().enumerate() {
                    *word = _mm512_mullo_epi16(*word, if j < 4 { scale } else { second_scale });
                }
            } else if !matches!(F::SCALES, Scales::None) {
                (*to).scales = [
                    _mm512_srai_epi32::<16>(scale),
                    _mm512_srai_epi32::<16>(second_scale),
                ];
            }
            if is_signed::<F>() {
                (*to).start = match F::SCALES {
                    Scales::Halves => [start(&words[..4]), start(&words[4..])],
                    _ => [start(&words); 2],
                };
            }
            for (j, word) in words.into_iter().enumerate() {
                (*to).words[j] = word;
            }
        }
    }
}

/// Weights of 16 bits times their integer scales, which they hold: 32 * 128 is the most.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn times<F: Format>(words: __m512i, scale: __m512i) -> __m512i {
    match F::SCALES {
        Scales::None => words,
        _ => _mm512_mullo_epi16(words, scale),
    }
}

/// What sums of products with activations that are raised by 128 start from.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
fn start(words: &[__m512i]) -> __m512i {
    let raised_by = _mm512_set1_epi8(-128);
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
