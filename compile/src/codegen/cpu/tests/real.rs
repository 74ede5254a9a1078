//! The regions of real models.

use bundle_format::plan::DType;
use bundle_format::region::{Inst, Unary};

use super::memory::Memory;
use super::regions::{self, Case};
use super::{check, floats};
use crate::codegen::cpu::{CodeSection, compile_region, toolchain};

const ROUNDED: f32 = 4e-6;

fn has_sum(case: &Case) -> bool {
    let is_sum = |inst: &Inst| matches!(inst, Inst::RowSum { .. } | Inst::UnitSum { .. });
    case.region.body.iter().any(is_sum)
}

/// Sums and exponentials are rounded otherwise than by the interpreter.
fn tolerance(case: &Case) -> f32 {
    let is_exp = |inst: &Inst| matches!(inst, Inst::Unary { op: Unary::Exp, .. });
    if has_sum(case) || case.region.body.iter().any(is_exp) {
        ROUNDED
    } else {
        0.0
    }
}

#[test]
fn regions_do_what_the_interpreter_does() {
    for case in regions::model() {
        let memory = Memory::new(&case, floats(case.region.cols as u64));
        check(&case, &memory, tolerance(&case));
    }
}

/// The sums of small integers are exact: to the bit but for sums of what isn't whole.
#[test]
fn regions_that_cancel_do_what_the_interpreter_does() {
    for case in regions::cancelling() {
        let mut next = floats(case.region.cols as u64);
        let memory = Memory::new(&case, || next().round());
        let tolerance = if case.region.has_row_sum() {
            ROUNDED
        } else {
            0.0
        };
        check(&case, &memory, tolerance);
    }
}

/// Sums that are rounded don't depend on how calls are cut.
#[test]
fn calls_in_parts_give_the_same_bits() {
    for case in regions::cancelling() {
        let memory = Memory::new(&case, floats(case.region.cols as u64));
        super::check_parts(&case, &memory);
    }
}

/// Infinities, NaNs, zeros and numbers that are barely or not normal.
#[test]
fn regions_survive_special_numbers() {
    const SPECIAL: [f32; 14] = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
        -1e-40,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::MIN,
        65_519.0,
        65_520.0,
        -1e-7,
        5.960_464_5e-8,
    ];
    for rarity in [1, 5, 97] {
        for case in regions::all() {
            let mut ordinary = floats(rarity);
            let mut count = 0;
            let memory = Memory::new(&case, || {
                count += 1;
                if count % rarity == 0 {
                    SPECIAL[(count / rarity) as usize % SPECIAL.len()]
                } else {
                    ordinary()
                }
            });
            // A sum's order decides whether it overflows on the way.
            if !has_sum(&case) {
                check(&case, &memory, tolerance(&case));
            } else {
                let mut memory = memory;
                let code = super::compiled(&case);
                memory.call(&case, code.function(0), &super::everything(&case));
            }
        }
    }
}

#[test]
fn a_call_without_rows_or_columns_does_nothing() {
    for case in regions::all() {
        let before = Memory::new(&case, floats(3));
        let code = super::compiled(&case);
        let mut after = before.clone();
        let mut range = super::everything(&case);
        range.rows = 2..2;
        after.call(&case, code.function(0), &range);
        if !case.region.has_row_sum() {
            range.rows = 0..2;
            range.cols = 0..0;
            after.call(&case, code.function(0), &range);
        }
        assert_eq!(after.difference(&before), None, "{}", case.region.name);
    }
}

#[test]
fn compiling_twice_gives_the_same_bytes() {
    for case in regions::all() {
        let once = compile_region(&case.region, &case.context()).expect("compiles");
        let twice = compile_region(&case.region, &case.context()).expect("compiles");
        assert_eq!(once, twice, "{}", case.region.name);
    }
}

#[test]
fn the_section_holds_equal_functions_once() {
    let mut section = CodeSection::new();
    let first = regions::rms_norm_quant(DType::Q8, 576);
    let mut second = regions::rms_norm_quant(DType::Q8, 576);
    second.region.name = "the next layer's".into();
    second.weights.insert(0, second.weights[0].clone());
    second.region.operands[1] = bundle_format::region::Operand::Weight(1);
    let other = regions::swiglu_quant(DType::Q8, 1536);
    let mut add = |case: &Case| {
        section
            .add_region(&case.region, &case.context())
            .expect("compiles")
    };
    let (a, b, c) = (add(&first), add(&other), add(&second));
    assert_eq!(a, c);
    assert_eq!(a.offset, 0);
    assert_eq!(b.offset, a.len.next_multiple_of(64));
    let bytes = section.finish();
    assert_eq!(bytes.len() as u64, (b.offset + b.len).next_multiple_of(64));
    assert!(
        bytes[a.len as usize..b.offset as usize]
            .iter()
            .all(|b| *b == 0xCC)
    );
    let alone = compile_region(&other.region, &other.context()).expect("compiles");
    assert_eq!(bytes[b.offset as usize..][..b.len as usize], alone);
}

/// Constants that compare equal, but aren't the same.
#[test]
fn the_section_tells_zeros_apart() {
    let of = |zero: f32| {
        let mut case = Case::new("zero", 1, 1, 8);
        let out = case.buffer(DType::F32, 8);
        let x = case.constant(zero);
        case.store(out, regions::at(1, 0), x);
        case
    };
    let mut section = CodeSection::new();
    let mut add = |case: Case| {
        section
            .add_region(&case.region, &case.context())
            .expect("compiles")
    };
    assert_ne!(add(of(0.0)), add(of(-0.0)));
}

#[test]
fn the_toolchain_has_a_version() {
    let toolchain = toolchain();
    let version = toolchain.strip_prefix("cranelift ").expect("a name");
    assert_eq!(version.split('.').count(), 3, "{version}");
}
