//! Time an element of generated regions, in cache: `cargo bench -p fastc --bench regions`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastc::codegen::cpu::{Layout, RegionContext, compile_region};

#[path = "../src/codegen/cpu/tests/exec.rs"]
mod exec;
#[path = "../src/codegen/cpu/tests/regions.rs"]
mod regions;

/// Rows of a call.
const ROWS: usize = 4;

/// Bytes of a KV pool: the slots are all in its first block.
const POOL: usize = 1 << 20;

fn region_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("regions");
    let cases = regions::model();
    for case in cases.iter().filter(|case| case.region.cols >= 192) {
        let context = case.context();
        let bytes = compile_region(&case.region, &context).expect("the region compiles");
        let code = exec::Code::new(&bytes);
        let function = code.function(0);
        let mut operands: Vec<Vec<f32>> = context.operands.iter().map(operand).collect();
        let args: Vec<*mut u8> = operands.iter_mut().map(|o| o.as_mut_ptr().cast()).collect();
        let mut tile = numbers(ROWS * case.tile_stride as usize);
        let iterations = case.region.cols / case.region.unit * case.region.width;
        group.throughput(Throughput::Elements(ROWS as u64 * iterations as u64));
        let id = format!("{}/{}", case.region.name, case.region.cols);
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                // SAFETY: the operands and the tile hold `ROWS` rows of what the context says.
                unsafe {
                    function(
                        args.as_ptr(),
                        tile.as_mut_ptr(),
                        0,
                        ROWS as u64,
                        0,
                        case.region.cols as u64,
                    )
                }
            })
        });
    }
    group.finish();
}

/// Memory for an operand.
fn operand(layout: &Layout) -> Vec<f32> {
    match *layout {
        Layout::F32 { row_bytes, .. } | Layout::Quant { row_bytes, .. } => {
            numbers(ROWS * row_bytes as usize / 4)
        }
        Layout::Vector { cols } => numbers(cols as usize),
        Layout::Indices => vec![0.0; ROWS],
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
