//! Embedding rows: exact.

use bundle_format::plan::{Encoding, WeightLayout};
use kernels::abi::{EmbedArgs, MicroFn};
use kernels::cpu::MicroKernel;
use kernels::quant::{BLOCK, block_elements};
use kernels::reference::{WeightView, embed_row};

use crate::data::{Random, bits, numbers, packed, weight_bytes};

pub fn check(kernel: &MicroKernel, encoding: Encoding, layout: WeightLayout) {
    let MicroFn::Embed(func) = kernel.func else {
        panic!("{} is no embedding", kernel.name)
    };
    let depth = |blocks: usize| blocks * block_elements(encoding).max(BLOCK);
    for (vocab, k) in [
        (1, depth(1)),
        (8, depth(2)),
        (37, depth(5)),
        (100, depth(3)),
    ] {
        for (rows, scale) in [(1, 1.0), (3, 1.0), (70, 0.3), (0, 1.0)] {
            let mut random = Random(vocab as u64 * 71 + rows as u64);
            let table = weight_bytes(&mut random, encoding, vocab, k, false);
            let packed = packed(encoding, layout, vocab, k, &table);
            let table = numbers(encoding, layout, k, &table);
            let mut tokens: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
            if let Some(last) = tokens.last_mut() {
                *last = vocab as u32 - 1;
            }
            let stride = k + 16;
            let mut found = vec![f32::NAN; rows * stride];
            let args = EmbedArgs {
                tokens: tokens.as_ptr(),
                w: packed.as_ptr(),
                out: found.as_mut_ptr(),
                out_stride: stride as u64,
                k: k as u64,
                rows: rows as u64,
                scale,
            };
            // SAFETY: buffers of these sizes, tokens below `vocab`, an available level.
            unsafe { func(&args) };

            let view = WeightView {
                encoding: Encoding::F32,
                layout: WeightLayout::RowMajor,
                pairs: 0,
                rows: vocab,
                cols: k,
                bytes: &table,
            };
            let mut expected = vec![0.0; k];
            for (row, token) in found.chunks_exact(stride).zip(&tokens) {
                embed_row(&view, *token, scale, &mut expected);
                assert_eq!(
                    bits(&row[..k]),
                    bits(&expected),
                    "{} ({}) token {token} of {vocab}, k {k}",
                    kernel.name,
                    kernel.level.name()
                );
                assert!(row[k..].iter().all(|x| x.is_nan()), "written beyond");
            }
        }
    }
}
