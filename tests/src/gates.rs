//! The gates of tests/golden/README.md: what a program's probabilities may differ by from f32 arithmetic's.

use std::path::Path;
use std::process::Command;

use crate::{fastrun, golden, succeed};

/// What was measured of a model over its two windows.
#[derive(Clone, Copy, Debug)]
pub struct Gates {
    /// The oracle's perplexity.
    pub oracle: f64,
    /// llama.cpp's on the quantised file.
    pub llama_cpp: f64,
    /// And its top-64 KL to the oracle.
    pub llama_cpp_kl: f64,
}

pub const SMOLLM2: Gates = Gates {
    oracle: 17.6866,
    llama_cpp: 17.7185,
    llama_cpp_kl: 0.00266,
};

pub const GEMMA3: Gates = Gates {
    oracle: 13.8050,
    llama_cpp: 13.9358,
    llama_cpp_kl: 0.00430,
};

/// `fastrun perplexity` of a bundle on the oracle's windows, a file of tests/golden.
pub fn perplexity(bundle: &Path, windows: &str) -> Command {
    let mut command = fastrun(&["perplexity"]);
    command.arg(bundle).arg("-f").arg(golden("gpl3-30k.txt"));
    command.arg("--reference").arg(golden(windows));
    command
}

impl Gates {
    /// Runs what [`perplexity`] gave.
    ///
    /// # Panics
    /// It fails, or what it says is beyond a gate.
    pub fn hold(&self, command: Command) {
        let out = succeed(command);
        let number = |after: &str| -> f64 {
            let at = out
                .rfind(after)
                .unwrap_or_else(|| panic!("no {after} in {out}"));
            let rest = &out[at + after.len()..];
            rest.split([' ', '%', '\n'])
                .find(|w| !w.is_empty())
                .unwrap()
                .parse()
                .unwrap()
        };
        let gate = f64::max(self.llama_cpp / self.oracle, 1.003) * self.oracle;
        let (perplexity, kl) = (number("perplexity: "), number("kl: "));
        assert!(
            perplexity <= gate,
            "perplexity {perplexity}, gate {gate}\n{out}"
        );
        assert!(kl <= 1.05 * self.llama_cpp_kl, "top-64 KL {kl}\n{out}");
        assert!(number("same-top: ") >= 96.0, "{out}");
    }
}
