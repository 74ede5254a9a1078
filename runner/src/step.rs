//! Puts a step together from the next tokens of several sequences.

use std::sync::Arc;

use bundle_format::plan::KV_BLOCK;

use crate::device::{BlockCopy, Step, StepKv, TokenSource, Want};
use crate::kv::{BlockTable, blocks_for};

/// A step in the making. It keeps the promises of [`Step`] about order, slots and tables; that the step is within the
/// plan's limits is up to the caller.
#[derive(Debug)]
pub struct StepBuilder {
    step: Step,
    sequences: u32,
}

impl StepBuilder {
    /// An empty step for a plan with `kv_groups` KV groups.
    pub fn new(kv_groups: usize) -> StepBuilder {
        StepBuilder {
            step: Step {
                kv: vec![StepKv::default(); kv_groups],
                ..Step::default()
            },
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
        let table: Arc<[u32]> = table.blocks()[..blocks_for(end) as usize].into();
        let block_size = KV_BLOCK as u32;
        let slot = |p: u32| table[(p / block_size) as usize] * block_size + p % block_size;
        for kv in &mut self.step.kv {
            kv.slots.extend((position..end).map(slot));
            kv.tables.push(table.clone());
        }
        self.sequences += 1;
        first as u32 + count
    }

    /// Has a block copied before the step.
    pub fn copy(&mut self, copy: BlockCopy) {
        self.step.kv.iter_mut().for_each(|kv| kv.copies.push(copy));
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
