//! The engine as the server sees it: requests in, events out, over workers of which one follows the other.

use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::{Ledger, REQUEST_DEATHS};
use super::message::{Order, Report, Setup};
use super::policy::{Death, Policy, Verdict};
use super::process::{Heard, Process};
use super::{Supervise, Supervision};
use crate::admission::Admission;
use crate::device::Stability;
use crate::load::Loaded;
use crate::runner::{Backend, RunnerOptions, Told, Wait};
use crate::{Error, Event, FinishReason, Request, RequestId, Stats};

/// A worker that has not opened bundle and device again in this time hangs. The first one may take as long as it likes: there
/// is somebody who waits for it.
const START_LIMIT: Duration = Duration::from_secs(900);

/// Called with what is heard of the worker of a number, on other threads.
pub type Hear = Arc<dyn Fn(u64, Heard) + Send + Sync>;

/// Serves through worker processes.
pub struct Remote {
    supervise: Supervise,
    setup: Setup,
    /// The bundle's root hash, which every worker has to find.
    root: String,
    admission: Admission,
    /// Sequences that can run together.
    max_running: usize,
    /// Requests that may wait.
    queue: usize,
    hear: Hear,
    policy: Policy,
    ledger: Ledger,
    /// Suspects that the worker is still to be given, one after the other; and all that came behind them.
    held: VecDeque<RequestId>,
    /// The suspect that the worker has.
    on_trial: Option<RequestId>,
    link: Link,
    /// Number of the present worker.
    worker: u64,
    /// What it will have died of, if it is known before it has.
    cause: Option<Death>,
    told: Vec<Told>,
    /// Requests and choices that wait: what the worker last said, and what it was given since.
    waiting: usize,
    /// What workers that are gone have counted, and what the present one has; and what is counted here, where a request is one
    /// however many workers served it.
    before: Stats,
    now: Stats,
    prompt_tokens: u64,
    generated_tokens: u64,
    supervision: Supervision,
}

/// What is served, and how.
struct Service {
    setup: Setup,
    root: String,
    admission: Admission,
    max_running: usize,
    queue: usize,
    gpu: bool,
    /// The profile of the first worker, if the bundle has some.
    stability: Option<Stability>,
}

/// Where the present worker is.
#[derive(Debug)]
enum Link {
    /// It opens bundle and device.
    Opening(Process, Instant),
    Serving(Serving),
    /// There is none; the next one is due then.
    Pausing(Instant),
    /// There will be none any more.
    Failed,
}

#[derive(Debug)]
struct Serving {
    process: Process,
    /// Tasks that it was given, and how many of them first, in the place of another worker.
    given: u64,
    resumed: u64,
    /// When it last told something, or was given something to do.
    active: Instant,
}

impl Remote {
    /// Starts the first worker, and waits until it has opened bundle and device; `next` waits for what is heard.
    ///
    /// # Errors
    /// What the worker could not open, as an in-process device would say it; or how it died of it.
    pub fn open(
        loaded: &Loaded,
        options: &RunnerOptions,
        supervise: &Supervise,
        hear: Hear,
        mut next: impl FnMut() -> Option<(u64, Heard)>,
    ) -> Result<Remote, Error> {
        let limits = &loaded.plan().limits;
        let stability = options.stability.or_else(|| options.own_stability(loaded));
        let service = Service {
            setup: Setup {
                bundle: loaded.path().as_os_str().as_bytes().to_vec(),
                device: options.device,
                threads: options.threads,
                kv_memory: options.kv_memory,
                prefix_cache: options.prefix_cache,
                spec: options.spec,
                token_budget: options.token_budget,
                stability: options.stability,
            },
            root: loaded.bundle().root().to_string(),
            admission: Admission {
                context: limits.context,
                vocab: loaded.manifest().model.vocab,
                kv_blocks: 0,
            },
            max_running: limits.max_seqs.min(limits.max_rows).min(limits.max_tokens) as usize,
            queue: options.queue,
            gpu: options.is_gpu(loaded),
            stability,
        };
        let mut remote = Remote::new(service, supervise, hear);
        let process = remote.start()?;
        remote.link = Link::Opening(process, Instant::now());
        loop {
            match next() {
                Some((_, Heard::Report(report @ Report::Ready { .. }))) => {
                    remote.report(report);
                    return match remote.supervision.failure.take() {
                        None => Ok(remote),
                        Some(error) => Err(error),
                    };
                }
                Some((_, Heard::Report(Report::Refused(error)))) => return Err(error),
                Some((_, Heard::Report(_) | Heard::Nonsense(_))) => {}
                Some((_, Heard::Died(death))) => {
                    let text =
                        format!("the worker process died while it opened the bundle: {death}");
                    return Err(match death.came_from_outside() {
                        true => Error::User(text),
                        false => Error::Bug(text),
                    });
                }
                None => return Err(Error::Bug("nothing is heard of the worker".into())),
            }
        }
    }

    /// Without a worker yet.
    fn new(service: Service, supervise: &Supervise, hear: Hear) -> Remote {
        let Service {
            setup,
            root,
            admission,
            max_running,
            queue,
            gpu,
            stability,
        } = service;
        Remote {
            supervise: supervise.clone(),
            setup,
            root,
            admission,
            max_running,
            queue,
            hear,
            policy: Policy::new(gpu, stability),
            ledger: Ledger::default(),
            held: VecDeque::new(),
            on_trial: None,
            link: Link::Failed,
            worker: 0,
            cause: None,
            told: Vec::new(),
            waiting: 0,
            before: Stats::default(),
            now: Stats::default(),
            prompt_tokens: 0,
            generated_tokens: 0,
            supervision: Supervision {
                stability,
                ..Supervision::default()
            },
        }
    }

    /// Starts a worker, and tells it what to open.
    fn start(&mut self) -> Result<Process, Error> {
        self.worker += 1;
        let (hear, worker) = (self.hear.clone(), self.worker);
        let program = &self.supervise.program;
        let process = Process::start(program, move |heard| hear(worker, heard)).map_err(|e| {
            Error::User(format!(
                "the worker process can't be started: {}: {e}",
                program.path.display()
            ))
        })?;
        let order = Order::Open(self.setup.clone());
        process.tell(&order).map_err(unencodable)?;
        Ok(process)
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Ready { kv_blocks, root } => self.ready(kv_blocks, root),
            Report::Refused(error) => self.cause = Some(Death::NoStart(error)),
            Report::Fault(text) => self.cause = Some(Death::Fault(text)),
            Report::Step {
                news,
                stats,
                completed,
                taken,
            } => {
                let Link::Serving(serving) = &mut self.link else {
                    return;
                };
                serving.active = Instant::now();
                if taken >= serving.resumed {
                    let on_the_way = serving.given.saturating_sub(taken) as usize;
                    self.waiting = stats.waiting + on_the_way + self.held.len();
                }
                if completed > 0 {
                    self.policy.stepped();
                }
                self.now = stats;
                for news in news {
                    let told = self.ledger.hear(news);
                    // A token is counted with its arrival, or, where its worker died before, when another one draws it again.
                    let token = matches!(told, Some(Told::Engine(Event::Token { .. })));
                    self.generated_tokens += u64::from(token);
                    self.tell(told);
                }
                self.release();
            }
        }
    }

    /// The worker serves: it is given what is left to do.
    fn ready(&mut self, kv_blocks: u32, root: String) {
        let link = std::mem::replace(&mut self.link, Link::Failed);
        let Link::Opening(process, _) = link else {
            self.link = link;
            return;
        };
        if root != self.root {
            let path = String::from_utf8_lossy(&self.setup.bundle);
            return self.give_up(Error::User(format!(
                "{path} is not the bundle any more that this server opened; start the server anew"
            )));
        }
        self.admission.kv_blocks = kv_blocks;
        let pid = process.pid();
        self.link = Link::Serving(Serving {
            process,
            given: 0,
            resumed: 0,
            active: Instant::now(),
        });
        let (others, suspects) = self.ledger.order();
        if self.worker > 1 {
            let requests = others.len() + suspects.len();
            self.supervision.resumed_requests += requests as u64;
            (self.supervise.log)(&format!(
                "worker {pid} serves: {requests} requests go on{}",
                match suspects.len() {
                    0 => String::new(),
                    n => format!(", {n} of them one after the other"),
                }
            ));
        }
        others.into_iter().for_each(|id| self.give(id));
        if let Link::Serving(serving) = &mut self.link {
            serving.resumed = serving.given;
        }
        self.held = suspects.into();
        self.release();
    }

    /// Gives the worker what has not ended of a request.
    fn give(&mut self, id: RequestId) {
        let Link::Serving(serving) = &mut self.link else {
            return;
        };
        if !self.ledger.has_tasks() {
            // It had nothing to do.
            serving.active = Instant::now();
        }
        for task in self.ledger.tasks(id) {
            serving.given += 1;
            if let Err(error) = serving.process.tell(&Order::Submit(Box::new(task))) {
                let reason = FinishReason::Error(unencodable(error).to_string());
                return self.end(id, &reason);
            }
        }
    }

    /// Gives the worker the next suspect, once the one before is cleared; and behind the last one everybody.
    fn release(&mut self) {
        while self.on_trial.is_none_or(|id| self.ledger.is_cleared(id)) {
            let Some(id) = self.held.pop_front() else {
                self.on_trial = None;
                return;
            };
            self.on_trial = (!self.ledger.is_cleared(id)).then_some(id);
            self.give(id);
        }
    }

    fn died(&mut self, death: Death) {
        let working = self.ledger.has_tasks();
        let pid = match std::mem::replace(&mut self.link, Link::Failed) {
            Link::Opening(process, _) | Link::Serving(Serving { process, .. }) => {
                Some(process.pid())
            }
            Link::Pausing(_) | Link::Failed => None,
        };
        self.before = self.counters();
        self.now = Stats {
            kv_blocks_total: self.now.kv_blocks_total,
            kv_blocks_free: self.now.kv_blocks_total,
            ..Stats::default()
        };
        let now = Instant::now();
        let stability = self.policy.stability();
        let verdict = self.policy.died(now, &death, working);
        self.supervision.device_faults += u64::from(death.is_device_fault(working));
        self.supervision.restarting = true;
        let name = pid.map_or(String::new(), |pid| format!(" {pid}"));
        (self.supervise.log)(&format!("worker{name} died: {death}"));
        let of_them = working && !death.came_from_outside();
        let given_up = self.ledger.worker_died(of_them, self.max_running);
        self.held.clear();
        self.on_trial = None;
        for id in given_up {
            let error = Error::Bug(format!(
                "the worker process died {REQUEST_DEATHS} times with this request, which got no further meanwhile; the last \
                 time: {death}"
            ));
            self.end(id, &FinishReason::Error(error.to_string()));
        }
        match verdict {
            Verdict::GiveUp(error) => self.give_up(error),
            Verdict::Restart { after } => {
                if self.policy.stability() != stability
                    && let Some(stricter) = self.policy.stability()
                {
                    (self.supervise.log)(&format!(
                        "the device is to blame: the next worker runs by the profile {stricter}"
                    ));
                    self.setup.stability = Some(stricter);
                    self.supervision.stability = Some(stricter);
                }
                self.link = Link::Pausing(now + after);
            }
        }
    }

    fn restart(&mut self) {
        match self.start() {
            Ok(process) => {
                self.supervision.restarts += 1;
                self.link = Link::Opening(process, Instant::now());
            }
            Err(error) => self.died(Death::NoStart(error)),
        }
    }

    /// Ends everything for good.
    fn give_up(&mut self, error: Error) {
        (self.supervise.log)(&error.to_string());
        self.link = Link::Failed;
        let reason = FinishReason::Error(error.to_string());
        for id in self.ledger.ids() {
            self.end(id, &reason);
        }
        self.supervision.restarting = false;
        self.supervision.failure = Some(error);
    }

    fn end(&mut self, id: RequestId, reason: &FinishReason) {
        let (told, keys) = self.ledger.end(id, reason);
        keys.into_iter()
            .for_each(|key| self.order(&Order::Cancel(key)));
        told.into_iter().for_each(|told| self.tell(Some(told)));
    }

    /// Tells the worker, if there is one.
    fn order(&self, order: &Order) {
        if let Link::Serving(serving) = &self.link {
            // A number or two have an encoding.
            let _ = serving.process.tell(order);
        }
    }

    fn tell(&mut self, told: Option<Told>) {
        self.told.extend(told);
    }

    /// Ends the requests whose time is up.
    fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.ledger.deadline()
            && at <= now
        {
            self.end(id, &FinishReason::Timeout);
        }
    }

    /// When the worker hangs, if nothing is heard of it before; and for how long nothing was heard then.
    fn patience(&self) -> Option<(Instant, Duration)> {
        let (since, limit) = match &self.link {
            Link::Opening(_, since) => (*since, START_LIMIT),
            Link::Serving(serving) if self.ledger.has_tasks() => {
                (serving.active, self.supervise.hang_timeout?)
            }
            Link::Serving(_) | Link::Pausing(_) | Link::Failed => return None,
        };
        // It is killed, and will be heard of once more.
        let waits = self.cause.is_none();
        Some((since.checked_add(limit)?, limit)).filter(|_| waits)
    }

    /// The counters of all workers; gauges as the present one has them.
    fn counters(&self) -> Stats {
        let (a, b) = (&self.before, &self.now);
        Stats {
            prefix_hit_tokens: a.prefix_hit_tokens + b.prefix_hit_tokens,
            prefix_query_tokens: a.prefix_query_tokens + b.prefix_query_tokens,
            preemptions: a.preemptions + b.preemptions,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            drafted_tokens: a.drafted_tokens + b.drafted_tokens,
            accepted_tokens: a.accepted_tokens + b.accepted_tokens,
            steps: a.steps + b.steps,
            ..*b
        }
    }
}

impl Backend for Remote {
    fn add(&mut self, request: Request) -> Result<RequestId, Error> {
        if let Some(error) = &self.supervision.failure {
            return Err(error.clone());
        }
        self.admission.check(&request)?;
        if self.waiting >= self.queue {
            return Err(Error::Busy(format!(
                "{} requests wait already, which is all that the queue takes; try again a little later",
                self.waiting
            )));
        }
        self.waiting += 1;
        self.prompt_tokens += request.prompt.len() as u64;
        let id = self.ledger.add(request);
        if self.on_trial.is_some() {
            self.held.push_back(id);
        } else {
            self.give(id);
        }
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        self.end(id, &FinishReason::Cancelled);
        self.release();
    }

    fn cancel_choice(&mut self, id: RequestId, choice: u32) {
        let (told, task) = self.ledger.end_choice(id, choice, FinishReason::Cancelled);
        if let Some((key, choice)) = task {
            self.order(&Order::CancelChoice(key, choice));
        }
        self.tell(told);
        self.release();
    }

    fn advance(&mut self) -> Wait {
        let now = Instant::now();
        self.expire(now);
        if let Link::Pausing(until) = self.link
            && until <= now
        {
            self.restart();
        }
        if let Some((at, limit)) = self.patience()
            && at <= now
        {
            self.cause = Some(Death::Hung(limit));
            if let Link::Opening(process, _) | Link::Serving(Serving { process, .. }) = &self.link {
                process.kill();
            }
        }
        let deadline = self.ledger.deadline().map(|(at, _)| at);
        let pause = match self.link {
            Link::Pausing(until) => Some(until),
            Link::Opening(..) | Link::Serving(_) | Link::Failed => None,
        };
        let hang = self.patience().map(|(at, _)| at);
        match [deadline, pause, hang].into_iter().flatten().min() {
            Some(at) => Wait::AtMost(at.saturating_duration_since(now)),
            None => Wait::ForCommand,
        }
    }

    fn take_events(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    fn stats(&self) -> Stats {
        let counters = self.counters();
        match self.link {
            Link::Serving(_) => counters,
            // Everything waits.
            Link::Opening(..) | Link::Pausing(_) | Link::Failed => Stats {
                waiting: self.ledger.open_choices(),
                ..counters
            },
        }
    }

    fn hear(&mut self, worker: u64, heard: Heard) {
        if worker != self.worker {
            return;
        }
        match heard {
            Heard::Report(report) => self.report(report),
            Heard::Nonsense(text) => {
                self.cause.get_or_insert(Death::Nonsense(text));
            }
            Heard::Died(_) if matches!(self.link, Link::Pausing(_) | Link::Failed) => {}
            Heard::Died(death) => {
                let death = self.cause.take().unwrap_or(death);
                self.died(death);
            }
        }
    }

    fn supervision(&self) -> Option<Supervision> {
        let restarting = !matches!(self.link, Link::Serving(_) | Link::Failed);
        Some(Supervision {
            restarting,
            ..self.supervision.clone()
        })
    }
}

/// The error of an order that can't be sent.
fn unencodable(error: std::io::Error) -> Error {
    Error::Unsupported(format!(
        "the request can't be sent to the worker process: {error}"
    ))
}

#[cfg(test)]
mod tests;
