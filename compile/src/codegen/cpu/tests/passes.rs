//! How regions are cut into passes over a row.

use bundle_format::plan::DType;
use bundle_format::region::{Binary, Inst, Val};

use super::memory::Memory;
use super::regions::{self, Case, at};
use super::{check, floats};
use crate::codegen::cpu::schedule::{Schedule, Step};

fn schedule(case: &Case) -> Schedule {
    Schedule::of(&case.region).expect("the region stores something")
}

/// The pass that does the store at this index of the body.
fn pass_of(schedule: &Schedule, store: usize) -> Option<usize> {
    let does = |step: &Step| *step == Step::Store(store);
    schedule
        .passes
        .iter()
        .position(|pass| pass.steps.iter().any(does))
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
    let evaluated = |pass: usize| schedule.passes[pass].steps.contains(&Step::Eval(sum));
    assert!(evaluated(0) && !evaluated(1));
    let reloads =
        |step: &&Step| matches!(step, Step::Reload { value, from: 0, .. } if *value == sum);
    assert_eq!(schedule.passes[1].steps.iter().filter(reloads).count(), 1);
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
