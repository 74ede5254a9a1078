//! Writing the bundle. All threads make chunks of the weights section and hash them, while what was made before is written;
//! another thread has the disk follow.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};

use bundle_format::hash::{self, Digest};
use bundle_format::layout::CHUNK_LEN;
use bundle_format::model::Manifest;
use bundle_format::write::{Contents, Writer};
use rayon::prelude::*;

use crate::driver::Compiled;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::output::Output;
use crate::pack::WeightsSection;
use crate::progress::Progress;
use crate::source::Source;

/// Bytes of the model that are hashed at a time, and those that are read ahead of them.
const HASHED: usize = 8 << 20;
const READ_AHEAD: usize = 4 * HASHED;

/// The weights are written in multiples of this, from multiples of it in the file on: what Linux writes at once it caches in one
/// large page, which the runner's map then needs one translation for (kernels/NOTES.md, One token: one stream).
const PAGE: u64 = 2 << 20;

/// Chunks that are made at a time, for each thread, and how many they are at least and at most.
const CHUNKS_A_THREAD: usize = 4;
const LEAST_CHUNKS: usize = 8;
const MOST_CHUNKS: usize = 64;

/// Bytes written between syncs: what the disk has to do while packing goes on.
const SYNCED: u64 = 128 << 20;

/// What goes into a bundle.
pub struct Job<'a> {
    pub gguf: &'a Gguf<'a>,
    pub source: &'a Source,
    pub compiled: &'a Compiled,
    /// The tokenizer section.
    pub tokenizer: &'a [u8],
    /// The manifest, given the hash of the model file.
    pub manifest: &'a dyn Fn([u8; 32]) -> Manifest,
}

/// Writes the bundle to `output`: whole, or not at all.
pub fn write(job: Job<'_>, output: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let hash = hash_source(job.source, progress)?;
    let output = Output::create(output)?;
    let describe = |e: io::Error| output.failed(e);
    {
        let manifest = (job.manifest)(hash);
        let contents = Contents {
            manifest: &manifest,
            plan: &job.compiled.plan,
            code: &job.compiled.code.bytes,
            tokenizer: job.tokenizer,
        };
        let refused = |e: bundle_format::Error| match e {
            bundle_format::Error::Io(e) => describe(e),
            other => Error::Bug(format!("the bundle's writer refused: {other}")),
        };
        let section = WeightsSection::new(job.gguf, job.source, job.compiled)?;
        let writer = Writer::new(BufWriter::new(output.file()), contents).map_err(refused)?;
        let start = writer.weights_range().start;
        reserve(output.file(), writer.weights_range().end).map_err(describe)?;
        let chunks = write_weights(&section, output.file(), start, progress, &describe)?;
        writer.finish_with(&chunks).map_err(refused)?;
    }
    output.finish()
}

/// Packs the weights into the file from `start` on, on all threads. Gives the hashes of their chunks.
fn write_weights(
    section: &WeightsSection<'_>,
    file: &File,
    start: u64,
    progress: &dyn Progress,
    describe: &(dyn Fn(io::Error) -> Error + Sync),
) -> Result<Vec<Digest>, Error> {
    progress.begin("packing", section.bytes());
    let chunks = CHUNKS_A_THREAD * rayon::current_num_threads();
    let room = chunks.clamp(LEAST_CHUNKS, MOST_CHUNKS) as u64 * CHUNK_LEN;
    let mut hashes = Vec::new();
    let make = |from: u64, batch: &mut [u8]| {
        let chunks = batch.par_chunks_mut(CHUNK_LEN as usize).enumerate();
        let make = |(i, chunk): (usize, &mut [u8])| {
            stop_if_cancelled(progress)?;
            section.fill(from + i as u64 * CHUNK_LEN, chunk);
            progress.advance(chunk.len() as u64);
            Ok(hash::chunk(chunk))
        };
        hashes.extend(chunks.map(make).collect::<Result<Vec<_>, Error>>()?);
        Ok(())
    };
    let (due, syncs) = mpsc::channel();
    let mut unsynced = 0;
    // It owns `due`: when all is written, or something failed, the syncing thread ends, too.
    let write = move |at: u64, bytes: &[u8]| {
        write_at(file, bytes, at).map_err(describe)?;
        unsynced += bytes.len() as u64;
        if unsynced >= SYNCED {
            unsynced = 0;
            // The thread is gone if a sync failed, which its result says.
            let _ = due.send(());
        }
        Ok(())
    };
    let (written, synced) = std::thread::scope(|scope| {
        let syncing = scope.spawn(move || sync_when_due(file, syncs));
        let written = in_batches(start, room, section.bytes(), make, write);
        (written, syncing.join())
    });
    written?;
    let synced = synced.map_err(|_| Error::Bug("the syncing thread panicked".to_string()))?;
    synced.map_err(describe)?;
    Ok(hashes)
}

/// Makes `len` bytes, `room` at a time, and meanwhile writes what was made before: up to its last whole page, as the first of them goes
/// to `start` of the file. `make` is told which byte comes first, `write` where the bytes go.
fn in_batches(
    start: u64,
    room: u64,
    len: u64,
    mut make: impl FnMut(u64, &mut [u8]) -> Result<(), Error> + Send,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    let (mut made, mut next) = (Batch::new(start, room), Batch::new(start, room));
    let mut from = 0;
    while from < len || made.len > 0 {
        let to = len.min(from + room);
        next.follow(&mut made, from == len);
        let (more, written) = rayon::join(
            || make(from, next.grow((to - from) as usize)),
            || write(made.at, made.bytes()),
        );
        written?;
        more?;
        from = to;
        std::mem::swap(&mut made, &mut next);
    }
    Ok(())
}

/// Bytes of the weights section that are next to each other, and where they go.
struct Batch {
    /// Their offset in the file.
    at: u64,
    len: usize,
    /// Room for what a batch before left over, and for chunks.
    buffer: Vec<u8>,
}

impl Batch {
    /// An empty one, with `room` for chunks.
    fn new(at: u64, room: u64) -> Batch {
        Batch {
            at,
            len: 0,
            buffer: vec![0; (PAGE + room) as usize],
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Begins where another ends; and takes over what is behind the other's last whole page, unless the other is the `last`.
    fn follow(&mut self, before: &mut Batch, last: bool) {
        let end = before.at + before.len as u64;
        let whole = if last { end } else { end / PAGE * PAGE };
        // Less than a page is left over; all of it where the batch has not got to the end of its first.
        let kept = (whole.max(before.at) - before.at) as usize;
        let rest = &before.buffer[kept..before.len];
        self.buffer[..rest.len()].copy_from_slice(rest);
        (self.at, self.len) = (before.at + kept as u64, rest.len());
        before.len = kept;
    }

    /// So many more bytes behind what it has, to be made.
    fn grow(&mut self, len: usize) -> &mut [u8] {
        self.len += len;
        &mut self.buffer[self.len - len..self.len]
    }
}

/// Takes the file's room on the disk, so that a full one shows at once and writing finds its blocks.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            // Not every file system can.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
            other => Ok(other?),
        }
    }
    #[cfg(not(unix))]
    {
        file.set_len(len)
    }
}

/// Brings the file to the disk each time it is told to, until no one can.
fn sync_when_due(file: &File, due: Receiver<()>) -> io::Result<()> {
    while due.recv().is_ok() {
        // One sync does for all that was written meanwhile.
        while due.try_recv().is_ok() {}
        file.sync_data()?;
    }
    Ok(())
}

/// Writes all bytes at an offset.
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            done += std::os::windows::fs::FileExt::seek_write(file, &bytes[done..], at)?;
        }
        Ok(())
    }
}

/// blake3 of the model's files, one after the other, on all cores.
fn hash_source(source: &Source, progress: &dyn Progress) -> Result<[u8; 32], Error> {
    progress.begin("hashing", source.files().map(|f| f.len() as u64).sum());
    let mut hasher = blake3::Hasher::new();
    for file in source.files() {
        for (i, chunk) in file.chunks(HASHED).enumerate() {
            stop_if_cancelled(progress)?;
            let ahead = file.get(i * HASHED + READ_AHEAD..).unwrap_or_default();
            source.expect(&ahead[..ahead.len().min(HASHED)]);
            hasher.update_rayon(chunk);
            source.forget(chunk);
            progress.advance(chunk.len() as u64);
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<(), Error> {
    match progress.cancelled() {
        true => Err(Error::User("interrupted; nothing was written".to_string())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the batches of `bytes` are written, and how much of them.
    fn written(start: u64, room: u64, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut writes = Vec::new();
        let make = |from: u64, batch: &mut [u8]| {
            batch.copy_from_slice(&bytes[from as usize..][..batch.len()]);
            Ok(())
        };
        let write = |at: u64, bytes: &[u8]| {
            writes.push((at, bytes.to_vec()));
            Ok(())
        };
        in_batches(start, room, bytes.len() as u64, make, write).expect("no one fails");
        writes.retain(|(_, bytes)| !bytes.is_empty());
        writes
    }

    #[test]
    fn batches_are_written_up_to_whole_pages_and_lose_nothing() {
        let page = PAGE as usize;
        let bytes: Vec<u8> = (0..5 * page + 777)
            .map(|i: usize| ((i * 31) >> 7) as u8)
            .collect();
        // Starts at a page, before and behind its middle; batches below a page, of a page and a half, and of all.
        for start in [0, PAGE, 12345, 3 * PAGE - 64] {
            for room in [PAGE / 4, PAGE * 3 / 2, 8 * PAGE] {
                for len in [1, page / 4, 3 * page, bytes.len()] {
                    let writes = written(start, room, &bytes[..len]);
                    let mut at = start;
                    for (i, (offset, piece)) in writes.iter().enumerate() {
                        assert_eq!(*offset, at, "start {start}, room {room}, {len} bytes");
                        let from = (at - start) as usize;
                        assert!(*piece == bytes[from..from + piece.len()]);
                        at += piece.len() as u64;
                        assert!(i + 1 == writes.len() || at.is_multiple_of(PAGE), "{at}");
                    }
                    assert_eq!(at, start + len as u64);
                }
            }
        }
    }

    #[test]
    fn what_fails_ends_it() {
        let failed = || Err(Error::User("failed".to_string()));
        let mut calls = 0;
        let make = |from: u64, _: &mut [u8]| if from == 0 { Ok(()) } else { failed() };
        let write = |_: u64, _: &[u8]| {
            calls += 1;
            Ok(())
        };
        assert!(in_batches(0, PAGE, 9 * PAGE, make, write).is_err());
        assert_eq!(calls, 2);
        let made = |_: u64, _: &mut [u8]| Ok(());
        assert!(in_batches(0, PAGE, 9 * PAGE, made, |_, _| failed()).is_err());
    }
}
