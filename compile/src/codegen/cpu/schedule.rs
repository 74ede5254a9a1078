//! The order of evaluation: a sum needs all that is summed before its value can be used. So a region with row sums goes
//! over the row several times, in *passes*; and one with unit sums goes over each unit several times within a pass, in
//! *phases*.
//!
//! Pass p evaluates what needs the row sums of the passes before it. A unit's sums last for one pass: a later pass that
//! needs them sums again. Phase p of a pass evaluates what lies behind p unit sums, one of the other.
//!
//! A value that a former pass or phase stored as f32 is loaded back where it is needed; other values are evaluated again.
//! A store is done once only: as soon as its value is there, or later where what it overwrites still has to be loaded.

use std::collections::BTreeSet;

use bundle_format::region::{ColMap, Inst, OperandId, Region, Val};

use super::broken;
use super::check::{Overlap, destination, is_store, operands_of, overlap, same_memory};
use crate::error::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub passes: Vec<Pass>,
    /// By instruction.
    pub scopes: Vec<Scope>,
}

/// Where a value is the same. In order: what depends on several values has the last of their scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In the whole row: it depends on constants and row sums only.
    Row,
    /// In the whole unit: besides, on unit sums.
    Unit,
    /// In one column.
    Column,
}

/// One walk over a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Values that are evaluated once, before the walk: ascending.
    pub once: Vec<Val>,
    /// What is done for each unit, one after the other; at least one.
    pub phases: Vec<Phase>,
    /// Row sums that the walk completes.
    pub sums: Vec<Val>,
}

/// One walk over a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// Values that are evaluated once, before the walk: ascending.
    pub once: Vec<Val>,
    /// What is done for each column, in program order.
    pub steps: Vec<Step>,
    /// Unit sums that the walk completes: ascending.
    pub sums: Vec<Val>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Evaluate the instruction.
    Eval(Val),
    /// Load what a former pass or phase stored.
    Reload {
        value: Val,
        from: OperandId,
        col: ColMap,
    },
    /// Do the store at this index of the body.
    Store(usize),
    /// Add to the row sum or the unit sum.
    Accumulate { sum: Val, x: Val },
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Time {
    pass: usize,
    phase: usize,
}

impl Schedule {
    /// Of a region that passed the check.
    ///
    /// # Errors
    /// [`Error::Bug`] for a region that stores nothing.
    pub fn of(region: &Region) -> Result<Schedule, Error> {
        let mut scheduler = Scheduler::new(region);
        if scheduler.stored.iter().all(Option::is_none) {
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
    scopes: Vec<Scope>,
    /// The first pass that can evaluate the instruction, and the first phase, the same one in this and later passes.
    first: Vec<Time>,
    /// When each store is done; none for other instructions.
    stored: Vec<Option<Time>>,
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
        let mut scopes: Vec<Scope> = Vec::with_capacity(body.len());
        let mut first: Vec<Time> = Vec::with_capacity(body.len());
        for inst in body {
            let operands = operands_of(inst);
            let times = || operands.iter().map(|&v| first[v as usize]);
            // Each for itself: an operand of a later pass, of an early phase, doesn't bring the others' unit sums with it.
            let pass = times().map(|time| time.pass).max().unwrap_or(0);
            let phase = times().map(|time| time.phase).max().unwrap_or(0);
            let scope = operands.iter().map(|&v| scopes[v as usize]).max();
            let (scope, pass, phase) = match inst {
                Inst::RowSum { .. } => (Scope::Row, pass + 1, 0),
                Inst::UnitSum { .. } => (Scope::Unit, pass, phase + 1),
                Inst::Tile { .. } | Inst::Load { .. } => (Scope::Column, 0, 0),
                _ => (scope.unwrap_or(Scope::Row), pass, phase),
            };
            scopes.push(if is_store(inst) { Scope::Column } else { scope });
            first.push(Time { pass, phase });
        }
        let stored = body
            .iter()
            .zip(&first)
            .map(|(inst, &first)| is_store(inst).then_some(first))
            .collect();
        Scheduler {
            region,
            live,
            scopes,
            first,
            stored,
        }
    }

    /// Keeps stores to one operand in program order.
    fn order_stores(&mut self) {
        for later in 0..self.region.body.len() {
            for earlier in 0..later {
                if let Some(time) = self.stored[earlier]
                    && self.stored[later].is_some()
                    && destination(&self.region.body[earlier]).is_some_and(|a| {
                        destination(&self.region.body[later])
                            .is_some_and(|b| same_memory(self.region, a, b))
                    })
                {
                    self.delay(later, time);
                }
            }
        }
    }

    /// Does a store no earlier than at `time`.
    fn delay(&mut self, store: usize, time: Time) {
        if self.stored[store].is_some_and(|now| now < time) {
            // A later pass too has the value from its phase on only.
            let phase = time.phase.max(self.first[store].phase);
            self.stored[store] = Some(Time { phase, ..time });
        }
    }

    /// Moves stores behind the last walk that loads what they overwrite; says whether any moved.
    fn delay_stores(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        for pass in 0..self.passes() {
            for (phase, Phase { steps, .. }) in self.phases(pass).into_iter().enumerate() {
                let time = Time { pass, phase };
                for step in steps {
                    let Step::Eval(value) = step else { continue };
                    let Inst::Load { src, col, .. } = self.region.body[value as usize] else {
                        continue;
                    };
                    for store in 0..self.region.body.len() {
                        if self.stored[store].is_some_and(|t| t < time)
                            && self.writes(store, src, col)
                        {
                            if store < value as usize {
                                return Err(broken(
                                    self.region,
                                    store,
                                    "comes before a load of it",
                                ));
                            }
                            self.delay(store, time);
                            moved = true;
                        }
                    }
                }
            }
        }
        Ok(moved)
    }

    fn passes(&self) -> usize {
        let last = self.stored.iter().flatten().max();
        last.map_or(0, |last| last.pass + 1)
    }

    /// Row sums that pass `pass` completes.
    fn row_sums(&self, pass: usize) -> impl Iterator<Item = usize> {
        (0..self.region.body.len()).filter(move |&i| {
            self.live[i]
                && self.first[i].pass == pass + 1
                && matches!(self.region.body[i], Inst::RowSum { .. })
        })
    }

    /// Stores and row sums of a pass, and the phase of each.
    fn roots(&self, pass: usize) -> Vec<(usize, usize)> {
        let stores = self.stored.iter().enumerate().filter_map(|(i, time)| {
            let time = time.filter(|time| time.pass == pass)?;
            Some((i, time.phase))
        });
        let sums = self.row_sums(pass).map(|i| match self.region.body[i] {
            Inst::RowSum { x } => (i, self.first[x as usize].phase),
            ref other => unreachable!("{other:?} is no row sum"),
        });
        stores.chain(sums).collect()
    }

    /// What a pass does for each unit.
    fn phases(&self, pass: usize) -> Vec<Phase> {
        let roots = self.roots(pass);
        let last = roots.iter().map(|(_, phase)| *phase).max().unwrap_or(0);
        // Of values of the unit: whether a later phase or instruction needs it.
        let mut of_unit = vec![false; self.region.body.len()];
        let mut phases: Vec<Phase> = (0..=last)
            .rev()
            .map(|phase| {
                let roots = roots.iter().filter(|(_, at)| *at == phase);
                let roots = roots.map(|(index, _)| *index).collect();
                self.phase(Time { pass, phase }, &roots, &mut of_unit)
            })
            .collect();
        phases.reverse();
        phases
    }

    fn phase(&self, time: Time, roots: &BTreeSet<usize>, of_unit: &mut [bool]) -> Phase {
        let body = &self.region.body;
        let mut needed = vec![false; body.len()];
        let mut phase = Phase::default();
        for index in (0..body.len()).rev() {
            let value = index as Val;
            let inst = &body[index];
            let first = self.first[index].phase;
            match (*inst, self.scopes[index]) {
                (Inst::RowSum { x }, _) if roots.contains(&index) => {
                    phase.steps.push(Step::Accumulate { sum: value, x });
                }
                // Its phase is the one behind the sum.
                (Inst::UnitSum { x }, _) if of_unit[index] && first == time.phase + 1 => {
                    phase.steps.push(Step::Accumulate { sum: value, x });
                    phase.sums.push(value);
                }
                (Inst::RowSum { .. } | Inst::UnitSum { .. }, _) | (_, Scope::Row) => continue,
                (_, Scope::Unit) if of_unit[index] && first == time.phase => phase.once.push(value),
                (_, Scope::Unit) => continue,
                (_, Scope::Column) if roots.contains(&index) => {
                    phase.steps.push(Step::Store(index))
                }
                (_, Scope::Column) if !needed[index] => continue,
                (_, Scope::Column) => match self.stored_before(value, time) {
                    Some((from, col)) => {
                        phase.steps.push(Step::Reload { value, from, col });
                        continue;
                    }
                    None => phase.steps.push(Step::Eval(value)),
                },
            }
            for operand in operands_of(inst) {
                match self.scopes[operand as usize] {
                    Scope::Row => {}
                    Scope::Unit => of_unit[operand as usize] = true,
                    Scope::Column => needed[operand as usize] = true,
                }
            }
        }
        phase.once.reverse();
        phase.steps.reverse();
        phase.sums.reverse();
        phase
    }

    /// Where `value` was left as f32 before `time`, if it is still there.
    fn stored_before(&self, value: Val, time: Time) -> Option<(OperandId, ColMap)> {
        let body = &self.region.body;
        let done = |store: usize| self.stored[store].is_some_and(|t| t < time);
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
                    .filter(|&i| self.live[i] && self.first[i].pass == pass)
                    .filter(|&i| {
                        self.scopes[i] == Scope::Row
                            && !matches!(
                                self.region.body[i],
                                Inst::Const { .. } | Inst::RowSum { .. }
                            )
                    })
                    .map(|i| i as Val)
                    .collect(),
                phases: self.phases(pass),
                sums: self.row_sums(pass).map(|i| i as Val).collect(),
            })
            .collect();
        Schedule {
            passes,
            scopes: self.scopes,
        }
    }
}
