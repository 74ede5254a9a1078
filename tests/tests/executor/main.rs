//! The CPU device and the reference device on bundles made by hand.

mod tiny;
mod wants;

use std::path::PathBuf;
use std::sync::Arc;

use bundle_format::plan::{DType, Encoding, WeightLayout};
use fastrun::Error;
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::device::{Device, Outcome, SampleParams, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

use tiny::{Spec, TINY};

/// A bundle in a folder that goes when this does.
struct Bundle {
    folder: tempfile::TempDir,
}

impl Bundle {
    fn new(spec: &Spec) -> Bundle {
        let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
        let bundle = Bundle { folder };
        tiny::write(spec, &bundle.path());
        bundle
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tiny.fib")
    }

    fn load(&self) -> Arc<Loaded> {
        Arc::new(Loaded::open(&self.path()).expect("the bundle is whole"))
    }

    fn cpu(&self, threads: usize) -> CpuDevice {
        let options = CpuOptions {
            threads: Some(threads),
            ..CpuOptions::default()
        };
        CpuDevice::open(self.load(), &options).expect("the bundle runs here")
    }

    fn reference(&self) -> ReferenceDevice {
        let options = ReferenceOptions {
            kv_blocks: Some(200),
            ..ReferenceOptions::default()
        };
        ReferenceDevice::open(self.load(), &options).expect("the bundle runs here")
    }
}

/// A sequence on a device: its text, how much of it was run, and its blocks.
#[derive(Clone)]
struct Text {
    ids: Vec<u32>,
    done: usize,
    table: Arc<[u32]>,
}

impl Text {
    /// `len` tokens that `seed` stands for, in every third block from the `first` on.
    fn new(seed: u32, len: usize, first: u32) -> Text {
        let ids = (0..len as u32).map(|i| (i * i * 7 + i * 13 + seed * 29 + 3) % TINY.vocab);
        let blocks = len.div_ceil(16) as u32;
        Text {
            ids: ids.collect(),
            done: 0,
            table: (0..blocks).map(|b| first + b * 3).collect(),
        }
    }
}

/// A step of the next tokens of some texts. Logits of every row are wanted.
fn step(chunks: &mut [(&mut Text, usize)]) -> Step {
    let mut step = Step {
        kv: vec![StepKv::default()],
        ..Step::default()
    };
    for (s, (text, len)) in chunks.iter_mut().enumerate() {
        for position in text.done..text.done + *len {
            step.rows.push(step.tokens.len() as u32);
            step.tokens.push(TokenSource::Id(text.ids[position]));
            step.positions.push(position as u32);
            step.sequences.push(s as u32);
            let slot = text.table[position / 16] * 16 + position as u32 % 16;
            step.kv[0].slots.push(slot);
        }
        step.kv[0].tables.push(Arc::clone(&text.table));
        text.done += *len;
    }
    step.wants = vec![
        Want {
            logits: true,
            ..Want::default()
        };
        step.rows.len()
    ];
    step
}

fn run(device: &mut impl Device, step: Step) -> Result<Outcome, Error> {
    let ticket = device.submit(step)?;
    Ok(device
        .poll(ticket)?
        .expect("these devices end a step before submit returns"))
}

/// Logits of each row.
fn logits(outcome: Outcome) -> Vec<Vec<f32>> {
    let rows = outcome.rows.into_iter();
    rows.map(|row| row.logits.expect("logits were wanted"))
        .collect()
}

/// All logits of a text that is run in chunks of these lengths.
fn run_chunks(device: &mut impl Device, text: &Text, chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut text = text.clone();
    let mut all = Vec::new();
    for &len in chunks {
        let step = step(&mut [(&mut text, len)]);
        all.extend(logits(run(device, step).expect("the step is valid")));
    }
    assert_eq!(text.done, text.ids.len());
    all
}

fn assert_same_bits(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert_eq!(
                a.to_bits(),
                b.to_bits(),
                "{what}: row {row}, logit {i}: {a}, {b}"
            );
        }
    }
}

/// Largest difference of logits by the largest logit.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    let largest = pairs().fold(0f32, |max, (_, b)| max.max(b.abs()));
    assert!(largest > 0.1 && largest.is_finite(), "{largest}");
    let apart = pairs().map(|(a, b)| (a - b).abs());
    apart.fold(0f32, |max, d| if d >= max || d.is_nan() { d } else { max }) / largest
}

/// Encodings, the activations they are multiplied with, and what these may make of it.
const ENCODINGS: [(Encoding, DType, f32); 9] = [
    // What remains is the cache's f16.
    (Encoding::F32, DType::F32, 2e-3),
    (Encoding::F16, DType::F32, 2e-3),
    (Encoding::BF16, DType::F32, 2e-3),
    // 14 bits are about as good.
    (Encoding::F16, DType::Q14, 2e-3),
    (Encoding::BF16, DType::Q14, 2e-3),
    // And 11-bit and 8-bit activations.
    (Encoding::Q8_0, DType::Q11, 8e-3),
    (Encoding::Q4_0, DType::Q8, 4e-2),
    (Encoding::Q4_1, DType::Q8, 4e-2),
    (Encoding::Q8_0, DType::Q8, 4e-2),
];

/// Three texts in steps that mix prefill chunks and decode rows.
fn mixed(device: &mut impl Device) -> Vec<Vec<f32>> {
    let mut texts = [
        Text::new(1, 90, 0),
        Text::new(2, 40, 1),
        Text::new(3, 33, 2),
    ];
    let mut all = Vec::new();
    for lens in [
        [40, 0, 5],
        [1, 30, 20],
        [1, 1, 1],
        [30, 1, 1],
        [1, 1, 1],
        [17, 7, 5],
    ] {
        let mut chunks: Vec<(&mut Text, usize)> = texts
            .iter_mut()
            .zip(lens)
            .filter(|(_, len)| *len > 0)
            .collect();
        let step = step(&mut chunks);
        all.extend(logits(run(device, step).expect("the step is valid")));
    }
    assert!(texts.iter().all(|text| text.done == text.ids.len()));
    all
}

#[test]
fn agrees_with_the_reference() {
    for (encoding, rows, tolerance) in ENCODINGS {
        let bundle = Bundle::new(&Spec {
            rows,
            ..Spec::new(encoding)
        });
        let found = mixed(&mut bundle.cpu(3));
        let apart = distance(&found, &mixed(&mut bundle.reference()));
        assert!(apart < tolerance, "{encoding:?} x {rows:?}: {apart}");
    }
}

#[test]
fn a_window_is_kept() {
    let full = Bundle::new(&Spec::new(Encoding::F32));
    let windowed = Bundle::new(&Spec {
        window: Some(21),
        ..Spec::new(Encoding::F32)
    });
    let found = mixed(&mut windowed.cpu(2));
    assert!(distance(&found, &mixed(&mut windowed.reference())) < 2e-3);
    assert!(distance(&found, &mixed(&mut full.cpu(2))) > 1e-2);
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    for encoding in [Encoding::Q4_1, Encoding::F16] {
        let bundle = Bundle::new(&Spec::new(encoding));
        let expected = mixed(&mut bundle.cpu(1));
        for threads in 2..=8 {
            let found = mixed(&mut bundle.cpu(threads));
            assert_same_bits(&found, &expected, &format!("{threads} threads"));
        }
    }
}

#[test]
fn the_same_bits_for_any_chunks_and_blocks() {
    for encoding in [Encoding::Q4_1, Encoding::F16] {
        check_chunks_and_blocks(&Bundle::new(&Spec::new(encoding)));
    }
}

fn check_chunks_and_blocks(bundle: &Bundle) {
    let text = Text::new(5, 64, 0);
    let mut device = bundle.cpu(2);
    let expected = run_chunks(&mut device, &text, &[1; 64]);
    for chunk in [2, 3, 5, 8, 16, 31, 64] {
        let mut chunks = vec![chunk; 64 / chunk];
        chunks.extend((64 % chunk > 0).then_some(64 % chunk));
        let found = run_chunks(&mut device, &text, &chunks);
        assert_same_bits(&found, &expected, &format!("chunks of {chunk}"));
    }
    let elsewhere = Text {
        table: [90, 3, 71, 14].into(),
        ..text
    };
    let found = run_chunks(&mut device, &elsewhere, &[64]);
    assert_same_bits(&found, &expected, "other blocks");
}

#[test]
fn the_same_bits_alone_and_in_a_batch() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let mut device = bundle.cpu(2);
    let texts: Vec<Text> = (0..3).map(|i| Text::new(i, 20, i)).collect();
    let alone: Vec<_> = texts
        .iter()
        .map(|text| run_chunks(&mut device, text, &[20]))
        .collect();
    let mut together = texts.clone();
    let mut chunks: Vec<(&mut Text, usize)> = together.iter_mut().map(|t| (t, 20)).collect();
    let found = logits(run(&mut device, step(&mut chunks)).expect("the step is valid"));
    assert_same_bits(&found, &alone.concat(), "a batch");
}

/// Continues a text greedily, or by sampling; sampled ids go to the next step on the device or by the host.
fn generate(device: &mut impl Device, params: &SampleParams, by_device: bool) -> Vec<u32> {
    let mut text = Text::new(4, 12, 0);
    text.table = [7, 2, 5].into();
    let mut next = step(&mut [(&mut text, 12)]);
    let mut tokens = Vec::new();
    for _ in 0..30 {
        let last = next.rows.len() - 1;
        next.rows = vec![next.rows[last]];
        next.wants = vec![Want {
            sample: Some(params.clone()),
            ..Want::default()
        }];
        let ticket = device.submit(next).expect("the step is valid");
        let fetch = |device: &mut dyn Device| {
            let outcome = device.poll(ticket).expect("the ticket is fresh");
            let outcome = outcome.expect("these devices end a step before submit returns");
            assert!(outcome.rows[0].logits.is_none());
            outcome.rows[0].token.expect("a token was wanted")
        };
        let token = fetch(device);
        tokens.push(token);
        text.ids.push(token);
        next = step(&mut [(&mut text, 1)]);
        if by_device {
            next.tokens = vec![TokenSource::Sampled { ticket, row: 0 }];
        }
    }
    tokens
}

#[test]
fn sampled_ids_are_handed_on() {
    let bundle = Bundle::new(&Spec::new(Encoding::F32));
    for (temperature, seed) in [(0.0, 0), (1.0, 1), (1.0, 2)] {
        let params = SampleParams {
            temperature,
            top_k: 40,
            top_p: 0.95,
            seed,
            ..SampleParams::default()
        };
        let by_host = generate(&mut bundle.cpu(2), &params, false);
        assert_eq!(generate(&mut bundle.cpu(3), &params, true), by_host);
        assert_eq!(generate(&mut bundle.reference(), &params, true), by_host);
    }
}

#[test]
fn a_refused_step_changes_nothing() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let text = Text::new(5, 40, 0);
    let expected = run_chunks(&mut bundle.cpu(2), &text, &[30, 10]);
    let mut device = bundle.cpu(2);
    let mut half = text.clone();
    let mut found = logits(run(&mut device, step(&mut [(&mut half, 30)])).unwrap());
    let valid = step(&mut [(&mut half, 10)]);

    let refused = |device: &mut CpuDevice, change: &dyn Fn(&mut Step), what: &str| {
        let mut bad = valid.clone();
        change(&mut bad);
        match run(device, bad) {
            Err(Error::User(text)) => assert!(text.contains(what), "{text}"),
            other => panic!("{other:?}"),
        }
    };
    refused(
        &mut device,
        &|s| s.tokens[3] = TokenSource::Id(TINY.vocab),
        "token 3 is 101",
    );
    refused(
        &mut device,
        &|s| s.positions[9] = TINY.context,
        "position 256",
    );
    refused(
        &mut device,
        &|s| s.kv[0].tables[0] = [0, 3, 100_000].into(),
        "block 100000",
    );
    refused(
        &mut device,
        &|s| s.rows[9] = TINY.max_tokens,
        "row 9 is token 64",
    );

    found.extend(logits(run(&mut device, valid).unwrap()));
    assert_same_bits(&found, &expected, "after refused steps");
}

#[test]
fn rows_that_nobody_wants_cost_nothing_and_change_nothing() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let text = Text::new(5, 40, 0);
    let expected = run_chunks(&mut bundle.cpu(2), &text, &[40]);
    let mut device = bundle.cpu(2);
    let mut half = text.clone();
    let mut silent = step(&mut [(&mut half, 30)]);
    (silent.rows, silent.wants) = (vec![], vec![]);
    assert!(run(&mut device, silent).unwrap().rows.is_empty());
    let mut some = step(&mut [(&mut half, 10)]);
    (some.rows, some.wants) = (vec![2, 9], some.wants[..2].to_vec());
    let found = logits(run(&mut device, some).unwrap());
    assert_same_bits(
        &found,
        &[expected[32].clone(), expected[39].clone()],
        "some rows",
    );
}

#[test]
fn devices_run_side_by_side() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let expected = mixed(&mut bundle.cpu(1));
    let loaded = bundle.load();
    std::thread::scope(|scope| {
        for threads in [2, 3] {
            let (loaded, expected) = (Arc::clone(&loaded), &expected);
            scope.spawn(move || {
                let options = CpuOptions {
                    threads: Some(threads),
                    ..CpuOptions::default()
                };
                // Opened and dropped again and again, with and without having run.
                for round in 0..10 {
                    let mut device = CpuDevice::open(Arc::clone(&loaded), &options).unwrap();
                    if round % 2 == 0 {
                        assert_same_bits(&mixed(&mut device), expected, "side by side");
                    }
                }
            });
        }
    });
    // The devices share the map; the last one to go takes it along.
    assert_eq!(Arc::strong_count(&loaded), 1);
}

#[test]
fn the_profile_names_each_launch() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let options = CpuOptions {
        threads: Some(2),
        profile: true,
        ..CpuOptions::default()
    };
    let mut device = CpuDevice::open(bundle.load(), &options).unwrap();
    let expected = mixed(&mut bundle.cpu(2));
    assert_same_bits(&mixed(&mut device), &expected, "profiled");
    let profile = device.profile().expect("it was asked for");
    let names: Vec<&str> = profile.iter().map(|time| time.name.as_str()).collect();
    assert_eq!(names[..3], ["embed", "rope", "blk.0.norm"]);
    assert_eq!(names[names.len() - 1], "logits");
    assert!(
        profile.iter().all(|time| time.nanoseconds > 0),
        "{profile:?}"
    );
    assert!(bundle.cpu(2).profile().is_none());
}

#[test]
fn what_this_machine_lacks_is_refused_by_name() {
    let refused = |spec: Spec| {
        let bundle = Bundle::new(&spec);
        let opened = Loaded::open(&bundle.path())
            .and_then(|loaded| CpuDevice::open(Arc::new(loaded), &CpuOptions::default()).map(drop));
        match opened {
            Err(Error::Unsupported(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let spec = || Spec::new(Encoding::Q4_1);
    let text = refused(Spec {
        manifest: |m| m.features = vec!["flying".into()],
        ..spec()
    });
    assert!(text.contains("flying"), "{text}");
    let text = refused(Spec {
        manifest: |m| m.kernel_abi += 1,
        ..spec()
    });
    let newer = format!("kernel ABI {}", kernels::abi::VERSION + 1);
    assert!(text.contains(&newer), "{text}");
    let text = refused(Spec {
        plan: |p| p.launches[0].variants[1].parts[0].micro = Some(0xabcd),
        ..spec()
    });
    assert!(
        text.contains("launch embed") && text.contains("0xabcd"),
        "{text}"
    );
}

#[test]
fn a_launch_without_its_own_code_is_a_bug() {
    type Change = fn(&mut bundle_format::plan::Plan);
    let missing: [(Change, &str); 5] = [
        (
            |p| p.launches[2].variants[0].parts[0].code = None,
            "launch blk.0.norm: a part has no code",
        ),
        (
            |p| p.launches[3].variants[0].parts[1].micro = None,
            "launch blk.0.qkv: a part has no microkernel",
        ),
        (
            |p| {
                p.launches[3].variants[0].parts[1].micro = Some(kernels::abi::id::ROPE_TABLE);
            },
            "launch blk.0.qkv: its microkernel is a RopeTable",
        ),
        (
            |p| {
                p.launches[3].variants[0].parts[1].micro = Some(kernels::abi::id::MATMUL_Q8_0);
            },
            "launch blk.0.qkv: its microkernel matmul_q8_0 does not fit weight",
        ),
        (
            |p| {
                p.launches[0].variants[0].parts[0].micro = Some(kernels::abi::id::EMBED_F32);
            },
            "launch embed: its microkernel embed_f32 does not fit weight",
        ),
    ];
    // The same encoding, but not as it lies.
    let of_floats: [(Change, &str); 2] = [
        (
            |p| p.launches[3].variants[0].parts[1].micro = Some(kernels::abi::id::MATMUL_F16),
            "launch blk.0.qkv: its microkernel matmul_f16 does not fit weight",
        ),
        (
            |p| p.launches[0].variants[0].parts[0].micro = Some(kernels::abi::id::EMBED_F16),
            "launch embed: its microkernel embed_f16 does not fit weight",
        ),
    ];
    let of_pairs: Change = |p| {
        assert_eq!(p.weights[0].layout, WeightLayout::Interleave8);
        p.launches[0].variants[0].parts[0].micro = Some(kernels::abi::id::EMBED_PAIRS);
    };
    let of_pairs = (of_pairs, "expected embed_f16 on Interleave8");
    let specs = |encoding, rows| {
        move |(plan, what)| {
            let spec = Spec {
                plan,
                rows,
                ..Spec::new(encoding)
            };
            (spec, what)
        }
    };
    let specs = missing
        .map(specs(Encoding::Q4_1, DType::Q8))
        .into_iter()
        .chain(of_floats.map(specs(Encoding::F16, DType::Q14)))
        .chain([of_pairs].map(specs(Encoding::F16, DType::F32)));
    for (spec, what) in specs {
        let bundle = Bundle::new(&spec);
        match CpuDevice::open(bundle.load(), &CpuOptions::default()).map(drop) {
            Err(Error::Bug(text)) => assert!(text.contains(what), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_damaged_file_is_named() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    let whole = std::fs::read(bundle.path()).unwrap();
    for len in [0, 100, 2000, whole.len() - 1] {
        std::fs::write(bundle.path(), &whole[..len]).unwrap();
        match Loaded::open(&bundle.path()) {
            Err(Error::User(text)) => assert!(text.contains("tiny.fib"), "{text}"),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn impossible_options_are_refused() {
    let bundle = Bundle::new(&Spec::new(Encoding::Q4_1));
    for options in [
        CpuOptions {
            threads: Some(0),
            ..CpuOptions::default()
        },
        CpuOptions {
            kv_bytes: Some(100),
            ..CpuOptions::default()
        },
    ] {
        let opened = CpuDevice::open(bundle.load(), &options).map(drop);
        assert!(matches!(opened, Err(Error::User(_))), "{options:?}");
    }
    let options = CpuOptions {
        kv_bytes: Some(1 << 20),
        ..CpuOptions::default()
    };
    let device = CpuDevice::open(bundle.load(), &options).unwrap();
    // A block: 2 layers of keys and values of 3 heads, 32 dimensions, 16 positions, in f16.
    assert_eq!(device.kv_blocks(), [(1 << 20) / (2 * 2 * 3 * 32 * 16 * 2)]);
}
