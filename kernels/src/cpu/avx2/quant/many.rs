//! Products of many tokens: weights are unpacked to [`Panel`]s, a chunk of k at a time, once for all tokens of a call, and each token
//! meets [`GROUPS`] groups of them at a time.
//!
//! Results of `vpmaddubsw`, sums of two products each, are added in 16 bits. That may go beyond those on its way: what counts is the
//! sum from its start on, whose reach is that of [`super::dot`]'s table. A result itself is at most 2 * 255 * 32.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::panel::{
    Panel, block_bytes, has_float_scales, has_halves, has_one_chain, holds_scales, is_wide, prepare,
};
use super::{Format, Scales, has_exact_blocks, has_inner_sums, q8k_factors};
use crate::abi::MatMulArgs;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Groups that a token meets at a time: as many as registers hold sums and accumulators of.
const GROUPS: usize = 4;

/// Most parts of a chunk, which is one block where those have several ([`has_inner_sums`], [`has_exact_blocks`]).
const PARTS: usize = 8;

/// Most parts of a chunk whose weights are of 16 bits ([`is_wide`]).
const WIDE_PARTS: usize = 6;

/// Parts of a chunk, of `parts` of a row: panels and activations of a chunk stay in the L1 cache.
const fn parts_of_a_chunk<F: Format, const BYTES: usize, const VNNI: bool>(parts: usize) -> usize {
    assert!(F::PARTS == 1 || F::PARTS == PARTS);
    match is_wide::<F, BYTES, VNNI>() {
        _ if F::PARTS > 1 => PARTS,
        true => even_share(parts, WIDE_PARTS),
        false => even_share(parts, PARTS),
    }
}

/// What each of some chunks is that are about as long as one another, since one fetches as much as it has of the next: `most` at most.
pub(super) const fn even_share(all: usize, most: usize) -> usize {
    let chunks = all.div_ceil(most);
    if chunks == 0 { 1 } else { all.div_ceil(chunks) }
}

/// Tokens of a call that are done at a time.
const TOKENS: usize = 32;

/// Most bytes of 32 activations.
const BLOCK_BYTES: usize = 64;

/// Memory of a call.
#[repr(align(64))]
struct Scratch {
    panels: MaybeUninit<[[Panel; GROUPS]; PARTS]>,
    /// A chunk of each token, [`block_bytes`] a part.
    x: MaybeUninit<[[u8; PARTS * BLOCK_BYTES]; TOKENS]>,
    /// Sums of halves of each part of each token, for integer minima.
    sums: MaybeUninit<[[i32; PARTS]; TOKENS]>,
}

/// Weights of a format times rows whose quants have BYTES bytes.
///
/// # Safety
/// As [`super::matmul`]; with VNNI the processor has AVX-VNNI.
#[inline(never)]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) unsafe fn matmul<F: Format, const BYTES: usize, const VNNI: bool>(args: &MatMulArgs) {
    let mut scratch = Scratch {
        panels: MaybeUninit::uninit(),
        x: MaybeUninit::uninit(),
        sums: MaybeUninit::uninit(),
    };
    let rows = args.rows as usize;
    for first in (0..rows).step_by(TOKENS) {
        let tokens = TOKENS.min(rows - first);
        // SAFETY: the caller's promise.
        unsafe { slice::<F, BYTES, VNNI>(args, first, tokens, &mut scratch) };
    }
}

/// Rows `first .. first + tokens`, up to [`TOKENS`].
///
/// # Safety
/// As [`matmul`]; the call has the rows.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn slice<F: Format, const BYTES: usize, const VNNI: bool>(
    args: &MatMulArgs,
    first: usize,
    tokens: usize,
    scratch: &mut Scratch,
) {
    let parts = args.k as usize / BLOCK;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let most = parts_of_a_chunk::<F, BYTES, VNNI>(parts);
    for chunk in (0..parts).step_by(most) {
        let count = most.min(parts - chunk);
        for t in 0..tokens {
            // SAFETY: the row has the chunk's quants, and the scratch room for so many parts.
            unsafe {
                let row = args.x_row(first + t).add(chunk * BYTES * BLOCK);
                let x = (&raw mut (*scratch.x.as_mut_ptr())[t]).cast::<u8>();
                for i in 0..count {
                    let to = x.add(i * block_bytes::<F, BYTES, VNNI>());
                    let sums = prepare::<F, BYTES, VNNI>(row.add(i * BYTES * BLOCK), to);
                    if F::HAS_HALF_MINS {
                        (*scratch.sums.as_mut_ptr())[t][i] = sums;
                    }
                }
            }
        }
        let mut g = 0;
        while g < groups {
            let strip = Strip {
                args,
                first,
                tokens,
                chunk,
                count,
                g,
            };
            // SAFETY: the caller's promise; the scratch has the tokens' activations.
            g += unsafe {
                match groups - g {
                    GROUPS.. => strip.groups::<F, BYTES, VNNI, GROUPS>(scratch),
                    2.. => strip.groups::<F, BYTES, VNNI, 2>(scratch),
                    _ => strip.groups::<F, BYTES, VNNI, 1>(scratch),
                }
            };
        }
    }
}

/// Some groups of a call over a chunk.
struct Strip<'a> {
    args: &'a MatMulArgs,
    /// The first row.
    first: usize,
    tokens: usize,
    /// The first part.
    chunk: usize,
    /// Parts of the chunk.
    count: usize,
    /// The first group of the call's.
    g: usize,
}

impl Strip<'_> {
    /// G groups; their number.
    ///
    /// # Safety
    /// The call has them; the scratch has the tokens' activations.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn groups<F: Format, const BYTES: usize, const VNNI: bool, const G: usize>(
        &self,
        scratch: &mut Scratch,
    ) -> usize {
        let args = self.args;
        let block_bytes = F::HEADER + F::PARTS * F::PART;
        let group_bytes = args.k as usize / (F::PARTS * BLOCK) * block_bytes;
        let first_group = args.col0 as usize / GROUP + self.g;
        let panels = scratch.panels.as_mut_ptr().cast::<Panel>();
        // What is unpacked next: the next groups of the chunk, the first ones of the next chunk, or those of the next columns.
        let groups = (args.cols as usize).div_ceil(GROUP);
        let chunk_bytes = self.count / F::PARTS * block_bytes;
        let chunk_at = self.chunk / F::PARTS * block_bytes;
        let ends = (self.chunk + self.count) * BLOCK == args.k as usize;
        let next = match (self.g + G < groups, ends) {
            (true, _) => G * group_bytes + chunk_at,
            (false, false) => (chunk_at + chunk_bytes).wrapping_sub(self.g * group_bytes),
            (false, true) => G * group_bytes,
        };
        for g in 0..G {
            // SAFETY: the caller promises the groups from `col0` on; there is room for the panels.
            unsafe {
                let group = args.w.add((first_group + g) * group_bytes);
                for block in 0..self.count / F::PARTS {
                    let at = group.add(chunk_at + block * block_bytes);
                    let head = F::head(at);
                    for i in 0..F::PARTS {
                        let part = at.add(F::HEADER + i * F::PART);
                        let to = panels.add((block * F::PARTS + i) * G + g);
                        Panel::unpack::<F, BYTES, VNNI>(&head, part, i, to);
                    }
                }
            }
        }
        let mut ahead = Ahead::new(
            args.w
                .wrapping_add(first_group * group_bytes)
                .wrapping_add(next),
            G,
            group_bytes,
            self.count / F::PARTS * block_bytes,
        );
        for t in 0..self.tokens {
            ahead.fetch_share(t, self.tokens);
            // SAFETY: rows of out have the groups' columns.
            unsafe {
                let row = self.first + t;
                let (k, x) = (args.k as usize, args.x_row(row));
                let halves = (&raw const (*scratch.sums.as_ptr())[t]).cast();
                let (factors, sums) = match has_exact_blocks::<F, BYTES>() {
                    true => {
                        let (scales, sums) = q8k_factors(x, k);
                        let parts = sums.add(self.chunk).cast();
                        let sums = if F::HAS_HALF_MINS { halves } else { parts };
                        (scales.add(self.chunk / F::PARTS), sums)
                    }
                    false => (x.add(BYTES * k).cast::<f32>().add(self.chunk), halves),
                };
                let token = Token {
                    panels,
                    x: (&raw const (*scratch.x.as_ptr())[t]).cast(),
                    factors,
                    blocks: k / BLOCK,
                    sums,
                    out: args
                        .out
                        .add(row * args.out_stride as usize + self.g * GROUP),
                };
                token.run::<F, BYTES, VNNI, G>(self.count, self.chunk > 0);
            }
        }
        G
    }
}

/// Weights that are unpacked next, a run of bytes of each of some groups. Each chunk of a group is too short for the processor to see
/// what comes next.
struct Ahead {
    /// The first group's.
    at: *const u8,
    group_bytes: usize,
    /// Lines of a run.
    lines: usize,
    /// The next line's number in its run, and how many are left of all.
    line: usize,
    left: usize,
}

impl Ahead {
    fn new(at: *const u8, groups: usize, group_bytes: usize, bytes: usize) -> Ahead {
        let lines = bytes.div_ceil(64);
        Ahead {
            at,
            group_bytes,
            lines,
            line: 0,
            left: groups * lines,
        }
    }

    /// Fetches token `t`'s share, of `tokens`, to the second level.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    fn fetch_share(&mut self, t: usize, tokens: usize) {
        for _ in 0..self.left.div_ceil(tokens - t) {
            _mm_prefetch::<_MM_HINT_T1>(self.at.wrapping_add(self.line * 64).cast());
            self.left -= 1;
            self.line += 1;
            if self.line == self.lines {
                self.line = 0;
                self.at = self.at.wrapping_add(self.group_bytes);
            }
        }
    }
}

/// A token's chunk, and the panels that it meets.
struct Token {
    /// Those of some groups, part by part.
    panels: *const Panel,
    x: *const u8,
    /// The scales of the chunk's activations; `blocks` further on are their scaled sums, but for those of Q8K.
    factors: *const f32,
    blocks: usize,
    /// Two sums of activations in 16 bits each, as integer minima meet them: of both halves of a part, or of two parts.
    sums: *const i32,
    out: *mut f32,
}

/// Does something for each of eight words, the number of the word being a constant.
macro_rules! each_word {
    (|$j:ident| $body:block) => {
        each_word!(@ $j $body 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident $body:block $($number:literal)*) => {$({
        const $j: usize = $number;
        $body
    })*};
}
pub(super) use each_word;

impl Token {
    /// Adds the products of `count` parts to what out holds, or writes them.
    ///
    /// # Safety
    /// The token has them; out has G groups.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<F: Format, const BYTES: usize, const VNNI: bool, const G: usize>(
        &self,
        count: usize,
        resumes: bool,
    ) {
        if has_exact_blocks::<F, BYTES>() {
            // SAFETY: the caller's promise.
            return unsafe { self.run_exact::<F, BYTES, VNNI, G>(resumes) };
        }
        // SAFETY: the caller's promise.
        unsafe {
            let before: [__m256; G] = std::array::from_fn(|g| match resumes {
                true => _mm256_loadu_ps(self.out.add(g * GROUP)),
                false => _mm256_setzero_ps(),
            });
            let mut acc = match has_inner_sums::<F>() {
                true => [_mm256_setzero_ps(); G],
                false => before,
            };
            for i in 0..count {
                let panels = self.panels.add(i * G);
                let zero = [_mm256_setzero_si256(); G];
                let isums = self.isums::<F, BYTES, VNNI, G>(i, zero);
                let scale = _mm256_broadcast_ss(&*self.factors.add(i));
                for (g, acc) in acc.iter_mut().enumerate() {
                    let panel = panels.add(g);
                    let mut isum = _mm256_cvtepi32_ps(isums[g]);
                    if has_float_scales::<F, BYTES, VNNI>() {
                        isum = _mm256_mul_ps(isum, _mm256_castsi256_ps((*panel).scales[0]));
                    }
                    if has_inner_sums::<F>() {
                        *acc = _mm256_fmadd_ps(isum, scale, *acc);
                        continue;
                    }
                    let factor = _mm256_mul_ps(scale, (*panel).d);
                    *acc = _mm256_fmadd_ps(isum, factor, *acc);
                    if F::HAS_MIN {
                        let sum = _mm256_broadcast_ss(&*self.factors.add(self.blocks + i));
                        *acc = _mm256_fmadd_ps((*panel).min, sum, *acc);
                    }
                }
            }
            if has_inner_sums::<F>() {
                acc = self.fold::<F, G>(before, acc, count);
            }
            for (g, acc) in acc.into_iter().enumerate() {
                _mm256_storeu_ps(self.out.add(g * GROUP), acc);
            }
        }
    }

    /// [`Token::run`] of a block whose sums are exact, which a chunk is one of. What is in out, factors and minima wait for the end: while
    /// parts are multiplied there are no registers for them.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run_exact<F: Format, const BYTES: usize, const VNNI: bool, const G: usize>(
        &self,
        resumes: bool,
    ) {
        const { assert!(PARTS.is_multiple_of(F::PARTS)) };
        // SAFETY: the caller's promise.
        unsafe {
            let mut isums = [_mm256_setzero_si256(); G];
            for i in 0..F::PARTS {
                isums = self.isums::<F, BYTES, VNNI, G>(i, isums);
            }
            // Panels that have minima: each one's of halves, or each second one's, for two.
            let step = if F::HAS_HALF_MINS { 1 } else { 2 };
            let mut imins = [_mm256_setzero_si256(); G];
            if F::HAS_HALF_MINS || F::HAS_PART_MINS {
                for i in 0..F::PARTS / step {
                    let panels = self.panels.add(i * step * G);
                    let sums = _mm256_set1_epi32(*self.sums.add(i));
                    for (g, imin) in imins.iter_mut().enumerate() {
                        let product = _mm256_madd_epi16(sums, (*panels.add(g)).mins);
                        *imin = _mm256_add_epi32(*imin, product);
                    }
                }
            }
            let scale = _mm256_broadcast_ss(&*self.factors);
            for g in 0..G {
                let (panel, out) = (self.panels.add(g), self.out.add(g * GROUP));
                let mut sum = _mm256_mul_ps(_mm256_cvtepi32_ps(isums[g]), (*panel).d);
                if F::HAS_HALF_MINS || F::HAS_PART_MINS {
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(imins[g]), (*panel).m, sum);
                }
                let before = match resumes {
                    true => _mm256_loadu_ps(out),
                    false => _mm256_setzero_ps(),
                };
                _mm256_storeu_ps(out, _mm256_fmadd_ps(sum, scale, before));
            }
        }
    }

    /// Adds the exact products with part `i` to sums, integer scales included unless they are [floats](has_float_scales).
    ///
    /// # Safety
    /// As [`Token::run`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn isums<F: Format, const BYTES: usize, const VNNI: bool, const G: usize>(
        &self,
        i: usize,
        before: [__m256i; G],
    ) -> [__m256i; G] {
        // SAFETY: the caller's promise.
        unsafe {
            let panels = self.panels.add(i * G);
            let x = self.x.add(i * block_bytes::<F, BYTES, VNNI>());
            match (is_wide::<F, BYTES, VNNI>(), VNNI) {
                (true, _) => wide_sums::<F, BYTES, G>(x, panels, before),
                (_, true) => dot_sums::<F, BYTES, G>(x, panels, before),
                (_, false) => sums::<F, G>(x, panels, before),
            }
        }
    }

    /// Adds what minima are and the scaled sums of the block that the chunk is, behind the parts: while these are multiplied there are no
    /// registers for both.
    ///
    /// # Safety
    /// As [`Token::run`], which has the sums of the chunk's parts.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn fold<F: Format, const G: usize>(
        &self,
        mut acc: [__m256; G],
        inner: [__m256; G],
        count: usize,
    ) -> [__m256; G] {
        let mut mins = [_mm256_setzero_ps(); G];
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..count {
                let panels = self.panels.add(i * G);
                if F::HAS_MIN {
                    let sum = _mm256_broadcast_ss(&*self.factors.add(self.blocks + i));
                    for (g, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm256_fmadd_ps((*panels.add(g)).min, sum, *acc);
                    }
                }
                if F::HAS_HALF_MINS {
                    let scale = _mm256_broadcast_ss(&*self.factors.add(i));
                    let sums = _mm256_set1_epi32(*self.sums.add(i));
                    for (g, mins) in mins.iter_mut().enumerate() {
                        let imin = _mm256_madd_epi16(sums, (*panels.add(g)).mins);
                        *mins = _mm256_fmadd_ps(_mm256_cvtepi32_ps(imin), scale, *mins);
                    }
                }
            }
            for (g, acc) in acc.iter_mut().enumerate() {
                let panel = self.panels.add(g);
                *acc = _mm256_fmadd_ps(inner[g], (*panel).d, *acc);
                if F::HAS_HALF_MINS {
                    *acc = _mm256_fmadd_ps(mins[g], (*panel).m, *acc);
                }
            }
        }
        acc
    }
}

/// Adds the exact inner products of a part of G groups with a token's raised activations, integer scales included, to sums.
///
/// # Safety
/// `x` points at 32 of these, `panels` at G of F.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn sums<F: Format, const G: usize>(
    x: *const u8,
    panels: *const Panel,
    mut isums: [__m256i; G],
) -> [__m256i; G] {
    // Words whose results are added in 16 bits.
    let chain = if has_one_chain::<F>() { 8 } else { 4 };
    // SAFETY: the caller's promise.
    unsafe {
        let mut pairs = [_mm256_setzero_si256(); G];
        each_word!(|J| {
            let word = x.add(4 * J).cast::<i32>().read_unaligned();
            let word = _mm256_set1_epi32(word);
            for (g, pairs) in pairs.iter_mut().enumerate() {
                let panel = panels.add(g);
                let product = _mm256_maddubs_epi16(word, (*panel).words[J]);
                *pairs = match J % chain {
                    0 => _mm256_add_epi16(product, (*panel).start[J / 4]),
                    _ => _mm256_add_epi16(*pairs, product),
                };
                settle(pairs);
            }
            if (J + 1).is_multiple_of(chain) {
                for (g, isum) in isums.iter_mut().enumerate() {
                    let scale = match F::SCALES {
                        Scales::None => _mm256_set1_epi16(1),
                        _ => (*panels.add(g)).scales[J / 4],
                    };
                    *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(pairs[g], scale));
                }
            }
        });
    }
    isums
}

/// As [`sums`], of a token's activations and weights in 16 bits. BYTES has each function use one of its own, which becomes part of it.
///
/// # Safety
/// `x` points at a [`super::dot::WideBlock`], `panels` at G of F.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn wide_sums<F: Format, const BYTES: usize, const G: usize>(
    x: *const u8,
    panels: *const Panel,
    mut isums: [__m256i; G],
) -> [__m256i; G] {
    // SAFETY: the caller's promise.
    unsafe {
        each_word!(|J| {
            let words = [0, 1].map(|n| {
                let word = x.add(4 * (2 * J + n)).cast::<i32>().read_unaligned();
                _mm256_set1_epi32(word)
            });
            for (g, isum) in isums.iter_mut().enumerate() {
                let panel = &(*panels.add(g)).words;
                let products = _mm256_add_epi32(
                    _mm256_madd_epi16(words[0], panel[2 * J]),
                    _mm256_madd_epi16(words[1], panel[2 * J + 1]),
                );
                *isum = _mm256_add_epi32(*isum, products);
                settle(isum);
            }
        });
    }
    isums
}

/// Has a sum computed here, in the order of the source: a word of activations for all groups before the next. The compiler would
/// rather do a group after the other, and keep the words where accumulators could be.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) fn settle(sum: &mut __m256i) {
    // SAFETY: no instruction.
    unsafe {
        asm!(
            "/* {} */",
            inout(ymm_reg) * sum,
            options(nomem, nostack, preserves_flags)
        )
    };
}

/// As [`sums`], by AVX-VNNI, but that scales that are [floats](has_float_scales) are left to the caller.
///
/// # Safety
/// As there; the processor has it.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn dot_sums<F: Format, const BYTES: usize, const G: usize>(
    x: *const u8,
    panels: *const Panel,
    before: [__m256i; G],
) -> [__m256i; G] {
    /// Adds the products of a word of a byte to sums.
    macro_rules! dot {
        ($sums:ident, $byte:expr, $j:ident) => {
            let word = x.add($byte * BLOCK + 4 * $j).cast::<i32>().read_unaligned();
            let word = _mm256_set1_epi32(word);
            for (g, sum) in $sums.iter_mut().enumerate() {
                // AVX-VNNI's encoding. In the order of the source: a word for all groups before the next word, since a group's
                // products are one chain.
                asm!(
                    "{{vex}} vpdpbusd {sum}, {word}, ymmword ptr [{panel} + {offset}]",
                    sum = inout(ymm_reg) *sum,
                    word = in(ymm_reg) word,
                    panel = in(reg) panels.add(g),
                    offset = const 32 * $j,
                    options(readonly, nostack, preserves_flags),
                );
            }
        };
    }
    // SAFETY: the caller's promise; a panel begins with its words.
    unsafe {
        let panel = |g: usize| &*panels.add(g);
        let mut sums: [__m256i; G] = std::array::from_fn(|g| panel(g).start[0]);
        if !has_halves::<F, BYTES, true>() {
            let mut more = [_mm256_setzero_si256(); G];
            each_word!(|J| {
                dot!(sums, 0, J);
                if BYTES == 2 {
                    dot!(more, 1, J);
                }
            });
            if BYTES == 2 {
                for (sum, more) in sums.iter_mut().zip(more) {
                    *sum = _mm256_add_epi32(_mm256_slli_epi32::<3>(*sum), more);
                }
            }
            let is_scaled = F::SCALES == Scales::None
                || holds_scales::<F, true>()
                || has_float_scales::<F, BYTES, true>();
            return std::array::from_fn(|g| {
                let sum = match is_scaled {
                    true => sums[g],
                    false => _mm256_mullo_epi32(sums[g], panel(g).scales[0]),
                };
                _mm256_add_epi32(before[g], sum)
            });
        }
        let mut others: [__m256i; G] = std::array::from_fn(|g| panel(g).start[1]);
        macro_rules! half {
            ($half:literal, $sums:ident) => {
                for byte in 0..BYTES {
                    if byte == 1 {
                        for sum in &mut $sums {
                            *sum = _mm256_slli_epi32::<3>(*sum);
                        }
                    }
                    each_word!(|J| {
                        if J / 4 == $half {
                            dot!($sums, byte, J);
                        }
                    });
                }
            };
        }
        half!(0, sums);
        let first: [__m256i; G] = std::array::from_fn(|g| {
            let first = _mm256_mullo_epi32(sums[g], panel(g).scales[0]);
            _mm256_add_epi32(before[g], first)
        });
        half!(1, others);
        std::array::from_fn(|g| {
            let second = _mm256_mullo_epi32(others[g], panel(g).scales[1]);
            _mm256_add_epi32(first[g], second)
        })
    }
}
