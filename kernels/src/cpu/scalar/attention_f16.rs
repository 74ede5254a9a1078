//! Attention over paged f16 pools.

use std::ops::Range;

use bundle_format::plan::KV_BLOCK;
use half::f16;

use super::attention::{Cache, Pools, attend};
use crate::abi::AttentionArgs;
use crate::cpu::{MAX_HEAD_DIM, TILE};

/// Attention with f16 keys and values.
///
/// # Safety
/// `q` and `out` have `tokens` rows that hold the heads of the call; `table` has the blocks of positions up to the last
/// token's, and the pools those blocks. `head_dim` is a multiple of 8 up to [`MAX_HEAD_DIM`].
pub unsafe fn attention_f16(args: &AttentionArgs) {
    // SAFETY: the caller's promise.
    unsafe { attend::<F16>(args) }
}

struct F16;

impl Cache for F16 {
    type Query = [f32; MAX_HEAD_DIM];

    fn query(scaled: &[f32]) -> Self::Query {
        let mut query = [0.0; MAX_HEAD_DIM];
        query[..scaled.len()].copy_from_slice(scaled);
        query
    }

    unsafe fn score(pools: &Pools<'_>, position: usize, q: &Self::Query) -> f32 {
        let mut score = 0.0f32;
        for (d, q) in q[..pools.head_dim()].iter().enumerate() {
            let index = (pools.kv_head * pools.head_dim() + d) * KV_BLOCK + position % KV_BLOCK;
            // SAFETY: the caller's promise; the index lies in the block.
            let key = unsafe { element(pools.block(pools.args.keys, position), index) };
            score = q.mul_add(key, score);
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
        for position in seen {
            let p = p[position - base];
            for (d, out) in out.iter_mut().enumerate() {
                let row = pools.kv_head * KV_BLOCK + position % KV_BLOCK;
                let index = row * pools.head_dim() + d;
                // SAFETY: the caller's promise; the index lies in the block.
                let value = unsafe { element(pools.block(pools.args.values, position), index) };
                *out = p.mul_add(value, *out);
            }
        }
    }
}

/// Element `index` of a block.
///
/// # Safety
/// The block has it.
unsafe fn element(block: *const u8, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    let bits = unsafe { block.cast::<u16>().add(index).read_unaligned() };
    f16::from_bits(bits).to_f32()
}
