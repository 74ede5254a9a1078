//! Draws from a vocabulary of 262144 tokens.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use fastrun::device::{Penalties, SampleParams, TokenMask};
use fastrun::sampler::{Context, Sampler, uniform};

const VOCAB: u32 = 262_144;

fn draws(c: &mut Criterion) {
    let logit = |i| -> f32 { ((0..4).map(|j| uniform(j, i)).sum::<f64>() as f32 - 2.0) * 5.0 };
    let mut logits: Vec<f32> = (0..VOCAB).map(logit).collect();
    // A model expects some tokens much more than the rest.
    for i in 0..60 {
        logits[(i * 5003 % VOCAB) as usize] = 22.0 - 0.2 * i as f32;
    }
    let params = SampleParams::default;
    let mask = TokenMask::pending();
    mask.set(Ok(vec![0x5af0_33cc; VOCAB as usize / 32].into()));
    let penalties = Penalties {
        repeat: 1.1,
        ..Penalties::default()
    };
    let recent: Vec<u32> = (0..64).map(|i| i * 37).collect();
    let plain = Context::default();
    let masked = Context {
        mask: Some(&mask),
        ..plain
    };
    let recalled = Context {
        recent: &recent,
        ..plain
    };
    let cases = [
        (
            "greedy",
            SampleParams {
                temperature: 0.0,
                ..params()
            },
            plain,
        ),
        ("temperature", params(), plain),
        (
            "top_k 40",
            SampleParams {
                top_k: 40,
                ..params()
            },
            plain,
        ),
        (
            "top_p 0.95",
            SampleParams {
                top_p: 0.95,
                ..params()
            },
            plain,
        ),
        (
            "typical_p 0.95",
            SampleParams {
                typical_p: 0.95,
                ..params()
            },
            plain,
        ),
        (
            "min_p 0.05",
            SampleParams {
                min_p: 0.05,
                ..params()
            },
            plain,
        ),
        (
            "penalties",
            SampleParams {
                penalties,
                ..params()
            },
            recalled,
        ),
        ("mask", params(), masked),
    ];
    let mut group = c.benchmark_group("sample");
    let mut sampler = Sampler::default();
    for (name, params, context) in cases {
        let mut position = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                position += 1;
                sampler.sample(black_box(&logits), &params, &context, position)
            })
        });
    }
    group.bench_function("logprobs 20", |b| {
        b.iter(|| sampler.logprobs(black_box(&logits), Some(5), 20))
    });
}

criterion_group!(benches, draws);
criterion_main!(benches);
