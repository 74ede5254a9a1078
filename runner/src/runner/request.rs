//! What a caller asks for.

use std::time::Duration;

use crate::chat::ChatRequest;
use crate::device::SampleParams;
use crate::grammar::Grammar;

/// What the answer continues.
#[derive(Clone, Debug)]
pub enum Input {
    /// Text as it is, without the chat template. Text that spells a control token stays text; BOS comes before it where the
    /// model wants it.
    Text(String),
    /// Token ids, fed as they are.
    Tokens(Vec<u32>),
    /// Messages, through the model's chat template.
    Chat(ChatRequest),
}

impl From<&str> for Input {
    fn from(text: &str) -> Input {
        Input::Text(text.to_owned())
    }
}

impl From<String> for Input {
    fn from(text: String) -> Input {
        Input::Text(text)
    }
}

impl From<Vec<u32>> for Input {
    fn from(tokens: Vec<u32>) -> Input {
        Input::Tokens(tokens)
    }
}

impl From<ChatRequest> for Input {
    fn from(chat: ChatRequest) -> Input {
        Input::Chat(chat)
    }
}

/// One prompt, and how to answer it.
///
/// [`GenerateRequest::new`] fills in the defaults; set the fields that differ.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub input: Input,
    /// Most tokens of an answer; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// By default as `fastrun` samples: top-k 40, top-p 0.95, min-p 0.05, temperature 0.8, and another seed each time.
    pub sampling: SampleParams,
    /// Answers to give; number `i` is drawn with the seed `sampling.seed + i`.
    pub choices: u32,
    /// Strings that end an answer and are not part of it.
    pub stop: Vec<String>,
    /// Go on where the model would end its answer.
    pub ignore_eos: bool,
    /// Tell the log-probability of each token, and of this many of the likeliest in its place.
    pub logprobs: Option<u32>,
    /// Tell the log-probability of each token of the prompt but the first, and of this many of the likeliest in its place
    /// ([`Update::Prompt`](super::Update::Prompt)). Nothing of the prompt is taken from the KV cache then.
    pub prompt_logprobs: Option<u32>,
    /// Added to the logits of these tokens; each id once.
    pub bias: Vec<(u32, f32)>,
    /// What an answer must match.
    pub grammar: Option<Grammar>,
    /// Ends the request with [`FinishReason::Timeout`](crate::FinishReason::Timeout) when it has taken this long.
    pub timeout: Option<Duration>,
    /// Requests share the KV cache of a common prefix only with those of the same salt.
    pub cache_salt: u64,
}

impl GenerateRequest {
    pub fn new(input: impl Into<Input>) -> GenerateRequest {
        GenerateRequest {
            input: input.into(),
            max_tokens: None,
            sampling: SampleParams {
                top_k: 40,
                top_p: 0.95,
                min_p: 0.05,
                temperature: 0.8,
                seed: random_seed(),
                ..SampleParams::default()
            },
            choices: 1,
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            bias: Vec::new(),
            grammar: None,
            timeout: None,
            cache_salt: 0,
        }
    }
}

/// 64 bits that differ from call to call: the standard library keys its hash maps from the system's randomness.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed")
}
