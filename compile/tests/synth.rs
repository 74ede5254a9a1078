//! Synthetic models: files that the reader takes, of the shape that was asked for, the same every time.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bundle_format::plan::Encoding;
use bundle_format::target::Target;
use fastc::error::Error;
use fastc::gguf::{ErrorKind, Gguf, Numbers, Strings, TensorType, Writer};
use fastc::progress::{Progress, Silent};
use fastc::synth::tensors::{list, put_hyperparameters};
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

/// The file of one layer of a shape that need not have a name.
fn one_layer(shape: &Shape, vocab: &Gguf<'_>, encoding: Encoding) -> (Summary, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.gguf");
    let options = Options {
        shape,
        encoding,
        layers: Some(1),
        vocab: Some(vocab),
        seed: 1,
        output: &output,
    };
    let summary = synth(&options, &Silent).unwrap();
    (summary, std::fs::read(&output).unwrap())
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
        assert_eq!(summary.parameters.total, elements);
        assert_eq!(summary.parameters.active, elements);
        assert_eq!(summary.replaced, None);
    }
}

#[test]
fn shapes_have_whole_heads_and_blocks() {
    for shape in Shape::ALL {
        assert_eq!(shape.heads % shape.kv_heads, 0, "{}", shape.name);
        if shape.family.head_dim_keys.len() < 2 {
            assert_eq!(shape.query_dim(), shape.embedding, "{}", shape.name);
        }
        let experts = shape.experts.iter();
        let hidden = experts.flat_map(|e| e.feed_forward.into_iter().chain(e.shared));
        let sizes = [shape.embedding, shape.feed_forward, shape.head_dim];
        for cols in sizes.into_iter().chain(hidden) {
            assert_eq!(cols % 32, 0, "{}", shape.name);
        }
        assert_eq!(Shape::named(shape.name).unwrap(), shape);
    }
}

/// The numbers that the models' makers publish, in millions.
#[test]
fn parameters_are_those_published() {
    for (name, total, active) in [
        ("smollm2-135m", 134.5, 134.5),
        ("tinyllama", 1100.0, 1100.0),
        ("llama2-7b", 6738.4, 6738.4),
        ("llama3-8b", 8030.3, 8030.3),
        ("qwen2.5-7b", 7615.6, 7615.6),
        ("qwen3-8b", 8190.7, 8190.7),
        ("gemma3-1b", 999.9, 999.9),
        ("qwen15-moe", 14_315.8, 2689.2),
        ("qwen3-30b-a3b", 30_532.1, 3353.0),
        ("mixtral-8x7b", 46_702.8, 12_879.9),
    ] {
        let shape = Shape::named(name).unwrap();
        let found = shape.parameters(shape.vocab.unwrap() as u64);
        let millions = |n: u64| (n as f64 / 1e5).round() / 10.0;
        assert_eq!(millions(found.total), total, "{name}");
        assert_eq!(millions(found.active), active, "{name}, active");
    }
}

/// One layer, with Q4_K asked for: every tensor of it, and every key under the architecture's name.
#[test]
fn architectures_have_their_tensors_and_keys() {
    use Encoding::{F32, Q4_K, Q5_0};
    let check = |name: &str, keys: &[(&str, u32)], layer: &[(&str, &[u64], Encoding)]| {
        let shape = Shape::named(name).unwrap();
        let mut writer = Writer::new();
        put_hyperparameters(&mut writer, shape, 1, 64, Q4_K).unwrap();
        let mut header = Vec::new();
        writer
            .write(&mut header, |_, _| Ok::<_, fastc::gguf::WriteError>(()))
            .unwrap();
        let metadata = Gguf::parse(&header).unwrap().metadata;
        let arch = shape.family.arch;
        assert_eq!(metadata.required::<&str>("general.architecture"), Ok(arch));
        for (key, value) in keys {
            let key = format!("{arch}.{key}");
            assert_eq!(metadata.required::<u32>(&key), Ok(*value), "{name}: {key}");
        }
        let all = metadata
            .iter()
            .filter_map(|(key, _)| key.strip_prefix(arch));
        let own = all.filter(|rest| rest.starts_with('.'));
        // And two reals: the norms' epsilon, the rotation's base.
        assert_eq!(own.count(), keys.len() + 2, "{name}");

        let tensors = list(shape, 1, 64, Q4_K);
        let found = tensors.iter().filter_map(|t| {
            let part = t.name.strip_prefix("blk.0.")?;
            Some((part, &t.dims[..], t.encoding))
        });
        assert_eq!(found.collect::<Vec<_>>(), layer, "{name}");
        assert_eq!(
            tensors.len() - layer.len(),
            if shape.tied { 2 } else { 3 },
            "{name}"
        );
    };
    check(
        "gemma3-1b",
        &[
            ("block_count", 1),
            ("context_length", 32_768),
            ("embedding_length", 1152),
            ("feed_forward_length", 6912),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 256),
            ("attention.value_length", 256),
            ("attention.sliding_window", 512),
        ],
        &[
            ("attn_norm.weight", &[1152], F32),
            ("attn_q.weight", &[1152, 1024], Q5_0),
            ("attn_k.weight", &[1152, 256], Q5_0),
            ("attn_v.weight", &[1152, 256], Q5_0),
            ("attn_q_norm.weight", &[256], F32),
            ("attn_k_norm.weight", &[256], F32),
            ("attn_output.weight", &[1024, 1152], Q4_K),
            ("post_attention_norm.weight", &[1152], F32),
            ("ffn_norm.weight", &[1152], F32),
            ("ffn_gate.weight", &[1152, 6912], Q5_0),
            ("ffn_up.weight", &[1152, 6912], Q5_0),
            ("ffn_down.weight", &[6912, 1152], Q4_K),
            ("post_ffw_norm.weight", &[1152], F32),
        ],
    );
    check(
        "qwen2.5-7b",
        &[
            ("block_count", 1),
            ("context_length", 131_072),
            ("embedding_length", 3584),
            ("feed_forward_length", 18_944),
            ("attention.head_count", 28),
            ("attention.head_count_kv", 4),
        ],
        &[
            ("attn_norm.weight", &[3584], F32),
            ("attn_q.weight", &[3584, 3584], Q4_K),
            ("attn_q.bias", &[3584], F32),
            ("attn_k.weight", &[3584, 512], Q4_K),
            ("attn_k.bias", &[512], F32),
            ("attn_v.weight", &[3584, 512], Q4_K),
            ("attn_v.bias", &[512], F32),
            ("attn_output.weight", &[3584, 3584], Q4_K),
            ("ffn_norm.weight", &[3584], F32),
            ("ffn_gate.weight", &[3584, 18_944], Q4_K),
            ("ffn_up.weight", &[3584, 18_944], Q4_K),
            ("ffn_down.weight", &[18_944, 3584], Q4_K),
        ],
    );
    let moe_attention: [(&str, &[u64], Encoding); 8] = [
        ("attn_norm.weight", &[2048], F32),
        ("attn_q.weight", &[2048, 2048], Q4_K),
        ("attn_q.bias", &[2048], F32),
        ("attn_k.weight", &[2048, 2048], Q4_K),
        ("attn_k.bias", &[2048], F32),
        ("attn_v.weight", &[2048, 2048], Q4_K),
        ("attn_v.bias", &[2048], F32),
        ("attn_output.weight", &[2048, 2048], Q4_K),
    ];
    let mixture: [(&str, &[u64], Encoding); 9] = [
        ("ffn_norm.weight", &[2048], F32),
        ("ffn_gate_inp.weight", &[2048, 60], F32),
        ("ffn_gate_exps.weight", &[2048, 1408, 60], Q4_K),
        ("ffn_up_exps.weight", &[2048, 1408, 60], Q4_K),
        ("ffn_down_exps.weight", &[1408, 2048, 60], Q5_0),
        ("ffn_gate_inp_shexp.weight", &[2048], F32),
        ("ffn_gate_shexp.weight", &[2048, 5632], Q4_K),
        ("ffn_up_shexp.weight", &[2048, 5632], Q4_K),
        ("ffn_down_shexp.weight", &[5632, 2048], Q4_K),
    ];
    check(
        "qwen15-moe",
        &[
            ("block_count", 1),
            ("context_length", 8192),
            ("embedding_length", 2048),
            ("feed_forward_length", 5632),
            ("attention.head_count", 16),
            ("attention.head_count_kv", 16),
            ("expert_count", 60),
            ("expert_used_count", 4),
            ("expert_feed_forward_length", 1408),
            ("expert_shared_feed_forward_length", 5632),
        ],
        &[&moe_attention[..], &mixture[..]].concat(),
    );
    check(
        "qwen3-30b-a3b",
        &[
            ("block_count", 1),
            ("context_length", 40_960),
            ("embedding_length", 2048),
            ("feed_forward_length", 6144),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 4),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("expert_count", 128),
            ("expert_used_count", 8),
            ("expert_feed_forward_length", 768),
        ],
        &[
            ("attn_norm.weight", &[2048], F32),
            ("attn_q.weight", &[2048, 4096], Q4_K),
            ("attn_k.weight", &[2048, 512], Q4_K),
            ("attn_v.weight", &[2048, 512], Q4_K),
            ("attn_q_norm.weight", &[128], F32),
            ("attn_k_norm.weight", &[128], F32),
            ("attn_output.weight", &[4096, 2048], Q4_K),
            ("ffn_norm.weight", &[2048], F32),
            ("ffn_gate_inp.weight", &[2048, 128], F32),
            ("ffn_gate_exps.weight", &[2048, 768, 128], Q4_K),
            ("ffn_up_exps.weight", &[2048, 768, 128], Q4_K),
            ("ffn_down_exps.weight", &[768, 2048, 128], Q4_K),
        ],
    );
}

/// Rows that aren't whole blocks of 256 become the nearest type of 32, and the summary says so.
#[test]
fn blocks_that_do_not_fit_give_way() {
    let (summary, file) = made(|o| o.encoding = Encoding::Q6_K);
    assert_eq!(summary.replaced, Some(Encoding::Q8_0));
    let gguf = Gguf::parse(&file).unwrap();
    let ty = |name: &str| gguf.tensor(name).unwrap().ty;
    assert_eq!(ty("blk.0.ffn_up.weight"), TensorType::from(Encoding::Q8_0));
    assert_eq!(
        ty("blk.0.ffn_down.weight"),
        TensorType::from(Encoding::Q6_K)
    );
}

/// A narrow model of a shape's kind.
fn narrow(name: &str) -> Shape {
    let shape = Shape::named(name).unwrap();
    Shape {
        vocab: None,
        embedding: 256,
        feed_forward: 64,
        heads: 2,
        kv_heads: 2,
        head_dim: 128,
        experts: shape.experts.map(|experts| synth::shape::Experts {
            feed_forward: experts.feed_forward.map(|_| 64),
            shared: experts.shared.map(|_| 64),
            ..experts
        }),
        ..*shape
    }
}

fn compiled(file: &[u8]) -> Result<(), Error> {
    let options = fastc::driver::Options::new(Target::X86_64V3);
    let gguf = Gguf::parse(file).unwrap();
    fastc::driver::compile_graph(&gguf, &options, |_| {}, |_| {}).map(drop)
}

#[test]
fn dense_architectures_compile() {
    let bytes = vocabulary(64, false, false);
    let vocab = Gguf::parse(&bytes).unwrap();
    for name in ["llama3-8b", "qwen2.5-7b", "qwen3-8b", "gemma3-1b"] {
        let (_, file) = one_layer(&narrow(name), &vocab, Encoding::Q4_0);
        compiled(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn mixtures_compile() {
    let bytes = vocabulary(64, false, false);
    let vocab = Gguf::parse(&bytes).unwrap();
    for name in ["qwen15-moe", "qwen3-30b-a3b", "mixtral-8x7b"] {
        let (summary, file) = one_layer(&narrow(name), &vocab, Encoding::Q4_0);
        assert!(summary.parameters.active < summary.parameters.total);
        compiled(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// What an architecture lacks is said by name.
#[test]
fn mixtures_of_other_architectures_are_refused() {
    let bytes = vocabulary(64, false, false);
    let vocab = Gguf::parse(&bytes).unwrap();
    let mut gemma = narrow("gemma3-1b");
    gemma.experts = Shape::named("mixtral-8x7b").unwrap().experts;
    let (_, file) = one_layer(&gemma, &vocab, Encoding::Q4_0);
    let text = compiled(&file).unwrap_err().to_string();
    assert!(text.contains("gemma3.expert_count 8"), "{text}");
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
        let text = error.to_string();
        assert_eq!(text, format!("--layers {layers}: expected 1 to 512"));
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
