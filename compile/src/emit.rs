//! Writing the bundle. All threads make chunks of the weights
//! section, hash them and write them where they belong; another has the disk follow.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Bytes of a write. Linux copies larger ones into larger pages, and four times slower (kernels/NOTES.md, Packing).
const WRITTEN: usize = 64 << 10;

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
    let (due, syncs) = mpsc::channel();
    let unsynced = AtomicU64::new(0);
    let write = move |buffer: &mut Vec<u8>, from: u64| -> Result<(u64, Digest), Error> {
        stop_if_cancelled(progress)?;
        let len = CHUNK_LEN.min(section.bytes() - from);
        buffer.resize(len as usize, 0);
        section.fill(from, buffer);
        let hash = hash::chunk(buffer);
        for (i, piece) in buffer.chunks(WRITTEN).enumerate() {
            write_at(file, piece, start + from + (i * WRITTEN) as u64).map_err(describe)?;
        }
        progress.advance(len);
        if unsynced.fetch_add(len, Ordering::Relaxed) + len >= SYNCED {
            unsynced.store(0, Ordering::Relaxed);
            // The thread is gone if a sync failed, which its result says.
            let _ = due.send(());
        }
        Ok((from, hash))
    };
    let (chunks, synced) = std::thread::scope(|scope| {
        let syncing = scope.spawn(move || sync_when_due(file, syncs));
        // Chunks are begun in order, so that model and bundle are read and written forward.
        let chunks = (0..section.bytes())
            .step_by(CHUNK_LEN as usize)
            .par_bridge();
        let chunks = chunks
            .map_init(Vec::new, write)
            .collect::<Result<Vec<_>, Error>>();
        (chunks, syncing.join())
    });
    let mut chunks = chunks?;
    let synced = synced.map_err(|_| Error::Bug("the syncing thread panicked".to_string()))?;
    synced.map_err(describe)?;
    chunks.sort_unstable_by_key(|(from, _)| *from);
    Ok(chunks.into_iter().map(|(_, hash)| hash).collect())
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
