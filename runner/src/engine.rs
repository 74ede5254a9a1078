//! The engine: requests in, tokens out, over any device.
//!
//! It is a pure state machine, without threads and clocks: whoever owns it calls [`Engine::step`] while there is work. One
//! step is: schedule, submit, poll, commit. Up to [`Config::in_flight`] steps are submitted before the first of them is
//! polled, so that a device never waits for the host: a step may feed a token that an earlier one is still drawing. Only a
//! request whose draws look back at its tokens (penalties do) waits for each of them.
//!
//! Every request that [`Engine::add`] accepts ends with exactly one [`Event::Finished`].

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bundle_format::plan::Limits;

use crate::Error;
use crate::device::{Device, Outcome, Step, Ticket, Want};
use crate::kv::{KvCache, blocks_for};
use crate::request::{Event, FinishReason, Request, RequestId};
use crate::sampler;
use crate::scheduler::{Chunk, Scheduler};
use crate::sequence::{Drawing, Sequence};
use crate::spec::NgramSpec;
use crate::step::StepBuilder;

/// What the engine has to know about model and plan, and how to serve.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub limits: Limits,
    /// Token ids are below this.
    pub vocab: u32,
    /// Steps submitted at a time: 1 where the device works while it is submitted to, 2 where it works beside the host.
    pub in_flight: usize,
    /// Requests that may wait; [`Engine::add`] refuses more with [`Error::Busy`].
    pub queue: usize,
    /// Whether what was computed for one request is found by others that start alike.
    pub prefix_cache: bool,
    /// Guess tokens ahead.
    pub spec: Option<NgramSpec>,
    /// Most prompt tokens of a step in which others decode; none: as many as about double the time that decoding alone
    /// takes. Without others a prompt fills the plan's steps.
    pub token_budget: Option<u32>,
}

impl Config {
    /// One step at a time, an unbounded queue, the prefix cache on, no guessing.
    pub fn new(limits: Limits, vocab: u32) -> Config {
        Config {
            limits,
            vocab,
            in_flight: 1,
            queue: usize::MAX,
            prefix_cache: true,
            spec: None,
            token_budget: None,
        }
    }
}

/// What an engine does and has done: gauges first, then counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Choices that are being computed.
    pub running: usize,
    /// Requests (and choices of running ones) that wait.
    pub waiting: usize,
    pub kv_blocks_total: u32,
    /// Blocks that nobody holds, those with cached content among them.
    pub kv_blocks_free: u32,
    /// Blocks that nobody holds and whose content is kept for those who start alike.
    pub kv_blocks_cached: u32,
    /// Prompt tokens found in the prefix cache, and looked up in it.
    pub prefix_hit_tokens: u64,
    pub prefix_query_tokens: u64,
    /// Sequences that gave their blocks up to older ones.
    pub preemptions: u64,
    /// Tokens of the prompts of accepted requests.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens guessed, and those of them that the model drew.
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    /// Steps submitted.
    pub steps: u64,
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
    deadlines: BTreeSet<(Instant, RequestId)>,
    stats: Stats,
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
            deadlines: BTreeSet::new(),
            stats: Stats::default(),
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
        let waiting = self.scheduler.load().1;
        if waiting >= self.config.queue {
            return Err(Error::Busy(format!(
                "{waiting} requests wait already, which is all that the queue takes; try again a little later"
            )));
        }
        let id = RequestId(self.next_id);
        self.deadlines.extend(request.deadline.map(|at| (at, id)));
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
        if request.choices != 1
            || request.grammar.is_some()
            || request.hidden
            || request.logprobs.is_some()
        {
            return Err(Error::Unsupported(
                "choices, grammars, hidden states and log-probabilities".into(),
            ));
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

    /// Ends the requests whose deadline is not after `now`.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            self.end(id, FinishReason::Timeout);
        }
    }

    pub fn stats(&self) -> Stats {
        let (running, waiting) = self.scheduler.load();
        let kv = self.scheduler.kv();
        Stats {
            running,
            waiting,
            kv_blocks_total: kv.total_blocks(),
            kv_blocks_free: kv.free_blocks(),
            ..self.stats
        }
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
            self.events.push(Event::Token {
                id,
                choice: 0,
                token,
                logprobs: None,
            });
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
        self.events.push(Event::Finished {
            id,
            choice: 0,
            reason,
            cached_tokens: 0,
        });
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
