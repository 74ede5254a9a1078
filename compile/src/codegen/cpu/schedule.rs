//! The order of evaluation: a row sum needs the whole row before its value can be used, so a region with row sums goes
//! over the row several times.
//!
//! Pass p evaluates what needs the row sums of the passes before it. A value that a former pass stored as f32 is loaded
//! back where a later pass needs it; other values are evaluated again. A store is done in one pass only: the first that
//! has its value, or a later one where later passes still need to load what it overwrites.

use std::collections::BTreeSet;

use bundle_format::region::{ColMap, Inst, OperandId, Region, Val};

use super::broken;
use super::check::{Overlap, destination, is_store, operands_of, overlap, same_memory};
use crate::error::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub passes: Vec<Pass>,
    /// Whether a value is the same for the whole row: it depends on constants and row sums only.
    pub uniform: Vec<bool>,
}

/// One walk over a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Values that are evaluated once, before the walk: ascending.
    pub once: Vec<Val>,
    /// What is done for each column, in program order.
    pub steps: Vec<Step>,
    /// Row sums that the walk completes.
    pub sums: Vec<Val>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Evaluate the instruction.
    Eval(Val),
    /// Load what a former pass stored.
    Reload {
        value: Val,
        from: OperandId,
        col: ColMap,
    },
    /// Do the store at this index of the body.
    Store(usize),
    /// Add to the row sum.
    Accumulate { sum: Val, x: Val },
}

impl Schedule {
    /// Of a region that passed the check.
    ///
    /// # Errors
    /// [`Error::Bug`] for a region that stores nothing.
    pub fn of(region: &Region) -> Result<Schedule, Error> {
        let mut scheduler = Scheduler::new(region);
        if scheduler.store_pass.iter().all(Option::is_none) {
            return Err(Error::Bug(format!(
                "region {}: stores nothing",
                region.name
            )));
        }
        scheduler.order_stores();
        while scheduler.delay_stores()? {
            scheduler.order_stores();
        }
        Ok(scheduler.finish())
    }
}

struct Scheduler<'r> {
    region: &'r Region,
    /// Whether anything stored depends on the instruction.
    live: Vec<bool>,
    uniform: Vec<bool>,
    /// The first pass that can evaluate the instruction.
    level: Vec<usize>,
    /// The pass of each store; none for other instructions.
    store_pass: Vec<Option<usize>>,
}

impl<'r> Scheduler<'r> {
    fn new(region: &'r Region) -> Scheduler<'r> {
        let body = &region.body;
        let mut live: Vec<bool> = body.iter().map(is_store).collect();
        for index in (0..body.len()).rev() {
            if live[index] {
                for value in operands_of(&body[index]) {
                    live[value as usize] = true;
                }
            }
        }
        let mut uniform: Vec<bool> = Vec::with_capacity(body.len());
        let mut level: Vec<usize> = Vec::with_capacity(body.len());
        for inst in body {
            let operands = operands_of(inst);
            let reached = operands.iter().map(|&v| level[v as usize]).max();
            let reached = reached.unwrap_or(0);
            let (is_uniform, first) = match inst {
                Inst::RowSum { .. } => (true, reached + 1),
                Inst::Tile { .. } | Inst::Load { .. } => (false, 0),
                _ => (operands.iter().all(|&v| uniform[v as usize]), reached),
            };
            uniform.push(is_uniform && !is_store(inst));
            level.push(first);
        }
        let store_pass = body
            .iter()
            .zip(&level)
            .map(|(inst, &level)| is_store(inst).then_some(level))
            .collect();
        Scheduler {
            region,
            live,
            uniform,
            level,
            store_pass,
        }
    }

    /// Keeps stores to one operand in program order.
    fn order_stores(&mut self) {
        for later in 0..self.region.body.len() {
            for earlier in 0..later {
                if let (Some(first), Some(then)) =
                    (self.store_pass[earlier], self.store_pass[later])
                    && destination(&self.region.body[earlier]).is_some_and(|a| {
                        destination(&self.region.body[later])
                            .is_some_and(|b| same_memory(self.region, a, b))
                    })
                {
                    self.store_pass[later] = Some(then.max(first));
                }
            }
        }
    }

    /// Moves stores behind the last pass that loads what they overwrite; says whether any moved.
    fn delay_stores(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        for pass in 0..self.passes() {
            for step in self.steps(pass) {
                let Step::Eval(value) = step else { continue };
                let Inst::Load { src, col, .. } = self.region.body[value as usize] else {
                    continue;
                };
                for store in 0..self.region.body.len() {
                    if self.store_pass[store].is_some_and(|p| p < pass)
                        && self.writes(store, src, col)
                    {
                        if store < value as usize {
                            return Err(broken(self.region, store, "comes before a load of it"));
                        }
                        self.store_pass[store] = Some(pass);
                        moved = true;
                    }
                }
            }
        }
        Ok(moved)
    }

    fn passes(&self) -> usize {
        let last = self.store_pass.iter().flatten().max();
        last.map_or(0, |last| last + 1)
    }

    /// Row sums that pass `pass` completes.
    fn sums(&self, pass: usize) -> impl Iterator<Item = usize> {
        (0..self.region.body.len()).filter(move |&i| {
            self.live[i]
                && self.level[i] == pass + 1
                && matches!(self.region.body[i], Inst::RowSum { .. })
        })
    }

    /// What a pass does for each column.
    fn steps(&self, pass: usize) -> Vec<Step> {
        let body = &self.region.body;
        let stores = (0..body.len()).filter(|&i| self.store_pass[i] == Some(pass));
        let roots: BTreeSet<usize> = stores.chain(self.sums(pass)).collect();
        let mut needed = vec![false; body.len()];
        let mut steps = Vec::new();
        for index in (0..body.len()).rev() {
            let value = index as Val;
            let inst = &body[index];
            if roots.contains(&index) {
                steps.push(match *inst {
                    Inst::RowSum { x } => Step::Accumulate { sum: value, x },
                    _ => Step::Store(index),
                });
            } else if !needed[index] || self.uniform[index] {
                continue;
            } else if let Some((from, col)) = self.stored_before(value, pass) {
                steps.push(Step::Reload { value, from, col });
                continue;
            } else {
                steps.push(Step::Eval(value));
            }
            for operand in operands_of(inst) {
                needed[operand as usize] = true;
            }
        }
        steps.reverse();
        steps
    }

    /// Where a pass before `pass` left `value` as f32, if it is still there.
    fn stored_before(&self, value: Val, pass: usize) -> Option<(OperandId, ColMap)> {
        let body = &self.region.body;
        let done = |store: usize| self.store_pass[store].is_some_and(|p| p < pass);
        (0..body.len()).find_map(|store| match body[store] {
            Inst::Store { dst, col, x } if x == value && done(store) => {
                let overwritten = (store + 1..body.len())
                    .any(|other| done(other) && self.writes(other, dst, col));
                (!overwritten).then_some((dst, col))
            }
            _ => None,
        })
    }

    /// Whether the instruction stores to columns of an operand.
    fn writes(&self, index: usize, operand: OperandId, at: ColMap) -> bool {
        match self.region.body[index] {
            Inst::Store { dst, col, .. } | Inst::StoreQuant { dst, col, .. } => {
                same_memory(self.region, dst, operand)
                    && overlap(self.region, col, at) != Overlap::None
            }
            _ => false,
        }
    }

    fn finish(self) -> Schedule {
        let passes = (0..self.passes())
            .map(|pass| Pass {
                once: (0..self.region.body.len())
                    .filter(|&i| self.live[i] && self.uniform[i] && self.level[i] == pass)
                    .filter(|&i| {
                        !matches!(
                            self.region.body[i],
                            Inst::Const { .. } | Inst::RowSum { .. }
                        )
                    })
                    .map(|i| i as Val)
                    .collect(),
                steps: self.steps(pass),
                sums: self.sums(pass).map(|i| i as Val).collect(),
            })
            .collect();
        Schedule {
            passes,
            uniform: self.uniform,
        }
    }
}
