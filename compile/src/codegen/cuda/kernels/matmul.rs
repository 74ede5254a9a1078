//! Matrix products: a kernel for few rows, bound by reading weights, for each of several ranges, and one for many.

use std::fmt::Write as _;

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Encoding, Plan, Segment, Variant};
use kernels::pack::fragment::{self, Codes, FRAGMENT, Scales, TILE};

use super::{Parameters, RANGES, Writer, variant};
use crate::codegen::cuda::target::Chip;
use crate::error::Error;
use crate::lower::gpu::goes_together;

/// Features of an item of the kernel for many rows.
const MANY_FEATURES: u32 = 128;

/// Rows of a tile of it.
const MANY_ROWS: u32 = 128;

impl Writer<'_> {
    pub(super) fn matmul(&mut self, x: u32, segments: &[Segment]) -> Result<Vec<Variant>, Error> {
        let input = &self.plan.buffers[x as usize];
        let limit = self.limit(input.extent);
        let mut variants = Vec::new();
        let mut first = 1;
        for last in RANGES.into_iter().chain([limit]) {
            let last = last.min(limit);
            if first > last {
                continue;
            }
            let mut kernels = Vec::new();
            let mut rows = 1;
            for run in by_format(self.plan, segments)? {
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
        let input = &self.plan.buffers[x as usize];
        let encoding = self.plan.weights[run[0].weight as usize].encoding;
        let (format, (codes, scales)) = (format(encoding)?, form(encoding)?);
        let tiles: Vec<u32> = run.iter().map(|s| self.tiles(s)).collect();
        let groups = last.div_ceil(8).next_power_of_two().min(8);
        // Units that are summed over lie in one item; otherwise two tiles share what is read of x.
        let whole = run.iter().map(|s| self.unit_tiles(s)).max().unwrap_or(1);
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
        let (segments, parameters) = self.segments(x, run, group * 16, false, of_rows)?;
        let product =
            format!("{format}, {cols}, {warps}, {group}, {per_warp}, {columns}, {segments}");
        let depth = self
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
        let mut kernel = self.kernel("matmul", parameters, &body, &bounds, warps * 32, 1);
        self.depths.insert(kernel.symbol.clone(), (product, depth));
        let rows = if columns == 0 { 1 } else { 8 * groups };
        kernel.grid = [
            Extent::Fixed(items.min(self.chip.processors * ctas_per_sm)),
            Extent::Rows(rows),
            Extent::Fixed(1),
        ];
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
        let input = &self.plan.buffers[x as usize];
        let encoding = self.plan.weights[run[0].weight as usize].encoding;
        let format = format(encoding)?;
        for segment in run {
            let unit = self.unit_tiles(segment) * TILE as u32;
            if !MANY_FEATURES.is_multiple_of(unit) {
                return Err(Error::Unsupported(format!(
                    "heads of {unit} features that are summed over; this target has kernels for up to {MANY_FEATURES}"
                )));
            }
        }
        let limit = self.limit(input.extent);
        if !limit.is_multiple_of(MANY_ROWS) {
            return Err(Error::Bug(format!(
                "steps of up to {limit} rows, which are stored in tiles of {MANY_ROWS}"
            )));
        }
        let shape = format!("ManyShape<{format}, {}>", input.cols);
        let of_rows = input.extent == Dim::Rows;
        let (segments, parameters) = self.segments(x, run, MANY_FEATURES, true, of_rows)?;
        let items: u32 = run
            .iter()
            .map(|s| self.tiles(s).div_ceil(MANY_FEATURES / TILE as u32))
            .sum();
        let body = format!("matmul_many<S>(counts, p0, {segments});");
        // Stages of tiles or sums, whichever are more; Hopper's have the slack of their alignment, and a warp that copies.
        let (threads, stages, slack) = match self.chip.hopper {
            true => (288, 6, 1024),
            false => (256, 4, 0),
        };
        let sums = MANY_ROWS * (MANY_FEATURES + 4) * 4;
        let shared = (stages * MANY_ROWS * 128).max(sums) + slack;
        let body = format!(
            "using S = {shape};\n    static_assert(S::THREADS == {threads} && S::SHARED == {shared}, \"as the plan says\");\n    {body}"
        );
        let bounds = format!("__launch_bounds__({threads}, 1) ");
        let mut kernel = self.kernel("matmul_many", parameters, &body, &bounds, threads, 1);
        kernel.grid = [
            Extent::Rows(MANY_ROWS),
            Extent::Fixed(items),
            Extent::Fixed(1),
        ];
        kernel.shared = shared;
        Ok((kernel, MANY_ROWS))
    }

    /// Tiles of a segment's weight.
    fn tiles(&self, segment: &Segment) -> u32 {
        self.plan.weights[segment.weight as usize]
            .rows
            .div_ceil(TILE as u32)
    }

    /// Tiles of a unit that is summed over; 1 where none is.
    fn unit_tiles(&self, segment: &Segment) -> u32 {
        match goes_together(&segment.epilogue, &self.plan.kv) {
            true => segment.epilogue.unit.div_ceil(TILE as u32),
            false => 1,
        }
    }

    /// A struct of segments whose items have `features` features: an expression that makes it of the parameters, the
    /// first of which is x.
    fn segments(
        &mut self,
        x: u32,
        run: &[&Segment],
        features: u32,
        tiled: bool,
        of_rows: bool,
    ) -> Result<(String, Parameters), Error> {
        let mut parameters: Parameters = vec![("const u16*", Arg::Buffer(x))];
        let mut members = String::new();
        let mut item = String::new();
        let mut finish = String::new();
        let mut total = 0;
        for (i, segment) in run.iter().enumerate() {
            let weight = &self.plan.weights[segment.weight as usize];
            let tile_bytes = fragment::tile_bytes(weight.encoding, weight.cols as u64)
                .ok_or_else(|| no_fragments(&weight.name, weight.encoding))?;
            let items = weight.rows.div_ceil(features);
            let (name, pointers) = self.region_struct(&segment.epilogue)?;
            let region = format!("{name}<{tiled}>");
            let at = parameters.len();
            parameters.push(("const u8*", Arg::Weight(segment.weight)));
            parameters.extend(pointers);
            let values: Vec<String> = (at + 1..parameters.len())
                .map(|k| format!("p{k}"))
                .collect();
            let _ = write!(members, "    const u8* w{i};\n    {region} r{i};\n");
            let item_bytes = tile_bytes * (features / TILE as u32) as u64;
            let is_last = i + 1 == run.len();
            let guard = if is_last {
                String::new()
            } else {
                format!("if (i < {}) ", total + items)
            };
            let _ = writeln!(
                item,
                "        {guard}return w{i} + (u64)(i - {total}) * {item_bytes}u;"
            );
            let epilogue = &segment.epilogue;
            let how = if goes_together(epilogue, &self.plan.kv) {
                "finish_units"
            } else if epilogue.unit == 2 * epilogue.width {
                "finish_pairs"
            } else {
                "finish_features"
            };
            let _ = writeln!(
                finish,
                "        {guard}return {how}(r{i}, sums, stride, row0, rows, (i - {total}) * {features}, {features});"
            );
            total += items;
            let _ = values;
        }
        let text = format!(
            "struct @ {{\n    static constexpr int ITEMS = {total};\n    static constexpr bool OF_ROWS = {of_rows};\n{members}    \
             __device__ const u8* item(int i) const {{\n{item}    }}\n    __device__ void finish(int i, int row0, const float* \
             sums, int stride, int rows) const {{\n{finish}    }}\n}};\n"
        );
        let name = self.named_struct("Segments", text);
        // Members in order: each weight, then its region of the pointers behind it.
        let mut values = Vec::new();
        let mut next = 1;
        for segment in run {
            let operands = segment.epilogue.operands.len();
            let region: Vec<String> = (next + 1..=next + operands)
                .map(|k| format!("p{k}"))
                .collect();
            values.push(format!("p{next}, {{{}}}", region.join(", ")));
            next += 1 + operands;
        }
        Ok((format!("{name}{{{}}}", values.join(", ")), parameters))
    }
}

/// Segments of one format, in order: a kernel each.
fn by_format<'s>(plan: &Plan, segments: &'s [Segment]) -> Result<Vec<Vec<&'s Segment>>, Error> {
    let mut runs: Vec<(&'static str, Vec<&Segment>)> = Vec::new();
    for segment in segments {
        let name = format(plan.weights[segment.weight as usize].encoding)?;
        match runs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, run)) => run.push(segment),
            None => runs.push((name, vec![segment])),
        }
    }
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

fn form(encoding: Encoding) -> Result<(Codes, Scales), Error> {
    fragment::form(encoding).ok_or_else(|| no_fragments("a weight", encoding))
}

/// The struct of an encoding in fragment.cuh.
pub(super) fn format(encoding: Encoding) -> Result<&'static str, Error> {
    Ok(match encoding {
        Encoding::F32 => return Err(no_fragments("a weight", encoding)),
        Encoding::F16 => "F16",
        Encoding::BF16 => "BF16",
        Encoding::Q4_0 => "Q4_0",
        Encoding::Q4_1 => "Q4_1",
        Encoding::Q5_0 => "Q5_0",
        Encoding::Q5_1 => "Q5_1",
        // The packing has put the values that its codes stand for in their place.
        Encoding::Q8_0 | Encoding::IQ4_NL => "Q8_0",
        Encoding::Q2_K => "Q2_K",
        Encoding::Q3_K => "Q3_K",
        Encoding::Q4_K => "Q4_K",
        Encoding::Q5_K => "Q5_K",
        Encoding::Q6_K => "Q6_K",
        Encoding::IQ4_XS => "IQ4_XS",
        Encoding::MXFP4 => "Wide",
    })
}

fn no_fragments(name: &str, encoding: Encoding) -> Error {
    let encoding = crate::ir::text::encoding_name(encoding);
    Error::Unsupported(format!(
        "'{name}' is {encoding}, for which this target has no kernels; convert the model to F16, BF16 or a quantised type, or \
         compile it for cpu"
    ))
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
