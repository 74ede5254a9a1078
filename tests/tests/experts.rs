//! Mixtures of experts on the CPU, against the reference device and against themselves: by numbers of tokens, of threads, in
//! chunks; with routers that send every token to the same experts, and with ones that can't send a token anywhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fastrun::Error;
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

const SHAPES: [&str; 3] = ["tiny-qwen2moe", "tiny-qwen3moe", "tiny-mixtral"];

/// A random model of two layers.
fn model(folder: &Path, shape: &str, quant: &str) -> PathBuf {
    let path = folder.join(format!("{shape}-{quant}.gguf"));
    let mut command = Command::new(e2e::bin("fastc"));
    command
        .args(["synth", shape, "--quant", quant, "-o"])
        .arg(&path);
    e2e::succeed(command);
    path
}

fn compiled(model: &Path, options: &[&str]) -> Arc<Loaded> {
    let path = model.with_extension(format!("{}.fib", options.len()));
    e2e::compile(model, &path, options);
    Arc::new(Loaded::open(&path).unwrap())
}

fn cpu(loaded: &Arc<Loaded>, threads: usize) -> CpuDevice {
    let options = CpuOptions {
        threads: Some(threads),
        ..CpuOptions::default()
    };
    CpuDevice::open(loaded.clone(), &options).unwrap()
}

/// Tokens `from .. to` of a sequence of its own, the logits of every one wanted.
fn step(ids: &[u32], from: usize, to: usize) -> Step {
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

fn run(device: &mut dyn Device, step: Step) -> Result<Vec<Vec<f32>>, Error> {
    let ticket = device.submit(step)?;
    let outcome = device.poll(ticket)?.expect("both devices run at once");
    let rows = outcome.rows.into_iter();
    Ok(rows.map(|r| r.logits.expect("they were wanted")).collect())
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + i * 37 % 250).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

/// The largest difference of each row, as a part of the largest logit, ascending.
fn differences(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Vec<f32> {
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
fn agree(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    let rows = differences(found, expected);
    let usual = rows[(rows.len() - 1) * 7 / 8];
    assert!(usual < 0.004, "{what}: {rows:?}");
    assert!(rows[rows.len() - 1] < 0.5, "{what}: {rows:?}");
}

/// Numbers of tokens around the sizes of tiles, and the largest step.
const COUNTS: [usize; 9] = [1, 2, 3, 5, 17, 33, 64, 127, 512];

#[test]
fn every_number_of_tokens_agrees_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q4_0");
        let fused = compiled(&model, &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let mut device = cpu(&fused, 2);
        for count in COUNTS {
            let ids = ids(count);
            let found = run(&mut device, step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            agree(&found, &expected, &format!("{shape}, {count} tokens"));
        }
    }
}

#[test]
fn encodings_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for quant in [
        "f16", "bf16", "f32", "q8_0", "q4_1", "q5_0", "iq4_nl", "mxfp4",
    ] {
        let fused = compiled(&model(folder.path(), "tiny-qwen2moe", quant), &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let ids = ids(40);
        let found = run(&mut cpu(&fused, 2), step(&ids, 0, 40)).unwrap();
        let expected = run(&mut reference, step(&ids, 0, 40)).unwrap();
        agree(&found, &expected, quant);
    }
}

/// The same bits whatever the chunks, the threads and the form of the expert matmuls.
#[test]
fn chunks_threads_and_gathering_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q4_0");
        let fused = compiled(&model, &[]);
        let ids = ids(64);
        let whole = run(&mut cpu(&fused, 1), step(&ids, 0, 64)).unwrap();
        for threads in [2, 3, 5] {
            let found = run(&mut cpu(&fused, threads), step(&ids, 0, 64)).unwrap();
            assert!(bits(&found) == bits(&whole), "{shape}: {threads} threads");
        }
        for chunk in [1, 7, 40] {
            let mut device = cpu(&fused, 2);
            let mut found = Vec::new();
            for from in (0..64).step_by(chunk) {
                let to = (from + chunk).min(64);
                found.extend(run(&mut device, step(&ids, from, to)).unwrap());
            }
            assert!(bits(&found) == bits(&whole), "{shape}: chunks of {chunk}");
        }
        let gathered = compiled(&model, &["--disable-pass", "index-experts"]);
        let found = run(&mut cpu(&gathered, 2), step(&ids, 0, 64)).unwrap();
        assert!(bits(&found) == bits(&whole), "{shape}: gathered");
    }
}

/// Writes other router weights into a model.
fn with_router(model: &Path, name: &str, value: impl Fn(usize) -> f32) -> PathBuf {
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

/// Equal logits: every token goes to the first experts, and nobody to the others.
#[test]
fn ties_send_all_tokens_to_the_first_experts() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q8_0");
        let fused = compiled(&with_router(&model, "ties", |_| 0.0), &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let mut device = cpu(&fused, 2);
        for count in [1, 2, 70, 512] {
            let ids = ids(count);
            let before = device.expert_bytes();
            let found = run(&mut device, step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            // Nothing lies close: all is equal.
            let rows = differences(&found, &expected);
            let worst = rows[rows.len() - 1];
            assert!(worst < 0.004, "{shape}, {count} tokens: {worst}");
            // However many tokens, only these experts' weights are read.
            let read = device.expert_bytes() - before;
            assert_eq!(read, bytes_of_experts(&fused), "{shape}, {count} tokens");
        }
    }
}

/// Bytes of as many experts as a token goes to, in all launches.
fn bytes_of_experts(loaded: &Loaded) -> u64 {
    use bundle_format::plan::{Dim, Op};
    let plan = loaded.plan();
    let of = |op: &Op| match op {
        Op::ExpertMatMul {
            tokens,
            starts,
            segments,
            ..
        } => {
            let Dim::Pairs(used) = plan.buffers[*tokens as usize].extent else {
                panic!("the list is of pairs");
            };
            let experts = plan.buffers[*starts as usize].cols as u64 - 1;
            let len = |s: &bundle_format::plan::Segment| plan.weights[s.weight as usize].len;
            segments.iter().map(len).sum::<u64>() / experts * used as u64
        }
        _ => 0,
    };
    plan.launches.iter().map(|l| of(&l.op)).sum()
}

/// A router whose logits are no numbers is an error of the step that says where; it doesn't hang, and the device goes on.
#[test]
fn logits_that_are_not_finite_are_an_error_of_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "tiny-qwen3moe", "q4_0");
    for (name, value) in [("nan", f32::NAN), ("inf", f32::INFINITY), ("large", 3e38)] {
        let broken = compiled(
            &with_router(&model, name, |i| if i == 200 { value } else { 0.01 }),
            &[],
        );
        let reference = ReferenceDevice::open(broken.clone(), &ReferenceOptions::default());
        let mut devices: [Box<dyn Device>; 3] = [
            Box::new(cpu(&broken, 1)),
            Box::new(cpu(&broken, 3)),
            Box::new(reference.unwrap()),
        ];
        for device in &mut devices {
            for count in [1, 40] {
                let error = run(device.as_mut(), step(&ids(count), 0, count));
                // 3e38 overflows for some tokens only.
                let text = match error {
                    Err(error @ Error::User(_)) => error.to_string(),
                    Err(other) => panic!("{name}: {other:?}"),
                    Ok(_) if name == "large" => continue,
                    Ok(_) => panic!("{name}: {count} tokens went somewhere"),
                };
                for says in ["blk.0.route", "token", "position", "finite"] {
                    assert!(text.contains(says), "{text}");
                }
            }
        }
    }
}
