//! Where a plan's results are, and what they make of a row.

use bundle_format::plan::{Output, Plan, Role};

use super::alone::Touch;
use super::{RowOutcome, Step, Want};
use crate::Error;
use crate::sampler::{BadLogits, Context, DrawError, Sampler};

/// The outputs of a plan.
#[derive(Debug)]
pub struct Outputs {
    /// Index of the buffer of logits.
    pub logits: usize,
    /// Name of the launch that writes the logits.
    pub logits_launch: String,
    /// Index of the buffer of hidden states; none in bundles that were made before there were any.
    pub hidden: Option<usize>,
    /// By launch: whether it does nothing but to make logits.
    pub only_logits: Vec<bool>,
}

impl Outputs {
    /// # Errors
    /// [`Error::Bug`] for a plan without logits.
    pub fn find(plan: &Plan) -> Result<Self, Error> {
        let logits = buffer(plan, Output::Logits)
            .ok_or_else(|| Error::Bug("the plan has no buffer of logits".into()))?;
        let hidden = buffer(plan, Output::Hidden);
        let launch = plan
            .launches
            .iter()
            .find(|launch| Touch::of(&launch.op).writes.contains(&(logits as u32)));
        Ok(Self {
            logits,
            logits_launch: launch.map_or("(none)".into(), |l| l.name.clone()),
            hidden,
            only_logits: only_logits(plan, hidden),
        })
    }

    /// Whether no row of a step is for its logits, so that making them can be left out.
    pub fn without_logits(step: &Step) -> bool {
        let needs = |want: &Want| want.sample.is_some() || want.logprobs.is_some() || want.logits;
        !step.wants.iter().any(needs)
    }

    /// Checks that the plan has what a step wants.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it hasn't.
    pub fn check(&self, step: &Step) -> Result<(), Error> {
        if self.hidden.is_none() && step.wants.iter().any(|want| want.hidden) {
            return Err(Error::Unsupported(
                "this bundle keeps no hidden states, which embeddings are made of; compile the model again".into(),
            ));
        }
        Ok(())
    }

    /// What one row yields: `logits` where the step makes them, `hidden` where the row wants it. `position` is that of the
    /// drawn token.
    pub fn row(
        &self,
        sampler: &mut Sampler,
        want: &Want,
        position: u32,
        logits: &[f32],
        hidden: Option<&[f32]>,
    ) -> RowOutcome {
        let mut row = RowOutcome {
            logits: want.logits.then(|| logits.to_vec()),
            hidden: hidden.map(<[f32]>::to_vec),
            ..RowOutcome::default()
        };
        let mut draw = || {
            if let Some(params) = &want.sample {
                let context = Context {
                    recent: &want.recent,
                    bias: &want.bias,
                    mask: want.mask.as_deref(),
                };
                row.token = Some(sampler.sample(logits, params, &context, position)?);
            }
            if let Some(count) = want.logprobs {
                row.logprobs = Some(sampler.logprobs(logits, row.token.or(want.score), count)?);
            }
            Ok::<_, DrawError>(())
        };
        if let Err(error) = draw() {
            (row.token, row.logprobs) = (None, None);
            row.error = Some(self.failure(position, &error));
        }
        row
    }

    /// What a row yields whose token was drawn where the logits are.
    pub fn drawn_row(
        &self,
        want: &Want,
        position: u32,
        drawn: Result<u32, BadLogits>,
        logits: &[f32],
        hidden: Option<&[f32]>,
    ) -> RowOutcome {
        let error = drawn.err().map(|bad| self.failure(position, &bad.into()));
        RowOutcome {
            token: drawn.ok(),
            logits: want.logits.then(|| logits.to_vec()),
            hidden: hidden.map(<[f32]>::to_vec),
            error,
            ..RowOutcome::default()
        }
    }

    fn failure(&self, position: u32, error: &DrawError) -> String {
        let launch = &self.logits_launch;
        format!("position {position} (launch {launch}): {error}")
    }
}

fn buffer(plan: &Plan, output: Output) -> Option<usize> {
    let role = Role::Output(output);
    plan.buffers.iter().position(|b| b.place.role == role)
}

/// Launches that nothing needs but the logits: they keep neither keys and values nor hidden states, and no launch that is
/// needed otherwise waits for them.
fn only_logits(plan: &Plan, hidden: Option<usize>) -> Vec<bool> {
    let mut only = vec![true; plan.launches.len()];
    for (i, launch) in plan.launches.iter().enumerate().rev() {
        let touch = Touch::of(&launch.op);
        let is_kept = |h: usize| touch.writes.contains(&(h as u32));
        let keeps = !touch.pools_written.is_empty() || hidden.is_some_and(is_kept);
        only[i] &= !keeps;
        if !only[i] {
            for &dep in &launch.deps {
                only[dep as usize] = false;
            }
        }
    }
    only
}

#[cfg(test)]
mod tests {
    use bundle_format::plan::{Buffer, DType, Dim, Launch, Limits, Op, Place};
    use bundle_format::region::{ColMap, Inst, KvPart, Operand, Region};

    use super::*;

    /// A launch that stores to these operands.
    fn launch(deps: &[u32], operands: &[Operand]) -> Launch {
        let store = |(dst, operand): (usize, &Operand)| match operand {
            Operand::Kv { .. } => Inst::StoreKv {
                dst: dst as u32,
                slots: 0,
                offset: 0,
                x: 0,
            },
            _ => Inst::Store {
                dst: dst as u32,
                col: ColMap {
                    per_unit: 1,
                    offset: 0,
                },
                x: 0,
            },
        };
        Launch {
            name: format!("after {deps:?}"),
            deps: deps.to_vec(),
            op: Op::Region {
                extent: Dim::Rows,
                region: Region {
                    name: String::new(),
                    unit: 1,
                    width: 1,
                    cols: 1,
                    operands: operands.to_vec(),
                    body: operands.iter().enumerate().map(store).collect(),
                },
            },
            variants: vec![],
        }
    }

    #[test]
    fn what_only_logits_need_is_found() {
        let buffer = |role| Buffer {
            name: String::new(),
            dtype: DType::F32,
            extent: Dim::Rows,
            cols: 1,
            place: Place { offset: 0, role },
        };
        let roles = [
            Role::Scratch,
            Role::Output(Output::Hidden),
            Role::Output(Output::Logits),
        ];
        let [scratch, hidden, logits] = [0, 1, 2].map(Operand::Buffer);
        let cache = Operand::Kv {
            group: 0,
            layer: 0,
            part: KvPart::Key,
        };
        let mut plan = Plan {
            limits: Limits {
                max_tokens: 1,
                max_seqs: 1,
                max_rows: 1,
                context: 1,
            },
            world_size: 1,
            kv: vec![],
            buffers: roles.map(buffer).to_vec(),
            arena_bytes: 0,
            weights: vec![],
            launches: vec![
                launch(&[], &[scratch]),
                launch(&[0], &[cache]),
                launch(&[1], &[scratch]),
                launch(&[2], &[hidden]),
                launch(&[3], &[scratch]),
                launch(&[4], &[logits]),
            ],
            sampling: None,
            stability: Vec::new(),
        };
        let outputs = Outputs::find(&plan).unwrap();
        assert_eq!((outputs.logits, outputs.hidden), (2, Some(1)));
        assert_eq!(outputs.logits_launch, "after [4]");
        let expected = [false, false, false, false, true, true];
        assert_eq!(outputs.only_logits, expected);
        // Without hidden states all is for the logits but what fills the cache.
        plan.buffers[1].place.role = Role::Scratch;
        let outputs = Outputs::find(&plan).unwrap();
        let expected = [false, false, true, true, true, true];
        assert_eq!(outputs.only_logits, expected);
        plan.buffers[2].place.role = Role::Scratch;
        assert!(matches!(Outputs::find(&plan), Err(Error::Bug(_))));
    }
}
