//! What people see of `fastc`: errors that say what, where and what to do, and exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fastc(args: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastc"));
    command.args(args).current_dir(folder).output().unwrap()
}

/// A folder with a model of two layers and 512 positions, `m.gguf`.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let made = fastc(&["synth", "tiny", "-o", "m.gguf"], folder.path());
    assert!(made.status.success(), "{made:?}");
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(text.starts_with("m.gguf: 0.2 MB, 0.4 million"), "{text}");
    let path = folder.path().to_path_buf();
    (folder, path)
}

/// The last line that a failing command prints to standard error; nothing goes to standard output.
fn refused(args: &[&str], folder: &Path, code: i32) -> String {
    let output = fastc(args, folder);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap().trim().to_string()
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let (_guard, folder) = folder();
    std::fs::create_dir(folder.join("dir")).unwrap();
    std::fs::write(folder.join("text.gguf"), "not a model").unwrap();
    std::fs::write(folder.join("empty.gguf"), "").unwrap();
    let whole = std::fs::read(folder.join("m.gguf")).unwrap();
    std::fs::write(folder.join("cut.gguf"), &whole[..100_000]).unwrap();
    let before = names(&folder);
    for (args, says) in [
        (
            "compile absent.gguf",
            "can't read absent.gguf: No such file",
        ),
        ("compile dir", "dir is not a file; expected a GGUF model"),
        (
            "compile text.gguf",
            "text.gguf: GGUF header (byte 0): expected the magic bytes `GGUF`",
        ),
        ("compile empty.gguf", "empty.gguf: GGUF header"),
        (
            "compile cut.gguf",
            "bytes of tensor data; the file is incomplete, fetch it again",
        ),
        (
            "compile m.gguf -o dir",
            "can't write dir: it is a folder; name a file",
        ),
        (
            "compile m.gguf -o dir/..",
            "can't write dir/..: it is a folder",
        ),
        (
            "compile m.gguf -o absent/m.fib",
            "can't write absent/m.fib: there is no folder absent; make it first",
        ),
        (
            "compile m.gguf -o m.gguf",
            "can't write m.gguf: it is the input itself; name another file",
        ),
        (
            "compile m.gguf -o dir/../m.gguf",
            "can't write dir/../m.gguf: it is the input itself",
        ),
        (
            "compile m.gguf --ctx 0",
            "m.gguf: --ctx 0: this model was trained for 1 to 512 positions",
        ),
        (
            "compile m.gguf --ctx 4000000000",
            "--ctx 4000000000: this model was trained for 1 to 512",
        ),
        (
            "compile m.gguf --max-batch 0",
            "m.gguf: --max-batch 0: expected 1 to 512 sequences",
        ),
        (
            "compile m.gguf --max-batch 513",
            "--max-batch 513: expected 1 to 512 sequences",
        ),
        (
            "compile m.gguf --disable-pass fuse",
            "--disable-pass fuse: no such pass; there are index-experts, gather-early, fuse-qkv,",
        ),
        (
            "explain m.gguf --layer 2",
            "m.gguf: --layer 2: expected 0 to 1",
        ),
        (
            "explain m.gguf --tokens 0",
            "m.gguf: --tokens 0: expected 1 to 512",
        ),
        (
            "explain m.gguf --depth 513",
            "m.gguf: --depth 513: expected at most 512, the positions of a sequence",
        ),
        ("inspect absent.gguf", "can't read absent.gguf"),
        (
            "synth tiny -o dir",
            "can't write dir: it is a folder; name a file",
        ),
        (
            "synth tiny -o absent/m.gguf",
            "can't write absent/m.gguf: there is no folder absent; make it first",
        ),
        (
            "synth tiny -o x.gguf --quant q9",
            "unknown quantisation `q9`; expected one of F32, F16, Q4_0,",
        ),
        (
            "synth tiny -o x.gguf --layers 0",
            "--layers 0: expected 1 to 512",
        ),
        (
            "synth tiny -o x.gguf --vocab text.gguf",
            "text.gguf: GGUF header",
        ),
        (
            "synth tiny -o m.gguf --vocab m.gguf",
            "can't write m.gguf: it is the input itself",
        ),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let text = refused(&args, &folder, 1);
        assert!(text.starts_with("fastc: "), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(!text.contains(".part"), "{args:?}: {text}");
    }
    assert_eq!(names(&folder), before, "nothing is left behind");
    assert!(std::fs::read(folder.join("m.gguf")).unwrap() == whole);
}

#[test]
fn usage_errors_exit_with_2_and_list_what_there_is() {
    let (_guard, folder) = folder();
    for (args, says) in [
        (
            "compile m.gguf --target sparc",
            "possible values: cpu, native",
        ),
        (
            "compile m.gguf --ctx -1",
            "invalid value '-1' for '--ctx <N>'",
        ),
        (
            "compile m.gguf --max-batch -1",
            "invalid value '-1' for '--max-batch <N>'",
        ),
        ("compile", "<MODEL>"),
        ("synth gpt5 -o x.gguf", "mixtral-8x7b"),
        ("synth tiny", "--output <OUTPUT>"),
        ("explode", "unrecognized subcommand 'explode'"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let text = refused(&args, &folder, 2);
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

#[test]
fn a_short_context_is_explained_to_its_end() {
    let (_guard, folder) = folder();
    let output = fastc(&["explain", "m.gguf", "--ctx", "64"], &folder);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("one sequence with 64 positions"), "{text}");
}

#[test]
fn a_bundle_takes_the_place_of_an_older_one() {
    let (_guard, folder) = folder();
    std::fs::write(folder.join("m.fib"), "old").unwrap();
    let output = fastc(&["compile", "m.gguf"], &folder);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("m.fib: "), "{text}");
    assert!(std::fs::metadata(folder.join("m.fib")).unwrap().len() > 100_000);
    assert_eq!(names(&folder), ["m.fib", "m.gguf"]);
}
