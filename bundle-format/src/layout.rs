//! The byte layout of a bundle: the header, the section table, and where sections lie. FORMAT.md says the same in prose; a
//! test compares the two.
//!
//! Nothing here is taken on trust: `Header::parse` checks the header's hash and every field, and `Header::check_layout`
//! that the sections lie where their lengths put them.

mod header;

use std::ops::Range;

use crate::error::Error;
use crate::hash::Digest;

pub(crate) use header::Header;

/// The first bytes of a bundle. They are not text, and show when a transfer changed line ends.
pub const MAGIC: [u8; 8] = *b"\x89FIB\r\n\x1a\n";

/// Version of the format. A reader refuses any other.
pub const VERSION: u32 = 5;

/// Bytes of the header with its section table and padding.
pub const HEADER_LEN: usize = 1024;

/// Bytes of weights under one hash.
pub const CHUNK_LEN: u64 = 1 << 20;

/// Bytes of a hash.
pub const DIGEST_LEN: usize = 32;

/// Alignment of sections that are used or read in place, in bytes: a cache line.
pub const SECTION_ALIGN: u64 = crate::plan::ALIGN as u64;

/// Alignment of the weights section, in bytes: a page.
pub const WEIGHTS_ALIGN: u64 = 4096;

/// Flag of a section that is one zstd frame.
pub const FLAG_ZSTD: u32 = 1;

/// A field of the header or of an entry of the section table: its name in FORMAT.md, its offset and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

const fn field(name: &'static str, offset: usize, size: usize) -> Field {
    Field { name, offset, size }
}

const F_MAGIC: Field = field("magic", 0, 8);
const F_VERSION: Field = field("version", 8, 4);
const F_HEADER_LEN: Field = field("header length", 12, 4);
const F_FILE_LEN: Field = field("file length", 16, 8);
const F_SECTIONS: Field = field("section count", 24, 4);
const F_CHUNK_LEN: Field = field("chunk length", 28, 4);
const F_HEADER_HASH: Field = field("header hash", 32, DIGEST_LEN);
const F_ROOT_HASH: Field = field("root hash", 64, DIGEST_LEN);
const F_CODE_HASH: Field = field("raw code hash", 96, DIGEST_LEN);
const F_TABLE: Field = field("section table", 128, ENTRY_LEN * SectionKind::ALL.len());
const F_PADDING: Field = field(
    "padding",
    F_TABLE.offset + F_TABLE.size,
    HEADER_LEN - F_TABLE.offset - F_TABLE.size,
);

/// The header's fields, in order, without gaps.
pub const HEADER_FIELDS: &[Field] = &[
    F_MAGIC,
    F_VERSION,
    F_HEADER_LEN,
    F_FILE_LEN,
    F_SECTIONS,
    F_CHUNK_LEN,
    F_HEADER_HASH,
    F_ROOT_HASH,
    F_CODE_HASH,
    F_TABLE,
    F_PADDING,
];

/// Bytes of an entry of the section table.
pub const ENTRY_LEN: usize = 64;

const E_KIND: Field = field("kind", 0, 4);
const E_FLAGS: Field = field("flags", 4, 4);
const E_OFFSET: Field = field("offset", 8, 8);
const E_STORED_LEN: Field = field("stored length", 16, 8);
const E_RAW_LEN: Field = field("raw length", 24, 8);
const E_HASH: Field = field("hash", 32, DIGEST_LEN);

/// The fields of an entry of the section table, in order, without gaps.
pub const ENTRY_FIELDS: &[Field] = &[E_KIND, E_FLAGS, E_OFFSET, E_STORED_LEN, E_RAW_LEN, E_HASH];

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    Manifest,
    Plan,
    Code,
    Tokenizer,
    Signature,
    WeightsTree,
    Weights,
}

impl SectionKind {
    /// Every kind, in the order of the file. A bundle has each of them once.
    pub const ALL: &[SectionKind] = &[
        SectionKind::Manifest,
        SectionKind::Plan,
        SectionKind::Code,
        SectionKind::Tokenizer,
        SectionKind::Signature,
        SectionKind::WeightsTree,
        SectionKind::Weights,
    ];

    /// The number that stands for the kind in the file.
    pub const fn id(self) -> u32 {
        match self {
            SectionKind::Manifest => 1,
            SectionKind::Plan => 2,
            SectionKind::Code => 3,
            SectionKind::Tokenizer => 4,
            SectionKind::Signature => 5,
            SectionKind::WeightsTree => 6,
            SectionKind::Weights => 7,
        }
    }

    pub fn from_id(id: u32) -> Option<SectionKind> {
        SectionKind::ALL.iter().copied().find(|k| k.id() == id)
    }

    pub const fn name(self) -> &'static str {
        match self {
            SectionKind::Manifest => "manifest",
            SectionKind::Plan => "plan",
            SectionKind::Code => "code",
            SectionKind::Tokenizer => "tokenizer",
            SectionKind::Signature => "signature",
            SectionKind::WeightsTree => "weights-tree",
            SectionKind::Weights => "weights",
        }
    }

    /// Alignment of the section in the file, in bytes.
    pub const fn align(self) -> u64 {
        match self {
            SectionKind::Weights => WEIGHTS_ALIGN,
            _ => SECTION_ALIGN,
        }
    }

    /// Whether the section may be compressed. The others are used in place.
    pub const fn may_compress(self) -> bool {
        matches!(
            self,
            SectionKind::Manifest | SectionKind::Plan | SectionKind::Code
        )
    }

    /// The longest section of the kind that a reader accepts, before compression, in bytes. It bounds what a reader
    /// allocates.
    pub const fn max_raw_len(self) -> u64 {
        match self {
            SectionKind::Manifest => 1 << 20,
            SectionKind::Plan => 32 << 20,
            SectionKind::Code => 256 << 20,
            SectionKind::Tokenizer => 1 << 30,
            SectionKind::Signature => 0,
            SectionKind::WeightsTree => (MAX_WEIGHTS_LEN / CHUNK_LEN) * DIGEST_LEN as u64,
            SectionKind::Weights => MAX_WEIGHTS_LEN,
        }
    }
}

impl std::fmt::Display for SectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// 64 TiB: far more than any model, far from overflow.
const MAX_WEIGHTS_LEN: u64 = 1 << 46;

/// Bytes of the list of chunk hashes of `weights_len` bytes of weights.
pub fn tree_len(weights_len: u64) -> u64 {
    weights_len.div_ceil(CHUNK_LEN) * DIGEST_LEN as u64
}

/// How a section's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    Raw,
    Zstd,
}

impl Compression {
    fn flags(self) -> u32 {
        match self {
            Compression::Raw => 0,
            Compression::Zstd => FLAG_ZSTD,
        }
    }
}

/// An entry of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    pub kind: SectionKind,
    pub compression: Compression,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes in the file.
    pub stored_len: u64,
    /// Bytes after decompression.
    pub raw_len: u64,
    /// [`crate::hash::section`] of the stored bytes; for the weights [`crate::hash::weights`].
    pub hash: Digest,
}

impl Section {
    /// The section's bytes in the file. Only for entries that passed [`Header::check_layout`], whose ends fit a `usize`.
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset as usize..(self.offset + self.stored_len) as usize
    }

    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        put(&mut entry, E_KIND, &self.kind.id().to_le_bytes());
        put(&mut entry, E_FLAGS, &self.compression.flags().to_le_bytes());
        put(&mut entry, E_OFFSET, &self.offset.to_le_bytes());
        put(&mut entry, E_STORED_LEN, &self.stored_len.to_le_bytes());
        put(&mut entry, E_RAW_LEN, &self.raw_len.to_le_bytes());
        put(&mut entry, E_HASH, &self.hash.0);
        entry
    }

    /// Parses the entry at `at` bytes into the file, which must be of `kind`.
    fn parse(entry: &[u8], at: usize, kind: SectionKind) -> Result<Section, Error> {
        let id = get_u32(entry, E_KIND);
        let found = SectionKind::from_id(id).ok_or_else(|| {
            let known = SectionKind::ALL.iter().map(|k| k.id().to_string());
            unsupported(
                at + E_KIND.offset,
                "kind of section",
                format!("one of {}", known.collect::<Vec<_>>().join(", ")),
                id,
            )
        })?;
        if found != kind {
            return Err(malformed(
                at + E_KIND.offset,
                "each section once, in the order of the format",
                format!("{kind} ({})", kind.id()),
                format!("{found} ({id})"),
            ));
        }
        let flags = get_u32(entry, E_FLAGS);
        let compression = match flags {
            0 => Compression::Raw,
            FLAG_ZSTD if kind.may_compress() => Compression::Zstd,
            _ => {
                let known = if kind.may_compress() { "0 or 1" } else { "0" };
                let what = format!("flags of the {kind} section");
                return Err(unsupported(at + E_FLAGS.offset, what, known, flags));
            }
        };
        let section = Section {
            kind,
            compression,
            offset: get_u64(entry, E_OFFSET),
            stored_len: get_u64(entry, E_STORED_LEN),
            raw_len: get_u64(entry, E_RAW_LEN),
            hash: get_digest(entry, E_HASH),
        };
        section.check_lengths(at)?;
        Ok(section)
    }

    fn check_lengths(&self, at: usize) -> Result<(), Error> {
        let kind = self.kind;
        let max = kind.max_raw_len();
        for (field, len) in [(E_RAW_LEN, self.raw_len), (E_STORED_LEN, self.stored_len)] {
            // zstd adds a few bytes to what doesn't compress.
            let max = match self.compression {
                Compression::Zstd if field == E_STORED_LEN => max + max / 128 + 1024,
                _ => max,
            };
            if len > max {
                let what = format!("{} of the {kind} section", field.name);
                let expected = format!("at most {max} bytes");
                return Err(unsupported(at + field.offset, what, expected, len));
            }
        }
        if self.compression == Compression::Raw && self.raw_len != self.stored_len {
            return Err(malformed(
                at + E_RAW_LEN.offset,
                format!("raw length of the uncompressed {kind} section"),
                format!("its stored length, {}", self.stored_len),
                self.raw_len,
            ));
        }
        Ok(())
    }
}

pub(crate) fn check_hash(
    section: &'static str,
    offset: u64,
    len: u64,
    expected: Digest,
    found: Digest,
) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::HashMismatch {
        section,
        offset,
        len,
        expected,
        found,
    })
}

/// Checks that padding, which starts at `offset` in the file, is zero. `section` is the one that it follows.
pub(crate) fn check_zero(section: &'static str, offset: u64, padding: &[u8]) -> Result<(), Error> {
    match padding.iter().position(|&b| b != 0) {
        None => Ok(()),
        Some(i) => Err(Error::Malformed {
            section,
            offset: offset + i as u64,
            what: "padding".to_string(),
            expected: "0".to_string(),
            found: padding[i].to_string(),
        }),
    }
}

fn malformed(
    at: usize,
    what: impl Into<String>,
    expected: impl ToString,
    found: impl ToString,
) -> Error {
    Error::Malformed {
        section: "header",
        offset: at as u64,
        what: what.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn unsupported(
    at: usize,
    what: impl Into<String>,
    expected: impl ToString,
    found: impl ToString,
) -> Error {
    Error::Unsupported {
        section: "header",
        offset: at as u64,
        what: what.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

// The helpers below index with the constants above, which lie inside the fixed-size header or entry that they are given.

fn part(bytes: &[u8], field: Field) -> &[u8] {
    &bytes[field.offset..field.offset + field.size]
}

fn put(bytes: &mut [u8], field: Field, value: &[u8]) {
    bytes[field.offset..field.offset + field.size].copy_from_slice(value);
}

fn le_u32(bytes: &[u8]) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(bytes);
    u32::from_le_bytes(value)
}

fn get_u32(bytes: &[u8], field: Field) -> u32 {
    le_u32(part(bytes, field))
}

fn get_u64(bytes: &[u8], field: Field) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(part(bytes, field));
    u64::from_le_bytes(value)
}

fn get_digest(bytes: &[u8], field: Field) -> Digest {
    let mut value = [0; DIGEST_LEN];
    value.copy_from_slice(part(bytes, field));
    Digest(value)
}
