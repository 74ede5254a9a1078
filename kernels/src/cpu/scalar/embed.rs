//! Rows of a packed embedding table.

use std::slice;

use bundle_format::plan::{Encoding, WeightLayout};

use crate::abi::EmbedArgs;
use crate::pack::{GROUP, packed_block_bytes, pairs, unpack_block};
use crate::quant::{BLOCK, block_elements};

macro_rules! embed_of {
    ($($name:ident: $encoding:ident $($layout:ident)?,)*) => {$(
        /// Looks up and dequantises packed rows.
        ///
        /// # Safety
        /// As [`embed`].
        pub unsafe fn $name(args: &EmbedArgs) {
            // SAFETY: the caller's promise.
            unsafe { embed(args, embed_table!($encoding $($layout)?)) }
        }
    )*};
}

each_embed! { embed_of! }

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// `tokens` has `rows` elements, each a row of the packed table `w` of `k` columns; every row of `out` has `k` elements.
#[inline(always)]
pub unsafe fn embed(args: &EmbedArgs, (encoding, layout): (Encoding, WeightLayout)) {
    let (rows, k) = (args.rows as usize, args.k as usize);
    let (elements, packed_block) = match layout {
        WeightLayout::Pairs8 => (BLOCK, pairs::BLOCK_BYTES),
        _ => (block_elements(encoding), packed_block_bytes(encoding)),
    };
    let blocks = k / elements;
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
        let outs = out.chunks_exact_mut(elements);
        for (block, out) in packed.chunks_exact(packed_block).zip(outs) {
            match (layout, out.as_chunks_mut().0) {
                (WeightLayout::Pairs8, [out]) => pairs::unpack_block(encoding, block, r, out),
                _ => unpack_block(encoding, block, r, out),
            }
            for x in out {
                *x *= args.scale;
            }
        }
    }
}
