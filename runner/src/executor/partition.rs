//! What the parts of a launch are: pure arithmetic, the same on every thread.
//!
//! Work comes in *units* that lie one after the other, each with a cost. Part `t` of `n` gets the units whose middle falls
//! into the `t`-th n-th of the whole cost: parts are consecutive, cover every unit exactly once, and begin and end within
//! half a unit of their fair share. Each thread's share is a part; where there is enough to do, it is cut into several, which threads
//! that are done with theirs take over ([`super::claims`]).

use std::ops::Range;

/// Costs of a whole launch must stay below this, so that the arithmetic here can't overflow with 4096 threads' parts.
pub const MAX_COST: u64 = 1 << 40;

/// Part `part` of `parts` of `units` units of equal cost.
pub fn even(units: usize, part: usize, parts: usize) -> Range<usize> {
    let units = units as u64;
    let bound = |p: usize| bound_in_run(units, 1, 0, p as u64, parts as u64, units) as usize;
    bound(part)..bound(part + 1)
}

/// What a part of a product's share costs at least, in KiB of weights: 10 to 25 us, so that what taking it costs does not show.
const PART: u64 = 128;

/// The same of a share that few others wait for: longer calls of microkernels are worth more than an early end.
const LONG_PART: u64 = 2 * PART;
const FEW_THREADS: u64 = 4;

/// Equal parts of a share, at most: the last thread to finish is a part of its share late.
pub const MOST_PARTS: u64 = 16;

/// How often the last of equal parts is halved, at most.
const MOST_HALVINGS: u32 = 4;

/// Parts of each thread's share of work that costs `cost`, where one should cost `part` at least.
pub fn parts_each(cost: u64, threads: u64, part: u64) -> u64 {
    match threads {
        // Nobody takes over.
        1 => 1,
        _ => (cost / threads / part).clamp(1, MOST_PARTS),
    }
}

/// How products are divided. A share is cut into equal parts, the last of which is cut into a half, a quarter, … and what is left,
/// as all threads wait for the end of the last part.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Parts of each thread's share.
    pub each: u64,
    /// How many of these are what the last equal part is cut into, besides one.
    halvings: u32,
    threads: u64,
    total: u64,
}

/// Units of one cost.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub units: u64,
    pub cost: u64,
    /// The cost of all units before.
    pub before: u64,
}

impl Parts {
    /// Of units that cost `total` (below [`MAX_COST`]), in KiB of weights, for `threads` threads. Equal parts cost as much as a
    /// `tile` at least.
    pub fn new(total: u64, threads: u64, tile: u64) -> Self {
        let least = match threads {
            ..=FEW_THREADS => LONG_PART,
            _ => PART,
        };
        let equal = parts_each(total, threads, least.max(tile));
        // Of a thread alone nobody takes over.
        let halvings = match threads {
            1 => 0,
            _ => (total / threads / equal / PART).max(1).ilog2(),
        };
        let halvings = halvings.min(MOST_HALVINGS);
        Self {
            each: equal + u64::from(halvings),
            halvings,
            threads,
            total,
        }
    }

    /// The units of a run that belong to part `part`, part `i` of thread `t`'s share being number `t * each + i`. Of units that
    /// make tiles, so many (`tile`) in each of two dimensions, equal parts have whole ones if these are enough for all.
    pub fn units(&self, part: u64, run: &Run, tile: [u64; 2]) -> Range<u64> {
        let parts = self.threads * self.pieces();
        let [start, end] = [part, part + 1].map(|part| self.before(part));
        // All of it before or behind the part: most runs of many.
        if (run.before + run.units * run.cost) * parts <= self.total * start {
            return run.units..run.units;
        }
        if run.before * parts >= self.total * end {
            return 0..0;
        }
        let bound =
            |part, parts| bound_in_run(run.units, run.cost, run.before, part, parts, self.total);
        let owner = part / self.each;
        let share = bound(owner, self.threads)..bound(owner + 1, self.threads);
        let [rows, cols] = tile;
        let whole = [rows * cols, rows * 2, rows]
            .into_iter()
            .find(|whole| whole * self.equal() <= share.end - share.start)
            .unwrap_or(1);
        let from = match whole {
            1 => share.start,
            _ => share.start.next_multiple_of(rows),
        };
        let cut = |pieces: u64, part: u64| {
            let whole = match part % self.each < self.equal() {
                true => whole,
                false => whole.min(rows * 2),
            };
            match bound(pieces, parts) {
                at if at <= from => share.start,
                at if at >= share.end => share.end,
                at => from + (at - from) / whole * whole,
            }
        };
        cut(start, part)..cut(end, part + 1)
    }

    fn equal(&self) -> u64 {
        self.each - u64::from(self.halvings)
    }

    /// Pieces of a share, of which its parts are made: as large as the last one.
    fn pieces(&self) -> u64 {
        self.equal() << self.halvings
    }

    /// Pieces before a part.
    fn before(&self, part: u64) -> u64 {
        let (owner, i) = (part / self.each, part % self.each);
        let whole = i.min(self.equal() - 1);
        let left = match i - whole {
            0 => self.pieces() - (whole << self.halvings),
            halved => 1 << (u64::from(self.halvings) - halved),
        };
        (owner + 1) * self.pieces() - left
    }
}

/// Of a run of `units` units of `cost` each, which begins after units that cost `before`, where all runs together cost
/// `total` (below [`MAX_COST`]): how many belong to the parts below `part` of `parts`.
pub fn bound_in_run(units: u64, cost: u64, before: u64, part: u64, parts: u64, total: u64) -> u64 {
    // Unit i's middle, before + (i + 1/2) cost, lies below the part's start, total * part / parts, where
    //     i * (2 cost parts) < 2 total part - 2 before parts - cost parts.
    let (left, taken) = (2 * total * part, (2 * before + cost) * parts);
    if left <= taken {
        return 0;
    }
    (left - taken).div_ceil(2 * cost * parts).min(units)
}

/// Of `groups` repetitions of the same list of units, where `ends[i]` is the cost of the units up to and with `i`
/// (`groups` times the last below [`MAX_COST`]): how many units, counted through all repetitions, belong to the parts below
/// `part` of `parts`.
pub fn bound_in_groups(ends: &[u64], groups: u64, part: u64, parts: u64) -> u64 {
    let Some(&lap) = ends.last() else {
        return 0;
    };
    // Everything times 2 parts, so that it is whole.
    let goal = 2 * lap * groups * part;
    let (group, rest) = (goal / (2 * lap * parts), goal % (2 * lap * parts));
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = (low + high) / 2;
        let start = if middle == 0 { 0 } else { ends[middle - 1] };
        if (start + ends[middle]) * parts < rest {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    group * ends.len() as u64 + low as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_parts_cover_everything_and_differ_by_one() {
        for units in 0..70 {
            for parts in 1..20 {
                let mut next = 0;
                for part in 0..parts {
                    let range = even(units, part, parts);
                    assert_eq!(range.start, next, "{units} units, part {part} of {parts}");
                    let len = range.len();
                    assert!(len == units / parts || len == units.div_ceil(parts));
                    next = range.end;
                }
                assert_eq!(next, units);
            }
        }
    }

    #[test]
    fn weighted_runs_cover_everything_and_balance() {
        // Units and cost of each run.
        let cases: [&[(u64, u64)]; 5] = [
            &[(72, 8), (24, 8), (24, 8)],
            &[(9, 64)],
            &[(1, 1000), (100, 1)],
            &[(3, 7), (0, 5), (11, 2), (1, 1)],
            &[(6144, 4_000_000), (1, 1)],
        ];
        for runs in cases {
            let total: u64 = runs.iter().map(|r| r.0 * r.1).sum();
            let largest = runs.iter().map(|r| r.1).max().unwrap();
            for parts in 1..=64 {
                let mut seen = vec![0; runs.len()];
                for part in 0..parts {
                    let (mut before, mut cost) = (0, 0);
                    for (run, seen) in runs.iter().zip(&mut seen) {
                        let low = bound_in_run(run.0, run.1, before, part, parts, total);
                        let high = bound_in_run(run.0, run.1, before, part + 1, parts, total);
                        assert_eq!(low, *seen, "{runs:?} part {part} of {parts}");
                        *seen = high;
                        cost += (high - low) * run.1;
                        before += run.0 * run.1;
                    }
                    assert!(cost <= total / parts + 1 + largest, "{runs:?} {parts}");
                }
                assert!(seen.iter().zip(runs).all(|(s, r)| *s == r.0));
            }
        }
    }

    #[test]
    fn parts_of_shares_cover_everything_in_whole_tiles() {
        // Units and cost of each run.
        let cases: [&[(u64, u64)]; 5] = [
            &[(72, 80), (24, 80), (24, 80)],
            &[(9, 64)],
            &[(1, 100_000), (100, 100)],
            &[(300, 700), (0, 50), (1100, 20), (1, 1)],
            &[(6144, 400), (1, 1)],
        ];
        for runs in cases {
            let total: u64 = runs.iter().map(|r| r.0 * r.1).sum();
            for (threads, tile) in [(1, [1, 8]), (2, [1, 4]), (3, [5, 8]), (16, [2, 1])] {
                let parts = Parts::new(total, threads, tile[0] * tile[1] * runs[0].1);
                let mut before = 0;
                for &(units, cost) in runs {
                    let run = Run {
                        units,
                        cost,
                        before,
                    };
                    before += units * cost;
                    let mut next = 0;
                    for part in 0..threads * parts.each {
                        let range = parts.units(part, &run, tile);
                        if range.is_empty() {
                            continue;
                        }
                        assert_eq!(range.start, next, "{runs:?} part {part} of {parts:?}");
                        next = range.end;
                    }
                    assert_eq!(next, units, "{runs:?} {parts:?}");
                }
            }
        }
        // The first share ends within a tile.
        let run = Run {
            units: 6015,
            cost: 20,
            before: 0,
        };
        let parts = Parts::new(run.units * run.cost, 2, 16 * run.cost);
        let of = |part| parts.units(part, &run, [2, 8]);
        let last = parts.each - 1;
        assert_eq!(
            (parts.each, of(last).end),
            (MOST_PARTS + u64::from(MOST_HALVINGS), 3007)
        );
        for part in 0..2 * parts.each {
            let whole = match part % parts.each {
                i if i == last => 1,
                i if i + 1 < parts.equal() => 16,
                _ => 4,
            };
            assert!(of(part).end.is_multiple_of(whole), "{part}");
            let pieces = parts.before(part + 1) - parts.before(part);
            let fair = run.units * pieces / (2 * parts.pieces());
            assert!(of(part).end - of(part).start <= fair + 17, "{part}");
        }
    }

    /// In pieces: equal parts, then a half, a quarter, and so on, and what is left.
    #[test]
    fn shares_end_in_small_parts() {
        for (share, threads, sizes) in [
            (100, 3, &[1][..]),
            (256, 2, &[1, 1]),
            (511, 2, &[1, 1]),
            (512, 2, &[2, 1, 1]),
            (512, 5, &[1, 1, 1, 1]),
            (16 * 256, 5, &[[2; 15].as_slice(), &[1, 1]].concat()),
            (
                1 << 30,
                3,
                &[[16; 15].as_slice(), &[8, 4, 2, 1, 1]].concat(),
            ),
            (1 << 30, 1, &[1]),
        ] {
            let parts = Parts::new(share * threads, threads, 0);
            let found: Vec<u64> = (0..threads * parts.each)
                .map(|part| parts.before(part + 1) - parts.before(part))
                .collect();
            assert_eq!(found, sizes.repeat(threads as usize), "{share}, {threads}");
        }
    }

    /// Four tiles and a half: three parts of one, and the rest in four.
    #[test]
    fn equal_parts_are_whole_tiles() {
        let run = Run {
            units: 72,
            cost: 500,
            before: 0,
        };
        let parts = Parts::new(run.units * run.cost, 1 << 10, 16 * run.cost);
        assert_eq!(parts.each, 1);
        let parts = Parts::new(2 * run.units * run.cost, 2, 16 * run.cost);
        let ends: Vec<u64> = (0..parts.each)
            .map(|part| parts.units(part, &run, [1, 16]).end)
            .collect();
        assert_eq!(ends, [16, 32, 48, 62, 66, 70, 70, 72]);
    }

    #[test]
    fn groups_cover_everything_and_balance() {
        let causal: Vec<u64> = (0..32)
            .scan(0, |sum, i| {
                *sum += 16 + i * 16;
                Some(*sum)
            })
            .collect();
        for ends in [&[5][..], &causal, &[1, 2, 3, 1000], &[1000, 1001], &[]] {
            let units = ends.len() as u64;
            let cost = |unit: u64| {
                let i = (unit % units) as usize;
                ends[i] - if i == 0 { 0 } else { ends[i - 1] }
            };
            for groups in 1..=9 {
                for parts in 1..=16 {
                    let mut next = 0;
                    for part in 0..parts {
                        assert_eq!(bound_in_groups(ends, groups, part, parts), next);
                        let end = bound_in_groups(ends, groups, part + 1, parts);
                        let sum: u64 = (next..end).map(cost).sum();
                        let share = ends.last().copied().unwrap_or(0) * groups / parts;
                        let largest = (0..units).map(cost).max().unwrap_or(0);
                        assert!(end >= next && sum <= share + 1 + largest);
                        next = end;
                    }
                    assert_eq!(next, units * groups);
                }
            }
        }
    }

    #[test]
    fn the_largest_cost_does_not_overflow() {
        let cost = MAX_COST - 1;
        assert_eq!(bound_in_run(1, cost, 0, 1 << 16, 1 << 16, cost), 1);
        let parts = Parts::new(cost, 4096, 0);
        assert_eq!(parts.each, MOST_PARTS + u64::from(MOST_HALVINGS));
        let run = Run {
            units: 1,
            cost,
            before: 0,
        };
        let last = 4096 * parts.each - 1;
        assert_eq!(parts.units(last, &run, [1, 1]), 1..1);
        assert_eq!(bound_in_groups(&[cost], 1, 4096, 4096), 1);
    }
}
