//! Attention: a kernel for single tokens, for each of several ranges, and one for tiles of a sequence's.

use bundle_format::gpu::{Arg, Extent};
use bundle_format::plan::{Input, KvDType, KvGroup, Variant};
use bundle_format::region::KvPart;

use super::RANGES;
use super::stability::{self, Choices, Parts};
use super::target::Chip;
use crate::codegen::gpu::kernels::{Attend, Parameters, Writer, variant};
use crate::codegen::gpu::work::{Context, Turns};
use crate::error::Error;

/// Largest head of these kernels.
const MAX_HEAD_DIM: u32 = 256;

/// Wavefronts and threads of a block.
const WAVES: u32 = 4;
const THREADS: u32 = 32 * WAVES;

/// Rows of a tile of a sequence's tokens.
const TILE_ROWS: u32 = 16 * WAVES;

/// Entries of a block table that a block copies at a time.
const TABLE: u32 = 512;

/// Dims of all positions up to which a context is one part, and of a part's at least: attention_decode.h has them in blocks of 16
/// positions.
const ALONE: u32 = 16 * 2048;
const SHARE: u32 = 16 * 512;

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
    let pool = |part: KvPart| Arg::Kv { group, layer, part };
    let mut parameters: Parameters = vec![
        ("const float*", Arg::Buffer(q)),
        ("const char*", pool(KvPart::Key)),
        ("const char*", pool(KvPart::Value)),
        ("const u32*", Arg::Tables(group)),
        ("u64", Arg::TableStride),
        ("u64", Arg::KvBlocks),
        ("const u32*", Arg::Buffer(writer.input(Input::Sequences)?)),
        ("const u32*", Arg::Buffer(writer.input(Input::Positions)?)),
        ("const u32*", Arg::Tiles),
        ("float*", Arg::Workspace),
        ("u32*", Arg::Tickets),
    ];
    let fixed = parameters.len();
    parameters.extend(pointers);
    let values: Vec<String> = (fixed..parameters.len()).map(|k| format!("p{k}")).collect();
    let store = writer.named_struct(
        "Store",
        format!(
            "struct @ {{\n    {name}<false> region;\n    __device__ void store(int row, int head, const float* tile) const {{ \
             finish_head(region, row, head, tile); }}\n}};\n"
        ),
    );
    let block = kv.part_bytes();
    let limit = writer.plan.limits.max_tokens;
    let mut variants = Vec::new();
    let mut first = 1;
    for last in RANGES.into_iter().chain([limit]) {
        let last = last.min(limit);
        if first > last {
            continue;
        }
        let many = first > RANGES[RANGES.len() - 1];
        for (profiles, choices) in stability::ways(chip.profiles(), first, |&c| Chosen::of(c, many))
        {
            let table = if choices.stage_tables { TABLE } else { 0 };
            let shape = Shape::of(kv, heads, table);
            let splits = match choices.parts {
                Parts::FillTwice => splits(4 * chip.units, &shape, last),
                Parts::FillOnce => splits(2 * chip.units, &shape, last),
                Parts::One => 1,
            };
            let config = writer.named_struct(
                "Heads",
                format!(
                    "struct @ {{\n    static constexpr int D = {dim}, HEADS = {heads}, KV_HEADS = {}, WINDOW = {}, SPLITS = \
                     {splits}, TABLE = {table};\n    static constexpr float SCALE = {scale:?}f;\n    static constexpr bool Q8 = {}, \
                     AHEAD = {};\n}};\n",
                    kv.kv_heads,
                    kv.window.unwrap_or(0),
                    kv.dtype == KvDType::Q8Rows,
                    shape.ahead && choices.read_ahead,
                ),
            );
            let (call, kind, shared, grid) = match many {
                true => (
                    "prefill",
                    "Prefill",
                    shape.prefill_shared,
                    [
                        Extent::Tiles(TILE_ROWS),
                        Extent::Fixed(heads),
                        Extent::Fixed(1),
                    ],
                ),
                false => (
                    "decode",
                    "Decode",
                    shape.decode_shared,
                    [
                        Extent::Fixed(shape.pairs),
                        Extent::Rows(1),
                        Extent::Fixed(splits),
                    ],
                ),
            };
            let body = format!(
                "using S = attention::{kind}<{config}>;\n    static_assert(S::THREADS == {THREADS} && S::SHARED == {shared}, \"as \
                 the plan says\");\n    attention::Args a{{p0, p1, p2, {block}u, p3, p6, p7, (const u32*)counts, p8, p9, p10, \
                 (u32)p4, (u32)p5}};\n    attention::{call}<{config}>(a, {store}{{{{{}}}}});",
                values.join(", ")
            );
            let mut kernel = writer.kernel(call, parameters.clone(), &body, "", THREADS, 1);
            if splits > 1 {
                let cells = u64::from(shape.pairs) * u64::from(last);
                kernel.workspace = cells * u64::from(splits) * u64::from(shape.partial) * 4;
                kernel.tickets = shape.pairs * last;
            }
            let context = Context {
                turn: if many { shape.keys } else { 16 * WAVES },
                alone: ALONE / dim,
                share: SHARE / dim,
            };
            let turns = Turns::Attention(context);
            writer.turns.insert(kernel.symbol.clone(), turns);
            kernel.grid = grid;
            kernel.shared = match choices.blocks {
                Some(most) => shared.max(capped(most)),
                None => shared,
            };
            let mut made = variant(first, last, vec![kernel], 1, &choices.reason(many));
            made.profiles = profiles;
            variants.push(made);
        }
        first = last + 1;
    }
    Ok(variants)
}

/// What a profile chooses for an attention.
#[derive(PartialEq)]
struct Chosen {
    stage_tables: bool,
    read_ahead: bool,
    parts: Parts,
    blocks: Option<u32>,
}

impl Chosen {
    /// Tiles of many rows read each block for all of them, and divide no context.
    fn of(choices: Choices, many: bool) -> Chosen {
        Chosen {
            stage_tables: choices.stage_tables,
            read_ahead: many || choices.read_ahead,
            parts: if many { Parts::One } else { choices.parts },
            blocks: if many { None } else { choices.blocks },
        }
    }

    fn reason(&self, many: bool) -> String {
        let mut reason = match (many, self.parts) {
            (true, _) => "tiles of a sequence's tokens, keys and values through shared memory",
            (_, Parts::One) => "the query heads of a KV head together, contexts in one part",
            _ => "the query heads of a KV head together, long contexts in parts",
        }
        .to_string();
        let mut add = |on: bool, what: &str| {
            if on {
                reason.push_str(what);
            }
        };
        add(
            self.stage_tables,
            "; block tables checked and in shared memory",
        );
        add(!self.read_ahead, "; nothing read ahead");
        if let Some(most) = self.blocks {
            let waves = most * WAVES;
            add(
                true,
                &format!("; at most {waves} wavefronts on two compute units"),
            );
        }
        reason
    }
}

/// Bytes of shared memory with which a pair of compute units, which has 128 KiB, runs so many blocks at most.
fn capped(blocks: u32) -> u32 {
    ((128 << 10) / (blocks + 1) + 1).next_multiple_of(1 << 10)
}

/// The constants of attention_decode.h and attention_prefill.h, for a shape; the sources check them.
struct Shape {
    /// Groups of query heads that share a KV head.
    pairs: u32,
    /// Floats of a partial result.
    partial: u32,
    decode_shared: u32,
    prefill_shared: u32,
    /// Positions of a step of tiles of tokens.
    keys: u32,
    /// Whether registers have room for the next block beside the one that is multiplied.
    ahead: bool,
}

impl Shape {
    fn of(kv: &KvGroup, heads: u32, table: u32) -> Shape {
        let (dim, shared_by) = (kv.head_dim, heads / kv.kv_heads);
        let groups = shared_by.div_ceil(if dim <= 128 { 8 } else { 4 });
        let together = shared_by.div_ceil(groups);
        let partial = together * (dim + 4);
        let decode = together * dim * 2 + WAVES * together * 32 + WAVES * partial * 4;
        let keys = if dim <= 128 { 32 } else { 16 };
        let queries = if dim <= 64 {
            0
        } else {
            TILE_ROWS * (2 * dim + 16)
        };
        let staged = queries + keys * (2 * dim + 16) + dim * (2 * keys + 16);
        let out = WAVES * 8 * (dim + 4) * 4;
        Shape {
            pairs: kv.kv_heads * groups,
            partial,
            keys,
            decode_shared: decode + table * 4 + 16,
            prefill_shared: (staged + table * 4).max(out),
            ahead: dim * together <= 256,
        }
    }
}

/// Parts of a long context, so that a step of `rows` rows makes `blocks` blocks: more than the chip runs at a time cost a second
/// round.
fn splits(blocks: u32, shape: &Shape, rows: u32) -> u32 {
    (blocks / (shape.pairs * rows)).clamp(1, 64)
}
