//! The packed layout of weights, `WeightLayout::Interleave8`.
//!
//! Rows are taken in groups of eight, so that a 32-byte vector has a 32-bit lane for each row of the group. Groups follow
//! one another without gaps; the last one is padded with rows of zero bytes, which dequantise to zero. Nothing is added
//! or re-encoded: a packed group has exactly the bytes of its eight GGUF rows, in another order. With r the row in the
//! group (0..8):
//!
//! | encoding | for each | bytes                                                                            |
//! |----------|----------|----------------------------------------------------------------------------------|
//! | F32      | k        | 8 f32, one a row                                                                 |
//! | F16      | k        | 8 f16, one a row                                                                 |
//! | Q4_0     | block    | 8 f16 d; then 4 vectors: lane r of vector j is bytes 4j..4j+4 of row r's nibbles |
//! | Q4_1     | block    | 8 f16 d; 8 f16 m; 4 vectors as in Q4_0                                           |
//! | Q8_0     | block    | 8 f16 d; then 8 vectors: lane r of vector j is quants 4j..4j+4 of row r          |
//!
//! So lane r of a 4-bit vector j holds elements 4j..4j+4 of the row's block in the low nibbles and elements
//! 16+4j..16+4j+4 in the high ones. The layout says nothing about a processor: any machine with vectors of 16 bytes or
//! more reads it well.

use bundle_format::plan::{Encoding, WeightLayout};

use crate::quant::{self, block_bytes, block_elements};

/// Rows of a group.
pub const GROUP: usize = 8;

/// Bytes of a packed group of eight rows; none where `cols` is not a whole number of blocks or the size exceeds 64 bits.
pub fn group_bytes(encoding: Encoding, cols: u64) -> Option<u64> {
    quant::row_bytes(encoding, cols)?.checked_mul(GROUP as u64)
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

    out.fill(0);
    let block_len = block_bytes(encoding);
    let fields = fields(encoding);
    for (b, packed) in out.chunks_exact_mut(block_len * GROUP).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let block = &row[b * block_len..][..block_len];
            for field in fields {
                field.scatter(block, r, packed);
            }
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
    let block_len = block_bytes(encoding);
    let elements = block_elements(encoding);
    let group_len = out.len() / elements * block_len * GROUP;
    let group = &packed[row / GROUP * group_len..][..group_len];
    let fields = fields(encoding);
    let mut block = [0u8; MAX_BLOCK_BYTES];
    let block = &mut block[..block_len];
    for (packed, out) in group
        .chunks_exact(block_len * GROUP)
        .zip(out.chunks_exact_mut(elements))
    {
        for field in fields {
            field.gather(packed, row % GROUP, block);
        }
        quant::dequantise_row(encoding, block, out);
    }
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
        WeightLayout::RowMajor => {
            let len = out.len() / block_elements(encoding) * block_bytes(encoding);
            quant::dequantise_row(encoding, &bytes[row * len..][..len], out);
        }
    }
}

const MAX_BLOCK_BYTES: usize = 34;

/// A run of equal words in a block: `words` words of `size` bytes from byte `start`. Packed, word j of the eight rows lies
/// together, in the order of rows, from byte `8 * start + j * 8 * size`.
#[derive(Clone, Copy)]
struct Field {
    start: usize,
    size: usize,
    words: usize,
}

impl Field {
    fn scatter(self, block: &[u8], row: usize, packed: &mut [u8]) {
        for j in 0..self.words {
            let (from, to) = self.places(row, j);
            packed[to..to + self.size].copy_from_slice(&block[from..from + self.size]);
        }
    }

    fn gather(self, packed: &[u8], row: usize, block: &mut [u8]) {
        for j in 0..self.words {
            let (from, to) = self.places(row, j);
            block[from..from + self.size].copy_from_slice(&packed[to..to + self.size]);
        }
    }

    /// Where word j of a row's block lies, and where when packed.
    fn places(self, row: usize, j: usize) -> (usize, usize) {
        let block = self.start + j * self.size;
        let packed = (self.start + j * self.size) * GROUP + row * self.size;
        (block, packed)
    }
}

const fn field(start: usize, size: usize, words: usize) -> Field {
    Field { start, size, words }
}

/// The fields of an encoding's block.
const fn fields(encoding: Encoding) -> &'static [Field] {
    const NUMBER_4: &[Field] = &[field(0, 4, 1)];
    const NUMBER_2: &[Field] = &[field(0, 2, 1)];
    const Q4_0: &[Field] = &[field(0, 2, 1), field(2, 4, 4)];
    const Q4_1: &[Field] = &[field(0, 2, 1), field(2, 2, 1), field(4, 4, 4)];
    const Q8_0: &[Field] = &[field(0, 2, 1), field(2, 4, 8)];
    match encoding {
        Encoding::F32 => NUMBER_4,
        Encoding::F16 => NUMBER_2,
        Encoding::Q4_0 => Q4_0,
        Encoding::Q4_1 => Q4_1,
        Encoding::Q8_0 => Q8_0,
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
                let cols = 96;
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
        // Vector 2, lane 5: bytes 8..12 of row 5.
        assert_eq!(out[32 + 2 * 32 + 5 * 4..][..4], [88, 89, 90, 91]);
    }
}
