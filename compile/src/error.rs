//! What can go wrong in the compiler, by whose fault it is.

/// Every variant's text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's input: a wrong file, a bad argument.
    #[error("{0}")]
    User(String),
    /// Valid input that this build can't compile.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A broken promise of our own code.
    #[error("bug in fastc: {0}; please report it")]
    Bug(String),
}
