//! What the compiler decided and why: the graph after each pass, the plan's launches, and what one step costs.

mod experts;
mod page;
pub mod speed;

pub use experts::{print_experts, touched};
pub use page::{page, write as write_page};

use std::fmt::Write as _;

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Limits, Op, Plan, Variant};
use bundle_format::stability::Profile;
use bundle_format::target::Target;

use crate::driver::{self, Compiled, Options};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Graph, Node, text};

/// Which part of the story to tell.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The layer to show; none: every layer. Layers are alike, so one is enough for most readers.
    pub layer: Option<u32>,
    /// Tokens of the step whose cost is shown.
    pub tokens: u32,
    /// Positions that its sequence holds in the cache; none: [`DEPTH`], or the whole context where that is less.
    pub depth: Option<u32>,
}

/// Positions of the step whose cost is shown.
pub const DEPTH: u32 = 512;

impl Scope {
    /// Refuses what the model doesn't have.
    fn check(self, layers: u32, limits: &Limits) -> Result<(), Error> {
        let refuse = |option: String, expected: String| {
            Err(Error::User(format!("{option}: expected {expected}")))
        };
        let Scope {
            layer,
            tokens,
            depth,
        } = self;
        if let Some(layer) = layer.filter(|&layer| layer >= layers) {
            let last = layers.saturating_sub(1);
            return refuse(format!("--layer {layer}"), format!("0 to {last}"));
        }
        let most = limits.max_tokens;
        if tokens == 0 || tokens > most {
            return refuse(format!("--tokens {tokens}"), format!("1 to {most}"));
        }
        if let Some(depth) = depth.filter(|&depth| depth > limits.context) {
            let most = limits.context;
            let expected = format!("at most {most}, the positions of a sequence");
            return refuse(format!("--depth {depth}"), expected);
        }
        Ok(())
    }
}

/// The whole story of a model and a target, as text.
pub fn explain(gguf: &Gguf<'_>, options: &Options, scope: Scope) -> Result<String, Error> {
    let mut out = String::new();
    let mut before = 0;
    let mut stages = Vec::new();
    let mut imported = None;
    let compiled = driver::compile_graph(
        gguf,
        options,
        |stage| stages.push(stage),
        |graph| imported = Some(graph.clone()),
    )?;
    let layers = compiled.graph.kv.iter().map(|group| group.layers).sum();
    scope.check(layers, &compiled.plan.limits)?;
    if let Some(graph) = &imported {
        before = graph.nodes.len();
        let _ = writeln!(
            out,
            "== imported: {} nodes\n{}",
            before,
            print_scope(graph, scope)
        );
    }
    for stage in &stages {
        let after = stage.graph.nodes.len();
        let (name, about) = (stage.pass.name, stage.pass.about);
        if !stage.enabled {
            let _ = writeln!(out, "== {name}: disabled ({about})\n");
            continue;
        }
        let _ = writeln!(
            out,
            "== {name}: {about}; {before} -> {after} nodes\n{}",
            print_scope(&stage.graph, scope)
        );
        before = after;
    }
    out.push_str(&print_pack(&compiled.plan, scope));
    out.push_str(&print_memory(&compiled.plan, scope));
    out.push_str(&print_stability(&compiled.plan));
    out.push_str(&print_variants(&compiled.plan, scope));
    out.push_str(&print_occupancy(&compiled.plan, options.target));
    out.push_str(&print_cost(&compiled.plan, scope));
    out.push_str(&print_experts(&compiled.plan));
    for model in speed_of(&compiled, options.target) {
        out.push_str(&model.print());
    }
    let code = &compiled.code;
    let _ = writeln!(
        out,
        "code: {} functions, {} bytes, by {}",
        code.functions,
        code.bytes.len(),
        code.toolchain.join(", ")
    );
    Ok(out)
}

/// Models of a plan's speed on GPUs of its target, by the bundle's own profile.
fn speed_of(compiled: &Compiled, target: Target) -> impl Iterator<Item = speed::Model<'_>> {
    speed::Gpu::of(target).iter().map(|gpu| speed::Model {
        plan: &compiled.plan,
        work: &compiled.code.work,
        gpu,
        profile: compiled.plan.stability.first().map(|p| p.stability),
    })
}

/// Whether something of this name is shown: of the chosen layer, or of none.
fn in_scope(name: &str, scope: Scope) -> bool {
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split('.').next());
    match (layer.and_then(|l| l.parse::<u32>().ok()), scope.layer) {
        (Some(layer), Some(wanted)) => layer == wanted,
        _ => true,
    }
}

fn print_scope(graph: &Graph, scope: Scope) -> String {
    let mut out = String::new();
    let shown = |n: &&Node| in_scope(&n.name, scope);
    for node in graph.nodes.iter().filter(shown) {
        let _ = writeln!(out, "  {}", text::print_node(graph, node));
    }
    let hidden = graph.nodes.len() - graph.nodes.iter().filter(shown).count();
    if hidden > 0 {
        let _ = writeln!(out, "  ... {hidden} nodes of the other layers");
    }
    out
}

/// The weights: layout, sources, place.
pub fn print_pack(plan: &Plan, scope: Scope) -> String {
    let mut out = String::from("== pack: weights in the layout that the target's kernels read\n");
    for w in plan.weights.iter().filter(|w| in_scope(&w.name, scope)) {
        let order = match w.interleave {
            0 => String::new(),
            n => format!(", {n} rows of each in turn"),
        };
        let _ = writeln!(
            out,
            "  {} {} [{}, {}] {:?}{order}: {} bytes at {}",
            w.name,
            text::encoding_name(w.encoding),
            w.rows,
            w.cols,
            w.layout,
            w.len,
            w.offset
        );
    }
    let total: u64 = plan.weights.iter().map(|w| w.len).sum();
    let _ = writeln!(out, "  {} weights, {total} bytes\n", plan.weights.len());
    out
}

/// The buffers: size and place in the arena.
pub fn print_memory(plan: &Plan, scope: Scope) -> String {
    let mut out =
        String::from("== memory_plan: buffers that are never alive together share memory\n");
    for b in plan.buffers.iter().filter(|b| in_scope(&b.name, scope)) {
        let dim = text::dim_name(b.extent);
        let _ = writeln!(
            out,
            "  {} {:?}[{dim},{}]: {} bytes a row at {}, {:?}",
            b.name,
            b.dtype,
            b.cols,
            b.row_bytes(),
            b.place.offset,
            b.place.role
        );
    }
    let apart: u64 = plan
        .buffers
        .iter()
        .map(|b| b.row_bytes() * rows(plan, b.extent) as u64)
        .sum();
    let _ = writeln!(
        out,
        "  arena: {} bytes for T <= {}, R <= {}; {apart} without sharing\n",
        plan.arena_bytes, plan.limits.max_tokens, plan.limits.max_rows
    );
    out
}

/// The launches: what they wait for, and how each range of rows is done.
pub fn print_variants(plan: &Plan, scope: Scope) -> String {
    let mut out = String::from("== specialise: a variant for each launch and range of rows\n");
    for (index, launch) in plan
        .launches
        .iter()
        .enumerate()
        .filter(|(_, l)| in_scope(&l.name, scope))
    {
        let _ = writeln!(
            out,
            "  #{index} {} = {} after {:?}",
            launch.name,
            op_name(&launch.op),
            launch.deps
        );
        for variant in &launch.variants {
            let _ = writeln!(out, "      {}", print_variant(variant));
        }
    }
    out.push('\n');
    out
}

/// The stability profiles, and why each chooses what.
pub fn print_stability(plan: &Plan) -> String {
    let mut out = String::new();
    if plan.stability.is_empty() {
        return out;
    }
    out.push_str(
        "== stability: the profile that the bundle runs by, and stricter ones for after a fault\n",
    );
    for profile in &plan.stability {
        let _ = writeln!(out, "  {}: {}", profile.stability, launched(profile));
        for rule in &profile.rules {
            let _ = writeln!(out, "    {}: {} ({})", rule.when, rule.choice, rule.reason);
        }
    }
    out.push('\n');
    out
}

/// How a profile launches kernels.
fn launched(profile: &Profile) -> &'static str {
    match profile.eager {
        true => "launches one by one",
        false => "launches as graphs",
    }
}

/// The kernels, and how many warps of each a processor has at a time.
pub fn print_occupancy(plan: &Plan, target: Target) -> String {
    let mut out = String::new();
    let Some(gpu) = speed::Gpu::of(target).first() else {
        return out;
    };
    let _ = writeln!(out, "== occupancy: warps of a vector unit of {}", gpu.name);
    let mut kernels: Vec<&Kernel> = plan.kernels().collect();
    kernels.sort_by(|a, b| (&a.symbol, a.shared).cmp(&(&b.symbol, b.shared)));
    kernels.dedup_by(|a, b| a.symbol == b.symbol && a.shared == b.shared);
    for kernel in kernels {
        let (warps, limit) = gpu.occupancy(kernel);
        let _ = writeln!(
            out,
            "  {:<24} {warps:>5.1} by {limit}: {} registers, {} bytes of shared memory, {} warps a block",
            kernel.symbol,
            kernel.registers,
            kernel.fixed_shared + kernel.shared,
            kernel.threads.div_ceil(32)
        );
    }
    out.push('\n');
    out
}

fn print_variant(v: &Variant) -> String {
    if v.parts.is_empty() {
        let (first, last) = (v.min_rows, v.max_rows);
        let profiles: Vec<String> = v.profiles.iter().map(|p| p.to_string()).collect();
        let of = match profiles.is_empty() {
            true => String::new(),
            false => format!(" [{}]", profiles.join(", ")),
        };
        return format!("rows {first}..={last}{of}: {}: {}", part_names(v), v.reason);
    }
    format!(
        "rows {}..={}: {} in tiles of {} x {}: {}",
        v.min_rows,
        v.max_rows,
        part_names(v),
        v.tile_rows,
        v.tile_cols,
        v.reason
    )
}

/// What does a variant's main work.
fn part_names(v: &Variant) -> String {
    let name = |id: u32| {
        kernels::cpu::lookup(id).map_or_else(|| format!("{id:#x}"), |k| k.name.to_string())
    };
    let parts = v
        .parts
        .iter()
        .map(|p| p.micro.map_or_else(|| "generated".to_string(), name));
    if v.is_joined() {
        return "the next launch's kernels".to_string();
    }
    let mut names: Vec<String> = parts.chain(v.kernels.iter().map(kernel_name)).collect();
    names.dedup();
    names.join(" + ")
}

/// A kernel and what a block of it takes.
fn kernel_name(kernel: &Kernel) -> String {
    let [x, y, z] = kernel.grid.map(|extent| match extent {
        Extent::Fixed(n) => n.to_string(),
        Extent::Rows(1) => "rows".to_string(),
        Extent::Rows(n) => format!("rows/{n}"),
        Extent::Tiles(n) => format!("tiles of {n}"),
    });
    format!(
        "{x} x {y} x {z} blocks {} of {} threads, {} registers, {} bytes shared",
        kernel.symbol,
        kernel.threads,
        kernel.registers,
        kernel.fixed_shared + kernel.shared
    )
}

fn op_name(op: &Op) -> String {
    match op {
        Op::Embed { .. } => "embed".to_string(),
        Op::RopeTable { .. } => "rope_table".to_string(),
        Op::Region { region, .. } => format!("region {}", region.name),
        Op::MatMul {
            prologue, segments, ..
        } => {
            let names: Vec<&str> = segments.iter().map(|s| s.epilogue.name.as_str()).collect();
            let first = match prologue {
                Some(region) => format!("{} -> ", region.name),
                None => String::new(),
            };
            format!("{first}matmul -> {}", names.join(" | "))
        }
        Op::Attention { epilogue, .. } => format!("attention -> {}", epilogue.name),
        Op::Route { .. } => "route".to_string(),
        Op::ExpertMatMul { segments, .. } => {
            let names: Vec<&str> = segments.iter().map(|s| s.epilogue.name.as_str()).collect();
            format!("matmul of experts -> {}", names.join(" | "))
        }
    }
}

/// Bytes and operations of a launch in one step of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    pub buffer_bytes: u64,
    /// Multiply-adds count two.
    pub operations: u64,
}

/// What a launch costs in a step of `tokens` tokens of one sequence whose cache then holds `depth` positions; logits of one
/// row. Of a mixture's experts those count that tokens go to, were all equally likely.
pub fn cost(plan: &Plan, op: &Op, tokens: u32, depth: u32) -> Cost {
    let rows = |dim: Dim| dim.rows(tokens as usize, 1) as u64;
    let buffer = |index: u32| {
        let b = &plan.buffers[index as usize];
        rows(b.extent) * b.row_bytes()
    };
    let operands = |region: &bundle_format::region::Region| {
        use bundle_format::region::Operand;
        let bytes = |o: &Operand| match *o {
            Operand::Buffer(b) => buffer(b),
            Operand::Weight(w) => plan.weights[w as usize].len,
            Operand::Kv { group, .. } => {
                let kv = &plan.kv[group as usize];
                kv.part_bytes() / bundle_format::plan::KV_BLOCK as u64 * tokens as u64
            }
        };
        region.operands.iter().map(bytes).sum::<u64>()
    };
    match op {
        Op::Embed { table, out, .. } => {
            let w = &plan.weights[*table as usize];
            let row = w.len / w.rows.max(1) as u64;
            Cost {
                weight_bytes: row * tokens as u64,
                buffer_bytes: buffer(*out),
                ..Cost::default()
            }
        }
        Op::RopeTable { out, .. } => Cost {
            buffer_bytes: buffer(*out),
            ..Cost::default()
        },
        Op::Region { extent, region } => Cost {
            buffer_bytes: operands(region),
            operations: rows(*extent) * region.cols as u64 * region.body.len() as u64,
            ..Cost::default()
        },
        Op::MatMul {
            x,
            prologue,
            segments,
        } => {
            let mut total = Cost {
                buffer_bytes: buffer(*x),
                ..Cost::default()
            };
            if let Some(region) = prologue {
                let rows = rows(plan.buffers[*x as usize].extent);
                total.buffer_bytes += operands(region);
                total.operations += rows * region.cols as u64 * region.body.len() as u64;
            }
            for segment in segments {
                let w = &plan.weights[segment.weight as usize];
                let rows = rows(plan.buffers[*x as usize].extent);
                total.weight_bytes += w.len;
                total.buffer_bytes += operands(&segment.epilogue);
                total.operations += 2 * rows * w.rows as u64 * w.cols as u64;
            }
            total
        }
        Op::Attention {
            q,
            group,
            heads,
            epilogue,
            ..
        } => {
            let kv = &plan.kv[*group as usize];
            let seen = kv.window.unwrap_or(u32::MAX).min(depth) as u64;
            let blocks = (depth as u64).div_ceil(bundle_format::plan::KV_BLOCK as u64);
            // The mean query of a chunk at the sequence's end sees half a chunk less.
            let mean = seen.saturating_sub(tokens.saturating_sub(1) as u64 / 2);
            Cost {
                kv_bytes: 2 * kv.part_bytes() * blocks,
                buffer_bytes: buffer(*q) + operands(epilogue),
                operations: 4 * tokens as u64 * *heads as u64 * kv.head_dim as u64 * mean,
                ..Cost::default()
            }
        }
        Op::Route {
            logits,
            weights,
            places,
            tokens,
            starts,
            ..
        } => Cost {
            buffer_bytes: [logits, weights, places, tokens, starts]
                .into_iter()
                .map(|&b| buffer(b))
                .sum(),
            ..Cost::default()
        },
        Op::ExpertMatMul {
            x,
            tokens: list,
            starts,
            segments,
        } => {
            let (experts, used) = experts::of(plan, *list, *starts);
            let touched = experts::touched(experts, used, tokens);
            let mut total = Cost {
                buffer_bytes: buffer(*x) + buffer(*list) + buffer(*starts),
                ..Cost::default()
            };
            for segment in segments {
                let w = &plan.weights[segment.weight as usize];
                let each = w.len as f64 / experts as f64;
                let features = (w.rows / experts) as u64;
                total.weight_bytes += (each * touched) as u64;
                total.buffer_bytes += operands(&segment.epilogue);
                total.operations += 2 * tokens as u64 * used as u64 * features * w.cols as u64;
            }
            total
        }
    }
}

/// The cost of each launch, and of the step.
pub fn print_cost(plan: &Plan, scope: Scope) -> String {
    let Scope { tokens, depth, .. } = scope;
    let depth = depth.unwrap_or(DEPTH.min(plan.limits.context));
    let depth = depth.max(tokens);
    let mut out = format!(
        "== step: {tokens} tokens of one sequence with {depth} positions, one row of logits\n"
    );
    let _ = writeln!(
        out,
        "  {:<28} {:>14} {:>12} {:>14} {:>16}",
        "launch", "weight bytes", "kv bytes", "buffer bytes", "operations"
    );
    let mut total = Cost::default();
    let mut line = |name: &str, c: &Cost| {
        let _ = writeln!(
            out,
            "  {name:<28} {:>14} {:>12} {:>14} {:>16}",
            c.weight_bytes, c.kv_bytes, c.buffer_bytes, c.operations
        );
    };
    for launch in &plan.launches {
        let c = cost(plan, &launch.op, tokens, depth);
        total.weight_bytes += c.weight_bytes;
        total.kv_bytes += c.kv_bytes;
        total.buffer_bytes += c.buffer_bytes;
        total.operations += c.operations;
        if in_scope(&launch.name, scope) {
            line(&launch.name, &c);
        }
    }
    line("whole step", &total);
    out.push('\n');
    out
}

fn rows(plan: &Plan, dim: Dim) -> u32 {
    plan.limits.rows(dim)
}
