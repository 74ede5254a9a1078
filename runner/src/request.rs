//! What an engine is asked, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::device::{LogProbs, SampleParams};
use crate::grammar::Constraint;

/// Names a request of an engine. Ids ascend in the order of arrival and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// What is to be generated. Name what differs from the default and take the rest from it
/// (`..Request::default()`), for there will be more fields.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Tokens of the answer that are there already, from an engine that is no more: it goes on behind them as if it had
    /// drawn them, grammar, penalties and all, and tells those that follow. For one choice, without hidden states.
    pub answered: Vec<u32>,
    /// Most tokens to generate for each choice, those of `answered` included; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Choice `i` draws with the seed `sampling.seed + i` (wrapping): its answer is that of a request with that seed alone.
    pub sampling: SampleParams,
    /// Ids that end the answer and are not part of it.
    pub stop: Vec<u32>,
    /// Answers to generate, of one computation of the prompt; at least one.
    pub choices: u32,
    /// Give the log-probability of each token, and of this many of the likeliest in its place.
    pub logprobs: Option<u32>,
    /// Give the log-probability of each token of the prompt but the first, and of this many of the likeliest in its place
    /// ([`Event::Scored`]), before the first token of an answer. The prompt is computed as a whole then: nothing of it is taken
    /// from the prefix cache.
    pub prompt_logprobs: Option<u32>,
    /// Added to the logits of these tokens; each id once.
    pub bias: Arc<[(u32, f32)]>,
    /// What the answer must match. It ends with [`FinishReason::Stop`] where nothing can follow.
    pub grammar: Option<Constraint>,
    /// When [`Engine::expire`](crate::Engine::expire) ends the request.
    pub deadline: Option<Instant>,
    /// Requests share cached prefixes with those of the same salt alone: whether a prefix is cached shows in the time that
    /// an answer takes, and so tells what others have asked.
    pub cache_salt: u64,
    /// Give the hidden state of each token of the prompt ([`Event::Hidden`]) and generate nothing. The request ends with
    /// [`FinishReason::Stop`].
    pub hidden: bool,
    /// Let the engine guess tokens ahead ([`Config::spec`](crate::Config::spec)). The answer is the same either way.
    pub spec: bool,
}

impl Default for Request {
    /// No prompt, one choice, the model's own distribution.
    fn default() -> Request {
        Request {
            prompt: Vec::new(),
            answered: Vec::new(),
            max_tokens: None,
            sampling: SampleParams::default(),
            stop: Vec::new(),
            choices: 1,
            logprobs: None,
            prompt_logprobs: None,
            bias: Arc::new([]),
            grammar: None,
            deadline: None,
            cache_salt: 0,
            hidden: false,
            spec: true,
        }
    }
}

/// Why a request's choice ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model drew a stop id, the grammar has no continuation, or all hidden states were given.
    Stop,
    /// The most tokens, the end of the context, or the end of the KV memory was reached.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// Its deadline passed.
    Timeout,
    /// The device failed; the text says how.
    Error(String),
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FinishReason::Stop => f.write_str("stop"),
            FinishReason::Length => f.write_str("length"),
            FinishReason::Cancelled => f.write_str("cancelled"),
            FinishReason::Timeout => f.write_str("timeout"),
            FinishReason::Error(text) => write!(f, "error: {text}"),
        }
    }
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next token of an answer.
    Token {
        id: RequestId,
        /// Below [`Request::choices`].
        choice: u32,
        token: u32,
        /// As [`Request::logprobs`] asked for.
        logprobs: Option<LogProbs>,
    },
    /// How likely a token of the prompt was to follow those before it. Positions ascend, from 1 on; once for all choices.
    Scored {
        id: RequestId,
        position: u32,
        /// As [`Request::prompt_logprobs`] asked for; `token` is the prompt's own.
        logprobs: LogProbs,
    },
    /// The hidden state that the output head would read at a position of the prompt. Positions ascend.
    Hidden {
        id: RequestId,
        position: u32,
        /// `[D]` f32, after the final norm.
        row: Vec<f32>,
    },
    /// Nothing of this choice comes after it. Every choice of an accepted request ends so, once.
    Finished {
        id: RequestId,
        choice: u32,
        reason: FinishReason,
        /// Tokens of the prompt that were not computed, for they were found in the prefix cache.
        cached_tokens: u32,
    },
}
