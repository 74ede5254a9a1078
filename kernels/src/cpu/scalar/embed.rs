//! Rows of a packed embedding table.

use std::slice;

use bundle_format::plan::Encoding;

use crate::abi::EmbedArgs;
use crate::pack::{GROUP, packed_block_bytes, unpack_block};
use crate::quant::block_elements;

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
    embed_bf16: BF16,
    embed_q4_0: Q4_0,
    embed_q4_1: Q4_1,
    embed_q5_0: Q5_0,
    embed_q5_1: Q5_1,
    embed_q8_0: Q8_0,
    embed_q2_k: Q2_K,
    embed_q3_k: Q3_K,
    embed_q4_k: Q4_K,
    embed_q5_k: Q5_K,
    embed_q6_k: Q6_K,
    embed_iq4_nl: IQ4_NL,
    embed_iq4_xs: IQ4_XS,
    embed_mxfp4: MXFP4,
}

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// `tokens` has `rows` elements, each a row of the packed table `w` of `k` columns; every row of `out` has `k` elements.
#[inline(always)]
pub unsafe fn embed(args: &EmbedArgs, encoding: Encoding) {
    let (rows, k) = (args.rows as usize, args.k as usize);
    let blocks = k / block_elements(encoding);
    let packed_block = packed_block_bytes(encoding);
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
            unpack_block(encoding, block, r, out);
            for x in out {
                *x *= args.scale;
            }
        }
    }
}
