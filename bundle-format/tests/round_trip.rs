//! What the writer writes, the reader reads; and the same parts give the same bytes.

mod common;

use std::io::{Cursor, Write};

use bundle_format::layout::{CHUNK_LEN, Compression, SectionKind};
use bundle_format::read::AlignedBytes;
use bundle_format::write::{Contents, Writer};
use bundle_format::{Bundle, ErrorKind, hash};
use common::*;

/// Small enough for one chunk, and no multiple of eight.
const SMALL: u32 = 60;
/// Several chunks, the last one short.
const LARGE: u32 = 30_001;

#[test]
fn everything_comes_back() {
    for vocab in [SMALL, LARGE] {
        let file = AlignedBytes::copy_of(&written(vocab, 1000));
        let bundle = Bundle::open(&file).unwrap();
        assert_eq!(*bundle.manifest(), manifest(vocab));
        assert_eq!(*bundle.plan(), plan(vocab));
        assert_eq!(bundle.code(), code());
        assert_eq!(bundle.code_hash(), hash::raw_code(&code()));
        assert_eq!(bundle.tokenizer(), tokenizer());
        assert_eq!(bundle.weights(), weights_section(&plan(vocab)));
        assert!(!bundle.is_signed());
        assert_eq!(file[bundle.weights_range()], *bundle.weights());
        assert_eq!(file[bundle.tokenizer_range()], *bundle.tokenizer());

        let mut told = Vec::new();
        bundle
            .verify_weights(|done, total| told.push((done, total)))
            .unwrap();
        let total = bundle.weights().len() as u64;
        assert_eq!(told.len() as u64, total.div_ceil(CHUNK_LEN));
        assert_eq!(told.last(), Some(&(total, total)));
        assert_eq!(bundle.chunk_count(), told.len() as u64);

        let parts = bundle.into_parts();
        assert_eq!(parts.code, code());
        assert_eq!(parts.plan, plan(vocab));
    }
}

#[test]
fn table_lists_every_section() {
    let file = AlignedBytes::copy_of(&written(SMALL, 1000));
    let bundle = Bundle::open(&file).unwrap();
    let kinds: Vec<_> = bundle.section_table().iter().map(|s| s.kind).collect();
    assert_eq!(kinds, SectionKind::ALL);
    for section in bundle.section_table() {
        assert_eq!(section.offset % section.kind.align(), 0, "{section:?}");
        let small = section.kind.may_compress();
        assert_eq!(section.compression == Compression::Zstd, small);
    }
    let weights = bundle.section_table().last().unwrap();
    assert_eq!(weights.offset % 4096, 0);
    assert_eq!(weights.offset + weights.stored_len, file.len() as u64);
}

#[test]
fn same_parts_give_same_bytes() {
    let one = written(LARGE, usize::MAX);
    for piece in [1 << 20, 4096, 333] {
        assert!(
            one == written(LARGE, piece),
            "pieces of {piece} bytes change the file"
        );
    }
}

/// The test's own implementation of FORMAT.md agrees with the writer to the byte.
#[test]
fn second_implementation_agrees() {
    for vocab in [SMALL, LARGE] {
        assert!(written(vocab, 1000) == Raw::sample(vocab).build());
    }
}

#[test]
fn root_names_the_contents() {
    let root = |raw: &Raw| {
        let file = AlignedBytes::copy_of(&raw.build());
        Bundle::open(&file).unwrap().root()
    };
    let sample = Raw::sample(SMALL);
    let mut other = sample.clone();
    other.sections[TOKENIZER].stored[0] ^= 1;
    assert_eq!(root(&sample), root(&sample.clone()));
    assert_ne!(root(&sample), root(&other));
    let mut weights = weights_section(&plan(SMALL));
    weights[5] ^= 1;
    let manifest = bundle_format::codec::encode(&manifest(SMALL)).unwrap();
    let plan = bundle_format::codec::encode(&plan(SMALL)).unwrap();
    assert_ne!(
        root(&sample),
        root(&Raw::from_bytes(&manifest, &plan, &weights))
    );
}

fn writer(
    change: impl Fn(&mut bundle_format::model::Manifest, &mut bundle_format::plan::Plan),
) -> Result<Writer<Cursor<Vec<u8>>>, bundle_format::Error> {
    let (mut manifest, mut plan) = (manifest(SMALL), plan(SMALL));
    change(&mut manifest, &mut plan);
    let contents = Contents {
        manifest: &manifest,
        plan: &plan,
        code: &code(),
        tokenizer: &tokenizer(),
    };
    Writer::new(Cursor::new(Vec::new()), contents)
}

#[test]
fn writer_refuses_misuse() {
    let plan = plan(SMALL);
    let caller = |e: bundle_format::Error, text: &str| {
        assert_eq!(e.kind(), ErrorKind::Caller, "{e}");
        assert!(e.to_string().contains(text), "{e}");
    };
    caller(
        writer(|_, p| p.weights[2].offset += 1).unwrap_err(),
        "weight 2 (norm): offset",
    );
    caller(
        writer(|m, _| m.zstd = "0.1".into()).unwrap_err(),
        "manifest: zstd",
    );

    let mut w = writer(|_, _| {}).unwrap();
    let early = w.write_all(&[1]).unwrap_err();
    assert!(early.to_string().contains("before the first weight"));
    caller(w.start_weight(1).unwrap_err(), "order of weights");
    w.start_weight(0).unwrap();
    caller(w.start_weight(1).unwrap_err(), "bytes of weight 0");
    let first = weight_bytes(&plan, 0);
    w.write_all(&first).unwrap();
    assert_eq!(w.weights_position(), first.len() as u64);
    let excess = w.write_all(&[1]).unwrap_err();
    assert!(excess.to_string().contains("bytes of weight 0"), "{excess}");
    caller(w.finish().unwrap_err(), "weights of the bundle");
}

/// A caller that writes the weights section itself makes the same file.
#[test]
fn weights_written_elsewhere_give_the_same_bundle() {
    let plan = plan(LARGE);
    let new = || {
        let contents = Contents {
            manifest: &manifest(LARGE),
            plan: &plan,
            code: &code(),
            tokenizer: &tokenizer(),
        };
        Writer::new(Cursor::new(Vec::new()), contents).unwrap()
    };
    let section = weights_section(&plan);
    let chunks = section.chunks(CHUNK_LEN as usize);
    let hashes: Vec<_> = chunks.map(hash::chunk).collect();
    assert!(hashes.len() > 1);

    let error = new().finish_with(&hashes[1..]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller, "{error}");
    let mut started = new();
    started.start_weight(0).unwrap();
    let error = started.finish_with(&hashes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller, "{error}");

    let writer = new();
    let range = writer.weights_range();
    assert_eq!(range.end - range.start, section.len() as u64);
    let (mut sink, _) = writer.finish_with(&hashes).unwrap();
    sink.set_position(range.start);
    sink.write_all(&section).unwrap();
    assert!(sink.into_inner() == written(LARGE, 1000));
}

/// Takes a number of bytes, then fails.
struct Full {
    inner: Cursor<Vec<u8>>,
    left: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(self.left);
        if n == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.left -= n;
        self.inner.write(&bytes[..n])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Full {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }
}

#[test]
fn full_disk_is_an_error_wherever_it_strikes() {
    let (manifest, plan) = (manifest(LARGE), plan(LARGE));
    let (code, tokenizer) = (code(), tokenizer());
    let write = |left| -> Result<(), bundle_format::Error> {
        let sink = Full {
            inner: Cursor::new(Vec::new()),
            left,
        };
        let contents = Contents {
            manifest: &manifest,
            plan: &plan,
            code: &code,
            tokenizer: &tokenizer,
        };
        let mut writer = Writer::new(sink, contents)?;
        for i in 0..plan.weights.len() {
            writer.start_weight(i)?;
            writer.write_all(&weight_bytes(&plan, i))?;
        }
        writer.finish().map(drop)
    };
    let whole = written(LARGE, 1000).len();
    for left in (0..whole).step_by(100_003) {
        let error = write(left).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    }
    write(whole + 2000).unwrap();
}

#[test]
fn half_a_bundle_is_no_bundle() {
    let (manifest, plan) = (manifest(SMALL), plan(SMALL));
    let contents = Contents {
        manifest: &manifest,
        plan: &plan,
        code: &code(),
        tokenizer: &tokenizer(),
    };
    let mut sink = Cursor::new(Vec::new());
    let mut writer = Writer::new(&mut sink, contents).unwrap();
    writer.start_weight(0).unwrap();
    writer.write_all(&weight_bytes(&plan, 0)).unwrap();
    drop(writer);
    let error = open(&sink.into_inner()).unwrap_err();
    assert!(error.to_string().contains("not a bundle"), "{error}");
}

#[test]
fn unaligned_memory_is_the_callers_fault() {
    let mut shifted = vec![0];
    shifted.extend(written(SMALL, 1000));
    let file = AlignedBytes::copy_of(&shifted);
    let error = Bundle::open(&file[1..]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller);
    assert!(error.to_string().contains("multiple of 64"), "{error}");
}
