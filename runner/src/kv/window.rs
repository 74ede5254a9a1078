//! Blocks of KV groups that see a window: a sequence holds those that its next tokens see, and lets go of the others.
//!
//! They have numbers of their own. Which of them hold the positions of a prefix is kept by the block that holds these positions
//! in the groups that see everything: its *partner*. That block is what prefixes are found by, so a partner that is gone
//! only means that a sequence can't go on from where its window would need it.

use bundle_format::plan::KV_BLOCK;

use super::free_list::FreeList;

/// The blocks of one sequence in one pool: consecutive ones, up to its last.
#[derive(Debug, Default)]
pub struct WindowTable {
    /// Blocks of positions before them were let go, or never held.
    first: u32,
    blocks: Vec<u32>,
}

impl WindowTable {
    /// Positions up to which there is room.
    pub fn capacity(&self) -> u32 {
        (self.first + self.blocks.len() as u32).saturating_mul(KV_BLOCK as u32)
    }

    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    fn get(&self, index: u32) -> Option<u32> {
        let at = index.checked_sub(self.first)?;
        self.blocks.get(at as usize).copied()
    }

    /// The numbers of the first `count` blocks of the sequence. In the place of one that is not held any more, and that
    /// nothing sees, is the first that is: what is read there and then masked has been written once.
    pub fn numbers(&self, count: usize) -> Vec<u32> {
        let stand_in = self.blocks.first().copied().unwrap_or_default();
        let number = |index| self.get(index).unwrap_or(stand_in);
        (0..count as u32).map(number).collect()
    }
}

/// The blocks of one such group.
#[derive(Debug)]
pub struct WindowPool {
    /// Positions that a query sees, itself included.
    window: u32,
    /// By block: tables that hold it, and copies of it that are still to be made.
    holders: Vec<u32>,
    free: FreeList,
    /// By block of the other groups.
    partners: Vec<Option<u32>>,
    /// By block: whose partner it is.
    owners: Vec<Option<u32>>,
}

impl WindowPool {
    /// `whole`: blocks of the groups that see everything.
    pub fn new(window: u32, blocks: u32, whole: u32) -> WindowPool {
        WindowPool {
            window,
            holders: vec![0; blocks as usize],
            free: FreeList::new(blocks),
            partners: vec![None; whole as usize],
            owners: vec![None; blocks as usize],
        }
    }

    /// The first block that is seen from `position` on.
    fn first_seen(&self, position: u32) -> u32 {
        (position + 1).saturating_sub(self.window) / KV_BLOCK as u32
    }

    /// Gives `table` room for the positions below `end`; false, and nothing changed, where there are too few free blocks.
    #[must_use]
    pub fn grow(&mut self, table: &mut WindowTable, end: u32) -> bool {
        let missing =
            super::blocks_for(end).saturating_sub(table.first + table.blocks.len() as u32);
        if missing > self.free.len() {
            return false;
        }
        let new = (0..missing).map_while(|_| self.allocate());
        table.blocks.extend(new);
        true
    }

    /// Lets go of the blocks that nothing sees from `position` on.
    pub fn slide(&mut self, table: &mut WindowTable, position: u32) {
        let first = self.first_seen(position);
        let gone = first
            .saturating_sub(table.first)
            .min(table.blocks.len() as u32);
        for block in table.blocks.drain(..gone as usize) {
            self.let_go(block);
        }
        table.first += gone;
    }

    pub fn release(&mut self, table: &mut WindowTable) {
        table.first = 0;
        for block in std::mem::take(&mut table.blocks).into_iter().rev() {
            self.let_go(block);
        }
    }

    /// A table that shares the blocks below `whole`, and has an own one behind them if the next is `partial`: then also whose
    /// copy that is to be. None where there is no block for it.
    pub fn fork(
        &mut self,
        table: &WindowTable,
        whole: u32,
        partial: bool,
    ) -> Option<(WindowTable, Option<(u32, u32)>)> {
        let copied = match partial {
            true => table.get(whole),
            false => None,
        };
        let own = match copied {
            Some(from) => Some((from, self.allocate()?)),
            None => None,
        };
        let shared = whole.saturating_sub(table.first) as usize;
        let mut fork = WindowTable {
            first: table.first,
            blocks: table.blocks[..shared].to_vec(),
        };
        fork.blocks.iter().for_each(|&block| self.hold(block));
        if let Some((from, to)) = own {
            self.hold(from);
            fork.blocks.push(to);
        }
        Some((fork, own))
    }

    /// The copy from a block was made.
    pub fn copied(&mut self, from: u32) {
        self.let_go(from);
    }

    /// Whether a block of the others has a partner.
    pub fn has(&self, whole: u32) -> bool {
        self.partners[whole as usize].is_some()
    }

    /// How many blocks, of those that `found` are the prefix of in the other groups, a sequence can go on behind: the most for
    /// which those are there that it then sees.
    pub fn usable(&self, found: &[u32]) -> usize {
        let (mut usable, mut in_a_row) = (0, 0);
        for (index, &block) in found.iter().enumerate() {
            in_a_row = if self.has(block) { in_a_row + 1 } else { 0 };
            let end = index as u32 + 1;
            let seen = end - self.first_seen(end * KV_BLOCK as u32).min(end);
            if in_a_row >= seen {
                usable = index + 1;
            }
        }
        usable
    }

    /// Free blocks that a sequence takes which goes on behind the prefix `found`, to have room for the positions below `end`.
    pub fn needed(&self, found: &[u32], end: u32) -> u32 {
        let behind = found.len() as u32;
        let first = self.first_seen(behind * KV_BLOCK as u32).min(behind);
        let is_free = |&&block: &&u32| {
            let partner = self.partners[block as usize];
            partner.is_some_and(|p| self.holders[p as usize] == 0)
        };
        let revived = found[first as usize..].iter().filter(is_free).count() as u32;
        revived + super::blocks_for(end).saturating_sub(behind)
    }

    pub fn free_blocks(&self) -> u32 {
        self.free.len()
    }

    /// Puts the partner of a block that was found at `index` in the place of the table's own one, if there is one. The first
    /// block of an empty table may be anywhere.
    pub fn adopt(&mut self, table: &mut WindowTable, index: u32, whole: u32) {
        let Some(partner) = self.partners[whole as usize] else {
            return;
        };
        if table.blocks.is_empty() {
            table.first = index;
        }
        let Some(at) = index.checked_sub(table.first) else {
            return;
        };
        match table.blocks.get_mut(at as usize) {
            Some(own) if *own == partner => {}
            Some(own) => {
                let own = std::mem::replace(own, partner);
                self.hold(partner);
                self.let_go(own);
            }
            None => {
                self.hold(partner);
                table.blocks.push(partner);
            }
        }
    }

    /// As [`WindowPool::adopt`] for a whole prefix: those that are seen behind it.
    pub fn adopt_all(&mut self, table: &mut WindowTable, found: &[u32]) {
        let behind = found.len() as u32;
        let first = self.first_seen(behind * KV_BLOCK as u32).min(behind);
        table.first = first;
        for (index, &block) in (first..).zip(&found[first as usize..]) {
            self.adopt(table, index, block);
        }
    }

    /// The block at `index` of a table holds the positions that `whole` does, for good: it is its partner, or gives way to it.
    pub fn publish(&mut self, table: &mut WindowTable, index: u32, whole: u32) {
        match (self.partners[whole as usize], table.get(index)) {
            (Some(_), Some(_)) => self.adopt(table, index, whole),
            (None, Some(own)) if self.owners[own as usize].is_none() => {
                self.partners[whole as usize] = Some(own);
                self.owners[own as usize] = Some(whole);
            }
            _ => {}
        }
    }

    /// What a block of the others held is about to go.
    pub fn forget(&mut self, whole: u32) {
        if let Some(partner) = self.partners[whole as usize].take() {
            self.owners[partner as usize] = None;
        }
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = self.free.first()?;
        self.free.remove(block);
        if let Some(owner) = self.owners[block as usize].take() {
            self.partners[owner as usize] = None;
        }
        self.holders[block as usize] = 1;
        Some(block)
    }

    fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders += 1;
        if *holders == 1 {
            self.free.remove(block);
        }
    }

    fn let_go(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "windowed KV block {block} is released twice");
        *holders -= 1;
        if *holders == 0 {
            match self.owners[block as usize] {
                Some(_) => self.free.push_back(block),
                None => self.free.push_front(block),
            }
        }
    }

    /// As [`KvCache::check`](super::KvCache::check).
    pub fn check(&self, held: impl IntoIterator<Item = u32>) -> Result<(), String> {
        let mut expected = vec![0; self.holders.len()];
        held.into_iter().for_each(|b| expected[b as usize] += 1);
        if expected != self.holders {
            return Err(format!(
                "windowed blocks count {:?} holders, but {expected:?} hold them",
                self.holders
            ));
        }
        let mut free: Vec<u32> = self.free.iter().collect();
        free.sort_unstable();
        let unheld = (0..).zip(&expected).filter(|(_, n)| **n == 0);
        let unheld: Vec<u32> = unheld.map(|(block, _)| block).collect();
        if free != unheld {
            return Err(format!(
                "windowed blocks {free:?} are free, but nobody holds {unheld:?}"
            ));
        }
        let pairs = (0..).zip(&self.partners);
        let mut pairs = pairs.filter_map(|(whole, partner)| Some((whole, (*partner)?)));
        let owned = self.owners.iter().flatten().count();
        if !pairs
            .clone()
            .all(|(whole, p)| self.owners[p as usize] == Some(whole))
        {
            return Err("a partner is another block's".into());
        }
        match pairs.by_ref().count() == owned {
            true => Ok(()),
            false => Err("a windowed block is the partner of none".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(pool: &mut WindowPool, end: u32) -> WindowTable {
        let mut table = WindowTable::default();
        assert!(pool.grow(&mut table, end));
        table
    }

    #[test]
    fn what_is_not_seen_any_more_is_let_go() {
        let mut pool = WindowPool::new(20, 6, 10);
        let mut table = grown(&mut pool, 64);
        // From position 35 on, 16 and later are seen; from 36 on, 17.
        pool.slide(&mut table, 34);
        assert_eq!(table.blocks(), [0, 1, 2, 3]);
        pool.slide(&mut table, 35);
        assert_eq!((table.blocks(), pool.free_blocks()), (&[1, 2, 3][..], 3));
        pool.slide(&mut table, 50);
        assert_eq!(table.blocks(), [1, 2, 3]);
        pool.slide(&mut table, 51);
        assert_eq!(table.blocks(), [2, 3]);
        assert_eq!(
            table.numbers(4),
            [2, 2, 2, 3],
            "holes show a block that is held"
        );
        assert!(pool.grow(&mut table, 80));
        assert_eq!(table.capacity(), 80);
        assert!(!pool.grow(&mut table, 160));
        pool.check(table.blocks().to_vec()).expect("consistent");
        pool.release(&mut table);
        pool.check([]).expect("all are free");
    }

    #[test]
    fn a_prefix_is_of_use_where_its_window_is_there() {
        let mut pool = WindowPool::new(20, 6, 10);
        let mut table = grown(&mut pool, 80);
        let whole = [9, 8, 7, 6, 5];
        for (index, &block) in (0..).zip(&whole) {
            pool.publish(&mut table, index, block);
        }
        pool.release(&mut table);
        assert_eq!(pool.usable(&whole), 5);
        // Behind 80 positions 61 and later are seen: two blocks, both free.
        assert_eq!(pool.needed(&whole, 90), 3);
        let mut other = WindowTable::default();
        pool.adopt_all(&mut other, &whole);
        assert_eq!(other.blocks(), [3, 4]);
        assert_eq!(pool.needed(&whole, 90), 1, "they are held already");
        // The last block without content goes first, then those that were free for longest: the end of the sequence.
        let mut third = grown(&mut pool, 32);
        assert_eq!(third.blocks(), [5, 2]);
        assert_eq!(pool.usable(&whole), 5);
        assert_eq!(
            pool.usable(&whole[..4]),
            2,
            "behind four, blocks 2 and 3 would be seen"
        );
        pool.forget(9);
        assert_eq!(pool.usable(&whole[..2]), 0);
        let held = [other.blocks(), third.blocks()].concat();
        pool.check(held).expect("consistent");
        pool.release(&mut other);
        pool.release(&mut third);
    }

    #[test]
    fn forks_share_what_is_left_and_copy_the_last() {
        let mut pool = WindowPool::new(20, 5, 10);
        let mut table = grown(&mut pool, 60);
        pool.slide(&mut table, 40);
        let (mut fork, copy) = pool.fork(&table, 3, true).expect("there is room");
        assert_eq!((fork.blocks(), copy), (&[1, 2, 0][..], Some((3, 0))));
        assert_eq!(fork.capacity(), 64);
        pool.copied(3);
        pool.release(&mut table);
        pool.check(fork.blocks().to_vec()).expect("consistent");
        let full = grown(&mut pool, 32);
        assert!(pool.fork(&fork, 3, true).is_none(), "no block for the copy");
        pool.check([fork.blocks(), full.blocks()].concat())
            .expect("nothing changed");
        pool.release(&mut fork);
    }
}
