//! Each launch of a step by itself, against what it means: given what the GPU gave it, the reference device leaves the same.

use std::collections::BTreeMap;

use bundle_format::plan::{DType, KV_BLOCK, KvDType, Op, Plan};
use fastrun::device::alone::Contents;
use fastrun::device::{Device, TokenSource, Want};

use super::model::{Dice, Model};
use super::products::{tolerance, worst};

/// What the largest of many differences may be, over the size of what it is in (the root of the mean square of a row), besides the
/// rounding of an f16.
fn allowed(plan: &Plan, op: &Op, dtype: Option<DType>) -> f32 {
    let stored = match dtype {
        // Of a cache: half a 127th of the largest of 32 numbers.
        None if plan.kv.iter().any(|kv| kv.dtype == KvDType::Q8Rows) => 2e-2,
        _ => 0.0,
    };
    let encoded = |weight: u32| tolerance(plan.weights[weight as usize].encoding);
    let computed = match op {
        Op::Embed { table, .. } => encoded(*table),
        // Sines and cosines have an error of their own.
        Op::RopeTable { .. } => 1e-3,
        Op::Region { .. } => 1e-5,
        // A gate multiplies two of them; what is normed first is rounded once more.
        Op::MatMul { segments, .. } | Op::ExpertMatMul { segments, .. } => {
            let all = segments.iter().map(|s| 2.0 * encoded(s.weight));
            let normed = matches!(
                op,
                Op::MatMul {
                    prologue: Some(_),
                    ..
                }
            );
            let roundings: f32 = if normed { 2.0 } else { 1.0 };
            all.fold(0.0, f32::max) * roundings.sqrt()
        }
        // Queries and weights of positions are f16.
        Op::Attention { .. } => 4e-3,
        Op::Route { .. } => 1e-5,
    };
    stored + computed
}

/// A name for what an op is.
fn kind(op: &Op) -> &'static str {
    match op {
        Op::Embed { .. } => "embed",
        Op::RopeTable { .. } => "rope table",
        Op::Region { .. } => "region",
        Op::MatMul { .. } => "product",
        Op::Attention { .. } => "attention",
        Op::Route { .. } => "route",
        Op::ExpertMatMul { .. } => "product of experts",
    }
}

/// Runs steps whose sequences have these numbers of tokens, and compares what each launch leaves.
///
/// # Panics
/// They differ by more than rounding does.
pub fn launches_are_the_references<const N: usize>(model: &Model, steps: &[[u32; N]]) {
    launches_of(model, steps, model.vocab());
}

/// Likewise, with tokens whose ids are below `ids`.
pub fn launches_of<const N: usize>(model: &Model, steps: &[[u32; N]], ids: u32) {
    let loaded = model.loaded.clone();
    let plan = loaded.plan();
    let mut gpu = model.run();
    let blocks = gpu.device.kv_blocks().iter().copied().max();
    let mut reference = model.reference(blocks.expect("the model has keys and values"));
    let want = Want {
        logits: true,
        ..Want::default()
    };
    let mut dice = Dice(0);
    let mut most: BTreeMap<&str, f32> = BTreeMap::new();
    for (i, counts) in steps.iter().enumerate() {
        let mut draw = |&n: &u32| (0..n).map(|_| TokenSource::Id(dice.below(ids))).collect();
        let tokens: Vec<Vec<TokenSource>> = counts.iter().map(&mut draw).collect();
        let step = gpu.step(&tokens, &vec![vec![want.clone()]; N]);
        let mut launches = Vec::new();
        let ticket = gpu
            .device
            .submit_alone(step.clone(), &mut |range, before, after| {
                launches.push((range, before, after));
            })
            .unwrap();
        gpu.wait(ticket);
        let seen: Vec<usize> = launches.iter().flat_map(|l| l.0.clone()).collect();
        assert!(seen.into_iter().eq(0..plan.launches.len()), "all, in order");
        for (range, mut given, after) in launches {
            // One after the other, each given what those before it have left.
            let mut expected = Contents::default();
            for index in range.clone() {
                let left = reference.device.launch_alone(&step, index, &given).unwrap();
                given.add(left.clone());
                expected.add(left);
            }
            // What is handed on inside of a kernel is in no buffer.
            expected.floats.retain(|b, _| after.floats.contains_key(b));
            let of_range = &plan.launches[range];
            let slots = |group: u32| &step.kv[group as usize].slots[..];
            let kinds: Vec<&str> = of_range.iter().map(|l| kind(&l.op)).collect();
            let name = &of_range[0].name;
            let what = format!("step {i}, launch {name} ({})", kinds.join(" and "));
            for (dtype, off) in differences(plan, &after, &expected, slots, &what) {
                let limits = of_range.iter().map(|l| allowed(plan, &l.op, dtype));
                let limit = limits.sum::<f32>();
                assert!(off <= limit, "{what}: {off}, expected up to {limit}");
                let known = most.entry(kinds[0]).or_default();
                *known = known.max(off);
            }
        }
    }
    println!("{}: {most:?}", loaded.manifest().model.name);
}

/// The largest differences in each buffer, with its type, and in each pool, over the size of the row that they are in.
fn differences<'s>(
    plan: &Plan,
    found: &Contents,
    expected: &Contents,
    slots: impl Fn(u32) -> &'s [u32],
    what: &str,
) -> Vec<(Option<DType>, f32)> {
    let mut all = Vec::new();
    assert_eq!(found.indices, expected.indices, "{what}");
    for (&index, expected) in &expected.floats {
        let buffer = &plan.buffers[index as usize];
        let what = format!("{what}, {}", buffer.name);
        let rounded = if buffer.dtype == DType::F16 {
            HALF
        } else {
            0.0
        };
        let (found, cols) = (&found.floats[&index], buffer.cols as usize);
        let off = rows(found, expected, cols, rounded, &what);
        all.push((Some(buffer.dtype), off));
    }
    for (pool, expected) in &expected.pools {
        let kv = &plan.kv[pool.group as usize];
        let dims = (kv.kv_heads * kv.head_dim) as usize;
        let of_step = |contents: &BTreeMap<u32, Vec<f32>>| -> Vec<f32> {
            let slot = |&slot: &u32| {
                let (block, position) = (slot / KV_BLOCK as u32, slot as usize % KV_BLOCK);
                contents[&block][position * dims..][..dims].to_vec()
            };
            slots(pool.group).iter().flat_map(slot).collect()
        };
        let found = of_step(&found.pools[pool]);
        let off = rows(&found, &of_step(expected), kv.head_dim as usize, HALF, what);
        all.push((None, off));
    }
    assert!(
        !all.is_empty() || !expected.indices.is_empty(),
        "{what} leaves nothing"
    );
    all
}

/// What an f16 is off by, of its size.
const HALF: f32 = 1.0 / 2048.0;

/// The largest difference of rows beyond the share of a number that it is `rounded` by, over the expected row's size. Columns of
/// which the reference leaves nothing are another launch's.
fn rows(found: &[f32], expected: &[f32], cols: usize, rounded: f32, what: &str) -> f32 {
    assert_eq!(found.len(), expected.len(), "{what}");
    let count = expected.len() / cols;
    let of_column = |col: usize| (0..count).filter(move |row| expected[row * cols + col].is_nan());
    let left: Vec<usize> = (0..cols)
        .filter(|&col| match of_column(col).count() {
            0 => true,
            nans => {
                assert_eq!(
                    nans, count,
                    "{what}: some rows of column {col} are no numbers"
                );
                false
            }
        })
        .collect();
    assert!(!left.is_empty(), "{what}: nothing is left");
    worst((0..count).map(|row| {
        let pairs = left.iter().map(|&col| {
            let at = row * cols + col;
            (found[at], expected[at])
        });
        let square: f32 = pairs.clone().map(|(_, e)| e * e).sum();
        let size = (square / left.len() as f32).sqrt();
        let off = pairs.map(|(f, e)| (f - e).abs() - e.abs() * rounded);
        worst(off) / size.max(f32::MIN_POSITIVE)
    }))
}
