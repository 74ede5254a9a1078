//! That the launches' dependencies order all that must be ordered. Executors let launches overlap that don't depend on one
//! another, directly or through others, so a missing dependency is a data race: a launch must wait for whoever wrote what
//! it reads, and for all that wrote or read what it overwrites.
//!
//! The walk takes launches in the plan's order and keeps, for each range of the arena and each KV pool, the last launch
//! that wrote it and those that have read it since. Earlier ones need no memory: the last writer waits for them.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::arena::{Effects, Pool, describe, range};
use super::{Invalid, shown};
use crate::plan::Plan;

pub struct Order<'a> {
    plan: &'a Plan,
    /// The launch to come.
    next: usize,
    /// What each launch waits for, directly or through others.
    before: Ancestors,
    /// Start of a range of the arena -> its end and users. Ranges don't overlap.
    arena: BTreeMap<u64, (u64, Users)>,
    pools: HashMap<Pool, Users>,
}

/// The launches that a later one must wait for to overwrite something; to read it, the writer.
#[derive(Clone, Debug, Default)]
struct Users {
    /// None: the host, before the step.
    writer: Option<usize>,
    /// Since the writer. Shared by the pieces of a range that was partly overwritten, which nothing reads any more.
    readers: Rc<Vec<usize>>,
}

/// For each launch a set of launches before it, one bit each.
struct Ancestors {
    /// Words of a launch's set.
    words: usize,
    bits: Vec<u64>,
}

impl Ancestors {
    fn of(launches: usize) -> Ancestors {
        Ancestors {
            words: launches.div_ceil(64),
            bits: Vec::new(),
        }
    }

    /// Adds the set of the next launch: its dependencies, which come before it, and theirs.
    fn push(&mut self, deps: &[u32]) {
        let start = self.bits.len();
        self.bits.resize(start + self.words, 0);
        let (all, new) = self.bits.split_at_mut(start);
        for dep in deps.iter().map(|&dep| dep as usize) {
            if new[dep / 64] & (1 << (dep % 64)) == 0 {
                let theirs = &all[dep * self.words..][..self.words];
                for (word, their) in new.iter_mut().zip(theirs) {
                    *word |= their;
                }
                new[dep / 64] |= 1 << (dep % 64);
            }
        }
    }

    /// Whether `launch` waits for `earlier`.
    fn holds(&self, launch: usize, earlier: usize) -> bool {
        self.bits[launch * self.words + earlier / 64] & (1 << (earlier % 64)) != 0
    }
}

impl<'a> Order<'a> {
    /// Before the first launch.
    pub fn new(plan: &'a Plan) -> Order<'a> {
        Order {
            plan,
            next: 0,
            before: Ancestors::of(plan.launches.len()),
            arena: BTreeMap::new(),
            pools: HashMap::new(),
        }
    }

    /// Checks the next launch. It has passed the checks of `launch` and `arena`: its dependencies come before it, and what
    /// it reads is whole, so that it lies in one range of one writer.
    pub fn launch(&mut self, effects: &Effects) -> Result<(), Invalid> {
        let launch = self.next;
        self.next += 1;
        self.before.push(&self.plan.launches[launch].deps);

        for &buffer in &effects.reads {
            self.read(launch, buffer)?;
        }
        for pool in &effects.pool_reads {
            let users = self.pools.entry(*pool).or_default();
            users
                .read_by(launch, &self.before)
                .map_err(|earlier| missing(self.plan, launch, earlier, "reads", pool))?;
        }
        for &buffer in effects.writes.iter().chain(&effects.own) {
            self.write(launch, buffer)?;
        }
        for pool in &effects.pool_writes {
            let users = self.pools.entry(*pool).or_default();
            users
                .may_be_written_by(launch, &self.before)
                .map_err(|earlier| missing(self.plan, launch, earlier, "writes", pool))?;
            *users = Users::of_writer(launch);
        }
        Ok(())
    }

    fn read(&mut self, launch: usize, buffer: u32) -> Result<(), Invalid> {
        let (start, end) = range(self.plan, buffer);
        // What the host wrote is not there before a launch uses it.
        let (_, users) = self.arena.entry(start).or_insert((end, Users::default()));
        users.read_by(launch, &self.before).map_err(|earlier| {
            let what = describe(self.plan, buffer);
            missing(self.plan, launch, earlier, "reads", what)
        })
    }

    /// Takes the buffer's range from all that overlap it.
    fn write(&mut self, launch: usize, buffer: u32) -> Result<(), Invalid> {
        let (start, end) = range(self.plan, buffer);
        // Ranges are disjoint, so the last that starts below `end` is the last that can overlap.
        while let Some((&s, &(e, _))) = self.arena.range(..end).next_back() {
            if e <= start {
                break;
            }
            let Some((_, users)) = self.arena.remove(&s) else {
                break;
            };
            users
                .may_be_written_by(launch, &self.before)
                .map_err(|earlier| {
                    let what = describe(self.plan, buffer);
                    missing(self.plan, launch, earlier, "writes", what)
                })?;
            if end < e {
                self.arena.insert(end, (e, users.clone()));
            }
            if s < start {
                self.arena.insert(s, (start, users));
            }
        }
        self.arena.insert(start, (end, Users::of_writer(launch)));
        Ok(())
    }
}

impl Users {
    fn of_writer(launch: usize) -> Users {
        Users {
            writer: Some(launch),
            readers: Rc::default(),
        }
    }

    /// Adds a reader, or gives the writer that it fails to wait for.
    fn read_by(&mut self, launch: usize, before: &Ancestors) -> Result<(), usize> {
        match self.writer {
            Some(writer) if !before.holds(launch, writer) => Err(writer),
            _ => {
                Rc::make_mut(&mut self.readers).push(launch);
                Ok(())
            }
        }
    }

    /// Checks that a launch may overwrite, or gives a launch that it fails to wait for.
    fn may_be_written_by(&self, launch: usize, before: &Ancestors) -> Result<(), usize> {
        let mut users = self.readers.iter().chain(&self.writer);
        // Its own read comes before: in place, each iteration by itself.
        match users.find(|&&user| user != launch && !before.holds(launch, user)) {
            Some(&user) => Err(user),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = if self.values { "values" } else { "keys" };
        write!(
            f,
            "the {part} of layer {} of KV group {}",
            self.layer, self.group
        )
    }
}

/// The error of a launch that doesn't wait for an earlier one.
fn missing(
    plan: &Plan,
    launch: usize,
    earlier: usize,
    verb: &str,
    what: impl std::fmt::Display,
) -> Invalid {
    let name = shown(&plan.launches[earlier].name);
    Invalid::new(
        "deps",
        format!(
            "to wait for launch {earlier} ({name}), itself or through others: it {verb} {what}, which that one uses"
        ),
        format!("{:?}", plan.launches[launch].deps),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Buffer, DType, Dim, Launch, Limits, Op, Place, Role};

    /// A unit of the arena: 64 bytes.
    const UNITS: usize = 8;

    /// (first unit, units)
    type Range = (usize, usize);

    /// Launches that write and read ranges: (dependencies as bits, range, whether it writes).
    type Steps = Vec<(u32, Vec<(Range, bool)>)>;

    fn steps() -> impl Strategy<Value = Steps> {
        let range = (0..UNITS, 1..4usize).prop_map(|(at, n)| (at, n.min(UNITS - at)));
        let accesses = prop::collection::vec((range, prop::bool::weighted(0.6)), 1..3);
        prop::collection::vec((any::<u32>(), accesses), 2..9)
    }

    fn overlap(a: Range, b: Range) -> bool {
        a.0 < b.0 + b.1 && b.0 < a.0 + a.1
    }

    /// A plan of the steps with a buffer for each access, and effects that the checks before would let pass: reads
    /// of whole buffers only, and no overlap within a launch.
    fn plan_of(steps: &Steps) -> (Plan, Vec<Effects>) {
        let mut plan = Plan {
            limits: Limits {
                max_tokens: 1,
                max_seqs: 1,
                max_rows: 1,
                context: 1,
            },
            world_size: 1,
            kv: vec![],
            buffers: vec![],
            arena_bytes: 64 * UNITS as u64,
            weights: vec![],
            launches: vec![],
            sampling: None,
            stability: vec![],
        };
        let mut all = Vec::new();
        let mut owners: [Option<Range>; UNITS] = [None; UNITS];
        for (i, (deps, accesses)) in steps.iter().enumerate() {
            let mut effects = Effects::default();
            let mut taken: Vec<Range> = Vec::new();
            for &(range, writes) in accesses {
                let (at, n) = range;
                let whole = owners[at..at + n].iter().all(|o| *o == Some(range));
                if taken.iter().any(|t| overlap(*t, range)) || !writes && !whole {
                    continue;
                }
                taken.push(range);
                let buffer = plan.buffers.len() as u32;
                plan.buffers.push(Buffer {
                    name: format!("{at}+{n}"),
                    dtype: DType::F32,
                    extent: Dim::Tokens,
                    cols: 16 * n as u32,
                    place: Place {
                        offset: 64 * at as u64,
                        role: Role::Scratch,
                    },
                });
                match writes {
                    true => effects.writes.push(buffer),
                    false => effects.reads.push(buffer),
                }
            }
            for &buffer in &effects.writes {
                let (start, end) = range(&plan, buffer);
                let (at, n) = (start as usize / 64, (end - start) as usize / 64);
                owners[at..at + n].fill(Some((at, n)));
            }
            plan.launches.push(Launch {
                name: i.to_string(),
                deps: (0..i as u32).filter(|d| deps >> d & 1 == 1).collect(),
                op: Op::Embed {
                    tokens: 0,
                    table: 0,
                    out: 0,
                    scale: 1.0,
                },
                variants: vec![],
            });
            all.push(effects);
        }
        (plan, all)
    }

    /// Whether all pairs of launches that meet in a byte, one writing, are ordered: the definition.
    fn is_ordered(plan: &Plan, effects: &[Effects]) -> bool {
        fn waits(plan: &Plan, launch: usize, earlier: usize) -> bool {
            let deps = plan.launches[launch].deps.iter();
            deps.map(|&d| d as usize)
                .any(|d| d == earlier || d > earlier && waits(plan, d, earlier))
        }
        let meets = |a: &[u32], b: &[u32]| {
            a.iter().any(|&a| {
                let (a0, a1) = range(plan, a);
                b.iter().any(|&b| {
                    let (b0, b1) = range(plan, b);
                    a0 < b1 && b0 < a1
                })
            })
        };
        (0..effects.len()).all(|j| {
            (0..j).all(|i| {
                let (a, b) = (&effects[i], &effects[j]);
                let conflict = meets(&a.writes, &b.writes)
                    || meets(&a.writes, &b.reads)
                    || meets(&a.reads, &b.writes);
                !conflict || waits(plan, j, i)
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20000))]

        #[test]
        fn refuses_what_the_definition_refuses(steps in steps()) {
            let (plan, effects) = plan_of(&steps);
            let mut order = Order::new(&plan);
            let passes = effects.iter().try_for_each(|e| order.launch(e)).is_ok();
            prop_assert_eq!(passes, is_ordered(&plan, &effects));
        }
    }
}
