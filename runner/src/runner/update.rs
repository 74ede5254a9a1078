//! What a caller is told of an answer.

use std::time::Duration;

use crate::FinishReason;

/// What happened to one of a request's answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The prompt's tokens, the first without a probability, where they were asked for: once, before all else.
    Prompt { tokens: Vec<TokenInfo> },
    /// The answer goes on.
    Delta {
        /// Which answer; below [`GenerateRequest::choices`](super::GenerateRequest::choices).
        choice: u32,
        /// Text that is certain to be part of the answer: whole characters, no start of a stop string. May be empty, where
        /// the tokens' text is not certain yet.
        text: String,
        /// The tokens that were drawn; none with the last text of an answer.
        tokens: Vec<TokenInfo>,
    },
    /// Nothing comes after it, of this answer.
    Finished {
        choice: u32,
        reason: FinishReason,
        usage: Usage,
        timings: Timings,
    },
}

/// A token of an answer or a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    pub id: u32,
    /// What it spells: maybe a part of a character, and for a control token its name, which is not part of the text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the token's probability in the model's own distribution, where it was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, likeliest first, where they were asked for.
    pub top: Vec<Alternative>,
}

/// A token that might have been drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Tokens of the answer; the one that ended it is not among them.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were in the KV cache already.
    pub cached_tokens: u32,
}

/// When an answer came, from the moment that its request was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Until the first token; none where none came.
    pub first_token: Option<Duration>,
    /// Until the end.
    pub total: Duration,
}
