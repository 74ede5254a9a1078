//! Attention over paged pools, up to [`PASS`] queries of one KV head at a time, whatever the pools hold.
//!
//! Queries (heads of a group, consecutive tokens) share the loads and conversions of keys and values. Per query nothing
//! depends on its company: it takes its own tiles, its own positions within them, and its own order of sums.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use bundle_format::plan::KV_BLOCK;

use crate::abi::AttentionArgs;
use crate::cpu::TILE;
use crate::cpu::math::exp_constants as exp_of;

/// Queries that meet keys and values together.
pub(in crate::cpu) const QUERIES: usize = 6;

/// Queries that a pass over the cache serves: more than meet keys together, since their softmax is one stretch of independent
/// exponentials, and only its ends wait for something.
const PASS: usize = 2 * QUERIES;

/// Blocks of a tile.
pub(in crate::cpu) const BLOCKS: usize = TILE / KV_BLOCK;

/// Keys and values of one type: how queries meet them.
pub(in crate::cpu) trait Cache {
    /// A query as its scores take it.
    type Scaled: Copy;

    const ZERO: Self::Scaled;

    /// Bytes of a head's keys (or values) in a block.
    fn head_bytes(dim: usize) -> usize;

    /// Scales a query into `to`.
    ///
    /// # Safety
    /// `q` has `dim` elements; the processor has the level.
    unsafe fn scale_query(q: *const f32, scale: f32, dim: usize, to: &mut Self::Scaled);

    /// Scores of `p.len()` queries over whole blocks of the tile, the first query `q[0]`.
    ///
    /// # Safety
    /// `keys[b]` points at the head's keys for each of `blocks`; the processor has the level.
    unsafe fn scores(
        dim: usize,
        q: &[Self::Scaled],
        p: &mut [[f32; TILE]],
        keys: &[*const u8; BLOCKS],
        blocks: Range<usize>,
    );

    /// Turns the scores of the tile at position `base` into probabilities, 0 where not seen, updates maxima and sums of queries, and
    /// returns the factors that correct what was summed before.
    ///
    /// # Safety
    /// As many rows as queries; the processor has the level.
    unsafe fn softmax(queries: &mut [Query], base: usize, p: &mut [[f32; TILE]]) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe { softmax(queries, base, p) }
    }

    /// Multiplies each query's output by its correction, and adds the values of the tile at position `base` that it sees, ascending,
    /// times its `p`.
    ///
    /// # Safety
    /// As many rows and corrections as queries; `values[b]` points at the head's values for each of `blocks`, which hold all that a
    /// query sees; the processor has the level.
    unsafe fn add_values(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &[*const u8; BLOCKS],
        blocks: Range<usize>,
        base: usize,
    );
}

/// Attention over pools of a type.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) unsafe fn attend<C: Cache>(args: &AttentionArgs) {
    // Only what the call's queries need: a lone token has one, and not much else to do where it sees few positions.
    let rows = PASS.min((args.heads * args.tokens) as usize);
    let mut room = MaybeUninit::<Scratch<C>>::uninit();
    let mut rows = Rows::<C>::of(&mut room, rows);
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
        for first in (0..count).step_by(PASS) {
            let queries = first..count.min(first + PASS);
            // SAFETY: the caller's promise; token and head are of the call.
            unsafe { shared.pass(queries, head, end - head, &mut rows) };
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
pub(in crate::cpu) struct Query {
    pub(in crate::cpu) out: *mut f32,
    /// Positions that it sees.
    pub(in crate::cpu) first: usize,
    pub(in crate::cpu) end: usize,
    pub(in crate::cpu) max: f32,
    pub(in crate::cpu) sum: f32,
}

impl Query {
    /// The positions of a tile that it sees; empty where there are none.
    pub(in crate::cpu) fn seen(&self, base: usize) -> Range<usize> {
        self.first.max(base)..self.end.min(base + TILE)
    }
}

/// Queries, scaled, and the probabilities of a tile.
#[repr(align(64))]
struct Scratch<C: Cache> {
    q: [C::Scaled; PASS],
    p: [[f32; TILE]; PASS],
}

/// The first of them, with numbers in.
struct Rows<'a, C: Cache> {
    q: &'a mut [C::Scaled],
    p: &'a mut [[f32; TILE]],
}

impl<'a, C: Cache> Rows<'a, C> {
    /// The first `count` rows of `room`.
    #[inline]
    fn of(room: &'a mut MaybeUninit<Scratch<C>>, count: usize) -> Self {
        let count = count.min(PASS);
        let room = room.as_mut_ptr();
        // SAFETY: fields of the scratch, which is borrowed as long; at most PASS elements, which are written before they are lent.
        unsafe {
            let q = (&raw mut (*room).q).cast::<C::Scaled>();
            let p = (&raw mut (*room).p).cast::<[f32; TILE]>();
            for i in 0..count {
                q.add(i).write(C::ZERO);
                p.add(i).write([0.0; TILE]);
            }
            Rows {
                q: slice::from_raw_parts_mut(q, count),
                p: slice::from_raw_parts_mut(p, count),
            }
        }
    }
}

impl Shared<'_> {
    /// Queries `range` of those of heads `head .. head + heads`, token by token: query i is head `i % heads` of token `i /
    /// heads`.
    ///
    /// # Safety
    /// As [`attend`].
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn pass<C: Cache>(
        &self,
        range: Range<usize>,
        head: usize,
        heads: usize,
        rows: &mut Rows<C>,
    ) {
        let mut queries = [Query {
            out: std::ptr::null_mut(),
            first: 0,
            end: 0,
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }; PASS];
        let queries = &mut queries[..range.len()];
        for ((query, q), i) in queries.iter_mut().zip(rows.q.iter_mut()).zip(range) {
            // SAFETY: the caller's promise.
            *query = unsafe { self.start::<C>(i / heads, head + i % heads, q) };
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
                unsafe { self.tile(&mut queries[from..to], from, base, rows) };
            }
        }

        for query in queries {
            let inverse = _mm256_set1_ps(1.0 / query.sum);
            // SAFETY: the query's output row.
            unsafe { scale(query.out, self.dim, inverse) };
        }
    }

    /// A query's first state, its output zeroed and itself scaled into `scaled`.
    ///
    /// # Safety
    /// Token and head are of the call.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn start<C: Cache>(&self, token: usize, head: usize, scaled: &mut C::Scaled) -> Query {
        let args = self.args;
        let position = args.position as usize + token;
        // SAFETY: the caller's promise; rows of q and out have `dim` elements, a multiple of 8.
        let out = unsafe {
            let q = args.q.add(token * args.q_stride as usize + head * self.dim);
            C::scale_query(q, args.scale, self.dim, scaled);
            let head = head - args.head0 as usize;
            let out = args
                .out
                .add(token * args.out_stride as usize + head * self.dim);
            for d in (0..self.dim).step_by(8) {
                _mm256_storeu_ps(out.add(d), _mm256_setzero_ps());
            }
            out
        };
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

    /// One tile for the queries that see a position of it; `from` is the first one's index in `rows`.
    ///
    /// # Safety
    /// Every query sees a position of the tile, and table and pools hold what they see.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn tile<C: Cache>(
        &self,
        queries: &mut [Query],
        from: usize,
        base: usize,
        rows: &mut Rows<C>,
    ) {
        let last = queries.len() - 1;
        let blocks = (queries[0].seen(base).start - base) / KV_BLOCK
            ..(queries[last].seen(base).end - base).div_ceil(KV_BLOCK);
        let mut keys = [std::ptr::null(); BLOCKS];
        let mut values = [std::ptr::null(); BLOCKS];
        let head_bytes = self.kv_head * C::head_bytes(self.dim);
        for b in blocks.clone() {
            // SAFETY: the block holds a position that a query sees, so it is in the table and the pools.
            unsafe {
                let block = *self.args.table.add(base / KV_BLOCK + b) as usize;
                let at = block * self.args.block_stride as usize + head_bytes;
                keys[b] = self.args.keys.add(at);
                values[b] = self.args.values.add(at);
            }
        }

        let q = &rows.q[from..][..queries.len()];
        let p = &mut rows.p[from..][..queries.len()];
        for (q, p) in q.chunks(QUERIES).zip(p.chunks_mut(QUERIES)) {
            // SAFETY: the blocks' key pointers were just set.
            unsafe { C::scores(self.dim, q, p, &keys, blocks.clone()) };
        }
        // SAFETY: a row each.
        let corrections = unsafe { C::softmax(queries, base, p) };
        let few = queries.chunks(QUERIES).zip(p.chunks(QUERIES));
        for ((queries, p), corrections) in few.zip(corrections.0.chunks(QUERIES)) {
            let corrections = &corrections[..queries.len()];
            // SAFETY: the blocks' value pointers were just set, and cover what the queries see.
            unsafe {
                C::add_values(
                    self.dim,
                    queries,
                    p,
                    corrections,
                    &values,
                    blocks.clone(),
                    base,
                );
            }
        }
    }
}

/// `out *= factor`.
///
/// # Safety
/// `out` has `dim` elements.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) unsafe fn scale(out: *mut f32, dim: usize, factor: __m256) {
    for d in (0..dim).step_by(8) {
        // SAFETY: the caller's promise.
        unsafe {
            let o = _mm256_mul_ps(_mm256_loadu_ps(out.add(d)), factor);
            _mm256_storeu_ps(out.add(d), o);
        }
    }
}

/// A number for each query of a pass.
#[repr(align(32))]
pub(in crate::cpu) struct Lanes(pub(in crate::cpu) [f32; LANES]);

/// Those of a pass, in whole vectors.
pub(in crate::cpu) const LANES: usize = PASS.next_multiple_of(8);

impl Lanes {
    /// The factors that correct what the first `count` queries summed with these maxima, now that they have others.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    pub(in crate::cpu) fn corrections(&self, after: &Lanes, count: usize) -> Lanes {
        if count == 1 {
            // As a vector from memory it would wait until its number is there.
            let correction = exp(_mm256_set1_ps(self.0[0] - after.0[0]));
            return Lanes([_mm256_cvtss_f32(correction); LANES]);
        }
        let mut corrections = Lanes([0.0; LANES]);
        for i in (0..count.min(LANES)).step_by(8) {
            // SAFETY: eight numbers each, of a multiple of eight.
            unsafe {
                let before = _mm256_load_ps(self.0.as_ptr().add(i));
                let after = _mm256_load_ps(after.0.as_ptr().add(i));
                let correction = exp(_mm256_sub_ps(before, after));
                _mm256_store_ps(corrections.0.as_mut_ptr().add(i), correction);
            }
        }
        corrections
    }
}

/// Makes the softmax of a level, of that level's `maximum` and `probabilities`.
macro_rules! softmax_of {
    ($features:literal) => {
        /// Turns the scores of the tile at position `base` into probabilities (0 where not seen), updates maxima and sums of queries, and
        /// returns the factors that correct what was summed before. In steps for all queries, none of which waits for a chain of a single
        /// one: maxima, corrections, probabilities.
        #[target_feature(enable = $features)]
        pub(in crate::cpu) fn softmax(
            queries: &mut [Query],
            base: usize,
            p: &mut [[f32; TILE]],
        ) -> Lanes {
            let (mut before, mut after) = (Lanes([0.0; LANES]), Lanes([0.0; LANES]));
            let lanes = before.0.iter_mut().zip(&mut after.0);
            for ((query, p), (before, after)) in queries.iter().zip(p.iter_mut()).zip(lanes) {
                (*before, *after) = (query.max, maximum(query, base, p));
            }
            let corrections = before.corrections(&after, queries.len());
            let lanes = after.0.iter().zip(&corrections.0);
            for ((query, p), (max, correction)) in queries.iter_mut().zip(p).zip(lanes) {
                query.max = *max;
                query.sum = query.sum.mul_add(*correction, probabilities(p, *max));
            }
            corrections
        }
    };
}

pub(in crate::cpu) use softmax_of;

softmax_of!("avx2,bmi2,f16c,fma");

/// The maximum of a query with its scores of the tile at position `base`. Where it doesn't see the tile, these become the least.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn maximum(query: &Query, base: usize, p: &mut [f32; TILE]) -> f32 {
    let seen = query.seen(base);
    // It may be anything, NaN included.
    p[..seen.start - base].fill(f32::NEG_INFINITY);
    p[seen.end - base..].fill(f32::NEG_INFINITY);
    // From a number on, so that NaN is never the greater.
    let mut maxima = _mm256_set1_ps(query.max);
    for i in 0..TILE / 8 {
        // SAFETY: 8 elements from 8 i on, i < 8.
        maxima = _mm256_max_ps(unsafe { _mm256_loadu_ps(p.as_ptr().add(8 * i)) }, maxima);
    }
    let four = _mm_max_ps(
        _mm256_castps256_ps128(maxima),
        _mm256_extractf128_ps::<1>(maxima),
    );
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// Turns a row of scores into probabilities, and returns their sum.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn probabilities(p: &mut [f32; TILE], max: f32) -> f32 {
    let max = _mm256_set1_ps(max);
    let mut sums = _mm256_setzero_ps();
    for i in 0..TILE / 8 {
        // SAFETY: 8 elements from 8 i on, i < 8.
        unsafe {
            let at = p.as_mut_ptr().add(8 * i);
            let e = exp(_mm256_sub_ps(_mm256_loadu_ps(at), max));
            _mm256_storeu_ps(at, e);
            sums = if i == 0 { e } else { _mm256_add_ps(sums, e) };
        }
    }
    horizontal_sum(sums)
}

/// ((0+4) + (2+6)) + ((1+5) + (3+7)), as `math::sum_tile`.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub(in crate::cpu) fn horizontal_sum(x: __m256) -> f32 {
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
