//! Draws are distributed as the definition of their parameters says, found naively, in f64 and by sorting. The draws are
//! those of fixed seeds at consecutive positions: the tests pass always or never.

use super::*;
use crate::device::{Penalties, TokenMask, allows};

/// Tokens to look back at: of a vocabulary of 30 or more, some of them several times.
const RECENT: [u32; 12] = [3, 9, 3, 29, 14, 3, 14, 0, 7, 22, 22, 9];

/// The distribution as its definition says, by sorting: the probability of each token.
fn expected(logits: &[f32], params: &SampleParams, context: &Context<'_>) -> Vec<f64> {
    let logits = adjusted(logits, &params.penalties, context);
    let likelihood = |i: usize| logits[i].exp();
    let mass = |tokens: &[usize]| tokens.iter().map(|&i| likelihood(i)).sum::<f64>();
    let by_likelihood = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    // The fewest of the first tokens that have a share of p.
    let prefix = |tokens: &mut Vec<usize>, p: f32| {
        let (total, mut sum) = (mass(tokens), 0.0);
        let enough = tokens.iter().position(|&i| {
            sum += likelihood(i);
            sum >= p as f64 * total
        });
        tokens.truncate(enough.map_or(tokens.len(), |n| n + 1));
    };
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    kept.sort_by(by_likelihood);
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.typical_p < 1.0 {
        let total = mass(&kept);
        let surprise = |i: usize| -(likelihood(i) / total).ln();
        let entropy: f64 = kept
            .iter()
            .filter(|&&i| likelihood(i) > 0.0)
            .map(|&i| likelihood(i) / total * surprise(i))
            .sum();
        let distance = |i: usize| (surprise(i) - entropy).abs();
        kept.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
        prefix(&mut kept, params.typical_p);
        kept.sort_by(by_likelihood);
    }
    if params.top_p < 1.0 {
        prefix(&mut kept, params.top_p);
    }
    let best = kept[0];
    kept.retain(|&i| likelihood(i) >= params.min_p as f64 * likelihood(best));
    let weight = |i: usize| ((logits[i] - logits[best]) / params.temperature as f64).exp();
    let total: f64 = kept.iter().map(|&i| weight(i)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for i in kept {
        probabilities[i] = weight(i) / total;
    }
    probabilities
}

/// With biases, penalties and mask.
fn adjusted(logits: &[f32], penalties: &Penalties, context: &Context<'_>) -> Vec<f64> {
    let words = context.mask.map(|mask| mask.wait().unwrap());
    let adjust = |(id, &logit): (usize, &f32)| {
        let (mut logit, repeat) = (logit as f64, penalties.repeat as f64);
        for (biased, bias) in context.bias {
            if *biased as usize == id {
                logit += *bias as f64;
            }
        }
        if words.is_some_and(|words| !allows(words, id as u32)) {
            return f64::NEG_INFINITY;
        }
        let count = context.recent.iter().filter(|&&t| t as usize == id).count();
        if count == 0 {
            return logit;
        }
        let scaled = if logit > 0.0 {
            logit / repeat
        } else {
            logit * repeat
        };
        scaled - penalties.frequency as f64 * count as f64 - penalties.presence as f64
    };
    logits.iter().enumerate().map(adjust).collect()
}

/// Chi-square per degree of freedom of `draws` draws, and the count of impossible tokens drawn. Cells of less than ten
/// expected draws are joined.
fn chi_square(
    logits: &[f32],
    params: &SampleParams,
    context: &Context<'_>,
    probabilities: &[f64],
    draws: u32,
) -> (f64, f64, u32) {
    let mut sampler = Sampler::default();
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[sampler.sample(logits, params, context, position).unwrap() as usize] += 1;
    }
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rest_expected, mut rest_count, mut impossible) = (0.0, 0, 0);
    let mut cell = |expected: f64, count: u32| {
        statistic += (count as f64 - expected).powi(2) / expected;
        cells += 1;
    };
    for (&p, &count) in probabilities.iter().zip(&counts) {
        let expected = p * draws as f64;
        if p == 0.0 {
            impossible += count;
        } else if expected >= 10.0 {
            cell(expected, count);
        } else {
            rest_expected += expected;
            rest_count += count;
        }
    }
    if rest_expected >= 10.0 {
        cell(rest_expected, rest_count);
    }
    (statistic, (cells - 1) as f64, impossible)
}

/// A bound that chi-square of `n` degrees of freedom exceeds with a probability of about 1e-5 (Wilson and Hilferty).
fn bound(n: f64) -> f64 {
    let z = 4.265;
    let v = 2.0 / (9.0 * n);
    n * (1.0 - v + z * v.sqrt()).powi(3)
}

#[test]
fn draws_follow_the_distribution() {
    let plain = || params(1.0, 0, 1.0, 20);
    let cases = [
        (params(1.0, 0, 1.0, 1), 30, 3.0),
        (params(0.7, 0, 1.0, 2), 1000, 4.0),
        (params(1.3, 5, 1.0, 3), 30, 2.0),
        (params(1.0, 40, 1.0, 4), 1000, 3.0),
        (params(1.0, 0, 0.9, 5), 1000, 4.0),
        (params(0.8, 40, 0.95, 6), 1000, 3.0),
        (params(2.0, 900, 0.5, 7), 1000, 1.0),
        (params(2.5, 0, 0.8, 8), 1000, 4.0),
        (with_min_p(plain(), 0.05), 1000, 4.0),
        (with_min_p(params(1.7, 0, 1.0, 9), 0.1), 1000, 4.0),
        (with_min_p(params(0.8, 40, 0.95, 10), 0.05), 1000, 3.0),
        (with_min_p(params(1.5, 0, 0.9, 11), 0.3), 1000, 4.0),
        (penalised(plain(), 1.8, 0.0, 0.0), 30, 2.0),
        (penalised(plain(), 1.0, 0.4, 0.0), 30, 2.0),
        (penalised(plain(), 1.0, 0.0, 0.7), 30, 2.0),
        (penalised(plain(), 1.3, -0.2, 0.5), 30, 2.0),
        (
            penalised(with_min_p(params(1.4, 12, 0.9, 12), 0.02), 1.2, 0.3, 0.2),
            30,
            2.0,
        ),
        (typical(plain(), 0.9), 1000, 4.0),
        (typical(plain(), 0.2), 1000, 2.0),
        (typical(params(0.6, 0, 1.0, 13), 0.5), 30, 3.0),
        (typical(params(1.5, 100, 1.0, 14), 0.7), 1000, 3.0),
        (typical(params(1.0, 0, 0.8, 15), 0.9), 1000, 4.0),
        (typical(with_min_p(plain(), 0.1), 0.95), 1000, 4.0),
        (
            typical(
                penalised(with_min_p(params(1.2, 200, 0.9, 16), 0.01), 1.2, 0.1, 0.2),
                0.8,
            ),
            1000,
            3.0,
        ),
    ];
    for (params, n, spread) in cases {
        let logits = logits(n, spread, 100 + params.seed);
        let probabilities = expected(&logits, &params, &looking_at(&RECENT));
        let (statistic, freedom, impossible) = chi_square(
            &logits,
            &params,
            &looking_at(&RECENT),
            &probabilities,
            20_000,
        );
        assert_eq!(impossible, 0, "{params:?}");
        assert!(
            statistic < bound(freedom),
            "{params:?}: {statistic} with {freedom} degrees of freedom"
        );
    }
}

/// Biases and masks, alone and with everything else.
#[test]
fn draws_follow_the_adjusted_distribution() {
    let mask = mask_of(1000, |id| id % 7 < 3 || id > 900);
    let few = mask_of(64, |id| id == 9 || id == 40 || id == 41);
    let bias = [
        (3, 2.0),
        (9, -1.0),
        (14, f32::NEG_INFINITY),
        (500, 6.0),
        (3, 0.5),
    ];
    let all = || {
        penalised(
            typical(with_min_p(params(1.3, 300, 0.95, 32), 0.001), 0.95),
            1.2,
            0.1,
            0.2,
        )
    };
    let plain = || params(1.0, 0, 1.0, 30);
    type Case<'a> = (SampleParams, &'a [(u32, f32)], Option<&'a TokenMask>);
    let cases: [Case<'_>; 9] = [
        (plain(), &bias, None),
        (plain(), &[], Some(&mask)),
        (plain(), &[], Some(&few)),
        (plain(), &bias, Some(&mask)),
        (params(0.8, 20, 1.0, 31), &bias, Some(&mask)),
        (typical(plain(), 0.6), &bias, Some(&mask)),
        (params(1.0, 0, 0.7, 33), &bias, Some(&mask)),
        (all(), &bias, Some(&mask)),
        (all(), &[], Some(&few)),
    ];
    for (params, bias, mask) in cases {
        let logits = logits(1000, 3.0, 200 + params.seed);
        let context = Context {
            recent: &RECENT,
            bias,
            mask,
        };
        let probabilities = expected(&logits, &params, &context);
        let (statistic, freedom, impossible) =
            chi_square(&logits, &params, &context, &probabilities, 20_000);
        let what = format!("{params:?} {bias:?} {:?}", mask.is_some());
        assert_eq!(impossible, 0, "{what}");
        assert!(
            freedom >= 1.0 && statistic < bound(freedom),
            "{what}: {statistic} with {freedom} degrees of freedom"
        );
    }
}

/// The test above can fail: parameters that are a little off are found.
#[test]
fn chi_square_notices_a_wrong_distribution() {
    let params = penalised(params(1.0, 0, 1.0, 1), 1.2, 0.1, 0.1);
    let penalised =
        |repeat, frequency, presence| penalised(params.clone(), repeat, frequency, presence);
    let logits = logits(30, 3.0, 101);
    let wrong = [
        SampleParams {
            temperature: 1.1,
            ..params.clone()
        },
        penalised(1.5, 0.1, 0.1),
        penalised(1.2, 0.3, 0.1),
        penalised(1.2, 0.1, 0.5),
        typical(params.clone(), 0.9),
        SampleParams {
            top_p: 0.95,
            ..params.clone()
        },
        with_min_p(params.clone(), 0.05),
    ];
    for wrong in wrong {
        let probabilities = expected(&logits, &wrong, &looking_at(&RECENT));
        let (statistic, freedom, impossible) = chi_square(
            &logits,
            &params,
            &looking_at(&RECENT),
            &probabilities,
            20_000,
        );
        assert!(
            impossible > 0 || statistic > bound(freedom),
            "{wrong:?}: {statistic}"
        );
    }
}

/// On a real vocabulary's size, the very token that the inverse distribution function (by id) gives.
#[test]
fn large_vocabularies_agree_with_the_definition() {
    let logits = logits(49_152, 8.0, 9);
    let mut sampler = Sampler::default();
    for params in [
        params(1.0, 0, 1.0, 1),
        params(1.0, 50, 1.0, 1),
        params(1.0, 3000, 1.0, 1),
        params(0.9, 0, 0.95, 1),
        params(3.0, 0, 0.999, 1),
        params(1.0, 200, 0.5, 1),
        with_min_p(params(1.5, 0, 1.0, 1), 1e-4),
        typical(params(1.0, 0, 1.0, 1), 0.3),
        typical(params(1.0, 0, 1.0, 1), 0.95),
        typical(params(2.0, 0, 1.0, 1), 0.9999),
        typical(params(1.0, 1000, 0.9, 1), 0.8),
    ] {
        let probabilities = expected(&logits, &params, &Context::default());
        for position in 0..50 {
            let token = sampler
                .sample(&logits, &params, &Context::default(), position)
                .unwrap() as usize;
            assert!(probabilities[token] > 0.0, "{params:?}: {token}");
            let below: f64 = probabilities[..token].iter().sum();
            let random = uniform(params.seed, position);
            assert!(
                below - 1e-6 <= random && random <= below + probabilities[token] + 1e-6,
                "{params:?}: token {token} for {random}"
            );
        }
    }
}
