//! Synthetic models: files that the reader takes, of the shape that was asked for, the same every time.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bundle_format::plan::Encoding;
use fastc::error::Error;
use fastc::gguf::{ErrorKind, Gguf, Numbers, Strings, TensorType, Writer};
use fastc::progress::{Progress, Silent};
use fastc::synth::{self, Options, Shape, Summary, encoding_named, synth};

/// Those whose blocks the widths of shape `tiny` are multiples of.
fn small_blocks() -> impl Iterator<Item = Encoding> {
    Encoding::ALL
        .into_iter()
        .filter(|&encoding| TensorType::from(encoding).block <= 32)
}

fn options<'a>(shape: &'a str, encoding: Encoding, output: &'a Path) -> Options<'a> {
    Options {
        shape: Shape::named(shape).unwrap(),
        encoding,
        layers: None,
        vocab: None,
        seed: 1,
        output,
    }
}

/// The file that `change`d options give.
fn made(change: impl FnOnce(&mut Options<'_>)) -> (Summary, Vec<u8>) {
    made_with(None, change)
}

/// The same, with another model's vocabulary.
fn made_with(
    vocab: Option<&Gguf<'_>>,
    change: impl FnOnce(&mut Options<'_>),
) -> (Summary, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    let mut options = options("tiny", Encoding::Q4_0, &output);
    options.vocab = vocab;
    change(&mut options);
    let summary = synth(&options, &Silent).unwrap();
    let file = std::fs::read(options.output).unwrap();
    assert_eq!(summary.bytes, file.len() as u64);
    (summary, file)
}

/// A file of vocabulary alone: `n` tokens, with scores and types where asked.
fn vocabulary(n: usize, scores: bool, types: bool) -> Vec<u8> {
    let mut w = Writer::new();
    let tokens: Vec<String> = (0..n).map(|i| format!("t{i}")).collect();
    w.put("general.architecture", "llama").unwrap();
    w.put("tokenizer.ggml.model", "llama").unwrap();
    w.put("tokenizer.ggml.tokens", &tokens).unwrap();
    if scores {
        w.put("tokenizer.ggml.scores", &vec![-1.0f32; n]).unwrap();
    }
    if types {
        w.put("tokenizer.ggml.token_type", &vec![1i32; n]).unwrap();
    }
    w.put("tokenizer.ggml.bos_token_id", &1u32).unwrap();
    w.put("tokenizer.chat_template", "{{ messages }}").unwrap();
    let mut file = Vec::new();
    w.write(&mut file, |_, _| Ok::<_, fastc::gguf::WriteError>(()))
        .unwrap();
    file
}

#[test]
fn every_encoding_parses_with_its_tensors() {
    for encoding in small_blocks() {
        let (summary, file) = made(|o| o.encoding = encoding);
        let gguf = Gguf::parse(&file).unwrap();
        let m = &gguf.metadata;
        assert_eq!(m.required::<&str>("general.architecture"), Ok("llama"));
        assert_eq!(m.required::<u32>("llama.block_count"), Ok(2));
        assert_eq!(m.required::<u32>("llama.embedding_length"), Ok(128));
        assert_eq!(m.required::<u32>("llama.feed_forward_length"), Ok(256));
        assert_eq!(m.required::<u32>("llama.attention.head_count"), Ok(4));
        assert_eq!(m.required::<u32>("llama.attention.head_count_kv"), Ok(2));
        assert_eq!(m.required::<u32>("llama.rope.dimension_count"), Ok(32));
        assert_eq!(m.required::<f32>("llama.rope.freq_base"), Ok(10_000.0));
        assert_eq!(m.required::<u32>("llama.vocab_size"), Ok(320));

        let matrix = TensorType::from(encoding);
        let expect = |name: &str, dims: &[u64], ty: TensorType| {
            let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(tensor.dims(), dims, "{name}");
            assert_eq!(tensor.ty, ty, "{name}");
        };
        expect("token_embd.weight", &[128, 320], matrix);
        for layer in 0..2 {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            expect(&name("attn_norm"), &[128], TensorType::F32);
            expect(&name("attn_q"), &[128, 128], matrix);
            expect(&name("attn_k"), &[128, 64], matrix);
            expect(&name("attn_v"), &[128, 64], matrix);
            expect(&name("attn_output"), &[128, 128], matrix);
            expect(&name("ffn_norm"), &[128], TensorType::F32);
            expect(&name("ffn_gate"), &[128, 256], matrix);
            expect(&name("ffn_up"), &[128, 256], matrix);
            expect(&name("ffn_down"), &[256, 128], matrix);
        }
        expect("output_norm.weight", &[128], TensorType::F32);
        expect("output.weight", &[128, 320], matrix);
        assert_eq!(gguf.tensors().len(), 3 + 2 * 9);
        let elements: u64 = gguf.tensors().iter().map(|t| t.elements()).sum();
        assert_eq!(summary.parameters, elements);
    }
}

#[test]
fn shapes_have_whole_heads_and_blocks() {
    for shape in Shape::ALL {
        assert_eq!(shape.head_dim() * shape.heads, shape.embedding);
        assert_eq!(shape.heads % shape.kv_heads, 0, "{}", shape.name);
        for cols in [shape.embedding, shape.feed_forward, shape.head_dim()] {
            assert_eq!(cols % 32, 0, "{}", shape.name);
        }
        assert_eq!(Shape::named(shape.name).unwrap(), shape);
    }
}

#[test]
fn a_tied_shape_has_no_head() {
    let (summary, file) = made(|o| {
        o.shape = Shape::named("smollm2-135m").unwrap();
        o.layers = Some(1);
    });
    let gguf = Gguf::parse(&file).unwrap();
    assert!(gguf.tensor("output.weight").is_none());
    assert_eq!(gguf.tensors().len(), 2 + 9);
    assert_eq!(summary.vocab, 49_152);
    let tokens = gguf.metadata.required::<Strings>("tokenizer.ggml.tokens");
    assert_eq!(tokens.unwrap().len(), 49_152, "padded to the shape's");
}

#[test]
fn the_same_options_give_the_same_bytes_on_any_number_of_threads() {
    // A layer of smollm2's shape has tensors of several slabs.
    let make = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let (_, file) = made(|o| {
                o.shape = Shape::named("smollm2-135m").unwrap();
                o.layers = Some(1);
                o.seed = seed;
            });
            file
        })
    };
    let one = make(1, 5);
    assert!(one == make(1, 5), "a second time");
    assert!(one == make(3, 5), "three threads");
    assert!(one != make(1, 6), "another seed");
}

#[test]
fn encodings_hold_the_same_weights() {
    let tensor = |encoding, name: &str| {
        let (_, file) = made(|o| {
            o.shape = Shape::named("tiny256").unwrap();
            o.encoding = encoding;
        });
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!(gguf.tensor(name).unwrap().ty, TensorType::from(encoding));
        gguf.data(gguf.tensor(name).unwrap()).to_vec()
    };
    let name = "blk.1.ffn_down.weight";
    let x: Vec<f32> = tensor(Encoding::F32, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect();
    for encoding in Encoding::ALL {
        let expected = tensor(encoding, name);
        let mut bytes = vec![0; expected.len()];
        synth::encode::encode(encoding, &x, &mut bytes);
        assert!(bytes == expected, "{encoding:?}");
    }
    // Activations keep their size: 1 over the root of 512 inputs.
    let square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    assert!(
        (square.sqrt() * 512f32.sqrt() - 1.0).abs() < 0.02,
        "{square}"
    );
}

#[test]
fn the_generated_vocabulary_is_whole() {
    let (summary, file) = made(|_| ());
    let gguf = Gguf::parse(&file).unwrap();
    let m = &gguf.metadata;
    assert_eq!(m.required::<&str>("tokenizer.ggml.model"), Ok("gpt2"));
    let tokens = m.required::<Strings>("tokenizer.ggml.tokens").unwrap();
    let tokens: Vec<&str> = tokens.utf8().map(Result::unwrap).collect();
    assert_eq!(summary.vocab, 320);
    assert_eq!(tokens.len(), 320);
    let distinct: std::collections::HashSet<_> = tokens.iter().collect();
    assert_eq!(distinct.len(), 320);
    let types = m.required::<Numbers<i32>>("tokenizer.ggml.token_type");
    let types: Vec<i32> = types.unwrap().collect();
    assert_eq!((types[0], types[3], types[319]), (3, 1, 5));
    for merge in m.required::<Strings>("tokenizer.ggml.merges").unwrap() {
        let merge = std::str::from_utf8(merge).unwrap();
        let (left, right) = merge.split_once(' ').unwrap();
        for part in [left, right, &format!("{left}{right}")] {
            let id = tokens.iter().position(|token| *token == part).unwrap();
            assert_eq!(types[id], 1, "{part}");
        }
    }
}

#[test]
fn a_vocabulary_is_taken_whole() {
    let bytes = vocabulary(500, true, true);
    let vocab = Gguf::parse(&bytes).unwrap();
    let (summary, file) = made_with(Some(&vocab), |_| ());
    assert_eq!(summary.vocab, 500);
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.tensor("output.weight").unwrap().dims(), [128, 500]);
    let tokenizer = |gguf: &Gguf| -> Vec<String> {
        gguf.metadata
            .iter()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .map(|(key, value)| match value {
                fastc::gguf::Value::Array(array) => {
                    format!("{key} {:?}", array.iter().collect::<Vec<_>>())
                }
                scalar => format!("{key} {scalar:?}"),
            })
            .collect()
    };
    assert_eq!(tokenizer(&gguf), tokenizer(&vocab));
}

#[test]
fn a_smaller_vocabulary_is_padded() {
    for (scores, types) in [(true, true), (false, false)] {
        let bytes = vocabulary(500, scores, types);
        let vocab = Gguf::parse(&bytes).unwrap();
        let (summary, file) = made_with(Some(&vocab), |o| {
            o.shape = Shape::named("tinyllama").unwrap();
            o.layers = Some(1);
        });
        assert_eq!(summary.vocab, 32_000);
        let gguf = Gguf::parse(&file).unwrap();
        let m = &gguf.metadata;
        let tokens = m.required::<Strings>("tokenizer.ggml.tokens").unwrap();
        let tokens: Vec<&[u8]> = tokens.collect();
        assert_eq!(tokens.len(), 32_000);
        assert_eq!((tokens[499], tokens[500]), (&b"t499"[..], &b"[PAD500]"[..]));
        let types = m.required::<Numbers<i32>>("tokenizer.ggml.token_type");
        let types: Vec<i32> = types.unwrap().collect();
        assert_eq!((types.len(), types[499], types[500]), (32_000, 1, 5));
        let found = m.optional::<Numbers<f32>>("tokenizer.ggml.scores").unwrap();
        assert_eq!(found.map(|s| s.len()), scores.then_some(32_000));
    }
}

#[test]
fn a_broken_vocabulary_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    let error = |vocab: &Writer| {
        let mut bytes = Vec::new();
        vocab
            .write(&mut bytes, |_, _| Ok::<_, fastc::gguf::WriteError>(()))
            .unwrap();
        let vocab = Gguf::parse(&bytes).unwrap();
        let options = Options {
            vocab: Some(&vocab),
            ..options("tiny", Encoding::F32, &output)
        };
        synth(&options, &Silent).unwrap_err().to_string()
    };
    let mut w = Writer::new();
    w.put("tokenizer.ggml.model", "none").unwrap();
    let text = error(&w);
    assert!(text.contains("`tokenizer.ggml.tokens`"), "{text}");

    w.put("tokenizer.ggml.tokens", &["a", "b"][..]).unwrap();
    w.put("tokenizer.ggml.scores", &[1.0f32][..]).unwrap();
    let text = error(&w);
    assert!(text.contains("`tokenizer.ggml.scores`"), "{text}");
    assert!(text.contains("expected 2") && text.contains("found 1"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn bad_options_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    for layers in [0, 513, u32::MAX] {
        let options = Options {
            layers: Some(layers),
            ..options("tiny", Encoding::F32, &output)
        };
        let error = synth(&options, &Silent).unwrap_err();
        assert!(matches!(error, Error::User(_)));
        assert!(error.to_string().ends_with(&format!("found {layers}")));
    }
    let text = Shape::named("gpt5").unwrap_err().to_string();
    assert!(text.contains("`gpt5`") && text.contains("llama2-7b"));
    assert_eq!(encoding_named("q4_1").unwrap(), Encoding::Q4_1);
    assert_eq!(encoding_named("q4_k").unwrap(), Encoding::Q4_K);
    let text = encoding_named("IQ2_XS").unwrap_err().to_string();
    assert!(text.contains("`IQ2_XS`") && text.contains("IQ4_XS, BF16, MXFP4"));

    let nowhere = folder.path().join("absent").join("m.gguf");
    let error = synth(&options("tiny", Encoding::F32, &nowhere), &Silent).unwrap_err();
    assert!(matches!(error, Error::User(_)));
    assert!(error.to_string().contains("m.gguf"));
}

#[derive(Default)]
struct Watch {
    total: AtomicU64,
    done: AtomicU64,
    cancel_at: Option<u64>,
}

impl Progress for Watch {
    fn begin(&self, _stage: &str, total: u64) {
        self.total.store(total, Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.cancel_at
            .is_some_and(|at| self.done.load(Relaxed) >= at)
    }
}

#[test]
fn progress_hears_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    let watch = Watch::default();
    synth(&options("tiny", Encoding::F32, &output), &watch).unwrap();
    // The tiny shape's F32 tensors need no padding.
    let total = watch.total.load(Relaxed);
    assert_eq!(watch.done.load(Relaxed), total);
    assert!(total > 1_000_000);
}

#[test]
fn cancelling_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    std::fs::write(&output, "before").unwrap();
    let watch = Watch {
        cancel_at: Some(1000),
        ..Watch::default()
    };
    let error = synth(&options("tiny", Encoding::F32, &output), &watch).unwrap_err();
    assert!(error.to_string().contains("cancelled"));
    assert_eq!(std::fs::read(&output).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_the_users_error() {
    // A writer that is always full, through the library's own conversion.
    let mut w = Writer::new();
    w.put("a", &1u32).unwrap();
    let mut full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let error: Error = w.write(&mut full, |_, _| Ok::<_, Error>(())).unwrap_err();
    assert!(matches!(error, Error::User(_)), "{error}");
}

#[test]
fn parser_errors_become_the_crates() {
    let user = Error::from(Gguf::parse(b"nonsense").unwrap_err());
    assert!(matches!(user, Error::User(_)));
    let version_1 = Gguf::parse(b"GGUF\x01\0\0\0").unwrap_err();
    assert_eq!(version_1.kind, ErrorKind::Version { found: 1 });
    let error = Error::from(version_1).context("m.gguf");
    assert_eq!(
        error.to_string(),
        "unsupported: m.gguf: GGUF header (byte 0): expected version 2 or 3, found 1; convert the model anew"
    );
}
