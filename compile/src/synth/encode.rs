//! Encodes f32 elements in GGUF's types. F32 to Q8_0 use the arithmetic that other tools use, so that the same weights give
//! the same bytes; the encodings of [`super::encode_k`] have no such common one.

use bundle_format::plan::Encoding;
use half::{bf16, f16};

use super::encode_k as k;

/// Elements of a quantised block.
const BLOCK: usize = 32;

/// Encodes finite elements. `out` has exactly the bytes of `x`, whose length is a multiple of the encoding's block.
pub fn encode(encoding: Encoding, x: &[f32], out: &mut [u8]) {
    match encoding {
        Encoding::F32 => elements(x, out, f32::to_le_bytes),
        Encoding::F16 => elements(x, out, |v| f16::from_f32(v).to_le_bytes()),
        Encoding::BF16 => elements(x, out, |v| bf16::from_f32(v).to_le_bytes()),
        Encoding::Q4_0 => blocks(x, out, q4_0),
        Encoding::Q4_1 => blocks(x, out, q4_1),
        Encoding::Q8_0 => blocks(x, out, q8_0),
        Encoding::Q5_0 => blocks(x, out, q5_0),
        Encoding::Q5_1 => blocks(x, out, q5_1),
        Encoding::IQ4_NL => blocks(x, out, k::iq4_nl),
        Encoding::MXFP4 => blocks(x, out, k::mxfp4),
        Encoding::Q2_K => blocks(x, out, k::q2_k),
        Encoding::Q3_K => blocks(x, out, k::q3_k),
        Encoding::Q4_K => blocks(x, out, k::q4_k),
        Encoding::Q5_K => blocks(x, out, k::q5_k),
        Encoding::Q6_K => blocks(x, out, k::q6_k),
        Encoding::IQ4_XS => blocks(x, out, k::iq4_xs),
    }
}

fn elements<const N: usize>(x: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (&v, bytes) in x.iter().zip(out.as_chunks_mut().0) {
        *bytes = encode(v);
    }
}

fn blocks<const E: usize, const N: usize>(
    x: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; E], &mut [u8; N]),
) {
    for (block, bytes) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(block, bytes);
    }
}

/// f16 scale d, then 16 bytes of two elements each (i low, i + 16 high): x = d (q - 8). The element of the largest
/// magnitude becomes exactly -8 d.
fn q4_0(x: &[f32; BLOCK], out: &mut [u8; 18]) {
    let extreme = extreme(x);
    let d = extreme / -8.0;
    let inverse = reciprocal(d);
    let (scale, quants) = out.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    pack_nibbles(x, quants, |v| v * inverse + 8.5);
}

/// f16 step d and f16 minimum m, then 16 bytes of two elements each: x = d q + m.
fn q4_1(x: &[f32; BLOCK], out: &mut [u8; 20]) {
    let (low, high) = range(x);
    let d = (high - low) / 15.0;
    let inverse = reciprocal(d);
    let (scales, quants) = out.split_at_mut(4);
    scales[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    scales[2..].copy_from_slice(&f16::from_f32(low).to_le_bytes());
    pack_nibbles(x, quants, |v| (v - low) * inverse + 0.5);
}

/// f16 scale d, then 32 bytes: x = d q.
fn q8_0(x: &[f32; BLOCK], out: &mut [u8; 34]) {
    let (low, high) = range(x);
    let d = high.max(-low) / 127.0;
    let inverse = reciprocal(d);
    let (scale, quants) = out.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (&v, quant) in x.iter().zip(quants) {
        // Halves away from zero.
        *quant = (v * inverse).round() as i8 as u8;
    }
}

/// As Q4_0 with 5 bits: behind the scale, 32 fifth bits.
fn q5_0(x: &[f32; BLOCK], out: &mut [u8; 22]) {
    let d = extreme(x) / -16.0;
    let inverse = reciprocal(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    pack_five_bits(levels(x, 31, |v| v * inverse + 16.5), &mut out[2..]);
}

/// As Q4_1 with 5 bits: behind step and minimum, 32 fifth bits.
fn q5_1(x: &[f32; BLOCK], out: &mut [u8; 24]) {
    let (low, high) = range(x);
    let d = (high - low) / 31.0;
    let inverse = reciprocal(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(low).to_le_bytes());
    pack_five_bits(levels(x, 31, |v| (v - low) * inverse + 0.5), &mut out[4..]);
}

/// The element of the largest magnitude; of two opposite ones, the first.
fn extreme(x: &[f32; BLOCK]) -> f32 {
    let (low, high) = range(x);
    if high > -low {
        high
    } else if high < -low {
        low
    } else {
        x.iter().copied().find(|v| v.abs() == high).unwrap_or(0.0)
    }
}

/// Levels are positive, so that the cut to an integer is a floor; they can exceed `most`. All are made before any is packed,
/// which gives loops that the compiler makes vectors of.
fn levels(x: &[f32; BLOCK], most: i32, level: impl Fn(f32) -> f32) -> [i32; BLOCK] {
    x.map(|v| {
        let level = level(v);
        (if level < most as f32 {
            level
        } else {
            most as f32
        }) as i32
    })
}

fn pack_nibbles(x: &[f32; BLOCK], out: &mut [u8], level: impl Fn(f32) -> f32) {
    let quants = levels(x, 15, level);
    let (first, second) = quants.split_at(BLOCK / 2);
    for ((&low, &high), byte) in first.iter().zip(second).zip(out) {
        *byte = (low | high << 4) as u8;
    }
}

/// Four bytes of fifth bits, in order, then nibbles.
fn pack_five_bits(quants: [i32; BLOCK], out: &mut [u8]) {
    let mut fifths = 0u32;
    for (i, quant) in quants.iter().enumerate() {
        fifths |= (*quant as u32 >> 4) << i;
    }
    out[..4].copy_from_slice(&fifths.to_le_bytes());
    let (first, second) = quants.split_at(BLOCK / 2);
    for ((&low, &high), byte) in first.iter().zip(second).zip(&mut out[4..]) {
        *byte = (low & 15 | (high & 15) << 4) as u8;
    }
}

/// Zero for a block of equal elements, whose quants then don't matter.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The least and the greatest element, by lanes that the compiler makes vectors of.
fn range(x: &[f32; BLOCK]) -> (f32, f32) {
    const LANES: usize = 8;
    let (chunks, _) = x.as_chunks::<LANES>();
    let (mut low, mut high) = (chunks[0], chunks[0]);
    for chunk in &chunks[1..] {
        for lane in 0..LANES {
            let v = chunk[lane];
            low[lane] = if v < low[lane] { v } else { low[lane] };
            high[lane] = if v > high[lane] { v } else { high[lane] };
        }
    }
    (
        low.into_iter().fold(low[0], f32::min),
        high.into_iter().fold(high[0], f32::max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;
    use crate::synth::random::Stream;

    fn encoded(encoding: Encoding, x: &[f32]) -> Vec<u8> {
        let bytes = TensorType::from(encoding).bytes(x.len() as u64);
        let mut out = vec![0xee; bytes.expect("a small test") as usize];
        encode(encoding, x, &mut out);
        out
    }

    fn f16_at(bytes: &[u8], at: usize) -> f32 {
        f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
    }

    /// 0, 1, … 31, scaled and shifted.
    fn ramp(scale: f32, shift: f32) -> Vec<f32> {
        (0..BLOCK).map(|i| i as f32 * scale + shift).collect()
    }

    #[test]
    fn f32_and_f16_are_ieee() {
        assert_eq!(
            encoded(Encoding::F32, &[1.0, -2.5]),
            [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]
        );
        assert_eq!(
            encoded(Encoding::F16, &[1.0, -2.5, 0.1]),
            [0x00, 0x3c, 0x00, 0xc1, 0x66, 0x2e]
        );
    }

    #[test]
    fn q4_0_puts_the_extreme_at_minus_eight() {
        // -16 … 15: d is 2, and -16 becomes level 0.
        let bytes = encoded(Encoding::Q4_0, &ramp(1.0, -16.0));
        assert_eq!(f16_at(&bytes, 0), 2.0);
        // Elements 0 (-16: level 0) and 16 (0: level 8), 1 (-15: 0.5 rounds up) and 17 (1: 8.5 rounds up).
        assert_eq!(bytes[2], 0x80);
        assert_eq!(bytes[3], 0x91);
        // Elements 15 (-1: 7.5 rounds up) and 31 (15: 15.5, cut to 15).
        assert_eq!(bytes[17], 0xf8);
        // A positive extreme gives a negative scale.
        let mirrored: Vec<f32> = ramp(1.0, -16.0).iter().map(|v| -v).collect();
        assert_eq!(f16_at(&encoded(Encoding::Q4_0, &mirrored), 0), -2.0);
    }

    #[test]
    fn q4_0_takes_the_first_of_two_opposite_extremes() {
        let mut x = [0.0; BLOCK];
        (x[3], x[9]) = (8.0, -8.0);
        assert_eq!(f16_at(&encoded(Encoding::Q4_0, &x), 0), -1.0);
        (x[3], x[9]) = (-8.0, 8.0);
        assert_eq!(f16_at(&encoded(Encoding::Q4_0, &x), 0), 1.0);
    }

    #[test]
    fn q4_1_spans_minimum_to_maximum() {
        // 3 … 34: d is 31/15.
        let bytes = encoded(Encoding::Q4_1, &ramp(1.0, 3.0));
        assert_eq!(f16_at(&bytes, 0), f16::from_f32(31.0 / 15.0).to_f32());
        assert_eq!(f16_at(&bytes, 2), 3.0);
        // Elements 0 (level 0) and 16 (16 / 2.067 = 7.74), 15 (7.26) and 31 (15).
        assert_eq!(bytes[4], 0x80);
        assert_eq!(bytes[19], 0xf7);
    }

    #[test]
    fn q8_0_rounds_halves_away_from_zero() {
        let mut x = ramp(1.0, -15.5);
        x[31] = 127.0;
        let bytes = encoded(Encoding::Q8_0, &x);
        assert_eq!(f16_at(&bytes, 0), 1.0);
        // -15.5, -0.5, 0.5, 127
        assert_eq!(
            [bytes[2], bytes[17], bytes[18], bytes[33]].map(|b| b as i8),
            [-16, -1, 1, 127]
        );
    }

    fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
        let ty = TensorType::from(encoding);
        let mut x = vec![0.0; bytes.len() / ty.block_bytes as usize * ty.block as usize];
        kernels::quant::dequantise_row(encoding, bytes, &mut x);
        x
    }

    #[test]
    fn zeros_stay_zero() {
        for encoding in Encoding::ALL {
            let x = decoded(encoding, &encoded(encoding, &[0.0; 256]));
            assert!(x.iter().all(|v| *v == 0.0), "{encoding:?}");
        }
    }

    #[test]
    fn errors_stay_within_half_a_step() {
        let mut x = vec![0.0; 512 * BLOCK];
        Stream::new(3, "errors", 0.01, 0.05).fill(0, &mut x);
        for (encoding, levels) in [
            (Encoding::Q4_0, 8.0f32),
            (Encoding::Q5_0, 16.0),
            (Encoding::Q4_1, 15.0),
            (Encoding::Q5_1, 31.0),
            (Encoding::Q8_0, 127.0),
        ] {
            let bytes = encoded(encoding, &x);
            let block_bytes = TensorType::from(encoding).block_bytes as usize;
            let mut worst: f32 = 0.0;
            for (i, (&v, w)) in x.iter().zip(decoded(encoding, &bytes)).enumerate() {
                let step = f16_at(&bytes, i / BLOCK * block_bytes).abs();
                // Half a step, and what rounding the scale (and the minimum, which is smaller) to f16 moves the
                // outermost level by: a relative 2^-11.
                let mut bound = step * (0.5 + 2.0 * levels / 2048.0);
                // The side of Q4_0 and Q5_0 that has a level less is cut.
                let symmetric = matches!(encoding, Encoding::Q4_0 | Encoding::Q5_0);
                if symmetric && v.abs() > (levels - 0.5) * step {
                    bound = step * (1.0 + levels / 2048.0);
                }
                assert!((v - w).abs() <= bound, "{encoding:?}: {v} became {w}");
                worst = worst.max((v - w).abs() / step);
            }
            assert!(worst > 0.4, "{encoding:?}: the test looked at something");
        }
    }

    /// The root of the mean squared error of bell-shaped elements, over their deviation. The bounds are up to two thirds above
    /// what the encoders reach; a part with a wrong scale or misplaced bits is far beyond.
    #[test]
    fn errors_are_those_of_the_bits() {
        let mut x = vec![0.0; 64 * 256];
        Stream::new(3, "errors", 0.0, 0.05).fill(0, &mut x);
        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>();
        for (encoding, bound) in [
            (Encoding::F32, 0.0),
            (Encoding::F16, 3e-4),
            (Encoding::BF16, 2e-3),
            (Encoding::Q2_K, 0.33),
            (Encoding::Q3_K, 0.20),
            (Encoding::IQ4_NL, 0.09),
            (Encoding::IQ4_XS, 0.09),
            (Encoding::MXFP4, 0.13),
            (Encoding::Q4_0, 0.10),
            (Encoding::Q4_1, 0.085),
            (Encoding::Q4_K, 0.085),
            (Encoding::Q5_0, 0.05),
            (Encoding::Q5_1, 0.042),
            (Encoding::Q5_K, 0.042),
            (Encoding::Q6_K, 0.025),
            (Encoding::Q8_0, 0.006),
        ] {
            let y = decoded(encoding, &encoded(encoding, &x));
            let error = square(&mut x.iter().zip(y).map(|(x, y)| x - y));
            let error = (error / square(&mut x.iter().copied())).sqrt();
            assert!(error <= bound, "{encoding:?}: {error}");
            assert!(
                error >= bound * 0.6,
                "{encoding:?}: {error}, suspiciously good"
            );
        }
    }
}
