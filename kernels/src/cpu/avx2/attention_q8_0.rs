//! How queries meet Q8_0 keys and values.
//!
//! The products are those of 16-bit integers: quantised queries with keys, and a tile's weights with values. Neighbouring
//! dimensions of a key, and neighbouring positions of a value, lie side by side, so that one instruction multiplies and adds
//! both. Integer sums are exact, so positions that only some of the queries see are added to all of them, with weight 0.

use std::arch::x86_64::*;

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};

use super::attention::{Blocks, Cache, QUERIES, Query, attend, fetch};
use crate::abi::AttentionArgs;
use crate::cpu::{LEAST, MAX_HEAD_DIM, TILE};

/// What a magnitude of amax is quantised to.
const LEVELS: f32 = 16256.0;

/// Quantised blocks of the largest head.
const MAX_BLOCKS: usize = MAX_HEAD_DIM / Q8_BLOCK;

/// Attention with Q8_0 keys and values.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn attention_q8_0(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<Q8_0>(args) }
}

// The name is GGUF's.
#[allow(non_camel_case_types)]
pub(in crate::cpu) struct Q8_0;

/// A quantised query: pairs of dimensions, and a scale for each 32.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(in crate::cpu) struct Quantised {
    pub(in crate::cpu) pairs: [i32; MAX_HEAD_DIM / 2],
    pub(in crate::cpu) scales: [f32; MAX_BLOCKS],
}

/// The weights of a tile for 32 dimensions: pairs of positions, and their scale.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(in crate::cpu) struct Weights {
    pub(in crate::cpu) pairs: [i32; TILE / 2],
    pub(in crate::cpu) scale: f32,
}

impl Weights {
    pub(in crate::cpu) const ZERO: Weights = Weights {
        pairs: [0; TILE / 2],
        scale: 0.0,
    };
}

impl Cache for Q8_0 {
    type Scaled = Quantised;

    const ZERO: Quantised = Quantised {
        pairs: [0; MAX_HEAD_DIM / 2],
        scales: [0.0; MAX_BLOCKS],
    };

    fn head_bytes(dim: usize) -> usize {
        KvDType::Q8_0.head_bytes(dim as u32) as usize
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scale_query(q: *const f32, scale: f32, dim: usize, to: &mut Quantised) {
        let scale = _mm256_set1_ps(scale);
        for (b, to_scale) in to.scales[..dim / Q8_BLOCK].iter_mut().enumerate() {
            // SAFETY: the query has `dim` elements, whole blocks of 32.
            let x: [__m256; 4] = std::array::from_fn(|i| unsafe {
                _mm256_mul_ps(_mm256_loadu_ps(q.add(b * Q8_BLOCK + 8 * i)), scale)
            });
            let pairs = &mut to.pairs[b * Q8_BLOCK / 2..][..Q8_BLOCK / 2];
            *to_scale = quantise(&x, pairs);
        }
    }

    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores(dim: usize, q: &[Quantised], p: &mut [[f32; TILE]], keys: &Blocks) {
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
        _: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match values.ahead {
                Some(_) => Self::add_to_all::<true>(dim, queries, p, corrections, values),
                None => Self::add_to_all::<false>(dim, queries, p, corrections, values),
            }
        }
    }
}

impl Q8_0 {
    /// [`Cache::scores`], with AHEAD if something is ahead.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of_all<const AHEAD: bool>(
        dim: usize,
        q: &[Quantised],
        p: &mut [[f32; TILE]],
        keys: &Blocks,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match q.len() {
                1 => Self::scores_of::<1, AHEAD>(dim, q, p, keys),
                2 => Self::scores_of::<2, AHEAD>(dim, q, p, keys),
                3 => Self::scores_of::<3, AHEAD>(dim, q, p, keys),
                4 => Self::scores_of::<4, AHEAD>(dim, q, p, keys),
                5 => Self::scores_of::<5, AHEAD>(dim, q, p, keys),
                _ => Self::scores_of::<QUERIES, AHEAD>(dim, q, p, keys),
            }
        }
    }

    /// Scores of Q queries over whole blocks of the tile.
    ///
    /// # Safety
    /// As [`Cache::scores`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of<const Q: usize, const AHEAD: bool>(
        dim: usize,
        q: &[Quantised],
        p: &mut [[f32; TILE]],
        keys: &Blocks,
    ) {
        let q: &[Quantised; Q] = q.try_into().expect("a slice of Q");
        for b in keys.range.clone() {
            let [ahead] = keys.ahead_of::<1>(b);
            let keys = keys.at[b];
            let mut scores = [[_mm256_setzero_ps(); 2]; Q];
            for d in 0..dim.min(MAX_HEAD_DIM) / Q8_BLOCK {
                let mut sums = [[_mm256_setzero_si256(); 2]; Q];
                if AHEAD {
                    fetch(scales_at(dim, ahead, d), KV_BLOCK * 2);
                }
                for pair in d * Q8_BLOCK / 2..(d + 1) * Q8_BLOCK / 2 {
                    let at = pair * KV_BLOCK * 2;
                    if AHEAD {
                        fetch(ahead.wrapping_add(at), KV_BLOCK * 2);
                    }
                    // SAFETY: a pair of dimensions of the block's 16 positions.
                    let k = unsafe {
                        let k = keys.add(at).cast::<__m128i>();
                        [
                            _mm256_cvtepi8_epi16(_mm_loadu_si128(k)),
                            _mm256_cvtepi8_epi16(_mm_loadu_si128(k.add(1))),
                        ]
                    };
                    for (sums, q) in sums.iter_mut().zip(q) {
                        let q = _mm256_set1_epi32(q.pairs[pair]);
                        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(k[0], q));
                        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(k[1], q));
                    }
                }
                // SAFETY: the scales of 32 dimensions at the block's 16 positions.
                let scales = unsafe { Self::scales(dim, keys, d) };
                for ((scores, sums), q) in scores.iter_mut().zip(sums).zip(q) {
                    let q_scale = _mm256_set1_ps(q.scales[d]);
                    for ((score, sum), scale) in scores.iter_mut().zip(sums).zip(scales) {
                        let scale = _mm256_mul_ps(q_scale, scale);
                        *score = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, *score);
                    }
                }
            }
            for (p, scores) in p.iter_mut().zip(scores) {
                let p = &mut p[b * KV_BLOCK..][..KV_BLOCK];
                // SAFETY: `p` has 16 elements.
                unsafe {
                    _mm256_storeu_ps(p.as_mut_ptr(), scores[0]);
                    _mm256_storeu_ps(p.as_mut_ptr().add(8), scores[1]);
                }
            }
        }
    }

    /// The scales of 32 dimensions at a block's 16 positions.
    ///
    /// # Safety
    /// `head` points at the head's part of a block, and there are as many dimensions.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scales(dim: usize, head: *const u8, d: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = scales_at(dim, head, d).cast::<__m128i>();
            [
                _mm256_cvtph_ps(_mm_loadu_si128(scales)),
                _mm256_cvtph_ps(_mm_loadu_si128(scales.add(1))),
            ]
        }
    }

    /// [`Cache::add_values`], with AHEAD if something is ahead.
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
    ) {
        let c = corrections;
        // SAFETY: the caller's promise.
        unsafe {
            match queries.len() {
                1 => Self::add_values_of::<1, 4, AHEAD>(dim, queries, p, c, values),
                2 => Self::add_values_of::<2, 4, AHEAD>(dim, queries, p, c, values),
                3 => Self::add_values_of::<3, 4, AHEAD>(dim, queries, p, c, values),
                4 => Self::add_values_of::<4, 2, AHEAD>(dim, queries, p, c, values),
                5 => Self::add_values_of::<5, 2, AHEAD>(dim, queries, p, c, values),
                _ => Self::add_values_of::<QUERIES, 2, AHEAD>(dim, queries, p, c, values),
            }
        }
    }

    /// Corrects the outputs of Q queries and adds the values of a tile to them, V vectors of dimensions at a time.
    ///
    /// # Safety
    /// As [`Cache::add_values`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values_of<const Q: usize, const V: usize, const AHEAD: bool>(
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
            unsafe { weigh(dim, d, p, values, &mut weights) };
            for vector in (0..Q8_BLOCK / 8).step_by(V) {
                let first = d * Q8_BLOCK + 8 * vector;
                // SAFETY: the caller's promise; 8 V dimensions from `first` on are there.
                unsafe {
                    Self::add_vectors::<Q, V, AHEAD>(
                        dim,
                        queries,
                        &weights,
                        corrections,
                        values,
                        first,
                    );
                }
            }
        }
    }

    /// Dimensions `first .. first + 8 V` of [`Self::add_values_of`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_vectors<const Q: usize, const V: usize, const AHEAD: bool>(
        dim: usize,
        queries: &[Query; Q],
        weights: &[Weights; Q],
        corrections: &[f32; Q],
        values: &Blocks,
        first: usize,
    ) {
        let mut sums = [[_mm256_setzero_si256(); V]; Q];
        for b in values.range.clone() {
            let [ahead] = values.ahead_of::<1>(b);
            let values = values.at[b];
            for pair in 0..KV_BLOCK / 2 {
                let at = (pair * dim + first) * 2;
                if AHEAD {
                    fetch(ahead.wrapping_add(at), 16 * V);
                }
                // SAFETY: V vectors of dimensions of a pair of positions.
                let v: [__m256i; V] = std::array::from_fn(|v| unsafe {
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(values.add(at + 16 * v).cast()))
                });
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let w = _mm256_set1_epi32(weights.pairs[b * KV_BLOCK / 2 + pair]);
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(v, w));
                    }
                }
            }
        }
        let sums = queries.iter().zip(sums).zip(corrections);
        for (((query, sums), correction), weights) in sums.zip(weights) {
            let correction = _mm256_set1_ps(*correction);
            let scale = _mm256_set1_ps(weights.scale);
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the output has these dimensions.
                unsafe {
                    let out = query.out.add(first + 8 * v);
                    let o = _mm256_mul_ps(_mm256_loadu_ps(out), correction);
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, o));
                }
            }
        }
    }
}

/// Where the scales of 32 dimensions at a block's 16 positions are.
pub(in crate::cpu) fn scales_at(dim: usize, head: *const u8, d: usize) -> *const u8 {
    head.wrapping_add((dim + 2 * d) * KV_BLOCK)
}

/// The probabilities of a tile times the scales of 32 dimensions of its values, quantised, for each query.
///
/// # Safety
/// As [`Blocks`] of values.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) unsafe fn weigh(
    dim: usize,
    d: usize,
    p: &[[f32; TILE]],
    values: &Blocks,
    weights: &mut [Weights],
) {
    let mut scales = [_mm256_setzero_ps(); TILE / 8];
    for b in values.range.clone() {
        if let Some(ahead) = values.ahead {
            fetch(scales_at(dim, ahead[b], d), KV_BLOCK * 2);
        }
        // SAFETY: the caller's promise.
        let both = unsafe { Q8_0::scales(dim, values.at[b], d) };
        scales[2 * b..][..2].copy_from_slice(&both);
    }
    for (weights, p) in weights.iter_mut().zip(p) {
        let x: [__m256; TILE / 8] = std::array::from_fn(|i| {
            // SAFETY: 8 elements from 8 i on, i < 8.
            let p = unsafe { _mm256_loadu_ps(p.as_ptr().add(8 * i)) };
            // Scales of positions that are not seen may be anything, NaN included.
            let counts = _mm256_cmp_ps::<_CMP_GT_OQ>(p, _mm256_setzero_ps());
            _mm256_and_ps(_mm256_mul_ps(p, scales[i]), counts)
        });
        weights.scale = quantise(&x, &mut weights.pairs);
    }
}

/// Quantises numbers to 15 bits, two in each of `pairs`, and gives their scale.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn quantise<const N: usize>(x: &[__m256; N], pairs: &mut [i32]) -> f32 {
    assert_eq!(pairs.len(), 4 * N);
    let sign = _mm256_set1_ps(-0.0);
    let mut maxima = _mm256_andnot_ps(sign, x[0]);
    for &x in &x[1..] {
        maxima = _mm256_max_ps(maxima, _mm256_andnot_ps(sign, x));
    }
    let four = _mm_max_ps(
        _mm256_castps256_ps128(maxima),
        _mm256_extractf128_ps::<1>(maxima),
    );
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    let amax = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    if amax < LEAST {
        pairs.fill(0);
        return 0.0;
    }
    let inverse = _mm256_set1_ps(LEVELS / amax);
    for (x, pairs) in x.chunks_exact(2).zip(pairs.chunks_exact_mut(8)) {
        let quants = [x[0], x[1]].map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
        // Packing goes by halves; then the quarters are put in order.
        let packed = _mm256_packs_epi32(quants[0], quants[1]);
        let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        // SAFETY: eight pairs are 32 bytes.
        unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), ordered) };
    }
    amax / LEVELS
}
