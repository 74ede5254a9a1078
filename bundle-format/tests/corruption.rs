//! Damage: every byte flipped, every length cut, padding filled. Always an error that names the place; never a panic; never
//! accepted.

mod common;

use bundle_format::layout::{CHUNK_LEN, SectionKind};
use bundle_format::read::AlignedBytes;
use bundle_format::{Bundle, Error, ErrorKind};
use common::*;

const SMALL: u32 = 60;

/// The section that holds a byte of the file, or that it pads.
fn section_at(bundle: &Bundle<'_>, at: usize) -> &'static str {
    let at = at as u64;
    let before = bundle.section_table().iter().rev();
    before
        .filter(|s| s.stored_len > 0 || s.offset < at)
        .find(|s| s.offset <= at)
        .map_or("header", |s| s.kind.name())
}

#[test]
fn every_flipped_byte_is_found() {
    let good = written(SMALL, 1000);
    let whole = AlignedBytes::copy_of(&good);
    let bundle = Bundle::open(&whole).unwrap();
    let weights = bundle.weights_range();
    for at in 0..weights.start {
        for mask in [1u8 << (at % 8), 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            let error = match open(&bad) {
                Ok(()) => panic!("byte {at} flipped by {mask:#x} is accepted"),
                Err(error) => error,
            };
            let expected = match at {
                0..8 => ErrorKind::Corrupt,
                8..12 => ErrorKind::Unsupported,
                _ => ErrorKind::Corrupt,
            };
            assert_eq!(error.kind(), expected, "byte {at}: {error}");
            let section = section_at(&bundle, at);
            // A signature of no bytes may stand between a byte of padding and the section that it follows.
            let named = error.section().unwrap();
            assert!(
                named == section || named == "signature",
                "byte {at} of {section}: {error}"
            );
            assert!(error.offset().is_some_and(|o| o <= at as u64), "{error}");
        }
    }
}

#[test]
fn flipped_weights_open_and_fail_to_verify() {
    let good = Raw::sample(30_001).build();
    let whole = AlignedBytes::copy_of(&good);
    let bundle = Bundle::open(&whole).unwrap();
    let weights = bundle.weights_range();
    let count = bundle.chunk_count();
    assert!(count > 2);
    // First and last byte of every chunk, and some between.
    let mut places: Vec<usize> = (0..weights.len()).step_by(400_009).collect();
    for chunk in 0..count as usize {
        let start = chunk * CHUNK_LEN as usize;
        places.push(start);
        places.push(weights.len().min(start + CHUNK_LEN as usize) - 1);
    }
    for at in places {
        let mut bad = AlignedBytes::copy_of(&good).to_vec();
        bad[weights.start + at] ^= 0x10;
        let bad = AlignedBytes::copy_of(&bad);
        let bundle = Bundle::open(&bad).unwrap();
        let error = bundle.verify_weights(|_, _| {}).unwrap_err();
        let Error::ChunkMismatch { chunk, offset, .. } = error else {
            panic!("byte {at} of the weights: {error}");
        };
        assert_eq!(chunk, at as u64 / CHUNK_LEN);
        assert_eq!(offset, weights.start as u64 + chunk * CHUNK_LEN);
        for other in (0..count).filter(|&c| c != chunk) {
            bundle.verify_chunk(other).unwrap();
        }
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let beyond = bundle.verify_chunk(count).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::Caller);
}

#[test]
fn every_cut_is_found() {
    let good = written(SMALL, 1000);
    let whole = AlignedBytes::copy_of(&good);
    let bundle = Bundle::open(&whole).unwrap();
    for len in 0..good.len() {
        let error = Bundle::open(&whole[..len]).unwrap_err();
        let Error::Truncated {
            section,
            expected,
            found,
            ..
        } = error
        else {
            panic!("cut at {len}: {error}");
        };
        assert_eq!(found, len as u64);
        assert!(expected > found);
        let end = |s: &bundle_format::layout::Section| (s.offset + s.stored_len) as usize;
        let cut = bundle.section_table().iter().find(|s| end(s) > len);
        match len {
            0..1024 => assert_eq!(section, "header"),
            _ => assert_eq!(section, cut.unwrap().kind.name()),
        }
    }
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let mut long = written(SMALL, 1000);
    long.push(0);
    let error = open(&long).unwrap_err();
    assert!(
        error.to_string().contains("behind the last section"),
        "{error}"
    );
}

#[test]
fn padding_must_be_zero() {
    let good = Raw::sample(SMALL).build();
    let whole = AlignedBytes::copy_of(&good);
    let bundle = Bundle::open(&whole).unwrap();
    let mut end = 1024;
    let mut padded = 0;
    for section in bundle.section_table() {
        for at in end..section.offset as usize {
            let mut bad = good.clone();
            bad[at] = 1;
            let error = open(&bad).unwrap_err();
            assert!(error.to_string().contains("padding"), "{error}");
            assert_eq!(error.offset(), Some(at as u64));
            padded += 1;
        }
        end = (section.offset + section.stored_len) as usize;
    }
    assert!(padded > 500, "{padded}");
}

#[test]
fn bytes_between_weights_must_be_zero() {
    let plan = plan(SMALL);
    let good = weights_section(&plan);
    let manifest = bundle_format::codec::encode(&manifest(SMALL)).unwrap();
    let encoded = bundle_format::codec::encode(&plan).unwrap();
    let used = |at: usize| {
        let holds =
            |w: &bundle_format::plan::Weight| (w.offset..w.offset + w.len).contains(&(at as u64));
        plan.weights.iter().any(holds)
    };
    let gaps: Vec<usize> = (0..good.len()).filter(|&at| !used(at)).collect();
    assert!(gaps.len() > 40);
    for at in gaps {
        let mut weights = good.clone();
        weights[at] = 1;
        let file = AlignedBytes::copy_of(&Raw::from_bytes(&manifest, &encoded, &weights).build());
        let bundle = Bundle::open(&file).unwrap();
        let error = bundle.verify_weights(|_, _| {}).unwrap_err();
        assert!(error.to_string().contains("padding"), "{error}");
        let offset = bundle.weights_range().start + at;
        assert_eq!(error.offset(), Some(offset as u64));
    }
}

#[test]
fn other_files_are_no_bundles() {
    for other in [&b"GGUF\x03\0\0\0 and so on"[..], b"\x89PNG\r\n\x1a\n", b"x"] {
        let error = open(other).unwrap_err();
        assert!(matches!(error, Error::NotABundle { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    // A transfer as text.
    let mut text = written(SMALL, 1000);
    text.remove(4);
    assert!(matches!(open(&text), Err(Error::NotABundle { .. })));
}

/// A section that took another's place, with its hash, is found.
#[test]
fn sections_cannot_stand_in_for_each_other() {
    let sample = Raw::sample(SMALL);
    for kind in 0..SectionKind::ALL.len() - 1 {
        let mut raw = sample.clone();
        raw.sections[kind].context = sample.sections[(kind + 1) % 6].context;
        let error = open(&raw.build()).unwrap_err();
        let Error::HashMismatch { section, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(section, SectionKind::ALL[kind].name());
    }
}
