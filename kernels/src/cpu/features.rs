//! What this processor has.

/// Whether this processor has a feature, by the names of `std::arch::is_x86_feature_detected!`; none for other names. Tiles
/// (`amx-tile`, `amx-int8`) it has where the system lets this process use them: the first question asks for that, for all
/// threads that the process has and starts.
#[cfg(target_arch = "x86_64")]
pub fn has_feature(name: &str) -> Option<bool> {
    macro_rules! known {
        ($($feature:tt),* $(,)?) => {
            match name {
                "amx-tile" => Some(tiles::allowed() && tiles::has(tiles::TILE)),
                "amx-int8" => Some(tiles::allowed() && tiles::has(tiles::INT8)),
                $($feature => Some(std::arch::is_x86_feature_detected!($feature)),)*
                _ => None,
            }
        };
    }
    known!(
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "lzcnt",
        "movbe",
        "bmi1",
        "bmi2",
        "avx",
        "avx2",
        "f16c",
        "fma",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512vbmi",
        "avx512bf16",
        "avx512fp16",
        "gfni",
        "vaes",
        "vpclmulqdq",
    )
}

#[cfg(target_arch = "x86_64")]
mod tiles {
    //! AMX: what the processor says, and the system's permission.

    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// Bits of edx of leaf 7.
    pub const TILE: u32 = 1 << 24;
    pub const INT8: u32 = 1 << 25;

    pub fn has(bit: u32) -> bool {
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & bit != 0
    }

    /// Whether this process may use tiles. Their state is large, so Linux gives it only to who asks: it is an error on a
    /// processor or a system without, where a thread has too small a stack for signals, and where a filter forbids it.
    #[cfg(target_os = "linux")]
    pub fn allowed() -> bool {
        use std::sync::OnceLock;

        /// `ARCH_REQ_XCOMP_PERM` and `XFEATURE_XTILEDATA` of Linux's asm/prctl.h and its documentation of xstate.
        const REQUEST: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;

        static ALLOWED: OnceLock<bool> = OnceLock::new();
        *ALLOWED.get_or_init(|| {
            // SAFETY: this request takes a number and touches no memory.
            has(TILE) && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn allowed() -> bool {
        false
    }
}

/// Whether AMD made this processor.
#[cfg(target_arch = "x86_64")]
pub fn is_amd() -> bool {
    static IS_AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IS_AMD.get_or_init(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        // "AuthenticAMD", in the registers' order.
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes) == [*b"Auth", *b"enti", *b"cAMD"]
    })
}

#[cfg(not(target_arch = "x86_64"))]
pub fn has_feature(_: &str) -> Option<bool> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::has_feature;
    use bundle_format::target::Target;

    #[test]
    fn features_are_known_by_their_names() {
        for target in Target::ALL {
            for name in target.required_features() {
                assert!(has_feature(name).is_some(), "{name}");
            }
        }
        for level in crate::cpu::Level::ALL {
            for name in level.required_features() {
                assert!(has_feature(name).is_some(), "{name}");
            }
        }
        assert_eq!(has_feature("sse2x"), None);
        assert_eq!(has_feature(""), None);
    }
}
