//! What a step yields besides logits, and the copies that come before it.

use std::sync::Arc;

use bundle_format::plan::{Encoding, KvDType};
use fastrun::Error;
use fastrun::device::{BlockCopy, Device, RowOutcome, SampleParams, Step, TokenMask, Want};
use fastrun::device::{Outcome, TokenSource};

use crate::tiny::{Spec, TINY};
use crate::{Bundle, Text, assert_same_bits, distance, logits, run, step};

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

/// Logits of sixty positions of a text, of which the first thirty came in one step.
fn continued(device: &mut impl Device) -> Vec<Vec<f32>> {
    let mut text = Text::new(6, 60, 1);
    let mut found = logits(run(device, step(&mut [(&mut text, 30)])).expect("the step is valid"));
    for len in [1, 5, 24] {
        let next = step(&mut [(&mut text, len)]);
        found.extend(logits(run(device, next).expect("the step is valid")));
    }
    found
}

#[test]
fn keys_and_values_of_8_bits_are_close_to_those_of_16() {
    let spec = |kv| Spec {
        shape: crate::tiny::Shape {
            head_dim: 64,
            ..TINY
        },
        kv,
        ..Spec::new(Encoding::F32)
    };
    let (f16, q8) = (
        Bundle::new(&spec(KvDType::F16)),
        Bundle::new(&spec(KvDType::Q8_0)),
    );
    let exact = continued(&mut q8.reference());
    let found = continued(&mut q8.cpu(1));
    // Half a step of 127 in every key and value, over two layers.
    let error = distance(&found, &exact);
    assert!(error > 1e-5 && error < 0.02, "{error}");
    assert!(distance(&continued(&mut f16.cpu(1)), &exact) < 0.3 * error);
    // Whatever the threads and the chunks.
    assert_same_bits(&continued(&mut q8.cpu(3)), &found, "threads");
    let mut text = Text::new(6, 60, 2);
    let whole = run(&mut q8.cpu(2), step(&mut [(&mut text, 60)])).expect("the step is valid");
    assert_same_bits(&logits(whole), &found, "one chunk");
}

/// A hidden row for every second token, and what else is wanted of the last.
fn hidden_rows(device: &mut impl Device, last: Want) -> Vec<RowOutcome> {
    let mut step = step(&mut [(&mut Text::new(4, 12, 0), 12)]);
    step.rows = (0..6).map(|i| 2 * i + 1).collect();
    let hidden = Want {
        hidden: true,
        ..Want::default()
    };
    step.wants = vec![hidden; 6];
    step.wants[5] = last;
    run(device, step).expect("the step is valid").rows
}

#[test]
fn hidden_states_are_what_the_head_multiplies() {
    for encoding in [Encoding::F32, Encoding::Q8_0] {
        let bundle = Bundle::new(&Spec::new(encoding));
        let hidden = Want {
            hidden: true,
            ..Want::default()
        };
        let both = Want {
            logits: true,
            ..hidden.clone()
        };
        let rows_of = |rows: Vec<RowOutcome>| -> Vec<Vec<f32>> {
            let rows = rows.into_iter();
            rows.map(|row| row.hidden.expect("it was wanted")).collect()
        };
        let expected = rows_of(hidden_rows(&mut bundle.reference(), hidden.clone()));
        assert!(
            expected
                .iter()
                .all(|row| row.len() == TINY.embedding as usize)
        );
        let found = rows_of(hidden_rows(&mut bundle.cpu(2), hidden.clone()));
        assert!(distance(&found, &expected) < 0.05);
        // The head runs where one row wants logits, and changes nothing.
        let mut with_logits = hidden_rows(&mut bundle.cpu(2), both);
        let logits = with_logits[5].logits.take().expect("they were wanted");
        let alone = last_row(
            &mut bundle.cpu(2),
            Want {
                logits: true,
                ..Want::default()
            },
        );
        assert!(alone.hidden.is_none());
        assert_same_bits(&[logits], &[alone.logits.unwrap()], "logits");
        assert_same_bits(&rows_of(with_logits), &found, "with logits");
    }
}

#[test]
fn bundles_without_hidden_states_say_so() {
    let bundle = Bundle::new(&Spec {
        hidden: false,
        ..Spec::new(Encoding::F32)
    });
    let mut step = step(&mut [(&mut Text::new(4, 12, 0), 12)]);
    step.wants[3].hidden = true;
    for error in [
        run(&mut bundle.cpu(1), step.clone()).unwrap_err(),
        run(&mut bundle.reference(), step).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unsupported(_)));
        assert!(error.to_string().contains("compile the model again"));
    }
}
