//! What can go wrong in the runner, by whose fault it is.

use serde::{Deserialize, Serialize};

/// Every variant's text says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// The user's input: a wrong file, a bad argument, a prompt that doesn't fit.
    #[error("{0}")]
    User(String),
    /// Valid input that this build or this machine can't run.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// No request of this kind is taken now; the same is likely to work a little later.
    #[error("busy: {0}")]
    Busy(String),
    /// A GPU that failed in the middle of its work: it reached for memory that isn't there, hung, or was reset. What it holds
    /// is lost; another process may use it again.
    #[error("the GPU failed: {0}")]
    Fault(String),
    /// A broken promise of our own code.
    #[error("bug in fastrun: {0}; please report it")]
    Bug(String),
}

impl Error {
    /// What happened, without whose fault it is: for errors that say so in their own words.
    pub(crate) fn text(&self) -> &str {
        match self {
            Error::User(text)
            | Error::Unsupported(text)
            | Error::Busy(text)
            | Error::Fault(text)
            | Error::Bug(text) => text,
        }
    }
}
