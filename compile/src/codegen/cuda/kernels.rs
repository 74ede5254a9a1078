//! The kernels of a plan: for each launch and range of rows, which templates with which constants, and their source.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bundle_format::gpu::{Arg, Extent, Kernel, Sampling};
use bundle_format::plan::{
    Dim, Encoding, KvDType, KvGroup, Op, Output, Part, Plan, Role, Segment, Variant,
};
use bundle_format::region::{Inst, KvPart, Region};
use kernels::pack::fragment::{self, Codes, FRAGMENT, Scales, TILE};

use super::region;
use super::target::Chip;
use crate::error::Error;
use crate::lower::gpu::goes_together;

/// Upper ends of the ranges of rows that have kernels of their own: one row, one to eight groups of the eight columns of a
/// matrix instruction, and as many as there are.
const RANGES: [u32; 5] = [1, 8, 16, 32, 64];

/// Features of an item of the kernel for many rows.
const MANY_FEATURES: u32 = 128;

/// Rows of a tile of it.
const MANY_ROWS: u32 = 128;

/// Largest head of attention's kernels.
const MAX_HEAD_DIM: u32 = 256;

/// Variants of every launch, and the source of their kernels.
pub struct Kernels {
    pub variants: Vec<Vec<Variant>>,
    /// What draws tokens.
    pub sampling: Option<Sampling>,
    pub source: String,
    /// Names of the functions, sorted.
    pub symbols: Vec<String>,
    /// Of functions that multiply few rows: the product, and how many reads a warp has under way for each of its tiles.
    pub depths: BTreeMap<String, (String, u32)>,
}

/// Products whose kernels have to do with fewer reads under way, and with how many.
pub type Depths = BTreeMap<String, u32>;

/// Chooses the kernels of a plan.
pub fn choose(plan: &Plan, chip: &Chip, most: &Depths) -> Result<Kernels, Error> {
    let mut writer = Writer {
        plan,
        chip,
        source: String::new(),
        regions: BTreeMap::new(),
        functions: BTreeMap::new(),
        most,
        depths: BTreeMap::new(),
    };
    let variants = plan
        .launches
        .iter()
        .map(|launch| {
            writer
                .launch(&launch.op)
                .map_err(|e| e.context(format_args!("launch '{}'", launch.name)))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let sampling = writer.sampling()?;
    let mut symbols: Vec<String> = writer.functions.into_values().collect();
    symbols.sort();
    Ok(Kernels {
        variants,
        sampling,
        source: writer.source,
        symbols,
        depths: writer.depths,
    })
}

struct Writer<'a> {
    plan: &'a Plan,
    chip: &'a Chip,
    source: String,
    /// Structs by their text, in which the name is `@`.
    regions: BTreeMap<String, String>,
    /// Functions likewise.
    functions: BTreeMap<String, String>,
    most: &'a Depths,
    depths: BTreeMap<String, (String, u32)>,
}

/// A kernel's parameters: C++ type, and what is passed.
type Parameters = Vec<(&'static str, Arg)>;

impl Writer<'_> {
    fn limit(&self, dim: Dim) -> u32 {
        match dim {
            Dim::Tokens => self.plan.limits.max_tokens,
            Dim::Rows => self.plan.limits.max_rows,
        }
    }

    fn launch(&mut self, op: &Op) -> Result<Vec<Variant>, Error> {
        match op {
            Op::Embed {
                tokens,
                table,
                out,
                scale,
            } => {
                let weight = &self.plan.weights[*table as usize];
                let (format, cols) = (format(weight.encoding)?, weight.cols);
                let body = format!(
                    "embed<{format}, {cols}>(counts, p0, p1, p2, p3, __uint_as_float(0x{:08x}u));",
                    scale.to_bits()
                );
                let parameters = vec![
                    ("const u32*", Arg::Buffer(*tokens)),
                    ("const U2*", Arg::Drawn),
                    ("const u8*", Arg::Weight(*table)),
                    ("float*", Arg::Buffer(*out)),
                ];
                let threads = (cols / 4).next_multiple_of(32).min(256);
                let kernel = self.kernel("embed", parameters, &body, "", threads, 1);
                Ok(self.every_row(Dim::Tokens, kernel, "a block a token"))
            }
            Op::RopeTable {
                positions,
                freqs,
                out,
                mscale,
            } => {
                let angles = self.plan.weights[*freqs as usize].cols;
                let body = format!(
                    "rope_table<{angles}>(counts, p0, p1, p2, __uint_as_float(0x{:08x}u));",
                    mscale.to_bits()
                );
                let parameters = vec![
                    ("const u32*", Arg::Buffer(*positions)),
                    ("const float*", Arg::Weight(*freqs)),
                    ("float*", Arg::Buffer(*out)),
                ];
                let threads = angles.next_multiple_of(32).min(128);
                let kernel = self.kernel("rope_table", parameters, &body, "", threads, 1);
                Ok(self.every_row(Dim::Tokens, kernel, "once a step, for all layers"))
            }
            Op::Region { extent, region } => self.region(*extent, region),
            Op::MatMul { x, segments } => self.matmul(*x, segments),
            Op::Attention {
                q,
                group,
                layer,
                heads,
                scale,
                epilogue,
            } => self.attention(*q, (*group, *layer), *heads, *scale, epilogue),
        }
    }

    /// One variant for any number of rows: a block a row.
    fn every_row(&self, dim: Dim, mut kernel: Kernel, reason: &str) -> Vec<Variant> {
        kernel.grid = [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)];
        vec![variant(1, self.limit(dim), vec![kernel], 1, reason)]
    }

    fn region(&mut self, extent: Dim, region: &Region) -> Result<Vec<Variant>, Error> {
        let elements = region.cols / region.unit * region.width;
        let of_rows = extent == Dim::Rows;
        let sums_units = sums_units(region);
        // Four elements a thread: enough loads in flight for a row, and warps to spare.
        let threads = (elements / 4).next_multiple_of(32).clamp(32, 1024);
        let each = elements.div_ceil(threads);
        let mut variants = Vec::new();
        for (first, last, tiled) in self.layouts(extent) {
            let (name, pointers) = self.region_struct(region)?;
            let type_name = format!("{name}<{tiled}>");
            let values: Vec<String> = (0..pointers.len()).map(|i| format!("p{i}")).collect();
            let make = format!("{type_name}{{{}}}", values.join(", "));
            let body = match sums_units {
                true => format!("run_units<{type_name}, {of_rows}>(counts, {make});"),
                false => format!("run_rows<{type_name}, {each}, {of_rows}>(counts, {make});"),
            };
            let mut kernel = self.kernel(&region.name, pointers, &body, "", threads, 1);
            kernel.grid[0] = Extent::Rows(1);
            let reason = match (region.has_row_sum(), sums_units) {
                (true, _) => "a block a row: it sums over it",
                (_, true) => "a warp a head: it sums over it",
                _ => "element-wise, a block a row",
            };
            variants.push(variant(first, last, vec![kernel], 1, reason));
        }
        Ok(variants)
    }

    /// Ranges of rows by the layout of f16 activations: row after row, and in tiles where many rows are multiplied with
    /// them.
    fn layouts(&self, extent: Dim) -> Vec<(u32, u32, bool)> {
        let (few, limit) = (RANGES[RANGES.len() - 1], self.limit(extent));
        match limit > few {
            true => vec![(1, few, false), (few + 1, limit, true)],
            false => vec![(1, limit, false)],
        }
    }

    fn matmul(&mut self, x: u32, segments: &[Segment]) -> Result<Vec<Variant>, Error> {
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

    fn attention(
        &mut self,
        q: u32,
        (group, layer): (u32, u32),
        heads: u32,
        scale: f32,
        epilogue: &Region,
    ) -> Result<Vec<Variant>, Error> {
        let kv = &self.plan.kv[group as usize];
        let dim = kv.head_dim;
        if !dim.is_multiple_of(16) || dim > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!(
                "heads of {dim} features; this target has attention for multiples of 16 up to {MAX_HEAD_DIM}"
            )));
        }
        let (name, pointers) = self.region_struct(epilogue)?;
        let limit = self.plan.limits.max_tokens;
        let few = RANGES[RANGES.len() - 1];
        let mut parameters: Parameters = vec![
            ("const float*", Arg::Buffer(q)),
            (
                "const char*",
                Arg::Kv {
                    group,
                    layer,
                    part: KvPart::Key,
                },
            ),
            (
                "const char*",
                Arg::Kv {
                    group,
                    layer,
                    part: KvPart::Value,
                },
            ),
            ("const u32*", Arg::Tables(group)),
            ("u32", Arg::TableStride),
            (
                "const u32*",
                Arg::Buffer(self.input(bundle_format::plan::Input::Sequences)?),
            ),
            (
                "const u32*",
                Arg::Buffer(self.input(bundle_format::plan::Input::Positions)?),
            ),
            ("const u32*", Arg::Tiles),
            ("float*", Arg::Workspace),
            ("u32*", Arg::Tickets),
        ];
        let fixed = parameters.len();
        parameters.extend(pointers);
        let values: Vec<String> = (fixed..parameters.len()).map(|k| format!("p{k}")).collect();
        let config = self.named_struct(
            "Heads",
            format!(
                "struct @ {{\n    static constexpr int D = {dim}, HEADS = {heads}, KV_HEADS = {}, WINDOW = {};\n    static \
                 constexpr float SCALE = {scale:?}f;\n    static constexpr bool STABLE = true, Q8 = {}, LEAN = {};\n}};\n",
                kv.kv_heads,
                kv.window.unwrap_or(0),
                kv.dtype == KvDType::Q8Rows,
                !self.chip.hopper
            ),
        );
        let mut variants = Vec::new();
        let mut first = 1;
        for last in RANGES.into_iter().chain([limit]) {
            let last = last.min(limit);
            if first > last {
                continue;
            }
            let many = first > few;
            let store = self.named_struct(
                "Store",
                format!(
                    "struct @ {{\n    {name}<{many}> region;\n    __device__ void store(int row, int head, const float* tile) \
                     const {{ finish_head(region, row, head, tile); }}\n}};\n"
                ),
            );
            let block = kv.part_bytes();
            let call = if many { "prefill" } else { "decode" };
            let shape = Attention::of(kv, heads, !self.chip.hopper);
            let (threads, shared, grid) = if many {
                (
                    shape.prefill_threads,
                    shape.prefill_shared,
                    [
                        Extent::Tiles(shape.prefill_rows),
                        Extent::Fixed(heads),
                        Extent::Fixed(1),
                    ],
                )
            } else {
                let splits = self.splits(&shape, last);
                (
                    shape.decode_threads,
                    shape.decode_shared,
                    [
                        Extent::Fixed(shape.pairs),
                        Extent::Rows(1),
                        Extent::Fixed(splits),
                    ],
                )
            };
            let kind = if many { "Prefill" } else { "Decode" };
            let body = format!(
                "using S = attention::{kind}<{config}>;\n    static_assert(S::THREADS == {threads} && S::SHARED == {shared}, \"as \
                 the plan says\");\n    attention::Args a{{p0, p1, p2, {block}u, p3, p5, p6, (const u32*)counts, p7, p8, p9, \
                 p4}};\n    attention::{call}<{config}>(a, {store}{{{{{}}}}});",
                values.join(", ")
            );
            let bounds =
                format!("__launch_bounds__({threads}, attention::{kind}<{config}>::MIN_CTAS) ");
            let mut kernel =
                self.kernel("attention", parameters.clone(), &body, &bounds, threads, 1);
            if let ([_, _, Extent::Fixed(splits)], false) = (grid, many)
                && splits > 1
            {
                let cells = u64::from(shape.pairs) * u64::from(last);
                kernel.workspace = cells * u64::from(splits) * u64::from(shape.partial) * 4;
                kernel.tickets = shape.pairs * last;
            }
            kernel.grid = grid;
            kernel.shared = shared;
            let reason = match many {
                false => "the query heads of a KV head together, long contexts in parts",
                true => "tiles of a sequence's tokens, keys and values through shared memory",
            };
            variants.push(variant(first, last, vec![kernel], 1, reason));
            first = last + 1;
        }
        Ok(variants)
    }

    /// What draws tokens from the plan's logits; none for a vocabulary whose weights would not add up in 64 bits, whose
    /// tokens the host draws.
    fn sampling(&mut self) -> Result<Option<Sampling>, Error> {
        let role = Role::Output(Output::Logits);
        let Some(logits) = self.plan.buffers.iter().position(|b| b.place.role == role) else {
            return Err(Error::Bug("the plan has no logits".into()));
        };
        let buffer = &self.plan.buffers[logits];
        let (vocab, stride) = (buffer.cols, buffer.row_bytes() / 4);
        if vocab > sample::MAX_VOCAB {
            return Ok(None);
        }
        let (slices, bytes) = (sample::slices(vocab), sample::work_bytes(vocab));
        let rows = self.plan.limits.max_rows;
        let mut kernel = |name: &str, returns: bool| {
            let mut parameters: Parameters = vec![
                ("const float*", Arg::Buffer(logits as u32)),
                ("const sample::Draw*", Arg::Draws),
            ];
            if returns {
                parameters.push(("sample::Drawn*", Arg::Drawn));
            }
            parameters.extend([("u8*", Arg::Workspace), ("u32*", Arg::Tickets)]);
            let given: Vec<String> = (0..parameters.len()).map(|i| format!("p{i}")).collect();
            let body = format!(
                "static_assert(sizeof(sample::Work<{vocab}>) == {bytes} && sizeof(sample::Counters) == {} * 4, \"as the plan \
                 says\");\n    sample::{name}<{vocab}, {stride}>(counts, {});",
                sample::COUNTERS,
                given.join(", ")
            );
            let symbol = format!("sample_{name}");
            let mut kernel = self.kernel(&symbol, parameters, &body, "", sample::THREADS, 1);
            kernel.grid = [Extent::Fixed(slices), Extent::Rows(1), Extent::Fixed(1)];
            kernel.workspace = u64::from(rows) * bytes;
            kernel.tickets = rows * sample::COUNTERS;
            kernel
        };
        Ok(Some(Sampling {
            likeliest: kernel("likeliest", true),
            weigh: kernel("weigh", false),
            select: kernel("select", false),
            draw: kernel("draw", true),
        }))
    }

    /// Parts of a long context, so that a step of `rows` rows fills the chip once: more parts than run at a time cost a
    /// second round.
    fn splits(&self, shape: &Attention, rows: u32) -> u32 {
        (self.chip.processors * shape.decode_ctas / (shape.pairs * rows)).clamp(1, 64)
    }

    fn input(&self, input: bundle_format::plan::Input) -> Result<u32, Error> {
        let role = bundle_format::plan::Role::Input(input);
        let found = self.plan.buffers.iter().position(|b| b.place.role == role);
        found
            .map(|i| i as u32)
            .ok_or_else(|| Error::Bug(format!("the plan has no input {input:?}")))
    }

    /// The struct of a region: its name, and its pointers.
    fn region_struct(&mut self, region: &Region) -> Result<(String, Parameters), Error> {
        let source = region::source("@", region, self.plan)?;
        let text = source.text;
        if let Some(name) = self.regions.get(&text) {
            return Ok((name.clone(), source.pointers));
        }
        let name = format!("Region{}", self.regions.len());
        self.source.push_str(&text.replace('@', &name));
        self.regions.insert(text, name.clone());
        Ok((name, source.pointers))
    }

    /// A struct that is written once for each text.
    fn named_struct(&mut self, kind: &str, text: String) -> String {
        if let Some(name) = self.regions.get(&text) {
            return name.clone();
        }
        let name = format!("{kind}{}", self.regions.len());
        self.source.push_str(&text.replace('@', &name));
        self.regions.insert(text, name.clone());
        name
    }

    /// A kernel of a body in which `counts`, `p0`, `p1`, … are what it is given.
    fn kernel(
        &mut self,
        name: &str,
        parameters: Parameters,
        body: &str,
        bounds: &str,
        threads: u32,
        rows: u32,
    ) -> Kernel {
        let mut list = "const Counts* counts".to_string();
        for (i, (kind, _)) in parameters.iter().enumerate() {
            let _ = write!(list, ", {kind} p{i}");
        }
        let bounds = match bounds {
            "" => format!("__launch_bounds__({threads}) "),
            given => given.to_string(),
        };
        let text = format!("extern \"C\" __global__ void {bounds}@({list}) {{\n    {body}\n}}\n");
        let symbol = match self.functions.get(&text) {
            Some(symbol) => symbol.clone(),
            None => {
                let symbol = format!("{name}_{}", self.functions.len());
                self.source.push_str(&text.replace('@', &symbol));
                self.functions.insert(text, symbol.clone());
                symbol
            }
        };
        Kernel {
            symbol,
            grid: [Extent::Rows(rows), Extent::Fixed(1), Extent::Fixed(1)],
            threads,
            // The compiler tells.
            registers: 0,
            fixed_shared: 0,
            shared: 0,
            workspace: 0,
            tickets: 0,
            args: [Arg::Counts]
                .into_iter()
                .chain(parameters.into_iter().map(|(_, arg)| arg))
                .collect(),
        }
    }
}

/// The constants of sample.cuh; the source checks them.
mod sample {
    pub const THREADS: u32 = 256;
    /// Counters of a row.
    pub const COUNTERS: u32 = 2 + 1024;
    /// Sums of so many weights fit 64 bits.
    pub const MAX_VOCAB: u32 = 1 << 19;
    const SLICE: u32 = THREADS * 16;
    const LIST: u64 = 8192;

    /// Blocks of a row.
    pub fn slices(vocab: u32) -> u32 {
        vocab.div_ceil(SLICE)
    }

    /// Bytes that the kernels hand on, a row.
    pub fn work_bytes(vocab: u32) -> u64 {
        8 * (4 + u64::from(slices(vocab)) + LIST)
    }
}

/// The constants of attention.cuh, for a shape; the source checks them.
struct Attention {
    pairs: u32,
    /// Floats of a partial result.
    partial: u32,
    /// Blocks of decoding that a processor runs at a time.
    decode_ctas: u32,
    decode_threads: u32,
    decode_shared: u32,
    prefill_rows: u32,
    prefill_threads: u32,
    prefill_shared: u32,
}

impl Attention {
    fn of(kv: &KvGroup, heads: u32, lean: bool) -> Attention {
        let dim = kv.head_dim;
        let shared_by = heads / kv.kv_heads;
        let groups = shared_by.div_ceil(8);
        let partial = shared_by.div_ceil(groups) * (dim + 4);
        let tiles = if dim <= 128 { 2 } else { 1 };
        let rows = 16 * tiles * 4;
        let few = if lean || kv.dtype == KvDType::Q8Rows {
            96
        } else {
            128
        };
        let keys = if dim <= few && dim != 112 { 64 } else { 32 };
        let pieces = dim / 8;
        let stride = 16
            * if pieces.is_multiple_of(8) {
                pieces
            } else {
                pieces | 1
            };
        let (q, tile, out) = (rows * dim * 2, keys * stride, dim + 8);
        let tiles_of_kv = match kv.dtype {
            KvDType::Q8Rows => 2 * tile + 2 * keys / 16 * kv.dtype.head_bytes(dim) as u32,
            _ => 4 * tile,
        };
        Attention {
            pairs: kv.kv_heads * groups,
            partial,
            decode_ctas: if dim <= 128 { 2 } else { 1 },
            decode_threads: 256,
            decode_shared: (8 * partial + 4) * 4 + dim.div_ceil(32) * 512,
            prefill_rows: rows,
            prefill_threads: 128,
            prefill_shared: (q + tiles_of_kv).max(rows * out * 4) + 16,
        }
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
fn format(encoding: Encoding) -> Result<&'static str, Error> {
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

fn sums_units(region: &Region) -> bool {
    region
        .body
        .iter()
        .any(|i| matches!(i, Inst::UnitSum { .. }))
}

fn variant(first: u32, last: u32, kernels: Vec<Kernel>, rows: u32, reason: &str) -> Variant {
    Variant {
        min_rows: first,
        max_rows: last,
        tile_rows: rows,
        tile_cols: 1,
        parts: Vec::<Part>::new(),
        kernels,
        reason: reason.to_string(),
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
