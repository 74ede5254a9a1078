//! GGUF's block encodings: sizes, bytes, and their dequantisation.
//!
//! A row of a GGUF tensor is a sequence of blocks, little-endian, without padding. With d and m the f16 fields of a block
//! and q its unsigned quants:
//!
//! | encoding | elements | bytes | fields                       | element i      |
//! |----------|---------:|------:|------------------------------|----------------|
//! | F32      |        1 |     4 | f32                          | itself         |
//! | F16      |        1 |     2 | f16                          | itself         |
//! | Q4_0     |       32 |    18 | f16 d, 16 bytes of nibbles   | d * (q_i - 8)  |
//! | Q4_1     |       32 |    20 | f16 d, f16 m, 16 of nibbles  | d * q_i + m    |
//! | Q8_0     |       32 |    34 | f16 d, 32 of i8              | d * q_i        |
//!
//! Byte i of the nibbles holds element i in its low half and element 16 + i in its high half. The products are exact in
//! f32 (11 bits times at most 8), so every element is rounded at most once.

use bundle_format::plan::Encoding;
/// Types of activations that microkernels multiply an encoding with: those that a plan may say.
pub use bundle_format::validate::activation_types;
use half::f16;

/// Elements of a quantised block.
pub const BLOCK: usize = 32;

/// Every encoding, in the order of the enum.
pub const ENCODINGS: [Encoding; 5] = [
    Encoding::F32,
    Encoding::F16,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q8_0,
];

/// Elements of one block of an encoding: a row is a whole number of blocks.
pub const fn block_elements(encoding: Encoding) -> usize {
    match encoding {
        Encoding::F32 | Encoding::F16 => 1,
        Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q8_0 => BLOCK,
    }
}

/// Bytes of one block of an encoding.
pub const fn block_bytes(encoding: Encoding) -> usize {
    match encoding {
        Encoding::F32 => 4,
        Encoding::F16 => 2,
        Encoding::Q4_0 => 2 + BLOCK / 2,
        Encoding::Q4_1 => 4 + BLOCK / 2,
        Encoding::Q8_0 => 2 + BLOCK,
    }
}

/// Bytes of a row-major row of `cols` elements; none where `cols` is not a whole number of blocks or the size exceeds 64
/// bits.
pub fn row_bytes(encoding: Encoding, cols: u64) -> Option<u64> {
    let elements = block_elements(encoding) as u64;
    if !cols.is_multiple_of(elements) {
        return None;
    }
    (cols / elements).checked_mul(block_bytes(encoding) as u64)
}

/// Reads a little-endian f16 at `at`.
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Reads a little-endian f32 at `at`.
pub(crate) fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Dequantises a row-major row: `out.len()` elements from as many bytes as [`row_bytes`] says.
///
/// # Panics
/// Where the length of `src` is not that of `out.len()` elements: a mistake of the caller, who knows both.
pub fn dequantise_row(encoding: Encoding, src: &[u8], out: &mut [f32]) {
    assert_eq!(
        Some(src.len() as u64),
        row_bytes(encoding, out.len() as u64),
        "bytes of a {encoding:?} row of {} elements",
        out.len()
    );
    let blocks = src.chunks_exact(block_bytes(encoding));
    let outs = out.chunks_exact_mut(block_elements(encoding));
    for (block, out) in blocks.zip(outs) {
        dequantise_block(encoding, block, out);
    }
}

fn dequantise_block(encoding: Encoding, block: &[u8], out: &mut [f32]) {
    match encoding {
        Encoding::F32 => out[0] = f32_at(block, 0),
        Encoding::F16 => out[0] = f16_at(block, 0),
        Encoding::Q4_0 => {
            let d = f16_at(block, 0);
            nibbles(&block[2..], out, |q| d * (q as f32 - 8.0));
        }
        Encoding::Q4_1 => {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            nibbles(&block[4..], out, |q| d * q as f32 + m);
        }
        Encoding::Q8_0 => {
            let d = f16_at(block, 0);
            for (q, out) in block[2..].iter().zip(out) {
                *out = d * *q as i8 as f32;
            }
        }
    }
}

fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(row_bytes(Encoding::Q4_1, 576), Some(360));
        assert_eq!(row_bytes(Encoding::Q4_0, 64), Some(36));
        assert_eq!(row_bytes(Encoding::Q8_0, 64), Some(68));
        assert_eq!(row_bytes(Encoding::F16, 3), Some(6));
        assert_eq!(row_bytes(Encoding::F32, 3), Some(12));
        assert_eq!(row_bytes(Encoding::Q4_1, 33), None);
        assert_eq!(row_bytes(Encoding::F32, u64::MAX), None);
    }

    #[test]
    fn q4_0_block() {
        let mut block = [0u8; 18];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0x1f;
        let mut out = [0.0; 32];
        dequantise_row(Encoding::Q4_0, &block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (3.5, -3.5, -4.0));
    }

    #[test]
    fn q4_1_block() {
        let mut block = [0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        block[4 + 15] = 0x5a;
        let mut out = [0.0; 32];
        dequantise_row(Encoding::Q4_1, &block, &mut out);
        assert_eq!((out[15], out[31], out[0]), (1.5, 0.25, -1.0));
    }

    #[test]
    fn q8_0_block() {
        let mut block = [0u8; 34];
        block[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        block[2] = 0x80;
        block[33] = 127;
        let mut out = [0.0; 32];
        dequantise_row(Encoding::Q8_0, &block, &mut out);
        assert_eq!((out[0], out[31], out[1]), (-256.0, 254.0, 0.0));
    }
}
