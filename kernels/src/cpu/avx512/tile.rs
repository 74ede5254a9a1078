//! A tile: two groups of weights by some tokens, over all of k or a chunk.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use bundle_format::plan::Q8K_BLOCK;

use super::dot::{Starts, XBlock, add_pairs};
use super::part::{Part, has_halves, part_mins, part_of};
use super::quant::TOKENS;
use crate::cpu::avx2::quant::{Format, fetch_part, has_exact_blocks, has_inner_sums};
use crate::quant::BLOCK;

/// How far ahead of the part in work weights are fetched, in parts of a group (NOTES.md, "Few tokens").
const AHEAD: usize = 15;

/// How far for few tokens on AMD's cores, and to the second level (NOTES.md, "Factors of blocks").
const FAR_AHEAD: usize = 30;

/// Some blocks of two groups of weights, and some tokens.
pub(super) struct Tile {
    pub(super) w: *const u8,
    /// Bytes from the first group to the second.
    pub(super) second: usize,
    /// The parts, unpacked, if tiles share them.
    pub(super) panel: *const __m512i,
    pub(super) blocks: usize,
    /// The number of the first part.
    pub(super) first: usize,
    /// Whether sums of parts before are in `out`.
    pub(super) goes_on: bool,
    /// Whether there is a second group; where there is none, the first is taken twice.
    pub(super) pair: bool,
    pub(super) k: usize,
    /// The tokens' activations.
    pub(super) x: [*const u8; TOKENS],
    /// What each block's sums start from, [`starts_of`] a block, a token after the other, if weights are raised. With parts before the first, which
    /// are [`many`](super::many)'s alone, the first is theirs.
    pub(super) starts: *const i32,
    /// Those of a token.
    pub(super) starts_of_a_row: usize,
    /// Their quants in 16 bits ([`widen`]), or null: then a block is widened when it is multiplied.
    pub(super) widened: *const __m512i,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether weights further on are fetched: the first of a call's tiles does that for all.
    pub(super) fetches: bool,
    /// Whether it is the call's only tile.
    pub(super) few: bool,
    /// Whether to the second level.
    pub(super) is_far: bool,
}

/// Sums of T tokens with both groups, as at AVX2.
struct Sums<const T: usize> {
    acc: [__m512; T],
    /// Of the block in work ([`has_inner_sums`]).
    inner: [__m512; T],
    /// The same of integer minima.
    mins: [__m512; T],
    /// Of the block in work with Q8K rows ([`has_exact_blocks`]), and those of its minima of 16 k.
    exact: [__m512i; T],
    exact_mins: [__m512i; T],
}

impl<const T: usize> Sums<T> {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    fn new() -> Sums<T> {
        let zero = [_mm512_setzero_ps(); T];
        Sums {
            acc: zero,
            inner: zero,
            mins: zero,
            exact: [_mm512_setzero_si512(); T],
            exact_mins: [_mm512_setzero_si512(); T],
        }
    }

    /// Adds those of a block, which is done; `part` is one of it.
    ///
    /// # Safety
    /// It is unpacked.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn fold<F: Format>(&mut self, part: *const Part) {
        let zero = _mm512_setzero_ps();
        for t in 0..T {
            // SAFETY: the caller's promise.
            unsafe {
                let inner = std::mem::replace(&mut self.inner[t], zero);
                self.acc[t] = _mm512_fmadd_ps(inner, (*part).d, self.acc[t]);
                if F::HAS_HALF_MINS {
                    let mins = std::mem::replace(&mut self.mins[t], zero);
                    self.acc[t] = _mm512_fmadd_ps(mins, (*part).m, self.acc[t]);
                }
            }
        }
    }
}

/// The number, of which the compiler does not know what it is: where scales and sums of a block are in a row, that is. Else it has pointers to
/// each kind for each token, more than there are registers, and loads them from the stack, where as many stores are under way (NOTES.md,
/// "Rows of 8 bits with a scale for 256").
pub(super) fn opaque(mut x: usize) -> usize {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {x} */", x = inout(reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// Numbers that a block's sums start from.
pub(super) const fn starts_of<F: Format>() -> usize {
    if has_halves::<F>() { 2 } else { 1 }
}

impl Tile {
    /// Computes T tokens and returns their number.
    ///
    /// # Safety
    /// `x` has T rows of k quants of BYTES bytes, `out` as many rows of 16 columns, or of 8 unless `pair`; the parts are of F
    /// and BYTES.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    pub(super) unsafe fn run<
        F: Format,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
        const JOINED: bool,
    >(
        &self,
    ) -> usize {
        let mut sums = Sums::new();
        // SAFETY: row t of out has 16 columns, or 8.
        unsafe {
            // Whether sums stay in registers until all blocks are done ([`Tile::fold_exact`]).
            let is_kept = !(SHARED && has_exact_blocks::<F, BYTES>());
            if self.goes_on && is_kept {
                for (t, acc) in sums.acc.iter_mut().enumerate() {
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
                let block_bytes = F::HEADER + F::PARTS * F::PART;
                // Behind a pair's last blocks comes the next pair.
                let left = (self.blocks - block) * block_bytes;
                let parts = if self.is_far { FAR_AHEAD } else { AHEAD };
                let mut ahead = parts * block_bytes / F::PARTS;
                if left <= ahead {
                    ahead += self.second;
                }
                let ahead = at.wrapping_add(ahead);
                let has_mins = F::HAS_PART_MINS && has_exact_blocks::<F, BYTES>();
                if has_mins && !self.few {
                    self.add_mins::<F, T, SHARED, false>(at, block, &mut sums);
                }
                for i in 0..F::PARTS {
                    // Few tokens wait for memory: weights of parts are met in the order in which they are fetched.
                    if !SHARED && has_mins && self.few && i + 1 == F::PARTS {
                        self.add_mins::<F, T, SHARED, true>(at, block, &mut sums);
                    }
                    let number = block * F::PARTS + i;
                    let mut part = part_of::<BYTES>(self.panel, number);
                    if !SHARED && self.fetches {
                        for ahead in [ahead, ahead.wrapping_add(self.second)] {
                            match self.is_far {
                                true => fetch_part::<F, _MM_HINT_T1>(ahead, i),
                                false => fetch_part::<F, _MM_HINT_T0>(ahead, i),
                            }
                        }
                    }
                    if !SHARED {
                        let at = at.add(F::HEADER + i * F::PART);
                        let at = [at, at.add(self.second)];
                        Part::unpack::<F, BYTES, JOINED>(&heads, at, own[0].as_mut_ptr());
                        part = own[0].as_ptr();
                    }
                    self.add::<F, BYTES, T, SHARED, JOINED>(part, self.first + number, &mut sums);
                    if has_inner_sums::<F>() && i + 1 == F::PARTS {
                        match has_exact_blocks::<F, BYTES>() {
                            true => {
                                self.fold_exact::<F, T, SHARED>(part, block, &mut sums);
                            }
                            false => sums.fold::<F>(part),
                        }
                    }
                }
            }
            if is_kept {
                for (t, acc) in sums.acc.iter().enumerate() {
                    self.store(t, *acc);
                }
            }
        }
        T
    }

    /// Stores a token's results.
    ///
    /// # Safety
    /// There is the row.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn store(&self, t: usize, acc: __m512) {
        // SAFETY: the caller's promise; it has 16 columns, or 8.
        unsafe {
            let out = self.out.add(t * self.out_stride);
            match self.pair {
                true => _mm512_storeu_ps(out, acc),
                false => _mm256_storeu_ps(out, _mm512_castps512_ps256(acc)),
            }
        }
    }

    /// Adds the products with 32 activations of each token, number `b` of their blocks.
    ///
    /// # Safety
    /// The rows of x have them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add<
        F: Format,
        const BYTES: usize,
        const T: usize,
        const SHARED: bool,
        const JOINED: bool,
    >(
        &self,
        part: *const Part,
        b: usize,
        to: &mut Sums<T>,
    ) {
        // SAFETY: the caller's promise; the quants of a row are followed by a scale and a sum for each 32.
        unsafe {
            let x = self.quants::<BYTES, T>(b);
            let starts = Starts {
                at: self
                    .starts
                    .wrapping_add((b - self.first) * starts_of::<F>()),
                token: self.starts_of_a_row,
            };
            let imins = match F::HAS_HALF_MINS {
                true => {
                    let [low, high] = (*part).halves;
                    let mins = [low, low, low, low, high, high, high, high];
                    // With Q8K rows the minima's sums go on.
                    x.sums::<F, BYTES, T, SHARED, JOINED, 0, 8>(mins.as_ptr(), to.exact_mins)
                }
                false => [_mm512_setzero_si512(); T],
            };
            if has_exact_blocks::<F, BYTES>() {
                x.add_exactly::<F, T, SHARED>(part, starts, &mut to.exact);
                if F::HAS_HALF_MINS {
                    to.exact_mins = imins;
                }
                return;
            }
            let isums = x.isums::<F, BYTES, T, SHARED, JOINED>(part, starts);
            let scale_at = opaque(BYTES * self.k + 4 * b);
            let sum_at = opaque(BYTES * self.k + 4 * (self.k / BLOCK + b));
            for t in 0..T {
                let scale = _mm512_set1_ps(*self.x[t].add(scale_at).cast::<f32>());
                match has_inner_sums::<F>() {
                    true => to.inner[t] = _mm512_fmadd_ps(isums[t], scale, to.inner[t]),
                    false => {
                        let factor = _mm512_mul_ps((*part).d, scale);
                        to.acc[t] = _mm512_fmadd_ps(isums[t], factor, to.acc[t]);
                    }
                }
                if F::HAS_MIN {
                    let sum = _mm512_set1_ps(*self.x[t].add(sum_at).cast::<f32>());
                    to.acc[t] = _mm512_fmadd_ps((*part).min, sum, to.acc[t]);
                }
                if F::HAS_HALF_MINS {
                    let imin = _mm512_cvtepi32_ps(imins[t]);
                    to.mins[t] = _mm512_fmadd_ps(imin, scale, to.mins[t]);
                }
            }
        }
    }

    /// Adds the minima of the parts of block `block`, which is at `w`, times sums of Q8K rows. Before products of the block, with which these wait for
    /// nothing: behind the last, they are more operations than the scheduler holds beside those that scale the block, and the next block's
    /// products have to wait. LATE: before those of the last part.
    ///
    /// # Safety
    /// The rows of x have the block, and it is unpacked.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn add_mins<F: Format, const T: usize, const SHARED: bool, const LATE: bool>(
        &self,
        w: *const u8,
        block: usize,
        sums: &mut Sums<T>,
    ) {
        let parts = [w, w.wrapping_add(self.second)].map(|at| at.wrapping_add(F::HEADER));
        let at = opaque(self.k + self.k / Q8K_BLOCK * 4 + 2 * (self.first + block * F::PARTS));
        macro_rules! add {
            ($($i:literal)*) => {$(
                // SAFETY: the caller's promise; Q8K rows have a sum of 16 bits for each 32.
                unsafe {
                    let mins = match SHARED {
                        true => (*part_of::<1>(self.panel, block * F::PARTS + $i)).pair_mins,
                        false => part_mins::<F>(parts.map(|at| at.add($i * F::PART))),
                    };
                    for (sum, x) in sums.exact_mins.iter_mut().zip(self.x) {
                        *sum = add_pairs::<{ 2 * $i }>(*sum, mins, x.wrapping_add(at).cast());
                    }
                }
            )*};
        }
        const { assert!(F::PARTS == 8 || !F::HAS_PART_MINS) };
        add!(0 2 4 6);
    }

    /// Adds block `block` of the tile, whose products with Q8K rows are summed: the sums of products and of minima, each with its factor, and
    /// all of it with the activations' scale. `part` is one of it.
    ///
    /// # Safety
    /// The rows of x have the block, and it is unpacked.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn fold_exact<F: Format, const T: usize, const SHARED: bool>(
        &self,
        part: *const Part,
        block: usize,
        sums: &mut Sums<T>,
    ) {
        let zero = _mm512_setzero_si512();
        let before = match (self.goes_on || block > 0, self.pair) {
            (false, _) => 0,
            (_, true) => 0xffff,
            (_, false) => 0xff,
        };
        let at = opaque(self.k + 4 * (self.first / F::PARTS + block));
        // SAFETY: the caller's promise; the quants of a row are followed by a scale for each 256.
        unsafe {
            for t in 0..T {
                let isum = std::mem::replace(&mut sums.exact[t], zero);
                let imin = std::mem::replace(&mut sums.exact_mins[t], zero);
                let mut sum = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), (*part).d);
                if F::HAS_PART_MINS || F::HAS_HALF_MINS {
                    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(imin), (*part).m, sum);
                }
                let scale = _mm512_set1_ps(*self.x[t].add(at).cast::<f32>());
                if !SHARED {
                    sums.acc[t] = _mm512_fmadd_ps(sum, scale, sums.acc[t]);
                    continue;
                }
                // Of many tokens the sums of blocks are where they are stored: loaded when a tile begins, they wait for the stores of
                // the tile before, which are some pages away.
                let acc = _mm512_maskz_loadu_ps(before, self.out.add(t * self.out_stride));
                self.store(t, _mm512_fmadd_ps(sum, scale, acc));
            }
        }
    }

    /// Block `b` of the tokens.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2")]
    unsafe fn quants<const BYTES: usize, const T: usize>(&self, b: usize) -> XBlock {
        XBlock {
            // SAFETY: the caller's promise.
            at: self.x.map(|x| unsafe { x.add(b * BYTES * BLOCK) }),
            widened: match self.widened.is_null() {
                true => self.widened,
                false => self.widened.wrapping_add(b * T.next_multiple_of(2)),
            },
        }
    }
}
