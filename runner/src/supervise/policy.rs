//! What is to be done when a worker dies: a pure state machine, the time is an argument.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::Error;
use crate::device::Stability;

/// So many deaths within [`LOOP_WINDOW`], without a step that was completed between them, are a loop that nothing leads out
/// of.
pub const LOOP_DEATHS: usize = 5;
/// See [`LOOP_DEATHS`].
pub const LOOP_WINDOW: Duration = Duration::from_secs(60);
/// Pause before the second start of a row; it doubles with each further one, up to [`LONGEST_PAUSE`]. The first start comes at
/// once.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How a worker died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// It told that its device failed for good.
    Fault(String),
    /// A signal ended it.
    Signal(i32),
    /// It ended by itself.
    Exit(i32),
    /// It had work, and told nothing for so long; it was killed for that.
    Hung(Duration),
    /// It could not be started, or could not open the bundle or the device again.
    NoStart(Error),
    /// It told what makes no sense, and was killed for that.
    Nonsense(String),
}

/// The signals that people and the system end processes with, not what a process brings upon itself.
const FROM_OUTSIDE: [i32; 4] = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

impl Death {
    /// Whether the device is to blame: the worker said so, or hung or crashed, as drivers make it do, while the device had
    /// work.
    pub fn is_device_fault(&self, working: bool) -> bool {
        match self {
            Death::Fault(_) => true,
            Death::Hung(_) => working,
            Death::Signal(signal) => working && !FROM_OUTSIDE.contains(signal),
            Death::Exit(_) | Death::NoStart(_) | Death::Nonsense(_) => false,
        }
    }

    /// Whether somebody else ended it.
    pub fn came_from_outside(&self) -> bool {
        matches!(self, Death::Signal(signal) if FROM_OUTSIDE.contains(signal))
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::Fault(text) => write!(f, "the GPU failed: {text}"),
            Death::Signal(signal) => match name(*signal) {
                Some(name) => write!(f, "signal {signal}, {name}"),
                None => write!(f, "signal {signal}"),
            },
            Death::Exit(code) => write!(f, "it ended with code {code}"),
            Death::Hung(time) => write!(f, "no step ended for {} s", time.as_secs_f64()),
            Death::NoStart(error) => write!(f, "it did not start: {error}"),
            Death::Nonsense(text) => write!(f, "it told nonsense: {text}"),
        }
    }
}

/// The signals that workers die of.
fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGABRT => "SIGABRT: an abort, as of a driver",
        libc::SIGBUS => "SIGBUS: a file that it maps was cut, or memory failed",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL: an instruction that this processor lacks",
        libc::SIGKILL => "SIGKILL: somebody's, or the system's that ran out of memory (see dmesg)",
        libc::SIGSEGV => "SIGSEGV: a bad access",
        libc::SIGTERM => "SIGTERM: somebody's",
        _ => return None,
    })
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start another one after so long.
    Restart { after: Duration },
    /// Start none any more.
    GiveUp(Error),
}

/// Judges deaths.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether the device is one that can fail apart from its process.
    gpu: bool,
    /// What the next worker is to run by; none: the target has no profiles.
    stability: Option<Stability>,
    /// When the last ones died, without a step completed between them; oldest first.
    deaths: VecDeque<Instant>,
}

impl Policy {
    /// `gpu`: the device is one; `stability`: the profile of the first worker, if the bundle has some.
    pub fn new(gpu: bool, stability: Option<Stability>) -> Policy {
        Policy {
            gpu,
            stability,
            deaths: VecDeque::new(),
        }
    }

    /// The profile that the next worker is to run by.
    pub fn stability(&self) -> Option<Stability> {
        self.stability
    }

    /// The worker has completed a step.
    pub fn stepped(&mut self) {
        self.deaths.clear();
    }

    /// The worker has died; `working`: it had requests then.
    pub fn died(&mut self, now: Instant, death: &Death, working: bool) -> Verdict {
        let fault = self.gpu && death.is_device_fault(working);
        if fault && let Some(stability) = self.stability {
            self.stability = stability.stricter().or(Some(stability));
        }
        let recent = |&at: &Instant| now.saturating_duration_since(at) < LOOP_WINDOW;
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|at| !recent(at)) {
            self.deaths.pop_front();
        }
        let deaths = self.deaths.len();
        if deaths >= LOOP_DEATHS {
            return Verdict::GiveUp(hopeless(death, fault));
        }
        let after = match deaths {
            0 | 1 => Duration::ZERO,
            n => (FIRST_PAUSE * (1 << (n - 2))).min(LONGEST_PAUSE),
        };
        Verdict::Restart { after }
    }
}

/// The end of a crash loop, by whose fault it is.
fn hopeless(death: &Death, fault: bool) -> Error {
    let text = format!(
        "the worker process died {LOOP_DEATHS} times within {} s without completing a step between; the last time: {death}",
        LOOP_WINDOW.as_secs()
    );
    match death {
        _ if fault => Error::Fault(text),
        Death::NoStart(Error::Unsupported(_)) => Error::Unsupported(text),
        Death::NoStart(Error::User(_)) => Error::User(text),
        _ if death.came_from_outside() => Error::User(text),
        _ => Error::Bug(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const CRASH: Death = Death::Signal(libc::SIGSEGV);
    const KILL: Death = Death::Signal(libc::SIGKILL);

    fn fault() -> Death {
        Death::Fault("illegal access".into())
    }

    #[test]
    fn the_first_restart_comes_at_once_and_further_ones_later_and_later() {
        let (mut policy, start) = (Policy::new(true, None), Instant::now());
        let mut pauses = Vec::new();
        let error = loop {
            let now = start + SECOND * pauses.len() as u32;
            match policy.died(now, &CRASH, true) {
                Verdict::Restart { after } => pauses.push(after.as_millis()),
                Verdict::GiveUp(error) => break error,
            }
        };
        assert_eq!(pauses, [0, 100, 200, 400]);
        assert_eq!(pauses.len() + 1, LOOP_DEATHS);
        assert!(matches!(&error, Error::Fault(text) if text.contains("5 times within 60 s")));
    }

    #[test]
    fn a_step_between_or_time_makes_it_no_loop() {
        let (mut policy, start) = (Policy::new(true, None), Instant::now());
        for i in 0..100 {
            let verdict = policy.died(start + SECOND * i, &KILL, true);
            assert!(matches!(verdict, Verdict::Restart { .. }), "{i}");
            if i % 3 == 0 {
                policy.stepped();
            }
        }
        let (mut policy, pause) = (Policy::new(true, None), LOOP_WINDOW / 4);
        for i in 0..100 {
            let verdict = policy.died(start + pause * i, &KILL, false);
            assert!(matches!(verdict, Verdict::Restart { .. }), "{i}");
        }
    }

    #[test]
    fn a_fault_of_the_device_makes_the_next_worker_stricter() {
        let (mut policy, now) = (Policy::new(true, Some(Stability::Fast)), Instant::now());
        let mut after = |death: Death, working| {
            policy.died(now, &death, working);
            policy.stepped();
            policy.stability()
        };
        // Not the device's fault: it had no work, or somebody else did it.
        for (death, working) in [
            (CRASH, false),
            (Death::Hung(SECOND), false),
            (KILL, true),
            (Death::Exit(1), true),
            (Death::NoStart(Error::User("gone".into())), true),
        ] {
            assert_eq!(after(death, working), Some(Stability::Fast));
        }
        assert_eq!(after(fault(), true), Some(Stability::Balanced));
        assert_eq!(after(CRASH, true), Some(Stability::Strict));
        // There is nothing stricter.
        assert_eq!(after(Death::Hung(SECOND), true), Some(Stability::Strict));
        let mut without = Policy::new(true, None);
        without.died(now, &fault(), true);
        assert_eq!(without.stability(), None);
    }

    #[test]
    fn the_error_of_a_loop_says_by_whose_fault() {
        let error = |death: Death, working| {
            let (mut policy, now) = (Policy::new(true, None), Instant::now());
            for _ in 0..LOOP_DEATHS - 1 {
                policy.died(now, &death, working);
            }
            match policy.died(now, &death, working) {
                Verdict::GiveUp(error) => error,
                verdict => panic!("{verdict:?}"),
            }
        };
        assert!(matches!(error(fault(), true), Error::Fault(_)));
        assert!(matches!(error(CRASH, false), Error::Bug(_)));
        assert!(matches!(error(Death::Exit(101), true), Error::Bug(_)));
        let killed = error(KILL, true);
        assert!(matches!(&killed, Error::User(text) if text.contains("SIGKILL")));
        let mut processor = Policy::new(false, Some(Stability::Fast));
        let now = Instant::now();
        let last = (0..LOOP_DEATHS)
            .map(|_| processor.died(now, &CRASH, true))
            .last();
        assert!(matches!(last, Some(Verdict::GiveUp(Error::Bug(_)))));
        assert_eq!(processor.stability(), Some(Stability::Fast));
        let gone = Death::NoStart(Error::Unsupported("there is no GPU".into()));
        let gone = error(gone, true);
        assert!(matches!(&gone, Error::Unsupported(text) if text.contains("no GPU")));
    }
}
