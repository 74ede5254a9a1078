//! What a text means to a model: the mean of its hidden states.

use std::sync::mpsc::SyncSender;

use crate::{Error, FinishReason};

/// A text as a direction, for comparing it with others.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `[D]` the mean of the hidden states that the output head reads, at length 1
    /// ([`ModelInfo::embedding`](super::ModelInfo::embedding)).
    pub values: Vec<f32>,
    /// Tokens of the input.
    pub tokens: usize,
}

/// Hidden states added up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// `[D]`; empty before the first row. In f64, so that long texts lose nothing.
    pub sum: Vec<f64>,
    pub count: u32,
}

impl Rows {
    /// Takes the hidden state of one more token.
    pub fn add(&mut self, row: &[f32]) {
        self.add_sum(row.iter().map(|&value| f64::from(value)), 1);
    }

    /// Takes those of `count` more tokens, added up.
    pub fn add_sum(&mut self, sum: impl ExactSizeIterator<Item = f64>, count: u32) {
        self.sum.resize(sum.len(), 0.0);
        for (own, value) in self.sum.iter_mut().zip(sum) {
            *own += value;
        }
        self.count += count;
    }
}

/// An embedding in the making.
pub(super) struct Pooling {
    pub rows: Rows,
    /// Tokens that were fed.
    tokens: usize,
    reply: SyncSender<Result<Embedding, Error>>,
}

impl Pooling {
    pub fn new(tokens: usize, reply: SyncSender<Result<Embedding, Error>>) -> Pooling {
        Pooling {
            rows: Rows::default(),
            tokens,
            reply,
        }
    }

    /// All rows came, or no more will.
    pub fn end(self, reason: FinishReason) {
        let outcome = match reason {
            FinishReason::Stop if self.rows.count as usize == self.tokens => Ok(Embedding {
                values: normalised(&self.rows.sum),
                tokens: self.tokens,
            }),
            FinishReason::Cancelled => Err(Error::Busy(
                "the runner was shut down before the embedding was complete; ask another one"
                    .into(),
            )),
            FinishReason::Error(text) => Err(Error::Bug(format!("the device failed: {text}"))),
            reason => Err(Error::Bug(format!(
                "an embedding ended by {reason} after {} of {} tokens",
                self.rows.count, self.tokens
            ))),
        };
        // Nobody may wait for it any more.
        let _ = self.reply.send(outcome);
    }
}

/// At length 1; a vector of zeros stays one.
fn normalised(sum: &[f64]) -> Vec<f32> {
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    sum.iter().map(|x| (x * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn pooled(rows: &[&[f32]], tokens: usize, reason: FinishReason) -> Result<Embedding, Error> {
        let (reply, outcome) = sync_channel(1);
        let mut pooling = Pooling::new(tokens, reply);
        rows.iter().for_each(|row| pooling.rows.add(row));
        pooling.end(reason);
        outcome.recv().expect("it was sent")
    }

    #[test]
    fn the_mean_has_length_one() {
        let embedding = pooled(&[&[1.0, 2.0], &[5.0, 6.0]], 2, FinishReason::Stop);
        assert_eq!(
            embedding,
            Ok(Embedding {
                values: vec![0.6, 0.8],
                tokens: 2
            })
        );
        let zeros = pooled(&[&[0.0, 0.0]], 1, FinishReason::Stop).expect("it is complete");
        assert_eq!(zeros.values, [0.0, 0.0]);
    }

    #[test]
    fn half_an_embedding_is_none() {
        let text = |outcome: Result<Embedding, Error>| outcome.expect_err("incomplete").to_string();
        assert!(text(pooled(&[&[1.0]], 2, FinishReason::Stop)).contains("1 of 2 tokens"));
        assert!(text(pooled(&[], 2, FinishReason::Cancelled)).contains("shut down"));
        let failed = pooled(&[], 2, FinishReason::Error("the device is gone".into()));
        assert!(text(failed).contains("the device is gone"));
    }
}
