//! VOP3P: two 16-bit operations at once, dot products, mixed precision.

use super::alu::{clamp_f32, flush_f16, map2, map3};
use super::{dpp, float32, for_each_lane, wmma};
use crate::fault::Exec;
use crate::float::{f16_to_f32, f32_to_f16, fma_f16, max_f16, min_f16};
use crate::isa::{Packed, Src, Vop3p};
use crate::wave::{TEMPORARY, WAVE, Wave};

/// Executes a VOP3P instruction.
pub(super) fn execute(wave: &mut Wave, inst: &Packed) -> Exec {
    wave.active = wave.exec();
    let moved;
    let inst = match inst.dpp {
        None => inst,
        Some(dpp) => {
            moved = Packed {
                src: [
                    dpp::rearrange(wave, inst.src[0], dpp)?,
                    inst.src[1],
                    inst.src[2],
                ],
                ..*inst
            };
            &moved
        }
    };
    if inst.op as u16 >= Vop3p::WmmaF3216x16x16F16 as u16 {
        return wmma::execute(wave, inst);
    }
    operation(wave, inst);
    Ok(())
}

for_each_lane! {
    fn operation(wave: &mut Wave, inst: &Packed) {
        let ieee = wave.mode.ieee();
        match inst.op {
            Vop3p::Dot4I32Iu8 => dot4_i32_iu8(wave, inst),
            Vop3p::PkFmaF16 => fma_halves(wave, inst),
            Vop3p::PkAddF16 => float2(wave, inst, |a, b| f32_to_f16(f16_to_f32(a) + f16_to_f32(b))),
            Vop3p::PkMulF16 => float2(wave, inst, |a, b| f32_to_f16(f16_to_f32(a) * f16_to_f32(b))),
            Vop3p::PkMaxF16 => float2(wave, inst, |a, b| max_f16(a, b, ieee)),
            Vop3p::PkMinF16 => float2(wave, inst, |a, b| min_f16(a, b, ieee)),
            Vop3p::Dot2F32F16 => dot2_f32(wave, inst, f16_to_f32, true),
            Vop3p::Dot2F32Bf16 => dot2_f32(wave, inst, |x| f32::from_bits(x << 16), false),
            Vop3p::FmaMixF32 | Vop3p::FmaMixloF16 | Vop3p::FmaMixhiF16 => mix(wave, inst),
            _ => rare(wave, inst),
        }
    }
}

#[inline(never)]
fn rare(wave: &mut Wave, inst: &Packed) {
    let clamp = inst.clamp;
    match inst.op {
        Vop3p::Dot4U32U8 => dot(wave, inst, 8),
        Vop3p::Dot8I32Iu4 | Vop3p::Dot8U32U4 => dot(wave, inst, 4),
        Vop3p::PkMadI16 => int3(wave, inst, |a, b, c| {
            let sum = i64::from(a as i16) * i64::from(b as i16) + i64::from(c as i16);
            if clamp {
                sum.clamp(-0x8000, 0x7fff) as u32
            } else {
                sum as u32
            }
        }),
        Vop3p::PkMadU16 => int3(wave, inst, |a, b, c| {
            let sum = u64::from(a) * u64::from(b) + u64::from(c);
            if clamp {
                sum.min(0xffff) as u32
            } else {
                sum as u32
            }
        }),
        Vop3p::PkMulLoU16 => int2(wave, inst, u32::wrapping_mul),
        Vop3p::PkAddU16 if clamp => int2(wave, inst, |a, b| (a + b).min(0xffff)),
        Vop3p::PkSubU16 if clamp => int2(wave, inst, u32::saturating_sub),
        Vop3p::PkAddI16 if clamp => int2(wave, inst, |a, b| {
            (a as i16).saturating_add(b as i16) as u32
        }),
        Vop3p::PkSubI16 if clamp => int2(wave, inst, |a, b| {
            (a as i16).saturating_sub(b as i16) as u32
        }),
        Vop3p::PkAddU16 | Vop3p::PkAddI16 => int2(wave, inst, u32::wrapping_add),
        Vop3p::PkSubU16 | Vop3p::PkSubI16 => int2(wave, inst, u32::wrapping_sub),
        Vop3p::PkLshlrevB16 => int2(wave, inst, |a, b| b << (a & 15)),
        Vop3p::PkLshrrevB16 => int2(wave, inst, |a, b| b >> (a & 15)),
        Vop3p::PkAshrrevI16 => int2(wave, inst, |a, b| (i32::from(b as i16) >> (a & 15)) as u32),
        Vop3p::PkMaxI16 => int2(wave, inst, |a, b| (a as i16).max(b as i16) as u32),
        Vop3p::PkMinI16 => int2(wave, inst, |a, b| (a as i16).min(b as i16) as u32),
        Vop3p::PkMaxU16 => int2(wave, inst, u32::max),
        Vop3p::PkMinU16 => int2(wave, inst, u32::min),
        op => unreachable!("{op:?} is executed elsewhere"),
    }
}

/// The register that holds source `n` with halves chosen and negated: the low half is what the low result reads.
#[inline(always)]
fn halves(wave: &mut Wave, inst: &Packed, n: usize, float: bool) -> usize {
    let bit = |mask: u8| u32::from(mask >> n & 1);
    let (low, high) = (bit(inst.op_sel), bit(inst.op_sel_hi));
    let negate = bit(inst.neg_lo) << 15 | bit(inst.neg_hi) << 31;
    let at = match inst.src[n] {
        Src::V(register) => usize::from(register),
        src => {
            // Constants are in the low half, so `op_sel_hi` of zero repeats them.
            let value = if float {
                wave.scalar16(src)
            } else {
                wave.scalar(src)
            };
            wave.v[TEMPORARY + n] = [value; WAVE];
            TEMPORARY + n
        }
    };
    let flush = float && wave.mode.flush_in_16();
    if low == 0 && high == 1 && (negate == 0 || !float) && !flush {
        return at;
    }
    let from = wave.v[at];
    let negate = if float { negate } else { 0 };
    let to = &mut wave.v[TEMPORARY + n];
    for lane in 0..WAVE {
        let x = from[lane];
        to[lane] = (x >> (16 * low) & 0xffff | x >> (16 * high) << 16) ^ negate;
    }
    if flush {
        *to = to.map(flush_halves);
    }
    TEMPORARY + n
}

fn flush_halves(x: u32) -> u32 {
    flush_f16(x & 0xffff) | flush_f16(x >> 16) << 16
}

#[inline(always)]
fn float2(wave: &mut Wave, inst: &Packed, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (halves(wave, inst, 0, true), halves(wave, inst, 1, true));
    // Loops of their own, not closures: those are compiled for any processor where they are not inlined.
    let (a, b) = (&wave.v[a], &wave.v[b]);
    let mut out = [0; WAVE];
    for lane in 0..WAVE {
        let low = f(a[lane] & 0xffff, b[lane] & 0xffff) & 0xffff;
        out[lane] = low | f(a[lane] >> 16, b[lane] >> 16) << 16;
    }
    put(wave, inst, out);
}

/// A fused multiply-add of halves.
#[inline(always)]
fn fma_halves(wave: &mut Wave, inst: &Packed) {
    let [a, b, c] = [0, 1, 2].map(|n| halves(wave, inst, n, true));
    let (a, b, c) = (&wave.v[a], &wave.v[b], &wave.v[c]);
    let (mut low, mut high) = ([0; WAVE], [0; WAVE]);
    for lane in 0..WAVE {
        low[lane] = fma_f16(a[lane] & 0xffff, b[lane] & 0xffff, c[lane] & 0xffff);
    }
    for lane in 0..WAVE {
        high[lane] = fma_f16(a[lane] >> 16, b[lane] >> 16, c[lane] >> 16);
    }
    let mut out = [0; WAVE];
    for lane in 0..WAVE {
        out[lane] = low[lane] & 0xffff | high[lane] << 16;
    }
    put(wave, inst, out);
}

#[inline(always)]
fn put(wave: &mut Wave, inst: &Packed, mut out: [u32; WAVE]) {
    if inst.clamp {
        let dx10 = wave.mode.dx10_clamp();
        let half = |x: u32| f32_to_f16(clamp_f32(f16_to_f32(x), dx10));
        out = out.map(|x| half(x) & 0xffff | half(x >> 16) << 16);
    }
    if wave.mode.flush_out_16() {
        out = out.map(flush_halves);
    }
    wave.put(inst.dst, &out);
}

fn int2(wave: &mut Wave, inst: &Packed, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (halves(wave, inst, 0, false), halves(wave, inst, 1, false));
    let out = map2(wave, a, b, |a, b| {
        f(a & 0xffff, b & 0xffff) & 0xffff | f(a >> 16, b >> 16) << 16
    });
    wave.put(inst.dst, &out);
}

fn int3(wave: &mut Wave, inst: &Packed, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (
        halves(wave, inst, 0, false),
        halves(wave, inst, 1, false),
        halves(wave, inst, 2, false),
    );
    let out = map3(wave, a, b, c, |a, b, c| {
        f(a & 0xffff, b & 0xffff, c & 0xffff) & 0xffff | f(a >> 16, b >> 16, c >> 16) << 16
    });
    wave.put(inst.dst, &out);
}

/// Four products of bytes, each operand signed or not (`neg_lo`), added to an i32.
#[inline(always)]
fn dot4_i32_iu8(wave: &mut Wave, inst: &Packed) {
    let (a, b, c) = (
        wave.operand(inst.src[0], 0),
        wave.operand(inst.src[1], 1),
        wave.operand(inst.src[2], 2),
    );
    // An unsigned byte is a signed one with its top bit flipped, plus 128: one loop serves all four combinations.
    let (signed_a, signed_b) = (inst.neg_lo & 1 != 0, inst.neg_lo & 2 != 0);
    let clamp = inst.clamp;
    let byte = |x: u32, i: u32, signed: bool| {
        if signed {
            (x << (24 - 8 * i)) as i32 >> 24
        } else {
            (x >> (8 * i) & 0xff) as i32
        }
    };
    let sum = |a: u32, b: u32, sa: bool, sb: bool| {
        byte(a, 0, sa) * byte(b, 0, sb)
            + byte(a, 1, sa) * byte(b, 1, sb)
            + byte(a, 2, sa) * byte(b, 2, sb)
            + byte(a, 3, sa) * byte(b, 3, sb)
    };
    let out = match (clamp, signed_a, signed_b) {
        (false, true, true) => map3(wave, a, b, c, |a, b, c| {
            (sum(a, b, true, true) as u32).wrapping_add(c)
        }),
        (false, true, false) => map3(wave, a, b, c, |a, b, c| {
            (sum(a, b, true, false) as u32).wrapping_add(c)
        }),
        (false, false, true) => map3(wave, a, b, c, |a, b, c| {
            (sum(a, b, false, true) as u32).wrapping_add(c)
        }),
        (false, false, false) => map3(wave, a, b, c, |a, b, c| {
            (sum(a, b, false, false) as u32).wrapping_add(c)
        }),
        (true, ..) => map3(wave, a, b, c, |a, b, c| {
            sum(a, b, signed_a, signed_b).saturating_add(c as i32) as u32
        }),
    };
    wave.put(inst.dst, &out);
}

/// Dot products of integers of `bits` bits in general.
fn dot(wave: &mut Wave, inst: &Packed, bits: u32) {
    let mixed = inst.op == Vop3p::Dot8I32Iu4;
    let (a, b, c) = (
        wave.operand(inst.src[0], 0),
        wave.operand(inst.src[1], 1),
        wave.operand(inst.src[2], 2),
    );
    let part = |x: u32, i: u32, signed: bool| {
        let top = x << (32 - bits * (i + 1));
        if signed {
            i64::from(top as i32 >> (32 - bits))
        } else {
            i64::from(top >> (32 - bits))
        }
    };
    let (signed_a, signed_b) = (mixed && inst.neg_lo & 1 != 0, mixed && inst.neg_lo & 2 != 0);
    let clamp = inst.clamp;
    let out = map3(wave, a, b, c, |a, b, c| {
        let sum: i64 = (0..32 / bits)
            .map(|i| part(a, i, signed_a) * part(b, i, signed_b))
            .sum();
        match (clamp, mixed) {
            (false, _) => (sum as u32).wrapping_add(c),
            (true, true) => super::integer::saturate_i32(sum + i64::from(c as i32)),
            (true, false) => (sum + i64::from(c)).min(i64::from(u32::MAX)) as u32,
        }
    });
    wave.put(inst.dst, &out);
}

/// Two products of 16-bit floats added to an f32.
#[inline(always)]
fn dot2_f32(wave: &mut Wave, inst: &Packed, widen: impl Fn(u32) -> f32, f16: bool) {
    let (a, b) = (halves(wave, inst, 0, true), halves(wave, inst, 1, true));
    let c = wave.operand(inst.src[2], 2);
    let negate = if inst.neg_lo & 4 != 0 { 0x8000_0000 } else { 0 };
    let drop = if inst.neg_hi & 4 != 0 { 0x8000_0000 } else { 0 };
    let mut out = map3(wave, a, b, c, |a, b, c| {
        let c = c & !drop ^ negate;
        if f16 {
            return float32::dot2(a, b, c);
        }
        let product = |shift: u32| widen(a >> shift & 0xffff) * widen(b >> shift & 0xffff);
        // bf16 products take 16 bits: exact in f32 but for its ends.
        let sum = f64::from(product(0)) + f64::from(product(16)) + f64::from(f32::from_bits(c));
        (sum as f32).to_bits()
    });
    if inst.clamp {
        let dx10 = wave.mode.dx10_clamp();
        out = out.map(|x| clamp_f32(f32::from_bits(x), dx10).to_bits());
    }
    wave.put(inst.dst, &out);
}

/// A multiply-add whose sources are f32, or f16 where `op_sel_hi` says so; `neg_hi` takes absolute values.
#[inline(always)]
fn mix(wave: &mut Wave, inst: &Packed) {
    let mut at = [0; 3];
    for (n, at) in at.iter_mut().enumerate() {
        let bit = |mask: u8| mask >> n & 1 != 0;
        let half = bit(inst.op_sel_hi);
        let from = match inst.src[n] {
            Src::V(register) => usize::from(register),
            src => {
                let value = if half {
                    wave.scalar16(src)
                } else {
                    wave.scalar(src)
                };
                wave.v[TEMPORARY + n] = [value; WAVE];
                TEMPORARY + n
            }
        };
        let from = wave.v[from];
        let shift = if bit(inst.op_sel) { 16 } else { 0 };
        let keep = if bit(inst.neg_hi) {
            0x7fff_ffff
        } else {
            u32::MAX
        };
        let flip = if bit(inst.neg_lo) { 0x8000_0000 } else { 0 };
        let to = &mut wave.v[TEMPORARY + n];
        for lane in 0..WAVE {
            let x = if half {
                f16_to_f32(from[lane] >> shift).to_bits()
            } else {
                from[lane]
            };
            to[lane] = x & keep ^ flip;
        }
        *at = TEMPORARY + n;
    }
    let mut out = map3(wave, at[0], at[1], at[2], |a, b, c| {
        f32::from_bits(a)
            .mul_add(f32::from_bits(b), f32::from_bits(c))
            .to_bits()
    });
    if inst.clamp {
        let dx10 = wave.mode.dx10_clamp();
        out = out.map(|x| clamp_f32(f32::from_bits(x), dx10).to_bits());
    }
    match inst.op {
        Vop3p::FmaMixF32 => wave.put(inst.dst, &out),
        op => {
            for x in &mut out {
                *x = f32_to_f16(f32::from_bits(*x));
            }
            wave.put16(inst.dst, &out, op == Vop3p::FmaMixhiF16);
        }
    }
}
