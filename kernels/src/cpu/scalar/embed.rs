//! Rows of a packed embedding table.

use std::slice;

use bundle_format::plan::Encoding;
use half::f16;

use crate::abi::EmbedArgs;
use crate::pack::GROUP;
use crate::quant::{BLOCK, block_bytes, block_elements};

macro_rules! embed_of {
    ($($name:ident: $encoding:ident,)*) => {$(
        /// Looks up and dequantises packed rows.
        ///
        /// # Safety
        /// As [`embed`].
        pub unsafe fn $name(args: &EmbedArgs) {
            // SAFETY: the caller's promise.
            unsafe { embed(args, Encoding::$encoding) }
        }
    )*};
}

embed_of! {
    embed_f32: F32,
    embed_f16: F16,
    embed_q4_0: Q4_0,
    embed_q4_1: Q4_1,
    embed_q8_0: Q8_0,
}

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// `tokens` has `rows` elements, each a row of the packed table `w` of `k` columns; every row of `out` has `k` elements.
#[inline(always)]
pub unsafe fn embed(args: &EmbedArgs, encoding: Encoding) {
    let (rows, k) = (args.rows as usize, args.k as usize);
    let blocks = k / block_elements(encoding);
    let packed_block = block_bytes(encoding) * GROUP;
    // SAFETY: the caller promises `rows` tokens.
    let tokens = unsafe { slice::from_raw_parts(args.tokens, rows) };
    for (i, token) in tokens.iter().enumerate() {
        let (group, r) = (*token as usize / GROUP, *token as usize % GROUP);
        // SAFETY: the token is a row of the table, whose groups are `blocks` packed blocks, and the output row has k
        // elements.
        let (packed, out) = unsafe {
            (
                slice::from_raw_parts(
                    args.w.add(group * blocks * packed_block),
                    blocks * packed_block,
                ),
                slice::from_raw_parts_mut(args.out.add(i * args.out_stride as usize), k),
            )
        };
        let outs = out.chunks_exact_mut(block_elements(encoding));
        for (block, out) in packed.chunks_exact(packed_block).zip(outs) {
            embed_block(encoding, block, r, args.scale, out);
        }
    }
}

/// Row `r` of one packed block.
#[inline(always)]
fn embed_block(encoding: Encoding, block: &[u8], r: usize, scale: f32, out: &mut [f32]) {
    match encoding {
        Encoding::F32 => {
            let word = |i: usize| block[4 * r + i];
            out[0] = f32::from_le_bytes([word(0), word(1), word(2), word(3)]) * scale;
        }
        Encoding::F16 => out[0] = half_at(block, r) * scale,
        Encoding::Q4_0 => {
            let d = half_at(block, r);
            nibbles(&block[16..], r, out, |q| d * (q as f32 - 8.0) * scale);
        }
        Encoding::Q4_1 => {
            let (d, m) = (half_at(block, r), half_at(block, GROUP + r));
            nibbles(&block[32..], r, out, |q| (d * q as f32 + m) * scale);
        }
        Encoding::Q8_0 => {
            let d = half_at(block, r);
            for (word, out) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(4)) {
                for (q, out) in word[4 * r..4 * r + 4].iter().zip(out) {
                    *out = d * *q as i8 as f32 * scale;
                }
            }
        }
    }
}

#[inline(always)]
fn half_at(block: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([block[2 * index], block[2 * index + 1]]).to_f32()
}

#[inline(always)]
fn nibbles(vectors: &[u8], r: usize, out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
        let byte = vectors[i / 4 * 32 + 4 * r + i % 4];
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}
