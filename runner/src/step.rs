//! Puts a step together from the next tokens of several sequences.

use std::sync::Arc;

use bundle_format::plan::KV_BLOCK;

use crate::device::{Step, StepKv, TokenSource, Want};
use crate::kv::{BlockTable, Copies, GroupPool, blocks_for};

/// A step in the making. It keeps the promises of [`Step`] about order, slots and tables; that the step is within the
/// plan's limits is up to the caller.
#[derive(Debug)]
pub struct StepBuilder {
    step: Step,
    /// By KV group.
    groups: Vec<GroupPool>,
    sequences: u32,
}

impl StepBuilder {
    /// An empty step for a plan with `kv_groups` KV groups, whose blocks have the same numbers.
    pub fn new(kv_groups: usize) -> StepBuilder {
        StepBuilder::of(&vec![GroupPool::Whole; kv_groups])
    }

    /// An empty step for the KV groups of a [`KvCache`](crate::kv::KvCache::groups).
    pub fn of(groups: &[GroupPool]) -> StepBuilder {
        StepBuilder {
            step: Step {
                kv: vec![StepKv::default(); groups.len()],
                ..Step::default()
            },
            groups: groups.to_vec(),
            sequences: 0,
        }
    }

    /// Appends consecutive tokens of one more sequence, the first at `position`. `table` has room for them. Gives the token
    /// row after the last.
    pub fn push(
        &mut self,
        tokens: impl IntoIterator<Item = TokenSource>,
        position: u32,
        table: &BlockTable,
    ) -> u32 {
        let first = self.step.tokens.len();
        self.step.tokens.extend(tokens);
        let count = (self.step.tokens.len() - first) as u32;
        let end = position + count;
        self.step.positions.extend(position..end);
        let index = self.sequences;
        self.step
            .sequences
            .extend(std::iter::repeat_n(index, count as usize));
        let block_size = KV_BLOCK as u32;
        // Groups of one pool share a table.
        let mut tables: Vec<(GroupPool, Arc<[u32]>)> = Vec::new();
        for (kv, &pool) in self.step.kv.iter_mut().zip(&self.groups) {
            let numbers = match tables.iter().find(|(of, _)| *of == pool) {
                Some((_, numbers)) => numbers.clone(),
                None => {
                    let numbers: Arc<[u32]> = table.numbers(pool, blocks_for(end) as usize).into();
                    tables.push((pool, numbers.clone()));
                    numbers
                }
            };
            let slot = |p: u32| numbers[(p / block_size) as usize] * block_size + p % block_size;
            kv.slots.extend((position..end).map(slot));
            kv.tables.push(numbers);
        }
        self.sequences += 1;
        first as u32 + count
    }

    /// Has a block copied before the step, in every group.
    pub fn copy(&mut self, copies: &Copies) {
        for (kv, &pool) in self.step.kv.iter_mut().zip(&self.groups) {
            kv.copies.push(copies.of(pool));
        }
    }

    /// Asks for results of a token row, above all rows that were asked for before. Gives the row of the outcome.
    pub fn want(&mut self, row: u32, want: Want) -> u32 {
        self.step.rows.push(row);
        self.step.wants.push(want);
        self.step.rows.len() as u32 - 1
    }

    pub fn finish(self) -> Step {
        self.step
    }
}
