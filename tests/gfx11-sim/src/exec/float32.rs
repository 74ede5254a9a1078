//! f32 arithmetic.

use super::alu::{map1, map2, map3, put_f32, source_f32};
use super::for_each_lane;
use crate::float::{self, max_f32, min_f32};
use crate::isa::{Vector, Vop};
use crate::wave::Wave;

for_each_lane! {
    /// Executes an operation of `Unit::Float32`.
    fn execute(wave: &mut Wave, inst: &Vector) {
        let ieee = wave.mode.ieee();
        match inst.op {
            Vop::FmacF32 => {
                let (a, b) = (source_f32(wave, inst, 0), source_f32(wave, inst, 1));
                let c = accumulator(wave, inst);
                store(wave, inst, map3(wave, a, b, c, |a, b, c| fma(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)).to_bits()));
            }
            Vop::FmaF32 | Vop::FmamkF32 | Vop::FmaakF32 => three(wave, inst, fma),
            Vop::AddF32 => two(wave, inst, |a, b| a + b),
            Vop::MulF32 => two(wave, inst, |a, b| a * b),
            Vop::SubF32 => two(wave, inst, |a, b| a - b),
            Vop::SubrevF32 => two(wave, inst, |a, b| b - a),
            Vop::MulDx9ZeroF32 => two(wave, inst, dx9_mul),
            Vop::MaxF32 => bits2(wave, inst, |a, b| max_f32(a, b, ieee)),
            Vop::MinF32 => bits2(wave, inst, |a, b| min_f32(a, b, ieee)),
            Vop::Max3F32 => bits3(wave, inst, |a, b, c| max_f32(max_f32(a, b, ieee), c, ieee)),
            Vop::Min3F32 => bits3(wave, inst, |a, b, c| min_f32(min_f32(a, b, ieee), c, ieee)),
            Vop::MaxminF32 => bits3(wave, inst, |a, b, c| min_f32(max_f32(a, b, ieee), c, ieee)),
            Vop::MinmaxF32 => bits3(wave, inst, |a, b, c| max_f32(min_f32(a, b, ieee), c, ieee)),
            Vop::Med3F32 => bits3(wave, inst, |a, b, c| med3(a, b, c, ieee)),
            Vop::TruncF32 => one(wave, inst, f32::trunc),
            Vop::CeilF32 => one(wave, inst, f32::ceil),
            Vop::FloorF32 => one(wave, inst, f32::floor),
            Vop::RndneF32 => one(wave, inst, f32::round_ties_even),
            Vop::FractF32 => one(wave, inst, fract),
            Vop::RcpF32 | Vop::RcpIflagF32 => one(wave, inst, |x| flush(1.0 / flush(x))),
            Vop::SqrtF32 => one(wave, inst, |x| flush(x).sqrt()),
            Vop::RsqF32 => one(wave, inst, |x| (1.0 / f64::from(flush(x)).sqrt()) as f32),
            Vop::Dot2accF32F16 => dot2acc(wave, inst),
            _ => rare(wave, inst),
        }
    }
}

/// What no inner loop has.
#[inline(never)]
fn rare(wave: &mut Wave, inst: &Vector) {
    match inst.op {
        Vop::ExpF32 => one(wave, inst, |x| flush(f64::from(flush(x)).exp2() as f32)),
        Vop::LogF32 => one(wave, inst, |x| f64::from(flush(x)).log2() as f32),
        Vop::SinF32 => one(wave, inst, |x| turn(x).sin() as f32),
        Vop::CosF32 => one(wave, inst, |x| turn(x).cos() as f32),
        Vop::FrexpMantF32 => one(wave, inst, |x| float_parts(x).0),
        Vop::FmacDx9ZeroF32 => {
            let (a, b) = (source_f32(wave, inst, 0), source_f32(wave, inst, 1));
            let c = accumulator(wave, inst);
            store(wave, inst, map3(wave, a, b, c, dx9_fma));
        }
        Vop::FmaDx9ZeroF32 => three(wave, inst, |a, b, c| {
            f32::from_bits(dx9_fma(a.to_bits(), b.to_bits(), c.to_bits()))
        }),
        Vop::DivFixupF32 => bits3(wave, inst, div_fixup),
        Vop::DivFmasF32 => {
            let vcc = wave.s[106];
            let [a, b, c] = [0, 1, 2].map(|n| source_f32(wave, inst, n));
            let mut out = [0; 32];
            for (lane, out) in out.iter_mut().enumerate() {
                let [a, b, c] = [a, b, c].map(|at| f32::from_bits(wave.v[at][lane]));
                // `v_div_scale` brought the quotient nearer to 1 by 2^64: away from where it is now. (The published text
                // says 2^32; that would undo no scaling.)
                let scale = match (vcc >> lane & 1 != 0, c.to_bits() >> 23 & 0xff > 127) {
                    (false, _) => 0,
                    (true, true) => 64,
                    (true, false) => -64,
                };
                *out = (float::ldexp(float::fma_f32_odd(a, b, c), scale) as f32).to_bits();
            }
            put_f32(wave, inst, &mut out);
        }
        Vop::LdexpF32 => {
            let (a, n) = (source_f32(wave, inst, 0), wave.operand(inst.src[1], 1));
            // Exact in f64 over the whole range, so that only the conversion rounds.
            let scale = |x: u32, n: u32| {
                (float::ldexp(f64::from(f32::from_bits(x)), (n as i32).clamp(-400, 400)) as f32)
                    .to_bits()
            };
            store(wave, inst, map2(wave, a, n, scale));
        }
        op => unreachable!("{op:?} belongs to another unit"),
    }
}

#[inline(always)]
fn store(wave: &mut Wave, inst: &Vector, mut value: [u32; 32]) {
    put_f32(wave, inst, &mut value);
}

#[inline(always)]
fn one(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> f32) {
    let a = source_f32(wave, inst, 0);
    store(
        wave,
        inst,
        map1(wave, a, |a| f(f32::from_bits(a)).to_bits()),
    );
}

#[inline(always)]
fn two(wave: &mut Wave, inst: &Vector, f: impl Fn(f32, f32) -> f32) {
    bits2(wave, inst, |a, b| {
        f(f32::from_bits(a), f32::from_bits(b)).to_bits()
    });
}

#[inline(always)]
fn bits2(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (source_f32(wave, inst, 0), source_f32(wave, inst, 1));
    store(wave, inst, map2(wave, a, b, f));
}

#[inline(always)]
fn three(wave: &mut Wave, inst: &Vector, f: impl Fn(f32, f32, f32) -> f32) {
    bits3(wave, inst, |a, b, c| {
        f(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)).to_bits()
    });
}

#[inline(always)]
fn bits3(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (
        source_f32(wave, inst, 0),
        source_f32(wave, inst, 1),
        source_f32(wave, inst, 2),
    );
    store(wave, inst, map3(wave, a, b, c, f));
}

/// The destination as third source, with the sign modifiers of that place.
#[inline(always)]
fn accumulator(wave: &mut Wave, inst: &Vector) -> usize {
    let with_dst = Vector {
        src: [
            inst.src[0],
            inst.src[1],
            crate::isa::Src::V(u16::from(inst.dst)),
        ],
        ..*inst
    };
    source_f32(wave, &with_dst, 2)
}

#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// Zero times anything is zero.
#[inline(always)]
fn dx9_mul(a: f32, b: f32) -> f32 {
    if a == 0.0 || b == 0.0 { 0.0 } else { a * b }
}

fn dx9_fma(a: u32, b: u32, c: u32) -> u32 {
    let [a, b, c] = [a, b, c].map(f32::from_bits);
    if a == 0.0 || b == 0.0 {
        c.to_bits()
    } else {
        a.mul_add(b, c).to_bits()
    }
}

/// The transcendental unit knows no denormals.
#[inline(always)]
fn flush(x: f32) -> f32 {
    float::flush_f32(x)
}

/// An angle in turns as radians, within one turn.
fn turn(x: f32) -> f64 {
    f64::from(x).fract() * std::f64::consts::TAU
}

#[inline(always)]
fn fract(x: f32) -> f32 {
    let f = x - x.floor();
    // Below 1 even where the difference rounds up.
    if f >= 1.0 {
        f32::from_bits(0x3f7f_ffff)
    } else {
        f
    }
}

/// Median; with a NaN among them the minimum, as the ISA has it.
#[inline(always)]
fn med3(a: u32, b: u32, c: u32, ieee: bool) -> u32 {
    let [fa, fb, fc] = [a, b, c].map(f32::from_bits);
    if fa.is_nan() || fb.is_nan() || fc.is_nan() {
        return min_f32(min_f32(a, b, ieee), c, ieee);
    }
    let top = f32::from_bits(max_f32(max_f32(a, b, ieee), c, ieee));
    if top == fa {
        max_f32(b, c, ieee)
    } else if top == fb {
        max_f32(a, c, ieee)
    } else {
        max_f32(a, b, ieee)
    }
}

/// Mantissa in [0.5, 1) and exponent.
pub(super) fn float_parts(x: f32) -> (f32, i32) {
    if x == 0.0 || !x.is_finite() {
        return (x, 0);
    }
    let wide = f64::from(x).to_bits();
    let exponent = (wide >> 52 & 0x7ff) as i32 - 1022;
    (
        f64::from_bits(wide & !(0x7ff << 52) | 1022 << 52) as f32,
        exponent,
    )
}

/// The last step of a division: the special cases of numerator (source 2) and denominator (source 1).
fn div_fixup(quotient: u32, denominator: u32, numerator: u32) -> u32 {
    let [q, d, n] = [quotient, denominator, numerator].map(f32::from_bits);
    let sign = (d.to_bits() ^ n.to_bits()) & 0x8000_0000;
    let quiet = |x: f32| x.to_bits() | 0x0040_0000;
    let exponent = |x: f32| (x.to_bits() >> 23 & 0xff) as i32;
    if n.is_nan() {
        quiet(n)
    } else if d.is_nan() {
        quiet(d)
    } else if d == 0.0 && n == 0.0 || d.is_infinite() && n.is_infinite() {
        0xffc0_0000
    } else if d == 0.0 || n.is_infinite() {
        sign | 0x7f80_0000
    } else if d.is_infinite() || n == 0.0 {
        sign
    } else if exponent(n) - exponent(d) < -150 {
        // Underflow to the smallest magnitude's neighbourhood: zero after rounding to nearest.
        sign
    } else if q.is_nan() {
        // The steps before overflowed.
        sign | 0x7f80_0000
    } else {
        sign | q.to_bits() & 0x7fff_ffff
    }
}

/// Two products of f16 added to an f32.
fn dot2acc(wave: &mut Wave, inst: &Vector) {
    let (a, b) = (wave.operand(inst.src[0], 0), wave.operand(inst.src[1], 1));
    let c = usize::from(inst.dst);
    let mut out = map3(wave, a, b, c, dot2);
    put_f32(wave, inst, &mut out);
}

#[inline(always)]
pub(super) fn dot2(a: u32, b: u32, c: u32) -> u32 {
    let low = float::f16_to_f32(a) * float::f16_to_f32(b);
    let high = float::f16_to_f32(a >> 16) * float::f16_to_f32(b >> 16);
    // Products are exact; the sum is formed in f64 and rounded once more to f32.
    let sum = f64::from(low) + f64::from(high) + f64::from(f32::from_bits(c));
    (sum as f32).to_bits()
}
