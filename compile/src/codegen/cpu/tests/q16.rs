//! `bundle_format::plan::DType::Q16`, one element at a time.

use bundle_format::plan::{DType, Q8_BLOCK, quants_bytes};

pub struct Block {
    quants: [i32; Q8_BLOCK],
    scale: f32,
}

pub fn quantise_block(x: &[f32; Q8_BLOCK]) -> Block {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if amax == 0.0 {
        return Block {
            quants: [0; Q8_BLOCK],
            scale: 0.0,
        };
    }
    let inverse = 16256.0 / amax;
    Block {
        quants: x.map(|x| (x * inverse).round_ties_even() as i32),
        scale: amax / 16256.0,
    }
}

/// Writes a block at column `col` of a row of `cols` columns.
pub fn write_block(row: &mut [u8], cols: usize, col: usize, block: &Block) {
    for (i, q) in block.quants.into_iter().enumerate() {
        let high = (q.saturating_add(64)) >> 7;
        row[col + i] = high as u8;
        row[cols + col + i] = q.wrapping_sub(high << 7) as u8;
    }
    let scales = quants_bytes(DType::Q16, cols as u32) as usize + col / 8;
    row[scales..][..4].copy_from_slice(&block.scale.to_le_bytes());
    let total: i32 = block.quants.iter().fold(0, |sum, q| sum.wrapping_add(*q));
    let sum = block.scale * total as f32;
    row[scales + cols / 8..][..4].copy_from_slice(&sum.to_le_bytes());
}
