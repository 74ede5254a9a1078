//! Arithmetic on vectors of four f32 that Cranelift has no instruction for.
//!
//! Functions take several vectors at once: each constant is then loaded once for all of them, and their chains of
//! dependent instructions overlap.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I32, I32X4};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;

/// Lanes of a vector.
pub const LANES: usize = 4;

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

/// `e^x` as `bundle_format::region::Unary::Exp` states it, or `e^-x`: `2^n * e^r` with `x = n ln 2 + r`, n an integer and
/// `0 <= r <= ln 2`, so that `e^r` is in `1 ..= 2` and n in `-126 ..= 127` wherever the result is normal.
pub fn exp(b: &mut FunctionBuilder, xs: &[Value], sign: Sign) -> Vec<Value> {
    let (sign, low, high) = match sign {
        Sign::Same => (1.0, -88.0, 89.0),
        Sign::Opposite => (-1.0, -89.0, 88.0),
    };
    // Beyond these the result is 0 or infinite, n being -127 or 128, which 2^n below renders as 0 and infinity.
    let low = splat(b, low);
    let xs = each(xs, |x| max_or_second(b, low, x));
    let high = splat(b, high);
    let xs = each(&xs, |x| min_or_second(b, high, x));

    // n = floor(x / ln 2), as the sum of n + 127 and 1.5 * 2^23: its low bits are the integer.
    let log2_e = splat(b, sign * std::f32::consts::LOG2_E);
    let half = splat(b, -0.5);
    let shifted = each(&xs, |x| b.ins().fma(x, log2_e, half));
    let magic = splat(b, EXP_MAGIC);
    let shifted = each(&shifted, |x| b.ins().fadd(x, magic));
    let n = each(&shifted, |x| b.ins().fsub(x, magic));

    // r = x - n ln 2 in two steps, the first one exact; for e^-x it is -r, and so are the polynomial's odd coefficients.
    let ln2 = splat(b, -sign * std::f32::consts::LN_2);
    let r = each2(&n, &xs, |n, x| b.ins().fma(n, ln2, x));
    let rest = splat(b, -sign * LN_2_REST);
    let r = each2(&n, &r, |n, r| b.ins().fma(n, rest, r));

    let mut coefficients = EXP_COEFFICIENTS.map(f32::from_bits);
    coefficients[1..]
        .iter_mut()
        .step_by(2)
        .for_each(|c| *c *= sign);
    let highest = splat(b, coefficients[0]);
    let mut p = vec![highest; xs.len()];
    for coefficient in &coefficients[1..] {
        let c = splat(b, *coefficient);
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

/// Whether [`exp`] takes the exponent as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    Same,
    Opposite,
}

/// 1.5 * 2^23 + 127: added to a small number, it rounds that to an integer (half to even) and biases it as an exponent.
const EXP_MAGIC: f32 = 12_582_912.0 + 127.0;

/// ln 2 less its nearest f32.
const LN_2_REST: f32 = -1.904_654_3e-9;

/// Coefficients of e^r from r^6 down to 1: the polynomial with the least relative error over `0 ..= ln 2` (2.1e-9) among
/// those that are 1 at 0. As bits, to be exact. (One of degree 5 has an error of 8.2e-8: with roundings, 2.7 units in the
/// last place just below 1.)
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
    let swapped = shuffle_lanes(b, x, x, [2, 3, 0, 1]);
    let x = b.ins().fadd(x, swapped);
    let swapped = shuffle_lanes(b, x, x, [1, 0, 3, 2]);
    b.ins().fadd(x, swapped)
}

/// Folds the lanes of each vector by an operation that is commutative and associative: lane i of the result is vector i's.
pub fn fold_lanes(
    b: &mut FunctionBuilder,
    xs: [Value; LANES],
    mut f: impl FnMut(&mut FunctionBuilder, Value, Value) -> Value,
) -> Value {
    // Halves of two vectors come to lie lane by lane: (x0 y0 x1 y1) with (x2 y2 x3 y3).
    let mut interleave = |b: &mut FunctionBuilder, x: Value, y: Value| {
        let low = shuffle_lanes(b, x, y, [0, 4, 1, 5]);
        let high = shuffle_lanes(b, x, y, [2, 6, 3, 7]);
        f(b, low, high)
    };
    let first = interleave(b, xs[0], xs[1]);
    let second = interleave(b, xs[2], xs[3]);
    let low = shuffle_lanes(b, first, second, [0, 1, 4, 5]);
    let high = shuffle_lanes(b, first, second, [2, 3, 6, 7]);
    f(b, low, high)
}

/// An f32's exponent, as its bits, of 2^-14: the smallest normal f16.
const F16_SMALLEST_EXPONENT: u32 = 127 - 14;

/// f16 of each lane, rounded half to even: each an i16x8 whose low half holds the four.
pub fn to_f16(b: &mut FunctionBuilder, xs: &[Value]) -> Vec<Value> {
    let is_nan = each(xs, |x| b.ins().fcmp(FloatCC::Unordered, x, x));
    let bits = each(xs, |x| cast(b, I32X4, x));
    let mask = constant(b, I32X4, [0x7fff_ffff; 4]);
    let magnitude = each(&bits, |x| b.ins().band(x, mask));
    let sign = each2(&bits, &magnitude, |x, magnitude| b.ins().bxor(x, magnitude));
    // 2^16 becomes infinity below, so nothing needs to be larger.
    let limit = constant(b, I32X4, [65_536f32.to_bits(); 4]);
    let magnitude = each(&magnitude, |x| b.ins().smin(x, limit));

    // The number's power of two, at least that of the smallest normal f16, times 2^13: added to the number, it rounds off
    // what f16 hasn't, half to even, and leaves the mantissa's integer in the low bits.
    let exponent = constant(b, I32X4, [0x7f80_0000; 4]);
    let smallest = constant(b, I32X4, [F16_SMALLEST_EXPONENT << 23; 4]);
    let thirteen_powers = constant(b, I32X4, [13 << 23; 4]);
    let power = each(&magnitude, |x| b.ins().band(x, exponent));
    let power = each(&power, |x| b.ins().smax(x, smallest));
    let power = each(&power, |x| b.ins().iadd(x, thirteen_powers));
    let mantissa = each2(&magnitude, &power, |x, power| {
        let (x, float) = (cast(b, F32X4, x), cast(b, F32X4, power));
        let sum = b.ins().fadd(x, float);
        let sum = cast(b, I32X4, sum);
        b.ins().isub(sum, power)
    });
    // A normal number's mantissa has its leading bit, which adds one to the exponent.
    let thirteen = b.ins().iconst(I32, 13);
    let bias = constant(b, I32X4, [(F16_SMALLEST_EXPONENT + 13) << 10; 4]);
    let magnitude = each2(&mantissa, &power, |mantissa, power| {
        let exponent = b.ins().ushr(power, thirteen);
        let x = b.ins().iadd(mantissa, exponent);
        b.ins().isub(x, bias)
    });

    let quiet = constant(b, I32X4, [0x0200; 4]);
    // Spread over the upper half, so that narrowing finds a number in range.
    let sixteen = b.ins().iconst(I32, 16);
    (0..xs.len())
        .map(|i| {
            let quiet = b.ins().band(is_nan[i], quiet);
            let result = b.ins().bor(magnitude[i], quiet);
            let sign = b.ins().sshr(sign[i], sixteen);
            let result = b.ins().bor(result, sign);
            b.ins().snarrow(result, result)
        })
        .collect()
}

/// 32-bit lanes of `x` (0 to 3) and `y` (4 to 7), in this order.
pub fn shuffle_lanes(b: &mut FunctionBuilder, x: Value, y: Value, order: [u8; 4]) -> Value {
    let ty = b.func.dfg.value_type(x);
    let bytes: Vec<u8> = order
        .iter()
        .flat_map(|lane| (0..4).map(move |byte| lane * 4 + byte))
        .collect();
    let mask = b.func.dfg.immediates.push(ConstantData::from(&bytes[..]));
    let (x, y) = (cast(b, I8X16, x), cast(b, I8X16, y));
    let shuffled = b.ins().shuffle(x, y, mask);
    cast(b, ty, shuffled)
}

pub fn each(xs: &[Value], mut f: impl FnMut(Value) -> Value) -> Vec<Value> {
    xs.iter().map(|&x| f(x)).collect()
}

pub fn each2(xs: &[Value], ys: &[Value], mut f: impl FnMut(Value, Value) -> Value) -> Vec<Value> {
    xs.iter().zip(ys).map(|(&x, &y)| f(x, y)).collect()
}
