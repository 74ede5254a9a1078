//! What the end-to-end tests share: the binaries, the model, and bundles of it.

pub mod architectures;
pub mod experts;
pub mod gates;
#[cfg(target_os = "linux")]
pub mod gpu;
pub mod models;
pub mod texts;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the crate is a folder of the repository")
        .to_path_buf()
}

/// A file of tests/golden.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// A release binary.
pub fn bin(name: &str) -> PathBuf {
    built(name)
}

/// A library for applications: `libfastrun.so`, `.a` or `.rlib`.
pub fn library(name: &str) -> PathBuf {
    built(name)
}

/// A release build of an example of the runner.
pub fn example(name: &str) -> PathBuf {
    built(&format!("examples/{name}"))
}

/// What `tests/run.sh` builds before the tests.
fn built(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("release").join(name);
    assert!(
        path.is_file(),
        "{} is missing; run: cargo build --release -p fastc -p fastrun -p fastrun-ffi -p fake-cuda --bins --lib --examples",
        path.display()
    );
    path
}

/// The model's bundle for the CPU, compiled once a test program.
pub fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let folder = root().join("target/e2e");
        std::fs::create_dir_all(&folder).expect("the target folder is ours");
        // Test programs run one after another, but a person may run two at once.
        let path = folder.join(format!("smollm2-{}.fib", std::process::id()));
        compile(&models::smollm2(), &path, &[]);
        let shared = folder.join("smollm2.fib");
        std::fs::rename(&path, &shared).expect("both are in one folder");
        shared
    })
}

/// Compiles a model with the binary.
pub fn compile(model: &Path, bundle: &Path, options: &[&str]) {
    let mut command = Command::new(bin("fastc"));
    command
        .arg("compile")
        .arg(model)
        .arg("-o")
        .arg(bundle)
        .args(options);
    succeed(command);
}

/// Makes a small random model with the binary: two layers, grouped-query attention.
pub fn tiny(folder: &Path, quant: &str) -> PathBuf {
    let path = folder.join(format!("tiny-{quant}.gguf"));
    let mut command = Command::new(bin("fastc"));
    command
        .args(["synth", "tiny", "--quant", quant, "-o"])
        .arg(&path);
    succeed(command);
    path
}

/// Runs a command that must succeed; its standard output.
pub fn succeed(mut command: Command) -> String {
    let output = run(&mut command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}",
        output.status,
        stderr(&output)
    );
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Runs a command that must fail with exit code 1 and say something on standard error; what it says.
pub fn fail(mut command: Command) -> String {
    let output = run(&mut command);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
    let text = stderr(&output);
    assert!(
        !text.contains("panicked") && !text.contains("bug in"),
        "{command:?}: {text}"
    );
    assert!(!text.trim().is_empty(), "{command:?} failed without a word");
    text
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(command: &mut Command) -> Output {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("can't run {command:?}: {e}"))
}

/// A `fastrun` command with arguments.
pub fn fastrun(arguments: &[&str]) -> Command {
    let mut command = Command::new(bin("fastrun"));
    command.args(arguments);
    command
}
