//! What a bundle runs on: instruction-set levels and the features that they need.

use serde::{Deserialize, Serialize};

/// A processor that code was generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// x86-64 with AVX2, FMA, F16C and BMI2: the psABI's third level.
    X86_64V3,
}

impl Target {
    /// Every target, in the order in which help texts list them.
    pub const ALL: &[Target] = &[Target::X86_64V3];

    /// The name that `--target` takes and the manifest records.
    pub fn name(self) -> &'static str {
        match self {
            Target::X86_64V3 => "x86-64-v3",
        }
    }

    /// The processor features without which the bundle's code must not run, by the names that
    /// `std::arch::is_x86_feature_detected!` uses.
    pub fn required_features(self) -> &'static [&'static str] {
        match self {
            Target::X86_64V3 => &["avx2", "bmi2", "f16c", "fma"],
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
