//! The weights section is the same in whatever stretches and on however many threads it is made.

use std::path::Path;

use bundle_format::plan::Encoding;
use bundle_format::target::Target;
use fastc::driver::{self, Options};
use fastc::pack::WeightsSection;
use fastc::progress::Silent;
use fastc::source::Source;
use fastc::synth::{self, Shape, synth};

fn model(path: &Path, shape: &str, encoding: Encoding) {
    let options = synth::Options {
        shape: Shape::named(shape).unwrap(),
        encoding,
        layers: Some(1),
        vocab: None,
        seed: 1,
        output: path,
    };
    synth(&options, &Silent).unwrap();
}

#[test]
fn stretches_join_to_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for encoding in [Encoding::Q4_1, Encoding::F32, Encoding::F16, Encoding::BF16] {
        model(&path, "tiny", encoding);
        let source = Source::open(&path).unwrap();
        let gguf = source.parse().unwrap();
        let options = Options::new(Target::X86_64V3);
        let compiled = driver::compile_graph(&gguf, &options, |_| {}, |_| {}).unwrap();
        let section = WeightsSection::new(&gguf, &source, &compiled).unwrap();
        let mut whole = vec![0xee; section.bytes() as usize];
        section.fill(0, &mut whole);

        // Between the weights there are zeros, and in them, something else.
        let mut at = 0;
        for weight in &compiled.plan.weights {
            let (start, len) = (weight.offset as usize, weight.len as usize);
            assert!(whole[at..start].iter().all(|b| *b == 0), "{}", weight.name);
            at = start + len;
            assert!(whole[start..at].iter().any(|b| *b != 0), "{}", weight.name);
        }
        assert_eq!(at, whole.len());

        for stretch in [61, 1000, 4096, 65_537] {
            let mut joined = vec![0xee; whole.len()];
            for (i, part) in joined.chunks_mut(stretch).enumerate() {
                section.fill((i * stretch) as u64, part);
            }
            assert!(joined == whole, "{encoding:?} in stretches of {stretch}");
        }
    }
}

#[test]
fn any_number_of_threads_makes_the_same_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    // A vocabulary of 49152: tens of chunks.
    model(&path, "smollm2-135m", Encoding::Q8_0);
    let compile = |threads: usize| {
        let output = folder.path().join(format!("{threads}.fib"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let options = Options::new(Target::X86_64V3);
        let pool = pool.build().unwrap();
        pool.install(|| driver::compile(&path, &output, &options, &Silent))
            .unwrap();
        std::fs::read(output).unwrap()
    };
    let one = compile(1);
    assert!(one.len() > 20 << 20);
    assert!(one == compile(5));
}
