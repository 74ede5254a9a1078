//! What people and disks do to the two programs: each ends with a word that helps, and leaves no half of anything.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bundle_format::read::AlignedBytes;
use bundle_format::target::Target;
use bundle_format::write::Contents;
use bundle_format::{Bundle, Writer};
use e2e::{bin, bundle, fail, fastrun, stderr, succeed, tiny};

fn fastc(arguments: &[&str]) -> Command {
    let mut command = Command::new(bin("fastc"));
    command.args(arguments);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}

/// A small model and its bundle.
fn small(folder: &Path) -> (PathBuf, PathBuf) {
    let model = tiny(folder, "q4_1");
    let bundle = folder.join("tiny.fib");
    e2e::compile(&model, &bundle, &[]);
    (model, bundle)
}

/// Nothing but what was there before.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn two_compilations_give_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, first) = small(a.path());
    let other_model = b.path().join("of another name.gguf");
    std::fs::copy(&model, &other_model).unwrap();
    let second = b.path().join("second.fib");
    let mut command = fastc(&["compile", text(&other_model), "-o", text(&second)]);
    command.env("RAYON_NUM_THREADS", "1").current_dir(b.path());
    succeed(command);
    assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap());
    // And the real model: packing in parallel against one thread.
    let path = b.path().join("smollm2.fib");
    let mut command = fastc(&["compile", text(&e2e::models::smollm2()), "-o", text(&path)]);
    command.env("RAYON_NUM_THREADS", "1");
    succeed(command);
    assert!(std::fs::read(bundle()).unwrap() == std::fs::read(path).unwrap());
}

#[test]
fn a_bundle_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, bundle) = small(folder.path());
    let bytes = std::fs::read(&bundle).unwrap();
    let cut = folder.path().join("cut.fib");
    let lengths =
        (0..24)
            .map(|i| bytes.len() * i / 24)
            .chain([1, 63, 64, 100, 511, 4095, bytes.len() - 1]);
    for length in lengths {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let error = fail(fastrun(&[text(&cut), "--raw", "-p", "a", "-n", "1"]));
        assert!(error.contains("cut.fib"), "{length}: {error}");
    }
}

#[test]
fn every_section_flipped_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_, bundle) = small(folder.path());
    let bytes = std::fs::read(&bundle).unwrap();
    let aligned = AlignedBytes::copy_of(&bytes);
    let sections = Bundle::open(&aligned).unwrap().section_table().to_vec();
    let flipped = folder.path().join("flipped.fib");
    for section in sections.iter().filter(|s| s.stored_len > 0) {
        for at in [0, section.stored_len / 2, section.stored_len - 1] {
            let mut bytes = bytes.clone();
            bytes[(section.offset + at) as usize] ^= 0x40;
            std::fs::write(&flipped, &bytes).unwrap();
            let name = format!("{:?}", section.kind).to_lowercase();
            let error = fail(fastrun(&["verify", text(&flipped)])).to_lowercase();
            let named = name.split("tree").next().unwrap();
            assert!(error.contains(named), "{name} + {at}: {error}");
        }
    }
}

#[test]
fn files_that_are_no_bundles_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path(), "f16");
    let empty = folder.path().join("empty.fib");
    std::fs::write(&empty, b"").unwrap();
    let missing = folder.path().join("missing.fib");
    for (path, word) in [
        (&model, "bundle"),
        (&empty, "empty"),
        (&missing, "missing.fib"),
    ] {
        let error = fail(fastrun(&[text(path), "-p", "a"]));
        assert!(
            error.contains(word) && error.contains(text(path)),
            "{error}"
        );
    }
    let error = fail(fastrun(&[text(folder.path()), "-p", "a"]));
    assert!(error.contains(text(folder.path())), "{error}");
    // And the other way round: a bundle is no model.
    let error = fail(fastc(&[
        "compile",
        text(bundle()),
        "-o",
        text(&folder.path().join("x.fib")),
    ]));
    assert!(error.contains("GGUF"), "{error}");
    let error = fail(fastc(&[
        "compile",
        text(&empty),
        "-o",
        text(&folder.path().join("x.fib")),
    ]));
    assert!(error.contains("empty.fib"), "{error}");
}

#[test]
fn a_missing_processor_feature_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (_, bundle) = small(folder.path());
    let bytes = AlignedBytes::copy_of(&std::fs::read(&bundle).unwrap());
    let old = Bundle::open(&bytes).unwrap();
    let mut manifest = old.manifest().clone();
    manifest.features.push("quantum".to_string());
    let contents = Contents {
        manifest: &manifest,
        plan: old.plan(),
        code: old.code(),
        tokenizer: old.tokenizer(),
    };
    let path = folder.path().join("quantum.fib");
    let mut writer = Writer::new(std::fs::File::create(&path).unwrap(), contents).unwrap();
    for (i, weight) in old.plan().weights.iter().enumerate() {
        writer.start_weight(i).unwrap();
        let range = weight.offset as usize..(weight.offset + weight.len) as usize;
        writer.write_all(&old.weights()[range]).unwrap();
    }
    writer.finish().unwrap();
    let error = fail(fastrun(&[text(&path), "-p", "a"]));
    assert!(error.contains("quantum"), "{error}");
}

#[test]
fn prompts_at_the_edges() {
    let path = text(bundle());
    let long = "word ".repeat(9000);
    let mut command = fastrun(&[path, "--raw"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The runner may refuse before it has read everything; the pipe then breaks.
    let _ = child.stdin.take().unwrap().write_all(long.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains("8192") && error.contains("tokens"),
        "{error}"
    );

    let error = fail(fastrun(&[path, "--raw", "-p", ""]));
    assert!(error.contains("empty"), "{error}");
    assert_eq!(
        succeed(fastrun(&[path, "--raw", "-p", "Hello", "-n", "0"])).trim(),
        ""
    );
    // A context of one block: the answer ends where the room does.
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.fib");
    e2e::compile(&e2e::models::smollm2(), &short, &["--ctx", "16"]);
    let answer = succeed(fastrun(&[
        text(&short),
        "--raw",
        "-p",
        "Once upon a time",
        "--temp",
        "0",
    ]));
    assert!(!answer.trim().is_empty());
}

#[test]
fn wrong_usage_ends_with_2() {
    let usage: [Command; 5] = [
        fastrun(&["--no-such-option"]),
        fastrun(&[]),
        fastc(&["compile"]),
        fastc(&["compile", "x.gguf", "--target", "z80"]),
        fastc(&["synth", "no-such-shape", "-o", "x.gguf"]),
    ];
    for mut command in usage {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{command:?}: {}",
            stderr(&output)
        );
    }
    let error = fail(fastc(&[
        "compile",
        text(&e2e::models::smollm2()),
        "--ctx",
        "0",
        "-o",
        "/dev/null/x.fib",
    ]));
    assert!(
        error.contains("--ctx") || error.contains("/dev/null/x.fib"),
        "{error}"
    );
}

/// Ctrl-C while compiling: no bundle, no temporary file.
#[test]
fn an_interrupted_compilation_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("large.gguf");
    succeed(fastc(&[
        "synth",
        "tinyllama",
        "--quant",
        "q8_0",
        "--layers",
        "6",
        "-o",
        text(&model),
    ]));
    let before = names(folder.path());
    let output = folder.path().join("large.fib");
    let mut child = fastc(&["compile", text(&model), "-o", text(&output)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it has begun to write.
    let start = Instant::now();
    while names(folder.path()) == before {
        assert!(
            start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(),
            "it never wrote"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: the child has not been waited for, so its process id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let status = child.wait().unwrap();
    let mut error = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(names(folder.path()), before);
}

/// A disk with no room left, by a limit on the size of files.
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.fib");
    let script = "trap '' XFSZ; ulimit -f 20000; exec \"$0\" compile \"$1\" -o \"$2\"";
    let mut command = Command::new("bash");
    command
        .args(["-c", script])
        .arg(bin("fastc"))
        .arg(e2e::models::smollm2())
        .arg(&output);
    let error = fail(command);
    assert!(error.contains("out.fib"), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    // A folder that is not there, and one that can't be written.
    let error = fail(fastc(&[
        "compile",
        text(&e2e::models::smollm2()),
        "-o",
        "/no/such/folder/x.fib",
    ]));
    assert!(error.contains("/no/such/folder/x.fib"), "{error}");
}

#[test]
fn a_damaged_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path(), "q8_0");
    let bytes = std::fs::read(&model).unwrap();
    let bad = folder.path().join("bad.gguf");
    let output = folder.path().join("bad.fib");
    for length in [3, 8, 24, 200, bytes.len() / 3, bytes.len() - 1] {
        std::fs::write(&bad, &bytes[..length]).unwrap();
        let error = fail(fastc(&["compile", text(&bad), "-o", text(&output)]));
        assert!(error.contains("bad.gguf"), "{length}: {error}");
        assert!(!output.exists());
    }
    // Another architecture, by name.
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    let mut file = std::fs::File::create(&bad).unwrap();
    file.write_all(&bytes).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(b"mamba").unwrap();
    drop(file);
    let error = fail(fastc(&["compile", text(&bad), "-o", text(&output)]));
    assert!(
        error.contains("mamba") && error.contains("llama"),
        "{error}"
    );
}

#[test]
fn two_runners_share_a_bundle() {
    let path = text(bundle());
    let ask = || {
        let mut command = fastrun(&[
            path,
            "--raw",
            "-p",
            "Once upon a time",
            "-n",
            "24",
            "--temp",
            "0",
            "--threads",
            "1",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [ask(), ask()];
    let outputs = children.map(|c| c.wait_with_output().unwrap());
    for output in &outputs {
        assert!(output.status.success(), "{}", stderr(output));
    }
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert!(!outputs[0].stdout.is_empty());
}

/// `fastc explain` and `fastrun inspect` tell the whole story of a bundle.
#[test]
fn explain_and_inspect_show_every_stage() {
    let story = succeed(fastc(&["explain", text(&e2e::models::smollm2())]));
    for pass in fastc::passes::PASSES {
        assert!(
            story.contains(&format!("== {}:", pass.name)),
            "{}",
            pass.name
        );
    }
    for word in [
        "== pack",
        "== memory_plan",
        "== specialise",
        "== step",
        "matmul_q4_1",
        "blk.0.qkv",
        "weight bytes",
    ] {
        assert!(story.contains(word), "{word} is not in the story");
    }
    let about = succeed(fastrun(&["inspect", text(bundle())]));
    for word in [
        "x86-64-v3",
        "cranelift",
        "llama",
        "blk.29",
        "avx2",
        "weights",
    ] {
        assert!(about.contains(word), "{word} is not in:\n{about}");
    }
    let verified = succeed(fastrun(&["verify", text(bundle())]));
    assert!(!verified.is_empty());
}

/// A bundle for AVX-512 gives the bits of one for AVX2 where the processor has what it needs; elsewhere it is refused, by the
/// name of what is missing.
#[test]
fn a_bundle_for_avx512_runs_or_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = e2e::tiny(folder.path(), "q4_0");
    let [v3, v4] = ["x86-64-v3", "x86-64-v4"].map(|target| {
        let path = folder.path().join(format!("{target}.fib"));
        e2e::compile(&model, &path, &["--target", target]);
        path
    });
    let about = succeed(fastrun(&["inspect", text(&v4)]));
    assert!(
        about.contains("x86-64-v4") && about.contains("avx512vnni"),
        "{about}"
    );

    let required = Target::X86_64V4.required_features().iter();
    let missing: Vec<&str> = required
        .copied()
        .filter(|name| kernels::cpu::has_feature(name) != Some(true))
        .collect();
    let native = folder.path().join("native.fib");
    e2e::compile(&model, &native, &["--target", "native"]);
    let about = succeed(fastrun(&["inspect", text(&native)]));
    if missing.is_empty() {
        assert_eq!(logits(&v3, "cpu"), logits(&v4, "cpu"));
        assert!(about.contains("x86-64-v4"), "{about}");
    } else {
        println!(
            "refused only, not run: this processor lacks {}",
            missing.join(", ")
        );
        let error = fail(fastrun(&["logits", text(&v4), "--tokens", "1", "--json"]));
        assert!(missing.iter().any(|name| error.contains(name)), "{error}");
        assert!(about.contains("x86-64-v3"), "{about}");
    }
}

/// Every encoding of a small random model gives nearly the reference's logits.
#[test]
fn every_encoding_agrees_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for encoding in kernels::quant::ENCODINGS {
        let quant = format!("{encoding:?}").to_lowercase();
        let model = folder.path().join(format!("{quant}.gguf"));
        succeed(fastc(&[
            "synth",
            "tiny256",
            "--quant",
            &quant,
            "-o",
            text(&model),
        ]));
        let path = folder.path().join(format!("{quant}.fib"));
        e2e::compile(&model, &path, &[]);
        let (found, expected) = (logits(&path, "cpu"), logits(&path, "reference"));
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(
            largest > 0.1 && worst < 0.003 * largest,
            "{quant}: {worst} of {largest}"
        );
    }
}

/// Logits after some tokens, by id.
fn logits(bundle: &Path, device: &str) -> Vec<f64> {
    let tokens = "1,7,30,99,2,5,60,61,200,3,4,8,250,9,10,11,12,13";
    let args = [
        "logits",
        text(bundle),
        "--tokens",
        tokens,
        "--json",
        "--device",
        device,
    ];
    let pairs: Vec<(u32, f64)> = serde_json::from_str(&succeed(fastrun(&args))).unwrap();
    pairs.into_iter().map(|(_, logit)| logit).collect()
}

/// A model cut into two files gives the logits of the whole one; a missing or a foreign part is refused by name.
#[test]
fn a_split_model_is_one_model() {
    use fastc::gguf::{Gguf, Writer};
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path(), "q8_0");
    let bytes = std::fs::read(&model).unwrap();
    let whole = Gguf::parse(&bytes).unwrap();
    let half = whole.tensors().len() / 2;
    let parts = [&whole.tensors()[..half], &whole.tensors()[half..]];
    let name = |n: usize| folder.path().join(format!("part-0000{n}-of-00002.gguf"));
    for (index, tensors) in parts.into_iter().enumerate() {
        let mut writer = Writer::new();
        if index == 0 {
            for (key, value) in whole.metadata.iter() {
                writer.put(key, &value).unwrap();
            }
        }
        writer.put("split.no", &(index as u16)).unwrap();
        writer.put("split.count", &2u16).unwrap();
        for tensor in tensors {
            writer
                .tensor(tensor.name, tensor.dims(), tensor.ty)
                .unwrap();
        }
        let mut file = std::fs::File::create(name(index + 1)).unwrap();
        let mut next = tensors.iter();
        writer
            .write(&mut file, |_, out| -> Result<(), fastc::error::Error> {
                let data = whole.data(next.next().expect("as many as were planned"));
                out.write_all(data)
                    .map_err(|e| fastc::error::Error::User(e.to_string()))
            })
            .unwrap();
    }
    let (one, two) = (folder.path().join("one.fib"), folder.path().join("two.fib"));
    e2e::compile(&model, &one, &[]);
    e2e::compile(&name(2), &two, &[]);
    assert_eq!(logits(&one, "cpu"), logits(&two, "cpu"));

    std::fs::copy(name(1), folder.path().join("twice-00001-of-00002.gguf")).unwrap();
    std::fs::copy(name(1), folder.path().join("twice-00002-of-00002.gguf")).unwrap();
    let out = folder.path().join("x.fib");
    let error = fail(fastc(&[
        "compile",
        text(&folder.path().join("twice-00001-of-00002.gguf")),
        "-o",
        text(&out),
    ]));
    assert!(
        error.contains("twice-00002-of-00002.gguf") && error.contains("split.no"),
        "{error}"
    );
    std::fs::remove_file(name(1)).unwrap();
    let error = fail(fastc(&["compile", text(&name(2)), "-o", text(&out)]));
    assert!(error.contains("part-00001-of-00002.gguf"), "{error}");
}
