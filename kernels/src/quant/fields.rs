//! The fields of GGUF's quantised blocks, one bit layout an encoding.

use bundle_format::plan::Encoding;

use super::{BLOCK, f16_at};

/// Most elements of a block.
const MAX_ELEMENTS: usize = 8 * BLOCK;

/// What IQ4_NL and IQ4_XS make of 4 bits.
pub const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// What MXFP4 makes of 4 bits: twice the e2m1 number.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A block taken apart. An encoding of 32 elements uses the first 32 codes, and the first two scales and minima.
pub struct Fields {
    /// The f16 factor of the scales; MXFP4's exponent in the first byte.
    pub d: [u8; 2],
    /// The f16 factor of the minima.
    pub m: [u8; 2],
    /// Integer scales of 16 elements each; 1 where the encoding has none.
    pub scales: [i8; 16],
    /// Integer minima of 16 elements each; 1 where only the factor is.
    pub mins: [u8; 16],
    /// Bits of each element, in order; [`value`] says what they stand for.
    pub codes: [u8; MAX_ELEMENTS],
}

impl Fields {
    /// Takes a block of a quantised encoding apart.
    ///
    /// # Panics
    /// Where `block` is shorter than a block, or `encoding` not quantised: a mistake of the caller.
    #[inline(always)]
    pub fn of(encoding: Encoding, block: &[u8]) -> Fields {
        let mut fields = Fields {
            d: [block[0], block[1]],
            m: [0; 2],
            scales: [1; 16],
            mins: [1; 16],
            codes: [0; MAX_ELEMENTS],
        };
        match encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {
                panic!("{encoding:?} has no quantised blocks")
            }
            Encoding::Q4_0 | Encoding::IQ4_NL => fields.nibbles(&block[2..]),
            Encoding::Q4_1 => {
                fields.m = [block[2], block[3]];
                fields.nibbles(&block[4..]);
            }
            Encoding::Q5_0 => {
                fields.nibbles(&block[6..]);
                fields.fifth_bits(&block[2..]);
            }
            Encoding::Q5_1 => {
                fields.m = [block[2], block[3]];
                fields.nibbles(&block[8..]);
                fields.fifth_bits(&block[4..]);
            }
            Encoding::Q8_0 => fields.codes[..BLOCK].copy_from_slice(&block[2..2 + BLOCK]),
            Encoding::MXFP4 => fields.nibbles(&block[1..]),
            Encoding::Q2_K => fields.q2_k(block),
            Encoding::Q3_K => fields.q3_k(block),
            Encoding::Q4_K => {
                fields.m = [block[2], block[3]];
                fields.six_bit_scales(&block[4..]);
                fields.halves_of_64(&block[16..]);
            }
            Encoding::Q5_K => {
                fields.m = [block[2], block[3]];
                fields.six_bit_scales(&block[4..]);
                fields.halves_of_64(&block[48..]);
                for (part, codes) in fields
                    .codes
                    .as_chunks_mut::<BLOCK>()
                    .0
                    .iter_mut()
                    .enumerate()
                {
                    for (code, high) in codes.iter_mut().zip(&block[16..]) {
                        *code |= (high >> part & 1) << 4;
                    }
                }
            }
            Encoding::Q6_K => fields.q6_k(block),
            Encoding::IQ4_XS => fields.iq4_xs(block),
        }
        fields
    }

    /// The factor of the scales.
    pub fn factor(&self, encoding: Encoding) -> f32 {
        match encoding {
            Encoding::MXFP4 => half_exponent(self.d[0]),
            _ => f16_at(&self.d, 0),
        }
    }

    /// The factor of the minima: negative where they are subtracted.
    pub fn min_factor(&self, encoding: Encoding) -> f32 {
        match encoding {
            Encoding::Q4_1 | Encoding::Q5_1 => f16_at(&self.m, 0),
            _ => -f16_at(&self.m, 0),
        }
    }

    /// 32 codes of 4 bits: byte i has elements i and 16 + i.
    fn nibbles(&mut self, bytes: &[u8]) {
        let (low, high) = self.codes.split_at_mut(BLOCK / 2);
        for ((byte, low), high) in bytes[..BLOCK / 2].iter().zip(low).zip(high) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }

    /// Bit i of four bytes is the fifth bit of code i.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for (i, code) in self.codes[..BLOCK].iter_mut().enumerate() {
            *code |= ((bits >> i & 1) as u8) << 4;
        }
    }

    /// 256 codes of 4 bits: of each 32 bytes, the low halves are 32 elements and the high halves the 32 behind them.
    fn halves_of_64(&mut self, bytes: &[u8]) {
        let bytes = bytes.as_chunks::<BLOCK>().0.iter();
        for (bytes, codes) in bytes.zip(self.codes.chunks_exact_mut(2 * BLOCK)) {
            let (low, high) = codes.split_at_mut(BLOCK);
            for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
                *low = byte & 15;
                *high = byte >> 4;
            }
        }
    }

    /// Q4_K's and Q5_K's eight scales and minima of 6 bits in 12 bytes: of the first four, bytes 0..4 and 4..8 have them in
    /// the low bits; of the last four, bytes 8..12 have the low four bits of both, and the top bits of bytes 0..8 the
    /// rest.
    fn six_bit_scales(&mut self, bytes: &[u8]) {
        for part in 0..8 {
            let (scale, min) = match part {
                0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
                _ => (
                    bytes[part + 4] & 15 | bytes[part - 4] >> 6 << 4,
                    bytes[part + 4] >> 4 | bytes[part] >> 6 << 4,
                ),
            };
            self.scales[2 * part..][..2].fill(scale as i8);
            self.mins[2 * part..][..2].fill(min);
        }
    }

    /// 256 codes' two bits: each 32 bytes hold 128 elements, 32 of them at the same bits.
    fn crumbs(&mut self, bytes: &[u8], to: u32) {
        let halves = self.codes.chunks_exact_mut(4 * BLOCK);
        for (codes, bytes) in halves.zip(bytes.chunks_exact(BLOCK)) {
            for (j, codes) in codes.chunks_exact_mut(BLOCK).enumerate() {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code |= (byte >> (2 * j) & 3) << to;
                }
            }
        }
    }

    /// 16 bytes of a scale and a minimum, 64 of codes, both factors.
    fn q2_k(&mut self, block: &[u8]) {
        for (part, byte) in block[..16].iter().enumerate() {
            self.scales[part] = (byte & 15) as i8;
            self.mins[part] = byte >> 4;
        }
        self.crumbs(&block[16..80], 0);
        self.d = [block[80], block[81]];
        self.m = [block[82], block[83]];
    }

    /// 32 bytes of third bits, 64 of codes, 12 of scales, the factor.
    fn q3_k(&mut self, block: &[u8]) {
        self.crumbs(&block[32..96], 0);
        for (part, codes) in self.codes.chunks_exact_mut(BLOCK).enumerate() {
            for (code, high) in codes.iter_mut().zip(block) {
                *code |= (high >> part & 1) << 2;
            }
        }
        let bytes = &block[96..108];
        for (part, scale) in self.scales.iter_mut().enumerate() {
            let low = bytes[part % 8] >> (part / 8 * 4) & 15;
            let high = bytes[8 + part % 4] >> (part / 4 * 2) & 3;
            *scale = (low | high << 4) as i8 - 32;
        }
        self.d = [block[108], block[109]];
    }

    /// 128 bytes of low halves, 64 of high bits, 16 scales, the factor.
    fn q6_k(&mut self, block: &[u8]) {
        let halves = self.codes.chunks_exact_mut(4 * BLOCK);
        for (codes, bytes) in halves.zip(block.chunks_exact(2 * BLOCK)) {
            let (low, high) = codes.split_at_mut(2 * BLOCK);
            for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
                *low = byte & 15;
                *high = byte >> 4;
            }
        }
        self.crumbs(&block[128..192], 4);
        for (scale, byte) in self.scales.iter_mut().zip(&block[192..208]) {
            *scale = *byte as i8;
        }
        self.d = [block[208], block[209]];
    }

    /// The factor, two bytes of high bits of the scales, four of low ones, 128 bytes of codes.
    fn iq4_xs(&mut self, block: &[u8]) {
        let high_bits = u16::from_le_bytes([block[2], block[3]]);
        for part in 0..8 {
            let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
            let high = (high_bits >> (2 * part) & 3) as u8;
            self.scales[2 * part..][..2].fill((low | high << 4) as i8 - 32);
        }
        let bytes = block[8..].as_chunks::<16>().0.iter();
        for (bytes, codes) in bytes.zip(self.codes.as_chunks_mut::<BLOCK>().0) {
            for (i, byte) in bytes.iter().enumerate() {
                codes[i] = byte & 15;
                codes[16 + i] = byte >> 4;
            }
        }
    }
}

/// The quant that an element's bits stand for.
#[inline(always)]
pub fn value(encoding: Encoding, code: u8) -> i8 {
    match encoding {
        Encoding::IQ4_NL | Encoding::IQ4_XS => IQ4_VALUES[usize::from(code & 15)],
        Encoding::MXFP4 => MXFP4_VALUES[usize::from(code & 15)],
        _ => code.wrapping_sub(offset(encoding)) as i8,
    }
}

/// What is taken from an element's bits to make its quant.
#[inline(always)]
pub const fn offset(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Q4_0 => 8,
        Encoding::Q5_0 => 16,
        Encoding::Q3_K => 4,
        Encoding::Q6_K => 32,
        _ => 0,
    }
}

/// Whether elements have a minimum added.
#[inline(always)]
pub const fn has_min(encoding: Encoding) -> bool {
    matches!(
        encoding,
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q2_K | Encoding::Q4_K | Encoding::Q5_K
    )
}

/// 2^(e - 128), MXFP4's factor: half of what e means elsewhere, since the table holds twice the numbers. The least two
/// are subnormal.
#[inline(always)]
pub fn half_exponent(e: u8) -> f32 {
    f32::from_bits(match e {
        0..2 => 0x0020_0000 << e,
        _ => (u32::from(e) - 1) << 23,
    })
}
