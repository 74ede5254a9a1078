//! Checks a step before a device runs it: every device trusts what passes.

use bundle_format::plan::{KV_BLOCK, Limits};

use super::{Step, StepKv};
use crate::{Error, sampler};

/// What a device can take.
pub struct Bounds<'a> {
    pub limits: &'a Limits,
    /// Blocks of each KV group.
    pub kv_blocks: &'a [u32],
    /// Tokens of the vocabulary.
    pub vocab: u32,
}

/// Checks everything about a step but where its token ids come from.
///
/// # Errors
/// [`Error::User`] that says which field, at which index, is wrong and how.
pub fn check(step: &Step, bounds: &Bounds<'_>) -> Result<(), Error> {
    sizes(step, bounds)
        .and_then(|()| positions(step, bounds.limits))
        .and_then(|()| {
            let groups = step.kv.iter().zip(bounds.kv_blocks);
            groups.enumerate().try_for_each(|(group, (kv, &blocks))| {
                copies(group, kv, blocks)?;
                cache(step, group, kv, blocks)
            })
        })
        .and_then(|()| results(step, bounds.vocab))
        .map_err(|text| Error::User(format!("invalid step: {text}")))
}

/// The number of sequences: one more than the largest index, which [`positions`] has checked.
pub fn sequences(step: &Step) -> usize {
    step.sequences.last().map_or(0, |&last| last as usize + 1)
}

fn sizes(step: &Step, bounds: &Bounds<'_>) -> Result<(), String> {
    let Limits {
        max_tokens,
        max_rows,
        ..
    } = *bounds.limits;
    let tokens = step.tokens.len();
    if tokens == 0 || tokens > max_tokens as usize {
        return Err(format!("{tokens} tokens, expected 1 to {max_tokens}"));
    }
    for (what, found) in [
        ("positions", step.positions.len()),
        ("sequences", step.sequences.len()),
    ] {
        if found != tokens {
            return Err(format!(
                "{found} {what}, expected one for each of {tokens} tokens"
            ));
        }
    }
    let rows = step.rows.len();
    if rows > max_rows as usize {
        return Err(format!("{rows} rows, expected at most {max_rows}"));
    }
    if step.wants.len() != rows {
        return Err(format!(
            "{} wants, expected one for each of {rows} rows",
            step.wants.len()
        ));
    }
    if step.kv.len() != bounds.kv_blocks.len() {
        return Err(format!(
            "{} KV groups, expected {}",
            step.kv.len(),
            bounds.kv_blocks.len()
        ));
    }
    Ok(())
}

/// Sequences are 0, 1, 2, … in order, each with consecutive positions inside the context.
fn positions(step: &Step, limits: &Limits) -> Result<(), String> {
    let mut before: Option<(u32, u32)> = None;
    for (i, (&sequence, &position)) in step.sequences.iter().zip(&step.positions).enumerate() {
        if position >= limits.context {
            return Err(format!(
                "token {i} is at position {position}, expected below the context of {}",
                limits.context
            ));
        }
        let next = before.map_or(0, |(s, _)| s + 1);
        match before {
            Some((s, p)) if s == sequence => {
                if position != p + 1 {
                    return Err(format!(
                        "token {i} of sequence {s} is at position {position}, expected {} behind token {}",
                        p + 1,
                        i - 1
                    ));
                }
            }
            _ if sequence == next => {}
            _ => {
                return Err(format!(
                    "token {i} is of sequence {sequence}, expected {}{next}: sequences follow one another from 0",
                    before.map_or(String::new(), |(s, _)| format!("{s} or "))
                ));
            }
        }
        before = Some((sequence, position));
    }
    let sequences = sequences(step);
    if sequences > limits.max_seqs as usize {
        return Err(format!(
            "{sequences} sequences, expected at most {}",
            limits.max_seqs
        ));
    }
    Ok(())
}

/// Copies are from one block of the pool to another.
fn copies(group: usize, kv: &StepKv, blocks: u32) -> Result<(), String> {
    for (i, copy) in kv.copies.iter().enumerate() {
        for (what, block) in [("from", copy.from), ("to", copy.to)] {
            if block >= blocks {
                return Err(format!(
                    "copy {i} in KV group {group} is {what} block {block}, expected below {blocks}"
                ));
            }
        }
        if copy.from == copy.to {
            return Err(format!(
                "copy {i} in KV group {group} is from block {} to itself",
                copy.from
            ));
        }
    }
    Ok(())
}

/// Tables name blocks of the pool and reach each token; slots lie where the tables say.
fn cache(step: &Step, group: usize, kv: &StepKv, blocks: u32) -> Result<(), String> {
    let (tokens, sequences) = (step.tokens.len(), sequences(step));
    if kv.slots.len() != tokens {
        return Err(format!(
            "{} slots in KV group {group}, expected one for each of {tokens} tokens",
            kv.slots.len()
        ));
    }
    if kv.tables.len() != sequences {
        return Err(format!(
            "{} block tables in KV group {group}, expected one for each of {sequences} sequences",
            kv.tables.len()
        ));
    }
    for (s, table) in kv.tables.iter().enumerate() {
        if let Some(i) = table.iter().position(|&block| block >= blocks) {
            return Err(format!(
                "entry {i} of sequence {s}'s table in KV group {group} is block {}, expected below {blocks}",
                table[i]
            ));
        }
    }
    for (i, &slot) in kv.slots.iter().enumerate() {
        let (sequence, position) = (step.sequences[i] as usize, step.positions[i] as usize);
        let table = &kv.tables[sequence];
        let Some(&block) = table.get(position / KV_BLOCK) else {
            return Err(format!(
                "token {i} is at position {position}, but sequence {sequence}'s table in KV group {group} has {} blocks \
                 of {KV_BLOCK}",
                table.len()
            ));
        };
        // Pools have few enough blocks for slots to be u32; see `Bounds`.
        let expected = block as u64 * KV_BLOCK as u64 + (position % KV_BLOCK) as u64;
        if slot as u64 != expected {
            return Err(format!(
                "slot {slot} of token {i} in KV group {group}, expected {expected} by its sequence's table"
            ));
        }
    }
    Ok(())
}

fn results(step: &Step, vocab: u32) -> Result<(), String> {
    for (i, &row) in step.rows.iter().enumerate() {
        if row as usize >= step.tokens.len() {
            return Err(format!(
                "row {i} is token {row}, expected below {}",
                step.tokens.len()
            ));
        }
        if i > 0 && row <= step.rows[i - 1] {
            return Err(format!(
                "row {i} is token {row}, expected above {} of the row before",
                step.rows[i - 1]
            ));
        }
    }
    for (i, want) in step.wants.iter().enumerate() {
        if let Some(token) = want.score.filter(|&token| token >= vocab) {
            return Err(format!(
                "row {i} scores token {token}, expected below {vocab}"
            ));
        }
        if let Some(params) = &want.sample {
            sampler::check(params)
                .and_then(|()| sampler::check_bias(&want.bias, vocab))
                .map_err(|e| format!("sampling of row {i}: {e}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BlockCopy, SampleParams, TokenSource, Want};

    const LIMITS: Limits = Limits {
        max_tokens: 8,
        max_seqs: 2,
        max_rows: 2,
        context: 40,
    };

    /// Two tokens at 15 and 16 of sequence 0, one at 0 of sequence 1.
    fn valid() -> Step {
        Step {
            tokens: vec![TokenSource::Id(1); 3],
            positions: vec![15, 16, 0],
            sequences: vec![0, 0, 1],
            kv: vec![StepKv {
                slots: vec![5 * 16 + 15, 2 * 16, 9 * 16],
                tables: vec![[5, 2].into(), [9].into()],
                copies: Vec::new(),
            }],
            rows: vec![1, 2],
            wants: vec![Want::default(); 2],
        }
    }

    fn refused(change: impl FnOnce(&mut Step)) -> String {
        let mut step = valid();
        change(&mut step);
        let bounds = Bounds {
            limits: &LIMITS,
            kv_blocks: &[10],
            vocab: 50,
        };
        match check(&step, &bounds) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_valid_step_passes() {
        let bounds = Bounds {
            limits: &LIMITS,
            kv_blocks: &[10],
            vocab: 50,
        };
        assert!(check(&valid(), &bounds).is_ok());
        assert_eq!(sequences(&valid()), 2);
    }

    #[test]
    fn each_fault_is_named() {
        let contains = |text: String, parts: &[&str]| {
            for part in parts {
                assert!(text.contains(part), "{text}");
            }
        };
        contains(refused(|s| *s = Step::default()), &["0 tokens", "1 to 8"]);
        contains(
            refused(|s| s.tokens = vec![TokenSource::Id(0); 9]),
            &["9 tokens"],
        );
        contains(
            refused(|s| s.positions.truncate(2)),
            &["2 positions", "3 tokens"],
        );
        contains(refused(|s| s.sequences.truncate(1)), &["1 sequences"]);
        contains(refused(|s| s.rows = vec![0, 1, 2]), &["3 rows", "most 2"]);
        contains(refused(|s| s.wants.truncate(1)), &["1 wants"]);
        contains(refused(|s| s.kv.clear()), &["0 KV groups, expected 1"]);
        contains(
            refused(|s| s.positions[1] = 40),
            &["token 1", "position 40", "context of 40"],
        );
        contains(
            refused(|s| s.positions[1] = 17),
            &["token 1 of sequence 0", "expected 16"],
        );
        contains(
            refused(|s| s.sequences = vec![1, 1, 1]),
            &["token 0 is of sequence 1", "expected 0"],
        );
        contains(
            refused(|s| s.sequences[2] = 3),
            &["token 2 is of sequence 3", "expected 0 or 1"],
        );
        contains(
            refused(|s| s.sequences = vec![0, 1, 2]),
            &["3 sequences", "at most 2"],
        );
        contains(refused(|s| s.kv[0].slots.truncate(1)), &["1 slots"]);
        contains(
            refused(|s| s.kv[0].tables.truncate(1)),
            &["1 block tables", "2 sequences"],
        );
        contains(
            refused(|s| s.kv[0].tables[1] = [10].into()),
            &["entry 0 of sequence 1", "block 10", "below 10"],
        );
        contains(
            refused(|s| s.kv[0].tables[0] = [5].into()),
            &["token 1", "position 16", "1 blocks"],
        );
        contains(
            refused(|s| s.kv[0].slots[1] += 1),
            &["slot 33 of token 1", "expected 32"],
        );
        let copy = |from, to| move |s: &mut Step| s.kv[0].copies = vec![BlockCopy { from, to }];
        contains(refused(copy(10, 1)), &["from block 10", "below 10"]);
        contains(refused(copy(1, 12)), &["to block 12", "below 10"]);
        contains(refused(copy(3, 3)), &["block 3 to itself"]);
        let bias = |id, x: f32| {
            move |s: &mut Step| {
                s.wants[0].sample = Some(SampleParams::default());
                s.wants[0].bias = [(id, x)].into();
            }
        };
        contains(refused(bias(50, 1.0)), &["row 0", "token 50", "below"]);
        contains(refused(bias(3, f32::NAN)), &["row 0", "NaN", "token 3"]);
        contains(refused(bias(3, f32::INFINITY)), &["inf", "token 3"]);
        contains(refused(|s| s.rows[1] = 3), &["row 1 is token 3"]);
        contains(refused(|s| s.rows = vec![2, 2]), &["row 1", "above 2"]);
        contains(
            refused(|s| {
                s.wants[1].sample = Some(SampleParams {
                    temperature: -1.0,
                    ..SampleParams::default()
                })
            }),
            &["row 1", "temperature"],
        );
    }
}
