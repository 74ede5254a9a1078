//! What `/metrics` tells: counters and histograms of the server, in Prometheus' text format.
//!
//! The engine's own figures are read when somebody asks ([`Page`] writes both).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Mutex;
use std::time::Duration;

/// Upper bounds in seconds of what one token takes.
const TOKEN_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0,
];
/// Upper bounds in seconds of what a request takes.
const REQUEST_BOUNDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0,
];

/// Counters and histograms that requests add to.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    /// By endpoint and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    /// By reason.
    finished: BTreeMap<&'static str, u64>,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            requests: BTreeMap::new(),
            finished: BTreeMap::new(),
            first_token: Histogram::new(REQUEST_BOUNDS),
            between_tokens: Histogram::new(TOKEN_BOUNDS),
            request: Histogram::new(REQUEST_BOUNDS),
        }
    }
}

impl Metrics {
    /// A request ended with `status`; 499 where the client went away before.
    pub fn request(&self, endpoint: &'static str, status: u16, took: Duration) {
        self.change(|counts| {
            *counts.requests.entry((endpoint, status)).or_default() += 1;
            if endpoint.starts_with("/v1/") {
                counts.request.observe(took, 1);
            }
        });
    }

    /// An answer ended.
    pub fn finished(&self, reason: &'static str) {
        self.change(|counts| *counts.finished.entry(reason).or_default() += 1);
    }

    /// A request's first token came this long after the request.
    pub fn first_token(&self, took: Duration) {
        self.change(|counts| counts.first_token.observe(took, 1));
    }

    /// `tokens` of a choice came this long after the ones before.
    pub fn between_tokens(&self, took: Duration, tokens: usize) {
        let each = took / tokens.max(1) as u32;
        self.change(|counts| counts.between_tokens.observe(each, tokens as u64));
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        // Counts have no state in between that a panic could leave.
        change(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()));
    }

    /// Writes all of them.
    pub fn write(&self, page: &mut Page) {
        let counts = self.0.lock().unwrap_or_else(|e| e.into_inner());
        page.family(
            "requests_total",
            "counter",
            "HTTP requests by endpoint and status; 499: the client went away",
        );
        for ((endpoint, status), n) in &counts.requests {
            page.sample(
                "requests_total",
                &format!("endpoint=\"{endpoint}\",status=\"{status}\""),
                n,
            );
        }
        page.family("answers_total", "counter", "answers by how they ended");
        for (reason, n) in &counts.finished {
            page.sample("answers_total", &format!("reason=\"{reason}\""), n);
        }
        let histograms = [
            (
                "time_to_first_token_seconds",
                "from a request to its first token",
                &counts.first_token,
            ),
            (
                "inter_token_seconds",
                "between tokens of an answer",
                &counts.between_tokens,
            ),
            (
                "request_seconds",
                "from a request under /v1 to the end of its response",
                &counts.request,
            ),
        ];
        for (name, help, histogram) in histograms {
            page.family(name, "histogram", help);
            histogram.write(name, page);
        }
    }
}

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn observe(&mut self, time: Duration, times: u64) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.partition_point(|&bound| bound < seconds);
        self.counts[bucket] += times;
        self.sum += seconds * times as f64;
    }

    fn write(&self, name: &str, page: &mut Page) {
        let mut below = 0;
        for (i, count) in self.counts.iter().enumerate() {
            below += count;
            let label = match self.bounds.get(i) {
                Some(bound) => format!("le=\"{bound}\""),
                None => "le=\"+Inf\"".to_owned(),
            };
            page.sample(&format!("{name}_bucket"), &label, below);
        }
        page.sample(&format!("{name}_sum"), "", self.sum);
        page.sample(&format!("{name}_count"), "", below);
    }
}

/// A page of metrics; all names begin with `fastrun_`.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Says what the samples of `name` are.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string doesn't fail.
        _ = write!(
            self.0,
            "# HELP fastrun_{name} {help}\n# TYPE fastrun_{name} {kind}\n"
        );
    }

    /// One sample; `labels` as `a="b",c="d"`.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let labels = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        _ = writeln!(self.0, "fastrun_{name}{labels} {value}");
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for ms in [0, 10, 11, 1_000_000] {
            metrics.first_token(Duration::from_millis(ms));
        }
        metrics.between_tokens(Duration::from_millis(40), 4);
        metrics.request("/v1/models", 200, Duration::from_millis(3));
        metrics.finished("stop");
        let mut page = Page::default();
        metrics.write(&mut page);
        let text = page.into_text();
        for line in [
            "fastrun_time_to_first_token_seconds_bucket{le=\"0.01\"} 2",
            "fastrun_time_to_first_token_seconds_bucket{le=\"0.025\"} 3",
            "fastrun_time_to_first_token_seconds_bucket{le=\"320\"} 3",
            "fastrun_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "fastrun_time_to_first_token_seconds_count 4",
            "fastrun_inter_token_seconds_bucket{le=\"0.01\"} 4",
            "fastrun_inter_token_seconds_sum 0.04",
            "fastrun_requests_total{endpoint=\"/v1/models\",status=\"200\"} 1",
            "fastrun_answers_total{reason=\"stop\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
    }
}
