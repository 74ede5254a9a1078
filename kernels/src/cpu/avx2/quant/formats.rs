//! The formats, one a quantised encoding.

use std::arch::x86_64::*;

use super::unpack::{
    bits, bytes, crumbs, exponents, factor, factors, factors_subtracted, floats, interleaved, less,
    looked_up, nibbles, or, signed_pairs, unsigned_pairs,
};
use super::{Format, Head, Quants, Scales};
use crate::quant::fields::{IQ4_VALUES, MXFP4_VALUES};

/// Bytes of a plane of 1 bit.
const PLANE: usize = 32;

/// MXFP4's quants, raised so that they are not negative. The largest, 12, would do; of multiples of 8 an eighth is whole.
const RAISED_MXFP4_VALUES: [i8; 16] = {
    let (mut raised, mut i) = (MXFP4_VALUES, 0);
    while i < 16 {
        raised[i] += 16;
        i += 1;
    }
    raised
};

/// Whether there is anything.
macro_rules! has {
    () => {
        false
    };
    ($($some:tt)+) => {
        true
    };
}

/// A number, or 0.
macro_rules! number {
    () => {
        0
    };
    ($number:literal) => {
        $number
    };
}

/// Implements formats: constants, the header's reader, what a part's pointer `at` and the half `H` make of quants, and
/// whatever else the format has.
macro_rules! formats {
    ($($name:ident {
        $parts:literal parts of $part:expr, behind $header:literal;
        $quants:ident, $scales:ident $(, raised by $raised:literal)?;
        head: $head:ident;
        half($at:ident, $h:ident): $half:expr;
        $(scale($scale_at:ident, $scale_h:ident): $scale:expr;)?
        $(min($min_head:ident, $min_at:ident): $min:expr;)?
        $(part_mins($pmin_at:ident, $pmin_next:ident): $part_mins:expr;)?
        $(half_min($hmin_at:ident, $hmin_h:ident): $half_min:expr;)?
        $(words($words_at:ident): $words:expr;)?
    })*) => {$(
        // The name is GGUF's.
        #[allow(non_camel_case_types)]
        pub enum $name {}

        // SAFETY of the blocks: each reads within a block or part, whose bytes the constants add up to.
        impl Format for $name {
            const PARTS: usize = $parts;
            const HEADER: usize = $header;
            const PART: usize = $part;
            const QUANTS: Quants = Quants::$quants;
            const SCALES: Scales = Scales::$scales;
            const RAISED: i32 = number![$($raised)?];
            const HAS_MIN: bool = has![$($min)?];
            const HAS_PART_MINS: bool = has![$($part_mins)?];
            const HAS_HALF_MINS: bool = has![$($half_min)?];

            #[inline]
            #[target_feature(enable = "avx2,bmi2,f16c,fma")]
            unsafe fn head(at: *const u8) -> Head {
                // SAFETY: the caller's promise.
                unsafe { $head(at) }
            }

            #[inline]
            #[target_feature(enable = "avx2,bmi2,f16c,fma")]
            unsafe fn half<const $h: usize>($at: *const u8) -> [__m256i; 4] {
                // SAFETY: as above.
                unsafe { $half }
            }

            $(
                #[inline]
                #[target_feature(enable = "avx2,bmi2,f16c,fma")]
                unsafe fn scale<const $scale_h: usize>($scale_at: *const u8) -> __m256i {
                    // SAFETY: as above.
                    unsafe { $scale }
                }
            )?

            $(
                #[inline]
                #[target_feature(enable = "avx2,bmi2,f16c,fma")]
                #[allow(unused_variables, unused_unsafe)]
                unsafe fn min($min_head: &Head, $min_at: *const u8) -> Option<__m256> {
                    // SAFETY: as above.
                    unsafe { Some($min) }
                }
            )?

            $(
                #[inline]
                #[target_feature(enable = "avx2,bmi2,f16c,fma")]
                unsafe fn part_mins($pmin_at: *const u8, $pmin_next: *const u8) -> Option<__m256i> {
                    // SAFETY: as above.
                    unsafe { Some($part_mins) }
                }
            )?

            $(
                #[inline]
                #[target_feature(enable = "avx2,bmi2,f16c,fma")]
                unsafe fn half_min<const $hmin_h: usize>($hmin_at: *const u8) -> Option<__m256i> {
                    // SAFETY: as above.
                    unsafe { Some($half_min) }
                }
            )?

            $(
                #[inline]
                #[target_feature(enable = "avx2,bmi2,f16c,fma")]
                unsafe fn words($words_at: *const u8, _: &mut [__m256i; 8]) -> *const __m256i {
                    $words
                }
            )?
        }
    )*};
}

formats! {
    Q4_0 {
        1 parts of 4 * PLANE, behind 16;
        Nibbles, None, raised by 8;
        head: factor;
        half(at, H): nibbles::<H>(at);
    }
    Q4_1 {
        1 parts of 4 * PLANE, behind 32;
        Nibbles, None;
        head: factors;
        half(at, H): nibbles::<H>(at);
        min(head, at): head.m;
    }
    Q5_0 {
        1 parts of 5 * PLANE, behind 16;
        Low, None, raised by 16;
        head: factor;
        half(at, H): or(nibbles::<H>(at), bits::<H>(at.add(4 * PLANE), 4));
    }
    Q5_1 {
        1 parts of 5 * PLANE, behind 32;
        Low, None;
        head: factors;
        half(at, H): or(nibbles::<H>(at), bits::<H>(at.add(4 * PLANE), 4));
        min(head, at): head.m;
    }
    Q8_0 {
        1 parts of 8 * PLANE, behind 16;
        Signed, None;
        head: factor;
        half(at, H): bytes::<H>(at);
        words(at): at.cast();
    }
    IQ4_NL {
        1 parts of 4 * PLANE, behind 16;
        Signed, None;
        head: factor;
        half(at, H): looked_up(nibbles::<H>(at), &IQ4_VALUES);
    }
    MXFP4 {
        1 parts of 4 * PLANE, behind 8;
        Low, None, raised by 16;
        head: exponents;
        half(at, H): looked_up(nibbles::<H>(at), &RAISED_MXFP4_VALUES);
    }
    Q2_K {
        8 parts of 16 + 2 * PLANE, behind 32;
        Crumbs, Halves;
        head: factors_subtracted;
        half(at, H): crumbs::<H>(at.add(16), 0);
        scale(at, H): _mm256_and_si256(unsigned_pairs(at.add(8 * H)), _mm256_set1_epi16(15));
        half_min(at, H): _mm256_srli_epi16::<4>(unsigned_pairs(at.add(8 * H)));
    }
    Q3_K {
        8 parts of 16 + 3 * PLANE, behind 16;
        SignedLow, Halves;
        head: factor;
        half(at, H): {
            let low = crumbs::<H>(at.add(16), 0);
            less(or(low, bits::<H>(at.add(16 + 2 * PLANE), 2)), 4)
        };
        scale(at, H): signed_pairs(at.add(8 * H));
    }
    Q4_K {
        8 parts of 16 + 4 * PLANE, behind 32;
        Nibbles, Whole;
        head: factors_subtracted;
        half(at, H): nibbles::<H>(at.add(16));
        scale(at, H): unsigned_pairs(at);
        min(head, at): _mm256_mul_ps(head.m, floats(at.add(8)));
        part_mins(at, next): interleaved(at.add(8), next.add(8));
    }
    Q5_K {
        8 parts of 16 + 5 * PLANE, behind 32;
        Low, Whole;
        head: factors_subtracted;
        half(at, H): {
            let low = nibbles::<H>(at.add(16));
            or(low, bits::<H>(at.add(16 + 4 * PLANE), 4))
        };
        scale(at, H): unsigned_pairs(at);
        min(head, at): _mm256_mul_ps(head.m, floats(at.add(8)));
        part_mins(at, next): interleaved(at.add(8), next.add(8));
    }
    Q6_K {
        8 parts of 16 + 6 * PLANE, behind 16;
        SignedLow, Halves;
        head: factor;
        half(at, H): {
            let low = nibbles::<H>(at.add(16));
            less(or(low, crumbs::<H>(at.add(16 + 4 * PLANE), 4)), 32)
        };
        scale(at, H): signed_pairs(at.add(8 * H));
    }
    IQ4_XS {
        8 parts of 8 + 4 * PLANE, behind 16;
        Signed, Whole;
        head: factor;
        half(at, H): looked_up(nibbles::<H>(at.add(8)), &IQ4_VALUES);
        scale(at, H): signed_pairs(at);
    }
}
