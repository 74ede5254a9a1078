//! Q11 activation rows (`bundle_format::plan::DType::Q11`): quantisation and back.

use bundle_format::plan::{DType, Q8_BLOCK, quants_bytes, row_bytes};

/// The largest quant.
const MAX: f32 = 1016.0;

/// A quantised block; of Q14 rows, too, but for how large its quants are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q11Block {
    pub quants: [i16; Q8_BLOCK],
    /// amax / 1016, or 8191
    pub scale: f32,
    /// The scale times the sum of the quants.
    pub sum: f32,
}

/// Quantises 32 values. A block whose largest magnitude is too small for `1016 / amax` to be finite (below 3e-36) gets
/// saturated quants: it means nothing to a model, and every backend may differ there.
pub fn quantise_block(x: &[f32; Q8_BLOCK]) -> Q11Block {
    block_of(x, MAX)
}

/// 32 values as integers of at most `max`, a whole number.
pub(super) fn block_of(x: &[f32; Q8_BLOCK], max: f32) -> Q11Block {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if amax == 0.0 {
        return Q11Block {
            quants: [0; Q8_BLOCK],
            scale: 0.0,
            sum: 0.0,
        };
    }
    let scale = amax / max;
    let inverse = max / amax;
    let quants = x.map(|x| (x * inverse).round_ties_even().clamp(-max, max) as i16);
    let sum: i32 = quants.iter().map(|q| i32::from(*q)).sum();
    Q11Block {
        quants,
        scale,
        sum: scale * sum as f32,
    }
}

/// The bytes of a quant: q = 8 * high + low, low in -4 ..= 3.
pub fn split(q: i16) -> (i8, i8) {
    let high = (q + 4) >> 3;
    (high as i8, (q - 8 * high) as i8)
}

/// Writes a block at column `col` (a multiple of 32) of a Q11 row of `cols` columns.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn write_block(row: &mut [u8], cols: usize, col: usize, block: &Q11Block) {
    let (highs, lows) = row[2 * col..][..2 * Q8_BLOCK].split_at_mut(Q8_BLOCK);
    for ((high, low), q) in highs.iter_mut().zip(lows).zip(block.quants) {
        let bytes = split(q);
        (*high, *low) = (bytes.0 as u8, bytes.1 as u8);
    }
    write_factors(row, cols, col, block);
}

/// Writes a block's scale and sum, which lie behind quants of two bytes.
pub(super) fn write_factors(row: &mut [u8], cols: usize, col: usize, block: &Q11Block) {
    let scale_at = scale_at(cols, col / Q8_BLOCK);
    row[scale_at..][..4].copy_from_slice(&block.scale.to_le_bytes());
    let sum_at = scale_at + cols / Q8_BLOCK * 4;
    row[sum_at..][..4].copy_from_slice(&block.sum.to_le_bytes());
}

/// The quant of column `col` of a row.
///
/// # Panics
/// Where the row is shorter.
pub fn quant(row: &[u8], col: usize) -> i32 {
    let at = col + col / Q8_BLOCK * Q8_BLOCK;
    let [high, low] = [at, at + Q8_BLOCK].map(|at| i32::from(row[at] as i8));
    8 * high + low
}

/// Offset of the scale of block `b` in a row of `cols` columns.
pub(super) fn scale_at(cols: usize, b: usize) -> usize {
    quants_bytes(DType::Q11, cols as u32) as usize + 4 * b
}

/// Quantises a row. `out` has the bytes of a Q11 row of `x.len()` columns; padding is left as it is.
///
/// # Panics
/// Where `x` is not whole blocks or `out` has another length.
pub fn quantise_row(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len() as u64, row_bytes(DType::Q11, x.len() as u32));
    let (blocks, rest) = x.as_chunks::<Q8_BLOCK>();
    assert!(rest.is_empty(), "a Q11 row is whole blocks");
    for (b, block) in blocks.iter().enumerate() {
        write_block(out, x.len(), b * Q8_BLOCK, &quantise_block(block));
    }
}

/// The values that a Q11 row of `out.len()` columns stands for: quant times scale.
///
/// # Panics
/// Where the row is shorter than `plan::row_bytes` says.
pub fn dequantise_row(row: &[u8], out: &mut [f32]) {
    let cols = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        let scale = crate::quant::f32_at(row, scale_at(cols, i / Q8_BLOCK));
        *out = quant(row, i) as f32 * scale;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn every_quant_splits() {
        for q in -1016..=1016i16 {
            let (high, low) = split(q);
            assert_eq!(8 * i16::from(high) + i16::from(low), q);
            assert!((-127..=127).contains(&high) && (-4..=3).contains(&low));
        }
    }

    #[test]
    fn rows_follow_the_plan() {
        let row = check_row(
            DType::Q11,
            MAX,
            quantise_block,
            quantise_row,
            dequantise_row,
        );
        // High and low bytes of a block, those of the next.
        assert_eq!((row[0] as i8, row[31] as i8), (-127, 127));
        // 14.5 / 15.5 of 1016 is 950.5, to even 950: 8 * 119 - 2.
        assert_eq!((row[30] as i8, row[62] as i8), (119, -2));
        assert_eq!((row[32], row[63]), (0, 0));
    }

    #[test]
    fn ties_go_to_even_and_tiny_blocks_saturate() {
        check_ties(MAX, quantise_block);
    }

    /// Quantises half numbers and a block of zeros, checks all of the row but how its quants are written, and gives it.
    pub(in crate::reference) fn check_row(
        dtype: DType,
        max: f32,
        quantise_block: fn(&[f32; Q8_BLOCK]) -> Q11Block,
        quantise_row: fn(&[f32], &mut [u8]),
        dequantise_row: fn(&[u8], &mut [f32]),
    ) -> Vec<u8> {
        let x: Vec<f32> = (0..64)
            .map(|i| if i < 32 { i as f32 - 15.5 } else { 0.0 })
            .collect();
        let mut row = vec![0xee; row_bytes(dtype, 64) as usize];
        quantise_row(&x, &mut row);
        assert!(row[64..128].iter().all(|&b| b == 0));
        // Two scales, two sums, padding.
        let word = |at: usize| f32::from_le_bytes(row[at..at + 4].try_into().unwrap());
        let block = quantise_block(x[..32].try_into().unwrap());
        assert_eq!(block.scale, 15.5 / max);
        let sum: i32 = block.quants.iter().map(|q| i32::from(*q)).sum();
        assert_eq!(block.sum, block.scale * sum as f32);
        let fields = [word(128), word(132), word(136), word(140)];
        assert_eq!(fields, [block.scale, 0.0, block.sum, 0.0]);
        assert!(row[144..].iter().all(|&b| b == 0xee));

        let mut back = vec![f32::NAN; 64];
        dequantise_row(&row, &mut back);
        for (x, y) in x.iter().zip(back) {
            assert!((x - y).abs() <= block.scale * 0.5001);
        }
        row
    }

    /// Quantises numbers between two quants, and such as are too small.
    pub(in crate::reference) fn check_ties(
        max: f32,
        quantise_block: fn(&[f32; Q8_BLOCK]) -> Q11Block,
    ) {
        let mut x = [0.0; 32];
        x[0] = max;
        x[1] = 0.5;
        x[2] = 1.5;
        x[3] = -2.5;
        assert_eq!(quantise_block(&x).quants[..4], [max as i16, 0, 2, -2]);
        let tiny = [-f32::MIN_POSITIVE; 32];
        assert_eq!(quantise_block(&tiny).quants, [-max as i16; 32]);
    }
}
