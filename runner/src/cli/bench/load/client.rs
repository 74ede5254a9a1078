//! One request of the load: sent, and its stream read with a clock in hand.

use std::time::Duration;

use fastrun::Error;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where the server is.
pub struct Server {
    host: String,
    port: u16,
    /// Before `/v1`.
    base: String,
    api_key: Option<String>,
}

/// A request to make.
pub struct Request {
    pub body: String,
    /// When it came up, whether or not a client was free then; none: when it is sent.
    pub arrival: Option<Instant>,
}

/// What came of a request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From its arrival to its first token.
    pub first_token: Duration,
    /// Between pieces of text.
    pub gaps: Vec<Duration>,
    /// From its arrival to its end.
    pub total: Duration,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

impl Server {
    /// Of `http://HOST:PORT`, maybe with a path behind it.
    pub fn parse(url: &str, api_key: Option<String>) -> Result<Server, Error> {
        let wrong =
            |why: &str| Error::User(format!("--serve {url}: {why}; expected http://HOST:PORT"));
        if url.starts_with("https://") {
            return Err(Error::Unsupported(format!(
                "--serve {url}: this client speaks no TLS; give the server's own address, before its proxy"
            )));
        }
        let uri: hyper::Uri = url.parse().map_err(|_| wrong("it is no address"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("it doesn't begin with http://"));
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let base = uri.path().trim_end_matches('/');
        Ok(Server {
            host: host.ok_or_else(|| wrong("it has no host"))?.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            api_key,
        })
    }

    /// The first model that the server has, as it describes it.
    pub async fn model(&self) -> Result<Value, Error> {
        let failed = |why: String| {
            Error::User(format!(
                "can't ask http://{}:{} for its models: {why}; is the server running there?",
                self.host, self.port
            ))
        };
        let response = self.send(Method::GET, "/v1/models", String::new()).await;
        let response = response.map_err(failed)?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|e| failed(e.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(failed(said(status.as_u16(), &body)));
        }
        let json: Value = serde_json::from_slice(&body)
            .map_err(|e| failed(format!("its answer is not JSON ({e})")))?;
        match json["data"].get(0) {
            Some(model) => Ok(model.clone()),
            None => Err(failed("it has none".into())),
        }
    }

    /// Makes a request and reads its answer to the end; an error says why there is none.
    pub async fn complete(&self, request: &Request) -> Result<Outcome, String> {
        let arrival = request.arrival.unwrap_or_else(Instant::now);
        let body = request.body.clone();
        let response = self.send(Method::POST, "/v1/completions", body).await?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await;
            let body = body.map_err(|e| e.to_string())?.to_bytes();
            return Err(said(status.as_u16(), &body));
        }
        let mut reading = Reading::new(arrival);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| format!("the answer breaks off: {e}"))?;
            if let Ok(data) = frame.into_data() {
                reading.push(&data, Instant::now())?;
            }
        }
        reading.finish(Instant::now())
    }

    /// On a connection of its own, as of a client of its own.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Incoming>, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|e| format!("no connection: {e}"))?;
        let connected = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|e| e.to_string())?;
        // It ends with the body. Its errors are the body's too.
        tokio::spawn(connection);
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("host", format!("{}:{}", self.host, self.port))
            .header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|e| format!("the request can't be made: {e}"))?;
        sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())
    }
}

/// An error's status and message.
fn said(status: u16, body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|j| j["error"]["message"].as_str());
    match message {
        Some(message) => format!("status {status}: {message}"),
        None => format!("status {status}"),
    }
}

/// A stream of events, and when they came.
struct Reading {
    rest: Vec<u8>,
    arrival: Instant,
    /// When the last piece of text came.
    last: Option<Instant>,
    /// Pieces, where the server doesn't tell its tokens.
    pieces: u64,
    outcome: Outcome,
}

impl Reading {
    fn new(arrival: Instant) -> Reading {
        Reading {
            rest: Vec::new(),
            arrival,
            last: None,
            pieces: 0,
            outcome: Outcome::default(),
        }
    }

    fn push(&mut self, data: &[u8], now: Instant) -> Result<(), String> {
        self.rest.extend_from_slice(data);
        while let Some(end) = self.rest.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            if let Some(data) = event.strip_prefix(b"data: ") {
                self.event(data.trim_ascii_end(), now)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, data: &[u8], now: Instant) -> Result<(), String> {
        if data == b"[DONE]" {
            return Ok(());
        }
        let json: Value =
            serde_json::from_slice(data).map_err(|e| format!("an event is not JSON: {e}"))?;
        if let Some(message) = json["error"]["message"].as_str() {
            return Err(message.to_owned());
        }
        let usage = &json["usage"];
        if let Some(tokens) = usage["completion_tokens"].as_u64() {
            let cached = &usage["prompt_tokens_details"]["cached_tokens"];
            self.outcome.completion_tokens = tokens;
            self.outcome.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
            self.outcome.cached_tokens = cached.as_u64().unwrap_or(0);
        }
        if json["choices"][0]["text"]
            .as_str()
            .is_some_and(|t| !t.is_empty())
        {
            self.pieces += 1;
            match self.last.replace(now) {
                None => self.outcome.first_token = now - self.arrival,
                Some(last) => self.outcome.gaps.push(now - last),
            }
        }
        Ok(())
    }

    fn finish(mut self, now: Instant) -> Result<Outcome, String> {
        if self.last.is_none() {
            return Err("the answer is empty".into());
        }
        self.outcome.total = now - self.arrival;
        if self.outcome.completion_tokens == 0 {
            self.outcome.completion_tokens = self.pieces;
        }
        Ok(self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let server = Server::parse("http://localhost:81/x/v1/", None).expect("valid");
        assert_eq!((server.host.as_str(), server.port), ("localhost", 81));
        assert_eq!(server.base, "/x");
        assert!(Server::parse("localhost:80", None).is_err());
        assert!(matches!(
            Server::parse("https://x", None),
            Err(Error::Unsupported(_))
        ));
    }

    #[test]
    fn events_are_timed_wherever_they_are_cut() {
        let text = "data: {\"choices\": [{\"text\": \"a\"}]}\n\n: still at it\n\ndata: {\"choices\": [{\"text\": \"\"}]}\n\n\
                    data: {\"choices\": [{\"text\": \"b\"}]}\n\ndata: {\"choices\": [], \"usage\": {\"prompt_tokens\": 9, \
                    \"completion_tokens\": 3, \"prompt_tokens_details\": {\"cached_tokens\": 4}}}\n\ndata: [DONE]\n\n";
        let start = Instant::now();
        let mut reading = Reading::new(start);
        for (i, byte) in text.bytes().enumerate() {
            let now = start + Duration::from_millis(i as u64);
            reading.push(&[byte], now).expect("valid");
        }
        let outcome = reading
            .finish(start + Duration::from_secs(1))
            .expect("text came");
        let ms = |part: &str| text.find(part).expect("it is there") as u64 + part.len() as u64 - 1;
        let (a, b) = (ms("\"a\"}]}\n\n"), ms("\"b\"}]}\n\n"));
        assert_eq!(outcome.first_token, Duration::from_millis(a));
        assert_eq!(outcome.gaps, [Duration::from_millis(b - a)]);
        let tokens = (
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.completion_tokens,
        );
        assert_eq!(tokens, (9, 4, 3));
    }
}
