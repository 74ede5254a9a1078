//! `fastrun verify`: all hashes of a bundle.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use bundle_format::layout::SectionKind;
use fastrun::Error;
use fastrun::load::Loaded;

use super::args::VerifyArgs;
use super::failure::Failure;
use super::progress;

pub fn run(args: &VerifyArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // Opening checks everything but the weights.
    let loaded = Loaded::open(&args.bundle)?;
    weights(&loaded)?;
    writeln!(
        out,
        "{}: ok, {} bytes, root {}",
        args.bundle.display(),
        loaded.file_len(),
        loaded.bundle().root()
    )?;
    if !loaded.bundle().is_signed() {
        writeln!(
            out,
            "not signed: the hashes show damage, not who made the bundle"
        )?;
    }
    Ok(())
}

/// Checks every chunk of the weights, on all processors. The error is about the first damaged chunk that was found.
pub fn weights(loaded: &Loaded) -> Result<(), Error> {
    let bundle = loaded.bundle();
    let chunks = bundle.chunk_count();
    let weights = bundle.section_table();
    let bytes = weights.iter().find(|s| s.kind == SectionKind::Weights);
    let bar = progress::bytes("verify", bytes.map_or(0, |s| s.raw_len));
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return Ok(());
            }
            match bundle.verify_chunk(chunk) {
                Ok(len) => bar.inc(len),
                Err(error) => {
                    // Nobody need go on.
                    next.store(chunks, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join()).collect()
    });
    bar.finish_and_clear();
    for result in results {
        result
            .map_err(|_| Error::Bug("a thread that verified weights panicked".into()))?
            .map_err(|e| Error::User(format!("{}: {e}", loaded.path().display())))?;
    }
    Ok(())
}
