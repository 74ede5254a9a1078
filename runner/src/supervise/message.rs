//! What a server and its worker process tell each other: frames of a length, 4 bytes little-endian, and an encoded message.

use std::io::{self, Read, Write};

use bundle_format::codec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::device::{LogProbs, SampleParams, Stability};
use crate::grammar::Grammar;
use crate::runner::DeviceKind;
use crate::spec::NgramSpec;
use crate::{Error, FinishReason, Request, Stats};

/// What the worker is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The first one, once.
    Open(Setup),
    Submit(Box<Task>),
    /// All answers of a task.
    Cancel(u64),
    CancelChoice(u64, u32),
}

/// What a worker opens, and how it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The bundle's path, in bytes as the system has them.
    pub bundle: Vec<u8>,
    pub device: DeviceKind,
    pub threads: Option<usize>,
    pub kv_memory: Option<u64>,
    pub prefix_cache: bool,
    pub spec: Option<NgramSpec>,
    pub token_budget: Option<u32>,
    pub stability: Option<Stability>,
}

/// A request, or one answer of it that goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Names the task; ascending, and never used again.
    pub key: u64,
    pub prompt: Vec<u32>,
    pub answered: Vec<u32>,
    pub max_tokens: Option<u32>,
    pub sampling: SampleParams,
    pub stop: Vec<u32>,
    pub choices: u32,
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub bias: Vec<(u32, f32)>,
    pub grammar: Option<Form>,
    pub cache_salt: u64,
    pub hidden: bool,
    pub spec: bool,
}

impl Task {
    /// A request's fields, under a name. Its deadline stays where the clock is.
    pub fn new(key: u64, request: &Request) -> Task {
        Task {
            key,
            prompt: request.prompt.clone(),
            answered: request.answered.clone(),
            max_tokens: request.max_tokens,
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            choices: request.choices,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            bias: request.bias.to_vec(),
            grammar: request.grammar.as_ref().map(|g| Form::of(g.source())),
            cache_salt: request.cache_salt,
            hidden: request.hidden,
            spec: request.spec,
        }
    }
}

/// A [`Grammar`]; the schema as text, for JSON's values have no type that the encoding could go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    Json,
    JsonSchema(String),
    Regex(String),
    Lark(String),
}

impl Form {
    fn of(grammar: &Grammar) -> Form {
        match grammar {
            Grammar::Json => Form::Json,
            Grammar::JsonSchema(schema) => Form::JsonSchema(schema.to_string()),
            Grammar::Regex(regex) => Form::Regex(regex.clone()),
            Grammar::Lark(text) => Form::Lark(text.clone()),
        }
    }

    /// # Errors
    /// [`Error::Bug`] for a schema that is no JSON.
    pub fn grammar(self) -> Result<Grammar, Error> {
        Ok(match self {
            Form::Json => Grammar::Json,
            Form::JsonSchema(text) => Grammar::JsonSchema(
                serde_json::from_str(&text)
                    .map_err(|e| Error::Bug(format!("a schema came as no JSON: {e}")))?,
            ),
            Form::Regex(regex) => Grammar::Regex(regex),
            Form::Lark(text) => Grammar::Lark(text),
        })
    }
}

/// What the worker tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// The bundle and the device are open.
    Ready {
        /// Blocks of the smallest KV pool.
        kv_blocks: u32,
        /// The bundle's root hash.
        root: String,
    },
    /// They are not; the worker ends.
    Refused(Error),
    /// A step has ended, or some tasks have.
    Step {
        news: Vec<News>,
        stats: Stats,
        /// Steps that have ended well so far.
        completed: u64,
        /// Tasks that were taken so far.
        taken: u64,
    },
    /// The device failed for good; the worker ends. The text is that of [`Error::Fault`].
    Fault(String),
}

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum News {
    Token {
        key: u64,
        choice: u32,
        token: u32,
        logprobs: Option<LogProbs>,
        /// With the choice's first token here: tokens of the prompt that were found in the prefix cache.
        cached: Option<u32>,
    },
    /// How likely the prompt's tokens are, from the second one on: all of them, before the first token.
    Scored { key: u64, scores: Vec<LogProbs> },
    /// Hidden states of tokens of the prompt, added up.
    Hidden { key: u64, rows: u32, sum: Vec<f64> },
    Finished {
        key: u64,
        choice: u32,
        reason: FinishReason,
        cached: u32,
    },
}

/// Writes a message.
///
/// # Errors
/// Those of `to`; [`io::ErrorKind::InvalidData`] for a message that has no encoding.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&frame(message)?)
}

/// A message as it is written.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a message that has no encoding, or one that nobody would read.
pub fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = codec::encode(message).map_err(invalid)?;
    if body.len() > codec::MAX_DECODE_LEN {
        return Err(invalid(format!(
            "a message of {} bytes, where {} are the most",
            body.len(),
            codec::MAX_DECODE_LEN
        )));
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    Ok(frame)
}

/// Reads the next message; none at the end, even one within a message: whoever was to write the rest is gone.
///
/// # Errors
/// Those of `from`; [`io::ErrorKind::InvalidData`] for what is no message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    if !fill(from, &mut len)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > codec::MAX_DECODE_LEN {
        return Err(invalid(format!("a message of {len} bytes")));
    }
    let mut body = vec![0; len];
    if !fill(from, &mut body)? {
        return Ok(None);
    }
    codec::decode_message(&body).map(Some).map_err(invalid)
}

/// False: the end came first.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        // A process that was killed with orders unread.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(false),
        Err(e) => Err(e),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let request = Request {
            prompt: vec![1, 70_000],
            answered: vec![3],
            bias: [(1, -1.5)].into(),
            ..Request::default()
        };
        let mut task = Task::new(7, &request);
        task.grammar = Some(Form::of(&Grammar::JsonSchema(
            serde_json::json!({"type": "object", "properties": {"b": {}, "a": {}}}),
        )));
        Order::Submit(Box::new(task))
    }

    #[test]
    fn messages_come_as_they_were_sent() {
        let mut bytes = Vec::new();
        send(&mut bytes, &order()).expect("a vector takes all");
        send(&mut bytes, &Order::CancelChoice(7, 1)).expect("a vector takes all");
        let mut from = bytes.as_slice();
        assert_eq!(receive(&mut from).expect("it is whole"), Some(order()));
        let next: Option<Order> = receive(&mut from).expect("it is whole");
        assert_eq!(next, Some(Order::CancelChoice(7, 1)));
        assert_eq!(receive::<Order>(&mut from).expect("it ends"), None);
    }

    #[test]
    fn grammars_keep_the_order_of_their_properties() {
        let schema = serde_json::json!({"b": 1, "a": [null, 2.5]});
        let grammar = Grammar::JsonSchema(schema);
        assert_eq!(Form::of(&grammar).grammar(), Ok(grammar));
        assert!(Form::JsonSchema("{".into()).grammar().is_err());
    }

    #[test]
    fn a_message_that_breaks_off_is_none_and_nonsense_is_an_error() {
        let bytes = frame(&order()).expect("it has an encoding");
        for len in 0..bytes.len() {
            let cut: Option<Order> = receive(&mut &bytes[..len]).expect("it just ends");
            assert_eq!(cut, None);
        }
        assert!(receive::<Order>(&mut [255; 64].as_slice()).is_err());
        assert!(receive::<Order>(&mut [1, 0, 0, 0, 99].as_slice()).is_err());
    }
}
