//! The specialise pass: for each launch and range of rows, the microkernel, the tile shape and the reason.

use bundle_format::plan::{Dim, Op, Part, Plan, Segment, Variant};
use bundle_format::stability::Profiles;
use bundle_format::target::Target;

use crate::error::Error;

/// Rows up to which a step is a decode step: its matmuls are bound by reading weights.
const DECODE_ROWS: u32 = 4;

/// Rows of a prefill tile: what a call unpacks of its weights serves so many tokens, where a level unpacks once for all of them
/// (kernels/NOTES.md, "Rows of 8 bits with a scale for 256").
const PREFILL_ROWS: u32 = 256;

/// Columns of a prefill tile: what a call prepares of its rows serves so many features. Results of a tile are 128 KiB, a part of
/// a second-level cache.
const PREFILL_COLS: u32 = 128;

/// Columns of a decode tile: eight groups of eight weight rows.
const WIDE: u32 = 64;

/// Columns of a decode tile of a matmul with few features, so that they divide evenly among threads.
const NARROW: u32 = 32;

/// Features below which decode takes narrow tiles.
const FEW_FEATURES: u32 = 2048;

/// Rows of an element-wise launch that a thread takes at a time.
const REGION_ROWS: u32 = 4;

/// Tokens of one unit of prefill attention: they share the conversion of keys and values.
const ATTENTION_ROWS: u32 = 16;

/// Chooses the variants of every launch.
pub fn specialise(plan: &mut Plan, target: Target) -> Result<(), Error> {
    // The same tiles for all: microkernels of both levels read one layout and gain nothing from wider ones.
    if target.is_gpu() {
        return Err(Error::Bug(format!("{target} has kernels, no microkernels")));
    }
    for index in 0..plan.launches.len() {
        let variants = variants(plan, index)?;
        plan.launches[index].variants = variants;
    }
    Ok(())
}

fn variants(plan: &Plan, index: usize) -> Result<Vec<Variant>, Error> {
    let launch = &plan.launches[index];
    let limit = |dim: Dim| plan.limits.rows(dim);
    let extent_of = |buffer: u32| limit(plan.buffers[buffer as usize].extent);
    let cols_of = |buffer: u32| plan.buffers[buffer as usize].cols;
    let rowwise = |max_rows: u32, tile_cols: u32, micro: Option<u32>, reason: &str| {
        vec![Variant {
            min_rows: 1,
            max_rows,
            tile_rows: REGION_ROWS,
            tile_cols,
            parts: vec![Part { micro, code: None }],
            kernels: Vec::new(),
            profiles: Profiles::NONE,
            reason: reason.to_string(),
        }]
    };
    Ok(match &launch.op {
        Op::Embed { table, out, .. } => {
            let table = &plan.weights[*table as usize];
            let micro = kernels::abi::id::embed(table.encoding, table.layout);
            rowwise(
                extent_of(*out),
                cols_of(*out),
                Some(micro),
                "rows of the interleaved table, dequantised",
            )
        }
        Op::RopeTable { out, .. } => {
            let micro = kernels::abi::id::ROPE_TABLE;
            rowwise(
                extent_of(*out),
                cols_of(*out),
                Some(micro),
                "once a step, for all layers",
            )
        }
        Op::Region { extent, region } => {
            let reason = if region.has_row_sum() {
                "whole rows: it sums over them"
            } else {
                "element-wise, by rows"
            };
            rowwise(limit(*extent), region.cols, None, reason)
        }
        Op::Attention {
            group,
            epilogue,
            heads,
            ..
        } => {
            let kv = &plan.kv[*group as usize];
            let micro = Part {
                micro: kernels::abi::id::attention(kv.dtype),
                code: None,
            };
            let shared = heads / kv.kv_heads * kv.head_dim;
            split(plan.limits.max_tokens, |decode| {
                let (rows, cols, reason) = match decode {
                    true => (
                        DECODE_ROWS,
                        epilogue.unit,
                        "a head a unit: threads share the heads evenly",
                    ),
                    false => (
                        ATTENTION_ROWS,
                        shared,
                        "the query heads of a KV head together: they share its keys",
                    ),
                };
                (rows, cols, vec![micro], reason.to_string())
            })
        }
        Op::MatMul { x, segments, .. } => {
            let features: u32 = segments
                .iter()
                .map(|s| plan.weights[s.weight as usize].rows)
                .sum();
            let units = segments.iter().map(|s| s.epilogue.unit).fold(8, lcm);
            let parts = matmul_parts(plan, *x, segments)?;
            let encodings = encodings(plan, *x, segments.iter().map(|s| s.weight));
            split(extent_of(*x), |decode| {
                let narrow = decode && features < FEW_FEATURES;
                let cols = match (decode, narrow) {
                    (true, true) => NARROW,
                    (true, false) => WIDE,
                    (false, _) => PREFILL_COLS,
                };
                let cols = cols.next_multiple_of(units);
                let reason = match (decode, narrow) {
                    (true, true) => format!(
                        "{encodings}, few rows: narrow tiles divide {features} features evenly"
                    ),
                    (true, false) => format!("{encodings}, few rows: bound by reading weights"),
                    (false, _) => format!(
                        "{encodings}, many rows: weights stay in cache for {PREFILL_ROWS} rows"
                    ),
                };
                (
                    if decode { DECODE_ROWS } else { PREFILL_ROWS },
                    cols,
                    parts.clone(),
                    reason,
                )
            })
        }
        Op::Route { weights, .. } => rowwise(
            plan.limits.max_tokens,
            cols_of(*weights),
            Some(kernels::abi::id::ROUTE),
            "by tokens; then one thread lists the pairs",
        ),
        Op::ExpertMatMul {
            x,
            tokens,
            segments,
            ..
        } => {
            let units = segments.iter().map(|s| s.epilogue.unit).fold(8, lcm);
            let encodings = encodings(plan, *x, segments.iter().map(|s| s.weight));
            let how = match plan.buffers[*x as usize].extent {
                Dim::Tokens => "found by an index",
                _ => "one after the other",
            };
            vec![Variant {
                min_rows: 1,
                max_rows: extent_of(*tokens),
                tile_rows: PREFILL_ROWS,
                tile_cols: PREFILL_COLS.next_multiple_of(units),
                parts: matmul_parts(plan, *x, segments)?,
                kernels: Vec::new(),
                profiles: Profiles::NONE,
                reason: format!(
                    "{encodings}, expert by expert that has any tokens: weights stay in cache for {PREFILL_ROWS} of its \
                     rows, {how}"
                ),
            }]
        }
    })
}

/// The microkernel of each segment.
fn matmul_parts(plan: &Plan, x: u32, segments: &[Segment]) -> Result<Vec<Part>, Error> {
    let activations = plan.buffers[x as usize].dtype;
    let part = |segment: &Segment| {
        let weight = &plan.weights[segment.weight as usize];
        let micro = kernels::abi::id::matmul(weight.encoding, activations);
        let name = &weight.name;
        let missing = || {
            Error::Bug(format!(
                "'{name}': no kernel for {:?} x {activations:?}",
                weight.encoding
            ))
        };
        Ok(Part {
            micro: Some(micro.ok_or_else(missing)?),
            code: None,
        })
    };
    segments.iter().map(part).collect()
}

/// A variant for decode and one for what is above it, as far as `max_rows` goes.
fn split(max_rows: u32, choose: impl Fn(bool) -> (u32, u32, Vec<Part>, String)) -> Vec<Variant> {
    let variant = |decode: bool, min_rows: u32, max_rows: u32| {
        let (tile_rows, tile_cols, parts, reason) = choose(decode);
        Variant {
            min_rows,
            max_rows,
            tile_rows,
            tile_cols,
            parts,
            kernels: Vec::new(),
            profiles: Profiles::NONE,
            reason,
        }
    };
    let mut variants = vec![variant(true, 1, max_rows.min(DECODE_ROWS))];
    if max_rows > DECODE_ROWS {
        variants.push(variant(false, DECODE_ROWS + 1, max_rows));
    }
    variants
}

fn encodings(plan: &Plan, x: u32, weights: impl Iterator<Item = u32>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for weight in weights {
        let name = crate::ir::text::encoding_name(plan.weights[weight as usize].encoding);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let activations = crate::ir::text::dtype_name(plan.buffers[x as usize].dtype);
    format!("{} x {activations}", names.join("+"))
}

fn lcm(a: u32, b: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b).max(1) * b
}
