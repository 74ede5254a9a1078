//! Checks of what GPUs launch: a kernel's name, its size, and that each argument is the launch's own.

use super::{Invalid, ensure};
use crate::gpu::{Arg, Extent, Kernel};
use crate::plan::{Buffer, Op, Output, Plan, Role, Variant};
use crate::region::{Operand, Region};
use crate::target::Target;

/// Bounds that no chip exceeds.
const MAX_KERNELS: usize = 64;
const MAX_THREADS: u32 = 1024;
const MAX_REGISTERS: u32 = 256;
const MAX_SHARED: u32 = 227 << 10;
const MAX_GRID: u32 = 65535;
const MAX_ARGS: usize = 1024;
/// Far above what a step needs.
const MAX_WORKSPACE: u64 = 1 << 36;
const MAX_TICKETS: u32 = 1 << 24;

/// Checks that a plan for a GPU has kernels, of which each fits one of its processors, and others have none.
pub fn fits(target: Target, plan: &Plan) -> Result<(), Invalid> {
    let most = target.block_shared();
    for (i, launch) in plan.launches.iter().enumerate() {
        for (j, variant) in launch.variants.iter().enumerate() {
            let check = || {
                ensure!(
                    most.is_some() == variant.parts.is_empty(),
                    "kernels",
                    match most {
                        Some(_) => format!("kernels and no parts, for {target}"),
                        None => format!("none, for {target}"),
                    },
                    variant.kernels.len()
                );
                for (k, kernel) in variant.kernels.iter().enumerate() {
                    kernel_fits(target, kernel)
                        .map_err(|e| e.within(format_args!("kernel {k}")))?;
                }
                Ok(())
            };
            check().map_err(|e: Invalid| {
                let name = super::shown(&launch.name);
                e.within(format_args!("launch {i} ({name}): variant {j}"))
            })?;
        }
    }
    let drawing = plan.sampling.iter().flat_map(|s| s.kernels());
    for kernel in drawing {
        kernel_fits(target, kernel).map_err(|e| e.within("sampling"))?;
    }
    Ok(())
}

fn kernel_fits(target: Target, kernel: &Kernel) -> Result<(), Invalid> {
    let most = target.block_shared();
    let shared = kernel.fixed_shared.saturating_add(kernel.shared);
    ensure!(
        most.is_some_and(|most| shared <= most),
        "shared",
        format!("at most {} bytes, for {target}", most.unwrap_or(0)),
        shared
    );
    if let Some((most, granule)) = target.block_registers() {
        let warp = (u64::from(kernel.registers) * 32).next_multiple_of(u64::from(granule));
        let block = warp * u64::from(kernel.threads.div_ceil(32));
        ensure!(
            block <= u64::from(most),
            "registers of a block",
            format!("at most {most}, for {target}"),
            block
        );
    }
    Ok(())
}

/// Checks the kernels of a variant of a launch that does `op`, and the work of the launch before, `joined`, where there is any.
pub fn kernels(
    plan: &Plan,
    op: &Op,
    joined: Option<&Op>,
    variant: &Variant,
) -> Result<(), Invalid> {
    ensure!(
        variant.parts.is_empty(),
        "parts of a variant with kernels",
        0,
        variant.parts.len()
    );
    ensure!(
        variant.kernels.len() <= MAX_KERNELS,
        "kernels",
        format!("at most {MAX_KERNELS}"),
        variant.kernels.len()
    );
    let mut own = Own::of(op);
    if let Some(joined) = joined {
        own.extend(Own::of(joined));
    }
    for (i, k) in variant.kernels.iter().enumerate() {
        kernel(plan, &own, k).map_err(|e| e.within(format_args!("kernel {i}")))?;
    }
    Ok(())
}

/// Checks the kernels that draw: they read logits.
pub fn sampling(plan: &Plan) -> Result<(), Invalid> {
    let Some(sampling) = &plan.sampling else {
        return Ok(());
    };
    let logits = |b: &Buffer| b.place.role == Role::Output(Output::Logits);
    let buffers = plan.buffers.iter().position(logits);
    let own = Own {
        buffers: buffers.iter().map(|&i| i as u32).collect(),
        ..Own::default()
    };
    for k in sampling.kernels() {
        kernel(plan, &own, k)
            .map_err(|e| e.within(format_args!("sampling ({})", super::shown(&k.symbol))))?;
    }
    Ok(())
}

fn kernel(plan: &Plan, own: &Own, kernel: &Kernel) -> Result<(), Invalid> {
    let spelled = (1..=128).contains(&kernel.symbol.len())
        && kernel
            .symbol
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    ensure!(
        spelled,
        "symbol",
        "1 to 128 letters, digits and _",
        format!("{:?}", super::shown(&kernel.symbol))
    );
    ensure!(
        (1..=MAX_THREADS).contains(&kernel.threads),
        "threads",
        format!("1 to {MAX_THREADS}"),
        kernel.threads
    );
    ensure!(
        (1..=MAX_REGISTERS).contains(&kernel.registers),
        "registers",
        format!("1 to {MAX_REGISTERS}"),
        kernel.registers
    );
    let shared = u64::from(kernel.fixed_shared) + u64::from(kernel.shared);
    ensure!(
        shared <= u64::from(MAX_SHARED),
        "shared",
        format!("at most {MAX_SHARED} bytes"),
        shared
    );
    ensure!(
        kernel.workspace <= MAX_WORKSPACE,
        "workspace",
        format!("at most {MAX_WORKSPACE} bytes"),
        kernel.workspace
    );
    ensure!(
        kernel.tickets <= MAX_TICKETS,
        "tickets",
        format!("at most {MAX_TICKETS}"),
        kernel.tickets
    );
    for extent in kernel.grid {
        let (Extent::Fixed(n) | Extent::Rows(n) | Extent::Tiles(n)) = extent;
        ensure!(
            (1..=MAX_GRID).contains(&n),
            "grid",
            format!("1 to {MAX_GRID}"),
            n
        );
    }
    ensure!(
        kernel.args.len() <= MAX_ARGS,
        "args",
        format!("at most {MAX_ARGS}"),
        kernel.args.len()
    );
    for (i, arg) in kernel.args.iter().enumerate() {
        argument(plan, own, *arg).map_err(|e| e.within(format_args!("argument {i}")))?;
    }
    Ok(())
}

fn argument(plan: &Plan, own: &Own, arg: Arg) -> Result<(), Invalid> {
    let below = |at: &str, index: u32, count: usize| {
        ensure!(
            (index as usize) < count,
            at,
            format!("below {count}"),
            index
        );
        Ok(())
    };
    match arg {
        Arg::Buffer(index) => {
            below("buffer", index, plan.buffers.len())?;
            // What the host writes is there before a step and stays: anyone may read it.
            let input = matches!(plan.buffers[index as usize].place.role, Role::Input(_));
            ensure!(
                input || own.buffers.contains(&index),
                "buffer",
                "one that the launch reads or writes, or an input",
                index
            );
        }
        Arg::Weight(index) => {
            below("weight", index, plan.weights.len())?;
            ensure!(
                own.weights.contains(&index),
                "weight",
                "one that the launch reads",
                index
            );
        }
        Arg::Tables(group) => below("KV group", group, plan.kv.len())?,
        Arg::Kv { group, layer, .. } => {
            super::region::kv_layer(plan, group, layer)?;
            ensure!(
                own.pools.contains(&(group, layer)),
                "KV pool",
                "one that the launch reads or writes",
                format!("layer {layer} of group {group}")
            );
        }
        Arg::Counts
        | Arg::TableStride
        | Arg::Tiles
        | Arg::Workspace
        | Arg::Tickets
        | Arg::Draws
        | Arg::Drawn
        | Arg::KvBlocks => {}
    }
    Ok(())
}

/// What a launch touches: the order of launches was checked for these and no others.
#[derive(Default)]
struct Own {
    buffers: Vec<u32>,
    weights: Vec<u32>,
    /// Groups and layers.
    pools: Vec<(u32, u32)>,
}

impl Own {
    fn of(op: &Op) -> Own {
        let mut own = Own::default();
        match op {
            Op::Embed {
                tokens, table, out, ..
            } => {
                own.buffers.extend([*tokens, *out]);
                own.weights.push(*table);
            }
            Op::RopeTable {
                positions,
                freqs,
                out,
                ..
            } => {
                own.buffers.extend([*positions, *out]);
                own.weights.push(*freqs);
            }
            Op::Region { region, .. } => own.region(region),
            Op::MatMul {
                x,
                prologue,
                segments,
            } => {
                own.buffers.push(*x);
                prologue.iter().for_each(|region| own.region(region));
                for segment in segments {
                    own.weights.push(segment.weight);
                    own.region(&segment.epilogue);
                }
            }
            Op::Attention {
                q,
                group,
                layer,
                epilogue,
                ..
            } => {
                own.buffers.push(*q);
                own.pools.push((*group, *layer));
                own.region(epilogue);
            }
            Op::Route {
                logits,
                weights,
                places,
                tokens,
                starts,
                ..
            } => own
                .buffers
                .extend([*logits, *weights, *places, *tokens, *starts]),
            Op::ExpertMatMul {
                x,
                tokens,
                starts,
                segments,
            } => {
                own.buffers.extend([*x, *tokens, *starts]);
                for segment in segments {
                    own.weights.push(segment.weight);
                    own.region(&segment.epilogue);
                }
            }
        }
        own
    }

    fn extend(&mut self, other: Own) {
        self.buffers.extend(other.buffers);
        self.weights.extend(other.weights);
        self.pools.extend(other.pools);
    }

    fn region(&mut self, region: &Region) {
        for operand in &region.operands {
            match *operand {
                Operand::Buffer(index) => self.buffers.push(index),
                Operand::Weight(index) => self.weights.push(index),
                Operand::Kv { group, layer, .. } => self.pools.push((group, layer)),
            }
        }
    }
}
