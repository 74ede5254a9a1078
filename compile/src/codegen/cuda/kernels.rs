//! The kernels of a plan: for each launch and range of rows, which templates with which constants, and their source.

mod matmul;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bundle_format::gpu::{Arg, Extent, Kernel, Sampling};
use bundle_format::plan::{Dim, KvDType, Op, Output, Part, Plan, Role, Variant};
use bundle_format::region::{Inst, KvPart, Region};

use self::matmul::format;
use super::region;
use super::shapes::{Attention, sample};
use super::target::Chip;
use crate::error::Error;

/// Upper ends of the ranges of rows that have kernels of their own: one row, one to eight groups of the eight columns of a
/// matrix instruction, and as many as there are.
const RANGES: [u32; 5] = [1, 8, 16, 32, 64];

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
