//! `fastrun::Runner` over a real model: from many threads, to the end of each request.

use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use e2e::bundle;
use fastrun::chat::{ChatRequest, message};
use fastrun::grammar::Grammar;
use fastrun::runner::{TokenInfo, Usage};
use fastrun::{
    Error, FinishReason, GenerateRequest, Generation, Input, Runner, RunnerOptions, Update,
};

/// One for all tests of this program, which run at once.
fn runner() -> Runner {
    static RUNNER: OnceLock<Runner> = OnceLock::new();
    let open = || Runner::open(bundle()).expect("the bundle is good");
    RUNNER.get_or_init(open).clone()
}

/// The likeliest text.
fn greedy(input: impl Into<Input>, tokens: u32) -> GenerateRequest {
    let mut request = GenerateRequest::new(input);
    request.max_tokens = Some(tokens);
    request.sampling.temperature = 0.0;
    request
}

/// An answer that nothing but its caller ends soon.
fn endless() -> GenerateRequest {
    let mut request = GenerateRequest::new("One, two, three,");
    request.ignore_eos = true;
    request
}

#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<TokenInfo>,
    reason: FinishReason,
    usage: Usage,
}

/// All answers of a request, by choice.
fn collect(generation: Generation, choices: usize) -> Vec<Answer> {
    let mut answers: Vec<(String, Vec<TokenInfo>)> = vec![Default::default(); choices];
    let mut ends = vec![None; choices];
    for update in generation {
        match update {
            Update::Prompt { .. } => panic!("nobody asked for it"),
            Update::Delta {
                choice,
                text,
                tokens,
            } => {
                assert!(
                    ends[choice as usize].is_none(),
                    "nothing comes after the end"
                );
                answers[choice as usize].0 += &text;
                answers[choice as usize].1.extend(tokens);
            }
            Update::Finished {
                choice,
                reason,
                usage,
                ..
            } => {
                let before = ends[choice as usize].replace((reason, usage));
                assert_eq!(before, None, "there is one end");
            }
        }
    }
    let ends = ends.into_iter().map(|end| end.expect("each ends"));
    let answer = |((text, tokens), (reason, usage))| Answer {
        text,
        tokens,
        reason,
        usage,
    };
    answers.into_iter().zip(ends).map(answer).collect()
}

fn answer(request: GenerateRequest) -> Answer {
    let generation = runner().generate(request).expect("the request is valid");
    collect(generation, 1).remove(0)
}

#[test]
fn threads_get_what_they_would_alone() {
    let prompts = [
        "Once upon a time",
        "The capital of France is",
        "def main():",
    ];
    let alone = prompts.map(|prompt| answer(greedy(prompt, 16)));
    thread::scope(|scope| {
        for i in 0..9 {
            let expected = &alone[i % 3];
            scope.spawn(move || {
                let found = answer(greedy(prompts[i % 3], 16));
                assert_eq!(
                    (&found.text, &found.tokens),
                    (&expected.text, &expected.tokens)
                );
            });
        }
    });
    let spelled: Vec<u8> = alone[1]
        .tokens
        .iter()
        .flat_map(|t| t.bytes.clone())
        .collect();
    assert_eq!(spelled, alone[1].text.as_bytes());
    assert!(alone[1].text.contains("Paris"), "{}", alone[1].text);
    assert_eq!(alone[1].usage.completion_tokens, 16);
}

#[test]
fn a_chat_is_encoded_by_its_template() {
    let chat = ChatRequest::new(
        vec![message("user", "What is the capital of France?")],
        SystemTime::UNIX_EPOCH,
    );
    let ids = runner()
        .encode(&chat.clone().into())
        .expect("it has a template");
    let of_chat = answer(greedy(chat, 32));
    assert_eq!(of_chat.usage.prompt_tokens as usize, ids.len());
    assert_eq!(of_chat.reason, FinishReason::Stop);
    assert_eq!(of_chat.text, answer(greedy(ids, 32)).text);
}

#[test]
fn choices_are_what_their_seeds_give() {
    let mut request = GenerateRequest::new("Once upon a time");
    request.max_tokens = Some(12);
    request.sampling.seed = 40;
    request.choices = 3;
    let generation = runner().generate(request.clone()).expect("it is valid");
    let together = collect(generation, 3);
    for (i, found) in together.iter().enumerate() {
        let mut one = request.clone();
        one.choices = 1;
        one.sampling.seed = 40 + i as u64;
        let alone = answer(one);
        assert_eq!(found.reason, FinishReason::Length);
        assert_eq!((&found.text, &found.tokens), (&alone.text, &alone.tokens));
    }
}

#[test]
fn a_stop_string_ends_its_choice_alone() {
    let whole = answer(greedy("One, two, three,", 12));
    let (before, _) = whole.text.split_once(" six").expect("it counts");
    let mut request = greedy("One, two, three,", 12);
    request.stop = vec!["no such string".into(), " six".into()];
    let stopped = answer(request.clone());
    assert_eq!(stopped.text, before);
    assert_eq!(stopped.reason, FinishReason::Stop);
    assert!(stopped.usage.completion_tokens < 12);

    // Of sampled answers some have the string and some not: each is its own, cut.
    request.sampling.temperature = 0.9;
    request.choices = 4;
    request.max_tokens = Some(16);
    request.stop = vec![" six".into()];
    let generation = runner().generate(request.clone()).expect("it is valid");
    let cut = collect(generation, 4);
    request.stop.clear();
    let generation = runner().generate(request).expect("it is valid");
    for (cut, whole) in cut.iter().zip(collect(generation, 4)) {
        match whole.text.split_once(" six") {
            Some((before, _)) => {
                assert_eq!((&*cut.text, &cut.reason), (before, &FinishReason::Stop))
            }
            None => assert_eq!(cut.text, whole.text),
        }
    }
}

#[test]
fn whoever_lets_go_cancels() {
    let runner = runner();
    // By word, from another thread, and then by dropping.
    let generation = runner.generate(endless()).expect("it is valid");
    let canceller = generation.canceller();
    let thread = thread::spawn(move || canceller.cancel());
    let ended = collect(generation, 1).remove(0);
    thread.join().expect("it only cancels");
    assert_eq!(ended.reason, FinishReason::Cancelled);

    let (sender, updates) = mpsc::channel();
    let sink = move |update| sender.send(update).expect("the test waits");
    let handle = runner.submit(endless(), sink).expect("it is valid");
    drop(handle);
    let last = updates.iter().last().expect("it has an end");
    assert!(matches!(
        last,
        Update::Finished {
            reason: FinishReason::Cancelled,
            ..
        }
    ));
}

#[test]
fn a_request_outlives_its_runner() {
    let generation = Runner::open(bundle())
        .expect("the bundle is good")
        .generate(greedy("The capital of France is", 4))
        .expect("it is valid");
    let (text, reason) = generation.text();
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(reason, FinishReason::Length);
}

#[test]
fn time_ends_a_request() {
    let mut request = endless();
    request.timeout = Some(Duration::ZERO);
    assert_eq!(answer(request.clone()).reason, FinishReason::Timeout);
    request.timeout = Some(Duration::MAX);
    request.max_tokens = Some(2);
    assert_eq!(answer(request).reason, FinishReason::Length);
}

#[test]
fn logprobs_are_of_the_models_distribution() {
    let mut request = greedy("The capital of France is", 4);
    request.logprobs = Some(5);
    for token in answer(request.clone()).tokens {
        assert_eq!(token.top.len(), 5);
        assert_eq!(
            (token.top[0].id, Some(token.top[0].logprob)),
            (token.id, token.logprob)
        );
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        let sum: f32 = token.top.iter().map(|t| t.logprob.exp()).sum();
        assert!(sum <= 1.0 + 1e-4, "{sum}");
    }
    request.logprobs = Some(0);
    for token in answer(request.clone()).tokens {
        assert!(token.logprob.is_some_and(|l| l <= 0.0) && token.top.is_empty());
    }
    request.logprobs = None;
    let plain = answer(request);
    assert!(plain.tokens.iter().all(|t| t.logprob.is_none()));
}

#[test]
fn a_bias_and_a_grammar_decide() {
    let free = answer(greedy("The capital of France is", 1));
    let mut request = greedy("The capital of France is", 1);
    request.bias = vec![(free.tokens[0].id, f32::NEG_INFINITY)];
    match runner().generate(request.clone()) {
        Ok(generation) => {
            let other = collect(generation, 1).remove(0);
            assert_ne!(other.tokens[0].id, free.tokens[0].id);
        }
        Err(error) => assert!(matches!(error, Error::User(_)), "{error}"),
    }
    request.bias[0].1 = -100.0;
    assert_ne!(answer(request).tokens[0].id, free.tokens[0].id);

    let mut request = greedy("Her phone number is", 32);
    request.grammar = Some(Grammar::Regex("[0-9]{3}-[0-9]{4}".into()));
    let number = answer(request.clone());
    assert_eq!(number.text.len(), 8, "{}", number.text);
    assert_eq!(&number.text[3..4], "-");
    assert_eq!(number.reason, FinishReason::Stop);
    request.grammar = Some(Grammar::Regex("[".into()));
    let error = runner().generate(request).expect_err("it is no expression");
    assert!(
        matches!(&error, Error::User(text) if text.contains("regular expression")),
        "{error}"
    );
}

#[test]
fn embeddings_are_directions_and_repeat() {
    let runner = runner();
    let texts = [
        "A cat sat on the mat.",
        "A dog lay on the rug.",
        "0x7f, EINVAL; goto fail",
    ];
    let all = runner
        .embed_all(texts.map(Input::from))
        .expect("they are valid");
    let dot = |a: usize, b: usize| -> f32 {
        all[a]
            .values
            .iter()
            .zip(&all[b].values)
            .map(|(x, y)| x * y)
            .sum()
    };
    assert_eq!(all[0].values.len(), runner.model().embedding as usize);
    assert!((dot(0, 0) - 1.0).abs() < 1e-4);
    assert!(dot(0, 1) > dot(0, 2), "{} and {}", dot(0, 1), dot(0, 2));
    let alone = runner.embed(texts[1]).expect("it is valid");
    assert_eq!(alone, all[1], "alone or among others");
    let ids = runner.encode(&texts[1].into()).expect("it is text");
    assert_eq!(alone.tokens, ids.len());
    let error = runner.embed(Vec::new()).expect_err("there is no text");
    assert!(matches!(error, Error::User(_)), "{error}");
}

#[test]
fn a_common_prefix_is_computed_once() {
    // Of their own, so that no other test's prompts are in the way.
    let runner = Runner::open(bundle()).expect("the bundle is good");
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(12);
    let ask = |end: &str, salt| {
        let mut request = greedy(format!("{long}{end}"), 4);
        request.cache_salt = salt;
        collect(runner.generate(request).expect("it is valid"), 1).remove(0)
    };
    let first = ask("The fox", 0);
    let second = ask("The dog", 0);
    assert_eq!(first.usage.cached_tokens, 0);
    assert!(second.usage.cached_tokens >= 96, "{:?}", second.usage);
    assert_eq!(ask("The dog", 1).usage.cached_tokens, 0, "of another salt");
    assert_eq!(ask("The dog", 1).text, second.text);
    let stats = runner.stats();
    assert!(stats.prefix_hit_tokens >= u64::from(second.usage.cached_tokens));
    assert!(stats.steps > 0 && stats.generated_tokens >= 16);
}

#[test]
fn mistakes_are_the_users() {
    let runner = runner();
    let context = runner.model().context as usize;
    let mut bad_n = greedy("a", 1);
    bad_n.choices = 0;
    let mut bad_temperature = greedy("a", 1);
    bad_temperature.sampling.temperature = -1.0;
    for (request, what) in [
        (greedy(vec![1; context + 1], 1), "context"),
        (greedy(Vec::new(), 1), "empty"),
        (greedy(vec![u32::MAX], 1), "vocabulary"),
        (bad_n, "choices"),
        (bad_temperature, "temperature"),
        (
            greedy(
                ChatRequest::new(vec![message("", "Hi")], SystemTime::now()),
                1,
            ),
            "role",
        ),
    ] {
        let error = runner.generate(request).expect_err(what);
        assert!(
            matches!(&error, Error::User(text) if text.contains(what)),
            "{what}: {error}"
        );
    }
    let open = |options: RunnerOptions| Runner::open_with(bundle(), &options).map(drop);
    let error = open(RunnerOptions {
        threads: Some(0),
        ..RunnerOptions::default()
    });
    assert!(
        matches!(&error, Err(Error::User(text)) if text.contains("threads")),
        "{error:?}"
    );
    let verified = open(RunnerOptions {
        verify: true,
        ..RunnerOptions::default()
    });
    assert_eq!(verified, Ok(()));
}

#[test]
fn a_sink_that_asks_is_refused() {
    let runner = runner();
    let (sender, outcome) = mpsc::channel();
    let other = runner.clone();
    let sink = move |update: Update| {
        if let Update::Finished { .. } = update {
            let asked = other.submit(greedy("a", 1), |_| {}).map(drop);
            sender.send(asked).expect("the test waits");
        }
    };
    let _handle = runner.submit(greedy("a", 1), sink).expect("it is valid");
    let error = outcome
        .recv()
        .expect("it is called")
        .expect_err("it is refused");
    assert!(
        matches!(&error, Error::User(text) if text.contains("sink")),
        "{error}"
    );
}

#[test]
fn the_last_runner_may_go_in_a_sink() {
    let runner = Runner::open(bundle()).expect("the bundle is good");
    let (sender, done) = mpsc::channel();
    let mut held = Some(runner.clone());
    let slot = Arc::new(std::sync::Mutex::new(None));
    let in_sink = slot.clone();
    let sink = move |update: Update| {
        if let Update::Finished { .. } = update {
            // The request's handle, and so the last of the runner.
            drop(in_sink.lock().expect("nobody panics").take());
            drop(held.take());
            sender.send(()).expect("the test waits");
        }
    };
    let guard = slot.lock().expect("nobody panics");
    let handle = runner.submit(greedy("a", 2), sink).expect("it is valid");
    drop(runner);
    let mut guard = guard;
    *guard = Some(handle);
    drop(guard);
    done.recv().expect("the thread goes on");
}

#[test]
fn shutting_down_ends_everything_and_takes_nothing() {
    let runner = Runner::open(bundle()).expect("the bundle is good");
    let running: Vec<Generation> = (0..3)
        .map(|_| runner.generate(endless()).expect("it is valid"))
        .collect();
    assert!(!runner.wait_idle(Some(Duration::from_millis(1))));
    runner.shutdown();
    for generation in running {
        assert_eq!(generation.text().1, FinishReason::Cancelled);
    }
    let error = runner
        .generate(greedy("a", 1))
        .expect_err("it is shut down");
    assert!(matches!(error, Error::Busy(_)), "{error}");
    let error = runner.embed("a").expect_err("it is shut down");
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert!(runner.wait_idle(Some(Duration::ZERO)));
}

#[test]
fn the_queue_is_bounded() {
    let options = RunnerOptions {
        queue: 2,
        ..RunnerOptions::default()
    };
    let runner = Runner::open_with(bundle(), &options).expect("the bundle is good");
    let most = runner.model().max_sequences as usize + 2;
    let mut running = Vec::new();
    let error = loop {
        match runner.generate(endless()) {
            Ok(generation) => running.push(generation),
            Err(error) => break error,
        }
        assert!(running.len() <= most, "{} are taken", running.len());
    };
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert!(running.len() >= 2);
}
