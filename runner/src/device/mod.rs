//! The device trait: a step in, logits or sampled ids out. Devices launch; they decide nothing.
//!
//! [`cpu`] runs a bundle's code, [`reference`] its meaning. What they share: the checks of a step, and the ids that steps
//! hand on to one another.

mod check;
pub mod cpu;
pub mod reference;
mod tickets;

use std::sync::Arc;

use bundle_format::plan::{Op, Output, Plan, Role};
use bundle_format::region::{Inst, Operand, Region};

/// One step: T tokens of S sequences, and the rows of which results are wanted.
///
/// Tokens of one sequence are consecutive, in ascending positions without gaps.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// `[T]` where each token's id comes from.
    pub tokens: Vec<TokenSource>,
    /// `[T]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[T]` index of each token's sequence, below S.
    pub sequences: Vec<u32>,
    /// One for each KV group of the plan.
    pub kv: Vec<StepKv>,
    /// `[R]` token rows of which results are wanted, ascending.
    pub rows: Vec<u32>,
    /// `[R]` what is wanted of each row.
    pub wants: Vec<Want>,
}

/// A token id, from the host or from an earlier step of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    Id(u32),
    /// The id that the step of this ticket sampled for its result row `row`.
    Sampled {
        ticket: Ticket,
        row: u32,
    },
}

/// Where a step's tokens lie in one KV group.
#[derive(Clone, Debug, Default)]
pub struct StepKv {
    /// `[T]` block * 16 + position % 16.
    pub slots: Vec<u32>,
    /// `[S]` block numbers of each sequence, from position 0 to the block that holds its last token of this step.
    pub tables: Vec<Arc<[u32]>>,
}

/// What a step yields for one row.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// Sample a token with these parameters.
    pub sample: Option<SampleParams>,
    /// Return the row of logits, `[V]` f32.
    pub logits: bool,
}

/// How to draw a token from a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleParams {
    /// 0: the likeliest token (the lowest id where several are).
    pub temperature: f32,
    /// Keep the k likeliest; 0: all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches p; 1: all.
    pub top_p: f32,
    /// Randomness is a function of the seed and the position of the drawn token alone.
    pub seed: u64,
}

/// Names a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a step yielded, by row of [`Step::rows`].
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub rows: Vec<RowOutcome>,
}

#[derive(Clone, Debug, Default)]
pub struct RowOutcome {
    pub token: Option<u32>,
    pub logits: Option<Vec<f32>>,
}

/// Runs the steps of one bundle.
pub trait Device {
    /// Starts a step. Steps run in the order of submission. A step that breaks the plan's limits or names a block, row or
    /// sequence that is not there is an error that says which, and changes nothing.
    fn submit(&mut self, step: Step) -> Result<Ticket, crate::Error>;

    /// The outcome of a step, each one once; none while it runs.
    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, crate::Error>;

    /// Blocks of each KV group.
    fn kv_blocks(&self) -> &[u32];
}

/// The buffer of a plan's logits and the launch that writes it.
struct LogitsOf {
    /// Index of the buffer.
    buffer: usize,
    /// Name of the launch.
    launch: String,
}

/// Finds a plan's logits; none where it has no such buffer.
fn logits(plan: &Plan) -> Option<LogitsOf> {
    let role = Role::Output(Output::Logits);
    let buffer = plan.buffers.iter().position(|b| b.place.role == role)?;
    let writes = |region: &Region| {
        region.body.iter().any(|inst| match *inst {
            Inst::Store { dst, .. } => {
                region.operands[dst as usize] == Operand::Buffer(buffer as u32)
            }
            _ => false,
        })
    };
    let launch = plan.launches.iter().find(|launch| match &launch.op {
        Op::Embed { .. } | Op::RopeTable { .. } => false,
        Op::Region { region, .. } => writes(region),
        Op::MatMul { segments, .. } => segments.iter().any(|s| writes(&s.epilogue)),
        Op::Attention { epilogue, .. } => writes(epilogue),
    });
    Some(LogitsOf {
        buffer,
        launch: launch.map_or("(none)".into(), |l| l.name.clone()),
    })
}
