//! What can be wrong with a bundle, and by whose fault it is.

use crate::hash::Digest;

/// Whose fault an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The file is damaged, cut off, or no bundle at all.
    Corrupt,
    /// The file holds something that this version doesn't know.
    Unsupported,
    /// The program that uses this crate broke a rule of its API.
    Caller,
    /// The sink of a [`crate::write::Writer`] failed.
    Io,
}

/// An error of the reader or of the writer. Offsets count bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "not a bundle: the file starts with {found}, expected {expected}; give a file that `fastc compile` wrote"
    )]
    NotABundle { expected: String, found: String },

    #[error(
        "the bundle is cut off in its {section} section, which starts at offset {offset}: expected {expected} bytes of file, \
         found {found}; copy or compile it again"
    )]
    Truncated {
        section: &'static str,
        offset: u64,
        expected: u64,
        found: u64,
    },

    #[error(
        "the {section} section is damaged: its {len} bytes at offset {offset} should hash to {expected} but hash to {found}; \
         copy or compile the bundle again"
    )]
    HashMismatch {
        section: &'static str,
        offset: u64,
        len: u64,
        expected: Digest,
        found: Digest,
    },

    #[error(
        "the weights section is damaged: chunk {chunk}, {len} bytes at offset {offset}, should hash to {expected} but hashes \
         to {found}; copy or compile the bundle again"
    )]
    ChunkMismatch {
        chunk: u64,
        offset: u64,
        len: u64,
        expected: Digest,
        found: Digest,
    },

    #[error(
        "the {section} section is malformed at offset {offset}: {what}: expected {expected}, found {found}; compile the \
         bundle again"
    )]
    Malformed {
        section: &'static str,
        offset: u64,
        what: String,
        expected: String,
        found: String,
    },

    #[error(
        "unsupported bundle: the {section} section at offset {offset}: {what}: expected {expected}, found {found}; use a \
         runner of the compiler's version, or compile the bundle again"
    )]
    Unsupported {
        section: &'static str,
        offset: u64,
        what: String,
        expected: String,
        found: String,
    },

    #[error(
        "misuse of bundle-format: {what}: expected {expected}, found {found}; please report it"
    )]
    Caller {
        what: String,
        expected: String,
        found: String,
    },

    #[error("writing the bundle failed: {0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotABundle { .. }
            | Error::Truncated { .. }
            | Error::HashMismatch { .. }
            | Error::ChunkMismatch { .. }
            | Error::Malformed { .. } => ErrorKind::Corrupt,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::Caller { .. } => ErrorKind::Caller,
            Error::Io(_) => ErrorKind::Io,
        }
    }

    /// The section that the error is about, where it is about one.
    pub fn section(&self) -> Option<&'static str> {
        match self {
            Error::NotABundle { .. } => Some("header"),
            Error::Truncated { section, .. }
            | Error::HashMismatch { section, .. }
            | Error::Malformed { section, .. }
            | Error::Unsupported { section, .. } => Some(section),
            Error::ChunkMismatch { .. } => Some("weights"),
            Error::Caller { .. } | Error::Io(_) => None,
        }
    }

    /// Where in the file the error is, where it is at a place.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Error::NotABundle { .. } => Some(0),
            Error::Truncated { offset, .. }
            | Error::HashMismatch { offset, .. }
            | Error::ChunkMismatch { offset, .. }
            | Error::Malformed { offset, .. }
            | Error::Unsupported { offset, .. } => Some(*offset),
            Error::Caller { .. } | Error::Io(_) => None,
        }
    }

    pub(crate) fn caller(
        what: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> Error {
        Error::Caller {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
