//! RDNA 3.5's floats of the scalar unit.

use crate::float::{
    f16_to_f32, f32_to_f16, f32_to_f16_round, flush_f32, fma_f16, max_f16, max_f32, min_f16,
    min_f32,
};
use crate::isa::{Sop1, Sop2, SopConst, Sopc, Src};
use crate::wave::Wave;

fn f32_of(wave: &Wave, src: Src) -> f32 {
    let x = f32::from_bits(wave.scalar(src));
    if wave.mode.flush_in_32() {
        flush_f32(x)
    } else {
        x
    }
}

/// f16 bits of a source.
fn f16_of(wave: &Wave, src: Src) -> u32 {
    wave.scalar16(src) & 0xffff
}

fn put(wave: &mut Wave, dst: u8, x: f32) {
    let x = if wave.mode.flush_out_32() {
        flush_f32(x)
    } else {
        x
    };
    wave.set_s(dst, x.to_bits());
}

/// f32 and f16 arithmetic. f16 results have a zero upper half.
pub(super) fn sop2(wave: &mut Wave, op: Sop2, dst: u8, a: Src, b: Src) {
    use Sop2::*;
    let ieee = wave.mode.ieee();
    let (x, y) = (f32_of(wave, a), f32_of(wave, b));
    let (h, i) = (f16_of(wave, a), f16_of(wave, b));
    let (hx, ix) = (f16_to_f32(h), f16_to_f32(i));
    let old = wave.s[usize::from(dst)];
    let half = |wave: &mut Wave, bits: u32| wave.set_s(dst, bits & 0xffff);
    match op {
        AddF32 => put(wave, dst, x + y),
        SubF32 => put(wave, dst, x - y),
        MulF32 => put(wave, dst, x * y),
        MinF32 => put(
            wave,
            dst,
            f32::from_bits(min_f32(x.to_bits(), y.to_bits(), ieee)),
        ),
        MaxF32 => put(
            wave,
            dst,
            f32::from_bits(max_f32(x.to_bits(), y.to_bits(), ieee)),
        ),
        FmacF32 => put(wave, dst, x.mul_add(y, f32::from_bits(old))),
        CvtPkRtzF16F32 => wave.set_s(dst, f32_to_f16_round(x, 3) | f32_to_f16_round(y, 3) << 16),
        AddF16 => half(wave, f32_to_f16(hx + ix)),
        SubF16 => half(wave, f32_to_f16(hx - ix)),
        MulF16 => half(wave, f32_to_f16(hx * ix)),
        MinF16 => half(wave, min_f16(h, i, ieee)),
        MaxF16 => half(wave, max_f16(h, i, ieee)),
        FmacF16 => half(wave, fma_f16(h, i, old & 0xffff)),
        op => unreachable!("{op:?} is an integer operation"),
    }
}

/// Rounding and conversions.
pub(super) fn sop1(wave: &mut Wave, op: Sop1, dst: u8, src: Src) {
    use Sop1::*;
    let (bits, x) = (wave.scalar(src), f32_of(wave, src));
    let h = f16_to_f32(f16_of(wave, src));
    match op {
        CeilF32 => put(wave, dst, x.ceil()),
        FloorF32 => put(wave, dst, x.floor()),
        TruncF32 => put(wave, dst, x.trunc()),
        RndneF32 => put(wave, dst, x.round_ties_even()),
        CvtF32I32 => put(wave, dst, bits as i32 as f32),
        CvtF32U32 => put(wave, dst, bits as f32),
        CvtI32F32 => wave.set_s(dst, x as i32 as u32),
        CvtU32F32 => wave.set_s(dst, x as u32),
        CvtF16F32 => wave.set_s(dst, f32_to_f16_round(x, wave.mode.round().1)),
        CvtF32F16 => put(wave, dst, h),
        CvtHiF32F16 => put(wave, dst, f16_to_f32(bits >> 16)),
        CeilF16 => wave.set_s(dst, f32_to_f16(h.ceil())),
        FloorF16 => wave.set_s(dst, f32_to_f16(h.floor())),
        TruncF16 => wave.set_s(dst, f32_to_f16(h.trunc())),
        RndneF16 => wave.set_s(dst, f32_to_f16(h.round_ties_even())),
        op => unreachable!("{op:?} is an integer operation"),
    }
}

/// Comparisons.
pub(super) fn compare(wave: &Wave, op: Sopc, a: Src, b: Src) -> bool {
    use Sopc::*;
    let f32_pair = (f32_of(wave, a), f32_of(wave, b));
    let f16_pair = (f16_to_f32(f16_of(wave, a)), f16_to_f32(f16_of(wave, b)));
    let (x, y) = if (op as u16) < CmpLtF16 as u16 {
        f32_pair
    } else {
        f16_pair
    };
    match op {
        CmpLtF32 | CmpLtF16 => x < y,
        CmpEqF32 | CmpEqF16 => x == y,
        CmpLeF32 | CmpLeF16 => x <= y,
        CmpGtF32 | CmpGtF16 => x > y,
        CmpLgF32 | CmpLgF16 => x < y || x > y,
        CmpGeF32 | CmpGeF16 => x >= y,
        CmpOF32 | CmpOF16 => !x.is_nan() && !y.is_nan(),
        CmpUF32 | CmpUF16 => x.is_nan() || y.is_nan(),
        CmpNgeF32 | CmpNgeF16 => !matches!(x.partial_cmp(&y), Some(o) if o.is_ge()),
        CmpNlgF32 | CmpNlgF16 => !(x < y || x > y),
        CmpNgtF32 | CmpNgtF16 => !matches!(x.partial_cmp(&y), Some(o) if o.is_gt()),
        CmpNleF32 | CmpNleF16 => !matches!(x.partial_cmp(&y), Some(o) if o.is_le()),
        CmpNeqF32 | CmpNeqF16 => x != y,
        CmpNltF32 | CmpNltF16 => !matches!(x.partial_cmp(&y), Some(o) if o.is_lt()),
        op => unreachable!("{op:?} is an integer comparison"),
    }
}

/// Multiply-adds with a literal.
pub(super) fn constant(wave: &mut Wave, op: SopConst, dst: u8, a: Src, b: Src, constant: u32) {
    let (x, y, k) = (f32_of(wave, a), f32_of(wave, b), f32::from_bits(constant));
    match op {
        SopConst::FmamkF32 => put(wave, dst, x.mul_add(k, y)),
        _ => put(wave, dst, x.mul_add(y, k)),
    }
}
