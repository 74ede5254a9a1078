//! The worker process: it opens what it is told to, serves what it is told to, and tells what comes of it, until there are no
//! more orders, which is what it is left with when the server ends.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::message::{self, News, Order, Report, Setup, Task};
use super::process;
use crate::device::{Device, LogProbs};
use crate::engine::Engine;
use crate::grammar::GrammarCompiler;
use crate::load::Loaded;
use crate::runner::{Rows, RunnerOptions, Wait, step};
use crate::tokenizer::Tokenizer;
use crate::{Error, Event, FinishReason, Request, RequestId};

/// What a step may take to end once there are no more orders.
const FAREWELL: Duration = Duration::from_secs(3);

/// Serves as a worker of the server that started this process, by orders on standard input. It returns when there are no more.
///
/// # Errors
/// [`Error::User`] where standard input is not what such a server gives.
pub fn worker() -> Result<(), Error> {
    let lost = |e: io::Error| {
        Error::User(format!(
            "a worker takes its orders from the server that started it, on standard input: {e}; run `fastrun serve` instead"
        ))
    };
    let mut reports = process::connection().map_err(lost)?;
    // Also where it is no connection at all.
    reports.local_addr().map_err(lost)?;
    process::belong_to_server();
    let mut orders = BufReader::new(reports.try_clone().map_err(lost)?);
    let setup = match message::receive(&mut orders).map_err(lost)? {
        Some(Order::Open(setup)) => setup,
        Some(Order::Submit(_) | Order::Cancel(_) | Order::CancelChoice(..)) => {
            return Err(Error::Bug("a worker's first order was not to open".into()));
        }
        // The server has gone.
        None => return Ok(()),
    };
    let opened = open(&setup);
    let (loaded, engine) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // If nobody hears it, there is nobody to tell.
            let _ = message::send(&mut reports, &Report::Refused(error));
            return Ok(());
        }
    };
    let ready = Report::Ready {
        kv_blocks: engine.stats().kv_blocks_total,
        root: loaded.bundle().root().to_string(),
    };
    let (sender, commands) = mpsc::channel();
    let started = thread::Builder::new()
        .name("orders".into())
        .spawn(move || take_orders(orders, &loaded, sender));
    started.map_err(|e| Error::User(format!("can't start a thread: {e}")))?;
    if message::send(&mut reports, &ready).is_ok() {
        Serving::new(engine, reports).serve(&commands);
    }
    Ok(())
}

type AnyEngine = Engine<Box<dyn Device>>;

fn open(setup: &Setup) -> Result<(Arc<Loaded>, AnyEngine), Error> {
    let path = Path::new(OsStr::from_bytes(&setup.bundle));
    let loaded = Arc::new(Loaded::open(path)?);
    let options = RunnerOptions {
        device: setup.device,
        threads: setup.threads,
        kv_memory: setup.kv_memory,
        // The server counts those that wait.
        queue: usize::MAX,
        prefix_cache: setup.prefix_cache,
        spec: setup.spec,
        token_budget: setup.token_budget,
        stability: setup.stability,
        verify: false,
        supervise: None,
    };
    let device = options.open_device(&loaded)?;
    let engine = Engine::new(device, options.engine_config(&loaded));
    Ok((loaded, engine))
}

/// What the engine's thread does next.
enum Command {
    /// A task, or why it is none.
    Submit(u64, Result<Box<Request>, Error>),
    Cancel(u64),
    CancelChoice(u64, u32),
}

/// Reads orders to their end, and compiles grammars; then gives the engine's thread a while to end the process.
fn take_orders(mut orders: BufReader<UnixStream>, loaded: &Loaded, to: Sender<Command>) {
    let mut grammars = Grammars {
        loaded,
        compiler: None,
    };
    // What can't be read is as good as the end: the server starts another worker.
    while let Ok(Some(order)) = message::receive(&mut orders) {
        let command = match order {
            Order::Submit(task) => Command::Submit(task.key, grammars.request(*task)),
            Order::Cancel(key) => Command::Cancel(key),
            Order::CancelChoice(key, choice) => Command::CancelChoice(key, choice),
            Order::Open(_) => break,
        };
        if to.send(command).is_err() {
            break;
        }
    }
    drop(to);
    thread::sleep(FAREWELL);
    std::process::exit(1);
}

/// Compiles grammars, as requests need them.
struct Grammars<'a> {
    loaded: &'a Loaded,
    /// Made when the first one comes.
    compiler: Option<GrammarCompiler>,
}

impl Grammars<'_> {
    fn request(&mut self, task: Task) -> Result<Box<Request>, Error> {
        let grammar = task.grammar.map(|form| form.grammar()).transpose()?;
        let grammar = match grammar {
            None => None,
            Some(grammar) => Some(self.compiler()?.compile(&grammar)?),
        };
        Ok(Box::new(Request {
            prompt: task.prompt,
            answered: task.answered,
            max_tokens: task.max_tokens,
            sampling: task.sampling,
            stop: task.stop,
            choices: task.choices,
            logprobs: task.logprobs,
            prompt_logprobs: task.prompt_logprobs,
            bias: task.bias.into(),
            grammar,
            deadline: None,
            cache_salt: task.cache_salt,
            hidden: task.hidden,
            spec: task.spec,
        }))
    }

    fn compiler(&mut self) -> Result<&GrammarCompiler, Error> {
        let compiler = match self.compiler.take() {
            Some(compiler) => compiler,
            None => {
                let tokenizer = Tokenizer::open(self.loaded.bundle().tokenizer())?;
                GrammarCompiler::new(&tokenizer, self.loaded.manifest().model.vocab)?
            }
        };
        Ok(self.compiler.insert(compiler))
    }
}

/// The engine's thread.
struct Serving<D> {
    engine: Engine<D>,
    to: UnixStream,
    tasks: HashMap<RequestId, Running>,
    ids: HashMap<u64, RequestId>,
    taken: u64,
    /// Ends of tasks that the engine never had.
    refused: Vec<News>,
}

/// A task that has not ended.
struct Running {
    key: u64,
    /// Answers of which tokens were told.
    begun: Vec<bool>,
    /// Answers that have not ended.
    open: u32,
    hidden: Rows,
    /// Of the prompt's tokens from the second one on, as many as are there; and how many there will be.
    scores: Vec<LogProbs>,
    scored: usize,
}

impl<D: Device> Serving<D> {
    fn new(engine: Engine<D>, to: UnixStream) -> Serving<D> {
        Serving {
            engine,
            to,
            tasks: HashMap::new(),
            ids: HashMap::new(),
            taken: 0,
            refused: Vec::new(),
        }
    }

    /// Until there are no more commands, or nobody who listens.
    fn serve(mut self, commands: &Receiver<Command>) {
        let (mut wait, mut since) = (Wait::ForCommand, None);
        while self.take(commands, wait) {
            let next = step(&mut self.engine, &mut since);
            // An engine that waits for its device, or sleeps on, has nothing to tell.
            let told = match next {
                Wait::AtMost(_) => Ok(()),
                Wait::ForCommand if wait == Wait::ForCommand && self.is_silent() => Ok(()),
                Wait::No | Wait::ForCommand => self.tell(),
            };
            if told.is_err() || self.engine.fault().is_some() {
                return;
            }
            wait = next;
        }
    }

    /// Obeys all commands that are there. `wait`: for the first one. False: there will be none.
    fn take(&mut self, commands: &Receiver<Command>, wait: Wait) -> bool {
        let first = match wait {
            Wait::No => commands.recv_timeout(Duration::ZERO),
            Wait::AtMost(time) => commands.recv_timeout(time),
            Wait::ForCommand => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        commands.try_iter().for_each(|command| self.obey(command));
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(key, request) => self.submit(key, request),
            Command::Cancel(key) => {
                if let Some(&id) = self.ids.get(&key) {
                    self.engine.cancel(id);
                }
            }
            Command::CancelChoice(key, choice) => {
                if let Some(&id) = self.ids.get(&key) {
                    self.engine.cancel_choice(id, choice);
                }
            }
        }
    }

    fn submit(&mut self, key: u64, request: Result<Box<Request>, Error>) {
        self.taken += 1;
        let choices = request.as_ref().map_or(1, |request| request.choices);
        let prompt = request.as_ref().map_or(0, |request| request.prompt.len());
        match request.and_then(|request| self.engine.add(*request)) {
            Ok(id) => {
                let running = Running {
                    key,
                    begun: vec![false; choices as usize],
                    open: choices,
                    hidden: Rows::default(),
                    scores: Vec::new(),
                    scored: prompt.saturating_sub(1),
                };
                self.tasks.insert(id, running);
                self.ids.insert(key, id);
            }
            // The server has checked the request, as this machine's engine does.
            Err(error) => self
                .refused
                .extend((0..choices).map(|choice| News::Finished {
                    key,
                    choice,
                    reason: FinishReason::Error(error.to_string()),
                    cached: 0,
                })),
        }
    }

    fn is_silent(&self) -> bool {
        self.tasks.is_empty() && self.refused.is_empty()
    }

    /// Tells what the engine has yielded, or that its device has failed: then what the step's requests ended by is not for
    /// their callers.
    fn tell(&mut self) -> io::Result<()> {
        if let Some(error) = self.engine.fault() {
            let text = match error {
                Error::Fault(text) => text.clone(),
                error => error.to_string(),
            };
            return message::send(&mut self.to, &Report::Fault(text));
        }
        let mut news = std::mem::take(&mut self.refused);
        for event in self.engine.take_events() {
            self.translate(event, &mut news);
        }
        let report = Report::Step {
            news,
            stats: self.engine.stats(),
            completed: self.engine.completed_steps(),
            taken: self.taken,
        };
        message::send(&mut self.to, &report)
    }

    fn translate(&mut self, event: Event, news: &mut Vec<News>) {
        match event {
            Event::Token {
                id,
                choice,
                token,
                logprobs,
            } => {
                let Some(running) = self.tasks.get_mut(&id) else {
                    return;
                };
                let begun = running.begun.get_mut(choice as usize);
                let first = begun.is_some_and(|begun| !std::mem::replace(begun, true));
                news.push(News::Token {
                    key: running.key,
                    choice,
                    token,
                    logprobs,
                    cached: first
                        .then(|| self.engine.cached_tokens(id, choice))
                        .flatten(),
                });
            }
            Event::Scored { id, logprobs, .. } => {
                if let Some(running) = self.tasks.get_mut(&id) {
                    running.scores.push(logprobs);
                    if running.scores.len() == running.scored {
                        news.push(News::Scored {
                            key: running.key,
                            scores: std::mem::take(&mut running.scores),
                        });
                    }
                }
            }
            Event::Hidden { id, row, .. } => {
                if let Some(running) = self.tasks.get_mut(&id) {
                    running.hidden.add(&row);
                }
            }
            Event::Finished {
                id,
                choice,
                reason,
                cached_tokens,
            } => {
                let Some(running) = self.tasks.get_mut(&id) else {
                    return;
                };
                let key = running.key;
                let hidden = std::mem::take(&mut running.hidden);
                if hidden.count > 0 {
                    news.push(News::Hidden {
                        key,
                        rows: hidden.count,
                        sum: hidden.sum,
                    });
                }
                news.push(News::Finished {
                    key,
                    choice,
                    reason,
                    cached: cached_tokens,
                });
                running.open -= 1;
                if running.open == 0 {
                    self.tasks.remove(&id);
                    self.ids.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bundle_format::plan::Limits;

    use super::*;
    use crate::Config;
    use crate::device::{Outcome, RowOutcome, Step, Ticket};

    /// Draws 7 for every row, and fails for good at a step.
    struct Failing {
        steps: u64,
        fail_at: u64,
        rows: usize,
    }

    impl Device for Failing {
        fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
            self.rows = step.rows.len();
            self.steps += 1;
            Ok(Ticket(self.steps - 1))
        }

        fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
            if ticket.0 >= self.fail_at {
                return Err(Error::Fault("an illegal access, on purpose".into()));
            }
            let row = RowOutcome {
                token: Some(7),
                ..RowOutcome::default()
            };
            Ok(Some(Outcome {
                rows: vec![row; self.rows],
            }))
        }

        fn kv_blocks(&self) -> &[u32] {
            &[64]
        }
    }

    #[test]
    fn a_fault_is_told_and_ends_no_request() {
        let limits = Limits {
            max_tokens: 64,
            max_seqs: 4,
            max_rows: 4,
            context: 1024,
        };
        let device = Failing {
            steps: 0,
            fail_at: 3,
            rows: 0,
        };
        let engine = Engine::new(device, Config::new(limits, 100));
        let (ours, theirs) = UnixStream::pair().expect("there are sockets");
        let (orders, commands) = mpsc::channel();
        for key in [5, 6] {
            let request = Request {
                prompt: vec![1, 2],
                ..Request::default()
            };
            let submit = Command::Submit(key, Ok(Box::new(request)));
            orders.send(submit).expect("it listens");
        }
        Serving::new(engine, theirs).serve(&commands);
        let mut reports = BufReader::new(ours);
        let (mut tokens, mut fault) = (0, None);
        while let Some(report) = message::receive(&mut reports).expect("reports are whole") {
            assert_eq!(fault, None, "nothing comes behind a fault");
            match report {
                Report::Step {
                    news, completed, ..
                } => {
                    assert!(news.iter().all(|n| matches!(n, News::Token { .. })));
                    tokens += news.len();
                    assert!(completed <= 3);
                }
                Report::Fault(text) => fault = Some(text),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tokens, 6);
        assert_eq!(fault.as_deref(), Some("an illegal access, on purpose"));
    }
}
