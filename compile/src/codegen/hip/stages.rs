//! Regions in stages: what a stability profile takes apart, as regions of kernels that run one after the other and hand values on
//! in the launch's workspace.
//!
//! The workspace is one more buffer, f32, of a copy of the plan; kernels are then given [`Arg::Workspace`] in its place.

use std::collections::BTreeMap;

use bundle_format::gpu::{Arg, Kernel};
use bundle_format::plan::{Buffer, DType, Dim, KvGroup, Op, Place, Plan, Role, Segment};
use bundle_format::region::{ColMap, Inst, KvPart, Operand, OperandId, Region, RowMap, Val};

use crate::error::Error;
use crate::lower::gpu::goes_together;

/// A plan with the workspace for a buffer, the last one.
pub fn with_workspace(plan: &Plan) -> Plan {
    let cols = |op: &Op| match op {
        Op::MatMul {
            prologue, segments, ..
        } => features(segments).max(prologue.as_ref().map_or(0, |region| region.cols)),
        Op::Region { region, .. } => region.cols,
        _ => 1,
    };
    let most = plan.launches.iter().map(|l| cols(&l.op)).max();
    let mut plan = plan.clone();
    plan.buffers.push(Buffer {
        name: "workspace".into(),
        dtype: DType::F32,
        extent: Dim::Tokens,
        cols: most.unwrap_or(1),
        place: Place {
            offset: 0,
            role: Role::Scratch,
        },
    });
    plan
}

/// The workspace of a plan of [`with_workspace`].
pub fn workspace(plan: &Plan) -> u32 {
    plan.buffers.len() as u32 - 1
}

/// Gives a variant's kernels, of up to `rows` rows, the workspace for the buffer that stands for it.
pub fn resolve(plan: &Plan, kernels: &mut [Kernel], rows: u32) {
    let work = workspace(plan);
    for kernel in kernels {
        let mut uses = false;
        for arg in &mut kernel.args {
            if *arg == Arg::Buffer(work) {
                *arg = Arg::Workspace;
                uses = true;
            }
        }
        if uses {
            kernel.workspace = u64::from(rows) * plan.buffers[work as usize].row_bytes();
        }
    }
}

/// Output features of all segments.
fn features(segments: &[Segment]) -> u32 {
    segments.iter().map(|s| s.epilogue.cols).sum()
}

/// What is written of a pool's layer: its part, and the buffer of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvStore {
    pub group: u32,
    pub layer: u32,
    pub part: KvPart,
    pub slots: u32,
    /// The first column of the workspace that has its features.
    pub base: u32,
}

/// The pool that a region stores to, if it does.
pub fn kv_store(region: &Region, base: u32) -> Option<KvStore> {
    region.body.iter().find_map(|inst| {
        let Inst::StoreKv { dst, slots, .. } = *inst else {
            return None;
        };
        match (
            region.operands[dst as usize],
            region.operands[slots as usize],
        ) {
            (Operand::Kv { group, layer, part }, Operand::Buffer(slots)) => Some(KvStore {
                group,
                layer,
                part,
                slots,
                base,
            }),
            _ => None,
        }
    })
}

/// Whether an epilogue rotates: it pairs a unit's halves, and loads what differs from row to row, its angles.
pub fn rotates(region: &Region) -> bool {
    let of_row = |i: &Inst| {
        matches!(
            i,
            Inst::Load {
                row: RowMap::Same,
                ..
            }
        )
    };
    region.unit == 2 * region.width && region.body.iter().any(of_row)
}

/// An epilogue's first stage: sums go to the workspace as they are, features from column `base` on.
pub fn sums(region: &Region, kv: &[KvGroup], work: u32, base: u32) -> Region {
    // Tiles of pairs have their halves side by side; where units go together, rows lie in order.
    let paired = region.unit == 2 * region.width && !goes_together(region, kv);
    let (unit, width) = match paired {
        true => (region.unit, region.width),
        false => (1, 1),
    };
    let mut body = Vec::new();
    for offset in (0..unit).step_by(width as usize) {
        let x = body.len() as Val;
        body.push(Inst::Tile { offset });
        body.push(Inst::Store {
            dst: 0,
            col: ColMap {
                per_unit: unit,
                offset: base + offset,
            },
            x,
        });
    }
    Region {
        name: "sums".into(),
        unit,
        width,
        cols: region.cols,
        operands: vec![Operand::Buffer(work)],
        body,
    }
}

/// The stage behind it: the region with the workspace for its tile and for the pools that it stores to. None where nothing is left
/// to do: values that are stored as they came.
pub fn rest(region: &Region, work: u32, base: u32) -> Option<Region> {
    let stores_tile = |inst: &Inst| match *inst {
        Inst::StoreKv { offset, x, .. } => {
            matches!(region.body[x as usize], Inst::Tile { offset: from } if from == offset)
        }
        Inst::Tile { .. } => true,
        _ => false,
    };
    if region.body.iter().all(stores_tile) {
        return None;
    }
    let mut stage = region.clone();
    stage.name = region
        .name
        .replace("_kv_write", "")
        .replace("kv_write", "copy");
    let id = stage.operands.len() as OperandId;
    stage.operands.push(Operand::Buffer(work));
    let col = |offset: u32| ColMap {
        per_unit: region.unit,
        offset: base + offset,
    };
    for inst in &mut stage.body {
        match *inst {
            Inst::Tile { offset } => {
                *inst = Inst::Load {
                    src: id,
                    row: RowMap::Same,
                    col: col(offset),
                }
            }
            Inst::StoreKv { offset, x, .. } => {
                *inst = Inst::Store {
                    dst: id,
                    col: col(offset),
                    x,
                }
            }
            _ => {}
        }
    }
    Some(without_unused_operands(stage))
}

/// A norm in two: what comes before the row is summed over for the last time, and that. None where it only norms what it loads.
pub fn norm(region: &Region, plan: &Plan) -> Result<Option<(Region, Region)>, Error> {
    let work = workspace(plan);
    let is_sum = |inst: &Inst| matches!(inst, Inst::RowSum { .. });
    let Some(sum) = region.body.iter().rposition(is_sum) else {
        return Ok(None);
    };
    let bug = || {
        Error::Bug(format!(
            "region '{}': a row's sum that is not of squares",
            region.name
        ))
    };
    // The sum is of squares of what is normed.
    let Inst::RowSum { x: squares } = region.body[sum] else {
        return Err(bug());
    };
    let normed = match region.body[squares as usize] {
        Inst::Binary { a, b, .. } if a == b => a,
        _ => return Err(bug()),
    };
    if matches!(region.body[normed as usize], Inst::Load { .. }) {
        return Ok(None);
    }
    let own = ColMap {
        per_unit: region.width,
        offset: 0,
    };
    // What depends on the last sum.
    let mut behind = vec![false; region.body.len()];
    behind[sum] = true;
    for at in sum + 1..region.body.len() {
        behind[at] = inputs(&region.body[at]).any(|x| behind[x as usize]);
    }
    let stores = |late: bool| -> Vec<Val> {
        let all = 0..region.body.len();
        let of_stage = |&at: &usize| is_store(&region.body[at]) && behind[at] == late;
        all.filter(of_stage).map(|at| at as Val).collect()
    };
    let (early, late) = (stores(false), stores(true));
    // Where the first stage stores it anyway, the second finds it.
    let stored = early.iter().find_map(|&at| match region.body[at as usize] {
        Inst::Store { dst, col, x } if x == normed && col == own => {
            match region.operands[dst as usize] {
                Operand::Buffer(b) if plan.buffers[b as usize].dtype == DType::F32 => Some(dst),
                _ => None,
            }
        }
        _ => None,
    });
    let mut first = Stage::of(region, work);
    for at in early {
        first.value(at);
    }
    if stored.is_none() {
        let value = first.value(normed);
        first.store_work(own, value);
    }
    let mut second = Stage::of(region, work);
    second.load(stored.unwrap_or(second.work), own, normed);
    for at in late {
        second.value(at);
    }
    let name = &region.name;
    let (before, after) = match name.find("add_") {
        Some(at) => (&name[..at + 3], &name[at + 4..]),
        None => ("before_norm", name.as_str()),
    };
    Ok(Some((first.finish(before), second.finish(after))))
}

fn is_store(inst: &Inst) -> bool {
    matches!(
        inst,
        Inst::Store { .. } | Inst::StoreQuant { .. } | Inst::StoreKv { .. }
    )
}

/// The values that an instruction uses.
fn inputs(inst: &Inst) -> impl Iterator<Item = Val> {
    let all = match *inst {
        Inst::Const { .. } | Inst::Tile { .. } | Inst::Load { .. } | Inst::RowValue { .. } => {
            [None; 3]
        }
        Inst::Unary { x, .. }
        | Inst::RowSum { x }
        | Inst::UnitSum { x }
        | Inst::Store { x, .. }
        | Inst::StoreQuant { x, .. }
        | Inst::StoreKv { x, .. } => [Some(x), None, None],
        Inst::Binary { a, b, .. } => [Some(a), Some(b), None],
        Inst::Fma { a, b, c } => [Some(a), Some(b), Some(c)],
    };
    all.into_iter().flatten()
}

/// A region made of another's instructions, as far as they are needed.
struct Stage<'r> {
    whole: &'r Region,
    region: Region,
    work: OperandId,
    /// Where an instruction of the whole went.
    at: BTreeMap<Val, Val>,
}

impl<'r> Stage<'r> {
    fn of(whole: &'r Region, work: u32) -> Stage<'r> {
        let mut region = whole.clone();
        let id = region.operands.len() as OperandId;
        region.operands.push(Operand::Buffer(work));
        region.body.clear();
        Stage {
            whole,
            region,
            work: id,
            at: BTreeMap::new(),
        }
    }

    fn push(&mut self, inst: Inst) -> Val {
        self.region.body.push(inst);
        self.region.body.len() as Val - 1
    }

    /// An instruction of the whole, with all that it needs.
    fn value(&mut self, of: Val) -> Val {
        if let Some(&at) = self.at.get(&of) {
            return at;
        }
        let mut inst = self.whole.body[of as usize];
        match &mut inst {
            Inst::Const { .. } | Inst::Tile { .. } | Inst::Load { .. } | Inst::RowValue { .. } => {}
            Inst::Unary { x, .. }
            | Inst::RowSum { x }
            | Inst::UnitSum { x }
            | Inst::Store { x, .. }
            | Inst::StoreQuant { x, .. }
            | Inst::StoreKv { x, .. } => *x = self.value(*x),
            Inst::Binary { a, b, .. } => (*a, *b) = (self.value(*a), self.value(*b)),
            Inst::Fma { a, b, c } => {
                (*a, *b, *c) = (self.value(*a), self.value(*b), self.value(*c))
            }
        }
        let at = self.push(inst);
        self.at.insert(of, at);
        at
    }

    fn store_work(&mut self, col: ColMap, x: Val) {
        let dst = self.work;
        self.push(Inst::Store { dst, col, x });
    }

    /// A value of the whole is one that was stored.
    fn load(&mut self, src: OperandId, col: ColMap, of: Val) {
        let row = RowMap::Same;
        let at = self.push(Inst::Load { src, row, col });
        self.at.insert(of, at);
    }

    fn finish(mut self, name: &str) -> Region {
        self.region.name = name.to_string();
        without_unused_operands(self.region)
    }
}

fn without_unused_operands(mut region: Region) -> Region {
    let mut kept: Vec<OperandId> = Vec::new();
    let mut keep = |id: &mut OperandId| {
        let at = kept.iter().position(|k| k == id).unwrap_or_else(|| {
            kept.push(*id);
            kept.len() - 1
        });
        *id = at as OperandId;
    };
    for inst in &mut region.body {
        match inst {
            Inst::Load { src, row, .. } => {
                keep(src);
                if let RowMap::Via(rows) | RowMap::At { index: rows, .. } = row {
                    keep(rows);
                }
            }
            Inst::RowValue { src, .. } => keep(src),
            Inst::Store { dst, .. } | Inst::StoreQuant { dst, .. } => keep(dst),
            Inst::StoreKv { dst, slots, .. } => {
                keep(dst);
                keep(slots);
            }
            _ => {}
        }
    }
    region.operands = kept
        .iter()
        .map(|&id| region.operands[id as usize])
        .collect();
    region
}
