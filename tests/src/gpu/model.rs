//! Random models in the shapes of known ones, on a GPU, on the host and on the reference device.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ::fastrun::device::gpu::GpuDevice;
use ::fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use ::fastrun::device::{
    Device, Outcome, Penalties, SampleParams, Stability, Step, Ticket, TokenSource, Want,
};
use ::fastrun::kv::{BlockTable, KvCache};
use ::fastrun::load::Loaded;
use ::fastrun::sampler::{Context, Sampler, uniform};
use ::fastrun::step::StepBuilder;
use tempfile::TempDir;

use super::Machine;
use crate::{bin, compile, succeed};

/// A bundle of a random model, and what runs it.
pub struct Model {
    pub machine: Machine,
    pub loaded: Arc<Loaded>,
    kv_bytes: u64,
    stability: Option<Stability>,
    /// What the bundle is in, where it is nobody else's.
    _folder: Option<TempDir>,
}

impl Model {
    /// In one of the shapes that have names.
    pub fn new(machine: Machine, shape: &str, quant: &str, layers: u32, options: &[&str]) -> Model {
        let folder = TempDir::new().unwrap();
        let gguf = folder.path().join("model.gguf");
        synth(shape, quant, layers, &gguf);
        let path = folder.path().join("gpu.fib");
        compile_for(machine, &gguf, &path, options);
        Model {
            _folder: Some(folder),
            ..Model::of(machine, Arc::new(Loaded::open(&path).unwrap()))
        }
    }

    /// Of a bundle that is there.
    pub fn of(machine: Machine, loaded: Arc<Loaded>) -> Model {
        Model {
            machine,
            loaded,
            kv_bytes: 256 << 20,
            stability: None,
            _folder: None,
        }
    }

    /// With another size of KV pools, in bytes.
    pub fn with_kv_bytes(self, kv_bytes: u64) -> Model {
        Model { kv_bytes, ..self }
    }

    /// By another stability profile than the bundle's own.
    pub fn by(self, stability: Stability) -> Model {
        Model {
            stability: Some(stability),
            ..self
        }
    }

    pub fn run(&self) -> Run<GpuDevice> {
        let loaded = self.loaded.clone();
        Run::new(self.machine.open(loaded, self.kv_bytes, self.stability))
    }

    /// A reference device with blocks for as many tokens as `run`'s has.
    pub(super) fn reference(&self, blocks: u32) -> Run<ReferenceDevice> {
        let options = ReferenceOptions {
            kv_blocks: Some(blocks),
            ..ReferenceOptions::default()
        };
        Run::new(ReferenceDevice::open(self.loaded.clone(), &options).unwrap())
    }

    pub fn vocab(&self) -> u32 {
        self.loaded.manifest().model.vocab
    }
}

/// Makes a random model in one of the shapes that have names.
pub fn synth(shape: &str, quant: &str, layers: u32, path: &Path) {
    let mut synth = Command::new(bin("fastc"));
    synth.args(["synth", shape, "--quant", quant, "-o"]);
    synth.arg(path).args(["--layers", &layers.to_string()]);
    succeed(synth);
}

/// Compiles a model for a machine, for contexts of 1024 and batches of 8 unless the options say otherwise.
pub fn compile_for(machine: Machine, gguf: &Path, bundle: &Path, options: &[&str]) {
    let target = machine.target.to_string();
    let mut all = vec!["--target", &target];
    for (name, value) in [("--ctx", "1024"), ("--max-batch", "8")] {
        if !options.contains(&name) {
            all.extend([name, value]);
        }
    }
    all.extend(options);
    compile(gguf, bundle, &all);
}

/// A device and the blocks of its sequences.
pub struct Run<D> {
    pub device: D,
    kv: KvCache,
    sequences: Vec<(BlockTable, u32)>,
}

impl<D: Device> Run<D> {
    pub fn new(device: D) -> Run<D> {
        let kv = KvCache::with_windows(device.kv_blocks(), device.kv_windows());
        Run {
            device,
            kv,
            sequences: Vec::new(),
        }
    }

    /// A step that feeds `tokens[i]` to sequence i, with the wants of its last rows.
    pub fn step(&mut self, tokens: &[Vec<TokenSource>], wants: &[Vec<Want>]) -> Step {
        let mut builder = StepBuilder::of(self.kv.groups());
        self.sequences
            .resize_with(tokens.len().max(self.sequences.len()), Default::default);
        for ((sequence, tokens), wants) in self.sequences.iter_mut().zip(tokens).zip(wants) {
            let (table, position) = sequence;
            let end = *position + tokens.len() as u32;
            // Steps run one after the other: those before need not have ended.
            self.kv.slide(table, *position);
            assert!(self.kv.grow(table, end) && self.kv.grow_windows(table, end));
            let row = builder.push(tokens.iter().copied(), *position, table);
            *position = end;
            for (i, want) in (0..).zip(wants) {
                builder.want(row - wants.len() as u32 + i, want.clone());
            }
        }
        builder.finish()
    }

    pub fn wait(&mut self, ticket: Ticket) -> Outcome {
        loop {
            if let Some(outcome) = self.device.poll(ticket).unwrap() {
                return outcome;
            }
            std::thread::yield_now();
        }
    }

    /// The outcome of a step.
    pub fn run(&mut self, tokens: &[Vec<TokenSource>], wants: &[Vec<Want>]) -> Outcome {
        let step = self.step(tokens, wants);
        let ticket = self.device.submit(step).unwrap();
        self.wait(ticket)
    }

    /// Gives all blocks back.
    pub fn forget(&mut self) {
        for (mut table, _) in std::mem::take(&mut self.sequences) {
            self.kv.release(&mut table);
        }
    }
}

/// Numbers as a function of where they are used.
pub struct Dice(pub u32);

impl Dice {
    pub fn roll(&mut self) -> f64 {
        self.0 += 1;
        uniform(7, self.0)
    }

    pub fn below(&mut self, n: u32) -> u32 {
        (self.roll() * f64::from(n)) as u32
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
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
///
/// # Panics
/// A token is another one.
pub fn draws_are_the_hosts(model: &Model, steps: u32) {
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
        let outcome = run.run(&[tokens], std::slice::from_ref(&wants));
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
    assert!(kinds.iter().all(|&n| n >= steps), "{kinds:?}");
}

/// Steps that name tokens which are being drawn are the same as steps that are given these tokens, also where the host draws
/// some of them.
///
/// # Panics
/// They differ.
pub fn steps_ahead_are_steps_one_by_one(model: &Model, steps: usize) {
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
    let mut expected = vec![tokens(&slow.run(&prompt, &wants))];
    for _ in 0..steps {
        let last: Vec<Vec<TokenSource>> = expected[expected.len() - 1]
            .iter()
            .map(|&id| vec![TokenSource::Id(id)])
            .collect();
        expected.push(tokens(&slow.run(&last, &wants)));
    }
    drop(slow);

    // The first three sequences ahead; then all four, which wait for the host.
    for sequences in [3, 4] {
        let mut fast = model.run();
        let step = fast.step(&prompt[..sequences], &wants[..sequences]);
        let mut tickets = vec![fast.device.submit(step).unwrap()];
        let mut found = Vec::new();
        for i in 0..steps {
            let ticket = tickets[tickets.len() - 1];
            let last: Vec<Vec<TokenSource>> = (0..sequences as u32)
                .map(|row| vec![TokenSource::Sampled { ticket, row }])
                .collect();
            let step = fast.step(&last, &wants[..sequences]);
            tickets.push(fast.device.submit(step).unwrap());
            found.push(tokens(&fast.wait(tickets[i])));
        }
        found.push(tokens(&fast.wait(tickets[steps])));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, &expected[..sequences], "step {i} of {sequences}");
        }
    }
}

/// Tokens of each of four sequences in each step: prompts in chunks of odd sizes beside sequences that decode, to contexts
/// beyond a block of threads' share of attention.
pub const RAGGED: [[u32; 4]; 8] = [
    [1, 17, 70, 130],
    [1, 1, 1, 1],
    [33, 1, 200, 1],
    [1, 1, 1, 1],
    [90, 63, 1, 250],
    [1, 1, 1, 1],
    [2, 1, 3, 1],
    [1, 1, 1, 1],
];

/// Logits of steps whose sequences have these numbers of tokens. `error` is the most that they differ from the reference
/// device's by, over their spread, in the root of the mean square.
///
/// # Panics
/// They differ by more.
pub fn logits_are_the_references<const N: usize>(model: &Model, steps: &[[u32; N]], error: f32) {
    let mut gpu = model.run();
    let blocks = gpu.device.kv_blocks().iter().copied().max();
    let mut reference = model.reference(blocks.expect("the model has keys and values"));
    let want = Want {
        logits: true,
        ..Want::default()
    };
    let mut dice = Dice(0);
    let mut worst = 0f32;
    for (i, counts) in steps.iter().enumerate() {
        let mut draw = |&n: &u32| {
            (0..n)
                .map(|_| TokenSource::Id(dice.below(model.vocab())))
                .collect()
        };
        let tokens: Vec<Vec<TokenSource>> = counts.iter().map(&mut draw).collect();
        let wants = vec![vec![want.clone()]; N];
        let (a, b) = (
            gpu.run(&tokens, &wants).rows,
            reference.run(&tokens, &wants).rows,
        );
        for (s, (a, b)) in a.iter().zip(&b).enumerate() {
            let (a, b) = (a.logits.as_ref().unwrap(), b.logits.as_ref().unwrap());
            let relative = distance(a, b);
            assert!(relative < error, "step {i}, sequence {s}: {relative}");
            worst = worst.max(relative);
        }
    }
    println!("{}: {worst}", model.loaded.manifest().model.name);
}

/// The root of the mean square of differences, over `expected`'s standard deviation; infinite where there is a NaN.
pub fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let spread = expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2));
    match (off.sum::<f32>() / spread).sqrt() {
        x if x.is_nan() => f32::INFINITY,
        x => x,
    }
}
