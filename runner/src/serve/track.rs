//! A request from its first byte to the last of its response: counted, logged, and given back what it held.
//!
//! The guard goes from the handler into the response's body, so that it ends when the body does, or the connection.

use std::io::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::App;

/// What a request's handler tells about it.
#[derive(Debug, Default)]
pub struct Story {
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub first_token: Option<Duration>,
    /// How its answer ended.
    pub reason: Option<&'static str>,
    /// What went wrong after the response had begun.
    pub error: Option<String>,
}

/// A request that is being served.
#[derive(Debug)]
pub struct Record {
    pub started: Instant,
    story: Mutex<Story>,
}

impl Record {
    /// Adds to the story.
    pub fn tell(&self, tell: impl FnOnce(&mut Story)) {
        // A story has no state in between that a panic could leave.
        tell(&mut self.story.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

/// Logs and counts a request when it ends.
pub struct Guard {
    app: Arc<App>,
    pub record: Arc<Record>,
    method: Method,
    path: String,
    endpoint: &'static str,
    /// None: there is no response yet.
    status: Option<StatusCode>,
    /// The response was sent to its end.
    complete: bool,
    /// Its share of --max-concurrent.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Guard {
    pub fn new(app: Arc<App>, method: Method, path: &str, endpoint: &'static str) -> Guard {
        Guard {
            app,
            record: Arc::new(Record {
                started: Instant::now(),
                story: Mutex::default(),
            }),
            method,
            path: path.to_owned(),
            endpoint,
            status: None,
            complete: false,
            permit: None,
        }
    }

    /// Goes along with the response.
    pub fn follow(mut self, response: Response) -> Response {
        self.status = Some(response.status());
        // Such a body is never asked for.
        self.complete = self.method == Method::HEAD || response.body().is_end_stream();
        response.map(|body| Body::new(Followed { body, guard: self }))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let took = self.record.started.elapsed();
        let status = match self.status {
            Some(status) if self.complete => status.as_u16(),
            _ => GONE,
        };
        self.app.metrics.request(self.endpoint, status, took);
        if self.app.options.quiet {
            return;
        }
        let mut line = format!(
            "{:.3} {} {} {status} {:.3}s",
            jiff::Timestamp::now(),
            self.method,
            self.path,
            took.as_secs_f64()
        );
        self.record.tell(|story| {
            if story.prompt_tokens > 0 {
                line += &format!(
                    " prompt={} cached={} completion={}",
                    story.prompt_tokens, story.cached_tokens, story.completion_tokens
                );
            }
            if let Some(time) = story.first_token {
                line += &format!(" first={:.3}s", time.as_secs_f64());
            }
            if let Some(reason) = story.reason {
                line += &format!(" reason={reason}");
            }
            if let Some(error) = &story.error {
                line += &format!(" error={error:?}");
            }
        });
        // There is nowhere to complain.
        _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// nginx' status of a request whose client went away.
const GONE: u16 = 499;

struct Followed {
    body: Body,
    guard: Guard,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.guard.complete = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
