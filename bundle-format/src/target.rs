//! What a bundle runs on: instruction-set levels and the features that they need.

use serde::{Deserialize, Serialize};

/// A processor that code was generated for. Variants are in the order of their numbers in bundles: new ones go last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// x86-64 with AVX2, FMA, F16C and BMI2: the psABI's third level.
    X86_64V3,
    /// And AVX-512 F, BW, CD, DQ and VL, the psABI's fourth level, with AVX-512 VNNI, which that level lacks.
    X86_64V4,
    /// NVIDIA chips by their compute capability: A100.
    Sm80,
    /// GeForce 30.
    Sm86,
    /// GeForce 40, L4, L40.
    Sm89,
    /// H100, H200, with the instructions that only they have.
    Sm90a,
    /// B200, with its own.
    Sm100a,
    /// GeForce 50, with its own.
    Sm120a,
    /// AMD's Strix Halo: RDNA 3.5, wavefronts of 32 lanes.
    Gfx1151,
}

impl Target {
    /// Every target, in the order in which help texts list them; of one architecture, the better ones later.
    pub const ALL: &[Target] = &[
        Target::X86_64V3,
        Target::X86_64V4,
        Target::Sm80,
        Target::Sm86,
        Target::Sm89,
        Target::Sm90a,
        Target::Sm100a,
        Target::Sm120a,
        Target::Gfx1151,
    ];

    /// The name that `--target` takes and the manifest records.
    pub fn name(self) -> &'static str {
        match self {
            Target::X86_64V3 => "x86-64-v3",
            Target::X86_64V4 => "x86-64-v4",
            Target::Sm80 => "sm_80",
            Target::Sm86 => "sm_86",
            Target::Sm89 => "sm_89",
            Target::Sm90a => "sm_90a",
            Target::Sm100a => "sm_100a",
            Target::Sm120a => "sm_120a",
            Target::Gfx1151 => "gfx1151",
        }
    }

    /// The architecture of the processor, by the names of `std::env::consts::ARCH`; none for a GPU, which any host may
    /// have.
    pub fn arch(self) -> Option<&'static str> {
        match self {
            Target::X86_64V3 | Target::X86_64V4 => Some("x86_64"),
            _ => None,
        }
    }

    /// The compute capability of an NVIDIA chip, major and minor; none for other processors.
    pub fn compute_capability(self) -> Option<(u32, u32)> {
        match self {
            Target::X86_64V3 | Target::X86_64V4 | Target::Gfx1151 => None,
            Target::Sm80 => Some((8, 0)),
            Target::Sm86 => Some((8, 6)),
            Target::Sm89 => Some((8, 9)),
            Target::Sm90a => Some((9, 0)),
            Target::Sm100a => Some((10, 0)),
            Target::Sm120a => Some((12, 0)),
        }
    }

    /// Whether bundles hold kernels of a GPU.
    pub fn is_gpu(self) -> bool {
        self.block_shared().is_some()
    }

    /// Whether kernels for it are chosen by a stability profile.
    pub fn has_profiles(self) -> bool {
        self == Target::Gfx1151
    }

    /// Bytes of shared memory that a block of threads may have on a GPU; none for other processors.
    pub fn block_shared(self) -> Option<u32> {
        match self {
            Target::X86_64V3 | Target::X86_64V4 => None,
            Target::Sm80 => Some(163 << 10),
            Target::Sm86 | Target::Sm89 | Target::Sm120a => Some(99 << 10),
            Target::Sm90a | Target::Sm100a => Some(227 << 10),
            Target::Gfx1151 => Some(64 << 10),
        }
    }

    /// Registers of 32 bits that the threads of a block may have together on a GPU, and how many a warp (a wavefront, on AMD's)
    /// takes at a time; none for other processors.
    pub fn block_registers(self) -> Option<(u32, u32)> {
        match self {
            Target::X86_64V3 | Target::X86_64V4 => None,
            // Four units of 1536 for each of 32 lanes, in granules of 24.
            Target::Gfx1151 => Some((4 * 1536 * 32, 24 * 32)),
            _ => Some((65536, 256)),
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
            _ => &[],
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
