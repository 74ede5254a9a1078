//! Computes the masks of grammars on a thread of its own, while the device runs the model.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use crate::device::TokenMask;
use crate::grammar::Matching;

/// The masks of one sequence's rows in a step.
struct Job {
    grammar: Arc<Matching>,
    /// Guesses: row `i` is behind the first `i` of them.
    guesses: Vec<u32>,
    masks: Vec<Arc<TokenMask>>,
}

impl Job {
    fn run(self) {
        self.grammar.masks(&self.guesses, &self.masks);
    }
}

impl Drop for Job {
    /// Whatever happened, nobody waits for ever.
    fn drop(&mut self) {
        for mask in &self.masks {
            mask.set(Err("the mask was not computed".into()));
        }
    }
}

/// The thread, started with the first job.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    jobs: Option<Sender<Job>>,
}

impl Masks {
    /// The masks of a row and of one behind each of `guesses`, to be filled in soon.
    pub fn start(&mut self, grammar: &Arc<Matching>, guesses: &[u32]) -> Vec<Arc<TokenMask>> {
        let pending = || Arc::new(TokenMask::pending());
        let masks: Vec<_> = std::iter::repeat_with(pending)
            .take(guesses.len() + 1)
            .collect();
        let job = Job {
            grammar: grammar.clone(),
            guesses: guesses.to_vec(),
            masks: masks.clone(),
        };
        if self.jobs.is_none() {
            self.jobs = spawn();
        }
        match &self.jobs {
            // A job that can't be sent comes back, and fails its masks as it is dropped.
            Some(jobs) => drop(jobs.send(job)),
            None => job.run(),
        }
        masks
    }
}

/// A thread that ends with the sender; none where the system has no more.
fn spawn() -> Option<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let run = move || jobs.into_iter().for_each(Job::run);
    let thread = std::thread::Builder::new().name("masks".into());
    thread.spawn(run).ok().map(|_| sender)
}
