//! The free blocks in the order of their reuse: a doubly linked list through arrays, so that any block can leave it at once.

/// No block.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

const UNLINKED: Links = Links {
    before: NONE,
    after: NONE,
};

/// A list of distinct block numbers.
#[derive(Debug)]
pub struct FreeList {
    /// By block; of meaning while the block is in the list.
    links: Vec<Links>,
    first: u32,
    last: u32,
    len: u32,
}

impl FreeList {
    /// All blocks below `blocks`, ascending.
    pub fn new(blocks: u32) -> FreeList {
        let mut list = FreeList {
            links: vec![UNLINKED; blocks as usize],
            first: NONE,
            last: NONE,
            len: 0,
        };
        (0..blocks).for_each(|block| list.push_back(block));
        list
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    /// Makes room for one more block, which is not in the list yet.
    pub fn extend(&mut self) {
        self.links.push(UNLINKED);
    }

    /// The next block to be reused; it stays.
    pub fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Puts a block in that is reused next.
    pub fn push_front(&mut self, block: u32) {
        self.link(NONE, block, self.first);
    }

    /// Puts a block in that is reused last.
    pub fn push_back(&mut self, block: u32) {
        self.link(self.last, block, NONE);
    }

    /// Takes out a block that is in the list.
    pub fn remove(&mut self, block: u32) {
        let Links { before, after } = self.links[block as usize];
        match before {
            NONE => self.first = after,
            _ => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            _ => self.links[after as usize].before = before,
        }
        self.len -= 1;
    }

    /// From the block that is reused next.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let some = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(some(self.first), move |&block| {
            some(self.links[block as usize].after)
        })
    }

    fn link(&mut self, before: u32, block: u32, after: u32) {
        self.links[block as usize] = Links { before, after };
        match before {
            NONE => self.first = block,
            _ => self.links[before as usize].after = block,
        }
        match after {
            NONE => self.last = block,
            _ => self.links[after as usize].before = block,
        }
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(list: &FreeList) -> Vec<u32> {
        assert_eq!(list.len() as usize, list.iter().count());
        list.iter().collect()
    }

    #[test]
    fn blocks_leave_from_anywhere() {
        let mut list = FreeList::new(5);
        assert_eq!(list.first(), Some(0));
        for (block, left) in [
            (2, &[0, 1, 3, 4][..]),
            (0, &[1, 3, 4]),
            (4, &[1, 3]),
            (1, &[3]),
            (3, &[]),
        ] {
            list.remove(block);
            assert_eq!(all(&list), left);
        }
        assert_eq!(list.first(), None);
        list.push_back(4);
        list.push_front(0);
        list.push_back(2);
        list.extend();
        list.push_front(5);
        assert_eq!(all(&list), [5, 0, 4, 2]);
    }
}
