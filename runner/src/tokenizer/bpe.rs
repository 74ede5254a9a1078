//! Byte-pair merging: a word's bytes become tokens, and neighbours merge, lowest rank first (leftmost where ranks are
//! equal), until no pair has a merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use bundle_format::tokenizer::{NONE, View};

/// Words up to this many bytes are merged by scanning; longer ones with a heap, which costs more to set up.
const SCANNED: usize = 48;

/// Words up to this many bytes are remembered.
const REMEMBERED: usize = 32;

const MEMORY: usize = 1024;

/// Merges the words of one text.
pub struct Merger<'a, 't> {
    vocab: View<'a>,
    /// Words seen lately and where their tokens lie in the output; a direct-mapped cache.
    memory: Vec<(&'t [u8], Range<usize>)>,
    ids: Vec<u32>,
    pairs: Vec<Pair>,
}

/// The merge of a token with its right neighbour. Pairs that don't merge have the highest rank.
#[derive(Clone, Copy)]
struct Pair {
    rank: u32,
    merged: u32,
}

const NO_PAIR: Pair = Pair {
    rank: u32::MAX,
    merged: NONE,
};

impl<'a, 't> Merger<'a, 't> {
    pub fn new(vocab: View<'a>) -> Self {
        Self {
            vocab,
            memory: Vec::new(),
            ids: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Appends a word's tokens to `out`, which is the same at every call. Bytes without a token yield nothing.
    pub fn word(&mut self, word: &'t [u8], out: &mut Vec<u32>) {
        if word.len() > REMEMBERED {
            return self.merge(word, out);
        }
        if self.memory.is_empty() {
            self.memory.resize(MEMORY, (&[], 0..0));
        }
        let at = hash(word) as usize % MEMORY;
        let (known, tokens) = &self.memory[at];
        if *known == word {
            return out.extend_from_within(tokens.clone());
        }
        let start = out.len();
        self.merge(word, out);
        self.memory[at] = (word, start..out.len());
    }

    fn merge(&mut self, word: &[u8], out: &mut Vec<u32>) {
        self.ids.clear();
        self.ids.extend(
            word.iter()
                .map(|&byte| self.vocab.byte_token(byte).unwrap_or(NONE)),
        );
        if word.len() <= SCANNED {
            self.merge_by_scan();
        } else {
            self.merge_by_heap();
        }
        out.extend(self.ids.iter().copied().filter(|&id| id != NONE));
    }

    fn merge_by_scan(&mut self) {
        let Self {
            vocab, ids, pairs, ..
        } = self;
        pairs.clear();
        pairs.extend(ids.windows(2).map(|pair| pair_of(vocab, pair[0], pair[1])));
        // pairs[i] is the merge of ids[i] and ids[i + 1].
        while let Some((at, &pair)) = pairs.iter().enumerate().min_by_key(|(_, pair)| pair.rank)
            && pair.merged != NONE
        {
            ids[at] = pair.merged;
            ids.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = pair_of(vocab, ids[at - 1], ids[at]);
            }
            if at < pairs.len() {
                pairs[at] = pair_of(vocab, ids[at], ids[at + 1]);
            }
        }
    }

    fn merge_by_heap(&mut self) {
        let Self {
            vocab, ids, pairs, ..
        } = self;
        // A token lies where its first byte was. Its left neighbour is at prev of it, its right one at next of it, and
        // pairs of it is its merge with the latter.
        let len = ids.len();
        let mut prev: Vec<usize> = (0..len).map(|i| i.wrapping_sub(1)).collect();
        let mut next: Vec<usize> = (1..=len).collect();
        pairs.clear();
        pairs.extend(ids.windows(2).map(|pair| pair_of(vocab, pair[0], pair[1])));
        pairs.push(NO_PAIR);
        let mut heap: BinaryHeap<_> = pairs
            .iter()
            .enumerate()
            .filter(|(_, pair)| pair.merged != NONE)
            .map(|(at, pair)| Reverse((pair.rank, at)))
            .collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            // A rank belongs to one pair: if it is another one here, a neighbour has merged since.
            if pairs[at].rank != rank {
                continue;
            }
            let gone = next[at];
            ids[at] = pairs[at].merged;
            ids[gone] = NONE;
            pairs[gone] = NO_PAIR;
            next[at] = next[gone];
            if next[at] < len {
                prev[next[at]] = at;
            }
            for left in [prev[at], at] {
                // The first token has no left neighbour, and the last no right one.
                if left >= len {
                    continue;
                }
                pairs[left] = match ids.get(next[left]) {
                    Some(&right) => pair_of(vocab, ids[left], right),
                    None => NO_PAIR,
                };
                if pairs[left].merged != NONE {
                    heap.push(Reverse((pairs[left].rank, left)));
                }
            }
        }
    }
}

fn pair_of(vocab: &View<'_>, left: u32, right: u32) -> Pair {
    vocab.merge(left, right).map_or(NO_PAIR, |merge| Pair {
        rank: merge.rank,
        merged: merge.token,
    })
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
