//! Rows of a packed embedding table.

use std::slice;

use bundle_format::plan::Encoding;

use crate::abi::EmbedArgs;
use crate::pack::{GROUP, packed_block_bytes, pairs, unpack_block};
use crate::quant::{BLOCK, block_elements};

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

each_embed! { embed_of! }

/// Looks up and dequantises rows of pairs.
///
/// # Safety
/// As [`embed`].
pub unsafe fn embed_pairs(args: &EmbedArgs) {
    // SAFETY: the caller's promise.
    unsafe { embed_of_pairs(args) }
}

/// The body, which other levels inline.
///
/// # Safety
/// As [`embed`].
#[inline(always)]
pub unsafe fn embed_of_pairs(args: &EmbedArgs) {
    let group_bytes = pairs::bytes_of_group(args.k as usize / BLOCK);
    // SAFETY: the caller's promise.
    unsafe { each_row(args, group_bytes, pairs::unpack_group) }
}

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// `tokens` has `rows` elements, each a row of the packed table `w` of `k` columns; every row of `out` has `k` elements.
#[inline(always)]
pub unsafe fn embed(args: &EmbedArgs, encoding: Encoding) {
    let (elements, bytes) = (block_elements(encoding), packed_block_bytes(encoding));
    let group_bytes = args.k as usize / elements * bytes;
    // SAFETY: the caller's promise.
    unsafe {
        each_row(args, group_bytes, |group, r, out| {
            let outs = out.chunks_exact_mut(elements);
            for (block, out) in group.chunks_exact(bytes).zip(outs) {
                unpack_block(encoding, block, r, out);
            }
        })
    }
}

/// Each token's row: `unpack` writes row r of a group.
///
/// # Safety
/// As [`embed`].
#[inline(always)]
unsafe fn each_row(
    args: &EmbedArgs,
    group_bytes: usize,
    unpack: impl Fn(&[u8], usize, &mut [f32]),
) {
    let (rows, k) = (args.rows as usize, args.k as usize);
    // SAFETY: the caller promises `rows` tokens.
    let tokens = unsafe { slice::from_raw_parts(args.tokens, rows) };
    for (i, token) in tokens.iter().enumerate() {
        let (group, r) = (*token as usize / GROUP, *token as usize % GROUP);
        // SAFETY: the token is a row of the table, whose groups have so many bytes, and the output row has k elements.
        let (group, out) = unsafe {
            (
                slice::from_raw_parts(args.w.add(group * group_bytes), group_bytes),
                slice::from_raw_parts_mut(args.out.add(i * args.out_stride as usize), k),
            )
        };
        unpack(group, r, out);
        for x in out {
            *x *= args.scale;
        }
    }
}
