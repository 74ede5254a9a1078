//! How queries meet f16 keys and values.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::KV_BLOCK;

use super::attention::{Blocks, Cache, QUERIES, Query, attend, fetch, scale};
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
    unsafe fn scores(dim: usize, q: &[[f32; MAX_HEAD_DIM]], p: &mut [[f32; TILE]], keys: &Blocks) {
        // SAFETY: the caller's promise.
        unsafe {
            match keys.ahead {
                Some(_) => Self::scores_of_all::<true>(dim, q, p, keys),
                None => Self::scores_of_all::<false>(dim, q, p, keys),
            }
        }
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
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
    /// [`Cache::scores`], with AHEAD if something is ahead.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of_all<const AHEAD: bool>(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &Blocks,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match p.len() {
                1 => Self::scores_of::<1, 4, AHEAD>(dim, q, p, keys),
                2 => Self::scores_of::<2, 2, AHEAD>(dim, q, p, keys),
                3 => Self::scores_of::<3, 1, AHEAD>(dim, q, p, keys),
                4 => Self::scores_of::<4, 1, AHEAD>(dim, q, p, keys),
                5 => Self::scores_of::<5, 1, AHEAD>(dim, q, p, keys),
                _ => Self::scores_of::<QUERIES, 1, AHEAD>(dim, q, p, keys),
            }
        }
    }

    /// Scores of Q queries, N blocks at a time and the rest one by one.
    ///
    /// # Safety
    /// As [`Cache::scores`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of<const Q: usize, const N: usize, const AHEAD: bool>(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &Blocks,
    ) {
        let Range { start: mut b, end } = keys.range;
        while b + N <= end {
            // SAFETY: the caller's promise.
            unsafe { Self::block_scores::<Q, N, AHEAD>(dim, q, p, keys, b) };
            b += N;
        }
        for b in b..end {
            // SAFETY: the caller's promise.
            unsafe { Self::block_scores::<Q, 1, AHEAD>(dim, q, p, keys, b) };
        }
    }

    /// Scores of Q queries over N blocks from block b on.
    ///
    /// # Safety
    /// As [`Cache::scores`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn block_scores<const Q: usize, const N: usize, const AHEAD: bool>(
        dim: usize,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &Blocks,
        b: usize,
    ) {
        let q: &[[f32; MAX_HEAD_DIM]; Q] = q[..Q].try_into().expect("a slice of Q");
        let ahead = keys.ahead_of::<N>(b);
        let keys: &[*const u8; N] = keys.at[b..b + N].try_into().expect("a slice of N");
        let mut acc = [[[_mm256_setzero_ps(); 2]; Q]; N];
        for d in 0..dim.min(MAX_HEAD_DIM) {
            for ((acc, key), ahead) in acc.iter_mut().zip(keys).zip(ahead) {
                let at = d * KV_BLOCK * 2;
                if AHEAD {
                    fetch(ahead.wrapping_add(at), KV_BLOCK * 2);
                }
                // SAFETY: dimension d of the block's 16 positions.
                let k = unsafe {
                    let k = key.add(at).cast::<__m128i>();
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

    /// `out *= correction`, then `out += p * v` over positions of the tile, for at most QUERIES queries.
    ///
    /// # Safety
    /// As [`Blocks`] of values, which hold the positions; outputs have `dim` elements.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(in crate::cpu) unsafe fn add_seen(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
        positions: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match values.ahead {
                Some(_) => {
                    Self::add_to_all::<true>(dim, queries, p, corrections, values, positions)
                }
                None => Self::add_to_all::<false>(dim, queries, p, corrections, values, positions),
            }
        }
    }

    /// [`Self::add_seen`], with AHEAD if something is ahead.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_to_all<const AHEAD: bool>(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
        positions: Range<usize>,
    ) {
        let c = corrections;
        // SAFETY: the caller's promise.
        unsafe {
            match queries.len() {
                1 => Self::add_positions::<1, 8, AHEAD>(dim, queries, p, c, values, positions),
                2 => Self::add_positions::<2, 4, AHEAD>(dim, queries, p, c, values, positions),
                3 => Self::add_positions::<3, 4, AHEAD>(dim, queries, p, c, values, positions),
                4 => Self::add_positions::<4, 2, AHEAD>(dim, queries, p, c, values, positions),
                5 => Self::add_positions::<5, 2, AHEAD>(dim, queries, p, c, values, positions),
                _ => {
                    Self::add_positions::<QUERIES, 2, AHEAD>(dim, queries, p, c, values, positions)
                }
            }
        }
    }

    /// [`Self::add_seen`] of Q queries, V vectors of dimensions at a time and the rest one by one.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_positions<const Q: usize, const V: usize, const AHEAD: bool>(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
        positions: Range<usize>,
    ) {
        let outs: [*mut f32; Q] = std::array::from_fn(|i| queries[i].out);
        let p: &[[f32; TILE]; Q] = p[..Q].try_into().expect("a slice of Q");
        let c: &[f32; Q] = corrections[..Q].try_into().expect("a slice of Q");
        let mut d = 0;
        while d + 8 * V <= dim {
            let positions = positions.clone();
            // SAFETY: the caller's promise; 8 V dimensions from d on are there.
            unsafe { Self::add_vectors::<Q, V, AHEAD>(dim, outs, p, c, values, positions, d) };
            d += 8 * V;
        }
        while d < dim {
            let positions = positions.clone();
            // SAFETY: as above, of one vector.
            unsafe { Self::add_vectors::<Q, 1, AHEAD>(dim, outs, p, c, values, positions, d) };
            d += 8;
        }
    }

    /// Dimensions `d .. d + 8 V` of [`Self::add_positions`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(in crate::cpu) unsafe fn add_vectors<const Q: usize, const V: usize, const AHEAD: bool>(
        dim: usize,
        outs: [*mut f32; Q],
        p: &[[f32; TILE]; Q],
        corrections: &[f32; Q],
        values: &Blocks,
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
        for block in positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK) {
            let [ahead] = values.ahead_of::<1>(block);
            let values = values.at[block];
            let start = positions.start.max(block * KV_BLOCK);
            let end = positions.end.min((block + 1) * KV_BLOCK);
            for position in start..end {
                let at = ((position % KV_BLOCK) * dim + d) * 2;
                if AHEAD {
                    fetch(ahead.wrapping_add(at), 16 * V);
                }
                // SAFETY: V vectors of the position's row in its block.
                let v: [__m256; V] = std::array::from_fn(|v| unsafe {
                    _mm256_cvtph_ps(_mm_loadu_si128(values.add(at).cast::<__m128i>().add(v)))
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
