//! Small random models of every architecture, and the logits that an independent implementation has for them.

use std::sync::Arc;

use fastrun::device::{Device, Step, StepKv, TokenSource, Want};

use crate::golden;

/// What transformers computed: token ids, and the logits of each position.
pub struct Expected {
    pub ids: Vec<u32>,
    pub logits: Vec<Vec<f32>>,
}

/// What it computed for the model of a name.
///
/// # Panics
/// There is no such file, or it is cut.
pub fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(golden(&format!("architectures/{name}.logits"))).unwrap();
    let words: Vec<[u8; 4]> = bytes.as_chunks::<4>().0.to_vec();
    let (tokens, vocab) = (
        u32::from_le_bytes(words[0]) as usize,
        u32::from_le_bytes(words[1]) as usize,
    );
    assert_eq!(words.len(), 2 + tokens + tokens * vocab);
    let ids = words[2..2 + tokens]
        .iter()
        .map(|w| u32::from_le_bytes(*w))
        .collect();
    let floats: Vec<f32> = words[2 + tokens..]
        .iter()
        .map(|w| f32::from_le_bytes(*w))
        .collect();
    Expected {
        ids,
        logits: floats.chunks(vocab).map(<[f32]>::to_vec).collect(),
    }
}

/// Logits of every position, run in chunks of these sizes, over `groups` KV groups.
///
/// # Panics
/// The device fails.
pub fn run(device: &mut dyn Device, ids: &[u32], chunks: &[usize], groups: usize) -> Vec<Vec<f32>> {
    let table: Arc<[u32]> = (0..ids.len().div_ceil(16) as u32).rev().collect();
    let mut logits = Vec::new();
    let mut end = 0;
    for chunk in chunks {
        let start = end;
        end += chunk;
        let slots: Vec<u32> = (start..end)
            .map(|p| table[p / 16] * 16 + p as u32 % 16)
            .collect();
        let step = Step {
            tokens: ids[start..end]
                .iter()
                .map(|&id| TokenSource::Id(id))
                .collect(),
            positions: (start as u32..end as u32).collect(),
            sequences: vec![0; end - start],
            kv: vec![
                StepKv {
                    slots,
                    tables: vec![table[..end.div_ceil(16)].into()],
                    ..StepKv::default()
                };
                groups
            ],
            rows: (0..(end - start) as u32).collect(),
            wants: vec![
                Want {
                    logits: true,
                    ..Want::default()
                };
                end - start
            ],
        };
        let ticket = device.submit(step).unwrap();
        let outcome = loop {
            if let Some(outcome) = device.poll(ticket).unwrap() {
                break outcome;
            }
        };
        logits.extend(outcome.rows.into_iter().map(|r| r.logits.unwrap()));
    }
    assert_eq!(end, ids.len(), "the chunks are all of it");
    logits
}

/// The largest difference; infinite where there is a NaN.
pub fn worst(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let off = pairs.map(|(a, b)| (a - b).abs());
    off.fold(0.0, |most, x| {
        if x.is_nan() {
            f32::INFINITY
        } else {
            x.max(most)
        }
    })
}
