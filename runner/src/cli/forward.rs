//! Steps straight on a device, without the engine, for commands that want logits or control over what is in a step.

use std::ops::Range;
use std::time::Duration;

use bundle_format::plan::{KV_BLOCK, Limits};
use fastrun::Error;
use fastrun::device::{Device, Outcome, SampleParams, Step, Ticket, TokenSource, Want};
use fastrun::kv::{BlockTable, KvCache};
use fastrun::step::StepBuilder;

/// How long to leave a device alone that is not ready.
pub const POLL_PAUSE: Duration = Duration::from_micros(20);

/// A device and the counting of its KV blocks.
pub struct Forward<D> {
    device: D,
    limits: Limits,
    kv: KvCache,
}

/// A sequence on the device: its tokens so far are in `table`.
#[derive(Default)]
pub struct Lane {
    table: BlockTable,
    position: u32,
}

impl<D: Device> Forward<D> {
    pub fn new(device: D, limits: Limits) -> Forward<D> {
        let kv = KvCache::with_windows(device.kv_blocks(), device.kv_windows());
        Forward { device, limits, kv }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    /// Feeds `tokens` as a new sequence, in chunks as large as the plan takes, and hands the logits after each position of
    /// `wanted` to `each`.
    pub fn logits(
        &mut self,
        tokens: &[u32],
        wanted: Range<u32>,
        mut each: impl FnMut(u32, &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut lane = Lane::default();
        let mut fed = 0;
        while fed < tokens.len() as u32 {
            // No more tokens than the step holds, and no more wanted rows.
            let first = wanted.start.max(fed);
            let end = (fed + self.limits.max_tokens)
                .min(first + self.limits.max_rows)
                .min(tokens.len() as u32);
            let rows = first..wanted.end.min(end);
            let wants = rows.clone().map(|row| (row - fed, true));
            let outcome = self.feed(&mut lane, &tokens[fed as usize..end as usize], wants)?;
            for (position, row) in rows.zip(&outcome.rows) {
                match &row.logits {
                    Some(logits) => each(position, logits)?,
                    None => return Err(Error::Bug("the device kept the logits asked for".into())),
                }
            }
            fed = end;
        }
        self.release(&mut lane);
        Ok(())
    }

    /// Feeds the next tokens of one sequence in one step; `wants` are rows among them whose logits are returned where the flag
    /// says so, and else computed to draw the likeliest token.
    pub fn feed(
        &mut self,
        lane: &mut Lane,
        tokens: &[u32],
        wants: impl IntoIterator<Item = (u32, bool)>,
    ) -> Result<Outcome, Error> {
        let mut builder = self.builder();
        self.push(&mut builder, lane, tokens)?;
        for (row, logits) in wants {
            builder.want(row, want(logits));
        }
        self.run(builder.finish())
    }

    /// Starts a step that feeds one token to each sequence and draws the likeliest one behind it.
    pub fn start_draws(
        &mut self,
        lanes: &mut [Lane],
        tokens: &[TokenSource],
    ) -> Result<Ticket, Error> {
        let mut builder = self.builder();
        for (lane, &token) in lanes.iter_mut().zip(tokens) {
            let end = self.push_sources(&mut builder, lane, &[token])?;
            builder.want(end - 1, want(false));
        }
        self.device.submit(builder.finish())
    }

    /// Waits for a step.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Outcome, Error> {
        loop {
            match self.device.poll(ticket)? {
                Some(outcome) => return Ok(outcome),
                None => std::thread::sleep(POLL_PAUSE),
            }
        }
    }

    /// Forgets a sequence.
    pub fn release(&mut self, lane: &mut Lane) {
        self.kv.release(&mut lane.table);
        lane.position = 0;
    }

    fn builder(&self) -> StepBuilder {
        StepBuilder::of(self.kv.groups())
    }

    fn push(
        &mut self,
        builder: &mut StepBuilder,
        lane: &mut Lane,
        tokens: &[u32],
    ) -> Result<u32, Error> {
        let sources: Vec<TokenSource> = tokens.iter().map(|&id| TokenSource::Id(id)).collect();
        self.push_sources(builder, lane, &sources)
    }

    fn push_sources(
        &mut self,
        builder: &mut StepBuilder,
        lane: &mut Lane,
        tokens: &[TokenSource],
    ) -> Result<u32, Error> {
        let end = lane.position + tokens.len() as u32;
        if end > self.limits.context {
            return Err(Error::User(format!(
                "this takes a context of {end} tokens or more, but the bundle's is {}; use fewer tokens, or compile the \
                 model with a larger --ctx",
                self.limits.context
            )));
        }
        // Steps end one behind the other: the ones before are done with what this one doesn't see.
        self.kv.slide(&mut lane.table, lane.position);
        let has_room = self.kv.grow(&mut lane.table, end);
        if !has_room || !self.kv.grow_windows(&mut lane.table, end) {
            return Err(Error::User(format!(
                "the device's KV memory of {} positions is too small for this; use fewer tokens or sequences",
                self.kv.total_blocks() as usize * KV_BLOCK
            )));
        }
        let row = builder.push(tokens.iter().copied(), lane.position, &lane.table);
        lane.position = end;
        Ok(row)
    }

    fn run(&mut self, step: Step) -> Result<Outcome, Error> {
        let rows = step.rows.len();
        let ticket = self.device.submit(step)?;
        let outcome = self.wait(ticket)?;
        if outcome.rows.len() != rows {
            return Err(Error::Bug(format!(
                "the device yielded {} rows, where {rows} were asked for",
                outcome.rows.len()
            )));
        }
        Ok(outcome)
    }
}

/// Logits that nobody wants anything of would not be computed.
fn want(logits: bool) -> Want {
    let greedy = SampleParams {
        temperature: 0.0,
        ..SampleParams::default()
    };
    Want {
        logits,
        sample: (!logits).then_some(greedy),
        ..Want::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrun::device::RowOutcome;

    const LIMITS: Limits = Limits {
        max_tokens: 10,
        max_seqs: 2,
        max_rows: 3,
        context: 40,
    };

    /// Yields as logits the position and the token of each row.
    struct Echo {
        blocks: Vec<u32>,
        outcome: Option<Outcome>,
        steps: u32,
    }

    impl Device for Echo {
        fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
            assert!(step.tokens.len() <= LIMITS.max_tokens as usize);
            assert!(step.rows.len() <= LIMITS.max_rows as usize);
            let row = |(&row, want): (&u32, &Want)| {
                let row = row as usize;
                let TokenSource::Id(id) = step.tokens[row] else {
                    panic!("ids come from the host");
                };
                RowOutcome {
                    token: want.sample.is_some().then_some(7),
                    logits: want
                        .logits
                        .then(|| vec![step.positions[row] as f32, id as f32]),
                    ..RowOutcome::default()
                }
            };
            let rows = step.rows.iter().zip(&step.wants).map(row).collect();
            self.outcome = Some(Outcome { rows });
            self.steps += 1;
            Ok(Ticket(0))
        }

        fn poll(&mut self, _ticket: Ticket) -> Result<Option<Outcome>, Error> {
            Ok(self.outcome.take())
        }

        fn kv_blocks(&self) -> &[u32] {
            &self.blocks
        }
    }

    fn forward(blocks: u32) -> Forward<Echo> {
        let device = Echo {
            blocks: vec![blocks],
            outcome: None,
            steps: 0,
        };
        Forward::new(device, LIMITS)
    }

    #[test]
    fn every_wanted_row_comes_once_and_in_order() {
        let tokens: Vec<u32> = (100..130).collect();
        for wanted in [0..30, 12..13, 29..30, 5..18, 0..1] {
            let mut forward = forward(2);
            for _ in 0..2 {
                let mut seen = Vec::new();
                forward
                    .logits(&tokens, wanted.clone(), |position, logits| {
                        assert_eq!(logits, [position as f32, 100.0 + position as f32]);
                        seen.push(position);
                        Ok(())
                    })
                    .expect("it fits");
                assert_eq!(seen, wanted.clone().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn chunks_are_as_large_as_the_limits_let_them() {
        let mut forward = forward(2);
        forward
            .logits(&[0; 30], 29..30, |_, _| Ok(()))
            .expect("it fits");
        assert_eq!(forward.device().steps, 3);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let text = |blocks, tokens| {
            let result = forward(blocks).logits(&vec![0; tokens], 0..1, |_, _| Ok(()));
            result.expect_err("too long").to_string()
        };
        assert!(text(9, 41).contains("context of 41"), "{}", text(9, 41));
        assert!(text(1, 20).contains("of 16 positions"), "{}", text(1, 20));
    }

    #[test]
    fn lanes_decode_side_by_side_and_are_released() {
        let mut forward = forward(2);
        for _ in 0..3 {
            let mut lanes = [Lane::default(), Lane::default()];
            for _ in 0..16 {
                let tokens = [1, 2].map(TokenSource::Id);
                let ticket = forward.start_draws(&mut lanes, &tokens).expect("it fits");
                let outcome = forward.wait(ticket).expect("it runs");
                assert!(outcome.rows.iter().all(|row| row.logits.is_none()));
                assert!(outcome.rows.iter().all(|row| row.token == Some(7)));
            }
            lanes.iter_mut().for_each(|lane| forward.release(lane));
        }
    }
}
