//! Generated code against the reference interpreter.

mod arithmetic;
mod exec;
mod fuzz;
mod memory;
mod passes;
mod real;
mod regions;
mod rules;

use kernels::reference::TileRange;

use self::exec::Code;
use self::memory::{Memory, ROWS};
use self::regions::Case;
use super::{RegionContext, compile_region};

/// Compiles a case.
fn compiled(case: &Case) -> Code {
    let bytes = compile_region(&case.region, &case.context()).expect("the region compiles");
    Code::new(&bytes)
}

/// All rows and columns.
fn everything(case: &Case) -> TileRange {
    TileRange {
        rows: 0..ROWS,
        cols: 0..case.region.cols as usize,
    }
}

/// Random floats of moderate size: a fixed sequence for each seed.
fn floats(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state = state
            .wrapping_mul(0x5851_F42D_4C95_7F2D)
            .wrapping_add(0x1405_7B7E_F767_814F);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 8.0
    }
}

/// Checks that the code does what the interpreter does, to within a relative `tolerance` (0: to the bit), and the same to
/// the bit when called in parts. Returns the memory that the code left.
fn check(case: &Case, memory: &Memory, tolerance: f32) -> Memory {
    let name = &case.region.name;
    let code = compiled(case);
    let all = everything(case);
    let mut expected = memory.clone();
    expected.interpret(case, &all);
    let mut found = memory.clone();
    found.call(case, code.function(0), &all);
    if let Some(difference) = found.compare(&expected, tolerance) {
        panic!(
            "{name} of {} columns: {difference} (code, interpreter)",
            case.region.cols
        );
    }

    let parts = in_parts(case, memory, &code);
    if let Some(difference) = parts.difference(&found) {
        panic!(
            "{name} of {} columns, in parts: {difference} (parts, whole)",
            case.region.cols
        );
    }
    found
}

/// Checks that the code does the same to the bit when called in parts.
fn check_parts(case: &Case, memory: &Memory) {
    let code = compiled(case);
    let mut whole = memory.clone();
    whole.call(case, code.function(0), &everything(case));
    let parts = in_parts(case, memory, &code);
    let name = &case.region.name;
    assert_eq!(parts.difference(&whole), None, "{name}");
}

/// What calls for parts of the iteration space leave.
fn in_parts(case: &Case, memory: &Memory, code: &Code) -> Memory {
    let mut parts = memory.clone();
    let cols = case.region.cols as usize;
    let unit = case.region.unit as usize;
    let step = if case.region.has_row_sum() {
        cols
    } else {
        (cols / 3 + 1).next_multiple_of(unit)
    };
    for rows in [13..ROWS, 0..1, 1..13] {
        for start in (0..cols).step_by(step) {
            let range = TileRange {
                rows: rows.clone(),
                cols: start..cols.min(start + step),
            };
            parts.call(case, code.function(0), &range);
        }
    }
    parts
}
