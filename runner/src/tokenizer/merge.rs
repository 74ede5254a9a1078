//! Merging: a word's symbols become tokens, and neighbours merge, lowest rank first (leftmost where ranks are equal), until
//! no pair has a merge. What the symbols are and which pairs merge is a [`Rule`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use bundle_format::tokenizer::{NONE, View};

/// Words up to this many symbols are merged by scanning; longer ones with a heap, which costs more to set up.
const SCANNED: usize = 48;

/// Words up to this many bytes are remembered.
const REMEMBERED: usize = 32;

const MEMORY: usize = 1024;

/// A part of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// [`NONE`] if no token spells it; then it stays as it is, or becomes bytes.
    pub id: u32,
    /// Where it lies in the word.
    pub start: usize,
    pub end: usize,
}

/// The merge of a symbol with its right neighbour. Pairs that don't merge have the highest rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub rank: u32,
    pub merged: u32,
}

pub const NO_PAIR: Pair = Pair {
    rank: u32::MAX,
    merged: NONE,
};

/// How words of a kind of vocabulary merge.
pub trait Rule {
    /// The token of a word that is one without merging.
    fn whole(&self, vocab: &View<'_>, word: &[u8]) -> Option<u32>;

    /// Appends the symbols that a word starts as.
    fn symbols(&self, vocab: &View<'_>, word: &str, out: &mut Vec<Symbol>);

    /// What neighbours become.
    fn pair(&self, vocab: &View<'_>, word: &[u8], left: Symbol, right: Symbol) -> Pair;

    /// The bytes whose tokens stand for a symbol that no token spells.
    fn fallback<'w>(&self, spelled: &'w [u8]) -> &'w [u8];
}

/// Merges the words of one text.
pub struct Merger<'a, 't, R> {
    vocab: View<'a>,
    rule: R,
    /// Words seen lately and where their tokens lie in the output; a direct-mapped cache.
    memory: Vec<(&'t str, Range<usize>)>,
    symbols: Vec<Symbol>,
    pairs: Vec<Pair>,
}

impl<'a, 't, R: Rule> Merger<'a, 't, R> {
    pub fn new(vocab: View<'a>, rule: R) -> Self {
        Self {
            vocab,
            rule,
            memory: Vec::new(),
            symbols: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Appends a word's tokens to `out`, which is the same at every call. Bytes without a token yield nothing.
    pub fn word(&mut self, word: &'t str, out: &mut Vec<u32>) {
        if word.len() > REMEMBERED {
            return self.merge(word, out);
        }
        if self.memory.is_empty() {
            self.memory.resize(MEMORY, ("", 0..0));
        }
        let at = hash(word.as_bytes()) as usize % MEMORY;
        let (known, tokens) = &self.memory[at];
        if *known == word {
            return out.extend_from_within(tokens.clone());
        }
        let start = out.len();
        self.merge(word, out);
        self.memory[at] = (word, start..out.len());
    }

    fn merge(&mut self, word: &str, out: &mut Vec<u32>) {
        let bytes = word.as_bytes();
        if let Some(id) = self.rule.whole(&self.vocab, bytes) {
            return out.push(id);
        }
        self.symbols.clear();
        self.rule.symbols(&self.vocab, word, &mut self.symbols);
        if self.symbols.len() <= SCANNED {
            self.merge_by_scan(bytes);
        } else {
            self.merge_by_heap(bytes);
        }
        for symbol in &self.symbols {
            if symbol.id != NONE {
                out.push(symbol.id);
                continue;
            }
            let spelled = &bytes[symbol.start..symbol.end];
            let fallback = self.rule.fallback(spelled).iter();
            out.extend(fallback.filter_map(|&byte| self.vocab.byte_token(byte)));
        }
    }

    fn merge_by_scan(&mut self, word: &[u8]) {
        let Self {
            vocab,
            rule,
            symbols,
            pairs,
            ..
        } = self;
        pairs.clear();
        pairs.extend(
            symbols
                .windows(2)
                .map(|pair| rule.pair(vocab, word, pair[0], pair[1])),
        );
        // pairs[i] is the merge of symbols[i] and symbols[i + 1].
        while let Some((at, &pair)) = pairs.iter().enumerate().min_by_key(|(_, pair)| pair.rank)
            && pair.merged != NONE
        {
            symbols[at].id = pair.merged;
            symbols[at].end = symbols[at + 1].end;
            symbols.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = rule.pair(vocab, word, symbols[at - 1], symbols[at]);
            }
            if at < pairs.len() {
                pairs[at] = rule.pair(vocab, word, symbols[at], symbols[at + 1]);
            }
        }
    }

    fn merge_by_heap(&mut self, word: &[u8]) {
        let Self {
            vocab,
            rule,
            symbols,
            pairs,
            ..
        } = self;
        // A symbol lies where its first part was; one that another took in is empty. The left neighbour of a symbol is at
        // prev of it, its right one at next of it, and pairs of it is its merge with the latter.
        let len = symbols.len();
        let mut prev: Vec<usize> = (0..len).map(|i| i.wrapping_sub(1)).collect();
        let mut next: Vec<usize> = (1..=len).collect();
        pairs.clear();
        pairs.extend(
            symbols
                .windows(2)
                .map(|pair| rule.pair(vocab, word, pair[0], pair[1])),
        );
        pairs.push(NO_PAIR);
        let mut heap: BinaryHeap<_> = pairs
            .iter()
            .enumerate()
            .filter(|(_, pair)| pair.merged != NONE)
            .map(|(at, pair)| Reverse((pair.rank, at)))
            .collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            // If the pair has another rank, a neighbour has merged since. If it has the same one and is another pair, it is in
            // the heap by itself too, with an equal key.
            if pairs[at].rank != rank {
                continue;
            }
            let gone = next[at];
            symbols[at].id = pairs[at].merged;
            symbols[at].end = symbols[gone].end;
            symbols[gone].start = symbols[gone].end;
            pairs[gone] = NO_PAIR;
            next[at] = next[gone];
            if next[at] < len {
                prev[next[at]] = at;
            }
            for left in [prev[at], at] {
                // The first symbol has no left neighbour, and the last no right one.
                if left >= len {
                    continue;
                }
                pairs[left] = match symbols.get(next[left]) {
                    Some(&right) => rule.pair(vocab, word, symbols[left], right),
                    None => NO_PAIR,
                };
                if pairs[left].merged != NONE {
                    heap.push(Reverse((pairs[left].rank, left)));
                }
            }
        }
        symbols.retain(|symbol| symbol.start < symbol.end);
    }
}

/// Spreads words over the memory; eight bytes at a time.
fn hash(word: &[u8]) -> u64 {
    let (chunks, rest) = word.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut h = word.len() as u64;
    for chunk in chunks.iter().chain([&last]) {
        h = (h ^ u64::from_le_bytes(*chunk))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
    }
    h.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}
