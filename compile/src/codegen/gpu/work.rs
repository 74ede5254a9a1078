//! What a kernel executes, counted in its machine code: the input of the performance model.
//!
//! The count is of code, not of a run: what is not in the main loop counts once, whichever way branches go. A test holds it
//! against what a simulator executed.

use std::collections::BTreeMap;
use std::ops::Range;

/// Instructions of a warp (a wavefront), by the unit that they occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// All of them.
    pub instructions: f64,
    /// Cycles of the vector unit, but for matrix instructions.
    pub vector: f64,
    /// Matrix instructions.
    pub matrix: f64,
    /// Scalar instructions, which issue beside vector ones.
    pub scalar: f64,
    /// Bytes of shared memory that the lanes read and write.
    pub shared_bytes: f64,
    /// Loads of global memory, and their bytes.
    pub loads: f64,
    pub loaded_bytes: f64,
}

impl Count {
    /// Adds another's, so many times.
    pub fn add(&mut self, other: &Count, times: f64) {
        self.instructions += other.instructions * times;
        self.vector += other.vector * times;
        self.matrix += other.matrix * times;
        self.scalar += other.scalar * times;
        self.shared_bytes += other.shared_bytes * times;
        self.loads += other.loads * times;
        self.loaded_bytes += other.loaded_bytes * times;
    }
}

/// A kernel: its main loop, the loops that store results, and what is around them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub once: Count,
    /// A turn of the main loop.
    pub turn: Count,
    /// A turn of each loop that stores, behind the main one.
    pub store: Count,
    pub turns: Turns,
}

/// How often a warp goes through a kernel's loops.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Turns {
    /// There are none, or it isn't known: what is in them counts once.
    #[default]
    Once,
    /// A product's main loop, and those that store: of so many alternatives, each so often.
    Product {
        turns: f64,
        alternatives: u32,
        stores: f64,
    },
    Attention(Context),
}

impl Turns {
    /// Those of products that share a kernel, each with its number of blocks, on average.
    pub fn mean(parts: impl Iterator<Item = (Turns, u32)>) -> Turns {
        let (mut all, mut turned, mut branches, mut stored) = (0.0, 0.0, 0, 0.0);
        for (part, blocks) in parts {
            let Turns::Product {
                turns,
                alternatives,
                stores,
            } = part
            else {
                return Turns::Once;
            };
            let blocks = f64::from(blocks);
            all += blocks;
            turned += turns * blocks;
            branches += alternatives;
            stored += stores * blocks;
        }
        Turns::Product {
            turns: turned / all,
            alternatives: branches.max(1),
            stores: stored / all,
        }
    }
}

/// How attention goes through the positions that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Positions of a turn of a block's main loop.
    pub turn: u32,
    /// Up to so many positions are one part, more are parts of so many at least, as far as the grid has parts in its third direction.
    pub alone: u32,
    pub share: u32,
}

impl Context {
    /// The parts of so many positions, of `most`.
    pub fn parts(&self, positions: f64, most: f64) -> f64 {
        match positions <= f64::from(self.alone) {
            true => 1.0,
            false => (positions / f64::from(self.share)).ceil().min(most),
        }
    }
}

impl Work {
    /// What a warp executes whose part of a context has so many positions.
    pub fn of_warp(&self, positions: f64) -> Count {
        let (turns, stores) = match self.turns {
            Turns::Once => (1.0, 1.0),
            Turns::Product {
                turns,
                alternatives,
                stores,
            } => (turns, stores / f64::from(alternatives)),
            Turns::Attention(context) => ((positions / f64::from(context.turn)).ceil(), 1.0),
        };
        let mut all = self.once;
        all.add(&self.turn, turns);
        all.add(&self.store, stores);
        all
    }
}

/// An instruction: where it is, what unit it occupies, and where it may go on, if it is a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub offset: u32,
    pub unit: Unit,
    pub target: Option<u32>,
}

/// The unit of a processor that an instruction occupies. Bytes are a lane's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Vector,
    /// A vector instruction at a quarter of the rate.
    Transcendental,
    Matrix,
    Scalar,
    Shared {
        bytes: u32,
    },
    Load {
        bytes: u32,
    },
    Store,
    /// Branches, waits, barriers.
    Control,
}

/// Counts a function whose loops turn so often.
pub fn count(instructions: &[Instruction], turns: Turns) -> Work {
    let loops = loops(instructions);
    let main = main_loop(instructions, &loops);
    let behind = main.as_ref().map_or(u32::MAX, |m| m.end);
    let stores = |l: &&Range<u32>| {
        let mut inside = instructions.iter().filter(|i| l.contains(&i.offset));
        l.start >= behind && inside.any(|i| i.unit == Unit::Store)
    };
    let stores: Vec<&Range<u32>> = loops.iter().filter(stores).collect();
    let mut work = Work {
        turns,
        ..Work::default()
    };
    for instruction in instructions {
        let at = &instruction.offset;
        let count = match () {
            () if main.as_ref().is_some_and(|m| m.contains(at)) => &mut work.turn,
            () if stores.iter().any(|l| l.contains(at)) => &mut work.store,
            () => &mut work.once,
        };
        add(count, instruction.unit);
    }
    work
}

fn add(count: &mut Count, unit: Unit) {
    count.instructions += 1.0;
    match unit {
        Unit::Vector => count.vector += 1.0,
        // A quarter of the rate.
        Unit::Transcendental => count.vector += 4.0,
        Unit::Matrix => count.matrix += 1.0,
        Unit::Scalar => count.scalar += 1.0,
        Unit::Shared { bytes } => count.shared_bytes += f64::from(32 * bytes),
        Unit::Load { bytes } => {
            count.loads += 1.0;
            count.loaded_bytes += f64::from(32 * bytes);
        }
        Unit::Store | Unit::Control => {}
    }
}

/// The words of each loop: from where branches go back to, to the last of them.
fn loops(instructions: &[Instruction]) -> Vec<Range<u32>> {
    let mut ends: BTreeMap<u32, u32> = BTreeMap::new();
    for i in instructions {
        if let Some(start) = i.target.filter(|&t| t <= i.offset) {
            // In the order of instructions: the last one counts.
            ends.insert(start, i.offset + 1);
        }
    }
    ends.into_iter().map(|(start, end)| start..end).collect()
}

/// The loop that does a kernel's work: of those that have no other loop in them, the one with the most products and loads.
fn main_loop(instructions: &[Instruction], loops: &[Range<u32>]) -> Option<Range<u32>> {
    let weight = |l: &Range<u32>| {
        let inside = instructions.iter().filter(|i| l.contains(&i.offset));
        let worth = |i: &Instruction| match i.unit {
            Unit::Matrix => 16,
            Unit::Load { .. } => 4,
            _ => 0,
        };
        inside.map(worth).sum::<u32>()
    };
    let has_inner = |l: &Range<u32>| {
        let inner = |o: &Range<u32>| {
            o != l && l.start <= o.start && o.end <= l.end && 2 * weight(o) >= weight(l)
        };
        loops.iter().any(inner)
    };
    loops
        .iter()
        .filter(|l| !has_inner(l) && weight(l) > 0)
        .max_by_key(|l| weight(l))
        .cloned()
}
