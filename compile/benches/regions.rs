//! Time an element of generated regions, in cache: `cargo bench -p fastc --bench regions`.
//!
//! Besides criterion's figures it prints the best time as cycles an element (an iteration of the region's body). The clock is
//! measured beside each bench, with a chain of dependent multiplications.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastc::codegen::cpu::{Layout, RegionContext, compile_region};

#[path = "../src/codegen/cpu/tests/exec.rs"]
mod exec;
#[path = "../src/codegen/cpu/tests/regions.rs"]
mod regions;

/// Rows of a call: of a tile of a large step, and of a launch of its own.
const TILE_ROWS: usize = 32;
const ROWS: usize = 4;

/// Columns of a matmul's tile.
const TILE_COLS: u32 = 64;

/// Bytes of a KV pool: the slots are all in its first block.
const POOL: usize = 1 << 20;

/// Calls that are timed together for the best time: far above the timer's own cost, far below a time slice of a busy machine.
const STRETCH: u32 = 10;

fn region_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("regions");
    let cases = regions::all().into_iter();
    for mut case in cases.filter(|case| case.region.cols >= 192) {
        let (rows, cols) = match case.region.reads_tile() {
            true => (TILE_ROWS, TILE_COLS.next_multiple_of(case.region.unit)),
            false => (ROWS, case.region.cols),
        };
        let cols = cols.min(case.region.cols);
        case.tile_stride = cols;
        let context = case.context();
        let bytes = compile_region(&case.region, &context).expect("the region compiles");
        let code = exec::Code::new(&bytes);
        let function = code.function(0);
        let mut operands: Vec<Vec<f32>> = context.operands.iter().map(operand).collect();
        let args: Vec<*mut u8> = operands.iter_mut().map(|o| o.as_mut_ptr().cast()).collect();
        let mut tile = numbers(rows * case.tile_stride as usize);
        let iterations = cols / case.region.unit * case.region.width;
        group.throughput(Throughput::Elements(rows as u64 * iterations as u64));
        let id = format!("{}/{}", case.region.name, case.region.cols);
        let cols = cols as u64;
        let mut call = || {
            // SAFETY: the operands and the tile hold `rows` rows of what the context says.
            unsafe { function(args.as_ptr(), tile.as_mut_ptr(), 0, rows as u64, 0, cols) }
        };
        let mut best = f64::INFINITY;
        group.bench_function(&id, |bencher| {
            bencher.iter_custom(|count| {
                let mut total = Duration::ZERO;
                for _ in 0..count {
                    let start = Instant::now();
                    (0..STRETCH).for_each(|_| call());
                    let elapsed = start.elapsed() / STRETCH;
                    best = best.min(elapsed.as_secs_f64());
                    total += elapsed;
                }
                total
            })
        });
        if best.is_infinite() {
            continue; // filtered out
        }
        let cycles = best * clock() / (rows * iterations as usize) as f64;
        println!("regions/{id}: {cycles:.2} cycles an element");
    }
    group.finish();
}

/// Cycles a second: a multiplication takes three and an addition one, on every x86 of the last decade.
fn clock() -> f64 {
    let (factor, summand) = (black_box(0x9e37_79b9_7f4a_7c15u64), black_box(7u64));
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let mut x = 1u64;
        for _ in 0..1_000_000 {
            x = x.wrapping_mul(factor).wrapping_add(summand);
        }
        black_box(x);
        best = best.min(start.elapsed().as_secs_f64());
    }
    4.0 * 1e6 / best
}

/// Memory for an operand.
fn operand(layout: &Layout) -> Vec<f32> {
    match *layout {
        Layout::F32 { row_bytes, .. } | Layout::Quant { row_bytes, .. } => {
            numbers(TILE_ROWS * row_bytes as usize / 4)
        }
        Layout::Vector { cols } => numbers(cols as usize),
        Layout::Indices { .. } => vec![0.0; TILE_ROWS],
        Layout::Kv { .. } => vec![0.0; POOL / 4],
    }
}

/// Numbers between -4 and 4 without a pattern.
fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (i * 7919 % 1024) as f32 / 128.0 - 4.0)
        .collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(700));
    targets = region_benches
}
criterion_main!(benches);
