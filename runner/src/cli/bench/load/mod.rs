//! `fastrun bench --serve`: what a server gives many clients at once. Requests arrive at random times, or as soon as a client
//! is free; each streams a completion of random tokens. Works with any server that has OpenAI's `/v1/completions`.
//!
//! [`client`] is one request, [`report`] the figures of all.

mod client;
mod report;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use fastrun::Error;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::args::BenchArgs;
use super::super::failure::Failure;
use super::super::progress;
use client::{Request, Server};
use report::Report;

/// Ids of prompts begin here: the first of many vocabularies are control tokens.
const FIRST_ID: u32 = 300;
/// Ids of prompts end before this where the server doesn't tell its vocabulary.
const USUAL_VOCAB: u32 = 20_000;

pub fn run(url: &str, args: &BenchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let load = &args.load;
    if load.shared_prefix > args.prompt {
        return Err(Error::User(format!(
            "--shared-prefix {} is longer than the prompts, which have {} tokens (--prompt)",
            load.shared_prefix, args.prompt
        ))
        .into());
    }
    let server = Server::parse(url, load.api_key.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::Unsupported(format!("the clients can't be started: {e}")))?;
    let report = runtime.block_on(measure(server, args))?;
    match args.json {
        true => writeln!(out, "{}", report.to_json())?,
        false => report.print(out)?,
    }
    match report.ok() {
        0 => Err(Error::User(format!("no request succeeded: {}", report.first_error())).into()),
        _ => Ok(()),
    }
}

async fn measure(server: Server, args: &BenchArgs) -> Result<Report, Error> {
    let load = &args.load;
    let server = Arc::new(server);
    let model = server.model().await?;
    let prompts = Prompts::new(args, &model);
    let mut random = Random(load.seed);
    let clients = Arc::new(Semaphore::new(load.clients as usize));
    let bar = progress::steps("requests", load.requests.into());
    let mut running = JoinSet::new();
    let start = Instant::now();
    let mut arrival = start;
    for i in 0..load.requests {
        let request = Request {
            body: prompts.request(i),
            // None: when a client is free.
            arrival: load.rate.map(|rate| {
                arrival += Duration::from_secs_f64(random.exponential() / rate);
                arrival
            }),
        };
        let (server, clients, bar) = (server.clone(), clients.clone(), bar.clone());
        running.spawn(async move {
            if let Some(at) = request.arrival {
                tokio::time::sleep_until(at).await;
            }
            // The semaphore is never closed.
            let _client = clients.acquire().await;
            let outcome = server.complete(&request).await;
            bar.inc(1);
            outcome
        });
    }
    let mut report = Report::new(load.rate);
    while let Some(outcome) = running.join_next().await {
        let outcome = outcome.map_err(|e| Error::Bug(format!("a client panicked: {e}")))?;
        report.add(outcome);
    }
    bar.finish_and_clear();
    report.took(start.elapsed());
    Ok(report)
}

/// Prompts of random tokens, all with the same ones in front.
struct Prompts {
    model: String,
    tokens: u32,
    shared: u32,
    generate: u32,
    seed: u64,
    /// Ids are below this.
    vocab: u32,
}

impl Prompts {
    fn new(args: &BenchArgs, model: &Value) -> Prompts {
        let told = model["meta"]["vocab"].as_u64();
        // The last ids of many vocabularies are control tokens too.
        let vocab = told.map_or(USUAL_VOCAB, |n| (n / 10 * 9).min(100_000) as u32);
        Prompts {
            model: model["id"].as_str().unwrap_or_default().to_owned(),
            tokens: args.prompt,
            shared: args.load.shared_prefix,
            generate: args.generate,
            seed: args.load.seed,
            vocab: vocab.max(FIRST_ID + 1),
        }
    }

    /// The body of request `i`.
    fn request(&self, i: u32) -> String {
        let mut shared = Random(self.seed ^ 0x5_4a7e_d0f0);
        let mut own = Random(
            self.seed
                .wrapping_add(1 + u64::from(i))
                .wrapping_mul(0x9e37_79b9),
        );
        let width = u64::from(self.vocab - FIRST_ID);
        let id = |random: &mut Random| FIRST_ID + (random.next() % width) as u32;
        let ids: Vec<u32> = (0..self.tokens)
            .map(|at| {
                id(if at < self.shared {
                    &mut shared
                } else {
                    &mut own
                })
            })
            .collect();
        json!({
            "model": self.model,
            "prompt": ids,
            "max_tokens": self.generate,
            "temperature": 1,
            "seed": i,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        })
        .to_string()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of mean 1.
    fn exponential(&mut self) -> f64 {
        // In (0, 1].
        let uniform = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -uniform.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_mean_and_spread_of_a_poisson_process() {
        let mut random = Random(7);
        let times: Vec<f64> = (0..100_000).map(|_| random.exponential()).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / times.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn prompts_begin_alike_and_go_on_apart() {
        let prompts = Prompts {
            model: "m".into(),
            tokens: 20,
            shared: 12,
            generate: 4,
            seed: 3,
            vocab: 1000,
        };
        let ids = |i| -> Vec<u64> {
            let body: Value = serde_json::from_str(&prompts.request(i)).expect("JSON");
            let list = body["prompt"].as_array().expect("a list");
            list.iter().filter_map(Value::as_u64).collect()
        };
        let (a, b) = (ids(0), ids(1));
        assert_eq!(a.len(), 20);
        assert_eq!(a[..12], b[..12]);
        assert_ne!(a[12..], b[12..]);
        assert_eq!(a, ids(0));
        assert!(a.iter().all(|id| (300..1000).contains(id)));
    }
}
