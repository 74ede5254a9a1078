//! Attention over paged f16 pools, up to [`QUERIES`] queries of one KV head at a time.
//!
//! Queries (heads of a group, consecutive tokens) share the loads and conversions of keys and values. Per query nothing
//! depends on its company: it takes its own tiles, its own positions within them, and its own order of sums.

use std::arch::x86_64::*;
use std::ops::Range;

use bundle_format::plan::KV_BLOCK;

use crate::abi::AttentionArgs;
use crate::cpu::math::exp_constants as exp_of;
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Queries that a pass over the cache serves.
pub(super) const QUERIES: usize = 6;

/// Blocks of a tile.
pub(super) const BLOCKS: usize = TILE / KV_BLOCK;

/// Attention with f16 keys and values.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn attention_f16(args: &AttentionArgs) {
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

/// The running state of a query.
#[derive(Clone, Copy)]
pub(super) struct Query {
    pub(super) out: *mut f32,
    /// Positions that it sees.
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Query {
    /// The positions of a tile that it sees; empty where there are none.
    pub(super) fn seen(&self, base: usize) -> Range<usize> {
        self.first.max(base)..self.end.min(base + TILE)
    }
}

/// Queries, scaled, and the probabilities of a tile.
#[repr(align(64))]
struct Scratch {
    q: [[f32; MAX_HEAD_DIM]; QUERIES],
    p: [[f32; TILE]; QUERIES],
}

impl Shared<'_> {
    /// Queries `range` of those of heads `head .. head + heads`, token by token: query i is head `i % heads` of token `i /
    /// heads`.
    ///
    /// # Safety
    /// As [`attention_f16`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn pass(&self, range: Range<usize>, head: usize, heads: usize) {
        let mut scratch = Scratch {
            q: [[0.0; MAX_HEAD_DIM]; QUERIES],
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

    /// A query's first state, its output zeroed and itself scaled into `scaled`.
    ///
    /// # Safety
    /// Token and head are of the call.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn start(&self, token: usize, head: usize, scaled: &mut [f32; MAX_HEAD_DIM]) -> Query {
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
        for d in (0..self.dim).step_by(8) {
            // SAFETY: rows of q, `scaled` and out have `dim` elements, a multiple of 8.
            unsafe {
                let q = _mm256_mul_ps(_mm256_loadu_ps(q.add(d)), scale);
                _mm256_storeu_ps(scaled.as_mut_ptr().add(d), q);
                _mm256_storeu_ps(out.add(d), _mm256_setzero_ps());
            }
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
        let head_bytes = self.kv_head * self.dim * KV_BLOCK * 2;
        for b in blocks.clone() {
            // SAFETY: the block holds a position that a query sees, so it is in the table and the pools.
            unsafe {
                let block = *self.args.table.add(base / KV_BLOCK + b) as usize;
                let at = block * self.args.block_stride as usize + head_bytes;
                keys[b] = self.args.keys.add(at);
                values[b] = self.args.values.add(at);
            }
        }

        let q = &scratch.q[from..];
        let p = &mut scratch.p[from..][..queries.len()];
        // SAFETY: the blocks' key pointers were just set.
        unsafe { self.scores(q, p, &keys, blocks) };
        for (query, p) in queries.iter_mut().zip(p.iter_mut()) {
            let seen = query.seen(base);
            let correction = softmax(query, seen.start - base..seen.end - base, p);
            // SAFETY: the query's output row.
            unsafe { self.scale(query.out, correction) };
        }
        // SAFETY: the blocks' value pointers were just set, and cover what the queries see.
        unsafe { self.add_all_values(queries, p, &values, base) };
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

    /// Scores of `p.len()` queries over whole blocks of the tile, the first query `q[0]`.
    ///
    /// # Safety
    /// `keys[b]` points at the head's keys for each of `blocks`.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores(
        &self,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match p.len() {
                1 => self.scores_of::<1, 4>(q, p, keys, blocks),
                2 => self.scores_of::<2, 2>(q, p, keys, blocks),
                3 => self.scores_of::<3, 1>(q, p, keys, blocks),
                4 => self.scores_of::<4, 1>(q, p, keys, blocks),
                5 => self.scores_of::<5, 1>(q, p, keys, blocks),
                _ => self.scores_of::<QUERIES, 1>(q, p, keys, blocks),
            }
        }
    }

    /// [`Self::scores`] of Q queries, N blocks at a time and the rest one by one.
    ///
    /// # Safety
    /// As [`Self::scores`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn scores_of<const Q: usize, const N: usize>(
        &self,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    ) {
        let mut b = blocks.start;
        while b + N <= blocks.end {
            // SAFETY: the caller's promise.
            unsafe { self.block_scores::<Q, N>(q, p, keys, b) };
            b += N;
        }
        for b in b..blocks.end {
            // SAFETY: the caller's promise.
            unsafe { self.block_scores::<Q, 1>(q, p, keys, b) };
        }
    }

    /// Scores of Q queries over N blocks from block b on.
    ///
    /// # Safety
    /// As [`Self::scores`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn block_scores<const Q: usize, const N: usize>(
        &self,
        q: &[[f32; MAX_HEAD_DIM]],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        b: usize,
    ) {
        let q: &[[f32; MAX_HEAD_DIM]; Q] = q[..Q].try_into().expect("a slice of Q");
        let keys: &[*const u8; N] = keys[b..b + N].try_into().expect("a slice of N");
        let mut acc = [[[_mm256_setzero_ps(); 2]; Q]; N];
        for d in 0..self.dim.min(MAX_HEAD_DIM) {
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

    /// Adds the values that each query sees to its output, ascending. What all of them see is taken together.
    ///
    /// # Safety
    /// `values[b]` points at the head's values for each block that a query sees.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_all_values(
        &self,
        queries: &[Query],
        p: &[[f32; TILE]],
        values: &[*const u8; BLOCKS],
        base: usize,
    ) {
        let last = queries.len() - 1;
        let common = queries[last].seen(base).start - base..queries[0].seen(base).end - base;
        if common.is_empty() {
            for (query, p) in queries.iter().zip(p) {
                let seen = query.seen(base);
                let own = seen.start - base..seen.end - base;
                // SAFETY: the caller's promise.
                unsafe {
                    self.add_values::<1, 8>([query.out], std::array::from_ref(p), values, own)
                };
            }
            return;
        }
        for (query, p) in queries.iter().zip(p) {
            let before = query.seen(base).start - base..common.start;
            // SAFETY: the caller's promise.
            unsafe {
                self.add_values::<1, 8>([query.out], std::array::from_ref(p), values, before)
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match queries.len() {
                1 => self.add_values_of::<1, 8>(queries, p, values, common.clone()),
                2 => self.add_values_of::<2, 4>(queries, p, values, common.clone()),
                3 => self.add_values_of::<3, 4>(queries, p, values, common.clone()),
                4 => self.add_values_of::<4, 2>(queries, p, values, common.clone()),
                5 => self.add_values_of::<5, 2>(queries, p, values, common.clone()),
                _ => self.add_values_of::<QUERIES, 2>(queries, p, values, common.clone()),
            }
        }
        for (query, p) in queries.iter().zip(p) {
            let after = common.end..query.seen(base).end - base;
            // SAFETY: the caller's promise.
            unsafe { self.add_values::<1, 8>([query.out], std::array::from_ref(p), values, after) };
        }
    }

    /// [`Self::add_values`] of the first Q queries.
    ///
    /// # Safety
    /// As [`Self::add_values`].
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values_of<const Q: usize, const V: usize>(
        &self,
        queries: &[Query],
        p: &[[f32; TILE]],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
    ) {
        let outs = std::array::from_fn(|i| queries[i].out);
        let p = p[..Q].try_into().expect("a slice of Q");
        // SAFETY: the caller's promise.
        unsafe { self.add_values::<Q, V>(outs, p, values, positions) };
    }

    /// `out += p * v` over positions of the tile, for Q queries, V vectors of dimensions at a time and the rest one by one.
    ///
    /// # Safety
    /// `values[b]` points at the head's values for each block of `positions`; outputs have `dim` elements.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_values<const Q: usize, const V: usize>(
        &self,
        outs: [*mut f32; Q],
        p: &[[f32; TILE]; Q],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
    ) {
        if positions.is_empty() {
            return;
        }
        let mut d = 0;
        while d + 8 * V <= self.dim {
            // SAFETY: the caller's promise; 8 V dimensions from d on are there.
            unsafe { self.add_vectors::<Q, V>(outs, p, values, positions.clone(), d) };
            d += 8 * V;
        }
        while d < self.dim {
            // SAFETY: as above, of one vector.
            unsafe { self.add_vectors::<Q, 1>(outs, p, values, positions.clone(), d) };
            d += 8;
        }
    }

    /// Dimensions `d .. d + 8 V` of [`Self::add_values`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn add_vectors<const Q: usize, const V: usize>(
        &self,
        outs: [*mut f32; Q],
        p: &[[f32; TILE]; Q],
        values: &[*const u8; BLOCKS],
        positions: Range<usize>,
        d: usize,
    ) {
        // SAFETY: the outputs have dimensions d .. d + 8 V.
        let mut acc: [[__m256; V]; Q] = std::array::from_fn(|i| {
            std::array::from_fn(|v| unsafe { _mm256_loadu_ps(outs[i].add(d + 8 * v)) })
        });
        let blocks = positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK);
        for (block, values) in blocks.clone().zip(&values[blocks]) {
            let start = positions.start.max(block * KV_BLOCK);
            let end = positions.end.min((block + 1) * KV_BLOCK);
            for position in start..end {
                // SAFETY: the position's row in its block.
                let row = unsafe {
                    values
                        .add(((position % KV_BLOCK) * self.dim + d) * 2)
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

/// Turns a tile's scores into probabilities (0 where not in `seen`), updates maximum and sum, and returns the factor that
/// corrects what was summed before.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(super) fn softmax(query: &mut Query, seen: Range<usize>, p: &mut [f32; TILE]) -> __m256 {
    // What is not seen may be anything, NaN included.
    p[..seen.start].fill(f32::NEG_INFINITY);
    p[seen.end..].fill(f32::NEG_INFINITY);

    // SAFETY: 8 elements from 8 i on, i < 8.
    let load = |p: &[f32; TILE], i: usize| unsafe { _mm256_loadu_ps(p.as_ptr().add(8 * i)) };
    let mut maxima = load(p, 0);
    for i in 1..TILE / 8 {
        maxima = _mm256_max_ps(load(p, i), maxima);
    }
    let mut lanes = [0.0; 8];
    // SAFETY: eight elements.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), maxima) };
    let new_max = lanes
        .iter()
        .fold(query.max, |max, x| if *x > max { *x } else { max });

    let correction = exp(_mm256_set1_ps(query.max - new_max));
    let new_max_vector = _mm256_set1_ps(new_max);
    let mut sums = _mm256_setzero_ps();
    for i in 0..TILE / 8 {
        let e = exp(_mm256_sub_ps(load(p, i), new_max_vector));
        // SAFETY: as the load.
        unsafe { _mm256_storeu_ps(p.as_mut_ptr().add(8 * i), e) };
        sums = if i == 0 { e } else { _mm256_add_ps(sums, e) };
    }
    query.max = new_max;
    query.sum = query
        .sum
        .mul_add(_mm256_cvtss_f32(correction), horizontal_sum(sums));
    correction
}

/// ((0+4) + (2+6)) + ((1+5) + (3+7)), as `math::sum_tile`.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn horizontal_sum(x: __m256) -> f32 {
    let quarter = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
}

/// `math::exp` of eight.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn exp(x: __m256) -> __m256 {
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(exp_of::LOG2_E),
    ));
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-exp_of::LN2_HIGH), x);
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-exp_of::LN2_LOW), r);
    let mut p = _mm256_set1_ps(exp_of::POLYNOMIAL[4]);
    for c in exp_of::POLYNOMIAL[..4].iter().rev() {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let one = _mm256_set1_ps(1.0);
    let e = _mm256_fmadd_ps(_mm256_fmadd_ps(p, r, one), r, one);
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
    let in_range = _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(exp_of::MIN));
    _mm256_and_ps(_mm256_mul_ps(e, power), in_range)
}
