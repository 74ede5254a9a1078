//! The stability profiles: one table of what each chooses, for what, and why.
//!
//! With many sequences a step this chip's memory controller was seen to fail reads at scattered addresses
//! (`hipErrorIllegalAddress`). What helps is fewer such reads under way at a time, addresses that can't be wrong whatever
//! memory says, and short kernels of one stream each in place of fused ones.

use bundle_format::stability::{self, Profile, Profiles, Stability};

/// Rows from which on a step is large: beyond the 16 columns of a matrix instruction, a bucket of its own in all kernels.
pub const LARGE: u32 = 17;

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Attention of single tokens.
    Decode,
    /// Attention of both kinds.
    Attention,
    Norm,
    Rope,
    KvWrite,
    /// Products of experts.
    Experts,
    /// The whole step.
    Launches,
}

/// When a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    Any,
    /// From [`LARGE`] rows on.
    Large,
}

/// What a rule chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Block tables go through shared memory, where every entry is held below the number of blocks.
    StageTables,
    /// No block's keys and values are read while another's are multiplied.
    NoReadAhead,
    /// Parts of a context fill the chip once, not twice.
    FillOnce,
    /// A context is not divided.
    OnePart,
    /// So many blocks of four wavefronts at most on each of the 20 pairs of compute units.
    Blocks(u32),
    /// A kernel of its own.
    Apart,
    /// Indices that a router wrote are held within what there is.
    CheckIndices,
    /// No kernel does the work of the launch before, too.
    EachItsOwn,
    /// Launches one by one, not as graphs.
    Eager,
}

/// A row of the table: profiles from `from` on choose so.
pub struct Rule {
    pub on: On,
    pub rows: Rows,
    pub from: Stability,
    pub choice: Choice,
    pub what: &'static str,
    pub why: &'static str,
}

/// The table. Where two rules set the same number, the later one counts.
pub const RULES: &[Rule] = &[
    Rule {
        on: On::Attention,
        rows: Rows::Any,
        from: Stability::Balanced,
        choice: Choice::StageTables,
        what: "block tables are copied to shared memory, each entry held below the number of blocks",
        why: "no address depends on a read that may have gone wrong, and a read of a table is not waited for at each block",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Any,
        from: Stability::Balanced,
        choice: Choice::FillOnce,
        what: "a context is divided into as many parts as fill the chip once",
        why: "twice as many have twice the scattered reads under way",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::OnePart,
        what: "a context is not divided",
        why: "there are tokens enough to fill the chip; more blocks than it runs only queue at the memory controller",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::OnePart,
        what: "a context is not divided",
        why: "nothing is left that counts tickets across blocks",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::NoReadAhead,
        what: "the next block's keys and values are not read ahead",
        why: "bounds the reads that a wavefront has under way to one block of 16 positions",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::NoReadAhead,
        what: "the next block's keys and values are not read ahead",
        why: "bounds the reads that a wavefront has under way to one block of 16 positions",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::Blocks(4),
        what: "at most 16 wavefronts on a pair of compute units, by asking for shared memory",
        why: "caps scattered reads of the whole chip, and still has four wavefronts a vector unit to cover their latency",
    },
    Rule {
        on: On::Decode,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::Blocks(2),
        what: "at most 8 wavefronts on a pair of compute units, by asking for shared memory",
        why: "half of that again",
    },
    Rule {
        on: On::Norm,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::Apart,
        what: "the residual sum and the RMSNorm are two kernels",
        why: "each reads and writes one stream, without waiting for a row's sum in between",
    },
    Rule {
        on: On::Norm,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::Apart,
        what: "the residual sum and the RMSNorm are two kernels",
        why: "each reads and writes one stream, without waiting for a row's sum in between",
    },
    Rule {
        on: On::Rope,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::Apart,
        what: "queries and keys are rotated by kernels of their own, from the sums of a product",
        why: "its wavefronts read weights and write one stream, and touch no table of angles",
    },
    Rule {
        on: On::Rope,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::Apart,
        what: "queries and keys are rotated by kernels of their own, from the sums of a product",
        why: "its wavefronts read weights and write one stream, and touch no table of angles",
    },
    Rule {
        on: On::KvWrite,
        rows: Rows::Large,
        from: Stability::Balanced,
        choice: Choice::Apart,
        what: "keys and values go to their slots by one kernel, 16 bytes a lane, to no slot beyond the pool",
        why: "whole lines at a time in place of two bytes, at addresses that are checked, and when nothing else is read",
    },
    Rule {
        on: On::KvWrite,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::Apart,
        what: "keys and values go to their slots by one kernel, 16 bytes a lane, to no slot beyond the pool",
        why: "whole lines at a time in place of two bytes, at addresses that are checked, and when nothing else is read",
    },
    Rule {
        on: On::Experts,
        rows: Rows::Any,
        from: Stability::Balanced,
        choice: Choice::CheckIndices,
        what: "places of the list of pairs, and the tokens in it, are held below the step's numbers of them",
        why: "rows are read and written where another kernel's results say: no address depends on a read that may have gone wrong",
    },
    Rule {
        on: On::Launches,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::EachItsOwn,
        what: "each launch of a lone token has kernels of its own",
        why: "nothing is left that counts tickets across blocks, and a fault is known by its launch",
    },
    Rule {
        on: On::Launches,
        rows: Rows::Any,
        from: Stability::Strict,
        choice: Choice::Eager,
        what: "kernels are launched one by one",
        why: "the driver's graphs queue a whole step at once; a fault is then known by its launch, too",
    },
];

/// How a context is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    FillTwice,
    FillOnce,
    One,
}

/// What a profile chooses for launches of a range of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    pub stage_tables: bool,
    pub read_ahead: bool,
    pub parts: Parts,
    pub blocks: Option<u32>,
    pub norm_apart: bool,
    /// Rotations and KV writes: either is a kernel of its own only behind the product's sums, so both are.
    pub rope_kv_apart: bool,
    pub check_indices: bool,
    /// Whether kernels of a lone token may do the work of the launch before.
    pub joined: bool,
}

impl Choice {
    /// Which of the [`Choices`] it sets.
    fn sets(self) -> u32 {
        match self {
            Choice::StageTables => 0,
            Choice::NoReadAhead => 1,
            Choice::FillOnce | Choice::OnePart => 2,
            Choice::Blocks(_) => 3,
            Choice::Apart => 4,
            Choice::Eager => 5,
            Choice::CheckIndices => 6,
            Choice::EachItsOwn => 7,
        }
    }
}

impl Rule {
    fn holds(&self, stability: Stability, first: u32) -> bool {
        stability >= self.from && (self.rows == Rows::Any || first >= LARGE)
    }

    /// `attention of single tokens, from 17 rows on`
    fn when(&self) -> String {
        let on = match self.on {
            On::Decode => "attention of single tokens",
            On::Attention => "attention",
            On::Norm => "RMSNorm",
            On::Rope => "RoPE",
            On::KvWrite => "KV write",
            On::Experts => "products of experts",
            On::Launches => "a step",
        };
        match self.rows {
            Rows::Any => on.to_string(),
            Rows::Large => format!("{on}, from {LARGE} rows on"),
        }
    }
}

/// What a profile chooses for rows from `first` on, in a range that doesn't reach across [`LARGE`].
pub fn choices(stability: Stability, first: u32) -> Choices {
    let mut made = Choices {
        stage_tables: false,
        read_ahead: true,
        parts: Parts::FillTwice,
        blocks: None,
        norm_apart: false,
        rope_kv_apart: false,
        check_indices: false,
        joined: true,
    };
    for rule in RULES.iter().filter(|rule| rule.holds(stability, first)) {
        match (rule.choice, rule.on) {
            (Choice::StageTables, _) => made.stage_tables = true,
            (Choice::NoReadAhead, _) => made.read_ahead = false,
            (Choice::FillOnce, _) => made.parts = Parts::FillOnce,
            (Choice::OnePart, _) => made.parts = Parts::One,
            (Choice::Blocks(most), _) => made.blocks = Some(most),
            (Choice::CheckIndices, _) => made.check_indices = true,
            (Choice::EachItsOwn, _) => made.joined = false,
            (Choice::Apart, On::Norm) => made.norm_apart = true,
            (Choice::Apart, On::Rope | On::KvWrite) => made.rope_kv_apart = true,
            // Of whole steps: `profiles`.
            (Choice::Apart | Choice::Eager, _) => {}
        }
    }
    made
}

/// What profiles choose of `pick` for rows from `first` on: each different choice with those that make it.
pub fn ways<T: PartialEq>(
    profiles: Profiles,
    first: u32,
    pick: impl Fn(&Choices) -> T,
) -> Vec<(Profiles, T)> {
    let mut all: Vec<(Profiles, T)> = Vec::new();
    for stability in profiles.iter() {
        let made = pick(&choices(stability, first));
        match all.iter_mut().find(|(_, known)| *known == made) {
            Some((with, _)) => *with = with.and(stability.into()),
            None => all.push((stability.into(), made)),
        }
    }
    all
}

/// A profile and all stricter ones, as a plan records them.
pub fn profiles(own: Stability) -> Vec<Profile> {
    let stricter = Stability::ALL.into_iter().filter(|&s| s >= own);
    stricter
        .map(|stability| {
            let rules = RULES.iter().enumerate();
            let rules = rules.filter(|(_, rule)| stability >= rule.from);
            // A later rule about the same, for as many rows or more, makes one redundant.
            let counts = |(at, rule): &(usize, &Rule)| {
                let replaces = |other: &Rule| {
                    stability >= other.from
                        && (other.on, other.choice.sets()) == (rule.on, rule.choice.sets())
                        && (other.rows == Rows::Any || other.rows == rule.rows)
                };
                !RULES[at + 1..].iter().any(replaces)
            };
            Profile {
                stability,
                eager: rules.clone().any(|(_, rule)| rule.choice == Choice::Eager),
                rules: rules
                    .filter(counts)
                    .map(|(_, rule)| stability::Rule {
                        when: rule.when(),
                        choice: rule.what.to_string(),
                        reason: rule.why.to_string(),
                    })
                    .collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_32_takes_the_stable_path_under_balanced() {
        let made = choices(Stability::Balanced, LARGE);
        assert!(made.stage_tables && !made.read_ahead);
        assert_eq!((made.parts, made.blocks), (Parts::One, Some(4)));
        assert!(made.norm_apart && made.rope_kv_apart);
        let few = choices(Stability::Balanced, 2);
        assert!(few.stage_tables && few.read_ahead);
        assert_eq!((few.parts, few.blocks), (Parts::FillOnce, None));
        assert!(!few.norm_apart && !few.rope_kv_apart && few.check_indices);
        assert!(few.joined);
    }

    #[test]
    fn fast_follows_no_rule_and_strict_all() {
        for first in [1, 2, LARGE, 33] {
            let fast = choices(Stability::Fast, first);
            assert!(!fast.stage_tables && fast.read_ahead && fast.blocks.is_none());
            assert!(!fast.check_indices);
            let strict = choices(Stability::Strict, first);
            assert!(strict.norm_apart && strict.rope_kv_apart);
            assert!(fast.joined && !strict.joined);
            assert_eq!((strict.parts, strict.blocks), (Parts::One, Some(2)));
        }
        let all = profiles(Stability::Fast);
        assert_eq!(all.len(), 3);
        assert!(all[0].rules.is_empty() && !all[0].eager);
        assert!(!all[1].eager && all[2].eager);
        assert_eq!(profiles(Stability::Strict), all[2..]);
    }

    #[test]
    fn profiles_that_choose_alike_share_a_variant() {
        let all: Profiles = Stability::ALL.into_iter().collect();
        let apart = ways(all, LARGE, |c| c.norm_apart);
        assert_eq!(apart, [(Profiles(0b001), false), (Profiles(0b110), true)]);
        assert_eq!(ways(all, 1, |c| c.stage_tables).len(), 2);
    }
}
