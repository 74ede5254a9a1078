//! Q8 activation rows (`bundle_format::plan::DType::Q8`): quantisation and back.

use bundle_format::plan::{DType, Q8_BLOCK, q8_scales_offset, q8_sums_offset, row_bytes};

/// A quantised block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q8Block {
    pub quants: [i8; Q8_BLOCK],
    /// amax / 127
    pub scale: f32,
    /// The scale times the sum of the quants.
    pub sum: f32,
}

/// Quantises 32 values. A block whose largest magnitude is too small for `127 / amax` to be finite (below 4e-37) gets
/// saturated quants: it means nothing to a model, and every backend may differ there.
pub fn quantise_block(x: &[f32; Q8_BLOCK]) -> Q8Block {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if amax == 0.0 {
        return Q8Block {
            quants: [0; Q8_BLOCK],
            scale: 0.0,
            sum: 0.0,
        };
    }
    let scale = amax / 127.0;
    let inverse = 127.0 / amax;
    let quants = x.map(|x| (x * inverse).round_ties_even() as i8);
    let sum: i32 = quants.iter().map(|q| i32::from(*q)).sum();
    Q8Block {
        quants,
        scale,
        sum: scale * sum as f32,
    }
}

/// Writes a block at column `col` (a multiple of 32) of a Q8 row of `cols` columns.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn write_block(row: &mut [u8], cols: usize, col: usize, block: &Q8Block) {
    let b = col / Q8_BLOCK;
    for (out, q) in row[col..][..Q8_BLOCK].iter_mut().zip(block.quants) {
        *out = q as u8;
    }
    let scales = q8_scales_offset(cols as u32) as usize;
    row[scales + b * 4..][..4].copy_from_slice(&block.scale.to_le_bytes());
    let sums = q8_sums_offset(cols as u32) as usize;
    row[sums + b * 4..][..4].copy_from_slice(&block.sum.to_le_bytes());
}

/// Quantises a row. `out` has the bytes of a Q8 row of `x.len()` columns; padding is left as it is.
///
/// # Panics
/// Where `x` is not whole blocks or `out` has another length.
pub fn quantise_row(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len() as u64, row_bytes(DType::Q8, x.len() as u32));
    let (blocks, rest) = x.as_chunks::<Q8_BLOCK>();
    assert!(rest.is_empty(), "a Q8 row is whole blocks");
    for (b, block) in blocks.iter().enumerate() {
        write_block(out, x.len(), b * Q8_BLOCK, &quantise_block(block));
    }
}

/// The values that a Q8 row of `out.len()` columns stands for: quant times scale.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn dequantise_row(row: &[u8], out: &mut [f32]) {
    let scales = q8_scales_offset(out.len() as u32) as usize;
    for (i, out) in out.iter_mut().enumerate() {
        let scale = crate::quant::f32_at(row, scales + i / Q8_BLOCK * 4);
        *out = row[i] as i8 as f32 * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_plan() {
        let x: Vec<f32> = (0..64)
            .map(|i| if i < 32 { i as f32 - 15.5 } else { 0.0 })
            .collect();
        let mut row = vec![0xee; row_bytes(DType::Q8, 64) as usize];
        quantise_row(&x, &mut row);
        assert_eq!((row[0] as i8, row[31] as i8, row[40]), (-127, 127, 0));
        let block = quantise_block(x[..32].try_into().unwrap());
        assert_eq!(block.scale, 15.5 / 127.0);
        let sum: i32 = block.quants.iter().map(|q| i32::from(*q)).sum();
        assert_eq!(block.sum, block.scale * sum as f32);
        let mut back = vec![f32::NAN; 64];
        dequantise_row(&row, &mut back);
        for (x, y) in x.iter().zip(back) {
            assert!((x - y).abs() <= block.scale * 0.5001);
        }
    }

    #[test]
    fn ties_go_to_even() {
        let mut x = [0.0; 32];
        x[0] = 127.0;
        x[1] = 0.5;
        x[2] = 1.5;
        x[3] = -2.5;
        assert_eq!(quantise_block(&x).quants[..4], [127, 0, 2, -2]);
    }
}
