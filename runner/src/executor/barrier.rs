//! Where threads meet: an epoch to wait for, and a barrier made of it.
//!
//! Both spin for a bounded while and then park. A launch of a small model takes microseconds, so waking a parked thread
//! inside a step would cost more than the launch; between steps, or where there are more threads than processors, a
//! spinning thread would only be in the way.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Spins before a thread parks, where every thread has a processor: some 100 to 400 µs, as the processor's `pause` goes.
pub const SPINS: u32 = 8192;

/// Spins before a thread parks, where threads outnumber processors: the one waited for may need this one's processor.
pub const SPINS_CROWDED: u32 = 32;

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
    spins: u32,
}

impl Epoch {
    pub fn new(spins: u32) -> Self {
        Self {
            value: Padded::default(),
            sleepers: AtomicU32::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            spins,
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
        for _ in 0..self.spins {
            if self.load() != seen {
                return;
            }
            std::hint::spin_loop();
        }
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
    /// A barrier of `threads` threads, which spin `spins` times before they park.
    pub fn new(threads: u32, spins: u32) -> Self {
        Self {
            threads,
            arrived: Padded::default(),
            round: Epoch::new(spins),
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

    /// Every thread adds to the round's counter before the barrier and finds all additions after it.
    fn rounds(threads: u32, rounds: usize, spins: u32) {
        let barrier = Barrier::new(threads, spins);
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
            rounds(threads, 3000, SPINS_CROWDED);
        }
        rounds(2, 20_000, SPINS);
    }

    #[test]
    fn parks_at_once_without_spinning() {
        rounds(4, 2000, 0);
    }

    #[test]
    fn poison_frees_waiting_and_coming_threads() {
        for spins in [0, SPINS_CROWDED, SPINS] {
            let barrier = Barrier::new(4, spins);
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
