//! One choice of a request on its way: its tokens, how many of them the device has, and its KV blocks.

use std::collections::VecDeque;
use std::sync::Arc;

use bundle_format::plan::KV_BLOCK;

use crate::device::{SampleParams, Ticket, TokenSource};
use crate::grammar::{Constraint, Matching};
use crate::kv::{BlockKey, BlockTable, Copies, Prefix};
use crate::request::{FinishReason, Request, RequestId};
use crate::spec::{Drafter, NgramSpec};

/// Names a sequence. Keys ascend by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub id: RequestId,
    pub choice: u32,
}

/// What all choices of a request have in common.
#[derive(Debug)]
pub(crate) struct Task {
    pub stop: Vec<u32>,
    pub logprobs: Option<u32>,
    pub bias: Arc<[(u32, f32)]>,
    pub grammar: Option<Constraint>,
    pub salt: u64,
    pub hidden: bool,
    /// Log-probabilities of the prompt's tokens, and so many of the likeliest.
    pub score: Option<u32>,
    pub spec: Option<NgramSpec>,
    /// Number of tokens of the prompt.
    pub prompt: u32,
}

/// A token that a submitted step draws, and whose id is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawing {
    pub ticket: Ticket,
    /// Row of the step's results.
    pub row: u32,
}

/// Whole blocks from position 0 on that can be found by others.
#[derive(Clone, Copy, Debug)]
struct Published {
    prefix: Prefix,
    blocks: u32,
}

const NOTHING: Published = Published {
    prefix: Prefix::EMPTY,
    blocks: 0,
};

/// Tokens to feed, of which the last `rows` want results: the first `scored` of those score the token behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub count: u32,
    pub rows: u32,
    pub scored: u32,
}

/// What a draw made of a sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Drawn {
    /// It has one more token.
    Token,
    /// It has one more token, and ends.
    Last(FinishReason),
    /// It ends without it.
    End(FinishReason),
}

/// The tokens of a choice: first those with known ids, then those that submitted steps are drawing.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub key: Key,
    pub task: Arc<Task>,
    pub sampling: SampleParams,
    pub table: BlockTable,
    /// The copies of the table's last block that its first step has to make.
    pub copies: Option<Copies>,
    /// Choices that go on from the prompt's last token but one, once it is reached.
    forks: Vec<u32>,
    known: Vec<u32>,
    drawing: VecDeque<Drawing>,
    /// Guesses behind the last known token that a submitted step verifies.
    drafts: Vec<u32>,
    /// Number of tokens, prompt included, at which the sequence ends. The last of them is never fed.
    limit: u32,
    /// Tokens, guesses included, that were submitted to the device: their keys and values are in the table's blocks, or
    /// will be.
    fed: u32,
    /// Tokens whose keys and values are in the blocks for sure: their steps have ended.
    computed: u32,
    published: Published,
    /// How often the blocks were taken away.
    pub epoch: u32,
    /// Tokens of the prompt that were found in the prefix cache.
    pub cached: u32,
    /// Positions whose hidden states, or whose next tokens' log-probabilities, were handed out.
    given: u32,
    grammar: Option<Arc<Matching>>,
    drafter: Option<Drafter>,
}

impl Sequence {
    /// The first choice of a request: its prompt is not longer than `context`. Where `max_tokens` is 0, its prompt has something
    /// to be given.
    pub fn new(id: RequestId, request: Request, context: u32, spec: Option<NgramSpec>) -> Sequence {
        let prompt = request.prompt.len() as u32;
        let wanted = match request.hidden {
            true => 1,
            false => request.max_tokens.unwrap_or(u32::MAX),
        };
        let task = Task {
            stop: request.stop,
            logprobs: request.logprobs,
            bias: request.bias,
            grammar: request.grammar,
            salt: request.cache_salt,
            hidden: request.hidden,
            score: request.prompt_logprobs,
            spec: spec.filter(|_| request.spec),
            prompt,
        };
        let task = Arc::new(task);
        // A token that is drawn from the last position of the context has no position itself.
        let limit = prompt.saturating_add(wanted).min(context + 1);
        let key = Key { id, choice: 0 };
        let mut first = Sequence::start(key, task, request.sampling, request.prompt, limit);
        first.forks = (1..request.choices).collect();
        first
    }

    /// Takes up an answer where it was left: nothing of the sequence was fed or drawn yet.
    ///
    /// # Errors
    /// Nothing can follow one of the tokens, or the grammar doesn't take it; the text says so.
    pub fn resume(&mut self, answered: &[u32]) -> Result<(), String> {
        for &token in answered {
            match self.drawn(token) {
                Drawn::Token => {}
                Drawn::End(FinishReason::Error(text)) => return Err(text),
                Drawn::Last(_) | Drawn::End(_) => {
                    return Err(format!("nothing can follow its token {token}"));
                }
            }
        }
        Ok(())
    }

    fn start(
        key: Key,
        task: Arc<Task>,
        sampling: SampleParams,
        known: Vec<u32>,
        limit: u32,
    ) -> Sequence {
        Sequence {
            key,
            sampling,
            table: BlockTable::default(),
            copies: None,
            forks: Vec::new(),
            known,
            drawing: VecDeque::new(),
            drafts: Vec::new(),
            limit,
            fed: 0,
            computed: 0,
            published: NOTHING,
            epoch: 0,
            cached: 0,
            given: 0,
            grammar: task.grammar.as_ref().map(|g| Arc::new(g.start())),
            drafter: task.spec.map(Drafter::new),
            task,
        }
    }

    /// Number of tokens, those being drawn included.
    pub fn len(&self) -> u32 {
        (self.known.len() + self.drawing.len()) as u32
    }

    pub fn fed(&self) -> u32 {
        self.fed
    }

    /// Whether the first token of the answer was drawn, or is being drawn.
    pub fn is_answering(&self) -> bool {
        self.len() > self.task.prompt
    }

    /// Whether a draw depends on the tokens before it beside its logits.
    fn looks_back(&self) -> bool {
        let guesses = || {
            let drafter = self.drafter.as_ref();
            drafter.is_some_and(|d| d.is_awake(self.known.len()))
        };
        self.sampling.looks_back() > 0 || self.grammar.is_some() || guesses()
    }

    /// Positions that everything that can be fed by now takes. A token that is being drawn can be, unless the draw after
    /// it has to know it.
    pub fn feedable(&self) -> u32 {
        if !self.forks.is_empty() {
            return self.task.prompt - 1;
        }
        let given = match self.looks_back() {
            true => self.known.len() as u32,
            false => self.len(),
        };
        given.min(self.limit - 1)
    }

    /// Positions that are computed for sure.
    pub fn settled(&self) -> u32 {
        self.computed
    }

    /// Tokens that can be fed and were not.
    pub fn todo(&self) -> u32 {
        self.feedable().saturating_sub(self.fed)
    }

    /// Whether the choices of the request part here.
    pub fn is_at_fork(&self) -> bool {
        // Where nothing is to follow the prompt, they end together.
        !self.forks.is_empty() && self.fed + 1 == self.task.prompt && self.limit > self.task.prompt
    }

    /// Choices that have still to part from this one.
    pub fn forks(&self) -> &[u32] {
        &self.forks
    }

    /// A choice that has not parted yet is not wanted any more.
    pub fn drop_fork(&mut self, choice: u32) {
        self.forks.retain(|&c| c != choice);
    }

    /// The other choices, without blocks. From here on they are sequences like any other.
    pub fn fork(&mut self) -> Vec<Sequence> {
        let forks = std::mem::take(&mut self.forks);
        forks.into_iter().map(|choice| self.other(choice)).collect()
    }

    /// Of the choices that have not parted from this one, which is gone, the first, for them to part from; without blocks.
    pub fn heir(&mut self) -> Option<Sequence> {
        let mut forks = std::mem::take(&mut self.forks).into_iter();
        let mut heir = self.other(forks.next()?);
        heir.forks = forks.collect();
        // What the prompt has to give, it goes on to give.
        heir.given = self.given;
        Some(heir)
    }

    fn other(&self, choice: u32) -> Sequence {
        let own = u64::from(choice - self.key.choice);
        let sampling = SampleParams {
            seed: self.sampling.seed.wrapping_add(own),
            ..self.sampling.clone()
        };
        let key = Key { choice, ..self.key };
        let (task, known) = (self.task.clone(), self.known.clone());
        let mut other = Sequence::start(key, task, sampling, known, self.limit);
        // What the prompt has to give, the one that it parts from gives.
        other.given = self.task.prompt;
        other
    }

    /// The sequence goes on from where `from`, whose blocks `table` shares, has come to.
    pub fn continue_from(&mut self, from: &Sequence, table: BlockTable, copies: Option<Copies>) {
        self.table = table;
        self.copies = copies;
        self.fed = from.fed;
        self.computed = from.computed;
        self.published = from.published;
        self.cached = from.cached;
    }

    /// The last tokens, as far back as a draw looks: that of the token after the last known one and `drafts` guesses.
    pub fn recent(&self, drafts: usize) -> Vec<u32> {
        let guessed = &self.drafts[..drafts];
        let len = self.known.len() + guessed.len();
        let start = len.saturating_sub(self.sampling.looks_back());
        let known = &self.known[start.min(self.known.len())..];
        let guessed = &guessed[start.saturating_sub(self.known.len())..];
        [known, guessed].concat()
    }

    /// Whether a submitted step is drawing a token of this sequence.
    pub fn is_drawing(&self) -> bool {
        !self.drawing.is_empty()
    }

    /// Where the next `count` tokens come from.
    pub fn next_tokens(&self, count: u32) -> impl Iterator<Item = TokenSource> {
        let drawing = |d: &Drawing| TokenSource::Sampled {
            ticket: d.ticket,
            row: d.row,
        };
        let id = |&id: &u32| TokenSource::Id(id);
        let given = self.known.iter().map(id);
        given
            .chain(self.drawing.iter().map(drawing))
            .chain(self.drafts.iter().map(id))
            .skip(self.fed as usize)
            .take(count as usize)
    }

    /// Guesses up to `most` tokens behind the last known one, which is the only one to be fed; how many.
    pub fn guess(&mut self, most: u32) -> u32 {
        let room = self.limit.saturating_sub(self.len() + 1);
        let Some(drafter) = &mut self.drafter else {
            return 0;
        };
        if !self.drawing.is_empty() || self.fed + 1 != self.known.len() as u32 {
            return 0;
        }
        let mut drafts = drafter.draft(&self.known, most.min(room));
        let ends = |id: &u32| self.task.stop.contains(id);
        drafts.truncate(drafts.iter().position(ends).unwrap_or(drafts.len()));
        if let Some(grammar) = &self.grammar {
            drafts.truncate(grammar.valid(&drafts));
        }
        self.drafts = drafts;
        self.drafts.len() as u32
    }

    /// There is no room for more than `count` guesses.
    pub fn drop_guesses(&mut self, count: u32) {
        self.drafts.truncate(count as usize);
    }

    pub fn guesses(&self) -> &[u32] {
        &self.drafts
    }

    pub fn grammar(&self) -> Option<&Arc<Matching>> {
        self.grammar.as_ref()
    }

    /// `count` tokens were submitted, and `drawing` is the token that their step draws, if they were the last.
    pub fn submitted(&mut self, count: u32, drawing: Option<Drawing>) {
        self.fed += count;
        self.drawing.extend(drawing);
    }

    /// The step of the token that has been drawn for longest has ended. Gives the guesses that it was to verify.
    pub fn take_guesses(&mut self) -> Vec<u32> {
        self.drawing.pop_front();
        std::mem::take(&mut self.drafts)
    }

    /// The next token turned out to be `token`.
    pub fn drawn(&mut self, token: u32) -> Drawn {
        if self.task.stop.contains(&token) {
            return Drawn::End(FinishReason::Stop);
        }
        let mut complete = false;
        if let Some(grammar) = &self.grammar {
            match grammar.advance(token) {
                Ok(state) if state.ended => return Drawn::End(FinishReason::Stop),
                Ok(state) => complete = state.complete,
                Err(text) => return Drawn::End(FinishReason::Error(text)),
            }
        }
        self.known.push(token);
        if complete {
            Drawn::Last(FinishReason::Stop)
        } else if self.known.len() as u32 >= self.limit {
            Drawn::Last(FinishReason::Length)
        } else {
            Drawn::Token
        }
    }

    /// Of `drafted` guesses, fed behind the token at `position`, only the first `accepted` came true: what was fed for the
    /// others is written anew.
    pub fn verified(&mut self, position: u32, drafted: u32, accepted: u32, epoch: u32) {
        if drafted == 0 {
            return;
        }
        if epoch == self.epoch {
            self.fed = position + 1 + accepted;
        }
        if let Some(drafter) = &mut self.drafter {
            drafter.learn(drafted, accepted, self.known.len());
        }
    }

    /// Of the next `count` tokens, how many want a row that scores the token behind them: all from the first one on that was
    /// not scored yet, but the prompt's last.
    fn scores(&self, count: u32) -> u32 {
        if self.task.score.is_none() {
            return 0;
        }
        let end = (self.fed + count).min(self.task.prompt - 1);
        end.saturating_sub(self.fed.max(self.given))
    }

    /// Whether tokens that were not fed yet are to be scored.
    pub fn is_scoring(&self) -> bool {
        self.scores(self.task.prompt) > 0
    }

    /// How much can be fed of the next `tokens` tokens where `rows` rows are left for it.
    pub fn part(&self, tokens: u32, rows: u32) -> Part {
        if self.task.hidden {
            let count = tokens.min(rows);
            let (rows, scored) = (count, 0);
            return Part {
                count,
                rows,
                scored,
            };
        }
        let mut count = tokens;
        if self.is_scoring() {
            // Rows are the last ones of a part: where tokens of the answer follow the prompt, they don't come with it.
            if self.len() > self.task.prompt {
                count = count.min(self.task.prompt - 1 - self.fed);
            }
            if self.scores(count) > rows {
                count = self.given.saturating_sub(self.fed) + rows;
            }
        }
        let scored = self.scores(count);
        let draws = count > 0 && self.fed + count == self.len();
        // Without a row to draw in, the last token waits.
        let waits = draws && scored == rows;
        Part {
            count: count - u32::from(waits),
            rows: scored + u32::from(draws && !waits),
            scored,
        }
    }

    /// The token of the prompt at a position.
    pub fn prompt_token(&self, position: u32) -> Option<u32> {
        self.known.get(position as usize).copied()
    }

    /// Whether a row of each token is wanted, so that none can be skipped.
    fn skips_nothing(&self) -> bool {
        self.task.hidden || self.is_scoring()
    }

    /// What a position has to give is there; false where it was before.
    pub fn give(&mut self, position: u32) -> bool {
        let new = position == self.given;
        self.given += u32::from(new);
        new
    }

    /// Whether everything was handed out that the prompt has to give, and nothing is to follow.
    pub fn all_given(&self) -> bool {
        let ends = self.limit == self.task.prompt;
        match self.task.hidden {
            true => self.given == self.task.prompt,
            false => ends && self.task.score.is_some() && self.given + 1 >= self.task.prompt,
        }
    }

    /// Everything has to be fed anew: the blocks were taken away.
    pub fn rewind(&mut self) {
        self.fed = 0;
        self.computed = 0;
        self.published = NOTHING;
        self.epoch += 1;
    }

    /// The steps of the first `positions` tokens have ended.
    pub fn computed(&mut self, positions: u32) {
        self.computed = self.computed.max(positions);
    }

    /// The key of the next block that others could find, if all its tokens are computed, and its index in the table.
    pub fn publishable(&self) -> Option<(usize, BlockKey)> {
        let index = self.published.blocks as usize;
        let end = (index + 1) * KV_BLOCK;
        (end <= self.computed as usize)
            .then(|| self.block_key(self.published))
            .flatten()
            .map(|key| (index, key))
    }

    pub fn published(&mut self, prefix: Prefix) {
        self.published = Published {
            prefix,
            blocks: self.published.blocks + 1,
        };
    }

    /// The key of the block behind what is published, if exactly that was fed: someone else's may take its place. The last
    /// known token is fed in any case, for its logits.
    pub fn next_key(&self) -> Option<BlockKey> {
        let at_border = self.fed == self.published.blocks * KV_BLOCK as u32;
        (at_border && !self.skips_nothing())
            .then(|| self.block_key(self.published))
            .flatten()
    }

    /// The key of the block behind a prefix of this sequence; none where a token of it, or one after it, isn't known.
    fn block_key(&self, before: Published) -> Option<BlockKey> {
        let start = before.blocks as usize * KV_BLOCK;
        let tokens = self.known.get(start..)?.first_chunk()?;
        Some(BlockKey {
            parent: before.prefix,
            salt: self.task.salt,
            tokens: *tokens,
        })
    }

    /// Whether a whole block at `blocks` blocks leaves a known token to be fed.
    fn leaves_a_token(&self, blocks: u32) -> bool {
        (blocks as usize + 1) * KV_BLOCK < self.known.len()
    }

    /// The blocks that `find` gives for the prefix of a sequence that nothing was fed of, with their names.
    pub fn matching(
        &self,
        find: impl Fn(&BlockKey) -> Option<(u32, Prefix)>,
    ) -> Vec<(u32, Prefix)> {
        let mut found = Vec::new();
        let mut at = NOTHING;
        while !self.skips_nothing()
            && self.leaves_a_token(at.blocks)
            && let Some(key) = self.block_key(at)
            && let Some((block, prefix)) = find(&key)
        {
            found.push((block, prefix));
            at = Published {
                prefix,
                blocks: at.blocks + 1,
            };
        }
        found
    }

    /// The next block was found: its positions need not be fed.
    pub fn found(&mut self, prefix: Prefix) {
        self.published(prefix);
        self.fed += KV_BLOCK as u32;
        self.computed = self.fed;
        if self.epoch == 0 && !self.is_answering() {
            self.cached += KV_BLOCK as u32;
        }
    }

    /// Whether the block that [`Sequence::next_key`] names may be taken over from others.
    pub fn may_find_next(&self) -> bool {
        self.leaves_a_token(self.published.blocks)
    }
}
