//! A bundle that is open and answers: the library's front door.
//!
//! A [`Runner`] owns one thread with the device and the engine; it may be cloned and used from any number of threads, whose
//! requests run together. [`options`] says how to open it, [`request`] what to ask, [`update`] what comes back through a
//! [`generation`]. On the thread, [`worker`] steps the engine, and [`answer`] turns its tokens into text.

mod answer;
mod backend;
mod embedding;
mod generation;
mod model;
mod options;
mod request;
mod shared;
#[cfg(test)]
mod tests;
mod update;
mod worker;

use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

pub(crate) use backend::{Backend, Told, Wait, step};
pub use embedding::Embedding;
pub(crate) use embedding::Rows;
pub use generation::{Canceller, Generation, Handle};
pub use model::ModelInfo;
pub use options::{DeviceKind, RunnerOptions};
pub use request::{GenerateRequest, Input, random_seed};
pub use update::{Alternative, Timings, TokenInfo, Update, Usage};

use crate::load::Loaded;
use crate::supervise::Supervision;
use crate::tokenizer::Tokenizer;
use crate::{Error, Request, RequestId, Stats};
use model::Model;
use shared::Shared;
use worker::{Command, Submission, Wanted};

/// An opened bundle that serves requests, many at a time.
///
/// Clones are the same runner. Its thread ends with the last of them and of the requests that they made.
#[derive(Clone, Debug)]
pub struct Runner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Arc<Model>,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    worker: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Runner {
    /// Opens a bundle to run it on this machine's processor.
    ///
    /// # Errors
    /// Those of [`Loaded::open`] and of the device.
    pub fn open(path: impl AsRef<Path>) -> Result<Runner, Error> {
        Self::open_with(path, &RunnerOptions::default())
    }

    /// As [`Runner::open`].
    ///
    /// # Errors
    /// Besides, [`Error::User`] for options that make no sense.
    pub fn open_with(path: impl AsRef<Path>, options: &RunnerOptions) -> Result<Runner, Error> {
        let loaded = Arc::new(Loaded::open(path.as_ref())?);
        if options.verify {
            loaded.verify_weights(&|_| {})?;
        }
        Self::start(Arc::new(Model::open(loaded)?), options)
    }

    fn start(model: Arc<Model>, options: &RunnerOptions) -> Result<Runner, Error> {
        let shared = Arc::new(Shared::default());
        let (commands, received) = mpsc::channel();
        let (opened, outcome) = mpsc::sync_channel(1);
        let thread = {
            let (model, shared, options) = (model.clone(), shared.clone(), options.clone());
            let inbox = commands.clone();
            thread::Builder::new()
                .name("fastrun engine".into())
                .spawn(move || worker::run(&model, &options, &shared, inbox, &received, &opened))
                .map_err(|e| Error::User(format!("can't start the engine's thread: {e}")))?
        };
        // It ends without a word only where it panicked.
        outcome.recv().map_err(|_| dead())??;
        Ok(Runner {
            inner: Arc::new(Inner {
                model,
                shared,
                commands,
                worker: thread.thread().id(),
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// What is known of the model.
    pub fn model(&self) -> &ModelInfo {
        self.inner.model.info()
    }

    /// The model's tokenizer, to encode and decode with.
    pub fn tokenizer(&self) -> Tokenizer<'_> {
        self.inner.model.tokenizer()
    }

    /// The tokens that a request with this input feeds the model.
    ///
    /// # Errors
    /// [`Error::User`] for messages that the chat template refuses, [`Error::Unsupported`] for a chat where there is no
    /// template, or one that can't be run.
    pub fn encode(&self, input: &Input) -> Result<Vec<u32>, Error> {
        self.inner.model.encode(input)
    }

    /// Answers a request; the updates wait for whoever takes them.
    ///
    /// # Errors
    /// Those of [`Runner::submit`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, Error> {
        let (sender, updates) = mpsc::channel();
        let choices = request.choices;
        let sink = move |update| {
            // Whoever has dropped the receiver has cancelled the request.
            let _ = sender.send(update);
        };
        let handle = self.submit(request, sink)?;
        Ok(Generation::new(updates, handle, choices))
    }

    /// Answers a request; `sink` is called with each update, on the engine's thread. It must not block, for everybody's
    /// requests wait meanwhile, and can't make requests itself. If it panics, the request is cancelled.
    ///
    /// It returns when the engine has taken the request, which may be after the step that is running.
    ///
    /// # Errors
    /// Those of [`Runner::encode`]; [`Error::User`] for a prompt that is empty or has no room, and for parameters that make
    /// no sense; [`Error::Busy`] where the queue is full or the runner drains.
    pub fn submit(
        &self,
        request: GenerateRequest,
        sink: impl FnMut(Update) + Send + 'static,
    ) -> Result<Handle, Error> {
        let start = Instant::now();
        let prompt = self.encode(&request.input)?;
        let grammar = request.grammar.as_ref();
        let engine_request = Request {
            prompt,
            max_tokens: request.max_tokens,
            sampling: request.sampling,
            stop: match request.ignore_eos {
                true => Vec::new(),
                false => self.tokenizer().vocab().end_of_generation().collect(),
            },
            choices: request.choices,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            bias: request.bias.into(),
            grammar: grammar
                .map(|g| self.inner.model.constraint(g))
                .transpose()?,
            // A time that is beyond all clocks is none.
            deadline: request.timeout.and_then(|time| start.checked_add(time)),
            cache_salt: request.cache_salt,
            ..Request::default()
        };
        let wanted = Wanted::Answers {
            stop: request.stop,
            sink: Box::new(sink),
        };
        self.start_request(engine_request, wanted, start)
    }

    /// What a text means, as far as the model tells.
    ///
    /// # Errors
    /// Those of [`Runner::submit`].
    pub fn embed(&self, input: impl Into<Input>) -> Result<Embedding, Error> {
        let embeddings = self.embed_all([input.into()])?;
        let embedding = embeddings.into_iter().next();
        embedding.ok_or_else(|| Error::Bug("one input has no embedding".into()))
    }

    /// What some texts mean, in their order; they are computed together.
    ///
    /// # Errors
    /// Those of [`Runner::submit`], of the first text that has one.
    pub fn embed_all(
        &self,
        inputs: impl IntoIterator<Item = Input>,
    ) -> Result<Vec<Embedding>, Error> {
        if !self.inner.model.has_hidden_states() {
            return Err(Error::Unsupported(
                "this bundle keeps no hidden states, which embeddings are made of; compile the model again".into(),
            ));
        }
        // If one fails, dropping the others cancels them.
        let mut running = Vec::new();
        for input in inputs {
            let request = Request {
                prompt: self.encode(&input)?,
                hidden: true,
                ..Request::default()
            };
            let (reply, outcome) = mpsc::sync_channel(1);
            let wanted = Wanted::Embedding(reply);
            let handle = self.start_request(request, wanted, Instant::now())?;
            running.push((outcome, handle));
        }
        let outcomes = running.iter().map(|(outcome, _)| outcome.recv());
        outcomes
            .map(|outcome| outcome.map_err(|_| dead())?)
            .collect()
    }

    fn start_request(
        &self,
        request: Request,
        wanted: Wanted,
        start: Instant,
    ) -> Result<Handle, Error> {
        if thread::current().id() == self.inner.worker {
            return Err(Error::User(
                "a sink can't make requests, for it runs on the thread that would have to take them; make them on another \
                 thread"
                    .into(),
            ));
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let request = Box::new(Submission {
            request,
            wanted,
            start,
        });
        self.inner.send(Command::Submit { request, reply });
        let id: RequestId = answer.recv().map_err(|_| dead())??;
        Ok(Handle::new(self.inner.clone(), id))
    }

    /// The engine in figures, as of its last step.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// What became of the engine's process; none where it is a thread ([`RunnerOptions::supervise`]).
    pub fn supervision(&self) -> Option<Supervision> {
        self.inner.shared.supervision()
    }

    /// Calls `listener` when the engine's process could not be kept going ([`Supervision::failure`]): all requests have ended
    /// then, or are about to, and no more are taken. It is called on the engine's thread.
    pub fn on_failure(&self, listener: impl FnOnce(Error) + Send + 'static) {
        self.inner.shared.on_failure(Box::new(listener));
    }

    /// Takes no more requests, of any clone: they are [`Error::Busy`] from now on. Those that it has go on.
    pub fn drain(&self) {
        self.inner.shared.drain();
    }

    /// Waits until no request is left, or for `timeout`; whether none is. It must not be called by a sink.
    pub fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        self.inner.shared.wait_idle(timeout)
    }

    /// Drains, cancels all requests, and waits until they have ended. It must not be called by a sink.
    pub fn shutdown(&self) {
        self.drain();
        self.inner.send(Command::CancelAll);
        self.wait_idle(None);
    }
}

impl Inner {
    fn send(&self, command: Command) {
        // Only a thread that panicked while it dealt with a panic doesn't listen; then there is nothing to command.
        let _ = self.commands.send(command);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.send(Command::Stop);
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // A sink may have held the last runner; the thread can't wait for itself.
        if thread::current().id() != self.worker
            && let Some(thread) = thread.take()
        {
            // Its panic was told to all whom it concerned.
            let _ = thread.join();
        }
    }
}

fn dead() -> Error {
    Error::Bug("the engine's thread has ended".into())
}
