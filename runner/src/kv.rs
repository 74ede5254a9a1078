//! Which KV blocks belong to whom: counting only, the bytes are the device's.
//!
//! A KV group of the plan has a pool of blocks, each of [`KV_BLOCK`] token positions over all layers of the group. A
//! sequence has a table of blocks in every group, and all its tables cover the same positions. A block may be in several
//! tables; it is free again when the last one lets go of it.
//!
//! A block that is shared is never written: [`KvCache::fork`] shares whole blocks alone, so that the position at which a
//! fork goes on lies in a block of its own. That is what reuse of prefixes needs, and nothing has to be copied.

use std::collections::VecDeque;

use bundle_format::plan::KV_BLOCK;

/// Blocks that `positions` token positions take.
pub fn blocks_for(positions: u32) -> u32 {
    positions.div_ceil(KV_BLOCK as u32)
}

/// The blocks of one KV group.
#[derive(Debug)]
struct BlockPool {
    /// Tables that hold each block; 0: the block is free.
    holders: Vec<u32>,
    /// Free blocks. The one that has been free for longest is taken first, so that what a block held lives as long as
    /// possible for those who find it by its content.
    free: VecDeque<u32>,
}

impl BlockPool {
    fn new(blocks: u32) -> BlockPool {
        BlockPool {
            holders: vec![0; blocks as usize],
            free: (0..blocks).collect(),
        }
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop_front()?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    fn share(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "KV block {block} is shared while it is free");
        *holders += 1;
    }

    fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "KV block {block} is released twice");
        *holders -= 1;
        if *holders == 0 {
            self.free.push_back(block);
        }
    }
}

/// The blocks of one sequence, a table for each KV group. It must be given back with [`KvCache::release`]; dropping it
/// leaks its blocks.
#[derive(Debug, Default)]
pub struct BlockTables {
    groups: Vec<Vec<u32>>,
    /// Blocks in each table.
    blocks: u32,
}

impl BlockTables {
    /// Positions that the tables have room for.
    pub fn capacity(&self) -> u32 {
        self.blocks * KV_BLOCK as u32
    }

    /// The block numbers of each KV group, from position 0; empty before the first [`KvCache::grow`].
    pub fn groups(&self) -> &[Vec<u32>] {
        &self.groups
    }
}

/// The pools of all KV groups.
#[derive(Debug)]
pub struct KvCache {
    pools: Vec<BlockPool>,
}

impl KvCache {
    /// All blocks free; `blocks` has their number in each KV group, as `Device::kv_blocks` tells it.
    pub fn new(blocks: &[u32]) -> KvCache {
        KvCache {
            pools: blocks.iter().map(|&n| BlockPool::new(n)).collect(),
        }
    }

    /// Blocks that every group still has. A model without KV groups never runs out.
    pub fn free_blocks(&self) -> u32 {
        self.smallest(|pool| pool.free.len())
    }

    /// Blocks that every group has at all.
    pub fn total_blocks(&self) -> u32 {
        self.smallest(|pool| pool.holders.len())
    }

    fn smallest(&self, count: impl Fn(&BlockPool) -> usize) -> u32 {
        // A pool has at most u32::MAX blocks: its size came as u32.
        self.pools
            .iter()
            .map(count)
            .min()
            .map_or(u32::MAX, |n| n as u32)
    }

    /// Gives `tables` room for `positions` positions. False, and nothing changed, where a group has too few free blocks.
    #[must_use]
    pub fn grow(&mut self, tables: &mut BlockTables, positions: u32) -> bool {
        let missing = blocks_for(positions).saturating_sub(tables.blocks);
        if missing > self.free_blocks() {
            return false;
        }
        tables.groups.resize_with(self.pools.len(), Vec::new);
        for (pool, table) in self.pools.iter_mut().zip(&mut tables.groups) {
            table.extend((0..missing).map_while(|_| pool.allocate()));
        }
        tables.blocks += missing;
        true
    }

    /// Tables that share the whole blocks of the first `positions` positions of `tables`. The caller computes the positions
    /// of the last, partial block anew.
    pub fn fork(&mut self, tables: &BlockTables, positions: u32) -> BlockTables {
        let blocks = (positions / KV_BLOCK as u32).min(tables.blocks);
        let shared = |(pool, table): (&mut BlockPool, &Vec<u32>)| {
            let table = &table[..blocks as usize];
            table.iter().for_each(|&block| pool.share(block));
            table.to_vec()
        };
        BlockTables {
            groups: self
                .pools
                .iter_mut()
                .zip(&tables.groups)
                .map(shared)
                .collect(),
            blocks,
        }
    }

    /// Lets go of all blocks of `tables`, and leaves them empty.
    pub fn release(&mut self, tables: &mut BlockTables) {
        let tables = std::mem::take(tables);
        for (pool, table) in self.pools.iter_mut().zip(&tables.groups) {
            // From the end, so that the start of a sequence, which others are likeliest to share, is reused last.
            table.iter().rev().for_each(|&block| pool.release(block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(kv: &mut KvCache, positions: u32) -> BlockTables {
        let mut tables = BlockTables::default();
        assert!(kv.grow(&mut tables, positions));
        tables
    }

    #[test]
    fn growing_takes_whole_blocks_from_every_group() {
        let mut kv = KvCache::new(&[4, 6]);
        let mut tables = grown(&mut kv, 17);
        assert_eq!(tables.groups(), [vec![0, 1], vec![0, 1]]);
        assert_eq!((tables.capacity(), kv.free_blocks()), (32, 2));
        assert!(kv.grow(&mut tables, 32), "no block is missing");
        assert_eq!(kv.free_blocks(), 2);
        kv.release(&mut tables);
        assert_eq!((tables.capacity(), kv.free_blocks()), (0, 4));
    }

    #[test]
    fn growing_is_all_or_nothing() {
        let mut kv = KvCache::new(&[8, 2]);
        let mut tables = grown(&mut kv, 1);
        assert!(!kv.grow(&mut tables, 33));
        assert_eq!(tables.groups(), [vec![0], vec![0]]);
        assert_eq!(kv.free_blocks(), 1);
    }

    #[test]
    fn a_fork_shares_whole_blocks_alone() {
        let mut kv = KvCache::new(&[4]);
        let mut first = grown(&mut kv, 40);
        let mut fork = kv.fork(&first, 40);
        assert_eq!(fork.groups(), [vec![0, 1]]);
        assert!(kv.grow(&mut fork, 40));
        assert_eq!(fork.groups(), [vec![0, 1, 3]]);
        kv.release(&mut first);
        assert_eq!(kv.free_blocks(), 1, "the fork holds the shared blocks");
        kv.release(&mut fork);
        assert_eq!(kv.free_blocks(), 4);
    }

    #[test]
    fn the_block_that_was_free_for_longest_is_taken_first() {
        let mut kv = KvCache::new(&[3]);
        let mut tables = grown(&mut kv, 16);
        kv.release(&mut tables);
        assert_eq!(grown(&mut kv, 48).groups(), [vec![1, 2, 0]]);
    }

    #[test]
    fn a_model_without_kv_groups_never_runs_out() {
        let mut kv = KvCache::new(&[]);
        assert_eq!(grown(&mut kv, 1_000_000).groups().len(), 0);
    }
}
