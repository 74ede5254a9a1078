//! Throughput of every microkernel at the best level of this processor.
//!
//! `cargo bench -p kernels` prints criterion's figures and, for each bench, the best time as GMAC/s or GB/s, operations a
//! cycle and the fraction of the ceiling that NOTES.md derives. The clock is measured beside each bench, with a chain of dependent
//! multiplications.

mod product;

use std::time::{Duration, Instant};

use bundle_format::plan::{KvDType, WeightLayout};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::abi::{EmbedArgs, MicroFn, RopeTableArgs, id};
use kernels::cpu::Level;
use kernels::quant::ENCODINGS;
use kernels::{cpu, pack};

use product::attention::{ATTENTIONS, Attention};
use product::{Product, ceiling, clock, products, weight_bytes, words};

criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(600));
    targets = prefill, decode, attention, embed, rope_table
);
criterion_main!(benches);

/// What one call does, and the most of it that the level's code could do in a cycle (NOTES.md).
struct Work {
    amount: f64,
    unit: &'static str,
    ceiling: f64,
}

/// Shortest stretch that is timed for the best time, in seconds: far above the timer's own cost, far below a time slice of
/// a busy machine.
const STRETCH: f64 = 20e-6;

/// Runs a bench and prints the best of its times against the ceiling.
fn bench(c: &mut Criterion, group: &str, name: &str, work: Work, mut call: impl FnMut()) {
    call();
    let start = Instant::now();
    call();
    let stretch = (STRETCH / start.elapsed().as_secs_f64()).ceil() as u64;

    let mut best = f64::INFINITY;
    let mut group_of = c.benchmark_group(group);
    group_of.throughput(Throughput::Elements(work.amount as u64));
    group_of.bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|n| {
            let mut total = Duration::ZERO;
            for _ in 0..n {
                let start = Instant::now();
                for _ in 0..stretch {
                    call();
                }
                let elapsed = start.elapsed() / stretch as u32;
                best = best.min(elapsed.as_secs_f64());
                total += elapsed;
            }
            total
        });
    });
    group_of.finish();
    if best.is_infinite() {
        // The command line's filter left it out.
        return;
    }
    let hertz = clock();
    let rate = work.amount / best;
    let a_cycle = rate / hertz;
    println!(
        "{group}/{name}: {:.2} G{}/s, {a_cycle:.2} a cycle at {:.2} GHz, {:.0}% of the ceiling of {:.1}",
        rate / 1e9,
        work.unit,
        hertz / 1e9,
        100.0 * a_cycle / work.ceiling,
        work.ceiling
    );
}

/// Tiles of 64 tokens by 64 features, at the depths of small and large models.
fn prefill(c: &mut Criterion) {
    for (encoding, dtype) in products() {
        for k in [256, 512, 1536, 4096, 14336] {
            let product = Product::new(Level::detect(), encoding, dtype, 64, 64, k);
            let work = Work {
                amount: (64 * 64 * k) as f64,
                unit: "MAC",
                ceiling: ceiling::prefill(Level::detect(), encoding, dtype),
            };
            bench(
                c,
                "prefill",
                &format!("{encoding:?}x{dtype:?}/{k}"),
                work,
                || product.call(),
            );
        }
    }
}

/// A lone token: weights from the L1 cache, and from memory.
fn decode(c: &mut Criterion) {
    for (encoding, dtype) in products() {
        for (name, features, k) in [("L1", 32, 256), ("memory", 65536, 1536)] {
            let product = Product::new(Level::detect(), encoding, dtype, 1, features, k);
            let bytes = weight_bytes(encoding, dtype, features, k);
            let work = Work {
                amount: bytes as f64,
                unit: "B",
                ceiling: ceiling::decode(Level::detect(), encoding, dtype),
            };
            bench(
                c,
                "decode",
                &format!("{encoding:?}x{dtype:?}/{name}"),
                work,
                || product.call(),
            );
        }
    }
}

/// Three heads of one KV head: a chunk of 64 tokens behind 448, and a lone token behind 2047.
fn attention(c: &mut Criterion) {
    for dtype in [KvDType::F16, KvDType::Q8_0] {
        attention_of(c, dtype);
    }
}

fn attention_of(c: &mut Criterion, dtype: KvDType) {
    for (name, head_dim, position, tokens) in ATTENTIONS {
        let attention = Attention::new(Level::detect(), dtype, head_dim, position, tokens);
        let work = Work {
            amount: attention.macs(),
            unit: "MAC",
            ceiling: ceiling::attention(Level::detect(), dtype),
        };
        let name = format!("{dtype:?}/{name}");
        bench(c, "attention", &name, work, || attention.call());
    }
}

/// 64 rows of a table that fits the L2 cache, in elements.
fn embed(c: &mut Criterion) {
    for encoding in ENCODINGS {
        let MicroFn::Embed(func) = cpu::lookup(id::embed(encoding, WeightLayout::Interleave8))
            .expect("in the table")
            .func
        else {
            panic!("not an embedding")
        };
        let (rows, k) = (64, 512);
        let w = words(pack::packed_len(encoding, 256, k).expect("whole blocks") as usize);
        let tokens: Vec<u32> = (0..rows).map(|i| i * 37 % 256).collect();
        let mut out = vec![0.0f32; rows as usize * k as usize];
        let args = EmbedArgs {
            tokens: tokens.as_ptr(),
            w: w.as_ptr().cast(),
            out: out.as_mut_ptr(),
            out_stride: k,
            k,
            rows: rows.into(),
            scale: 1.0,
        };
        let work = Work {
            amount: (rows as u64 * k) as f64,
            unit: "element",
            ceiling: 8.0,
        };
        // SAFETY: buffers of the sizes in `args`.
        bench(c, "embed", &format!("{encoding:?}"), work, || unsafe {
            func(&args)
        });
    }
}

/// 512 positions of 32 angles, in angles.
fn rope_table(c: &mut Criterion) {
    let MicroFn::RopeTable(func) = cpu::lookup(id::ROPE_TABLE).expect("in the table").func else {
        panic!("not a rotary table")
    };
    let positions: Vec<u32> = (0..512).collect();
    let freqs: Vec<f32> = (0..32).map(|i| 0.75f32.powi(i)).collect();
    let mut out = vec![0.0f32; 512 * 64];
    let args = RopeTableArgs {
        positions: positions.as_ptr(),
        freqs: freqs.as_ptr(),
        out: out.as_mut_ptr(),
        out_stride: 64,
        n: 32,
        rows: 512,
        mscale: 1.0,
    };
    let work = Work {
        amount: 512.0 * 32.0,
        unit: "angle",
        ceiling: 0.4,
    };
    // SAFETY: buffers of the sizes in `args`.
    bench(c, "rope_table", "512x32", work, || unsafe { func(&args) });
}
