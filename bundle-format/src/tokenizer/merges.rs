//! The merge table: a perfect hash ([`super::perfect`]) from a pair of tokens to the rank of their merge and the token that
//! it makes. A pair's hash is that of `left << 32 | right`, xored with the seed, by splitmix64's finaliser.

use super::perfect::{Placement, mix};
use super::{Error, NONE};

/// What a pair of tokens becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Lower ranks merge first.
    pub rank: u32,
    pub token: u32,
}

/// A merge table in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub seed: u64,
    pub pilots: Vec<u16>,
    /// (left, right, rank, merged)
    pub slots: Vec<[u32; 4]>,
}

/// Hashes a pair. Different pairs have different hashes.
pub(super) fn hash(seed: u64, left: u32, right: u32) -> u64 {
    mix(((left as u64) << 32 | right as u64) ^ seed)
}

impl Table {
    /// Places `merges` (left, right, merged), whose rank is their index. Pairs are distinct.
    pub fn build(merges: &[(u32, u32, u32)]) -> Result<Self, Error> {
        let Placement {
            seed,
            pilots,
            slots,
        } = Placement::find("merges", merges.len(), |seed, rank| {
            hash(seed, merges[rank].0, merges[rank].1)
        })?;
        let slot = |rank: Option<u32>| match rank {
            Some(rank) => {
                let (left, right, merged) = merges[rank as usize];
                [left, right, rank, merged]
            }
            None => [NONE; 4],
        };
        Ok(Self {
            seed,
            pilots,
            slots: slots.into_iter().map(slot).collect(),
        })
    }
}
