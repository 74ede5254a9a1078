//! The engine: requests in, tokens out, over any device.
//!
//! It is a pure state machine, without threads and clocks: whoever owns it calls [`Engine::step`] while there is work. One
//! step is: schedule, submit, poll, commit. Up to [`Config::in_flight`] steps are submitted before the first of them is
//! polled, so that a device never waits for the host: a step may feed a token that an earlier one is still drawing. Only a
//! request whose draws look back at its tokens (penalties, grammars and guesses do) waits for each of them. Masks of grammars
//! are computed on a helper thread, which is the one thread here, and decides nothing.
//!
//! Every choice of a request that [`Engine::add`] accepts ends with exactly one [`Event::Finished`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bundle_format::plan::Limits;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::admission::Admission;
use crate::device::{Device, Outcome, RowOutcome, Step, Ticket, Want};
use crate::kv::KvCache;
use crate::masks::Masks;
use crate::request::{Event, FinishReason, Request, RequestId};
use crate::scheduler::{Chunk, Policy, Scheduler};
use crate::sequence::{Drawing, Drawn, Key, Sequence};
use crate::spec::NgramSpec;
use crate::step::StepBuilder;

/// Answers that a request may ask for.
pub const MAX_CHOICES: u32 = 128;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// A chunk of a submitted step.
#[derive(Debug)]
struct Piece {
    chunk: Chunk,
    /// Of the chunk's first token.
    position: u32,
    /// Whose blocks it writes: those that the sequence had at that time.
    epoch: u32,
}

#[derive(Debug)]
struct InFlight {
    ticket: Ticket,
    pieces: Vec<Piece>,
    /// Rows that decode, and tokens of prompts.
    load: (u32, u32),
}

/// A request that has not ended.
#[derive(Debug)]
struct Open {
    /// Choices that have not ended.
    choices: Vec<u32>,
    deadline: Option<Instant>,
}

/// Serves requests on one device.
#[derive(Debug)]
pub struct Engine<D> {
    device: D,
    config: Config,
    scheduler: Scheduler,
    masks: Masks,
    open: HashMap<RequestId, Open>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    /// Of the step that ended last, until its time is told.
    ended: Option<(u32, u32)>,
    events: Vec<Event>,
    /// A device that failed for good.
    fault: Option<Error>,
    /// Steps that have ended well.
    completed: u64,
    next_id: u64,
    stats: Stats,
}

impl<D: Device> Engine<D> {
    /// An engine that has all KV blocks of `device` to itself.
    pub fn new(device: D, config: Config) -> Engine<D> {
        let kv = KvCache::with_windows(device.kv_blocks(), device.kv_windows());
        let policy = Policy {
            limits: config.limits,
            // Without blocks there is nothing to be found.
            prefix_cache: config.prefix_cache && !device.kv_blocks().is_empty(),
            spec: config.spec,
            token_budget: config.token_budget,
        };
        Engine {
            device,
            config,
            scheduler: Scheduler::new(policy, kv),
            masks: Masks::default(),
            open: HashMap::new(),
            deadlines: BTreeSet::new(),
            in_flight: VecDeque::new(),
            ended: None,
            events: Vec::new(),
            fault: None,
            completed: 0,
            next_id: 0,
            stats: Stats::default(),
        }
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    fn accept(&mut self, id: RequestId, open: Open, prompt: u64) {
        self.next_id += 1;
        self.stats.prompt_tokens += prompt;
        self.deadlines.extend(open.deadline.map(|at| (at, id)));
        self.open.insert(id, open);
    }

    fn admission(&self) -> Admission {
        Admission {
            context: self.config.limits.context,
            vocab: self.config.vocab,
            kv_blocks: self.scheduler.kv().total_blocks(),
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::User`] for a prompt that is empty, longer than the context or the KV memory, or that holds an id outside
    /// the vocabulary, and for parameters that make no sense; [`Error::Busy`] where the queue is full.
    pub fn add(&mut self, request: Request) -> Result<RequestId, Error> {
        self.admission().check(&request)?;
        let waiting = self.scheduler.load().1;
        if waiting >= self.config.queue {
            return Err(Error::Busy(format!(
                "{waiting} requests wait already, which is all that the queue takes; try again a little later"
            )));
        }
        let id = RequestId(self.next_id);
        let open = Open {
            choices: (0..request.choices).collect(),
            deadline: request.deadline,
        };
        let prompt = request.prompt.len() as u64;
        let scores = request.prompt_logprobs.is_some() && prompt > 1;
        if request.max_tokens == Some(0) && !request.hidden && !scores {
            self.accept(id, open, prompt);
            self.end(id, &FinishReason::Length);
        } else {
            let (context, spec) = (self.config.limits.context, self.config.spec);
            let answered = request.answered.clone();
            let mut sequence = Sequence::new(id, request, context, spec);
            sequence
                .resume(&answered)
                .map_err(|e| Error::User(format!("the answer that has begun can't go on: {e}")))?;
            self.accept(id, open, prompt);
            self.scheduler.add(sequence);
        }
        Ok(id)
    }

    /// Ends a request, and frees its blocks at once; nothing where it has ended already.
    pub fn cancel(&mut self, id: RequestId) {
        self.end(id, &FinishReason::Cancelled);
    }

    /// Ends one choice of a request; nothing where it has ended already.
    pub fn cancel_choice(&mut self, id: RequestId, choice: u32) {
        self.end_choice(Key { id, choice }, FinishReason::Cancelled);
    }

    /// Ends the requests whose deadline is not after `now`.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.end(id, &FinishReason::Timeout);
        }
    }

    /// Tells how long the step took that the last call of [`Engine::step`] ended, from its submission or the end of the step
    /// before it, whichever came later. The engine, which has no clock, then knows how much of a prompt answers that run
    /// can bear ([`Config::token_budget`]).
    pub fn took(&mut self, time: Duration) {
        if let Some((rows, tokens)) = self.ended.take() {
            let seconds = time.as_secs_f32();
            self.scheduler.pace.observe(rows, tokens, seconds);
        }
    }

    pub fn stats(&self) -> Stats {
        let (running, waiting) = self.scheduler.load();
        let (kv, counts) = (self.scheduler.kv(), self.scheduler.counts());
        Stats {
            running,
            waiting,
            kv_blocks_total: kv.total_blocks(),
            kv_blocks_free: kv.free_blocks(),
            kv_blocks_cached: kv.cached_blocks(),
            prefix_hit_tokens: counts.hit_tokens,
            prefix_query_tokens: counts.query_tokens,
            preemptions: counts.preemptions,
            ..self.stats
        }
    }

    /// How many tokens of a request's prompt were found in the prefix cache, while its choice has not ended.
    pub(crate) fn cached_tokens(&mut self, id: RequestId, choice: u32) -> Option<u32> {
        let sequence = self.scheduler.get_mut(Key { id, choice })?;
        Some(sequence.cached)
    }

    /// Steps that have ended well.
    pub(crate) fn completed_steps(&self) -> u64 {
        self.completed
    }

    /// The [`Error::Fault`] that the device failed with, if one has: it serves nobody any more.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// Whether there is no request that has not ended.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Checks that no block is lost or held by mistake, and that what waits and runs is what has not ended. For tests: it
    /// looks at everything.
    #[doc(hidden)]
    pub fn verify(&mut self) -> Result<(), String> {
        self.scheduler.check()?;
        for (&id, open) in &self.open {
            let mut found = Vec::new();
            for &choice in &open.choices {
                if let Some(s) = self.scheduler.get_mut(Key { id, choice }) {
                    found.push(choice);
                    found.extend(s.forks());
                }
            }
            found.sort_unstable();
            if found != open.choices {
                return Err(format!(
                    "{id:?} has choices {found:?}, not {:?}",
                    open.choices
                ));
            }
        }
        Ok(())
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
            self.finished(sequence.key, FinishReason::Length, sequence.cached);
        }
        if schedule.chunks.is_empty() {
            return false;
        }
        let step = self.build(&schedule.chunks);
        match self.device.submit(step) {
            Ok(ticket) => {
                self.stats.steps += 1;
                self.submitted(ticket, schedule.chunks, schedule.load);
            }
            Err(error) => self.fail(&schedule.chunks, &error),
        }
        true
    }

    fn build(&mut self, chunks: &[Chunk]) -> Step {
        let mut builder = StepBuilder::of(self.scheduler.kv().groups());
        for chunk in chunks {
            if let Some(copies) = self.scheduler.take_copies(chunk.key) {
                builder.copy(&copies);
            }
            let Some(s) = self.scheduler.get_mut(chunk.key) else {
                continue;
            };
            let end = builder.push(s.next_tokens(chunk.count), s.fed(), &s.table);
            let rows = end - chunk.rows..end;
            if s.task.hidden {
                for row in rows {
                    let hidden = true;
                    builder.want(
                        row,
                        Want {
                            hidden,
                            ..Want::default()
                        },
                    );
                }
                continue;
            }
            let draws = rows.start + chunk.scored..end;
            let first = s.fed() + chunk.count - chunk.rows;
            for (position, row) in (first..).zip(rows.start..draws.start) {
                let want = Want {
                    logprobs: s.task.score,
                    score: s.prompt_token(position + 1),
                    ..Want::default()
                };
                builder.want(row, want);
            }
            let mut masks = Vec::new();
            if let Some(grammar) = s.grammar().filter(|_| !draws.is_empty()) {
                masks = self.masks.start(grammar, s.guesses());
            }
            let mut masks = masks.into_iter();
            for (behind, row) in draws.enumerate() {
                let want = Want {
                    sample: Some(s.sampling.clone()),
                    recent: s.recent(behind),
                    bias: s.task.bias.clone(),
                    mask: masks.next(),
                    logprobs: s.task.logprobs,
                    ..Want::default()
                };
                builder.want(row, want);
            }
        }
        builder.finish()
    }

    fn submitted(&mut self, ticket: Ticket, chunks: Vec<Chunk>, load: (u32, u32)) {
        let mut row = 0;
        let mut pieces = Vec::new();
        for chunk in chunks {
            if let Some(s) = self.scheduler.get_mut(chunk.key) {
                let (position, epoch) = (s.fed(), s.epoch);
                let draws = chunk.rows > chunk.scored && !s.task.hidden;
                let drawing = Drawing {
                    ticket,
                    row: row + chunk.scored,
                };
                s.submitted(chunk.count, draws.then_some(drawing));
                row += chunk.rows;
                pieces.push(Piece {
                    chunk,
                    position,
                    epoch,
                });
            }
        }
        self.in_flight.push_back(InFlight {
            ticket,
            pieces,
            load,
        });
    }

    /// Polls the oldest step and hands out what it yielded.
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
            Ok(Some(outcome)) => Ok(outcome.rows),
            Err(error) => Err(error),
        };
        let Some(step) = self.in_flight.pop_front() else {
            return Progress::Advanced;
        };
        self.ended = Some(step.load);
        let wanted: u32 = step.pieces.iter().map(|p| p.chunk.rows).sum();
        let rows = outcome.and_then(|rows| match rows.len() == wanted as usize {
            true => Ok(rows),
            false => Err(Error::Bug(format!(
                "the device yielded {} rows, where {wanted} were asked for",
                rows.len()
            ))),
        });
        match rows {
            Ok(rows) => {
                self.completed += 1;
                let mut rows = rows.into_iter();
                for piece in step.pieces {
                    self.scheduler.settle(piece.chunk.promise.as_ref());
                    let rows = rows.by_ref().take(piece.chunk.rows as usize);
                    self.commit_piece(&piece, rows.collect());
                }
            }
            Err(error) => {
                let chunks: Vec<Chunk> = step.pieces.into_iter().map(|p| p.chunk).collect();
                self.fail(&chunks, &error);
            }
        }
        Progress::Advanced
    }

    /// What a step yielded for a sequence, which may have ended meanwhile.
    fn commit_piece(&mut self, piece: &Piece, mut rows: Vec<RowOutcome>) {
        let (key, end) = (piece.chunk.key, piece.position + piece.chunk.count);
        let Some(sequence) = self.scheduler.get_mut(key) else {
            return;
        };
        if sequence.task.hidden {
            self.hidden(piece, rows);
            return;
        }
        let draws = rows.split_off(piece.chunk.scored as usize);
        self.scored(piece, rows);
        let Some(sequence) = self.scheduler.get_mut(key) else {
            return;
        };
        if !draws.is_empty() {
            let guesses = sequence.take_guesses();
            self.drawn(piece, &guesses, draws);
            return;
        }
        let ends = sequence.all_given();
        self.scheduler.computed(key, end, piece.epoch);
        if ends {
            self.end(key.id, &FinishReason::Length);
        }
    }

    /// A step yielded how likely tokens of the prompt were.
    fn scored(&mut self, piece: &Piece, rows: Vec<RowOutcome>) {
        let key = piece.chunk.key;
        let first = piece.position + piece.chunk.count - piece.chunk.rows;
        for (position, row) in (first..).zip(rows) {
            let logprobs = match (row.error, row.logprobs) {
                (None, Some(logprobs)) => logprobs,
                (error, _) => {
                    let bug = || Error::Bug("the device scored no token".into()).to_string();
                    self.end(key.id, &FinishReason::Error(error.unwrap_or_else(bug)));
                    return;
                }
            };
            let Some(sequence) = self.scheduler.get_mut(key) else {
                return;
            };
            // What was computed anew has been handed out before.
            if sequence.give(position) {
                self.events.push(Event::Scored {
                    id: key.id,
                    position: position + 1,
                    logprobs,
                });
            }
        }
    }

    /// A step drew the token after `guesses`, if they came true, and one in the place of each of them.
    fn drawn(&mut self, piece: &Piece, guesses: &[u32], rows: Vec<RowOutcome>) {
        let key = piece.chunk.key;
        let mut accepted = 0;
        for (i, row) in rows.into_iter().enumerate() {
            let Some(sequence) = self.scheduler.get_mut(key) else {
                return;
            };
            let token = match (row.error, row.token) {
                (None, Some(token)) => token,
                (error, _) => {
                    let bug = || Error::Bug("the device drew no token".into()).to_string();
                    self.end(key.id, &FinishReason::Error(error.unwrap_or_else(bug)));
                    return;
                }
            };
            let drawn = sequence.drawn(token);
            if !matches!(drawn, Drawn::End(_)) {
                self.stats.generated_tokens += 1;
                self.events.push(Event::Token {
                    id: key.id,
                    choice: key.choice,
                    token,
                    logprobs: row.logprobs,
                });
            }
            match drawn {
                Drawn::Token if guesses.get(i) == Some(&token) => accepted += 1,
                Drawn::Token => break,
                Drawn::Last(reason) | Drawn::End(reason) => {
                    if guesses.get(i) == Some(&token) {
                        accepted += 1;
                    }
                    self.count_guesses(guesses, accepted);
                    self.end_choice(key, reason);
                    return;
                }
            }
        }
        self.count_guesses(guesses, accepted);
        if let Some(sequence) = self.scheduler.get_mut(key) {
            let guessed = guesses.len() as u32;
            sequence.verified(piece.position, guessed, accepted, piece.epoch);
            let wrong = guessed - accepted;
            let end = piece.position + piece.chunk.count - wrong;
            self.scheduler.computed(key, end, piece.epoch);
        }
    }

    fn count_guesses(&mut self, guesses: &[u32], accepted: u32) {
        self.stats.drafted_tokens += guesses.len() as u64;
        self.stats.accepted_tokens += u64::from(accepted);
    }

    /// A step yielded hidden states of the last tokens of a piece.
    fn hidden(&mut self, piece: &Piece, rows: Vec<RowOutcome>) {
        let key = piece.chunk.key;
        let end = piece.position + piece.chunk.count;
        for (position, row) in (end - rows.len() as u32..end).zip(rows) {
            let Some(values) = row.hidden else {
                let error = row.error.map(Error::Unsupported);
                let error = error.unwrap_or(Error::Bug("the device gave no hidden state".into()));
                self.end(key.id, &FinishReason::Error(error.to_string()));
                return;
            };
            let Some(sequence) = self.scheduler.get_mut(key) else {
                return;
            };
            // What was computed anew has been handed out before.
            if sequence.give(position) {
                self.events.push(Event::Hidden {
                    id: key.id,
                    position,
                    row: values,
                });
            }
        }
        self.scheduler.computed(key, end, piece.epoch);
        let given = |s: &mut Sequence| s.all_given();
        if self.scheduler.get_mut(key).is_some_and(given) {
            self.end_choice(key, FinishReason::Stop);
        }
    }

    /// The device failed a step: its requests end.
    fn fail(&mut self, chunks: &[Chunk], error: &Error) {
        if matches!(error, Error::Fault(_)) {
            self.fault.get_or_insert_with(|| error.clone());
        }
        let reason = FinishReason::Error(error.to_string());
        for chunk in chunks {
            self.scheduler.settle(chunk.promise.as_ref());
            // All choices: some may share blocks that the step was to write.
            self.end(chunk.key.id, &reason);
        }
    }

    /// Ends what has not ended of a request.
    fn end(&mut self, id: RequestId, reason: &FinishReason) {
        let open = self.open.get(&id).map(|open| open.choices.clone());
        // Those that have not parted from the first one first.
        for choice in open.unwrap_or_default().into_iter().rev() {
            self.end_choice(Key { id, choice }, reason.clone());
        }
    }

    /// Ends a choice; nothing where it has ended already.
    fn end_choice(&mut self, key: Key, reason: FinishReason) {
        let cached = self.scheduler.remove(key).map_or(0, |s| s.cached);
        self.finished(key, reason, cached);
    }

    fn finished(&mut self, key: Key, reason: FinishReason, cached_tokens: u32) {
        let Some(open) = self.open.get_mut(&key.id) else {
            return;
        };
        let Some(at) = open.choices.iter().position(|&c| c == key.choice) else {
            return;
        };
        open.choices.remove(at);
        if open.choices.is_empty() {
            if let Some(at) = open.deadline {
                self.deadlines.remove(&(at, key.id));
            }
            self.open.remove(&key.id);
        }
        self.events.push(Event::Finished {
            id: key.id,
            choice: key.choice,
            reason,
            cached_tokens,
        });
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

    fn kv_windows(&self) -> &[Option<u32>] {
        (**self).kv_windows()
    }
}
