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
//! | family | encodings            | codes of a lane, 64 columns                                  | then, for each row                      |
//! |--------|----------------------|--------------------------------------------------------------|-----------------------------------------|
//! | Half   | F16                  | 64 bytes: f16, in order of use                               |                                         |
//! | Nibble | Q4_0, Q4_1           | 16 bytes: a word a step, nibble i the code i of [`NIBBLES`]  | f16 d (Q4_1: and m) of both blocks of 32 |
//! | Byte   | Q8_0                 | 32 bytes: two words a step, codes of row g, then of row g + 8; plus 128 | f16 d of both blocks         |
//! | Wide   | all other quantised  | as Byte, without the 128                                     | f32 s and n of each 16 columns          |
//!
//! The words of a lane for one of the first three lie together, lane after lane, 16 bytes of every lane at a time. A scale
//! block is, for each g, the row g's and the row g + 8's fields: [d, d'] or [d, d', m, m'] for each block of 32, [s, s'] and
//! [n, n'] for each 16 columns.
//!
//! Wide is an exact re-encoding: an element is `s * code - n` with s and n the products that the encoding defines, exact in
//! f32, and code its integer plus 128.

use crate::quant::fields::{Fields, has_min, value};
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

/// How an encoding's codes lie in a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Half,
    Nibble,
    Byte,
    Wide,
}

/// The family of an encoding; none for those that have no fragments.
pub const fn family(encoding: Encoding) -> Option<Family> {
    match encoding {
        Encoding::F32 | Encoding::BF16 => None,
        Encoding::F16 => Some(Family::Half),
        Encoding::Q4_0 | Encoding::Q4_1 => Some(Family::Nibble),
        Encoding::Q8_0 => Some(Family::Byte),
        Encoding::Q5_0
        | Encoding::Q5_1
        | Encoding::Q2_K
        | Encoding::Q3_K
        | Encoding::Q4_K
        | Encoding::Q5_K
        | Encoding::Q6_K
        | Encoding::IQ4_NL
        | Encoding::IQ4_XS
        | Encoding::MXFP4 => Some(Family::Wide),
    }
}

/// Bytes of the codes of a fragment.
const fn code_bytes(family: Family) -> usize {
    match family {
        Family::Half => TILE * FRAGMENT * 2,
        Family::Nibble => TILE * FRAGMENT / 2,
        Family::Byte | Family::Wide => TILE * FRAGMENT,
    }
}

/// Bytes of a fragment: the same as the plan's validation counts; none for an encoding that has none.
pub const fn fragment_bytes(encoding: Encoding) -> Option<usize> {
    let Some(family) = family(encoding) else {
        return None;
    };
    let scales = match (family, encoding) {
        (Family::Half, _) => 0,
        (Family::Nibble, Encoding::Q4_1) => TILE * 2 * 4,
        (Family::Nibble | Family::Byte, _) => TILE * 2 * 2,
        (Family::Wide, _) => TILE * 4 * 8,
    };
    Some(code_bytes(family) + scales)
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
    let family = family(encoding).expect("the encoding has fragments");
    let bytes = fragment_bytes(encoding).expect("the encoding has fragments");
    assert!(rows.len() <= TILE, "a tile has at most {TILE} rows");
    assert_eq!(Some(out.len() as u64), tile_bytes(encoding, cols as u64));
    out.fill(0);
    for (index, fragment) in out.chunks_exact_mut(bytes).enumerate() {
        let (codes, scales) = fragment.split_at_mut(code_bytes(family));
        for row in 0..TILE {
            match rows.get(row) {
                Some(bytes) => pack_row(encoding, family, bytes, index, row, codes, scales),
                // A byte's zero is 128, a nibble's scale 0: with scales of 0 any code is zero, but a Q8_0 code must not
                // be one that a kernel takes for something else.
                None => clear_row(family, row, codes),
            }
        }
    }
}

/// Codes of a row that is not there.
fn clear_row(family: Family, row: usize, codes: &mut [u8]) {
    if matches!(family, Family::Byte | Family::Wide) {
        for column in 0..FRAGMENT {
            put_code(family, row, column, 128, codes);
        }
    }
}

/// Columns `64 index ..` of row `row` of a tile.
fn pack_row(
    encoding: Encoding,
    family: Family,
    bytes: &[u8],
    index: usize,
    row: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    if family == Family::Half {
        let bytes = &bytes[index * FRAGMENT * 2..][..FRAGMENT * 2];
        for (column, bytes) in bytes.as_chunks::<2>().0.iter().enumerate() {
            put_code(family, row, column, u16::from_le_bytes(*bytes), codes);
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
            let code = match family {
                Family::Nibble => u16::from(code),
                _ => (i16::from(value(encoding, code)) + 128) as u16,
            };
            put_code(family, row, half * BLOCK + i, code, codes);
        }
        if family == Family::Wide {
            let (d, m) = (fields.factor(encoding), fields.min_factor(encoding));
            for part in 0..2 {
                let at = within / 16 + part;
                let scale = d * f32::from(fields.scales[at]);
                let minimum = match has_min(encoding) {
                    true => -m * f32::from(fields.mins[at]),
                    false => 0.0,
                };
                let at = wide_scale(row, 2 * half + part);
                scales[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                scales[at + 8..at + 12].copy_from_slice(&minimum.to_le_bytes());
            }
        } else {
            let at = half_scale(encoding, row, half);
            scales[at..at + 2].copy_from_slice(&fields.d);
            if encoding == Encoding::Q4_1 {
                scales[at + 4..at + 6].copy_from_slice(&fields.m);
            }
        }
    }
}

/// Byte of the f16 factor of a row's block of 32 in the scales of a fragment; the minimum's is 4 further.
fn half_scale(encoding: Encoding, row: usize, block: usize) -> usize {
    let fields = if encoding == Encoding::Q4_1 { 2 } else { 1 };
    ((row % 8 * 2 + block) * fields * 2 + row / 8) * 2
}

/// Byte of the f32 factor of a row's 16 columns in the scales of a fragment; the minimum's is 8 further.
fn wide_scale(row: usize, part: usize) -> usize {
    ((row % 8 * 4 + part) * 4 + row / 8) * 4
}

/// Where a code of a row and column lies: the byte, and the bit in it.
fn place(family: Family, row: usize, column: usize) -> (usize, u32) {
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
    match family {
        Family::Half => (of_lane(step * 16 + 2 * index(&ORDER)), 0),
        Family::Nibble => {
            let i = index(&NIBBLES);
            (of_lane(step * 4 + i / 2), i as u32 % 2 * 4)
        }
        Family::Byte | Family::Wide => (of_lane(step * 8 + half * 4 + j), 0),
    }
}

fn put_code(family: Family, row: usize, column: usize, code: u16, codes: &mut [u8]) {
    let (at, bit) = place(family, row, column);
    match family {
        Family::Half => codes[at..at + 2].copy_from_slice(&code.to_le_bytes()),
        _ => {
            codes[at] =
                codes[at] & !(0xf << bit) * u8::from(family == Family::Nibble) | (code << bit) as u8
        }
    }
}

/// Dequantises row `row` of a packed weight of `out.len()` columns.
///
/// # Panics
/// Where the encoding has no fragments, or `packed` ends before the row's tile does.
pub fn unpack_row(encoding: Encoding, packed: &[u8], row: usize, out: &mut [f32]) {
    let family = family(encoding).expect("the encoding has fragments");
    let bytes = fragment_bytes(encoding).expect("the encoding has fragments");
    let len = out.len() / FRAGMENT * bytes;
    let (tile, row) = (&packed[row / TILE * len..][..len], row % TILE);
    for (fragment, out) in tile
        .chunks_exact(bytes)
        .zip(out.as_chunks_mut::<FRAGMENT>().0)
    {
        let (codes, scales) = fragment.split_at(code_bytes(family));
        for (column, out) in out.iter_mut().enumerate() {
            let (at, bit) = place(family, row, column);
            *out = match family {
                Family::Half => f16_at(codes, at),
                Family::Nibble => {
                    let at_scale = half_scale(encoding, row, column / BLOCK);
                    let d = f16_at(scales, at_scale);
                    let q = value(encoding, codes[at] >> bit & 15);
                    let m = match encoding {
                        Encoding::Q4_1 => f16_at(scales, at_scale + 4),
                        _ => 0.0,
                    };
                    d * f32::from(q) + m
                }
                Family::Byte => {
                    let d = f16_at(scales, half_scale(encoding, row, column / BLOCK));
                    d * (f32::from(codes[at]) - 128.0)
                }
                Family::Wide => {
                    let at_scale = wide_scale(row, column / 16);
                    let q = f32::from(codes[at]) - 128.0;
                    f32_at(scales, at_scale) * q - f32_at(scales, at_scale + 8)
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
            if family(encoding).is_none() {
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
                    if row < rows {
                        quant::dequantise_row(encoding, source[row], &mut expected);
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
        for family in [Family::Half, Family::Nibble, Family::Byte] {
            let mut seen = std::collections::BTreeSet::new();
            for row in 0..TILE {
                for column in 0..FRAGMENT {
                    assert!(seen.insert(place(family, row, column)), "{family:?}");
                }
            }
            let last = seen.last().unwrap().0;
            assert!(last < code_bytes(family), "{family:?}");
        }
        // Row 13 = 8 + 5, column 43 = 32 + 8 * 1 + 3: lane 21, step 2.
        assert_eq!(place(Family::Byte, 13, 43), (512 + 21 * 16 + 4 + 3, 0));
        assert_eq!(place(Family::Nibble, 13, 43), (21 * 16 + 8 + 3, 4));
        assert_eq!(place(Family::Half, 13, 43), (1024 + 21 * 16 + 14, 0));
    }
}
