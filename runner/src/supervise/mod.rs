//! An engine in a process of its own, and what becomes of requests when that process dies.
//!
//! The server keeps all that requests are: their tokens so far, their text, their clients. A worker process ([`worker()`]) has
//! the device and the engine, and nothing that would be missed. [`remote`] stands in for the engine on the server's side: it
//! gives the worker tasks, takes what it reports, and when it dies asks the [`policy`] what to do, starts another one and gives
//! it what the [`ledger`] says is left. [`message`] is what they tell each other, [`process`] how.
//!
//! Policy and ledger are pure.

mod ledger;
mod message;
mod policy;
mod process;
mod remote;
mod worker;

use std::time::Duration;

pub use policy::{LOOP_DEATHS, LOOP_WINDOW};
pub(crate) use process::Heard;
pub use process::Program;
pub(crate) use remote::Remote;
pub use worker::worker;

use crate::Error;
use crate::device::Stability;

/// How to run the engine in a process of its own.
#[derive(Clone, Debug)]
pub struct Supervise {
    /// What to start: it has to call [`worker()`].
    pub program: Program,
    /// A worker that has requests and completes no step for so long is killed, as if it had died; none: never. A step of a
    /// large model on a slow processor takes long.
    pub hang_timeout: Option<Duration>,
    /// Told of deaths and starts, a line each.
    pub log: fn(&str),
}

/// What became of the worker processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervision {
    /// No worker serves at the moment: requests wait for the next one.
    pub restarting: bool,
    /// Workers that were started in the place of one that died.
    pub restarts: u64,
    /// Deaths by which a device was to blame.
    pub device_faults: u64,
    /// Requests that went on with another worker.
    pub resumed_requests: u64,
    /// The profile that the worker runs by, where its bundle has some.
    pub stability: Option<Stability>,
    /// Why there will be no worker any more.
    pub failure: Option<Error>,
}
