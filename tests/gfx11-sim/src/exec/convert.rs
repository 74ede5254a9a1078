//! Conversions between 32-bit and 16-bit types, and packing.

use super::alu::{map1, map2, map3, put_f16, put_f32, source, source_f32, source16};
use super::float32::float_parts;
use super::for_each_lane;
use crate::fault::Exec;
use crate::float::{f16_to_f32, f32_to_f16, f32_to_f16_round};
use crate::isa::{Vector, Vop};
use crate::wave::{Lanes, Wave};

for_each_lane! {
    /// Executes an operation of `Unit::Convert`.
    fn execute(wave: &mut Wave, inst: &Vector) -> Exec {
        match inst.op {
            Vop::CvtF32F16 => {
                let a = source16(wave, inst, 0);
                let mut out = map1(wave, a, |a| f16_to_f32(a).to_bits());
                put_f32(wave, inst, &mut out);
            }
            Vop::CvtF16F32 if wave.mode.round().1 == 0 => {
                let a = source_f32(wave, inst, 0);
                let mut out = map1(wave, a, |a| f32_to_f16(f32::from_bits(a)));
                put_f16(wave, inst, &mut out);
            }
            Vop::CvtF32I32 => to_f32(wave, inst, |a| a as i32 as f32),
            Vop::CvtF32U32 => to_f32(wave, inst, |a| a as f32),
            Vop::CvtF32Ubyte0 => to_f32(wave, inst, |a| (a & 0xff) as f32),
            Vop::CvtF32Ubyte1 => to_f32(wave, inst, |a| (a >> 8 & 0xff) as f32),
            Vop::CvtF32Ubyte2 => to_f32(wave, inst, |a| (a >> 16 & 0xff) as f32),
            Vop::CvtF32Ubyte3 => to_f32(wave, inst, |a| (a >> 24) as f32),
            // Conversions to integers saturate; NaN becomes zero.
            Vop::CvtU32F32 => from_f32(wave, inst, |a| a as u32),
            Vop::CvtI32F32 => from_f32(wave, inst, |a| a as i32 as u32),
            Vop::CvtNearestI32F32 => from_f32(wave, inst, |a| (a + 0.5).floor() as i32 as u32),
            Vop::CvtFloorI32F32 => from_f32(wave, inst, |a| a.floor() as i32 as u32),
            _ => rare(wave, inst),
        }
        Ok(())
    }
}

#[inline(never)]
fn rare(wave: &mut Wave, inst: &Vector) {
    let round = wave.mode.round().1;
    match inst.op {
        Vop::CvtF16F32 => {
            let a = source_f32(wave, inst, 0);
            let mut out = map1(wave, a, |a| f32_to_f16_round(f32::from_bits(a), round));
            put_f16(wave, inst, &mut out);
        }
        Vop::CvtOffF32I4 => to_f32(wave, inst, |a| ((a << 28) as i32 >> 28) as f32 / 16.0),
        Vop::FrexpExpI32F32 => from_f32(wave, inst, |a| float_parts(a).1 as u32),
        Vop::CvtPkRtzF16F32 => pack(wave, inst, |a| f32_to_f16_round(a, 3)),
        Vop::CvtPkI16F32 => pack(wave, inst, |a| u32::from(a as i16 as u16)),
        Vop::CvtPkU16F32 => pack(wave, inst, |a| u32::from(a as u16)),
        Vop::CvtPkNormI16F32 => pack(wave, inst, norm_i16),
        Vop::CvtPkNormU16F32 => pack(wave, inst, norm_u16),
        Vop::CvtPkU16U32 => pack_int(wave, inst, |a| a.min(0xffff)),
        Vop::CvtPkI16I32 => pack_int(wave, inst, |a| (a as i32).clamp(-0x8000, 0x7fff) as u32),
        Vop::CvtPkNormI16F16 => pack16(wave, inst, norm_i16),
        Vop::CvtPkNormU16F16 => pack16(wave, inst, norm_u16),
        Vop::CvtPkU8F32 => {
            let (a, b, c) = (
                source_f32(wave, inst, 0),
                source(wave, inst, 1),
                source(wave, inst, 2),
            );
            let out = map3(wave, a, b, c, |a, b, c| {
                let shift = 8 * (b & 3);
                c & !(0xff << shift) | u32::from(f32::from_bits(a) as u8) << shift
            });
            wave.put(inst.dst, &out);
        }
        Vop::CvtF16U16 => to_f16(wave, inst, |a| f32::from(a as u16)),
        Vop::CvtF16I16 => to_f16(wave, inst, |a| f32::from(a as i16)),
        Vop::CvtU16F16 => from_f16(wave, inst, |a| u32::from(a as u16)),
        Vop::CvtI16F16 => from_f16(wave, inst, |a| u32::from(a as i16 as u16)),
        Vop::CvtNormI16F16 => from_f16(wave, inst, norm_i16),
        Vop::CvtNormU16F16 => from_f16(wave, inst, norm_u16),
        Vop::SatPkU8I16 => {
            let a = source(wave, inst, 0);
            let byte = |x: u32| i32::from(x as i16).clamp(0, 255) as u32;
            let out = map1(wave, a, |a| byte(a) | byte(a >> 16) << 8);
            wave.put16(inst.dst, &out, inst.mods.high & 8 != 0);
        }
        Vop::CvtI32I16 => widen(wave, inst, |a| i32::from(a as i16) as u32),
        Vop::CvtU32U16 => widen(wave, inst, |a| a & 0xffff),
        op => unreachable!("{op:?} belongs to another unit"),
    }
}

#[inline(always)]
fn to_f32(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> f32) {
    let a = source(wave, inst, 0);
    let mut out = map1(wave, a, |a| f(a).to_bits());
    put_f32(wave, inst, &mut out);
}

#[inline(always)]
fn from_f32(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> u32) {
    let a = source_f32(wave, inst, 0);
    let out = map1(wave, a, |a| f(f32::from_bits(a)));
    wave.put(inst.dst, &out);
}

fn to_f16(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> f32) {
    let a = source16(wave, inst, 0);
    let mut out = map1(wave, a, |a| f32_to_f16(f(a)));
    put_f16(wave, inst, &mut out);
}

fn from_f16(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> u32) {
    let a = source16(wave, inst, 0);
    let out = map1(wave, a, |a| f(f16_to_f32(a)));
    wave.put16(inst.dst, &out, inst.mods.high & 8 != 0);
}

fn widen(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> u32) {
    let a = source16(wave, inst, 0);
    let out = map1(wave, a, f);
    wave.put(inst.dst, &out);
}

fn pack(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> u32) {
    let (a, b) = (source_f32(wave, inst, 0), source_f32(wave, inst, 1));
    let out: Lanes = map2(wave, a, b, |a, b| {
        f(f32::from_bits(a)) & 0xffff | f(f32::from_bits(b)) << 16
    });
    wave.put(inst.dst, &out);
}

fn pack16(wave: &mut Wave, inst: &Vector, f: impl Fn(f32) -> u32) {
    let (a, b) = (source16(wave, inst, 0), source16(wave, inst, 1));
    let out: Lanes = map2(wave, a, b, |a, b| {
        f(f16_to_f32(a)) & 0xffff | f(f16_to_f32(b)) << 16
    });
    wave.put(inst.dst, &out);
}

fn pack_int(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> u32) {
    let (a, b) = (source(wave, inst, 0), source(wave, inst, 1));
    let out: Lanes = map2(wave, a, b, |a, b| f(a) & 0xffff | f(b) << 16);
    wave.put(inst.dst, &out);
}

fn norm_i16(x: f32) -> u32 {
    u32::from((x.clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i16 as u16)
}

fn norm_u16(x: f32) -> u32 {
    u32::from((x.clamp(0.0, 1.0) * 65535.0).round_ties_even() as u16)
}
