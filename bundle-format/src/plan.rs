//! The plan: what one step does, as launches over buffers, weights and KV pools.
//!
//! A *step* takes T tokens of S sequences and yields R rows of logits. T, S and R are known only at run time, up to
//! [`Limits`]; everything else in a plan is constant. Every target executes the same kind of plan. A launch says twice what
//! it does: [`Launch::op`] is its meaning, which the reference device executes, and [`Launch::variants`] how this target
//! does it.

use serde::{Deserialize, Serialize};

use crate::gpu::{Kernel, Sampling};
use crate::region::Region;
use crate::stability::{Profile, Profiles};

/// Elements of a quantised activation block ([`DType::Q8`], [`DType::Q11`], [`DType::Q14`]), and of a sum of [`DType::Q8K`].
pub const Q8_BLOCK: usize = 32;

/// Elements of a quantised activation block of [`DType::Q8K`].
pub const Q8K_BLOCK: usize = 256;

/// Token positions of a KV block.
pub const KV_BLOCK: usize = 16;

/// Alignment of everything in the arena, of weights in their section and of functions in the code section, in bytes: a
/// cache line.
pub const ALIGN: usize = 64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub limits: Limits,
    /// Shards that the plan is cut into; 1.
    pub world_size: u32,
    pub kv: Vec<KvGroup>,
    pub buffers: Vec<Buffer>,
    /// Size of the arena that [`Place::Arena`] offsets point into, in bytes.
    pub arena_bytes: u64,
    pub weights: Vec<Weight>,
    /// In an order that respects [`Launch::deps`].
    pub launches: Vec<Launch>,
    /// What a GPU launches behind them where rows want tokens; none: the host draws.
    pub sampling: Option<Sampling>,
    /// The stability profiles that it can be run by, by ascending strictness: its own, and all stricter ones. None on a
    /// target without profiles.
    pub stability: Vec<Profile>,
}

impl Plan {
    /// All that a GPU launches.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        let variants = self.launches.iter().flat_map(|l| &l.variants);
        let drawing = self.sampling.iter().flat_map(|s| s.kernels());
        variants.flat_map(|v| &v.kernels).chain(drawing)
    }

    /// What a launch that does `op` has rows of. Buffers are looked up: the plan is a valid one.
    pub fn extent(&self, op: &Op) -> Dim {
        match op {
            Op::Embed { .. } | Op::RopeTable { .. } | Op::Attention { .. } | Op::Route { .. } => {
                Dim::Tokens
            }
            Op::Region { extent, .. } => *extent,
            Op::MatMul { x, .. } => self.buffers[*x as usize].extent,
            Op::ExpertMatMul { tokens, .. } => self.buffers[*tokens as usize].extent,
        }
    }
}

/// The largest step that the plan's buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// T: tokens a step.
    pub max_tokens: u32,
    /// S: sequences a step.
    pub max_seqs: u32,
    /// R: rows of logits a step.
    pub max_rows: u32,
    /// Positions of one sequence.
    pub context: u32,
}

impl Limits {
    /// Rows of a buffer in the largest step.
    pub fn rows(&self, dim: Dim) -> u32 {
        dim.rows(self.max_tokens as usize, self.max_rows as usize) as u32
    }
}

/// The symbolic first dimension of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dim {
    /// T
    Tokens,
    /// R
    Rows,
    /// T times so many: a row for each pair of a token and one of the experts that it goes to ([`Op::Route`]).
    Pairs(u32),
    /// 1, whatever the step.
    One,
}

impl Dim {
    /// Rows of a step of T tokens and R rows.
    pub fn rows(self, tokens: usize, rows: usize) -> usize {
        match self {
            Dim::Tokens => tokens,
            Dim::Rows => rows,
            Dim::Pairs(each) => tokens * each as usize,
            Dim::One => 1,
        }
    }
}

/// Element types of buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    F32,
    U32,
    /// Activations quantised to 8 bits in blocks of [`Q8_BLOCK`]. A row of n elements is: n quants (i8), then n/32 scales
    /// (f32), then n/32 sums (f32: scale times the sum of the block's quants), padded to [`ALIGN`].
    /// Quantisation: amax = max |x|, scale = amax / 127, quant = round-half-to-even(x * (127 / amax)); all zero where amax
    /// is 0.
    Q8,
    /// Activations quantised to 11 bits in blocks of [`Q8_BLOCK`], each quant in two bytes that integer units multiply:
    /// q = 8 * high + low with high = (q + 4) >> 3 in -127 ..= 127 and low in -4 ..= 3. A row of n elements is: of each block
    /// its 32 high bytes (i8) and its 32 low ones (i8), then n/32 scales (f32), then n/32 sums (f32: scale times the sum of the
    /// block's q), padded to [`ALIGN`]. Quantisation: amax = max |x|, scale = amax / 1016,
    /// q = round-half-to-even(x * (1016 / amax)); all zero where amax is 0. (1016 = 127 * 8.)
    ///
    /// For models whose logits Q8's rounding would move measurably: the error is an eighth. 8 * w fits a byte for weights w of up to
    /// 5 bits, so that w * q = (8 * w) * high + w * low is one inner product of bytes, of twice the depth.
    Q11,
    /// f16, for matrix units. Rows lie one after the other; a device whose kernels for many rows want another order may use
    /// it among themselves.
    F16,
    /// Activations quantised to 14 bits in blocks of [`Q8_BLOCK`], for weights of 16 bits ([`WeightLayout::Pairs8`]). A row of n elements
    /// is: n quants (i16), then n/32 scales (f32), then n/32 sums (f32: scale times the sum of the block's quants), padded to
    /// [`ALIGN`]. Quantisation: amax = max |x|, scale = amax / 8191, quant = round-half-to-even(x * (8191 / amax)); all zero where
    /// amax is 0.
    ///
    /// 32 products with integers of as many bits are below 2^31, and units for integers multiply twice as many of these as units for f32
    /// do numbers.
    Q14,
    /// Activations quantised to 8 bits in blocks of [`Q8K_BLOCK`], for weights whose blocks are as large. A row of n elements is: n quants
    /// (i8), then n/256 scales (f32), then n/32 sums (i16: of each 32 quants), then n/256 pairs of bounds (i16), padded to [`ALIGN`].
    /// Quantisation: amax = max |x|, scale = amax / 127, quant = round-half-to-even(x * (127 / amax)); all zero where amax is 0.
    ///
    /// The bounds say how large sums of products with the block get, so that a kernel knows which fit 16 bits. The first is the largest, of its
    /// eight 32s, of the sum of the magnitudes plus the magnitude of the sum: 32 products with weights of 0 to w are at most half of it
    /// times w. The second is the largest sum of magnitudes of its sixteen 16s: 16 products with weights of -w to w are at most it times w.
    ///
    /// Products of a block with integer scales and minima are one exact integer, which is scaled once: llama.cpp quantises so for these
    /// weights, too.
    Q8K,
}

impl DType {
    /// Elements of a quantised block; 1 for types without.
    pub const fn block(self) -> usize {
        match self {
            DType::F32 | DType::U32 | DType::F16 => 1,
            DType::Q8 | DType::Q11 | DType::Q14 => Q8_BLOCK,
            DType::Q8K => Q8K_BLOCK,
        }
    }

    /// Types of quantised blocks.
    pub const QUANTISED: [DType; 4] = [DType::Q8, DType::Q11, DType::Q14, DType::Q8K];
}

/// Bytes of one row of `cols` elements.
pub fn row_bytes(dtype: DType, cols: u32) -> u64 {
    let cols = cols as u64;
    let bytes = match dtype {
        DType::F32 | DType::U32 => cols * 4,
        DType::Q8 => cols + cols / Q8_BLOCK as u64 * 8,
        DType::Q11 | DType::Q14 => 2 * cols + cols / Q8_BLOCK as u64 * 8,
        DType::Q8K => cols + cols / Q8K_BLOCK as u64 * (4 + 4) + cols / Q8_BLOCK as u64 * 2,
        DType::F16 => 2 * cols,
    };
    // A column of indices is dense, so that the host writes it as a slice.
    if cols == 1 {
        bytes
    } else {
        bytes.next_multiple_of(ALIGN as u64)
    }
}

/// Bytes of the quants of a row of `cols` elements: the offset of its scales. 0 for types without blocks.
pub fn quants_bytes(dtype: DType, cols: u32) -> u64 {
    match dtype {
        DType::F32 | DType::U32 | DType::F16 => 0,
        DType::Q8 | DType::Q8K => cols as u64,
        DType::Q11 | DType::Q14 => 2 * cols as u64,
    }
}

/// Offset of the scales in a Q8 row of `cols` elements, in bytes.
pub fn q8_scales_offset(cols: u32) -> u64 {
    quants_bytes(DType::Q8, cols)
}

/// Offset of the scaled sums in a Q8 row of `cols` elements, in bytes.
pub fn q8_sums_offset(cols: u32) -> u64 {
    q8_scales_offset(cols) + cols as u64 / Q8_BLOCK as u64 * 4
}

/// Offset of the sums in a Q8K row of `cols` elements, in bytes.
pub fn q8k_sums_offset(cols: u32) -> u64 {
    quants_bytes(DType::Q8K, cols) + cols as u64 / Q8K_BLOCK as u64 * 4
}

/// Offset of the bounds in a Q8K row of `cols` elements, in bytes.
pub fn q8k_bounds_offset(cols: u32) -> u64 {
    q8k_sums_offset(cols) + cols as u64 / Q8_BLOCK as u64 * 2
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    pub name: String,
    pub dtype: DType,
    pub extent: Dim,
    /// Elements a row. Rows lie [`row_bytes`] apart.
    pub cols: u32,
    pub place: Place,
}

impl Buffer {
    /// Distance of rows in bytes.
    pub fn row_bytes(&self) -> u64 {
        row_bytes(self.dtype, self.cols)
    }
}

/// Where a buffer lies. All of them are in the arena; inputs are written by the host before a step and outputs read after
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Bytes from the arena's start; a multiple of [`ALIGN`].
    pub offset: u64,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    Scratch,
    Input(Input),
    Output(Output),
}

/// What the host gives a step. All are u32 of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// `[T]` token ids.
    Tokens,
    /// `[T]` position of each token in its sequence.
    Positions,
    /// `[T]` index of each token's sequence among the step's block tables. Tokens of a sequence are consecutive and in
    /// ascending positions.
    Sequences,
    /// `[T]` slot of each token in the KV group of this index: block * [`KV_BLOCK`] + position % [`KV_BLOCK`].
    Slots(u32),
    /// `[R]` the token rows of which logits are wanted.
    Rows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Output {
    /// `[R, V]` f32.
    Logits,
    /// `[R, D]` f32: what the output head multiplies, after the final norm. Not in every plan.
    Hidden,
}

/// Layers that share one kind of KV block. Block tables hold block numbers of a group; block b of every layer of the
/// group belongs to the same 16 positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvGroup {
    pub dtype: KvDType,
    pub layers: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Positions that a query sees, itself included; none: all.
    pub window: Option<u32>,
}

impl KvGroup {
    /// Bytes of the keys (or the values) of one block of one layer.
    pub fn part_bytes(&self) -> u64 {
        self.kv_heads as u64 * self.dtype.head_bytes(self.head_dim)
    }

    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> u64 {
        self.part_bytes() * 2 * self.layers as u64
    }
}

/// Element type and layout of KV pools. A pool of one layer and part is an array of blocks of [`KvGroup::part_bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvDType {
    /// f16. Keys of a block: `[kv_head][dim][16 positions]`, so that a vector holds one dimension of consecutive
    /// positions. Values: `[kv_head][16 positions][dim]`.
    F16,
    /// 8 bits, with an f16 scale for each 32 consecutive dimensions of a head at a position; heads are a multiple of 32.
    /// Each KV head of a block has its quants (i8), then its scales (f16). Keys: `[dim / 2][16 positions][2 dims]`, values:
    /// `[8 pairs of positions][dim][2 positions]`, so that integer units multiply and add neighbours; scales of either:
    /// `[dim / 32][16 positions]`.
    /// Quantisation: amax = max |x|, scale = f16(amax / 127), quant = round-half-to-even(x * (127 / amax)); all zero where
    /// amax is 0.
    Q8_0,
    /// f16. Keys and values of a block: `[kv_head][16 positions][dim]`, as matrix instructions read them.
    F16Rows,
    /// 8 bits as in [`KvDType::Q8_0`]. Each KV head of a block has its quants (i8) `[16 positions][dim]`, then its scales (f16)
    /// `[16 positions][dim / 32]`.
    Q8Rows,
}

impl KvDType {
    /// Bytes of one KV head's keys (or values) in a block.
    pub fn head_bytes(self, head_dim: u32) -> u64 {
        let elements = head_dim as u64 * KV_BLOCK as u64;
        match self {
            KvDType::F16 | KvDType::F16Rows => elements * 2,
            KvDType::Q8_0 | KvDType::Q8Rows => elements + elements / Q8_BLOCK as u64 * 2,
        }
    }

    /// Elements of a head that are stored together: it is a multiple of them.
    pub fn block(self) -> u32 {
        match self {
            KvDType::F16 | KvDType::F16Rows => 1,
            KvDType::Q8_0 | KvDType::Q8Rows => Q8_BLOCK as u32,
        }
    }
}

/// How a weight's elements are encoded: GGUF's block types, with their arithmetic. A variant's number is part of the
/// format: new ones go to the end.
// The names are GGUF's.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Encoding {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q8_0,
    BF16,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

impl Encoding {
    /// Every encoding, in the order of their numbers.
    pub const ALL: [Encoding; 16] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Q4_0,
        Encoding::Q4_1,
        Encoding::Q8_0,
        Encoding::BF16,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q2_K,
        Encoding::Q3_K,
        Encoding::Q4_K,
        Encoding::Q5_K,
        Encoding::Q6_K,
        Encoding::IQ4_NL,
        Encoding::IQ4_XS,
        Encoding::MXFP4,
    ];
}

/// Order of a weight's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WeightLayout {
    /// As in GGUF: rows one after the other.
    RowMajor,
    /// Groups of eight rows, their blocks interleaved; `kernels::pack` defines the bytes of each encoding. Rows are padded
    /// to a multiple of eight with zeros.
    Interleave8,
    /// Tiles of 16 rows, in fragments of matrix instructions; `kernels::pack::fragment` defines the bytes of each encoding.
    /// Rows are padded to a multiple of 16.
    Fragment16,
    /// Groups of eight rows of F16 or BF16 that [`DType::Q14`] rows multiply, a multiple of 32 columns: elements as integers in pairs
    /// of columns, then the exponents of each 32 of a row. `kernels::pack::pairs` defines the bytes. Rows are padded to a multiple of
    /// eight with zeros.
    Pairs8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// `blk.0.attn_q.weight`, or several joined by `+`.
    pub name: String,
    pub encoding: Encoding,
    pub layout: WeightLayout,
    /// Output features (1 for a vector).
    pub rows: u32,
    /// Input features: what a row is multiplied with.
    pub cols: u32,
    /// Bytes from the start of the weights section; a multiple of [`ALIGN`].
    pub offset: u64,
    pub len: u64,
    /// The tensors that it was made of.
    pub slices: Vec<Slice>,
    /// Rows that are taken from each slice in turn; 0: the slices follow one another.
    pub interleave: u32,
    /// Rows of a unit whose halves lie in turn: of each 16 packed rows, the first eight are rows 8 i .. 8 i + 8 of the
    /// unit, the others those half a unit further, so that a tile holds what a rotation pairs. 0: rows lie in order.
    pub pairs: u32,
    /// The axis along which shards are cut; none: every shard has all of it.
    pub shard: Option<Axis>,
}

/// A source tensor of a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    pub tensor: String,
    pub rows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Axis {
    Rows,
    Cols,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// For people: `blk.0.qkv`.
    pub name: String,
    /// Indices of launches that must have ended before.
    pub deps: Vec<u32>,
    pub op: Op,
    /// By ascending row range, without gaps, from 1 to the limit of the op's extent; where the plan has stability profiles, so are
    /// those of each profile.
    pub variants: Vec<Variant>,
}

/// What a launch computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// `out[t, :] = table[tokens[t], :] * scale`
    Embed {
        tokens: u32,
        table: u32,
        out: u32,
        scale: f32,
    },
    /// `out[t, i] = mscale * cos(p * freqs[i])`, `out[t, n + i] = mscale * sin(p * freqs[i])` with p = `positions[t]`,
    /// for i in 0..n, n = cols of `freqs` (an f32 vector, one angle a dimension pair).
    RopeTable {
        positions: u32,
        freqs: u32,
        out: u32,
        mscale: f32,
    },
    /// Element-wise code over rows of `extent`.
    Region { extent: Dim, region: Region },
    /// `y[r, n] = sum over k of x[r, k] * w[n, k]` for the rows of each segment's weight, handed to its epilogue.
    ///
    /// With a prologue, x is what that region stores, first of all; no other launch has to do with it. A kernel may have each
    /// of its blocks make x for itself, and one of them store the rest. So a prologue stores to no buffer that it loads, and
    /// shares none with the epilogues that either of them stores to.
    MatMul {
        x: u32,
        prologue: Option<Region>,
        segments: Vec<Segment>,
    },
    /// Softmax attention of each token's query heads over its sequence's cached positions 0 ..= its own (cut to the
    /// group's window). `q` is f32 `[T, heads * head_dim]`; query head h reads KV head `h / (heads / kv_heads)`. The
    /// epilogue's tile is `[T, heads * head_dim]`, a unit a head.
    Attention {
        q: u32,
        group: u32,
        layer: u32,
        heads: u32,
        scale: f32,
        epilogue: Region,
    },
    /// Sends each token to n of E experts, n the columns of `weights` and E those of `logits`: to those of the highest
    /// logits, of equal ones to those with the lower index. They are the token's *slots*, by descending logit. The
    /// weight of a slot is the softmax of its logit over all experts, with `renormalise` over the token's own, times
    /// `scale`. Pairs of token and slot then stand in one list, by ascending expert and, of one expert, by ascending
    /// token. A token with a logit that is not finite is an error of the step.
    Route {
        /// f32 `[T, E]`
        logits: u32,
        renormalise: bool,
        scale: f32,
        /// f32 `[T, n]`: of each slot.
        weights: u32,
        /// u32 `[T, n]`: each slot's place in the list.
        places: u32,
        /// u32 `[T n]`: the token at each place of the list.
        tokens: u32,
        /// u32 `[1, E + 1]`: where each expert's part of the list starts, and where the last one's ends.
        starts: u32,
    },
    /// A matmul of the pairs of a token and one of its experts, each with the weights of its expert. At place p of the list
    /// of [`Op::Route`], which is the row that the epilogues see: `y[p, i] = sum over k of x[r, k] * w[e * N + i, k]`, e
    /// the expert of the place, N the columns of the segment's epilogue and E N the rows of its weight, r = `tokens[p]`
    /// where x has rows of tokens, and p where it has rows of pairs.
    ExpertMatMul {
        x: u32,
        tokens: u32,
        starts: u32,
        segments: Vec<Segment>,
    },
}

/// Consecutive output features of a matmul that share a weight and an epilogue. The epilogue's columns are the rows of the
/// weight, or of one expert in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub weight: u32,
    pub epilogue: Region,
}

/// How a launch is done for a range of rows (of its op's extent).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    pub min_rows: u32,
    pub max_rows: u32,
    /// Rows and columns of one unit of work. Columns are a multiple of the epilogue's unit, and the row stride of the tile
    /// that the epilogue sees, in elements.
    pub tile_rows: u32,
    pub tile_cols: u32,
    /// One for each segment of a matmul; one otherwise.
    pub parts: Vec<Part>,
    /// What a GPU launches, which has no parts. With neither, the kernels of the next launch do this one's work, too.
    pub kernels: Vec<Kernel>,
    /// The stability profiles that take it; none where the plan has none.
    pub profiles: Profiles,
    /// Why the compiler chose it, for people.
    pub reason: String,
}

impl Variant {
    /// Whether the kernels of the next launch do this one's work.
    pub fn is_joined(&self) -> bool {
        self.parts.is_empty() && self.kernels.is_empty()
    }
}

impl Launch {
    /// Whether for some numbers of rows the kernels of the next launch do this one's work.
    pub fn joins(&self) -> bool {
        self.variants.iter().any(Variant::is_joined)
    }
}

/// Code of one part of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Id of a microkernel in the runner's table (`kernels::abi`), if one does the main work.
    pub micro: Option<u32>,
    /// The region's function in the code section, if there is a region.
    pub code: Option<CodeRef>,
}

/// Bytes in the code section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CodeRef {
    pub offset: u64,
    pub len: u64,
}
