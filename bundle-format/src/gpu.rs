//! What a plan says about GPUs: which kernels of the code section's object a variant launches, how wide, and with what.

use serde::{Deserialize, Serialize};

use crate::region::KvPart;

/// One launch of a kernel. The kernels of a variant run one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of the function in the object.
    pub symbol: String,
    /// Blocks in each direction.
    pub grid: [Extent; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory of a block that is in the object, in bytes.
    pub fixed_shared: u32,
    /// Shared memory of a block that the launch adds.
    pub shared: u32,
    /// Bytes of [`Arg::Workspace`] that it writes, at most.
    pub workspace: u64,
    /// Counters of [`Arg::Tickets`] that it uses, at most.
    pub tickets: u32,
    /// What the function takes, in order: a pointer or a number each.
    pub args: Vec<Arg>,
}

/// What draws tokens from rows of logits behind the launches, on a target whose device does that itself: kernels that run one
/// after the other, as far as the rows of a step need it. Their rows are those of logits, their workspace is kept from one to
/// the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Finds the likeliest token of each row; for rows that want that one, and nothing else, it is the last.
    pub likeliest: Kernel,
    /// Counts the tokens of rows that keep the likeliest ones alone, by their distance from the likeliest.
    pub weigh: Kernel,
    /// Finds the last token that such a row keeps.
    pub select: Kernel,
    /// Draws from what is kept.
    pub draw: Kernel,
}

impl Sampling {
    pub fn kernels(&self) -> [&Kernel; 4] {
        [&self.likeliest, &self.weigh, &self.select, &self.draw]
    }

    pub fn kernels_mut(&mut self) -> [&mut Kernel; 4] {
        [
            &mut self.likeliest,
            &mut self.weigh,
            &mut self.select,
            &mut self.draw,
        ]
    }
}

/// Bytes of a row of [`Arg::Draws`].
pub const DRAW_BYTES: usize = 32;

/// Bytes of an entry of [`Arg::Drawn`].
pub const DRAWN_BYTES: usize = 8;

/// In [`Input::Tokens`](crate::plan::Input::Tokens) on a GPU: the rest is an entry of [`Arg::Drawn`], which has the id.
pub const TOKEN_DRAWN: u32 = 1 << 31;

/// What a row of [`Arg::Draws`] asks for.
pub mod draw_kind {
    /// No token of the device.
    pub const NONE: u32 = 0;
    /// The likeliest token.
    pub const LIKELIEST: u32 = 1;
    /// Any token that isn't too much less likely.
    pub const ANY: u32 = 2;
    /// One of the likeliest.
    pub const SELECTED: u32 = 3;
}

/// Words of [`Arg::Counts`].
pub mod counts {
    /// All of them.
    pub const WORDS: usize = 8;
    /// How many routes ([`Op::Route`](crate::plan::Op::Route)) of the step have run: 0 when it begins.
    pub const ROUTES: usize = 4;
    /// The first of them, counted from 0, that met a token whose logits are not finite; [`NO_ROUTE`] when it begins.
    pub const BAD_ROUTE: usize = 5;
    /// The first such token of it.
    pub const BAD_TOKEN: usize = 6;
    /// How many experts all routes sent tokens to: 0 when the step begins.
    pub const EXPERTS: usize = 7;
    pub const NO_ROUTE: u32 = u32::MAX;
}

/// What is wrong with an entry of [`Arg::Drawn`].
pub mod drawn_fault {
    pub const NONE: u32 = 0;
    /// The logit of the token is not a number; it is the first of these.
    pub const NOT_A_NUMBER: u32 = 1;
    /// The logit of the token is the largest, and infinite.
    pub const INFINITE: u32 = 2;
}

/// Blocks of a grid in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    Fixed(u32),
    /// One for each so many rows of the launch's extent, and for what is left.
    Rows(u32),
    /// The most tiles that the step's tokens make, where one has so many tokens of a sequence at most.
    Tiles(u32),
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arg {
    /// The step's numbers of tokens, sequences, rows and tiles: u32 each, in device memory. Behind them u32 words that routers
    /// write ([`counts`]).
    Counts,
    /// Row 0 of a buffer.
    Buffer(u32),
    /// A weight's first byte.
    Weight(u32),
    /// Block 0 of a layer's keys or values.
    Kv {
        group: u32,
        layer: u32,
        part: KvPart,
    },
    /// The block tables of a KV group: `[S][stride]` u32.
    Tables(u32),
    /// Entries of a block table: the stride of [`Arg::Tables`], a u32.
    TableStride,
    /// `[tiles][4]` u32: first token, tokens, sequence and position of the first token.
    Tiles,
    /// Memory for partial results that launches need for themselves alone.
    Workspace,
    /// u32 counters that are 0 between launches.
    Tickets,
    /// How to draw a token from each row of logits, `[R]` of [`DRAW_BYTES`], little-endian: u32 [`draw_kind`], u32 entry of
    /// [`Arg::Drawn`], u32 how many of the likeliest are kept (0: all), f32 the share of probability that is kept (1: all), f32
    /// what is added to the largest logit to get the least that is kept (-inf: all), f32 temperature, f64 the random number
    /// in [0, 1).
    Draws,
    /// Drawn tokens of this step and of the one before: u32 id, u32 [`drawn_fault`] each.
    Drawn,
    /// Blocks of each KV pool, a u32.
    KvBlocks,
}
