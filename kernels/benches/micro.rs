//! Throughput of every microkernel at the best level of this processor.
//!
//! `cargo bench -p kernels` prints criterion's figures and, for each bench, the best time as GMAC/s or GB/s, operations a
//! cycle and the fraction of the ceiling that NOTES.md derives. The clock is measured beside each bench, with a chain of dependent
//! multiplications.

mod product;

use std::time::{Duration, Instant};

use bundle_format::plan::{DType, Encoding, KV_BLOCK, KvDType};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::abi::{AttentionArgs, EmbedArgs, MicroFn, RopeTableArgs, id};
use kernels::cpu::Level;
use kernels::quant::ENCODINGS;
use kernels::{cpu, pack};

use product::{Product, clock, products, words};

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

/// At AVX-512, cycles a token of 16 features by 32 k in a tile of some tokens: its operations of 512 bits that only one a
/// cycle can issue, which are products, multiplications and fused multiply-adds. None for other levels and for what AVX-512 has no
/// code of its own for.
fn avx512_cycles(encoding: Encoding, activations: DType, tokens: f64) -> Option<f64> {
    if Level::detect() != Level::Avx512 {
        return None;
    }
    let dots = if activations == DType::Q16 { 16.0 } else { 8.0 };
    // Sums of signed weights, once a tile.
    let signed = 8.0 / tokens;
    Some(match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => return None,
        Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q5_0 | Encoding::Q5_1 | Encoding::MXFP4 => {
            dots + 3.0
        }
        Encoding::Q4_K | Encoding::Q5_K => dots + 4.0,
        Encoding::Q8_0 | Encoding::IQ4_NL => dots + 2.0 + signed,
        Encoding::IQ4_XS => dots + 3.0 + signed,
        Encoding::Q3_K | Encoding::Q6_K => dots + 4.0 + signed,
        // And the scales, multiplied into its weights once a tile.
        Encoding::Q2_K => 2.0 * dots + 4.0 + 8.0 / tokens,
    })
}

/// MACs a cycle of a full tile.
fn prefill_ceiling(encoding: Encoding, activations: DType) -> f64 {
    if let Some(cycles) = avx512_cycles(encoding, activations, 8.0) {
        return 16.0 * 32.0 / cycles;
    }
    let (q8, q16) = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => return 16.0,
        Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q4_K => (42.0, 25.0),
        Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q5_K => (33.3, 21.0),
        Encoding::MXFP4 => (36.9, 22.4),
        Encoding::Q8_0 => (27.3, 19.6),
        Encoding::Q6_K => (24.1, 15.2),
        Encoding::Q3_K => (23.7, 15.1),
        Encoding::IQ4_NL => (24.2, 17.9),
        Encoding::IQ4_XS => (24.0, 17.1),
        Encoding::Q2_K => (22.8, 12.6),
    };
    if activations == DType::Q16 { q16 } else { q8 }
}

/// Weight bytes a cycle for a lone token, from the L1 cache.
fn decode_ceiling(encoding: Encoding, activations: DType) -> f64 {
    if let Some(cycles) = avx512_cycles(encoding, activations, 1.0) {
        let bytes = pack::packed_len(encoding, 16, 256).expect("whole blocks");
        return bytes as f64 / 8.0 / cycles;
    }
    let (q8, q16) = match encoding {
        Encoding::F32 => return 56.9,
        Encoding::F16 => return 28.4,
        Encoding::BF16 => return 21.3,
        Encoding::Q4_0 => (15.5, 10.9),
        Encoding::Q4_1 => (16.5, 12.1),
        Encoding::Q4_K => (15.3, 11.2),
        Encoding::Q5_0 => (11.7, 9.0),
        Encoding::Q5_1 => (12.8, 9.8),
        Encoding::Q5_K => (12.0, 9.2),
        Encoding::MXFP4 => (11.3, 8.2),
        Encoding::Q8_0 => (24.1, 15.3),
        Encoding::Q6_K => (10.1, 6.9),
        Encoding::Q3_K => (5.3, 3.7),
        Encoding::IQ4_NL => (9.0, 6.5),
        Encoding::IQ4_XS => (8.4, 5.9),
        Encoding::Q2_K => (5.6, 3.5),
    };
    if activations == DType::Q16 { q16 } else { q8 }
}

/// Tiles of 64 tokens by 64 features, at the depths of small and large models.
fn prefill(c: &mut Criterion) {
    for (encoding, dtype) in products() {
        for k in [256, 512, 1536, 4096, 14336] {
            let product = Product::new(Level::detect(), encoding, dtype, 64, 64, k);
            let work = Work {
                amount: (64 * 64 * k) as f64,
                unit: "MAC",
                ceiling: prefill_ceiling(encoding, dtype),
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
            let bytes =
                pack::packed_len(encoding, features as u64, k as u64).expect("whole blocks");
            let work = Work {
                amount: bytes as f64,
                unit: "B",
                ceiling: decode_ceiling(encoding, dtype),
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
    let MicroFn::Attention(func) = id::attention(dtype)
        .and_then(cpu::lookup)
        .expect("in the table")
        .func
    else {
        panic!("not an attention")
    };
    for (name, head_dim, position, tokens) in [
        ("prefill/64", 64usize, 448usize, 64usize),
        ("prefill/128", 128, 448, 64),
        ("decode/64", 64, 2047, 1),
        ("decode/128", 128, 2047, 1),
    ] {
        let heads = 3;
        let end = position + tokens;
        let block = dtype.head_bytes(head_dim as u32) as usize;
        let pool = words(end.div_ceil(KV_BLOCK) * block);
        let table: Vec<u32> = (0..end.div_ceil(KV_BLOCK) as u32).collect();
        let q = vec![0.01f32; tokens * heads * head_dim];
        let mut out = vec![0.0f32; q.len()];
        let args = AttentionArgs {
            q: q.as_ptr(),
            q_stride: (heads * head_dim) as u64,
            out: out.as_mut_ptr(),
            out_stride: (heads * head_dim) as u64,
            keys: pool.as_ptr().cast(),
            values: pool.as_ptr().cast(),
            block_stride: block as u64,
            table: table.as_ptr(),
            position: position as u64,
            tokens: tokens as u64,
            head0: 0,
            heads: heads as u64,
            group_size: heads as u64,
            head_dim: head_dim as u64,
            window: u64::MAX,
            scale: 0.125,
        };
        let pairs: usize = (position + 1..=end).sum();
        let work = Work {
            amount: (pairs * heads * head_dim * 2) as f64,
            unit: "MAC",
            // Multiplications a cycle: of two f32 vectors, or of two 16-bit ones.
            ceiling: match dtype {
                KvDType::F16 => 16.0,
                KvDType::Q8_0 => 32.0,
                other => panic!("{other:?} is for GPUs"),
            },
        };
        let name = format!("{dtype:?}/{name}");
        // SAFETY: buffers of the sizes in `args`.
        bench(c, "attention", &name, work, || unsafe { func(&args) });
    }
}

/// 64 rows of a table that fits the L2 cache, in elements.
fn embed(c: &mut Criterion) {
    for encoding in ENCODINGS {
        let MicroFn::Embed(func) = cpu::lookup(id::embed(encoding)).expect("in the table").func
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
