//! Draws a token from a row of logits, in the order of llama.cpp's default chain: penalties, top-k, top-p, min-p,
//! temperature.
//!
//! A draw is a function of the logits, the parameters, the tokens that those look back at, and the token's position alone.
//! Nothing is sorted that need not be: candidates are found by selection, and the draw walks them by ascending id.

mod penalties;
mod philox;

pub use philox::{philox4x32, uniform};

use crate::device::SampleParams;
use penalties::Penalised;

/// Elements whose weights are summed before they are looked at one by one.
const BLOCK: usize = 256;

/// Logits that nothing can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLogits {
    #[error("the row has no logits")]
    Empty,
    #[error("logit {0} is not a number")]
    NotANumber(usize),
    #[error("the largest logit (of token {0}) is infinite")]
    Infinite(usize),
}

/// The reason why parameters make no sense, if they don't.
pub fn check(params: &SampleParams) -> Result<(), String> {
    let ensure = |holds: bool, name: &str, value: f32, range: &str| {
        let text = || format!("{name} {value} must be {range}");
        holds.then_some(()).ok_or_else(text)
    };
    let share = |x: f32| (0.0..=1.0).contains(&x);
    let SampleParams {
        penalties,
        top_k: _,
        top_p,
        typical_p,
        min_p,
        temperature,
        seed: _,
    } = *params;
    ensure(
        temperature >= 0.0 && temperature.is_finite(),
        "temperature",
        temperature,
        "a number of at least 0",
    )?;
    ensure(share(top_p), "top_p", top_p, "a number from 0 to 1")?;
    ensure(
        share(typical_p),
        "typical_p",
        typical_p,
        "a number from 0 to 1",
    )?;
    ensure(share(min_p), "min_p", min_p, "a number from 0 to 1")?;
    // As far as that, nothing overflows.
    ensure(
        (1e-3..=1e3).contains(&penalties.repeat),
        "repeat penalty",
        penalties.repeat,
        "a number from 0.001 to 1000",
    )?;
    for (name, value) in [
        ("frequency penalty", penalties.frequency),
        ("presence penalty", penalties.presence),
    ] {
        let holds = (-1e3..=1e3).contains(&value);
        ensure(holds, name, value, "a number from -1000 to 1000")?;
    }
    Ok(())
}

/// Draws tokens; holds the memory that it needs for that.
#[derive(Debug, Default)]
pub struct Sampler {
    penalised: Penalised,
    choice: Choice,
}

impl Sampler {
    /// Draws the token that comes to lie at `position`, given `params` that [`check`] accepts and the `recent` tokens that
    /// they look back at ([`SampleParams::looks_back`]), in any order.
    ///
    /// # Errors
    /// [`BadLogits`] where a logit isn't a number or the largest isn't finite.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SampleParams,
        recent: &[u32],
        position: u32,
    ) -> Result<u32, BadLogits> {
        let logits = self.penalised.apply(logits, &params.penalties, recent);
        let best = likeliest(logits)?;
        if params.temperature == 0.0 || params.top_k == 1 {
            return Ok(best as u32);
        }
        let random = uniform(params.seed, position);
        Ok(self.choice.draw(logits, logits[best], params, random))
    }
}

/// The tokens that can be drawn.
#[derive(Debug, Default)]
struct Choice {
    /// e^((logit - largest) / temperature) of each token.
    weights: Vec<f32>,
    /// Candidates as [`key`]s.
    keys: Vec<u64>,
}

impl Choice {
    /// Draws by a number in [0, 1).
    fn draw(&mut self, logits: &[f32], largest: f32, params: &SampleParams, random: f64) -> u32 {
        let plain = Weigh {
            largest,
            temperature: 1.0,
        };
        let tempered = Weigh {
            largest,
            temperature: params.temperature,
        };
        let (top_k, top_p) = (params.top_k as usize, params.top_p as f64);
        // ln 0 is -inf, below which nothing is.
        let lowest = largest + params.min_p.ln();
        if top_k > 0 && top_k < logits.len() {
            self.select_top_k(logits, top_k);
            if top_p < 1.0 {
                let total = plain.sum(&self.keys);
                keep_nucleus(&mut self.keys, &plain, top_p * total);
            }
            self.keys.retain(|&k| logit_of(k) >= lowest);
            draw_key(&mut self.keys, &tempered, random)
        } else if top_p < 1.0 {
            let total = self.weigh_all(logits, &plain);
            self.select_likely(logits, top_p, total);
            keep_nucleus(&mut self.keys, &plain, top_p * total);
            self.keys.retain(|&k| logit_of(k) >= lowest);
            self.draw_nucleus(logits, &tempered, random)
        } else if params.min_p > 0.0 {
            draw(
                || {
                    let all = logits.iter().enumerate();
                    all.filter(|&(_, &logit)| logit >= lowest)
                        .map(|(id, &logit)| (id as u32, tempered.weight(logit)))
                },
                random,
            )
        } else {
            let total = self.weigh_all(logits, &tempered);
            draw_weight(&self.weights, random * total)
        }
    }

    /// Leaves the keys of the `k` likeliest tokens, in any order.
    fn select_top_k(&mut self, logits: &[f32], k: usize) {
        self.keys.clear();
        // A candidate must beat this; of equal logits the lower id, met earlier, stays.
        let mut bar = f32::NEG_INFINITY;
        for (i, chunk) in logits.chunks(64).enumerate() {
            if self.keys.len() >= k && largest(chunk) <= bar {
                continue;
            }
            for (j, &logit) in chunk.iter().enumerate() {
                if self.keys.len() < k || logit > bar {
                    self.keys.push(key(logit, i * 64 + j));
                }
            }
            if self.keys.len() >= 2 * k + 256 {
                keep_largest(&mut self.keys, k);
                bar = logit_of(self.keys[k - 1]);
            }
        }
        if self.keys.len() > k {
            keep_largest(&mut self.keys, k);
        }
    }

    /// Weighs every token and returns the sum.
    fn weigh_all(&mut self, logits: &[f32], weigh: &Weigh) -> f64 {
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|&logit| weigh.weight(logit)));
        self.weights.chunks(BLOCK).map(sum).sum()
    }

    /// Leaves the keys of all tokens that can be in the nucleus of mass `p`: those below `cutoff` weigh together less than
    /// what the nucleus leaves out.
    fn select_likely(&mut self, logits: &[f32], p: f64, total: f64) {
        // A little lower than need be, against rounding.
        let cutoff = (0.999 * (1.0 - p) * total / logits.len() as f64) as f32;
        self.keys.clear();
        for (id, (&logit, &weight)) in logits.iter().zip(&self.weights).enumerate() {
            if weight >= cutoff {
                self.keys.push(key(logit, id));
            }
        }
    }

    /// Draws among the tokens whose keys are left: as [`draw_key`], but the nucleus may be most of the vocabulary, and
    /// going through all of it once is cheaper than sorting.
    fn draw_nucleus(&self, logits: &[f32], weigh: &Weigh, random: f64) -> u32 {
        let least = self.keys.iter().copied().min().unwrap_or(0);
        let kept = || {
            let all = logits.iter().enumerate();
            all.filter(|&(id, &logit)| key(logit, id) >= least)
                .map(|(id, &logit)| (id as u32, weigh.weight(logit)))
        };
        draw(kept, random)
    }
}

/// Turns logits into weights, the largest logit's being 1.
struct Weigh {
    largest: f32,
    temperature: f32,
}

impl Weigh {
    #[inline(always)]
    fn weight(&self, logit: f32) -> f32 {
        exp_below_zero((logit - self.largest) / self.temperature)
    }

    fn sum(&self, keys: &[u64]) -> f64 {
        keys.iter().map(|&k| self.weight(logit_of(k)) as f64).sum()
    }
}

/// The token with the largest logit, the first of several.
fn likeliest(logits: &[f32]) -> Result<usize, BadLogits> {
    if logits.is_empty() {
        return Err(BadLogits::Empty);
    }
    let (mut best, mut best_block) = (f32::NEG_INFINITY, 0);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        if has_nan(block) {
            let j = block.iter().position(|x| x.is_nan()).unwrap_or(0);
            return Err(BadLogits::NotANumber(i * BLOCK + j));
        }
        let here = largest(block);
        if here > best {
            (best, best_block) = (here, i);
        }
    }
    let start = best_block * BLOCK;
    let found = logits[start..].iter().position(|&x| x == best).unwrap_or(0);
    if best.is_infinite() {
        return Err(BadLogits::Infinite(start + found));
    }
    Ok(start + found)
}

/// The largest of some numbers, -inf for none; written so that it becomes vector code.
fn largest(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = xs.chunks_exact(16);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = x;
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes
        .into_iter()
        .fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

fn has_nan(xs: &[f32]) -> bool {
    xs.iter().fold(false, |any, x| any | x.is_nan())
}

/// The sum of some weights in f64, in an order that is fixed and allows vector code.
fn sum(xs: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    for chunk in xs.chunks(8) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x as f64;
        }
    }
    lanes.iter().sum()
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

/// Leaves the fewest likeliest tokens (one at least) that together weigh `goal`.
fn keep_nucleus(keys: &mut Vec<u64>, weigh: &Weigh, goal: f64) {
    // The `low` likeliest, which weigh `mass`, are too few; the `high` likeliest are enough.
    let (mut low, mut high, mut mass) = (0, keys.len(), 0.0);
    while high - low > 1 {
        let middle = low.midpoint(high);
        keys[low..high].select_nth_unstable_by(middle - low, |a, b| b.cmp(a));
        let more = mass + weigh.sum(&keys[low..middle]);
        if more >= goal {
            high = middle;
        } else {
            (low, mass) = (middle, more);
        }
    }
    keys.truncate(high);
}

/// Draws among keys in proportion to their weights. There is at least one key.
fn draw_key(keys: &mut [u64], weigh: &Weigh, random: f64) -> u32 {
    // In an order that doesn't depend on how they were selected.
    keys.sort_unstable_by_key(|&k| id_of(k));
    draw(
        || keys.iter().map(|&k| (id_of(k), weigh.weight(logit_of(k)))),
        random,
    )
}

/// Draws among tokens in proportion to their weights, of which one at least is positive.
fn draw<I: Iterator<Item = (u32, f32)>>(tokens: impl Fn() -> I, random: f64) -> u32 {
    let total: f64 = tokens().map(|(_, weight)| weight as f64).sum();
    let (mut rest, mut drawn) = (random * total, 0);
    for (id, weight) in tokens() {
        if weight > 0.0 {
            // Rounding may carry past the last token; then it is that one.
            drawn = id;
            if rest < weight as f64 {
                break;
            }
            rest -= weight as f64;
        }
    }
    drawn
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

/// e^x for x <= 0 to within 2 ulp, 0 below -87: vector code without calls, the same bits on every machine.
#[inline(always)]
fn exp_below_zero(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    /// 1.5 * 2^23: adding it rounds to a whole number and leaves that in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few bits, so that its product with a whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let r = (clamped - whole * LN2_HIGH) - whole * LN2_LOW;
    // Taylor's coefficients suffice for |r| <= ln(2) / 2.
    let mut series = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > LOWEST { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests;
