//! The engine under random arrivals, cancels, pools and limits, on a device whose output shows every mix-up.

mod null_device;

use std::collections::BTreeMap;

use bundle_format::plan::{KV_BLOCK, Limits};
use fastrun::device::{Penalties, SampleParams};
use fastrun::{Config, Engine, Error, Event, FinishReason, Progress, Request, RequestId};
use null_device::{NullDevice, expected};
use proptest::prelude::*;

const VOCAB: u32 = 23;

#[derive(Clone, Debug)]
struct Setup {
    limits: Limits,
    blocks: Vec<u32>,
    in_flight: usize,
    polls: Vec<u32>,
}

impl Setup {
    fn engine(&self) -> Engine<NullDevice> {
        let device = NullDevice::new(self.limits, VOCAB, self.blocks.clone(), self.polls.clone());
        let config = Config {
            in_flight: self.in_flight,
            ..Config::new(self.limits, VOCAB)
        };
        Engine::new(device, config)
    }

    /// KV positions that a sequence may take.
    fn pool(&self) -> u32 {
        self.smallest_pool() * KV_BLOCK as u32
    }

    fn smallest_pool(&self) -> u32 {
        *self.blocks.iter().min().expect("every setup has a group")
    }

    fn expected(&self, request: &Request) -> (Vec<u32>, FinishReason) {
        expected(request, &self.limits, self.blocks.len(), VOCAB, self.pool())
    }

    fn fits(&self, request: &Request) -> bool {
        let tokens = request.prompt.len() as u32;
        tokens <= self.limits.context && tokens <= self.pool()
    }
}

/// A request, the number of engine steps before it arrives, and those after which it is cancelled.
type Arrival = (Request, u32, Option<u32>);

fn setups() -> impl Strategy<Value = Setup> {
    let limits = (1u32..40, 1u32..7, 1u32..7, 1u32..150);
    let blocks = prop::collection::vec(1u32..12, 1..3);
    let polls = prop::collection::vec(0u32..3, 1..4);
    (limits, blocks, 1usize..4, polls).prop_map(
        |((max_tokens, max_seqs, max_rows, context), blocks, in_flight, polls)| Setup {
            limits: Limits {
                max_tokens,
                max_seqs,
                max_rows,
                context,
            },
            blocks,
            in_flight,
            polls,
        },
    )
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let prompt = prop::collection::vec(0..VOCAB, 1..70);
    let max_tokens = prop::option::of(0u32..60);
    let stop = prop::collection::vec(0..VOCAB, 0..2);
    let request =
        (prompt, max_tokens, stop, samplings()).prop_map(|(prompt, max_tokens, stop, sampling)| {
            Request {
                prompt,
                max_tokens,
                sampling,
                stop,
                ..Request::default()
            }
        });
    prop::collection::vec(
        (request, 0u32..20, prop::option::weighted(0.2, 0u32..60)),
        1..20,
    )
}

fn sampling(seed: u64) -> SampleParams {
    SampleParams {
        seed,
        ..SampleParams::default()
    }
}

/// Half of them look back at some tokens.
fn samplings() -> impl Strategy<Value = SampleParams> {
    let last_n = prop_oneof![Just(0), 1u32..80, Just(u32::MAX)];
    let penalties = (last_n, any::<bool>()).prop_map(|(last_n, repeat)| Penalties {
        last_n,
        repeat: if repeat { 1.5 } else { 1.0 },
        ..Penalties::default()
    });
    (penalties, any::<u64>()).prop_map(|(penalties, seed)| SampleParams {
        penalties,
        ..sampling(seed)
    })
}

#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    reason: Option<FinishReason>,
}

#[derive(Default)]
struct Answers(BTreeMap<RequestId, Answer>);

impl Answers {
    fn take(&mut self, engine: &mut Engine<NullDevice>) {
        for event in engine.take_events() {
            match event {
                Event::Token { id, token, .. } => {
                    let answer = self.0.entry(id).or_default();
                    assert_eq!(answer.reason, None, "a token after the end");
                    answer.tokens.push(token);
                }
                Event::Hidden { .. } => panic!("nobody asked"),
                Event::Finished { id, reason, .. } => {
                    let answer = self.0.entry(id).or_default();
                    assert_eq!(answer.reason.replace(reason), None, "ended twice");
                }
            }
        }
    }
}

/// Steps until nothing is left to do; a million steps without an end are a hang.
fn drain(engine: &mut Engine<NullDevice>, answers: &mut Answers) {
    for _ in 0..1_000_000 {
        let progress = engine.step();
        answers.take(engine);
        if progress == Progress::Idle {
            return;
        }
    }
    panic!("the engine doesn't come to an end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_its_own_answer_and_all_blocks_come_back(setup in setups(), arrivals in arrivals()) {
        let mut engine = setup.engine();
        let mut answers = Answers::default();
        let mut accepted: Vec<(RequestId, &Request)> = Vec::new();
        let mut cancels: Vec<(u32, RequestId)> = Vec::new();
        let mut now = 0;
        let mut tick = |engine: &mut Engine<NullDevice>, answers: &mut Answers, cancels: &[(u32, RequestId)]| {
            engine.step();
            now += 1;
            for (_, id) in cancels.iter().filter(|(at, _)| *at == now) {
                engine.cancel(*id);
            }
            answers.take(engine);
            now
        };
        let mut time = 0;
        for (request, wait, cancel) in &arrivals {
            for _ in 0..*wait {
                time = tick(&mut engine, &mut answers, &cancels);
            }
            let result = engine.add(request.clone());
            prop_assert_eq!(result.is_ok(), setup.fits(request), "{:?}", result);
            if let Ok(id) = result {
                accepted.push((id, request));
                cancels.extend(cancel.map(|after| (time + 1 + after, id)));
            }
        }
        for _ in 0..64 {
            tick(&mut engine, &mut answers, &cancels);
        }
        drain(&mut engine, &mut answers);

        prop_assert!(engine.is_idle());
        prop_assert_eq!(engine.free_kv_blocks(), setup.smallest_pool(), "a block leaked");
        prop_assert_eq!(answers.0.len(), accepted.len());
        for (id, request) in accepted {
            let answer = &answers.0[&id];
            let (tokens, reason) = setup.expected(request);
            match answer.reason.as_ref().expect("drained") {
                FinishReason::Cancelled => {
                    prop_assert!(cancels.iter().any(|c| c.1 == id));
                    prop_assert!(tokens.starts_with(&answer.tokens));
                }
                other => {
                    prop_assert_eq!(other, &reason);
                    prop_assert_eq!(&answer.tokens, &tokens);
                }
            }
        }
    }

    #[test]
    fn a_failed_step_ends_its_own_requests_alone(
        setup in setups(), arrivals in arrivals(), at in 0u64..40, in_poll in any::<bool>(),
    ) {
        let mut device = NullDevice::new(setup.limits, VOCAB, setup.blocks.clone(), setup.polls.clone());
        *(if in_poll { &mut device.fail_poll } else { &mut device.fail_submit }) = Some(at);
        let config = Config { in_flight: setup.in_flight, ..Config::new(setup.limits, VOCAB) };
        let mut engine = Engine::new(device, config);
        let mut answers = Answers::default();
        let accepted: Vec<_> =
            arrivals.iter().filter_map(|(request, ..)| Some((engine.add(request.clone()).ok()?, request))).collect();
        drain(&mut engine, &mut answers);

        prop_assert_eq!(engine.free_kv_blocks(), setup.smallest_pool(), "a block leaked");
        let mut failed = 0;
        for (id, request) in &accepted {
            let answer = &answers.0[id];
            let (tokens, reason) = setup.expected(request);
            match answer.reason.as_ref().expect("drained") {
                FinishReason::Error(text) => {
                    failed += 1;
                    prop_assert!(text.contains("on purpose"), "{}", text);
                    prop_assert!(tokens.starts_with(&answer.tokens));
                }
                other => {
                    prop_assert_eq!(other, &reason);
                    prop_assert_eq!(&answer.tokens, &tokens);
                }
            }
        }
        prop_assert!(failed <= setup.limits.max_seqs as usize);
    }
}

fn roomy() -> Setup {
    Setup {
        limits: Limits {
            max_tokens: 32,
            max_seqs: 4,
            max_rows: 4,
            context: 128,
        },
        blocks: vec![64],
        in_flight: 1,
        polls: vec![0],
    }
}

fn request(prompt: usize, max_tokens: Option<u32>) -> Request {
    Request {
        prompt: (0..prompt as u32).map(|i| i % VOCAB).collect(),
        max_tokens,
        sampling: sampling(7),
        ..Request::default()
    }
}

fn user_error(setup: &Setup, request: Request) -> String {
    match setup.engine().add(request) {
        Err(Error::User(text)) => text,
        other => panic!("{other:?} instead of a user error"),
    }
}

#[test]
fn no_tokens_wanted_none_given() {
    let mut engine = roomy().engine();
    let id = engine.add(request(5, Some(0))).expect("it fits");
    let reason = FinishReason::Length;
    assert_eq!(
        engine.take_events(),
        [Event::Finished {
            id,
            choice: 0,
            reason,
            cached_tokens: 0
        }]
    );
    assert_eq!(engine.step(), Progress::Idle);
    assert_eq!(engine.device().steps, 0);
}

#[test]
fn prompts_that_cannot_work_are_refused_with_numbers() {
    let mut setup = roomy();
    let text = user_error(&setup, request(129, None));
    assert!(
        text.contains("129 tokens") && text.contains("is 128") && text.contains("--ctx"),
        "{text}"
    );
    assert!(user_error(&setup, request(0, None)).contains("prompt is empty"));
    let foreign = Request {
        prompt: vec![1, VOCAB],
        ..request(1, None)
    };
    assert!(user_error(&setup, foreign).contains("token 23"));
    let hot = Request {
        sampling: SampleParams {
            temperature: -1.0,
            ..sampling(7)
        },
        ..request(1, None)
    };
    assert!(user_error(&setup, hot).contains("temperature -1"));
    setup.blocks = vec![9, 2];
    let text = user_error(&setup, request(33, None));
    assert!(
        text.contains("takes 3 KV blocks") && text.contains("has 2"),
        "{text}"
    );
}

#[test]
fn a_prompt_that_fills_the_context_still_yields_a_token() {
    let mut engine = roomy().engine();
    let id = engine.add(request(128, None)).expect("it fits");
    let mut answers = Answers::default();
    drain(&mut engine, &mut answers);
    assert_eq!(answers.0[&id].tokens.len(), 1);
    assert_eq!(answers.0[&id].reason, Some(FinishReason::Length));
}

#[test]
fn a_lone_sequence_that_outgrows_the_pool_ends_with_length() {
    for in_flight in 1..4 {
        let setup = Setup {
            blocks: vec![2],
            in_flight,
            ..roomy()
        };
        let mut engine = setup.engine();
        let id = engine.add(request(20, None)).expect("it fits");
        let mut answers = Answers::default();
        drain(&mut engine, &mut answers);
        let answer = &answers.0[&id];
        assert_eq!(
            answer.tokens.len(),
            13,
            "12 that have room, and one more drawn from the last"
        );
        assert_eq!(answer.reason, Some(FinishReason::Length));
    }
}

#[test]
fn decoding_goes_first_and_prompts_fill_the_budget() {
    let mut engine = roomy().engine();
    engine.add(request(3, None)).expect("it fits");
    engine.step();
    engine.add(request(100, None)).expect("it fits");
    engine.step();
    assert_eq!(
        engine.device().largest,
        (32, 2, 1),
        "1 decode row and 31 tokens of the prompt"
    );
    let tokens = engine.take_events();
    assert_eq!(
        tokens.len(),
        2,
        "the first request got a token in each step: {tokens:?}"
    );
}

#[test]
fn a_full_pool_is_shared_by_preemption() {
    let setup = Setup {
        blocks: vec![6],
        ..roomy()
    };
    let mut engine = setup.engine();
    let requests = [request(30, Some(40)), request(31, Some(40))];
    let ids = requests.clone().map(|r| engine.add(r).expect("it fits"));
    engine.step();
    engine.step();
    assert_eq!(engine.load(), (2, 0), "both run at first");
    let mut answers = Answers::default();
    let mut preempted = false;
    while engine.step() != Progress::Idle {
        preempted |= engine.load() == (1, 1);
        answers.take(&mut engine);
    }
    assert!(preempted);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(answers.0[id].tokens, setup.expected(request).0);
    }
}
