//! Q8K activation rows (`bundle_format::plan::DType::Q8K`): quantisation and back.

use bundle_format::plan::{
    DType, Q8_BLOCK, Q8K_BLOCK, q8k_bounds_offset, q8k_sums_offset, quants_bytes, row_bytes,
};

/// A quantised block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q8KBlock {
    pub quants: [i8; Q8K_BLOCK],
    /// amax / 127
    pub scale: f32,
    /// Of each 32 quants.
    pub sums: [i16; Q8K_BLOCK / Q8_BLOCK],
    /// How large sums of products get: of 32, and of 16 ([`DType::Q8K`]).
    pub bounds: [i16; 2],
}

/// Quantises 256 values. A block whose largest magnitude is too small for `127 / amax` to be finite (below 4e-37) gets
/// saturated quants: it means nothing to a model, and every backend may differ there.
pub fn quantise_block(x: &[f32; Q8K_BLOCK]) -> Q8KBlock {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let (scale, inverse) = match amax {
        0.0 => (0.0, 0.0),
        amax => (amax / 127.0, 127.0 / amax),
    };
    let quants = x.map(|x| (x * inverse).round_ties_even() as i8);
    let mut sums = [0; Q8K_BLOCK / Q8_BLOCK];
    for (sum, quants) in sums.iter_mut().zip(quants.as_chunks::<Q8_BLOCK>().0) {
        *sum = quants.iter().map(|q| i16::from(*q)).sum();
    }
    Q8KBlock {
        quants,
        scale,
        sums,
        bounds: bounds(&quants),
    }
}

/// The bounds of a block, at most 2 * 32 * 128.
pub fn bounds(quants: &[i8; Q8K_BLOCK]) -> [i16; 2] {
    let magnitudes = |quants: &[i8]| quants.iter().map(|q| i16::from(*q).abs()).sum::<i16>();
    let sum = |quants: &[i8]| quants.iter().map(|q| i16::from(*q)).sum::<i16>();
    let wholes = quants.chunks(32).map(|q| magnitudes(q) + sum(q).abs());
    let halves = quants.chunks(16).map(magnitudes);
    [wholes.max().unwrap_or(0), halves.max().unwrap_or(0)]
}

/// Writes a block at column `col` (a multiple of 256) of a Q8K row of `cols` columns.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn write_block(row: &mut [u8], cols: usize, col: usize, block: &Q8KBlock) {
    for (out, q) in row[col..][..Q8K_BLOCK].iter_mut().zip(block.quants) {
        *out = q as u8;
    }
    let scale_at = scale_at(cols, col);
    row[scale_at..][..4].copy_from_slice(&block.scale.to_le_bytes());
    let sums = &mut row[sum_at(cols, col)..][..2 * block.sums.len()];
    for (out, sum) in sums.as_chunks_mut().0.iter_mut().zip(block.sums) {
        *out = sum.to_le_bytes();
    }
    let bounds = &mut row[bounds_at(cols, col)..][..4];
    for (out, bound) in bounds.as_chunks_mut().0.iter_mut().zip(block.bounds) {
        *out = bound.to_le_bytes();
    }
}

/// Where the scale of column `col` of a row of `cols` columns is.
fn scale_at(cols: usize, col: usize) -> usize {
    quants_bytes(DType::Q8K, cols as u32) as usize + 4 * (col / Q8K_BLOCK)
}

/// Where the sum is that column `col` of a row of `cols` columns is in.
fn sum_at(cols: usize, col: usize) -> usize {
    q8k_sums_offset(cols as u32) as usize + 2 * (col / Q8_BLOCK)
}

/// Where the bounds of the block of column `col` are.
fn bounds_at(cols: usize, col: usize) -> usize {
    q8k_bounds_offset(cols as u32) as usize + 4 * (col / Q8K_BLOCK)
}

/// Quantises a row. `out` has the bytes of a Q8K row of `x.len()` columns; padding is left as it is.
///
/// # Panics
/// Where `x` is not whole blocks or `out` has another length.
pub fn quantise_row(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len() as u64, row_bytes(DType::Q8K, x.len() as u32));
    let (blocks, rest) = x.as_chunks::<Q8K_BLOCK>();
    assert!(rest.is_empty(), "a Q8K row is whole blocks");
    for (b, block) in blocks.iter().enumerate() {
        write_block(out, x.len(), b * Q8K_BLOCK, &quantise_block(block));
    }
}

/// The values that a Q8K row of `out.len()` columns stands for: quant times scale.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn dequantise_row(row: &[u8], out: &mut [f32]) {
    let cols = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        *out = row[i] as i8 as f32 * crate::quant::f32_at(row, scale_at(cols, i));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_plan() {
        let x: Vec<f32> = (0..512)
            .map(|i| if i < 256 { i as f32 - 127.5 } else { 0.0 })
            .collect();
        let mut row = vec![0xee; row_bytes(DType::Q8K, 512) as usize];
        quantise_row(&x, &mut row);
        assert_eq!((row[0] as i8, row[255] as i8, row[300]), (-127, 127, 0));
        let scale = crate::quant::f32_at(&row, 512);
        assert_eq!(scale, 127.5 / 127.0);
        assert_eq!(crate::quant::f32_at(&row, 516), 0.0);
        for b in 0..16 {
            let quants = row[b * 32..][..32].iter().map(|q| i16::from(*q as i8));
            let at = 512 + 8 + 2 * b;
            let sum = i16::from_le_bytes([row[at], row[at + 1]]);
            assert_eq!(sum, quants.sum::<i16>(), "sum {b}");
        }
        let bound = |i: usize| i16::from_le_bytes([row[552 + 2 * i], row[553 + 2 * i]]);
        // The first 32 quants are -127, -126, .., -96, as is what their sum is; the next block is zero.
        let first: i16 = (96..=127).sum();
        assert_eq!([bound(0), bound(2), bound(3)], [2 * first, 0, 0]);
        assert_eq!(bound(1), (112..=127).sum::<i16>());
        assert_eq!(row[552 + 8], 0xee, "nothing behind the bounds");
        let mut back = vec![f32::NAN; 512];
        dequantise_row(&row, &mut back);
        for (x, y) in x.iter().zip(back) {
            assert!((x - y).abs() <= scale * 0.5001);
        }
    }

    #[test]
    fn ties_go_to_even() {
        let mut x = [0.0; 256];
        x[255] = 127.0;
        x[1] = 0.5;
        x[2] = 1.5;
        x[3] = -2.5;
        assert_eq!(quantise_block(&x).quants[..4], [0, 0, 2, -2]);
    }
}
