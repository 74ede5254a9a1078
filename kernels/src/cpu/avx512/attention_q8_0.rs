//! How queries meet Q8_0 keys and values: as at AVX2, sixteen positions or dimensions a vector, and `vpdpwssd` for the products
//! of pairs.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::{KV_BLOCK, Q8_BLOCK};

use super::softmax::softmax;
use crate::abi::AttentionArgs;
use crate::cpu::avx2::attention::{Blocks, Cache, Lanes, QUERIES, Query, attend, fetch};
use crate::cpu::avx2::attention_q8_0 as narrow;
use crate::cpu::avx2::attention_q8_0::{Quantised, Weights, scales_at};
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Lanes of a vector: a block's positions.
const WIDE: usize = 16;

/// Vectors of 32 dimensions.
const VECTORS: usize = Q8_BLOCK / WIDE;

/// Attention with Q8_0 keys and values.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub unsafe fn attention_q8_0(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<Q8_0>(args) }
}

// The name is GGUF's.
#[allow(non_camel_case_types)]
struct Q8_0;

impl Cache for Q8_0 {
    type Scaled = Quantised;

    const ZERO: Quantised = narrow::Q8_0::ZERO;

    fn head_bytes(dim: usize) -> usize {
        narrow::Q8_0::head_bytes(dim)
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn scale_query(q: *const f32, scale: f32, dim: usize, to: &mut Quantised) {
        // SAFETY: the caller's promise.
        unsafe { narrow::Q8_0::scale_query(q, scale, dim, to) }
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn scores(dim: usize, q: &[Quantised], p: &mut [[f32; TILE]], keys: &Blocks) {
        // SAFETY: the caller's promise.
        unsafe {
            match keys.ahead {
                Some(_) => scores_of_all::<true>(dim, q, p, keys),
                None => scores_of_all::<false>(dim, q, p, keys),
            }
        }
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn softmax(queries: &mut [Query], base: usize, p: &mut [[f32; TILE]]) -> Lanes {
        softmax(queries, base, p)
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn add_values(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
        _: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match values.ahead {
                Some(_) => add_to_all::<true>(dim, queries, p, corrections, values),
                None => add_to_all::<false>(dim, queries, p, corrections, values),
            }
        }
    }
}

/// [`Cache::scores`], with AHEAD if something is ahead.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn scores_of_all<const AHEAD: bool>(
    dim: usize,
    q: &[Quantised],
    p: &mut [[f32; TILE]],
    keys: &Blocks,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match q.len() {
            1 => scores::<1, 4, AHEAD>(dim, q, p, keys),
            2 => scores::<2, 4, AHEAD>(dim, q, p, keys),
            3 => scores::<3, 2, AHEAD>(dim, q, p, keys),
            4 => scores::<4, 2, AHEAD>(dim, q, p, keys),
            5 => scores::<5, 2, AHEAD>(dim, q, p, keys),
            _ => scores::<QUERIES, 2, AHEAD>(dim, q, p, keys),
        }
    }
}

/// Scores of Q queries, N blocks at a time and the rest one by one.
///
/// # Safety
/// As [`Cache::scores`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn scores<const Q: usize, const N: usize, const AHEAD: bool>(
    dim: usize,
    q: &[Quantised],
    p: &mut [[f32; TILE]],
    keys: &Blocks,
) {
    let Range { start: mut b, end } = keys.range;
    while b + N <= end {
        // SAFETY: the caller's promise.
        unsafe { block_scores::<Q, N, AHEAD>(dim, q, p, keys, b) };
        b += N;
    }
    for b in b..end {
        // SAFETY: the caller's promise.
        unsafe { block_scores::<Q, 1, AHEAD>(dim, q, p, keys, b) };
    }
}

/// Scores of Q queries over N blocks from block b on.
///
/// # Safety
/// As [`Cache::scores`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn block_scores<const Q: usize, const N: usize, const AHEAD: bool>(
    dim: usize,
    q: &[Quantised],
    p: &mut [[f32; TILE]],
    keys: &Blocks,
    b: usize,
) {
    let q: &[Quantised; Q] = q.try_into().expect("a slice of Q");
    let ahead = keys.ahead_of::<N>(b);
    let keys: &[*const u8; N] = keys.at[b..b + N].try_into().expect("a slice of N");
    let mut scores = [[_mm512_setzero_ps(); Q]; N];
    for d in 0..dim.min(MAX_HEAD_DIM) / Q8_BLOCK {
        if AHEAD {
            for ahead in ahead {
                fetch(scales_at(dim, ahead, d), KV_BLOCK * 2);
            }
        }
        let mut sums = [[_mm512_setzero_si512(); Q]; N];
        for pair in d * Q8_BLOCK / 2..(d + 1) * Q8_BLOCK / 2 {
            let at = pair * KV_BLOCK * 2;
            for ((sums, keys), ahead) in sums.iter_mut().zip(keys).zip(ahead) {
                if AHEAD {
                    fetch(ahead.wrapping_add(at), KV_BLOCK * 2);
                }
                // SAFETY: a pair of dimensions of the block's 16 positions.
                let k = unsafe { pairs(keys.add(at)) };
                for (sum, q) in sums.iter_mut().zip(q) {
                    *sum = _mm512_dpwssd_epi32(*sum, k, _mm512_set1_epi32(q.pairs[pair]));
                }
            }
        }
        for ((scores, sums), keys) in scores.iter_mut().zip(sums).zip(keys) {
            // SAFETY: the scales of 32 dimensions at the block's 16 positions.
            let scales = unsafe { scales(dim, *keys, d) };
            for ((score, sum), q) in scores.iter_mut().zip(sums).zip(q) {
                let scale = _mm512_mul_ps(_mm512_set1_ps(q.scales[d]), scales);
                *score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *score);
            }
        }
    }
    for (n, scores) in scores.iter().enumerate() {
        for (p, score) in p.iter_mut().zip(scores) {
            let p = &mut p[(b + n) * KV_BLOCK..][..KV_BLOCK];
            // SAFETY: `p` has 16 elements.
            unsafe { _mm512_storeu_ps(p.as_mut_ptr(), *score) };
        }
    }
}

/// The scales of 32 dimensions at a block's 16 positions.
///
/// # Safety
/// `head` points at the head's part of a block, and there are as many dimensions.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn scales(dim: usize, head: *const u8, d: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales_at(dim, head, d).cast())) }
}

/// [`Cache::add_values`], with AHEAD if something is ahead.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn add_to_all<const AHEAD: bool>(
    dim: usize,
    queries: &[Query],
    p: &[[f32; TILE]],
    corrections: &[f32],
    values: &Blocks,
) {
    let c = corrections;
    // SAFETY: the caller's promise.
    unsafe {
        match queries.len() {
            1 => add_values::<1, AHEAD>(dim, queries, p, c, values),
            2 => add_values::<2, AHEAD>(dim, queries, p, c, values),
            3 => add_values::<3, AHEAD>(dim, queries, p, c, values),
            4 => add_values::<4, AHEAD>(dim, queries, p, c, values),
            5 => add_values::<5, AHEAD>(dim, queries, p, c, values),
            _ => add_values::<QUERIES, AHEAD>(dim, queries, p, c, values),
        }
    }
}

/// Corrects the outputs of Q queries and adds the values of a tile to them.
///
/// # Safety
/// As [`Cache::add_values`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn add_values<const Q: usize, const AHEAD: bool>(
    dim: usize,
    queries: &[Query],
    p: &[[f32; TILE]],
    corrections: &[f32],
    values: &Blocks,
) {
    let queries: &[Query; Q] = queries.try_into().expect("a slice of Q");
    let corrections: &[f32; Q] = corrections.try_into().expect("a slice of Q");
    for d in 0..dim / Q8_BLOCK {
        let mut weights = [Weights::ZERO; Q];
        // SAFETY: the caller's promise.
        unsafe { narrow::weigh(dim, d, p, values, &mut weights) };
        let mut sums = [[_mm512_setzero_si512(); VECTORS]; Q];
        for b in values.range.clone() {
            let [ahead] = values.ahead_of::<1>(b);
            let values = values.at[b];
            for pair in 0..KV_BLOCK / 2 {
                let at = (pair * dim + d * Q8_BLOCK) * 2;
                if AHEAD {
                    fetch(ahead.wrapping_add(at), 2 * Q8_BLOCK);
                }
                let mut vectors = [_mm512_setzero_si512(); VECTORS];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    // SAFETY: 16 dimensions of a pair of positions.
                    *vector = unsafe { pairs(values.add(at + 2 * WIDE * v)) };
                }
                for (sums, weights) in sums.iter_mut().zip(&weights) {
                    let w = _mm512_set1_epi32(weights.pairs[b * KV_BLOCK / 2 + pair]);
                    for (sum, v) in sums.iter_mut().zip(vectors) {
                        *sum = _mm512_dpwssd_epi32(*sum, v, w);
                    }
                }
            }
        }
        let sums = queries.iter().zip(sums).zip(corrections);
        for (((query, sums), correction), weights) in sums.zip(&weights) {
            let correction = _mm512_set1_ps(*correction);
            let scale = _mm512_set1_ps(weights.scale);
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the output has these dimensions.
                unsafe {
                    let out = query.out.add(d * Q8_BLOCK + WIDE * v);
                    let o = _mm512_mul_ps(_mm512_loadu_ps(out), correction);
                    _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, o));
                }
            }
        }
    }
}

/// Sixteen pairs of bytes, in 16 bits.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn pairs(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(at.cast()) })
}
