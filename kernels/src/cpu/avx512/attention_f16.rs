//! How queries meet f16 keys and values: as at AVX2, sixteen positions or dimensions a vector.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::KV_BLOCK;

use super::softmax::softmax;
use crate::abi::AttentionArgs;
use crate::cpu::avx2::attention::{Blocks, Cache, Lanes, QUERIES, Query, attend, fetch};
use crate::cpu::avx2::attention_f16 as narrow;
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Elements of a vector: a block's positions.
const WIDE: usize = 16;

/// Attention with f16 keys and values.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub unsafe fn attention_f16(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<F16<3, 3>>(args) }
}

/// [`attention_f16`] of a processor that multiplies 512 bits twice a cycle.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub unsafe fn wide_attention_f16(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<F16<1, QUERIES>>(args) }
}

/// Fewer than LEAST queries and more than MOST are multiplied as at AVX2, in vectors of 256 bits.
struct F16<const LEAST: usize, const MOST: usize>;

impl<const LEAST: usize, const MOST: usize> Cache for F16<LEAST, MOST> {
    type Scaled = [f32; MAX_HEAD_DIM];

    const ZERO: Self::Scaled = narrow::F16::ZERO;

    fn head_bytes(dim: usize) -> usize {
        narrow::F16::head_bytes(dim)
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn scale_query(q: *const f32, scale: f32, dim: usize, to: &mut Self::Scaled) {
        // SAFETY: the caller's promise.
        unsafe { narrow::F16::scale_query(q, scale, dim, to) }
    }

    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn scores(dim: usize, q: &[[f32; MAX_HEAD_DIM]], p: &mut [[f32; TILE]], keys: &Blocks) {
        // SAFETY: the caller's promise.
        unsafe {
            match (p.len(), keys.ahead) {
                (other, _) if other < LEAST || other > MOST => narrow::F16::scores(dim, q, p, keys),
                (_, Some(_)) => scores_of_all::<true>(dim, q, p, keys),
                (_, None) => scores_of_all::<false>(dim, q, p, keys),
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
        base: usize,
    ) {
        let add = |queries: &[Query], p: &[[f32; TILE]], c: &[f32], positions: Range<usize>| {
            // SAFETY: the caller's promise: the queries see the positions.
            unsafe {
                match (queries.len(), values.ahead) {
                    (other, _) if other < LEAST || other > MOST => {
                        narrow::F16::add_seen(dim, queries, p, c, values, positions);
                    }
                    (_, Some(_)) => add_to_all::<true>(dim, queries, p, c, values, positions),
                    (_, None) => add_to_all::<false>(dim, queries, p, c, values, positions),
                }
            }
        };
        // SAFETY: the caller's promise.
        unsafe { narrow::in_common(dim, queries, p, corrections, base, add) };
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
    q: &[[f32; MAX_HEAD_DIM]],
    p: &mut [[f32; TILE]],
    keys: &Blocks,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.len() {
            1 => scores::<1, 4, AHEAD>(dim, q, p, keys),
            2 => scores::<2, 4, AHEAD>(dim, q, p, keys),
            3 => scores::<3, 4, AHEAD>(dim, q, p, keys),
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
    q: &[[f32; MAX_HEAD_DIM]],
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
    q: &[[f32; MAX_HEAD_DIM]],
    p: &mut [[f32; TILE]],
    keys: &Blocks,
    b: usize,
) {
    let q: &[[f32; MAX_HEAD_DIM]; Q] = q[..Q].try_into().expect("a slice of Q");
    let ahead = keys.ahead_of::<N>(b);
    let keys: &[*const u8; N] = keys.at[b..b + N].try_into().expect("a slice of N");
    let mut acc = [[_mm512_setzero_ps(); Q]; N];
    for d in 0..dim.min(MAX_HEAD_DIM) {
        for ((acc, key), ahead) in acc.iter_mut().zip(keys).zip(ahead) {
            let at = d * KV_BLOCK * 2;
            if AHEAD {
                fetch(ahead.wrapping_add(at), KV_BLOCK * 2);
            }
            // SAFETY: dimension d of the block's 16 positions.
            let k = unsafe { load(key.add(at)) };
            for (acc, q) in acc.iter_mut().zip(q) {
                *acc = _mm512_fmadd_ps(_mm512_set1_ps(q[d]), k, *acc);
            }
        }
    }
    for (n, acc) in acc.iter().enumerate() {
        for (acc, p) in acc.iter().zip(p.iter_mut()) {
            let p = &mut p[(b + n) * KV_BLOCK..][..KV_BLOCK];
            // SAFETY: `p` has 16 elements.
            unsafe { _mm512_storeu_ps(p.as_mut_ptr(), *acc) };
        }
    }
}

/// `out *= correction`, then `out += p * v` over positions of the tile, with AHEAD if something is ahead.
///
/// # Safety
/// As [`Blocks`] of values, which hold the positions; outputs have `dim` elements.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
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
            1 if dim >= 8 * WIDE => {
                add_positions::<1, 8, AHEAD>(dim, queries, p, c, values, positions);
            }
            1 => add_positions::<1, 4, AHEAD>(dim, queries, p, c, values, positions),
            2 => add_positions::<2, 4, AHEAD>(dim, queries, p, c, values, positions),
            3 => add_positions::<3, 4, AHEAD>(dim, queries, p, c, values, positions),
            4 => add_positions::<4, 4, AHEAD>(dim, queries, p, c, values, positions),
            5 => add_positions::<5, 4, AHEAD>(dim, queries, p, c, values, positions),
            _ => add_positions::<QUERIES, 4, AHEAD>(dim, queries, p, c, values, positions),
        }
    }
}

/// [`add_to_all`] of Q queries, V vectors of dimensions at a time, the rest one by one, and half a vector as at AVX2.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
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
    // SAFETY: the caller's promise; these dimensions are there.
    unsafe {
        while d + WIDE * V <= dim {
            add_vectors::<Q, V, AHEAD>(dim, outs, p, c, values, positions.clone(), d);
            d += WIDE * V;
        }
        while d + WIDE <= dim {
            add_vectors::<Q, 1, AHEAD>(dim, outs, p, c, values, positions.clone(), d);
            d += WIDE;
        }
        if d < dim {
            narrow::F16::add_vectors::<Q, 1, AHEAD>(dim, outs, p, c, values, positions, d);
        }
    }
}

/// Dimensions `d .. d + 16 V` of [`add_positions`].
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn add_vectors<const Q: usize, const V: usize, const AHEAD: bool>(
    dim: usize,
    outs: [*mut f32; Q],
    p: &[[f32; TILE]; Q],
    corrections: &[f32; Q],
    values: &Blocks,
    positions: Range<usize>,
    d: usize,
) {
    let mut acc = [[_mm512_setzero_ps(); V]; Q];
    for ((acc, out), correction) in acc.iter_mut().zip(outs).zip(corrections) {
        let correction = _mm512_set1_ps(*correction);
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the outputs have dimensions d .. d + 16 V.
            let out = unsafe { _mm512_loadu_ps(out.add(d + WIDE * v)) };
            *acc = _mm512_mul_ps(out, correction);
        }
    }
    for block in positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK) {
        let [ahead] = values.ahead_of::<1>(block);
        let values = values.at[block];
        let start = positions.start.max(block * KV_BLOCK);
        let end = positions.end.min((block + 1) * KV_BLOCK);
        for position in start..end {
            let at = ((position % KV_BLOCK) * dim + d) * 2;
            if AHEAD {
                fetch(ahead.wrapping_add(at), 2 * WIDE * V);
            }
            let mut vectors = [_mm512_setzero_ps(); V];
            for (v, vector) in vectors.iter_mut().enumerate() {
                // SAFETY: a vector of the position's row in its block.
                *vector = unsafe { load(values.add(at + 2 * WIDE * v)) };
            }
            for (acc, p) in acc.iter_mut().zip(p) {
                // SAFETY: the position is one of the tile's; a check here would cost a tenth of the loop.
                let p = _mm512_set1_ps(unsafe { *p.get_unchecked(position) });
                for (acc, v) in acc.iter_mut().zip(vectors) {
                    *acc = _mm512_fmadd_ps(p, v, *acc);
                }
            }
        }
    }
    for (out, acc) in outs.iter().zip(acc) {
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: as the loads.
            unsafe { _mm512_storeu_ps(out.add(d + WIDE * v), *acc) };
        }
    }
}

/// Sixteen f16.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn load(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

#[cfg(test)]
mod tests {
    //! Against AVX2, which tests/op_parity compares with the scalar twin: here wherever there is AVX-512, there with AMX.

    use super::*;
    use crate::cpu::Level;

    #[test]
    fn wide_as_at_avx2() {
        if !Level::Avx512.is_available() {
            println!("not run: this processor lacks AVX-512 VNNI");
            return;
        }
        const DIM: usize = 256;
        let numbers = |n: usize| (0..n).map(|i| (i * 31 % 113) as f32 / 40.0 - 1.4);
        let pool: Vec<u16> = numbers(21 * KV_BLOCK * DIM)
            .map(|x| half::f16::from_f32(x).to_bits())
            .collect();
        let table: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % 20).collect();
        let q: Vec<f32> = numbers(40 * 8 * DIM).collect();
        for dim in [8, 24, 64, 72, 128, 256] {
            for (position, tokens) in [(0, 1), (0, 40), (61, 5), (144, 16), (200, 40), (300, 1)] {
                for (heads, window) in [(1, u64::MAX), (3, u64::MAX), (4, 70), (2, 3), (8, 100)] {
                    let run = |func: unsafe fn(&AttentionArgs)| {
                        let mut out = vec![f32::NAN; 40 * 8 * DIM];
                        let args = AttentionArgs {
                            q: q.as_ptr(),
                            q_stride: (8 * DIM) as u64,
                            out: out.as_mut_ptr(),
                            out_stride: (8 * DIM) as u64,
                            keys: pool.as_ptr().cast(),
                            values: pool.as_ptr().wrapping_add(dim * KV_BLOCK).cast(),
                            block_stride: (dim * KV_BLOCK * 2) as u64,
                            table: table.as_ptr(),
                            position,
                            tokens,
                            head0: 0,
                            heads,
                            group_size: heads,
                            head_dim: dim as u64,
                            window,
                            scale: 0.125,
                        };
                        // SAFETY: pools hold 20 blocks of up to 256 dimensions (values begin a block later, and there are 21),
                        // q and out 40 tokens of eight heads; positions stay below 320; the processor has the level.
                        unsafe { func(&args) };
                        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    let narrow = run(crate::cpu::avx2::attention_f16);
                    for func in [wide_attention_f16, attention_f16] {
                        assert_eq!(
                            run(func),
                            narrow,
                            "head size {dim} position {position} tokens {tokens} heads {heads} window {window}"
                        );
                    }
                }
            }
        }
    }
}
