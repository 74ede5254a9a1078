//! The thread that owns the engine: it takes commands, steps while there is work, tells what came of it, and sleeps else.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::device::Device;
use crate::engine::{Config, Engine, Event, Progress, Request, RequestId};
use crate::tokenizer::Tokenizer;

use super::answer::{Answers, Next, Sink};
use super::model::Model;
use super::options::RunnerOptions;
use super::stats::Stats;
use super::update::FinishReason;

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
    pub choices: u32,
    pub stop: Vec<String>,
    pub sink: Sink,
    /// When the caller made it.
    pub start: Instant,
}

/// What callers see of the thread without asking it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// No request is taken any more.
    draining: bool,
    /// Requests that have not ended.
    active: usize,
    stats: Stats,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Waits until all requests have ended, or for some time; whether they have.
    pub fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        let busy = |state: &mut State| state.active > 0;
        let state = self.lock();
        match timeout {
            None => {
                drop(self.idle.wait_while(state, busy));
                true
            }
            Some(timeout) => match self.idle.wait_timeout_while(state, timeout, busy) {
                Ok((_, waited)) => !waited.timed_out(),
                Err(poisoned) => !poisoned.into_inner().1.timed_out(),
            },
        }
    }

    fn admit(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if state.draining {
            return Err(Error::Busy(
                "this runner is shutting down and takes no more requests; ask another one".into(),
            ));
        }
        state.active += 1;
        Ok(())
    }

    fn ended(&self, requests: usize) {
        let mut state = self.lock();
        state.active -= requests;
        if state.active == 0 {
            self.idle.notify_all();
        }
    }
}

/// The thread's work, from opening the device to the last runner's end.
pub(super) fn run(
    model: &Model,
    options: &RunnerOptions,
    shared: &Arc<Shared>,
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
    let config = Config {
        limits: model.loaded().plan().limits,
        vocab: model.info().vocab,
        in_flight: 1,
    };
    let _ = opened.send(Ok(()));
    serve(
        Engine::new(device, config),
        model.tokenizer(),
        options.queue,
        shared,
        commands,
    );
}

/// Serves until [`Command::Stop`]. A panic ends all requests, and refuses those that come after, with its text.
pub(super) fn serve<D: Device>(
    engine: Engine<D>,
    tokenizer: Tokenizer<'_>,
    queue: usize,
    shared: &Arc<Shared>,
    commands: &Receiver<Command>,
) {
    let mut worker = Worker {
        engine,
        tokenizer,
        queue,
        shared,
        active: HashMap::new(),
        news: Vec::new(),
    };
    // The engine is not used again after a panic, and answers are complete between calls of their methods.
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
    queue: usize,
    shared: &'a Shared,
    active: HashMap<RequestId, Answers<'a>>,
    /// Requests that have something to tell.
    news: Vec<RequestId>,
}

impl<D: Device> Worker<'_, D> {
    fn serve(&mut self, commands: &Receiver<Command>) {
        let mut wait = Some(None);
        loop {
            if !self.take(commands, wait) {
                self.end_all(&FinishReason::Cancelled);
                return;
            }
            let progress = self.engine.step();
            self.tell();
            self.publish();
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
            choices,
            stop,
            sink,
            start,
        } = submission;
        let waiting = self.engine.load().1;
        if waiting > self.queue {
            return Err(Error::Busy(format!(
                "{waiting} requests wait already, as many as may (option queue); try again later"
            )));
        }
        self.shared.admit()?;
        let prompt = request.prompt.len() as u32;
        match self.engine.add(request) {
            Ok(id) => {
                let answers = Answers::new(self.tokenizer, sink, choices, &stop, prompt, start);
                self.active.insert(id, answers);
                Ok(id)
            }
            Err(error) => {
                self.shared.ended(1);
                Err(error)
            }
        }
    }

    /// Tells the engine's events to those whom they concern.
    fn tell(&mut self) {
        for event in self.engine.take_events() {
            match event {
                Event::Token { id, token } => {
                    let Some(answers) = self.active.get_mut(&id) else {
                        continue;
                    };
                    let next = answers.token(0, token, None);
                    if self.news.last() != Some(&id) {
                        self.news.push(id);
                    }
                    self.go_on(id, next);
                }
                Event::Finished { id, reason } => {
                    if let Some(answers) = self.active.get_mut(&id) {
                        let next = answers.end(0, reason.into());
                        self.go_on(id, next);
                    }
                }
            }
        }
        for id in std::mem::take(&mut self.news) {
            if let Some(answers) = self.active.get_mut(&id) {
                answers.tell();
                if answers.is_over() {
                    self.go_on(id, Next::EndAll);
                }
            }
        }
    }

    fn go_on(&mut self, id: RequestId, next: Next) {
        match next {
            Next::GoOn | Next::EndChoice => {}
            Next::EndAll => {
                self.engine.cancel(id);
                self.active.remove(&id);
                self.shared.ended(1);
            }
        }
    }

    fn end_all(&mut self, reason: &FinishReason) {
        for answers in self.active.values_mut() {
            answers.end_all(reason);
        }
        self.shared.ended(self.active.len());
        self.active.clear();
    }

    fn publish(&self) {
        let (running, waiting) = self.engine.load();
        let stats = Stats {
            running: running as u64,
            waiting: waiting as u64,
            kv_blocks_total: u64::from(
                self.engine
                    .device()
                    .kv_blocks()
                    .iter()
                    .copied()
                    .min()
                    .unwrap_or(0),
            ),
            kv_blocks_free: u64::from(self.engine.free_kv_blocks()),
            ..Stats::default()
        };
        self.shared.lock().stats = stats;
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
