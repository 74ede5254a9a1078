//! The merge table: a perfect hash from a pair of tokens to the rank of their merge and the token that it makes.
//!
//! Every pair has one slot, so a look-up reads one pilot and one slot whatever the pair. With `h = mix(key ^ seed)`, where
//! `key = left << 32 | right`:
//! - the bucket is the high half of h, scaled to the number of buckets;
//! - the slot is the high half of `(h ^ (pilot + 1) * SPREAD) * SPREAD`, scaled to the number of slots, with the pilot of
//!   that bucket.
//!
//! Scaling x to n is `x * n >> 32`. The writer looks for a pilot of each bucket, largest bucket first, that moves all of
//! the bucket's pairs to free slots.

use super::{Error, NONE};

/// An odd constant of well-spread bits: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Pairs a bucket, on average.
const BUCKET: usize = 4;

/// Seeds to try before giving up.
const SEEDS: u64 = 64;

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

/// Hashes a pair; see the module's text.
pub(super) fn hash(seed: u64, left: u32, right: u32) -> u64 {
    // Vigna's splitmix64 finaliser: a bijection, so that different pairs have different hashes.
    let mut h = ((left as u64) << 32 | right as u64) ^ seed;
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

/// The bucket of a hash. `buckets` is not 0.
pub(super) fn bucket(h: u64, buckets: usize) -> usize {
    scale(h, buckets)
}

/// The slot of a hash. `slots` is not 0.
pub(super) fn slot(h: u64, pilot: u16, slots: usize) -> usize {
    scale(
        (h ^ (pilot as u64 + 1).wrapping_mul(SPREAD)).wrapping_mul(SPREAD),
        slots,
    )
}

/// The high half of `h`, scaled to 0 .. n for n below 2^32.
fn scale(h: u64, n: usize) -> usize {
    (((h >> 32) * n as u64) >> 32) as usize
}

impl Table {
    /// Places `merges` (left, right, merged), whose rank is their index. Pairs are distinct.
    pub fn build(merges: &[(u32, u32, u32)]) -> Result<Self, Error> {
        if merges.is_empty() {
            return Ok(Self {
                seed: 0,
                pilots: Vec::new(),
                slots: Vec::new(),
            });
        }
        (0..SEEDS)
            .find_map(|seed| Self::build_seeded(merges, seed))
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "no perfect hash for {} merges within {SEEDS} seeds",
                    merges.len()
                ))
            })
    }

    fn build_seeded(merges: &[(u32, u32, u32)], seed: u64) -> Option<Self> {
        let buckets = merges.len().div_ceil(BUCKET);
        let slots = merges.len() + merges.len() / 32 + 1;
        let mut members = vec![Vec::new(); buckets];
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let h = hash(seed, left, right);
            members[bucket(h, buckets)].push((h, rank));
        }
        let mut order: Vec<usize> = (0..buckets).collect();
        order.sort_by_key(|&b| (std::cmp::Reverse(members[b].len()), b));

        let mut table = Self {
            seed,
            pilots: vec![0; buckets],
            slots: vec![[NONE; 4]; slots],
        };
        let mut taken = Vec::new();
        for b in order {
            let pilot = (0..=u16::MAX).find(|&pilot| {
                taken.clear();
                members[b].iter().all(|&(h, _)| {
                    let at = slot(h, pilot, slots);
                    let free = table.slots[at][0] == NONE && !taken.contains(&at);
                    taken.push(at);
                    free
                })
            })?;
            table.pilots[b] = pilot;
            for (&(_, rank), &at) in members[b].iter().zip(&taken) {
                let (left, right, merged) = merges[rank];
                table.slots[at] = [left, right, rank as u32, merged];
            }
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(table: &Table, left: u32, right: u32) -> Option<(u32, u32)> {
        let h = hash(table.seed, left, right);
        let pilot = table.pilots[bucket(h, table.pilots.len())];
        let [l, r, rank, merged] = table.slots[slot(h, pilot, table.slots.len())];
        ((l, r) == (left, right)).then_some((rank, merged))
    }

    #[test]
    fn every_pair_is_found_and_no_other() {
        for n in [1, 2, 3, 5, 100, 50_000] {
            let merges: Vec<_> = (0..n).map(|i| (i / 7, i % 7 * 1000 + i, i + 256)).collect();
            let table = Table::build(&merges).unwrap();
            for (rank, &(left, right, merged)) in merges.iter().enumerate() {
                assert_eq!(find(&table, left, right), Some((rank as u32, merged)));
            }
            assert_eq!(find(&table, n, n), None);
        }
    }

    #[test]
    fn a_pair_given_twice_is_an_error() {
        assert!(matches!(
            Table::build(&[(1, 2, 3), (1, 2, 4)]),
            Err(Error::Invalid(_))
        ));
    }
}
