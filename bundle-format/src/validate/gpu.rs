//! Checks of what GPUs launch: a kernel's name, its grid, and that each argument is there.

use super::{Invalid, ensure};
use crate::gpu::{Arg, Extent, Kernel};
use crate::plan::{Plan, Variant};

/// Bounds that every chip has.
const MAX_KERNELS: usize = 64;
const MAX_THREADS: u32 = 1024;
const MAX_SHARED: u32 = 227 << 10;
const MAX_GRID: u32 = 65535;
const MAX_ARGS: usize = 1024;

/// Checks the kernels of a variant.
pub fn kernels(plan: &Plan, variant: &Variant) -> Result<(), Invalid> {
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
    for (i, k) in variant.kernels.iter().enumerate() {
        kernel(plan, k).map_err(|e| e.within(format_args!("kernel {i}")))?;
    }
    Ok(())
}

/// Checks the kernels that draw.
pub fn sampling(plan: &Plan) -> Result<(), Invalid> {
    let Some(sampling) = &plan.sampling else {
        return Ok(());
    };
    for k in sampling.kernels() {
        kernel(plan, k).map_err(|e| e.within(format_args!("sampling")))?;
    }
    Ok(())
}

fn kernel(plan: &Plan, kernel: &Kernel) -> Result<(), Invalid> {
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
        kernel.shared <= MAX_SHARED,
        "shared",
        format!("at most {MAX_SHARED} bytes"),
        kernel.shared
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
        argument(plan, *arg).map_err(|e| e.within(format_args!("argument {i}")))?;
    }
    Ok(())
}

fn argument(plan: &Plan, arg: Arg) -> Result<(), Invalid> {
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
        Arg::Buffer(index) => below("buffer", index, plan.buffers.len()),
        Arg::Weight(index) => below("weight", index, plan.weights.len()),
        Arg::Tables(group) => below("KV group", group, plan.kv.len()),
        Arg::Kv { group, layer, .. } => super::region::kv_layer(plan, group, layer).map(|_| ()),
        Arg::Counts
        | Arg::TableStride
        | Arg::Tiles
        | Arg::Workspace
        | Arg::Tickets
        | Arg::Draws
        | Arg::Drawn => Ok(()),
    }
}
