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
    /// The step's numbers of tokens, sequences, rows and tiles: u32 each, in device memory.
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
}
