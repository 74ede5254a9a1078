//! Where tests find the models.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct, Q4_1.
///
/// # Panics
/// The file is missing: a test that needs it must fail, not pass unrun.
pub fn smollm2() -> PathBuf {
    model("smollm2-135m-instruct-q4_1.gguf")
}

/// Gemma 3 270M, Q4_K_M.
///
/// # Panics
/// The file is missing.
pub fn gemma3() -> PathBuf {
    model("gemma3-270m-q4_k_m.gguf")
}

fn model(name: &str) -> PathBuf {
    let path = folder().join(name);
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
