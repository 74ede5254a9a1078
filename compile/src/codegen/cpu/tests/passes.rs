//! How regions are cut into passes over a row.

use bundle_format::plan::DType;
use bundle_format::region::{Binary, Inst, Val};

use super::memory::Memory;
use super::regions::{self, Case, at};
use super::{check, floats};
use crate::codegen::cpu::schedule::{Phase, Schedule, Step};

fn schedule(case: &Case) -> Schedule {
    Schedule::of(&case.region).expect("the region stores something")
}

/// The pass that does the store at this index of the body.
fn pass_of(schedule: &Schedule, store: usize) -> Option<usize> {
    let stores = |phase: &Phase| phase.steps.contains(&Step::Store(store));
    schedule
        .passes
        .iter()
        .position(|pass| pass.phases.iter().any(stores))
}

#[test]
fn what_a_former_pass_stored_is_loaded_back() {
    let case = regions::add_rms_norm_quant(DType::Q8, 576);
    let schedule = schedule(&case);
    assert_eq!(schedule.passes.len(), 2);
    let sum: Val = 2;
    assert!(matches!(
        case.region.body[sum as usize],
        Inst::Binary {
            op: Binary::Add,
            ..
        }
    ));
    assert_eq!(pass_of(&schedule, 3), Some(0));
    let evaluated = |pass: usize| {
        schedule.passes[pass].phases[0]
            .steps
            .contains(&Step::Eval(sum))
    };
    assert!(evaluated(0) && !evaluated(1));
    let reloads =
        |step: &&Step| matches!(step, Step::Reload { value, from: 0, .. } if *value == sum);
    assert_eq!(
        schedule.passes[1].phases[0]
            .steps
            .iter()
            .filter(reloads)
            .count(),
        1
    );
}

#[test]
fn a_store_waits_for_the_last_load_of_what_it_overwrites() {
    let mut case = Case::new("wait", 1, 1, 37);
    let (x, y) = (case.buffer(DType::F32, 37), case.buffer(DType::F32, 37));
    let old = case.load(x, at(1, 0));
    let sum = case.row_sum(old);
    let scaled = case.binary(Binary::Mul, old, sum);
    let doubled = case.binary(Binary::Add, old, old);
    case.store(x, at(1, 0), doubled);
    case.store(y, at(1, 0), scaled);
    let schedule = schedule(&case);
    assert_eq!(schedule.passes.len(), 2);
    assert_eq!(pass_of(&schedule, 4), Some(1));
    let mut next = floats(1);
    let memory = Memory::new(&case, || next().round());
    check(&case, &memory, 0.0);
}

/// A sum of what depends on a sum, and a store that only the last pass can do.
#[test]
fn sums_of_sums_take_a_pass_each() {
    let mut case = Case::new("sums", 5, 5, 20);
    let (x, y) = (case.buffer(DType::F32, 20), case.buffer(DType::F32, 20));
    let a = case.load(x, at(5, 0));
    let first = case.row_sum(a);
    let centred = case.binary(Binary::Sub, a, first);
    let second = case.row_sum(centred);
    let unused = case.row_sum(second);
    case.binary(Binary::Add, unused, unused);
    let result = case.binary(Binary::Add, second, a);
    case.store(y, at(5, 0), first);
    case.store(y, at(5, 0), result);
    let schedule = schedule(&case);
    assert_eq!(schedule.passes.len(), 3);
    assert_eq!(pass_of(&schedule, 7), Some(1));
    assert_eq!(pass_of(&schedule, 8), Some(2));
    let sums: Vec<_> = schedule
        .passes
        .iter()
        .map(|pass| pass.sums.clone())
        .collect();
    assert_eq!(sums, [vec![first], vec![second], vec![]]);
    let mut next = floats(2);
    let memory = Memory::new(&case, || next().round());
    check(&case, &memory, 0.0);
}

/// What is the same for a unit is evaluated once a unit.
#[test]
fn a_head_norm_takes_two_phases() {
    let case = regions::head_norm(4, 64);
    let schedule = schedule(&case);
    let [pass] = &schedule.passes[..] else {
        panic!("{schedule:?}");
    };
    let [sum, scale] = &pass.phases[..] else {
        panic!("{pass:?}");
    };
    assert_eq!((&sum.sums[..], &sum.once[..]), (&[2][..], &[][..]));
    assert!(sum.steps.contains(&Step::Accumulate { sum: 2, x: 1 }));
    let unary_and_means: Vec<Val> = (4..9).filter(|&i| i != 5).collect();
    assert_eq!(scale.once, unary_and_means);
    assert!(scale.steps.contains(&Step::Eval(0)) && !scale.steps.contains(&Step::Eval(1)));
}

#[test]
fn the_second_of_two_row_sums_is_of_what_was_stored() {
    for (dtype, cols) in [(DType::Q11, 640), (DType::Q14, 640), (DType::Q8K, 768)] {
        check_sums_of_what_was_stored(&regions::norm_add_norm_quant(dtype, cols));
    }
}

fn check_sums_of_what_was_stored(case: &Case) {
    let schedule = schedule(case);
    assert_eq!(schedule.passes.len(), 3);
    let stores: Vec<_> = (0..case.region.body.len())
        .filter_map(|i| pass_of(&schedule, i))
        .collect();
    assert_eq!(stores, [1, 2]);
    let steps = &schedule.passes[2].phases[0].steps;
    assert!(
        matches!(steps[0], Step::Reload { from: 0, .. }),
        "{steps:?}"
    );
}

/// Exact whatever the order of sums, as long as every value is what it should be.
fn check_integers(case: &Case, largest: f32) {
    let mut next = floats(3);
    let memory = Memory::new(case, || (next() * largest / 8.0).round());
    check(case, &memory, 0.0);
}

/// What a phase stored is loaded back; a store waits for the last phase that loads what it overwrites.
#[test]
fn phases_of_a_unit_share_memory() {
    let mut case = Case::new("phases", 40, 40, 120);
    let [x, y, z] = [(); 3].map(|()| case.buffer(DType::F32, 120));
    let (a, b) = (case.load(x, at(40, 0)), case.load(y, at(40, 0)));
    let both = case.binary(Binary::Add, a, b);
    case.store(y, at(40, 0), both);
    let sum = case.unit_sum(both);
    let doubled = case.binary(Binary::Add, a, a);
    case.store(x, at(40, 0), doubled);
    let less = case.binary(Binary::Sub, both, sum);
    let more = case.binary(Binary::Mul, a, less);
    case.store(z, at(40, 0), more);
    let schedule = schedule(&case);
    let [sums, stores] = &schedule.passes[0].phases[..] else {
        panic!("{schedule:?}");
    };
    assert!(sums.steps.contains(&Step::Store(3)) && !sums.steps.contains(&Step::Store(6)));
    let reload = Step::Reload {
        value: both,
        from: y,
        col: at(40, 0),
    };
    assert!(stores.steps.contains(&reload) && stores.steps.contains(&Step::Store(6)));
    check_integers(&case, 8.0);
}

/// A unit sum of what depends on a unit sum, a row sum of that, and unit sums behind it that need the first ones again.
#[test]
fn unit_sums_and_row_sums_mix() {
    for (unit, width) in [(20, 20), (9, 4), (200, 128), (1, 1)] {
        let cols = unit * 3;
        let mut case = Case::new("mix", unit, width, cols);
        let (x, y) = (case.buffer(DType::F32, cols), case.buffer(DType::F32, cols));
        let a = case.load(x, at(unit, 0));
        let first = case.unit_sum(a);
        let less = case.binary(Binary::Sub, a, first);
        let second = case.unit_sum(less);
        let row = case.row_sum(second);
        // A whole number again: the row's sum is of values that are the same for a unit.
        let n = case.constant(width as f32);
        let row = case.binary(Binary::Div, row, n);
        let more = case.binary(Binary::Add, a, row);
        let third = case.unit_sum(more);
        let all = case.binary(Binary::Add, third, second);
        let all = case.binary(Binary::Add, all, less);
        case.store(y, at(unit, 0), all);
        let last = case.row_sum(third);
        let result = case.binary(Binary::Sub, first, last);
        case.store(x, at(unit, 0), result);
        let schedule = schedule(&case);
        let phases: Vec<usize> = schedule.passes.iter().map(|p| p.phases.len()).collect();
        assert_eq!(phases, [3, 3, 2]);
        assert_eq!(pass_of(&schedule, 11), Some(1));
        assert_eq!(pass_of(&schedule, 14), Some(2));
        // Ones and zeros: all sums stay below 2^24.
        check_integers(&case, 0.6);
    }
}
