//! `fastrun bench`: tokens a second, measured as shared figures of other runners are: one prompt, the logits of the last
//! token of each step; then decoding from an empty context, or behind `--depth` tokens, each token the likeliest one behind
//! the last. Each figure is the median of several repetitions after a warm-up. The memory's read rate, the median of passes
//! before and after, says how much there is to get; that of the weights, how they lie in it.

mod chart;
#[cfg(feature = "server")]
mod load;
mod memory;
mod output_file;
mod profile;
mod roof;

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bundle_format::plan::Limits;
use fastrun::Error;
use fastrun::device::cpu::LaunchTime;
use fastrun::device::{Device, TokenSource};
use serde_json::{Map, Value, json};

use super::args::{BenchArgs, DeviceKind};
use super::failure::Failure;
use super::forward::{Forward, Lane};
use super::progress;
use super::session::Session;
use chart::{Chart, Point};
use output_file::OutputFile;
use profile::Profile;
use roof::Roof;

/// Batch sizes without --batch.
const BATCHES: [u32; 3] = [1, 8, 32];

/// Steps that decode before the clock starts.
const WARM_UP: u32 = 2;

/// Tokens of the prompt that warms up.
const WARM_UP_PROMPT: u32 = 32;

/// What is measured, checked against what the bundle takes.
#[derive(Debug, PartialEq)]
struct Work {
    prompt: u32,
    generate: u32,
    /// Tokens that each sequence has before it decodes.
    depth: u32,
    batches: Vec<u32>,
    repeat: u32,
    vocab: u32,
    /// Steps that are submitted at a time.
    in_flight: usize,
}

/// One thing that was measured.
struct Figure {
    /// Key in the JSON: `pp512`, `tg128_b8`, `tg128_d256_b8`.
    key: String,
    /// Sequences that decode together; none: a prompt.
    batch: Option<u32>,
    /// Tokens a second.
    rate: f64,
    profile: Option<Profile>,
    /// Bytes of experts that a decoding step read, on average; none where the device doesn't count them.
    expert_bytes: Option<f64>,
}

/// What a device has done so far, or within some time.
#[derive(Debug, Default, PartialEq)]
struct Done {
    times: Option<Vec<LaunchTime>>,
    expert_bytes: Option<u64>,
}

impl Done {
    /// What was done since `before`.
    fn since(self, before: Done) -> Done {
        let times = |(mut after, before): (Vec<LaunchTime>, Vec<LaunchTime>)| {
            for (after, before) in after.iter_mut().zip(before) {
                after.nanoseconds = after.nanoseconds.saturating_sub(before.nanoseconds);
            }
            after
        };
        Done {
            times: self.times.zip(before.times).map(times),
            expert_bytes: self
                .expert_bytes
                .zip(before.expert_bytes)
                .map(|(after, before)| after - before),
        }
    }

    /// Both together.
    fn and(self, more: Done) -> Done {
        let times = |(mut sum, more): (Vec<LaunchTime>, Vec<LaunchTime>)| {
            for (sum, more) in sum.iter_mut().zip(more) {
                sum.nanoseconds += more.nanoseconds;
            }
            sum
        };
        Done {
            times: self.times.zip(more.times).map(times),
            expert_bytes: self.expert_bytes.zip(more.expert_bytes).map(|(a, b)| a + b),
        }
    }
}

pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    #[cfg(feature = "server")]
    if let Some(url) = &args.load.serve {
        return load::run(url, args, out);
    }
    let Some(bundle) = &args.bundle else {
        return Err(Error::Bug("the command line has no bundle".into()).into());
    };
    let session = Session::open(bundle, &args.device)?;
    let work = Work {
        in_flight: session.in_flight(),
        ..Work::new(args, &session.limits(), session.vocab())?
    };
    let limits = session.limits();
    let svg = args.svg.as_deref().map(OutputFile::new).transpose()?;
    let (threads, rates, figures) = match session.device_kind() {
        DeviceKind::Auto | DeviceKind::Cpu => {
            let device = session.cpu_device(args.profile)?;
            let threads = device.threads();
            let mut forward = Forward::new(device, limits);
            let (rates, figures) = memory::beside(session.weights(), threads, || {
                measure(&mut forward, &work, |device| Done {
                    times: device.profile(),
                    expert_bytes: Some(device.expert_bytes()),
                })
            })?;
            (threads, rates, figures)
        }
        DeviceKind::Gpu | DeviceKind::Sim | DeviceKind::Reference if args.profile => {
            return Err(Error::User(
                "only the CPU device has a profile; leave --profile out".into(),
            )
            .into());
        }
        DeviceKind::Gpu | DeviceKind::Sim => {
            let mut forward = Forward::new(session.gpu_device()?, limits);
            let figures = measure(&mut forward, &work, |device| Done {
                expert_bytes: Some(device.expert_bytes()),
                ..Done::default()
            })?;
            if let Some(why) = forward.device().eager() {
                note!("fastrun: kernels were launched one by one, without graphs: {why}");
            }
            let rates = memory::Rates {
                memory: forward.device().read_rate()?,
                weights: None,
            };
            (0, rates, figures)
        }
        DeviceKind::Reference => {
            let mut forward = Forward::new(session.reference_device()?, limits);
            let threads = session.reference_threads();
            let (rates, figures) = memory::beside(session.weights(), threads, || {
                measure(&mut forward, &work, |_| Done::default())
            })?;
            (threads, rates, figures)
        }
    };
    let roof = Roof {
        read_rate: rates.memory,
        weights_rate: rates.weights,
        weight_bytes: roof::weight_bytes(session.plan()),
        expert_bytes: expert_bytes(&figures),
        kv_bytes: roof::kv_bytes(&session.plan().kv, work.depth + WARM_UP, work.generate),
    };
    if let Some(svg) = svg {
        svg.write(&chart(&session, bundle, &work, threads, &figures, &roof).svg())?;
    }
    if args.json {
        let model = bundle.display().to_string();
        writeln!(out, "{}", to_json(model, threads, &figures, &roof))?;
    } else {
        print(out, &figures, &roof)?;
    }
    Ok(())
}

impl Work {
    fn new(args: &BenchArgs, limits: &Limits, vocab: u32) -> Result<Work, Error> {
        let most = limits.max_seqs.min(limits.max_rows).min(limits.max_tokens);
        let batches = match &args.batch {
            None => BATCHES.into_iter().filter(|&b| b <= most).collect(),
            Some(batches) => batches.clone(),
        };
        if let Some(batch) = batches.iter().find(|&&b| b > most) {
            return Err(Error::User(format!(
                "--batch {batch}: this bundle decodes at most {most} sequences at a time; compile the model with a larger \
                 --max-batch"
            )));
        }
        let fits = |name: &str, tokens: u32| {
            if tokens <= limits.context {
                return Ok(());
            }
            Err(Error::User(format!(
                "{name} takes {tokens} positions, but the bundle's context is {}; use less, or compile the model with a \
                 larger --ctx",
                limits.context
            )))
        };
        fits(&format!("--prompt {}", args.prompt), args.prompt)?;
        let behind = match args.depth {
            0 => String::new(),
            depth => format!(" behind --depth {depth}"),
        };
        fits(
            &format!("--gen {}{behind}, with its warm-up,", args.generate),
            (args.generate.saturating_add(WARM_UP)).saturating_add(args.depth),
        )?;
        Ok(Work {
            prompt: args.prompt,
            generate: args.generate,
            depth: args.depth,
            batches,
            repeat: args.repeat,
            vocab,
            in_flight: 1,
        })
    }

    /// Key of the decoding of `batch` sequences in the JSON.
    fn key(&self, batch: u32) -> String {
        match self.depth {
            0 => format!("tg{}_b{batch}", self.generate),
            depth => format!("tg{}_d{depth}_b{batch}", self.generate),
        }
    }
}

/// Measures everything. `done` is what the device has done so far.
fn measure<D: Device>(
    forward: &mut Forward<D>,
    work: &Work,
    done: impl Fn(&D) -> Done,
) -> Result<Vec<Figure>, Error> {
    let runs = (1 + work.batches.len() as u64) * u64::from(work.repeat);
    let bar = progress::steps("bench", runs);
    let prompt: Vec<u32> = (0..work.prompt)
        .map(|i| (3 + i % 1000) % work.vocab)
        .collect();
    if work.in_flight > 1 {
        // It prepares each size of a step once, for each of the steps that it has at a time.
        for _ in 0..work.in_flight {
            prefill(forward, &prompt, &done)?;
        }
    } else {
        let prompt = &prompt[..work.prompt.min(WARM_UP_PROMPT) as usize];
        prefill(forward, prompt, &done)?;
    }

    let cases = std::iter::once(None).chain(work.batches.iter().copied().map(Some));
    let mut figures = Vec::new();
    for batch in cases {
        let mut runs = Vec::new();
        for _ in 0..work.repeat {
            runs.push(match batch {
                None => prefill(forward, &prompt, &done)?,
                Some(batch) => generate(forward, work, batch, &done)?,
            });
            bar.inc(1);
        }
        let (seconds, spent): (Vec<f64>, Vec<Done>) = runs
            .into_iter()
            .map(|(time, spent)| (time.as_secs_f64(), spent))
            .unzip();
        let spent = spent.into_iter().reduce(Done::and).unwrap_or_default();
        let (key, tokens) = match batch {
            None => (format!("pp{}", work.prompt), f64::from(work.prompt)),
            Some(b) => (work.key(b), f64::from(b) * f64::from(work.generate)),
        };
        figures.push(Figure {
            key,
            batch,
            rate: tokens / median(seconds),
            profile: spent.times.map(|times| Profile::new(&times)),
            expert_bytes: spent.expert_bytes.map(|bytes| {
                let steps = work.repeat * work.generate;
                bytes as f64 / f64::from(steps)
            }),
        });
    }
    bar.finish_and_clear();
    Ok(figures)
}

/// The time that a prompt takes as a new sequence, and what was done in it.
fn prefill<D: Device>(
    forward: &mut Forward<D>,
    prompt: &[u32],
    done: impl Fn(&D) -> Done,
) -> Result<(Duration, Done), Error> {
    let mut lane = Lane::default();
    let before = done(forward.device());
    let start = Instant::now();
    read(forward, &mut lane, prompt)?;
    let time = start.elapsed();
    let spent = done(forward.device()).since(before);
    forward.release(&mut lane);
    Ok((time, spent))
}

/// Feeds a prompt in chunks, each of which draws a token from its last row.
fn read<D: Device>(forward: &mut Forward<D>, lane: &mut Lane, prompt: &[u32]) -> Result<(), Error> {
    for chunk in prompt.chunks(forward.limits().max_tokens as usize) {
        let last = chunk.len() as u32 - 1;
        forward.feed(lane, chunk, [(last, false)])?;
    }
    Ok(())
}

/// The time that `batch` new sequences take to decode behind their first tokens and the warm-up, and what was done in it.
fn generate<D: Device>(
    forward: &mut Forward<D>,
    work: &Work,
    batch: u32,
    done: impl Fn(&D) -> Done,
) -> Result<(Duration, Done), Error> {
    let mut sources: Vec<TokenSource> = (0..batch)
        .map(|s| TokenSource::Id((5 + s) % work.vocab))
        .collect();
    let mut lanes: Vec<Lane> = sources.iter().map(|_| Lane::default()).collect();
    for (lane, s) in lanes.iter_mut().zip(0..) {
        let prompt: Vec<u32> = (0..work.depth)
            .map(|i| (7 + s + i % 1000) % work.vocab)
            .collect();
        read(forward, lane, &prompt)?;
    }
    draw(forward, work, &mut lanes, &mut sources, WARM_UP)?;
    let before = done(forward.device());
    let start = Instant::now();
    draw(forward, work, &mut lanes, &mut sources, work.generate)?;
    let time = start.elapsed();
    let spent = done(forward.device()).since(before);
    lanes.iter_mut().for_each(|lane| forward.release(lane));
    Ok((time, spent))
}

/// Decodes `steps` tokens of each sequence, the first being `sources`, each other one drawn by the step before; then
/// `sources` are the ones that come next.
fn draw<D: Device>(
    forward: &mut Forward<D>,
    work: &Work,
    lanes: &mut [Lane],
    sources: &mut [TokenSource],
    steps: u32,
) -> Result<(), Error> {
    let mut started = VecDeque::new();
    for _ in 0..steps {
        if started.len() == work.in_flight
            && let Some(ticket) = started.pop_front()
        {
            forward.wait(ticket)?;
        }
        let ticket = forward.start_draws(lanes, sources)?;
        for (row, source) in (0..).zip(&mut *sources) {
            *source = TokenSource::Sampled { ticket, row };
        }
        started.push_back(ticket);
    }
    started
        .into_iter()
        .try_for_each(|ticket| forward.wait(ticket).map(drop))
}

/// The middle value, or the mean of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// What steps read of experts by batch, for models that have any.
fn expert_bytes(figures: &[Figure]) -> Vec<(f64, f64)> {
    let measured = figures
        .iter()
        .filter_map(|f| Some((f64::from(f.batch?), f.expert_bytes?)));
    let mut measured: Vec<_> = measured.filter(|m| m.1 > 0.0).collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0));
    measured.dedup_by_key(|m| m.0);
    measured
}

/// Gigabytes of weights a second, where each of `batch` sequences gets `rate / batch` tokens a second.
fn bandwidth(roof: &Roof, batch: u32, rate: f64) -> f64 {
    let batch = f64::from(batch);
    roof.weights(batch) * rate / batch / 1e9
}

fn chart(
    session: &Session,
    bundle: &Path,
    work: &Work,
    threads: usize,
    figures: &[Figure],
    roof: &Roof,
) -> Chart {
    let manifest = session.manifest();
    let name = match manifest.model.name.as_str() {
        "" => bundle.file_stem().unwrap_or_default().to_string_lossy(),
        name => name.into(),
    };
    let model = format!("{name} {}", manifest.model.quantisation);
    let target = match session.device_kind() {
        DeviceKind::Auto | DeviceKind::Cpu | DeviceKind::Gpu => manifest.target.to_string(),
        DeviceKind::Sim => format!("{}, simulated", manifest.target),
        DeviceKind::Reference => "reference device".to_string(),
    };
    let prefill = figures.iter().find(|f| f.batch.is_none());
    let decode = figures.iter().filter_map(|f| {
        Some(Point {
            batch: f.batch?,
            rate: f.rate,
        })
    });
    Chart {
        model: model.trim().to_string(),
        target,
        threads,
        cpu: cpu_name(),
        prompt: work.prompt,
        prefill: prefill.map_or(0.0, |f| f.rate),
        generate: work.generate,
        depth: work.depth,
        points: decode.collect(),
        roof: roof.clone(),
    }
}

/// The processor's name, where Linux tells it.
fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_string()).filter(|name| !name.is_empty())
}

fn to_json(model: String, threads: usize, figures: &[Figure], roof: &Roof) -> Value {
    let mut json = Map::new();
    json.insert("model".into(), json!(model));
    json.insert("threads".into(), json!(threads));
    for figure in figures {
        json.insert(figure.key.clone(), json!(figure.rate));
    }
    json.insert("read_bytes_per_s".into(), json!(roof.read_rate));
    if let Some(rate) = roof.weights_rate {
        json.insert("weights_read_bytes_per_s".into(), json!(rate));
    }
    json.insert("weight_bytes_per_step".into(), json!(roof.weight_bytes));
    json.insert("kv_bytes_per_sequence".into(), json!(roof.kv_bytes));
    for figure in figures {
        if let Some(batch) = figure.batch {
            let key = format!("weights_gb_s_b{batch}");
            let gb = bandwidth(roof, batch, figure.rate);
            json.insert(key, json!(gb));
            let limit = roof.rate(f64::from(batch));
            json.insert(format!("limit_b{batch}"), json!(limit));
            if let Some(bytes) = figure.expert_bytes.filter(|&bytes| bytes > 0.0) {
                json.insert(format!("expert_bytes_b{batch}"), json!(bytes));
            }
        }
    }
    let profiles: Map<String, Value> = figures
        .iter()
        .filter_map(|f| Some((f.key.clone(), f.profile.as_ref()?.to_json())))
        .collect();
    if !profiles.is_empty() {
        json.insert("profile".into(), Value::Object(profiles));
    }
    Value::Object(json)
}

fn print(out: &mut dyn Write, figures: &[Figure], roof: &Roof) -> std::io::Result<()> {
    for figure in figures {
        write!(out, "{:<12} {:>10.1} tokens/s", figure.key, figure.rate)?;
        match figure.batch {
            None => writeln!(out)?,
            Some(batch) => {
                let gb = bandwidth(roof, batch, figure.rate);
                let share = roof.share(batch, figure.rate) * 100.0;
                writeln!(out, " {gb:>8.1} GB/s of weights {share:>5.0}% of the limit")?;
            }
        }
    }
    let gb = roof.read_rate / 1e9;
    writeln!(out, "{:<12} {gb:>10.1} GB/s, the limit", "memory reads")?;
    if let Some(rate) = roof.weights_rate {
        let gb = rate / 1e9;
        writeln!(
            out,
            "{:<12} {gb:>10.1} GB/s, where they lie in it",
            "weights read"
        )?;
    }
    for figure in figures {
        if let Some(profile) = &figure.profile {
            writeln!(out, "\n{}, share of the time by launch:", figure.key)?;
            profile.print(out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_tokens: 64,
        max_seqs: 8,
        max_rows: 16,
        context: 512,
    };

    fn args(extra: &[&str]) -> BenchArgs {
        use crate::cli::args::{Cli, Command};
        use clap::Parser;
        let args = ["fastrun", "bench", "m.fib"].iter().chain(extra);
        match Cli::parse_from(args).command {
            Some(Command::Bench(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn default_batches_stop_where_the_bundle_does() {
        let work = Work::new(&args(&[]), &LIMITS, 100).expect("it fits");
        assert_eq!(work.batches, [1, 8]);
        assert_eq!((work.prompt, work.generate, work.repeat), (512, 128, 3));
    }

    #[test]
    fn work_that_does_not_fit_is_refused_with_numbers() {
        let text = |extra: &[&str]| match Work::new(&args(extra), &LIMITS, 100) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?} instead of a user error"),
        };
        let batch = text(&["--batch", "1,9"]);
        assert!(
            batch.contains("--batch 9") && batch.contains("at most 8"),
            "{batch}"
        );
        let prompt = text(&["--prompt", "513"]);
        assert!(
            prompt.contains("513 positions") && prompt.contains("is 512"),
            "{prompt}"
        );
        assert!(text(&["--gen", "511"]).contains("513 positions"));
        let depth = text(&["--gen", "100", "--depth", "411"]);
        assert!(
            depth.contains("behind --depth 411") && depth.contains("513 positions"),
            "{depth}"
        );
    }

    #[test]
    fn what_was_done_is_counted_between_two_looks() {
        let done = |nanoseconds, bytes| Done {
            times: Some(vec![LaunchTime {
                name: "blk.0.qkv".into(),
                nanoseconds,
            }]),
            expert_bytes: Some(bytes),
        };
        let first = done(50, 400).since(done(20, 100));
        let second = done(90, 500).since(done(60, 490));
        assert_eq!(first.and(second), done(60, 310));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn json_has_the_keys_of_other_runners() {
        let figure = |key: &str, batch, rate| Figure {
            key: key.into(),
            batch,
            rate,
            profile: None,
            expert_bytes: None,
        };
        let figures = [
            figure("pp512", None, 900.0),
            figure("tg128_b8", Some(8), 80.0),
        ];
        let roof = Roof {
            read_rate: 2e10,
            weights_rate: Some(1.9e10),
            weight_bytes: 1_000_000_000,
            expert_bytes: Vec::new(),
            kv_bytes: 0.0,
        };
        let json = to_json("m.fib".into(), 2, &figures, &roof);
        assert_eq!(json["read_bytes_per_s"], 2e10);
        assert_eq!(json["weights_read_bytes_per_s"], 1.9e10);
        assert_eq!(json["limit_b8"], 160.0);
        assert_eq!(json["pp512"], 900.0);
        assert_eq!(json["tg128_b8"], 80.0);
        assert_eq!(json["weights_gb_s_b8"], 10.0);
        assert_eq!(json["threads"], 2);
        assert!(json.get("profile").is_none());
    }
}
