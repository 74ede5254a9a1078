use super::*;
use crate::Error;
use crate::device::LogProbs;
use proptest::prelude::*;

fn request(choices: u32) -> Request {
    let mut request = Request {
        prompt: vec![1, 2, 3],
        choices,
        ..Request::default()
    };
    request.sampling.seed = 40;
    request
}

fn token(key: u64, choice: u32, token: u32) -> News {
    News::Token {
        key,
        choice,
        token,
        logprobs: None,
        cached: None,
    }
}

fn finished(key: u64, choice: u32) -> News {
    News::Finished {
        key,
        choice,
        reason: FinishReason::Stop,
        cached: 16,
    }
}

/// What a worker is given: key, choices, seed, tokens so far.
fn given(ledger: &mut Ledger, id: RequestId) -> Vec<(u64, u32, u64, Vec<u32>)> {
    let tasks = ledger.tasks(id).into_iter();
    tasks
        .map(|t| (t.key, t.choices, t.sampling.seed, t.answered))
        .collect()
}

#[test]
fn a_request_goes_on_from_its_tokens() {
    let mut ledger = Ledger::default();
    let id = ledger.add(request(1));
    assert_eq!(given(&mut ledger, id), [(0, 1, 40, vec![])]);
    for drawn in [7, 8] {
        let told = ledger.hear(token(0, 0, drawn));
        let expected = Event::Token {
            id,
            choice: 0,
            token: drawn,
            logprobs: None,
        };
        assert_eq!(told, Some(Told::Engine(expected)));
    }
    ledger.worker_died(true, 8);
    assert_eq!(ledger.hear(token(0, 0, 9)), None, "the task is gone");
    assert_eq!(given(&mut ledger, id), [(1, 1, 40, vec![7, 8])]);
    assert!(ledger.hear(finished(1, 0)).is_some());
    assert!(ledger.ids().is_empty() && !ledger.has_tasks());
}

#[test]
fn choices_go_on_one_by_one_with_their_seeds() {
    let mut ledger = Ledger::default();
    let id = ledger.add(request(3));
    assert_eq!(given(&mut ledger, id), [(0, 3, 40, vec![])]);
    ledger.worker_died(true, 8);
    // None has begun: they go on together.
    assert_eq!(given(&mut ledger, id), [(1, 3, 40, vec![])]);
    ledger.hear(token(1, 0, 5));
    ledger.hear(token(1, 2, 6));
    ledger.hear(finished(1, 0));
    assert_eq!(ledger.open_choices(), 2);
    ledger.worker_died(true, 8);
    let expected = [(2, 1, 41, vec![]), (3, 1, 42, vec![6])];
    assert_eq!(given(&mut ledger, id), expected);
    let told = ledger.hear(token(3, 0, 7));
    assert!(matches!(
        told,
        Some(Told::Engine(Event::Token { choice: 2, .. }))
    ));
    let (told, task) = ledger.end_choice(id, 2, FinishReason::Cancelled);
    assert!(told.is_some());
    assert_eq!(task, Some((3, 0)));
    assert_eq!(ledger.hear(finished(3, 0)), None, "it has ended");
    assert!(ledger.hear(finished(2, 0)).is_some());
    assert!(ledger.ids().is_empty());
}

#[test]
fn the_first_token_tells_what_was_cached() {
    let mut ledger = Ledger::default();
    let id = ledger.add(request(1));
    ledger.tasks(id);
    let mut first = token(0, 0, 5);
    if let News::Token { cached, .. } = &mut first {
        *cached = Some(32);
    }
    ledger.hear(first);
    ledger.worker_died(true, 8);
    ledger.tasks(id);
    let told = ledger.hear(finished(1, 0));
    assert!(matches!(
        told,
        Some(Told::Engine(Event::Finished {
            cached_tokens: 32,
            ..
        }))
    ));
}

#[test]
fn deadlines_end_with_their_requests() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let mut timed = request(2);
    timed.deadline = Some(now);
    let id = ledger.add(timed);
    ledger.tasks(id);
    assert_eq!(ledger.deadline(), Some((now, id)));
    let (told, keys) = ledger.end(id, &FinishReason::Timeout);
    assert_eq!((told.len(), keys), (2, vec![0]));
    assert_eq!(ledger.deadline(), None);
    assert!(ledger.end(id, &FinishReason::Timeout).0.is_empty());
}

#[test]
fn what_kills_workers_is_found_and_nobody_else_suffers() {
    let mut ledger = Ledger::default();
    let ids: Vec<RequestId> = (0..4).map(|_| ledger.add(request(1))).collect();
    let poison = ids[1];
    let mut died = 0;
    // A worker dies as soon as it has that one, before it tells anything; a task alone gets on.
    let given_up = loop {
        let (others, suspects) = ledger.order();
        let mut lot = others.clone();
        others.iter().for_each(|&id| drop(ledger.tasks(id)));
        for id in suspects {
            if lot.contains(&poison) {
                break;
            }
            for task in ledger.tasks(id) {
                if id != poison {
                    ledger.hear(token(task.key, 0, 5));
                    assert!(ledger.is_cleared(id));
                }
            }
            lot.push(id);
        }
        assert!(lot.contains(&poison), "{lot:?}");
        died += 1;
        let given_up = ledger.worker_died(true, 4);
        if !given_up.is_empty() {
            break given_up;
        }
    };
    assert_eq!((given_up, died), (vec![poison], REQUEST_DEATHS));
}

#[test]
fn those_that_wait_and_deaths_that_are_nobodys_fault_are_not_held_against_anyone() {
    let mut ledger = Ledger::default();
    let ids: Vec<RequestId> = (0..3).map(|_| ledger.add(request(1))).collect();
    for _ in 0..REQUEST_DEATHS - 1 {
        ids.iter().for_each(|&id| drop(ledger.tasks(id)));
        assert!(ledger.worker_died(true, 2).is_empty());
    }
    assert!(!ledger.is_cleared(ids[0]) && !ledger.is_cleared(ids[1]));
    assert!(ledger.is_cleared(ids[2]), "it can't have run");
    for _ in 0..9 {
        ids.iter().for_each(|&id| drop(ledger.tasks(id)));
        assert!(ledger.worker_died(false, 2).is_empty());
    }
}

/// A worker that draws token `n` of choice `c` as a function of both.
fn drawn(seed: u64, n: usize) -> u32 {
    (seed * 1000 + n as u64) as u32
}

proptest! {
    /// Whenever workers die, each answer comes once and whole.
    #[test]
    fn nothing_is_lost_and_nothing_repeated(
        choices in prop::collection::vec(1u32..4, 1..5),
        script in prop::collection::vec((0usize..6, 0usize..8), 1..120),
    ) {
        const LENGTH: usize = 6;
        let mut ledger = Ledger::default();
        let mut told: BTreeMap<(RequestId, u32), Vec<u32>> = BTreeMap::new();
        let mut ends: BTreeMap<(RequestId, u32), u32> = BTreeMap::new();
        let mut hear = |told_now: Option<Told>| match told_now {
            Some(Told::Engine(Event::Token { id, choice, token, .. })) => told.entry((id, choice)).or_default().push(token),
            Some(Told::Engine(Event::Finished { id, choice, .. })) => *ends.entry((id, choice)).or_default() += 1,
            Some(other) => panic!("{other:?}"),
            None => {}
        };
        let ids: Vec<RequestId> = choices.iter().map(|&n| ledger.add(request(n))).collect();
        // Answers that the worker has: key, choice, seed, tokens.
        let mut running: Vec<(u64, u32, u64, usize)> = Vec::new();
        let start = |ledger: &mut Ledger| -> Vec<(u64, u32, u64, usize)> {
            let ids = ledger.ids();
            let tasks = ids.into_iter().flat_map(|id| ledger.tasks(id)).collect::<Vec<_>>();
            let answers = |t: crate::supervise::message::Task| (0..t.choices)
                .map(move |c| (t.key, c, t.sampling.seed + u64::from(c), t.answered.len()));
            tasks.into_iter().flat_map(answers).collect()
        };
        running.extend(start(&mut ledger));
        let steps = script.into_iter().chain(std::iter::repeat_n((1, 0), 200));
        for (what, at) in steps {
            if what == 0 {
                ledger.worker_died(false, 8);
                running = start(&mut ledger);
            } else if !running.is_empty() {
                let at = at % running.len();
                let (key, choice, seed, n) = &mut running[at];
                hear(ledger.hear(token(*key, *choice, drawn(*seed, *n))));
                *n += 1;
                if *n == LENGTH {
                    let (key, choice) = (*key, *choice);
                    hear(ledger.hear(finished(key, choice)));
                    running.remove(at);
                }
            }
        }
        prop_assert!(ledger.ids().is_empty() && !ledger.has_tasks());
        for (&id, &n) in ids.iter().zip(&choices) {
            for choice in 0..n {
                let expected: Vec<u32> = (0..LENGTH).map(|i| drawn(40 + u64::from(choice), i)).collect();
                prop_assert_eq!(&told[&(id, choice)], &expected);
                prop_assert_eq!(ends[&(id, choice)], 1);
            }
        }
    }
}

#[test]
fn an_error_ends_all_of_a_request() {
    let mut ledger = Ledger::default();
    let id = ledger.add(request(2));
    ledger.tasks(id);
    ledger.hear(finished(0, 1));
    let reason = FinishReason::Error(Error::Fault("gone".into()).to_string());
    assert_eq!(ledger.end(id, &reason).0.len(), 1);
    assert!(ledger.ids().is_empty());
}

#[test]
fn a_prompts_scores_are_told_once() {
    let mut ledger = Ledger::default();
    let asked = Request {
        prompt_logprobs: Some(2),
        ..request(2)
    };
    let id = ledger.add(asked);
    let scores = vec![LogProbs::default(); 2];
    let scored = |key| News::Scored {
        key,
        scores: scores.clone(),
    };
    assert_eq!(ledger.tasks(id)[0].prompt_logprobs, Some(2));
    // The first worker dies before it has them all, the second one behind them.
    ledger.worker_died(true, 8);
    assert_eq!(ledger.hear(scored(0)), None, "the task is gone");
    assert_eq!(ledger.tasks(id)[0].prompt_logprobs, Some(2));
    let told = Told::Scored {
        id,
        scores: scores.clone(),
    };
    assert_eq!(ledger.hear(scored(1)), Some(told));
    ledger.worker_died(true, 8);
    let tasks = ledger.tasks(id);
    assert_eq!((tasks.len(), tasks[0].prompt_logprobs), (1, None));
    ledger.hear(token(2, 1, 7));
    ledger.worker_died(true, 8);
    let left = ledger.tasks(id);
    assert!(left.len() == 2 && left.iter().all(|task| task.prompt_logprobs.is_none()));
}
