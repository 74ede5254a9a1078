//! Perfect hashing: every key has one slot, so that a look-up reads one pilot and one slot whatever the key.
//!
//! A key has a 64-bit hash h that depends on the table's seed. Then
//! - the bucket is the high half of h, scaled to the number of buckets;
//! - the slot is the high half of `(h ^ (pilot + 1) * SPREAD) * SPREAD`, scaled to the number of slots, with the pilot of
//!   that bucket.
//!
//! Scaling x to n is `x * n >> 32`. The writer looks for a pilot of each bucket, largest bucket first, that moves all of
//! the bucket's keys to free slots.

use super::Error;

/// An odd constant of well-spread bits: 2^64 over the golden ratio.
pub(super) const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Keys a bucket, on average.
const BUCKET: usize = 4;

/// Seeds to try before giving up.
const SEEDS: u64 = 64;

/// Where keys lie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub seed: u64,
    pub pilots: Vec<u16>,
    /// The index of the key in each slot.
    pub slots: Vec<Option<u32>>,
}

/// The finaliser of Vigna's splitmix64: a bijection that spreads every bit.
pub(super) fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

/// The slot of a hash, by its bucket's pilot; none of an empty table.
pub(super) fn slot(h: u64, pilots: &[[u8; 2]], slots: usize) -> Option<usize> {
    let pilot = *pilots.get(bucket(h, pilots.len()))?;
    (slots != 0).then(|| piloted(h, u16::from_le_bytes(pilot), slots))
}

fn bucket(h: u64, buckets: usize) -> usize {
    scale(h, buckets)
}

fn piloted(h: u64, pilot: u16, slots: usize) -> usize {
    scale(
        (h ^ (pilot as u64 + 1).wrapping_mul(SPREAD)).wrapping_mul(SPREAD),
        slots,
    )
}

/// The high half of `h`, scaled to 0 .. n for n below 2^32.
fn scale(h: u64, n: usize) -> usize {
    (((h >> 32) * n as u64) >> 32) as usize
}

impl Placement {
    /// Places `count` keys (`what` they are, for the error). `hash(seed, i)` is the hash of key i; different keys must have
    /// different hashes for some seed.
    pub fn find(what: &str, count: usize, hash: impl Fn(u64, usize) -> u64) -> Result<Self, Error> {
        if count == 0 {
            return Ok(Self {
                seed: 0,
                pilots: Vec::new(),
                slots: Vec::new(),
            });
        }
        (0..SEEDS)
            .find_map(|seed| Self::find_seeded(count, seed, |i| hash(seed, i)))
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "no perfect hash for {count} {what} within {SEEDS} seeds: one may be listed twice"
                ))
            })
    }

    fn find_seeded(count: usize, seed: u64, hash: impl Fn(usize) -> u64) -> Option<Self> {
        let buckets = count.div_ceil(BUCKET);
        let slots = count + count / 32 + 1;
        let mut members = vec![Vec::new(); buckets];
        for key in 0..count {
            let h = hash(key);
            members[bucket(h, buckets)].push((h, key as u32));
        }
        let mut order: Vec<usize> = (0..buckets).collect();
        order.sort_by_key(|&b| (std::cmp::Reverse(members[b].len()), b));

        let mut placed = Self {
            seed,
            pilots: vec![0; buckets],
            slots: vec![None; slots],
        };
        let mut taken = Vec::new();
        for b in order {
            let pilot = (0..=u16::MAX).find(|&pilot| {
                taken.clear();
                members[b].iter().all(|&(h, _)| {
                    let at = piloted(h, pilot, slots);
                    let free = placed.slots[at].is_none() && !taken.contains(&at);
                    taken.push(at);
                    free
                })
            })?;
            placed.pilots[b] = pilot;
            for (&(_, key), &at) in members[b].iter().zip(&taken) {
                placed.slots[at] = Some(key);
            }
        }
        Some(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_slot_of_its_own() {
        for count in [1, 2, 3, 5, 100, 50_000] {
            let hash = |seed, key: usize| mix(key as u64 ^ seed);
            let placed = Placement::find("keys", count, hash).unwrap();
            let pilots: Vec<[u8; 2]> = placed.pilots.iter().map(|p| p.to_le_bytes()).collect();
            for key in 0..count {
                let at = slot(hash(placed.seed, key), &pilots, placed.slots.len()).unwrap();
                assert_eq!(placed.slots[at], Some(key as u32));
            }
        }
        assert_eq!(slot(1, &[], 0), None);
    }

    #[test]
    fn a_key_given_twice_is_an_error() {
        assert!(matches!(
            Placement::find("keys", 2, |seed, _| mix(seed)),
            Err(Error::Invalid(_))
        ));
    }
}
