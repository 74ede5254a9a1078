//! Where threads meet: an epoch to wait for, and a barrier made of it.
//!
//! Both spin for a bounded while and then park. A launch of a small model takes microseconds, so waking a parked thread
//! inside a step would cost more than the launch; between steps, or where other work competes for the processors, a
//! spinning thread would only be in the way. How long to spin is learnt: see [`Patience`].

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// How often a thread looks before it parks. It starts at `limit`, falls towards `floor` while waits outlast it (then the
/// thread waited for is probably not running, perhaps for want of this very processor), and rises again while they don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    floor: u32,
    limit: u32,
}

impl Patience {
    /// Parks almost at once: for more threads than processors.
    pub const SHORT: Patience = Patience {
        floor: 32,
        limit: 32,
    };

    /// Spins for 5 to 60 µs, by this processor's `pause`: for as many threads as processors, or fewer.
    pub fn measured() -> Patience {
        const LOOKS: u32 = 64;
        let time = || {
            let start = Instant::now();
            for _ in 0..LOOKS {
                std::hint::spin_loop();
            }
            start.elapsed().as_nanos() as u32
        };
        // The shortest of some tries: the others may have been interrupted.
        let shortest = (0..4).map(|_| time()).min().unwrap_or_default();
        let pause = (shortest / LOOKS).clamp(1, 1000);
        Patience {
            floor: 5_000 / pause,
            limit: 60_000 / pause,
        }
    }

    /// The number of looks after a wait that `looks` sufficed for, or didn't.
    fn learn(self, looks: u32, sufficed: bool) -> u32 {
        if sufficed {
            (looks + looks / 4 + 1).min(self.limit)
        } else {
            (looks - looks / 4).max(self.floor)
        }
    }
}

/// Keeps what threads write often on a cache line (and its prefetched neighbour) of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct Padded<T>(pub T);

/// A counter that threads wait on to move.
#[derive(Debug)]
pub struct Epoch {
    value: Padded<AtomicU32>,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
    patience: Patience,
    /// Looks before the next wait parks.
    looks: Padded<AtomicU32>,
}

impl Epoch {
    pub fn new(patience: Patience) -> Self {
        Self {
            value: Padded::default(),
            sleepers: AtomicU32::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            patience,
            looks: Padded(AtomicU32::new(patience.limit)),
        }
    }

    /// The present value. What was written before the [`Epoch::advance`] that led to it is visible afterwards.
    pub fn load(&self) -> u32 {
        self.value.0.load(Ordering::Acquire)
    }

    /// Moves the epoch on and wakes whoever waits.
    pub fn advance(&self) {
        // Sequentially consistent with the sleepers' registration below: either this thread sees the sleeper, or the
        // sleeper sees the new value before it parks.
        self.value.0.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper holds the lock from its last look at the value until it is parked.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Returns once the epoch is no longer `seen`.
    pub fn wait_past(&self, seen: u32) {
        // Threads that learn at the same time may overwrite one another's lesson: it is an estimate.
        let looks = self.looks.0.load(Ordering::Relaxed);
        let learn = |sufficed| {
            let next = self.patience.learn(looks, sufficed);
            if next != looks {
                self.looks.0.store(next, Ordering::Relaxed);
            }
        };
        for _ in 0..looks {
            if self.load() != seen {
                learn(true);
                return;
            }
            std::hint::spin_loop();
        }
        learn(false);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.0.load(Ordering::SeqCst) == seen {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A thread failed; the others must not wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poisoned;

/// A barrier of a fixed number of threads, for any number of rounds, that a failing thread can poison.
#[derive(Debug)]
pub struct Barrier {
    threads: u32,
    arrived: Padded<AtomicU32>,
    round: Epoch,
    poisoned: AtomicBool,
}

impl Barrier {
    pub fn new(threads: u32, patience: Patience) -> Self {
        Self {
            threads,
            arrived: Padded::default(),
            round: Epoch::new(patience),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Waits until every thread is here; what any of them wrote before is then visible to all.
    ///
    /// # Errors
    /// [`Poisoned`], without waiting any longer, once a thread has called [`Barrier::poison`].
    pub fn wait(&self) -> Result<(), Poisoned> {
        if self.threads == 1 {
            return self.check();
        }
        let round = self.round.load();
        // After the round was read: a poisoning before this look is seen here, a later one moves the round on.
        self.check()?;
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.round.advance();
        } else {
            self.round.wait_past(round);
        }
        self.check()
    }

    /// Makes every present and future wait fail.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        self.round.advance();
    }

    fn check(&self) -> Result<(), Poisoned> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(Poisoned)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const IMPATIENT: Patience = Patience { floor: 0, limit: 0 };

    /// Every thread adds to the round's counter before the barrier and finds all additions after it.
    fn rounds(threads: u32, rounds: usize, patience: Patience) {
        let barrier = Barrier::new(threads, patience);
        let counters: Vec<AtomicU64> = (0..rounds).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for t in 0..threads {
                let (barrier, counters) = (&barrier, &counters);
                scope.spawn(move || {
                    for (i, counter) in counters.iter().enumerate() {
                        // Relaxed: it is the barrier that has to publish it.
                        counter.fetch_add(1 + t as u64, Ordering::Relaxed);
                        barrier.wait().expect("nothing poisons this barrier");
                        let all = threads as u64 * (threads as u64 + 1) / 2;
                        assert_eq!(counter.load(Ordering::Relaxed), all, "round {i}");
                    }
                });
            }
        });
    }

    #[test]
    fn no_thread_passes_early() {
        for threads in 1..=8 {
            rounds(threads, 3000, Patience::SHORT);
        }
        rounds(2, 20_000, Patience::measured());
    }

    #[test]
    fn parks_at_once_without_spinning() {
        rounds(4, 2000, IMPATIENT);
    }

    #[test]
    fn patience_falls_and_rises_within_its_bounds() {
        let patience = Patience {
            floor: 100,
            limit: 1000,
        };
        let mut looks = patience.limit;
        for _ in 0..20 {
            looks = patience.learn(looks, false);
        }
        assert_eq!(looks, 100);
        for _ in 0..20 {
            looks = patience.learn(looks, true);
        }
        assert_eq!(looks, 1000);
        let Patience { floor, limit } = Patience::measured();
        assert!(0 < floor && floor < limit, "{floor} {limit}");
    }

    #[test]
    fn poison_frees_waiting_and_coming_threads() {
        for patience in [IMPATIENT, Patience::SHORT, Patience::measured()] {
            let barrier = Barrier::new(4, patience);
            std::thread::scope(|scope| {
                let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| barrier.wait())).collect();
                std::thread::sleep(std::time::Duration::from_millis(5));
                barrier.poison();
                for thread in waiting {
                    assert_eq!(thread.join().expect("no panic"), Err(Poisoned));
                }
            });
            assert_eq!(barrier.wait(), Err(Poisoned));
        }
    }
}
