//! The thread that owns the engine, or the process that does: it takes commands, steps while there is work, tells what came
//! of it, and sleeps else.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::time::Instant;

use crate::device::LogProbs;
use crate::engine::Engine;
use crate::supervise::{Heard, Remote, Supervise};
use crate::tokenizer::Tokenizer;
use crate::{Error, Event, FinishReason, Request, RequestId};

use super::answer::{Answers, Sink};
use super::backend::{Backend, Local, Told, Wait};
use super::embedding::{Embedding, Pooling};
use super::model::Model;
use super::options::RunnerOptions;
use super::shared::Shared;

/// What callers tell the thread.
pub(super) enum Command {
    Submit {
        request: Box<Submission>,
        reply: SyncSender<Result<RequestId, Error>>,
    },
    Cancel(RequestId),
    CancelAll,
    /// Something was heard of the worker process with this number.
    Hear(u64, Heard),
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

/// The thread's work, from opening the device to the last runner's end. `inbox` leads to `commands`.
pub(super) fn run(
    model: &Model,
    options: &RunnerOptions,
    shared: &Shared,
    inbox: Sender<Command>,
    commands: &Receiver<Command>,
    opened: &SyncSender<Result<(), Error>>,
) {
    // Whoever opens the runner waits for the outcome.
    let tell = |outcome| drop(opened.send(outcome));
    let tokenizer = model.tokenizer();
    match &options.supervise {
        Some(supervise) => match open_remote(model, options, supervise, inbox, commands) {
            Ok(remote) => {
                shared.supervise(remote.supervision());
                tell(Ok(()));
                serve(remote, tokenizer, shared, commands);
            }
            Err(error) => tell(Err(error)),
        },
        None => match options.open_device(model.loaded()) {
            Ok(device) => {
                let engine = Engine::new(device, options.engine_config(model.loaded()));
                tell(Ok(()));
                serve(Local::new(engine), tokenizer, shared, commands);
            }
            Err(error) => tell(Err(error)),
        },
    }
}

fn open_remote(
    model: &Model,
    options: &RunnerOptions,
    supervise: &Supervise,
    inbox: Sender<Command>,
    commands: &Receiver<Command>,
) -> Result<Remote, Error> {
    let hear = move |worker, heard| {
        // Nobody listens any more to a worker that is to end.
        let _ = inbox.send(Command::Hear(worker, heard));
    };
    // Nobody else has commands yet.
    let next = || match commands.recv() {
        Ok(Command::Hear(worker, heard)) => Some((worker, heard)),
        Ok(_) | Err(_) => None,
    };
    Remote::open(model.loaded(), options, supervise, Arc::new(hear), next)
}

/// Serves until [`Command::Stop`]. A panic ends all requests, and refuses those that come after, with its text.
pub(super) fn serve<B: Backend>(
    backend: B,
    tokenizer: Tokenizer<'_>,
    shared: &Shared,
    commands: &Receiver<Command>,
) {
    let mut worker = Worker {
        backend,
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
            Command::Cancel(_) | Command::CancelAll | Command::Hear(..) => {}
        }
    }
}

struct Worker<'a, B> {
    backend: B,
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

impl<B: Backend> Worker<'_, B> {
    fn serve(&mut self, commands: &Receiver<Command>) {
        let mut wait = Wait::ForCommand;
        loop {
            if !self.take(commands, wait) {
                self.end_all(&FinishReason::Cancelled);
                return;
            }
            wait = self.backend.advance();
            // First, so that whoever hears of an end finds it counted.
            self.shared.publish(self.backend.stats());
            self.shared.supervise(self.backend.supervision());
            self.tell();
        }
    }

    /// Obeys the commands that are there, up to one that is news of a worker process: it is told before the next is heard, so
    /// that an answer which ends with it has no more tokens. `wait`: for the first one. False: stop.
    fn take(&mut self, commands: &Receiver<Command>, wait: Wait) -> bool {
        let first = match wait {
            Wait::No => None,
            Wait::ForCommand => match commands.recv() {
                Ok(command) => Some(command),
                Err(_) => return false,
            },
            Wait::AtMost(time) => match commands.recv_timeout(time) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            },
        };
        let mut next = match first {
            Some(command) => Ok(command),
            None => commands.try_recv(),
        };
        loop {
            match next {
                Ok(command) => {
                    let is_news = matches!(command, Command::Hear(..));
                    if !self.obey(command) {
                        return false;
                    }
                    if is_news {
                        return true;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            next = commands.try_recv();
        }
    }

    /// False: stop.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit { request, reply } => {
                // Nobody may wait for the answer any more.
                drop(reply.send(self.submit(*request)));
            }
            Command::Cancel(id) => self.backend.cancel(id),
            Command::CancelAll => {
                for &id in self.active.keys() {
                    self.backend.cancel(id);
                }
            }
            Command::Hear(worker, heard) => self.backend.hear(worker, heard),
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
        let scored = request.prompt_logprobs.map(|_| request.prompt.clone());
        self.shared.admit()?;
        let id = self.backend.add(request).inspect_err(|_| {
            self.shared.ended(1);
        })?;
        let active = match wanted {
            Wanted::Answers { stop, sink } => {
                let prompt = prompt as u32;
                let mut answers = Answers::new(self.tokenizer, sink, choices, &stop, prompt, start);
                if let Some(ids) = scored {
                    let is_alone = ids.len() == 1;
                    answers = answers.with_prompt(ids);
                    // There is nothing to score, and so no news of it.
                    if is_alone {
                        answers.scored([])?;
                    }
                }
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
            let events = self.backend.take_events();
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
                        self.backend.cancel(id);
                    }
                }
            }
        }
    }

    fn take_event(&mut self, told: Told) {
        let event = match told {
            Told::Engine(event) => event,
            Told::Scored { id, scores } => return self.scored(id, scores),
            Told::Hidden { id, rows, sum } => {
                if let Some(Active::Embedding(pooling)) = self.active.get_mut(&id) {
                    pooling.rows.add_sum(sum.into_iter(), rows);
                }
                return;
            }
        };
        match event {
            Event::Token {
                id,
                choice,
                token,
                logprobs,
            } => self.token(id, choice, token, logprobs),
            Event::Scored { id, logprobs, .. } => self.scored(id, vec![logprobs]),
            Event::Hidden { id, row, .. } => {
                if let Some(Active::Embedding(pooling)) = self.active.get_mut(&id) {
                    pooling.rows.add(&row);
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
            Ok(true) => self.backend.cancel_choice(id, choice),
            Ok(false) => {}
            Err(error) => self.fail(id, &error),
        }
    }

    fn scored(&mut self, id: RequestId, scores: Vec<LogProbs>) {
        let Some(Active::Answers(answers)) = self.active.get_mut(&id) else {
            return;
        };
        if self.news.last() != Some(&id) {
            self.news.push(id);
        }
        if let Err(error) = answers.scored(scores) {
            self.fail(id, &error);
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
        self.backend.cancel(id);
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
