//! A device without a model: the token that it draws is a hash of everything that attention would see.
//!
//! It writes a hash of each token and position into the token's slot of every KV group, and draws from the chain of what it
//! then finds, through the block table, at positions 0 up to the row's own. So a wrong table, slot, position or token, a
//! block that two sequences write, a copy that was not made or a chunk that was never fed gives another token than
//! [`expected`]. It also refuses steps that break a limit or a promise of [`Step`].

use std::collections::HashMap;

use bundle_format::plan::{KV_BLOCK, Limits};
use fastrun::device::{
    Device, LogProbs, Outcome, RowOutcome, SampleParams, Step, Ticket, TokenSource, Want, allows,
};
use fastrun::{Error, FinishReason, Request};

/// Scrambles two words into one (the finaliser of MurmurHash3, on a mix of both).
fn mix(a: u64, b: u64) -> u64 {
    let mut h = a.rotate_left(29) ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

fn entry(group: usize, token: u32, position: u32) -> u64 {
    mix(mix(group as u64 + 1, u64::from(token)), u64::from(position))
}

/// The context that a position of one group's chain adds to.
fn see(chains: &[u64]) -> u64 {
    chains.iter().fold(0, |context, &chain| mix(context, chain))
}

/// What a draw depends on beside the context.
struct Draw<'a> {
    /// The ids that the device was told of, or the last ones of all tokens.
    recent: &'a [u32],
    bias: &'a [(u32, f32)],
    mask: Option<&'a [u32]>,
    params: &'a SampleParams,
    /// Of the drawn token.
    position: u32,
    /// The token before.
    last: u32,
    vocab: u32,
}

/// Seven of eight tokens of an even seed go round a circle, so that they can be guessed; all others are random.
fn draw(context: u64, how: &Draw<'_>) -> u32 {
    let mut h = mix(mix(context, how.params.seed), u64::from(how.position));
    for &token in how.recent {
        h = mix(h, u64::from(token));
    }
    for &(token, bias) in how.bias {
        h = mix(mix(h, u64::from(token)), u64::from(bias.to_bits()));
    }
    let is_allowed = |id: &u32| how.mask.is_none_or(|words| allows(words, *id));
    let next = (how.last + 1) % how.vocab.min(5);
    if how.params.seed.is_multiple_of(2) && !h.is_multiple_of(8) && is_allowed(&next) {
        return next;
    }
    let allowed: Vec<u32> = (0..how.vocab).filter(is_allowed).collect();
    allowed[(h % allowed.len() as u64) as usize]
}

/// Stands for the log-probabilities of a row.
fn logprobs(context: u64, token: u32, count: u32) -> LogProbs {
    LogProbs {
        token: (context % 1000) as f32,
        top: (0..count).map(|i| (token + i, i as f32)).collect(),
    }
}

/// Stands for the hidden state of a row.
fn hidden(context: u64) -> Vec<f32> {
    vec![(context % 4096) as f32, (context >> 40) as f32]
}

/// What a request's choice yields on its own, with `pool` positions of KV memory.
#[derive(Debug, PartialEq)]
pub struct Expected {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Option<LogProbs>>,
    pub hidden: Vec<Vec<f32>>,
    /// Of the prompt's tokens from the second one on.
    pub scores: Vec<LogProbs>,
    pub reason: FinishReason,
}

/// Without grammars.
pub fn expected(
    request: &Request,
    choice: u32,
    limits: &Limits,
    windows: &[Option<u32>],
    vocab: u32,
    pool: u32,
) -> Expected {
    let params = SampleParams {
        seed: request.sampling.seed.wrapping_add(u64::from(choice)),
        ..request.sampling.clone()
    };
    let mut tokens = Vec::new();
    let mut chains = vec![0; windows.len()];
    let mut feed = |tokens: &mut Vec<u32>, token| {
        tokens.push(token);
        for (group, chain) in chains.iter_mut().enumerate() {
            let at = |p: usize| entry(group, tokens[p], p as u32);
            *chain = match windows[group] {
                None => mix(*chain, at(tokens.len() - 1)),
                Some(window) => {
                    let first = tokens.len().saturating_sub(window as usize);
                    (first..tokens.len()).fold(0, |chain, p| mix(chain, at(p)))
                }
            };
        }
        see(&chains)
    };
    let contexts: Vec<u64> = request
        .prompt
        .iter()
        .map(|&token| feed(&mut tokens, token))
        .collect();
    let mut found = Expected {
        tokens: Vec::new(),
        logprobs: Vec::new(),
        hidden: Vec::new(),
        scores: Vec::new(),
        reason: FinishReason::Length,
    };
    if let Some(count) = request.prompt_logprobs {
        let next = request.prompt.iter().skip(1);
        let score = |(&context, &token)| logprobs(context, token, count);
        found.scores = contexts.iter().zip(next).map(score).collect();
    }
    if request.hidden {
        found.hidden = contexts.into_iter().map(hidden).collect();
        found.reason = FinishReason::Stop;
        return found;
    }
    let mut context = *contexts.last().expect("prompts are not empty");
    let most = request.max_tokens.unwrap_or(u32::MAX);
    loop {
        let fed = tokens.len() as u32;
        if found.tokens.len() as u32 == most || fed > limits.context.min(pool) {
            return found;
        }
        let recent = tokens.len().saturating_sub(params.looks_back());
        let how = Draw {
            recent: &tokens[recent..],
            bias: &request.bias,
            mask: None,
            params: &params,
            position: fed,
            last: *tokens.last().expect("prompts are not empty"),
            vocab,
        };
        let token = draw(context, &how);
        if request.stop.contains(&token) {
            found.reason = FinishReason::Stop;
            return found;
        }
        let logprobs = request.logprobs.map(|n| logprobs(context, token, n));
        context = feed(&mut tokens, token);
        found.tokens.push(token);
        found.logprobs.push(logprobs);
    }
}

pub struct NullDevice {
    limits: Limits,
    vocab: u32,
    blocks: Vec<u32>,
    windows: Vec<Option<u32>>,
    /// By group and slot.
    memory: Vec<Vec<u64>>,
    /// Tokens that past steps drew, by ticket.
    drawn: HashMap<Ticket, Vec<Option<u32>>>,
    /// Not polled yet, with the number of polls that still find them running.
    running: HashMap<Ticket, (u32, Outcome)>,
    /// Polls that a step takes in turn.
    polls: Vec<u32>,
    /// Steps submitted, failed ones included.
    pub steps: u64,
    /// Tokens fed.
    pub tokens: u64,
    /// Steps that fail: at submission, and at the poll.
    pub fail_submit: Option<u64>,
    pub fail_poll: Option<u64>,
    /// Steps of which each row fails by itself.
    pub fail_rows: Option<u64>,
    /// Largest step so far: tokens, sequences, rows.
    pub largest: (usize, usize, usize),
}

impl NullDevice {
    pub fn new(limits: Limits, vocab: u32, blocks: Vec<u32>, polls: Vec<u32>) -> NullDevice {
        NullDevice {
            memory: blocks
                .iter()
                .map(|&n| vec![0; n as usize * KV_BLOCK])
                .collect(),
            limits,
            vocab,
            windows: vec![None; blocks.len()],
            blocks,
            drawn: HashMap::new(),
            running: HashMap::new(),
            polls,
            steps: 0,
            tokens: 0,
            fail_submit: None,
            fail_poll: None,
            fail_rows: None,
            largest: (0, 0, 0),
        }
    }

    /// Positions that each group sees.
    pub fn with_windows(mut self, windows: Vec<Option<u32>>) -> NullDevice {
        self.windows = windows;
        self
    }

    fn check(&self, step: &Step) -> Result<(), String> {
        let ensure =
            |ok: bool, what: &str| ok.then_some(()).ok_or_else(|| format!("{what}: {step:?}"));
        let (t, r) = (step.tokens.len(), step.rows.len());
        let s = step.sequences.last().map_or(0, |&s| s as usize + 1);
        let l = &self.limits;
        ensure(t > 0 && t <= l.max_tokens as usize, "number of tokens")?;
        ensure(s <= l.max_seqs as usize, "number of sequences")?;
        ensure(r <= l.max_rows as usize, "number of rows")?;
        ensure(
            step.positions.len() == t && step.sequences.len() == t,
            "lengths",
        )?;
        ensure(step.wants.len() == r, "wants")?;
        ensure(
            step.rows.iter().all(|&row| (row as usize) < t),
            "row out of range",
        )?;
        ensure(step.rows.is_sorted_by(|a, b| a < b), "rows ascend")?;
        ensure(step.sequences[0] == 0, "first sequence")?;
        for i in 1..t {
            let (a, b) = (step.sequences[i - 1], step.sequences[i]);
            let follows = step.positions[i] == step.positions[i - 1] + 1;
            ensure((a == b && follows) || b == a + 1, "order of tokens")?;
        }
        ensure(step.positions.iter().all(|&p| p < l.context), "position")?;
        ensure(step.kv.len() == self.blocks.len(), "groups")?;
        for (kv, &blocks) in step.kv.iter().zip(&self.blocks) {
            ensure(
                kv.slots.len() == t && kv.tables.len() == s,
                "slots and tables",
            )?;
            ensure(
                kv.tables.iter().all(|x| x.iter().all(|&b| b < blocks)),
                "block",
            )?;
            let apart = |c: &fastrun::device::BlockCopy| c.from != c.to;
            let inside = |c: &fastrun::device::BlockCopy| c.from.max(c.to) < blocks;
            ensure(kv.copies.iter().all(|c| apart(c) && inside(c)), "copies")?;
            for i in 0..t {
                let (p, table) = (
                    step.positions[i] as usize,
                    &kv.tables[step.sequences[i] as usize],
                );
                let slot = table[p / KV_BLOCK] as usize * KV_BLOCK + p % KV_BLOCK;
                ensure(kv.slots[i] as usize == slot, "slot")?;
                let last = i + 1 == t || step.sequences[i + 1] != step.sequences[i];
                ensure(
                    !last || table.len() == p / KV_BLOCK + 1,
                    "length of a table",
                )?;
            }
        }
        Ok(())
    }

    fn run(&mut self, step: &Step) -> Vec<RowOutcome> {
        let id = |source: &TokenSource| match *source {
            TokenSource::Id(id) => id,
            TokenSource::Sampled { ticket, row } => {
                self.drawn[&ticket][row as usize].expect("the row drew a token")
            }
        };
        let ids: Vec<u32> = step.tokens.iter().map(id).collect();
        for (group, (kv, memory)) in step.kv.iter().zip(&mut self.memory).enumerate() {
            for copy in &kv.copies {
                let from = copy.from as usize * KV_BLOCK;
                memory.copy_within(from..from + KV_BLOCK, copy.to as usize * KV_BLOCK);
            }
            for (i, &slot) in kv.slots.iter().enumerate() {
                memory[slot as usize] = entry(group, ids[i], step.positions[i]);
            }
        }
        let outcome = |(&row, want): (&u32, &Want)| self.row(step, &ids, row as usize, want);
        step.rows.iter().zip(&step.wants).map(outcome).collect()
    }

    /// Has a step leave rubbish where it was to write.
    fn spoil(&mut self, step: &Step) {
        for (kv, memory) in step.kv.iter().zip(&mut self.memory) {
            kv.slots
                .iter()
                .for_each(|&slot| memory[slot as usize] = 666);
        }
    }

    fn row(&self, step: &Step, ids: &[u32], row: usize, want: &Want) -> RowOutcome {
        let position = step.positions[row];
        let groups = step.kv.iter().zip(&self.memory).zip(&self.windows);
        let chain =
            |((kv, memory), window): ((&fastrun::device::StepKv, &Vec<u64>), &Option<u32>)| {
                let table = &kv.tables[step.sequences[row] as usize];
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                let slots = (first as usize..=position as usize)
                    .map(|p| table[p / KV_BLOCK] as usize * KV_BLOCK + p % KV_BLOCK);
                slots.fold(0, |chain, slot| mix(chain, memory[slot]))
            };
        let chains: Vec<u64> = groups.map(chain).collect();
        let context = see(&chains);
        let mut outcome = RowOutcome {
            hidden: want.hidden.then(|| hidden(context)),
            ..RowOutcome::default()
        };
        let Some(params) = &want.sample else {
            outcome.logprobs = want
                .score
                .zip(want.logprobs)
                .map(|(token, n)| logprobs(context, token, n));
            let is_wanted = want.hidden || outcome.logprobs.is_some();
            assert!(is_wanted, "a row of which nothing is wanted");
            return outcome;
        };
        let mask = match want.mask.as_ref().map(|mask| mask.wait()).transpose() {
            Ok(mask) => mask,
            Err(text) => {
                outcome.error = Some(text.into());
                return outcome;
            }
        };
        let how = Draw {
            recent: &want.recent,
            bias: &want.bias,
            mask,
            params,
            position: position + 1,
            last: ids[row],
            vocab: self.vocab,
        };
        let token = draw(context, &how);
        outcome.token = Some(token);
        outcome.logprobs = want.logprobs.map(|n| logprobs(context, token, n));
        outcome
    }
}

impl Device for NullDevice {
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        let number = self.steps;
        self.steps += 1;
        if self.fail_submit == Some(number) {
            return Err(Error::Unsupported("submission failed on purpose".into()));
        }
        self.check(&step).map_err(Error::Bug)?;
        let (t, s, r) = self.largest;
        let sequences = step.sequences.last().map_or(0, |&s| s as usize + 1);
        self.largest = (
            t.max(step.tokens.len()),
            s.max(sequences),
            r.max(step.rows.len()),
        );
        self.tokens += step.tokens.len() as u64;
        let mut rows = self.run(&step);
        if self.fail_poll == Some(number) {
            self.spoil(&step);
        }
        let ticket = Ticket(number);
        let tokens = rows.iter().map(|row| row.token).collect();
        self.drawn.insert(ticket, tokens);
        // As long as the engine may name them.
        self.drawn.remove(&Ticket(number.wrapping_sub(64)));
        if self.fail_rows == Some(number) {
            let failed =
                |row: &mut RowOutcome| row.error = Some("the row failed on purpose".into());
            rows.iter_mut().for_each(failed);
        }
        let outcome = Outcome { rows };
        let polls = self.polls.get(number as usize % self.polls.len().max(1));
        self.running
            .insert(ticket, (polls.copied().unwrap_or(0), outcome));
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        let Some((polls, _)) = self.running.get_mut(&ticket) else {
            return Err(Error::Bug(format!("{ticket:?} is not running")));
        };
        if *polls > 0 {
            *polls -= 1;
            return Ok(None);
        }
        if self.fail_poll == Some(ticket.0) {
            self.running.remove(&ticket);
            return Err(Error::Unsupported("the step failed on purpose".into()));
        }
        Ok(self.running.remove(&ticket).map(|(_, outcome)| outcome))
    }

    fn kv_blocks(&self) -> &[u32] {
        &self.blocks
    }

    fn kv_windows(&self) -> &[Option<u32>] {
        &self.windows
    }
}
