//! What the engine does in one case or another, step by step, on the null device.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod null_device;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bundle_format::plan::Limits;
use fastrun::device::SampleParams;
use fastrun::spec::NgramSpec;
use fastrun::{Config, Engine, Error, Event, FinishReason, Progress, Request, RequestId};
use null_device::{Expected, NullDevice, expected};

const VOCAB: u32 = 23;

const LIMITS: Limits = Limits {
    max_tokens: 32,
    max_seqs: 4,
    max_rows: 4,
    context: 128,
};

const ROOMY: u32 = 64;

fn config() -> Config {
    Config::new(LIMITS, VOCAB)
}

fn engine(config: Config, blocks: u32) -> Engine<NullDevice> {
    let device = NullDevice::new(config.limits, VOCAB, vec![blocks], vec![0]);
    Engine::new(device, config)
}

fn request(prompt: u32, max_tokens: Option<u32>) -> Request {
    Request {
        prompt: (0..prompt).map(|i| i % VOCAB).collect(),
        max_tokens,
        sampling: SampleParams {
            seed: 7,
            ..SampleParams::default()
        },
        ..Request::default()
    }
}

fn alone(request: &Request, choice: u32) -> Expected {
    expected(request, choice, &LIMITS, &[None], VOCAB, ROOMY * 16)
}

/// Tokens, reason and cached tokens of each choice.
type Answers = BTreeMap<(RequestId, u32), (Vec<u32>, Option<FinishReason>, u32)>;

fn listen(engine: &mut Engine<NullDevice>, answers: &mut Answers) {
    for event in engine.take_events() {
        match event {
            Event::Token {
                id, choice, token, ..
            } => answers.entry((id, choice)).or_default().0.push(token),
            Event::Finished {
                id,
                choice,
                reason,
                cached_tokens,
            } => {
                let answer = answers.entry((id, choice)).or_default();
                (answer.1, answer.2) = (Some(reason), cached_tokens);
            }
            Event::Scored { .. } | Event::Hidden { .. } => panic!("nobody asked for them"),
        }
    }
}

fn drain(engine: &mut Engine<NullDevice>) -> Answers {
    let mut answers = Answers::default();
    for _ in 0..10_000 {
        let progress = engine.step();
        engine.verify().expect("nothing is lost");
        listen(engine, &mut answers);
        if progress == Progress::Idle {
            return answers;
        }
    }
    panic!("the engine doesn't come to an end");
}

fn user_error(engine: &mut Engine<NullDevice>, request: Request) -> String {
    match engine.add(request) {
        Err(Error::User(text)) => text,
        other => panic!("{other:?} instead of a user error"),
    }
}

#[test]
fn no_tokens_wanted_none_given() {
    let mut engine = engine(config(), ROOMY);
    let request = Request {
        choices: 2,
        ..request(5, Some(0))
    };
    engine.add(request).expect("it fits");
    let events = engine.take_events();
    assert_eq!(events.len(), 2, "{events:?}");
    let length =
        |e: &Event| matches!(e, Event::Finished { reason, .. } if *reason == FinishReason::Length);
    assert!(events.iter().all(length), "{events:?}");
    assert_eq!(engine.step(), Progress::Idle);
    assert_eq!(engine.device().steps, 0);
}

#[test]
fn requests_that_cannot_work_are_refused_with_numbers() {
    let mut engine = engine(config(), 2);
    let mut refused = |request, parts: &[&str]| {
        let text = user_error(&mut engine, request);
        parts
            .iter()
            .for_each(|p| assert!(text.contains(p), "{text}"));
    };
    refused(request(129, None), &["129 tokens", "is 128", "--ctx"]);
    refused(request(0, None), &["prompt is empty"]);
    refused(request(33, None), &["takes 3 KV blocks", "has 2"]);
    let mut foreign = request(2, None);
    foreign.prompt[1] = VOCAB;
    refused(foreign, &["token 23 of the prompt", "below 23"]);
    let mut hot = request(1, None);
    hot.sampling.temperature = -1.0;
    refused(hot, &["temperature -1"]);
    let mut biased = request(1, None);
    biased.bias = [(3, 1.0), (40, 1.0)].into();
    refused(biased, &["bias of token 40", "vocabulary"]);
    // One that no device takes: it must not reach a step, where it would end the other requests' too.
    for bias in [f32::NAN, f32::INFINITY, 2e6] {
        let mut biased = request(1, None);
        biased.bias = [(3, bias)].into();
        refused(biased, &["bias", "token 3", "-1000000 to 1000000"]);
    }
    for choices in [0, 129] {
        let many = Request {
            choices,
            ..request(1, None)
        };
        refused(many, &["choices", "1 to 128"]);
    }
    let hidden = Request {
        hidden: true,
        choices: 2,
        ..request(1, None)
    };
    refused(hidden, &["1 for hidden"]);
}

#[test]
fn a_full_queue_says_so() {
    let mut engine = engine(
        Config {
            queue: 2,
            ..config()
        },
        ROOMY,
    );
    engine.add(request(5, None)).expect("the queue is empty");
    let second = engine.add(request(5, None)).expect("one waits");
    match engine.add(request(5, None)) {
        Err(Error::Busy(text)) => assert!(text.contains("2 requests wait"), "{text}"),
        other => panic!("{other:?}"),
    }
    engine.cancel(second);
    engine.add(request(5, None)).expect("one left the queue");
    engine.step();
    engine.add(request(5, None)).expect("they run now");
}

#[test]
fn a_prompt_that_fills_the_context_still_yields_a_token() {
    let mut engine = engine(config(), ROOMY);
    let id = engine.add(request(128, None)).expect("it fits");
    let (tokens, reason, _) = &drain(&mut engine)[&(id, 0)];
    assert_eq!((tokens.len(), reason), (1, &Some(FinishReason::Length)));
}

#[test]
fn a_lone_sequence_that_outgrows_the_pool_ends_with_length() {
    for in_flight in 1..4 {
        let mut engine = engine(
            Config {
                in_flight,
                ..config()
            },
            2,
        );
        let id = engine.add(request(20, None)).expect("it fits");
        let (tokens, reason, _) = &drain(&mut engine)[&(id, 0)];
        // 12 that have room, and one more drawn from the last.
        assert_eq!((tokens.len(), reason), (13, &Some(FinishReason::Length)));
    }
}

#[test]
fn decoding_goes_first_and_prompts_take_what_it_can_bear() {
    for (token_budget, expected) in [(Some(9), 9), (Some(100), 31), (None, 5)] {
        let config = Config {
            token_budget,
            prefix_cache: false,
            ..config()
        };
        let mut engine = engine(config, ROOMY);
        engine.add(request(3, None)).expect("it fits");
        engine.step();
        engine.add(request(100, None)).expect("it fits");
        let before = engine.device().tokens;
        engine.step();
        assert_eq!(engine.device().tokens - before, 1 + expected);
        let tokens = engine.take_events();
        assert_eq!(tokens.len(), 2, "one in each step: {tokens:?}");
    }
}

#[test]
fn a_prompt_alone_fills_the_step() {
    let mut engine = engine(config(), ROOMY);
    engine.add(request(100, None)).expect("it fits");
    engine.step();
    assert_eq!(engine.device().tokens, 32);
}

/// Steps that are told to take 10 ms, and 1 ms more for each prompt token.
#[test]
fn prompts_keep_to_the_times_that_are_told() {
    let mut engine = engine(config(), ROOMY);
    engine.add(request(1, None)).expect("it fits");
    for _ in 0..3 {
        engine.step();
        engine.took(Duration::from_millis(10));
    }
    engine.add(request(100, None)).expect("it fits");
    let mut chunks = Vec::new();
    for _ in 0..3 {
        let before = engine.device().tokens;
        engine.step();
        let tokens = engine.device().tokens - before - 1;
        engine.took(Duration::from_millis(10 + tokens));
        chunks.push(tokens);
    }
    assert_eq!(chunks, [5, 7, 7], "assumed at first, then 70% of a step");
}

#[test]
fn a_full_pool_is_shared_by_preemption() {
    let mut engine = engine(config(), 6);
    let mut requests = [request(30, Some(40)), request(31, Some(40))];
    requests[1].prompt[0] = 9;
    let ids = requests.clone().map(|r| engine.add(r).expect("it fits"));
    let answers = drain(&mut engine);
    assert!(engine.stats().preemptions > 0);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(answers[&(*id, 0)].0, alone(request, 0).tokens);
    }
}

#[test]
fn cancelling_frees_at_once() {
    let mut engine = engine(
        Config {
            in_flight: 2,
            ..config()
        },
        ROOMY,
    );
    let id = engine.add(request(100, None)).expect("it fits");
    engine.step();
    assert_eq!(engine.stats().kv_blocks_free, ROOMY - 7);
    engine.cancel(id);
    let stats = engine.stats();
    assert_eq!((stats.kv_blocks_free, stats.running), (ROOMY, 0));
    assert!(engine.is_idle());
    engine.cancel(id);
    assert_eq!(engine.take_events().len(), 1, "it ended once");
    // The step in flight ends without a request.
    engine.step();
    assert_eq!(engine.step(), Progress::Idle);
}

#[test]
fn deadlines_end_requests_that_run_and_that_wait() {
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    let mut engine = engine(config(), ROOMY);
    let ids: Vec<_> = [Some(20), Some(10), None, Some(30), Some(10)]
        .map(|ms| Request {
            deadline: ms.map(after),
            ..request(3, Some(5))
        })
        .map(|r| engine.add(r).expect("it fits"))
        .into();
    engine.step();
    engine.take_events();
    let mut ended = |ms| {
        engine.expire(after(ms));
        let events = engine.take_events();
        let ids = events.into_iter().map(|event| match event {
            Event::Finished {
                id,
                reason: FinishReason::Timeout,
                ..
            } => id,
            other => panic!("{other:?}"),
        });
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ended(9), []);
    assert_eq!(ended(10), [ids[1], ids[4]]);
    assert_eq!(ended(25), [ids[0]]);
    drain(&mut engine);
    engine.expire(after(1000));
    assert_eq!(
        engine.take_events(),
        [],
        "the last one ended before its deadline"
    );
}

#[test]
fn choices_share_one_computation_of_the_prompt() {
    // With a block to copy, without one, without blocks.
    for prompt in [50, 49, 1] {
        let config = Config {
            prefix_cache: false,
            ..config()
        };
        let mut engine = engine(config, ROOMY);
        let request = Request {
            choices: 3,
            ..request(prompt, Some(4))
        };
        let id = engine.add(request.clone()).expect("it fits");
        let answers = drain(&mut engine);
        for choice in 0..3 {
            assert_eq!(answers[&(id, choice)].0, alone(&request, choice).tokens);
        }
        // The last token of the prompt is fed for each choice, and so are three of the four of its answer.
        let tokens = u64::from(prompt) - 1 + 3 * (1 + 3);
        assert_eq!(engine.device().tokens, tokens);
    }
}

#[test]
fn choices_that_cannot_run_at_once_find_the_prompt_later() {
    let mut engine = engine(config(), ROOMY);
    let request = Request {
        choices: 6,
        ..request(50, Some(4))
    };
    let id = engine.add(request.clone()).expect("it fits");
    let answers = drain(&mut engine);
    for choice in 0..6 {
        assert_eq!(answers[&(id, choice)].0, alone(&request, choice).tokens);
        assert_eq!(answers[&(id, choice)].2, if choice < 4 { 0 } else { 48 });
    }
}

#[test]
fn a_choice_ends_without_the_others() {
    for first in [true, false] {
        let mut engine = engine(config(), ROOMY);
        let request = Request {
            choices: 3,
            ..request(50, Some(4))
        };
        let id = engine.add(request.clone()).expect("it fits");
        if !first {
            for _ in 0..3 {
                engine.step();
            }
        }
        engine.cancel_choice(id, 0);
        engine.cancel_choice(id, 2);
        engine.cancel_choice(id, 2);
        engine.verify().expect("choice 1 is there");
        let answers = drain(&mut engine);
        let reasons = [0, 1, 2].map(|choice| answers[&(id, choice)].1.clone());
        let (cancelled, length) = (FinishReason::Cancelled, FinishReason::Length);
        assert_eq!(
            reasons,
            [&cancelled, &length, &cancelled].map(|r| Some(r.clone()))
        );
        assert_eq!(answers[&(id, 1)].0, alone(&request, 1).tokens);
    }
}

#[test]
fn a_prefix_is_computed_once() {
    let mut engine = engine(config(), ROOMY);
    let prompt = request(70, Some(3));
    let first = engine.add(prompt.clone()).expect("it fits");
    assert_eq!(drain(&mut engine)[&(first, 0)].2, 0);
    let before = engine.device().tokens;
    let mut second = prompt.clone();
    second.prompt.truncate(64);
    let second = engine.add(second).expect("it fits");
    // The last block is computed for its last token.
    assert_eq!(drain(&mut engine)[&(second, 0)].2, 48);
    assert_eq!(engine.device().tokens - before, 16 + 2);
    let stats = engine.stats();
    assert_eq!(
        (stats.prefix_hit_tokens, stats.prefix_query_tokens),
        (48, 134)
    );
    assert_eq!(stats.kv_blocks_free, ROOMY);
    assert_eq!(stats.kv_blocks_cached, 4);
    let salted = Request {
        cache_salt: 1,
        ..prompt
    };
    let salted = engine.add(salted).expect("it fits");
    assert_eq!(drain(&mut engine)[&(salted, 0)].2, 0, "of another salt");
}

#[test]
fn an_answer_is_a_prefix_of_what_follows() {
    let mut engine = engine(config(), ROOMY);
    let question = request(20, Some(40));
    let id = engine.add(question.clone()).expect("it fits");
    let answer = drain(&mut engine)[&(id, 0)].0.clone();
    let mut next = request(1, Some(3));
    next.prompt = [question.prompt, answer, vec![1, 2, 3]].concat();
    let id = engine.add(next).expect("it fits");
    assert_eq!(drain(&mut engine)[&(id, 0)].2, 48, "of 59 computed ones");
}

#[test]
fn those_who_come_together_wait_for_the_first_ones_prefix() {
    let mut engine = engine(config(), ROOMY);
    let requests: Vec<Request> = (0..4)
        .map(|i| {
            let mut request = request(40, Some(2));
            request.prompt[35] = i;
            request
        })
        .collect();
    let ids: Vec<_> = requests
        .iter()
        .map(|r| engine.add(r.clone()).expect("it fits"))
        .collect();
    let answers = drain(&mut engine);
    assert_eq!(engine.device().tokens, 32 + 4 * (8 + 1));
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(answers[&(*id, 0)].0, alone(request, 0).tokens);
    }
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    let limits = Limits {
        max_rows: 20,
        ..LIMITS
    };
    let mut plain = Request {
        spec: false,
        ..request(20, Some(100))
    };
    // Tokens that mostly go round in a circle.
    plain.sampling.seed = 8;
    let guessed = Request {
        spec: true,
        ..plain.clone()
    };
    let run = |request: &Request| {
        let config = Config {
            spec: Some(NgramSpec::default()),
            ..Config::new(limits, VOCAB)
        };
        let mut engine = engine(config, ROOMY);
        let id = engine.add(request.clone()).expect("it fits");
        let answers = drain(&mut engine);
        (answers[&(id, 0)].0.clone(), engine.stats())
    };
    let (expected, without) = run(&plain);
    let (found, with) = run(&guessed);
    assert_eq!(found, expected);
    assert_eq!(without.drafted_tokens, 0);
    assert_eq!(without.steps, 100);
    assert!(with.accepted_tokens >= 20, "{with:?}");
    assert!(with.accepted_tokens < with.drafted_tokens, "{with:?}");
    assert_eq!(with.steps, 100 - with.accepted_tokens);
    assert_eq!(with.generated_tokens, 100);
}

/// Whoever goes, and whenever, leaves nothing in the cache that was not computed: the positions of wrong guesses least of all.
#[test]
fn what_a_cancelled_request_leaves_behind_is_right() {
    let config = Config {
        spec: Some(NgramSpec::default()),
        ..Config::new(
            Limits {
                max_rows: 20,
                ..LIMITS
            },
            VOCAB,
        )
    };
    let mut rejected = 0;
    for seed in (0..60).step_by(2) {
        let in_flight = 1 + seed as usize / 2 % 3;
        for steps in 1..60 {
            let mut engine = engine(
                Config {
                    in_flight,
                    ..config
                },
                ROOMY,
            );
            let mut first = request(20, None);
            first.sampling.seed = seed;
            let id = engine.add(first.clone()).expect("it fits");
            let mut answers = Answers::default();
            for _ in 0..steps {
                engine.step();
                listen(&mut engine, &mut answers);
            }
            engine.cancel(id);
            listen(&mut engine, &mut answers);
            let mut next = first.clone();
            next.prompt.extend(&answers[&(id, 0)].0);
            next.prompt.push(0);
            if next.prompt.len() > LIMITS.context as usize {
                continue;
            }
            let id = engine.add(next.clone()).expect("it fits");
            let found = drain(&mut engine);
            assert_eq!(found[&(id, 0)].0, alone(&next, 0).tokens, "{seed} {steps}");
            let stats = engine.stats();
            rejected += stats.drafted_tokens - stats.accepted_tokens;
        }
    }
    assert!(rejected > 0);
}

#[test]
fn groups_that_see_a_window_need_room_for_that_alone() {
    // Whole sequences would take 8 blocks each.
    let (windows, blocks) = (vec![Some(20), None], vec![20, ROOMY]);
    let device = NullDevice::new(LIMITS, VOCAB, blocks, vec![0]).with_windows(windows.clone());
    let mut engine = Engine::new(device, config());
    assert_eq!(engine.stats().kv_blocks_total, ROOMY);
    let asked = |first: u32| Request {
        prompt: (0..90).map(|i| (i * first + 1) % VOCAB).collect(),
        ..request(1, Some(38))
    };
    let expected =
        |request: &Request| expected(request, 0, &LIMITS, &windows, VOCAB, ROOMY * 16).tokens;
    let ids = [1, 2, 3, 5].map(|first| (engine.add(asked(first)).expect("it fits"), asked(first)));
    let answers = drain(&mut engine);
    for (id, request) in &ids {
        assert_eq!(answers[&(*id, 0)].0, expected(request));
    }
    assert_eq!(engine.stats().preemptions, 0);
    // What the window sees of the last answers is still there for what follows them.
    let (id, request) = &ids[3];
    let mut next = asked(1);
    next.prompt = [&request.prompt[..], &answers[&(*id, 0)].0[..30]].concat();
    next.max_tokens = Some(4);
    let id = engine.add(next.clone()).expect("it fits");
    let answers = drain(&mut engine);
    assert_eq!(answers[&(id, 0)].0, expected(&next));
    assert_eq!(answers[&(id, 0)].2, 112);
}
