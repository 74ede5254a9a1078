//! Weights from the file to the GPU: large reads by several threads into pinned memory, copied while the next are read.
//!
//! Never from mapped pages: a copy from those goes through the driver's own small buffer, one page after the other.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::driver::Address;
use super::handles::{Event, Gpu, Pinned, Stream};
use crate::Error;

/// Bytes of a read.
const CHUNK: u64 = 4 << 20;

/// Threads that read, each with two chunks of memory: one is read into while the other is copied.
const READERS: usize = 8;

/// Copies a range of a file's bytes.
pub fn upload(gpu: &Gpu, file: &File, range: Range<usize>, to: Address) -> Result<(), Error> {
    let (at, len) = (range.start as u64, range.len() as u64);
    let next = AtomicU64::new(0);
    let read = || -> Result<(), Error> {
        gpu.make_current()?;
        let stream = Stream::new(gpu)?;
        let mut slots = Vec::new();
        for _ in 0..2 {
            slots.push((Pinned::new(gpu, CHUNK.min(len) as usize)?, Event::new(gpu)?));
        }
        for turn in 0.. {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= len {
                break;
            }
            let count = CHUNK.min(len - start) as usize;
            let (memory, copied) = &mut slots[turn % 2];
            if turn >= 2 {
                copied.wait()?;
            }
            file.read_exact_at(&mut memory.bytes_mut()[..count], at + start)
                .map_err(|e| {
                    Error::User(format!(
                        "can't read the weights at byte {}: {e}; copy or compile the bundle again",
                        at + start
                    ))
                })?;
            stream.upload(to + start, memory, 0, count)?;
            stream.record(copied)?;
        }
        stream.wait()
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        for reader in readers {
            match reader.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}
