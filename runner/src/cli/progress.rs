//! Progress bars: on standard error, and only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

const STEPS: &str = "{msg:>12} [{bar:40}] {pos}/{len}  {eta} left";
const BYTES: &str = "{msg:>12} [{bar:40}] {bytes}/{total_bytes}  {bytes_per_sec}";

/// A bar over `steps` steps of `what`.
pub fn steps(what: &'static str, steps: u64) -> ProgressBar {
    styled(what, steps, STEPS)
}

/// A bar over `bytes` bytes of `what`.
pub fn bytes(what: &'static str, bytes: u64) -> ProgressBar {
    styled(what, bytes, BYTES)
}

fn styled(what: &'static str, len: u64, template: &str) -> ProgressBar {
    // A test parses both templates.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(len).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_parse() {
        for template in [STEPS, BYTES] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
