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
    /// As [`Blocks`] of keys; the processor has the level.
    unsafe fn scores(dim: usize, q: &[Self::Scaled], p: &mut [[f32; TILE]], keys: &Blocks);

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
    /// As many rows and corrections as queries; as [`Blocks`] of values, which hold all that a query sees; the processor has the level.
    unsafe fn add_values(
        dim: usize,
        queries: &[Query],
        p: &[[f32; TILE]],
        corrections: &[f32],
        values: &Blocks,
        base: usize,
    );
}

/// A head's keys, or values, in a tile's blocks.
///
/// Who reads them promises that `at[b]` points at the head's for each block of `range`.
pub(in crate::cpu) struct Blocks<'a> {
    pub(in crate::cpu) at: [*const u8; BLOCKS],
    pub(in crate::cpu) range: Range<usize>,
    /// What is met next, if it is to be fetched while these are read: by the first queries that meet a head's. A core follows a stream by
    /// itself, but these are short ones that lie apart, and it would wait at the start of each (NOTES.md, "Attention").
    pub(in crate::cpu) ahead: Option<&'a [*const u8; BLOCKS]>,
}

impl Blocks<'_> {
    /// What is ahead of N blocks from block b on: where nothing is, the blocks themselves.
    #[inline]
    pub(in crate::cpu) fn ahead_of<const N: usize>(&self, b: usize) -> [*const u8; N] {
        std::array::from_fn(|n| self.ahead.unwrap_or(&self.at)[b + n])
    }
}

/// Fetches `bytes` bytes from `at` on to the second-level cache.
#[inline(always)]
pub(in crate::cpu) fn fetch(at: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(LINE) {
        // SAFETY: x86-64 has it; a hint, which may point anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line).cast()) };
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

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
        let is_first = range.start == 0;
        for ((query, q), i) in queries.iter_mut().zip(rows.q.iter_mut()).zip(range) {
            // SAFETY: the caller's promise.
            *query = unsafe { self.start::<C>(i / heads, head + i % heads, q) };
        }

        // Positions ascend with the queries: both ends of what they see do.
        let first_tile = queries[0].first / TILE;
        let end = queries[queries.len() - 1].end;
        let last_tile = (end - 1) / TILE;
        // The queries of later passes find in the cache what the first ones met.
        let fetched = if is_first { end } else { 0 };
        if is_first {
            let base = first_tile * TILE;
            let blocks = (queries[0].first - base) / KV_BLOCK
                ..(end.min(base + TILE) - base).div_ceil(KV_BLOCK);
            // SAFETY: the blocks hold positions that a query sees, so they are in the table and the pool.
            let keys = unsafe { self.blocks::<C>(self.args.keys, base, blocks.clone()) };
            for keys in &keys[blocks] {
                fetch(*keys, C::head_bytes(self.dim));
            }
        }
        for tile in first_tile..=last_tile {
            let base = tile * TILE;
            let from = queries.partition_point(|q| q.end <= base);
            let to = queries.partition_point(|q| q.first < base + TILE);
            if from < to {
                // SAFETY: these queries see positions of the tile, and others all up to `end`: the caller promises the blocks.
                unsafe { self.tile(&mut queries[from..to], from, base, rows, fetched) };
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

    /// One tile for the queries that see a position of it; `from` is the first one's index in `rows`. What is met next is fetched
    /// meanwhile, of positions below `fetched`.
    ///
    /// # Safety
    /// Every query sees a position of the tile, and table and pools hold what they see, and positions of tiles behind it below `fetched`.
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn tile<C: Cache>(
        &self,
        queries: &mut [Query],
        from: usize,
        base: usize,
        rows: &mut Rows<C>,
        fetched: usize,
    ) {
        let last = queries.len() - 1;
        let range = (queries[0].seen(base).start - base) / KV_BLOCK
            ..(queries[last].seen(base).end - base).div_ceil(KV_BLOCK);
        let next = base + TILE;
        // SAFETY: the blocks hold positions that a query sees, or below `fetched`, so they are in the table and the pools.
        let (keys, values, next_keys) = unsafe {
            let keys = self.blocks::<C>(self.args.keys, base, range.clone());
            let values = self.blocks::<C>(self.args.values, base, range.clone());
            let next_keys = (next < fetched).then(|| {
                let blocks = (fetched.min(next + TILE) - next).div_ceil(KV_BLOCK);
                self.blocks::<C>(self.args.keys, next, 0..blocks)
            });
            (keys, values, next_keys)
        };
        let mut keys = Blocks {
            at: keys,
            range: range.clone(),
            ahead: (fetched > 0).then_some(&values),
        };
        let mut values = Blocks {
            at: values,
            range,
            ahead: next_keys.as_ref(),
        };

        let q = &rows.q[from..][..queries.len()];
        let p = &mut rows.p[from..][..queries.len()];
        for (q, p) in q.chunks(QUERIES).zip(p.chunks_mut(QUERIES)) {
            // SAFETY: the blocks of keys are those of the tile.
            unsafe { C::scores(self.dim, q, p, &keys) };
            keys.ahead = None;
        }
        // SAFETY: a row each.
        let corrections = unsafe { C::softmax(queries, base, p) };
        let few = queries.chunks(QUERIES).zip(p.chunks(QUERIES));
        for ((queries, p), corrections) in few.zip(corrections.0.chunks(QUERIES)) {
            let corrections = &corrections[..queries.len()];
            // SAFETY: the blocks of values are those of the tile, and hold what the queries see.
            unsafe { C::add_values(self.dim, queries, p, corrections, &values, base) };
            values.ahead = None;
        }
    }

    /// Where the head's keys, or values, are in some blocks of the tile at position `base`; of the others nothing that may be read.
    ///
    /// # Safety
    /// `pool` is that of keys or of values, and the table has the blocks.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn blocks<C: Cache>(
        &self,
        pool: *const u8,
        base: usize,
        blocks: Range<usize>,
    ) -> [*const u8; BLOCKS] {
        let mut at = [pool; BLOCKS];
        let head = self.kv_head * C::head_bytes(self.dim);
        for b in blocks {
            // SAFETY: the caller's promise.
            unsafe {
                let block = *self.args.table.add(base / KV_BLOCK + b) as usize;
                at[b] = pool.add(block * self.args.block_stride as usize + head);
            }
        }
        at
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
