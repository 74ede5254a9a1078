//! The tokens that can be drawn, step by step fewer, and the draw among them.

use super::vector::{self, BLOCK, exp_below_zero, sum};
use crate::device::SampleParams;

/// The tokens that can be drawn.
#[derive(Debug, Default)]
pub struct Choice {
    /// A weight for each token.
    weights: Vec<f32>,
    /// Candidates as [`key`]s.
    keys: Vec<u64>,
}

impl Choice {
    /// Draws by a number in [0, 1). `largest` is the largest logit.
    pub fn draw(
        &mut self,
        logits: &[f32],
        largest: f32,
        params: &SampleParams,
        random: f64,
    ) -> u32 {
        let mut plain = Weigh {
            largest,
            temperature: 1.0,
        };
        // Whether `keys` are what is left, rather than every token.
        let mut selected = false;
        let top_k = params.top_k as usize;
        if top_k > 0 && top_k < logits.len() {
            self.select_top_k(logits, top_k);
            selected = true;
        }
        if params.typical_p < 1.0 {
            let p = params.typical_p as f64;
            let (total, mean) = if selected {
                self.moments(&plain)
            } else {
                self.select_near(logits, &plain, p)
            };
            self.keep_typical(logits, &plain, p * total, mean);
            selected = true;
            // The likeliest token may be gone.
            plain.largest = self.keys.iter().max().map_or(largest, |&k| logit_of(k));
        }
        if params.top_p < 1.0 {
            let p = params.top_p as f64;
            let total = if selected {
                plain.sum(&self.keys)
            } else {
                let total = vector::weigh_all(logits, &plain, &mut self.weights);
                self.select_likely(logits, p, total, f32::INFINITY);
                total
            };
            keep_nucleus(&mut self.keys, p * total, |k| plain.weight(logit_of(k)));
            selected = true;
        }
        if params.min_p > 0.0 {
            let lowest = plain.largest + params.min_p.ln();
            if selected {
                self.keys.retain(|&k| logit_of(k) >= lowest);
            } else {
                self.keys.clear();
                let keys = &mut self.keys;
                vector::push_at_least(logits, logits, lowest, &mut |id, logit| {
                    keys.push(key(logit, id))
                });
                selected = true;
            }
        }
        if params.temperature == 0.0 {
            let best = self.keys.iter().max();
            return best.map_or(0, |&k| id_of(k));
        }
        let tempered = Weigh {
            temperature: params.temperature,
            ..plain
        };
        if selected {
            self.draw_selected(logits.len(), &tempered, random)
        } else {
            let total = vector::weigh_all(logits, &tempered, &mut self.weights);
            draw_weight(&self.weights, random * total)
        }
    }

    /// The `k` likeliest tokens, likeliest first, lower ids first among equals.
    pub fn likeliest(&mut self, logits: &[f32], k: usize) -> impl Iterator<Item = u32> {
        self.keys.clear();
        if k > 0 {
            self.select_top_k(logits, k.min(logits.len()));
        }
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        self.keys.iter().map(|&k| id_of(k))
    }

    /// Leaves the keys of the `k` likeliest tokens, in any order. `k` is from 1 to the number of tokens.
    fn select_top_k(&mut self, logits: &[f32], k: usize) {
        self.keys.clear();
        let keys = &mut self.keys;
        // Until there are k, even an impossible token is one of the likeliest: they are taken as they come.
        let (first, rest) = logits.split_at(k);
        keys.extend(first.iter().enumerate().map(|(id, &logit)| key(logit, id)));
        // A candidate must beat this; of equal logits the lower id, met earlier, stays.
        let least = keys.iter().copied().min().unwrap_or(0);
        let mut bar = logit_of(least);
        vector::blocks_above(rest, bar, &mut |start, chunk| {
            for (j, &logit) in chunk.iter().enumerate() {
                if logit > bar {
                    keys.push(key(logit, k + start + j));
                }
            }
            if keys.len() >= 2 * k + 256 {
                keep_largest(keys, k);
                bar = logit_of(keys[k - 1]);
            }
            bar
        });
        if keys.len() > k {
            keep_largest(keys, k);
        }
    }

    /// Leaves the keys of all tokens that can be in the nucleus of mass `p`: those below `cutoff` weigh together less than
    /// what the nucleus leaves out. Those of at least `above` are all left.
    fn select_likely(&mut self, logits: &[f32], p: f64, total: f64, above: f32) {
        // A little lower than need be, against rounding.
        let cutoff = (0.999 * (1.0 - p) * total / logits.len() as f64) as f32;
        let cutoff = cutoff.min(above);
        self.keys.clear();
        let keys = &mut self.keys;
        vector::push_at_least(logits, &self.weights, cutoff, &mut |id, logit| {
            keys.push(key(logit, id))
        });
    }

    /// The sum of the selected tokens' weights, and the mean distance from the largest logit.
    fn moments(&self, weigh: &Weigh) -> (f64, f32) {
        let (mut total, mut moment) = (0.0, 0.0);
        for &k in &self.keys {
            let weight = weigh.weight(logit_of(k)) as f64;
            // An impossible token is infinitely far away.
            if weight > 0.0 {
                total += weight;
                moment += weight * (logit_of(k) - weigh.largest) as f64;
            }
        }
        (total, (moment / total) as f32)
    }

    /// Leaves the keys of all tokens that can be among the typical ones of mass `p`, and gives the [`Self::moments`] of all.
    fn select_near(&mut self, logits: &[f32], weigh: &Weigh, p: f64) -> (f64, f32) {
        let total = vector::weigh_all(logits, weigh, &mut self.weights);
        let mean = vector::moment(logits, &self.weights, weigh.largest) / total;
        // As for the nucleus; and no further from the mean than the likeliest token, which is -mean away.
        let cutoff = (0.999 * (2.0 * mean).exp()) as f32;
        self.select_likely(logits, p, total, cutoff);
        (total, mean as f32)
    }

    /// Leaves the keys of the tokens whose surprise is nearest to the entropy, the fewest that together weigh `goal`.
    ///
    /// Surprise is ln Z - d, with d the distance of the logit from the largest one and Z the sum of all e^d; the entropy is
    /// its mean, ln Z - mean d. So a token is the more typical the nearer its d is to the `mean` of d.
    fn keep_typical(&mut self, logits: &[f32], weigh: &Weigh, goal: f64, mean: f32) {
        for k in &mut self.keys {
            let id = id_of(*k);
            let distance = (logit_of(*k) - weigh.largest - mean).abs();
            // Nearer is more, as for likelier tokens. Distances aren't negative, so they order as their bits do.
            *k = (!distance.to_bits() as u64) << 32 | !id as u64;
        }
        let weight = |k| weigh.weight(logits[id_of(k) as usize]);
        keep_nucleus(&mut self.keys, goal, weight);
        for k in &mut self.keys {
            let id = id_of(*k) as usize;
            *k = key(logits[id], id);
        }
    }

    /// Draws among the tokens whose keys are left, one at least, by ascending id.
    fn draw_selected(&mut self, vocab: usize, weigh: &Weigh, random: f64) -> u32 {
        /// Of a vocabulary, from which share on going through all of it is cheaper than sorting.
        const MANY: usize = 32;
        if self.keys.len() >= vocab / MANY {
            self.weights.clear();
            self.weights.resize(vocab, 0.0);
            for &k in &self.keys {
                self.weights[id_of(k) as usize] = weigh.weight(logit_of(k));
            }
            let total: f64 = self.weights.chunks(BLOCK).map(sum).sum();
            return draw_weight(&self.weights, random * total);
        }
        // In an order that doesn't depend on how they were selected.
        self.keys.sort_unstable_by_key(|&k| id_of(k));
        self.weights.clear();
        let weights = self.keys.iter().map(|&k| weigh.weight(logit_of(k)));
        self.weights.extend(weights);
        let total: f64 = self.weights.chunks(BLOCK).map(sum).sum();
        let nth = draw_weight(&self.weights, random * total);
        self.keys.get(nth as usize).map_or(0, |&k| id_of(k))
    }
}

/// Turns logits into weights, the largest logit's being 1.
#[derive(Clone, Copy, Debug)]
pub struct Weigh {
    pub largest: f32,
    pub temperature: f32,
}

impl Weigh {
    #[inline(always)]
    pub fn weight(&self, logit: f32) -> f32 {
        exp_below_zero((logit - self.largest) / self.temperature)
    }

    fn sum(&self, keys: &[u64]) -> f64 {
        keys.iter().map(|&k| self.weight(logit_of(k)) as f64).sum()
    }
}

/// A token as a number that orders by likelihood, and by lower id among equals.
fn key(logit: f32, id: usize) -> u64 {
    // Adding 0 makes -0 a 0.
    let bits = (logit + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    (ordered as u64) << 32 | !(id as u32) as u64
}

fn logit_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 {
        ordered & !(1 << 31)
    } else {
        !ordered
    })
}

fn id_of(key: u64) -> u32 {
    !(key as u32)
}

/// Leaves the `k` largest keys, the smallest of them last. `k` is from 1 to the number of keys.
fn keep_largest(keys: &mut Vec<u64>, k: usize) {
    keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    keys.truncate(k);
}

/// Leaves the fewest keys, from the largest on (one at least), that together weigh `goal`.
fn keep_nucleus(keys: &mut Vec<u64>, goal: f64, weight: impl Fn(u64) -> f32) {
    let sum = |keys: &[u64]| -> f64 { keys.iter().map(|&k| weight(k) as f64).sum() };
    // The `low` largest, which weigh `mass`, are too few; the `high` largest are enough.
    let (mut low, mut high, mut mass) = (0, keys.len(), 0.0);
    while high - low > 1 {
        let middle = low.midpoint(high);
        keys[low..high].select_nth_unstable_by(middle - low, |a, b| b.cmp(a));
        let more = mass + sum(&keys[low..middle]);
        if more >= goal {
            high = middle;
        } else {
            (low, mass) = (middle, more);
        }
    }
    keys.truncate(high);
}

/// The token at which the running sum of the weights exceeds `target`, which is below their sum.
fn draw_weight(weights: &[f32], target: f64) -> u32 {
    let (mut rest, mut drawn) = (target, 0);
    for (i, block) in weights.chunks(BLOCK).enumerate() {
        let whole = sum(block);
        // Rounding may carry past a block's last token; then it is this one, as for the last block.
        let last = block.iter().rposition(|&w| w > 0.0);
        let Some(last) = last else { continue };
        drawn = i * BLOCK + last;
        if rest < whole {
            for (j, &weight) in block.iter().enumerate() {
                if rest < weight as f64 {
                    return (i * BLOCK + j) as u32;
                }
                rest -= weight as f64;
            }
            break;
        }
        rest -= whole;
    }
    drawn as u32
}
