//! What callers see of the engine's thread without asking it: how much it has to do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Error, Stats};

/// What callers see of the thread without asking it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// No request is taken any more.
    draining: bool,
    /// Requests that have not ended.
    active: usize,
    stats: Stats,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Waits until all requests have ended, or for some time; whether they have.
    pub fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        let busy = |state: &mut State| state.active > 0;
        let state = self.lock();
        match timeout {
            None => {
                drop(self.idle.wait_while(state, busy));
                true
            }
            Some(timeout) => match self.idle.wait_timeout_while(state, timeout, busy) {
                Ok((_, waited)) => !waited.timed_out(),
                Err(poisoned) => !poisoned.into_inner().1.timed_out(),
            },
        }
    }

    pub fn publish(&self, stats: Stats) {
        self.lock().stats = stats;
    }

    /// Counts one more request; none is taken while draining.
    pub fn admit(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if state.draining {
            return Err(Error::Busy(
                "this runner is shutting down and takes no more requests; ask another one".into(),
            ));
        }
        state.active += 1;
        Ok(())
    }

    pub fn ended(&self, requests: usize) {
        let mut state = self.lock();
        state.active -= requests;
        if state.active == 0 {
            self.idle.notify_all();
        }
    }
}
