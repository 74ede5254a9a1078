//! The packed layout of weights for matrix units, `WeightLayout::Fragment16`.
//!
//! A tile is 16 rows, a fragment 64 columns of a tile: what the 32 lanes of a warp feed to four `m16n8k16` instructions.
//! Fragments of a tile follow one another, tiles too; the last tile is padded with rows of zeros. Columns are a multiple of
//! 64.
//!
//! Lane 4g + t holds rows g and g + 8. In step s (0 to 3) it multiplies the columns 32 (s / 2) + 8 t + 4 (s % 2) + 0 .. 4:
//! which columns an instruction takes for its k is free as long as both factors agree, and these let a lane read its
//! activations 16 bytes at a time. A lane's numbers of a step are its *codes*, in the order of the instruction's registers:
//! [`ORDER`] gives row (0: g, 1: g + 8) and column of each.
//!
//! A fragment is its codes, then its scales. Codes are integers (F16, BF16: the numbers themselves):
//!
//! | codes   | of a lane                                                                                   | bytes |
//! |---------|---------------------------------------------------------------------------------------------|-------|
//! | Half    | 64 bytes, in order of use                                                                   | 2048  |
//! | Nibbles | 16 bytes: a word a step, nibble i the low four bits of code i of [`NIBBLES`]                | 512   |
//! | Five    | as Nibbles; behind all of those, a word: the fifth bit of register r's half h of step s is bit 4s + r + 16h | 640 |
//! | Six     | as Nibbles; behind, a word for two steps: the high two bits are at bit 8 (s % 2) + 2r + 16h | 768   |
//! | Bytes   | 32 bytes: two words a step, codes of row g, then of row g + 8; plus 128                     | 1024  |
//!
//! Words of Half, Nibbles and Bytes lie 16 bytes of every lane at a time, lane after lane. An element is `s * (code - offset) - n`:
//!
//! | scales    | for each g, of rows g and g + 8 (marked ')                                                  | s, n        | bytes |
//! |-----------|---------------------------------------------------------------------------------------------|-------------|-------|
//! | Blocks    | of both blocks of 32 columns [d, d'], f16                                                   | d, 0        | 64    |
//! | BlocksMin | of both blocks of 32 columns [d, d', m, m'], f16                                            | d, -m       | 128   |
//! | Super     | [d, e], [d', e'], f16; bytes [a0, b0, a1, b1], and those ' : a and b of both blocks of 32   | d a, e b    | 128   |
//! | PartsMin  | as Super; bytes [p0, p1, p2, p3] of the four parts of 16, a the low half of p, b the high   | d a, e b    | 128   |
//! | Parts     | bytes [a0, a1, a2, a3] of the parts of 16, plus 128, and those '; behind all of those, [d, d'], f16 | d a, 0 | 96    |
//! | Wide      | of each part of 16 columns [s, s', n, n'], f32                                              | s, n        | 512   |
//!
//! All are exact: products of an f16 and an integer of a byte are f32 numbers.

use crate::quant::fields::{Fields, has_min, offset, value};
use crate::quant::{BLOCK, block_bytes, block_elements, f16_at, f32_at};
use bundle_format::plan::Encoding;

/// Rows of a tile.
pub const TILE: usize = 16;

/// Columns of a fragment.
pub const FRAGMENT: usize = 64;

const LANES: usize = 32;

/// Row (0 or 1) and column (0 to 3) of a lane's eight numbers of a step, in the order in which an instruction takes them.
pub const ORDER: [(usize, usize); 8] = [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
    (0, 2),
    (0, 3),
    (1, 2),
    (1, 3),
];

/// Row and column of the nibbles of a word, from the least significant one: two that an instruction takes together lie 16
/// bits apart, so that one `and` isolates them.
pub const NIBBLES: [(usize, usize); 8] = [
    (0, 0),
    (1, 0),
    (0, 2),
    (1, 2),
    (0, 1),
    (1, 1),
    (0, 3),
    (1, 3),
];

/// How the codes of an encoding lie in a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    Half,
    Nibbles,
    Five,
    Six,
    Bytes,
}

/// How its scales do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Numbers need none.
    None,
    Blocks,
    BlocksMin,
    Super,
    Parts,
    PartsMin,
    Wide,
}

/// Codes and scales of an encoding; none for one that has no fragments.
pub const fn form(encoding: Encoding) -> Option<(Codes, Scales)> {
    Some(match encoding {
        Encoding::F32 => return None,
        Encoding::F16 | Encoding::BF16 => (Codes::Half, Scales::None),
        Encoding::Q4_0 => (Codes::Nibbles, Scales::Blocks),
        Encoding::Q4_1 => (Codes::Nibbles, Scales::BlocksMin),
        Encoding::Q5_0 => (Codes::Five, Scales::Blocks),
        Encoding::Q5_1 => (Codes::Five, Scales::BlocksMin),
        Encoding::Q8_0 | Encoding::IQ4_NL => (Codes::Bytes, Scales::Blocks),
        Encoding::Q2_K => (Codes::Nibbles, Scales::PartsMin),
        Encoding::Q3_K => (Codes::Nibbles, Scales::Parts),
        Encoding::Q4_K => (Codes::Nibbles, Scales::Super),
        Encoding::Q5_K => (Codes::Five, Scales::Super),
        Encoding::Q6_K => (Codes::Six, Scales::Parts),
        Encoding::IQ4_XS => (Codes::Bytes, Scales::Parts),
        Encoding::MXFP4 => (Codes::Bytes, Scales::Wide),
    })
}

impl Codes {
    /// Bytes of a fragment's.
    pub const fn bytes(self) -> usize {
        TILE * FRAGMENT * self.bits() / 8
    }

    const fn bits(self) -> usize {
        match self {
            Codes::Half => 16,
            Codes::Nibbles => 4,
            Codes::Five => 5,
            Codes::Six => 6,
            Codes::Bytes => 8,
        }
    }
}

impl Scales {
    /// Bytes of a fragment's.
    pub const fn bytes(self) -> usize {
        match self {
            Scales::None => 0,
            Scales::Blocks => TILE * 4,
            Scales::Parts => TILE * 6,
            Scales::BlocksMin | Scales::Super | Scales::PartsMin => TILE * 8,
            Scales::Wide => TILE * 32,
        }
    }
}

/// Bytes of a fragment: the same as the plan's validation counts; none for an encoding that has none.
pub const fn fragment_bytes(encoding: Encoding) -> Option<usize> {
    match form(encoding) {
        Some((codes, scales)) => Some(codes.bytes() + scales.bytes()),
        None => None,
    }
}

/// Bytes of a tile; none where `cols` is no whole number of fragments or the encoding has none.
pub fn tile_bytes(encoding: Encoding, cols: u64) -> Option<u64> {
    let bytes = fragment_bytes(encoding)? as u64;
    if !cols.is_multiple_of(FRAGMENT as u64) {
        return None;
    }
    (cols / FRAGMENT as u64).checked_mul(bytes)
}

/// The row of a weight that is packed as row `packed` where units of `pairs` rows have their halves in turn; with 0 it is
/// the same.
pub fn paired_row(packed: u32, pairs: u32) -> u32 {
    if pairs == 0 {
        return packed;
    }
    let (unit, within) = (packed / pairs, packed % pairs);
    let (eight, high) = (within / 16, within % 16 / 8);
    unit * pairs + high * (pairs / 2) + 8 * eight + within % 8
}

/// The packed row of a weight's row: the inverse of [`paired_row`].
pub fn packed_row(row: u32, pairs: u32) -> u32 {
    if pairs == 0 {
        return row;
    }
    let (unit, within) = (row / pairs, row % pairs);
    let (high, within) = (within / (pairs / 2), within % (pairs / 2));
    unit * pairs + within / 8 * 16 + high * 8 + within % 8
}

/// Packs one tile. `rows` are the row-major bytes of one to 16 rows of `cols` elements; `out` has [`tile_bytes`] bytes and
/// is overwritten wholly. Missing rows become zeros.
///
/// # Panics
/// Where the encoding has no fragments or a length disagrees: a mistake of the caller, who computed both.
pub fn pack_tile(encoding: Encoding, cols: usize, rows: &[&[u8]], out: &mut [u8]) {
    let (form, _) = form(encoding).expect("the encoding has fragments");
    let bytes = fragment_bytes(encoding).expect("the encoding has fragments");
    assert!(rows.len() <= TILE, "a tile has at most {TILE} rows");
    assert_eq!(Some(out.len() as u64), tile_bytes(encoding, cols as u64));
    out.fill(0);
    for (index, fragment) in out.chunks_exact_mut(bytes).enumerate() {
        let (codes, scales) = fragment.split_at_mut(form.bytes());
        for row in 0..TILE {
            match rows.get(row) {
                Some(bytes) => pack_row(encoding, bytes, index, row, codes, scales),
                // With scales of 0 any code is a zero; a byte's own is 128.
                None if form == Codes::Bytes => {
                    (0..FRAGMENT).for_each(|column| put_code(form, row, column, 128, codes));
                }
                None => {}
            }
        }
    }
}

/// Columns `64 index ..` of row `row` of a tile.
fn pack_row(
    encoding: Encoding,
    bytes: &[u8],
    index: usize,
    row: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let (form, scale) = form(encoding).expect("the encoding has fragments");
    if form == Codes::Half {
        let bytes = &bytes[index * FRAGMENT * 2..][..FRAGMENT * 2];
        for (column, bytes) in bytes.as_chunks::<2>().0.iter().enumerate() {
            put_code(form, row, column, u16::from_le_bytes(*bytes), codes);
        }
        return;
    }
    let elements = block_elements(encoding);
    for half in 0..FRAGMENT / BLOCK {
        let first = index * FRAGMENT + half * BLOCK;
        let (block, within) = (first / elements, first % elements);
        let block = &bytes[block * block_bytes(encoding)..][..block_bytes(encoding)];
        let fields = Fields::of(encoding, block);
        for (i, &code) in fields.codes[within..within + BLOCK].iter().enumerate() {
            let code = match form {
                Codes::Bytes => (i16::from(value(encoding, code)) + 128) as u16,
                _ => u16::from(code),
            };
            put_code(form, row, half * BLOCK + i, code, codes);
        }
        put_scales(encoding, scale, &fields, (row, half, within), scales);
    }
}

/// The scales of a row's block of 32 columns, `half` of the fragment, which begins at element `within` of its fields.
fn put_scales(
    encoding: Encoding,
    form: Scales,
    fields: &Fields,
    (row, half, within): (usize, usize, usize),
    scales: &mut [u8],
) {
    let mut put = |at: usize, bytes: &[u8]| scales[at..at + bytes.len()].copy_from_slice(bytes);
    let (g, high) = (row % 8, row / 8);
    let part = within / 16;
    match form {
        Scales::None => {}
        Scales::Blocks => put(block_scale(row, half, 1), &fields.d),
        Scales::BlocksMin => {
            put(block_scale(row, half, 2), &fields.d);
            put(block_scale(row, half, 2) + 4, &fields.m);
        }
        Scales::Super | Scales::PartsMin => {
            put(g * 16 + high * 4, &fields.d);
            put(g * 16 + high * 4 + 2, &fields.m);
            let byte = |i: usize| fields.scales[part + i] as u8 | fields.mins[part + i] << 4;
            let pair = match form {
                Scales::Super => [fields.scales[part] as u8, fields.mins[part]],
                _ => [byte(0), byte(1)],
            };
            put(g * 16 + 8 + high * 4 + half * 2, &pair);
        }
        Scales::Parts => {
            let biased = |i: usize| (i16::from(fields.scales[part + i]) + 128) as u8;
            put(g * 8 + high * 4 + half * 2, &[biased(0), biased(1)]);
            put(TILE * 4 + g * 4 + high * 2, &fields.d);
        }
        Scales::Wide => {
            let (d, m) = (fields.factor(encoding), fields.min_factor(encoding));
            for i in 0..2 {
                let scale = d * f32::from(fields.scales[part + i]);
                let minimum = match has_min(encoding) {
                    true => -m * f32::from(fields.mins[part + i]),
                    false => 0.0,
                };
                let at = wide_scale(row, 2 * half + i);
                put(at, &scale.to_le_bytes());
                put(at + 8, &minimum.to_le_bytes());
            }
        }
    }
}

/// Byte of the f16 factor of a row's block of 32 in scales of so many fields; the minimum's is 4 further.
fn block_scale(row: usize, block: usize, fields: usize) -> usize {
    ((row % 8 * 2 + block) * fields * 2 + row / 8) * 2
}

/// Byte of the f32 factor of a row's 16 columns in the scales of a fragment; the minimum's is 8 further.
fn wide_scale(row: usize, part: usize) -> usize {
    ((row % 8 * 4 + part) * 4 + row / 8) * 4
}

/// The factor of a row's part of 16 columns, and what is added to a product with it.
fn factors(form: Scales, scales: &[u8], row: usize, part: usize) -> (f32, f32) {
    let (g, high, half) = (row % 8, row / 8, part / 2);
    let byte = |at: usize| f32::from(scales[at]);
    match form {
        Scales::None => (1.0, 0.0),
        Scales::Blocks => (f16_at(scales, block_scale(row, half, 1)), 0.0),
        Scales::BlocksMin => {
            let at = block_scale(row, half, 2);
            (f16_at(scales, at), f16_at(scales, at + 4))
        }
        Scales::Super | Scales::PartsMin => {
            let at = g * 16 + high * 4;
            let (d, e) = (f16_at(scales, at), f16_at(scales, at + 2));
            let (a, b) = match form {
                Scales::Super => (byte(at + 8 + half * 2), byte(at + 9 + half * 2)),
                _ => {
                    let both = scales[at + 8 + part];
                    (f32::from(both & 15), f32::from(both >> 4))
                }
            };
            (d * a, -(e * b))
        }
        Scales::Parts => {
            let a = byte(g * 8 + high * 4 + part) - 128.0;
            (f16_at(scales, TILE * 4 + g * 4 + high * 2) * a, 0.0)
        }
        Scales::Wide => {
            let at = wide_scale(row, part);
            (f32_at(scales, at), -f32_at(scales, at + 8))
        }
    }
}

/// Where a code of a row and column lies: the byte of its low bits, and the bit in it; and the same of its high bits, if it
/// has others.
fn place(codes: Codes, row: usize, column: usize) -> ((usize, u32), Option<(usize, u32)>) {
    let (half, g) = (row / 8, row % 8);
    let (block, within) = (column / BLOCK, column % BLOCK);
    let (t, step, j) = (within / 8, 2 * block + within % 8 / 4, within % 4);
    let lane = 4 * g + t;
    // Byte `at` of a lane's: 16 bytes of every lane lie together.
    let of_lane = |at: usize| at / 16 * 16 * LANES + lane * 16 + at % 16;
    let index = |order: &[(usize, usize); 8]| {
        let found = order.iter().position(|&o| o == (half, j));
        found.expect("all eight are in the order")
    };
    let nibble = || {
        let i = index(&NIBBLES);
        (of_lane(step * 4 + i / 2), i as u32 % 2 * 4)
    };
    // The register of the instruction, and the half of it.
    let (register, part) = (index(&ORDER) / 2, index(&ORDER) % 2);
    // Bit `at` of a lane's word behind the nibbles.
    let high = |word: usize, at: usize| (Codes::Nibbles.bytes() + word * 4 + at / 8, at as u32 % 8);
    match codes {
        Codes::Half => ((of_lane(step * 16 + 2 * index(&ORDER)), 0), None),
        Codes::Bytes => ((of_lane(step * 8 + half * 4 + j), 0), None),
        Codes::Nibbles => (nibble(), None),
        Codes::Five => (nibble(), Some(high(lane, 4 * step + register + 16 * part))),
        Codes::Six => {
            let at = 8 * (step % 2) + 2 * register + 16 * part;
            (nibble(), Some(high(lane * 2 + step / 2, at)))
        }
    }
}

/// Puts a code in its place, which is zero.
fn put_code(form: Codes, row: usize, column: usize, code: u16, codes: &mut [u8]) {
    let ((at, bit), high) = place(form, row, column);
    match form {
        Codes::Half => codes[at..at + 2].copy_from_slice(&code.to_le_bytes()),
        Codes::Bytes => codes[at] = code as u8,
        Codes::Nibbles | Codes::Five | Codes::Six => {
            codes[at] |= (code as u8 & 15) << bit;
            if let Some((at, bit)) = high {
                codes[at] |= (code as u8 >> 4) << bit;
            }
        }
    }
}

/// The integer at a row and column, as it was put there.
fn code_at(form: Codes, row: usize, column: usize, codes: &[u8]) -> u8 {
    let ((at, bit), high) = place(form, row, column);
    if form == Codes::Bytes {
        return codes[at];
    }
    let mask = (1 << (form.bits() - 4)) - 1;
    let high = high.map_or(0, |(at, bit)| codes[at] >> bit & mask);
    codes[at] >> bit & 15 | high << 4
}

/// Dequantises row `row` of a packed weight of `out.len()` columns.
///
/// # Panics
/// Where the encoding has no fragments, or `packed` ends before the row's tile does.
pub fn unpack_row(encoding: Encoding, packed: &[u8], row: usize, out: &mut [f32]) {
    let (form, scale) = form(encoding).expect("the encoding has fragments");
    let bytes = fragment_bytes(encoding).expect("the encoding has fragments");
    let len = out.len() / FRAGMENT * bytes;
    let (tile, row) = (&packed[row / TILE * len..][..len], row % TILE);
    for (fragment, out) in tile
        .chunks_exact(bytes)
        .zip(out.as_chunks_mut::<FRAGMENT>().0)
    {
        let (codes, scales) = fragment.split_at(form.bytes());
        for (column, out) in out.iter_mut().enumerate() {
            *out = match (form, encoding) {
                (Codes::Half, Encoding::BF16) => {
                    let ((at, _), _) = place(form, row, column);
                    let bits = u16::from_le_bytes([codes[at], codes[at + 1]]);
                    f32::from_bits(u32::from(bits) << 16)
                }
                (Codes::Half, _) => f16_at(codes, place(form, row, column).0.0),
                _ => {
                    let less = match form {
                        Codes::Bytes => 128,
                        _ => offset(encoding),
                    };
                    let code = code_at(form, row, column, codes);
                    let (s, m) = factors(scale, scales, row, column / 16);
                    s * (f32::from(code) - f32::from(less)) + m
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;

    #[test]
    fn unpacking_returns_every_row() {
        for encoding in Encoding::ALL {
            if form(encoding).is_none() {
                continue;
            }
            let cols = 512;
            let row_len = quant::row_bytes(encoding, cols).unwrap() as usize;
            for rows in [1, 8, 9, 16, 35] {
                // f16 fields stay finite: the exponent's top bit is clear in every byte.
                let source: Vec<u8> = (0..row_len * rows)
                    .map(|i| (i * 37 % 251) as u8 & 0xbf)
                    .collect();
                let source: Vec<&[u8]> = source.chunks_exact(row_len).collect();
                let tile_len = tile_bytes(encoding, cols).unwrap() as usize;
                let mut packed = vec![0xaa; tile_len * rows.div_ceil(TILE)];
                for (rows, out) in source.chunks(TILE).zip(packed.chunks_exact_mut(tile_len)) {
                    pack_tile(encoding, cols as usize, rows, out);
                }
                for row in 0..rows.next_multiple_of(TILE) {
                    let mut expected = vec![0.0; cols as usize];
                    if let Some(bytes) = source.get(row) {
                        quant::dequantise_row(encoding, bytes, &mut expected);
                    }
                    let mut found = vec![f32::NAN; cols as usize];
                    unpack_row(encoding, &packed, row, &mut found);
                    assert_eq!(found, expected, "{encoding:?} row {row} of {rows}");
                }
            }
        }
    }

    /// What a lane multiplies in a step is what the documentation says.
    #[test]
    fn lanes_hold_the_columns_of_their_steps() {
        for codes in [
            Codes::Half,
            Codes::Nibbles,
            Codes::Five,
            Codes::Six,
            Codes::Bytes,
        ] {
            let mut seen = std::collections::BTreeSet::new();
            for row in 0..TILE {
                for column in 0..FRAGMENT {
                    let (low, high) = place(codes, row, column);
                    assert!(seen.insert(low), "{codes:?}");
                    assert!(high.is_none_or(|high| seen.insert(high)), "{codes:?}");
                }
            }
            let last = seen.last().unwrap().0;
            assert!(last < codes.bytes(), "{codes:?}");
        }
        // Row 13 = 8 + 5, column 43 = 32 + 8 * 1 + 3: lane 21, step 2, register 3, the high half.
        let low = |codes| place(codes, 13, 43).0;
        assert_eq!(low(Codes::Bytes), (512 + 21 * 16 + 4 + 3, 0));
        assert_eq!(low(Codes::Nibbles), (21 * 16 + 8 + 3, 4));
        assert_eq!(low(Codes::Half), (1024 + 21 * 16 + 14, 0));
        let high = |codes| place(codes, 13, 43).1;
        assert_eq!(high(Codes::Five), Some((512 + 21 * 4 + 3, 3)));
        assert_eq!(high(Codes::Six), Some((512 + 21 * 8 + 4 + 2, 6)));
    }
}
