//! Ops that make one row from an index: embedding and the rotary table.

use super::WeightView;

/// `Op::Embed` for one token: `out[i] = table[token, i] * scale`.
///
/// # Panics
/// Where `token` is not a row of the table or `out` has not its columns.
pub fn embed_row(table: &WeightView<'_>, token: u32, scale: f32, out: &mut [f32]) {
    table.row(token as usize, out);
    for x in out {
        *x *= scale;
    }
}

/// `Op::RopeTable` for one token: `freqs.len()` cosines, then as many sines, each times `mscale`. The angle is computed in
/// f64.
///
/// # Panics
/// Where `out` has not twice the length of `freqs`.
pub fn rope_row(position: u32, freqs: &[f32], mscale: f32, out: &mut [f32]) {
    assert_eq!(out.len(), 2 * freqs.len(), "cosines and sines");
    let (cosines, sines) = out.split_at_mut(freqs.len());
    for ((freq, cosine), sine) in freqs.iter().zip(cosines).zip(sines) {
        let angle = f64::from(position) * f64::from(*freq);
        *cosine = mscale * angle.cos() as f32;
        *sine = mscale * angle.sin() as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_row_is_cosines_then_sines() {
        let mut out = [0.0; 4];
        rope_row(3, &[1.0, 0.5], 2.0, &mut out);
        let expected = [
            2.0 * 3f64.cos(),
            2.0 * 1.5f64.cos(),
            2.0 * 3f64.sin(),
            2.0 * 1.5f64.sin(),
        ];
        for (found, expected) in out.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-7);
        }
    }
}
