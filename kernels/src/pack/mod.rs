//! The packed layout of weights, `WeightLayout::Interleave8`.
//!
//! Rows are taken in groups of eight, so that a 32-byte vector has a 32-bit lane for each row of the group. Groups follow
//! one another without gaps; the last one is padded with rows of zero bytes, which dequantise to zero. Nothing is lost or
//! rounded: a packed group has the fields of its eight GGUF rows, in another order, and some integer scales of fewer than 8
//! bits in bytes of their own.
//!
//! F32, F16 and BF16: for each k the eight rows' numbers.
//!
//! The others: for each block of 32 or 256 k a header, then for each 32 k in it some integer scales and planes of bits.
//! Everything is the eight rows' in turn: a header field is eight f16 (MXFP4: eight bytes), a scale eight bytes.
//!
//! | encoding | header | integer scales of 32 k                               | planes | bytes of GGUF's |
//! |----------|--------|------------------------------------------------------|--------|----------------:|
//! | Q4_0     | d      |                                                      | 4      |               1 |
//! | Q4_1     | d, m   |                                                      | 4      |               1 |
//! | Q5_0     | d      |                                                      | 4, 1   |               1 |
//! | Q5_1     | d, m   |                                                      | 4, 1   |               1 |
//! | Q8_0     | d      |                                                      | 8      |               1 |
//! | IQ4_NL   | d      |                                                      | 4      |               1 |
//! | MXFP4    | e      |                                                      | 4      |               1 |
//! | Q2_K     | d, m   | a byte for each 16 k: scale low, minimum high        | 2      |               1 |
//! | Q3_K     | d      | a signed byte for each 16 k                          | 2, 1   |           1.036 |
//! | Q4_K     | d, m   | a byte; the minimum's                                | 4      |           1.028 |
//! | Q5_K     | d, m   | a byte; the minimum's                                | 4, 1   |           1.023 |
//! | Q6_K     | d      | a signed byte for each 16 k                          | 4, 2   |               1 |
//! | IQ4_XS   | d      | a signed byte                                        | 4      |           1.015 |
//!
//! A plane holds some bits of every element, the least significant ones in the first plane. A plane of b bits is b
//! vectors: elements 4j..4j+4 of row r are the bits from (j * b) % 8 on of the bytes of lane r of vector j * b / 8. So in a
//! plane of 4 bits, lane r of vector v has elements 8v..8v+4 of the row in the low halves and 8v+4..8v+8 in the high ones.
//! The layout says nothing about a processor: any machine with vectors of 16 bytes or more reads it well.

pub mod fragment;
mod layout;
pub mod pairs;

use bundle_format::plan::{Encoding, WeightLayout};

use crate::quant::{self, BLOCK, block_elements};

use layout::Layout;
pub(crate) use layout::{Min, Part};

/// Rows of a group.
pub const GROUP: usize = 8;

/// Bytes of a packed block of eight rows.
pub(crate) const fn packed_block_bytes(encoding: Encoding) -> usize {
    match Layout::of(encoding) {
        Some(layout) => layout.bytes(),
        None => GROUP * quant::block_bytes(encoding),
    }
}

/// Bytes of a packed group of eight rows; none where `cols` is not a whole number of blocks or the size exceeds 64 bits.
pub fn group_bytes(encoding: Encoding, cols: u64) -> Option<u64> {
    let elements = block_elements(encoding) as u64;
    if !cols.is_multiple_of(elements) {
        return None;
    }
    (cols / elements).checked_mul(packed_block_bytes(encoding) as u64)
}

/// Bytes of a packed weight; none as for [`group_bytes`].
pub fn packed_len(encoding: Encoding, rows: u64, cols: u64) -> Option<u64> {
    group_bytes(encoding, cols)?.checked_mul(rows.div_ceil(GROUP as u64))
}

/// Bytes of a weight of either layout; none as for [`group_bytes`].
pub fn weight_len(encoding: Encoding, layout: WeightLayout, rows: u64, cols: u64) -> Option<u64> {
    match layout {
        WeightLayout::RowMajor => quant::row_bytes(encoding, cols)?.checked_mul(rows),
        WeightLayout::Interleave8 => packed_len(encoding, rows, cols),
        WeightLayout::Pairs8 => {
            pairs::group_bytes(encoding, cols)?.checked_mul(rows.div_ceil(GROUP as u64))
        }
        WeightLayout::Fragment16 => {
            fragment::tile_bytes(encoding, cols)?.checked_mul(rows.div_ceil(fragment::TILE as u64))
        }
    }
}

/// Packs one group. `rows` are the row-major bytes of one to eight rows of `cols` elements; `out` has [`group_bytes`]
/// bytes and is overwritten wholly. Missing rows become zeros.
///
/// # Panics
/// Where a length disagrees with `encoding` and `cols`: a mistake of the caller, who computed both.
pub fn pack_group(encoding: Encoding, cols: usize, rows: &[&[u8]], out: &mut [u8]) {
    assert!(rows.len() <= GROUP, "a group has at most {GROUP} rows");
    for row in rows {
        assert_eq!(
            Some(row.len() as u64),
            quant::row_bytes(encoding, cols as u64)
        );
    }
    assert_eq!(Some(out.len() as u64), group_bytes(encoding, cols as u64));

    // With a constant encoding little is left besides moving bytes: up to ten times the speed.
    use Encoding::*;
    match encoding {
        F32 => pack_elements::<4>(rows, out),
        F16 | BF16 => pack_elements::<2>(rows, out),
        // The same blocks.
        Q4_0 | IQ4_NL => pack_blocks(Q4_0, rows, out),
        Q4_1 => pack_blocks(Q4_1, rows, out),
        Q5_0 => pack_blocks(Q5_0, rows, out),
        Q5_1 => pack_blocks(Q5_1, rows, out),
        Q8_0 => pack_blocks(Q8_0, rows, out),
        MXFP4 => pack_blocks(MXFP4, rows, out),
        Q2_K => pack_blocks(Q2_K, rows, out),
        Q3_K => pack_blocks(Q3_K, rows, out),
        Q4_K => pack_blocks(Q4_K, rows, out),
        Q5_K => pack_blocks(Q5_K, rows, out),
        Q6_K => pack_blocks(Q6_K, rows, out),
        IQ4_XS => pack_blocks(IQ4_XS, rows, out),
    }
}

/// Packs up to eight rows of numbers of N bytes.
fn pack_elements<const N: usize>(rows: &[&[u8]], out: &mut [u8]) {
    if rows.len() < GROUP {
        out.fill(0);
    }
    for (r, row) in rows.iter().enumerate() {
        let slots = out.as_chunks_mut::<N>().0[r..].iter_mut().step_by(GROUP);
        for (slot, element) in slots.zip(row.as_chunks::<N>().0) {
            *slot = *element;
        }
    }
}

/// Packs up to eight rows of a quantised encoding.
#[inline(always)]
fn pack_blocks(encoding: Encoding, rows: &[&[u8]], out: &mut [u8]) {
    let layout = Layout::of(encoding).expect("a quantised encoding");
    let block_len = quant::block_bytes(encoding);
    for (b, packed) in out.chunks_exact_mut(layout.bytes()).enumerate() {
        packed.fill(0);
        for (r, row) in rows.iter().enumerate() {
            layout.pack(encoding, &row[b * block_len..][..block_len], r, packed);
        }
    }
}

/// Packs `rows` rows of row-major bytes, the whole weight at once. For weights that fit memory; others go group by group
/// through [`pack_group`].
///
/// # Panics
/// As [`pack_group`].
pub fn pack(encoding: Encoding, rows: usize, cols: usize, src: &[u8]) -> Vec<u8> {
    let src_rows: Vec<&[u8]> = match rows {
        0 => Vec::new(),
        _ => src.chunks_exact(src.len() / rows).collect(),
    };
    let group_len = group_bytes(encoding, cols as u64)
        .and_then(|n| usize::try_from(n).ok())
        .expect("cols is a whole number of blocks and the source is in memory");
    let mut out = vec![0; group_len * rows.div_ceil(GROUP)];
    for (rows, out) in src_rows
        .chunks(GROUP)
        .zip(out.chunks_exact_mut(group_len.max(1)))
    {
        pack_group(encoding, cols, rows, out);
    }
    out
}

/// Dequantises row `row` of a packed weight of `out.len()` columns.
///
/// # Panics
/// Where `packed` ends before the row's group does.
pub fn unpack_row(encoding: Encoding, packed: &[u8], row: usize, out: &mut [f32]) {
    let elements = block_elements(encoding);
    let packed_len = packed_block_bytes(encoding);
    let group_len = out.len() / elements * packed_len;
    let group = &packed[row / GROUP * group_len..][..group_len];
    let outs = out.chunks_exact_mut(elements);
    for (packed, out) in group.chunks_exact(packed_len).zip(outs) {
        unpack_block(encoding, packed, row % GROUP, out);
    }
}

/// Dequantises row `r` of a packed block of eight.
#[inline(always)]
pub(crate) fn unpack_block(encoding: Encoding, packed: &[u8], r: usize, out: &mut [f32]) {
    let Some(layout) = Layout::of(encoding) else {
        let len = quant::block_bytes(encoding);
        return quant::dequantise_row(encoding, &packed[r * len..][..len], out);
    };
    for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        layout.part(encoding, packed, b, r).dequantise(out);
    }
}

/// Row `r` of the 32 k number `b` in a packed block of a quantised encoding.
///
/// # Panics
/// Where the encoding is not quantised or the block shorter: a mistake of the caller.
pub(crate) fn part(encoding: Encoding, packed: &[u8], b: usize, r: usize) -> Part {
    let layout = Layout::of(encoding).expect("a quantised encoding");
    layout.part(encoding, packed, b, r)
}

/// Dequantises row `row` of a weight of either layout and `out.len()` columns.
///
/// # Panics
/// Where `bytes` ends before the row does.
pub fn dequantise_row(
    encoding: Encoding,
    layout: WeightLayout,
    bytes: &[u8],
    row: usize,
    out: &mut [f32],
) {
    match layout {
        WeightLayout::Interleave8 => unpack_row(encoding, bytes, row, out),
        WeightLayout::Pairs8 => pairs::unpack_row(bytes, row, out),
        WeightLayout::Fragment16 => fragment::unpack_row(encoding, bytes, row, out),
        WeightLayout::RowMajor => {
            let len = out.len() / block_elements(encoding) * quant::block_bytes(encoding);
            quant::dequantise_row(encoding, &bytes[row * len..][..len], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ENCODINGS;

    fn bytes(n: usize) -> Vec<u8> {
        // f16 and f32 fields stay finite: the exponent's top bit is clear in every byte.
        (0..n).map(|i| (i * 37 % 251) as u8 & 0xbf).collect()
    }

    #[test]
    fn unpacking_returns_every_row() {
        for encoding in ENCODINGS {
            for rows in [1, 7, 8, 9, 24] {
                let cols = 512;
                let row_len = quant::row_bytes(encoding, cols).unwrap() as usize;
                let src = bytes(row_len * rows);
                let packed = pack(encoding, rows, cols as usize, &src);
                assert_eq!(
                    packed.len() as u64,
                    packed_len(encoding, rows as u64, cols).unwrap()
                );
                for row in 0..rows.next_multiple_of(GROUP) {
                    let mut expected = vec![0.0; cols as usize];
                    if row < rows {
                        quant::dequantise_row(
                            encoding,
                            &src[row * row_len..][..row_len],
                            &mut expected,
                        );
                    }
                    let mut found = vec![f32::NAN; cols as usize];
                    unpack_row(encoding, &packed, row, &mut found);
                    assert_eq!(found, expected, "{encoding:?} row {row} of {rows}");
                }
            }
        }
    }

    #[test]
    fn nibble_lanes_are_as_documented() {
        let mut rows = [[0u8; 20]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            for i in 0..16 {
                row[4 + i] = (r * 16 + i) as u8;
            }
        }
        let rows: Vec<&[u8]> = rows.iter().map(|r| r.as_slice()).collect();
        let mut out = [0u8; 160];
        pack_group(Encoding::Q4_1, 32, &rows, &mut out);
        // Vector 1, lane 5: elements 8..12 and 12..16 of row 5, the low halves of bytes 88..96.
        assert_eq!(out[32 + 32 + 5 * 4..][..4], [0xc8, 0xd9, 0xea, 0xfb]);
        // Vector 2, lane 5: elements 16..20 and 20..24, the high halves of bytes 80..88.
        assert_eq!(out[32 + 2 * 32 + 5 * 4..][..4], [0x55; 4]);
    }

    #[test]
    fn sizes_are_those_that_a_plan_may_say() {
        for encoding in ENCODINGS {
            let cols = block_elements(encoding) as u64 * 3;
            for layout in [WeightLayout::RowMajor, WeightLayout::Interleave8] {
                let plan = bundle_format::validate::packed_len(encoding, layout, 13, cols as u32);
                assert_eq!(weight_len(encoding, layout, 13, cols), plan, "{encoding:?}");
            }
            let packed = group_bytes(encoding, cols).unwrap();
            let source = quant::row_bytes(encoding, cols).unwrap() * GROUP as u64;
            assert!(packed as f64 <= source as f64 * 1.05, "{encoding:?}");
        }
    }
}
