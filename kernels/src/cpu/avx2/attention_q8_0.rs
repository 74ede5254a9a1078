//! Attention over paged Q8_0 pools, up to [`QUERIES`] queries of one KV head at a time, as for f16.
//!
//! The products are those of 16-bit integers: quantised queries with keys, and a tile's weights with values. Neighbouring
//! dimensions of a key, and neighbouring positions of a value, lie side by side, so that one instruction multiplies and adds
//! both. Integer sums are exact, so positions that only some of the queries see are added to all of them, with weight 0.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};

use super::attention::{BLOCKS, QUERIES, Query, softmax};
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
    let group = args.group_size as usize;
    let heads = args.head0 as usize..(args.head0 + args.heads) as usize;
    let mut head = heads.start;
    while head < heads.end {
        let kv_head = head / group;
        let end = heads.end.min((kv_head + 1) * group);
        let shared = Shared {
            args,
            kv_head,
            dim: args.head_dim as usize,
        };
        // Queries of one KV head, token by token.
        let count = (end - head) * args.tokens as usize;
        for first in (0..count).step_by(QUERIES) {
            let queries = first..count.min(first + QUERIES);
            // SAFETY: the caller's promise; token and head are of the call.
            unsafe { shared.pass(queries, head, end - head) };
        }
        head = end;
    }
}

/// One KV head of a call.
struct Shared<'a> {
    args: &'a AttentionArgs,
    kv_head: usize,
    dim: usize,
}

/// A quantised query: pairs of dimensions, and a scale for each 32.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Quantised {
    pairs: [i32; MAX_HEAD_DIM / 2],
    scales: [f32; MAX_BLOCKS],
}

/// The weights of a tile for 32 dimensions: pairs of positions, and their scale.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Weights {
    pairs: [i32; TILE / 2],
    scale: f32,
}

/// Queries, and the probabilities of a tile.
#[repr(align(64))]
struct Scratch {
    q: [Quantised; QUERIES],
    p: [[f32; TILE]; QUERIES],
}

impl Shared<'_> {
    /// Queries `range` of those of heads `head .. head + heads`, token by token: query i is head `i % heads` of token `i /
    /// heads`.
    ///
    /// # Safety
    /// As [`attention_q8_0`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn pass(&self, range: Range<usize>, head: usize, heads: usize) {
        let mut scratch = Scratch {
            q: [Quantised {
                pairs: [0; MAX_HEAD_DIM / 2],
                scales: [0.0; MAX_BLOCKS],
            }; QUERIES],
            p: [[0.0; TILE]; QUERIES],
        };
        let mut queries = [Query {
            out: std::ptr::null_mut(),
            first: 0,
            end: 0,
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }; QUERIES];
        let queries = &mut queries[..range.len()];
        for ((query, q), i) in queries.iter_mut().zip(&mut scratch.q).zip(range) {
            // SAFETY: the caller's promise.
            *query = unsafe { self.start(i / heads, head + i % heads, q) };
        }

        // Positions ascend with the queries: both ends of what they see do.
        let first_tile = queries[0].first / TILE;
        let last_tile = (queries[queries.len() - 1].end - 1) / TILE;
        for tile in first_tile..=last_tile {
            let base = tile * TILE;
            let from = queries.partition_point(|q| q.end <= base);
            let to = queries.partition_point(|q| q.first < base + TILE);
            if from < to {
                // SAFETY: these queries see positions of the tile, whose blocks the caller promises.
                unsafe { self.tile(&mut queries[from..to], from, base, &mut scratch) };
            }
        }

        for query in queries {
            let inverse = _mm256_set1_ps(1.0 / query.sum);
            // SAFETY: the query's output row.
            unsafe { self.scale(query.out, inverse) };
        }
    }

    /// A query's first state, its output zeroed and itself scaled and quantised into `to`.
    ///
    /// # Safety
    /// Token and head are of the call.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn start(&self, token: usize, head: usize, to: &mut Quantised) -> Query {
        let args = self.args;
        let position = args.position as usize + token;
        // SAFETY: the caller's promise.
        let (q, out) = unsafe {
            (
                args.q.add(token * args.q_stride as usize + head * self.dim),
                args.out.add(
                    token * args.out_stride as usize + (head - args.head0 as usize) * self.dim,
                ),
            )
        };
        let scale = _mm256_set1_ps(args.scale);
        let zero = _mm256_setzero_ps();
        for (b, to_scale) in to.scales[..self.dim / Q8_BLOCK].iter_mut().enumerate() {
            // SAFETY: rows of q and out have `dim` elements, whole blocks of 32.
            let x: [__m256; 4] = std::array::from_fn(|i| unsafe {
                let d = b * Q8_BLOCK + 8 * i;
                _mm256_storeu_ps(out.add(d), zero);
                _mm256_mul_ps(_mm256_loadu_ps(q.add(d)), scale)
            });
            let pairs = &mut to.pairs[b * Q8_BLOCK / 2..][..Q8_BLOCK / 2];
            *to_scale = quantise(&x, pairs);
        }
        Query {
            out,
            first: match usize::try_from(args.window) {
                Ok(window) => (position + 1).saturating_sub(window),
                Err(_) => 0,
            },
            end: position + 1,
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }
    }

    /// One tile for the queries that see a position of it; `from` is the first one's index in `scratch`.
    ///
    /// # Safety
    /// Every query sees a position of the tile, and table and pools hold what they see.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn tile(&self, queries: &mut [Query], from: usize, base: usize, scratch: &mut Scratch) {
        let last = queries.len() - 1;
        let blocks = (queries[0].seen(base).start - base) / KV_BLOCK
            ..(queries[last].seen(base).end - base).div_ceil(KV_BLOCK);
        let mut keys = [std::ptr::null(); BLOCKS];
        let mut values = [std::ptr::null(); BLOCKS];
        let head_bytes = self.kv_head * KvDType::Q8_0.head_bytes(self.dim as u32) as usize;
        for b in blocks.clone() {
            // SAFETY: the block holds a position that a query sees, so it is in the table and the pools.
            unsafe {
                let block = *self.args.table.add(base / KV_BLOCK + b) as usize;
                let at = block * self.args.block_stride as usize + head_bytes;
                keys[b] = self.args.keys.add(at);
                values[b] = self.args.values.add(at);
            }
        }

        let q = &scratch.q[from..][..queries.len()];
        let p = &mut scratch.p[from..][..queries.len()];
        // SAFETY: the blocks' key pointers were just set.
        unsafe {
            match queries.len() {
                1 => self.scores::<1>(q, p, &keys, blocks.clone()),
                2 => self.scores::<2>(q, p, &keys, blocks.clone()),
                3 => self.scores::<3>(q, p, &keys, blocks.clone()),
                4 => self.scores::<4>(q, p, &keys, blocks.clone()),
                5 => self.scores::<5>(q, p, &keys, blocks.clone()),
                _ => self.scores::<QUERIES>(q, p, &keys, blocks.clone()),
            }
        }
        for (query, p) in queries.iter_mut().zip(p.iter_mut()) {
            let seen = query.seen(base);
            let correction = softmax(query, seen.start - base..seen.end - base, p);
            // SAFETY: the query's output row.
            unsafe { self.scale(query.out, correction) };
        }
        // SAFETY: the blocks' value pointers were just set, and cover what the queries see.
        unsafe {
            match queries.len() {
                1 => self.add_values::<1, 4>(queries, p, &values, blocks),
                2 => self.add_values::<2, 4>(queries, p, &values, blocks),
                3 => self.add_values::<3, 4>(queries, p, &values, blocks),
                4 => self.add_values::<4, 2>(queries, p, &values, blocks),
                5 => self.add_values::<5, 2>(queries, p, &values, blocks),
                _ => self.add_values::<QUERIES, 2>(queries, p, &values, blocks),
            }
        }
    }

    /// `out *= factor`.
    ///
    /// # Safety
    /// `out` has `dim` elements.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scale(&self, out: *mut f32, factor: __m256) {
        for d in (0..self.dim).step_by(8) {
            // SAFETY: the caller's promise.
            unsafe {
                let o = _mm256_mul_ps(_mm256_loadu_ps(out.add(d)), factor);
                _mm256_storeu_ps(out.add(d), o);
            }
        }
    }

    /// Scores of Q queries over whole blocks of the tile.
    ///
    /// # Safety
    /// `keys[b]` points at the head's keys for each of `blocks`.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores<const Q: usize>(
        &self,
        q: &[Quantised],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        let q: &[Quantised; Q] = q.try_into().expect("a slice of Q");
        for (b, &keys) in blocks.clone().zip(&keys[blocks]) {
            let mut scores = [[_mm256_setzero_ps(); 2]; Q];
            for d in 0..self.dim.min(MAX_HEAD_DIM) / Q8_BLOCK {
                let mut sums = [[_mm256_setzero_si256(); 2]; Q];
                for pair in d * Q8_BLOCK / 2..(d + 1) * Q8_BLOCK / 2 {
                    // SAFETY: a pair of dimensions of the block's 16 positions.
                    let k = unsafe {
                        let k = keys.add(pair * KV_BLOCK * 2).cast::<__m128i>();
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
                let scales = unsafe { self.scales(keys, d) };
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
    unsafe fn scales(&self, head: *const u8, d: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = head.add((self.dim + 2 * d) * KV_BLOCK).cast::<__m128i>();
            [
                _mm256_cvtph_ps(_mm_loadu_si128(scales)),
                _mm256_cvtph_ps(_mm_loadu_si128(scales.add(1))),
            ]
        }
    }

    /// Adds the values of a tile to the outputs of Q queries, V vectors of dimensions at a time.
    ///
    /// # Safety
    /// `values[b]` points at the head's values for each of `blocks`, which hold all that a query sees of the tile.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values<const Q: usize, const V: usize>(
        &self,
        queries: &[Query],
        p: &[[f32; TILE]],
        values: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        let queries: &[Query; Q] = queries.try_into().expect("a slice of Q");
        let p: &[[f32; TILE]; Q] = p.try_into().expect("a slice of Q");
        for d in 0..self.dim / Q8_BLOCK {
            let mut scales = [_mm256_setzero_ps(); TILE / 8];
            for b in blocks.clone() {
                // SAFETY: the caller's promise.
                let both = unsafe { self.scales(values[b], d) };
                scales[2 * b..][..2].copy_from_slice(&both);
            }
            let mut weights = [Weights {
                pairs: [0; TILE / 2],
                scale: 0.0,
            }; Q];
            for (weights, p) in weights.iter_mut().zip(p) {
                *weights = weigh(p, &scales);
            }
            for first in (0..Q8_BLOCK / 8).step_by(V) {
                let dim = d * Q8_BLOCK + 8 * first;
                // SAFETY: the caller's promise; 8 V dimensions from `dim` on are there.
                unsafe {
                    self.add_vectors::<Q, V>(queries, &weights, values, blocks.clone(), dim);
                }
            }
        }
    }

    /// Dimensions `dim .. dim + 8 V` of [`Self::add_values`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_vectors<const Q: usize, const V: usize>(
        &self,
        queries: &[Query; Q],
        weights: &[Weights; Q],
        values: &[*const u8; BLOCKS],
        blocks: Range<usize>,
        dim: usize,
    ) {
        let mut sums = [[_mm256_setzero_si256(); V]; Q];
        for (b, values) in blocks.clone().zip(&values[blocks]) {
            for pair in 0..KV_BLOCK / 2 {
                // SAFETY: V vectors of dimensions of a pair of positions.
                let v: [__m256i; V] = std::array::from_fn(|v| unsafe {
                    let at = (pair * self.dim + dim + 8 * v) * 2;
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(values.add(at).cast()))
                });
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let w = _mm256_set1_epi32(weights.pairs[b * KV_BLOCK / 2 + pair]);
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(v, w));
                    }
                }
            }
        }
        for ((query, sums), weights) in queries.iter().zip(sums).zip(weights) {
            let scale = _mm256_set1_ps(weights.scale);
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the output has these dimensions.
                unsafe {
                    let out = query.out.add(dim + 8 * v);
                    let o = _mm256_loadu_ps(out);
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, o));
                }
            }
        }
    }
}

/// A tile's probabilities times the scales of its values, quantised.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn weigh(p: &[f32; TILE], scales: &[__m256; TILE / 8]) -> Weights {
    let mut weights = Weights {
        pairs: [0; TILE / 2],
        scale: 0.0,
    };
    let x: [__m256; TILE / 8] = std::array::from_fn(|i| {
        // SAFETY: 8 elements from 8 i on, i < 8.
        let p = unsafe { _mm256_loadu_ps(p.as_ptr().add(8 * i)) };
        // Scales of positions that are not seen may be anything, NaN included.
        let counts = _mm256_cmp_ps::<_CMP_GT_OQ>(p, _mm256_setzero_ps());
        _mm256_and_ps(_mm256_mul_ps(p, scales[i]), counts)
    });
    weights.scale = quantise(&x, &mut weights.pairs);
    weights
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
