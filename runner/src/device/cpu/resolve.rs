//! From a plan to a program: every index becomes a pointer, every id a function.
//!
//! The plan has passed `bundle_format::validate`, so its indices, types and ranges hold and are not checked again. What is
//! checked is what only the runner knows: which microkernels there are, and sizes that this executor relies on.

use std::ptr::NonNull;

use bundle_format::Bundle;
use bundle_format::plan::{self, CodeRef, DType, Dim, Op, Part, Plan, WeightLayout};
use bundle_format::region::{self, KvPart, Operand};
use kernels::abi::{EmbedArgs, MicroFn, RegionFn, RopeTableArgs, RouteArgs, id};
use kernels::cpu::{self, Level};

use super::memory::{Code, Mapping};
use super::pools::Pools;
use crate::Error;
use crate::device::outputs::Outputs;
use crate::executor::partition::MAX_COST;
use crate::executor::program::{
    Attention, AttentionCode, AttentionFn, Chunking, Embed, EmbedFn, ExpertMatMul, Extent, Launch,
    MatMul, MatMulFn, Program, Region, RopeTable, RopeTableFn, Route, RouteFn, Routed, Segment,
    SegmentCode, Variant, Work,
};

/// Features that matmul microkernels write at a time.
const MATMUL_COLS: u64 = 8;

/// Columns of an element-wise region that are not cut apart, at least: a cache line of f32, and two Q8 blocks.
const REGION_COLS: u64 = 64;

/// The memory that a program works on.
pub struct Memory<'a> {
    pub arena: &'a Mapping,
    pub pools: &'a Pools,
    pub code: &'a Code,
}

/// Makes the program of a bundle, of the microkernels of a level that this processor has.
///
/// # Errors
/// [`Error::Unsupported`] for a microkernel that this runner hasn't or a size beyond the executor's, [`Error::Bug`] for a
/// launch without the code that it needs; each names the launch.
pub fn resolve(
    bundle: &Bundle<'_>,
    outputs: &Outputs,
    memory: &Memory<'_>,
    level: Level,
) -> Result<Program, Error> {
    let mut resolver = Resolver {
        plan: bundle.plan(),
        weights: bundle.weights(),
        memory,
        level,
        chunkings: Vec::new(),
        tile_len: 0,
    };
    let meets = meets(resolver.plan);
    let mut launches = Vec::with_capacity(resolver.plan.launches.len());
    let facts = meets.into_iter().zip(&outputs.only_logits);
    for (launch, (meet, &only_logits)) in resolver.plan.launches.iter().zip(facts) {
        let (extent, work) = resolver.launch(launch).map_err(|e| e.of(&launch.name))?;
        launches.push(Launch {
            name: launch.name.clone(),
            extent,
            meet,
            only_logits,
            work,
        });
    }
    Ok(Program {
        launches,
        chunkings: resolver.chunkings,
        tile_len: resolver.tile_len,
        routed: Routed::default(),
    })
}

/// Before which launches all threads must meet: those that depend on a launch since the last meeting.
fn meets(plan: &Plan) -> Vec<bool> {
    let mut since = 0;
    plan.launches
        .iter()
        .enumerate()
        .map(|(i, launch)| {
            let meet = launch.deps.iter().any(|&dep| dep as usize >= since);
            if meet {
                since = i;
            }
            meet
        })
        .collect()
}

/// Why a launch can't be resolved.
enum Refusal {
    Unsupported(String),
    Bug(String),
}

impl Refusal {
    fn of(self, launch: &str) -> Error {
        match self {
            Refusal::Unsupported(text) => Error::Unsupported(format!("launch {launch}: {text}")),
            Refusal::Bug(text) => Error::Bug(format!("launch {launch}: {text}")),
        }
    }
}

struct Resolver<'a> {
    plan: &'a Plan,
    weights: &'a [u8],
    memory: &'a Memory<'a>,
    level: Level,
    chunkings: Vec<Chunking>,
    tile_len: usize,
}

impl Resolver<'_> {
    fn launch(&mut self, launch: &plan::Launch) -> Result<(Extent, Work), Refusal> {
        match &launch.op {
            Op::Embed {
                tokens,
                table,
                out,
                scale,
            } => {
                let args = EmbedArgs {
                    tokens: self.buffer(*tokens).cast(),
                    w: self.weight(*table),
                    out: self.buffer(*out).cast(),
                    out_stride: self.row_floats(*out),
                    k: self.plan.weights[*table as usize].cols as u64,
                    rows: 0,
                    scale: *scale,
                };
                let weight = &self.plan.weights[*table as usize];
                let variants = self.variants(launch, |this, parts| {
                    let micro = embed_fn(this.micro(&parts[0])?)?;
                    // The reader has checked that only encodings that have pairs lie so.
                    let layout = match weight.layout {
                        WeightLayout::Pairs8 => WeightLayout::Pairs8,
                        _ => WeightLayout::Interleave8,
                    };
                    let expected = Some(id::embed(weight.encoding, layout));
                    fits(&parts[0], weight, expected, layout)?;
                    Ok(micro)
                })?;
                Ok((Extent::Tokens, Work::Embed(Embed { variants, args })))
            }
            Op::RopeTable {
                positions,
                freqs,
                out,
                mscale,
            } => {
                let args = RopeTableArgs {
                    positions: self.buffer(*positions).cast(),
                    freqs: self.weight(*freqs).cast(),
                    out: self.buffer(*out).cast(),
                    out_stride: self.row_floats(*out),
                    n: self.plan.weights[*freqs as usize].cols as u64,
                    rows: 0,
                    mscale: *mscale,
                };
                let variants =
                    self.variants(launch, |this, parts| rope_table_fn(this.micro(&parts[0])?))?;
                Ok((
                    Extent::Tokens,
                    Work::RopeTable(RopeTable { variants, args }),
                ))
            }
            Op::Region { extent, region } => {
                let cols = region.cols as u64;
                let unit = region.unit as u64;
                let work = Region {
                    variants: self.variants(launch, |this, parts| this.function(parts[0].code))?,
                    operands: self.operands(region),
                    cols,
                    granule: if region.has_row_sum() {
                        cols
                    } else {
                        unit * REGION_COLS.div_ceil(unit)
                    },
                };
                Ok((extent_of(*extent), Work::Region(work)))
            }
            // The reader has checked that only kernels of GPUs have a prologue.
            Op::MatMul { x, segments, .. } => {
                let work = self.matmul(launch, *x, segments, 1)?;
                let extent = self.plan.buffers[*x as usize].extent;
                Ok((extent_of(extent), Work::MatMul(work)))
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
                let args = RouteArgs {
                    logits: self.buffer(*logits).cast_const().cast(),
                    logits_stride: self.row_floats(*logits),
                    weights: self.buffer(*weights).cast(),
                    weights_stride: self.row_floats(*weights),
                    chosen: self.buffer(*places).cast(),
                    chosen_stride: self.row_floats(*places),
                    rows: 0,
                    experts: self.plan.buffers[*logits as usize].cols as u64,
                    used: self.plan.buffers[*weights as usize].cols as u64,
                    renormalise: *renormalise,
                    scale: *scale,
                    bad: std::ptr::null_mut(),
                };
                let variants =
                    self.variants(launch, |this, parts| route_fn(this.micro(&parts[0])?))?;
                let route = Route {
                    variants,
                    args,
                    tokens: self.buffer(*tokens).cast(),
                    starts: self.buffer(*starts).cast(),
                };
                Ok((Extent::Tokens, Work::Route(route)))
            }
            Op::ExpertMatMul {
                x,
                tokens,
                starts,
                segments,
            } => {
                let experts = self.plan.buffers[*starts as usize].cols - 1;
                let by_token = self.plan.buffers[*x as usize].extent == Dim::Tokens;
                let work = ExpertMatMul {
                    product: self.matmul(launch, *x, segments, experts)?,
                    index: by_token.then(|| self.buffer(*tokens).cast_const().cast()),
                    starts: self.buffer(*starts).cast_const().cast(),
                    experts: experts as usize,
                };
                let extent = self.plan.buffers[*tokens as usize].extent;
                Ok((extent_of(extent), Work::ExpertMatMul(work)))
            }
            Op::Attention {
                q,
                group,
                layer,
                heads,
                scale,
                epilogue,
            } => self.attention(launch, *q, (*group, *layer), *heads, *scale, epilogue),
        }
    }

    fn matmul(
        &mut self,
        launch: &plan::Launch,
        x: u32,
        segments: &[plan::Segment],
        experts: u32,
    ) -> Result<MatMul, Refusal> {
        let input = &self.plan.buffers[x as usize];
        let layout = match input.dtype {
            DType::Q14 => WeightLayout::Pairs8,
            _ => WeightLayout::Interleave8,
        };
        let variants = self.variants(launch, |this, parts| {
            this.tile(launch);
            parts
                .iter()
                .zip(segments)
                .map(|(part, segment)| {
                    let micro = matmul_fn(this.micro(part)?)?;
                    let weight = &this.plan.weights[segment.weight as usize];
                    let expected = id::matmul(weight.encoding, input.dtype);
                    fits(part, weight, expected, layout)?;
                    Ok(SegmentCode {
                        micro,
                        epilogue: this.function(part.code)?,
                    })
                })
                .collect()
        })?;
        let segments: Box<[Segment]> = segments
            .iter()
            .map(|segment| self.segment(segment, experts))
            .collect();
        let work = MatMul {
            variants,
            x: self.buffer(x),
            x_stride: input.row_bytes(),
            k: input.cols as u64,
            segments,
        };
        // A whole launch's cost at the largest step, see `Segment::unit_cost` in `walk`: a bound from above.
        let bytes: u64 = work
            .segments
            .iter()
            .map(|s| s.features.div_ceil(s.granule) * s.granule_bytes)
            .sum();
        let features: u64 = work.segments.iter().map(|s| s.features + s.granule).sum();
        let pairs = launch.variants.last().map_or(1, |v| v.max_rows);
        let limits = &self.plan.limits;
        let rows = limits.max_tokens.max(limits.max_rows).max(pairs) as u64;
        let macs = features
            .checked_mul(work.k)
            .and_then(|macs| macs.checked_mul(2 * rows));
        if macs
            .is_none_or(|macs| macs / 1024 + bytes / 1024 * rows + 2 * rows * features >= MAX_COST)
        {
            return Err(Refusal::Unsupported(format!(
                "{features} features of {} inputs for {rows} rows are more than this executor divides; compile with \
                 smaller limits",
                work.k
            )));
        }
        Ok(work)
    }

    fn segment(&self, segment: &plan::Segment, experts: u32) -> Segment {
        let weight = &self.plan.weights[segment.weight as usize];
        let features = (weight.rows / experts) as u64;
        let granule = least_common_multiple(segment.epilogue.unit as u64, MATMUL_COLS);
        Segment {
            w: self.weight(segment.weight),
            features,
            granule,
            granule_bytes: (weight.len * granule).div_ceil(weight.rows as u64),
            operands: self.operands(&segment.epilogue),
        }
    }

    fn attention(
        &mut self,
        launch: &plan::Launch,
        q: u32,
        (group, layer): (u32, u32),
        heads: u32,
        scale: f32,
        epilogue: &region::Region,
    ) -> Result<(Extent, Work), Refusal> {
        let kv = &self.plan.kv[group as usize];
        let limits = &self.plan.limits;
        let window = kv.window.map_or(u64::MAX, u64::from);
        let cost = limits.max_tokens as u64 * (limits.context as u64 + 16);
        if cost.checked_mul(heads as u64).is_none_or(|c| c >= MAX_COST) {
            return Err(Refusal::Unsupported(format!(
                "{} tokens over a context of {} and {heads} heads are more than this executor divides; compile with \
                 smaller limits",
                limits.max_tokens, limits.context
            )));
        }
        let mut variants = Vec::with_capacity(launch.variants.len());
        for v in &launch.variants {
            let part = &v.parts[0];
            self.tile(launch);
            // Another would read beyond the pools or misread them.
            if part.micro != id::attention(kv.dtype) {
                return Err(Refusal::Bug(format!(
                    "its microkernel does not fit the keys and values, which are {:?}",
                    kv.dtype
                )));
            }
            let code = AttentionCode {
                micro: attention_fn(self.micro(part)?)?,
                epilogue: self.function(part.code)?,
                chunking: self.chunking(v.tile_rows as usize, window),
            };
            variants.push(variant(v, code));
        }
        let work = Attention {
            variants,
            q: self.buffer(q).cast_const().cast(),
            q_stride: self.row_floats(q),
            keys: self.memory.pools.part(group, layer, KvPart::Key),
            values: self.memory.pools.part(group, layer, KvPart::Value),
            block_stride: kv.part_bytes(),
            heads: heads as u64,
            group_size: (heads / kv.kv_heads) as u64,
            head_dim: kv.head_dim as u64,
            window,
            scale,
            group: group as usize,
            operands: self.operands(epilogue),
        };
        Ok((Extent::Tokens, Work::Attention(work)))
    }

    /// The chunking of these properties, made where there is none yet.
    fn chunking(&mut self, tile_rows: usize, window: u64) -> usize {
        let same = |c: &Chunking| c.tile_rows == tile_rows && c.window == window;
        self.chunkings.iter().position(same).unwrap_or_else(|| {
            let limits = &self.plan.limits;
            self.chunkings.push(Chunking::new(
                tile_rows,
                window,
                limits.max_tokens as usize,
                limits.max_seqs as usize,
            ));
            self.chunkings.len() - 1
        })
    }

    /// Makes room for the tiles of a launch.
    fn tile(&mut self, launch: &plan::Launch) {
        for v in &launch.variants {
            let rows = v.tile_rows.min(v.max_rows) as usize;
            self.tile_len = self.tile_len.max(rows * v.tile_cols as usize);
        }
    }

    fn variants<F>(
        &mut self,
        launch: &plan::Launch,
        mut code: impl FnMut(&mut Self, &[Part]) -> Result<F, Refusal>,
    ) -> Result<Vec<Variant<F>>, Refusal> {
        launch
            .variants
            .iter()
            .map(|v| Ok(variant(v, code(self, &v.parts)?)))
            .collect()
    }

    fn operands(&self, region: &region::Region) -> Box<[*mut u8]> {
        region
            .operands
            .iter()
            .map(|operand| match *operand {
                Operand::Buffer(index) => self.buffer(index),
                Operand::Weight(index) => self.weight(index).cast_mut(),
                Operand::Kv { group, layer, part } => self.memory.pools.part(group, layer, part),
            })
            .collect()
    }

    /// A buffer at its row 0.
    /// The microkernel of a part.
    fn micro(&self, part: &Part) -> Result<MicroFn, Refusal> {
        let id = part
            .micro
            .ok_or_else(|| Refusal::Bug("a part has no microkernel".into()))?;
        let kernel = cpu::lookup_at(self.level, id).ok_or_else(|| {
            Refusal::Unsupported(format!(
                "microkernel {id:#x} is not one of this runner's; use a runner of the compiler's version"
            ))
        })?;
        Ok(kernel.func)
    }

    fn buffer(&self, index: u32) -> *mut u8 {
        let offset = self.plan.buffers[index as usize].place.offset;
        self.memory.arena.start().wrapping_add(offset as usize)
    }

    /// Elements between rows of an f32 or u32 buffer.
    fn row_floats(&self, index: u32) -> u64 {
        self.plan.buffers[index as usize].row_bytes() / 4
    }

    fn weight(&self, index: u32) -> *const u8 {
        let offset = self.plan.weights[index as usize].offset;
        self.weights.as_ptr().wrapping_add(offset as usize)
    }

    fn function(&self, code: Option<CodeRef>) -> Result<RegionFn, Refusal> {
        let code = code.ok_or_else(|| Refusal::Bug("a part has no code".into()))?;
        let address = self
            .memory
            .code
            .function(code.offset)
            .and_then(|address| NonNull::new(address.cast_mut()))
            .ok_or_else(|| Refusal::Bug(format!("no code at {}", code.offset)))?;
        // SAFETY: the address is that of a region's function in executable memory, whose hash was checked: the compiler
        // made it to this signature, of which the kernel ABI's version is the record.
        Ok(unsafe { std::mem::transmute::<*mut u8, RegionFn>(address.as_ptr()) })
    }
}

fn variant<F>(v: &plan::Variant, code: F) -> Variant<F> {
    Variant {
        max_rows: v.max_rows as usize,
        tile_rows: v.tile_rows as usize,
        tile_cols: v.tile_cols as u64,
        code,
    }
}

fn extent_of(dim: Dim) -> Extent {
    match dim {
        Dim::Tokens => Extent::Tokens,
        Dim::Rows => Extent::Rows,
        Dim::Pairs(each) => Extent::Pairs(each as usize),
        Dim::One => Extent::One,
    }
}

/// Checks that a part's microkernel is the one for its weight: another would read beyond it or misread it.
fn fits(
    part: &Part,
    weight: &plan::Weight,
    expected: Option<u32>,
    layout: WeightLayout,
) -> Result<(), Refusal> {
    if part.micro == expected && weight.layout == layout {
        return Ok(());
    }
    let name = |id: Option<u32>| id.and_then(kernels::cpu::lookup).map_or("none", |k| k.name);
    Err(Refusal::Bug(format!(
        "its microkernel {} does not fit weight {} ({:?}, {:?}), expected {} on {layout:?}",
        name(part.micro),
        weight.name,
        weight.encoding,
        weight.layout,
        name(expected)
    )))
}

/// A function that takes one kind of microkernel's entry point, and refuses the others.
macro_rules! entry_point {
    ($name:ident, $kind:ident, $type:ty) => {
        fn $name(micro: MicroFn) -> Result<$type, Refusal> {
            match micro {
                MicroFn::$kind(entry) => Ok(entry),
                other => Err(Refusal::Bug(format!(
                    "its microkernel is a {other:?}, expected one for {}",
                    stringify!($kind)
                ))),
            }
        }
    };
}

entry_point!(embed_fn, Embed, EmbedFn);
entry_point!(rope_table_fn, RopeTable, RopeTableFn);
entry_point!(matmul_fn, MatMul, MatMulFn);
entry_point!(attention_fn, Attention, AttentionFn);
entry_point!(route_fn, Route, RouteFn);

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_common_multiples() {
        for (a, b, lcm) in [(1, 8, 8), (64, 8, 64), (12, 8, 24), (3, 8, 24)] {
            assert_eq!(least_common_multiple(a, b), lcm);
        }
    }

    #[test]
    fn threads_meet_only_where_something_may_still_run() {
        let launch = |deps: &[u32]| plan::Launch {
            name: String::new(),
            deps: deps.to_vec(),
            op: Op::RopeTable {
                positions: 0,
                freqs: 0,
                out: 0,
                mscale: 1.0,
            },
            variants: vec![],
        };
        let plan = Plan {
            limits: plan::Limits {
                max_tokens: 1,
                max_seqs: 1,
                max_rows: 1,
                context: 1,
            },
            world_size: 1,
            kv: vec![],
            buffers: vec![],
            arena_bytes: 0,
            weights: vec![],
            launches: [&[][..], &[], &[0], &[1], &[2, 3], &[0, 1]]
                .map(launch)
                .to_vec(),
            sampling: None,
            stability: Vec::new(),
        };
        // 2 waits for 0, and so for 1; 3 needs nothing more; 4 waits for 2 and 3; 5 for what is over.
        assert_eq!(meets(&plan), [false, false, true, false, true, false]);
    }
}
