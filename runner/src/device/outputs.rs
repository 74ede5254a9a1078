//! Where a plan's results are, and what they make of a row.

use bundle_format::plan::{Op, Output, Plan, Role};
use bundle_format::region::{Inst, Operand, Region};

use super::{RowOutcome, Step, Want};
use crate::Error;
use crate::sampler::{Context, Sampler};

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
            .find(|launch| stores(&launch.op, Some(logits)));
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
                row.logprobs = Some(sampler.logprobs(logits, row.token, count)?);
            }
            Ok::<_, crate::sampler::DrawError>(())
        };
        if let Err(error) = draw() {
            (row.token, row.logprobs) = (None, None);
            let launch = &self.logits_launch;
            row.error = Some(format!("position {position} (launch {launch}): {error}"));
        }
        row
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
        let keeps = stores(&launch.op, None) || hidden.is_some_and(|h| stores(&launch.op, Some(h)));
        only[i] &= !keeps;
        if !only[i] {
            for &dep in &launch.deps {
                only[dep as usize] = false;
            }
        }
    }
    only
}

/// Whether an op's regions store to a buffer; none: to a KV pool.
fn stores(op: &Op, buffer: Option<usize>) -> bool {
    let region = |region: &Region| {
        region.body.iter().any(|inst| match (*inst, buffer) {
            (Inst::Store { dst, .. }, Some(buffer)) => {
                region.operands[dst as usize] == Operand::Buffer(buffer as u32)
            }
            (Inst::StoreKv { .. }, None) => true,
            _ => false,
        })
    };
    match op {
        Op::Embed { .. } | Op::RopeTable { .. } => false,
        Op::Region { region: body, .. } => region(body),
        Op::MatMul { segments, .. } => segments.iter().any(|s| region(&s.epilogue)),
        Op::Attention { epilogue, .. } => region(epilogue),
    }
}
