//! Where the time goes, by launch; the same launch of all layers together.

use std::io::Write;

use fastrun::device::cpu::LaunchTime;
use serde_json::{Map, Value, json};

/// Times of a device's launches.
#[derive(Debug, PartialEq)]
pub struct Profile {
    /// Name and seconds; the largest first.
    launches: Vec<(String, f64)>,
}

impl Profile {
    /// From the times of all launches.
    pub fn new(times: &[LaunchTime]) -> Profile {
        let mut launches: Vec<(String, f64)> = Vec::new();
        for launch in times {
            let name = without_layer(&launch.name);
            let seconds = launch.nanoseconds as f64 / 1e9;
            match launches.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += seconds,
                None => launches.push((name, seconds)),
            }
        }
        launches.sort_by(|a, b| b.1.total_cmp(&a.1));
        Profile { launches }
    }

    /// Shares of the sum by name.
    fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        let sum: f64 = self.launches.iter().map(|l| l.1).sum();
        let share = move |seconds: f64| if sum > 0.0 { seconds / sum } else { 0.0 };
        self.launches
            .iter()
            .map(move |(name, seconds)| (name.as_str(), share(*seconds)))
    }

    pub fn to_json(&self) -> Value {
        let shares: Map<String, Value> = self
            .shares()
            .map(|(name, share)| (name.to_string(), json!(share)))
            .collect();
        Value::Object(shares)
    }

    pub fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for (name, share) in self.shares() {
            writeln!(out, "  {:>5.1}%  {name}", share * 100.0)?;
        }
        Ok(())
    }
}

/// `blk.*.qkv` for `blk.7.qkv`.
fn without_layer(name: &str) -> String {
    let part = |part: &str| match part.parse::<u32>() {
        Ok(_) => "*".to_string(),
        Err(_) => part.to_string(),
    };
    let parts: Vec<String> = name.split('.').map(part).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_summed_and_the_largest_comes_first() {
        let times = |ns: [u64; 3]| {
            let names = ["head", "blk.0.qkv", "blk.1.qkv"];
            let time = |(name, nanoseconds): (&str, u64)| LaunchTime {
                name: name.into(),
                nanoseconds,
            };
            names.into_iter().zip(ns).map(time).collect::<Vec<_>>()
        };
        let profile = Profile::new(&times([25, 50, 25]));
        let shares: Vec<_> = profile.shares().collect();
        assert_eq!(shares, [("blk.*.qkv", 0.75), ("head", 0.25)]);
        let mut out = Vec::new();
        profile.print(&mut out).expect("memory");
        assert_eq!(
            String::from_utf8_lossy(&out),
            "   75.0%  blk.*.qkv\n   25.0%  head\n"
        );
    }
}
