//! The packed layout of F16 and BF16 for products with integers, `WeightLayout::Pairs8`.
//!
//! Groups of eight rows, as in `WeightLayout::Interleave8`, padded with rows of zeros. First all pairs of columns: of each row two
//! integers (i16). Then, for each 32 columns, eight exponents: a signed byte for each row. Zeros fill the last line of 64 bytes, so that
//! pairs are where vectors are read best.
//!
//! An element w is the integer nearest to w * 2^-x (of two the even one) with the row's exponent x, the least of at least -126 for which all
//! 32 integers are below 2^13; it is 0 for zeros. Of F16's 11 bits none are lost down to an eighth of the largest magnitude's power of
//! two, of BF16's 8 none down to a sixty-fourth, and the error of any is at most 2^-14 of that. Where elements are not all finite, what
//! all of them dequantise to is not.

use bundle_format::plan::{ALIGN, Encoding};
use half::{bf16, f16};

use super::GROUP;
use crate::quant::BLOCK;

/// Bytes of a pair of columns.
pub(crate) const PAIR: usize = 4 * GROUP;

/// Bytes of the pairs of 32 columns of eight rows, a block.
pub(crate) const BLOCK_BYTES: usize = BLOCK / 2 * PAIR;

/// The exponent of 32 elements that are not all finite. Its factor is minus infinity, and all integers are [`i16::MIN`].
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
    let blocks = usize::try_from(cols / BLOCK as u64).ok()?;
    let fits = blocks <= usize::MAX / (2 * BLOCK_BYTES);
    fits.then(|| bytes_of_group(blocks) as u64)
}

/// [`group_bytes`] of a group of so many blocks that is in memory.
#[inline(always)]
pub(crate) const fn bytes_of_group(blocks: usize) -> usize {
    blocks * BLOCK_BYTES + (blocks * GROUP).next_multiple_of(ALIGN)
}

/// Packs one group. `rows` are the row-major bytes of one to eight rows of `cols` elements; `out` has [`group_bytes`]
/// bytes and is overwritten wholly. Missing rows become zeros.
///
/// # Panics
/// Where a length disagrees with `encoding` and `cols`: a mistake of the caller, who computed both.
pub fn pack_group(encoding: Encoding, cols: usize, rows: &[&[u8]], out: &mut [u8]) {
    assert!(rows.len() <= GROUP, "a group has at most {GROUP} rows");
    assert_eq!(Some(out.len() as u64), group_bytes(encoding, cols as u64));
    out.fill(0);
    let (pairs, exponents) = out.split_at_mut(cols / BLOCK * BLOCK_BYTES);
    for (r, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), 2 * cols, "bytes of row {r}");
        let blocks = pairs.chunks_exact_mut(BLOCK_BYTES);
        let blocks = blocks.zip(exponents.chunks_exact_mut(GROUP));
        for ((pairs, exponents), row) in blocks.zip(row.as_chunks::<{ 2 * BLOCK }>().0) {
            let mut elements = [0.0; BLOCK];
            for (element, bytes) in elements.iter_mut().zip(row.as_chunks().0) {
                *element = value(encoding, *bytes);
            }
            let exponent = exponent(&elements);
            exponents[r] = exponent as u8;
            for (pair, elements) in pairs.chunks_exact_mut(PAIR).zip(elements.as_chunks().0) {
                let [first, second] = elements.map(|w| integer(w, exponent).to_le_bytes());
                pair[4 * r..][..2].copy_from_slice(&first);
                pair[4 * r + 2..][..2].copy_from_slice(&second);
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
pub fn unpack_row(packed: &[u8], row: usize, out: &mut [f32]) {
    let group_len = bytes_of_group(out.len() / BLOCK);
    unpack_group(
        &packed[row / GROUP * group_len..][..group_len],
        row % GROUP,
        out,
    );
}

/// Dequantises row `r` of a packed group of `out.len()` columns.
///
/// # Panics
/// Where the group is shorter.
#[inline(always)]
pub(crate) fn unpack_group(group: &[u8], r: usize, out: &mut [f32]) {
    let blocks = out.len() / BLOCK;
    for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let (integers, factor) = integers(group, blocks, b, r);
        for (out, q) in out.iter_mut().zip(integers) {
            *out = f32::from(q) * factor;
        }
    }
}

/// The integers of row `r` in block `b` of a packed group of some blocks, and their factor 2^x.
///
/// # Panics
/// Where the group is shorter.
#[inline(always)]
pub(crate) fn integers(group: &[u8], blocks: usize, b: usize, r: usize) -> ([i16; BLOCK], f32) {
    let (pairs, exponents) = group.split_at(blocks * BLOCK_BYTES);
    let exponent = exponents[b * GROUP + r] as i8;
    let mut integers = [0; BLOCK];
    let pairs = pairs[b * BLOCK_BYTES..].chunks_exact(PAIR);
    for (pair, integers) in pairs.zip(integers.as_chunks_mut::<2>().0) {
        let at = 4 * r;
        *integers = [at, at + 2].map(|at| i16::from_le_bytes([pair[at], pair[at + 1]]));
    }
    let factor = f32::from_bits(((i32::from(exponent) + 127) as u32) << 23);
    (integers, factor)
}

/// The integer of an element: w * 2^-exponent, rounded to the nearest, ties to even.
fn integer(w: f32, exponent: i8) -> i16 {
    if exponent == NOT_FINITE {
        return i16::MIN;
    }
    let inverse = f32::from_bits(((127 - i32::from(exponent)) as u32) << 23);
    (w * inverse).round_ties_even() as i16
}

/// The exponent of the elements of a block.
fn exponent(elements: &[f32; BLOCK]) -> i8 {
    let largest = elements
        .iter()
        .fold(0, |most, w| most.max(w.abs().to_bits()));
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
    fn rows_come_back_within_their_error() {
        for encoding in [Encoding::F16, Encoding::BF16] {
            for scale in [1e-7f32, 0.01, 1.0, 30000.0] {
                let (rows, cols) = (13, 96);
                let values = (0..rows * cols).map(|i| ((i * i) as f32).sin() * scale);
                let src = bytes_of(encoding, values);
                let packed = pack(encoding, cols, &src);
                assert_eq!(packed.len() as u64, 2 * (3 * 512 + 64));
                for row in 0..16 {
                    let mut expected = vec![0.0; cols];
                    if row < rows {
                        let len = row_bytes(encoding, cols as u64).unwrap() as usize;
                        dequantise_row(encoding, &src[row * len..][..len], &mut expected);
                    }
                    let mut found = vec![f32::NAN; cols];
                    unpack_row(&packed, row, &mut found);
                    let blocks = expected.chunks_exact(BLOCK).zip(found.chunks_exact(BLOCK));
                    for (expected, found) in blocks {
                        let largest = expected.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                        for (w, found) in expected.iter().zip(found) {
                            let error = (w - found).abs();
                            assert!(error <= largest / 8192.0, "{encoding:?} {w} {found}");
                            // 11 bits, exact down to an eighth.
                            assert!(error == 0.0 || w.abs() < largest / 4.0, "{w} {found}");
                        }
                    }
                }
            }
        }
        assert_eq!(group_bytes(Encoding::F16, 33), None);
        assert_eq!(group_bytes(Encoding::Q4_0, 32), None);
    }

    #[test]
    fn integers_have_13_bits() {
        for scale in [1e-6f32, 0.01, 1.0, 30000.0] {
            let src = bytes_of(
                Encoding::F16,
                (0..32).map(|i| (i as f32 - 15.5) * scale / 16.0),
            );
            let (integers, _) = integers(&pack(Encoding::F16, 32, &src), 1, 0, 0);
            let most = integers.iter().map(|q| q.unsigned_abs()).max().unwrap();
            assert!((4096..8192).contains(&most), "{scale}: {most}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for encoding in [Encoding::F16, Encoding::BF16] {
                let src = bytes_of(encoding, (0..32).map(|i| if i == 7 { bad } else { 0.5 }));
                let packed = pack(encoding, 32, &src);
                let (integers, factor) = integers(&packed, 1, 0, 0);
                assert_eq!(integers, [i16::MIN; 32]);
                assert_eq!(factor, f32::NEG_INFINITY);
            }
        }
        // Zeros, and what is below the least exponent's unit.
        let packed = pack(Encoding::BF16, 32, &[0; 64]);
        assert_eq!(integers(&packed, 1, 0, 0), ([0; 32], 1.0));
        let tiny = bytes_of(Encoding::BF16, std::iter::repeat_n(1e-40, 32));
        let packed = pack(Encoding::BF16, 32, &tiny);
        assert_eq!(integers(&packed, 1, 0, 0), ([0; 32], f32::MIN_POSITIVE));
    }

    #[test]
    fn bytes_are_as_documented() {
        let mut rows = [[0u8; 64]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            // 1 and the row's number and the column in the last bits.
            for (k, element) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *element = (0x3c00 + 32 * r as u16 + k as u16).to_le_bytes();
            }
        }
        let rows: Vec<&[u8]> = rows.iter().map(|r| r.as_slice()).collect();
        let mut out = [0u8; 512 + 64];
        pack_group(Encoding::F16, 32, &rows, &mut out);
        // 1 is below 2^(-12 + 13).
        assert_eq!(out[512..520], [-12i8 as u8; 8]);
        assert_eq!(out[520..], [0; 56]);
        // Pair 3 of row 2: columns 6 and 7, 1 + i / 1024 in units of 2^-12.
        let integer = |k: u16| 4096 + 4 * (32 * 2 + k);
        let at = 3 * 32 + 2 * 4;
        assert_eq!(out[at..at + 2], integer(6).to_le_bytes());
        assert_eq!(out[at + 2..at + 4], integer(7).to_le_bytes());
    }
}
