//! Why a command failed.

use std::io;
use std::path::Path;

use fastrun::Error;

/// A command's failure.
#[derive(Debug)]
pub enum Failure {
    Run(Error),
    /// The device failed in the middle of an answer; what it said.
    Device(String),
    /// This machine has so many problems, which are told.
    Unfit(usize),
    /// Standard output can't be written.
    Output(io::Error),
}

impl Failure {
    /// Whether whoever read our output has gone: no reason to complain.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Run(error) => error.fmt(f),
            Failure::Device(text) => write!(f, "the answer breaks off: {text}"),
            Failure::Unfit(problems) => {
                let problems = match problems {
                    1 => "a problem".to_string(),
                    n => format!("{n} problems"),
                };
                write!(f, "this machine has {problems}")
            }
            Failure::Output(error) => write!(f, "can't write to standard output: {error}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Run(error)
    }
}

/// Writing is the only I/O that commands do with `?`; see [`cannot_read`] for the rest.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// The user's error for an unreadable file.
pub fn cannot_read(path: &Path, error: &io::Error) -> Error {
    Error::User(format!("can't read {}: {error}", path.display()))
}
