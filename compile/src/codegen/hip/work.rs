//! What a wavefront of a kernel does, counted in its machine code: instructions by the unit that they occupy, in the kernel's main
//! loop and around it.
//!
//! The count is of code, not of a run: what is not in the main loop counts once, whichever way branches go. A test holds it
//! against what the simulator executed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::isa::{self, Instruction, Unit};
use super::object::Object;
use crate::codegen::gpu::work::{Count, Turns, Work};
use crate::error::Error;

/// Counts every function of an object.
pub fn of_object(
    object: &[u8],
    turns: &BTreeMap<String, Turns>,
) -> Result<BTreeMap<String, Work>, Error> {
    let object = Object::parse(object)?;
    let counted = object.functions.iter().filter_map(|f| {
        let turns = turns.get(&f.symbol).copied().unwrap_or_default();
        Some((f.symbol.clone(), work(f.code, turns)?))
    });
    Ok(counted.collect())
}

/// Counts a function whose main loop turns so often. None where its code is not known.
fn work(code: &[u8], turns: Turns) -> Option<Work> {
    let instructions = isa::instructions(code)?;
    let loops = loops(&instructions);
    let main = main_loop(&instructions, &loops);
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
    for instruction in &instructions {
        let at = &instruction.offset;
        let count = match () {
            () if main.as_ref().is_some_and(|m| m.contains(at)) => &mut work.turn,
            () if stores.iter().any(|l| l.contains(at)) => &mut work.store,
            () => &mut work.once,
        };
        add(count, instruction.unit);
    }
    Some(work)
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
