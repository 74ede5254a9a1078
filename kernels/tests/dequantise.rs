//! Dequantisation of every encoding, bit for bit against vectors that the PyPI package `gguf` made (vectors/make.py).

use bundle_format::plan::Encoding;
use kernels::pack;
use kernels::quant::{ENCODINGS, block_bytes, block_elements, dequantise_row};

/// Blocks, and the bits of their elements.
fn vectors(encoding: Encoding) -> (Vec<u8>, Vec<u32>) {
    let path = format!(
        "{}/tests/vectors/{encoding:?}.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (count, rest) = file.split_first_chunk::<4>().expect("a count");
    let count = u32::from_le_bytes(*count) as usize;
    let (blocks, values) = rest.split_at(count * block_bytes(encoding));
    let values = values.as_chunks::<4>().0.iter();
    let values: Vec<u32> = values.map(|bytes| u32::from_le_bytes(*bytes)).collect();
    assert_eq!(values.len(), count * block_elements(encoding));
    assert!(count >= 4);
    (blocks.to_vec(), values)
}

#[test]
fn equals_the_vectors() {
    for encoding in ENCODINGS.into_iter().filter(|e| *e != Encoding::F32) {
        let (blocks, expected) = vectors(encoding);
        let mut found = vec![0.0; expected.len()];
        dequantise_row(encoding, &blocks, &mut found);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                *expected,
                "{encoding:?} element {i}: {found}, expected {}",
                f32::from_bits(*expected)
            );
        }
    }
}

#[test]
fn packed_equals_the_vectors() {
    for encoding in ENCODINGS.into_iter().filter(|e| *e != Encoding::F32) {
        let (blocks, expected) = vectors(encoding);
        // Each block a row, so that every place in a group has one.
        let (rows, cols) = (
            blocks.len() / block_bytes(encoding),
            block_elements(encoding),
        );
        let packed = pack::pack(encoding, rows, cols, &blocks);
        for (row, expected) in expected.chunks_exact(cols).enumerate() {
            let mut found = vec![0.0; cols];
            pack::unpack_row(encoding, &packed, row, &mut found);
            let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert_eq!(found, expected, "{encoding:?} row {row}");
        }
    }
}
