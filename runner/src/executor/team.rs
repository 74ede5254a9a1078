//! A team of threads that runs one job at a time, the caller among them as member 0.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::barrier::{Barrier, Epoch, Patience, Poisoned};
use super::claims::Claims;
use crate::Error;

/// One member's view of a running job.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// 0 is the thread that called [`Team::run`].
    pub index: usize,
    /// Members of the team.
    pub of: usize,
    barrier: &'a Barrier,
    claims: &'a Claims,
}

impl<'a> Member<'a> {
    /// The parts of a round that this member takes ([`Claims::parts`]). With one part for each member it is its own, whatever
    /// the others do, and the round has no number.
    pub fn parts(&self, round: u64, each: u64) -> impl Iterator<Item = u64> + use<'a> {
        let own = (each == 1).then_some(self.index as u64);
        let claimed = (each > 1).then(|| self.claims.parts(self.index, round, each));
        own.into_iter().chain(claimed.into_iter().flatten())
    }

    /// Waits for all members; what they wrote before is visible afterwards.
    ///
    /// # Errors
    /// [`Poisoned`] where a member failed: leave the job.
    pub fn meet(&self) -> Result<(), Poisoned> {
        self.barrier.wait()
    }
}

/// What every member runs.
type Job<'a> = dyn Fn(Member<'_>) -> Result<(), Poisoned> + Sync + 'a;

struct Shared {
    threads: usize,
    /// Moves when a job (or the order to stop) is there.
    start: Epoch,
    /// Moves when the last worker has left a job.
    finish: Epoch,
    /// Workers that are still in the job.
    running: AtomicU32,
    barrier: Barrier,
    claims: Claims,
    /// The present job. Written by the caller while no worker is in a job, read by workers after `start` has moved.
    job: UnsafeCell<Option<*const Job<'static>>>,
    stop: AtomicBool,
    /// What the first failing member said.
    failure: Mutex<Option<String>>,
}

// SAFETY: `job` is the one field that is not Sync by itself. The caller writes it only between jobs (`Team::run` takes
// `&mut self` and returns only when `running` is 0), and workers read it only between `start` moving and their decrement of
// `running`; both orders are established by acquire/release operations on those atomics. The job itself is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while `Team::run` keeps its referent borrowed.
unsafe impl Send for Shared {}

impl Shared {
    /// Runs one member's part, turning a panic into poison.
    fn take_part(&self, index: usize, job: &Job<'_>) {
        let member = Member {
            index,
            of: self.threads,
            barrier: &self.barrier,
            claims: &self.claims,
        };
        // A panic leaves buffers half written; nothing reads them, since a poisoned team runs no further job.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(member))) {
            let text = format!(
                "thread {index} of {} panicked: {}",
                self.threads,
                message(&*panic)
            );
            self.failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(text);
            self.barrier.poison();
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.start.wait_past(seen);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: `start` has moved, so the caller has written the job and waits in `run` until this worker has
            // decremented `running`: the pointer is valid, and nobody writes the cell.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: as above.
                self.take_part(index, unsafe { &*job });
            }
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish.advance();
            }
        }
    }
}

/// The threads of one device. Dropping it stops and joins them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `threads - 1` workers.
    ///
    /// # Errors
    /// [`Error::User`] where `threads` is 0 or the system starts no more threads.
    pub fn new(threads: usize) -> Result<Self, Error> {
        if threads == 0 || threads > 4096 {
            return Err(Error::User(format!(
                "{threads} threads were asked for; give a number from 1 to 4096"
            )));
        }
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let patience = if threads > processors {
            Patience::SHORT
        } else {
            Patience::measured()
        };
        let shared = Arc::new(Shared {
            threads,
            start: Epoch::new(patience),
            finish: Epoch::new(patience),
            running: AtomicU32::new(0),
            barrier: Barrier::new(threads as u32, patience),
            claims: Claims::new(threads),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        // Workers that were started are stopped by `drop` if a later one isn't.
        let mut team = Self {
            shared,
            workers: Vec::with_capacity(threads - 1),
        };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let worker = std::thread::Builder::new()
                .name(format!("fastrun-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|e| {
                    Error::User(format!(
                        "can't start thread {index} of {threads}: {e}; ask for fewer threads"
                    ))
                })?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `job` once on every member, and returns when all have left it.
    ///
    /// # Errors
    /// [`Error::Bug`] where a member panicked, now or in an earlier job: the team is then of no further use.
    pub fn run(
        &mut self,
        job: &(dyn Fn(Member<'_>) -> Result<(), Poisoned> + Sync),
    ) -> Result<(), Error> {
        let shared = &*self.shared;
        self.check()?;
        if !self.workers.is_empty() {
            let published: *const Job<'_> = job;
            // SAFETY: only the lifetime is changed. Workers follow the pointer until they decrement `running`, and this
            // function returns (it can't unwind: `take_part` catches panics) only after all have.
            let published: *const Job<'static> = unsafe { std::mem::transmute(published) };
            // SAFETY: `running` is 0, so no worker reads the cell; the next ones do after `start` moves.
            unsafe { *shared.job.get() = Some(published) };
            let finish = shared.finish.load();
            shared
                .running
                .store(self.workers.len() as u32, Ordering::Release);
            shared.start.advance();
            shared.take_part(0, job);
            shared.finish.wait_past(finish);
            // SAFETY: all workers have left the job.
            unsafe { *shared.job.get() = None };
        } else {
            shared.take_part(0, job);
        }
        self.check()
    }

    fn check(&self) -> Result<(), Error> {
        let failure = self
            .shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*failure {
            Some(text) => Err(Error::Bug(text.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.advance();
        for worker in self.workers.drain(..) {
            // `work` doesn't panic: `take_part` catches what jobs throw.
            let _ = worker.join();
        }
    }
}

/// The text of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_member_runs_each_job_once() {
        for threads in 1..=8 {
            let mut team = Team::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..500 {
                team.run(&|member| {
                    assert_eq!(member.of, threads);
                    counts[member.index].fetch_add(1, Ordering::Relaxed);
                    member.meet()?;
                    member.meet()
                })
                .unwrap();
            }
            for count in &counts {
                assert_eq!(count.load(Ordering::Relaxed), 500);
            }
        }
    }

    #[test]
    fn a_panic_ends_the_job_and_the_team() {
        for culprit in 0..3 {
            let mut team = Team::new(3).unwrap();
            let left = AtomicUsize::new(0);
            let error = team
                .run(&|member| {
                    if member.index == culprit {
                        panic!("launch blk.0.qkv");
                    }
                    let met = member.meet();
                    left.fetch_add(1, Ordering::Relaxed);
                    met
                })
                .unwrap_err();
            assert_eq!(left.load(Ordering::Relaxed), 2, "the others leave the job");
            let text = error.to_string();
            assert!(text.contains(&format!("thread {culprit} of 3")), "{text}");
            assert!(text.contains("launch blk.0.qkv"), "{text}");
            let again = team.run(&|_| panic!("must not run")).unwrap_err();
            assert_eq!(again.to_string(), text);
        }
    }

    #[test]
    fn teams_run_side_by_side_and_drop_while_parked() {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut team = Team::new(3).unwrap();
                    let sum = AtomicUsize::new(0);
                    for _ in 0..300 {
                        team.run(&|member| {
                            sum.fetch_add(member.index, Ordering::Relaxed);
                            member.meet()
                        })
                        .unwrap();
                    }
                    assert_eq!(sum.load(Ordering::Relaxed), 300 * 3);
                    std::thread::sleep(std::time::Duration::from_millis(3));
                });
            }
        });
    }

    #[test]
    fn no_threads_is_an_error() {
        assert!(matches!(Team::new(0), Err(Error::User(_))));
    }
}
