//! Checks of one launch: its operands, its variants and its code.

mod experts;

use super::arena::{Effects, Pool};
use super::gpu;
use super::region::{self, Footprint, Tile};
use super::{Invalid, activation_types, ensure, max_extent, name, one_of};
use crate::plan::{
    ALIGN, Buffer, CodeRef, DType, Dim, Encoding, Input, Launch, Op, Plan, Role, Segment, Variant,
    Weight, WeightLayout,
};
use crate::region::{KvPart, Region};
use crate::stability::{Profiles, Stability};

/// Elements of the largest tile that an epilogue sees.
const MAX_TILE: u64 = 1 << 26;
/// Output features that matmul microkernels write at a time; tiles are a multiple.
const MATMUL_COLS: u32 = 8;
const MAX_SEGMENTS: usize = 256;
/// Rows of a weight that lie together in some layout.
const PACKED_ROWS: u32 = 16;

/// What the variants of a launch must fit.
struct Shape {
    /// Rows are counted in it.
    extent: Dim,
    /// Parts of each variant.
    parts: usize,
    /// Whether there is a region, so that parts may have code.
    code: bool,
    /// Whether work goes through a tile of f32 results.
    tile: bool,
    /// `tile_cols` is a multiple of each of them.
    multiples: Vec<u32>,
    min_tile_cols: u32,
}

/// The launches beside one: the first's work may be done by its kernels, and its own by the second's.
struct Neighbours<'a> {
    before: Option<&'a Launch>,
    behind: Option<&'a Launch>,
}

/// Checks launch `index`, and gives what it does to the arena.
pub fn check(
    plan: &Plan,
    index: usize,
    launch: &Launch,
    code_len: u64,
) -> Result<Effects, Invalid> {
    name(&launch.name)?;
    for &dep in &launch.deps {
        ensure!(
            (dep as usize) < index,
            "deps",
            format!("launches before it, below {index}"),
            dep
        );
    }
    let (shape, effects) = op(plan, &launch.op)?;
    let neighbours = Neighbours {
        before: index.checked_sub(1).and_then(|i| plan.launches.get(i)),
        behind: plan.launches.get(index + 1),
    };
    variants(plan, launch, &neighbours, &shape, code_len)?;
    Ok(effects)
}

fn op(plan: &Plan, op: &Op) -> Result<(Shape, Effects), Invalid> {
    match op {
        Op::Embed {
            tokens,
            table,
            out,
            scale,
        } => embed(plan, *tokens, *table, *out, *scale),
        Op::RopeTable {
            positions,
            freqs,
            out,
            mscale,
        } => rope_table(plan, *positions, *freqs, *out, *mscale),
        Op::Region { extent, region } => rows(plan, *extent, region),
        Op::MatMul {
            x,
            prologue,
            segments,
        } => matmul(plan, *x, prologue.as_ref(), segments),
        Op::Attention {
            q,
            group,
            layer,
            heads,
            scale,
            epilogue,
        } => attention(plan, *q, (*group, *layer), *heads, *scale, epilogue),
        Op::Route {
            logits,
            scale,
            weights,
            places,
            tokens,
            starts,
            renormalise: _,
        } => experts::route(plan, *logits, *scale, [*weights, *places, *tokens, *starts]),
        Op::ExpertMatMul {
            x,
            tokens,
            starts,
            segments,
        } => experts::matmul(plan, *x, *tokens, *starts, segments),
    }
}

fn embed(
    plan: &Plan,
    tokens: u32,
    table: u32,
    out: u32,
    scale: f32,
) -> Result<(Shape, Effects), Invalid> {
    role(plan, "tokens", tokens, Input::Tokens)?;
    let table = weight(plan, "table", table)?;
    f32_out(plan, out, table.cols as u64)?;
    finite("scale", scale)?;
    Ok((
        Shape::plain(),
        Effects {
            reads: vec![tokens],
            writes: vec![out],
            ..Effects::default()
        },
    ))
}

fn rope_table(
    plan: &Plan,
    positions: u32,
    freqs: u32,
    out: u32,
    mscale: f32,
) -> Result<(Shape, Effects), Invalid> {
    role(plan, "positions", positions, Input::Positions)?;
    let freqs = vector(plan, "freqs", freqs)?;
    f32_out(plan, out, 2 * freqs.cols as u64)?;
    finite("mscale", mscale)?;
    Ok((
        Shape::plain(),
        Effects {
            reads: vec![positions],
            writes: vec![out],
            ..Effects::default()
        },
    ))
}

fn rows(plan: &Plan, extent: Dim, region: &Region) -> Result<(Shape, Effects), Invalid> {
    let mut footprint = Footprint::default();
    region::check(plan, region, extent, Tile::None, &mut footprint)?;
    let shape = Shape {
        extent,
        parts: 1,
        code: true,
        tile: false,
        multiples: vec![region.unit],
        min_tile_cols: if region.has_row_sum() { region.cols } else { 1 },
    };
    Ok((shape, footprint.effects(&[])?))
}

fn matmul(
    plan: &Plan,
    x: u32,
    prologue: Option<&Region>,
    segments: &[Segment],
) -> Result<(Shape, Effects), Invalid> {
    let input = buffer(plan, "x", x)?;
    let (shape, epilogues) = product(plan, (x, input), segments, input.extent, 1, &[x])?;
    let Some(region) = prologue else {
        return Ok((shape, epilogues));
    };
    let own = self::prologue(plan, x, region).map_err(|e| e.within("prologue"))?;
    Ok((shape, epilogues.behind(own, x)?))
}

/// Checks a matmul over rows of `extent`, each with one of `experts` parts of the weights' rows. `inputs` are buffers that it
/// reads besides those of its epilogues.
fn product(
    plan: &Plan,
    (x, input): (u32, &Buffer),
    segments: &[Segment],
    extent: Dim,
    experts: u32,
    inputs: &[u32],
) -> Result<(Shape, Effects), Invalid> {
    debug_assert!(inputs.contains(&x));
    ensure!(
        (1..=MAX_SEGMENTS).contains(&segments.len()),
        "segments",
        format!("1 to {MAX_SEGMENTS}"),
        segments.len()
    );
    let mut footprint = Footprint::default();
    let mut multiples = vec![MATMUL_COLS];
    for (i, segment) in segments.iter().enumerate() {
        let mut check = || {
            let weight = weight(plan, "weight", segment.weight)?;
            ensure!(
                weight.cols == input.cols,
                "cols of the weight",
                format!("those of x, {}", input.cols),
                weight.cols
            );
            let types: &[DType] = match weight.layout {
                WeightLayout::Fragment16 => &[DType::F16],
                WeightLayout::RowMajor if weight.encoding == Encoding::F32 => {
                    &[DType::F32, DType::F16]
                }
                WeightLayout::Pairs8 => &[DType::Q14],
                WeightLayout::RowMajor | WeightLayout::Interleave8 => {
                    match activation_types(weight.encoding) {
                        [types @ .., DType::Q14] | types => types,
                    }
                }
            };
            ensure!(
                types.contains(&input.dtype),
                format!("type of x for a weight in {:?}", weight.encoding),
                one_of(types),
                format!("{:?}", input.dtype)
            );
            // A group of packed rows is one expert's.
            ensure!(
                experts == 1 || weight.rows.is_multiple_of(experts * PACKED_ROWS),
                "rows of the weight",
                format!("a multiple of {PACKED_ROWS} for each of {experts} experts"),
                weight.rows
            );
            let epilogue = &segment.epilogue;
            let tile = Tile::Cols((weight.rows / experts) as u64);
            region::check(plan, epilogue, extent, tile, &mut footprint)
        };
        check().map_err(|e| e.within(format_args!("segment {i}")))?;
        multiples.push(segment.epilogue.unit);
    }
    let shape = Shape {
        extent,
        parts: segments.len(),
        code: true,
        tile: true,
        multiples,
        min_tile_cols: 1,
    };
    Ok((shape, footprint.effects(inputs)?))
}

/// Checks the region that makes x, and gives what it does but for that.
fn prologue(plan: &Plan, x: u32, region: &Region) -> Result<Effects, Invalid> {
    let input = buffer(plan, "x", x)?;
    ensure!(
        input.place.role == Role::Scratch && input.dtype == DType::F16,
        "x",
        "F16 of the role Scratch, which nobody else can load",
        format!("{:?} of {:?}", input.dtype, input.place.role)
    );
    let mut footprint = Footprint::default();
    region::check(plan, region, input.extent, Tile::None, &mut footprint)?;
    let mut effects = footprint.effects(&[])?;
    ensure!(
        effects.pool_writes.is_empty(),
        "stores",
        "none to a KV pool",
        format!("some to {} pools", effects.pool_writes.len())
    );
    ensure!(
        footprint.stores_all_of(x, input.cols),
        "stores",
        format!("all {} columns of x", input.cols),
        "not all of them"
    );
    effects.writes.retain(|&b| b != x);
    // Each block does it all.
    let in_place = effects.writes.iter().find(|b| effects.reads.contains(b));
    ensure!(
        in_place.is_none(),
        "stores",
        "none to a buffer that it loads",
        format!("one to buffer {}", in_place.unwrap_or(&x))
    );
    Ok(effects)
}

fn attention(
    plan: &Plan,
    q: u32,
    (group, layer): (u32, u32),
    heads: u32,
    scale: f32,
    epilogue: &Region,
) -> Result<(Shape, Effects), Invalid> {
    let kv = region::kv_layer(plan, group, layer)?;
    ensure!(
        heads >= 1 && heads.is_multiple_of(kv.kv_heads),
        "heads",
        format!("a multiple of the group's KV heads, {}", kv.kv_heads),
        heads
    );
    let cols = heads as u64 * kv.head_dim as u64;
    let query = buffer(plan, "q", q)?;
    ensure!(
        query.dtype == DType::F32 && query.extent == Dim::Tokens && query.cols as u64 == cols,
        "type of q",
        format!("F32 [Tokens, {cols}]"),
        format!("{:?} [{:?}, {}]", query.dtype, query.extent, query.cols)
    );
    finite("scale", scale)?;
    let mut footprint = Footprint::default();
    let tile = Tile::Cols(cols);
    region::check(plan, epilogue, Dim::Tokens, tile, &mut footprint)
        .map_err(|e| e.within("epilogue"))?;
    let shape = Shape {
        extent: Dim::Tokens,
        parts: 1,
        code: true,
        tile: true,
        multiples: vec![kv.head_dim, epilogue.unit],
        min_tile_cols: 1,
    };
    let mut effects = footprint.effects(&[q])?;
    let parts = [KvPart::Key, KvPart::Value];
    let pools = parts.map(|part| Pool::new(group, layer, part));
    // Blocks that tiles of other tokens store to while this one reads them.
    ensure!(
        !effects.pool_writes.iter().any(|pool| pools.contains(pool)),
        "epilogue",
        "no store to the pools that the attention reads",
        format!("one to layer {layer} of group {group}")
    );
    effects.pool_reads.extend(pools);
    Ok((shape, effects))
}

impl Shape {
    /// A microkernel over token rows, without a region.
    fn plain() -> Shape {
        Shape {
            extent: Dim::Tokens,
            parts: 1,
            code: false,
            tile: false,
            multiples: Vec::new(),
            min_tile_cols: 1,
        }
    }
}

/// Variants follow one another from one row to the limit, in each stability profile.
fn variants(
    plan: &Plan,
    launch: &Launch,
    neighbours: &Neighbours,
    shape: &Shape,
    code_len: u64,
) -> Result<(), Invalid> {
    let limit = max_extent(plan, shape.extent);
    let profiles: Profiles = plan.stability.iter().map(|p| p.stability).collect();
    // The row that a profile's next variant begins with.
    let mut next = [1; Stability::ALL.len()];
    for (i, v) in launch.variants.iter().enumerate() {
        let check = || {
            let first = match v.profiles.iter().next() {
                Some(profile) => next[profile as usize],
                None => next[0],
            };
            variant(
                plan,
                (launch, neighbours),
                v,
                shape,
                (first, limit),
                code_len,
            )?;
            ensure!(
                profiles.and(v.profiles) == profiles
                    && (v.profiles == Profiles::NONE) == (profiles == Profiles::NONE),
                "profiles",
                format!("some of the plan's ({})", shown_profiles(profiles)),
                format!("{:#b}", v.profiles.0)
            );
            for profile in v.profiles.iter() {
                let first = next[profile as usize];
                ensure!(
                    v.min_rows == first,
                    format!("min_rows in profile {profile}"),
                    first,
                    v.min_rows
                );
            }
            Ok(())
        };
        check().map_err(|e: Invalid| e.within(format_args!("variant {i}")))?;
        for profile in v.profiles.iter() {
            next[profile as usize] = v.max_rows + 1;
        }
        if v.profiles == Profiles::NONE {
            next[0] = v.max_rows + 1;
        }
    }
    let ends = match profiles {
        Profiles::NONE => vec![next[0]],
        _ => profiles.iter().map(|p| next[p as usize]).collect(),
    };
    for next in ends {
        ensure!(
            next == limit + 1,
            "variants",
            format!("variants up to the limit of {:?}, {limit}", shape.extent),
            format!("up to {}", next - 1)
        );
    }
    Ok(())
}

fn shown_profiles(profiles: Profiles) -> String {
    match profiles {
        Profiles::NONE => "none".to_string(),
        _ => {
            let names: Vec<String> = profiles.iter().map(|p| p.to_string()).collect();
            names.join(", ")
        }
    }
}

fn variant(
    plan: &Plan,
    (launch, neighbours): (&Launch, &Neighbours),
    v: &Variant,
    shape: &Shape,
    (first, limit): (u32, u32),
    code_len: u64,
) -> Result<(), Invalid> {
    ensure!(v.min_rows == first, "min_rows", first, v.min_rows);
    ensure!(
        (first..=limit).contains(&v.max_rows),
        "max_rows",
        format!("{first} to {limit}"),
        v.max_rows
    );
    ensure!(v.tile_rows >= 1, "tile_rows", "at least 1", v.tile_rows);
    ensure!(
        v.parts.is_empty() || v.tile_cols >= shape.min_tile_cols,
        "tile_cols",
        format!("at least {}", shape.min_tile_cols),
        v.tile_cols
    );
    let tile = v.tile_rows as u64 * v.tile_cols as u64;
    ensure!(
        !shape.tile || tile <= MAX_TILE,
        "tile_rows * tile_cols",
        format!("at most {MAX_TILE}"),
        tile
    );
    name(&v.reason).map_err(|e| e.within("reason"))?;
    if v.is_joined() {
        let tokens = tokens(shape.extent, v);
        ensure!(
            neighbours
                .behind
                .is_some_and(|next| has_kernels(plan, next, tokens)),
            "parts and kernels",
            "some, or a next launch with kernels for as many tokens, which do this one's work",
            "none of either"
        );
        return Ok(());
    }
    if !v.kernels.is_empty() {
        let joined = neighbours.before.filter(|l| l.joins()).map(|l| &l.op);
        return gpu::kernels(plan, &launch.op, joined, v);
    }
    ensure!(
        !matches!(
            launch.op,
            Op::MatMul {
                prologue: Some(_),
                ..
            }
        ),
        "kernels",
        "1 or more: microkernels have no prologue",
        0
    );
    for &multiple in &shape.multiples {
        ensure!(
            v.tile_cols.is_multiple_of(multiple),
            "tile_cols",
            format!("a multiple of {multiple}"),
            v.tile_cols
        );
    }
    ensure!(
        v.parts.len() == shape.parts,
        "parts",
        shape.parts,
        v.parts.len()
    );
    for (i, part) in v.parts.iter().enumerate() {
        if let Some(code) = part.code {
            ensure!(
                shape.code,
                format!("part {i}: code"),
                "none: the launch has no region",
                format!("{} bytes at {}", code.len, code.offset)
            );
            code_ref(code, code_len).map_err(|e| e.within(format_args!("part {i}")))?;
        }
    }
    Ok(())
}

/// The numbers of tokens for which a variant of a launch over `extent` is; none where rows say nothing of tokens.
fn tokens(extent: Dim, v: &Variant) -> Option<(u32, u32)> {
    match extent {
        Dim::Tokens => Some((v.min_rows, v.max_rows)),
        Dim::Pairs(each) if each > 0 => Some((v.min_rows.div_ceil(each), v.max_rows / each)),
        Dim::Pairs(_) | Dim::Rows | Dim::One => None,
    }
}

/// Whether a launch, which may be unchecked so far, has kernels for each of these numbers of tokens.
fn has_kernels(plan: &Plan, launch: &Launch, wanted: Option<(u32, u32)>) -> bool {
    let of = |buffer: u32| plan.buffers.get(buffer as usize).map(|b| b.extent);
    let extent = match &launch.op {
        Op::Region { extent, .. } => Some(*extent),
        Op::MatMul { x, .. } => of(*x),
        Op::ExpertMatMul { tokens, .. } => of(*tokens),
        Op::Embed { .. } | Op::RopeTable { .. } | Op::Attention { .. } | Op::Route { .. } => {
            Some(Dim::Tokens)
        }
    };
    let (Some(extent), Some((first, last))) = (extent, wanted) else {
        return false;
    };
    let meets = |v: &&Variant| tokens(extent, v).is_some_and(|t| t.0 <= last && first <= t.1);
    let mut found = launch.variants.iter().filter(meets).peekable();
    found.peek().is_some() && found.all(|v| !v.kernels.is_empty())
}

fn code_ref(code: CodeRef, code_len: u64) -> Result<(), Invalid> {
    ensure!(
        code.offset.is_multiple_of(ALIGN as u64),
        "offset of the code",
        format!("a multiple of {ALIGN}"),
        code.offset
    );
    ensure!(
        code.len >= 1
            && code
                .offset
                .checked_add(code.len)
                .is_some_and(|end| end <= code_len),
        "code",
        format!("1 or more bytes inside the section's {code_len}"),
        format!("{} bytes at {}", code.len, code.offset)
    );
    Ok(())
}

/// The buffer of an index.
pub fn buffer<'a>(plan: &'a Plan, at: &str, index: u32) -> Result<&'a Buffer, Invalid> {
    plan.buffers.get(index as usize).ok_or_else(|| {
        let expected = format!("a buffer below {}", plan.buffers.len());
        Invalid::new(at, expected, index)
    })
}

/// The weight of an index.
fn weight<'a>(plan: &'a Plan, at: &str, index: u32) -> Result<&'a Weight, Invalid> {
    plan.weights.get(index as usize).ok_or_else(|| {
        let expected = format!("a weight below {}", plan.weights.len());
        Invalid::new(at, expected, index)
    })
}

/// The weight of an index, which must be an f32 vector.
pub fn vector<'a>(plan: &'a Plan, at: &str, index: u32) -> Result<&'a Weight, Invalid> {
    let w = weight(plan, at, index)?;
    ensure!(
        w.encoding == Encoding::F32 && w.layout == WeightLayout::RowMajor && w.rows == 1,
        at,
        "an F32 weight of 1 row, RowMajor",
        format!("{:?} of {} rows, {:?}", w.encoding, w.rows, w.layout)
    );
    Ok(w)
}

/// Checks that a buffer is this input; [`super::buffer`] has checked its type.
fn role(plan: &Plan, at: &str, index: u32, input: Input) -> Result<(), Invalid> {
    let role = buffer(plan, at, index)?.place.role;
    ensure!(
        role == Role::Input(input),
        at,
        format!("the buffer of input {input:?}"),
        format!("buffer {index} of role {role:?}")
    );
    Ok(())
}

fn f32_out(plan: &Plan, out: u32, cols: u64) -> Result<(), Invalid> {
    let b = buffer(plan, "out", out)?;
    ensure!(
        b.dtype == DType::F32 && b.extent == Dim::Tokens && b.cols as u64 == cols,
        "type of out",
        format!("F32 [Tokens, {cols}]"),
        format!("{:?} [{:?}, {}]", b.dtype, b.extent, b.cols)
    );
    Ok(())
}

fn finite(at: &str, value: f32) -> Result<(), Invalid> {
    ensure!(value.is_finite(), at, "a finite number", value);
    Ok(())
}
