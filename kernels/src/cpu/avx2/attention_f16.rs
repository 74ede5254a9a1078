//! How queries meet f16 keys and values.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::KV_BLOCK;

use super::attention::{BLOCKS, Cache, QUERIES, Query, attend, scale};
use crate::abi::AttentionArgs;
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Attention with f16 keys and values.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn attention_f16(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<F16>(args) }
}

pub(in crate::cpu) struct F16;

impl Cache for F16 {
    type Scaled = [f32; MAX_HEAD_DIM];

    const ZERO: Self::Scaled = [0.0; MAX_HEAD_DIM];

    fn head_bytes(dim: usize) -> usize {
        dim * KV_BLOCK * 2
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scale_query(q: *const f32, scale: f32, dim: usize, to: &mut Self::Scaled) {
        let scale = _mm256_set1_ps(scale);
        for d in (0..dim).step_by(8) {
            // SAFETY: the query has `dim` elements, a multiple of 8, and `to` at least as many.
            unsafe {
                let q = _mm256_mul_ps(_mm256_loadu_ps(q.add(d)), scale);
                _mm256_storeu_ps(to.as_mut_ptr().add(d), q);
            }
        }
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match p.len() {
                1 => Self::scores_of::<1, 4>(dim, q, p, keys, blocks),
                2 => Self::scores_of::<2, 2>(dim, q, p, keys, blocks),
                3 => Self::scores_of::<3, 1>(dim, q, p, keys, blocks),
                4 => Self::scores_of::<4, 1>(dim, q, p, keys, blocks),
                5 => Self::scores_of::<5, 1>(dim, q, p, keys, blocks),
                _ => Self::scores_of::<QUERIES, 1>(dim, q, p, keys, blocks),
            }
        }
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &[*const u8; BLOCKS],
        _: Range<usize>,
        base: usize,
    ) {
        let add = |queries: &[Query], p: &[[f32; TILE]], corrections: &[f32], positions| {
            // SAFETY: the caller's promise: the queries see the positions.
            unsafe { Self::add_seen(dim, queries, p, corrections, values, positions) };
        };
        // SAFETY: the caller's promise.
        unsafe { in_common(dim, queries, p, corrections, base, add) };
    }
}

/// Cuts what queries see of the tile at position `base` into what all of them see, which is taken together, and what is each
/// one's own, and has them added in ascending order. Outputs are corrected where something is first added, in passing if that is
/// all there is.
///
/// # Safety
/// Outputs have `dim` elements.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) unsafe fn in_common(
    dim: usize,
    queries: &[Query],
    p: &[[f32; TILE]],
    corrections: &[f32],
    base: usize,
    add: impl Fn(&[Query], &[[f32; TILE]], &[f32], Range<usize>),
) {
    let last = queries.len() - 1;
    let seen = |query: &Query| {
        let seen = query.seen(base);
        seen.start - base..seen.end - base
    };
    let common = seen(&queries[last]).start..seen(&queries[0]).end;
    // Both ends ascend with the queries.
    if common == seen(&queries[0]) && common == seen(&queries[last]) {
        add(queries, p, corrections, common);
        return;
    }

    for (query, correction) in queries.iter().zip(corrections) {
        // SAFETY: the caller's promise.
        unsafe { scale(query.out, dim, _mm256_set1_ps(*correction)) };
    }
    let corrected = [1.0; QUERIES];
    let alone = |of: &dyn Fn(Range<usize>) -> Range<usize>| {
        for (query, p) in queries.iter().zip(p) {
            let positions = of(seen(query));
            if !positions.is_empty() {
                add(
                    std::slice::from_ref(query),
                    std::slice::from_ref(p),
                    &corrected,
                    positions,
                );
            }
        }
    };
    if common.is_empty() {
        alone(&|seen| seen);
        return;
    }
    alone(&|seen| seen.start..common.start);
    add(queries, p, &corrected, common.clone());
    alone(&|seen| common.end..seen.end);
}

impl F16 {
    /// [`Cache::scores`] of Q queries, N blocks at a time and the rest one by one.
    ///
    /// # Safety
    /// As [`Cache::scores`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of<const Q: usize, const N: usize>(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        let mut b = blocks.start;
        while b + N <= blocks.end {
            // SAFETY: the caller's promise.
            unsafe { Self::block_scores::<Q, N>(dim, q, p, keys, b) };
            b += N;
        }
        for b in b..blocks.end {
            // SAFETY: the caller's promise.
            unsafe { Self::block_scores::<Q, 1>(dim, q, p, keys, b) };
        }
    }

    /// Scores of Q queries over N blocks from block b on.
    ///
    /// # Safety
    /// As [`Cache::scores`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn block_scores<const Q: usize, const N: usize>(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        b: usize,
    ) {
        let q: &[[f32; MAX_HEAD_DIM]; Q] = q[..Q].try_into().expect("a slice of Q");
        let keys: &[*const u8; N] = keys[b..b + N].try_into().expect("a slice of N");
        let mut acc = [[[_mm256_setzero_ps(); 2]; Q]; N];
        for d in 0..dim.min(MAX_HEAD_DIM) {
            for (acc, key) in acc.iter_mut().zip(keys) {
                // SAFETY: dimension d of the block's 16 positions.
                let k = unsafe {
                    let k = key.add(d * KV_BLOCK * 2).cast::<__m128i>();
                    [
                        _mm256_cvtph_ps(_mm_loadu_si128(k)),
                        _mm256_cvtph_ps(_mm_loadu_si128(k.add(1))),
                    ]
                };
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = _mm256_broadcast_ss(&q[d]);
                    acc[0] = _mm256_fmadd_ps(q, k[0], acc[0]);
                    acc[1] = _mm256_fmadd_ps(q, k[1], acc[1]);
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            for (acc, p) in acc.iter().zip(p.iter_mut()) {
                let p = &mut p[(b + n) * KV_BLOCK..][..KV_BLOCK];
                // SAFETY: `p` has 16 elements.
                unsafe {
                    _mm256_storeu_ps(p.as_mut_ptr(), acc[0]);
                    _mm256_storeu_ps(p.as_mut_ptr().add(8), acc[1]);
                }
            }
        }
    }

    /// [`Self::add_positions`] of all queries, the outputs corrected first.
    ///
    /// # Safety
    /// As there, with at most QUERIES queries.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(in crate::cpu) unsafe fn add_seen(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match queries.len() {
                1 => Self::add_positions::<1, 8>(dim, queries, p, corrections, values, positions),
                2 => Self::add_positions::<2, 4>(dim, queries, p, corrections, values, positions),
                3 => Self::add_positions::<3, 4>(dim, queries, p, corrections, values, positions),
                4 => Self::add_positions::<4, 2>(dim, queries, p, corrections, values, positions),
                5 => Self::add_positions::<5, 2>(dim, queries, p, corrections, values, positions),
                _ => Self::add_positions::<QUERIES, 2>(
                    dim,
                    queries,
                    p,
                    corrections,
                    values,
                    positions,
                ),
            }
        }
    }

    /// `out *= correction`, then `out += p * v` over positions of the tile, for Q queries, V vectors of dimensions at a time and the rest one by one.
    ///
    /// # Safety
    /// `values[b]` points at the head's values for each block of `positions`; outputs have `dim` elements.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_positions<const Q: usize, const V: usize>(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
    ) {
        let outs: [*mut f32; Q] = std::array::from_fn(|i| queries[i].out);
        let p: &[[f32; TILE]; Q] = p[..Q].try_into().expect("a slice of Q");
        let corrections: &[f32; Q] = corrections[..Q].try_into().expect("a slice of Q");
        let mut d = 0;
        while d + 8 * V <= dim {
            // SAFETY: the caller's promise; 8 V dimensions from d on are there.
            unsafe {
                Self::add_vectors::<Q, V>(dim, outs, p, corrections, values, positions.clone(), d)
            };
            d += 8 * V;
        }
        while d < dim {
            // SAFETY: as above, of one vector.
            unsafe {
                Self::add_vectors::<Q, 1>(dim, outs, p, corrections, values, positions.clone(), d)
            };
            d += 8;
        }
    }

    /// Dimensions `d .. d + 8 V` of [`Self::add_positions`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(in crate::cpu) unsafe fn add_vectors<const Q: usize, const V: usize>(
        dim: usize,
        outs: [*mut f32; Q],
        p: &[[f32; TILE]; Q],
        corrections: &[f32; Q],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
        d: usize,
    ) {
        // SAFETY: the outputs have dimensions d .. d + 8 V.
        let mut acc: [[__m256; V]; Q] = std::array::from_fn(|i| {
            let correction = _mm256_set1_ps(corrections[i]);
            std::array::from_fn(|v| unsafe {
                _mm256_mul_ps(_mm256_loadu_ps(outs[i].add(d + 8 * v)), correction)
            })
        });
        let blocks = positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK);
        for (block, values) in blocks.clone().zip(&values[blocks]) {
            let start = positions.start.max(block * KV_BLOCK);
            let end = positions.end.min((block + 1) * KV_BLOCK);
            for position in start..end {
                // SAFETY: the position's row in its block.
                let row = unsafe {
                    values
                        .add(((position % KV_BLOCK) * dim + d) * 2)
                        .cast::<__m128i>()
                };
                // SAFETY: V vectors of the row.
                let v: [__m256; V] = std::array::from_fn(|v| unsafe {
                    _mm256_cvtph_ps(_mm_loadu_si128(row.add(v)))
                });
                for (acc, p) in acc.iter_mut().zip(p) {
                    // SAFETY: the position is one of the tile's; a check here would cost a tenth of the loop.
                    let p = _mm256_broadcast_ss(unsafe { p.get_unchecked(position) });
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = _mm256_fmadd_ps(p, v, *acc);
                    }
                }
            }
        }
        for (out, acc) in outs.iter().zip(acc) {
            for (v, acc) in acc.iter().enumerate() {
                // SAFETY: as the loads.
                unsafe { _mm256_storeu_ps(out.add(d + 8 * v), *acc) };
            }
        }
    }
}
