//! GGUF's block encodings: sizes, bytes, and their dequantisation.
//!
//! A row of a GGUF tensor is a sequence of blocks, little-endian, without padding. With d and m the f16 fields of a block,
//! q its quants, s and n the integer scales and minima of its parts of 16 or 32 elements:
//!
//! | encoding | elements | bytes | element                        | q                                        |
//! |----------|---------:|------:|--------------------------------|------------------------------------------|
//! | F32      |        1 |     4 | itself                         |                                          |
//! | F16      |        1 |     2 | itself                         |                                          |
//! | BF16     |        1 |     2 | itself                         |                                          |
//! | Q4_0     |       32 |    18 | d * q                          | 4 bits less 8                            |
//! | Q4_1     |       32 |    20 | d * q + m                      | 4 bits                                   |
//! | Q5_0     |       32 |    22 | d * q                          | 5 bits less 16                           |
//! | Q5_1     |       32 |    24 | d * q + m                      | 5 bits                                   |
//! | Q8_0     |       32 |    34 | d * q                          | i8                                       |
//! | IQ4_NL   |       32 |    18 | d * q                          | 4 bits, through a table of 16            |
//! | MXFP4    |       32 |    17 | 2^(e - 128) * q, e a byte      | 4 bits, through a table: twice an e2m1   |
//! | Q2_K     |      256 |    84 | d * s * q - m * n, parts of 16 | 2 bits; s and n 4 bits                   |
//! | Q3_K     |      256 |   110 | d * s * q, parts of 16         | 3 bits less 4; s 6 bits less 32          |
//! | Q4_K     |      256 |   144 | d * s * q - m * n, parts of 32 | 4 bits; s and n 6 bits                   |
//! | Q5_K     |      256 |   176 | d * s * q - m * n, parts of 32 | 5 bits; s and n 6 bits                   |
//! | Q6_K     |      256 |   210 | d * s * q, parts of 16         | 6 bits less 32; s i8                     |
//! | IQ4_XS   |      256 |   136 | d * s * q, parts of 32         | as IQ4_NL; s 6 bits less 32              |
//!
//! Where the bits lie, [`fields`] knows. Every product is exact in f32 (at most 24 bits), so an element is rounded at most
//! once, by the addition of its minimum.

pub(crate) mod fields;

use bundle_format::plan::Encoding;
/// Types of activations that microkernels multiply an encoding with: those that a plan may say.
pub use bundle_format::validate::activation_types;
use half::{bf16, f16};

use fields::Fields;

/// Elements of a quantised block of activations; the blocks of quantised weights are one or eight of these.
pub const BLOCK: usize = 32;

/// Every encoding, in the order of the enum.
pub const ENCODINGS: [Encoding; 16] = Encoding::ALL;

/// Elements of one block of an encoding: a row is a whole number of blocks.
pub const fn block_elements(encoding: Encoding) -> usize {
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => 1,
        Encoding::Q4_0
        | Encoding::Q4_1
        | Encoding::Q5_0
        | Encoding::Q5_1
        | Encoding::Q8_0
        | Encoding::IQ4_NL
        | Encoding::MXFP4 => BLOCK,
        Encoding::Q2_K
        | Encoding::Q3_K
        | Encoding::Q4_K
        | Encoding::Q5_K
        | Encoding::Q6_K
        | Encoding::IQ4_XS => 8 * BLOCK,
    }
}

/// Bytes of one block of an encoding in GGUF.
pub const fn block_bytes(encoding: Encoding) -> usize {
    match encoding {
        Encoding::F32 => 4,
        Encoding::F16 | Encoding::BF16 => 2,
        Encoding::Q4_0 | Encoding::IQ4_NL => 18,
        Encoding::Q4_1 => 20,
        Encoding::Q5_0 => 22,
        Encoding::Q5_1 => 24,
        Encoding::Q8_0 => 34,
        Encoding::MXFP4 => 17,
        Encoding::Q2_K => 84,
        Encoding::Q3_K => 110,
        Encoding::Q4_K => 144,
        Encoding::Q5_K => 176,
        Encoding::Q6_K => 210,
        Encoding::IQ4_XS => 136,
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
        Encoding::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        quantised => {
            let fields = Fields::of(quantised, block);
            let (d, m) = (fields.factor(quantised), fields.min_factor(quantised));
            let parts = fields.codes.as_chunks::<16>().0.iter();
            for (p, (codes, out)) in parts.zip(out.as_chunks_mut::<16>().0).enumerate() {
                let scale = d * f32::from(fields.scales[p]);
                let min = m * f32::from(fields.mins[p]);
                for (code, out) in codes.iter().zip(out) {
                    *out = scale * f32::from(fields::value(quantised, *code));
                    if fields::has_min(quantised) {
                        *out += min;
                    }
                }
            }
        }
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
        assert_eq!(row_bytes(Encoding::Q6_K, 512), Some(420));
        assert_eq!(row_bytes(Encoding::Q6_K, 128), None);
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
