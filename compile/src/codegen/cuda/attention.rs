//! Attention: a kernel for single tokens, for each of several ranges, and one for tiles of a sequence's.

use bundle_format::gpu::{Arg, Extent};
use bundle_format::plan::{Input, KvDType, Variant};
use bundle_format::region::KvPart;

use super::RANGES;
use super::shapes::Attention;
use super::target::Chip;
use crate::codegen::gpu::kernels::{Attend, Parameters, Writer, variant};
use crate::error::Error;

/// Largest head of these kernels.
const MAX_HEAD_DIM: u32 = 256;

/// Variants of attention.
pub fn attention(chip: &Chip, writer: &mut Writer, attend: &Attend) -> Result<Vec<Variant>, Error> {
    let Attend {
        q,
        group,
        layer,
        heads,
        scale,
        epilogue,
    } = *attend;
    let kv = &writer.plan.kv[group as usize];
    let dim = kv.head_dim;
    if !dim.is_multiple_of(16) || dim > MAX_HEAD_DIM {
        return Err(Error::Unsupported(format!(
            "heads of {dim} features; this target has attention for multiples of 16 up to {MAX_HEAD_DIM}"
        )));
    }
    let (name, pointers) = writer.region_struct(epilogue)?;
    let limit = writer.plan.limits.max_tokens;
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
        ("const u32*", Arg::Buffer(writer.input(Input::Sequences)?)),
        ("const u32*", Arg::Buffer(writer.input(Input::Positions)?)),
        ("const u32*", Arg::Tiles),
        ("float*", Arg::Workspace),
        ("u32*", Arg::Tickets),
    ];
    let fixed = parameters.len();
    parameters.extend(pointers);
    let values: Vec<String> = (fixed..parameters.len()).map(|k| format!("p{k}")).collect();
    let config = writer.named_struct(
            "Heads",
            format!(
                "struct @ {{\n    static constexpr int D = {dim}, HEADS = {heads}, KV_HEADS = {}, WINDOW = {};\n    static \
                 constexpr float SCALE = {scale:?}f;\n    static constexpr bool STABLE = true, Q8 = {}, LEAN = {};\n}};\n",
                kv.kv_heads,
                kv.window.unwrap_or(0),
                kv.dtype == KvDType::Q8Rows,
                !chip.hopper
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
        let store = writer.named_struct(
                "Store",
                format!(
                    "struct @ {{\n    {name}<{many}> region;\n    __device__ void store(int row, int head, const float* tile) \
                     const {{ finish_head(region, row, head, tile); }}\n}};\n"
                ),
            );
        let block = kv.part_bytes();
        let call = if many { "prefill" } else { "decode" };
        let shape = Attention::of(kv, heads, !chip.hopper);
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
            let splits = splits(chip, &shape, last);
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
        let mut kernel = writer.kernel("attention", parameters.clone(), &body, &bounds, threads, 1);
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

/// Parts of a long context, so that a step of `rows` rows fills the chip once: more parts than run at a time cost a
/// second round.
fn splits(chip: &Chip, shape: &Attention, rows: u32) -> u32 {
    (chip.processors * shape.decode_ctas / (shape.pairs * rows)).clamp(1, 64)
}
