//! A plan's launches as pointers and sizes, ready to run: everything that can be looked up was looked up when the device
//! was opened.

use std::ops::Range;

use std::sync::atomic::AtomicU64;

use kernels::abi::{AttentionArgs, EmbedArgs, MatMulArgs, RegionFn, RopeTableArgs, RouteArgs};

pub type MatMulFn = unsafe fn(&MatMulArgs);
pub type AttentionFn = unsafe fn(&AttentionArgs);
pub type EmbedFn = unsafe fn(&EmbedArgs);
pub type RopeTableFn = unsafe fn(&RopeTableArgs);
pub type RouteFn = unsafe fn(&RouteArgs);

/// The launches of a plan, in order.
///
/// It holds pointers into an arena, KV pools, weights and code. Whoever makes a program promises that they stay valid, and
/// that launches only race where the plan's dependencies let them, which the bundle's reader has checked.
pub struct Program {
    pub launches: Vec<Launch>,
    /// The ways in which attention launches cut a step into chunks of tokens.
    pub chunkings: Vec<Chunking>,
    /// Elements of the largest tile.
    pub tile_len: usize,
    /// What its routes found.
    pub routed: Routed,
}

/// What the routes of a program tell of its steps.
#[derive(Debug)]
pub struct Routed {
    /// The first launch, and of it the lowest token, with a logit that is not finite: the launch's index times 2^32 plus the
    /// token; [`Routed::NONE`] where there is none.
    pub bad: AtomicU64,
    /// Bytes of weights of experts that launches had tokens for, over all steps.
    pub expert_bytes: AtomicU64,
}

impl Routed {
    pub const NONE: u64 = u64::MAX;
}

impl Default for Routed {
    fn default() -> Self {
        Self {
            bad: AtomicU64::new(Self::NONE),
            expert_bytes: AtomicU64::new(0),
        }
    }
}

// SAFETY: the pointers are shared among threads on purpose. Each launch divides what it writes among the threads without
// overlap (`super::partition`), and threads meet between launches that depend on one another.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

/// Rows that a launch works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Tokens,
    Rows,
    /// So many for each token.
    Pairs(usize),
    One,
}

pub struct Launch {
    pub name: String,
    pub extent: Extent,
    /// Whether all threads must meet before it: something that it depends on may still be running.
    pub meet: bool,
    /// Whether it does nothing but to make logits.
    pub only_logits: bool,
    pub work: Work,
}

pub enum Work {
    Embed(Embed),
    RopeTable(RopeTable),
    Region(Region),
    MatMul(MatMul),
    Attention(Attention),
    Route(Route),
    ExpertMatMul(ExpertMatMul),
}

pub struct Embed {
    pub variants: Vec<Variant<EmbedFn>>,
    /// `rows` is 0: a call covers some of the step's.
    pub args: EmbedArgs,
}

pub struct RopeTable {
    pub variants: Vec<Variant<RopeTableFn>>,
    /// As in [`Embed`].
    pub args: RopeTableArgs,
}

pub struct Region {
    pub variants: Vec<Variant<RegionFn>>,
    pub operands: Box<[*mut u8]>,
    pub cols: u64,
    /// Columns that can't be cut apart: all of them for a region with row sums, else some whole units.
    pub granule: u64,
}

pub struct MatMul {
    /// Code of each segment.
    pub variants: Vec<Variant<Box<[SegmentCode]>>>,
    pub x: *const u8,
    /// Bytes between rows of x.
    pub x_stride: u64,
    pub k: u64,
    pub segments: Box<[Segment]>,
}

pub struct Segment {
    pub w: *const u8,
    /// Output features, of one expert.
    pub features: u64,
    /// Features that can't be cut apart: whole units of the epilogue, and eight.
    pub granule: u64,
    /// Bytes of packed weights a granule.
    pub granule_bytes: u64,
    pub operands: Box<[*mut u8]>,
}

/// Code of a segment in a variant.
pub struct SegmentCode {
    pub micro: MatMulFn,
    pub epilogue: RegionFn,
}

pub struct Attention {
    pub variants: Vec<Variant<AttentionCode>>,
    /// What is the same for every call.
    pub q: *const f32,
    /// Elements between rows of q.
    pub q_stride: u64,
    pub keys: *const u8,
    pub values: *const u8,
    /// Bytes between blocks of either pool.
    pub block_stride: u64,
    pub heads: u64,
    pub group_size: u64,
    pub head_dim: u64,
    pub window: u64,
    pub scale: f32,
    /// KV group: whose block tables to use.
    pub group: usize,
    pub operands: Box<[*mut u8]>,
}

pub struct Route {
    pub variants: Vec<Variant<RouteFn>>,
    /// `rows` is 0: a call covers some of the step's. Experts go where their places will be.
    pub args: RouteArgs,
    pub tokens: *mut u32,
    pub starts: *mut u32,
}

pub struct ExpertMatMul {
    /// Its rows are tokens', or pairs'.
    pub product: MatMul,
    /// The token at each place, where x has rows of tokens.
    pub index: Option<*const u32>,
    /// Where each expert's part of the list starts, and where the last one's ends.
    pub starts: *const u32,
    pub experts: usize,
}

/// Code of an attention variant.
pub struct AttentionCode {
    pub micro: AttentionFn,
    pub epilogue: RegionFn,
    /// Index into [`Program::chunkings`].
    pub chunking: usize,
}

/// How a launch is done for some numbers of rows.
pub struct Variant<F> {
    pub max_rows: usize,
    pub tile_rows: usize,
    /// Elements between rows of a tile.
    pub tile_cols: u64,
    pub code: F,
}

/// The variant for `rows` rows, at least one and at most the limit: variants have no gaps.
pub fn variant<F>(variants: &[Variant<F>], rows: usize) -> &Variant<F> {
    variants
        .iter()
        .find(|v| rows <= v.max_rows)
        .unwrap_or_else(|| &variants[variants.len() - 1])
}

/// A step cut into chunks of consecutive tokens of one sequence. Made anew for every step, without allocating.
pub struct Chunking {
    /// Tokens of the longest chunk.
    pub tile_rows: usize,
    /// Positions that a token sees.
    pub window: u64,
    pub chunks: Vec<Chunk>,
    /// The cost of the chunks up to and with each.
    pub ends: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Index of its block table.
    pub sequence: usize,
    /// First row among the step's tokens.
    pub row0: usize,
    pub rows: usize,
    /// Of the first token.
    pub position: u64,
}

/// What a token costs in attention besides the positions that it sees, counted in positions.
const TOKEN_COST: u64 = 16;

impl Chunking {
    /// Chunks of up to `tile_rows` tokens, with room for steps of these limits.
    pub fn new(tile_rows: usize, window: u64, max_tokens: usize, max_seqs: usize) -> Self {
        let most = (max_tokens / tile_rows + max_seqs).min(max_tokens);
        Self {
            tile_rows,
            window,
            chunks: Vec::with_capacity(most),
            ends: Vec::with_capacity(most),
        }
    }

    /// Cuts the step of these sequence indices and positions.
    pub fn cut(&mut self, sequences: &[u32], positions: &[u32]) {
        self.chunks.clear();
        self.ends.clear();
        let mut cost = 0;
        let mut row0 = 0;
        for run in sequences.chunk_by(|a, b| a == b) {
            for rows in pieces(row0..row0 + run.len(), self.tile_rows) {
                let position = positions[rows.start] as u64;
                for i in 0..rows.len() as u64 {
                    cost += TOKEN_COST + (position + i + 1).min(self.window);
                }
                self.ends.push(cost);
                self.chunks.push(Chunk {
                    sequence: run[0] as usize,
                    row0: rows.start,
                    rows: rows.len(),
                    position,
                });
            }
            row0 += run.len();
        }
    }
}

/// A range in pieces of `size`, the last perhaps shorter.
pub fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(size)
        .map(move |start| start..(start + size).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_of_one_sequence_and_weigh_what_they_see() {
        let mut chunking = Chunking::new(4, 8, 16, 3);
        let room = chunking.chunks.capacity();
        // Six tokens from position 3, one at 100, two from 0.
        let sequences = [0, 0, 0, 0, 0, 0, 2, 1, 1];
        let positions = [3, 4, 5, 6, 7, 8, 100, 0, 1];
        chunking.cut(&sequences, &positions);
        let chunk = |sequence, row0, rows, position| Chunk {
            sequence,
            row0,
            rows,
            position,
        };
        assert_eq!(
            chunking.chunks,
            [
                chunk(0, 0, 4, 3),
                chunk(0, 4, 2, 7),
                chunk(2, 6, 1, 100),
                chunk(1, 7, 2, 0)
            ]
        );
        assert_eq!(
            chunking.ends,
            [
                64 + 4 + 5 + 6 + 7,
                86 + 32 + 8 + 8,
                134 + 16 + 8,
                158 + 32 + 1 + 2
            ]
        );
        chunking.cut(&[0, 1, 2], &[0, 0, 0]);
        assert_eq!(chunking.chunks.len(), 3);
        assert_eq!(chunking.chunks.capacity(), room);
    }

    #[test]
    fn variants_are_found_by_rows() {
        let v = |max_rows| Variant {
            max_rows,
            tile_rows: 1,
            tile_cols: 8,
            code: (),
        };
        let variants = [v(1), v(8), v(512)];
        for (rows, max) in [(1, 1), (2, 8), (8, 8), (9, 512), (512, 512)] {
            assert_eq!(variant(&variants, rows).max_rows, max);
        }
    }
}
