//! Penalties for tokens that occur among the last ones.

use crate::device::Penalties;

/// The row with penalties, and the memory for it.
#[derive(Debug, Default)]
pub struct Penalised {
    logits: Vec<f32>,
    /// The tokens looked back at, sorted.
    window: Vec<u32>,
}

impl Penalised {
    /// `logits` with `penalties` for the last tokens `recent`, of any order: the row itself where nothing changes, else a
    /// copy. An id outside the row can't be drawn and has no penalty.
    pub fn apply<'a>(
        &'a mut self,
        logits: &'a [f32],
        penalties: &Penalties,
        recent: &[u32],
    ) -> &'a [f32] {
        if penalties.change_nothing() || recent.is_empty() {
            return logits;
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.window.clear();
        self.window.extend_from_slice(recent);
        self.window.sort_unstable();
        for same in self.window.chunk_by(|a, b| a == b) {
            if let Some(logit) = self.logits.get_mut(same[0] as usize) {
                *logit = penalise(*logit, same.len(), penalties);
            }
        }
        &self.logits
    }
}

/// The logit of a token that occurs `count` times, at least once.
fn penalise(logit: f32, count: usize, penalties: &Penalties) -> f32 {
    let scaled = if logit > 0.0 {
        logit / penalties.repeat
    } else {
        logit * penalties.repeat
    };
    scaled - count as f32 * penalties.frequency - penalties.presence
}
