//! Mixtures of experts: random models, steps of them, and what two devices may differ by.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fastrun::Error;
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

/// Shapes that `fastc synth` knows, of two layers.
pub const SHAPES: [&str; 3] = ["tiny-qwen2moe", "tiny-qwen3moe", "tiny-mixtral"];

/// A random model of two layers.
pub fn model(folder: &Path, shape: &str, quant: &str) -> PathBuf {
    let path = folder.join(format!("{shape}-{quant}.gguf"));
    let mut command = Command::new(crate::bin("fastc"));
    command
        .args(["synth", shape, "--quant", quant, "-o"])
        .arg(&path);
    crate::succeed(command);
    path
}

pub fn compiled(model: &Path, options: &[&str]) -> Arc<Loaded> {
    let path = model.with_extension(format!("{}.fib", options.len()));
    crate::compile(model, &path, options);
    Arc::new(Loaded::open(&path).unwrap())
}

/// Tokens `from .. to` of a sequence of its own, the logits of every one wanted.
pub fn step(ids: &[u32], from: usize, to: usize) -> Step {
    let table: Arc<[u32]> = (0..to.div_ceil(16) as u32).collect();
    let want = Want {
        logits: true,
        ..Want::default()
    };
    let kv = StepKv {
        slots: (from as u32..to as u32).collect(),
        tables: vec![table],
        ..StepKv::default()
    };
    // The last rows only, where there are more than a step gives.
    let first = (to - from).saturating_sub(64);
    Step {
        tokens: ids[from..to]
            .iter()
            .map(|&id| TokenSource::Id(id))
            .collect(),
        positions: (from as u32..to as u32).collect(),
        sequences: vec![0; to - from],
        kv: vec![kv],
        rows: (first as u32..(to - from) as u32).collect(),
        wants: vec![want; to - from - first],
    }
}

/// The CPU, with a number of threads.
pub fn cpu(loaded: &Arc<Loaded>, threads: usize) -> CpuDevice {
    let options = CpuOptions {
        threads: Some(threads),
        ..CpuOptions::default()
    };
    CpuDevice::open(loaded.clone(), &options).unwrap()
}

/// The logits of 64 tokens on the CPU, which are the same bits whatever the threads and the chunks.
pub fn by_threads_and_chunks(loaded: &Arc<Loaded>, what: &str) -> Vec<Vec<f32>> {
    let ids = ids(64);
    let whole = run(&mut cpu(loaded, 1), step(&ids, 0, 64)).unwrap();
    for threads in [2, 3, 5] {
        let found = run(&mut cpu(loaded, threads), step(&ids, 0, 64)).unwrap();
        assert!(bits(&found) == bits(&whole), "{what}: {threads} threads");
    }
    for chunk in [1, 7, 40] {
        let mut device = cpu(loaded, 2);
        let mut found = Vec::new();
        for from in (0..64).step_by(chunk) {
            let to = (from + chunk).min(64);
            found.extend(run(&mut device, step(&ids, from, to)).unwrap());
        }
        assert!(bits(&found) == bits(&whole), "{what}: chunks of {chunk}");
    }
    whole
}

/// The logits of a step's rows.
///
/// # Errors
/// The device's.
pub fn run(device: &mut dyn Device, step: Step) -> Result<Vec<Vec<f32>>, Error> {
    let ticket = device.submit(step)?;
    let outcome = loop {
        if let Some(outcome) = device.poll(ticket)? {
            break outcome;
        }
    };
    let rows = outcome.rows.into_iter();
    Ok(rows.map(|r| r.logits.expect("they were wanted")).collect())
}

pub fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + i * 37 % 250).collect()
}

pub fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

/// The largest difference of each row, as a part of the largest logit, ascending.
pub fn differences(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Vec<f32> {
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .flatten()
        .fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.1, "{largest}");
    let of_row = |(found, expected): (&Vec<f32>, &Vec<f32>)| {
        let pairs = found.iter().zip(expected);
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.iter().all(|x| x.is_finite()));
        worst / largest
    };
    let mut rows: Vec<f32> = found.iter().zip(expected).map(of_row).collect();
    rows.sort_by(f32::total_cmp);
    rows
}

/// Rows agree but for those of tokens whose experts lie so close that a rounding sends them elsewhere: one of eight at most,
/// and of other experts they are as likely made.
pub fn agree(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    agree_within(0.004, found, expected, what);
}

/// As [`agree`], with another tolerance.
pub fn agree_within(tolerance: f32, found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    let rows = differences(found, expected);
    let usual = rows[(rows.len() - 1) * 7 / 8];
    assert!(usual < tolerance, "{what}: {rows:?}");
    assert!(rows[rows.len() - 1] < 0.5, "{what}: {rows:?}");
}

/// Numbers of tokens around the sizes of tiles, and the largest step.
pub const COUNTS: [usize; 9] = [1, 2, 3, 5, 17, 33, 64, 127, 512];

/// Writes other router weights into a model.
pub fn with_router(model: &Path, name: &str, value: impl Fn(usize) -> f32) -> PathBuf {
    let mut bytes = std::fs::read(model).unwrap();
    let ranges: Vec<std::ops::Range<usize>> = {
        let gguf = fastc::gguf::Gguf::parse(&bytes).unwrap();
        let routers = gguf
            .tensors()
            .iter()
            .filter(|t| t.name.ends_with("ffn_gate_inp.weight"));
        let start = |data: &[u8]| data.as_ptr() as usize - bytes.as_ptr() as usize;
        routers
            .map(|t| gguf.data(t))
            .map(|data| start(data)..start(data) + data.len())
            .collect()
    };
    assert_eq!(ranges.len(), 2, "a router a layer");
    for range in ranges {
        for (i, element) in bytes[range].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *element = value(i).to_le_bytes();
        }
    }
    let path = model.with_extension(format!("{name}.gguf"));
    std::fs::write(&path, bytes).unwrap();
    path
}
