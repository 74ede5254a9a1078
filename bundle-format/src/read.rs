//! The reader: bytes of a file, trusted or not, become a [`Bundle`] whose every part has been checked.

use std::ops::Range;

use crate::codec::{self, Failure};
use crate::error::Error;
use crate::hash::{self, Digest};
use crate::layout::{
    CHUNK_LEN, Compression, DIGEST_LEN, HEADER_LEN, Header, Section, SectionKind, check_hash,
    check_zero,
};
use crate::model::Manifest;
use crate::plan::{ALIGN, Plan};
use crate::validate::{self, Invalid};

/// An opened bundle over the bytes of its file.
///
/// All but the weights has been verified: hashes, padding, and the plan by [`validate`]; so its indices, ranges and sizes
/// hold. Whether this machine has the [`Manifest::features`] and the runner the [`Manifest::kernel_abi`] is the runner's to
/// check.
///
/// The manifest, the plan and the code are private copies. The tokenizer and the weights are slices of the file's bytes, and
/// are as checked only as long as nobody writes to the file.
#[derive(Debug)]
pub struct Bundle<'a> {
    bytes: &'a [u8],
    header: Header,
    root: Digest,
    manifest: Manifest,
    plan: Plan,
    code: Vec<u8>,
}

/// The owned parts of a bundle.
#[derive(Clone, Debug)]
pub struct Parts {
    pub manifest: Manifest,
    pub plan: Plan,
    pub code: Vec<u8>,
}

impl<'a> Bundle<'a> {
    /// Opens the bundle whose file is `bytes`: a map of the whole file, or an [`AlignedBytes`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for a file that is damaged or no bundle, [`crate::ErrorKind::Unsupported`] for one that
    /// needs another version of the reader, [`crate::ErrorKind::Caller`] if `bytes` does not start at a multiple of
    /// [`ALIGN`] in memory. For any bytes at all, memory is bounded by the limits of
    /// [`SectionKind::max_raw_len`].
    pub fn open(bytes: &'a [u8]) -> Result<Bundle<'a>, Error> {
        if !(bytes.as_ptr() as usize).is_multiple_of(ALIGN) {
            return Err(Error::caller(
                "the memory that holds a bundle",
                format!("an address that is a multiple of {ALIGN}, as a map's or AlignedBytes'"),
                format!("{:p}", bytes.as_ptr()),
            ));
        }
        let header = Header::parse(bytes)?;
        header.check_layout(bytes.len() as u64)?;
        check_padding(bytes, &header)?;

        let manifest_bytes = read_small(bytes, header.section(SectionKind::Manifest))?;
        let plan_bytes = read_small(bytes, header.section(SectionKind::Plan))?;
        let code = read_small(bytes, header.section(SectionKind::Code))?;
        let code_section = header.section(SectionKind::Code);
        check_hash(
            "code",
            code_section.offset,
            code_section.stored_len,
            header.code_hash,
            hash::raw_code(&code),
        )?;
        for kind in [
            SectionKind::Tokenizer,
            SectionKind::Signature,
            SectionKind::WeightsTree,
        ] {
            let section = header.section(kind);
            check_section(section, &bytes[section.range()])?;
        }
        check_weights_entry(bytes, &header)?;

        let manifest = decode(&manifest_bytes, header.section(SectionKind::Manifest))?;
        let plan = decode(&plan_bytes, header.section(SectionKind::Plan))?;
        let bundle = Bundle {
            bytes,
            root: header.root(),
            header,
            manifest,
            plan,
            code,
        };
        bundle.check_contents()?;
        Ok(bundle)
    }

    /// Checks the manifest and the plan, and that the plan fits the sections beside it.
    fn check_contents(&self) -> Result<(), Error> {
        let located = |kind| {
            let offset = self.section(kind).offset;
            move |invalid: Invalid| locate(kind, offset, invalid)
        };
        validate::manifest(&self.manifest).map_err(located(SectionKind::Manifest))?;
        validate::bundle(&self.manifest, &self.plan, self.code.len() as u64)
            .map_err(located(SectionKind::Plan))?;
        let expected = validate::weights_len(&self.plan).map_err(located(SectionKind::Plan))?;
        let weights = self.section(SectionKind::Weights);
        if weights.raw_len != expected {
            return Err(Error::Malformed {
                section: "weights",
                offset: weights.offset,
                what: "length of the section".to_string(),
                expected: format!("{expected}, where the plan's last weight ends"),
                found: weights.raw_len.to_string(),
            });
        }
        Ok(())
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The code section, decompressed: a private copy.
    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// What [`hash::raw_code`] must give for the executable copy of [`Bundle::code`].
    pub fn code_hash(&self) -> Digest {
        self.header.code_hash
    }

    /// The tokenizer section, in the file's bytes, [`ALIGN`]ed.
    pub fn tokenizer(&self) -> &'a [u8] {
        &self.bytes[self.tokenizer_range()]
    }

    /// Where the tokenizer section lies in the file.
    pub fn tokenizer_range(&self) -> Range<usize> {
        self.section(SectionKind::Tokenizer).range()
    }

    /// The weights section, in the file's bytes, [`ALIGN`]ed (on a page, in a map). Not verified by [`Bundle::open`]; see
    /// [`Bundle::verify_weights`].
    pub fn weights(&self) -> &'a [u8] {
        &self.bytes[self.weights_range()]
    }

    /// Where the weights section lies in the file.
    pub fn weights_range(&self) -> Range<usize> {
        self.section(SectionKind::Weights).range()
    }

    /// The hash of what the bundle holds: its identity, and what a signature will sign.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// Whether the bundle carries a signature: not in this version.
    pub fn is_signed(&self) -> bool {
        self.section(SectionKind::Signature).stored_len > 0
    }

    /// Every section, in the order of the file.
    pub fn section_table(&self) -> &[Section] {
        &self.header.sections
    }

    /// The owned parts. [`Bundle::tokenizer_range`] and [`Bundle::weights_range`] say where the others lie.
    pub fn into_parts(self) -> Parts {
        Parts {
            manifest: self.manifest,
            plan: self.plan,
            code: self.code,
        }
    }

    /// Number of chunks of [`CHUNK_LEN`] bytes, the last one shorter, that the weights are verified in.
    pub fn chunk_count(&self) -> u64 {
        self.section(SectionKind::Weights)
            .raw_len
            .div_ceil(CHUNK_LEN)
    }

    /// Verifies one chunk of weights, and gives its length in bytes. Chunks are independent: a caller may verify them in
    /// any order, on any thread.
    ///
    /// # Errors
    /// [`Error::ChunkMismatch`] names the chunk and its offset in the file, [`Error::Malformed`] a byte between weights
    /// that isn't zero. A chunk that does not exist is [`crate::ErrorKind::Caller`].
    pub fn verify_chunk(&self, chunk: u64) -> Result<u64, Error> {
        let count = self.chunk_count();
        if chunk >= count {
            return Err(Error::caller(
                "chunk of weights",
                format!("below {count}"),
                chunk,
            ));
        }
        let weights = self.weights();
        // Below the section's length, which is that of a slice.
        let start = (chunk * CHUNK_LEN) as usize;
        let end = weights.len().min(start + CHUNK_LEN as usize);
        let bytes = &weights[start..end];

        let tree = &self.bytes[self.section(SectionKind::WeightsTree).range()];
        let mut expected = Digest([0; DIGEST_LEN]);
        let at = chunk as usize * DIGEST_LEN;
        expected.0.copy_from_slice(&tree[at..at + DIGEST_LEN]);
        let found = hash::chunk(bytes);
        if found != expected {
            return Err(Error::ChunkMismatch {
                chunk,
                offset: self.section(SectionKind::Weights).offset + start as u64,
                len: bytes.len() as u64,
                expected,
                found,
            });
        }
        self.check_gaps(start..end)?;
        Ok(bytes.len() as u64)
    }

    /// Verifies all weights, chunk by chunk. After each, `progress` is told the bytes done and the bytes in all.
    pub fn verify_weights(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), Error> {
        let total = self.section(SectionKind::Weights).raw_len;
        let mut done = 0;
        for chunk in 0..self.chunk_count() {
            done += self.verify_chunk(chunk)?;
            progress(done, total);
        }
        Ok(())
    }

    /// Checks that the bytes of `range` (in the weights section) that belong to no weight are zero.
    fn check_gaps(&self, range: Range<usize>) -> Result<(), Error> {
        let section = self.section(SectionKind::Weights);
        let all = self.weights();
        // Weights ascend and end inside the section, so these fit.
        let start_of = |i: usize| {
            let next = self.plan.weights.get(i);
            next.map_or(all.len(), |w| w.offset as usize)
        };
        let check = |gap: Range<usize>| {
            let gap = gap.start.max(range.start)..gap.end.min(range.end);
            match all.get(gap.clone()) {
                Some(bytes) => check_zero("weights", section.offset + gap.start as u64, bytes),
                None => Ok(()),
            }
        };
        let weights = &self.plan.weights;
        check(0..start_of(0))?;
        let first = weights.partition_point(|w| (w.offset as usize) < range.start);
        for (i, weight) in weights.iter().enumerate().skip(first.saturating_sub(1)) {
            if weight.offset as usize >= range.end {
                break;
            }
            check((weight.offset + weight.len) as usize..start_of(i + 1))?;
        }
        Ok(())
    }

    fn section(&self, kind: SectionKind) -> &Section {
        self.header.section(kind)
    }
}

/// Checks the zeros between sections. The header's own were checked with it.
fn check_padding(bytes: &[u8], header: &Header) -> Result<(), Error> {
    let mut end = HEADER_LEN;
    let mut before = "header";
    for section in &header.sections {
        let range = section.range();
        check_zero(before, end as u64, &bytes[end..range.start])?;
        end = range.end;
        before = section.kind.name();
    }
    Ok(())
}

/// A private, verified, decompressed copy of a section. The stored bytes are copied before they are hashed: what is decoded
/// is what was hashed, even if somebody writes to the file meanwhile.
fn read_small(bytes: &[u8], section: &Section) -> Result<Vec<u8>, Error> {
    let stored = bytes[section.range()].to_vec();
    check_section(section, &stored)?;
    match section.compression {
        Compression::Raw => Ok(stored),
        Compression::Zstd => codec::decompress(&stored, section.raw_len as usize)
            .map_err(|failure| undecodable(section, "compressed bytes", failure)),
    }
}

fn check_section(section: &Section, stored: &[u8]) -> Result<(), Error> {
    check_hash(
        section.kind.name(),
        section.offset,
        section.stored_len,
        section.hash,
        hash::section(section.kind, stored),
    )
}

/// The weights' hash in the section table is that of their length and chunk hashes.
fn check_weights_entry(bytes: &[u8], header: &Header) -> Result<(), Error> {
    let weights = header.section(SectionKind::Weights);
    let tree = header.section(SectionKind::WeightsTree);
    check_hash(
        "weights-tree",
        tree.offset,
        tree.stored_len,
        weights.hash,
        hash::weights(weights.raw_len, &bytes[tree.range()]),
    )
}

fn decode<T: serde::de::DeserializeOwned>(raw: &[u8], section: &Section) -> Result<T, Error> {
    codec::decode(raw).map_err(|failure| undecodable(section, "encoded value", failure))
}

fn undecodable(section: &Section, what: &str, failure: Failure) -> Error {
    let (kind, offset) = (section.kind.name(), section.offset);
    match failure {
        Failure::Broken { expected, found } => Error::Malformed {
            section: kind,
            offset,
            what: what.to_string(),
            expected,
            found,
        },
        Failure::Unknown(message) => Error::Unsupported {
            section: kind,
            offset,
            what: what.to_string(),
            expected: "values that this version knows".to_string(),
            found: message,
        },
    }
}

fn locate(kind: SectionKind, offset: u64, invalid: Invalid) -> Error {
    let section = kind.name();
    let Invalid {
        at: what,
        expected,
        found,
        unsupported,
    } = invalid;
    if unsupported {
        Error::Unsupported {
            section,
            offset,
            what,
            expected,
            found,
        }
    } else {
        Error::Malformed {
            section,
            offset,
            what,
            expected,
            found,
        }
    }
}

/// A copy of a bundle in memory, aligned as [`Bundle::open`] wants it. For tests, and for bundles that don't come from a
/// file that can be mapped.
#[derive(Debug)]
pub struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
}

impl AlignedBytes {
    pub fn copy_of(bytes: &[u8]) -> AlignedBytes {
        let mut storage = Vec::with_capacity(bytes.len() + ALIGN);
        let start = (storage.as_ptr() as usize).next_multiple_of(ALIGN) - storage.as_ptr() as usize;
        // Neither call outgrows the capacity, so the bytes stay where they are.
        storage.resize(start, 0);
        storage.extend_from_slice(bytes);
        AlignedBytes { storage, start }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..]
    }
}
