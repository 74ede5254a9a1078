//! What can be wrong with a GGUF file: where, what was expected, what was found.

use std::fmt;

/// An error of the parser, of a typed metadata getter, or about a tensor's type.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Error {
    pub place: Place,
    /// Bytes from the file's start, where the error belongs to one place in the file.
    pub offset: Option<u64>,
    pub kind: ErrorKind,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GGUF {}", self.place)?;
        if let Some(offset) = self.offset {
            write!(f, " (byte {offset})")?;
        }
        write!(f, ": {}", self.kind)
    }
}

/// The part of the file that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Header,
    /// A metadata entry whose key isn't known yet, by position.
    Entry(u64),
    Key(Name),
    /// A tensor whose name isn't known yet, by position.
    TensorEntry(u64),
    Tensor(Name),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::Entry(i) => write!(f, "metadata entry {i}"),
            Place::Key(key) => write!(f, "key {key}"),
            Place::TensorEntry(i) => write!(f, "tensor entry {i}"),
            Place::Tensor(name) => write!(f, "tensor {name}"),
        }
    }
}

/// A key or tensor name of the file, made fit to print: quoted, escaped and cut, as it is untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(Box<str>);

/// Characters of a name that are shown.
const SHOWN: usize = 80;

impl Name {
    pub fn new(name: &[u8]) -> Self {
        // A character has at most four bytes; what follows could not be shown anyway.
        let head = &name[..name.len().min(4 * SHOWN + 4)];
        let text = String::from_utf8_lossy(head);
        let mut shown: String = text
            .chars()
            .take(SHOWN)
            .flat_map(char::escape_debug)
            .collect();
        if text.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Name(format!("`{shown}`").into())
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Name::new(name.as_bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ErrorKind {
    #[error(
        "expected the magic bytes `GGUF`, found `{}`: not a GGUF file",
        found.escape_ascii()
    )]
    NotGguf { found: [u8; 4] },
    #[error(
        "big-endian file of version {version}; only little-endian files can be read, convert it"
    )]
    BigEndian { version: u32 },
    #[error("expected version 2 or 3, found {found}{}", if *found == 1 { "; convert the model anew" } else { "" })]
    Version { found: u32 },
    #[error(
        "expected {needed} bytes of {what}, found the end of the file after {available}; is it complete?"
    )]
    Truncated {
        what: &'static str,
        needed: u64,
        available: u64,
    },
    #[error("expected at most {most} {what} in what is left of the file, found a count of {count}")]
    Count {
        what: &'static str,
        count: u64,
        most: u64,
    },
    #[error("expected a name of 1 to {most} bytes, found one of {found}")]
    NameLength { found: u64, most: u64 },
    #[error("expected UTF-8, found an invalid sequence at byte {valid_up_to} of the {what}")]
    NotUtf8 {
        what: &'static str,
        valid_up_to: usize,
    },
    #[error("expected a value type from 0 to 12, found {found}")]
    ValueType { found: u32 },
    #[error("expected a boolean of 0 or 1, found {found}")]
    Bool { found: u8 },
    #[error("expected arrays nested at most {most} deep, found more")]
    Nesting { most: u32 },
    #[error("expected each key once, found it again; it was first at byte {first}")]
    DuplicateKey { first: u64 },
    #[error("expected each tensor name once, found it again; it was first tensor entry {first}")]
    DuplicateTensor { first: usize },
    #[error("expected a power of two as alignment, found {found}")]
    Alignment { found: u32 },
    #[error("expected 1 to {most} dimensions, found {found}")]
    DimensionCount { found: u32, most: u32 },
    #[error("expected a size of at least 1, found 0 in dimension {dimension}")]
    ZeroDimension { dimension: usize },
    #[error("expected fewer than 2^63 elements and bytes, found dimensions {dims:?}")]
    TooLarge { dims: Vec<u64> },
    #[error("unknown tensor type {found}")]
    TensorType { found: u32 },
    #[error("expected rows of a multiple of {block} elements for type {type_name}, found {found}")]
    RowLength {
        type_name: &'static str,
        block: u32,
        found: u64,
    },
    #[error(
        "expected a data offset that is a multiple of the alignment {alignment}, found {found}"
    )]
    Misaligned { found: u64, alignment: u64 },
    #[error(
        "expected {needed} bytes of data at {start} of the tensor data, found only {available} bytes of tensor data; the file is \
         incomplete, fetch it again"
    )]
    DataTruncated {
        start: u64,
        needed: u64,
        available: u64,
    },
    #[error("expected data of its own, found an overlap with tensor {other}")]
    Overlap { other: Name },
    #[error("expected {expected}, found no such key")]
    MissingKey { expected: &'static str },
    #[error("expected {expected}, found {found}")]
    WrongType {
        expected: &'static str,
        found: String,
    },
    #[error("expected {expected}, found {found}, which is out of range")]
    OutOfRange { expected: &'static str, found: i128 },
    #[error(
        "tensor type {type_name} can't be compiled; expected one of {}",
        super::tensor_type::encoded_names()
    )]
    UnsupportedType { type_name: &'static str },
}

impl ErrorKind {
    /// Whether the file may well be valid, but is beyond what this build reads.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            ErrorKind::BigEndian { .. }
                | ErrorKind::Version { .. }
                | ErrorKind::TensorType { .. }
                | ErrorKind::UnsupportedType { .. }
        )
    }
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        if error.kind.is_unsupported() {
            Self::Unsupported(error.to_string())
        } else {
            Self::User(error.to_string())
        }
    }
}

/// An error without its place, which the caller knows.
pub(super) struct Fault {
    pub offset: u64,
    pub kind: ErrorKind,
}

impl Fault {
    pub fn at(self, place: Place) -> Error {
        Error {
            place,
            offset: Some(self.offset),
            kind: self.kind,
        }
    }
}
