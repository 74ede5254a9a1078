//! Unknown means no: one test for each field by which versions can differ. All files here have hashes that hold.

mod common;

use bundle_format::model::Manifest;
use bundle_format::{Error, ErrorKind, codec};
use common::*;

const SMALL: u32 = 60;

/// Opening the sample, changed, must fail with this kind of error, whose text has all of these.
fn refused(kind: ErrorKind, texts: &[&str], change: impl Fn(&mut Raw)) -> Error {
    let mut raw = Raw::sample(SMALL);
    change(&mut raw);
    let error = open(&raw.build()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "no {text:?} in: {error}");
    }
    error
}

fn unsupported(texts: &[&str], change: impl Fn(&mut Raw)) {
    refused(ErrorKind::Unsupported, texts, change);
}

fn corrupt(texts: &[&str], change: impl Fn(&mut Raw)) {
    refused(ErrorKind::Corrupt, texts, change);
}

fn patch(raw: &mut Raw, at: usize, bytes: &[u8]) {
    raw.patches.push((at, bytes.to_vec()));
}

#[test]
fn the_sample_opens() {
    open(&Raw::sample(SMALL).build()).unwrap();
}

#[test]
fn version() {
    for version in [0, 1, 2, 3, 4, 6, u32::MAX] {
        let found = format!("found {version}");
        unsupported(&["version of the format", "expected 5", &found], |r| {
            r.version = version
        });
    }
}

/// A later version's header may be shorter than this one's.
#[test]
fn version_of_a_short_file() {
    let mut file = b"\x89FIB\r\n\x1a\n".to_vec();
    file.extend(9u32.to_le_bytes());
    assert_eq!(open(&file).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn header_length() {
    unsupported(&["header length", "2048"], |r| r.header_len = 2048);
}

#[test]
fn section_count() {
    unsupported(&["section count", "found 8"], |r| r.section_count = 8);
}

#[test]
fn chunk_length() {
    unsupported(&["chunk length"], |r| r.chunk_len = 1 << 16);
}

#[test]
fn unknown_section() {
    unsupported(&["kind of section", "found 8", "1, 2, 3"], |r| {
        r.sections[TOKENIZER].kind = 8
    });
}

#[test]
fn duplicate_section() {
    corrupt(&["each section once", "manifest (1)"], |r| {
        r.sections[PLAN].kind = 1
    });
}

#[test]
fn missing_section() {
    corrupt(&["each section once", "tokenizer (4)"], |r| {
        r.sections.remove(TOKENIZER);
        let last = r.sections.last().unwrap().clone();
        r.sections.push(last);
    });
}

#[test]
fn sections_out_of_order() {
    corrupt(&["each section once"], |r| r.sections.swap(PLAN, CODE));
}

#[test]
fn unknown_flags() {
    for section in 0..7 {
        for flags in [2, 3, 1 << 31] {
            unsupported(&["flags of the"], |r| r.sections[section].flags = flags);
        }
    }
}

#[test]
fn compression_where_bytes_are_used_in_place() {
    for section in [TOKENIZER, SIGNATURE, TREE, WEIGHTS] {
        unsupported(&["flags of the", "expected 0,"], |r| {
            r.sections[section].flags = 1
        });
    }
}

#[test]
fn small_sections_may_be_raw() {
    let mut raw = Raw::sample(SMALL);
    for (section, bytes) in [
        (MANIFEST, codec::encode(&manifest(SMALL)).unwrap()),
        (PLAN, codec::encode(&plan(SMALL)).unwrap()),
        (CODE, code()),
    ] {
        raw.sections[section].flags = 0;
        raw.sections[section].stored = bytes;
    }
    open(&raw.build()).unwrap();
}

#[test]
fn signature() {
    unsupported(&["signature", "at most 0 bytes", "found 64"], |r| {
        r.sections[SIGNATURE].stored = vec![1; 64];
        r.sections[SIGNATURE].raw_len = 64;
    });
}

#[test]
fn nonzero_header_padding() {
    corrupt(&["header", "padding", "offset 1023"], |r| {
        patch(r, 1023, &[1])
    });
}

#[test]
fn wrong_root() {
    corrupt(&["root hash"], |r| r.root = Some([1; 32]));
}

#[test]
fn wrong_code_hash() {
    corrupt(&["code section"], |r| r.code_hash = [1; 32]);
}

#[test]
fn offsets_follow_from_lengths() {
    for section in 0..7 {
        for offset in [0u64, 64, 1 << 20, 1 << 60, u64::MAX] {
            corrupt(&["offset of the"], |r| {
                patch(r, Raw::entry_at(section, 8), &offset.to_le_bytes())
            });
        }
    }
}

#[test]
fn file_length() {
    for len in [0u64, 1 << 60, u64::MAX] {
        corrupt(&["length of the file"], |r| {
            patch(r, 16, &len.to_le_bytes())
        });
    }
}

/// Exabytes are refused by their number, and nothing of their size is allocated.
#[test]
fn exabytes() {
    for section in 0..7 {
        for len in [1u64 << 60, u64::MAX] {
            for field in [16, 24] {
                let error = {
                    let mut raw = Raw::sample(SMALL);
                    patch(&mut raw, Raw::entry_at(section, field), &len.to_le_bytes());
                    // The root covers lengths: it would not hold, but is checked after them.
                    open(&raw.build()).unwrap_err()
                };
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.to_string().contains(&len.to_string()), "{error}");
            }
        }
    }
}

#[test]
fn decompressed_length() {
    for wrong in [0u64, 1, 499, 501, 1 << 20] {
        corrupt(&["code", "after decompression"], |r| {
            r.sections[CODE].raw_len = wrong
        });
    }
    corrupt(&["code", "states its size"], |r| {
        r.sections[CODE].stored = b"no zstd frame at all".to_vec()
    });
}

/// A frame that claims little and holds much stops at its claim.
#[test]
fn bomb() {
    let mut frame = zstd::bulk::compress(&vec![0; 1 << 24], 3).unwrap();
    // The frame's content size, four bytes behind the magic and the descriptor, becomes the code's.
    let at = 5 + usize::from(frame[4] & 0x20 == 0);
    frame[at..at + 4].copy_from_slice(&500u32.to_le_bytes());
    corrupt(&["code", "compressed bytes", "a zstd frame"], |r| {
        r.sections[CODE].stored = frame.clone()
    });
}

#[test]
fn raw_length_of_raw_sections() {
    corrupt(&["raw length", "tokenizer"], |r| {
        r.sections[TOKENIZER].raw_len += 1
    });
}

#[test]
fn length_of_the_tree() {
    corrupt(&["weights-tree"], |r| {
        r.sections[TREE].stored.extend([0; 32]);
        r.sections[TREE].raw_len += 32;
    });
}

#[test]
fn length_of_the_weights() {
    let (manifest, plan) = (manifest(SMALL), plan(SMALL));
    let mut weights = weights_section(&plan);
    weights.extend([0; 64]);
    let manifest = codec::encode(&manifest).unwrap();
    let plan = codec::encode(&plan).unwrap();
    let error = open(&Raw::from_bytes(&manifest, &plan, &weights).build()).unwrap_err();
    assert!(error.to_string().contains("last weight ends"), "{error}");
    assert_eq!(error.section(), Some("weights"));
}

fn with_manifest(bytes: &[u8]) -> Error {
    let plan = plan(SMALL);
    let encoded = codec::encode(&plan).unwrap();
    open(&Raw::from_bytes(bytes, &encoded, &weights_section(&plan)).build()).unwrap_err()
}

#[test]
fn bytes_behind_the_manifest() {
    let mut bytes = codec::encode(&manifest(SMALL)).unwrap();
    bytes.push(0);
    let error = with_manifest(&bytes);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("1 bytes behind"), "{error}");
}

#[test]
fn unknown_target() {
    let known = codec::encode(&manifest(SMALL)).unwrap();
    // The target's number follows the source hash.
    let at = known.windows(32).position(|w| w == [7; 32]).unwrap() + 32;
    let mut bytes = known.clone();
    assert_eq!(bytes[at], 0);
    bytes[at] = 77;
    let error = with_manifest(&bytes);
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("77"), "{error}");
}

#[test]
fn claimed_string_length() {
    // compiler: a string of 2^60 bytes.
    let mut bytes = vec![253];
    bytes.extend((1u64 << 60).to_le_bytes());
    let error = with_manifest(&bytes);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

fn bad_manifest(text: &str, change: impl Fn(&mut Manifest)) {
    let mut manifest = manifest(SMALL);
    change(&mut manifest);
    let error = with_manifest(&codec::encode(&manifest).unwrap());
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(text), "{error}");
    assert!(error.to_string().contains("manifest"), "{error}");
}

#[test]
fn spelling_of_the_manifest() {
    bad_manifest("features[1]", |m| m.features[1] = "AVX 2".into());
    bad_manifest("features[0]", |m| m.features[0] = String::new());
    bad_manifest("each feature once", |m| m.features[1] = "avx2".into());
    bad_manifest("name=value", |m| m.options[0] = "ctx".into());
    bad_manifest("sorted", |m| m.options.swap(0, 1));
    bad_manifest("vocab", |m| m.model.vocab = 0);
}

#[test]
fn vocabulary_of_the_plan() {
    let mut manifest = manifest(SMALL);
    manifest.model.vocab += 1;
    let error = with_manifest(&codec::encode(&manifest).unwrap());
    assert!(error.to_string().contains("vocabulary"), "{error}");
    assert_eq!(error.section(), Some("plan"));
}
