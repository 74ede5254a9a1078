//! A server with OpenAI's interface, over HTTP/1.1.
//!
//! In the order in which a request goes: [`listen`] accepts its connection; [`gate`] checks its key and the limits, and
//! [`track`] follows it to its end; a module for each endpoint reads its [`fields`] and [`params`]; [`answer`] is the engine's
//! answer to it as it comes, which [`events`] sends on. [`tools`] makes the model call tools, and reads its calls. [`error`] and
//! [`metrics`] are what clients and operators get to see of it; [`page`] is for people.
//!
//! All of it runs on one thread beside the engine's; what takes long (tokenising, templates, grammars) runs on a few others.

mod answer;
mod body;
mod chat;
mod completions;
mod embeddings;
mod error;
mod events;
mod fields;
mod gate;
mod head;
mod health;
mod listen;
mod logprobs;
mod metrics;
mod models;
mod page;
mod params;
mod tokens;
mod tools;
mod track;

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::Error;
use crate::runner::Runner;
use error::ApiError;
use metrics::Metrics;
use tools::CallFormat;

/// Most threads for what would hold up the server's own. They wait for the engine more than they compute.
const HELPERS: usize = 32;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name or address to listen at.
    pub host: String,
    /// 0: any free one.
    pub port: u16,
    /// What clients call the model.
    pub model: String,
    /// Keys of which a client must have one; none: everybody may.
    pub api_keys: Vec<String>,
    /// Origins whose pages may call the server, `*` for all; none: no others.
    pub cors: Vec<String>,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most tokens of a prompt; none: as many as the context has.
    pub max_prompt: Option<usize>,
    /// Most requests at a time.
    pub max_concurrent: usize,
    /// Most time that an answer may take.
    pub timeout: Option<Duration>,
    /// Most time that running requests have when the server is to end.
    pub drain_timeout: Duration,
    /// No line for each request on standard error.
    pub quiet: bool,
}

/// Serves until SIGTERM or SIGINT, then ends what runs. `listening` is told the address.
///
/// # Errors
/// The address is not to be had, or the system lacks what a server needs. The runner's, where its worker process could not
/// be kept going ([`Runner::on_failure`]).
pub fn serve(
    runner: Runner,
    options: ServeOptions,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPERS)
        .build()
        .map_err(|e| Error::Unsupported(format!("the server's threads can't be started: {e}")))?;
    let served = runtime.block_on(async {
        let listener = bind(&options.host, options.port).await?;
        let address = listener.local_addr().map_err(|e| {
            Error::Bug(format!(
                "the address that the server listens at is unknown: {e}"
            ))
        })?;
        let (failed, failure) = oneshot::channel();
        runner.on_failure(move |error| drop(failed.send(error)));
        let app = Arc::new(App::new(runner, options)?);
        // Before anybody knows that the server is there, and may end it.
        let signals = listen::Signals::new()?;
        listening(address);
        listen::serve(listener, routes(&app), &app, signals, failure).await
    });
    // A helper may still be tokenising for a client that has gone.
    runtime.shutdown_background();
    served
}

async fn bind(host: &str, port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((host, port)).await.map_err(|e| {
        Error::User(format!(
            "can't listen at {host}:{port}: {e}; choose another --host or --port"
        ))
    })
}

fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/metrics", get(health::metrics))
        .fallback(gate::no_such_path)
        .method_not_allowed_fallback(gate::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(
            app.clone(),
            gate::pass,
        ))
        .with_state(app.clone())
}

/// What all requests share.
struct App {
    runner: Runner,
    options: ServeOptions,
    metrics: Metrics,
    /// How the model calls tools; or why it can't.
    call_format: Result<CallFormat, String>,
    /// One permit for each request that may run.
    permits: Arc<Semaphore>,
    draining: AtomicBool,
    /// When the server started, in seconds since 1970.
    started: u64,
}

impl App {
    fn new(runner: Runner, options: ServeOptions) -> Result<App, Error> {
        Ok(App {
            call_format: CallFormat::of_model(&runner),
            permits: Arc::new(Semaphore::new(options.max_concurrent)),
            draining: AtomicBool::new(false),
            metrics: Metrics::default(),
            started: unix_time(),
            runner,
            options,
        })
    }

    /// Lets a request in, if there is room.
    fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.is_draining() {
            return Err(ApiError::draining());
        }
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::too_many(self.options.max_concurrent))
    }

    /// Whether a prompt of so many tokens may be computed; `param` is where it came from.
    fn check_prompt(&self, tokens: usize, param: &str) -> Result<(), ApiError> {
        let context = self.runner.model().context as usize;
        if let Some(most) = self.options.max_prompt.filter(|&most| tokens > most) {
            let message = format!(
                "the prompt has {tokens} tokens, and this server takes {most} (--max-prompt)"
            );
            return Err(ApiError::prompt_too_long(param, message));
        }
        match tokens {
            0 => Err(ApiError::invalid(param, "the prompt has no tokens")),
            _ if tokens >= context => {
                let message = format!(
                    "the prompt has {tokens} tokens, and the model's context is {context} with the answer"
                );
                Err(ApiError::prompt_too_long(param, message))
            }
            _ => Ok(()),
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Lets no more requests in; how many run.
    fn drain(&self) -> usize {
        self.draining.store(true, Ordering::Relaxed);
        self.running()
    }

    fn running(&self) -> usize {
        self.options.max_concurrent - self.permits.available_permits()
    }

    /// Returns once no request runs.
    async fn idle(&self) {
        // It fits: the command line limits it. The semaphore is never closed.
        let all = self.options.max_concurrent as u32;
        _ = self.permits.acquire_many(all).await;
    }
}

/// A line on standard error, with the time.
pub fn log(text: &str) {
    // There is nowhere to complain.
    _ = writeln!(std::io::stderr(), "{:.3} {text}", jiff::Timestamp::now());
}

fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// 128 bits that nobody can guess beforehand: the standard library's hashers are keyed by the system's randomness.
fn random() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(SystemTime::now()));
    half() << 64 | half()
}
