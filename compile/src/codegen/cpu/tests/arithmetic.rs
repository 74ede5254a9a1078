//! Single operations over the whole range of floats.

use bundle_format::plan::DType;
use bundle_format::region::{Binary, Unary};
use half::f16;

use super::exec::Code;
use super::memory::Memory;
use super::regions::{self, Case, at};
use super::{check, compiled};

const COLS: usize = 4096;

/// `f(x)` of a buffer, to another.
fn unary(op: Unary) -> Case {
    let mut case = Case::new("unary", 1, 1, COLS as u32);
    let (x, y) = (
        case.buffer(DType::F32, COLS as u32),
        case.buffer(DType::F32, COLS as u32),
    );
    let x = case.load(x, at(1, 0));
    let result = case.unary(op, x);
    case.store(y, at(1, 0), result);
    case
}

/// Applies compiled code to numbers.
fn apply(code: &Code, xs: &[f32]) -> Vec<f32> {
    let mut ys = vec![0.0f32; xs.len()];
    let args = [xs.as_ptr().cast_mut().cast::<u8>(), ys.as_mut_ptr().cast()];
    assert!(xs.len() <= COLS);
    // SAFETY: the code reads and writes `xs.len()` floats of row 0.
    unsafe {
        code.function(0)(
            args.as_ptr(),
            std::ptr::null_mut(),
            0,
            1,
            0,
            xs.len() as u64,
        )
    };
    ys
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let code = compiled(&unary(Unary::Exp));
    let mut worst = (0.0, 0.0);
    let smallest = f32::MIN_POSITIVE as f64;
    for sign in [0, 0x8000_0000] {
        let bits: Vec<u32> = (0..100f32.to_bits()).step_by(499).collect();
        for bits in bits.chunks(COLS) {
            let xs: Vec<f32> = bits.iter().map(|b| f32::from_bits(b | sign)).collect();
            for (x, y) in xs.iter().zip(apply(&code, &xs)) {
                let exact = (*x as f64).exp();
                if exact < smallest || exact > f32::MAX as f64 {
                    continue;
                }
                let rounded = exact as f32;
                let ulp = (f32::from_bits(rounded.to_bits() + 1) as f64 - rounded as f64).abs();
                let ulp = if ulp.is_finite() { ulp } else { 2f64.powi(104) };
                let error = (y as f64 - exact).abs() / ulp;
                if error.is_nan() || error > worst.0 {
                    worst = (error, *x);
                }
            }
        }
    }
    // The region's documentation promises 2.
    assert!(worst.0 < 1.5, "off by {} units at {}", worst.0, worst.1);
}

#[test]
fn exp_at_the_ends() {
    let code = compiled(&unary(Unary::Exp));
    let inf = f32::INFINITY;
    let (ends, expected): (Vec<f32>, Vec<f32>) = [
        (0.0, 1.0),
        (-0.0, 1.0),
        (1e-45, 1.0),
        (-1e-45, 1.0),
        (-87.340_01, 0.0),
        (-88.0, 0.0),
        (-104.0, 0.0),
        (f32::MIN, 0.0),
        (-inf, 0.0),
        (88.730_01, inf),
        (89.0, inf),
        (f32::MAX, inf),
        (inf, inf),
    ]
    .into_iter()
    .unzip();
    assert_eq!(apply(&code, &ends), expected);
    // Alone and in company.
    for xs in [&[f32::NAN][..], &[-f32::NAN; 4], &[f32::NAN; 23]] {
        assert!(apply(&code, xs).iter().all(|y| y.is_nan()));
    }
    let normal = apply(&code, &[-87.336_54, 88.722_83]);
    assert!(
        (normal[0] / 1.175_50e-38 - 1.0).abs() < 1e-5,
        "{:e}",
        normal[0]
    );
    assert!(
        (normal[1] / 3.402_798_6e38 - 1.0).abs() < 1e-5,
        "{:e}",
        normal[1]
    );
}

#[test]
fn negation_root_and_reciprocal_are_exact() {
    for op in [Unary::Neg, Unary::Sqrt, Unary::Recip] {
        let mut bits = 0u32;
        let memory = Memory::new(&unary(op), || {
            bits = bits.wrapping_add(104_729 * 523);
            f32::from_bits(bits)
        });
        check(&unary(op), &memory, 0.0);
    }
}

#[test]
fn arithmetic_rounds_once() {
    for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div] {
        let mut case = Case::new("binary", 1, 1, 301);
        let (x, y) = (case.buffer(DType::F32, 301), case.buffer(DType::F32, 301));
        let (a, b) = (case.load(x, at(1, 0)), case.tile(0));
        let result = case.binary(op, a, b);
        let fused = case.push(bundle_format::region::Inst::Fma { a, b, c: result });
        case.store(x, at(1, 0), fused);
        case.store(y, at(1, 0), result);
        let memory = Memory::new(&case, super::floats(op as u64));
        check(&case, &memory, 0.0);
    }
}

/// Every f16, what lies halfway to the next one, and what lies just off that.
#[test]
fn f16_rounds_half_to_even() {
    let case = regions::value(1, 512);
    let mut numbers = (0..=u16::MAX).flat_map(|bits| {
        let x = f16::from_bits(bits).to_f32();
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        // The number after the largest would be 2^16.
        let next = if x.abs() == 65_504.0 {
            65_536f32.copysign(x)
        } else {
            next
        };
        let middle = (x + next) / 2.0;
        let off = |by: i32| f32::from_bits(middle.to_bits().wrapping_add_signed(by));
        [x, middle, off(1), off(-1)]
    });
    let mut left = 4 * (u16::MAX as usize + 1);
    while left > 0 {
        let memory = Memory::new(&case, || {
            left = left.saturating_sub(1);
            numbers.next().unwrap_or(0.0)
        });
        check(&case, &memory, 0.0);
    }
    assert_eq!(numbers.next(), None);
}

/// Blocks of one sign, of one large number, of ties.
#[test]
fn quantisation_is_the_documented_one() {
    let patterns: [fn(usize) -> f32; 9] = [
        |_| 0.0,
        |i| {
            if i % 32 == 31 {
                -127.0
            } else {
                (i % 32) as f32 + 0.5
            }
        },
        |i| if i % 32 == 0 { 1e30 } else { i as f32 },
        |i| -(i as f32) * 1e-30,
        |i| {
            if i / 32 % 2 == 0 {
                -0.0
            } else {
                254.0 / (1 + i % 5) as f32
            }
        },
        |i| ((i * 2_654_435_761) % 1000) as f32 - 500.0,
        // Quants of 11 bits where the low byte's range ends, and ties between them.
        |i| [1016.0, -1016.0, 3.0, 4.0, -4.0, -5.0, 11.5, 12.5][i % 8],
        // Quants of 14 bits: all of the largest magnitude, whose sums are as large as can be, and ties.
        |i| if i / 32 % 2 == 0 { 8191.0 } else { -8191.0 },
        |i| [8191.0, -8191.0, 0.5, 1.5, -2.5, 4095.5, -4096.5, 8190.5][i % 8],
    ];
    let cols = |dtype: DType| 576u32.next_multiple_of(dtype.block() as u32);
    for case in DType::QUANTISED.map(|dtype| regions::quantise(dtype, cols(dtype))) {
        for pattern in patterns {
            let mut i = 0;
            let memory = Memory::new(&case, || {
                i += 1;
                pattern(i - 1)
            });
            check(&case, &memory, 0.0);
        }
    }
}
