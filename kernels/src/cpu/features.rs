//! What this processor has.

/// Whether this processor has a feature, by the names of `std::arch::is_x86_feature_detected!`; none for other names.
#[cfg(target_arch = "x86_64")]
pub fn has_feature(name: &str) -> Option<bool> {
    macro_rules! known {
        ($($feature:tt),* $(,)?) => {
            match name {
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
        assert_eq!(has_feature("sse2x"), None);
        assert_eq!(has_feature(""), None);
    }
}
