//! Cuts special tokens out of text.
//!
//! The longest token of the vocabulary is cut out wherever the text spells it, from left to right; then the next longest
//! from what is left, and so on (equal lengths by id). This is llama.cpp's order, and not that of the leftmost match.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bundle_format::tokenizer::{Attr, View};

/// A stretch of text that is one token, or that is still to be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<T> {
    Text(T),
    Token(u32),
}

/// Finds the special tokens of a vocabulary in text.
#[derive(Clone, Copy, Debug)]
pub struct Matcher<'a> {
    vocab: View<'a>,
    /// Whether some special token starts with the byte.
    starts: [bool; 256],
}

impl<'a> Matcher<'a> {
    pub fn new(vocab: View<'a>) -> Self {
        let mut starts = [false; 256];
        for (_, bytes) in (0..vocab.matched_len()).filter_map(|i| vocab.matched(i)) {
            starts[bytes[0] as usize] = true; // the view has no empty ones
        }
        Self { vocab, starts }
    }

    /// The pieces of `text`, in order; none is empty. Control and unknown tokens are found only with `parse_special`, and
    /// only where they contain none of the characters at `literal` (ascending byte offsets).
    pub fn pieces<'t>(
        &self,
        text: &'t str,
        literal: &[usize],
        parse_special: bool,
    ) -> Vec<Piece<&'t str>> {
        let mut matches = self.matches(text.as_bytes(), literal, parse_special);
        matches.sort_unstable_by_key(|m| m.start);
        let mut pieces = Vec::with_capacity(2 * matches.len() + 1);
        let mut end = 0;
        for found in matches {
            // Special tokens are UTF-8, so that a match starts and ends between characters.
            if found.start > end {
                pieces.push(Piece::Text(&text[end..found.start]));
            }
            pieces.push(Piece::Token(found.id));
            end = found.start + found.len;
            let attr = self.vocab.attr(found.id).unwrap_or_default();
            if attr.any(Attr::STRIPS_RIGHT) {
                // C's isspace, which Rust's takes for one character less: the vertical tab.
                let is_space = |c: char| c.is_ascii_whitespace() || c == '\u{b}';
                let rest = &text[end..];
                end += rest.len() - rest.trim_start_matches(is_space).len();
            }
        }
        if end < text.len() {
            pieces.push(Piece::Text(&text[end..]));
        }
        pieces
    }

    fn matches(&self, text: &[u8], literal: &[usize], parse_special: bool) -> Vec<Match> {
        let allowed = |m: &Match| {
            let next = literal.partition_point(|&at| at < m.start);
            !self.is_hidden(m.id)
                || (parse_special && literal.get(next).is_none_or(|&at| at >= m.start + m.len))
        };
        // One candidate a position, its longest; a shorter one takes its place where the longest doesn't fit.
        let mut candidates: BinaryHeap<_> = (0..text.len())
            .filter(|&start| self.starts[text[start] as usize])
            .filter_map(|start| self.longest(text, start, allowed))
            .map(Match::key)
            .collect();
        let mut taken = vec![false; if candidates.is_empty() { 0 } else { text.len() }];
        let mut matches = Vec::new();
        while let Some((len, Reverse(id), Reverse(start))) = candidates.pop() {
            if taken[start] {
                continue;
            }
            // All that was taken so far is at least as long, so that it covers an end of whatever it overlaps.
            if taken[start + len - 1] {
                let room = taken[start..start + len]
                    .iter()
                    .take_while(|&&t| !t)
                    .count();
                candidates.extend(
                    self.longest(&text[..start + room], start, allowed)
                        .map(Match::key),
                );
                continue;
            }
            taken[start..start + len].fill(true);
            matches.push(Match { id, start, len });
        }
        matches
    }

    /// Where `text` spells a control or unknown token, by the starts of all spellings, ascending.
    pub fn control_starts(&self, text: &str) -> Vec<usize> {
        let text = text.as_bytes();
        let hidden = |m: &Match| self.is_hidden(m.id);
        (0..text.len())
            .filter(|&start| self.starts[text[start] as usize])
            .filter(|&start| self.longest(text, start, hidden).is_some())
            .collect()
    }

    /// The control and unknown tokens as text.
    pub fn controls(&self) -> impl Iterator<Item = &'a str> {
        (0..self.vocab.matched_len())
            .filter_map(|i| self.vocab.matched(i))
            .filter(|&(id, _)| self.is_hidden(id))
            .filter_map(|(_, bytes)| std::str::from_utf8(bytes).ok()) // the view has no others
    }

    fn is_hidden(&self, id: u32) -> bool {
        self.vocab.attr(id).is_some_and(Attr::is_hidden)
    }

    /// The longest allowed token that `text` spells at `start`.
    fn longest(
        &self,
        text: &[u8],
        start: usize,
        allowed: impl Fn(&Match) -> bool,
    ) -> Option<Match> {
        let rest = &text[start..];
        let entry = |i: usize| self.vocab.matched(i).unwrap_or((0, &[]));
        // Entries lo .. hi are those that begin with the bytes so far.
        let (mut lo, mut hi) = (0, self.vocab.matched_len());
        let mut best = None;
        for (depth, &byte) in rest.iter().enumerate() {
            let part = |mut a: usize, mut b: usize, before: &dyn Fn(&u8) -> bool| {
                while a < b {
                    let middle = a.midpoint(b);
                    match entry(middle).1.get(depth).is_none_or(before) {
                        true => a = middle + 1,
                        false => b = middle,
                    }
                }
                a
            };
            lo = part(lo, hi, &|&b| b < byte);
            hi = part(lo, hi, &|&b| b <= byte);
            if lo == hi {
                break;
            }
            let (id, bytes) = entry(lo);
            if bytes.len() == depth + 1 {
                let found = Match {
                    id,
                    start,
                    len: depth + 1,
                };
                if allowed(&found) {
                    best = Some(found);
                }
            }
        }
        best
    }
}

#[derive(Clone, Copy, Debug)]
struct Match {
    id: u32,
    start: usize,
    len: usize,
}

impl Match {
    /// Greater keys are cut out first.
    fn key(self) -> (usize, Reverse<u32>, Reverse<usize>) {
        (self.len, Reverse(self.id), Reverse(self.start))
    }
}
