//! A model of a GPU's speed: how long each kernel of a step takes, and what bounds it.
//!
//! A kernel takes as long as the longest of what it asks for: bytes of weights and of the KV cache from memory, vector
//! instructions, matrix products, bytes of shared memory. Memory is read at its full rate only while enough reads are under
//! way, which the wavefronts that fit a processor must have. Activations stay in the caches and count for nothing; kernels
//! begin when those before them have ended.

mod gpu;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Encoding, Op, Plan, Segment, Variant, Weight};
use bundle_format::stability::Stability;

pub use gpu::Gpu;
use gpu::Tiles;

use super::experts;
use crate::codegen::{Count, Turns, Work};

/// A step whose time is asked for: `sequences` of them with `tokens` tokens each, behind which the cache has `depth` positions.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub tokens: u32,
    pub sequences: u32,
    pub depth: u32,
}

impl Step {
    fn rows(&self, dim: Dim) -> u32 {
        let tokens = self.tokens * self.sequences;
        dim.rows(tokens as usize, self.sequences as usize) as u32
    }
}

/// How long a kernel takes, in seconds, by each of what it needs; and the whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    pub bytes: f64,
    pub operations: f64,
    pub memory: f64,
    pub vector: f64,
    pub matrix: f64,
    pub shared: f64,
    pub all: f64,
}

impl Time {
    /// What bounds it.
    pub fn bound(&self) -> &'static str {
        let longest = self
            .memory
            .max(self.vector)
            .max(self.matrix)
            .max(self.shared);
        match longest {
            t if t < self.all * 0.5 => "start",
            t if t == self.memory => "memory",
            t if t == self.matrix => "matrix products",
            t if t == self.vector => "instructions",
            _ => "shared memory",
        }
    }
}

/// A model of a plan on a GPU.
pub struct Model<'a> {
    pub plan: &'a Plan,
    pub work: &'a BTreeMap<String, Work>,
    pub gpu: &'a Gpu,
    pub profile: Option<Stability>,
}

impl Model<'_> {
    /// The kernels of a step in their order, by launch, and how long each takes.
    pub fn step(&self, step: Step) -> Vec<(&str, &Kernel, Time)> {
        let mut all = Vec::new();
        // What a kernel does: the work of the launch before, too, where that is joined.
        let mut ops: Vec<&Op> = Vec::new();
        for launch in &self.plan.launches {
            let rows = step.rows(self.plan.extent(&launch.op));
            let Some(variant) = self.variant(&launch.variants, rows) else {
                continue;
            };
            ops.push(&launch.op);
            if variant.is_joined() {
                continue;
            }
            for kernel in &variant.kernels {
                let time = self.time(&ops, kernel, variant.tile_rows, step);
                all.push((launch.name.as_str(), kernel, time));
            }
            ops.clear();
        }
        if let Some(sampling) = &self.plan.sampling {
            let kernel = &sampling.likeliest;
            // Slices of the logits, then what was found in them.
            let time = Time {
                all: self.gpu.gap + 2.0 * self.gpu.latency,
                ..Time::default()
            };
            all.push(("sampling", kernel, time));
        }
        all
    }

    fn variant<'v>(&self, variants: &'v [Variant], rows: u32) -> Option<&'v Variant> {
        variants
            .iter()
            .filter(|v| self.profile.is_none_or(|p| v.profiles.has(p)))
            .find(|v| (v.min_rows..=v.max_rows).contains(&rows))
    }

    fn time(&self, ops: &[&Op], kernel: &Kernel, of_block: u32, step: Step) -> Time {
        let gpu = self.gpu;
        // What most of it is for.
        let Some(op) = ops.first().copied() else {
            return Time::default();
        };
        let rows = step.rows(self.plan.extent(op));
        let of_each = |of: fn(&Self, &Op, &Kernel, Step) -> f64| -> f64 {
            ops.iter().map(|op| of(self, op, kernel, step)).sum()
        };
        let bytes = of_each(Self::bytes);
        let operations = of_each(Self::operations);
        let blocks = |extent: Extent| match extent {
            Extent::Fixed(n) => n,
            Extent::Rows(n) => rows.div_ceil(n),
            Extent::Tiles(n) => step.sequences * step.tokens.div_ceil(n),
        };
        let mut grid = kernel.grid.map(|e| f64::from(blocks(e)));
        if let Op::ExpertMatMul { tokens, starts, .. } = op
            && gpu.tiles.is_none()
            && grid[1] > 1.0
        {
            // Grids have blocks for any routing; those that there is nothing for end at once.
            let (experts, used) = experts::of(self.plan, *tokens, *starts);
            grid[1] = experts::blocks(experts, used, rows / used, of_block);
        }
        // The mean query of a chunk at the sequence's end sees half a chunk less.
        let seen = f64::from(self.window(op).min(step.depth)) - f64::from(step.tokens - 1) / 2.0;
        let seen = seen.max(1.0);
        let mut work = self.work.get(&kernel.symbol).copied().unwrap_or_default();
        if let Op::ExpertMatMul { tokens, starts, .. } = op
            && gpu.tiles.is_some()
            && let Turns::Product { turns, stores, .. } = &mut work.turns
        {
            // Those of one block of rows: blocks of threads take as many as there are in turn.
            let (experts, used) = experts::of(self.plan, *tokens, *starts);
            let blocks = experts::blocks(experts, used, rows / used, of_block);
            (*turns, *stores) = (*turns * blocks, *stores * blocks);
        }
        if let Turns::Attention(context) = work.turns {
            grid[2] = context.parts(seen, grid[2]);
        }
        let block = f64::from(kernel.threads.div_ceil(32));
        let warps = grid.iter().product::<f64>() * block;
        let positions = (seen / grid[2]).ceil();
        let warp = work.of_warp(positions);
        // A warp is no faster than the unit that it has to itself.
        let spread = |of_warp: f64| of_warp * (warps / gpu.units).max(1.0) / gpu.clock;
        let loaded = work
            .turn
            .loaded_bytes
            .max(work.once.loaded_bytes.min(2048.0));
        let resident = self.resident(kernel, warps);
        let under_way = resident * gpu.units * loaded;
        // What a warp has loaded it uses before it loads as much again, and the others of its unit take turns with it.
        let wait = gpu.latency + resident * self.cycles(&work.turn) / gpu.clock;
        let counted = work.turns != Turns::Once || gpu.tiles.is_none();
        let (rate, matrix) = match (&gpu.tiles, counted) {
            (Some(tiles), _) if rows >= tiles.many && matches!(op, Op::MatMul { .. }) => {
                let filled = self.filled(tiles, kernel, rows);
                (gpu.read, operations / gpu.matrix / filled)
            }
            (_, true) => {
                let matrix = gpu.product * warp.matrix * warps / gpu.products;
                (gpu.read.min(under_way / wait), matrix)
            }
            (tiles, false) => {
                let reached = match (op, tiles) {
                    // Blocks of an expert's rows are multiplied whole.
                    (Op::ExpertMatMul { tokens, starts, .. }, Some(tiles)) => {
                        let (experts, used) = experts::of(self.plan, *tokens, *starts);
                        let blocks = experts::blocks(experts, used, rows / used, of_block);
                        tiles.of_experts * f64::from(rows) / (blocks * f64::from(of_block))
                    }
                    _ => 1.0,
                };
                let matrix = operations / gpu.matrix / reached;
                (self.uncounted(op, kernel), matrix)
            }
        };
        let (share, dependent) = match (op, gpu.experts) {
            (Op::ExpertMatMul { .. }, Some(own)) => own,
            _ => (gpu.cache.map_or(0.0, |c| c.1), gpu.dependent),
        };
        let cache = match (gpu.cache, work.turns) {
            (Some((rate, _)), Turns::Product { .. }) => {
                let others = (warp.loaded_bytes * warps - bytes).max(0.0);
                (bytes + others * share) / rate
            }
            _ => 0.0,
        };
        // All instructions of products, where each waits for one before; else those of the vector unit, beside which others go.
        let issued = match work.turns {
            Turns::Product { .. } if dependent > 1.0 => {
                warp.instructions * (dependent / resident).max(1.0)
            }
            _ => warp.vector,
        };
        let mut time = Time {
            bytes,
            operations,
            memory: (bytes / rate).max(cache),
            vector: spread(issued),
            matrix,
            shared: spread(warp.shared_bytes / gpu.shared),
            all: 0.0,
        };
        let busy = match gpu.apart {
            true => time.vector.max(time.matrix),
            false => time.vector + time.matrix,
        };
        let busy = busy.max(time.shared);
        let (chain, before) = self.chains(ops, grid[0]);
        let mut chain = chain * gpu.latency;
        let mut before = before * gpu.latency;
        match ops {
            [Op::Route { .. }] => before += self.ranks(op),
            // Other blocks go on while a router's last one sends the token.
            [Op::MatMul { .. }, route @ Op::Route { .. }] => {
                let made = if gpu.early { gpu.latency } else { 0.0 };
                chain += made.max(self.of_router(op) / rate) + self.ranks(route);
            }
            _ => {}
        }
        time.all = gpu.gap + before + chain.max(time.memory).max(busy);
        time
    }

    /// How long a thread takes to compare its logit with all of the token's: four instructions each, with nothing beside.
    fn ranks(&self, route: &Op) -> f64 {
        let Op::Route { logits, .. } = route else {
            return 0.0;
        };
        let logits = self.plan.buffers[*logits as usize].cols;
        f64::from(logits.next_multiple_of(32)) * 4.0 * self.gpu.alone / self.gpu.clock
    }

    /// Reads of a kernel that wait for one another while others go on, and those that all the others wait for.
    fn chains(&self, ops: &[&Op], blocks: f64) -> (f64, f64) {
        let early = self.gpu.early;
        match ops {
            // Which sequence it is of, then where that one's blocks are, then those.
            [Op::Attention { .. }] => (2.0, 0.0),
            // A ticket, then the logits.
            [Op::MatMul { .. }, Op::Route { .. }] => (2.0, 0.0),
            // The logits; where there are several blocks, a ticket, and what others have chosen.
            [Op::Route { .. }] => (0.0, if blocks > 1.0 { 3.0 } else { 1.0 }),
            // Where experts' pairs begin, then weights, which others read early; of rows of pairs, the product before waited for that.
            [Op::ExpertMatMul { x, .. }, rest @ ..] => {
                let of_pairs = matches!(self.plan.buffers[*x as usize].extent, Dim::Pairs(_));
                let sums = if early { rest.len() as f64 } else { 0.0 };
                let starts = match (early, of_pairs) {
                    (false, _) => 1.0,
                    (true, true) => 0.0,
                    (true, false) => 2.0,
                };
                (0.0, starts + sums)
            }
            _ => (0.0, 0.0),
        }
    }

    /// Bytes of a router's weights, in a product that may have others.
    fn of_router(&self, op: &Op) -> f64 {
        let Op::MatMul { segments, .. } = op else {
            return 0.0;
        };
        let weights = segments
            .iter()
            .map(|s| &self.plan.weights[s.weight as usize]);
        let routers = weights.filter(|w| w.encoding == Encoding::F32);
        routers.map(|w| w.len as f64).sum()
    }

    /// The rate at which a kernel reads whose instructions are not counted.
    fn uncounted(&self, op: &Op, kernel: &Kernel) -> f64 {
        if let Op::Attention { .. } = op {
            return self.gpu.read * self.gpu.attention;
        }
        let matrices = kernel.args.iter().filter_map(|arg| match *arg {
            Arg::Weight(index) => Some(&self.plan.weights[index as usize]),
            _ => None,
        });
        let mut matrices = matrices.filter(|w| is_matrix(w)).peekable();
        let floats = [Encoding::F16, Encoding::BF16, Encoding::F32];
        match (self.gpu.one, matrices.peek().is_some()) {
            (Some([codes, halves]), true) => {
                let packed = matrices.any(|w| !floats.contains(&w.encoding));
                self.gpu.read * if packed { codes } else { halves }
            }
            _ => self.gpu.read,
        }
    }

    /// Cycles that a vector unit is busy with what a warp executes.
    fn cycles(&self, count: &Count) -> f64 {
        let gpu = self.gpu;
        let matrix = count.matrix * gpu.product * gpu.units * gpu.clock / gpu.products;
        match gpu.apart {
            true => count.vector.max(matrix),
            false => count.vector + matrix,
        }
    }

    /// The share of a product's tiles that are not waited for by idle processors: they go in rounds.
    fn filled(&self, tiles: &Tiles, kernel: &Kernel, rows: u32) -> f64 {
        let features = |arg: &Arg| match *arg {
            Arg::Weight(index) => {
                let w = &self.plan.weights[index as usize];
                match is_matrix(w) {
                    true => w.rows.div_ceil(tiles.size),
                    false => 0,
                }
            }
            _ => 0,
        };
        let across: u32 = kernel.args.iter().map(features).sum();
        let all = (across * rows.div_ceil(tiles.size)).max(1);
        f64::from(all) / f64::from(all.next_multiple_of(tiles.together))
    }

    /// Warps of a kernel on a vector unit: those that fit, or that there are.
    fn resident(&self, kernel: &Kernel, warps: f64) -> f64 {
        self.gpu
            .occupancy(kernel)
            .0
            .min((warps / self.gpu.units).max(1.0))
    }

    fn window(&self, op: &Op) -> u32 {
        match op {
            Op::Attention { group, .. } => self.plan.kv[*group as usize].window.unwrap_or(u32::MAX),
            _ => 0,
        }
    }

    /// Bytes that must come from memory for a launch that a kernel has to do with: weights, keys and values.
    fn bytes(&self, op: &Op, kernel: &Kernel, step: Step) -> f64 {
        let rows = step.rows(self.plan.extent(op));
        let of = |arg: &Arg| match *arg {
            Arg::Weight(index) => {
                let w = &self.plan.weights[index as usize];
                match op {
                    Op::Embed { table, .. } if *table == index => {
                        w.len as f64 / f64::from(w.rows) * f64::from(rows)
                    }
                    Op::ExpertMatMul {
                        tokens,
                        starts,
                        segments,
                        ..
                    } if multiplies(segments, index) => {
                        let (experts, used) = experts::of(self.plan, *tokens, *starts);
                        let touched = experts::touched(experts, used, rows / used);
                        w.len as f64 * touched / f64::from(experts)
                    }
                    Op::MatMul { segments, .. } if multiplies(segments, index) => w.len as f64,
                    _ => 0.0,
                }
            }
            Arg::Kv { group, .. } if matches!(op, Op::Attention { .. }) => {
                let kv = &self.plan.kv[group as usize];
                let seen = kv.window.unwrap_or(u32::MAX).min(step.depth);
                let position = kv.part_bytes() as f64 / 16.0;
                position * f64::from(seen * step.sequences)
            }
            _ => 0.0,
        };
        kernel.args.iter().map(of).sum()
    }

    /// Operations of a launch's products that a kernel has to do with, two for a multiplication and an addition.
    fn operations(&self, op: &Op, kernel: &Kernel, step: Step) -> f64 {
        let rows = f64::from(step.rows(self.plan.extent(op)));
        match op {
            Op::MatMul { segments, .. } | Op::ExpertMatMul { segments, .. } => {
                let experts = match op {
                    Op::ExpertMatMul { tokens, starts, .. } => {
                        experts::of(self.plan, *tokens, *starts).0
                    }
                    _ => 1,
                };
                let of = |arg: &Arg| match *arg {
                    Arg::Weight(index) if multiplies(segments, index) => {
                        let w = &self.plan.weights[index as usize];
                        2.0 * f64::from(w.rows / experts) * f64::from(w.cols)
                    }
                    _ => 0.0,
                };
                kernel.args.iter().map(of).sum::<f64>() * rows
            }
            Op::Attention { heads, group, .. } => {
                let dim = f64::from(self.plan.kv[*group as usize].head_dim);
                let seen = f64::from(self.window(op).min(step.depth));
                let mean = (seen - f64::from(step.tokens - 1) / 2.0).max(1.0);
                4.0 * rows * f64::from(*heads) * dim * mean
            }
            _ => 0.0,
        }
    }
}

/// Whether segments multiply with a weight.
fn multiplies(segments: &[Segment], weight: u32) -> bool {
    segments.iter().any(|s| s.weight == weight)
}

/// Whether a weight is multiplied with rows, and not a vector.
fn is_matrix(weight: &Weight) -> bool {
    weight.rows > 1
}

/// Sequences of the steps that are told of, positions that they hold, and tokens of a prompt: as `fastrun bench --depth 128 --gen 128` has
/// them on average.
const BATCHES: [u32; 3] = [1, 8, 32];
const DEPTH: u32 = 192;
const PROMPT: u32 = 512;

/// Tokens a second that are to be expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    pub prompt: f64,
    /// By [`BATCHES`].
    pub decode: [f64; 3],
}

impl Model<'_> {
    /// Tokens a second, of a prompt and of decoding.
    pub fn speed(&self) -> Speed {
        let seconds = |step: Step| self.step(step).iter().map(|(_, _, t)| t.all).sum::<f64>();
        let prompt = self.prompt();
        Speed {
            prompt: f64::from(prompt.tokens) / seconds(prompt),
            decode: BATCHES.map(|batch| f64::from(batch) / seconds(self.decode(batch))),
        }
    }

    fn prompt(&self) -> Step {
        let limits = &self.plan.limits;
        let tokens = PROMPT.min(limits.max_tokens).min(limits.context);
        Step {
            tokens,
            sequences: 1,
            depth: tokens,
        }
    }

    fn decode(&self, batch: u32) -> Step {
        Step {
            tokens: 1,
            sequences: batch,
            depth: DEPTH.min(self.plan.limits.context),
        }
    }

    /// The steps that are told of, each with its kernels.
    pub fn steps(&self) -> Vec<Predicted<'_>> {
        let most = self.plan.limits.max_seqs;
        let decode = BATCHES.into_iter().filter(|&b| b <= most);
        let decode = decode.map(|b| (format!("decode, batch {b}"), self.decode(b)));
        let prompt = self.prompt();
        let all = decode.chain([(format!("prompt of {}", prompt.tokens), prompt)]);
        all.map(|(name, step)| {
            let kernels = self.step(step);
            let sum = |of: fn(&Time) -> f64| kernels.iter().map(|(_, _, t)| of(t)).sum::<f64>();
            let seconds = sum(|t| t.all);
            Predicted {
                name,
                rate: f64::from(step.tokens * step.sequences) / seconds,
                seconds,
                read: sum(|t| t.bytes) / seconds / self.gpu.read,
                operations: sum(|t| t.operations) / seconds,
                kernels,
            }
        })
        .collect()
    }

    /// Whose speed it is: `gfx1151, profile balanced`.
    pub fn of_what(&self) -> String {
        let profile = self.profile.map(|p| format!(", profile {p}"));
        format!("{}{}", self.gpu.name, profile.unwrap_or_default())
    }

    /// The model's word on a plan: steps, and kernels of each.
    pub fn print(&self) -> String {
        let mut out = format!("== speed: what is to be expected of {}\n", self.of_what());
        for step in self.steps() {
            let _ = writeln!(
                out,
                "  {}: {:.1} tokens/s; {:.0} us a step of {} kernels, {:.1}% of the read rate, {:.1} TFLOPS",
                step.name,
                step.rate,
                step.seconds * 1e6,
                step.kernels.len(),
                100.0 * step.read,
                step.operations / 1e12
            );
            for (launch, kernel, t) in &step.kernels {
                if launch.starts_with("blk.") && !launch.starts_with("blk.0.") {
                    continue;
                }
                let us = |s: f64| format!("{:.1}", s * 1e6);
                let _ = writeln!(
                    out,
                    "    {launch:<24} {:<20} {:>8} us by {:<16} memory {:>7}, instructions {:>7}, products {:>7}, shared memory {:>7}",
                    kernel.symbol,
                    us(t.all),
                    t.bound(),
                    us(t.memory),
                    us(t.vector),
                    us(t.matrix),
                    us(t.shared)
                );
            }
        }
        out.push('\n');
        out
    }
}

/// What is to be expected of a step.
pub struct Predicted<'a> {
    pub name: String,
    /// Tokens a second.
    pub rate: f64,
    pub seconds: f64,
    /// The share of the rate at which memory is read.
    pub read: f64,
    /// Operations of products a second.
    pub operations: f64,
    /// By launch, in their order.
    pub kernels: Vec<(&'a str, &'a Kernel, Time)>,
}
