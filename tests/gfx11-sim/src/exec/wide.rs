//! f64, 64-bit integers, and the scaling of divisions.

use super::alu::{mask, put_f32, source, source_f32};
use crate::fault::Exec;
use crate::float;
use crate::isa::{Mods, Vector, Vop};
use crate::wave::{Lanes, Literal, Wave};

/// Executes an operation of `Unit::Wide`.
#[inline(never)]
pub(super) fn execute(wave: &mut Wave, inst: &Vector) -> Exec {
    match inst.op {
        Vop::AddF64 => float2(wave, inst, |a, b| a + b),
        Vop::MulF64 => float2(wave, inst, |a, b| a * b),
        Vop::MinF64 => float2(wave, inst, |a, b| min_max(a, b, true)),
        Vop::MaxF64 => float2(wave, inst, |a, b| min_max(a, b, false)),
        Vop::FmaF64 => float3(wave, inst, f64::mul_add),
        Vop::TruncF64 => float1(wave, inst, f64::trunc),
        Vop::CeilF64 => float1(wave, inst, f64::ceil),
        Vop::FloorF64 => float1(wave, inst, f64::floor),
        Vop::RndneF64 => float1(wave, inst, f64::round_ties_even),
        Vop::FractF64 => float1(wave, inst, |a| {
            (a - a.floor()).min(f64::from_bits(0x3fef_ffff_ffff_ffff))
        }),
        Vop::RcpF64 => float1(wave, inst, |a| 1.0 / a),
        Vop::SqrtF64 => float1(wave, inst, f64::sqrt),
        Vop::RsqF64 => float1(wave, inst, |a| 1.0 / a.sqrt()),
        Vop::FrexpMantF64 => float1(wave, inst, |a| parts(a).0),
        Vop::FrexpExpI32F64 => to_32(wave, inst, |a| parts(a).1 as u32),
        Vop::CvtI32F64 => to_32(wave, inst, |a| a as i32 as u32),
        Vop::CvtU32F64 => to_32(wave, inst, |a| a as u32),
        Vop::CvtF32F64 => {
            let a = source64(wave, inst, 0);
            let mut out: Lanes = a.map(|a| (a as f32).to_bits());
            put_f32(wave, inst, &mut out);
        }
        Vop::CvtF64F32 => from_32(wave, inst, |a| f64::from(f32::from_bits(a))),
        Vop::CvtF64I32 => from_32(wave, inst, |a| f64::from(a as i32)),
        Vop::CvtF64U32 => from_32(wave, inst, f64::from),
        Vop::LdexpF64 => {
            let a = source64(wave, inst, 0);
            let n = wave.operand(inst.src[1], 1);
            let out = std::array::from_fn(|lane| float::ldexp(a[lane], wave.v[n][lane] as i32));
            put_f64(wave, inst, out);
        }
        Vop::DivFixupF64 => float3(wave, inst, div_fixup),
        Vop::DivFmasF64 => {
            let vcc = wave.s[106];
            let [a, b, c] = [0, 1, 2].map(|n| source64(wave, inst, n));
            let out = std::array::from_fn(|lane| {
                let scale = match (vcc >> lane & 1 != 0, c[lane].to_bits() >> 52 & 0x7ff > 1023) {
                    (false, _) => 0,
                    (true, true) => 128,
                    (true, false) => -128,
                };
                float::ldexp(a[lane].mul_add(b[lane], c[lane]), scale)
            });
            put_f64(wave, inst, out);
        }
        Vop::DivScaleF32 => div_scale_f32(wave, inst),
        Vop::DivScaleF64 => div_scale_f64(wave, inst),
        Vop::MadU64U32 | Vop::MadI64I32 => mad(wave, inst),
        Vop::LshlrevB64 => shift(wave, inst, |n, a| a << n),
        Vop::LshrrevB64 => shift(wave, inst, |n, a| a >> n),
        Vop::AshrrevI64 => shift(wave, inst, |n, a| ((a as i64) >> n) as u64),
        op => unreachable!("{op:?} belongs to another unit"),
    }
    Ok(())
}

/// An f64 source with its sign modifiers.
fn source64(wave: &mut Wave, inst: &Vector, n: usize) -> [f64; 32] {
    let (neg, abs) = (inst.mods.neg >> n & 1 != 0, inst.mods.abs >> n & 1 != 0);
    wave.operand64(inst.src[n], Literal::High).map(|bits| {
        let x = f64::from_bits(bits);
        let x = if abs { x.abs() } else { x };
        if neg { -x } else { x }
    })
}

fn put_f64(wave: &mut Wave, inst: &Vector, value: [f64; 32]) {
    let dx10 = wave.mode.dx10_clamp();
    let value = value.map(|x| match x {
        x if !inst.mods.clamp => x,
        x if x.is_nan() && !dx10 => x,
        x if x > 1.0 => 1.0,
        x if x > 0.0 => x,
        _ => 0.0,
    });
    wave.put64(inst.dst, &value.map(f64::to_bits));
}

fn float1(wave: &mut Wave, inst: &Vector, f: impl Fn(f64) -> f64) {
    let a = source64(wave, inst, 0);
    put_f64(wave, inst, a.map(f));
}

fn float2(wave: &mut Wave, inst: &Vector, f: impl Fn(f64, f64) -> f64) {
    let (a, b) = (source64(wave, inst, 0), source64(wave, inst, 1));
    put_f64(wave, inst, std::array::from_fn(|lane| f(a[lane], b[lane])));
}

fn float3(wave: &mut Wave, inst: &Vector, f: impl Fn(f64, f64, f64) -> f64) {
    let [a, b, c] = [0, 1, 2].map(|n| source64(wave, inst, n));
    put_f64(
        wave,
        inst,
        std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])),
    );
}

fn to_32(wave: &mut Wave, inst: &Vector, f: impl Fn(f64) -> u32) {
    let out = source64(wave, inst, 0).map(f);
    wave.put(inst.dst, &out);
}

fn from_32(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> f64) {
    let a = source(wave, inst, 0);
    let out = wave.v[a].map(f);
    put_f64(wave, inst, out);
}

fn shift(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u64) -> u64) {
    let n = wave.operand(inst.src[0], 0);
    let n = wave.v[n];
    let literal = if inst.op == Vop::AshrrevI64 {
        Literal::Signed
    } else {
        Literal::Unsigned
    };
    let a = wave.operand64(inst.src[1], literal);
    let out = std::array::from_fn(|lane| f(n[lane] & 63, a[lane]));
    wave.put64(inst.dst, &out);
}

/// 32 by 32 bits plus 64, with the carry out.
fn mad(wave: &mut Wave, inst: &Vector) {
    let signed = inst.op == Vop::MadI64I32;
    let (a, b) = (wave.operand(inst.src[0], 0), wave.operand(inst.src[1], 1));
    let literal = if signed {
        Literal::Signed
    } else {
        Literal::Unsigned
    };
    let c = wave.operand64(inst.src[2], literal);
    let mut over = [false; 32];
    let mut out = [0; 32];
    for lane in 0..32 {
        let (a, b) = (wave.v[a][lane], wave.v[b][lane]);
        if signed {
            let sum = i128::from(a as i32) * i128::from(b as i32) + i128::from(c[lane] as i64);
            out[lane] = sum as u64;
            over[lane] = i64::try_from(sum).is_err();
        } else {
            (out[lane], over[lane]) = (u64::from(a) * u64::from(b)).overflowing_add(c[lane]);
        }
    }
    let active = wave.active;
    wave.put64(inst.dst, &out);
    wave.set_s(inst.sdst, mask(|lane| over[lane]) & active);
}

fn min_max(a: f64, b: f64, min: bool) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    let first = match (min, a == b) {
        (true, true) => a.is_sign_negative(),
        (false, true) => a.is_sign_positive(),
        (true, false) => a < b,
        (false, false) => a > b,
    };
    if first { a } else { b }
}

/// Mantissa in [0.5, 1) and exponent.
fn parts(x: f64) -> (f64, i32) {
    if x == 0.0 || !x.is_finite() {
        return (x, 0);
    }
    let (x, bias) = if x.to_bits() >> 52 & 0x7ff == 0 {
        (x * 2f64.powi(64), 64)
    } else {
        (x, 0)
    };
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1022;
    (
        f64::from_bits(x.to_bits() & !(0x7ff << 52) | 1022 << 52),
        exponent - bias,
    )
}

fn div_fixup(q: f64, d: f64, n: f64) -> f64 {
    let sign = if d.is_sign_negative() != n.is_sign_negative() {
        -1.0
    } else {
        1.0
    };
    let exponent = |x: f64| (x.to_bits() >> 52 & 0x7ff) as i32;
    if n.is_nan() {
        f64::from_bits(n.to_bits() | 1 << 51)
    } else if d.is_nan() {
        f64::from_bits(d.to_bits() | 1 << 51)
    } else if d == 0.0 && n == 0.0 || d.is_infinite() && n.is_infinite() {
        f64::from_bits(0xfff8 << 48)
    } else if d == 0.0 || n.is_infinite() {
        sign * f64::INFINITY
    } else if d.is_infinite() || n == 0.0 || exponent(n) - exponent(d) < -1075 {
        sign * 0.0
    } else if q.is_nan() {
        // The steps before overflowed.
        sign * f64::INFINITY
    } else {
        sign * q.abs()
    }
}

/// Brings the operands of a division (source 1 the denominator, source 2 the numerator) into a range where its steps
/// neither overflow nor lose bits; source 0 is the one of both that is scaled. The mask says where the quotient must be
/// scaled back.
///
/// Where both reciprocal and quotient are tiny the published text scales the denominator up, out of range: down is what
/// makes `v_rcp` exact and what the scale of `v_div_fmas` undoes.
fn div_scale_f32(wave: &mut Wave, inst: &Vector) {
    let unsigned = Vector {
        mods: Mods {
            abs: 0,
            ..inst.mods
        },
        ..*inst
    };
    let [a, d, n] = [0, 1, 2].map(|i| source_f32(wave, &unsigned, i));
    let mut out = [0; 32];
    let mut scaled = [false; 32];
    for lane in 0..32 {
        let [a, d, n] = [a, d, n].map(|at| f32::from_bits(wave.v[at][lane]));
        let exponent = |x: f32| (x.to_bits() >> 23 & 0xff) as i32;
        let denormal = |x: f32| x != 0.0 && x.is_finite() && exponent(x) == 0;
        let up = |x: f32, n: i32| float::ldexp(f64::from(x), n) as f32;
        let same = |x: f32, y: f32| x.to_bits() == y.to_bits();
        let reciprocal = 1.0 / f64::from(d);
        // 1/d is below f32's normal range, of which the published text speaks through f64's.
        let tiny_reciprocal = reciprocal != 0.0 && reciprocal.abs() < f64::from(f32::MIN_POSITIVE);
        let tiny_quotient = denormal(n / d) || (n != 0.0 && d.is_finite() && n / d == 0.0);
        let (value, mask) = if d == 0.0 || n == 0.0 {
            (f32::NAN, false)
        } else if exponent(n) - exponent(d) >= 96 {
            (if same(a, d) { up(a, 64) } else { a }, true)
        } else if denormal(d) {
            (up(a, 64), false)
        } else if tiny_reciprocal && tiny_quotient {
            (if same(a, d) { up(a, -64) } else { a }, true)
        } else if tiny_reciprocal {
            (up(a, -64), false)
        } else if tiny_quotient {
            (if same(a, n) { up(a, 64) } else { a }, true)
        } else if exponent(n) <= 23 {
            (up(a, 64), false)
        } else {
            (a, false)
        };
        out[lane] = value.to_bits();
        scaled[lane] = mask;
    }
    let active = wave.active;
    put_f32(wave, &unsigned, &mut out);
    wave.set_s(inst.sdst, mask(|lane| scaled[lane]) & active);
}

/// As `div_scale_f32`.
fn div_scale_f64(wave: &mut Wave, inst: &Vector) {
    let [a, d, n] = [0, 1, 2].map(|i| source64(wave, inst, i));
    let mut out = [0.0; 32];
    let mut scaled = [false; 32];
    for lane in 0..32 {
        let [a, d, n] = [a[lane], d[lane], n[lane]];
        let exponent = |x: f64| (x.to_bits() >> 52 & 0x7ff) as i32;
        let denormal = |x: f64| x != 0.0 && x.is_finite() && exponent(x) == 0;
        let same = |x: f64, y: f64| x.to_bits() == y.to_bits();
        let up = float::ldexp;
        let tiny_reciprocal = denormal(1.0 / d);
        let tiny_quotient = denormal(n / d) || (n != 0.0 && d.is_finite() && n / d == 0.0);
        let (value, mask) = if d == 0.0 || n == 0.0 {
            (f64::NAN, false)
        } else if exponent(n) - exponent(d) >= 768 {
            (if same(a, d) { up(a, 128) } else { a }, true)
        } else if denormal(d) {
            (up(a, 128), false)
        } else if tiny_reciprocal && tiny_quotient {
            (if same(a, d) { up(a, -128) } else { a }, true)
        } else if tiny_reciprocal {
            (up(a, -128), false)
        } else if tiny_quotient {
            (if same(a, n) { up(a, 128) } else { a }, true)
        } else if exponent(n) <= 53 {
            (up(a, 128), false)
        } else {
            (a, false)
        };
        out[lane] = value;
        scaled[lane] = mask;
    }
    let active = wave.active;
    put_f64(wave, inst, out);
    wave.set_s(inst.sdst, mask(|lane| scaled[lane]) & active);
}
