//! Matrix products: a kernel for few rows, bound by reading weights, for each of several ranges, and one for many.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment, Variant};
use kernels::pack::fragment::{self, Codes, FRAGMENT, Scales, TILE};

use super::target::Chip;
use super::{RANGES, one};
use crate::codegen::gpu::floats::FLOAT_ROWS;
use crate::codegen::gpu::kernels::{Product, Prologue, Writer, variant};
use crate::codegen::gpu::segments::{Items, by_format, form, format, is_f32, no_fragments};
use crate::codegen::gpu::work::Turns;
use crate::error::Error;

/// Features of an item of the kernel for many rows.
pub const MANY_FEATURES: u32 = 128;

/// Rows of a tile of it.
pub const MANY_ROWS: u32 = 128;

/// Variants of a matrix product.
pub fn matmul(chip: &Chip, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error> {
    Products { chip, writer }.matmul(product)
}

struct Products<'a, 'w> {
    chip: &'a Chip,
    writer: &'a mut Writer<'w>,
}

impl Products<'_, '_> {
    fn matmul(&mut self, product: &Product) -> Result<Vec<Variant>, Error> {
        let x = product.x;
        let input = &self.writer.plan.buffers[x as usize];
        let limit = self.writer.limit(input.extent);
        let mut variants = Vec::new();
        let mut first = 1;
        for last in RANGES.into_iter().chain([limit]) {
            let last = last.min(limit);
            if first > last {
                continue;
            }
            let many = first > RANGES[RANGES.len() - 1];
            let mut kernels = Vec::new();
            let mut rows = 1;
            let runs = by_format(self.writer.plan, product.segments)?;
            // Of one row, each block makes its input; of more, that is a kernel of its own.
            let (inside, apart) = match last {
                1 => (product.prologue, None),
                _ => (None, product.prologue),
            };
            if let Some(region) = apart {
                kernels.push(self.writer.region_kernel(input.extent, region, many)?);
            }
            for (i, run) in runs.into_iter().enumerate() {
                let prologue = inside.map(|region| Prologue {
                    region,
                    stores: i == 0,
                });
                let (kernel, of_cta) = match (many, last) {
                    _ if is_f32(self.writer.plan, &run) => {
                        let rows = last.min(FLOAT_ROWS);
                        (self.writer.floats(x, &run, many, rows, prologue)?, rows)
                    }
                    (true, _) => self.many(x, &run)?,
                    (false, 1) => (one::kernel(self.chip, self.writer, x, prologue, &run)?, 1),
                    (false, _) => self.few(x, &run, last)?,
                };
                rows = of_cta;
                kernels.push(kernel);
            }
            let reason = reason(first, last, self.chip);
            variants.push(variant(first, last, kernels, rows, &reason));
            first = last + 1;
        }
        Ok(variants)
    }

    /// The kernel for few rows, up to `last` of them at a time.
    fn few(&mut self, x: u32, run: &[&Segment], last: u32) -> Result<(Kernel, u32), Error> {
        let input = &self.writer.plan.buffers[x as usize];
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let format = format(encoding)?;
        let tiles: Vec<u32> = run.iter().map(|s| self.writer.tiles(s)).collect();
        let groups = last.div_ceil(8).next_power_of_two().min(8);
        let fragments = input.cols / FRAGMENT as u32;
        let of_tile = fragment::tile_bytes(encoding, u64::from(input.cols))
            .ok_or_else(|| no_fragments("a weight", encoding))?;
        // Units that are summed over lie in one item; otherwise some tiles share what is read of x.
        let group = match unit_tiles(self.writer, run) {
            1 => self.tiles_of_an_item(&tiles, of_tile, u64::from(8 * groups * input.cols * 2)),
            whole => whole,
        };
        whole_items(&tiles, group)?;
        let cols = input.cols;
        let of_rows = input.extent == Dim::Rows;
        let items = Items::of(group * 16, false, of_rows);
        let (segments, parameters) = self.writer.segments(x, run, &items)?;
        let product = format!("{format}, {cols}, {group}, {groups}, {segments}");
        let most = self.writer.most.get(&product).copied();
        let Some(cut) = Cut::of(
            form(encoding)?,
            group,
            groups,
            fragments,
            self.chip.shared,
            most,
        ) else {
            return Err(Error::Unsupported(format!(
                "heads of {} features, which are summed over; at most {} on this target",
                group * 16,
                Cut::MOST_WARPS * 16
            )));
        };
        let Cut {
            warps,
            along,
            per_warp,
            depth,
        } = cut;
        let shape = format!(
            "MatMulShape<{format}, {cols}, {warps}, {group}, {per_warp}, {depth}, {groups}>"
        );
        let items: u32 = tiles.iter().map(|t| t / group).sum();
        let body = format!("matmul_few<{shape}>(counts, p0, {segments});");
        let ctas_per_sm = match groups {
            1 => (16 / warps).clamp(1, 4),
            _ => 1,
        };
        // Registers as needed: a spill costs more than a block less on a processor.
        let bounds = format!("__launch_bounds__({}, 1) ", warps * 32);
        let mut kernel = self
            .writer
            .kernel("matmul", parameters, &body, &bounds, warps * 32, 1);
        self.writer
            .depths
            .insert(kernel.symbol.clone(), (product, cut.reads()));
        // Of all items that a block takes in turn.
        let grid = items.min(self.chip.processors * ctas_per_sm);
        let of_block = f64::from(items) / f64::from(grid);
        let turns = Turns::Product {
            turns: f64::from((fragments / along).div_ceil(depth)) * of_block,
            alternatives: run.len() as u32,
            stores: of_block,
        };
        self.writer.turns.insert(kernel.symbol.clone(), turns);
        let rows = 8 * groups;
        kernel.grid = [Extent::Fixed(grid), Extent::Rows(rows), Extent::Fixed(1)];
        kernel.shared = 2 * along * rows * (group * 16 + 4) * 4;
        Ok((kernel, rows))
    }

    /// Tiles that share what is read of x: as many as leave the busiest processor the fewest bytes to read, of a tile and of x.
    /// Those of x, which the caches have, count a quarter: with that the choice is the fastest one for the products of a 7B
    /// model, of 8 rows and of 32.
    fn tiles_of_an_item(&self, tiles: &[u32], of_tile: u64, of_x: u64) -> u32 {
        let bytes = |group: u32| {
            let items: u32 = tiles.iter().map(|t| t / group).sum();
            let turns = u64::from(items.div_ceil(self.chip.processors));
            turns * (u64::from(group) * of_tile + of_x / 4)
        };
        let possible = |&group: &u32| tiles.iter().all(|t| t.is_multiple_of(group));
        let groups = [4, 2, 1].into_iter().filter(possible);
        groups.min_by_key(|&group| bytes(group)).unwrap_or(1)
    }

    /// The kernel for many rows.
    fn many(&mut self, x: u32, run: &[&Segment]) -> Result<(Kernel, u32), Error> {
        let input = &self.writer.plan.buffers[x as usize];
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let format = format(encoding)?;
        for segment in run {
            let unit = self.writer.unit_tiles(segment) * TILE as u32;
            if !MANY_FEATURES.is_multiple_of(unit) {
                return Err(Error::Unsupported(format!(
                    "heads of {unit} features that are summed over; this target has kernels for up to {MANY_FEATURES}"
                )));
            }
        }
        let limit = self.writer.limit(input.extent);
        if !limit.is_multiple_of(MANY_ROWS) {
            return Err(Error::Bug(format!(
                "steps of up to {limit} rows, which are stored in tiles of {MANY_ROWS}"
            )));
        }
        let shape = format!("ManyShape<{format}, {}>", input.cols);
        // Stages of tiles or sums, whichever are more; Hopper's have the slack of their alignment, and a warp that copies.
        let (threads, stages, slack) = match self.chip.hopper {
            true => (288, 6, 1024),
            false => (256, 4, 0),
        };
        let of_rows = input.extent == Dim::Rows;
        let items = Items::of(MANY_FEATURES, true, of_rows);
        let (segments, parameters) = self.writer.segments(x, run, &items)?;
        let items: u32 = run
            .iter()
            .map(|s| self.writer.tiles(s).div_ceil(MANY_FEATURES / TILE as u32))
            .sum();
        let body = format!("matmul_many<S>(counts, p0, {segments});");
        let sums = MANY_ROWS * (MANY_FEATURES + 4) * 4;
        let shared = (stages * MANY_ROWS * 128).max(sums) + slack;
        let body = format!(
            "using S = {shape};\n    static_assert(S::THREADS == {threads} && S::SHARED == {shared}, \"as the plan says\");\n    {body}"
        );
        let bounds = format!("__launch_bounds__({threads}, 1) ");
        let mut kernel = self
            .writer
            .kernel("matmul_many", parameters, &body, &bounds, threads, 1);
        kernel.grid = [
            Extent::Rows(MANY_ROWS),
            Extent::Fixed(items),
            Extent::Fixed(1),
        ];
        kernel.shared = shared;
        Ok((kernel, MANY_ROWS))
    }
}

/// How the warps of a block divide an item of few rows' products.
struct Cut {
    warps: u32,
    /// Warps that share the columns; the others share the tiles.
    along: u32,
    /// Tiles of a warp.
    per_warp: u32,
    /// Fragments of each of its tiles that are on their way.
    depth: u32,
}

impl Cut {
    const MOST_WARPS: u32 = 16;

    /// Of an item of `group` tiles and `groups` times eight rows, `fragments` wide, where a block may have `shared`
    /// bytes. `most`: the fragments that a warp may have on
    /// their way, where more took too many registers. None where there are too many tiles.
    fn of(
        (codes, scales): (Codes, Scales),
        group: u32,
        groups: u32,
        fragments: u32,
        shared: u32,
        most: Option<u32>,
    ) -> Option<Cut> {
        // What is read of x serves two tiles, where their sums fit a thread's registers.
        let tight = most == Some(1) || groups > 2 && scales == Scales::Wide;
        let per_warp = if group.is_multiple_of(2) && !tight {
            2
        } else {
            1
        };
        let across = group / per_warp;
        let plain = codes == Codes::Nibbles && matches!(scales, Scales::Blocks | Scales::BlocksMin);
        // Every warp has columns enough to keep reads in flight.
        let columns = prev_power_of_two((fragments / 2).max(1));
        let most_warps = match groups {
            _ if most == Some(1) && groups > 1 => 8,
            1 | 2 => 16,
            // Columns that don't divide evenly leave warps without work at the end of an item: more warps fill in.
            4 if plain && !divides(fragments, columns.min(8 / across.min(8)), 2) => 16,
            _ => 8,
        };
        if across > most_warps {
            return None;
        }
        // Two sets of a block's sums fit its shared memory.
        let fitting = shared / (2 * 8 * groups * (group * 16 + 4) * 4);
        let along = columns
            .min(most_warps / across)
            .min(prev_power_of_two(fitting.max(1)));
        let depth = match codes {
            Codes::Nibbles if group == 1 && groups == 1 && fragments / along >= 4 => 4,
            _ if groups > 4 => 1,
            _ if !divides(fragments, along, 2) && divides(fragments, along, 1) => 1,
            _ => 2,
        };
        Some(Cut {
            warps: across * along,
            along,
            per_warp,
            depth: most.map_or(depth, |most| depth.min(most / per_warp)),
        })
    }

    /// Fragments that a warp has on their way.
    fn reads(&self) -> u32 {
        self.depth * self.per_warp
    }
}

/// Whether all warps along have whole rounds of `depth` fragments.
fn divides(fragments: u32, along: u32, depth: u32) -> bool {
    fragments.is_multiple_of((along * depth).max(1))
}

fn reason(first: u32, last: u32, chip: &Chip) -> String {
    match (last, first > RANGES[RANGES.len() - 1]) {
        (1, _) => "one row: few instructions for each weight, blocks make their input".to_string(),
        (_, false) => format!("up to {last} rows: bound by reading weights"),
        (_, true) if chip.hopper => {
            "many rows: weights through registers, activations by bulk copies".to_string()
        }
        _ => "many rows: weights through registers, activations copied ahead".to_string(),
    }
}

/// Tiles of the largest unit that is summed over, which lies in one item.
pub fn unit_tiles(writer: &Writer, run: &[&Segment]) -> u32 {
    let tiles = run.iter().map(|s| writer.unit_tiles(s));
    tiles.max().unwrap_or(1)
}

/// Checks that items of `group` tiles divide all segments.
pub fn whole_items(tiles: &[u32], group: u32) -> Result<(), Error> {
    match tiles.iter().find(|t| !t.is_multiple_of(group)) {
        Some(bad) => Err(Error::Unsupported(format!(
            "{bad} tiles of 16 features are no whole number of heads of {}; compile this model for cpu",
            group * 16
        ))),
        None => Ok(()),
    }
}

pub fn prev_power_of_two(n: u32) -> u32 {
    1 << n.ilog2()
}
