//! What callers see of the engine's thread without asking it: how much it has to do.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::supervise::Supervision;
use crate::{Error, Stats};

/// What callers see of the thread without asking it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

/// Called once with why there will be no engine any more.
pub(super) type OnFailure = Box<dyn FnOnce(Error) + Send>;

#[derive(Default)]
struct State {
    /// No request is taken any more.
    draining: bool,
    /// Requests that have not ended.
    active: usize,
    stats: Stats,
    supervision: Option<Supervision>,
    /// Those who want to know of a failure.
    listeners: Vec<OnFailure>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("draining", &self.draining)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
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

    pub fn supervision(&self) -> Option<Supervision> {
        self.lock().supervision.clone()
    }

    /// Takes what became of the worker processes; of the failure that ends them, those are told who listen.
    pub fn supervise(&self, supervision: Option<Supervision>) {
        let failure = supervision.as_ref().and_then(|s| s.failure.clone());
        let mut state = self.lock();
        state.supervision = supervision;
        if let Some(error) = failure {
            let listeners = std::mem::take(&mut state.listeners);
            drop(state);
            listeners
                .into_iter()
                .for_each(|listener| listener(error.clone()));
        }
    }

    /// Calls `listener` when the engine has failed for good, at once if it has.
    pub fn on_failure(&self, listener: OnFailure) {
        let mut state = self.lock();
        let failure = state.supervision.as_ref().and_then(|s| s.failure.clone());
        match failure {
            None => state.listeners.push(listener),
            Some(error) => {
                drop(state);
                listener(error);
            }
        }
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
