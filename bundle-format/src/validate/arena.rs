//! What lies in the arena as launches go by: a launch may only read what an earlier one (or the host) wrote and nothing has
//! overwritten since. This proves the memory plan, and that row indices which the host checked are still the host's when
//! they are used.

use std::collections::BTreeMap;

use super::{Invalid, max_extent, shown};
use crate::plan::{Plan, Role};
use crate::region::KvPart;

/// What a launch reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Buffers, by index, each possibly more than once.
    pub reads: Vec<u32>,
    pub writes: Vec<u32>,
    pub pool_reads: Vec<Pool>,
    pub pool_writes: Vec<Pool>,
    /// A buffer that the launch has for itself: what is in it before and after counts for nothing.
    pub own: Option<u32>,
}

impl Effects {
    /// Those of a matmul's epilogues behind its prologue, which makes `x` for it: blocks of a kernel may be in the one while
    /// others are in the other.
    pub fn behind(self, prologue: Effects, x: u32) -> Result<Effects, Invalid> {
        let meets = |a: &[u32], b: &[u32]| a.iter().copied().find(|buffer| b.contains(buffer));
        let clash = meets(&prologue.writes, &self.reads)
            .or(meets(&prologue.writes, &self.writes))
            .or(meets(&prologue.reads, &self.writes));
        if let Some(buffer) = clash {
            return Err(Invalid::new(
                format!("buffer {buffer}"),
                "a prologue that stores nothing that an epilogue touches, and loads nothing that one stores",
                "one that does",
            ));
        }
        let both = |a: Vec<u32>, b: Vec<u32>| {
            let mut all: Vec<u32> = a.into_iter().chain(b).filter(|&b| b != x).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        Ok(Effects {
            reads: both(prologue.reads, self.reads),
            writes: both(prologue.writes, self.writes),
            own: Some(x),
            ..self
        })
    }
}

/// The keys or the values of a layer of a KV group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool {
    pub group: u32,
    pub layer: u32,
    pub values: bool,
}

impl Pool {
    pub fn new(group: u32, layer: u32, part: KvPart) -> Pool {
        Pool {
            group,
            layer,
            values: part == KvPart::Value,
        }
    }
}

/// The buffers whose contents are whole, by the start of their range.
pub struct Arena<'a> {
    plan: &'a Plan,
    /// Start of the range -> its end and buffer. Ranges don't overlap.
    held: BTreeMap<u64, (u64, u32)>,
    /// The first pair of inputs that share bytes.
    clash: Option<(u32, u32)>,
}

impl<'a> Arena<'a> {
    /// Before the first launch: the host has written the inputs.
    pub fn new(plan: &'a Plan) -> Arena<'a> {
        let mut arena = Arena {
            plan,
            held: BTreeMap::new(),
            clash: None,
        };
        let inputs = (0..).zip(&plan.buffers);
        for (i, _) in inputs.filter(|(_, b)| matches!(b.place.role, Role::Input(_))) {
            if let Some(other) = arena.write(i) {
                arena.clash.get_or_insert((i, other));
            }
        }
        arena
    }

    /// Executes a launch's effects. The buffers' indices are valid.
    pub fn launch(&mut self, effects: &Effects) -> Result<(), Invalid> {
        if let Some((a, b)) = self.clash {
            return Err(self.overlap("inputs", a, b));
        }
        for &read in &effects.reads {
            if !self.holds(read) {
                return Err(Invalid::new(
                    format!("read of {}", self.describe(read)),
                    "a buffer that an earlier launch wrote and none has overwritten",
                    "undefined bytes",
                ));
            }
        }
        for &written in effects.writes.iter().chain(&effects.own) {
            self.write(written);
        }
        // What the launch touches must not share bytes: its tiles run at the same time.
        let touched = || {
            effects
                .reads
                .iter()
                .chain(&effects.writes)
                .chain(&effects.own)
        };
        for &lost in touched() {
            if !self.holds(lost) {
                let by = touched().find(|&&other| other != lost && self.share(other, lost));
                return Err(self.overlap("buffers of one launch", lost, *by.unwrap_or(&lost)));
            }
        }
        if let Some(own) = effects.own {
            self.held.remove(&self.range(own).0);
        }
        Ok(())
    }

    /// What a launch reads must still be there.
    pub fn keeps(&self, effects: &Effects) -> Result<(), Invalid> {
        match effects.reads.iter().find(|&&read| !self.holds(read)) {
            Some(&lost) => Err(Invalid::new(
                format!("read of {} for the launch before", self.describe(lost)),
                "a buffer that this launch doesn't overwrite",
                "undefined bytes",
            )),
            None => Ok(()),
        }
    }

    /// After the last launch: the outputs must be there.
    pub fn finish(self) -> Result<(), Invalid> {
        let outputs = (0..).zip(&self.plan.buffers);
        for (i, _) in outputs.filter(|(_, b)| matches!(b.place.role, Role::Output(_))) {
            if !self.holds(i) {
                return Err(Invalid::new(
                    format!("output {}", self.describe(i)),
                    "a buffer that a launch wrote and none has overwritten",
                    "undefined bytes",
                ));
            }
        }
        Ok(())
    }

    fn range(&self, buffer: u32) -> (u64, u64) {
        range(self.plan, buffer)
    }

    fn holds(&self, buffer: u32) -> bool {
        let (start, end) = self.range(buffer);
        self.held.get(&start) == Some(&(end, buffer))
    }

    /// Takes the buffer's range from all that overlap it, and gives one of those.
    fn write(&mut self, buffer: u32) -> Option<u32> {
        let (start, end) = self.range(buffer);
        let mut lost = None;
        // Held ranges are disjoint, so the last that starts below `end` is the last that can overlap.
        while let Some((&s, &(e, other))) = self.held.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.held.remove(&s);
            if other != buffer {
                lost = Some(other);
            }
        }
        self.held.insert(start, (end, buffer));
        lost
    }

    fn share(&self, a: u32, b: u32) -> bool {
        let ((a0, a1), (b0, b1)) = (self.range(a), self.range(b));
        a0 < b1 && b0 < a1
    }

    fn overlap(&self, what: &str, a: u32, b: u32) -> Invalid {
        Invalid::new(
            format!("{what} in the arena"),
            "ranges that don't overlap",
            format!("{} and {}", self.describe(a), self.describe(b)),
        )
    }

    fn describe(&self, buffer: u32) -> String {
        describe(self.plan, buffer)
    }
}

/// Start and end of a buffer in the arena.
pub fn range(plan: &Plan, buffer: u32) -> (u64, u64) {
    let b = &plan.buffers[buffer as usize];
    let start = b.place.offset;
    let rows = max_extent(plan, b.extent) as u64;
    (start, start + rows * b.row_bytes())
}

/// A buffer as error messages show it.
pub fn describe(plan: &Plan, buffer: u32) -> String {
    let name = shown(&plan.buffers[buffer as usize].name);
    format!("buffer {buffer} ({name})")
}
