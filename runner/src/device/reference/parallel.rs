//! A parallel map over ranges, for the reference device: plain threads, joined before it returns.

use std::ops::Range;

use crate::executor::partition::even;

/// Splits `0..len` into up to `threads` ranges, and gives what `f` makes of each, in order.
pub fn map<T: Send>(
    len: usize,
    threads: usize,
    f: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<(Range<usize>, T)> {
    let threads = threads.clamp(1, len.max(1));
    let ranges = (0..threads).map(|t| even(len, t, threads));
    if threads == 1 {
        return ranges.map(|range| (range.clone(), f(range))).collect();
    }
    std::thread::scope(|scope| {
        let f = &f;
        let running: Vec<_> = ranges
            .map(|range| (range.clone(), scope.spawn(move || f(range))))
            .collect();
        running
            .into_iter()
            .map(|(range, thread)| match thread.join() {
                Ok(made) => (range, made),
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_in_order() {
        for (len, threads) in [(0, 3), (1, 3), (10, 1), (10, 3), (3, 8)] {
            let made = map(len, threads, |range| range.sum::<usize>());
            let joined: Vec<usize> = made.iter().flat_map(|(range, _)| range.clone()).collect();
            assert_eq!(joined, (0..len).collect::<Vec<_>>());
            let sum: usize = made.iter().map(|(_, sum)| sum).sum();
            assert_eq!(sum, (0..len).sum::<usize>());
        }
    }
}
