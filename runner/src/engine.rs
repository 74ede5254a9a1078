//! The engine: requests in, tokens out, over any device.
//!
//! It is a pure state machine, without threads and clocks: whoever owns it calls [`Engine::step`] while there is work. One
//! step is: schedule, submit, poll, commit. Up to [`Config::in_flight`] steps are submitted before the first of them is
//! polled, so that a device never waits for the host: a step may feed a token that an earlier one is still drawing. Only a
//! request whose draws look back at its tokens (penalties do) waits for each of them.
//!
//! Every request that [`Engine::add`] accepts ends with exactly one [`Event::Finished`].

use std::collections::VecDeque;

use bundle_format::plan::Limits;

use crate::Error;
use crate::device::{Device, Outcome, Step, Ticket, Want};
use crate::kv::{KvCache, blocks_for};
use crate::sampler;
use crate::scheduler::{Chunk, Scheduler};
use crate::sequence::{Drawing, Sequence};
pub use crate::sequence::{FinishReason, Request, RequestId};
use crate::step::StepBuilder;

/// What the engine has to know about model and plan.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub limits: Limits,
    /// Token ids are below this.
    pub vocab: u32,
    /// Steps submitted at a time: 1 where the device works while it is submitted to, 2 where it works beside the host.
    pub in_flight: usize,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next token of the answer.
    Token { id: RequestId, token: u32 },
    /// Nothing comes after it.
    Finished { id: RequestId, reason: FinishReason },
}

/// How far a call of [`Engine::step`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step was submitted or has ended.
    Advanced,
    /// The device still works on the oldest step: call again a little later.
    Waiting,
    /// There is no request.
    Idle,
}

/// A submitted step, and whom its rows belong to.
#[derive(Debug)]
struct InFlight {
    ticket: Ticket,
    /// All sequences of the step.
    sequences: Vec<RequestId>,
    /// By row of the outcome.
    rows: Vec<RequestId>,
}

/// Serves requests on one device.
#[derive(Debug)]
pub struct Engine<D> {
    device: D,
    config: Config,
    scheduler: Scheduler,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    events: Vec<Event>,
    next_id: u64,
}

impl<D: Device> Engine<D> {
    /// An engine that has all KV blocks of `device` to itself.
    pub fn new(device: D, config: Config) -> Engine<D> {
        let kv = KvCache::new(device.kv_blocks());
        Engine {
            device,
            config,
            scheduler: Scheduler::new(config.limits, kv),
            in_flight: VecDeque::new(),
            events: Vec::new(),
            next_id: 0,
        }
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::User`] for a prompt that is empty, longer than the context or the KV memory, or that holds an id outside
    /// the vocabulary, and for sampling parameters that make no sense.
    pub fn add(&mut self, request: Request) -> Result<RequestId, Error> {
        self.check(&request)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if request.max_tokens == Some(0) {
            self.finished(id, FinishReason::Length);
        } else {
            let context = self.config.limits.context;
            self.scheduler.add(Sequence::new(id, request, context));
        }
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let (tokens, context) = (request.prompt.len(), self.config.limits.context);
        if tokens == 0 {
            return Err(Error::User(
                "the prompt is empty, and this model puts no token of its own before it; give some text".into(),
            ));
        }
        if tokens > context as usize {
            return Err(Error::User(format!(
                "the prompt has {tokens} tokens, but the context of this bundle is {context}; shorten the prompt, or \
                 compile the model with a larger --ctx"
            )));
        }
        let (needed, total) = (
            blocks_for(tokens as u32),
            self.scheduler.kv().total_blocks(),
        );
        if needed > total {
            return Err(Error::User(format!(
                "the prompt of {tokens} tokens takes {needed} KV blocks, but the device has {total}; shorten the prompt, \
                 or give the device more KV memory"
            )));
        }
        let vocab = self.config.vocab;
        match request.prompt.iter().find(|&&t| t >= vocab) {
            Some(token) => Err(Error::User(format!(
                "token {token} of the prompt is not in the vocabulary; ids are below {vocab}"
            ))),
            None => sampler::check(&request.sampling).map_err(Error::User),
        }
    }

    /// Ends a request; nothing where it has ended already.
    pub fn cancel(&mut self, id: RequestId) {
        self.end(id, FinishReason::Cancelled);
    }

    /// Whether there is no request that has not ended.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// Number of requests that are being computed, and that wait.
    pub fn load(&self) -> (usize, usize) {
        self.scheduler.load()
    }

    /// KV blocks that are free in every group.
    pub fn free_kv_blocks(&self) -> u32 {
        self.scheduler.kv().free_blocks()
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Submits the next step or commits the oldest one. If the device fails, the requests of that step end with
    /// [`FinishReason::Error`]; others are not touched.
    pub fn step(&mut self) -> Progress {
        let room = self.config.in_flight.max(1);
        if self.in_flight.len() < room && self.submit() && self.in_flight.len() < room {
            return Progress::Advanced;
        }
        self.commit()
    }

    /// Schedules and submits; false where there was nothing to submit.
    fn submit(&mut self) -> bool {
        let schedule = self.scheduler.schedule();
        for sequence in schedule.outgrown {
            self.finished(sequence.id, FinishReason::Length);
        }
        if schedule.chunks.is_empty() {
            return false;
        }
        let step = self.build(&schedule.chunks);
        match self.device.submit(step) {
            Ok(ticket) => self.submitted(ticket, &schedule.chunks),
            Err(error) => {
                for chunk in &schedule.chunks {
                    self.end(chunk.id, FinishReason::Error(error.to_string()));
                }
            }
        }
        true
    }

    fn build(&mut self, chunks: &[Chunk]) -> Step {
        let mut builder = StepBuilder::new(self.device.kv_blocks().len());
        for chunk in chunks {
            let Some(s) = self.scheduler.get_mut(chunk.id) else {
                continue;
            };
            let end = builder.push(s.next_tokens(chunk.count), s.fed(), &s.tables);
            if chunk.draws {
                let want = Want {
                    sample: Some(s.sampling.clone()),
                    recent: s.recent().to_vec(),
                    ..Want::default()
                };
                builder.want(end - 1, want);
            }
        }
        builder.finish()
    }

    fn submitted(&mut self, ticket: Ticket, chunks: &[Chunk]) {
        let mut rows = Vec::new();
        for chunk in chunks {
            let drawing = chunk.draws.then(|| {
                rows.push(chunk.id);
                Drawing {
                    ticket,
                    row: rows.len() as u32 - 1,
                }
            });
            if let Some(sequence) = self.scheduler.get_mut(chunk.id) {
                sequence.submitted(chunk.count, drawing);
            }
        }
        self.in_flight.push_back(InFlight {
            ticket,
            sequences: chunks.iter().map(|c| c.id).collect(),
            rows,
        });
    }

    /// Polls the oldest step and hands its tokens out.
    fn commit(&mut self) -> Progress {
        let Some(step) = self.in_flight.front() else {
            return if self.is_idle() {
                Progress::Idle
            } else {
                Progress::Advanced
            };
        };
        let outcome = match self.device.poll(step.ticket) {
            Ok(None) => return Progress::Waiting,
            Ok(Some(outcome)) => drawn_tokens(&outcome, step.rows.len()),
            Err(error) => Err(error),
        };
        if let Some(step) = self.in_flight.pop_front() {
            match outcome {
                Ok(tokens) => {
                    for (&id, token) in step.rows.iter().zip(tokens) {
                        self.drawn(id, token);
                    }
                }
                Err(error) => {
                    for &id in &step.sequences {
                        self.end(id, FinishReason::Error(error.to_string()));
                    }
                }
            }
        }
        Progress::Advanced
    }

    /// A step drew `token` for a request, which may have ended meanwhile.
    fn drawn(&mut self, id: RequestId, token: u32) {
        let Some(sequence) = self.scheduler.get_mut(id) else {
            return;
        };
        let reason = sequence.drawn(token);
        if reason != Some(FinishReason::Stop) {
            self.events.push(Event::Token { id, token });
        }
        if let Some(reason) = reason {
            self.end(id, reason);
        }
    }

    fn end(&mut self, id: RequestId, reason: FinishReason) {
        if self.scheduler.remove(id).is_some() {
            self.finished(id, reason);
        }
    }

    fn finished(&mut self, id: RequestId, reason: FinishReason) {
        self.events.push(Event::Finished { id, reason });
    }
}

/// The token of each row, all of which were to be sampled.
fn drawn_tokens(outcome: &Outcome, rows: usize) -> Result<Vec<u32>, Error> {
    let tokens: Vec<u32> = outcome.rows.iter().filter_map(|row| row.token).collect();
    if tokens.len() == rows && outcome.rows.len() == rows {
        Ok(tokens)
    } else {
        Err(Error::Bug(format!(
            "the device drew {} tokens in {} rows, where {rows} were asked for",
            tokens.len(),
            outcome.rows.len()
        )))
    }
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        (**self).submit(step)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        (**self).poll(ticket)
    }

    fn kv_blocks(&self) -> &[u32] {
        (**self).kv_blocks()
    }
}
