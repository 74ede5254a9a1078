//! A device without a model: the token that it draws is a hash of everything that attention would see.
//!
//! It writes a hash of each token and position into the token's slot of every KV group, and draws from the chain of what it
//! then finds, through the block table, at positions 0 up to the row's own. So a wrong table, slot, position or token, a
//! block that two sequences write, or a chunk that was never fed gives another token than [`expected`]. It also refuses
//! steps that break a limit or a promise of [`Step`].

use std::collections::HashMap;

use bundle_format::plan::{KV_BLOCK, Limits};
use fastrun::device::{Device, Outcome, RowOutcome, SampleParams, Step, Ticket, TokenSource};
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

/// `recent` are the ids that the device was told of, or the last ones of all tokens.
fn draw(context: u64, recent: &[u32], position: u32, params: &SampleParams, vocab: u32) -> u32 {
    let mut h = mix(mix(context, params.seed), u64::from(position));
    for &token in recent {
        h = mix(h, u64::from(token));
    }
    (h % u64::from(vocab)) as u32
}

/// What a request yields on its own, with `pool` positions of KV memory.
pub fn expected(
    request: &Request,
    limits: &Limits,
    groups: usize,
    vocab: u32,
    pool: u32,
) -> (Vec<u32>, FinishReason) {
    let mut tokens = request.prompt.clone();
    let mut answer = Vec::new();
    let most = request.max_tokens.unwrap_or(u32::MAX);
    loop {
        let fed = tokens.len() as u32;
        if answer.len() as u32 == most || fed > limits.context.min(pool) {
            return (answer, FinishReason::Length);
        }
        let mut context = 0;
        for group in 0..groups {
            for (position, &token) in tokens.iter().enumerate() {
                context = mix(context, entry(group, token, position as u32));
            }
        }
        let recent = tokens.len().saturating_sub(request.sampling.looks_back());
        let token = draw(context, &tokens[recent..], fed, &request.sampling, vocab);
        if request.stop.contains(&token) {
            return (answer, FinishReason::Stop);
        }
        tokens.push(token);
        answer.push(token);
    }
}

pub struct NullDevice {
    limits: Limits,
    vocab: u32,
    blocks: Vec<u32>,
    /// By group and slot.
    memory: Vec<Vec<u64>>,
    /// Tokens that past steps drew, by ticket.
    drawn: HashMap<Ticket, Vec<u32>>,
    /// Not polled yet, with the number of polls that still find them running.
    running: HashMap<Ticket, (u32, Outcome)>,
    /// Polls that a step takes in turn.
    polls: Vec<u32>,
    /// Steps submitted, failed ones included.
    pub steps: u64,
    /// Steps that fail: at submission, and at the poll.
    pub fail_submit: Option<u64>,
    pub fail_poll: Option<u64>,
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
            blocks,
            drawn: HashMap::new(),
            running: HashMap::new(),
            polls,
            steps: 0,
            fail_submit: None,
            fail_poll: None,
            largest: (0, 0, 0),
        }
    }

    fn check(&self, step: &Step) -> Result<(), String> {
        let ensure = |ok: bool, what: &str| ok.then_some(()).ok_or(format!("{what}: {step:?}"));
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

    fn run(&mut self, step: &Step) -> Vec<u32> {
        let id = |source: &TokenSource| match *source {
            TokenSource::Id(id) => id,
            TokenSource::Sampled { ticket, row } => self.drawn[&ticket][row as usize],
        };
        let ids: Vec<u32> = step.tokens.iter().map(id).collect();
        for (group, (kv, memory)) in step.kv.iter().zip(&mut self.memory).enumerate() {
            for (i, &slot) in kv.slots.iter().enumerate() {
                memory[slot as usize] = entry(group, ids[i], step.positions[i]);
            }
        }
        let row_token = |(&row, want): (&u32, &fastrun::device::Want)| {
            let row = row as usize;
            let position = step.positions[row];
            let mut context = 0;
            for (kv, memory) in step.kv.iter().zip(&self.memory) {
                let table = &kv.tables[step.sequences[row] as usize];
                for p in 0..=position as usize {
                    let slot = table[p / KV_BLOCK] as usize * KV_BLOCK + p % KV_BLOCK;
                    context = mix(context, memory[slot]);
                }
            }
            let params = want.sample.as_ref().expect("the engine samples every row");
            draw(context, &want.recent, position + 1, params, self.vocab)
        };
        step.rows.iter().zip(&step.wants).map(row_token).collect()
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
        let tokens = self.run(&step);
        let ticket = Ticket(number);
        let row = |&token: &u32| RowOutcome {
            token: Some(token),
            ..RowOutcome::default()
        };
        let outcome = Outcome {
            rows: tokens.iter().map(row).collect(),
        };
        self.drawn.insert(ticket, tokens);
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
}
