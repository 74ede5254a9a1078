//! What the runner's thread serves with: an engine on that thread ([`Local`]), or one in another process
//! ([`Remote`](crate::supervise::Remote)).

use std::time::{Duration, Instant};

use crate::device::{Device, LogProbs};
use crate::engine::{Engine, Progress};
use crate::supervise::{Heard, Supervision};
use crate::{Error, Event, Request, RequestId, Stats};

/// How long a device that works beside the host is left alone before it is asked again. A command cuts it short.
const POLL_PAUSE: Duration = Duration::from_micros(100);

/// How long the thread may sleep when there is no command; any command wakes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// There is work.
    No,
    AtMost(Duration),
    /// Nothing happens without a command.
    ForCommand,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Engine(Event),
    /// Hidden states of some tokens of the prompt, added up; in place of [`Event::Hidden`].
    Hidden {
        id: RequestId,
        rows: u32,
        sum: Vec<f64>,
    },
    /// All of the prompt, in place of [`Event::Scored`].
    Scored {
        id: RequestId,
        scores: Vec<LogProbs>,
    },
}

/// As [`Engine`]'s methods of the same names.
pub(crate) trait Backend {
    fn add(&mut self, request: Request) -> Result<RequestId, Error>;

    fn cancel(&mut self, id: RequestId);

    fn cancel_choice(&mut self, id: RequestId, choice: u32);

    /// Does what there is to do.
    fn advance(&mut self) -> Wait;

    fn take_events(&mut self) -> Vec<Told>;

    fn stats(&self) -> Stats;

    /// Takes what was heard of the worker process with this number.
    fn hear(&mut self, worker: u64, heard: Heard);

    /// What became of the worker processes; none without one.
    fn supervision(&self) -> Option<Supervision>;
}

/// An engine on this thread.
#[derive(Debug)]
pub(crate) struct Local<D> {
    engine: Engine<D>,
    /// Since when the device has worked on the present step.
    since: Option<Instant>,
}

impl<D: Device> Local<D> {
    pub fn new(engine: Engine<D>) -> Local<D> {
        Local {
            engine,
            since: None,
        }
    }
}

impl<D: Device> Backend for Local<D> {
    fn add(&mut self, request: Request) -> Result<RequestId, Error> {
        self.engine.add(request)
    }

    fn cancel(&mut self, id: RequestId) {
        self.engine.cancel(id);
    }

    fn cancel_choice(&mut self, id: RequestId, choice: u32) {
        self.engine.cancel_choice(id, choice);
    }

    fn advance(&mut self) -> Wait {
        self.engine.expire(Instant::now());
        step(&mut self.engine, &mut self.since)
    }

    fn take_events(&mut self) -> Vec<Told> {
        let events = self.engine.take_events();
        events.into_iter().map(Told::Engine).collect()
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn hear(&mut self, _: u64, _: Heard) {}

    fn supervision(&self) -> Option<Supervision> {
        None
    }
}

/// Steps an engine, and tells it how long its steps take; `since` when it has worked on the present one.
pub(crate) fn step<D: Device>(engine: &mut Engine<D>, since: &mut Option<Instant>) -> Wait {
    let start = *since.get_or_insert_with(Instant::now);
    let progress = engine.step();
    if progress != Progress::Waiting {
        engine.took(start.elapsed());
        *since = None;
    }
    match progress {
        Progress::Advanced => Wait::No,
        Progress::Waiting => Wait::AtMost(POLL_PAUSE),
        Progress::Idle => Wait::ForCommand,
    }
}
