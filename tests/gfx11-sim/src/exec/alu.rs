//! What vector units share: which unit an operation belongs to, sources with modifiers, results with modifiers.

use crate::float;
use crate::isa::{Vector, Vop};
use crate::wave::{Lanes, TEMPORARY, WAVE, Wave};

/// Units, one file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unit {
    Float32,
    Integer,
    Float16,
    Convert,
    /// 64-bit operands.
    Wide,
    /// Lanes exchange values.
    Lanes,
    /// Known by name only.
    None,
}

/// The unit of an operation.
#[inline(always)]
pub(super) fn unit(op: Vop) -> Unit {
    UNITS[op as usize]
}

static UNITS: [Unit; 0x400] = {
    let mut units = [Unit::None; 0x400];
    let mut i = 0;
    while i < Vop::ALL.len() {
        units[Vop::ALL[i] as usize] = unit_of(Vop::ALL[i]);
        i += 1;
    }
    units
};

const fn unit_of(op: Vop) -> Unit {
    use Vop::*;
    match op {
        AddF32 | SubF32 | SubrevF32 | FmacDx9ZeroF32 | MulDx9ZeroF32 | MulF32 | MinF32 | MaxF32
        | FmacF32 | FmamkF32 | FmaakF32 | FractF32 | TruncF32 | CeilF32 | RndneF32 | FloorF32
        | ExpF32 | LogF32 | RcpF32 | RcpIflagF32 | RsqF32 | SqrtF32 | SinF32 | CosF32
        | FrexpMantF32 | FmaDx9ZeroF32 | FmaF32 | Min3F32 | Max3F32 | Med3F32 | DivFixupF32
        | DivFmasF32 | MaxminF32 | MinmaxF32 | LdexpF32 | Dot2accF32F16 => Unit::Float32,

        CndmaskB32 | MulI32I24 | MulHiI32I24 | MulU32U24 | MulHiU32U24 | MinI32 | MaxI32
        | MinU32 | MaxU32 | LshlrevB32 | LshrrevB32 | AshrrevI32 | AndB32 | OrB32 | XorB32
        | XnorB32 | AddCoCiU32 | SubCoCiU32 | SubrevCoCiU32 | AddNcU32 | SubNcU32 | SubrevNcU32
        | MovB32 | NotB32 | BfrevB32 | ClzI32U32 | CtzI32B32 | ClsI32 | MadI32I24 | MadU32U24
        | BfeU32 | BfeI32 | BfiB32 | AlignbitB32 | AlignbyteB32 | Min3I32 | Min3U32 | Max3I32
        | Max3U32 | Med3I32 | Med3U32 | SadU8 | SadHiU8 | SadU16 | SadU32 | MsadU8 | LerpU8
        | Xor3B32 | PermB32 | XadU32 | LshlAddU32 | AddLshlU32 | Add3U32 | LshlOrB32 | AndOrB32
        | Or3B32 | MaxminU32 | MinmaxU32 | MaxminI32 | MinmaxI32 | AddCoU32 | SubCoU32
        | SubrevCoU32 | BfmB32 | BcntU32B32 | MbcntLoU32B32 | MbcntHiU32B32 | SubNcI32
        | AddNcI32 | MulLoU32 | MulHiU32 | MulHiI32 | Nop => Unit::Integer,

        AddF16 | SubF16 | SubrevF16 | MulF16 | FmacF16 | FmamkF16 | FmaakF16 | MaxF16 | MinF16
        | LdexpF16 | PkFmacF16 | MovB16 | RcpF16 | SqrtF16 | RsqF16 | LogF16 | ExpF16
        | FrexpMantF16 | FrexpExpI16F16 | FloorF16 | CeilF16 | TruncF16 | RndneF16 | FractF16
        | SinF16 | CosF16 | NotB16 | FmaF16 | Min3F16 | Max3F16 | Med3F16 | MadU16 | MadI16
        | Min3I16 | Min3U16 | Max3I16 | Max3U16 | Med3I16 | Med3U16 | DivFixupF16 | CndmaskB16
        | MaxminF16 | MinmaxF16 | Dot2F16F16 | Dot2Bf16Bf16 | AddNcU16 | SubNcU16 | MulLoU16
        | MaxU16 | MaxI16 | MinU16 | MinI16 | AddNcI16 | SubNcI16 | LshlrevB16 | LshrrevB16
        | AshrrevI16 | AndB16 | OrB16 | XorB16 | MadU32U16 | MadI32I16 | PackB32F16 => {
            Unit::Float16
        }

        CvtF32I32 | CvtF32U32 | CvtU32F32 | CvtI32F32 | CvtF16F32 | CvtF32F16
        | CvtNearestI32F32 | CvtFloorI32F32 | CvtOffF32I4 | CvtF32Ubyte0 | CvtF32Ubyte1
        | CvtF32Ubyte2 | CvtF32Ubyte3 | FrexpExpI32F32 | CvtF16U16 | CvtF16I16 | CvtU16F16
        | CvtI16F16 | SatPkU8I16 | CvtNormI16F16 | CvtNormU16F16 | CvtI32I16 | CvtU32U16
        | CvtPkRtzF16F32 | CvtPkU8F32 | CvtPkI16F32 | CvtPkU16F32 | CvtPkNormI16F16
        | CvtPkNormU16F16 | CvtPkNormI16F32 | CvtPkNormU16F32 | CvtPkU16U32 | CvtPkI16I32 => {
            Unit::Convert
        }

        CvtI32F64 | CvtF64I32 | CvtF32F64 | CvtF64F32 | CvtU32F64 | CvtF64U32 | TruncF64
        | CeilF64 | RndneF64 | FloorF64 | RcpF64 | RsqF64 | SqrtF64 | FrexpExpI32F64
        | FrexpMantF64 | FractF64 | FmaF64 | DivFixupF64 | DivFmasF64 | DivScaleF32
        | DivScaleF64 | MadU64U32 | MadI64I32 | AddF64 | MulF64 | MinF64 | MaxF64 | LdexpF64
        | LshlrevB64 | LshrrevB64 | AshrrevI64 => Unit::Wide,

        ReadfirstlaneB32 | ReadlaneB32 | WritelaneB32 | Permlane16B32 | Permlanex16B32
        | Permlane64B32 | SwapB32 | MovreldB32 | MovrelsB32 | MovrelsdB32 => Unit::Lanes,

        CubeidF32 | CubescF32 | CubetcF32 | CubemaF32 | MullitF32 | QsadPkU16U8 | MqsadPkU16U8
        | MqsadU32U8 | Movrelsd2B32 | SwaprelB32 | TrigPreopF64 => Unit::None,
    }
}

/// The register that holds source `n` with its sign modifiers.
#[inline(always)]
pub(super) fn source(wave: &mut Wave, inst: &Vector, n: usize) -> usize {
    let at = wave.operand(inst.src[n], n);
    let (neg, abs) = (inst.mods.neg >> n & 1, inst.mods.abs >> n & 1);
    if neg | abs == 0 {
        at
    } else {
        signs(wave, at, n, neg, abs, 0x8000_0000)
    }
}

/// As `source` for an f32 that is calculated with: denormals are flushed where MODE says so.
#[inline(always)]
pub(super) fn source_f32(wave: &mut Wave, inst: &Vector, n: usize) -> usize {
    let at = source(wave, inst, n);
    if !wave.mode.flush_in_32() {
        at
    } else {
        flush(wave, at, n)
    }
}

/// The register whose lower halves are source `n`, a 16-bit one, with its sign modifiers.
#[inline(always)]
pub(super) fn source16(wave: &mut Wave, inst: &Vector, n: usize) -> usize {
    let at = wave.operand16(inst.src[n], n, inst.mods.high >> n & 1 != 0);
    let (neg, abs) = (inst.mods.neg >> n & 1, inst.mods.abs >> n & 1);
    if neg | abs == 0 {
        at
    } else {
        signs(wave, at, n, neg, abs, 0x8000)
    }
}

/// As `source16` for an f16 that is calculated with: denormals are flushed where MODE says so.
#[inline(always)]
pub(super) fn source_f16(wave: &mut Wave, inst: &Vector, n: usize) -> usize {
    let at = source16(wave, inst, n);
    if !wave.mode.flush_in_16() {
        return at;
    }
    let from = wave.v[at];
    wave.v[TEMPORARY + n] = from.map(flush_f16);
    TEMPORARY + n
}

/// Zero of the same sign for a denormal f16 in the lower half.
pub(super) fn flush_f16(x: u32) -> u32 {
    if x & 0x7c00 == 0 { x & 0x8000 } else { x }
}

#[cold]
fn signs(wave: &mut Wave, at: usize, n: usize, neg: u8, abs: u8, sign: u32) -> usize {
    let from = wave.v[at];
    let keep = if abs != 0 { !sign } else { !0 };
    let flip = if neg != 0 { sign } else { 0 };
    wave.v[TEMPORARY + n] = from.map(|x| x & keep ^ flip);
    TEMPORARY + n
}

#[cold]
fn flush(wave: &mut Wave, at: usize, n: usize) -> usize {
    let from = wave.v[at];
    wave.v[TEMPORARY + n] = from.map(|x| float::flush_f32(f32::from_bits(x)).to_bits());
    TEMPORARY + n
}

/// Writes an f32 result with its modifiers.
#[inline(always)]
pub(super) fn put_f32(wave: &mut Wave, inst: &Vector, value: &mut Lanes) {
    if inst.mods.clamp || inst.mods.omod != 0 || wave.mode.flush_out_32() {
        finish_f32(wave, inst, value);
    }
    wave.put(inst.dst, value);
}

#[cold]
fn finish_f32(wave: &Wave, inst: &Vector, value: &mut Lanes) {
    let flush = wave.mode.flush_out_32();
    for lane in value.iter_mut() {
        let mut x = f32::from_bits(*lane);
        // Output modifiers exist where denormals and IEEE rules don't.
        if flush && !wave.mode.ieee() {
            x *= [1.0, 2.0, 4.0, 0.5][usize::from(inst.mods.omod)];
        }
        if flush {
            x = float::flush_f32(x);
        }
        if inst.mods.clamp {
            x = clamp_f32(x, wave.mode.dx10_clamp());
        }
        *lane = x.to_bits();
    }
}

/// Into 0..=1; NaN becomes 0 in DX10 mode.
pub(super) fn clamp_f32(x: f32, dx10: bool) -> f32 {
    match x {
        x if x.is_nan() => {
            if dx10 {
                0.0
            } else {
                x
            }
        }
        x if x > 1.0 => 1.0,
        x if x > 0.0 => x,
        _ => 0.0,
    }
}

/// Writes an f16 result (bits in the lower halves) with its modifiers.
#[inline(always)]
pub(super) fn put_f16(wave: &mut Wave, inst: &Vector, value: &mut Lanes) {
    if inst.mods.clamp || inst.mods.omod != 0 || wave.mode.flush_out_16() {
        finish_f16(wave, inst, value);
    }
    wave.put16(inst.dst, value, inst.mods.high & 8 != 0);
}

#[cold]
fn finish_f16(wave: &Wave, inst: &Vector, value: &mut Lanes) {
    let flush = wave.mode.flush_out_16();
    for lane in value.iter_mut() {
        let mut x = float::f16_to_f32(*lane);
        if flush && !wave.mode.ieee() {
            x *= [1.0, 2.0, 4.0, 0.5][usize::from(inst.mods.omod)];
        }
        if inst.mods.clamp {
            x = clamp_f32(x, wave.mode.dx10_clamp());
        }
        *lane = float::f32_to_f16(x);
        if flush {
            *lane = flush_f16(*lane);
        }
    }
}

/// One lane after another of one register.
#[inline(always)]
pub(super) fn map1(wave: &Wave, a: usize, f: impl Fn(u32) -> u32) -> Lanes {
    let a = &wave.v[a];
    let mut out = [0; WAVE];
    for lane in 0..WAVE {
        out[lane] = f(a[lane]);
    }
    out
}

/// Of two registers.
#[inline(always)]
pub(super) fn map2(wave: &Wave, a: usize, b: usize, f: impl Fn(u32, u32) -> u32) -> Lanes {
    let (a, b) = (&wave.v[a], &wave.v[b]);
    let mut out = [0; WAVE];
    for lane in 0..WAVE {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

/// Of three registers.
#[inline(always)]
pub(super) fn map3(
    wave: &Wave,
    a: usize,
    b: usize,
    c: usize,
    f: impl Fn(u32, u32, u32) -> u32,
) -> Lanes {
    let (a, b, c) = (&wave.v[a], &wave.v[b], &wave.v[c]);
    let mut out = [0; WAVE];
    for lane in 0..WAVE {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

/// A mask from a condition on each lane.
#[inline(always)]
pub(super) fn mask(f: impl Fn(usize) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..WAVE {
        out |= u32::from(f(lane)) << lane;
    }
    out
}
