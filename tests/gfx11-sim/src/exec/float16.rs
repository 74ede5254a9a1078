//! f16 and 16-bit integers. Results go to half a register and leave the other half.

use super::alu::{map1, map2, map3, put_f16, source, source_f16, source16};
use super::float32::float_parts;
use super::for_each_lane;
use crate::fault::Exec;
use crate::float::{f16_to_f32, f32_to_f16, fma_f16, max_f16, min_f16};
use crate::isa::{Src, Vector, Vop};
use crate::wave::{Lanes, Wave};

for_each_lane! {
    /// Executes an operation of `Unit::Float16`.
    fn execute(wave: &mut Wave, inst: &Vector) -> Exec {
        let ieee = wave.mode.ieee();
        match inst.op {
            Vop::AddF16 => float2(wave, inst, |a, b| a + b),
            Vop::SubF16 => float2(wave, inst, |a, b| a - b),
            Vop::SubrevF16 => float2(wave, inst, |a, b| b - a),
            Vop::MulF16 => float2(wave, inst, |a, b| a * b),
            Vop::MaxF16 => bits2(wave, inst, |a, b| max_f16(a, b, ieee)),
            Vop::MinF16 => bits2(wave, inst, |a, b| min_f16(a, b, ieee)),
            Vop::FmaF16 | Vop::FmamkF16 | Vop::FmaakF16 => bits3(wave, inst, fma_f16),
            Vop::FmacF16 => {
                let high = inst.mods.high & 8 != 0;
                let high = inst.mods.high & 3 | if high { 4 | 8 } else { 0 };
                let mods = crate::isa::Mods { high, ..inst.mods };
                let with_dst = Vector { src: [inst.src[0], inst.src[1], Src::V(u16::from(inst.dst))], mods, ..*inst };
                bits3(wave, &with_dst, fma_f16);
            }
            Vop::PkFmacF16 => {
                let (a, b) = (wave.operand(inst.src[0], 0), wave.operand(inst.src[1], 1));
                let both = |a: u32, b: u32, c: u32| fma_f16(a, b, c) & 0xffff | fma_f16(a >> 16, b >> 16, c >> 16) << 16;
                let out = map3(wave, a, b, usize::from(inst.dst), both);
                wave.put(inst.dst, &out);
            }
            _ => return rare(wave, inst),
        }
        Ok(())
    }
}

#[inline(never)]
fn rare(wave: &mut Wave, inst: &Vector) -> Exec {
    let ieee = wave.mode.ieee();
    let clamp = inst.mods.clamp;
    match inst.op {
        Vop::MovB16 => int1(wave, inst, |a| a),
        Vop::NotB16 => int1(wave, inst, |a| !a),
        Vop::RcpF16 => float1(wave, inst, |a| 1.0 / a),
        Vop::SqrtF16 => float1(wave, inst, f32::sqrt),
        Vop::RsqF16 => float1(wave, inst, |a| (1.0 / f64::from(a).sqrt()) as f32),
        Vop::LogF16 => float1(wave, inst, f32::log2),
        Vop::ExpF16 => float1(wave, inst, f32::exp2),
        Vop::SinF16 => float1(wave, inst, |a| {
            (f64::from(a).fract() * std::f64::consts::TAU).sin() as f32
        }),
        Vop::CosF16 => float1(wave, inst, |a| {
            (f64::from(a).fract() * std::f64::consts::TAU).cos() as f32
        }),
        Vop::FloorF16 => float1(wave, inst, f32::floor),
        Vop::CeilF16 => float1(wave, inst, f32::ceil),
        Vop::TruncF16 => float1(wave, inst, f32::trunc),
        Vop::RndneF16 => float1(wave, inst, f32::round_ties_even),
        // The largest f16 below 1 where the difference rounds up.
        Vop::FractF16 => float1(wave, inst, |a| (a - a.floor()).min(f16_to_f32(0x3bff))),
        Vop::FrexpMantF16 => float1(wave, inst, |a| float_parts(a).0),
        Vop::FrexpExpI16F16 => int1(wave, inst, |a| float_parts(f16_to_f32(a)).1 as u32),
        Vop::LdexpF16 => bits2(wave, inst, |a, n| {
            let n = i32::from(n as u16 as i16).clamp(-60, 60);
            f32_to_f16((f64::from(f16_to_f32(a)) * f64::from(n).exp2()) as f32)
        }),
        Vop::Min3F16 => bits3(wave, inst, |a, b, c| min_f16(min_f16(a, b, ieee), c, ieee)),
        Vop::Max3F16 => bits3(wave, inst, |a, b, c| max_f16(max_f16(a, b, ieee), c, ieee)),
        Vop::MaxminF16 => bits3(wave, inst, |a, b, c| min_f16(max_f16(a, b, ieee), c, ieee)),
        Vop::MinmaxF16 => bits3(wave, inst, |a, b, c| max_f16(min_f16(a, b, ieee), c, ieee)),
        Vop::Med3F16 => bits3(wave, inst, |a, b, c| med3(a, b, c, ieee)),
        Vop::DivFixupF16 => bits3(wave, inst, div_fixup),
        Vop::CndmaskB16 => {
            let select = wave.scalar(inst.src[2]);
            let (a, b) = (source16(wave, inst, 0), source16(wave, inst, 1));
            let mut out = [0; 32];
            for (lane, out) in out.iter_mut().enumerate() {
                *out = if select >> lane & 1 != 0 {
                    wave.v[b][lane]
                } else {
                    wave.v[a][lane]
                };
            }
            put(wave, inst, &out);
        }
        Vop::AddNcU16 if clamp => int2(wave, inst, |a, b| {
            u32::from((a as u16).saturating_add(b as u16))
        }),
        Vop::SubNcU16 if clamp => int2(wave, inst, |a, b| {
            u32::from((a as u16).saturating_sub(b as u16))
        }),
        Vop::AddNcI16 if clamp => int2(wave, inst, |a, b| {
            (a as i16).saturating_add(b as i16) as u32
        }),
        Vop::SubNcI16 if clamp => int2(wave, inst, |a, b| {
            (a as i16).saturating_sub(b as i16) as u32
        }),
        Vop::AddNcU16 | Vop::AddNcI16 => int2(wave, inst, u32::wrapping_add),
        Vop::SubNcU16 | Vop::SubNcI16 => int2(wave, inst, u32::wrapping_sub),
        Vop::MulLoU16 => int2(wave, inst, u32::wrapping_mul),
        Vop::MaxU16 => int2(wave, inst, |a, b| u32::from((a as u16).max(b as u16))),
        Vop::MinU16 => int2(wave, inst, |a, b| u32::from((a as u16).min(b as u16))),
        Vop::MaxI16 => int2(wave, inst, |a, b| (a as i16).max(b as i16) as u32),
        Vop::MinI16 => int2(wave, inst, |a, b| (a as i16).min(b as i16) as u32),
        Vop::LshlrevB16 => int2(wave, inst, |a, b| b << (a & 15)),
        Vop::LshrrevB16 => int2(wave, inst, |a, b| (b & 0xffff) >> (a & 15)),
        Vop::AshrrevI16 => int2(wave, inst, |a, b| (i32::from(b as i16) >> (a & 15)) as u32),
        Vop::AndB16 => int2(wave, inst, |a, b| a & b),
        Vop::OrB16 => int2(wave, inst, |a, b| a | b),
        Vop::XorB16 => int2(wave, inst, |a, b| a ^ b),
        Vop::MadU16 => int3(wave, inst, |a, b, c| {
            let sum = u64::from(a as u16) * u64::from(b as u16) + u64::from(c as u16);
            if clamp {
                sum.min(0xffff) as u32
            } else {
                sum as u32
            }
        }),
        Vop::MadI16 => int3(wave, inst, |a, b, c| {
            let sum = i64::from(a as i16) * i64::from(b as i16) + i64::from(c as i16);
            if clamp {
                sum.clamp(-0x8000, 0x7fff) as u32
            } else {
                sum as u32
            }
        }),
        Vop::Min3I16 => signed3(wave, inst, |a, b, c| a.min(b).min(c)),
        Vop::Max3I16 => signed3(wave, inst, |a, b, c| a.max(b).max(c)),
        Vop::Med3I16 => signed3(wave, inst, |a, b, c| a.max(b).min(a.min(b).max(c))),
        Vop::Min3U16 => unsigned3(wave, inst, |a, b, c| a.min(b).min(c)),
        Vop::Max3U16 => unsigned3(wave, inst, |a, b, c| a.max(b).max(c)),
        Vop::Med3U16 => unsigned3(wave, inst, |a, b, c| a.max(b).min(a.min(b).max(c))),
        Vop::MadU32U16 | Vop::MadI32I16 => {
            let (a, b, c) = (
                source16(wave, inst, 0),
                source16(wave, inst, 1),
                source(wave, inst, 2),
            );
            let signed = inst.op == Vop::MadI32I16;
            let out = map3(wave, a, b, c, |a, b, c| {
                let widen = |x: u32| {
                    if signed {
                        i64::from(x as i16)
                    } else {
                        i64::from(x as u16)
                    }
                };
                let sum = widen(a) * widen(b)
                    + if signed {
                        i64::from(c as i32)
                    } else {
                        i64::from(c)
                    };
                match (clamp, signed) {
                    (false, _) => sum as u32,
                    (true, true) => super::integer::saturate_i32(sum),
                    (true, false) => sum.min(i64::from(u32::MAX)) as u32,
                }
            });
            wave.put(inst.dst, &out);
        }
        Vop::PackB32F16 => {
            let (a, b) = (source16(wave, inst, 0), source16(wave, inst, 1));
            let out = map2(wave, a, b, |a, b| a & 0xffff | b << 16);
            wave.put(inst.dst, &out);
        }
        Vop::Dot2F16F16 | Vop::Dot2Bf16Bf16 => {
            let (a, b, c) = (
                source(wave, inst, 0),
                source(wave, inst, 1),
                source16(wave, inst, 2),
            );
            let bf16 = inst.op == Vop::Dot2Bf16Bf16;
            let mut out = map3(wave, a, b, c, |a, b, c| {
                let widen = |x: u32| {
                    f64::from(if bf16 {
                        f32::from_bits(x << 16)
                    } else {
                        f16_to_f32(x)
                    })
                };
                let sum = (widen(a) * widen(b) + widen(a >> 16) * widen(b >> 16) + widen(c)) as f32;
                if bf16 {
                    crate::float::f32_to_bf16(sum)
                } else {
                    f32_to_f16(sum)
                }
            });
            match bf16 {
                true => put(wave, inst, &out),
                false => put_f16(wave, inst, &mut out),
            }
        }
        op => unreachable!("{op:?} belongs to another unit"),
    }
    Ok(())
}

#[inline(always)]
fn put(wave: &mut Wave, inst: &Vector, value: &Lanes) {
    wave.put16(
        inst.dst,
        &value.map(|x| x & 0xffff),
        inst.mods.high & 8 != 0,
    );
}

#[inline(always)]
fn float1(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> f32) {
    let a = source_f16(wave, inst, 0);
    let mut out = map1(wave, a, |a| f32_to_f16(f(f16_to_f32(a))));
    put_f16(wave, inst, &mut out);
}

/// f32 has more than twice f16's bits plus two: rounding twice is rounding once for these operations.
#[inline(always)]
fn float2(wave: &mut Wave, inst: &Vector, f: impl Fn(f32, f32) -> f32) {
    bits2(wave, inst, |a, b| {
        f32_to_f16(f(f16_to_f32(a), f16_to_f32(b)))
    });
}

#[inline(always)]
fn bits2(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (source_f16(wave, inst, 0), source_f16(wave, inst, 1));
    let mut out = map2(wave, a, b, f);
    put_f16(wave, inst, &mut out);
}

#[inline(always)]
fn bits3(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (
        source_f16(wave, inst, 0),
        source_f16(wave, inst, 1),
        source_f16(wave, inst, 2),
    );
    let mut out = map3(wave, a, b, c, f);
    put_f16(wave, inst, &mut out);
}

fn int1(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> u32) {
    let a = source16(wave, inst, 0);
    let out = map1(wave, a, f);
    put(wave, inst, &out);
}

fn int2(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (source16(wave, inst, 0), source16(wave, inst, 1));
    let out = map2(wave, a, b, f);
    put(wave, inst, &out);
}

fn int3(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (
        source16(wave, inst, 0),
        source16(wave, inst, 1),
        source16(wave, inst, 2),
    );
    let out = map3(wave, a, b, c, f);
    put(wave, inst, &out);
}

fn signed3(wave: &mut Wave, inst: &Vector, f: impl Fn(i16, i16, i16) -> i16) {
    int3(wave, inst, |a, b, c| f(a as i16, b as i16, c as i16) as u32);
}

fn unsigned3(wave: &mut Wave, inst: &Vector, f: impl Fn(u16, u16, u16) -> u16) {
    int3(wave, inst, |a, b, c| {
        u32::from(f(a as u16, b as u16, c as u16))
    });
}

fn med3(a: u32, b: u32, c: u32, ieee: bool) -> u32 {
    let [fa, fb, fc] = [a, b, c].map(f16_to_f32);
    if fa.is_nan() || fb.is_nan() || fc.is_nan() {
        return min_f16(min_f16(a, b, ieee), c, ieee);
    }
    let top = f16_to_f32(max_f16(max_f16(a, b, ieee), c, ieee));
    if top == fa {
        max_f16(b, c, ieee)
    } else if top == fb {
        max_f16(a, c, ieee)
    } else {
        max_f16(a, b, ieee)
    }
}

/// The special cases of a division of f16: see the f32 one.
fn div_fixup(quotient: u32, denominator: u32, numerator: u32) -> u32 {
    let (d, n) = (f16_to_f32(denominator), f16_to_f32(numerator));
    let sign = (denominator ^ numerator) & 0x8000;
    if n.is_nan() {
        numerator | 0x200
    } else if d.is_nan() {
        denominator | 0x200
    } else if d == 0.0 && n == 0.0 || d.is_infinite() && n.is_infinite() {
        0xfe00
    } else if d == 0.0 || n.is_infinite() {
        sign | 0x7c00
    } else if d.is_infinite() || n == 0.0 {
        sign
    } else {
        sign | quotient & 0x7fff
    }
}
