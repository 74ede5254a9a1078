//! Draws a token from a row of logits, in the order of llama.cpp's default chain: biases, penalties, the mask of a grammar;
//! then top-k, typical, top-p, min-p, temperature.
//!
//! A draw is a function of the logits, the parameters, what surrounds the row ([`Context`]), and the token's position alone.
//! Nothing is sorted that need not be: candidates are found by selection, and the draw walks them by ascending id.

mod adjust;
mod choice;
mod logprobs;
mod philox;
mod vector;

pub use philox::{philox4x32, uniform};

use crate::device::{LogProbs, SampleParams, TokenMask};
use adjust::Adjusted;
use choice::Choice;
use vector::{BLOCK, Largest};

/// Logits that nothing can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLogits {
    #[error("the row has no logits")]
    Empty,
    #[error("logit {0} is not a number")]
    NotANumber(usize),
    #[error("the largest logit (of token {0}) is infinite")]
    Infinite(usize),
}

/// Why no token was drawn from a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    #[error(transparent)]
    Logits(#[from] BadLogits),
    #[error("the mask of allowed tokens could not be computed: {0}")]
    Mask(String),
    #[error("biases and mask allow no token")]
    NothingAllowed,
}

/// What a draw depends on besides its logits and parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The tokens that the parameters look back at ([`SampleParams::looks_back`]), in any order.
    pub recent: &'a [u32],
    /// Added to the logits of these tokens.
    pub bias: &'a [(u32, f32)],
    /// The tokens that may be drawn; none: all.
    pub mask: Option<&'a TokenMask>,
}

/// The reason why parameters make no sense, if they don't.
pub fn check(params: &SampleParams) -> Result<(), String> {
    let ensure = |holds: bool, name: &str, value: f32, range: &str| {
        let text = || format!("{name} {value} must be {range}");
        holds.then_some(()).ok_or_else(text)
    };
    let share = |x: f32| (0.0..=1.0).contains(&x);
    let SampleParams {
        penalties,
        top_k: _,
        top_p,
        typical_p,
        min_p,
        temperature,
        seed: _,
    } = *params;
    ensure(
        temperature >= 0.0 && temperature.is_finite(),
        "temperature",
        temperature,
        "a number of at least 0",
    )?;
    ensure(share(top_p), "top_p", top_p, "a number from 0 to 1")?;
    ensure(
        share(typical_p),
        "typical_p",
        typical_p,
        "a number from 0 to 1",
    )?;
    ensure(share(min_p), "min_p", min_p, "a number from 0 to 1")?;
    // As far as that, nothing overflows.
    ensure(
        (1e-3..=1e3).contains(&penalties.repeat),
        "repeat penalty",
        penalties.repeat,
        "a number from 0.001 to 1000",
    )?;
    for (name, value) in [
        ("frequency penalty", penalties.frequency),
        ("presence penalty", penalties.presence),
    ] {
        let holds = (-1e3..=1e3).contains(&value);
        ensure(holds, name, value, "a number from -1000 to 1000")?;
    }
    Ok(())
}

/// The reason why biases make no sense, if they don't.
pub fn check_bias(bias: &[(u32, f32)], vocab: u32) -> Result<(), String> {
    // Far beyond any logit, and far from overflow.
    let makes_sense = |x: f32| (-1e6..=1e6).contains(&x) || x == f32::NEG_INFINITY;
    for &(id, x) in bias {
        if id >= vocab {
            return Err(format!(
                "bias of token {id}, expected below the vocabulary of {vocab}"
            ));
        }
        if !makes_sense(x) {
            return Err(format!(
                "bias {x} of token {id} must be a number from -1000000 to 1000000, or -inf"
            ));
        }
    }
    Ok(())
}

/// Draws tokens; holds the memory that it needs for that.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Adjusted,
    choice: Choice,
}

impl Sampler {
    /// Draws the token that comes to lie at `position`, given `params` and biases that [`check`] and [`check_bias`] accept.
    ///
    /// # Errors
    /// [`DrawError`] where a logit isn't a number or the largest isn't finite, and where no token may be drawn.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SampleParams,
        context: &Context<'_>,
        position: u32,
    ) -> Result<u32, DrawError> {
        let row = self.adjusted.row(logits, &params.penalties, context)?;
        let best = match likeliest(row) {
            Ok(best) => best,
            // The model's own logits may be to blame; if not, what was made of them is.
            Err(bad) => {
                likeliest(logits)?;
                return Err(match bad {
                    BadLogits::Infinite(id) if row[id] < 0.0 => DrawError::NothingAllowed,
                    bad => bad.into(),
                });
            }
        };
        let greedy = params.temperature == 0.0 && params.typical_p == 1.0;
        if greedy || params.top_k == 1 {
            return Ok(best as u32);
        }
        let random = uniform(params.seed, position);
        Ok(self.choice.draw(row, row[best], params, random))
    }

    /// Log-probabilities of the model's own distribution: of `token`, which is in the row, and of the `count` likeliest.
    ///
    /// # Errors
    /// [`BadLogits`] where a logit isn't a number or the largest isn't finite.
    pub fn logprobs(
        &mut self,
        logits: &[f32],
        token: Option<u32>,
        count: u32,
    ) -> Result<LogProbs, BadLogits> {
        logprobs::logprobs(&mut self.choice, logits, token, count)
    }
}

/// The token with the largest logit, the first of several.
fn likeliest(logits: &[f32]) -> Result<usize, BadLogits> {
    if logits.is_empty() {
        return Err(BadLogits::Empty);
    }
    let first = |block: usize, wanted: fn(f32, f32) -> bool, value: f32| {
        let start = block * BLOCK;
        let found = logits[start..].iter().position(|&x| wanted(x, value));
        start + found.unwrap_or(0)
    };
    match vector::find_largest(logits) {
        Largest::NotANumber { block } => {
            Err(BadLogits::NotANumber(first(block, |x, _| x.is_nan(), 0.0)))
        }
        Largest::At { block, value } => {
            let id = first(block, |x, largest| x == largest, value);
            if value.is_infinite() {
                return Err(BadLogits::Infinite(id));
            }
            Ok(id)
        }
    }
}

#[cfg(test)]
mod tests;
