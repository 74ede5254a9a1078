//! Q14 activation rows (`bundle_format::plan::DType::Q14`): quantisation and back.

use bundle_format::plan::{DType, Q8_BLOCK, row_bytes};

use super::q11::{self, Q11Block};

/// The largest quant.
const MAX: f32 = 8191.0;

/// Quantises 32 values. A block whose largest magnitude is too small for `8191 / amax` to be finite (below 3e-35) gets
/// saturated quants: it means nothing to a model, and every backend may differ there.
pub fn quantise_block(x: &[f32; Q8_BLOCK]) -> Q11Block {
    q11::block_of(x, MAX)
}

/// Writes a block at column `col` (a multiple of 32) of a Q14 row of `cols` columns.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn write_block(row: &mut [u8], cols: usize, col: usize, block: &Q11Block) {
    let quants = &mut row[2 * col..][..2 * Q8_BLOCK];
    for (out, q) in quants.as_chunks_mut().0.iter_mut().zip(block.quants) {
        *out = q.to_le_bytes();
    }
    q11::write_factors(row, cols, col, block);
}

/// The quant of column `col` of a row.
///
/// # Panics
/// Where the row is shorter.
pub fn quant(row: &[u8], col: usize) -> i32 {
    i32::from(i16::from_le_bytes([row[2 * col], row[2 * col + 1]]))
}

/// Quantises a row. `out` has the bytes of a Q14 row of `x.len()` columns; padding is left as it is.
///
/// # Panics
/// Where `x` is not whole blocks or `out` has another length.
pub fn quantise_row(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len() as u64, row_bytes(DType::Q14, x.len() as u32));
    let (blocks, rest) = x.as_chunks::<Q8_BLOCK>();
    assert!(rest.is_empty(), "a Q14 row is whole blocks");
    for (b, block) in blocks.iter().enumerate() {
        write_block(out, x.len(), b * Q8_BLOCK, &quantise_block(block));
    }
}

/// The values that a Q14 row of `out.len()` columns stands for: quant times scale.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn dequantise_row(row: &[u8], out: &mut [f32]) {
    let cols = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        let scale = crate::quant::f32_at(row, q11::scale_at(cols, i / Q8_BLOCK));
        *out = quant(row, i) as f32 * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::q11::tests::{check_row, check_ties};

    #[test]
    fn rows_follow_the_plan() {
        let row = check_row(
            DType::Q14,
            MAX,
            quantise_block,
            quantise_row,
            dequantise_row,
        );
        assert_eq!((quant(&row, 0), quant(&row, 31)), (-8191, 8191));
        // 0.5 / 15.5 of 8191 is 264.2; in two bytes, the lower one first.
        assert_eq!((quant(&row, 15), quant(&row, 16)), (-264, 264));
        assert_eq!(row[32..34], [8, 1]);
    }

    #[test]
    fn ties_go_to_even_and_tiny_blocks_saturate() {
        check_ties(MAX, quantise_block);
    }
}
