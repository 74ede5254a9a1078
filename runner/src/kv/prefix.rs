//! Which blocks hold which tokens: a trie of whole blocks, its edges in one hash map.
//!
//! A node stands for a prefix: it is named by its parent, the prefix without the last block, and that block's tokens. Names
//! of nodes are never reused, so that equal keys mean that all tokens from position 0 on are equal: the map compares those
//! of the last block, and the parent's name stands for those that were compared before.
//!
//! The trie lives and dies with one engine, which serves one bundle: its root hash need not be part of a key.

use std::collections::HashMap;

use bundle_format::plan::KV_BLOCK;

/// Names a prefix of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(u64);

impl Prefix {
    /// No tokens at all.
    pub const EMPTY: Prefix = Prefix(0);
}

/// A prefix by what it consists of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    pub parent: Prefix,
    /// Prefixes of different salts have nothing in common.
    pub salt: u64,
    pub tokens: [u32; KV_BLOCK],
}

/// Blocks that can be found by what they hold.
#[derive(Debug, Default)]
pub struct Prefixes {
    blocks: HashMap<BlockKey, u32>,
    /// By block: what it holds.
    contents: Vec<Option<(BlockKey, Prefix)>>,
    named: u64,
}

impl Prefixes {
    pub fn new(blocks: u32) -> Prefixes {
        Prefixes {
            contents: vec![None; blocks as usize],
            ..Prefixes::default()
        }
    }

    /// Makes room for one more block.
    pub fn extend(&mut self) {
        self.contents.push(None);
    }

    /// The block that holds the last tokens of a prefix, and the prefix's name.
    pub fn find(&self, key: &BlockKey) -> Option<(u32, Prefix)> {
        let block = *self.blocks.get(key)?;
        let (_, prefix) = self.contents[block as usize].as_ref()?;
        Some((block, *prefix))
    }

    /// Whether a block can be found.
    pub fn holds(&self, block: u32) -> bool {
        self.contents[block as usize].is_some()
    }

    /// `block` holds what `key`, which no block holds yet, says.
    pub fn insert(&mut self, key: BlockKey, block: u32) -> Prefix {
        self.named += 1;
        let prefix = Prefix(self.named);
        self.blocks.insert(key.clone(), block);
        self.contents[block as usize] = Some((key, prefix));
        prefix
    }

    /// The content of `block` is about to go. False where there was none.
    pub fn forget(&mut self, block: u32) -> bool {
        let Some((key, _)) = self.contents[block as usize].take() else {
            return false;
        };
        self.blocks.remove(&key);
        true
    }

    /// Checks that the map and the blocks' contents agree, and that the parent of every prefix is still there, held if the
    /// block itself is. For tests.
    pub fn check(&self, is_held: impl Fn(u32) -> bool) -> Result<(), String> {
        let contents = self.contents.iter().enumerate();
        let named: HashMap<Prefix, u32> = contents
            .clone()
            .filter_map(|(block, content)| Some((content.as_ref()?.1, block as u32)))
            .collect();
        if named.len() != self.blocks.len() {
            return Err(format!(
                "{} blocks have content, but {} can be found",
                named.len(),
                self.blocks.len()
            ));
        }
        for (block, content) in contents {
            let Some((key, _)) = content else { continue };
            let block = block as u32;
            if self.blocks.get(key) != Some(&block) {
                return Err(format!(
                    "block {block} has content, but can't be found by it"
                ));
            }
            let parent = named.get(&key.parent);
            if key.parent != Prefix::EMPTY && parent.is_none() {
                return Err(format!("block {block} continues a prefix that is gone"));
            }
            if is_held(block) && parent.is_some_and(|&parent| !is_held(parent)) {
                return Err(format!(
                    "block {block} is held without the prefix that it continues"
                ));
            }
        }
        Ok(())
    }
}
