//! Arithmetic on vectors of four f32 that Cranelift has no instruction for.
//!
//! Functions take several vectors at once: each constant is then loaded once for all of them, and their chains of
//! dependent instructions overlap.

use bundle_format::plan::Q8_BLOCK;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, I8X16, I32, I32X4};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;

/// Lanes of a vector.
pub const LANES: usize = 4;

/// Vectors of a Q8 block.
pub const Q8_VECTORS: usize = Q8_BLOCK / LANES;

/// `value` in every lane.
pub fn splat(b: &mut FunctionBuilder, value: f32) -> Value {
    constant(b, F32X4, [value.to_bits(); 4])
}

/// The vector of type `ty` with these 32-bit pieces.
pub fn constant(b: &mut FunctionBuilder, ty: Type, lanes: [u32; 4]) -> Value {
    let bytes: Vec<u8> = lanes.iter().flat_map(|lane| lane.to_le_bytes()).collect();
    let handle = b.func.dfg.constants.insert(ConstantData::from(&bytes[..]));
    b.ins().vconst(ty, handle)
}

/// The same bits as a vector of another type.
pub fn cast(b: &mut FunctionBuilder, ty: Type, x: Value) -> Value {
    if b.func.dfg.value_type(x) == ty {
        return x;
    }
    let flags = MemFlagsData::new().with_endianness(Endianness::Little);
    b.ins().bitcast(ty, flags, x)
}

/// `-x`.
pub fn neg(b: &mut FunctionBuilder, xs: &[Value]) -> Vec<Value> {
    let sign = constant(b, F32X4, [0x8000_0000; 4]);
    xs.iter().map(|&x| b.ins().bxor(x, sign)).collect()
}

/// `e^x` as `bundle_format::region::Unary::Exp` states it: `2^n * e^r` with `x = n ln 2 + r`, n an integer and
/// `0 <= r <= ln 2`, so that `e^r` is in `1 ..= 2` and n in `-126 ..= 127` wherever the result is normal.
pub fn exp(b: &mut FunctionBuilder, xs: &[Value]) -> Vec<Value> {
    // Beyond these the result is 0 or infinite, n being -127 or 128, which 2^n below renders as 0 and infinity.
    let low = splat(b, -88.0);
    let xs = each(xs, |x| max_or_second(b, low, x));
    let high = splat(b, 89.0);
    let xs = each(&xs, |x| min_or_second(b, high, x));

    // n = floor(x / ln 2), as the sum of n + 127 and 1.5 * 2^23: its low bits are the integer.
    let log2_e = splat(b, std::f32::consts::LOG2_E);
    let half = splat(b, -0.5);
    let shifted = each(&xs, |x| b.ins().fma(x, log2_e, half));
    let magic = splat(b, EXP_MAGIC);
    let shifted = each(&shifted, |x| b.ins().fadd(x, magic));
    let n = each(&shifted, |x| b.ins().fsub(x, magic));

    // r = x - n ln 2 in two steps, the first one exact.
    let ln2 = splat(b, -std::f32::consts::LN_2);
    let r = each2(&n, &xs, |n, x| b.ins().fma(n, ln2, x));
    let rest = splat(b, -LN_2_REST);
    let r = each2(&n, &r, |n, r| b.ins().fma(n, rest, r));

    let highest = splat(b, f32::from_bits(EXP_COEFFICIENTS[0]));
    let mut p = vec![highest; xs.len()];
    for &coefficient in &EXP_COEFFICIENTS[1..] {
        let c = splat(b, f32::from_bits(coefficient));
        p = each2(&p, &r, |p, r| b.ins().fma(p, r, c));
    }

    // 2^n: the low bits of the sum become the exponent. NaN survives, since p is NaN.
    each2(&shifted, &p, |shifted, p| {
        let bits = cast(b, I32X4, shifted);
        let shift = b.ins().iconst(I32, 23);
        let scale = b.ins().ishl(bits, shift);
        let scale = cast(b, F32X4, scale);
        b.ins().fmul(p, scale)
    })
}

/// 1.5 * 2^23 + 127: added to a small number, it rounds that to an integer (half to even) and biases it as an exponent.
const EXP_MAGIC: f32 = 12_582_912.0 + 127.0;

/// ln 2 less its nearest f32.
const LN_2_REST: f32 = -1.904_654_3e-9;

/// Coefficients of e^r from r^6 down to 1: the polynomial with the least relative error over `0 ..= ln 2` (2.1e-9) among
/// those that are 1 at 0. As bits, to be exact.
const EXP_COEFFICIENTS: [u32; 7] = [
    0x3aff_2a9f,
    0x3bff_7cde,
    0x3d2b_aae9,
    0x3e2a_9c42,
    0x3f00_005d,
    0x3f7f_fffd,
    0x3f80_0000,
];

/// `a < b ? a : b`: b where either is NaN.
fn min_or_second(b: &mut FunctionBuilder, first: Value, second: Value) -> Value {
    let less = b.ins().fcmp(FloatCC::LessThan, first, second);
    let less = cast(b, F32X4, less);
    b.ins().bitselect(less, first, second)
}

/// `a > b ? a : b`: b where either is NaN.
fn max_or_second(b: &mut FunctionBuilder, first: Value, second: Value) -> Value {
    let greater = b.ins().fcmp(FloatCC::LessThan, second, first);
    let greater = cast(b, F32X4, greater);
    b.ins().bitselect(greater, first, second)
}

/// The sum of the lanes, in every lane: (0 + 2) + (1 + 3).
pub fn sum_lanes(b: &mut FunctionBuilder, x: Value) -> Value {
    let swapped = swap_halves(b, x);
    let x = b.ins().fadd(x, swapped);
    let swapped = swap_neighbours(b, x);
    b.ins().fadd(x, swapped)
}

/// A quantised block.
pub struct Q8Block {
    /// Two vectors of 16 quants.
    pub quants: [Value; 2],
    /// In lane 0.
    pub scale: Value,
    /// In lane 0: the scale times the sum of the quants.
    pub scaled_sum: Value,
}

/// Quantises [`Q8_VECTORS`] vectors as `bundle_format::plan::DType::Q8` states it. What the quants are is of no meaning
/// where the scale is infinite or NaN.
pub fn quantise(b: &mut FunctionBuilder, xs: &[Value]) -> Q8Block {
    debug_assert_eq!(xs.len(), Q8_VECTORS);
    // Magnitudes compare as integers, with NaN above everything.
    let magnitude = constant(b, I32X4, [0x7fff_ffff; 4]);
    let magnitude_of = |b: &mut FunctionBuilder, x| {
        let x = cast(b, I32X4, x);
        b.ins().band(x, magnitude)
    };
    let mut amax = magnitude_of(b, xs[0]);
    for &x in &xs[1..] {
        let x = magnitude_of(b, x);
        amax = b.ins().smax(amax, x);
    }
    for swap in [swap_halves, swap_neighbours] {
        let swapped = swap(b, amax);
        amax = b.ins().smax(amax, swapped);
    }
    let amax = cast(b, F32X4, amax);
    let levels = splat(b, 127.0);
    let scale = b.ins().fdiv(amax, levels);
    let inverse = b.ins().fdiv(levels, amax);
    let zero = splat(b, 0.0);
    let nonzero = b.ins().fcmp(FloatCC::NotEqual, amax, zero);
    let nonzero = cast(b, F32X4, nonzero);
    let inverse = b.ins().band(inverse, nonzero);

    // Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits.
    let products = each(xs, |x| b.ins().fmul(x, inverse));
    let magic = splat(b, ROUND_MAGIC);
    let rounded = each(&products, |x| b.ins().fadd(x, magic));
    let bias = constant(b, I32X4, [ROUND_MAGIC.to_bits(); 4]);
    let quants = each(&rounded, |x| {
        let bits = cast(b, I32X4, x);
        b.ins().isub(bits, bias)
    });
    let words: Vec<Value> = quants
        .chunks(2)
        .map(|q| b.ins().snarrow(q[0], q[1]))
        .collect();
    let bytes: Vec<Value> = words
        .chunks(2)
        .map(|w| b.ins().snarrow(w[0], w[1]))
        .collect();

    // Sums of neighbouring quants, then of neighbouring sums.
    let ones = constant(b, I8X16, [0x0101_0101; 4]);
    let pairs = each(&bytes, |q| b.ins().x86_pmaddubsw(q, ones));
    let pairs = b.ins().iadd(pairs[0], pairs[1]);
    let low = b.ins().swiden_low(pairs);
    let high = b.ins().swiden_high(pairs);
    let mut sum = b.ins().iadd_pairwise(low, high);
    for swap in [swap_halves, swap_neighbours] {
        let swapped = swap(b, sum);
        sum = b.ins().iadd(sum, swapped);
    }
    let sum = b.ins().fcvt_from_sint(F32X4, sum);
    Q8Block {
        quants: [bytes[0], bytes[1]],
        scale,
        scaled_sum: b.ins().fmul(sum, scale),
    }
}

/// 1.5 * 2^23.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// f16 of each lane, rounded half to even: an i16x8 whose low half holds the four.
pub fn to_f16(b: &mut FunctionBuilder, x: Value) -> Value {
    let is_nan = b.ins().fcmp(FloatCC::Unordered, x, x);
    let x = cast(b, I32X4, x);
    let magnitude_mask = constant(b, I32X4, [0x7fff_ffff; 4]);
    let magnitude = b.ins().band(x, magnitude_mask);
    // 2^16 becomes infinity below, so nothing needs to be larger.
    let limit = constant(b, I32X4, [65_536f32.to_bits(); 4]);
    let magnitude = b.ins().smin(magnitude, limit);

    // Normal: move the exponent's bias from 127 to 15, and round off 13 bits of the mantissa.
    let shift = b.ins().iconst(I32, 13);
    let kept = b.ins().ushr(magnitude, shift);
    let one = constant(b, I32X4, [1; 4]);
    let odd = b.ins().band(kept, one);
    let bias = 0x0fff_u32.wrapping_sub((127 - 15) << 23);
    let bias = constant(b, I32X4, [bias; 4]);
    let biased = b.ins().iadd(magnitude, bias);
    let biased = b.ins().iadd(biased, odd);
    let normal = b.ins().ushr(biased, shift);

    // Subnormal: units of 2^-24 are the last bits of numbers around 0.5, so that the addition rounds.
    let half = splat(b, 0.5);
    let as_float = cast(b, F32X4, magnitude);
    let around_half = b.ins().fadd(as_float, half);
    let around_half = cast(b, I32X4, around_half);
    let half_bits = constant(b, I32X4, [0.5f32.to_bits(); 4]);
    let subnormal = b.ins().isub(around_half, half_bits);

    let smallest_normal = constant(b, I32X4, [(127 - 14) << 23; 4]);
    let is_normal = b
        .ins()
        .icmp(IntCC::SignedGreaterThanOrEqual, magnitude, smallest_normal);
    let result = b.ins().bitselect(is_normal, normal, subnormal);
    let quiet = constant(b, I32X4, [0x0200; 4]);
    let quiet = b.ins().band(is_nan, quiet);
    let result = b.ins().bor(result, quiet);

    // The sign, spread over the upper half so that narrowing finds a number in range.
    let not_sign = b.ins().band(x, magnitude_mask);
    let sign = b.ins().bxor(x, not_sign);
    let sixteen = b.ins().iconst(I32, 16);
    let sign = b.ins().sshr(sign, sixteen);
    let result = b.ins().bor(result, sign);
    b.ins().snarrow(result, result)
}

fn swap_halves(b: &mut FunctionBuilder, x: Value) -> Value {
    shuffle_lanes(b, x, [2, 3, 0, 1])
}

fn swap_neighbours(b: &mut FunctionBuilder, x: Value) -> Value {
    shuffle_lanes(b, x, [1, 0, 3, 2])
}

/// Lanes of 32 bits, in this order.
fn shuffle_lanes(b: &mut FunctionBuilder, x: Value, order: [u8; 4]) -> Value {
    let ty = b.func.dfg.value_type(x);
    let bytes: Vec<u8> = order
        .iter()
        .flat_map(|lane| (0..4).map(move |byte| lane * 4 + byte))
        .collect();
    let mask = b.func.dfg.immediates.push(ConstantData::from(&bytes[..]));
    let x = cast(b, I8X16, x);
    let shuffled = b.ins().shuffle(x, x, mask);
    cast(b, ty, shuffled)
}

fn each(xs: &[Value], mut f: impl FnMut(Value) -> Value) -> Vec<Value> {
    xs.iter().map(|&x| f(x)).collect()
}

fn each2(xs: &[Value], ys: &[Value], mut f: impl FnMut(Value, Value) -> Value) -> Vec<Value> {
    xs.iter().zip(ys).map(|(&x, &y)| f(x, y)).collect()
}
