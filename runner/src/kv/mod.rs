//! Which KV blocks belong to whom: counting only, the bytes are the device's.
//!
//! A block is [`KV_BLOCK`] token positions in all layers of a KV group. The groups that see everything cover the same positions
//! of a sequence, so that one block number, used in each of them, stands for a block everywhere: a pool is as large as its
//! smallest group. A sequence has a table of blocks. A block may be in several tables; it is free again when the last one lets
//! go of it. Groups that see a [`window`] have numbers of their own, and their blocks are let go of when the window has passed.
//!
//! A block in several tables is full, and so is never written again. It is shared in two ways: a [fork](KvCache::fork), and a
//! block that is [found](KvCache::find) by the tokens that it holds. A free block keeps its content until it is reused, those
//! that were free for longest first.
//!
//! **Steps in flight.** A block may be freed while a submitted step still writes to it. That is harmless, as a device runs
//! steps in the order of submission: who gets the block next writes each position in a step of its own, submitted later,
//! before it reads it; and who finds a block by its content is only told of positions whose steps have ended, which no step
//! in flight writes.

mod free_list;
mod prefix;
mod share;
mod window;

use bundle_format::plan::KV_BLOCK;

use self::free_list::FreeList;
use self::prefix::Prefixes;
pub(crate) use self::prefix::{BlockKey, Prefix};
pub(crate) use self::share::{most_blocks, share_out};
use self::window::{WindowPool, WindowTable};
use crate::device::BlockCopy;

/// Blocks that `positions` token positions take.
pub fn blocks_for(positions: u32) -> u32 {
    positions.div_ceil(KV_BLOCK as u32)
}

/// The blocks of one sequence, from position 0. It must be given back with [`KvCache::release`]; dropping it leaks its blocks.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// Of the groups that see a window.
    windows: Vec<WindowTable>,
}

/// Whose blocks a KV group's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPool {
    /// One of those that see everything.
    Whole,
    /// The one of this number of those that see a window.
    Window(usize),
}

/// The copies of a fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    whole: BlockCopy,
    windows: Vec<BlockCopy>,
}

impl Copies {
    /// The copy in a group.
    pub fn of(&self, pool: GroupPool) -> BlockCopy {
        match pool {
            GroupPool::Whole => self.whole,
            GroupPool::Window(number) => self.windows[number],
        }
    }
}

impl BlockTable {
    /// Positions that the table has room for.
    pub fn capacity(&self) -> u32 {
        // Positions are u32, and so is their number in whole blocks, or nearly.
        (self.blocks.len() as u32).saturating_mul(KV_BLOCK as u32)
    }

    /// Positions up to which the groups that see a window have room, too.
    pub(crate) fn window_capacity(&self) -> u32 {
        let all = self.windows.iter().map(WindowTable::capacity);
        all.fold(self.capacity(), u32::min)
    }

    /// The block numbers, the same in every KV group that sees everything.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The numbers of the first `count` blocks in a group. Those that a window has passed are others' in their place.
    pub fn numbers(&self, pool: GroupPool, count: usize) -> Vec<u32> {
        match pool {
            GroupPool::Whole => self.blocks[..count].to_vec(),
            GroupPool::Window(number) => self.windows[number].numbers(count),
        }
    }
}

/// The pool of blocks.
#[derive(Debug)]
pub struct KvCache {
    /// By block: tables that hold it, and copies of it that are still to be made; 0: it is free.
    holders: Vec<u32>,
    free: FreeList,
    /// Free blocks that can be found by their content.
    cached: u32,
    prefixes: Prefixes,
    /// By KV group.
    groups: Vec<GroupPool>,
    windows: Vec<WindowPool>,
    /// There is no KV group: blocks are numbers without memory, as many as anyone wants.
    unbounded: bool,
}

impl KvCache {
    /// All blocks free; `blocks` has their number in each KV group, as `Device::kv_blocks` tells it, of which none sees a window.
    pub fn new(blocks: &[u32]) -> KvCache {
        KvCache::with_windows(blocks, &[])
    }

    /// As [`KvCache::new`], where groups may see windows, as `Device::kv_windows` tells it. Where all do, the first one is kept as
    /// if it saw everything: prefixes are found by its blocks.
    pub fn with_windows(blocks: &[u32], windows: &[Option<u32>]) -> KvCache {
        let windows = blocks
            .iter()
            .zip(windows.iter().copied().chain(std::iter::repeat(None)));
        let no_whole = windows.clone().all(|(_, window)| window.is_some());
        let windows = windows
            .enumerate()
            .map(|(group, (&blocks, window))| (blocks, window.filter(|_| group > 0 || !no_whole)));
        // A pool that doesn't hold all that a token may see, and its surroundings, is a limit like those of the others.
        let limits = |&(blocks, window): &(u32, Option<u32>)| {
            window.is_none_or(|window| blocks < blocks_for(window) + 2)
        };
        let limiting = windows.clone().filter(limits);
        let count = limiting.map(|(blocks, _)| blocks).min().unwrap_or(0);
        let (mut groups, mut pools) = (Vec::new(), Vec::new());
        for (blocks, window) in windows {
            groups.push(match window {
                None => GroupPool::Whole,
                Some(_) => GroupPool::Window(pools.len()),
            });
            pools.extend(window.map(|window| WindowPool::new(window, blocks, count)));
        }
        KvCache {
            groups,
            windows: pools,
            holders: vec![0; count as usize],
            free: FreeList::new(count),
            cached: 0,
            prefixes: Prefixes::new(count),
            unbounded: blocks.is_empty(),
        }
    }

    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> u32 {
        if self.unbounded {
            u32::MAX
        } else {
            self.free.len()
        }
    }

    /// Blocks that nobody holds and that can be found by their content.
    pub fn cached_blocks(&self) -> u32 {
        self.cached
    }

    pub fn total_blocks(&self) -> u32 {
        if self.unbounded {
            u32::MAX
        } else {
            self.holders.len() as u32
        }
    }

    /// Whose blocks each KV group's are.
    pub fn groups(&self) -> &[GroupPool] {
        &self.groups
    }

    /// Gives `table` room for the positions below `end` in the groups that see a window. False where there are too few free blocks.
    #[must_use]
    pub fn grow_windows(&mut self, table: &mut BlockTable, end: u32) -> bool {
        table
            .windows
            .resize_with(self.windows.len(), WindowTable::default);
        let mut pools = self.windows.iter_mut().zip(&mut table.windows);
        pools.all(|(pool, table)| pool.grow(table, end))
    }

    /// Lets go of the blocks that nothing sees any more, once everything below `position` is computed.
    pub fn slide(&mut self, table: &mut BlockTable, position: u32) {
        for (pool, table) in self.windows.iter_mut().zip(&mut table.windows) {
            pool.slide(table, position);
        }
    }

    /// Of blocks that were found by a prefix, how many a sequence can go on behind: what its windows would see is there.
    pub(crate) fn usable(&self, found: &[u32]) -> usize {
        let mut usable = found.len();
        loop {
            let pools = self.windows.iter();
            let least = pools.map(|pool| pool.usable(&found[..usable])).min();
            match least {
                Some(least) if least < usable => usable = least,
                _ => return usable,
            }
        }
    }

    /// Whether the groups that see a window still have what they hold beside a block that was found.
    pub(crate) fn has_windows(&self, whole: u32) -> bool {
        self.windows.iter().all(|pool| pool.has(whole))
    }

    /// Whether the groups that see a window have room for the positions below `end` of a sequence that goes on behind what was
    /// `found`, and `spare` blocks more.
    pub(crate) fn windows_have_room(&self, found: &[u32], end: u32, spare: u32) -> bool {
        let has_room =
            |pool: &WindowPool| pool.needed(found, end).saturating_add(spare) <= pool.free_blocks();
        self.windows.iter().all(has_room)
    }

    /// Gives `table` room for `positions` positions in the groups that see everything. False, and nothing changed, where there are
    /// too few free blocks.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, positions: u32) -> bool {
        let missing = blocks_for(positions).saturating_sub(table.blocks.len() as u32);
        if missing > self.free_blocks() {
            return false;
        }
        table
            .blocks
            .extend((0..missing).map_while(|_| self.allocate()));
        true
    }

    /// Lets go of all blocks of `table`, and leaves it empty.
    pub fn release(&mut self, table: &mut BlockTable) {
        // From the end, so that the start of a sequence, which others are likeliest to share, is reused last.
        for block in std::mem::take(&mut table.blocks).into_iter().rev() {
            self.let_go(block);
        }
        for (pool, table) in self.windows.iter_mut().zip(&mut table.windows) {
            pool.release(table);
        }
    }

    /// A table for a sequence that shares the first `positions` positions of `table` and goes on by itself: whole blocks are
    /// shared, the last, partial one is to be copied before either goes on, or at least before the copy is used. None where
    /// there is no block for it. The block to copy from stays until [`KvCache::copied`].
    pub(crate) fn fork(
        &mut self,
        table: &BlockTable,
        positions: u32,
    ) -> Option<(BlockTable, Option<Copies>)> {
        let whole = positions as usize / KV_BLOCK;
        let partial = !(positions as usize).is_multiple_of(KV_BLOCK);
        let lacks = |free: u32| partial && free == 0;
        if lacks(self.free_blocks()) || self.windows.iter().any(|pool| lacks(pool.free_blocks())) {
            return None;
        }
        let own = if partial {
            Some(self.allocate()?)
        } else {
            None
        };
        let mut fork = BlockTable {
            blocks: table.blocks[..whole].to_vec(),
            windows: Vec::new(),
        };
        fork.blocks.iter().for_each(|&block| self.hold(block));
        let mut windows = Vec::new();
        for (pool, table) in self.windows.iter_mut().zip(&table.windows) {
            // There is room: that is what was looked for above.
            if let Some((table, copy)) = pool.fork(table, whole as u32, partial) {
                fork.windows.push(table);
                windows.extend(copy.map(|(from, to)| BlockCopy { from, to }));
            }
        }
        let copies = own.map(|to| {
            let from = table.blocks[whole];
            self.hold(from);
            fork.blocks.push(to);
            Copies {
                whole: BlockCopy { from, to },
                windows,
            }
        });
        Some((fork, copies))
    }

    /// The copies of a fork are in a step: whoever writes to the blocks that they are made from does so later.
    pub(crate) fn copied(&mut self, copies: &Copies) {
        self.let_go(copies.whole.from);
        for (pool, copy) in self.windows.iter_mut().zip(&copies.windows) {
            pool.copied(copy.from);
        }
    }

    /// The block that holds the last tokens of a prefix, and the prefix's name.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<(u32, Prefix)> {
        self.prefixes.find(key)
    }

    /// Whether nobody holds a block.
    pub(crate) fn is_free(&self, block: u32) -> bool {
        self.holders[block as usize] == 0
    }

    /// Puts a block that was found at `index` of a table, in the place of one that was not written yet, if there is one.
    pub(crate) fn adopt(&mut self, table: &mut BlockTable, index: usize, block: u32) {
        self.adopt_whole(table, index, block);
        table
            .windows
            .resize_with(self.windows.len(), WindowTable::default);
        for (pool, table) in self.windows.iter_mut().zip(&mut table.windows) {
            pool.adopt(table, index as u32, block);
        }
    }

    /// As [`KvCache::adopt`] for all of a prefix, by an empty table; in groups that see a window, what is seen behind it.
    pub(crate) fn adopt_all(&mut self, table: &mut BlockTable, found: &[u32]) {
        for (index, &block) in found.iter().enumerate() {
            self.adopt_whole(table, index, block);
        }
        table
            .windows
            .resize_with(self.windows.len(), WindowTable::default);
        for (pool, table) in self.windows.iter_mut().zip(&mut table.windows) {
            pool.adopt_all(table, found);
        }
    }

    fn adopt_whole(&mut self, table: &mut BlockTable, index: usize, block: u32) {
        self.hold(block);
        match table.blocks.get_mut(index) {
            Some(own) => {
                let own = std::mem::replace(own, block);
                self.let_go(own);
            }
            None => table.blocks.push(block),
        }
    }

    /// The block at `index` of a table holds what `key` says, for good. If another block does so already, that one takes its
    /// place: its content is the same bits. So whoever holds a block holds those of the prefix before it, and no block is
    /// reused before those that continue it.
    pub(crate) fn publish(
        &mut self,
        table: &mut BlockTable,
        index: usize,
        key: BlockKey,
    ) -> Prefix {
        let (block, prefix) = match self.prefixes.find(&key) {
            Some((block, prefix)) => {
                self.adopt_whole(table, index, block);
                (block, prefix)
            }
            None => {
                let block = table.blocks[index];
                (block, self.prefixes.insert(key, block))
            }
        };
        for (pool, table) in self.windows.iter_mut().zip(&mut table.windows) {
            pool.publish(table, index as u32, block);
        }
        prefix
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = match self.free.first() {
            Some(block) => {
                self.free.remove(block);
                block
            }
            None if self.unbounded => {
                self.holders.push(0);
                self.free.extend();
                self.prefixes.extend();
                self.holders.len() as u32 - 1
            }
            None => return None,
        };
        if self.prefixes.forget(block) {
            self.cached -= 1;
            self.windows.iter_mut().for_each(|pool| pool.forget(block));
        }
        self.holders[block as usize] = 1;
        Some(block)
    }

    fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders += 1;
        if *holders == 1 {
            self.free.remove(block);
            self.cached -= 1;
        }
    }

    fn let_go(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "KV block {block} is released twice");
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        if self.prefixes.holds(block) {
            self.cached += 1;
            self.free.push_back(block);
        } else {
            self.free.push_front(block);
        }
    }

    /// As [`KvCache::check_whole`], of all groups' blocks in these tables and copies.
    pub(crate) fn check<'a>(
        &self,
        tables: impl Iterator<Item = &'a BlockTable> + Clone,
        copies: impl Iterator<Item = &'a Copies> + Clone,
    ) -> Result<(), String> {
        let held = tables
            .clone()
            .flat_map(|table| table.blocks.iter().copied());
        let copied = copies.clone().map(|copies| copies.whole.from);
        self.check_whole(held.chain(copied))?;
        for (number, pool) in self.windows.iter().enumerate() {
            let of = |table: &'a BlockTable| table.windows.get(number).map(WindowTable::blocks);
            let held = tables.clone().filter_map(of).flatten().copied();
            let copied = copies.clone().map(|copies| copies.windows[number].from);
            pool.check(held.chain(copied))?;
        }
        Ok(())
    }

    /// Checks that each block is free or held as often as `held`, all blocks in tables and copies, says, and that what can be
    /// found is consistent. For tests: it looks at all blocks.
    fn check_whole(&self, held: impl IntoIterator<Item = u32>) -> Result<(), String> {
        let mut expected = vec![0; self.holders.len()];
        held.into_iter().for_each(|b| expected[b as usize] += 1);
        if let Some(b) = (0..expected.len()).find(|&b| expected[b] != self.holders[b]) {
            return Err(format!(
                "block {b} counts {} holders, but {} hold it",
                self.holders[b], expected[b]
            ));
        }
        let mut free: Vec<u32> = self.free.iter().collect();
        free.sort_unstable();
        let unheld: Vec<u32> = (0..expected.len() as u32)
            .filter(|&b| expected[b as usize] == 0)
            .collect();
        if free != unheld {
            return Err(format!("{free:?} are free, but nobody holds {unheld:?}"));
        }
        let cached = free.iter().filter(|&&b| self.prefixes.holds(b)).count();
        if cached != self.cached as usize {
            return Err(format!(
                "{cached} free blocks have content, but {} are counted",
                self.cached
            ));
        }
        self.prefixes.check(|block| !self.is_free(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(kv: &mut KvCache, positions: u32) -> BlockTable {
        let mut table = BlockTable::default();
        assert!(kv.grow(&mut table, positions));
        table
    }

    fn key(parent: Prefix, token: u32) -> BlockKey {
        BlockKey {
            parent,
            salt: 0,
            tokens: [token; KV_BLOCK],
        }
    }

    #[test]
    fn growing_takes_whole_blocks() {
        let mut kv = KvCache::new(&[4, 6]);
        let mut table = grown(&mut kv, 17);
        assert_eq!(table.blocks(), [0, 1]);
        assert_eq!((table.capacity(), kv.free_blocks()), (32, 2));
        assert!(kv.grow(&mut table, 32), "no block is missing");
        assert_eq!(kv.free_blocks(), 2);
        kv.release(&mut table);
        assert_eq!((table.capacity(), kv.free_blocks()), (0, 4));
    }

    #[test]
    fn growing_is_all_or_nothing() {
        let mut kv = KvCache::new(&[8, 2]);
        let mut table = grown(&mut kv, 1);
        assert!(!kv.grow(&mut table, 33));
        assert_eq!(table.blocks(), [0]);
        assert_eq!(kv.free_blocks(), 1);
    }

    #[test]
    fn a_fork_shares_whole_blocks_and_copies_the_last() {
        let mut kv = KvCache::new(&[5]);
        let mut first = grown(&mut kv, 40);
        let (mut fork, copy) = kv.fork(&first, 40).expect("there is room");
        assert_eq!(fork.blocks(), [0, 1, 3]);
        let copies = copy.expect("the last block is a part");
        assert_eq!(copies.of(GroupPool::Whole), BlockCopy { from: 2, to: 3 });
        kv.release(&mut first);
        kv.check_whole([0, 1, 2, 3])
            .expect("the copy holds its source");
        kv.copied(&copies);
        kv.check_whole([0, 1, 3]).expect("the copy was made");
        let (mut whole, copy) = kv.fork(&fork, 32).expect("there is room");
        assert_eq!((whole.blocks(), copy), (&[0, 1][..], None));
        kv.release(&mut fork);
        kv.release(&mut whole);
        kv.check_whole([]).expect("all are free");
        let full = grown(&mut kv, 80);
        assert!(kv.fork(&full, 33).is_none(), "no block for the copy");
        kv.check_whole(full.blocks().to_vec())
            .expect("nothing changed");
    }

    #[test]
    fn freed_blocks_are_found_until_the_oldest_is_reused() {
        let mut kv = KvCache::new(&[4]);
        let mut first = grown(&mut kv, 48);
        let a = kv.publish(&mut first, 0, key(Prefix::EMPTY, 1));
        let b = kv.publish(&mut first, 1, key(a, 2));
        kv.release(&mut first);
        assert_eq!((kv.free_blocks(), kv.cached_blocks()), (4, 2));
        assert_eq!(kv.find(&key(Prefix::EMPTY, 1)), Some((0, a)));
        assert_eq!(kv.find(&key(a, 2)), Some((1, b)));
        assert_eq!(kv.find(&key(Prefix::EMPTY, 2)), None, "of another prefix");
        let salted = BlockKey {
            salt: 1,
            ..key(Prefix::EMPTY, 1)
        };
        assert_eq!(kv.find(&salted), None);

        // Blocks without content go first, then the end of the prefix.
        let mut second = grown(&mut kv, 48);
        assert_eq!(second.blocks(), [2, 3, 1]);
        assert_eq!(kv.find(&key(a, 2)), None);
        assert_eq!(kv.find(&key(Prefix::EMPTY, 1)), Some((0, a)));
        kv.check_whole([1, 2, 3]).expect("consistent");
        kv.release(&mut second);
    }

    #[test]
    fn found_blocks_take_the_place_of_ones_own() {
        let mut kv = KvCache::new(&[4]);
        let mut first = grown(&mut kv, 16);
        let a = kv.publish(&mut first, 0, key(Prefix::EMPTY, 1));
        let mut second = grown(&mut kv, 32);
        assert_eq!(second.blocks(), [1, 2]);
        kv.adopt(&mut second, 0, 0);
        assert_eq!(second.blocks(), [0, 2]);
        kv.check_whole([0, 0, 2]).expect("block 1 is free again");
        // Computed twice: the second one is dropped.
        let mut third = grown(&mut kv, 16);
        assert_eq!(kv.publish(&mut third, 0, key(Prefix::EMPTY, 1)), a);
        assert_eq!(third.blocks(), [0]);
        [first, second, third]
            .iter_mut()
            .for_each(|t| kv.release(t));
        kv.check_whole([]).expect("all are free");
        let mut revived = BlockTable::default();
        kv.adopt(&mut revived, 0, 0);
        kv.check_whole([0]).expect("no longer free");
        assert_eq!(kv.cached_blocks(), 0);
    }

    #[test]
    fn a_model_without_kv_groups_never_runs_out() {
        let mut kv = KvCache::new(&[]);
        let mut table = grown(&mut kv, 1_000_000);
        assert!(table.capacity() >= 1_000_000);
        kv.release(&mut table);
        assert_eq!(kv.free_blocks(), u32::MAX);
    }
}
