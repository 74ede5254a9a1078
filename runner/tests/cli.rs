//! The binary's exit codes and messages where no bundle is needed.

use std::process::{Command, Output, Stdio};

fn fastrun(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fastrun"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary was built with this test")
}

/// Runs it, and gives standard error, where it ends with `code`.
fn fails(args: &[&str], code: i32) -> String {
    let output = fastrun(args);
    let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} writes results");
    stderr
}

#[test]
fn help_and_version_are_results() {
    for (args, text) in [
        (vec!["--help"], "Exit codes: 0 ok, 1 failure, 2 usage"),
        (vec!["bench", "--help"], "--batch <N,N…>"),
        (vec!["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = fastrun(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains(text), "{args:?}: {stdout}");
    }
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = fastrun(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).expect("scripts are UTF-8");
        for name in ["repeat-penalty", "perplexity"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_argument() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage: fastrun"),
        (&["--raw"], "B.fib"),
        (&["m.fib", "extra"], "extra"),
        (
            &["m.fib", "--temp", "-1"],
            "a temperature is a number from 0 up",
        ),
        (&["m.fib", "--temp", "nan"], "--temp"),
        (&["m.fib", "--top-p", "0"], "a probability is above 0"),
        (&["m.fib", "--top-k", "x"], "--top-k"),
        (&["m.fib", "--min-p", "1.5"], "from 0 to 1"),
        (&["m.fib", "--repeat-penalty", "0"], "1 changes nothing"),
        (&["m.fib", "--presence-penalty", "inf"], "0 changes nothing"),
        (
            &["m.fib", "--frequency-penalty", "x"],
            "--frequency-penalty",
        ),
        (&["m.fib", "--repeat-last-n", "-2"], "--repeat-last-n"),
        (&["m.fib", "--stop", ""], "--stop"),
        (&["m.fib", "--raw", "--system", "x"], "--raw"),
        (&["completions", "tcsh"], "bash"),
        (&["m.fib", "-n", "-2"], "-2"),
        (&["m.fib", "--threads", "0"], "from 1 up"),
        (
            &["m.fib", "--device", "abacus"],
            "auto, cpu, gpu, reference",
        ),
        (&["m.fib", "--verify", "some"], "quick, full"),
        (&["m.fib", "--nonsense"], "--nonsense"),
        (&["bench"], "B.fib"),
        (&["bench", "m.fib", "--batch", "1,0"], "--batch"),
        (&["bench", "m.fib", "--prompt", "0"], "--prompt"),
        (&["perplexity", "m.fib"], "--file"),
        (&["perplexity", "m.fib", "-f", "x", "--ctx", "3"], "--ctx"),
        (&["logits", "m.fib"], "--tokens"),
        (&["logits", "m.fib", "--tokens", "1,two"], "two"),
        (
            &["logits", "m.fib", "--tokens", "1", "--top", "0"],
            "from 1 up",
        ),
        (&["inspect"], "B.fib"),
        (&["verify", "a.fib", "b.fib"], "b.fib"),
    ];
    for (args, text) in cases {
        let stderr = fails(args, 2);
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
}

#[test]
fn a_missing_bundle_is_a_failure_that_names_the_file() {
    let cases: &[&[&str]] = &[
        &["no-such.fib", "-p", "Hello"],
        &["bench", "no-such.fib"],
        &["perplexity", "no-such.fib", "-f", "Cargo.toml"],
        &["tokenize", "no-such.fib"],
        &["logits", "no-such.fib", "--tokens", "1"],
        &["inspect", "no-such.fib"],
        &["verify", "no-such.fib"],
    ];
    for args in cases {
        let stderr = fails(args, 1);
        assert!(stderr.contains("no-such.fib"), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

#[test]
fn a_file_that_is_no_bundle_is_refused() {
    let stderr = fails(
        &[
            "inspect",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ],
        1,
    );
    assert!(stderr.contains("not a bundle"), "{stderr}");
}

#[test]
fn a_model_that_was_not_compiled_is_refused_with_the_command_to_do_so() {
    let path = std::env::temp_dir().join(format!("fastrun-cli-{}.gguf", std::process::id()));
    std::fs::write(&path, b"GGUF\x03\0\0\0").expect("the temporary folder is writable");
    let stderr = fails(&[&path.to_string_lossy(), "-p", "x"], 1);
    std::fs::remove_file(&path).expect("it was written");
    assert!(stderr.contains("fastc compile"), "{stderr}");
    let missing = fails(&["no-such.fib", "-p", "x"], 1);
    assert!(missing.contains("check the name"), "{missing}");
}
