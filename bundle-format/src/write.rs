//! The writer: the same parts give the same bytes.
//!
//! It writes the small sections at once, then takes the weights as a stream, one after the other in the plan's order, and
//! comes back for the chunk hashes and the header. Until then the file starts with zeros, so half a bundle is not taken for
//! one. Temporary files, syncing and renaming are the caller's.

use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;

use crate::codec;
use crate::error::Error;
use crate::hash::{self, Digest};
use crate::layout::{
    CHUNK_LEN, Compression, DIGEST_LEN, HEADER_LEN, Header, Section, SectionKind, tree_len,
};
use crate::model::Manifest;
use crate::plan::Plan;
use crate::validate::{self, Invalid};

/// What a bundle holds beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    pub manifest: &'a Manifest,
    pub plan: &'a Plan,
    /// Code section; [`crate::plan::CodeRef`]s point into it.
    pub code: &'a [u8],
    /// Tokenizer section: opaque here.
    pub tokenizer: &'a [u8],
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub root: Digest,
    /// Bytes of the file.
    pub file_len: u64,
    pub sections: Vec<Section>,
}

/// Writes one bundle to an empty sink.
///
/// ```text
/// let mut writer = Writer::new(file, Contents { .. })?;
/// for i in 0..plan.weights.len() {
///     writer.start_weight(i)?;
///     writer.write_all(..)?;       // any number of times, Weight::len bytes in all
/// }
/// let (file, written) = writer.finish()?;
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    header: Header,
    /// Where each weight lies in the section: start and end.
    weights: Vec<(u64, u64)>,
    /// Weights started so far.
    started: usize,
    /// Bytes of the section taken so far.
    position: u64,
    /// Those of them that aren't written yet: less than a chunk.
    chunk: Vec<u8>,
    /// Hashes of the chunks written.
    tree: Vec<u8>,
    /// Whether the sink failed, so that what it holds is unknown.
    failed: bool,
}

impl<W: Write + Seek> Writer<W> {
    /// Writes everything before the weights.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Caller`] for a manifest or plan that [`validate`] refuses, [`crate::ErrorKind::Unsupported`] for
    /// a section above its limit, [`crate::ErrorKind::Io`] if the sink fails.
    pub fn new(mut sink: W, contents: Contents<'_>) -> Result<Writer<W>, Error> {
        let Contents {
            manifest,
            plan,
            code,
            tokenizer,
        } = contents;
        check(manifest, plan, code)?;
        let weights_len = validate::weights_len(plan).map_err(invalid)?;
        let (manifest_raw, plan_raw) = (codec::encode(manifest)?, codec::encode(plan)?);
        let small = [
            Small::compressed(SectionKind::Manifest, &manifest_raw)?,
            Small::compressed(SectionKind::Plan, &plan_raw)?,
            Small::compressed(SectionKind::Code, code)?,
            Small::raw(SectionKind::Tokenizer, tokenizer)?,
            Small::raw(SectionKind::Signature, &[])?,
        ];
        let mut sections: Vec<Section> = small.iter().map(|s| s.section).collect();
        // `finish` fills in the hashes of these.
        sections.push(raw_section(SectionKind::WeightsTree, tree_len(weights_len)));
        sections.push(raw_section(SectionKind::Weights, weights_len));
        let header = Header::place(sections, hash::raw_code(code));

        sink.seek(SeekFrom::Start(0))?;
        let mut position = write_zeros(&mut sink, 0, HEADER_LEN as u64)?;
        for Small { section, stored } in &small {
            let offset = header.section(section.kind).offset;
            position = write_zeros(&mut sink, position, offset)?;
            sink.write_all(stored)?;
            position += stored.len() as u64;
        }
        let start = header.section(SectionKind::Weights).offset;
        write_zeros(&mut sink, position, start)?;

        Ok(Writer {
            sink,
            header,
            weights: plan
                .weights
                .iter()
                .map(|w| (w.offset, w.offset + w.len))
                .collect(),
            started: 0,
            position: 0,
            chunk: Vec::with_capacity(CHUNK_LEN as usize),
            tree: Vec::new(),
            failed: false,
        })
    }

    /// Bytes of the weights section taken so far.
    pub fn weights_position(&self) -> u64 {
        self.position
    }

    /// Goes to the start of a weight, over zeros. Weights come in the plan's order, and the one before must be complete.
    pub fn start_weight(&mut self, index: usize) -> Result<(), Error> {
        if index != self.started || index >= self.weights.len() {
            return Err(Error::caller(
                "order of weights",
                format!("weight {} of {}", self.started, self.weights.len()),
                format!("weight {index}"),
            ));
        }
        self.check_complete()?;
        let (start, _) = self.weights[index];
        self.pad_to(start)?;
        self.started += 1;
        Ok(())
    }

    /// Writes the chunk hashes and the header, flushes the sink and gives it back.
    pub fn finish(mut self) -> Result<(W, Written), Error> {
        if self.started != self.weights.len() {
            return Err(Error::caller(
                "weights of the bundle",
                format!("{} of them", self.weights.len()),
                self.started,
            ));
        }
        self.check_complete()?;
        let len = self.header.section(SectionKind::Weights).raw_len;
        self.pad_to(len)?;
        self.flush_chunk()?;
        if self.failed {
            return Err(Error::caller(
                "finishing a bundle",
                "a sink that hasn't failed",
                "one that has",
            ));
        }
        self.seal()
    }

    /// Where the weights section lies in the file, for callers that write it themselves, in any order and on any number of
    /// threads, and end with [`Writer::finish_with`].
    pub fn weights_range(&self) -> Range<u64> {
        let section = self.header.section(SectionKind::Weights);
        section.offset..section.offset + section.raw_len
    }

    /// As [`Writer::finish`], where the caller has written the whole weights section, zeros between weights included.
    /// `chunks` are the [`hash::chunk`]s of each [`CHUNK_LEN`] bytes of it and of the rest.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Caller`] if a weight was started here, or the number of hashes is not that of the chunks.
    pub fn finish_with(mut self, chunks: &[Digest]) -> Result<(W, Written), Error> {
        if self.started != 0 {
            return Err(Error::caller(
                "finishing a bundle with chunks written elsewhere",
                "none here",
                format!("{} started weights", self.started),
            ));
        }
        let len = self.header.section(SectionKind::Weights).raw_len;
        let expected = len.div_ceil(CHUNK_LEN);
        if chunks.len() as u64 != expected {
            return Err(Error::caller(
                "hashes of chunks of weights",
                expected,
                chunks.len(),
            ));
        }
        self.tree = chunks.iter().flat_map(|digest| digest.0).collect();
        self.seal()
    }

    /// Writes what depends on the weights: their tree and the header.
    fn seal(mut self) -> Result<(W, Written), Error> {
        let len = self.header.section(SectionKind::Weights).raw_len;
        let tree_hash = hash::section(SectionKind::WeightsTree, &self.tree);
        let weights_hash = hash::weights(len, &self.tree);
        for section in &mut self.header.sections {
            match section.kind {
                SectionKind::WeightsTree => section.hash = tree_hash,
                SectionKind::Weights => section.hash = weights_hash,
                _ => {}
            }
        }
        let tree_offset = self.header.section(SectionKind::WeightsTree).offset;
        self.sink.seek(SeekFrom::Start(tree_offset))?;
        self.sink.write_all(&self.tree)?;
        self.sink.seek(SeekFrom::Start(0))?;
        self.sink.write_all(&self.header.encode())?;
        self.sink.seek(SeekFrom::Start(self.header.file_len))?;
        self.sink.flush()?;
        let written = Written {
            root: self.header.root(),
            file_len: self.header.file_len,
            sections: self.header.sections,
        };
        Ok((self.sink, written))
    }

    /// Where the weight being written ends.
    fn current_end(&self) -> u64 {
        match self.started {
            0 => 0,
            n => self.weights[n - 1].1,
        }
    }

    fn check_complete(&self) -> Result<(), Error> {
        let missing = self.current_end().saturating_sub(self.position);
        if missing > 0 {
            return Err(Error::caller(
                format!("bytes of weight {}", self.started - 1),
                format!("{missing} more"),
                "its end",
            ));
        }
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let n = (position - self.position).min(ZEROS.len() as u64);
            self.take(&ZEROS[..n as usize])?;
        }
        Ok(())
    }

    /// Takes bytes of the section, and gives their number.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_LEN as usize - self.chunk.len();
        let n = bytes.len().min(room);
        if self.chunk.is_empty() && n == room {
            self.write_chunk(&bytes[..n])?;
        } else {
            self.chunk.extend_from_slice(&bytes[..n]);
            if n == room {
                self.flush_chunk()?;
            }
        }
        self.position += n as u64;
        Ok(n)
    }

    fn flush_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        self.write_chunk(&chunk)?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other(
                "the bundle's sink has failed before; start again",
            ));
        }
        self.failed = true;
        self.sink.write_all(chunk)?;
        self.failed = false;
        self.tree.extend_from_slice(&hash::chunk(chunk).0);
        debug_assert!(self.tree.len().is_multiple_of(DIGEST_LEN));
        Ok(())
    }
}

/// Bytes of the weight that [`Writer::start_weight`] started last. More than it has are refused.
impl<W: Write + Seek> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.current_end().saturating_sub(self.position);
        if bytes.len() as u64 > left {
            return Err(io::Error::other(Error::caller(
                match self.started {
                    0 => "bytes before the first weight".to_string(),
                    n => format!("bytes of weight {}", n - 1),
                },
                format!("at most {left} more"),
                bytes.len(),
            )));
        }
        self.take(bytes)
    }

    /// Flushes the sink. Up to a chunk stays here until it is full or the bundle is finished.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// A section that is in memory.
struct Small<'a> {
    section: Section,
    stored: std::borrow::Cow<'a, [u8]>,
}

impl<'a> Small<'a> {
    fn compressed(kind: SectionKind, raw: &[u8]) -> Result<Small<'a>, Error> {
        check_len(kind, raw)?;
        let stored = codec::compress(raw)?;
        Ok(Small {
            section: Section {
                compression: Compression::Zstd,
                stored_len: stored.len() as u64,
                hash: hash::section(kind, &stored),
                ..raw_section(kind, raw.len() as u64)
            },
            stored: stored.into(),
        })
    }

    fn raw(kind: SectionKind, raw: &'a [u8]) -> Result<Small<'a>, Error> {
        check_len(kind, raw)?;
        Ok(Small {
            section: Section {
                hash: hash::section(kind, raw),
                ..raw_section(kind, raw.len() as u64)
            },
            stored: raw.into(),
        })
    }
}

/// An uncompressed section whose place and hash are not known yet.
fn raw_section(kind: SectionKind, len: u64) -> Section {
    Section {
        kind,
        compression: Compression::Raw,
        offset: 0,
        stored_len: len,
        raw_len: len,
        hash: Digest([0; DIGEST_LEN]),
    }
}

fn check(manifest: &Manifest, plan: &Plan, code: &[u8]) -> Result<(), Error> {
    validate::bundle(manifest, plan, code.len() as u64).map_err(invalid)?;
    if manifest.zstd != codec::zstd_version() {
        return Err(Error::caller(
            "manifest: zstd",
            format!("{}, as codec::zstd_version() says", codec::zstd_version()),
            &manifest.zstd,
        ));
    }
    Ok(())
}

fn invalid(invalid: Invalid) -> Error {
    Error::Caller {
        what: invalid.at,
        expected: invalid.expected,
        found: invalid.found,
    }
}

fn check_len(kind: SectionKind, raw: &[u8]) -> Result<(), Error> {
    let max = kind.max_raw_len();
    if raw.len() as u64 > max {
        return Err(Error::Unsupported {
            section: kind.name(),
            offset: 0,
            what: "length of the section".to_string(),
            expected: format!("at most {max} bytes"),
            found: raw.len().to_string(),
        });
    }
    Ok(())
}

/// Writes zeros from one position to another, and gives the latter.
fn write_zeros(sink: &mut impl Write, from: u64, to: u64) -> io::Result<u64> {
    io::copy(&mut io::Read::take(io::repeat(0), to - from), sink)?;
    Ok(to)
}
