//! The kernels of a plan: for each launch and range of rows, which templates with which constants, and their source.
//!
//! What is the same for every GPU is here; products and attention are a [`Chip`]'s own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bundle_format::gpu::{Arg, Extent, Kernel, Sampling};
use bundle_format::plan::{Dim, Encoding, Input, Op, Output, Part, Plan, Role, Segment, Variant};
use bundle_format::region::{Inst, Region};
use bundle_format::stability::Profiles;

use super::region::{self, Use};
use super::segments::{format, no_fragments};
use super::shapes::sample;
use super::work::Turns;
use crate::error::Error;

/// What differs from chip to chip.
pub trait Chip {
    /// The most rows whose f16 activations lie row after row, where those of more lie in tiles; none where all do.
    fn rows_before_tiles(&self) -> Option<u32>;

    /// Whether shared templates are told how many threads a block has; otherwise they find out.
    fn tells_threads(&self) -> bool;

    /// Whether a launch's blocks may begin before the launch before it has ended.
    fn launches_overlap(&self) -> bool;

    /// The stability profiles that there are kernels for; none where a plan has none.
    fn profiles(&self) -> Profiles;

    /// Those whose launches of one token may do the work of the launch before.
    fn joining(&self) -> Profiles;

    /// The variants of a matrix product.
    fn matmul(&self, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error>;

    /// The variants of a matrix product of pairs of a token and an expert.
    fn experts(&self, writer: &mut Writer, product: &ExpertProduct) -> Result<Vec<Variant>, Error>;

    /// The variants of attention.
    fn attention(&self, writer: &mut Writer, attend: &Attend) -> Result<Vec<Variant>, Error>;

    /// A kernel that does the work of launch `index` for one token, and that of the launch before it; none where there is no such.
    fn join(&self, _writer: &mut Writer, _index: usize) -> Result<Option<Kernel>, Error> {
        Ok(None)
    }

    /// The variants of a region of its own.
    fn region(
        &self,
        writer: &mut Writer,
        extent: Dim,
        region: &Region,
    ) -> Result<Vec<Variant>, Error> {
        writer.region(extent, region)
    }
}

/// [`Op::MatMul`].
pub struct Product<'a> {
    pub x: u32,
    pub prologue: Option<&'a Region>,
    pub segments: &'a [Segment],
}

/// A region that each block of a kernel executes.
pub struct Prologue<'a> {
    pub region: &'a Region,
    /// Whether a block of this kernel stores what is not for the kernel alone.
    pub stores: bool,
}

/// [`Op::ExpertMatMul`].
pub struct ExpertProduct<'a> {
    pub x: u32,
    pub tokens: u32,
    pub starts: u32,
    pub segments: &'a [Segment],
    /// Experts, and how many of them a token goes to.
    pub experts: u32,
    pub used: u32,
    /// Whether the launch before multiplies pairs of the same list.
    pub follows: bool,
}

impl<'a> ExpertProduct<'a> {
    /// What `op` is, which is such a product; the launch before it does `before`.
    pub fn of(plan: &Plan, op: &'a Op, before: Option<&Op>) -> Result<ExpertProduct<'a>, Error> {
        let Op::ExpertMatMul {
            x,
            tokens,
            starts,
            segments,
        } = op
        else {
            return Err(Error::Bug("a product of experts that is none".into()));
        };
        let Dim::Pairs(used) = plan.buffers[*tokens as usize].extent else {
            return Err(Error::Bug("a list of what is no pairs".into()));
        };
        Ok(ExpertProduct {
            x: *x,
            tokens: *tokens,
            starts: *starts,
            segments,
            experts: plan.buffers[*starts as usize].cols - 1,
            used,
            follows: before.is_some_and(|before| lists(before) == Some(*starts)),
        })
    }
}

/// [`Op::Attention`].
pub struct Attend<'a> {
    pub q: u32,
    pub group: u32,
    pub layer: u32,
    pub heads: u32,
    pub scale: f32,
    pub epilogue: &'a Region,
}

/// Variants of every launch, and the source of their kernels.
pub struct Kernels {
    pub variants: Vec<Vec<Variant>>,
    /// What draws tokens.
    pub sampling: Option<Sampling>,
    pub source: String,
    /// Names of the functions, sorted.
    pub symbols: Vec<String>,
    /// How often functions go through their main loop, where that is known.
    pub turns: BTreeMap<String, Turns>,
    /// Of functions that multiply few rows: the product, and how many reads a warp has under way for each of its tiles.
    pub depths: BTreeMap<String, (String, u32)>,
}

/// Products whose kernels have to do with fewer reads under way, and with how many.
pub type Depths = BTreeMap<String, u32>;

/// Chooses the kernels of a plan, and those that draw tokens, where `draws` is set.
pub fn choose(plan: &Plan, chip: &dyn Chip, most: &Depths, draws: bool) -> Result<Kernels, Error> {
    let mut writer = Writer {
        plan,
        chip,
        source: String::new(),
        regions: BTreeMap::new(),
        functions: BTreeMap::new(),
        most,
        turns: BTreeMap::new(),
        depths: BTreeMap::new(),
    };
    let mut variants = plan
        .launches
        .iter()
        .enumerate()
        .map(|(i, launch)| {
            let before = i.checked_sub(1).map(|i| &plan.launches[i].op);
            writer
                .launch(&launch.op, before)
                .map_err(|e| e.context(format_args!("launch '{}'", launch.name)))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    for variant in variants.iter_mut().flatten() {
        // What no rule is about.
        if variant.profiles == Profiles::NONE {
            variant.profiles = chip.profiles();
        }
    }
    let mut last = 0;
    for index in 1..plan.launches.len() {
        // One kernel does the work of two launches, not of more.
        if index > last + 1
            && let Some(kernel) = chip.join(&mut writer, index)?
        {
            let of_token = |at: usize| plan.extent(&plan.launches[at].op).rows(1, 1) as u32;
            let ones = [of_token(index - 1), of_token(index)];
            join(&mut variants, index, ones, kernel, chip.joining());
            last = index;
        }
    }
    let sampling = match draws {
        true => writer.sampling()?,
        false => None,
    };
    let mut symbols: Vec<String> = writer.functions.into_values().collect();
    symbols.sort();
    Ok(Kernels {
        variants,
        sampling,
        source: writer.source,
        symbols,
        turns: writer.turns,
        depths: writer.depths,
    })
}

/// Collects what kernels are made of.
pub struct Writer<'a> {
    pub plan: &'a Plan,
    pub chip: &'a dyn Chip,
    source: String,
    /// Structs by their text, in which the name is `@`.
    regions: BTreeMap<String, String>,
    /// Functions likewise.
    functions: BTreeMap<String, String>,
    pub most: &'a Depths,
    pub turns: BTreeMap<String, Turns>,
    pub depths: BTreeMap<String, (String, u32)>,
}

/// A kernel's parameters: C++ type, and what is passed.
pub type Parameters = Vec<(&'static str, Arg)>;

impl Writer<'_> {
    /// The most rows of an extent.
    pub fn limit(&self, dim: Dim) -> u32 {
        self.plan.limits.rows(dim)
    }

    /// The variants of a launch that does `op`; the launch before it does `before`.
    fn launch(&mut self, op: &Op, before: Option<&Op>) -> Result<Vec<Variant>, Error> {
        match op {
            Op::Embed {
                tokens,
                table,
                out,
                scale,
            } => {
                let weight = &self.plan.weights[*table as usize];
                if weight.encoding == Encoding::F32 {
                    return Err(no_fragments(&weight.name, weight.encoding));
                }
                let (format, cols) = (format(weight.encoding)?, weight.cols);
                let threads = (cols / 4).next_multiple_of(32).min(256);
                let told = self.told(threads);
                let body = format!(
                    "embed<{format}, {cols}{told}>(counts, p0, p1, p2, p3, __uint_as_float(0x{:08x}u));",
                    scale.to_bits()
                );
                let parameters = vec![
                    ("const u32*", Arg::Buffer(*tokens)),
                    ("const U2*", Arg::Drawn),
                    ("const u8*", Arg::Weight(*table)),
                    ("float*", Arg::Buffer(*out)),
                ];
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
                let threads = angles.next_multiple_of(32).min(128);
                let told = self.told(threads);
                let body = format!(
                    "rope_table<{angles}{told}>(counts, p0, p1, p2, __uint_as_float(0x{:08x}u));",
                    mscale.to_bits()
                );
                let parameters = vec![
                    ("const u32*", Arg::Buffer(*positions)),
                    ("const float*", Arg::Weight(*freqs)),
                    ("float*", Arg::Buffer(*out)),
                ];
                let kernel = self.kernel("rope_table", parameters, &body, "", threads, 1);
                Ok(self.every_row(Dim::Tokens, kernel, "once a step, for all layers"))
            }
            Op::Region { extent, region } => self.chip.region(self, *extent, region),
            Op::MatMul {
                x,
                prologue,
                segments,
            } => {
                let product = Product {
                    x: *x,
                    prologue: prologue.as_ref(),
                    segments,
                };
                self.chip.matmul(self, &product)
            }
            Op::Attention {
                q,
                group,
                layer,
                heads,
                scale,
                epilogue,
            } => {
                let attend = Attend {
                    q: *q,
                    group: *group,
                    layer: *layer,
                    heads: *heads,
                    scale: *scale,
                    epilogue,
                };
                self.chip.attention(self, &attend)
            }
            Op::Route {
                logits,
                renormalise,
                scale,
                weights,
                places,
                tokens,
                starts,
            } => {
                let outputs = [*weights, *places, *tokens, *starts];
                self.route(*logits, *renormalise, *scale, outputs)
            }
            Op::ExpertMatMul { .. } => {
                let product = ExpertProduct::of(self.plan, op, before)?;
                self.chip.experts(self, &product)
            }
        }
    }

    /// One variant for any number of rows: a block a row.
    pub fn every_row(&self, dim: Dim, mut kernel: Kernel, reason: &str) -> Vec<Variant> {
        kernel.grid = [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)];
        vec![variant(1, self.limit(dim), vec![kernel], 1, reason)]
    }

    fn region(&mut self, extent: Dim, region: &Region) -> Result<Vec<Variant>, Error> {
        let mut variants = Vec::new();
        for (first, last, tiled) in self.layouts(extent) {
            let kernel = self.region_kernel(extent, region, tiled)?;
            variants.push(variant(first, last, vec![kernel], 1, reason(region)));
        }
        Ok(variants)
    }

    /// The kernel of a region of its own, that stores f16 activations in tiles or row after row.
    pub fn region_kernel(
        &mut self,
        extent: Dim,
        region: &Region,
        tiled: bool,
    ) -> Result<Kernel, Error> {
        let elements = region.cols / region.unit * region.width;
        let rows = match extent {
            Dim::Rows => 0,
            Dim::Tokens => 1,
            Dim::Pairs(each) => each,
            Dim::One => return Err(Error::Bug("a region of one row whatever the step".into())),
        };
        // Four elements a thread: enough loads in flight for a row, and warps to spare.
        let threads = (elements / 4).next_multiple_of(32).clamp(32, 1024);
        let each = elements.div_ceil(threads);
        let told = self.told(threads);
        let (name, pointers) = self.region_struct(region)?;
        let type_name = format!("{name}<{tiled}>");
        let values: Vec<String> = (0..pointers.len()).map(|i| format!("p{i}")).collect();
        let make = format!("{type_name}{{{}}}", values.join(", "));
        let body = match sums_units(region) {
            true => format!("run_units<{type_name}, {rows}{told}>(counts, {make});"),
            false => format!("run_rows<{type_name}, {each}, {rows}{told}>(counts, {make});"),
        };
        let mut kernel = self.kernel(&region.name, pointers, &body, "", threads, 1);
        kernel.grid[0] = Extent::Rows(1);
        Ok(kernel)
    }

    /// Ranges of rows by the layout of f16 activations: row after row, and in tiles where many rows are multiplied with
    /// them.
    fn layouts(&self, extent: Dim) -> Vec<(u32, u32, bool)> {
        let limit = self.limit(extent);
        // Pairs are in tiles where their tokens are.
        let each = match extent {
            Dim::Pairs(each) => each,
            Dim::Tokens | Dim::Rows | Dim::One => 1,
        };
        match self.chip.rows_before_tiles().map(|few| few * each) {
            Some(few) if limit > few => vec![(1, few, false), (few + 1, limit, true)],
            _ => vec![(1, limit, false)],
        }
    }

    /// The last argument of a shared template: the threads of a block, where it is told.
    pub fn told(&self, threads: u32) -> String {
        match self.chip.tells_threads() {
            true => format!(", {threads}"),
            false => String::new(),
        }
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

    /// The buffer of an input.
    pub fn input(&self, input: Input) -> Result<u32, Error> {
        let role = Role::Input(input);
        let found = self.plan.buffers.iter().position(|b| b.place.role == role);
        found
            .map(|i| i as u32)
            .ok_or_else(|| Error::Bug(format!("the plan has no input {input:?}")))
    }

    /// The struct of a region: its name, and its pointers.
    pub fn region_struct(&mut self, region: &Region) -> Result<(String, Parameters), Error> {
        let source = region::source("@", region, self.plan, Use::Plain)?;
        Ok((self.named_struct("Region", source.text), source.pointers))
    }

    /// An expression that makes the prologue that keeps `x` to each block, whose pointers it adds to the parameters.
    pub fn prologue(
        &mut self,
        x: u32,
        prologue: Option<Prologue>,
        parameters: &mut Parameters,
    ) -> Result<String, Error> {
        let Some(Prologue { region, stores }) = prologue else {
            return Ok("NoPrologue{}".to_string());
        };
        let usage = Use::Prologue {
            kept: x,
            all_ahead: !self.chip.launches_overlap(),
        };
        let source = region::source("@", region, self.plan, usage)?;
        let name = self.named_struct("Prologue", source.text);
        let first = parameters.len();
        parameters.extend(source.pointers);
        let made_of: Vec<String> = (first..parameters.len()).map(|i| format!("p{i}")).collect();
        let stores = if stores { "blockIdx.x == 0" } else { "false" };
        Ok(format!("{name}<false>{{{}, {stores}}}", made_of.join(", ")))
    }

    /// A struct that is written once for each text.
    pub fn named_struct(&mut self, kind: &str, text: String) -> String {
        if let Some(name) = self.regions.get(&text) {
            return name.clone();
        }
        let name = format!("{kind}{}", self.regions.len());
        self.source.push_str(&text.replace('@', &name));
        self.regions.insert(text, name.clone());
        name
    }

    /// A kernel of a body in which `counts`, `p0`, `p1`, … are what it is given.
    pub fn kernel(
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

/// Gives the work of a launch, and of the one before it, for one token to a kernel: in these profiles, or in all that there are. One
/// token has `ones` rows of either.
fn join(
    variants: &mut [Vec<Variant>],
    index: usize,
    ones: [u32; 2],
    kernel: Kernel,
    joining: Profiles,
) {
    let before = "one token: with what the next launch makes of it";
    let own = "one token: with the launch before";
    let works = [(before, vec![]), (own, vec![kernel])];
    for (k, (reason, kernels)) in works.into_iter().enumerate() {
        let at = &mut variants[index - 1 + k];
        let mut one = variant(1, ones[k], kernels, 1, reason);
        one.profiles = joining;
        let mut all = vec![one];
        for mut other in std::mem::take(at) {
            // Profiles that don't join have what they had; in the others it is left for more tokens.
            let rest = other.profiles.without(joining);
            if rest != Profiles::NONE {
                all.push(Variant {
                    profiles: rest,
                    ..other.clone()
                });
            }
            let joins = other.profiles.common(joining);
            if (joining == Profiles::NONE || joins != Profiles::NONE) && other.max_rows > ones[k] {
                other.min_rows = other.min_rows.max(ones[k] + 1);
                other.profiles = joins;
                all.push(other);
            }
        }
        *at = all;
    }
}

/// The starts of the list whose pairs a launch multiplies.
fn lists(op: &Op) -> Option<u32> {
    match op {
        Op::ExpertMatMul { starts, .. } => Some(*starts),
        _ => None,
    }
}

/// Why a region of its own is done as it is.
pub fn reason(region: &Region) -> &'static str {
    match (region.has_row_sum(), sums_units(region)) {
        (true, _) => "a block a row: it sums over it",
        (_, true) => "a warp a head: it sums over it",
        _ => "element-wise, a block a row",
    }
}

fn sums_units(region: &Region) -> bool {
    region
        .body
        .iter()
        .any(|i| matches!(i, Inst::UnitSum { .. }))
}

/// A variant of kernels for a range of rows, of blocks of so many.
pub fn variant(first: u32, last: u32, kernels: Vec<Kernel>, rows: u32, reason: &str) -> Variant {
    Variant {
        min_rows: first,
        max_rows: last,
        tile_rows: rows,
        tile_cols: 1,
        parts: Vec::<Part>::new(),
        kernels,
        profiles: Profiles::NONE,
        reason: reason.to_string(),
    }
}
