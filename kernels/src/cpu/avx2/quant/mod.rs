//! Quantised weights times Q8, Q8K and Q11 rows.
//!
//! A [`Format`] says how an encoding unpacks, to vectors with 4 k of every row of a group. Of few tokens a tile is one group by up to
//! [`TOKENS`] tokens, which use what is unpacked of each 32 k while registers hold it; [`dot`] says how that is multiplied with
//! activations, or [`wide`] where that is in 16 bits. [`many`] tokens share weights that are unpacked to memory.

mod dot;
mod formats;
mod many;
mod panel;
mod starts;
mod unpack;
mod wide;

pub use formats::{
    IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};

pub(in crate::cpu) use starts::{each_slice, starts_of_blocks};

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::Q8K_BLOCK;

use crate::abi::MatMulArgs;
use crate::cpu::features::is_amd;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const TOKENS: usize = 4;

/// Whether tokens share weights that are unpacked to panels ([`many`]), which cost the less the more there are (NOTES.md, "Panels"). Where
/// sums of unsigned weights are exact, tiles are faster with more tokens than fill one, above all while weights come from memory.
fn are_many<F: Format, const BYTES: usize, const VNNI: bool>(tokens: u64) -> bool {
    let is_exact = has_exact_blocks::<F, BYTES>();
    let few = match F::QUANTS {
        Quants::SignedLow | Quants::Crumbs => 3,
        Quants::Signed if VNNI || BYTES == 2 => 3,
        Quants::Nibbles | Quants::Low if VNNI && BYTES == 2 => 3,
        Quants::Nibbles if is_exact && !VNNI && is_amd() => 32,
        Quants::Low if is_exact && !VNNI && is_amd() => 16,
        Quants::Nibbles | Quants::Low if is_exact && !VNNI => 8,
        _ => 4,
    };
    tokens > few
}

/// Groups that a lone token meets side by side. It waits for memory, and Intel's cores have more reads under way with some streams than
/// with one, whose prefetching ends at a page; AMD's do not (NOTES.md, "One token: one stream").
const STREAMS: usize = 4;

/// How far ahead of the part in work few tokens' weights are fetched, in bytes.
const PREFETCH: usize = 2048;

/// As far on AMD's cores, which follow one stream by themselves (NOTES.md, "One token: one stream").
const PREFETCH_AMD: usize = 256;

/// How a packed block of eight rows ([`crate::pack`]) unpacks. A *part* is 32 k of it.
///
/// # Safety
/// All functions need the level's instructions; `at` points at a block, `part` at a part.
pub trait Format {
    /// Parts of a block.
    const PARTS: usize;
    /// Bytes before the parts.
    const HEADER: usize;
    /// Bytes of a part.
    const PART: usize;
    const QUANTS: Quants;
    const SCALES: Scales;
    /// What the encoding's quants are raised by, so that those of [`Format::half`] are not negative: 0, or a multiple of 8.
    const RAISED: i32;
    /// Whether there is a `min`.
    const HAS_MIN: bool;
    /// Whether there are `part_mins`.
    const HAS_PART_MINS: bool;
    /// Whether there are `half_min`s.
    const HAS_HALF_MINS: bool;

    unsafe fn head(at: *const u8) -> Head;

    /// Words 4H .. 4H + 4 of the part's quants: lane r of word j is elements 4j .. 4j + 4 of row r.
    unsafe fn half<const H: usize>(part: *const u8) -> [__m256i; 4];

    /// All eight words in memory: unpacked to `scratch`, or where they are.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn words(part: *const u8, scratch: &mut [__m256i; 8]) -> *const __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = scratch.split_at_mut(4);
            low.copy_from_slice(&Self::half::<0>(part));
            high.copy_from_slice(&Self::half::<1>(part));
        }
        scratch.as_ptr()
    }

    /// Integer scales of half H (of the whole part, unless `SCALES` is `Halves`), twice in a lane, in 16 bits.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scale<const H: usize>(_part: *const u8) -> __m256i {
        _mm256_set1_epi16(1)
    }

    /// What is added to every element, to be multiplied with the activations' scaled sum.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn min(_head: &Head, _part: *const u8) -> Option<__m256> {
        None
    }

    /// Integer minima of a part and the next one, side by side in a lane, in 16 bits, to be multiplied with `Head::m`; `min` is their
    /// product. Where there are any, parts are even in number.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn part_mins(_part: *const u8, _next: *const u8) -> Option<__m256i> {
        None
    }

    /// Integer minima of half H, as in `scale`, to be multiplied with `Head::m`.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn half_min<const H: usize>(_part: *const u8) -> Option<__m256i> {
        None
    }
}

/// What the numbers of [`Format::half`] are, which decides how they are multiplied.
#[derive(Clone, Copy, PartialEq)]
pub enum Quants {
    /// 0 to 3.
    Crumbs,
    /// 0 to 15.
    Nibbles,
    /// 0 to 31.
    Low,
    /// -32 to 32.
    SignedLow,
    /// -128 to 127.
    Signed,
}

/// How many integer scales a part has. With these the sums of products with Q11 rows are at most 32 * 32 * 128 * 1016, in Q6_K:
/// 2^27.
#[derive(Clone, Copy, PartialEq)]
pub enum Scales {
    None,
    Whole,
    Halves,
}

/// Whether products of weights and integer scales fit a byte, so that they are what is multiplied: 3 * 15 does.
pub(in crate::cpu) const fn holds_scales<F: Format>() -> bool {
    matches!((F::QUANTS, F::SCALES), (Quants::Crumbs, Scales::Halves))
}

/// Whether the sums of a block's parts are added before they are multiplied with the block's factor: where it has several. Q11 rows' have
/// been scaled as the activations are, and minima that are not integers come before that, part by part. Those of Q8K rows are
/// [exact](has_exact_blocks).
pub(in crate::cpu) const fn has_inner_sums<F: Format>() -> bool {
    assert!(F::PARTS > 1 || !F::HAS_HALF_MINS);
    assert!(F::PARTS == 1 || F::HAS_MIN == F::HAS_PART_MINS);
    F::PARTS > 1
}

/// Whether the rows are Q8K, which have one scale for a block of several parts: sums of products and of integer minima are exact until
/// it is done. The quants of Q8K are bytes, and no other rows of bytes meet such blocks.
pub(in crate::cpu) const fn has_exact_blocks<F: Format, const BYTES: usize>() -> bool {
    F::PARTS > 1 && BYTES == 1
}

/// The scales of a Q8K row of k quants, and the sums of 32 quants each.
pub(in crate::cpu) fn q8k_factors(row: *const u8, k: usize) -> (*const f32, *const i16) {
    let scales = row.wrapping_add(k).cast::<f32>();
    (scales, scales.wrapping_add(k / Q8K_BLOCK).cast())
}

/// The factors of a block, a lane a row.
pub struct Head {
    pub d: __m256,
    /// The factor of the minima, negative where those are subtracted.
    pub m: __m256,
}

/// Fetches what a part's share of a block is, which may be anywhere, to a cache: few tokens are multiplied faster than the processor by
/// itself reads ahead. A whole block's lines at once would wait for one another (NOTES.md, "Few tokens").
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) fn fetch_part<F: Format, const CACHE: i32>(block: *const u8, part: usize) {
    // The first one's begins with the header.
    let share = block.wrapping_add(part * F::PART);
    let bytes = F::PART + if F::PARTS == 1 { F::HEADER } else { 0 };
    for line in 0..bytes.div_ceil(64) {
        _mm_prefetch::<CACHE>(share.wrapping_add(line * 64).cast());
    }
}

/// Weights of a format times rows whose quants have BYTES bytes: 1 in Q8, in Q8K where a block has several parts, 2 in Q11.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        if wide::is_best::<F, BYTES>(args.rows as usize) {
            wide::matmul::<F, BYTES>(args)
        } else if are_many::<F, BYTES, false>(args.rows) {
            many::matmul::<F, BYTES, false>(args)
        } else {
            tiles::<F, BYTES>(args)
        }
    }
}

/// [`matmul`] of a processor that has AVX-VNNI, too.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn vnni_matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    match are_many::<F, BYTES, true>(args.rows) {
        true => unsafe { many::matmul::<F, BYTES, true>(args) },
        false => unsafe { tiles::<F, BYTES>(args) },
    }
}

/// [`matmul`] of few tokens.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn tiles<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        each_slice::<F, BYTES, false>(args, F::RAISED, |rows, starts| {
            slice::<F, BYTES>(args, rows, starts)
        })
    };
}

/// Some of the call's rows, with what their sums start from ([`each_slice`]).
///
/// # Safety
/// As [`matmul`]; `starts` has a number for each block of the rows if the format is raised.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn slice<F: Format, const BYTES: usize>(
    args: &MatMulArgs,
    rows: Range<usize>,
    starts: *const i32,
) {
    let blocks = args.k as usize / (F::PARTS * BLOCK);
    let group_bytes = blocks * (F::HEADER + F::PARTS * F::PART);
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    // A variable, so that loops over words stay loops: unrolled, the compiler spills their registers.
    let half_words = std::hint::black_box(4);
    let is_amd = is_amd();
    let side_by_side = args.rows == 1 && !is_amd;
    let fetch = match (is_amd, args.rows as usize) {
        (true, ..=TOKENS) => Fetch::NearOnce,
        (true, _) => Fetch::Near,
        (false, _) => Fetch::Far,
    };
    let mut g = 0;
    while g < groups {
        let is_lone = side_by_side && groups - g >= STREAMS;
        for row in rows.clone().step_by(TOKENS) {
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                let tile = Tile {
                    half_words,
                    fetch,
                    w: args.w.add((first + g) * group_bytes),
                    blocks,
                    k: args.k as usize,
                    x: args.x_rows(row),
                    starts: starts.wrapping_add((row - rows.start) * (args.k as usize / BLOCK)),
                    out: args.out.add(row * args.out_stride as usize + g * GROUP),
                    out_stride: args.out_stride as usize,
                };
                match rows.end - row {
                    1 if is_lone => tile.lone::<F, BYTES>(group_bytes),
                    1 => tile.run::<F, BYTES, 1>(),
                    2 => tile.run::<F, BYTES, 2>(),
                    3 => tile.run::<F, BYTES, 3>(),
                    _ => tile.run::<F, BYTES, TOKENS>(),
                }
            }
        }
        g += if is_lone { STREAMS } else { 1 };
    }
}

/// Sums of T tokens with a group of weights.
struct Sums<const T: usize> {
    acc: [__m256; T],
    /// Of the block in work, scaled ([`has_inner_sums`]).
    inner: [__m256; T],
    /// The same of integer minima.
    mins: [__m256; T],
    /// Of the block in work, exact ([`has_exact_blocks`]).
    isums: [__m256i; T],
    /// The same of integer minima of halves.
    imins: [__m256i; T],
}

impl<const T: usize> Sums<T> {
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn new() -> Sums<T> {
        let zero = [_mm256_setzero_ps(); T];
        Sums {
            acc: zero,
            inner: zero,
            mins: zero,
            isums: [_mm256_setzero_si256(); T],
            imins: [_mm256_setzero_si256(); T],
        }
    }

    /// Adds those of a block, which is done, if they are scaled.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn fold<F: Format, const BYTES: usize>(&mut self, head: &Head) {
        if !has_inner_sums::<F>() || has_exact_blocks::<F, BYTES>() {
            return;
        }
        let zero = _mm256_setzero_ps();
        for t in 0..T {
            let inner = std::mem::replace(&mut self.inner[t], zero);
            self.acc[t] = _mm256_fmadd_ps(inner, head.d, self.acc[t]);
            if F::HAS_HALF_MINS {
                let mins = std::mem::replace(&mut self.mins[t], zero);
                self.acc[t] = _mm256_fmadd_ps(mins, head.m, self.acc[t]);
            }
        }
    }
}

/// How weights are fetched ahead of the part in work.
#[derive(Clone, Copy)]
enum Fetch {
    /// [`PREFETCH`] bytes.
    Far,
    /// [`PREFETCH_AMD`] bytes.
    Near,
    /// As far, of a group that no more tokens meet: nothing but the first-level cache need hold it.
    NearOnce,
}

/// One group of weights and some tokens.
struct Tile {
    fetch: Fetch,
    /// Half the words of a part: 4.
    half_words: usize,
    w: *const u8,
    /// Blocks of a row of weights.
    blocks: usize,
    k: usize,
    /// The tokens' activations.
    x: [*const u8; TOKENS],
    /// What each block's sums start from, a token after the other, if the format is raised.
    starts: *const i32,
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    /// # Safety
    /// `w` is a packed group of `blocks` blocks, the first T of `x` are rows of k quants of BYTES bytes, `out` T rows of 8 columns.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<F: Format, const BYTES: usize, const T: usize>(&self) {
        let mut sums = Sums::new();
        for block in 0..self.blocks {
            // SAFETY: the block is within the group, and each part within the block.
            unsafe {
                let at = self.w.add(block * (F::HEADER + F::PARTS * F::PART));
                let head = F::head(at);
                for i in 0..F::PARTS {
                    let (far, near) = (at.wrapping_add(PREFETCH), at.wrapping_add(PREFETCH_AMD));
                    match (self.fetch, T) {
                        (Fetch::Far, 1) => fetch_part::<F, _MM_HINT_T0>(far, i),
                        (Fetch::Far, _) => fetch_part::<F, _MM_HINT_T1>(far, i),
                        (Fetch::Near, _) => fetch_part::<F, _MM_HINT_T0>(near, i),
                        (Fetch::NearOnce, _) => fetch_part::<F, _MM_HINT_NTA>(near, i),
                    }
                    let part = at.add(F::HEADER + i * F::PART);
                    self.add::<F, BYTES, T>(&head, part, block * F::PARTS + i, &mut sums);
                }
                sums.fold::<F, BYTES>(&head);
                self.fold_exact::<F, BYTES, T>(&head, at, block, &mut sums);
            }
        }
        for (t, acc) in sums.acc.iter().enumerate() {
            // SAFETY: row t of out has 8 columns.
            unsafe { _mm256_storeu_ps(self.out.add(t * self.out_stride), *acc) };
        }
    }

    /// One token and [`STREAMS`] groups side by side, `group_bytes` apart.
    ///
    /// # Safety
    /// As [`Tile::run`], with so many groups, and as many times 8 columns.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn lone<F: Format, const BYTES: usize>(&self, group_bytes: usize) {
        let mut sums: [Sums<1>; STREAMS] = std::array::from_fn(|_| Sums::new());
        let block_bytes = F::HEADER + F::PARTS * F::PART;
        for block in 0..self.blocks {
            // What is ahead of a group's last parts is in the group that takes its place.
            let ends = (block + 1) * block_bytes + PREFETCH > group_bytes;
            let ahead = PREFETCH + if ends { (STREAMS - 1) * group_bytes } else { 0 };
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the block is within the group, and each part within the block.
                unsafe {
                    let at = self.w.add(n * group_bytes + block * block_bytes);
                    let head = F::head(at);
                    for i in 0..F::PARTS {
                        fetch_part::<F, _MM_HINT_T1>(at.wrapping_add(ahead), i);
                        let part = at.add(F::HEADER + i * F::PART);
                        self.add::<F, BYTES, 1>(&head, part, block * F::PARTS + i, sums);
                    }
                    sums.fold::<F, BYTES>(&head);
                    self.fold_exact::<F, BYTES, 1>(&head, at, block, sums);
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            // SAFETY: out has 8 columns for each group.
            unsafe { _mm256_storeu_ps(self.out.add(n * GROUP), sums.acc[0]) };
        }
    }

    /// Adds the products with 32 activations of each token, number `b` of their blocks.
    ///
    /// # Safety
    /// As [`Tile::run`]; `part` is a part of the group's.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add<F: Format, const BYTES: usize, const T: usize>(
        &self,
        head: &Head,
        part: *const u8,
        b: usize,
        sums: &mut Sums<T>,
    ) {
        // SAFETY: the caller's promise; the quants of a row, but for Q8K, are followed by a scale and a sum for each 32.
        unsafe {
            let isums = self.isums::<F, BYTES, T>(part, b);
            let imins = self.imins::<F, BYTES, T>(part, b);
            if has_exact_blocks::<F, BYTES>() {
                for t in 0..T {
                    sums.isums[t] = _mm256_add_epi32(sums.isums[t], isums[t]);
                    if let Some(imins) = imins {
                        sums.imins[t] = _mm256_add_epi32(sums.imins[t], imins[t]);
                    }
                }
                return;
            }
            let min = F::min(head, part);
            for t in 0..T {
                let factors = self.x[t].add(BYTES * self.k).cast::<f32>();
                let scale = _mm256_broadcast_ss(&*factors.add(b));
                let isum = match F::RAISED {
                    0 => isums[t],
                    _ => {
                        let start = *self.starts.add(t * (self.k / BLOCK) + b);
                        _mm256_add_epi32(isums[t], _mm256_set1_epi32(start))
                    }
                };
                let isum = _mm256_cvtepi32_ps(isum);
                match has_inner_sums::<F>() {
                    true => sums.inner[t] = _mm256_fmadd_ps(isum, scale, sums.inner[t]),
                    false => {
                        let factor = _mm256_mul_ps(head.d, scale);
                        sums.acc[t] = _mm256_fmadd_ps(isum, factor, sums.acc[t]);
                    }
                }
                if let Some(min) = min {
                    let sum = _mm256_broadcast_ss(&*factors.add(self.k / BLOCK + b));
                    sums.acc[t] = _mm256_fmadd_ps(min, sum, sums.acc[t]);
                }
                if let Some(imins) = imins {
                    let imin = _mm256_cvtepi32_ps(imins[t]);
                    sums.mins[t] = _mm256_fmadd_ps(imin, scale, sums.mins[t]);
                }
            }
        }
    }

    /// Adds the exact sums of a block, which is done: number `block`, at `at`. Minima of parts come here, two products at a time.
    ///
    /// # Safety
    /// As [`Tile::run`]; `at` is a block of the group's.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn fold_exact<F: Format, const BYTES: usize, const T: usize>(
        &self,
        head: &Head,
        at: *const u8,
        block: usize,
        sums: &mut Sums<T>,
    ) {
        if !has_exact_blocks::<F, BYTES>() {
            return;
        }
        let zero = _mm256_setzero_si256();
        // SAFETY: the parts of a block are even in number; a row of Q8K has a scale for the block, and a sum for each part.
        unsafe {
            let mut imins = std::mem::replace(&mut sums.imins, [zero; T]);
            for i in (0..F::PARTS).step_by(2) {
                let part = at.add(F::HEADER + i * F::PART);
                if let Some(mins) = F::part_mins(part, part.wrapping_add(F::PART)) {
                    for (t, imin) in imins.iter_mut().enumerate() {
                        let (_, parts) = q8k_factors(self.x[t], self.k);
                        let pair = parts.add(block * F::PARTS + i).cast::<i32>();
                        let pair = _mm256_set1_epi32(pair.read_unaligned());
                        *imin = _mm256_add_epi32(*imin, _mm256_madd_epi16(mins, pair));
                    }
                }
            }
            for (t, imin) in imins.into_iter().enumerate() {
                let isum = std::mem::replace(&mut sums.isums[t], zero);
                let mut sum = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), head.d);
                if F::HAS_PART_MINS || F::HAS_HALF_MINS {
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(imin), head.m, sum);
                }
                let (scales, _) = q8k_factors(self.x[t], self.k);
                let scale = _mm256_broadcast_ss(&*scales.add(block));
                sums.acc[t] = _mm256_fmadd_ps(sum, scale, sums.acc[t]);
            }
        }
    }

    /// Word `j` (4 quants) of block `b` of token `t`, in every lane. `byte`: 0 is the only one of Q8 and Q8K and the high one of Q11.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn word<const BYTES: usize>(
        &self,
        t: usize,
        byte: usize,
        b: usize,
        j: usize,
    ) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let quants = self.x[t].add((b * BYTES + byte) * BLOCK);
            _mm256_set1_epi32(quants.cast::<i32>().add(j).read_unaligned())
        }
    }
}
