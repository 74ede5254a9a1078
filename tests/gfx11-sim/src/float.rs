//! Arithmetic that the host lacks or does otherwise: f16 and bf16 conversions, minimum and maximum with the IEEE mode's
//! NaNs, single-rounding f16 multiply-add, classes.

/// f16 bits to f32. NaNs stay NaNs (quiet), denormals are exact.
#[inline(always)]
pub fn f16_to_f32(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let magnitude = (h & 0x7fff) << 13;
    // The exponent's bias is corrected by a multiplication, which handles denormals too.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x7c00 << 13 {
        0x7f80_0000
    } else {
        0
    };
    let quiet = if magnitude > 0x7c00 << 13 {
        0x0040_0000
    } else {
        0
    };
    f32::from_bits(sign | scaled | special | quiet)
}

/// f32 to f16 bits, rounded to nearest even.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    let a = bits & 0x7fff_ffff;
    // Normal results: the exponent's bias changes and 13 bits are rounded away; a carry moves into the exponent, up to
    // infinity.
    let normal = a
        .wrapping_sub(0x3800_0000)
        .wrapping_add(0xfff + (a >> 13 & 1))
        >> 13;
    // Denormal ones: an addition of a half aligns them with the last place, rounding on the way.
    let tiny = (f32::from_bits(a) + 0.5)
        .to_bits()
        .wrapping_sub(0x3f00_0000);
    let special = if a > 0x7f80_0000 {
        0x7e00 | a >> 13 & 0x3ff
    } else {
        0x7c00
    };
    let finite = if a < 0x3880_0000 { tiny } else { normal };
    sign | if a >= 0x4780_0000 { special } else { finite }
}

/// f32 to f16 bits in a rounding mode of MODE: 0 nearest even, 1 up, 2 down, 3 to zero.
pub fn f32_to_f16_round(x: f32, round: u32) -> u32 {
    let nearest = f32_to_f16(x);
    if round == 0 || x.is_nan() {
        return nearest;
    }
    let back = f16_to_f32(nearest);
    let away = |h: u32| if h & 0x7fff == 0x7c00 { h } else { h + 1 };
    // One step in magnitude, if the nearest lies on the wrong side.
    let (too_high, too_low) = (back > x, back < x);
    let negative = nearest & 0x8000 != 0;
    match round {
        3 if x > 0.0 && too_high || x < 0.0 && too_low => nearest - 1,
        1 if too_low => {
            if negative {
                nearest - 1
            } else {
                away(nearest)
            }
        }
        2 if too_high => {
            if negative {
                away(nearest)
            } else {
                nearest - 1
            }
        }
        _ => nearest,
    }
}

/// f32 to bf16 bits, rounded to nearest even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() {
        bits >> 16 | 0x40
    } else {
        rounded & 0xffff
    }
}

/// `a * b + c` of f16 bits, rounded once.
#[inline(always)]
pub fn fma_f16(a: u32, b: u32, c: u32) -> u32 {
    fma_f16_wide(f16_to_f32(a), f16_to_f32(b), f16_to_f32(c))
}

/// `a * b + c` of f32 that hold f16 values, as f16 bits, rounded once. The product is exact in f32; the sum is rounded to
/// odd, which makes the second rounding harmless.
#[inline(always)]
pub fn fma_f16_wide(a: f32, b: f32, c: f32) -> u32 {
    f32_to_f16(fma_odd(a, b, c))
}

/// `a * b + c` of f16 values in f32, rounded to odd.
#[inline(always)]
pub fn fma_odd(a: f32, b: f32, c: f32) -> f32 {
    let p = a * b;
    let sum = p + c;
    // The error of the sum, exactly (Knuth).
    let p_part = sum - c;
    let error = (p - p_part) + (c - (sum - p_part));
    let bits = sum.to_bits();
    let inexact = error != 0.0 && sum.is_finite();
    // Rounded away from the exact value: step back to the neighbour towards zero before the last bit is set.
    let away = inexact && ((error < 0.0) == (sum > 0.0));
    let truncated = if away { bits.wrapping_sub(1) } else { bits };
    f32::from_bits(if inexact { truncated | 1 } else { bits })
}

/// `a * b + c` of f32 in f64, rounded to odd: a later rounding to f32, whatever the scale, is the only one that counts.
pub fn fma_f32_odd(a: f32, b: f32, c: f32) -> f64 {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = p + c;
    let p_part = sum - c;
    let error = (p - p_part) + (c - (sum - p_part));
    if error == 0.0 || !sum.is_finite() {
        return sum;
    }
    let away = (error < 0.0) == (sum > 0.0);
    f64::from_bits((sum.to_bits() - u64::from(away)) | 1)
}

const QUIET_32: u32 = 0x0040_0000;

#[inline(always)]
fn is_signalling(x: u32) -> bool {
    x & 0x7fff_ffff > 0x7f80_0000 && x & QUIET_32 == 0
}

/// The larger one: a number rather than a NaN, +0 rather than -0; in IEEE mode signalling NaNs win and come out quiet.
#[inline(always)]
pub fn max_f32(a: u32, b: u32, ieee: bool) -> u32 {
    pick(
        a,
        b,
        ieee,
        f32::from_bits(a) > f32::from_bits(b),
        f32::from_bits(b) > f32::from_bits(a),
        a & b,
    )
}

/// The smaller one, likewise, and -0 rather than +0.
#[inline(always)]
pub fn min_f32(a: u32, b: u32, ieee: bool) -> u32 {
    pick(
        a,
        b,
        ieee,
        f32::from_bits(a) < f32::from_bits(b),
        f32::from_bits(b) < f32::from_bits(a),
        a | b,
    )
}

#[inline(always)]
fn pick(a: u32, b: u32, ieee: bool, first: bool, second: bool, equal: u32) -> u32 {
    let (a_nan, b_nan) = (f32::from_bits(a).is_nan(), f32::from_bits(b).is_nan());
    let number = if first {
        a
    } else if second {
        b
    } else {
        equal
    };
    let result = if a_nan {
        b
    } else if b_nan {
        a
    } else {
        number
    };
    let result = if f32::from_bits(result).is_nan() {
        result | QUIET_32
    } else {
        result
    };
    if ieee && is_signalling(a) {
        a | QUIET_32
    } else if ieee && is_signalling(b) {
        b | QUIET_32
    } else {
        result
    }
}

/// Minimum and maximum of f16 bits.
#[inline(always)]
pub fn max_f16(a: u32, b: u32, ieee: bool) -> u32 {
    narrow(max_f32(widen(a), widen(b), ieee))
}

/// See `max_f16`.
#[inline(always)]
pub fn min_f16(a: u32, b: u32, ieee: bool) -> u32 {
    narrow(min_f32(widen(a), widen(b), ieee))
}

/// f16 bits as f32 bits with signalling NaNs kept as such.
#[inline(always)]
fn widen(h: u32) -> u32 {
    let wide = f16_to_f32(h).to_bits();
    if h & 0x7fff > 0x7c00 {
        (h & 0x8000) << 16 | 0x7f80_0000 | (h & 0x3ff) << 13
    } else {
        wide
    }
}

#[inline(always)]
fn narrow(x: u32) -> u32 {
    f32_to_f16(f32::from_bits(x))
}

/// The classes of `v_cmp_class`: signalling NaN, quiet NaN, -infinity, -normal, -denormal, -0, +0, +denormal, +normal,
/// +infinity, one bit each.
pub fn class(
    negative: bool,
    exponent_ones: bool,
    exponent_zero: bool,
    mantissa_zero: bool,
    quiet: bool,
) -> u32 {
    match (exponent_ones, exponent_zero, mantissa_zero) {
        (true, _, false) => 1 << u32::from(quiet),
        (true, _, true) => 1 << if negative { 2 } else { 9 },
        (_, true, true) => 1 << if negative { 5 } else { 6 },
        (_, true, false) => 1 << if negative { 4 } else { 7 },
        _ => 1 << if negative { 3 } else { 8 },
    }
}

/// Class of f32 bits.
pub fn class_f32(x: u32) -> u32 {
    let exponent = x >> 23 & 0xff;
    class(
        x >> 31 != 0,
        exponent == 0xff,
        exponent == 0,
        x & 0x7f_ffff == 0,
        x & QUIET_32 != 0,
    )
}

/// Class of f16 bits.
pub fn class_f16(x: u32) -> u32 {
    let exponent = x >> 10 & 0x1f;
    class(
        x >> 15 & 1 != 0,
        exponent == 0x1f,
        exponent == 0,
        x & 0x3ff == 0,
        x & 0x200 != 0,
    )
}

/// Class of f64 bits.
pub fn class_f64(x: u64) -> u32 {
    let exponent = x >> 52 & 0x7ff;
    class(
        x >> 63 != 0,
        exponent == 0x7ff,
        exponent == 0,
        x & 0xf_ffff_ffff_ffff == 0,
        x >> 51 & 1 != 0,
    )
}

/// Zero of the same sign for a denormal.
#[inline(always)]
pub fn flush_f32(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 {
        f32::from_bits(x.to_bits() & 0x8000_0000)
    } else {
        x
    }
}

/// `x * 2^n` with one rounding, whatever `n`.
pub fn ldexp(x: f64, n: i32) -> f64 {
    // Steps that are exact until the last, where denormals round.
    let mut x = x;
    let mut n = n.clamp(-2200, 2200);
    let two = |n: i32| f64::from_bits(((1023 + n) as u64) << 52);
    if n < -1000 {
        // An underflowing step before the last would round twice: normalise first.
        let exponent = (x.to_bits() >> 52 & 0x7ff) as i32;
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        let total = exponent + n;
        if total < -60 {
            return if x.is_sign_negative() { -0.0 } else { 0.0 };
        }
        if exponent > 0 && total <= 0 {
            // The exponent becomes 1, exactly; the one step that remains rounds.
            let smallest = f64::from_bits(x.to_bits() & !(0x7ff << 52) | 1 << 52);
            return smallest * two(total - 1);
        }
    }
    while n > 1000 {
        x *= two(1000);
        n -= 1000;
    }
    while n < -1000 {
        x *= two(-1000);
        n += 1000;
    }
    x * two(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn f16_conversions_are_those_of_ieee() {
        for h in 0..=0xffffu16 {
            let value = f16::from_bits(h).to_f32();
            let ours = f16_to_f32(u32::from(h));
            assert!(
                ours.to_bits() == value.to_bits() || value.is_nan() && ours.is_nan(),
                "{h:#x}"
            );
            if !value.is_nan() {
                assert_eq!(f32_to_f16(value), u32::from(h));
            }
        }
        let mut x = 0x1234_5678u32;
        for _ in 0..2_000_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(x);
            if !value.is_nan() {
                assert_eq!(
                    f32_to_f16(value),
                    u32::from(f16::from_f32(value).to_bits()),
                    "{value:e}"
                );
            }
        }
    }

    #[test]
    fn f16_rounding_modes_bracket_the_value() {
        for bits in (0..u32::MAX - 99_991).step_by(99_991) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let value = |h| f16_to_f32(h);
            let (up, down, zero) = (
                f32_to_f16_round(x, 1),
                f32_to_f16_round(x, 2),
                f32_to_f16_round(x, 3),
            );
            assert!(value(up) >= x && value(down) <= x, "{x:e} {up:x} {down:x}");
            assert!(
                value(zero).abs() <= x.abs() && (zero == up || zero == down || value(zero) == 0.0),
                "{x:e} {zero:x}"
            );
            assert!(up == down || value(up) > value(down));
        }
    }

    #[test]
    fn f16_multiply_add_rounds_once() {
        // 1 + 2^-11 (a tie) plus the smallest denormal: only one rounding goes up.
        assert_eq!(fma_f16(0x1000, 0x3c00, 0x3c00), 0x3c00);
        let tie = f32_to_f16((2.0f32).powi(-11));
        assert_eq!(fma_f16(tie, 0x3c00, 0x3c00), 0x3c00);
        assert_eq!(
            fma_f16_wide(f16_to_f32(tie), f16_to_f32(0x3c01), 1.0),
            0x3c01
        );
        let mut x = 99u64;
        for _ in 0..1_000_000 {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let [a, b, c] = [16, 32, 48].map(|shift| (x >> shift) as u32 & 0xffff);
            let [fa, fb, fc] = [a, b, c].map(|h| f64::from(f16_to_f32(h)));
            let exact = fa * fb + fc; // exact in most cases: 22 bits and 11 bits within 53
            if exact.is_nan() || (fa * fb + fc - fc != fa * fb) || (exact - fa * fb != fc) {
                continue;
            }
            // To f32 by rounding to odd, which keeps the next rounding right: f16 of an f64 would look at its upper half alone.
            let near = exact as f32;
            let inexact = f64::from(near) != exact && near.is_finite();
            let even = near.to_bits() & 1 == 0;
            let toward_zero = match f64::from(near).abs() > exact.abs() {
                true => f32::from_bits(near.to_bits() - 1),
                false => near,
            };
            let odd = match inexact && (even || toward_zero != near) {
                true => f32::from_bits(toward_zero.to_bits() | 1),
                false => near,
            };
            assert_eq!(
                fma_f16(a, b, c),
                u32::from(f16::from_f32(odd).to_bits()),
                "{a:x} {b:x} {c:x}"
            );
        }
    }

    #[test]
    fn ldexp_rounds_once() {
        assert_eq!(ldexp(1.0, -1074), f64::from_bits(1));
        assert_eq!(ldexp(1.5, -1074), f64::from_bits(2));
        assert_eq!(ldexp(1.25, -1074), f64::from_bits(1));
        assert_eq!(ldexp(f64::from_bits(1), 2000), (2.0f64).powi(926));
        assert_eq!(ldexp(1.0, 5000), f64::INFINITY);
        assert_eq!(ldexp(f64::MAX, -2046), 2.0f64.powi(-1022));
        assert_eq!(ldexp(-3.0, 4), -48.0);
    }
}
