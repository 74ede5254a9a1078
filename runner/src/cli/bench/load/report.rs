//! The figures of a load.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Outcome;

/// What all requests came to.
pub struct Report {
    rate: Option<f64>,
    took: Duration,
    outcomes: Vec<Outcome>,
    errors: Vec<String>,
}

impl Report {
    pub fn new(rate: Option<f64>) -> Report {
        Report {
            rate,
            took: Duration::ZERO,
            outcomes: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub fn add(&mut self, outcome: Result<Outcome, String>) {
        match outcome {
            Ok(outcome) => self.outcomes.push(outcome),
            Err(error) => self.errors.push(error),
        }
    }

    pub fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// Requests that were answered.
    pub fn ok(&self) -> usize {
        self.outcomes.len()
    }

    pub fn first_error(&self) -> &str {
        self.errors.first().map_or("none was made", String::as_str)
    }

    fn sum(&self, of: impl Fn(&Outcome) -> u64) -> u64 {
        self.outcomes.iter().map(of).sum()
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn times(&self) -> [(&'static str, &'static str, Quantiles); 3] {
        let outcomes = || self.outcomes.iter();
        let first = outcomes().map(|o| o.first_token).collect();
        let gaps = outcomes().flat_map(|o| o.gaps.iter().copied()).collect();
        let total = outcomes().map(|o| o.total).collect();
        [
            ("first token", "ttft_ms", Quantiles::of(first)),
            ("between tokens", "inter_token_ms", Quantiles::of(gaps)),
            ("whole request", "request_ms", Quantiles::of(total)),
        ]
    }

    pub fn to_json(&self) -> Value {
        let completion = self.sum(|o| o.completion_tokens);
        let prompt = self.sum(|o| o.prompt_tokens);
        let mut json = json!({
            "requests": self.outcomes.len() + self.errors.len(),
            "ok": self.ok(),
            "failed": self.errors.len(),
            "seconds": self.took.as_secs_f64(),
            "asked_rate": self.rate,
            "requests_per_second": self.per_second(self.ok() as u64),
            "prompt_tokens": prompt,
            "cached_tokens": self.sum(|o| o.cached_tokens),
            "generated_tokens": completion,
            "generated_tokens_per_second": self.per_second(completion),
            "total_tokens_per_second": self.per_second(prompt + completion),
        });
        for (_, key, quantiles) in self.times() {
            json[key] = quantiles.to_json();
        }
        if !self.errors.is_empty() {
            json["first_error"] = self.first_error().into();
        }
        json
    }

    pub fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let (prompt, cached) = (self.sum(|o| o.prompt_tokens), self.sum(|o| o.cached_tokens));
        let completion = self.sum(|o| o.completion_tokens);
        writeln!(
            out,
            "{} requests in {:.1} s, {:.2} a second; {} failed",
            self.ok(),
            self.took.as_secs_f64(),
            self.per_second(self.ok() as u64),
            self.errors.len()
        )?;
        writeln!(
            out,
            "{completion} tokens generated, {:.1} a second; {prompt} tokens of prompts, {cached} of them cached",
            self.per_second(completion)
        )?;
        writeln!(
            out,
            "\n{:<16}{:>10}{:>10}{:>10}{:>10}",
            "ms", "p50", "p95", "p99", "mean"
        )?;
        for (name, _, q) in self.times() {
            let [p50, p95, p99, mean] = [q.p50, q.p95, q.p99, q.mean].map(milliseconds);
            writeln!(
                out,
                "{name:<16}{p50:>10.1}{p95:>10.1}{p99:>10.1}{mean:>10.1}"
            )?;
        }
        match self.errors.first() {
            Some(error) => writeln!(out, "\nthe first failure: {error}"),
            None => Ok(()),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Of some times; all zero where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Quantiles {
    p50: Duration,
    p95: Duration,
    p99: Duration,
    mean: Duration,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Quantiles {
        if times.is_empty() {
            return Quantiles::default();
        }
        times.sort_unstable();
        // The smallest time that so large a part of them doesn't exceed.
        let at = |part: f64| times[((times.len() as f64 * part).ceil() as usize).max(1) - 1];
        Quantiles {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
            mean: times.iter().sum::<Duration>() / times.len() as u32,
        }
    }

    fn to_json(self) -> Value {
        json!({
            "p50": milliseconds(self.p50),
            "p95": milliseconds(self.p95),
            "p99": milliseconds(self.p99),
            "mean": milliseconds(self.mean),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_occurred() {
        let ms = Duration::from_millis;
        let q = Quantiles::of((1..=200).rev().map(ms).collect());
        assert_eq!((q.p50, q.p95, q.p99), (ms(100), ms(190), ms(198)));
        assert_eq!(q.mean, Duration::from_micros(100_500));
        assert_eq!(Quantiles::of(vec![ms(7)]).p99, ms(7));
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }

    #[test]
    fn throughput_is_of_all_requests() {
        let mut report = Report::new(Some(2.0));
        for _ in 0..4 {
            report.add(Ok(Outcome {
                completion_tokens: 10,
                prompt_tokens: 5,
                ..Outcome::default()
            }));
        }
        report.add(Err("status 503: full".into()));
        report.took(Duration::from_secs(2));
        let json = report.to_json();
        assert_eq!(json["generated_tokens_per_second"], 20.0);
        assert_eq!(json["total_tokens_per_second"], 30.0);
        assert_eq!(
            (json["ok"].as_u64(), json["failed"].as_u64()),
            (Some(4), Some(1))
        );
        assert_eq!(json["first_error"], "status 503: full");
    }
}
