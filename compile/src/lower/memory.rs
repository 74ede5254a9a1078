//! The memory plan: where buffers lie in the arena, and which launches must wait for which.

use bundle_format::plan::{ALIGN, Op, Plan, Role};
use bundle_format::region::{Inst, Operand, OperandId, Region};

use crate::error::Error;

/// What a launch touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Buffer(u32),
    /// A layer of a KV group: the keys and values of attention.
    Kv {
        group: u32,
        layer: u32,
    },
}

/// Places read and written by an op.
fn touches(op: &Op) -> (Vec<Place>, Vec<Place>) {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let mut region = |region: &Region| {
        let mut stored: Vec<OperandId> = Vec::new();
        for inst in &region.body {
            match *inst {
                Inst::Store { dst, .. }
                | Inst::StoreQuant { dst, .. }
                | Inst::StoreKv { dst, .. } => stored.push(dst),
                Inst::Const { .. }
                | Inst::Tile { .. }
                | Inst::Load { .. }
                | Inst::Unary { .. }
                | Inst::Binary { .. }
                | Inst::Fma { .. }
                | Inst::RowSum { .. }
                | Inst::UnitSum { .. }
                | Inst::RowValue { .. } => {}
            }
        }
        for (id, operand) in region.operands.iter().enumerate() {
            let place = match *operand {
                Operand::Buffer(buffer) => Place::Buffer(buffer),
                Operand::Kv { group, layer, .. } => Place::Kv { group, layer },
                Operand::Weight(_) => continue,
            };
            // A stored buffer may be loaded too; as a read it costs nothing to name it.
            reads.push(place);
            if stored.contains(&(id as OperandId)) {
                writes.push(place);
            }
        }
    };
    match op {
        Op::Embed { tokens, out, .. } => {
            (reads, writes) = (vec![Place::Buffer(*tokens)], vec![Place::Buffer(*out)])
        }
        Op::RopeTable { positions, out, .. } => {
            (reads, writes) = (vec![Place::Buffer(*positions)], vec![Place::Buffer(*out)]);
        }
        Op::Region { region: body, .. } => region(body),
        Op::MatMul {
            x,
            prologue,
            segments,
        } => {
            prologue.iter().for_each(&mut region);
            segments.iter().for_each(|s| region(&s.epilogue));
            reads.push(Place::Buffer(*x));
        }
        Op::Attention {
            q,
            group,
            layer,
            epilogue,
            ..
        } => {
            region(epilogue);
            reads.push(Place::Buffer(*q));
            reads.push(Place::Kv {
                group: *group,
                layer: *layer,
            });
        }
        Op::Route {
            logits,
            weights,
            places,
            tokens,
            starts,
            ..
        } => {
            reads.push(Place::Buffer(*logits));
            writes.extend([*weights, *places, *tokens, *starts].map(Place::Buffer));
        }
        Op::ExpertMatMul {
            x,
            tokens,
            starts,
            segments,
        } => {
            segments.iter().for_each(|s| region(&s.epilogue));
            reads.extend([*x, *tokens, *starts].map(Place::Buffer));
        }
    }
    (reads, writes)
}

/// The first and last launch that each buffer is alive in; none: no launch touches it. Inputs and outputs live for the whole
/// step, which ends after the last launch.
pub fn lives(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    let count = plan.launches.len();
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    for (index, launch) in plan.launches.iter().enumerate() {
        let (reads, writes) = touches(&launch.op);
        for place in reads.into_iter().chain(writes) {
            if let Place::Buffer(buffer) = place {
                let life = lives[buffer as usize].get_or_insert((index, index));
                life.1 = life.1.max(index);
            }
        }
        // What is read by the kernels of the next launch, which may do this one's work.
        let next = plan.launches.get(index + 1);
        if next.is_some_and(|next| super::gpu::may_join(plan, &launch.op, &next.op)) {
            for place in touches(&launch.op).0 {
                if let Place::Buffer(buffer) = place
                    && let Some(life) = &mut lives[buffer as usize]
                {
                    life.1 = life.1.max(index + 1);
                }
            }
        }
    }
    for (buffer, life) in plan.buffers.iter().zip(&mut lives) {
        if buffer.place.role != Role::Scratch {
            *life = Some((0, count));
        }
    }
    lives
}

/// Gives each buffer an offset: scratch buffers that are never alive together share memory.
pub fn place(plan: &mut Plan) -> Result<(), Error> {
    let lives = lives(plan);
    let size = |index: usize| {
        let buffer = &plan.buffers[index];
        let rows = plan.limits.rows(buffer.extent);
        (rows as u64)
            .checked_mul(buffer.row_bytes())
            .map(|b| b.next_multiple_of(ALIGN as u64))
    };
    let mut order: Vec<(u64, usize)> = Vec::new();
    for index in 0..plan.buffers.len() {
        let bytes = size(index).ok_or_else(|| {
            Error::User(format!(
                "buffer '{}' exceeds 2^64 bytes; lower --ctx or --max-batch",
                plan.buffers[index].name
            ))
        })?;
        order.push((bytes, index));
    }
    // Large ones first: the small ones fill the gaps.
    order.sort_by_key(|&(bytes, index)| (std::cmp::Reverse(bytes), index));
    let mut placed: Vec<(u64, u64, (usize, usize))> = Vec::new();
    let mut arena = 0;
    for (bytes, index) in order {
        let Some(life) = lives[index] else { continue };
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(_, _, other)| life.0 <= other.1 && other.0 <= life.1)
            .map(|&(from, to, _)| (from, to))
            .collect();
        busy.sort_unstable();
        let mut offset = 0;
        for (from, to) in busy {
            if offset + bytes <= from {
                break;
            }
            offset = offset.max(to);
        }
        plan.buffers[index].place.offset = offset;
        placed.push((offset, offset + bytes, life));
        arena = arena.max(offset + bytes);
    }
    plan.arena_bytes = arena;
    Ok(())
}

/// Finds the launches that each launch must wait for: those that wrote what it reads, and those that read or wrote what it
/// overwrites, shared memory included. Only the last such are named: waiting is transitive.
pub fn depend(plan: &mut Plan) {
    let range = |place: Place| match place {
        Place::Buffer(buffer) => {
            let b = &plan.buffers[buffer as usize];
            let rows = plan.limits.rows(b.extent);
            Some((b.place.offset, b.place.offset + rows as u64 * b.row_bytes()))
        }
        Place::Kv { .. } => None,
    };
    let clash = |a: Place, b: Place| match (range(a), range(b)) {
        (Some(a), Some(b)) => a.0 < b.1 && b.0 < a.1,
        _ => a == b,
    };
    let touched: Vec<_> = plan.launches.iter().map(|l| touches(&l.op)).collect();
    // ancestors[i]: every launch that i waits for, directly or not.
    let mut ancestors: Vec<Vec<bool>> = Vec::new();
    let mut all_deps = Vec::new();
    for (index, (reads, writes)) in touched.iter().enumerate() {
        let mut known = vec![false; index];
        let mut deps = Vec::new();
        for earlier in (0..index).rev() {
            if known[earlier] {
                continue;
            }
            let (before_reads, before_writes) = &touched[earlier];
            let reads_written = reads
                .iter()
                .any(|&r| before_writes.iter().any(|&w| clash(r, w)));
            let overwrites = writes.iter().any(|&w| {
                before_reads
                    .iter()
                    .chain(before_writes)
                    .any(|&p| clash(w, p))
            });
            if reads_written || overwrites {
                deps.push(earlier as u32);
                known[earlier] = true;
                for (k, &a) in ancestors[earlier].iter().enumerate() {
                    known[k] |= a;
                }
            }
        }
        deps.reverse();
        all_deps.push(deps);
        ancestors.push(known);
    }
    for (launch, deps) in plan.launches.iter_mut().zip(all_deps) {
        launch.deps = deps;
    }
}
