//! What a bundle runs on: instruction-set levels and the features that they need.

use serde::{Deserialize, Serialize};

/// A processor that code was generated for. Variants are in the order of their numbers in bundles: new ones go last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// x86-64 with AVX2, FMA, F16C and BMI2: the psABI's third level.
    X86_64V3,
    /// And AVX-512 F, BW, CD, DQ and VL, the psABI's fourth level, with AVX-512 VNNI, which that level lacks.
    X86_64V4,
}

impl Target {
    /// Every target, in the order in which help texts list them; of one architecture, the better ones later.
    pub const ALL: &[Target] = &[Target::X86_64V3, Target::X86_64V4];

    /// The name that `--target` takes and the manifest records.
    pub fn name(self) -> &'static str {
        match self {
            Target::X86_64V3 => "x86-64-v3",
            Target::X86_64V4 => "x86-64-v4",
        }
    }

    /// The architecture, by the names of `std::env::consts::ARCH`.
    pub fn arch(self) -> &'static str {
        match self {
            Target::X86_64V3 | Target::X86_64V4 => "x86_64",
        }
    }

    /// The processor features without which the bundle's code must not run, by the names that
    /// `std::arch::is_x86_feature_detected!` uses.
    pub const fn required_features(self) -> &'static [&'static str] {
        match self {
            Target::X86_64V3 => &["avx2", "bmi2", "f16c", "fma"],
            Target::X86_64V4 => &[
                "avx2",
                "bmi2",
                "f16c",
                "fma",
                "avx512f",
                "avx512bw",
                "avx512cd",
                "avx512dq",
                "avx512vl",
                "avx512vnni",
            ],
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
