//! Attention over paged Q8_0 pools, a query at a time.

use std::ops::Range;
use std::slice;

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};
use half::f16;

use super::attention::maximum;
use crate::abi::AttentionArgs;
use crate::cpu::math::{exp, sum_tile};
use crate::cpu::{LEAST, MAX_HEAD_DIM, TILE};

/// What a magnitude of amax is quantised to.
const LEVELS: f32 = 16256.0;

/// Attention with Q8_0 keys and values.
///
/// # Safety
/// As for [`super::attention_f16`], with Q8_0 pools; `head_dim` is a multiple of 32.
pub unsafe fn attention_q8_0(args: &AttentionArgs) {
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
            unsafe { query(&pools, args.position as usize + token, q, out) };
        }
    }
}

/// # Safety
/// The table and pools hold positions up to `position`.
unsafe fn query(pools: &Pools<'_>, position: usize, q: &[f32], out: &mut [f32]) {
    let args = pools.args;
    let mut scaled = [0.0; MAX_HEAD_DIM];
    for (scaled, q) in scaled.iter_mut().zip(q) {
        *scaled = q * args.scale;
    }
    let mut quants = [0i32; MAX_HEAD_DIM];
    let mut scales = [0.0; MAX_HEAD_DIM / Q8_BLOCK];
    for (b, scale) in scales[..q.len() / Q8_BLOCK].iter_mut().enumerate() {
        let block = b * Q8_BLOCK..(b + 1) * Q8_BLOCK;
        *scale = quantise(&scaled[block.clone()], &mut quants[block]);
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
            p[position - base] =
                unsafe { pools.score(position, &quants[..q.len()], &scales[..q.len() / Q8_BLOCK]) };
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
        unsafe { pools.add_values(seen, &p, base, out) };
    }

    let inverse = 1.0 / sum;
    for out in out {
        *out *= inverse;
    }
}

/// Quantises numbers to 15 bits and gives their scale.
fn quantise(x: &[f32], quants: &mut [i32]) -> f32 {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if amax < LEAST {
        quants.fill(0);
        return 0.0;
    }
    let inverse = LEVELS / amax;
    for (quant, x) in quants.iter_mut().zip(x) {
        *quant = (x * inverse).round_ties_even() as i32;
    }
    amax / LEVELS
}

/// One KV head of a call.
struct Pools<'a> {
    args: &'a AttentionArgs,
    kv_head: usize,
}

impl Pools<'_> {
    /// # Safety
    /// `position` is in the table and its block in the key pool.
    unsafe fn score(&self, position: usize, q: &[i32], q_scales: &[f32]) -> f32 {
        // SAFETY: the caller's promise.
        let keys = unsafe { self.head(self.args.keys, position) };
        let at = position % KV_BLOCK;
        let mut score = 0.0f32;
        for (b, q_scale) in q_scales.iter().enumerate() {
            let mut sum = 0;
            for d in b * Q8_BLOCK..(b + 1) * Q8_BLOCK {
                let key = keys[(d / 2 * KV_BLOCK + at) * 2 + d % 2] as i8;
                sum += q[d] * i32::from(key);
            }
            let scale = q_scale * self.scale(keys, b, at);
            score = (sum as f32).mul_add(scale, score);
        }
        score
    }

    /// # Safety
    /// Positions `seen` are in the table and their blocks in the value pool.
    unsafe fn add_values(&self, seen: Range<usize>, p: &[f32; TILE], base: usize, out: &mut [f32]) {
        let dim = out.len();
        for (b, out) in out.chunks_exact_mut(Q8_BLOCK).enumerate() {
            let mut weights = [0.0; TILE];
            for position in seen.clone() {
                let p = p[position - base];
                if p > 0.0 {
                    // SAFETY: the caller's promise.
                    let values = unsafe { self.head(self.args.values, position) };
                    weights[position - base] = p * self.scale(values, b, position % KV_BLOCK);
                }
            }
            let mut quants = [0; TILE];
            let scale = quantise(&weights, &mut quants);
            for (i, out) in out.iter_mut().enumerate() {
                let d = b * Q8_BLOCK + i;
                let mut sum = 0;
                for position in seen.clone() {
                    // SAFETY: the caller's promise.
                    let values = unsafe { self.head(self.args.values, position) };
                    let at = position % KV_BLOCK;
                    let value = values[(at / 2 * dim + d) * 2 + at % 2] as i8;
                    sum += quants[position - base] * i32::from(value);
                }
                *out = (sum as f32).mul_add(scale, *out);
            }
        }
    }

    /// The head's part of a position's block.
    ///
    /// # Safety
    /// The position is in the table and its block in the pool.
    unsafe fn head(&self, pool: *const u8, position: usize) -> &[u8] {
        let len = KvDType::Q8_0.head_bytes(self.args.head_dim as u32) as usize;
        // SAFETY: the caller's promise.
        unsafe {
            let block = *self.args.table.add(position / KV_BLOCK) as usize;
            let start = block * self.args.block_stride as usize + self.kv_head * len;
            slice::from_raw_parts(pool.add(start), len)
        }
    }

    /// The scale of 32 dimensions at a position of a head's block.
    fn scale(&self, head: &[u8], block: usize, position: usize) -> f32 {
        let quants = self.args.head_dim as usize * KV_BLOCK;
        let at = quants + (block * KV_BLOCK + position) * 2;
        f16::from_le_bytes([head[at], head[at + 1]]).to_f32()
    }
}
