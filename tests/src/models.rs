//! Where tests find the models.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct, Q4_1.
///
/// # Panics
/// The file is missing: a test that needs it must fail, not pass unrun.
pub fn smollm2() -> PathBuf {
    let path = folder().join("smollm2-135m-instruct-q4_1.gguf");
    assert!(
        path.is_file(),
        "{} is missing: run ./tests/run.sh, which fetches it, or set FASTINFER_MODELS to the folder that has it",
        path.display()
    );
    path
}

/// `$FASTINFER_MODELS`, or `fastinfer/models` in the user's cache folder.
fn folder() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("FASTINFER_MODELS").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("fastinfer/models")
    })
}
