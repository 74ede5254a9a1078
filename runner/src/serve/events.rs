//! Answers as server-sent events: a chunk of JSON for each piece of news, `[DONE]` at the end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::answer::{Answers, News, Tokens};

/// Proxies cut connections on which nothing moves: a comment is sent after this time without news.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Turns news into the JSON of an endpoint's chunks.
pub trait Chunks: Send + Unpin + 'static {
    /// The chunks of one piece of news, none or several.
    fn chunks(&mut self, news: News) -> Vec<Value>;

    /// The last chunks, once all choices have ended.
    fn last(&mut self, usage: Tokens) -> Vec<Value>;
}

/// A response that streams answers.
pub fn response(answers: Answers, first: Vec<Value>, chunks: impl Chunks) -> Response {
    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let body = Events {
        answers,
        chunks,
        ready: first.iter().map(event).collect(),
        heartbeat,
        done: false,
    };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would wait for more before it sends anything on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn event(json: &Value) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}

struct Events<C> {
    answers: Answers,
    chunks: C,
    ready: VecDeque<Bytes>,
    heartbeat: Interval,
    done: bool,
}

impl<C: Chunks> HttpBody for Events<C> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                this.heartbeat.reset();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.done {
                return Poll::Ready(None);
            }
            match this.answers.poll_next(cx) {
                Poll::Ready(Some(news)) => {
                    this.ready
                        .extend(this.chunks.chunks(news).iter().map(event));
                }
                Poll::Ready(None) => {
                    let last = this.chunks.last(this.answers.usage());
                    this.ready.extend(last.iter().map(event));
                    this.ready
                        .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                    this.done = true;
                }
                Poll::Pending => {
                    std::task::ready!(this.heartbeat.poll_tick(cx));
                    this.ready
                        .push_back(Bytes::from_static(b": still at it\n\n"));
                }
            }
        }
    }
}
