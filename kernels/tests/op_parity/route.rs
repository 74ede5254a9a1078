//! The experts that tokens go to.

use kernels::abi::{MicroFn, RouteArgs};
use kernels::cpu::MicroKernel;
use kernels::reference::{RouteSpec, choose};

use crate::data::{Random, bits};

/// (experts, of a token)
const SHAPES: &[(usize, usize)] = &[
    (1, 1),
    (2, 2),
    (8, 2),
    (7, 7),
    (60, 4),
    (128, 8),
    (129, 1),
    (300, 256),
];

/// What a routing gave.
#[derive(PartialEq, Debug)]
struct Found {
    weights: Vec<u32>,
    chosen: Vec<u32>,
    bad: Option<u64>,
}

pub fn check(kernel: &MicroKernel) {
    let mut random = Random(5);
    for &(experts, used) in SHAPES {
        for (renormalise, scale) in [(false, 1.0), (true, 1.0), (true, 2.5), (false, 0.5)] {
            let spec = RouteSpec {
                used,
                renormalise,
                scale,
            };
            let rows = 9;
            let mut logits: Vec<f32> = (0..rows * experts).map(|_| 9.0 * random.unit()).collect();
            // Ties: a row of equal logits, and one of few values.
            logits[..experts].fill(0.25);
            for logit in &mut logits[experts..2 * experts] {
                *logit = logit.round().clamp(-1.0, 1.0);
            }
            // Far apart: all but one weight are 0.
            logits[2 * experts] = 1e30;
            compare(kernel, &logits, experts, &spec);
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.5; 4 * 8];
        (logits[8 + 7], logits[3 * 8]) = (bad, bad);
        let spec = RouteSpec {
            used: 2,
            renormalise: true,
            scale: 1.0,
        };
        let found = run(kernel, &logits, 8, &spec);
        assert_eq!(found.bad, Some(1));
        assert_eq!(found.chosen[2..4], [0, 1], "experts that there are");
        assert_eq!(found, run(crate::scalar(kernel), &logits, 8, &spec));
    }
}

fn compare(kernel: &MicroKernel, logits: &[f32], experts: usize, spec: &RouteSpec) {
    let found = run(kernel, logits, experts, spec);
    let scalar = run(crate::scalar(kernel), logits, experts, spec);
    assert_eq!(found, scalar, "not as the scalar kernel");
    assert_eq!(found.bad, None);
    let rows = logits.chunks_exact(experts);
    let slots = found.weights.chunks_exact(spec.used);
    let chosen = found.chosen.chunks_exact(spec.used);
    for ((logits, weights), chosen) in rows.zip(slots).zip(chosen) {
        let expected = choose(logits, spec).expect("all logits are finite");
        for (slot, (expert, weight)) in expected.into_iter().enumerate() {
            assert_eq!(chosen[slot], expert, "slot {slot} of {experts} {spec:?}");
            let found = f32::from_bits(weights[slot]);
            assert!(
                (found - weight).abs() <= 1e-6 * spec.scale + 1e-5 * weight,
                "slot {slot} of {experts} {spec:?}: {found}, expected {weight}"
            );
        }
    }
}

fn run(kernel: &MicroKernel, logits: &[f32], experts: usize, spec: &RouteSpec) -> Found {
    let MicroFn::Route(func) = kernel.func else {
        panic!("{} is no route", kernel.name)
    };
    let (rows, stride) = (logits.len() / experts, spec.used + 3);
    let mut weights = vec![f32::NAN; rows * stride];
    let mut chosen = vec![u32::MAX; rows * stride];
    let mut bad = u64::MAX;
    let args = RouteArgs {
        logits: logits.as_ptr(),
        logits_stride: experts as u64,
        weights: weights.as_mut_ptr(),
        weights_stride: stride as u64,
        chosen: chosen.as_mut_ptr(),
        chosen_stride: stride as u64,
        rows: rows as u64,
        experts: experts as u64,
        used: spec.used as u64,
        renormalise: spec.renormalise,
        scale: spec.scale,
        bad: &mut bad,
    };
    // SAFETY: buffers of these sizes, an available level.
    unsafe { func(&args) };
    let beyond = |i: usize| i % stride >= spec.used;
    assert!((0..weights.len()).all(|i| beyond(i) == weights[i].is_nan()));
    assert!((0..chosen.len()).all(|i| beyond(i) == (chosen[i] == u32::MAX)));
    let own = (0..weights.len()).filter(|&i| !beyond(i));
    let weights: Vec<f32> = own.clone().map(|i| weights[i]).collect();
    Found {
        weights: bits(&weights),
        chosen: own.map(|i| chosen[i]).collect(),
        bad: (bad != u64::MAX).then_some(bad),
    }
}
