//! The runner's thread over devices that misbehave.

use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bundle_format::plan::Limits;
use bundle_format::tokenizer::{Attr, ModelKind, PreTokenizer, Special, Tables};

use super::backend::Local;
use super::shared::Shared;
use super::update::Update;
use super::worker::{Command, Submission, Wanted, serve};
use crate::device::{Device, Outcome, RowOutcome, Step, Ticket};
use crate::tokenizer::Tokenizer;
use crate::{Config, Engine, Error, FinishReason, Request, RequestId};

const LIMITS: Limits = Limits {
    max_tokens: 64,
    max_seqs: 4,
    max_rows: 4,
    context: 1024,
};

/// Draws `a` for every row; from a step on it panics or fails, or each step waits for a word.
struct Script {
    steps: u64,
    panic_at: Option<u64>,
    fail_at: Option<u64>,
    /// Polls that find each step running.
    polls: u32,
    left: u32,
    rows: usize,
}

const SCRIPT: Script = Script {
    steps: 0,
    panic_at: None,
    fail_at: None,
    polls: 0,
    left: 0,
    rows: 0,
};

impl Device for Script {
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        let number = self.steps;
        self.steps += 1;
        assert!(self.panic_at.is_none_or(|at| number < at), "on purpose");
        if self.fail_at.is_some_and(|at| number >= at) {
            return Err(Error::Unsupported("it failed on purpose".into()));
        }
        self.left = self.polls;
        self.rows = step.rows.len();
        Ok(Ticket(number))
    }

    fn poll(&mut self, _: Ticket) -> Result<Option<Outcome>, Error> {
        if self.left > 0 {
            self.left -= 1;
            return Ok(None);
        }
        let row = RowOutcome {
            token: Some(u32::from(b'a')),
            ..RowOutcome::default()
        };
        Ok(Some(Outcome {
            rows: vec![row; self.rows],
        }))
    }

    fn kv_blocks(&self) -> &[u32] {
        &[256]
    }
}

/// A vocabulary of bytes, and one token that ends an answer.
fn vocabulary() -> Vec<u8> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"<end>".to_vec());
    let mut attrs = vec![Attr::NORMAL; 256];
    attrs.push(Attr::CONTROL);
    let tables = Tables {
        model: ModelKind::ByteBpe,
        pre: PreTokenizer::Gpt2,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        ignore_merges: false,
        space_joins: None,
        tokens,
        attrs,
        scores: None,
        byte_tokens: std::array::from_fn(|byte| Some(byte as u32)),
        merges: Vec::new(),
        texts: Vec::new(),
        special: [None; Special::ALL.len()],
        end_of_generation: vec![256],
        chat_template: None,
    };
    tables.write().expect("the tables are valid")
}

/// A serving thread, without a bundle.
struct Thread {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    thread: thread::JoinHandle<()>,
}

type Updates = Receiver<Update>;

impl Thread {
    fn start(device: Script) -> Thread {
        let shared = Arc::new(Shared::default());
        let (commands, received) = mpsc::channel();
        let thread = {
            let shared = shared.clone();
            thread::spawn(move || {
                let section = vocabulary();
                let tokenizer = Tokenizer::open(&section).expect("the section is valid");
                let engine = Engine::new(device, Config::new(LIMITS, 257));
                serve(Local::new(engine), tokenizer, &shared, &received);
            })
        };
        Thread {
            commands,
            shared,
            thread,
        }
    }

    fn submit(&self, request: Request) -> Result<(RequestId, Updates), Error> {
        let (sender, updates) = mpsc::channel();
        let sink = move |update| {
            let _ = sender.send(update);
        };
        let id = self.submit_to(request, Box::new(sink))?;
        Ok((id, updates))
    }

    fn submit_to(
        &self,
        request: Request,
        sink: Box<dyn FnMut(Update) + Send>,
    ) -> Result<RequestId, Error> {
        let (reply, answer): (SyncSender<Result<RequestId, Error>>, _) = mpsc::sync_channel(1);
        let submission = Submission {
            request,
            wanted: Wanted::Answers {
                stop: vec!["aab".into()],
                sink,
            },
            start: Instant::now(),
        };
        self.commands
            .send(Command::Submit {
                request: Box::new(submission),
                reply,
            })
            .expect("the thread listens");
        answer.recv().expect("it is answered")
    }

    fn stop(self) {
        self.commands.send(Command::Stop).expect("it listens");
        self.thread.join().expect("it ends");
    }
}

fn request(tokens: Option<u32>) -> Request {
    Request {
        prompt: vec![1, 2, 3],
        max_tokens: tokens,
        ..Request::default()
    }
}

/// The text of an answer, and its end.
fn collect(updates: &Updates) -> (String, FinishReason) {
    let mut all = String::new();
    loop {
        match updates.recv().expect("an answer has an end") {
            Update::Delta { text, .. } => all += &text,
            Update::Prompt { .. } => panic!("nobody asked for it"),
            Update::Finished { reason, .. } => return (all, reason),
        }
    }
}

#[test]
fn tokens_come_with_their_text_and_the_held_text_at_the_end() {
    for polls in [0, 3] {
        let thread = Thread::start(Script { polls, ..SCRIPT });
        let (_, updates) = thread.submit(request(Some(5))).expect("it is valid");
        let updates: Vec<Update> = updates.iter().collect();
        let texts: Vec<(&str, usize)> = updates
            .iter()
            .filter_map(|update| match update {
                Update::Delta { text, tokens, .. } => Some((text.as_str(), tokens.len())),
                Update::Prompt { .. } | Update::Finished { .. } => None,
            })
            .collect();
        // "aa" may be the start of the stop string.
        let expected = [("", 1), ("", 1), ("a", 1), ("a", 1), ("aaa", 1)];
        assert_eq!(texts, expected);
        let Some(Update::Finished {
            reason,
            usage,
            timings,
            ..
        }) = updates.last()
        else {
            panic!("the last is the end");
        };
        assert_eq!(reason, &FinishReason::Length);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 5));
        assert!(
            timings
                .first_token
                .is_some_and(|first| first <= timings.total)
        );
        assert!(thread.shared.wait_idle(None));
        thread.stop();
    }
}

#[test]
fn a_panic_ends_every_request_and_refuses_the_next() {
    let thread = Thread::start(Script {
        panic_at: Some(6),
        ..SCRIPT
    });
    // Those that come after the panic are refused.
    let requests: Vec<_> = (0..6).map(|_| thread.submit(request(None))).collect();
    assert!(requests[0].is_ok());
    for (_, updates) in requests.into_iter().flatten() {
        let (_, reason) = collect(&updates);
        let FinishReason::Error(text) = reason else {
            panic!("it ended by {reason}");
        };
        assert!(
            text.contains("on purpose") && text.contains("bug"),
            "{text}"
        );
    }
    let error = thread.submit(request(None)).expect_err("nobody serves");
    assert!(matches!(&error, Error::Bug(text) if text.contains("on purpose")));
    assert!(thread.shared.wait_idle(None));
    thread.stop();
}

#[test]
fn a_device_that_fails_fails_requests_and_no_more() {
    let thread = Thread::start(Script {
        fail_at: Some(4),
        ..SCRIPT
    });
    for _ in 0..2 {
        let (_, updates) = thread.submit(request(None)).expect("it is valid");
        let (_, reason) = collect(&updates);
        assert!(matches!(reason, FinishReason::Error(text) if text.contains("on purpose")));
    }
    thread.stop();
}

#[test]
fn a_sink_that_panics_is_left_alone_and_others_go_on() {
    let thread = Thread::start(SCRIPT);
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let sink = move |_| {
        *counted.lock().expect("it panics without the lock") += 1;
        panic!("on purpose");
    };
    thread
        .submit_to(request(None), Box::new(sink))
        .expect("it is valid");
    let (_, updates) = thread.submit(request(Some(9))).expect("it is valid");
    assert_eq!(
        collect(&updates),
        ("aaaaaaaaa".into(), FinishReason::Length)
    );
    assert!(thread.shared.wait_idle(None), "the request has ended");
    assert_eq!(*calls.lock().expect("it panics without the lock"), 1);
    thread.stop();
}

#[test]
fn draining_refuses_and_stopping_cancels() {
    // The first step never ends.
    let thread = Thread::start(Script {
        polls: u32::MAX,
        ..SCRIPT
    });
    let (id, cancelled) = thread.submit(request(None)).expect("it is valid");
    let (_, stopped) = thread.submit(request(None)).expect("it is valid");
    thread
        .commands
        .send(Command::Cancel(id))
        .expect("it listens");
    assert_eq!(collect(&cancelled).1, FinishReason::Cancelled);
    assert!(!thread.shared.wait_idle(Some(Duration::from_millis(1))));
    thread.shared.drain();
    let error = thread.submit(request(None)).expect_err("it drains");
    assert!(matches!(error, Error::Busy(_)), "{error}");
    thread.stop();
    assert_eq!(collect(&stopped).1, FinishReason::Cancelled);
}

#[test]
fn what_the_engine_refuses_counts_as_no_request() {
    let thread = Thread::start(SCRIPT);
    let error = thread
        .submit(Request::default())
        .expect_err("there is no prompt");
    assert!(matches!(error, Error::User(_)), "{error}");
    assert!(thread.shared.wait_idle(None));
    thread.stop();
}
