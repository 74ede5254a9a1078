//! Attention over paged Q8_0 pools.

use std::ops::Range;
use std::slice;

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};
use half::f16;

use super::attention::{Cache, Pools, attend};
use crate::abi::AttentionArgs;
use crate::cpu::{LEAST, MAX_HEAD_DIM, TILE};

/// What a magnitude of amax is quantised to.
const LEVELS: f32 = 16256.0;

/// Attention with Q8_0 keys and values.
///
/// # Safety
/// As for [`super::attention_f16`], with Q8_0 pools; `head_dim` is a multiple of 32.
pub unsafe fn attention_q8_0(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<Q8_0>(args) }
}

struct Q8_0;

/// A query in 15 bits: quants, and a scale for each 32 of them.
struct Query {
    quants: [i32; MAX_HEAD_DIM],
    scales: [f32; MAX_HEAD_DIM / Q8_BLOCK],
}

impl Cache for Q8_0 {
    type Query = Query;

    fn query(scaled: &[f32]) -> Query {
        let mut query = Query {
            quants: [0; MAX_HEAD_DIM],
            scales: [0.0; MAX_HEAD_DIM / Q8_BLOCK],
        };
        let blocks = scaled.chunks_exact(Q8_BLOCK);
        let quants = query.quants.chunks_exact_mut(Q8_BLOCK);
        for ((x, quants), scale) in blocks.zip(quants).zip(&mut query.scales) {
            *scale = quantise(x, quants);
        }
        query
    }

    unsafe fn score(pools: &Pools<'_>, position: usize, q: &Query) -> f32 {
        // SAFETY: the caller's promise.
        let keys = unsafe { head(pools, pools.args.keys, position) };
        let at = position % KV_BLOCK;
        let mut score = 0.0f32;
        for (b, q_scale) in q.scales[..pools.head_dim() / Q8_BLOCK].iter().enumerate() {
            let mut sum = 0;
            for d in b * Q8_BLOCK..(b + 1) * Q8_BLOCK {
                let key = keys[(d / 2 * KV_BLOCK + at) * 2 + d % 2] as i8;
                sum += q.quants[d] * i32::from(key);
            }
            let scale = q_scale * scale(pools, keys, b, at);
            score = (sum as f32).mul_add(scale, score);
        }
        score
    }

    unsafe fn add_values(
        pools: &Pools<'_>,
        seen: Range<usize>,
        p: &[f32; TILE],
        base: usize,
        out: &mut [f32],
    ) {
        let dim = out.len();
        for (b, out) in out.chunks_exact_mut(Q8_BLOCK).enumerate() {
            let mut weights = [0.0; TILE];
            for position in seen.clone() {
                let p = p[position - base];
                if p > 0.0 {
                    // SAFETY: the caller's promise.
                    let values = unsafe { head(pools, pools.args.values, position) };
                    weights[position - base] = p * scale(pools, values, b, position % KV_BLOCK);
                }
            }
            let mut quants = [0; TILE];
            let scale = quantise(&weights, &mut quants);
            for (i, out) in out.iter_mut().enumerate() {
                let d = b * Q8_BLOCK + i;
                let mut sum = 0;
                for position in seen.clone() {
                    // SAFETY: the caller's promise.
                    let values = unsafe { head(pools, pools.args.values, position) };
                    let at = position % KV_BLOCK;
                    let value = values[(at / 2 * dim + d) * 2 + at % 2] as i8;
                    sum += quants[position - base] * i32::from(value);
                }
                *out = (sum as f32).mul_add(scale, *out);
            }
        }
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

/// The head's part of a position's block.
///
/// # Safety
/// The position is in the table and its block in the pool.
unsafe fn head<'a>(pools: &Pools<'a>, pool: *const u8, position: usize) -> &'a [u8] {
    let len = KvDType::Q8_0.head_bytes(pools.args.head_dim as u32) as usize;
    // SAFETY: the caller's promise.
    unsafe {
        let block = pools.block(pool, position);
        slice::from_raw_parts(block.add(pools.kv_head * len), len)
    }
}

/// The scale of 32 dimensions at a position of a head's block.
fn scale(pools: &Pools<'_>, head: &[u8], block: usize, position: usize) -> f32 {
    let quants = pools.head_dim() * KV_BLOCK;
    let at = quants + (block * KV_BLOCK + position) * 2;
    f16::from_le_bytes([head[at], head[at + 1]]).to_f32()
}
