mod distribution;

use super::vector::exp_below_zero;
use super::*;
use crate::device::{Penalties, TokenMask};

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

fn typical(params: SampleParams, typical_p: f32) -> SampleParams {
    SampleParams {
        typical_p,
        ..params
    }
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

fn looking_at(recent: &[u32]) -> Context<'_> {
    Context {
        recent,
        ..Context::default()
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

/// A mask of the ids up to `vocab` for which `allowed` holds.
fn mask_of(vocab: u32, allowed: impl Fn(u32) -> bool) -> TokenMask {
    let mut words = vec![0u32; vocab.div_ceil(32) as usize];
    for id in (0..vocab).filter(|&id| allowed(id)) {
        words[id as usize / 32] |= 1 << (id % 32);
    }
    let mask = TokenMask::pending();
    mask.set(Ok(words.into()));
    mask
}

/// As in llama.cpp, a temperature flattens what top-p and min-p left; it doesn't let more tokens through.
#[test]
fn the_temperature_comes_last() {
    let logits = logits(200, 4.0, 5);
    let drawn = |temperature| {
        let params = with_min_p(params(temperature, 0, 0.8, 3), 0.02);
        let mut tokens: Vec<u32> = (0..3000)
            .map(|position| {
                Sampler::default().sample(&logits, &params, &Context::default(), position)
            })
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
        Sampler::default()
            .sample(&row, params, &looking_at(recent), 0)
            .unwrap()
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
    let drawn = Sampler::default().sample(&row, &repeat, &looking_at(&[0, 77]), 0);
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

#[test]
fn ties_go_to_the_lowest_id() {
    let mut sampler = Sampler::default();
    let mut row = vec![-1.0; 1000];
    for id in [700, 300, 301, 999] {
        row[id] = 2.5;
    }
    assert_eq!(
        sampler.sample(&row, &params(0.0, 0, 1.0, 0), &Context::default(), 0),
        Ok(300)
    );
    assert_eq!(
        sampler.sample(&row, &params(1.0, 1, 1.0, 0), &Context::default(), 0),
        Ok(300)
    );
    for position in 0..200 {
        let drawn = sampler.sample(&row, &params(1.0, 2, 1.0, 3), &Context::default(), position);
        assert!(matches!(drawn, Ok(300 | 301)));
        // All equal: the first ones are kept, however many there are.
        let flat = sampler.sample(
            &[0.0; 5000],
            &params(1.0, 10, 1.0, 3),
            &Context::default(),
            position,
        );
        assert!(matches!(flat, Ok(0..10)));
    }
    assert_eq!(
        sampler.sample(
            &[-0.0, 0.0],
            &params(1.0, 1, 1.0, 0),
            &Context::default(),
            0
        ),
        Ok(0)
    );
}

/// Distributions in which the likeliest token is not typical: it goes, and what follows starts from what is left.
#[test]
fn the_likeliest_token_may_not_be_typical() {
    // One token of a probability of a quarter, and a thousand others.
    let mut row = vec![0.0f32; 1000];
    row[500] = (1000.0f32 / 3.0).ln();
    let mut sampler = Sampler::default();
    let mut draw = |params: &SampleParams, position| {
        sampler
            .sample(&row, params, &Context::default(), position)
            .unwrap()
    };
    let params = typical(params(1.0, 0, 1.0, 5), 0.3);
    let tempered = |temperature| SampleParams {
        temperature,
        ..params.clone()
    };
    // 0.3 of the whole are 400 tokens, the first by id.
    let drawn: Vec<u32> = (0..4000).map(|p| draw(&params, p)).collect();
    assert!(drawn.iter().all(|&id| id < 400), "{drawn:?}");
    assert_eq!(drawn.iter().max(), Some(&399));
    assert_eq!(draw(&tempered(0.0), 0), 0);
    // As cold as that, the weights of all others would vanish beside the token that went.
    let cold: Vec<u32> = (0..4000).map(|p| draw(&tempered(1e-30), p)).collect();
    assert_eq!(cold, drawn);
    let relative = with_min_p(params.clone(), 0.9);
    assert_eq!(draw(&relative, 77), drawn[77]);
}

#[test]
fn nothing_is_drawn_where_nothing_is_allowed() {
    let mut sampler = Sampler::default();
    let row = [1.0, 2.0, 3.0];
    let mut draw = |row: &[f32], bias: &[(u32, f32)], mask: &TokenMask| {
        let context = Context {
            recent: &[],
            bias,
            mask: Some(mask),
        };
        [0.0, 1.0].map(|t| sampler.sample(row, &params(t, 0, 1.0, 0), &context, 0))
    };
    let none = Err(DrawError::NothingAllowed);
    assert_eq!(
        draw(&row, &[], &mask_of(3, |_| false)),
        [none.clone(), none.clone()]
    );
    assert_eq!(draw(&row, &[], &mask_of(3, |id| id == 1)), [Ok(1), Ok(1)]);
    let banned = [(1, f32::NEG_INFINITY)];
    assert_eq!(
        draw(&row, &banned, &mask_of(3, |id| id == 1)),
        [none.clone(), none.clone()]
    );
    // A mask may be too short or too long.
    let short = TokenMask::pending();
    short.set(Ok(Box::new([])));
    assert_eq!(draw(&row, &[], &short), [none.clone(), none]);
    let row: Vec<f32> = (0..40).map(|i| i as f32).collect();
    assert_eq!(draw(&row, &[], &mask_of(32, |_| true))[0], Ok(31));
    assert_eq!(draw(&row, &[], &mask_of(400, |_| true))[0], Ok(39));
    let failed = TokenMask::pending();
    failed.set(Err("the grammar is too large".into()));
    let [error, _] = draw(&row, &[], &failed);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("the grammar is too large"), "{text}");
    // The model's own fault is named as such.
    let bad = Err(BadLogits::NotANumber(1).into());
    assert_eq!(draw(&[0.0, f32::NAN], &[], &mask_of(2, |_| true))[0], bad);
    let bad = Err(BadLogits::Infinite(0).into());
    assert_eq!(
        draw(&[f32::NEG_INFINITY; 2], &[], &mask_of(2, |_| true))[0],
        bad
    );
}

#[test]
fn a_draw_waits_for_its_mask() {
    let mask = TokenMask::pending();
    let drawn = std::thread::scope(|scope| {
        let draw = scope.spawn(|| {
            let context = Context {
                mask: Some(&mask),
                ..Context::default()
            };
            let greedy = params(0.0, 0, 1.0, 0);
            Sampler::default().sample(&[1.0, 2.0], &greedy, &context, 0)
        });
        mask.set(Ok([0b01].into()));
        draw.join().unwrap()
    });
    assert_eq!(drawn, Ok(0));
}

#[test]
fn biases_are_checked() {
    assert!(check_bias(&[(0, -100.0), (9, f32::NEG_INFINITY)], 10).is_ok());
    for (id, bias, what) in [
        (10, 1.0, "below the vocabulary of 10"),
        (1, f32::NAN, "bias NaN of token 1"),
        (1, f32::INFINITY, "bias inf of token 1"),
        (1, 2e6, "bias 2000000 of token 1"),
    ] {
        let text = check_bias(&[(0, 0.0), (id, bias)], 10).unwrap_err();
        assert!(text.contains(what), "{text}");
    }
}

/// Against log-softmax in f64, whatever the parameters of the draw.
#[test]
fn log_probabilities_are_those_of_the_model() {
    let mut sampler = Sampler::default();
    for (n, spread) in [
        (1, 1.0),
        (30, 2.0),
        (1000, 30.0),
        (49_152, 6.0),
        (262_144, 0.1),
    ] {
        let mut row = logits(n, spread, 77);
        row[n / 2] = row[n / 3];
        if n > 30 {
            row[n / 4] = f32::NEG_INFINITY;
        }
        let largest = row.iter().fold(f64::MIN, |m, &x| m.max(x as f64));
        let total: f64 = row.iter().map(|&x| (x as f64 - largest).exp()).sum();
        let log_p = |id: u32| row[id as usize] as f64 - largest - total.ln();
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|&a, &b| log_p(b).total_cmp(&log_p(a)).then(a.cmp(&b)));
        for (token, count) in [
            (None, 0),
            (Some(n as u32 / 3), 1),
            (Some(0), 20),
            (None, 5000),
        ] {
            let found = sampler.logprobs(&row, token, count).unwrap();
            let near = |found: f32, id: u32| {
                let error = (found as f64 - log_p(id)).abs();
                assert!(
                    error <= 1e-6 * log_p(id).abs().max(1.0),
                    "{n}: {id}: {error}"
                );
            };
            match token {
                Some(token) => near(found.token, token),
                None => assert_eq!(found.token, 0.0),
            }
            let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, order[..n.min(count as usize)]);
            for (id, log_p) in found.top.into_iter().filter(|(_, p)| p.is_finite()) {
                near(log_p, id);
            }
        }
    }
    let bad = sampler.logprobs(&[0.0, f32::NAN], None, 1);
    assert_eq!(bad, Err(BadLogits::NotANumber(1)));
}

#[test]
fn same_seed_and_position_same_token() {
    let row = logits(5000, 3.0, 4);
    let draw = |seed, position| {
        Sampler::default()
            .sample(
                &row,
                &params(1.0, 0, 0.95, seed),
                &Context::default(),
                position,
            )
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
        sampler.sample(&row, &params(1e-40, 0, 1.0, 0), &Context::default(), 0),
        Ok(2)
    );
    for position in 0..500 {
        let drawn = sampler.sample(&row, &params(5.0, 0, 1.0, 0), &Context::default(), position);
        assert!(matches!(drawn, Ok(0 | 2)));
        assert_eq!(
            sampler.sample(&row, &params(5.0, 0, 0.0, 0), &Context::default(), position),
            Ok(2)
        );
    }
    assert_eq!(
        sampler.sample(&[3.0], &params(1.0, 7, 0.5, 0), &Context::default(), 0),
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
        sampler.sample(&row, &greedy, &Context::default(), 0),
        Err(BadLogits::NotANumber(577).into())
    );
    row[577] = f32::INFINITY;
    assert_eq!(
        sampler.sample(&row, &greedy, &Context::default(), 0),
        Err(BadLogits::Infinite(577).into())
    );
    let none = [f32::NEG_INFINITY; 3];
    assert_eq!(
        sampler.sample(&none, &greedy, &Context::default(), 0),
        Err(BadLogits::Infinite(0).into())
    );
    assert_eq!(
        sampler.sample(&[], &greedy, &Context::default(), 0),
        Err(BadLogits::Empty.into())
    );
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
