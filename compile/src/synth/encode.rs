//! Encodes f32 elements in GGUF's types, with the arithmetic that other tools use, so that the same weights give the same
//! bytes.

use bundle_format::plan::Encoding;
use half::f16;

/// Elements of a quantised block.
const BLOCK: usize = 32;

/// Encodes finite elements. `out` has exactly the bytes of `x`, whose length is a multiple of the encoding's block.
pub fn encode(encoding: Encoding, x: &[f32], out: &mut [u8]) {
    match encoding {
        Encoding::F32 => elements(x, out, f32::to_le_bytes),
        Encoding::F16 => elements(x, out, |v| f16::from_f32(v).to_le_bytes()),
        Encoding::Q4_0 => blocks(x, out, q4_0),
        Encoding::Q4_1 => blocks(x, out, q4_1),
        Encoding::Q8_0 => blocks(x, out, q8_0),
    }
}

fn elements<const N: usize>(x: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (&v, bytes) in x.iter().zip(out.as_chunks_mut().0) {
        *bytes = encode(v);
    }
}

fn blocks<const N: usize>(x: &[f32], out: &mut [u8], encode: impl Fn(&[f32; BLOCK], &mut [u8; N])) {
    for (block, bytes) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(block, bytes);
    }
}

/// f16 scale d, then 16 bytes of two elements each (i low, i + 16 high): x = d (q - 8). The element of the largest
/// magnitude becomes exactly -8 d.
fn q4_0(x: &[f32; BLOCK], out: &mut [u8; 18]) {
    let (low, high) = range(x);
    let extreme = if high > -low {
        high
    } else if high < -low {
        low
    } else {
        // Of two opposite ones, the first.
        x.iter().copied().find(|v| v.abs() == high).unwrap_or(0.0)
    };
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

fn pack_nibbles(x: &[f32; BLOCK], out: &mut [u8], level: impl Fn(f32) -> f32) {
    let (first, second) = x.split_at(BLOCK / 2);
    for ((&a, &b), byte) in first.iter().zip(second).zip(out) {
        // Levels are positive, so that the cut is a floor; the largest can reach 16.
        let quant = |v| (level(v) as i32).min(15) as u8;
        *byte = quant(a) | quant(b) << 4;
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
