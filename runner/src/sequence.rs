//! One request on its way: its tokens, how many of them the device has, and its KV blocks.

use std::collections::VecDeque;

use crate::device::{SampleParams, Ticket, TokenSource};
use crate::kv::BlockTables;
use crate::request::{FinishReason, Request, RequestId};

/// A token that a submitted step draws, and whose id is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawing {
    pub ticket: Ticket,
    /// Row of the step's results.
    pub row: u32,
}

/// The tokens of a request: first those with known ids, then those that submitted steps are drawing.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: RequestId,
    pub sampling: SampleParams,
    pub stop: Vec<u32>,
    pub tables: BlockTables,
    known: Vec<u32>,
    drawing: VecDeque<Drawing>,
    /// Number of tokens, prompt included, at which the sequence ends. The last of them is never fed.
    limit: u32,
    /// Tokens that were submitted to the device: their keys and values are in the tables' blocks.
    fed: u32,
}

impl Sequence {
    /// `request.prompt` is not longer than `context`, and `request.max_tokens` is not 0.
    pub fn new(id: RequestId, request: Request, context: u32) -> Sequence {
        let prompt = request.prompt.len() as u32;
        let wanted = request.max_tokens.unwrap_or(u32::MAX);
        Sequence {
            id,
            sampling: request.sampling,
            stop: request.stop,
            tables: BlockTables::default(),
            known: request.prompt,
            drawing: VecDeque::new(),
            // A token that is drawn from the last position of the context has no position itself.
            limit: prompt.saturating_add(wanted).min(context.saturating_add(1)),
            fed: 0,
        }
    }

    /// Number of tokens, those being drawn included.
    pub fn len(&self) -> u32 {
        (self.known.len() + self.drawing.len()) as u32
    }

    pub fn fed(&self) -> u32 {
        self.fed
    }

    /// Positions that everything that can be fed by now takes. A token that is being drawn can be, unless the draw after
    /// it has to know it.
    pub fn feedable(&self) -> u32 {
        let given = match self.sampling.looks_back() {
            0 => self.len(),
            _ => self.known.len() as u32,
        };
        given.min(self.limit - 1)
    }

    /// The last tokens, as far back as a draw looks. The draw is of the token after the last known one.
    pub fn recent(&self) -> &[u32] {
        let start = self.known.len().saturating_sub(self.sampling.looks_back());
        &self.known[start..]
    }

    /// Tokens that can be fed and were not.
    pub fn todo(&self) -> u32 {
        self.feedable() - self.fed
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
        self.known
            .iter()
            .map(|&id| TokenSource::Id(id))
            .chain(self.drawing.iter().map(drawing))
            .skip(self.fed as usize)
            .take(count as usize)
    }

    /// `count` tokens were submitted, and `drawing` is the token that their step draws, if they were the last.
    pub fn submitted(&mut self, count: u32, drawing: Option<Drawing>) {
        self.fed += count;
        self.drawing.extend(drawing);
    }

    /// The token that has been drawn for longest turned out to be `token`. Gives the reason if the sequence ends with it;
    /// a stop id does not become part of the sequence.
    pub fn drawn(&mut self, token: u32) -> Option<FinishReason> {
        self.drawing.pop_front();
        if self.stop.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.known.push(token);
        (self.known.len() as u32 >= self.limit).then_some(FinishReason::Length)
    }

    /// Everything has to be fed anew: the blocks were taken away.
    pub fn rewind(&mut self) {
        self.fed = 0;
    }
}
