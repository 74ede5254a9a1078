//! The packed blocks of quantised encodings: a table of their parts, packing, and what kernels read back.

use bundle_format::plan::Encoding;

use super::GROUP;
use crate::quant::fields::{Fields, half_exponent, value};
use crate::quant::{BLOCK, f16_at};

/// Bytes of a vector of a plane: a 32-bit lane for each row.
const VECTOR: usize = 4 * GROUP;

/// What a packed block consists of, for each row.
#[derive(Clone, Copy)]
pub struct Layout {
    header: Header,
    /// Times 32 elements that share the header.
    parts: usize,
    scales: Scales,
    /// Bits of each plane.
    planes: &'static [u32],
}

/// Fields before the parts of a block.
#[derive(Clone, Copy, PartialEq)]
enum Header {
    /// The f16 factor of the scales.
    Factor,
    /// And that of the minima.
    Factors,
    /// A byte of exponent.
    Exponent,
}

/// Integer scales of 32 elements.
#[derive(Clone, Copy, PartialEq)]
enum Scales {
    None,
    /// A byte.
    Whole,
    /// A byte and the minimum's.
    WholeAndMin,
    /// A byte for each 16.
    Halves,
    /// A byte for each 16, which has the minimum in its high half.
    HalvesAndMins,
}

impl Scales {
    /// Bytes of a row.
    const fn bytes(self) -> usize {
        match self {
            Scales::None => 0,
            Scales::Whole => 1,
            Scales::WholeAndMin | Scales::Halves | Scales::HalvesAndMins => 2,
        }
    }
}

impl Layout {
    /// The layout of a quantised encoding; none for the others.
    pub const fn of(encoding: Encoding) -> Option<Layout> {
        use Header::{Exponent, Factor, Factors};
        let (header, parts, scales, planes): (_, _, _, &[u32]) = match encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => return None,
            Encoding::Q4_0 | Encoding::IQ4_NL => (Factor, 1, Scales::None, &[4]),
            Encoding::Q4_1 => (Factors, 1, Scales::None, &[4]),
            Encoding::Q5_0 => (Factor, 1, Scales::None, &[4, 1]),
            Encoding::Q5_1 => (Factors, 1, Scales::None, &[4, 1]),
            Encoding::Q8_0 => (Factor, 1, Scales::None, &[8]),
            Encoding::MXFP4 => (Exponent, 1, Scales::None, &[4]),
            Encoding::Q2_K => (Factors, 8, Scales::HalvesAndMins, &[2]),
            Encoding::Q3_K => (Factor, 8, Scales::Halves, &[2, 1]),
            Encoding::Q4_K => (Factors, 8, Scales::WholeAndMin, &[4]),
            Encoding::Q5_K => (Factors, 8, Scales::WholeAndMin, &[4, 1]),
            Encoding::Q6_K => (Factor, 8, Scales::Halves, &[4, 2]),
            Encoding::IQ4_XS => (Factor, 8, Scales::Whole, &[4]),
        };
        Some(Layout {
            header,
            parts,
            scales,
            planes,
        })
    }

    /// Bytes of the header of eight rows.
    const fn header_bytes(self) -> usize {
        GROUP
            * match self.header {
                Header::Exponent => 1,
                Header::Factor => 2,
                Header::Factors => 4,
            }
    }

    /// Bytes of 32 elements of eight rows.
    const fn part_bytes(self) -> usize {
        let (mut bits, mut i) = (0, 0);
        while i < self.planes.len() {
            bits += self.planes[i] as usize;
            i += 1;
        }
        GROUP * self.scales.bytes() + VECTOR * bits
    }

    /// Bytes of a block of eight rows.
    pub const fn bytes(self) -> usize {
        self.header_bytes() + self.parts * self.part_bytes()
    }

    /// Puts a GGUF block as row `r` into a packed block of zeros.
    #[inline(always)]
    pub fn pack(self, encoding: Encoding, block: &[u8], r: usize, packed: &mut [u8]) {
        let fields = Fields::of(encoding, block);
        let (header, parts) = packed.split_at_mut(self.header_bytes());
        match self.header {
            Header::Exponent => header[r] = fields.d[0],
            Header::Factor => header[2 * r..][..2].copy_from_slice(&fields.d),
            Header::Factors => {
                header[2 * r..][..2].copy_from_slice(&fields.d);
                header[2 * (GROUP + r)..][..2].copy_from_slice(&fields.m);
            }
        }
        for (b, part) in parts.chunks_exact_mut(self.part_bytes()).enumerate() {
            let (scales, planes) = part.split_at_mut(GROUP * self.scales.bytes());
            for (i, scale) in self.scale_bytes(&fields, b)[..self.scales.bytes()]
                .iter()
                .enumerate()
            {
                scales[i * GROUP + r] = *scale;
            }
            self.pack_planes(&fields.codes[b * BLOCK..][..BLOCK], r, planes);
        }
    }

    /// The scale bytes of a row's 32 elements number `b`; as many as there are.
    fn scale_bytes(self, fields: &Fields, b: usize) -> [u8; 2] {
        let scale = |half: usize| fields.scales[2 * b + half] as u8;
        let min = |half: usize| fields.mins[2 * b + half];
        match self.scales {
            Scales::None | Scales::Whole => [scale(0), 0],
            Scales::WholeAndMin => [scale(0), min(0)],
            Scales::Halves => [scale(0), scale(1)],
            Scales::HalvesAndMins => [0, 1].map(|half| scale(half) | min(half) << 4),
        }
    }

    /// Four elements are a word, and words are shifted into place.
    #[inline(always)]
    fn pack_planes(self, codes: &[u8], r: usize, planes: &mut [u8]) {
        let mut words = [0u32; BLOCK / 4];
        for (word, codes) in words.iter_mut().zip(codes.as_chunks().0) {
            *word = u32::from_le_bytes(*codes);
        }
        let (mut from, mut vector) = (0, 0);
        for &bits in self.planes {
            let mask = (0xff >> (8 - bits)) * 0x0101_0101;
            let words_a_vector = (8 / bits) as usize;
            for words in words.chunks_exact(words_a_vector) {
                let mut lane = 0;
                for (slot, word) in words.iter().enumerate() {
                    lane |= (word >> from & mask) << (slot as u32 * bits);
                }
                planes[vector * VECTOR + 4 * r..][..4].copy_from_slice(&lane.to_le_bytes());
                vector += 1;
            }
            from += bits;
        }
    }

    /// Row `r` of the 32 elements number `b` of a packed block.
    #[inline(always)]
    pub fn part(self, encoding: Encoding, packed: &[u8], b: usize, r: usize) -> Part {
        let (header, parts) = packed.split_at(self.header_bytes());
        let (scales, planes) = parts[b * self.part_bytes()..][..self.part_bytes()]
            .split_at(GROUP * self.scales.bytes());
        let d = match self.header {
            Header::Exponent => half_exponent(header[r]),
            Header::Factor | Header::Factors => f16_at(header, 2 * r),
        };
        let m = match self.header {
            Header::Factors => f16_at(header, 2 * (GROUP + r)),
            Header::Factor | Header::Exponent => 0.0,
        };
        let byte = |i: usize| scales[i * GROUP + r];
        let (scales, min) = match self.scales {
            Scales::None => {
                let min = match self.header {
                    Header::Factors => Min::Added(m),
                    Header::Factor | Header::Exponent => Min::None,
                };
                ([1; 2], min)
            }
            Scales::Whole => ([i32::from(byte(0) as i8); 2], Min::None),
            Scales::WholeAndMin => {
                let (factor, min) = (-m, i32::from(byte(1)));
                ([i32::from(byte(0)); 2], Min::Whole { factor, min })
            }
            Scales::Halves => ([0, 1].map(|i| i32::from(byte(i) as i8)), Min::None),
            Scales::HalvesAndMins => (
                [0, 1].map(|i| i32::from(byte(i) & 15)),
                Min::Halves {
                    factor: -m,
                    mins: [0, 1].map(|i| i32::from(byte(i) >> 4)),
                },
            ),
        };
        Part {
            encoding,
            d,
            scales,
            min,
            codes: self.codes(planes, r),
        }
    }

    #[inline(always)]
    fn codes(self, planes: &[u8], r: usize) -> [u8; BLOCK] {
        let mut words = [0u32; BLOCK / 4];
        let (mut to, mut vector) = (0, 0);
        for &bits in self.planes {
            let mask = (0xff >> (8 - bits)) * 0x0101_0101;
            let words_a_vector = (8 / bits) as usize;
            for words in words.chunks_exact_mut(words_a_vector) {
                let lane = &planes[vector * VECTOR + 4 * r..][..4];
                let lane = u32::from_le_bytes([lane[0], lane[1], lane[2], lane[3]]);
                for (slot, word) in words.iter_mut().enumerate() {
                    *word |= (lane >> (slot as u32 * bits) & mask) << to;
                }
                vector += 1;
            }
            to += bits;
        }
        let mut codes = [0; BLOCK];
        for (codes, word) in codes.as_chunks_mut().0.iter_mut().zip(words) {
            *codes = word.to_le_bytes();
        }
        codes
    }
}

/// 32 elements of a row.
pub struct Part {
    encoding: Encoding,
    /// The factor of the scales.
    pub d: f32,
    /// Integer scales of the halves; 1 where the encoding has none.
    pub scales: [i32; 2],
    pub min: Min,
    codes: [u8; BLOCK],
}

/// What is added to d * scale * quant.
#[derive(Clone, Copy)]
pub enum Min {
    None,
    /// The same for all elements.
    Added(f32),
    /// The factor times an integer: exact.
    Whole {
        factor: f32,
        min: i32,
    },
    /// The factor times an integer for each half.
    Halves {
        factor: f32,
        mins: [i32; 2],
    },
}

impl Min {
    /// The integers of both halves, and their factor; zeros where there are none.
    #[inline(always)]
    pub fn integers(self) -> ([i32; 2], f32) {
        match self {
            Min::None | Min::Added(_) => ([0; 2], 0.0),
            Min::Whole { factor, min } => ([min; 2], factor),
            Min::Halves { factor, mins } => (mins, factor),
        }
    }
}

impl Part {
    /// The quant of an element, with the offset taken off.
    #[inline(always)]
    pub fn quant(&self, i: usize) -> i32 {
        i32::from(value(self.encoding, self.codes[i]))
    }

    #[inline(always)]
    pub fn dequantise(&self, out: &mut [f32; BLOCK]) {
        for (i, out) in out.iter_mut().enumerate() {
            let half = i / (BLOCK / 2);
            *out = self.d * self.scales[half] as f32 * self.quant(i) as f32;
            match self.min {
                Min::None => {}
                Min::Added(min) => *out += min,
                Min::Whole { factor, min } => *out += factor * min as f32,
                Min::Halves { factor, mins } => *out += factor * mins[half] as f32,
            }
        }
    }
}
