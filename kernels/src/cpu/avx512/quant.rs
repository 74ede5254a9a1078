//! Quantised weights times Q8 and Q16 rows, by `vpdpbusd` and `vpdpwssd`.
//!
//! A tile is two groups of eight rows of weights, a half of a vector each, by up to [`TOKENS`] tokens. [`Format`]s unpack as
//! for AVX2, each group by itself. `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32
//! bits, without a bound on the sums but the lane's. Unsigned weights are its first factor. Signed ones are its second:
//! then activations are raised by 128, and sums start from what that adds, -128 times the weights' sum, which all
//! tokens share.
//!
//! The quants of Q16 rows are 128 * high + low: the sums of the high bytes are shifted left by seven before those of the low
//! ones come on top. Signed weights are multiplied with these in 16 bits instead ([`is_wide`]).

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Head, Quants, Scales};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 8;

/// Parts of both groups that are unpacked at a time, for all tokens of a call: 256 k.
const PANEL: usize = 8;

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
    let block_bytes = F::HEADER + F::PARTS * F::PART;
    let group_bytes = blocks * block_bytes;
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let rows = args.rows as usize;
    let mut panel = [const { MaybeUninit::<Part>::uninit() }; PANEL];
    let shared = is_signed::<F>() && rows > TOKENS;
    let step = if shared { PANEL / F::PARTS } else { blocks };
    for g in (0..groups).step_by(2) {
        let pair = g + 1 < groups;
        let second = if pair { group_bytes } else { 0 };
        for block in (0..blocks).step_by(step) {
            let count = step.min(blocks - block);
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let w = args.w.add((first + g) * group_bytes + block * block_bytes);
                if shared {
                    let parts = panel.chunks_exact_mut(F::PARTS).take(count);
                    for (i, parts) in parts.enumerate() {
                        let at = w.add(i * block_bytes);
                        unpack_block::<F, BYTES>([at, at.add(second)], parts);
                    }
                }
                let mut row = 0;
                while row < rows {
                    let tile = Tile {
                        w,
                        second,
                        panel: panel.as_ptr().cast(),
                        blocks: count,
                        first: block * F::PARTS,
                        pair,
                        k: args.k as usize,
                        x: args.x_rows(row),
                        out: args.out.add(row * args.out_stride as usize + g * GROUP),
                        out_stride: args.out_stride as usize,
                    };
                    row += match (shared, rows - row) {
                        (true, 1) => tile.run::<F, BYTES, 1, true>(),
                        (true, 2 | 3) => tile.run::<F, BYTES, 2, true>(),
                        (true, 4..TOKENS) => tile.run::<F, BYTES, 4, true>(),
                        (true, _) => tile.run::<F, BYTES, TOKENS, true>(),
                        (false, 1) => tile.run::<F, BYTES, 1, false>(),
                        (false, 2 | 3) => tile.run::<F, BYTES, 2, false>(),
                        (false, 4..TOKENS) => tile.run::<F, BYTES, 4, false>(),
                        (false, _) => tile.run::<F, BYTES, TOKENS, false>(),
                    };
                }
            }
        }
    }
}

/// Unpacks the parts of a block of both groups.
///
/// # Safety
/// Each of `at` points at a block; `parts` are as many as a block has.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
unsafe fn unpack_block<F: Format, const BYTES: usize>(
    at: [*const u8; 2],
    parts: &mut [MaybeUninit<Part>],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = at.map(|at| F::head(at));
        for (i, to) in parts.iter_mut().enumerate() {
            let at = at.map(|at| at.add(F::HEADER + i * F::PART));
            Part::unpack::<F, BYTES>(&heads, at, to.as_mut_ptr());
        }
    }
}

/// Some blocks of two groups of weights, and some tokens.
struct Tile {
    w: *const u8,
    /// Bytes from the first group to the second.
    second: usize,
    /// The parts, unpacked, if tiles share them.
    panel: *const Part,
    blocks: usize,
    /// The number of the first part: of those before it, the sums are in `out`.
    first: usize,
    /// Whether there is a second group; where there is none, the first is taken twice.
    pair: bool,
    k: usize,
    /// The tokens' activations.
    x: [*const u8; TOKENS],
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
    /// `x` has T rows of k quants of BYTES bytes, `out` as many rows of 16 columns, or of 8 unless `pair`; the parts are of F
    /// and BYTES.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn run<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        &self,
    ) -> usize {
        let mut acc = [_mm512_setzero_ps(); T];
        // SAFETY: row t of out has 16 columns, or 8.
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
            let mut own = [const { MaybeUninit::<Part>::uninit() }; 1];
            for block in 0..self.blocks {
                let at = self.w.add(block * (F::HEADER + F::PARTS * F::PART));
                let heads = [F::head(at), F::head(at.add(self.second))];
                for i in 0..F::PARTS {
                    let number = block * F::PARTS + i;
                    let mut part = self.panel.wrapping_add(number);
                    if !SHARED {
                        let at = at.add(F::HEADER + i * F::PART);
                        let at = [at, at.add(self.second)];
                        Part::unpack::<F, BYTES>(&heads, at, own[0].as_mut_ptr());
                        part = own[0].as_ptr();
                    }
                    self.add::<F, BYTES, T, SHARED>(part, self.first + number, &mut acc);
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

    /// Adds the products with 32 activations of each token, number `b` of their blocks.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        &self,
        part: *const Part,
        b: usize,
        acc: &mut [__m512; T],
    ) {
        // SAFETY: the caller's promise; the quants of a row are followed by a scale and a sum for each 32.
        unsafe {
            let x = self.quants(b);
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
                let factors = self.x[t].add(BYTES * self.k).cast::<f32>();
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

    /// Block `b` of the tokens.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn quants(&self, b: usize) -> XBlock {
        XBlock {
            // SAFETY: the caller's promise.
            at: self.x.map(|x| unsafe { x.add(b * BLOCK) }),
            byte: self.k,
        }
    }
}

/// Where a block of 32 quants of some tokens is.
#[derive(Clone, Copy)]
struct XBlock {
    /// Of each token.
    at: [*const u8; TOKENS],
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
                    let x = _mm256_loadu_si256(x.at[t].add(byte * x.byte).cast());
                    let x = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
                    _mm256_storeu_si256(quants.as_mut_ptr().cast(), x);
                }
            }
        }
        raised
    }

    fn quants(&self) -> XBlock {
        // Hidden, so that words are loaded to all lanes at once: the compiler would rather shuffle what was stored.
        let first: *const u8 = std::hint::black_box(self.0.as_ptr().cast());
        XBlock {
            // Beyond the T tokens the pointers lead nowhere, and nobody follows them.
            at: std::array::from_fn(|t| first.wrapping_add(t * BYTES * BLOCK)),
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
    unsafe fn isums<F: Format, const BYTES: usize, const T: usize, const SHARED: bool>(
        self,
        part: *const Part,
    ) -> [__m512i; T] {
        // SAFETY: the caller's promise.
        unsafe {
            if is_wide::<F, BYTES>() {
                let pairs = Pairs::<T>::new(self);
                return pairs.sums::<F, SHARED>(&raw const (*part).words);
            }
            if !is_signed::<F>() {
                return self.scaled_sums::<F, false, BYTES, T, SHARED>(part);
            }
            let raised = Raised::<BYTES, T>::new(self);
            raised
                .quants()
                .scaled_sums::<F, true, BYTES, T, SHARED>(part)
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
                            let at = self.at[t].add($byte * self.byte + 4 * $j);
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

/// Quants of Q16 rows in 16 bits: of each four, the even ones of all the block, then the odd ones.
#[repr(align(64))]
struct Pairs<const T: usize>([[[i16; 16]; 2]; T]);

impl<const T: usize> Pairs<T> {
    /// # Safety
    /// `x` has T tokens, of two bytes.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn new(x: XBlock) -> Self {
        let mut pairs = Pairs([[[0; 16]; 2]; T]);
        for (t, [evens, odds]) in pairs.0.iter_mut().enumerate() {
            // SAFETY: 32 quants each, and 32 bytes of each array.
            unsafe {
                let high = _mm256_loadu_si256(x.at[t].cast());
                let low = _mm256_loadu_si256(x.at[t].add(x.byte).cast());
                let even = _mm256_add_epi16(
                    _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(high)),
                    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low)),
                );
                let odd = _mm256_add_epi16(
                    _mm256_slli_epi16::<7>(_mm256_srai_epi16::<8>(high)),
                    _mm256_srai_epi16::<8>(low),
                );
                _mm256_store_si256(evens.as_mut_ptr().cast(), even);
                _mm256_store_si256(odds.as_mut_ptr().cast(), odd);
            }
        }
        pairs
    }

    /// The exact inner products with a part's words.
    ///
    /// # Safety
    /// `words` may be read.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn sums<F: Format, const SHARED: bool>(
        &self,
        words: *const [__m512i; 16],
    ) -> [__m512i; T] {
        let mut sums = [_mm512_setzero_si512(); T];
        macro_rules! add_words {
            ($($j:literal)*) => {$(
                // SAFETY: the caller's promise; a token has 16 pairs.
                unsafe {
                    let word = (*words)[$j];
                    for (pairs, sum) in self.0.iter().zip(&mut sums) {
                        // The intrinsic becomes `vpmaddwd` and `vpaddd`, on one pipe each, for what it saves of latency.
                        asm!(
                            "vpdpwssd {sum}, {word}, dword ptr [{at} + 4 * {j}]{{1to16}}",
                            sum = inout(zmm_reg) *sum,
                            word = in(zmm_reg) word,
                            at = in(reg) pairs,
                            j = const $j,
                            options(pure, readonly, nostack, preserves_flags),
                        );
                    }
                }
            )*};
        }
        add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        sums
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
