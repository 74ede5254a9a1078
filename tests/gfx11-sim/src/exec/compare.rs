//! Comparisons: a bit for each active lane; inactive lanes get zero.

use super::alu::mask;
use super::{dpp, for_each_lane};
use crate::fault::Exec;
use crate::float::{class_f16, class_f32, class_f64, f16_to_f32, flush_f32};
use crate::isa::{Compare, Condition, Ty, sreg};
use crate::wave::{Literal, Wave};

/// Executes a comparison.
#[inline(always)]
pub(super) fn execute(wave: &mut Wave, inst: &Compare) -> Exec {
    wave.active = wave.exec();
    let moved;
    let inst = match inst.dpp {
        None => inst,
        Some(dpp) => {
            moved = Compare {
                src: [dpp::rearrange(wave, inst.src[0], dpp)?, inst.src[1]],
                ..*inst
            };
            &moved
        }
    };
    let bits = compare(wave, inst) & wave.active;
    let dst = if inst.op.exec { sreg::EXEC } else { inst.dst };
    wave.set_s(dst, bits);
    Ok(())
}

for_each_lane! {
    fn compare(wave: &mut Wave, inst: &Compare) -> u32 {
        let condition = inst.op.condition;
        match inst.op.ty {
            Ty::F32 => {
                let (a, b) = (source(wave, inst, 0, 0x8000_0000), source(wave, inst, 1, 0x8000_0000));
                let flush = wave.mode.flush_in_32();
                let (a, b) = (&wave.v[a], &wave.v[b]);
                if condition == Condition::Class {
                    return mask(|lane| class_f32(a[lane]) & b[lane] != 0);
                }
                let read = |x: u32| if flush { flush_f32(f32::from_bits(x)) } else { f32::from_bits(x) };
                float(condition, |lane| (read(a[lane]), read(b[lane])))
            }
            Ty::I32 => {
                let (a, b) = (wave.operand(inst.src[0], 0), wave.operand(inst.src[1], 1));
                let (a, b) = (&wave.v[a], &wave.v[b]);
                integer(condition, |lane| (a[lane] as i32, b[lane] as i32))
            }
            Ty::U32 => {
                let (a, b) = (wave.operand(inst.src[0], 0), wave.operand(inst.src[1], 1));
                let (a, b) = (&wave.v[a], &wave.v[b]);
                integer(condition, |lane| (a[lane], b[lane]))
            }
            _ => other(wave, inst),
        }
    }
}

/// 16-bit and 64-bit types.
#[inline(never)]
fn other(wave: &mut Wave, inst: &Compare) -> u32 {
    let condition = inst.op.condition;
    let ty = inst.op.ty;
    if ty.is_16() {
        let [a, b] = [0, 1].map(|n| {
            let at = wave.operand16(inst.src[n], n, inst.mods.high >> n & 1 != 0);
            signs(wave, inst, at, n, 0x8000)
        });
        let (a, b) = (&wave.v[a], &wave.v[b]);
        return match (ty, condition) {
            (Ty::F16, Condition::Class) => {
                mask(|lane| class_f16(a[lane] & 0xffff) & b[lane] & 0x3ff != 0)
            }
            (Ty::F16, _) => float(condition, |lane| (f16_to_f32(a[lane]), f16_to_f32(b[lane]))),
            (Ty::I16, _) => integer(condition, |lane| (a[lane] as i16, b[lane] as i16)),
            _ => integer(condition, |lane| (a[lane] as u16, b[lane] as u16)),
        };
    }
    let literal = match ty {
        Ty::F64 => Literal::High,
        Ty::I64 => Literal::Signed,
        _ => Literal::Unsigned,
    };
    let wide = |wave: &Wave, n: usize| {
        let (keep, flip) = sign_masks(inst, n);
        wave.operand64(inst.src[n], literal).map(|x| {
            if ty == Ty::F64 {
                x & (keep << 63 | !0 >> 1) ^ flip << 63
            } else {
                x
            }
        })
    };
    let a = wide(wave, 0);
    if condition == Condition::Class {
        let b = wave.operand(inst.src[1], 1);
        let b = &wave.v[b];
        return mask(|lane| class_f64(a[lane]) & b[lane] != 0);
    }
    let b = wide(wave, 1);
    match ty {
        Ty::F64 => float(condition, |lane| {
            (f64::from_bits(a[lane]), f64::from_bits(b[lane]))
        }),
        Ty::I64 => integer(condition, |lane| (a[lane] as i64, b[lane] as i64)),
        _ => integer(condition, |lane| (a[lane], b[lane])),
    }
}

#[inline(always)]
fn source(wave: &mut Wave, inst: &Compare, n: usize, sign: u32) -> usize {
    let at = wave.operand(inst.src[n], n);
    signs(wave, inst, at, n, sign)
}

/// Whether the sign is kept, and whether it is flipped.
fn sign_masks(inst: &Compare, n: usize) -> (u64, u64) {
    (
        u64::from(inst.mods.abs >> n & 1 == 0),
        u64::from(inst.mods.neg >> n & 1),
    )
}

#[inline(always)]
fn signs(wave: &mut Wave, inst: &Compare, at: usize, n: usize, sign: u32) -> usize {
    if (inst.mods.neg | inst.mods.abs) >> n & 1 == 0
        || (n == 1 && inst.op.condition == Condition::Class)
    {
        return at;
    }
    let (keep, flip) = sign_masks(inst, n);
    let (keep, flip) = (
        if keep != 0 { !0 } else { !sign },
        if flip != 0 { sign } else { 0 },
    );
    let from = wave.v[at];
    wave.v[crate::wave::TEMPORARY + n] = from.map(|x| x & keep ^ flip);
    crate::wave::TEMPORARY + n
}

#[inline(always)]
fn float<N: PartialOrd + Copy>(condition: Condition, pair: impl Fn(usize) -> (N, N)) -> u32 {
    use Condition::*;
    // A pair with a NaN is neither less, equal nor greater.
    match condition {
        F => 0,
        Lt => all(&pair, |a, b| a < b),
        Eq => all(&pair, |a, b| a == b),
        Le => all(&pair, |a, b| a <= b),
        Gt => all(&pair, |a, b| a > b),
        Lg => all(&pair, |a, b| a < b || a > b),
        Ge => all(&pair, |a, b| a >= b),
        O => all(&pair, |a, b| a.partial_cmp(&b).is_some()),
        U => all(&pair, |a, b| a.partial_cmp(&b).is_none()),
        Nge => !all(&pair, |a, b| a >= b),
        Nlg => !all(&pair, |a, b| a < b || a > b),
        Ngt => !all(&pair, |a, b| a > b),
        Nle => !all(&pair, |a, b| a <= b),
        Neq | Ne => all(&pair, |a, b| a != b),
        Nlt => !all(&pair, |a, b| a < b),
        T | Class => u32::MAX,
    }
}

#[inline(always)]
fn integer<N: Ord + Copy>(condition: Condition, pair: impl Fn(usize) -> (N, N)) -> u32 {
    use Condition::*;
    match condition {
        Lt => all(&pair, |a, b| a < b),
        Eq => all(&pair, |a, b| a == b),
        Le => all(&pair, |a, b| a <= b),
        Gt => all(&pair, |a, b| a > b),
        Ne => all(&pair, |a, b| a != b),
        Ge => all(&pair, |a, b| a >= b),
        T => u32::MAX,
        _ => 0,
    }
}

/// The lanes whose pair fulfils a condition.
#[inline(always)]
fn all<N>(pair: impl Fn(usize) -> (N, N), f: impl Fn(N, N) -> bool) -> u32 {
    mask(|lane| {
        let (a, b) = pair(lane);
        f(a, b)
    })
}
