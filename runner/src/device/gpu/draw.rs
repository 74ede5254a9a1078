//! Which tokens the GPU draws itself, and with what.
//!
//! It draws by logits, temperature, top-k, top-p and min-p. What needs more than a row of logits or gives more than a token is
//! left to the host, row by row: biases, masks, penalties, typical sampling, log-probabilities. Such a row's logits are
//! copied, and a step that its token feeds waits for that; other rows of the same step stay on the GPU.

use bundle_format::gpu::{DRAW_BYTES, DRAWN_BYTES, draw_kind, drawn_fault};

use crate::device::{SampleParams, Want};
use crate::sampler::{BadLogits, uniform};

/// How the GPU is to draw a token (`bundle_format::gpu::Arg::Draws`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// One of [`draw_kind`].
    pub kind: u32,
    top_k: u32,
    top_p: f32,
    lowest: f32,
    temperature: f32,
    random: f64,
}

impl Draw {
    /// The draw of the token at `position` that a row wants; none where it wants none, or one of the host.
    pub fn of(want: &Want, position: u32, vocab: u32) -> Option<Draw> {
        let params = want.sample.as_ref()?;
        let SampleParams {
            penalties,
            top_k,
            typical_p,
            top_p,
            min_p,
            temperature,
            seed,
        } = *params;
        let looks_back = !penalties.change_nothing() && !want.recent.is_empty();
        let is_adjusted = looks_back || !want.bias.is_empty() || want.mask.is_some();
        if is_adjusted || typical_p < 1.0 || want.logprobs.is_some() {
            return None;
        }
        let top_k = if top_k < vocab { top_k } else { 0 };
        let kind = if temperature == 0.0 || top_k == 1 || vocab == 1 {
            draw_kind::LIKELIEST
        } else if top_k > 0 || top_p < 1.0 {
            draw_kind::SELECTED
        } else {
            draw_kind::ANY
        };
        Some(Draw {
            kind,
            top_k,
            top_p,
            lowest: min_p.ln(),
            temperature,
            random: uniform(seed, position),
        })
    }

    /// As the GPU reads it, with the entry that the token goes to.
    pub fn words(&self, to: u32) -> [u32; DRAW_BYTES / 4] {
        let random = self.random.to_bits();
        [
            self.kind,
            to,
            self.top_k,
            self.top_p.to_bits(),
            self.lowest.to_bits(),
            self.temperature.to_bits(),
            random as u32,
            (random >> 32) as u32,
        ]
    }
}

/// A row that the GPU draws nothing from.
pub const NOTHING: [u32; DRAW_BYTES / 4] = [draw_kind::NONE, 0, 0, 0, 0, 0, 0, 0];

/// The token that the GPU drew, or what it found instead.
pub fn drawn([token, fault]: [u32; DRAWN_BYTES / 4]) -> Result<u32, BadLogits> {
    match fault {
        drawn_fault::NOT_A_NUMBER => Err(BadLogits::NotANumber(token as usize)),
        drawn_fault::INFINITE => Err(BadLogits::Infinite(token as usize)),
        _ => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Penalties, TokenMask};
    use std::sync::Arc;

    fn want(params: SampleParams) -> Want {
        Want {
            sample: Some(params),
            recent: vec![1],
            ..Want::default()
        }
    }

    #[test]
    fn kinds_follow_from_what_is_kept() {
        let kind = |params: SampleParams| Draw::of(&want(params), 7, 100).map(|d| d.kind);
        let plain = SampleParams::default;
        assert_eq!(kind(plain()), Some(draw_kind::ANY));
        let min_p = 0.1;
        assert_eq!(
            kind(SampleParams { min_p, ..plain() }),
            Some(draw_kind::ANY)
        );
        for (top_k, expected) in [
            (1, draw_kind::LIKELIEST),
            (2, draw_kind::SELECTED),
            (99, draw_kind::SELECTED),
            (100, draw_kind::ANY),
        ] {
            let params = SampleParams { top_k, ..plain() };
            assert_eq!(kind(params), Some(expected), "top-k {top_k}");
        }
        let top_p = 0.5;
        let params = SampleParams { top_p, ..plain() };
        assert_eq!(kind(params), Some(draw_kind::SELECTED));
        let greedy = SampleParams {
            temperature: 0.0,
            top_p: 0.5,
            ..plain()
        };
        assert_eq!(kind(greedy), Some(draw_kind::LIKELIEST));
    }

    #[test]
    fn what_needs_more_than_logits_is_the_hosts() {
        let is_ours = |want: &Want| Draw::of(want, 0, 100).is_some();
        let plain = || want(SampleParams::default());
        assert!(is_ours(&plain()));
        assert!(!is_ours(&Want::default()));
        let penalised = SampleParams {
            penalties: Penalties {
                repeat: 1.1,
                ..Penalties::default()
            },
            ..SampleParams::default()
        };
        assert!(!is_ours(&want(penalised.clone())));
        // At the start of a sequence there is nothing to penalise.
        let recent = vec![];
        assert!(is_ours(&Want {
            recent,
            ..want(penalised)
        }));
        let typical_p = 0.9;
        assert!(!is_ours(&want(SampleParams {
            typical_p,
            ..SampleParams::default()
        })));
        let bias = [(3, 1.0)].into();
        assert!(!is_ours(&Want { bias, ..plain() }));
        let mask = Some(Arc::new(TokenMask::default()));
        assert!(!is_ours(&Want { mask, ..plain() }));
        let logprobs = Some(0);
        assert!(!is_ours(&Want {
            logprobs,
            ..plain()
        }));
        let logits = true;
        assert!(is_ours(&Want { logits, ..plain() }));
    }

    #[test]
    fn what_the_gpu_found_is_told_as_the_host_tells_it() {
        assert_eq!(drawn([5, drawn_fault::NONE]), Ok(5));
        let text = |fault| drawn([5, fault]).unwrap_err().to_string();
        assert!(text(drawn_fault::NOT_A_NUMBER).contains("logit 5 is not a number"));
        assert!(text(drawn_fault::INFINITE).contains("token 5"));
    }
}
