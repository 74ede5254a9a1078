//! The library as applications use it: the examples, the C interface, and README's few lines in each language.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{bundle, example, library, root, succeed};

/// Compiles a C program against the header, strictly.
fn cc(source: &Path, program: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("cc");
    command
        .args([
            "-std=c11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
        ])
        .arg("-I")
        .arg(root().join("ffi/include"))
        .arg(source)
        .args(options)
        .args(["-lm", "-lpthread", "-ldl", "-o"])
        .arg(program);
    command
}

/// Compiles a C program that links `libfastrun.so`.
fn cc_shared(source: &Path, program: &Path, options: &[&str]) {
    let so = library("libfastrun.so");
    let folder = so
        .parent()
        .expect("it is in a folder")
        .to_string_lossy()
        .into_owned();
    let (search, path) = (format!("-L{folder}"), format!("-Wl,-rpath,{folder}"));
    let mut all = options.to_vec();
    all.extend([search.as_str(), path.as_str(), "-lfastrun"]);
    succeed(cc(source, program, &all));
}

fn run(program: &Path, arguments: &[&Path]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    succeed(command)
}

/// What examples/embed.c says of SmolLM2.
fn check_embed_c(said: &str) {
    assert!(said.starts_with("fastrun "), "{said}");
    assert!(said.contains("The capital of France is Paris."), "{said}");
    assert!(said.contains(r#""finish_reason":"stop""#), "{said}");
    assert!(said.contains("[cancelled]"), "{said}");
    assert!(
        said.contains("tokens: Tokens and back: naïve café."),
        "{said}"
    );
    assert!(said.contains("similarity: 0."), "{said}");
    assert!(
        said.contains("a misspelt field: status 2: request: unknown field `temprature`"),
        "{said}"
    );
    assert!(
        said.contains("no file: status 2: no-such-file.fib: can't open"),
        "{said}"
    );
}

#[test]
fn the_c_example_runs_and_loses_no_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("embed");
    // AddressSanitizer checks what C does and what is copied over the border, and that everything is freed at the end.
    let options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    cc_shared(&root().join("examples/embed.c"), &program, &options);
    check_embed_c(&run(&program, &[bundle()]));
}

#[test]
fn the_c_example_runs_with_the_static_library() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("embed");
    let archive = library("libfastrun.a");
    let archive = archive.to_string_lossy();
    succeed(cc(&root().join("examples/embed.c"), &program, &[&archive]));
    check_embed_c(&run(&program, &[bundle()]));
}

#[test]
fn the_library_exports_its_interface_and_nothing_else() {
    let header = fs::read_to_string(root().join("ffi/include/fastrun.h")).expect("it is there");
    let mut command = Command::new("nm");
    command
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library("libfastrun.so"));
    let symbols = succeed(command);
    let names = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let exported: BTreeSet<String> = symbols.lines().map(names).collect();
    assert_eq!(exported, declared(&header));
    assert!(exported.len() >= 15, "{exported:?}");
}

/// The functions of a header, which its comments may mention besides.
fn declared(header: &str) -> BTreeSet<String> {
    let code = header
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let after = |line: &str| {
        let calls = line.split_inclusive('(').filter(|part| part.ends_with('('));
        let names = calls.filter_map(|part| part.trim_end_matches('(').rsplit([' ', '*']).next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let names = code.flat_map(after);
    names.filter(|name| name.starts_with("fastrun_")).collect()
}

#[test]
fn the_rust_example_runs() {
    let said = run(&example("embed"), &[bundle()]);
    assert!(
        said.contains("What is the capital of France?") && said.contains("Paris"),
        "{said}"
    );
    assert!(
        said.contains("And of Italy?") && said.contains("Rome"),
        "{said}"
    );
    assert!(
        said.contains("[cancelled]") && said.contains("[timeout]"),
        "{said}"
    );
    assert!(
        said.contains("similarity: 0.") && said.contains("of 576 values"),
        "{said}"
    );
}

#[test]
fn a_batch_is_answered_as_its_prompts_alone() {
    use std::io::Write;
    use std::process::Stdio;

    let batch = |lines: &str| {
        let mut command = Command::new(example("batch"));
        command
            .arg(bundle())
            .arg("12")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the example is built");
        let mut input = child.stdin.take().expect("it is piped");
        input
            .write_all(lines.as_bytes())
            .expect("it reads its input");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("it is text")
    };
    let prompts = [
        "Once upon a time",
        "The sun is",
        "def f(x):",
        "Once upon a time",
    ];
    let together = batch(&prompts.join("\n"));
    let lines: Vec<&str> = together.lines().collect();
    assert_eq!(lines.len(), prompts.len(), "{together}");
    assert_eq!(lines[0], lines[3]);
    for (line, prompt) in lines.iter().zip(prompts) {
        assert!(
            line.starts_with(prompt) && line.len() > prompt.len() + 10,
            "{line}"
        );
        assert_eq!(batch(prompt).trim_end_matches('\n'), *line);
    }
}

/// The block of code that follows a heading of README.md.
fn readme_block(heading: &str, language: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).expect("it is there");
    let (_, after) = readme
        .split_once(&format!("\n### {heading}\n"))
        .unwrap_or_else(|| panic!("README.md has no section {heading}"));
    let (_, code) = after
        .split_once(&format!("```{language}\n"))
        .unwrap_or_else(|| panic!("README.md's {heading} has no block of {language}"));
    let (code, _) = code.split_once("\n```").expect("a block has an end");
    assert!(
        code.lines().count() <= 14,
        "{heading}: that is more than a few lines"
    );
    format!("{code}\n")
}

/// A folder that has the bundle as `model.fib`.
fn with_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(bundle(), folder.path().join("model.fib")).expect("it is empty");
    folder
}

fn assert_it_writes(mut command: Command, folder: &Path) {
    command.current_dir(folder);
    let said = succeed(command);
    assert!(said.trim().len() > 20, "it wrote {said:?}");
}

#[test]
fn the_readmes_c_runs() {
    let folder = with_model();
    let source = folder.path().join("readme.c");
    fs::write(&source, readme_block("C", "c")).expect("the folder is ours");
    let program = folder.path().join("readme");
    cc_shared(&source, &program, &[]);
    assert_it_writes(Command::new(program), folder.path());
}

#[test]
fn the_readmes_python_runs() {
    let folder = with_model();
    let mut command = Command::new("python3");
    command
        .arg("-c")
        .arg(readme_block("Python", "python"))
        .env("PYTHONPATH", root().join("examples/python/src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("FASTRUN_LIBRARY", library("libfastrun.so"));
    assert_it_writes(command, folder.path());
}

#[test]
fn the_readmes_rust_runs() {
    let folder = with_model();
    let source = folder.path().join("readme.rs");
    fs::write(&source, readme_block("Rust", "rust")).expect("the folder is ours");
    let rlib: PathBuf = library("libfastrun.rlib");
    let dependencies = rlib.with_file_name("deps");
    let program = folder.path().join("readme");
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command
        .current_dir(root())
        .args(["--edition", "2024", "-D", "warnings"])
        .arg(&source)
        .arg("--extern")
        .arg(format!("fastrun={}", rlib.display()))
        .arg("-L")
        .arg(format!("dependency={}", dependencies.display()))
        .arg("-o")
        .arg(&program);
    succeed(command);
    assert_it_writes(Command::new(program), folder.path());
}
