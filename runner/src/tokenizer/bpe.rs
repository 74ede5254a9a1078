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
        let Self { vocab, ids, .. } = self;
        // A token lies where its first byte was. Its left neighbour is prev of it, its right one next of it.
        let len = ids.len();
        let mut prev: Vec<usize> = (0..len).map(|i| i.wrapping_sub(1)).collect();
        let mut next: Vec<usize> = (1..=len).collect();
        let mut alive = vec![true; len];
        let candidate = |ids: &[u32], left: usize, right: usize| {
            let pair = pair_of(vocab, ids[left], ids[right]);
            (pair.merged != NONE).then_some(Reverse(Candidate {
                rank: pair.rank,
                left,
                pair: (ids[left], ids[right]),
                merged: pair.merged,
            }))
        };
        let mut heap: BinaryHeap<_> = (1..len).filter_map(|i| candidate(ids, i - 1, i)).collect();
        while let Some(Reverse(Candidate {
            left, pair, merged, ..
        })) = heap.pop()
        {
            let right = next[left];
            // A neighbour may have merged since; then the pair is gone.
            if !alive[left] || right >= len || (ids[left], ids[right]) != pair {
                continue;
            }
            ids[left] = merged;
            alive[right] = false;
            next[left] = next[right];
            if next[left] < len {
                prev[next[left]] = left;
                heap.extend(candidate(ids, left, next[left]));
            }
            if prev[left] < len {
                heap.extend(candidate(ids, prev[left], left));
            }
        }
        let mut alive = alive.iter();
        ids.retain(|_| *alive.next().unwrap_or(&false));
    }
}

/// A possible merge; the least one comes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    pair: (u32, u32),
    merged: u32,
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
