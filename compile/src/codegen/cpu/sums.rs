//! Sums of a row or of a unit.
//!
//! A sum is several vectors of partial sums while columns are added, [`PARTIAL_SUMS`] vectors and their lanes by turns: which
//! of them a column is added to depends on the region alone, so a sum doesn't depend on how calls are cut.

use std::ops::Range;

use bundle_format::region::Val;
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};

use super::emit::Emitter;
use super::math;
use super::schedule::{Phase, Step};
use super::strip::{Group, Lanes};

/// Partial sums of a sum, each a vector: enough to hide an addition's latency.
pub const PARTIAL_SUMS: usize = 8;

/// Sums under way: of which instructions, and the partial sums of each.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    of: Vec<Val>,
    /// [`PARTIAL_SUMS`] for each.
    pub parts: Vec<Value>,
}

impl Sums {
    /// The same sums with other partial sums, from another block.
    pub fn with_parts(&self, parts: &[Value]) -> Sums {
        Sums {
            of: self.of.clone(),
            parts: parts.to_vec(),
        }
    }

    /// Those that a phase adds to: the rest need no registers in its loop.
    pub fn added_in(&self, phase: &Phase) -> Sums {
        let mut found = Sums::default();
        for (&sum, parts) in self.of.iter().zip(self.parts.chunks(PARTIAL_SUMS)) {
            let adds = |step: &Step| matches!(*step, Step::Accumulate { sum: s, .. } if s == sum);
            if phase.steps.iter().any(adds) {
                found.of.push(sum);
                found.parts.extend(parts);
            }
        }
        found
    }

    /// Also these sums.
    pub fn and(mut self, others: Sums) -> Sums {
        self.of.extend(others.of);
        self.parts.extend(others.parts);
        self
    }

    /// Takes over what was added to those sums that are among these.
    pub fn update(&mut self, added: &Sums) {
        let Sums { of, parts } = self;
        for (sum, parts) in of.iter().zip(parts.chunks_mut(PARTIAL_SUMS)) {
            if added.of.contains(sum) {
                parts.copy_from_slice(&added.parts[added.range(*sum)]);
            }
        }
    }

    /// Where the partial sums of one of them are.
    fn range(&self, sum: Val) -> Range<usize> {
        let at = self.of.iter().position(|s| *s == sum);
        let at = at.expect("the sums that a phase adds to are under way");
        at * PARTIAL_SUMS..(at + 1) * PARTIAL_SUMS
    }
}

impl Emitter<'_> {
    /// Begins sums, of nothing yet.
    pub fn begin_sums(&mut self, sums: &[Val]) -> Sums {
        let parts = if sums.is_empty() {
            Vec::new()
        } else {
            // What changes nothing when something is added to it: 0 would turn a sum of -0 into 0.
            vec![math::splat(&mut self.b, -0.0); sums.len() * PARTIAL_SUMS]
        };
        Sums {
            of: sums.to_vec(),
            parts,
        }
    }

    /// Ends some of the sums: from here on they are values.
    pub fn end_sums(&mut self, ended: &[Val], sums: &Sums) {
        for &sum in ended {
            let parts = sums.parts[sums.range(sum)].to_vec();
            self.uniforms[sum as usize] = Some(self.total(parts));
        }
    }

    /// The sum of all lanes of the partial sums, in every lane.
    fn total(&mut self, mut parts: Vec<Value>) -> Value {
        while parts.len() > 1 {
            parts = parts
                .chunks(2)
                .map(|pair| self.b.ins().fadd(pair[0], pair[1]))
                .collect();
        }
        math::sum_lanes(&mut self.b, parts[0])
    }

    /// Adds `x` to a sum, of vectors of which the strip's `first`th is the group's first.
    pub fn accumulate(&mut self, group: &Group, first: usize, x: Val, sum: Val, sums: &mut Sums) {
        let xs = self.values(x, group);
        let range = sums.range(sum);
        let parts = &mut sums.parts[range];
        for (i, mut x) in xs.into_iter().enumerate() {
            if group.lanes == Lanes::First {
                let first = math::constant(&mut self.b, F32X4, [u32::MAX, 0, 0, 0]);
                let nothing = (-0.0f32).to_bits();
                let rest = math::constant(&mut self.b, F32X4, [0, nothing, nothing, nothing]);
                x = self.b.ins().band(x, first);
                x = self.b.ins().bor(x, rest);
            }
            let part = &mut parts[(first + i) % PARTIAL_SUMS];
            *part = self.b.ins().fadd(*part, x);
        }
    }
}
