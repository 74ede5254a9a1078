//! The engine under random arrivals, cancels, deadlines, forks, pools and limits, on a device whose output shows every
//! mix-up: each answer must be that of the request served alone.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod null_device;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bundle_format::plan::{KV_BLOCK, Limits};
use fastrun::device::{LogProbs, Penalties, SampleParams};
use fastrun::kv::KvCache;
use fastrun::spec::NgramSpec;
use fastrun::{Config, Engine, Error, Event, FinishReason, Progress, Request, RequestId, Stats};
use null_device::{Expected, NullDevice, expected};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, RngSeed};

const VOCAB: u32 = 23;

#[derive(Clone, Debug)]
struct Setup {
    config: Config,
    blocks: Vec<u32>,
    windows: Vec<Option<u32>>,
    polls: Vec<u32>,
}

impl Setup {
    fn engine(&self) -> Engine<NullDevice> {
        Engine::new(self.device(), self.config)
    }

    fn device(&self) -> NullDevice {
        let (blocks, polls) = (self.blocks.clone(), self.polls.clone());
        NullDevice::new(self.config.limits, VOCAB, blocks, polls).with_windows(self.windows.clone())
    }

    fn pool(&self) -> u32 {
        KvCache::with_windows(&self.blocks, &self.windows).total_blocks()
    }

    /// KV positions that a sequence may take.
    fn positions(&self) -> u32 {
        self.pool() * KV_BLOCK as u32
    }

    fn expected(&self, request: &Request, choice: u32) -> Expected {
        let (limits, windows) = (&self.config.limits, &self.windows);
        expected(request, choice, limits, windows, VOCAB, self.positions())
    }

    fn fits(&self, request: &Request) -> bool {
        let tokens = request.prompt.len() as u32;
        tokens <= self.config.limits.context && tokens <= self.positions()
    }

    /// Steps in which a request ends once no older one is left.
    fn patience(&self, request: &Request) -> u32 {
        let most = self.config.limits.context.min(self.positions());
        let answer = request.max_tokens.unwrap_or(most).min(most);
        let polls = self.polls.iter().max().expect("every setup has polls") + 1;
        let steps = request.choices * (request.prompt.len() as u32 + answer + 8);
        steps * (self.config.in_flight as u32 + 1) * polls
    }
}

fn setups() -> impl Strategy<Value = Setup> {
    let limits = (1u32..40, 1u32..13, 1u32..20, 1u32..150);
    let limits = limits.prop_map(|(max_tokens, max_seqs, max_rows, context)| Limits {
        max_tokens,
        max_seqs,
        max_rows,
        context,
    });
    let spec = (1u32..9, 1u32..20).prop_map(|(max_draft, max_rows)| NgramSpec {
        max_draft,
        max_rows,
    });
    let queue = prop_oneof![3 => Just(usize::MAX), 1 => 1usize..20];
    let budget = prop::option::weighted(0.3, 0u32..20);
    let serving = (
        prop::bool::weighted(0.8),
        prop::option::of(spec),
        queue,
        budget,
    );
    let group = (prop_oneof![1u32..12, 12u32..30], prop::option::of(1u32..90));
    let groups = prop::collection::vec(group, 1..4);
    let polls = prop::collection::vec(0u32..3, 1..4);
    (limits, serving, groups, 1usize..4, polls).prop_map(
        |(limits, (prefix_cache, spec, queue, token_budget), groups, in_flight, polls)| Setup {
            config: Config {
                in_flight,
                queue,
                prefix_cache,
                spec,
                token_budget,
                ..Config::new(limits, VOCAB)
            },
            blocks: groups.iter().map(|(blocks, _)| *blocks).collect(),
            windows: groups.iter().map(|(_, window)| *window).collect(),
            polls,
        },
    )
}

/// A request, when it comes, and what becomes of it.
#[derive(Clone, Debug)]
struct Arrival {
    request: Request,
    /// Engine steps before it comes.
    wait: u32,
    /// Engine steps after which it is cancelled, or a choice of it, or its deadline passes.
    cancel: Option<u32>,
    cancel_choice: Option<(u32, u32)>,
    timeout: Option<u32>,
}

/// A few beginnings that prompts share, and an end of their own.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let end = prop::collection::vec(0..VOCAB, 0..12);
    (0u32..3, 1usize..80, end).prop_map(|(stem, len, end)| {
        let stem = (0..len as u32).map(|i| (i * i + stem * 5) % VOCAB);
        stem.chain(end).collect()
    })
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
        seed,
        ..SampleParams::default()
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let answer = (
        prop::option::weighted(0.8, 0u32..50),
        prop::collection::vec(0..VOCAB, 0..2),
        prop_oneof![4 => Just(1u32), 1 => 2u32..6],
        prop::bool::weighted(0.1),
    );
    let extras = (
        prop::option::weighted(0.2, 0u32..4),
        prop::option::weighted(0.15, 0u32..4),
        prop::collection::vec((0..VOCAB, -1.0f32..1.0), 0..2),
        prop_oneof![4 => Just(0u64), 1 => Just(1)],
        prop::bool::weighted(0.8),
    );
    (prompts(), samplings(), answer, extras).prop_map(|(prompt, sampling, answer, extras)| {
        let (max_tokens, stop, choices, hidden) = answer;
        let (logprobs, prompt_logprobs, bias, cache_salt, spec) = extras;
        Request {
            prompt,
            max_tokens,
            sampling,
            stop,
            choices: if hidden { 1 } else { choices },
            logprobs,
            prompt_logprobs: prompt_logprobs.filter(|_| !hidden),
            bias: bias.into(),
            cache_salt,
            hidden,
            spec,
            ..Request::default()
        }
    })
}

/// `gap` is the longest time between two.
fn arrivals(count: usize, gap: u32) -> impl Strategy<Value = Vec<Arrival>> {
    let ends = (
        prop::option::weighted(0.15, 0u32..60),
        prop::option::weighted(0.1, (0u32..6, 0u32..60)),
        prop::option::weighted(0.1, 0u32..80),
    );
    let arrival =
        (requests(), 0..gap, ends).prop_map(|(request, wait, (cancel, cancel_choice, timeout))| {
            Arrival {
                request,
                wait,
                cancel,
                cancel_choice,
                timeout,
            }
        });
    prop::collection::vec(arrival, 1..count)
}

#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<Option<LogProbs>>,
    hidden: Vec<Vec<f32>>,
    scores: Vec<LogProbs>,
    reason: Option<FinishReason>,
}

enum Act {
    Cancel,
    CancelChoice(u32),
}

/// An engine, and everyone who waits for it.
struct World {
    setup: Setup,
    engine: Engine<NullDevice>,
    start: Instant,
    now: u32,
    requests: BTreeMap<RequestId, Arrival>,
    answers: BTreeMap<(RequestId, u32), Answer>,
    /// Choices that have not ended.
    open: BTreeMap<RequestId, u32>,
    acts: BTreeMap<u32, Vec<(RequestId, Act)>>,
    /// Since when the oldest open request is the oldest one.
    oldest: Option<(RequestId, u32)>,
    refused: usize,
}

impl World {
    fn new(setup: Setup) -> World {
        World {
            engine: setup.engine(),
            setup,
            start: Instant::now(),
            now: 0,
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            open: BTreeMap::new(),
            acts: BTreeMap::new(),
            oldest: None,
            refused: 0,
        }
    }

    fn time(&self, ticks: u32) -> Instant {
        self.start + Duration::from_millis(u64::from(ticks))
    }

    fn arrive(&mut self, mut arrival: Arrival) {
        let request = &mut arrival.request;
        let deadline = arrival.timeout.map(|t| self.time(self.now + t));
        request.deadline = deadline;
        let full = self.engine.stats().waiting >= self.setup.config.queue;
        let id = match self.engine.add(request.clone()) {
            Ok(id) => id,
            Err(Error::Busy(text)) => {
                assert!(full && text.contains("wait already"), "{text}");
                self.refused += 1;
                return;
            }
            Err(Error::User(text)) => {
                assert!(!self.setup.fits(request), "{text}");
                self.refused += 1;
                return;
            }
            Err(other) => panic!("{other}"),
        };
        assert!(!full && self.setup.fits(request));
        let mut act = |after: u32, act| {
            let at = self.now + 1 + after;
            self.acts.entry(at).or_default().push((id, act));
        };
        if let Some(after) = arrival.cancel {
            act(after, Act::Cancel);
        }
        if let Some((choice, after)) = arrival.cancel_choice {
            act(after, Act::CancelChoice(choice));
        }
        for choice in 0..request.choices {
            self.answers.insert((id, choice), Answer::default());
        }
        self.open.insert(id, request.choices);
        self.requests.insert(id, arrival);
    }

    fn tick(&mut self) -> Progress {
        let progress = self.engine.step();
        self.now += 1;
        for (id, act) in self.acts.remove(&self.now).unwrap_or_default() {
            match act {
                Act::Cancel => self.engine.cancel(id),
                Act::CancelChoice(choice) => self.engine.cancel_choice(id, choice),
            }
        }
        self.engine.expire(self.time(self.now));
        self.engine.verify().expect("nothing is lost");
        self.listen();
        self.grow_impatient();
        progress
    }

    fn listen(&mut self) {
        for event in self.engine.take_events() {
            let (id, choice) = match &event {
                Event::Token { id, choice, .. } | Event::Finished { id, choice, .. } => {
                    (*id, *choice)
                }
                Event::Hidden { id, .. } => (*id, 0),
                Event::Scored { id, .. } => (*id, 0),
            };
            let answer = self.answers.get_mut(&(id, choice)).expect("someone asked");
            // Scores are of the request: its first choice may have ended.
            let is_score = matches!(event, Event::Scored { .. });
            assert!(
                answer.reason.is_none() || is_score,
                "something after the end"
            );
            match event {
                Event::Scored {
                    position, logprobs, ..
                } => {
                    answer.scores.push(logprobs);
                    assert_eq!(position as usize, answer.scores.len());
                    assert!(answer.tokens.is_empty(), "before the first token");
                }
                Event::Token {
                    token, logprobs, ..
                } => {
                    answer.tokens.push(token);
                    answer.logprobs.push(logprobs);
                }
                Event::Hidden { position, row, .. } => {
                    assert_eq!(position as usize, answer.hidden.len());
                    answer.hidden.push(row);
                }
                Event::Finished {
                    reason,
                    cached_tokens,
                    ..
                } => {
                    answer.reason = Some(reason);
                    let prompt = self.requests[&id].request.prompt.len();
                    assert!(
                        (cached_tokens as usize) < prompt,
                        "a token is always computed"
                    );
                    let open = self.open.get_mut(&id).expect("it was open");
                    *open -= 1;
                    if *open == 0 {
                        self.open.remove(&id);
                    }
                }
            }
        }
    }

    /// The oldest request must get on.
    fn grow_impatient(&mut self) {
        let oldest = self.open.keys().next().copied();
        match (self.oldest, oldest) {
            (Some((before, since)), Some(now)) if before == now => {
                let patience = self.setup.patience(&self.requests[&now].request);
                assert!(self.now - since <= patience, "{now:?} starves");
            }
            (_, oldest) => self.oldest = oldest.map(|id| (id, self.now)),
        }
    }

    /// Steps until nothing is left to do; that it ends is a matter of patience.
    fn drain(&mut self) {
        while self.tick() != Progress::Idle {}
        assert!(self.open.is_empty() && self.engine.is_idle());
        let stats = self.engine.stats();
        assert_eq!((stats.running, stats.waiting), (0, 0));
        let pool = self.setup.pool();
        assert_eq!(
            (stats.kv_blocks_total, stats.kv_blocks_free),
            (pool, pool),
            "a block leaked"
        );
    }

    /// Every answer is that of the request alone, or the start of it.
    fn judge(&self) {
        for ((id, choice), answer) in &self.answers {
            let arrival = &self.requests[id];
            let expected = self.setup.expected(&arrival.request, *choice);
            let cut = match answer.reason.as_ref().expect("drained") {
                FinishReason::Cancelled => {
                    let this = arrival.cancel_choice.is_some_and(|(c, _)| c == *choice);
                    assert!(arrival.cancel.is_some() || this, "nobody cancelled it");
                    true
                }
                FinishReason::Timeout => {
                    assert!(arrival.timeout.is_some());
                    true
                }
                reason => {
                    assert_eq!(*reason, expected.reason, "{id:?} {choice}");
                    false
                }
            };
            let scores = answer.scores.len();
            if *choice == 0 {
                assert_eq!(answer.scores, expected.scores[..scores], "{id:?}");
                // Another choice goes on with them where this one was cancelled, and some ends only where they are all.
                let asked = &arrival.request;
                let ended = |c| self.answers[&(*id, c)].reason.as_ref();
                let cut = |c| {
                    matches!(
                        ended(c),
                        Some(FinishReason::Cancelled | FinishReason::Timeout)
                    )
                };
                let all_cut = (0..asked.choices).all(cut);
                assert!(
                    all_cut || scores == expected.scores.len(),
                    "{id:?}: {scores} scores"
                );
            }
            let (tokens, hidden) = (answer.tokens.len(), answer.hidden.len());
            assert!(tokens <= expected.tokens.len() && hidden <= expected.hidden.len());
            assert_eq!(answer.tokens, expected.tokens[..tokens], "{id:?} {choice}");
            assert_eq!(answer.logprobs, expected.logprobs[..tokens]);
            assert_eq!(answer.hidden, expected.hidden[..hidden]);
            assert!(cut || tokens == expected.tokens.len() && hidden == expected.hidden.len());
        }
    }
}

/// As many cases as it takes for so many arrivals, the same ones each time.
fn runs(cases: u32) -> Runs {
    Runs {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..Runs::default()
    }
}

fn serve(setup: Setup, arrivals: Vec<Arrival>) -> (Stats, usize) {
    let mut world = World::new(setup);
    let count = arrivals.len();
    for arrival in arrivals {
        for _ in 0..arrival.wait {
            world.tick();
        }
        world.arrive(arrival);
    }
    world.drain();
    world.judge();
    assert_eq!(world.requests.len() + world.refused, count);
    (world.engine.stats(), count)
}

/// Counts what happened, so that the test knows that it tests something.
#[derive(Debug, Default)]
struct Seen {
    arrivals: usize,
    preemptions: u64,
    hits: u64,
    accepted: u64,
    rejected: u64,
}

fn simulate(cases: u32, count: usize) -> Seen {
    use std::cell::RefCell;
    let seen = RefCell::new(Seen::default());
    let mut runner = proptest::test_runner::TestRunner::new(runs(cases));
    let strategy =
        (setups(), 2u32..12).prop_flat_map(move |(setup, gap)| (Just(setup), arrivals(count, gap)));
    runner
        .run(&strategy, |(setup, arrivals)| {
            let (stats, count) = serve(setup, arrivals);
            let mut seen = seen.borrow_mut();
            seen.arrivals += count;
            seen.preemptions += stats.preemptions;
            seen.hits += stats.prefix_hit_tokens;
            seen.accepted += stats.accepted_tokens;
            seen.rejected += stats.drafted_tokens - stats.accepted_tokens;
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    seen.into_inner()
}

#[test]
fn every_choice_gets_its_own_answer_and_all_blocks_come_back() {
    let seen = simulate(1000, 20);
    println!("{seen:?}");
    assert!(seen.preemptions > 100, "{seen:?}");
}

#[test]
fn a_hundred_thousand_arrivals() {
    let seen = simulate(500, 450);
    println!("{seen:?}");
    let Seen {
        arrivals,
        preemptions,
        hits,
        accepted,
        rejected,
    } = seen;
    assert!(arrivals > 100_000);
    assert!(preemptions > 1000 && hits > 100_000, "reuse is exercised");
    assert!(
        accepted > 10_000 && rejected > 10_000,
        "guesses are exercised"
    );
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Submit,
    Poll,
    Rows,
}

proptest! {
    #![proptest_config(runs(1000))]

    #[test]
    fn a_failed_step_ends_its_own_requests_alone(
        setup in setups(),
        requests in prop::collection::vec(requests(), 1..20),
        at in 0u64..40,
        fault in prop_oneof![Just(Fault::Submit), Just(Fault::Poll), Just(Fault::Rows)],
    ) {
        let mut device = setup.device();
        *match fault {
            Fault::Submit => &mut device.fail_submit,
            Fault::Poll => &mut device.fail_poll,
            Fault::Rows => &mut device.fail_rows,
        } = Some(at);
        let mut world = World::new(setup.clone());
        world.engine = Engine::new(device, setup.config);
        for request in requests {
            let (cancel, cancel_choice, timeout) = (None, None, None);
            world.arrive(Arrival { request, wait: 0, cancel, cancel_choice, timeout });
        }
        world.drain();
        let mut failed = Vec::new();
        for ((id, choice), answer) in &world.answers {
            let expected = setup.expected(&world.requests[id].request, *choice);
            if let Some(FinishReason::Error(text)) = &answer.reason {
                failed.push(*id);
                prop_assert!(text.contains("on purpose"), "{}", text);
                prop_assert!(expected.tokens.starts_with(&answer.tokens));
            } else {
                prop_assert_eq!(answer.reason.as_ref(), Some(&expected.reason));
                prop_assert_eq!(&answer.tokens, &expected.tokens);
                prop_assert_eq!(&answer.hidden, &expected.hidden);
            }
        }
        failed.dedup();
        prop_assert!(failed.len() <= setup.config.limits.max_seqs as usize);
    }
}
