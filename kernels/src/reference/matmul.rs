//! `Op::MatMul`: f32 rows times dequantised weights.

use std::ops::Range;

use bundle_format::plan::{Encoding, WeightLayout};

use crate::pack;

/// A weight in memory, in either layout.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    pub encoding: Encoding,
    pub layout: WeightLayout,
    /// As `bundle_format::plan::Weight::pairs`.
    pub pairs: u32,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    pub bytes: &'a [u8],
}

impl WeightView<'_> {
    /// Dequantises a row.
    ///
    /// # Panics
    /// Where `row` is not one of the weight or `out` has not its columns.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "columns of a row");
        let packed = pack::fragment::packed_row(row as u32, self.pairs) as usize;
        pack::dequantise_row(self.encoding, self.layout, self.bytes, packed, out);
    }
}

/// Weight rows that are dequantised at a time.
const CHUNK: usize = 16;

/// `out[r, n - features.start] = sum over k of x[r, k] * w[n, k]` for n in `features`: the range lets callers share the
/// work among threads. `x` is row-major with `w.cols` columns, `out` with `features.len()`.
///
/// # Panics
/// Where a length or range disagrees with the weight.
pub fn matmul(x: &[f32], w: &WeightView<'_>, features: Range<usize>, out: &mut [f32]) {
    let (k, width) = (w.cols, features.len());
    let rows = x.len() / k;
    assert_eq!(x.len(), rows * k, "x is [rows, {k}]");
    assert_eq!(out.len(), rows * width, "out is [{rows}, {width}]");

    let mut weights = vec![0.0; CHUNK * k];
    for first in features.clone().step_by(CHUNK) {
        let count = CHUNK.min(features.end - first);
        for (i, row) in weights.chunks_exact_mut(k).take(count).enumerate() {
            w.row(first + i, row);
        }
        for (r, x) in x.chunks_exact(k).enumerate() {
            let out = &mut out[r * width + first - features.start..][..count];
            for (out, weights) in out.iter_mut().zip(weights.chunks_exact(k)) {
                *out = dot(x, weights);
            }
        }
    }
}

/// The inner product, in sixteen partial sums: that is as accurate as any order, and the compiler makes vectors of it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_integers_are_exact() {
        let (rows, k, features) = (3, 19, 37);
        let value = |i: usize| (i % 7) as f32 - 3.0;
        let x: Vec<f32> = (0..rows * k).map(value).collect();
        let weights: Vec<f32> = (0..features * k).map(|i| value(i * 5)).collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let w = WeightView {
            encoding: Encoding::F32,
            layout: WeightLayout::RowMajor,
            pairs: 0,
            rows: features,
            cols: k,
            bytes: &bytes,
        };
        let range = 2..35;
        let mut out = vec![f32::NAN; rows * range.len()];
        matmul(&x, &w, range.clone(), &mut out);
        for r in 0..rows {
            for n in range.clone() {
                let expected: f32 = (0..k).map(|i| x[r * k + i] * weights[n * k + i]).sum();
                assert_eq!(out[r * range.len() + n - range.start], expected);
            }
        }
    }
}
