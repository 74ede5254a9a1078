//! Who does which part of a launch, as it turns out: each thread takes parts of its own share, one after the other, and then
//! what the others have not got round to.
//!
//! Threads are rarely equally fast: cores differ, serve another thread too, or lose their processor for a while. A launch that
//! is divided beforehand takes as long as its slowest thread. Here whoever is done takes over parts of the shares that are not,
//! from where their owners are heading; so a share stays one stretch of memory but for its end.

use std::sync::atomic::{AtomicU64, Ordering};

use super::barrier::Padded;

/// Bits of a cursor that count parts. The others number the round.
const BITS: u32 = 16;

/// Most parts of a share.
const MOST: u64 = (1 << BITS) - 1;

/// Rounds that a cursor can tell apart: at a million launches a second, nine years.
const ROUNDS: u64 = 1 << (u64::BITS - BITS);

/// How far each thread's share has been taken, and in which round.
///
/// A thread leaves a round when it finds every share of it taken. Therefore a cursor that is in a later round says that there
/// is nothing left of this one, and one that is in an earlier round that nothing has been taken yet: threads need not
/// meet between rounds.
#[derive(Debug)]
pub struct Claims {
    cursors: Box<[Padded<AtomicU64>]>,
}

impl Claims {
    pub fn new(threads: usize) -> Self {
        Self {
            cursors: (0..threads).map(|_| Padded::default()).collect(),
        }
    }

    /// The parts of round `round` that thread `index` takes, of `each` (below 2^16) a thread: part `t * each + i` is the
    /// `i`-th of thread `t`'s share. All threads together get every part once. Rounds are taken in ascending order, from 1 on, by
    /// all threads with the same `each`, to their end; those that nobody takes may be left out.
    ///
    /// That a part was taken says nothing of what its former owner wrote: threads that depend on it must meet.
    pub fn parts(&self, index: usize, round: u64, each: u64) -> impl Iterator<Item = u64> + '_ {
        debug_assert!((1..=MOST).contains(&each) && (1..ROUNDS).contains(&round));
        let threads = self.cursors.len();
        let mut victim = 0;
        std::iter::from_fn(move || {
            while victim < threads {
                let owner = (index + victim) % threads;
                if let Some(i) = self.take(owner, round, each) {
                    return Some(owner as u64 * each + i);
                }
                victim += 1;
            }
            None
        })
    }

    /// The next part of a thread's share, if one is left.
    fn take(&self, owner: usize, round: u64, each: u64) -> Option<u64> {
        let cursor = &self.cursors[owner].0;
        let mut seen = cursor.load(Ordering::Relaxed);
        loop {
            let next = match (seen >> BITS).cmp(&round) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => seen & MOST,
                std::cmp::Ordering::Greater => each,
            };
            if next >= each {
                return None;
            }
            let taken = round << BITS | (next + 1);
            // Relaxed: all that is agreed on is who takes which part.
            match cursor.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Threads run through rounds without meeting, some slower than others; every part is done once.
    #[test]
    fn every_part_is_taken_once() {
        for threads in 1..=6 {
            let claims = Claims::new(threads);
            let rounds = 400;
            let each = |round: u64| 1 + round * 7 % 13;
            let done: Vec<Vec<AtomicU32>> = (0..rounds)
                .map(|round| {
                    let parts = threads as u64 * each(round);
                    (0..parts).map(|_| AtomicU32::new(0)).collect()
                })
                .collect();
            std::thread::scope(|scope| {
                for index in 0..threads {
                    let (claims, done) = (&claims, &done);
                    scope.spawn(move || {
                        for round in 0..rounds {
                            for part in claims.parts(index, round + 1, each(round)) {
                                // The first ones are late.
                                for _ in 0..(threads - index) * 20 {
                                    std::hint::spin_loop();
                                }
                                done[round as usize][part as usize].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            for (round, parts) in done.iter().enumerate() {
                for (part, times) in parts.iter().enumerate() {
                    let times = times.load(Ordering::Relaxed);
                    assert_eq!(times, 1, "part {part} of round {round}, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_and_takes_over_the_others() {
        let claims = Claims::new(3);
        assert_eq!(claims.parts(1, 1, 2).take(1).collect::<Vec<_>>(), [2]);
        assert_eq!(claims.parts(0, 1, 2).collect::<Vec<_>>(), [0, 1, 3, 4, 5]);
        assert_eq!(claims.parts(1, 1, 2).count(), 0);
        // The next round, and one that was left out.
        assert_eq!(claims.parts(2, 2, 1).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(claims.parts(2, 9, 1).collect::<Vec<_>>(), [2, 0, 1]);
        // Whoever is still in an earlier one has nothing to do there.
        assert_eq!(claims.parts(0, 8, 5).count(), 0);
    }
}
