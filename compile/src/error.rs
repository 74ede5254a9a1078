//! What can go wrong in the compiler, by whose fault it is.

use std::fmt::Display;

/// Every variant's text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's input: a wrong or damaged file, a bad argument, a full disk.
    #[error("{0}")]
    User(String),
    /// Valid input that this build can't compile.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A broken promise of our own code.
    #[error("bug in fastc: {0}; please report it")]
    Bug(String),
}

impl Error {
    /// The same error with `what` and a colon before its text: a file's name, say.
    pub fn context(self, what: impl Display) -> Self {
        match self {
            Error::User(text) => Error::User(format!("{what}: {text}")),
            Error::Unsupported(text) => Error::Unsupported(format!("{what}: {text}")),
            Error::Bug(text) => Error::Bug(format!("{what}: {text}")),
        }
    }
}
