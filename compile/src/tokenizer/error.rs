//! What can be wrong with a vocabulary.

use bundle_format::tokenizer::Special;

/// Every variant says which key or token it is about.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("tokenizer.ggml.model is {found:?}; this build compiles {supported}")]
    UnknownModel { found: String, supported: String },
    #[error("tokenizer.ggml.pre is {found}; this build compiles {supported}")]
    UnknownPre { found: String, supported: String },
    #[error("tokenizer.ggml.tokens: {found} tokens, at most {most} fit")]
    TooMany { found: usize, most: usize },
    #[error("tokenizer.ggml.tokens: tokens {first} and {second} are both {text:?}")]
    Duplicate {
        first: u32,
        second: u32,
        text: String,
    },
    #[error("{found} {what} for {tokens} tokens; there must be one a token")]
    Count {
        what: &'static str,
        found: usize,
        tokens: usize,
    },
    #[error("tokenizer.ggml.token_type: token {id} has type {found}; types are 0 to 6")]
    TokenType { id: u32, found: i32 },
    #[error("token {id} is of the byte type, but is {text:?}; expected <0x00> to <0xFF>")]
    ByteToken { id: u32, text: String },
    #[error("tokenizer.ggml.scores: the score of token {id} is not a number")]
    Score { id: u32 },
    #[error("special token {id} is not UTF-8")]
    SpecialUtf8 { id: u32 },
    #[error("the id of the {which:?} token is {id}, in a vocabulary of {tokens} tokens")]
    SpecialRange {
        which: Special,
        id: u32,
        tokens: usize,
    },
    #[error("the model adds a {which:?} token to prompts, but names none")]
    MissingSpecial { which: Special },
    #[error(
        "tokenizer.ggml.merges: merge {rank} is {text:?}; expected two tokens with a space between"
    )]
    MergeForm { rank: usize, text: String },
    #[error(
        "tokenizer.ggml.merges: merge {rank} ({text:?}) needs the token {token:?}, which the vocabulary lacks"
    )]
    MergeToken {
        rank: usize,
        text: String,
        token: String,
    },
    #[error(transparent)]
    Format(#[from] bundle_format::tokenizer::Error),
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::UnknownModel { .. } | Error::UnknownPre { .. } | Error::TooMany { .. } => {
                Self::Unsupported(text)
            }
            Error::Format(_) => Self::Bug(text),
            _ => Self::User(text),
        }
    }
}
