//! Speed of the tokenizer on the vocabularies of real models: opening, and long texts whole and a tenth of them (ten times the
//! text should take about ten times the time).

use std::fs::File;
use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastc::gguf::Gguf;
use fastc::tokenizer::VocabSource;
use fastrun::tokenizer::{EncodeOptions, Tokenizer};
use memmap2::Mmap;

criterion_group!(
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = tokenizer
);
criterion_main!(benches);

fn section_of(model: &Path) -> Vec<u8> {
    let file = File::open(model).expect("the model was fetched");
    // SAFETY: nothing writes to the model meanwhile.
    let map = unsafe { Mmap::map(&file).expect("a file can be mapped") };
    let gguf = Gguf::parse(&map).expect("the model is a GGUF file");
    let source = VocabSource::from_metadata(&gguf.metadata).expect("it has a vocabulary");
    source.build().expect("of a kind that we know")
}

fn tokenizer(c: &mut Criterion) {
    for (model, path) in [
        ("smollm2", e2e::models::smollm2()),
        ("gemma3", e2e::models::gemma3()),
    ] {
        let section = section_of(&path);
        let mut group = c.benchmark_group(model);
        group.bench_function("open", |b| {
            b.iter(|| Tokenizer::open(black_box(&section)).map(|_| ()))
        });
        let tokenizer = Tokenizer::open(&section).expect("the section was just built");
        let options = EncodeOptions {
            parse_special: true,
            add_special: true,
        };
        for (name, text) in e2e::texts::long() {
            for len in [text.len() / 10, text.len()] {
                group.throughput(Throughput::Bytes(len as u64));
                group.bench_with_input(BenchmarkId::new(name, len), &text[..len], |b, text| {
                    b.iter(|| tokenizer.encode(black_box(text), options))
                });
            }
        }
        group.finish();
    }
}
