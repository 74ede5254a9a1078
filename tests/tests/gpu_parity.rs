//! What only a GPU can show: that its device gives what the host and the reference device give.
//!
//! `cargo test --release -p e2e --test gpu_parity -- --ignored` on a machine that has one; FASTINFER_GPU names its target
//! (default: sm_90). The models are random ones in the shapes of known ones, made here.
#![cfg(target_os = "linux")]

use std::process::Command;
use std::sync::Arc;

use ::fastrun::device::gpu::{GpuDevice, GpuOptions};
use ::fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use ::fastrun::device::{
    Device, Outcome, Penalties, SampleParams, Step, Ticket, TokenSource, Want,
};
use ::fastrun::kv::{BlockTable, KvCache};
use ::fastrun::load::Loaded;
use ::fastrun::sampler::{Context, Sampler, uniform};
use ::fastrun::step::StepBuilder;
use e2e::{bin, compile, succeed};
use tempfile::TempDir;

/// A bundle of a random model, and the folder that it is in.
struct Model {
    loaded: Arc<Loaded>,
    _folder: TempDir,
}

impl Model {
    fn new(shape: &str, quant: &str, layers: u32, options: &[&str]) -> Model {
        let folder = TempDir::new().unwrap();
        let gguf = folder.path().join("model.gguf");
        let mut synth = Command::new(bin("fastc"));
        synth.args(["synth", shape, "--quant", quant, "-o"]);
        synth.arg(&gguf).args(["--layers", &layers.to_string()]);
        succeed(synth);
        let target = std::env::var("FASTINFER_GPU").unwrap_or("sm_90".into());
        let path = folder.path().join("gpu.fib");
        let mut all = vec!["--target", &target, "--ctx", "1024", "--max-batch", "8"];
        all.extend(options);
        compile(&gguf, &path, &all);
        Model {
            loaded: Arc::new(Loaded::open(&path).unwrap()),
            _folder: folder,
        }
    }

    fn run(&self) -> Run<GpuDevice> {
        let options = GpuOptions {
            kv_bytes: Some(256 << 20),
            ..GpuOptions::default()
        };
        Run::new(GpuDevice::open(self.loaded.clone(), &options).unwrap())
    }

    fn vocab(&self) -> u32 {
        self.loaded.manifest().model.vocab
    }
}

/// A device and the blocks of its sequences.
struct Run<D> {
    device: D,
    kv: KvCache,
    sequences: Vec<(BlockTable, u32)>,
}

impl<D: Device> Run<D> {
    fn new(device: D) -> Run<D> {
        let kv = KvCache::new(device.kv_blocks());
        Run {
            device,
            kv,
            sequences: Vec::new(),
        }
    }

    /// A step that feeds `tokens[i]` to sequence i, with the wants of its last rows.
    fn step(&mut self, tokens: &[Vec<TokenSource>], wants: &[Vec<Want>]) -> Step {
        let mut builder = StepBuilder::new(self.device.kv_blocks().len());
        self.sequences
            .resize_with(tokens.len().max(self.sequences.len()), Default::default);
        for ((sequence, tokens), wants) in self.sequences.iter_mut().zip(tokens).zip(wants) {
            let (table, position) = sequence;
            let end = *position + tokens.len() as u32;
            assert!(self.kv.grow(table, end));
            let row = builder.push(tokens.iter().copied(), *position, table);
            *position = end;
            for (i, want) in (0..).zip(wants) {
                builder.want(row - wants.len() as u32 + i, want.clone());
            }
        }
        builder.finish()
    }

    fn wait(&mut self, ticket: Ticket) -> Outcome {
        loop {
            if let Some(outcome) = self.device.poll(ticket).unwrap() {
                return outcome;
            }
            std::thread::yield_now();
        }
    }

    fn forget(&mut self) {
        for (mut table, _) in std::mem::take(&mut self.sequences) {
            self.kv.release(&mut table);
        }
    }
}

/// Numbers as a function of where they are used.
struct Dice(u32);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 += 1;
        uniform(7, self.0)
    }

    fn below(&mut self, n: u32) -> u32 {
        (self.roll() * f64::from(n)) as u32
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u32) as usize]
    }
}

/// Parameters that the GPU draws by.
fn params(dice: &mut Dice) -> SampleParams {
    SampleParams {
        top_k: dice.one_of(&[0, 0, 1, 2, 40, 500, 20_000]),
        top_p: dice.one_of(&[1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.95, 0.999]),
        min_p: dice.one_of(&[0.0, 0.0, 0.05, 0.5]),
        temperature: dice.one_of(&[0.0, 0.2, 0.8, 1.0, 3.0]),
        seed: u64::from(dice.below(u32::MAX)),
        ..SampleParams::default()
    }
}

/// Rows of 64 at a time, each with parameters of its own: the tokens are those that the host draws from the same logits.
fn draws_are_the_hosts(model: &Model, steps: u32) {
    let mut run = model.run();
    let (mut dice, mut sampler) = (Dice(0), Sampler::default());
    let mut kinds = [0; 3];
    for _ in 0..steps {
        let tokens: Vec<TokenSource> = (0..64)
            .map(|_| TokenSource::Id(dice.below(model.vocab())))
            .collect();
        let wants: Vec<Want> = (0..64)
            .map(|_| Want {
                sample: Some(params(&mut dice)),
                logits: true,
                ..Want::default()
            })
            .collect();
        let step = run.step(&[tokens], std::slice::from_ref(&wants));
        let ticket = run.device.submit(step).unwrap();
        let outcome = run.wait(ticket);
        for (position, (row, want)) in (1..).zip(outcome.rows.iter().zip(&wants)) {
            let params = want.sample.as_ref().unwrap();
            let logits = row.logits.as_ref().unwrap();
            let expected = sampler
                .sample(logits, params, &Context::default(), position)
                .unwrap();
            assert_eq!(row.token, Some(expected), "{params:?}");
            let kind = match params.temperature {
                0.0 => 0,
                _ if params.top_k > 0 || params.top_p < 1.0 => 1,
                _ => 2,
            };
            kinds[kind] += 1;
        }
        run.forget();
    }
    assert!(kinds.iter().all(|&n| n > steps), "{kinds:?}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn tokens_of_small_and_large_vocabularies_are_the_hosts() {
    draws_are_the_hosts(&Model::new("tinyllama", "q4_0", 1, &[]), 40);
    draws_are_the_hosts(&Model::new("smollm2-135m", "q4_0", 1, &[]), 20);
    draws_are_the_hosts(&Model::new("llama3-8b", "q4_0", 1, &[]), 10);
}

/// Steps that name tokens which are being drawn are the same as steps that are given these tokens, also where the host draws
/// some of them.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn steps_ahead_are_steps_one_by_one() {
    let model = Model::new("smollm2-135m", "q4_0", 3, &[]);
    let sampling = |s: u32| SampleParams {
        temperature: if s == 0 { 0.0 } else { 1.0 },
        top_p: 0.9,
        seed: u64::from(s),
        penalties: Penalties {
            // The last sequence's tokens are the host's.
            presence: if s == 3 { 0.5 } else { 0.0 },
            ..Penalties::default()
        },
        ..SampleParams::default()
    };
    let want = |s: u32| Want {
        sample: Some(sampling(s)),
        recent: vec![1, 2],
        ..Want::default()
    };
    let wants: Vec<Vec<Want>> = (0..4).map(|s| vec![want(s)]).collect();
    let prompt: Vec<Vec<TokenSource>> = (0..4)
        .map(|s| (0..5 + 30 * s).map(|t| TokenSource::Id(t + s)).collect())
        .collect();
    let tokens = |outcome: &Outcome| -> Vec<u32> {
        let token = |row: &::fastrun::device::RowOutcome| row.token.unwrap();
        outcome.rows.iter().map(token).collect()
    };

    let mut slow = model.run();
    let step = slow.step(&prompt, &wants);
    let ticket = slow.device.submit(step).unwrap();
    let mut expected = vec![tokens(&slow.wait(ticket))];
    for _ in 0..40 {
        let last: Vec<Vec<TokenSource>> = expected[expected.len() - 1]
            .iter()
            .map(|&id| vec![TokenSource::Id(id)])
            .collect();
        let step = slow.step(&last, &wants);
        let ticket = slow.device.submit(step).unwrap();
        expected.push(tokens(&slow.wait(ticket)));
    }
    drop(slow);

    // The first three sequences ahead; then all four, which wait for the host.
    for sequences in [3, 4] {
        let mut fast = model.run();
        let step = fast.step(&prompt[..sequences], &wants[..sequences]);
        let mut tickets = vec![fast.device.submit(step).unwrap()];
        let mut found = Vec::new();
        for i in 0..40 {
            let ticket = tickets[tickets.len() - 1];
            let last: Vec<Vec<TokenSource>> = (0..sequences as u32)
                .map(|row| vec![TokenSource::Sampled { ticket, row }])
                .collect();
            let step = fast.step(&last, &wants[..sequences]);
            tickets.push(fast.device.submit(step).unwrap());
            found.push(tokens(&fast.wait(tickets[i])));
        }
        found.push(tokens(&fast.wait(tickets[40])));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, &expected[..sequences], "step {i} of {sequences}");
        }
    }
}

/// Logits of ragged steps: prompts in chunks of odd sizes beside sequences that decode, to contexts beyond a block of threads'
/// share of attention. `error` is the most that they differ by, over their spread, in the root of
/// the mean square.
fn logits_are_the_references(model: &Model, error: f32) {
    let mut gpu = model.run();
    let options = ReferenceOptions {
        kv_blocks: Some(gpu.device.kv_blocks()[0]),
        ..ReferenceOptions::default()
    };
    let mut reference = Run::new(ReferenceDevice::open(model.loaded.clone(), &options).unwrap());
    let want = Want {
        logits: true,
        ..Want::default()
    };
    let mut dice = Dice(0);
    // Tokens of each of four sequences in each step.
    let steps = [
        [1, 17, 70, 130],
        [1, 1, 1, 1],
        [33, 1, 200, 1],
        [1, 1, 1, 1],
        [90, 63, 1, 250],
        [1, 1, 1, 1],
        [2, 1, 3, 1],
        [1, 1, 1, 1],
    ];
    let mut worst = 0f32;
    for (i, counts) in steps.iter().enumerate() {
        let tokens: Vec<Vec<TokenSource>> = counts
            .iter()
            .map(|&n| {
                (0..n)
                    .map(|_| TokenSource::Id(dice.below(model.vocab())))
                    .collect()
            })
            .collect();
        let wants = vec![vec![want.clone()]; 4];
        let (a, b) = (gpu.step(&tokens, &wants), reference.step(&tokens, &wants));
        let (a, b) = (
            gpu.device.submit(a).unwrap(),
            reference.device.submit(b).unwrap(),
        );
        let (a, b) = (gpu.wait(a), reference.wait(b));
        for (s, (a, b)) in a.rows.iter().zip(&b.rows).enumerate() {
            let (a, b) = (a.logits.as_ref().unwrap(), b.logits.as_ref().unwrap());
            let spread = |x: &[f32], center: &dyn Fn(usize) -> f32| {
                let squares = x.iter().enumerate().map(|(i, x)| (x - center(i)).powi(2));
                (squares.sum::<f32>() / x.len() as f32).sqrt()
            };
            let mean = b.iter().sum::<f32>() / b.len() as f32;
            let relative = spread(a, &|i| b[i]) / spread(b, &|_| mean);
            assert!(relative < error, "step {i}, sequence {s}: {relative}");
            worst = worst.max(relative);
        }
    }
    println!("{}: {worst}", model.loaded.path().display());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn logits_over_a_cache_of_f16_are_the_references() {
    logits_are_the_references(&Model::new("smollm2-135m", "f16", 2, &[]), 0.005);
    logits_are_the_references(&Model::new("llama3-8b", "q4_0", 1, &[]), 0.005);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn logits_over_a_cache_of_8_bits_are_the_references() {
    let options = ["--kv", "q8_0"];
    logits_are_the_references(&Model::new("smollm2-135m", "f16", 2, &options), 0.03);
    logits_are_the_references(&Model::new("llama3-8b", "q4_0", 1, &options), 0.03);
}

/// What can't be done says so with numbers.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn too_little_memory_is_told_with_numbers() {
    let model = Model::new("smollm2-135m", "q4_0", 1, &[]);
    let open = |kv_bytes| {
        let options = GpuOptions {
            kv_bytes: Some(kv_bytes),
            ..GpuOptions::default()
        };
        GpuDevice::open(model.loaded.clone(), &options)
    };
    let text = match open(100) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("100 bytes suffice"),
    };
    assert!(text.contains("100 bytes"), "{text}");
    let blocks = 10 * model.loaded.plan().kv[0].block_bytes();
    assert_eq!(open(blocks).unwrap().kv_blocks(), [10]);
}
