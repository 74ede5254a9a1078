//! Attention over paged pools, a query at a time: what is the same for every type of pools. A [`Cache`] says how keys and
//! values of its type are multiplied.

use std::ops::Range;
use std::slice;

use bundle_format::plan::KV_BLOCK;

use crate::abi::AttentionArgs;
use crate::cpu::math::{exp, sum_tile};
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Pools of a type.
///
/// # Safety
/// Positions that the functions are given are in the table of `pools`, and their blocks in its pools.
pub(super) trait Cache {
    /// A scaled query, as its products with keys take it.
    type Query;

    fn query(scaled: &[f32]) -> Self::Query;

    /// The product of a query with the key at `position`.
    unsafe fn score(pools: &Pools<'_>, position: usize, q: &Self::Query) -> f32;

    /// Adds to `out` the values at positions `seen`, weighted with `p`, whose first element is of position `base`.
    unsafe fn add_values(
        pools: &Pools<'_>,
        seen: Range<usize>,
        p: &[f32; TILE],
        base: usize,
        out: &mut [f32],
    );
}

/// One KV head of a call.
pub(super) struct Pools<'a> {
    pub args: &'a AttentionArgs,
    pub kv_head: usize,
}

impl Pools<'_> {
    pub fn head_dim(&self) -> usize {
        self.args.head_dim as usize
    }

    /// Where a position's block starts in a pool.
    ///
    /// # Safety
    /// The position is in the table and its block in the pool.
    pub unsafe fn block(&self, pool: *const u8, position: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let block = *self.args.table.add(position / KV_BLOCK) as usize;
            pool.add(block * self.args.block_stride as usize)
        }
    }
}

/// Attention over pools of a type.
///
/// # Safety
/// `q` and `out` have `tokens` rows that hold the heads of the call; `table` has the blocks of positions up to the last
/// token's, and the pools those blocks. `head_dim` is a multiple of 8 up to [`MAX_HEAD_DIM`], and one that C takes.
pub(super) unsafe fn attend<C: Cache>(args: &AttentionArgs) {
    let dim = args.head_dim as usize;
    for token in 0..args.tokens as usize {
        for i in 0..args.heads as usize {
            let head = args.head0 as usize + i;
            // SAFETY: the caller promises these heads of `q` and `out`.
            let (q, out) = unsafe {
                (
                    slice::from_raw_parts(
                        args.q.add(token * args.q_stride as usize + head * dim),
                        dim,
                    ),
                    slice::from_raw_parts_mut(
                        args.out.add(token * args.out_stride as usize + i * dim),
                        dim,
                    ),
                )
            };
            let kv_head = head / args.group_size as usize;
            let pools = Pools { args, kv_head };
            // SAFETY: the caller's promise on pools and table, for positions up to this one.
            unsafe { query::<C>(&pools, args.position as usize + token, q, out) };
        }
    }
}

/// # Safety
/// The table and pools hold positions up to `position`.
unsafe fn query<C: Cache>(pools: &Pools<'_>, position: usize, q: &[f32], out: &mut [f32]) {
    let mut scaled = [0.0; MAX_HEAD_DIM];
    for (scaled, q) in scaled.iter_mut().zip(q) {
        *scaled = q * pools.args.scale;
    }
    let query = C::query(&scaled[..q.len()]);
    let first = match usize::try_from(pools.args.window) {
        Ok(window) => (position + 1).saturating_sub(window),
        Err(_) => 0,
    };
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);

    for tile in first / TILE..=position / TILE {
        let base = tile * TILE;
        let seen = first.max(base)..(position + 1).min(base + TILE);
        let mut p = [f32::NEG_INFINITY; TILE];
        for position in seen.clone() {
            // SAFETY: the position is seen, so it is in table and pool.
            p[position - base] = unsafe { C::score(pools, position, &query) };
        }
        let new_max = maximum(max, &p[seen.start - base..seen.end - base]);
        let correction = exp(max - new_max);
        for p in &mut p {
            *p = exp(*p - new_max);
        }
        sum = sum.mul_add(correction, sum_tile(&p));
        max = new_max;
        for out in out.iter_mut() {
            *out *= correction;
        }
        // SAFETY: as above.
        unsafe { C::add_values(pools, seen, &p, base, out) };
    }

    let inverse = 1.0 / sum;
    for out in out {
        *out *= inverse;
    }
}

fn maximum(first: f32, scores: &[f32]) -> f32 {
    scores
        .iter()
        .fold(first, |max, s| if *s > max { *s } else { max })
}
