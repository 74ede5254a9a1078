//! Matrix products: a kernel for few rows, bound by reading weights, for each of several ranges, and one for many.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment, Variant};
use kernels::pack::fragment::{Codes, FRAGMENT, Scales, TILE};

use super::RANGES;
use super::target::Chip;
use crate::codegen::gpu::kernels::{Writer, variant};
use crate::codegen::gpu::segments::{by_format, form, format};
use crate::codegen::gpu::work::Turns;
use crate::error::Error;

/// Features of an item of the kernel for many rows.
const MANY_FEATURES: u32 = 128;

/// Rows of a tile of it.
const MANY_ROWS: u32 = 128;

/// Variants of a matrix product.
pub fn matmul(
    chip: &Chip,
    writer: &mut Writer,
    x: u32,
    segments: &[Segment],
) -> Result<Vec<Variant>, Error> {
    Products { chip, writer }.matmul(x, segments)
}

struct Products<'a, 'w> {
    chip: &'a Chip,
    writer: &'a mut Writer<'w>,
}

impl Products<'_, '_> {
    fn matmul(&mut self, x: u32, segments: &[Segment]) -> Result<Vec<Variant>, Error> {
        let input = &self.writer.plan.buffers[x as usize];
        let limit = self.writer.limit(input.extent);
        let mut variants = Vec::new();
        let mut first = 1;
        for last in RANGES.into_iter().chain([limit]) {
            let last = last.min(limit);
            if first > last {
                continue;
            }
            let mut kernels = Vec::new();
            let mut rows = 1;
            for run in by_format(self.writer.plan, segments)? {
                let many = first > RANGES[RANGES.len() - 1];
                let (kernel, of_cta) = match many {
                    true => self.many(x, &run)?,
                    false => self.few(x, &run, last)?,
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
        let (format, (codes, scales)) = (format(encoding)?, form(encoding)?);
        let tiles: Vec<u32> = run.iter().map(|s| self.writer.tiles(s)).collect();
        let groups = last.div_ceil(8).next_power_of_two().min(8);
        // Units that are summed over lie in one item; otherwise two tiles share what is read of x.
        let whole = run
            .iter()
            .map(|s| self.writer.unit_tiles(s))
            .max()
            .unwrap_or(1);
        let pair = groups > 1 && tiles.iter().all(|t| t.is_multiple_of(2));
        let group = whole.max(1 + u32::from(pair));
        if let Some(bad) = tiles.iter().find(|t| !t.is_multiple_of(group)) {
            return Err(Error::Unsupported(format!(
                "{bad} tiles of 16 features are no whole number of heads of {}; compile this model for cpu",
                group * 16
            )));
        }
        let fragments = input.cols / FRAGMENT as u32;
        // Every warp has columns enough to keep reads in flight.
        let along = prev_power_of_two((fragments / 2).max(1)).min(16);
        // Two tiles of eight groups' sums would not fit a thread's registers.
        let wide = scales == Scales::Wide;
        let per_warp = if matches!(groups, 2 | 4) && group.is_multiple_of(2) && !wide {
            2
        } else {
            1
        };
        let across = group / per_warp;
        let most = if groups > 1 { 8 } else { 16 };
        if across > most {
            return Err(Error::Unsupported(format!(
                "heads of {} features, which are summed over; at most {} on this target",
                group * 16,
                most * per_warp * 16
            )));
        }
        let along = along.min(most / across).max(1);
        let warps = across * along;
        let depth = match codes {
            Codes::Nibbles if group == 1 && groups == 1 && fragments / along >= 4 => 4,
            _ if groups > 4 => 1,
            _ => 2,
        };
        let columns = if last == 1 { 0 } else { groups };
        let cols = input.cols;
        let of_rows = input.extent == Dim::Rows;
        let (segments, parameters) =
            self.writer
                .segments(x, run, group * 16, false, of_rows, warps * 32)?;
        let product =
            format!("{format}, {cols}, {warps}, {group}, {per_warp}, {columns}, {segments}");
        let depth = self
            .writer
            .most
            .get(&product)
            .map_or(depth, |&most| depth.min(most));
        let shape = format!(
            "MatMulShape<{format}, {cols}, {warps}, {group}, {per_warp}, {depth}, {columns}>"
        );
        let items: u32 = tiles.iter().map(|t| t / group).sum();
        let body = format!("matmul_few<{shape}>(counts, p0, {segments});");
        let ctas_per_sm = if groups > 1 {
            1
        } else {
            (16 / warps).clamp(1, 4)
        };
        // Registers as needed: a spill costs more than a block less on a processor.
        let bounds = format!("__launch_bounds__({}, 1) ", warps * 32);
        let mut kernel = self
            .writer
            .kernel("matmul", parameters, &body, &bounds, warps * 32, 1);
        self.writer
            .depths
            .insert(kernel.symbol.clone(), (product, depth));
        // Of all items that a block takes in turn.
        let grid = items.min(self.chip.processors * ctas_per_sm);
        let of_block = f64::from(items) / f64::from(grid);
        let turns = f64::from((fragments / along).div_ceil(depth)) * of_block;
        let turns = Turns::Product {
            turns,
            alternatives: run.len() as u32,
            stores: of_block,
        };
        self.writer.turns.insert(kernel.symbol.clone(), turns);
        let rows = if columns == 0 { 1 } else { 8 * groups };
        kernel.grid = [Extent::Fixed(grid), Extent::Rows(rows), Extent::Fixed(1)];
        let stride = group * 16 + 4;
        let staged = if columns == 0 {
            cols * 2 + cols / 32 * 16
        } else {
            0
        };
        kernel.shared = staged + 2 * along * rows * stride * 4;
        Ok((kernel, rows))
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
        let (segments, parameters) =
            self.writer
                .segments(x, run, MANY_FEATURES, true, of_rows, threads)?;
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

fn reason(first: u32, last: u32, chip: &Chip) -> String {
    match (last, first > RANGES[RANGES.len() - 1]) {
        (1, _) => "one row: codes are multiplied as they are, sums scaled".to_string(),
        (_, false) => format!("up to {last} rows: bound by reading weights"),
        (_, true) if chip.hopper => {
            "many rows: weights through registers, activations by bulk copies".to_string()
        }
        _ => "many rows: weights through registers, activations copied ahead".to_string(),
    }
}

fn prev_power_of_two(n: u32) -> u32 {
    1 << n.ilog2()
}
