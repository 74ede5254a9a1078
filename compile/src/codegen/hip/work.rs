//! What a wavefront of a kernel does, counted in its machine code.

use std::collections::BTreeMap;

use super::isa;
use super::object::Object;
use crate::codegen::gpu::work::{Instruction, Turns, Work, count};
use crate::error::Error;

/// Counts every function of an object, as far as its code is known.
pub fn of_object(
    object: &[u8],
    turns: &BTreeMap<String, Turns>,
) -> Result<BTreeMap<String, Work>, Error> {
    let object = Object::parse(object)?;
    let counted = object.functions.iter().filter_map(|f| {
        let turns = turns.get(&f.symbol).copied().unwrap_or_default();
        let all = isa::instructions(f.code)?;
        let all: Vec<Instruction> = all.into_iter().map(|i| i.does).collect();
        Some((f.symbol.clone(), count(&all, turns)))
    });
    Ok(counted.collect())
}
