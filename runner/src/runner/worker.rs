//! The thread that owns the engine: it takes commands, steps while there is work, tells what came of it, and sleeps else.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use crate::device::{Device, LogProbs};
use crate::engine::{Engine, Progress};
use crate::tokenizer::Tokenizer;
use crate::{Error, Event, FinishReason, Request, RequestId};

use super::answer::{Answers, Sink};
use super::embedding::{Embedding, Pooling};
use super::model::Model;
use super::options::RunnerOptions;
use super::shared::Shared;

/// How long a device that works beside the host is left alone before it is asked again. A command cuts it short.
const POLL_PAUSE: Duration = Duration::from_micros(100);

/// What callers tell the thread.
pub(super) enum Command {
    Submit {
        request: Box<Submission>,
        reply: SyncSender<Result<RequestId, Error>>,
    },
    Cancel(RequestId),
    CancelAll,
    /// The last runner is gone.
    Stop,
}

/// A request and whom to tell.
pub(super) struct Submission {
    pub request: Request,
    pub wanted: Wanted,
    /// When the caller made it.
    pub start: Instant,
}

pub(super) enum Wanted {
    Answers { stop: Vec<String>, sink: Sink },
    Embedding(SyncSender<Result<Embedding, Error>>),
}

/// The thread's work, from opening the device to the last runner's end.
pub(super) fn run(
    model: &Model,
    options: &RunnerOptions,
    shared: &Shared,
    commands: &Receiver<Command>,
    opened: &SyncSender<Result<(), Error>>,
) {
    let device = match options.open_device(model.loaded()) {
        Ok(device) => device,
        Err(error) => {
            // Whoever opens the runner waits for it.
            let _ = opened.send(Err(error));
            return;
        }
    };
    let engine = Engine::new(device, options.engine_config(model.loaded()));
    let _ = opened.send(Ok(()));
    serve(engine, model.tokenizer(), shared, commands);
}

/// Serves until [`Command::Stop`]. A panic ends all requests, and refuses those that come after, with its text.
pub(super) fn serve<D: Device>(
    engine: Engine<D>,
    tokenizer: Tokenizer<'_>,
    shared: &Shared,
    commands: &Receiver<Command>,
) {
    let mut worker = Worker {
        engine,
        tokenizer,
        shared,
        active: HashMap::new(),
        news: Vec::new(),
    };
    // After a panic the engine is not used again; answers lose at most what was to be told.
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.serve(commands))) else {
        return;
    };
    let error = Error::Bug(format!(
        "the engine's thread panicked: {}",
        message(&*panic)
    ));
    worker.end_all(&FinishReason::Error(error.to_string()));
    for command in commands {
        match command {
            // Nobody may wait for the answer any more.
            Command::Submit { reply, .. } => drop(reply.send(Err(error.clone()))),
            Command::Stop => return,
            Command::Cancel(_) | Command::CancelAll => {}
        }
    }
}

struct Worker<'a, D> {
    engine: Engine<D>,
    tokenizer: Tokenizer<'a>,
    shared: &'a Shared,
    active: HashMap<RequestId, Active<'a>>,
    /// Requests that have something to tell.
    news: Vec<RequestId>,
}

/// A request that has not ended.
enum Active<'a> {
    Answers(Box<Answers<'a>>),
    Embedding(Pooling),
}

impl<D: Device> Worker<'_, D> {
    fn serve(&mut self, commands: &Receiver<Command>) {
        let mut wait = Some(None);
        // Since when the device has worked on the present step.
        let mut since = None;
        loop {
            if !self.take(commands, wait) {
                self.end_all(&FinishReason::Cancelled);
                return;
            }
            let now = Instant::now();
            self.engine.expire(now);
            let start = *since.get_or_insert(now);
            let progress = self.engine.step();
            if progress != Progress::Waiting {
                self.engine.took(start.elapsed());
                since = None;
            }
            // First, so that whoever hears of an end finds it counted.
            self.shared.publish(self.engine.stats());
            self.tell();
            wait = match progress {
                Progress::Advanced => None,
                Progress::Waiting => Some(Some(POLL_PAUSE)),
                Progress::Idle => Some(None),
            };
        }
    }

    /// Obeys all commands that are there. `wait`: for the first one, so long or as long as it takes. False: stop.
    fn take(&mut self, commands: &Receiver<Command>, wait: Option<Option<Duration>>) -> bool {
        let first = match wait {
            None => None,
            Some(None) => match commands.recv() {
                Ok(command) => Some(command),
                Err(_) => return false,
            },
            Some(Some(time)) => match commands.recv_timeout(time) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            },
        };
        if first.is_some_and(|command| !self.obey(command)) {
            return false;
        }
        loop {
            match commands.try_recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// False: stop.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit { request, reply } => {
                // Nobody may wait for the answer any more.
                drop(reply.send(self.submit(*request)));
            }
            Command::Cancel(id) => self.engine.cancel(id),
            Command::CancelAll => {
                for &id in self.active.keys() {
                    self.engine.cancel(id);
                }
            }
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, submission: Submission) -> Result<RequestId, Error> {
        let Submission {
            request,
            wanted,
            start,
        } = submission;
        let (prompt, choices) = (request.prompt.len(), request.choices);
        self.shared.admit()?;
        let id = self.engine.add(request).inspect_err(|_| {
            self.shared.ended(1);
        })?;
        let active = match wanted {
            Wanted::Answers { stop, sink } => {
                let prompt = prompt as u32;
                let answers = Answers::new(self.tokenizer, sink, choices, &stop, prompt, start);
                Active::Answers(Box::new(answers))
            }
            Wanted::Embedding(reply) => Active::Embedding(Pooling::new(prompt, reply)),
        };
        self.active.insert(id, active);
        Ok(id)
    }

    /// Tells the engine's events to those whom they concern, those that this leads to as well.
    fn tell(&mut self) {
        loop {
            let events = self.engine.take_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                self.take_event(event);
            }
            for id in std::mem::take(&mut self.news) {
                if let Some(Active::Answers(answers)) = self.active.get_mut(&id) {
                    answers.tell();
                    if answers.is_deaf() {
                        self.engine.cancel(id);
                    }
                }
            }
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Token {
                id,
                choice,
                token,
                logprobs,
            } => self.token(id, choice, token, logprobs),
            Event::Hidden { id, row, .. } => {
                if let Some(Active::Embedding(pooling)) = self.active.get_mut(&id) {
                    pooling.row(&row);
                }
            }
            Event::Finished {
                id,
                choice,
                reason,
                cached_tokens,
            } => self.finished(id, choice, reason, cached_tokens),
        }
    }

    fn token(&mut self, id: RequestId, choice: u32, token: u32, logprobs: Option<LogProbs>) {
        let Some(Active::Answers(answers)) = self.active.get_mut(&id) else {
            return;
        };
        if self.news.last() != Some(&id) {
            self.news.push(id);
        }
        match answers.token(choice, token, logprobs) {
            Ok(true) => self.engine.cancel_choice(id, choice),
            Ok(false) => {}
            Err(error) => self.fail(id, &error),
        }
    }

    fn finished(&mut self, id: RequestId, choice: u32, reason: FinishReason, cached: u32) {
        match self.active.remove(&id) {
            None => {}
            Some(Active::Embedding(pooling)) => {
                pooling.end(reason);
                self.shared.ended(1);
            }
            Some(Active::Answers(mut answers)) => {
                let ended = answers.end(choice, reason, cached);
                if answers.have_ended() {
                    self.shared.ended(1);
                } else {
                    self.active.insert(id, Active::Answers(answers));
                }
                if let Err(error) = ended {
                    self.fail(id, &error);
                }
            }
        }
    }

    /// The engine said what it should not: the request ends.
    fn fail(&mut self, id: RequestId, error: &Error) {
        self.engine.cancel(id);
        if let Some(active) = self.active.remove(&id) {
            end(active, &FinishReason::Error(error.to_string()));
            self.shared.ended(1);
        }
    }

    fn end_all(&mut self, reason: &FinishReason) {
        let all = std::mem::take(&mut self.active);
        let count = all.len();
        all.into_values().for_each(|active| end(active, reason));
        self.shared.ended(count);
    }
}

fn end(active: Active, reason: &FinishReason) {
    match active {
        Active::Answers(mut answers) => answers.end_all(reason),
        Active::Embedding(pooling) => pooling.end(reason.clone()),
    }
}

/// The text of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
