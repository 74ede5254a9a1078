//! The device trait: a step in, logits or sampled ids out. Devices launch; they decide nothing.
//!
//! [`cpu`] runs a bundle's code, [`reference`] its meaning. What they share: the checks of a step, and the ids that steps
//! hand on to one another.

pub mod alone;
mod check;
pub mod cpu;
#[cfg(target_os = "linux")]
pub mod gpu;
mod mask;
mod outputs;
pub mod reference;
mod tickets;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use bundle_format::stability::Stability;
pub use mask::{TokenMask, allows};

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
    /// Blocks to copy before the step writes or reads any, one after the other: a sequence goes on in a copy of a block that
    /// it shares. A block may be copied to and then from, or to twice; not to itself.
    pub copies: Vec<BlockCopy>,
}

/// A KV block whose content another one takes over, in all layers of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: u32,
    pub to: u32,
}

/// What a step yields for one row.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// Sample a token with these parameters.
    pub sample: Option<SampleParams>,
    /// Ids of the sequence's last tokens, this row's included, as far back as the parameters look
    /// ([`SampleParams::looks_back`]); in any order.
    pub recent: Vec<u32>,
    /// Added to the logits of these tokens before anything else: numbers of at most a million, or -inf to forbid a token. An
    /// id that is there twice gets both. None where it is empty.
    pub bias: Arc<[(u32, f32)]>,
    /// The tokens that may be drawn; none: all. It applies behind biases and penalties, which it makes no difference to. The
    /// device waits for it where it would draw, so that it can be computed while the model runs: it must be set, come what
    /// may, and by a thread that doesn't wait for the device.
    pub mask: Option<Arc<TokenMask>>,
    /// Return log-probabilities: of the drawn token and of this many of the likeliest. They are of the model's own
    /// distribution, whatever the parameters, the bias and the mask make of it.
    pub logprobs: Option<u32>,
    /// In a row in which no token is drawn: the token whose log-probability is returned in the place of a drawn one's.
    pub score: Option<u32>,
    /// Return the row of logits, `[V]` f32, as the model gave them.
    pub logits: bool,
    /// Return the hidden state that the output head reads, `[D]` f32 (after the final norm).
    pub hidden: bool,
}

/// How to draw a token from a row of logits.
///
/// The parts apply in this order, each to what the one before left: penalties, top-k, typical, top-p, min-p, temperature. It
/// is that of llama.cpp's default chain, in which the temperature is last and so doesn't change which tokens can be drawn. The default is the model's own
/// distribution; name what differs and take the rest from it (`..SampleParams::default()`), for there will be more fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleParams {
    pub penalties: Penalties,
    /// Keep the k likeliest; 0: all.
    pub top_k: u32,
    /// Keep the tokens whose surprise is nearest to the distribution's entropy, as many as together reach p (locally typical
    /// sampling, Meister et al. 2022; lower ids first among equals); 1: all.
    pub typical_p: f32,
    /// Keep the smallest set of likeliest tokens whose probability reaches p; 1: all.
    pub top_p: f32,
    /// Keep tokens that are at least this many times as probable as the likeliest one; 0: all.
    pub min_p: f32,
    /// Divides the logits; 0: the likeliest token that is left (the lowest id where several are).
    pub temperature: f32,
    /// Randomness is a function of the seed and the position of the drawn token alone.
    pub seed: u64,
}

impl Default for SampleParams {
    fn default() -> Self {
        Self {
            penalties: Penalties::default(),
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.0,
            seed: 0,
        }
    }
}

impl SampleParams {
    /// Number of the sequence's last tokens that a draw depends on beside its logits.
    pub fn looks_back(&self) -> usize {
        if self.penalties.change_nothing() {
            0
        } else {
            self.penalties.last_n as usize
        }
    }
}

/// Make tokens less likely that are among the sequence's last ones, be they of the prompt or the answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Penalties {
    /// How many tokens to look back; [`u32::MAX`]: at all.
    pub last_n: u32,
    /// Divides the logit of a token that occurs, or multiplies it where it is negative; 1: nothing.
    pub repeat: f32,
    /// Subtracted from the logit of a token for each time that it occurs.
    pub frequency: f32,
    /// Subtracted from the logit of a token that occurs.
    pub presence: f32,
}

impl Default for Penalties {
    /// Nothing; 64 tokens once there is a penalty.
    fn default() -> Self {
        Self {
            last_n: 64,
            repeat: 1.0,
            frequency: 0.0,
            presence: 0.0,
        }
    }
}

impl Penalties {
    /// Whether every logit stays as it is.
    pub fn change_nothing(&self) -> bool {
        let neutral = self.repeat == 1.0 && self.frequency == 0.0 && self.presence == 0.0;
        neutral || self.last_n == 0
    }
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
    pub logprobs: Option<LogProbs>,
    pub logits: Option<Vec<f32>>,
    pub hidden: Option<Vec<f32>>,
    /// Why there is no token, or no log-probabilities, although they were wanted: the mask failed or allows nothing, or the
    /// logits are not numbers. It concerns this row alone. A later step may still name the row as
    /// [`TokenSource::Sampled`]: some token stands in, and what comes of it is of no use.
    pub error: Option<String>,
}

/// Natural logarithms of probabilities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogProbs {
    /// Of the drawn token or, where none was drawn, of [`Want::score`]; 0 without either.
    pub token: f32,
    /// The likeliest tokens, likeliest first, lower ids first among equals.
    pub top: Vec<(u32, f32)>,
}

/// The error of a step in which a token can't be sent to experts.
fn router_error(launch: &str, step: &Step, token: usize) -> crate::Error {
    let position = step.positions.get(token).copied().unwrap_or_default();
    let sequence = step.sequences.get(token).copied().unwrap_or_default();
    crate::Error::User(format!(
        "launch {launch}: the router's logits of token {token} of the step (position {position} of its sequence {sequence}) \
         are not all finite numbers, so that it goes to no expert; the model's weights may be damaged, which `fastrun \
         verify` shows, or their values too large"
    ))
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

    /// Of each KV group, how many positions a query sees, its own included; none: all, as of groups that are not listed. Blocks
    /// that no query sees any more may be others' in a later step: in a table they are any blocks.
    fn kv_windows(&self) -> &[Option<u32>] {
        &[]
    }
}
