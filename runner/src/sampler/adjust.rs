//! What changes logits before any token is chosen: biases, penalties, and a mask of what may be drawn.

use super::{Context, DrawError, vector};
use crate::device::Penalties;

/// The row as a draw sees it, and the memory for it.
#[derive(Debug, Default)]
pub struct Adjusted {
    logits: Vec<f32>,
    /// The tokens looked back at, sorted.
    window: Vec<u32>,
}

impl Adjusted {
    /// `logits` with the biases added, then penalties for the last tokens, then without the tokens that the mask forbids:
    /// the row itself where nothing changes, else a copy. Ids outside the row can't be drawn and change nothing.
    ///
    /// # Errors
    /// [`DrawError::Mask`] where the mask could not be computed; waits until that is known.
    pub fn row<'a>(
        &'a mut self,
        logits: &'a [f32],
        penalties: &Penalties,
        context: &Context<'_>,
    ) -> Result<&'a [f32], DrawError> {
        let penalised = !penalties.change_nothing() && !context.recent.is_empty();
        if !penalised && context.bias.is_empty() && context.mask.is_none() {
            return Ok(logits);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        for &(id, bias) in context.bias {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if penalised {
            self.penalise(penalties, context.recent);
        }
        if let Some(mask) = context.mask {
            let words = mask.wait().map_err(|e| DrawError::Mask(e.to_string()))?;
            vector::forbid(&mut self.logits, words);
        }
        Ok(&self.logits)
    }

    fn penalise(&mut self, penalties: &Penalties, recent: &[u32]) {
        self.window.clear();
        self.window.extend_from_slice(recent);
        self.window.sort_unstable();
        for same in self.window.chunk_by(|a, b| a == b) {
            if let Some(logit) = self.logits.get_mut(same[0] as usize) {
                *logit = penalised(*logit, same.len(), penalties);
            }
        }
    }
}

/// The logit of a token that occurs `count` times, at least once.
fn penalised(logit: f32, count: usize, penalties: &Penalties) -> f32 {
    let scaled = if logit > 0.0 {
        logit / penalties.repeat
    } else {
        logit * penalties.repeat
    };
    scaled - count as f32 * penalties.frequency - penalties.presence
}
