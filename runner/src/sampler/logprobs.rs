//! Log-probabilities of the model's own distribution.

use super::choice::{Choice, Weigh};
use super::{BadLogits, likeliest, vector};
use crate::device::LogProbs;

/// Of the drawn token, if there is one, and of the `count` likeliest.
///
/// # Errors
/// [`BadLogits`] where a logit isn't a number or the largest isn't finite.
pub fn logprobs(
    choice: &mut Choice,
    logits: &[f32],
    token: Option<u32>,
    count: u32,
) -> Result<LogProbs, BadLogits> {
    let largest = logits[likeliest(logits)?];
    let weigh = Weigh {
        largest,
        temperature: 1.0,
    };
    let log_sum = vector::weigh_together(logits, &weigh).ln();
    let of = |id: u32| ((logits[id as usize] as f64 - largest as f64) - log_sum) as f32;
    Ok(LogProbs {
        token: token.map_or(0.0, of),
        top: choice
            .likeliest(logits, count as usize)
            .map(|id| (id, of(id)))
            .collect(),
    })
}
