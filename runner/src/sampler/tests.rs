use super::*;
use crate::device::Penalties;

fn params(temperature: f32, top_k: u32, top_p: f32, seed: u64) -> SampleParams {
    SampleParams {
        temperature,
        top_k,
        top_p,
        seed,
        ..SampleParams::default()
    }
}

fn with_min_p(params: SampleParams, min_p: f32) -> SampleParams {
    SampleParams { min_p, ..params }
}

fn penalised(params: SampleParams, repeat: f32, frequency: f32, presence: f32) -> SampleParams {
    let penalties = Penalties {
        repeat,
        frequency,
        presence,
        ..Penalties::default()
    };
    SampleParams {
        penalties,
        ..params
    }
}

/// Logits that look random: normal-ish, from Philox.
fn logits(n: usize, spread: f64, seed: u64) -> Vec<f32> {
    (0..n)
        .map(|i| {
            let sum: f64 = (0..4).map(|j| uniform(seed + j, i as u32)).sum();
            ((sum - 2.0) * spread) as f32
        })
        .collect()
}

/// The distribution as its definition says, by sorting: the probability of each token.
fn expected(logits: &[f32], params: &SampleParams, recent: &[u32]) -> Vec<f64> {
    let logits = with_penalties(logits, &params.penalties, recent);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let likelihood = |i: usize| (logits[i] - logits[order[0]]).exp();
    let total: f64 = order.iter().map(|&i| likelihood(i)).sum();
    let mut kept = order.clone();
    if params.top_p < 1.0 {
        let mut mass = 0.0;
        let enough = order.iter().position(|&i| {
            mass += likelihood(i);
            mass >= params.top_p as f64 * total
        });
        kept.truncate(enough.map_or(order.len(), |n| n + 1));
    }
    kept.retain(|&i| likelihood(i) >= params.min_p as f64);
    let weight = |i: usize| likelihood(i).powf(1.0 / params.temperature as f64);
    let total: f64 = kept.iter().map(|&i| weight(i)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for i in kept {
        probabilities[i] = weight(i) / total;
    }
    probabilities
}

fn with_penalties(logits: &[f32], penalties: &Penalties, recent: &[u32]) -> Vec<f64> {
    let penalise = |(id, &logit): (usize, &f32)| {
        let (logit, repeat) = (logit as f64, penalties.repeat as f64);
        let count = recent.iter().filter(|&&t| t as usize == id).count();
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
    logits.iter().enumerate().map(penalise).collect()
}

/// Chi-square per degree of freedom of `draws` draws, and the count of impossible tokens drawn. Cells of less than ten
/// expected draws are joined.
fn chi_square(
    logits: &[f32],
    params: &SampleParams,
    recent: &[u32],
    probabilities: &[f64],
    draws: u32,
) -> (f64, f64, u32) {
    let mut sampler = Sampler::default();
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[sampler.sample(logits, params, recent, position).unwrap() as usize] += 1;
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

/// Tokens to look back at: of a vocabulary of 30 or more, some of them several times.
const RECENT: [u32; 12] = [3, 9, 3, 29, 14, 3, 14, 0, 7, 22, 22, 9];

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
    ];
    for (params, n, spread) in cases {
        let logits = logits(n, spread, 100 + params.seed);
        let probabilities = expected(&logits, &params, &RECENT);
        let (statistic, freedom, impossible) =
            chi_square(&logits, &params, &RECENT, &probabilities, 20_000);
        assert_eq!(impossible, 0, "{params:?}");
        assert!(
            statistic < bound(freedom),
            "{params:?}: {statistic} with {freedom} degrees of freedom"
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
    ];
    for wrong in wrong {
        let probabilities = expected(&logits, &wrong, &RECENT);
        let (statistic, freedom, _) = chi_square(&logits, &params, &RECENT, &probabilities, 20_000);
        assert!(statistic > bound(freedom), "{wrong:?}: {statistic}");
    }
}

/// As in llama.cpp, a temperature flattens what top-p and min-p left; it doesn't let more tokens through.
#[test]
fn the_temperature_comes_last() {
    let logits = logits(200, 4.0, 5);
    let drawn = |temperature| {
        let params = with_min_p(params(temperature, 0, 0.8, 3), 0.02);
        let mut tokens: Vec<u32> = (0..3000)
            .map(|position| Sampler::default().sample(&logits, &params, &[], position))
            .map(|token| token.expect("the logits are finite"))
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    assert_eq!(drawn(1.0), drawn(4.0));
}

#[test]
fn penalties_change_the_likeliest_token() {
    let row = [2.0, 1.9, -1.0, -1.1];
    let greedy = params(0.0, 0, 1.0, 0);
    let best = |params: &SampleParams, recent: &[u32]| {
        Sampler::default().sample(&row, params, recent, 0).unwrap()
    };
    assert_eq!(best(&greedy, &[0, 0]), 0, "nothing is penalised");
    let repeat = penalised(greedy.clone(), 1.1, 0.0, 0.0);
    assert_eq!(best(&repeat, &[]), 0);
    assert_eq!(best(&repeat, &[0]), 1);
    assert_eq!(best(&repeat, &[0, 1, 3]), 0);
    // Three times, and less for once.
    let frequency = penalised(greedy.clone(), 1.0, 0.04, 0.0);
    assert_eq!(best(&frequency, &[0]), 0);
    assert_eq!(best(&frequency, &[3, 0, 0, 0]), 1);
    let presence = penalised(greedy.clone(), 1.0, 0.0, 0.2);
    assert_eq!(best(&presence, &[0]), 1);
    // Of the negative ones the repeated one gets less likely, too; ids outside the row do nothing.
    let row = [-1.0, -1.05];
    let drawn = Sampler::default().sample(&row, &repeat, &[0, 77], 0);
    assert_eq!(drawn, Ok(1));
}

#[test]
fn a_draw_looks_as_far_back_as_its_penalties() {
    let penalties = |last_n, repeat| SampleParams {
        penalties: Penalties {
            last_n,
            repeat,
            ..Penalties::default()
        },
        ..SampleParams::default()
    };
    assert_eq!(SampleParams::default().looks_back(), 0);
    assert_eq!(penalties(64, 1.0).looks_back(), 0);
    assert_eq!(penalties(64, 1.1).looks_back(), 64);
    assert_eq!(penalties(0, 1.1).looks_back(), 0);
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
    ] {
        let probabilities = expected(&logits, &params, &[]);
        for position in 0..50 {
            let token = sampler.sample(&logits, &params, &[], position).unwrap() as usize;
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

#[test]
fn ties_go_to_the_lowest_id() {
    let mut sampler = Sampler::default();
    let mut row = vec![-1.0; 1000];
    for id in [700, 300, 301, 999] {
        row[id] = 2.5;
    }
    assert_eq!(
        sampler.sample(&row, &params(0.0, 0, 1.0, 0), &[], 0),
        Ok(300)
    );
    assert_eq!(
        sampler.sample(&row, &params(1.0, 1, 1.0, 0), &[], 0),
        Ok(300)
    );
    for position in 0..200 {
        let drawn = sampler.sample(&row, &params(1.0, 2, 1.0, 3), &[], position);
        assert!(matches!(drawn, Ok(300 | 301)));
        // All equal: the first ones are kept, however many there are.
        let flat = sampler.sample(&[0.0; 5000], &params(1.0, 10, 1.0, 3), &[], position);
        assert!(matches!(flat, Ok(0..10)));
    }
    assert_eq!(
        sampler.sample(&[-0.0, 0.0], &params(1.0, 1, 1.0, 0), &[], 0),
        Ok(0)
    );
}

#[test]
fn same_seed_and_position_same_token() {
    let row = logits(5000, 3.0, 4);
    let draw = |seed, position| {
        Sampler::default()
            .sample(&row, &params(1.0, 0, 0.95, seed), &[], position)
            .unwrap()
    };
    let a: Vec<u32> = (0..20).map(|p| draw(1, p)).collect();
    assert_eq!(a, (0..20).map(|p| draw(1, p)).collect::<Vec<_>>());
    assert_ne!(a, (0..20).map(|p| draw(2, p)).collect::<Vec<_>>());
}

#[test]
fn extremes() {
    let mut sampler = Sampler::default();
    // A tiny temperature is greedy, an impossible token is never drawn, one token is always drawn.
    let row = [1.0, f32::NEG_INFINITY, 1.5, f32::MIN];
    assert_eq!(
        sampler.sample(&row, &params(1e-40, 0, 1.0, 0), &[], 0),
        Ok(2)
    );
    for position in 0..500 {
        let drawn = sampler.sample(&row, &params(5.0, 0, 1.0, 0), &[], position);
        assert!(matches!(drawn, Ok(0 | 2)));
        assert_eq!(
            sampler.sample(&row, &params(5.0, 0, 0.0, 0), &[], position),
            Ok(2)
        );
    }
    assert_eq!(
        sampler.sample(&[3.0], &params(1.0, 7, 0.5, 0), &[], 0),
        Ok(0)
    );
}

#[test]
fn bad_logits_are_named() {
    let mut sampler = Sampler::default();
    let mut row = vec![0.0; 600];
    row[577] = f32::NAN;
    let greedy = params(0.0, 0, 1.0, 0);
    assert_eq!(
        sampler.sample(&row, &greedy, &[], 0),
        Err(BadLogits::NotANumber(577))
    );
    row[577] = f32::INFINITY;
    assert_eq!(
        sampler.sample(&row, &greedy, &[], 0),
        Err(BadLogits::Infinite(577))
    );
    let none = [f32::NEG_INFINITY; 3];
    assert_eq!(
        sampler.sample(&none, &greedy, &[], 0),
        Err(BadLogits::Infinite(0))
    );
    assert_eq!(sampler.sample(&[], &greedy, &[], 0), Err(BadLogits::Empty));
}

#[test]
fn bad_parameters_are_named() {
    assert!(check(&params(1.0, 0, 1.0, 0)).is_ok());
    assert!(check(&params(0.0, 5, 0.0, 0)).is_ok());
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(
            check(&params(bad, 0, 1.0, 0))
                .unwrap_err()
                .contains("temperature")
        );
    }
    for bad in [-0.1, 1.1, f32::NAN] {
        assert!(
            check(&params(1.0, 0, bad, 0))
                .unwrap_err()
                .contains("top_p")
        );
        let text = check(&with_min_p(params(1.0, 0, 1.0, 0), bad)).unwrap_err();
        assert!(text.contains("min_p"), "{text}");
    }
    for (repeat, frequency, presence, what) in [
        (0.0, 0.0, 0.0, "repeat penalty 0"),
        (-1.0, 0.0, 0.0, "repeat penalty"),
        (1.0, f32::NAN, 0.0, "frequency penalty"),
        (1.0, 0.0, f32::INFINITY, "presence penalty"),
    ] {
        let params = penalised(SampleParams::default(), repeat, frequency, presence);
        let text = check(&params).unwrap_err();
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn exponentials_are_accurate() {
    for i in 0..=870_000 {
        let x = -(i as f32) * 1e-4;
        let (got, want) = (exp_below_zero(x) as f64, (x as f64).exp());
        if x > -87.0 {
            assert!(
                (got / want - 1.0).abs() < 2.5e-7,
                "e^{x}: {got}, not {want}"
            );
        }
    }
    assert_eq!(exp_below_zero(0.0), 1.0);
    assert_eq!(exp_below_zero(-100.0), 0.0);
    assert_eq!(exp_below_zero(f32::NEG_INFINITY), 0.0);
}
