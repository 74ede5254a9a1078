//! Products of one row (`kernels::device`, matmul_one.cuh): of this few rows, the time between launches counts as much as
//! reading weights.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment};
use kernels::pack::fragment::{Codes, FRAGMENT, Scales, TILE};

use super::matmul::{prev_power_of_two, unit_tiles, whole_items};
use super::target::Chip;
use crate::codegen::gpu::kernels::{Prologue, Writer};
use crate::codegen::gpu::segments::{Items, form, format};
use crate::error::Error;

/// Warps that read weights, at most.
pub const WARPS: u32 = 16;

/// Steps of a warp whose reads are under way.
pub const DEPTH: u32 = 2;

/// Sets of sums between them and the warp that adds them up, as the source has it.
const SETS: u32 = 4;

/// The kernel of a run of segments.
pub fn kernel(
    chip: &Chip,
    writer: &mut Writer,
    x: u32,
    prologue: Option<Prologue>,
    run: &[&Segment],
) -> Result<Kernel, Error> {
    let input = &writer.plan.buffers[x as usize];
    let (cols, of_rows) = (input.cols, input.extent == Dim::Rows);
    let encoding = writer.plan.weights[run[0].weight as usize].encoding;
    let (format, multiplier) = (format(encoding)?, Multiplier::of(form(encoding)?));
    let tiles: Vec<u32> = run.iter().map(|s| writer.tiles(s)).collect();
    let group = unit_tiles(writer, run);
    whole_items(&tiles, group)?;
    if group > WARPS {
        return Err(Error::Unsupported(format!(
            "heads of {} features, which are summed over; at most {} on this target",
            group * TILE as u32,
            WARPS * TILE as u32
        )));
    }
    let steps = (cols / FRAGMENT as u32).div_ceil(multiplier.fragments());
    let along = prev_power_of_two(steps).min(WARPS / group).max(1);
    let warps = group * along;
    let threads = warps * 32 + 32;
    let features = group * TILE as u32;
    let items = Items::of(features, false, of_rows).by(Some(32));
    let (segments, mut parameters) = writer.segments(x, run, &items)?;
    let prologue = writer.prologue(x, prologue, &mut parameters)?;
    let product = format!("{format}, {cols}, {warps}, {group}, {segments}, {prologue}");
    let depth = DEPTH.min(steps.div_ceil(along));
    let depth = writer.most.get(&product).map_or(depth, |&m| depth.min(m));
    let shared = multiplier.shared(cols) + sums_shared(along, features);
    let body = format!(
        "using S = OneShape<{format}, {cols}, {warps}, {group}, {depth}>;\n    static_assert(S::THREADS == {threads} && S::SHARED \
         == {shared}, \"as the plan says\");\n    matmul_one<S>(counts, p0, {segments}, {prologue});"
    );
    // Registers as needed: a spill costs more than a block less on a processor.
    let bounds = format!("__launch_bounds__({threads}, 1) ");
    let mut kernel = writer.kernel("matmul_one", parameters, &body, &bounds, threads, 1);
    writer
        .depths
        .insert(kernel.symbol.clone(), (product, depth));
    let items: u32 = tiles.iter().map(|t| t / group).sum();
    let ctas = (WARPS / warps).clamp(1, 4);
    kernel.grid[0] = Extent::Fixed(items.min(chip.processors * ctas));
    kernel.grid[1] = Extent::Rows(1);
    kernel.shared = shared;
    Ok(kernel)
}

/// Bytes of shared memory for sums of so many warps that share a tile's columns, and for their barriers.
pub fn sums_shared(along: u32, features: u32) -> u32 {
    (SETS * along * features + features) * 4 + SETS * 16
}

/// What multiplies: the structs of the source.
#[derive(Clone, Copy)]
pub enum Multiplier {
    ByBytes,
    ByFloats,
}

impl Multiplier {
    pub fn of((codes, scales): (Codes, Scales)) -> Multiplier {
        match (codes, scales) {
            (Codes::Nibbles | Codes::Bytes, Scales::Blocks | Scales::BlocksMin | Scales::Super) => {
                Multiplier::ByBytes
            }
            _ => Multiplier::ByFloats,
        }
    }

    /// Fragments of a step.
    pub fn fragments(self) -> u32 {
        match self {
            Multiplier::ByBytes => 2,
            Multiplier::ByFloats => 1,
        }
    }

    /// Bytes of shared memory for a row.
    pub fn shared(self, cols: u32) -> u32 {
        match self {
            Multiplier::ByBytes => (cols / FRAGMENT as u32).div_ceil(2) * 4 * (64 + 16),
            Multiplier::ByFloats => cols * 2 + cols / 32 * 16,
        }
    }
}
