//! The arithmetic of perplexity and of divergence from an oracle, in f64.

use super::reference::Record;

/// A row of logits as a distribution.
pub struct Distribution<'a> {
    logits: &'a [f32],
    /// ln of the sum of e^logit.
    log_total: f64,
}

impl<'a> Distribution<'a> {
    /// None where a logit is NaN or infinite, or where there are none.
    pub fn new(logits: &'a [f32]) -> Option<Distribution<'a>> {
        if logits.is_empty() || !logits.iter().all(|x| x.is_finite()) {
            return None;
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let sum: f64 = logits.iter().map(|&x| (x as f64 - max).exp()).sum();
        Some(Distribution {
            logits,
            log_total: max + sum.ln(),
        })
    }

    /// ln of the probability of token `id`, which is below the number of logits.
    pub fn log_prob(&self, id: u32) -> f64 {
        self.logits[id as usize] as f64 - self.log_total
    }

    /// The likeliest token; the lowest id where several are.
    pub fn top(&self) -> u32 {
        let best = |best: usize, i: usize| {
            if self.logits[i] > self.logits[best] {
                i
            } else {
                best
            }
        };
        (0..self.logits.len()).fold(0, best) as u32
    }
}

/// Perplexity over scored tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity {
    count: u64,
    /// Sums of the negative log-probabilities and of their squares.
    sum: f64,
    squares: f64,
}

impl Perplexity {
    pub fn add(&mut self, log_prob: f64) {
        self.count += 1;
        self.sum -= log_prob;
        self.squares += log_prob * log_prob;
    }

    /// e to the mean negative log-probability.
    pub fn value(&self) -> f64 {
        (self.sum / self.count as f64).exp()
    }

    /// The standard error of [`Perplexity::value`]; 0 for fewer than two tokens.
    pub fn error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let mean = self.sum / self.count as f64;
        let variance = (self.squares / self.count as f64 - mean * mean).max(0.0);
        (variance / (self.count - 1) as f64).sqrt() * self.value()
    }
}

/// How far distributions are from the oracle's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Divergence {
    count: u64,
    kl: f64,
    same_top: u64,
}

impl Divergence {
    pub fn add(&mut self, oracle: &Record, ours: &Distribution) {
        self.count += 1;
        self.kl += divergence(oracle, ours);
        self.same_top += u64::from(oracle.top[0].0 == ours.top());
    }

    /// Mean Kullback-Leibler divergence in nats.
    pub fn kl(&self) -> f64 {
        self.kl / self.count as f64
    }

    /// Share of positions with the oracle's likeliest token, in percent.
    pub fn same_top(&self) -> f64 {
        100.0 * self.same_top as f64 / self.count as f64
    }
}

/// Sum of p ln(p/q) over the oracle's likeliest tokens, and over all others taken as one.
fn divergence(oracle: &Record, ours: &Distribution) -> f64 {
    let (mut kl, mut p_sum, mut q_sum) = (0.0, 0.0, 0.0);
    for &(id, log_p) in &oracle.top {
        let (log_p, log_q) = (log_p as f64, ours.log_prob(id));
        kl += log_p.exp() * (log_p - log_q);
        p_sum += log_p.exp();
        q_sum += log_q.exp();
    }
    let (p, q) = (1.0 - p_sum, 1.0 - q_sum);
    // Log-probabilities are f32 in the file: a rest below their rounding is none.
    if p > 1e-6 {
        kl += p * (p / q.max(1e-12)).ln();
    }
    kl
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities
            .iter()
            .map(|p| (p.ln() + 3.0) as f32)
            .collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }

    #[test]
    fn logits_become_log_probabilities() {
        let row = logits(&[0.1, 0.6, 0.3]);
        let d = Distribution::new(&row).expect("finite");
        close(d.log_prob(2), 0.3f64.ln());
        assert_eq!(d.top(), 1);
        assert_eq!(Distribution::new(&[1.0, 1.0]).expect("finite").top(), 0);
        assert!(Distribution::new(&[1.0, f32::NAN]).is_none());
        assert!(Distribution::new(&[]).is_none());
        // Far beyond what e^x holds in f32.
        close(
            Distribution::new(&[5000.0, 0.0])
                .expect("finite")
                .log_prob(0),
            0.0,
        );
    }

    #[test]
    fn perplexity_of_known_probabilities() {
        let mut even = Perplexity::default();
        (0..5).for_each(|_| even.add(0.25f64.ln()));
        close(even.value(), 4.0);
        close(even.error(), 0.0);

        let mut p = Perplexity::default();
        p.add(0.5f64.ln());
        p.add(0.125f64.ln());
        close(p.value(), 4.0);
        // The logarithms lie ln 2 on either side of their mean, so the error of the mean is ln 2.
        close(p.error(), 4.0 * 2f64.ln());
        let mut one = Perplexity::default();
        one.add(-1.0);
        close(one.error(), 0.0);
    }

    #[test]
    fn divergence_counts_the_rest_as_one_bucket() {
        let oracle = Record {
            target: 0,
            log_prob: 0.5f32.ln(),
            top: vec![(1, 0.6f32.ln()), (0, 0.2f32.ln())],
        };
        let same = logits(&[0.2, 0.6, 0.15, 0.05]);
        let other = logits(&[0.4, 0.3, 0.2, 0.1]);
        let mut d = Divergence::default();
        d.add(&oracle, &Distribution::new(&same).expect("finite"));
        close(d.kl(), 0.0);
        close(d.same_top(), 100.0);
        d.add(&oracle, &Distribution::new(&other).expect("finite"));
        let kl = 0.6 * 2f64.ln() + 0.2 * 0.5f64.ln() + 0.2 * (0.2f64 / 0.3).ln();
        close(d.kl(), kl / 2.0);
        close(d.same_top(), 50.0);
    }
}
