//! How fast this machine's memory can be read: what a decoding step, which reads all weights once, can't outrun; and how fast the
//! weights themselves can, where the system keeps them.

use std::hint::black_box;
use std::thread::Builder;
use std::time::Instant;

use fastrun::Error;
use memmap2::{Advice, MmapMut};

use super::median;

/// Bytes of the buffer: more than most caches hold.
const BUFFER: usize = 256 << 20;

/// Times that the buffer is read in a pass, so that the start of the threads hardly counts.
const SWEEPS: u32 = 4;

/// Passes of a measurement.
const PASSES: usize = 5;

/// Bytes of a bundle's weights that are read in a pass, at most.
const WEIGHTS: usize = 1 << 30;

/// Bytes that are read and summed at a time: a cache line.
const LINE: usize = 64;

/// Bytes a second that threads read together.
pub struct Rates {
    /// From memory of their own.
    pub memory: f64,
    /// From where a bundle's weights lie, if that was measured: less where the system keeps the file in small pages.
    pub weights: Option<f64>,
}

/// What a measurement gives, and the rates before and after it: medians of passes, as figures are. The fastest pass would be another
/// moment's rate where others use the memory, too.
pub fn beside<T>(
    weights: &[u8],
    threads: usize,
    measurement: impl FnOnce() -> Result<T, Error>,
) -> Result<(Rates, T), Error> {
    let measure =
        || -> Result<_, Error> { Ok((read_rates(threads)?, weights_rates(weights, threads)?)) };
    let before = measure()?;
    let done = measurement()?;
    let after = measure()?;
    let rates = Rates {
        memory: median([before.0, after.0].concat()),
        weights: (!weights.is_empty()).then(|| median([before.1, after.1].concat())),
    };
    Ok((rates, done))
}

/// Bytes a second that `threads` threads read together from an anonymous mapping, each its own part of it: of each pass.
fn read_rates(threads: usize) -> Result<[f64; PASSES], Error> {
    let failed = |what: &str, error: std::io::Error| {
        let mib = BUFFER >> 20;
        Error::User(format!(
            "can't {what} to measure the memory with {mib} MiB: {error}; free some memory, or use fewer --threads"
        ))
    };
    let mut buffer = MmapMut::map_anon(BUFFER).map_err(|e| failed("map a buffer", e))?;
    // Large pages, as the weights have them where the kernel can; where it can't, small ones are what there is.
    #[cfg(target_os = "linux")]
    let _ = buffer.advise(Advice::HugePage);
    let part = BUFFER.div_ceil(threads.max(1)).next_multiple_of(LINE);
    // Written, as untouched pages are all one page of zeros; by as many threads, for each to have its part near it.
    in_parallel(buffer.chunks_mut(part), |part| part.fill(1))
        .map_err(|e| failed("start threads", e))?;
    passes(&buffer, part, SWEEPS).map_err(|e| failed("start threads", e))
}

/// The same from where a bundle's weights lie, or the first of them.
fn weights_rates(weights: &[u8], threads: usize) -> Result<[f64; PASSES], Error> {
    let weights = &weights[..weights.len().min(WEIGHTS)];
    // A line at least, also where there are no weights.
    let part = weights.len().div_ceil(threads.max(1)).max(1);
    let part = part.next_multiple_of(LINE);
    passes(weights, part, 1).map_err(|e| {
        Error::User(format!(
            "can't start threads to measure how fast the weights are read: {e}; use fewer --threads"
        ))
    })
}

/// Reads all parts so many times, each part in a thread: bytes a second of each pass.
fn passes(bytes: &[u8], part: usize, sweeps: u32) -> std::io::Result<[f64; PASSES]> {
    let mut rates = [0.0; PASSES];
    for rate in &mut rates {
        let start = Instant::now();
        in_parallel(bytes.chunks(part), |part| {
            for _ in 0..sweeps {
                black_box(sum(black_box(part)));
            }
        })?;
        *rate = bytes.len() as f64 * f64::from(sweeps) / start.elapsed().as_secs_f64();
    }
    Ok(rates)
}

/// Places that a thread reads at a time: some cores have more reads under way with several than with one (kernels/NOTES.md),
/// and none fewer.
const STREAMS: usize = 4;

/// Does the work on each part in a thread of its own.
fn in_parallel<P: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) + Sync,
) -> std::io::Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        for part in parts {
            Builder::new().spawn_scoped(scope, move || work(part))?;
        }
        Ok(())
    })
}

/// The sum of all words, in sums that don't wait for each other, read in [`STREAMS`] places. The bytes past the last whole
/// line of each don't count.
fn sum(bytes: &[u8]) -> u64 {
    let lines = bytes.as_chunks::<LINE>().0;
    let each = lines.len() / STREAMS;
    let mut sums = [0u64; LINE / 8];
    for i in 0..each {
        for stream in 0..STREAMS {
            let line = &lines[stream * each + i];
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let bytes: Vec<u8> = (0..(STREAMS * LINE) as u64 / 8)
            .flat_map(u64::to_ne_bytes)
            .collect();
        assert_eq!(sum(&bytes), 31 * 32 / 2);
    }

    #[test]
    fn no_weights_have_no_rate() {
        let (rates, done) = beside(&[], 2, || Ok(7)).expect("memory and threads");
        assert_eq!((rates.weights, done), (None, 7));
        assert!(rates.memory > 0.0);
    }

    #[test]
    fn rates_are_of_all_passes() {
        let weights = vec![1; 1000 * LINE + 7];
        for threads in [0, 1, 3] {
            let rates = weights_rates(&weights, threads).expect("threads");
            assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0));
        }
    }

    #[test]
    fn every_part_is_worked_on() {
        let mut bytes = [0u8; 100];
        in_parallel(bytes.chunks_mut(33), |part| part.fill(part.len() as u8)).expect("threads");
        assert_eq!((bytes[0], bytes[98], bytes[99]), (33, 33, 1));
    }
}
