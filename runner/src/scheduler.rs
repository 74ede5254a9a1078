//! What goes into the next step: decode rows first, prompts in chunks that fill what is left of the token budget.
//!
//! A sequence waits, then runs. When it starts to run it gets blocks for all tokens that it has, so that only decoding can
//! run out of blocks. Then the sequence that came last gives its blocks up and waits again, to be computed anew
//! (preemption by recompute): the oldest always gets on, and everything ends.

use std::collections::VecDeque;

use bundle_format::plan::Limits;

use crate::kv::{KvCache, blocks_for};
use crate::request::RequestId;
use crate::sequence::Sequence;

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub id: RequestId,
    /// Tokens to feed; at least one.
    pub count: u32,
    /// Whether the chunk ends with the sequence's last token, so that the next one is to be drawn.
    pub draws: bool,
}

/// One step's work.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub chunks: Vec<Chunk>,
    /// Sequences, taken out of the scheduler, that the KV memory has no room for even alone.
    pub outgrown: Vec<Sequence>,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    kv: KvCache,
    /// By age, oldest first; all younger than those that run.
    waiting: VecDeque<Sequence>,
    /// By age, oldest first.
    running: Vec<Sequence>,
}

impl Scheduler {
    pub fn new(limits: Limits, kv: KvCache) -> Scheduler {
        Scheduler {
            limits,
            kv,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that run and that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Queues a sequence behind all others.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub fn get_mut(&mut self, id: RequestId) -> Option<&mut Sequence> {
        let mut all = self.running.iter_mut().chain(&mut self.waiting);
        all.find(|s| s.id == id)
    }

    /// Takes a sequence out, its blocks free again.
    pub fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.running.remove(at)
        } else {
            let at = self.waiting.iter().position(|s| s.id == id)?;
            self.waiting.remove(at)?
        };
        self.kv.release(&mut sequence.tables);
        Some(sequence)
    }

    /// Chooses the next step's work, within the limits of the plan. Without chunks there is nothing to submit before a
    /// step in flight has ended.
    pub fn schedule(&mut self) -> Schedule {
        let mut outgrown = Vec::new();
        self.make_room_for_decoding(&mut outgrown);
        self.admit(&mut outgrown);
        Schedule {
            chunks: self.chunks(),
            outgrown,
        }
    }

    /// Sequences that may run together: each of them may want a token and a row of one step.
    fn max_running(&self) -> usize {
        let l = &self.limits;
        l.max_seqs.min(l.max_rows).min(l.max_tokens) as usize
    }

    /// Gives each running sequence, oldest first, blocks for what it can feed, at the cost of the youngest.
    fn make_room_for_decoding(&mut self, outgrown: &mut Vec<Sequence>) {
        let mut i = 0;
        while i < self.running.len() {
            let alone = self.running.len() == 1;
            let sequence = &mut self.running[i];
            let positions = sequence.feedable();
            if self.kv.grow(&mut sequence.tables, positions) {
                i += 1;
            } else if !alone {
                self.preempt_youngest();
            } else if sequence.is_drawing() {
                // It ends, but not before the token that is on its way.
                i += 1;
            } else {
                let id = sequence.id;
                outgrown.extend(self.remove(id));
            }
        }
    }

    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.kv.release(&mut sequence.tables);
            sequence.rewind();
            self.waiting.push_front(sequence);
        }
    }

    /// Lets waiting sequences run, in order, while there are blocks for all their tokens and one more for each sequence
    /// that runs already: otherwise the newcomer would soon lose its blocks again.
    fn admit(&mut self, outgrown: &mut Vec<Sequence>) {
        while self.running.len() < self.max_running() {
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            let positions = sequence.feedable();
            let spare = self.running.len() as u32;
            let fits = blocks_for(positions).saturating_add(spare) <= self.kv.free_blocks();
            if fits && sequence.todo() > 0 && self.kv.grow(&mut sequence.tables, positions) {
                self.running.push(sequence);
            } else if self.running.is_empty() && sequence.todo() > 0 && !sequence.is_drawing() {
                outgrown.push(sequence);
            } else {
                self.waiting.push_front(sequence);
                return;
            }
        }
    }

    /// Shares the token budget out: first those with one token to feed, then the others; both oldest first.
    fn chunks(&self) -> Vec<Chunk> {
        let mut budget = self.limits.max_tokens;
        let ready = |s: &&Sequence| s.todo() > 0 && s.feedable() <= s.tables.capacity();
        let (decoding, prefilling): (Vec<&Sequence>, Vec<&Sequence>) = self
            .running
            .iter()
            .filter(ready)
            .partition(|s| s.todo() == 1);
        let mut chunks = Vec::new();
        for sequence in decoding.into_iter().chain(prefilling) {
            let count = sequence.todo().min(budget);
            if count == 0 {
                break;
            }
            budget -= count;
            chunks.push(Chunk {
                id: sequence.id,
                count,
                draws: sequence.fed() + count == sequence.len(),
            });
        }
        chunks
    }
}
