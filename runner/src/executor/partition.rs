//! Who does which part of a launch: pure arithmetic, the same on every thread, so nothing has to be shared.
//!
//! Work comes in *units* that lie one after the other, each with a cost. Part `t` of `n` gets the units whose middle falls
//! into the `t`-th n-th of the whole cost: parts are consecutive, cover every unit exactly once, and begin and end within
//! half a unit of their fair share.

use std::ops::Range;

/// Costs of a whole launch must stay below this, so that the arithmetic here can't overflow with 4096 parts.
pub const MAX_COST: u64 = 1 << 48;

/// Part `part` of `parts` of `units` units of equal cost.
pub fn even(units: usize, part: usize, parts: usize) -> Range<usize> {
    let units = units as u64;
    let bound = |p: usize| bound_in_run(units, 1, 0, p as u64, parts as u64, units) as usize;
    bound(part)..bound(part + 1)
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
        assert_eq!(bound_in_run(1, cost, 0, 4096, 4096, cost), 1);
        assert_eq!(bound_in_groups(&[cost], 1, 4096, 4096), 1);
    }
}
