//! What a step yields besides logits, and the copies that come before it.

use std::sync::Arc;

use bundle_format::plan::Encoding;
use fastrun::device::{BlockCopy, Device, RowOutcome, SampleParams, Step, TokenMask, Want};
use fastrun::device::{Outcome, TokenSource};

use crate::tiny::{Spec, TINY};
use crate::{Bundle, Text, assert_same_bits, logits, run, step};

fn greedy() -> SampleParams {
    SampleParams {
        temperature: 0.0,
        ..SampleParams::default()
    }
}

/// The row that wants this of the last token of twelve.
fn last_row(device: &mut impl Device, want: Want) -> RowOutcome {
    let mut step = step(&mut [(&mut Text::new(4, 12, 0), 12)]);
    step.rows = vec![11];
    step.wants = vec![want];
    let mut outcome = run(device, step).expect("the step is valid");
    outcome.rows.remove(0)
}

fn mask_of(ids: &[u32]) -> Arc<TokenMask> {
    let mut words = vec![0; TINY.vocab.div_ceil(32) as usize];
    for id in ids {
        words[*id as usize / 32] |= 1u32 << (id % 32);
    }
    let mask = TokenMask::pending();
    mask.set(Ok(words.into()));
    Arc::new(mask)
}

#[test]
fn biases_and_masks_steer_the_draw_but_not_the_log_probabilities() {
    let bundle = Bundle::new(&Spec::new(Encoding::F32));
    let check = |device: &mut dyn FnMut(Want) -> RowOutcome| {
        let all = device(Want {
            sample: Some(greedy()),
            logprobs: Some(TINY.vocab),
            logits: true,
            ..Want::default()
        });
        let (logits, all_probs) = (all.logits.unwrap(), all.logprobs.unwrap());
        let best = all.token.unwrap();
        let top: f64 = all_probs.top.iter().map(|(_, p)| (*p as f64).exp()).sum();
        assert!((top - 1.0).abs() < 1e-5, "{top}");
        assert_eq!(all_probs.top[0], (best, all_probs.token));
        let log_p = |id: u32| all_probs.top.iter().find(|(i, _)| *i == id).unwrap().1;

        let others: Vec<u32> = (0..TINY.vocab).filter(|&id| id != best).collect();
        let second = others.iter().copied().reduce(|a, b| {
            let better = logits[b as usize] > logits[a as usize];
            if better { b } else { a }
        });
        let masked = device(Want {
            sample: Some(greedy()),
            mask: Some(mask_of(&others)),
            logprobs: Some(1),
            ..Want::default()
        });
        assert_eq!(masked.token, second);
        let found = masked.logprobs.unwrap();
        assert_eq!(found.token, log_p(second.unwrap()));
        assert_eq!(found.top, [(best, log_p(best))]);

        let biased = device(Want {
            sample: Some(greedy()),
            bias: [(77, 1000.0)].into(),
            logprobs: Some(0),
            ..Want::default()
        });
        assert_eq!(biased.token, Some(77));
        assert_eq!(biased.logprobs.unwrap().token, log_p(77));
    };
    let (mut cpu, mut reference) = (bundle.cpu(2), bundle.reference());
    check(&mut |want| last_row(&mut cpu, want));
    check(&mut |want| last_row(&mut reference, want));
}

/// Three rows, of which the middle one can't be drawn from.
fn with_a_bad_row(device: &mut impl Device, mask: Arc<TokenMask>) -> Outcome {
    let mut texts = [3, 4, 5].map(|seed| Text::new(seed, 4, seed * 3));
    let mut chunks: Vec<(&mut Text, usize)> = texts.iter_mut().map(|t| (t, 4)).collect();
    let mut first = step(&mut chunks);
    first.rows = vec![3, 7, 11];
    let want = Want {
        sample: Some(greedy()),
        ..Want::default()
    };
    first.wants = vec![want; 3];
    first.wants[1].mask = Some(mask);
    let ticket = device.submit(first).expect("the step is valid");
    let outcome = device.poll(ticket).unwrap().unwrap();
    // A step that was on its way goes on, for the others' sake.
    let mut next = Step {
        kv: vec![Default::default()],
        ..Step::default()
    };
    for (row, text) in texts.iter().enumerate() {
        next.tokens.push(TokenSource::Sampled {
            ticket,
            row: row as u32,
        });
        next.positions.push(4);
        next.sequences.push(row as u32);
        next.kv[0].slots.push(text.table[0] * 16 + 4);
        next.kv[0].tables.push(Arc::clone(&text.table));
    }
    run(device, next).expect("the step is valid");
    outcome
}

#[test]
fn a_row_without_a_token_fails_alone() {
    let bundle = Bundle::new(&Spec::new(Encoding::F32));
    let failed = TokenMask::pending();
    failed.set(Err("out of states".into()));
    for (mask, why) in [
        (mask_of(&[]), "allow no token"),
        (Arc::new(failed), "out of states"),
    ] {
        let mut reference = bundle.reference();
        let outcomes = [
            with_a_bad_row(&mut bundle.cpu(2), mask.clone()),
            with_a_bad_row(&mut reference, mask),
        ];
        for Outcome { rows } in outcomes {
            assert!(rows[0].token.is_some() && rows[2].token.is_some());
            assert!(rows[0].error.is_none() && rows[2].error.is_none());
            assert_eq!(rows[1].token, None);
            let error = rows[1].error.as_deref().unwrap();
            assert!(error.contains(why), "{error}");
        }
    }
}

#[test]
fn logits_that_are_no_numbers_fail_their_row() {
    let bundle = Bundle::new(&Spec {
        nan: true,
        ..Spec::new(Encoding::F32)
    });
    let want = Want {
        sample: Some(greedy()),
        ..Want::default()
    };
    let probs = Want {
        logprobs: Some(3),
        ..Want::default()
    };
    for want in [want, probs] {
        for row in [
            last_row(&mut bundle.cpu(2), want.clone()),
            last_row(&mut bundle.reference(), want.clone()),
        ] {
            assert!(row.token.is_none() && row.logprobs.is_none());
            let text = row.error.expect("NaN can't be drawn from");
            assert!(text.contains("position 12 (launch logits)"), "{text}");
            assert!(text.contains("not a number"), "{text}");
        }
    }
}

/// A text goes on in a copy of its second block, and another one in the original.
fn forked(device: &mut impl Device, copied: bool) -> Vec<Vec<f32>> {
    let mut text = Text::new(4, 40, 0);
    run(device, step(&mut [(&mut text, 25)])).expect("the step is valid");
    let mut fork = text.clone();
    if copied {
        // By way of another block.
        fork.table = [text.table[0], 11, 7].into();
    }
    let mut next = step(&mut [(&mut fork, 15)]);
    if copied {
        let copy = |from, to| BlockCopy { from, to };
        next.kv[0].copies = vec![copy(text.table[1], 10), copy(10, 11)];
    }
    let mut found = logits(run(device, next).expect("the step is valid"));
    if copied {
        // The original is as it was.
        let outcome = run(device, step(&mut [(&mut text, 15)])).expect("the step is valid");
        found.extend(logits(outcome));
    } else {
        found.extend_from_within(..);
    }
    found
}

#[test]
fn a_sequence_goes_on_in_a_copy_of_its_block() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let expected = forked(&mut bundle.cpu(1), false);
    for threads in [1, 3] {
        let found = forked(&mut bundle.cpu(threads), true);
        assert_same_bits(&found, &expected, "on the CPU");
    }
    let expected = forked(&mut bundle.reference(), false);
    let found = forked(&mut bundle.reference(), true);
    assert_same_bits(&found, &expected, "on the reference");
}
