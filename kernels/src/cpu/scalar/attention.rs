//! Attention over paged f16 pools, a query at a time.

use std::ops::Range;
use std::slice;

use bundle_format::plan::KV_BLOCK;
use half::f16;

use crate::abi::AttentionArgs;
use crate::cpu::math::{exp, sum_tile};
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Attention with f16 keys and values.
///
/// # Safety
/// `q` and `out` have `tokens` rows that hold the heads of the call; `table` has the blocks of positions up to the last
/// token's, and the pools those blocks. `head_dim` is a multiple of 8 up to [`MAX_HEAD_DIM`].
pub unsafe fn attention_f16(args: &AttentionArgs) {
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
            // SAFETY: the caller's promise on pools and table, for positions up to this one.
            unsafe { query(args, kv_head, args.position as usize + token, q, out) };
        }
    }
}

/// # Safety
/// The table and pools hold positions up to `position`.
unsafe fn query(args: &AttentionArgs, kv_head: usize, position: usize, q: &[f32], out: &mut [f32]) {
    let dim = q.len();
    let mut scaled = [0.0; MAX_HEAD_DIM];
    for (scaled, q) in scaled.iter_mut().zip(q) {
        *scaled = q * args.scale;
    }
    let first = match usize::try_from(args.window) {
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
            p[position - base] = unsafe { score(args, kv_head, position, &scaled[..dim]) };
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
        unsafe { add_values(args, kv_head, seen, &p, base, out) };
    }

    let inverse = 1.0 / sum;
    for out in out {
        *out *= inverse;
    }
}

pub(super) fn maximum(first: f32, scores: &[f32]) -> f32 {
    scores
        .iter()
        .fold(first, |max, s| if *s > max { *s } else { max })
}

/// # Safety
/// `position` is in the table and its block in the key pool.
unsafe fn score(args: &AttentionArgs, kv_head: usize, position: usize, q: &[f32]) -> f32 {
    let mut score = 0.0f32;
    for (d, q) in q.iter().enumerate() {
        let index = (kv_head * head_dim(args) + d) * KV_BLOCK + position % KV_BLOCK;
        // SAFETY: the caller's promise; the index lies in the block.
        let key = unsafe { element(args, args.keys, position, index) };
        score = q.mul_add(key, score);
    }
    score
}

/// # Safety
/// Positions `seen` are in the table and their blocks in the value pool.
unsafe fn add_values(
    args: &AttentionArgs,
    kv_head: usize,
    seen: Range<usize>,
    p: &[f32; TILE],
    base: usize,
    out: &mut [f32],
) {
    for position in seen {
        let p = p[position - base];
        for (d, out) in out.iter_mut().enumerate() {
            let index = (kv_head * KV_BLOCK + position % KV_BLOCK) * head_dim(args) + d;
            // SAFETY: the caller's promise; the index lies in the block.
            let value = unsafe { element(args, args.values, position, index) };
            *out = p.mul_add(value, *out);
        }
    }
}

fn head_dim(args: &AttentionArgs) -> usize {
    args.head_dim as usize
}

/// Element `index` of a position's block.
///
/// # Safety
/// The position is in the table, its block in the pool, and the index in the block.
unsafe fn element(args: &AttentionArgs, pool: *const u8, position: usize, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    let bits = unsafe {
        let block = *args.table.add(position / KV_BLOCK) as usize;
        let block = pool.add(block * args.block_stride as usize).cast::<u16>();
        block.add(index).read_unaligned()
    };
    f16::from_bits(bits).to_f32()
}
