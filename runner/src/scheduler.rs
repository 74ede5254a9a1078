//! What goes into the next step: decode rows first, prompts in chunks that fill what is left of the token budget.
//!
//! A sequence waits, then runs. When it starts to run it gets blocks for all tokens that it has, so that only decoding can
//! run out of blocks. Then the youngest sequence gives its blocks up and waits again, to be computed anew (preemption by
//! recompute, of which the prefix cache saves what nobody needed meanwhile): the oldest always gets on, and everything ends.
//! A sequence that waits has no blocks.

use std::collections::{BTreeMap, HashSet};

use bundle_format::plan::{KV_BLOCK, Limits};

use crate::kv::{BlockKey, BlockTable, Copies, KvCache, blocks_for};
use crate::pace::Pace;
use crate::sequence::{Key, Part, Sequence};
use crate::spec::NgramSpec;

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub key: Key,
    /// Tokens to feed, the sequence's guesses among them; at least one.
    pub count: u32,
    /// Rows whose results are wanted: the last ones of the chunk.
    pub rows: u32,
    /// How many of the rows, the first ones, score a token of the prompt.
    pub scored: u32,
    /// The block that others need not compute, for this chunk does.
    pub promise: Option<BlockKey>,
}

/// One step's work.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub chunks: Vec<Chunk>,
    /// Rows that decode, guesses among them, and tokens of prompts.
    pub load: (u32, u32),
    /// Sequences, taken out of the scheduler, that the KV memory has no room for even alone.
    pub outgrown: Vec<Sequence>,
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub hit_tokens: u64,
    pub query_tokens: u64,
    pub preemptions: u64,
}

/// How to schedule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub limits: Limits,
    pub prefix_cache: bool,
    pub spec: Option<NgramSpec>,
    pub token_budget: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    policy: Policy,
    kv: KvCache,
    /// By age.
    waiting: BTreeMap<Key, Sequence>,
    /// By age.
    running: Vec<Sequence>,
    /// Blocks that steps in flight compute for all who start alike.
    promised: HashSet<BlockKey>,
    pub pace: Pace,
    counts: Counts,
}

/// What is left of a step.
struct Room {
    tokens: u32,
    rows: u32,
}

impl Scheduler {
    pub fn new(policy: Policy, kv: KvCache) -> Scheduler {
        Scheduler {
            pace: Pace::new(policy.token_budget, policy.limits.max_rows),
            policy,
            kv,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            promised: HashSet::new(),
            counts: Counts::default(),
        }
    }

    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Sequences that run and that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Queues a sequence, behind all that are older.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.key, sequence);
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Sequence> {
        match self.running.binary_search_by_key(&key, |s| s.key) {
            Ok(at) => self.running.get_mut(at),
            Err(_) => self.waiting.get_mut(&key),
        }
    }

    /// Takes a sequence out, its blocks free again. Choices that have not parted from it yet go on without it.
    pub fn remove(&mut self, key: Key) -> Option<Sequence> {
        let found = match self.running.binary_search_by_key(&key, |s| s.key) {
            Ok(at) => Some(self.running.remove(at)),
            Err(_) => self.waiting.remove(&key),
        };
        let Some(mut sequence) = found else {
            let all = self.running.iter_mut().chain(self.waiting.values_mut());
            let of_request = all.filter(|s| s.key.id == key.id);
            of_request.for_each(|s| s.drop_fork(key.choice));
            return None;
        };
        release(&mut self.kv, &mut sequence);
        if let Some(heir) = sequence.heir() {
            self.add(heir);
        }
        Some(sequence)
    }

    /// Chooses the next step's work, within the limits of the plan. Without chunks there is nothing to submit before a
    /// step in flight has ended.
    pub fn schedule(&mut self) -> Schedule {
        let mut schedule = Schedule::default();
        self.fork();
        self.make_room(&mut schedule.outgrown);
        self.admit(&mut schedule.outgrown);
        if self.fork() {
            self.make_room(&mut schedule.outgrown);
        }
        self.fill(&mut schedule);
        self.promised
            .extend(schedule.chunks.iter().filter_map(|c| c.promise.clone()));
        schedule
    }

    /// The copies that have to precede the first step of a sequence, which is about to be submitted.
    pub fn take_copies(&mut self, key: Key) -> Option<Copies> {
        let copies = self.get_mut(key)?.copies.take()?;
        self.kv.copied(&copies);
        Some(copies)
    }

    /// A step that computes a promised block has ended, one way or another.
    pub fn settle(&mut self, promise: Option<&BlockKey>) {
        if let Some(promise) = promise {
            self.promised.remove(promise);
        }
    }

    /// The steps of a sequence's first `positions` tokens have ended well, while its blocks were those of `epoch`: others can
    /// find what they wrote.
    pub fn computed(&mut self, key: Key, positions: u32, epoch: u32) {
        let Ok(at) = self.running.binary_search_by_key(&key, |s| s.key) else {
            return;
        };
        let sequence = &mut self.running[at];
        if sequence.epoch != epoch {
            return;
        }
        sequence.computed(positions);
        while self.policy.prefix_cache
            && let Some((index, block)) = sequence.publishable()
        {
            let prefix = self.kv.publish(&mut sequence.table, index, block);
            sequence.published(prefix);
        }
        let settled = sequence.settled();
        self.kv.slide(&mut sequence.table, settled);
    }

    /// Checks what must always hold. For tests.
    pub fn check(&self) -> Result<(), String> {
        if !self.running.is_sorted_by(|a, b| a.key < b.key) {
            return Err("those that run are not in the order of age".into());
        }
        let waiting = self.waiting.values();
        let mut owners = waiting.filter(|s| !s.table.blocks().is_empty() || s.copies.is_some());
        if let Some(s) = owners.next() {
            return Err(format!("{:?} waits and has blocks", s.key));
        }
        let tables = self.running.iter().map(|s| &s.table);
        let copies = self.running.iter().filter_map(|s| s.copies.as_ref());
        self.kv.check(tables, copies)
    }

    /// Sequences that may run together: each of them may want a token and a row of one step.
    fn max_running(&self) -> usize {
        let l = &self.policy.limits;
        l.max_seqs.min(l.max_rows).min(l.max_tokens) as usize
    }

    fn insert_running(&mut self, sequence: Sequence) {
        let at = self.running.partition_point(|s| s.key < sequence.key);
        self.running.insert(at, sequence);
    }

    /// Parts the choices of requests whose prompt is fed but for the last token. Those that can't run at once wait, and find
    /// the prompt in the prefix cache. Tells whether there were any.
    fn fork(&mut self) -> bool {
        let mut any = false;
        while let Some(at) = self.running.iter().position(Sequence::is_at_fork) {
            any = true;
            for mut other in self.running[at].fork() {
                let from = &self.running[at];
                if self.running.len() < self.max_running()
                    && let Some((table, copies)) = self.kv.fork(&from.table, from.fed())
                {
                    other.continue_from(from, table, copies);
                    // Younger than the one at `at`, which stays there.
                    self.insert_running(other);
                } else {
                    self.add(other);
                }
            }
        }
        any
    }

    /// Gives each running sequence, oldest first, blocks for what it can feed, at the cost of the youngest.
    fn make_room(&mut self, outgrown: &mut Vec<Sequence>) {
        let mut i = 0;
        while i < self.running.len() {
            let alone = self.running.len() == 1;
            let sequence = &mut self.running[i];
            let positions = sequence.feedable();
            let whole = self.kv.grow(&mut sequence.table, positions);
            let (next, most) = (sequence.fed() + 1, self.policy.limits.max_tokens);
            if whole && grow_windows(&mut self.kv, &mut sequence.table, next, positions, most) {
                i += 1;
            } else if whole && sequence.fed() > sequence.settled() {
                // Its windows move on when its steps have ended.
                i += 1;
            } else if !alone {
                self.preempt_youngest();
            } else if sequence.is_drawing() {
                // It ends, but not before the token that is on its way.
                i += 1;
            } else {
                let key = sequence.key;
                outgrown.extend(self.remove(key));
            }
        }
    }

    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            release(&mut self.kv, &mut sequence);
            sequence.rewind();
            self.counts.preemptions += 1;
            self.add(sequence);
        }
    }

    /// Lets waiting sequences run, in order, while there are blocks for all their tokens and one more for each sequence
    /// that runs already: otherwise the newcomer would soon lose its blocks again.
    fn admit(&mut self, outgrown: &mut Vec<Sequence>) {
        while self.running.len() < self.max_running() {
            let Some((_, mut sequence)) = self.waiting.pop_first() else {
                return;
            };
            let positions = sequence.feedable();
            let mut found = match self.policy.prefix_cache {
                true => sequence.matching(|key| self.kv.find(key)),
                false => Vec::new(),
            };
            let mut blocks: Vec<u32> = found.iter().map(|(block, _)| *block).collect();
            found.truncate(self.kv.usable(&blocks));
            blocks.truncate(found.len());
            // Blocks that are found take nothing where others hold them.
            let held = found.iter().filter(|(b, _)| !self.kv.is_free(*b)).count() as u32;
            let needed = blocks_for(positions) - held;
            let spare = (self.running.len() + sequence.forks().len()) as u32;
            let free = self.kv.free_blocks();
            let next = (found.len() * KV_BLOCK) as u32 + 1;
            let most = self.policy.limits.max_tokens;
            let ahead = positions.min(next - 1 + most);
            let fits = needed.saturating_add(spare) <= free
                && self.kv.windows_have_room(&blocks, ahead, spare)
                // Alone, it may have all.
                || self.running.is_empty()
                    && needed <= free
                    && self.kv.windows_have_room(&blocks, positions.min(next), 0);
            if fits {
                self.count_prefix(&sequence, found.len());
                self.kv.adopt_all(&mut sequence.table, &blocks);
                for (_, prefix) in found {
                    sequence.found(prefix);
                }
                // It fits: that is what was counted above.
                let _ = self.kv.grow(&mut sequence.table, positions);
                grow_windows(&mut self.kv, &mut sequence.table, next, positions, most);
                self.insert_running(sequence);
            } else if self.running.is_empty() && !sequence.is_drawing() {
                if let Some(heir) = sequence.heir() {
                    self.add(heir);
                }
                outgrown.push(sequence);
            } else {
                self.add(sequence);
                return;
            }
        }
    }

    /// Counts what the prefix cache does for a sequence that starts to run for the first time.
    fn count_prefix(&mut self, sequence: &Sequence, found: usize) {
        let first_time = sequence.epoch == 0 && !sequence.is_answering();
        let may_find = !sequence.task.hidden && !sequence.is_scoring();
        if self.policy.prefix_cache && may_find && first_time {
            self.counts.query_tokens += u64::from(sequence.task.prompt);
            self.counts.hit_tokens += (found * KV_BLOCK) as u64;
        }
    }

    /// Shares a step out: first those with one token to feed, with guesses behind it where there is room; then prompts,
    /// oldest first, as much of them as the answers that run can bear.
    fn fill(&mut self, schedule: &mut Schedule) {
        let Limits {
            max_tokens,
            max_rows,
            ..
        } = self.policy.limits;
        let (mut decoding, mut prefilling, mut answering) = (Vec::new(), Vec::new(), 0);
        for (i, s) in self.running.iter().enumerate() {
            // An answer whose beginning is computed anew has nothing to be held up.
            answering += u32::from(s.is_answering() && s.todo() <= 1);
            let has_room =
                s.feedable() <= s.table.capacity() && s.fed() < s.table.window_capacity();
            if s.todo() == 0 || !has_room {
                continue;
            }
            if s.todo() == 1 && !s.task.hidden && !s.is_scoring() {
                decoding.push(i);
            } else {
                prefilling.push(i);
            }
        }
        let mut room = Room {
            tokens: max_tokens,
            rows: max_rows,
        };
        // Guesses leave a token and a row to everyone else.
        let others = prefilling.len() as u32 + decoding.len() as u32;
        let most = self.policy.spec.map_or(0, |s| s.max_rows);
        let mut guesses = (max_tokens.min(max_rows).saturating_sub(others))
            .min(most.saturating_sub(decoding.len() as u32));
        for i in decoding {
            let chunk = self.decode(i, guesses);
            guesses -= chunk.count - 1;
            room.tokens -= chunk.count;
            room.rows -= chunk.rows;
            schedule.load.0 += chunk.count;
            schedule.chunks.push(chunk);
        }
        if answering > 0 {
            let rows = schedule.load.0.max(answering);
            room.tokens = room.tokens.min(self.pace.budget(rows));
        }
        for i in prefilling {
            if room.tokens == 0 {
                break;
            }
            if let Some(chunk) = self.prefill(i, &room, &schedule.chunks) {
                room.tokens -= chunk.count;
                room.rows -= chunk.rows;
                schedule.load.1 += chunk.count;
                schedule.chunks.push(chunk);
            }
        }
    }

    /// The one token that a sequence can feed, and up to `most` guesses behind it.
    fn decode(&mut self, i: usize, most: u32) -> Chunk {
        let sequence = &mut self.running[i];
        let (fed, draws) = (sequence.fed(), sequence.fed() + 1 == sequence.len());
        let mut guesses = if most > 0 { sequence.guess(most) } else { 0 };
        let (end, table) = (fed + 1 + guesses, &mut sequence.table);
        if guesses > 0 && !(self.kv.grow(table, end) && self.kv.grow_windows(table, end)) {
            // Nobody loses blocks for a guess.
            guesses = guesses.min(table.window_capacity().saturating_sub(fed + 1));
            sequence.drop_guesses(guesses);
        }
        Chunk {
            key: sequence.key,
            count: 1 + guesses,
            rows: if draws { 1 + guesses } else { 0 },
            scored: 0,
            promise: None,
        }
    }

    /// The next tokens of a prompt; none where another chunk, of this step or one in flight, computes the same block.
    fn prefill(&mut self, i: usize, room: &Room, chunks: &[Chunk]) -> Option<Chunk> {
        let sequence = &mut self.running[i];
        let mut promise = None;
        while self.policy.prefix_cache
            && let Some(key) = sequence.next_key()
        {
            if sequence.may_find_next()
                && let Some((block, prefix)) = self.kv.find(&key)
                && self.kv.has_windows(block)
            {
                let index = sequence.fed() as usize / KV_BLOCK;
                self.kv.adopt(&mut sequence.table, index, block);
                sequence.found(prefix);
                let settled = sequence.settled();
                self.kv.slide(&mut sequence.table, settled);
                if sequence.epoch == 0 {
                    self.counts.hit_tokens += KV_BLOCK as u64;
                }
                continue;
            }
            let here = || chunks.iter().any(|c| c.promise.as_ref() == Some(&key));
            if sequence.may_find_next() && (self.promised.contains(&key) || here()) {
                return None;
            }
            promise = Some(key);
            break;
        }
        let fed = sequence.fed();
        let end = fed + sequence.todo().min(room.tokens);
        let table = &mut sequence.table;
        // Where there is none for all of it, a part is fed.
        let _ = self.kv.grow_windows(table, end);
        let tokens = end.min(table.window_capacity()).saturating_sub(fed);
        let Part {
            count,
            rows,
            scored,
        } = sequence.part(tokens, room.rows);
        if count == 0 {
            return None;
        }
        // Others can find a whole block only.
        promise = promise.filter(|_| count as usize >= KV_BLOCK);
        Some(Chunk {
            key: sequence.key,
            count,
            rows,
            scored,
            promise,
        })
    }
}

/// Takes all blocks of a sequence.
fn release(kv: &mut KvCache, sequence: &mut Sequence) {
    if let Some(copies) = sequence.copies.take() {
        kv.copied(&copies);
    }
    kv.release(&mut sequence.table);
}

/// Room in the groups that see a window: for `most` positions from the one before `next` on, none beyond `end`, or at least for
/// that one.
fn grow_windows(kv: &mut KvCache, table: &mut BlockTable, next: u32, end: u32, most: u32) -> bool {
    let ahead = (next - 1).saturating_add(most);
    kv.grow_windows(table, end.min(ahead)) || kv.grow_windows(table, end.min(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Prefix;
    use crate::request::{Request, RequestId};

    #[test]
    fn what_was_written_to_blocks_that_were_taken_away_is_not_found() {
        let limits = Limits {
            max_tokens: 64,
            max_seqs: 2,
            max_rows: 2,
            context: 128,
        };
        let policy = Policy {
            limits,
            prefix_cache: true,
            spec: None,
            token_budget: None,
        };
        let mut scheduler = Scheduler::new(policy, KvCache::new(&[8]));
        let request = Request {
            prompt: vec![7; 40],
            ..Request::default()
        };
        let sequence = Sequence::new(RequestId(0), request, limits.context, None);
        let key = sequence.key;
        scheduler.add(sequence);
        let first = BlockKey {
            parent: Prefix::EMPTY,
            salt: 0,
            tokens: [7; KV_BLOCK],
        };
        for taken in [true, false] {
            let schedule = scheduler.schedule();
            assert_eq!(schedule.chunks.len(), 1);
            let sequence = scheduler.get_mut(key).expect("it runs");
            let epoch = sequence.epoch;
            sequence.submitted(40, None);
            if taken {
                scheduler.preempt_youngest();
                scheduler.settle(schedule.chunks[0].promise.as_ref());
                scheduler.admit(&mut Vec::new());
            }
            scheduler.computed(key, 40, epoch);
            scheduler.check().expect("nothing is lost");
            assert_eq!(scheduler.kv.find(&first).is_some(), !taken);
        }
    }
}
