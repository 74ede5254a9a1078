//! The packed layout of F16 and BF16 for products with integers, `WeightLayout::Pairs8`.
//!
//! Groups of eight rows, as in `WeightLayout::Interleave8`, padded with rows of zeros. For each 32 columns a block: eight exponents, a
//! signed byte for each row, then 16 pairs of columns of 32 bytes each. In a pair, two elements a row: first those of rows 0, 1, 4 and 5,
//! then those of rows 2, 3, 6 and 7, so that both halves converted to 32 bits and narrowed with each other, 128 bits by 128
//! bits, are a lane of 32 bits for each row, in order.
//!
//! Nothing is lost: the elements are those of GGUF. Kernels multiply them as the integers w * 2^-x with the row's exponent x, which is
//! the least of at least -126 for which these are below 2^13 for all 32 ([`integer`]); it is 0 for zeros. Of F16's 11 bits none are lost
//! down to an eighth of the largest magnitude's power of two, and the error of any is at most 2^-14 of that.

use bundle_format::plan::Encoding;
use half::{bf16, f16};

use super::GROUP;
use crate::quant::BLOCK;

/// Bytes of a pair of columns.
pub(crate) const PAIR: usize = 4 * GROUP;

/// Bytes of a block of eight rows.
pub(crate) const BLOCK_BYTES: usize = GROUP + BLOCK / 2 * PAIR;

/// The exponent of 32 elements that are not all finite. Its factor is minus infinity, and all integers are [`i16::MIN`]: so no
/// product with them is finite.
const NOT_FINITE: i8 = -128;

/// The least exponent of others, as 2^126 and 2^-126 are normal numbers.
const LEAST: i32 = -126;

/// Bytes of a packed group of eight rows; none where the encoding has no such layout, `cols` is not a whole number of blocks, or the size
/// exceeds 64 bits.
pub fn group_bytes(encoding: Encoding, cols: u64) -> Option<u64> {
    let has_pairs = matches!(encoding, Encoding::F16 | Encoding::BF16);
    if !has_pairs || !cols.is_multiple_of(BLOCK as u64) {
        return None;
    }
    (cols / BLOCK as u64).checked_mul(BLOCK_BYTES as u64)
}

/// Packs one group. `rows` are the row-major bytes of one to eight rows of `cols` elements; `out` has [`group_bytes`]
/// bytes and is overwritten wholly. Missing rows become zeros.
///
/// # Panics
/// Where a length disagrees with `encoding` and `cols`: a mistake of the caller, who computed both.
pub fn pack_group(encoding: Encoding, cols: usize, rows: &[&[u8]], out: &mut [u8]) {
    assert!(rows.len() <= GROUP, "a group has at most {GROUP} rows");
    assert_eq!(Some(out.len() as u64), group_bytes(encoding, cols as u64));
    if rows.len() < GROUP {
        out.fill(0);
    }
    for (r, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), 2 * cols, "bytes of row {r}");
        let blocks = out.chunks_exact_mut(BLOCK_BYTES);
        for (block, row) in blocks.zip(row.as_chunks::<{ 2 * BLOCK }>().0) {
            let (exponents, pairs) = block.split_at_mut(GROUP);
            let elements = row.as_chunks::<2>().0;
            exponents[r] = exponent(elements.iter().map(|w| value(encoding, *w))) as u8;
            for (pair, elements) in pairs.chunks_exact_mut(PAIR).zip(row.as_chunks::<4>().0) {
                pair[place(r)..][..4].copy_from_slice(elements);
            }
        }
    }
}

/// Packs `rows` rows of row-major bytes, the whole weight at once.
///
/// # Panics
/// As [`pack_group`].
pub fn pack(encoding: Encoding, cols: usize, src: &[u8]) -> Vec<u8> {
    let rows: Vec<&[u8]> = src.chunks_exact(2 * cols).collect();
    let group_len = group_bytes(encoding, cols as u64).expect("whole blocks of such an encoding");
    let mut out = vec![0; group_len as usize * rows.len().div_ceil(GROUP)];
    let groups = out.chunks_exact_mut(group_len as usize);
    for (rows, out) in rows.chunks(GROUP).zip(groups) {
        pack_group(encoding, cols, rows, out);
    }
    out
}

/// Dequantises row `row` of a packed weight of `out.len()` columns.
///
/// # Panics
/// Where `packed` ends before the row's group does.
pub fn unpack_row(encoding: Encoding, packed: &[u8], row: usize, out: &mut [f32]) {
    let group_len = out.len() / BLOCK * BLOCK_BYTES;
    let group = &packed[row / GROUP * group_len..][..group_len];
    let blocks = group.chunks_exact(BLOCK_BYTES);
    for (block, out) in blocks.zip(out.as_chunks_mut().0) {
        unpack_block(encoding, block, row % GROUP, out);
    }
}

/// Row `r` of a packed block.
///
/// # Panics
/// Where the block is shorter.
#[inline(always)]
pub(crate) fn unpack_block(encoding: Encoding, block: &[u8], r: usize, out: &mut [f32; BLOCK]) {
    let pairs = block[GROUP..].chunks_exact(PAIR);
    for (pair, out) in pairs.zip(out.as_chunks_mut::<2>().0) {
        let at = place(r);
        *out = [at, at + 2].map(|at| value(encoding, [pair[at], pair[at + 1]]));
    }
}

/// Row `r` of a packed block as integers, and their factor.
///
/// # Panics
/// Where the block is shorter.
pub(crate) fn integers(encoding: Encoding, block: &[u8], r: usize) -> ([i16; BLOCK], f32) {
    let exponent = block[r] as i8;
    let mut elements = [0.0; BLOCK];
    unpack_block(encoding, block, r, &mut elements);
    let factor = f32::from_bits(((i32::from(exponent) + 127) as u32) << 23);
    (elements.map(|w| integer(w, exponent)), factor)
}

/// What an element is multiplied as: w * 2^-exponent, rounded to the nearest, ties to even.
fn integer(w: f32, exponent: i8) -> i16 {
    if exponent == NOT_FINITE {
        return i16::MIN;
    }
    let inverse = f32::from_bits(((127 - i32::from(exponent)) as u32) << 23);
    (w * inverse).round_ties_even() as i16
}

/// The exponent of the elements of a block.
fn exponent(elements: impl Iterator<Item = f32>) -> i8 {
    let largest = elements.fold(0, |most, w| most.max(w.abs().to_bits()));
    match largest >> 23 {
        0xff => NOT_FINITE,
        _ if largest == 0 => 0,
        // Below 2^(biased - 126).
        biased => (biased as i32 - 126 - 13).max(LEAST) as i8,
    }
}

/// An element's number.
#[inline(always)]
fn value(encoding: Encoding, bytes: [u8; 2]) -> f32 {
    match encoding {
        Encoding::F16 => f16::from_le_bytes(bytes).to_f32(),
        Encoding::BF16 => bf16::from_le_bytes(bytes).to_f32(),
        other => unreachable!("{other:?} has no pairs"),
    }
}

/// Where a row's elements are in a pair of columns.
#[inline(always)]
const fn place(r: usize) -> usize {
    4 * [0, 1, 4, 5, 2, 3, 6, 7][r]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{dequantise_row, row_bytes};

    fn bytes_of(encoding: Encoding, values: impl Iterator<Item = f32>) -> Vec<u8> {
        values
            .flat_map(|x| match encoding {
                Encoding::F16 => f16::from_f32(x).to_le_bytes(),
                _ => bf16::from_f32(x).to_le_bytes(),
            })
            .collect()
    }

    #[test]
    fn rows_come_back() {
        for encoding in [Encoding::F16, Encoding::BF16] {
            let (rows, cols) = (13, 96);
            let src = bytes_of(encoding, (0..rows * cols).map(|i| (i as f32).sin() * 3.0));
            let packed = pack(encoding, cols, &src);
            assert_eq!(
                packed.len() as u64,
                2 * group_bytes(encoding, cols as u64).unwrap()
            );
            for row in 0..16 {
                let mut expected = vec![0.0; cols];
                if row < rows {
                    let len = row_bytes(encoding, cols as u64).unwrap() as usize;
                    dequantise_row(encoding, &src[row * len..][..len], &mut expected);
                }
                let mut found = vec![f32::NAN; cols];
                unpack_row(encoding, &packed, row, &mut found);
                assert_eq!(found, expected, "{encoding:?} row {row}");
            }
        }
        assert_eq!(group_bytes(Encoding::F16, 33), None);
        assert_eq!(group_bytes(Encoding::Q4_0, 32), None);
    }

    #[test]
    fn integers_are_within_their_error() {
        for encoding in [Encoding::F16, Encoding::BF16] {
            for scale in [1e-7f32, 0.01, 1.0, 30000.0] {
                let src = bytes_of(encoding, (0..32).map(|i| ((i * i) as f32).sin() * scale));
                let packed = pack(encoding, 32, &src);
                let mut elements = [0.0; 32];
                unpack_row(encoding, &packed, 0, &mut elements);
                let largest = elements.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                let (integers, factor) = integers(encoding, &packed, 0);
                let most = integers.iter().map(|q| q.unsigned_abs()).max().unwrap();
                assert!((4096..8192).contains(&most), "{encoding:?} {scale}: {most}");
                for (w, q) in elements.iter().zip(integers) {
                    let error = (w - f32::from(q) * factor).abs();
                    assert!(
                        error <= factor / 2.0 && factor <= largest / 4096.0,
                        "{encoding:?} {w} {q}"
                    );
                    // 11 bits, exact down to an eighth.
                    assert!(error == 0.0 || w.abs() < largest / 4.0, "{w} {q}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for encoding in [Encoding::F16, Encoding::BF16] {
                let src = bytes_of(encoding, (0..32).map(|i| if i == 7 { bad } else { 0.5 }));
                let packed = pack(encoding, 32, &src);
                let (integers, factor) = integers(encoding, &packed, 0);
                assert_eq!(integers, [i16::MIN; 32]);
                assert_eq!(factor, f32::NEG_INFINITY);
            }
        }
        // Zeros, and what is below the least exponent's unit.
        let packed = pack(Encoding::BF16, 32, &[0; 64]);
        assert_eq!(integers(Encoding::BF16, &packed, 0), ([0; 32], 1.0));
        let tiny = bytes_of(Encoding::BF16, std::iter::repeat_n(1e-40, 32));
        let packed = pack(Encoding::BF16, 32, &tiny);
        assert_eq!(
            integers(Encoding::BF16, &packed, 0),
            ([0; 32], f32::MIN_POSITIVE)
        );
    }

    #[test]
    fn bytes_are_as_documented() {
        let mut rows = [[0u8; 64]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            // 1.0 and the row's number in the last bits, in every column.
            for (k, element) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *element = (0x3c00 + 32 * r as u16 + k as u16).to_le_bytes();
            }
        }
        let rows: Vec<&[u8]> = rows.iter().map(|r| r.as_slice()).collect();
        let mut out = [0u8; BLOCK_BYTES];
        pack_group(Encoding::F16, 32, &rows, &mut out);
        // 1 is below 2^(-12 + 13).
        assert_eq!(out[..8], [-12i8 as u8; 8]);
        // Pair 3 of row 2: columns 6 and 7, the fifth place.
        let element = |k: u16| 0x3c00 + 32 * 2 + k;
        let at = 8 + 3 * 32 + 4 * 4;
        assert_eq!(out[at..at + 2], element(6).to_le_bytes());
        assert_eq!(out[at + 2..at + 4], element(7).to_le_bytes());
    }
}
