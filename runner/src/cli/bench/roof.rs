//! The most that decoding can reach on a machine: each step reads all weights once and every sequence's keys and values,
//! no faster than memory can be read.

use bundle_format::plan::{KV_BLOCK, KvGroup, Op, Plan};
use bundle_format::region::Operand;

/// The roof over decoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Roof {
    /// Bytes a second that the machine's memory gives.
    pub read_rate: f64,
    /// The same of where the weights lie, if that was measured.
    pub weights_rate: Option<f64>,
    /// Bytes of weights that every step reads.
    pub weight_bytes: u64,
    /// Batches, ascending, and the bytes that a step of so many sequences read of experts, on average.
    pub expert_bytes: Vec<(f64, f64)>,
    /// Bytes of keys and values that a step reads for each sequence, on average over the steps measured.
    pub kv_bytes: f64,
}

impl Roof {
    /// The most tokens a second that `batch` sequences can get together.
    pub fn rate(&self, batch: f64) -> f64 {
        batch * self.read_rate / (self.weights(batch) + batch * self.kv_bytes)
    }

    /// Bytes of weights that a step of `batch` sequences reads; of experts, between batches that were measured, in
    /// proportion.
    pub fn weights(&self, batch: f64) -> f64 {
        let measured = &self.expert_bytes;
        let above = measured.partition_point(|m| m.0 < batch);
        let experts = match (
            above.checked_sub(1).map(|i| measured[i]),
            measured.get(above),
        ) {
            (None, None) => 0.0,
            (Some(low), None) => low.1,
            (None, Some(high)) => high.1,
            (Some(low), Some(high)) => {
                low.1 + (high.1 - low.1) * (batch - low.0) / (high.0 - low.0)
            }
        };
        self.weight_bytes as f64 + experts
    }

    /// The part of the most that `rate` tokens a second of `batch` sequences are.
    pub fn share(&self, batch: u32, rate: f64) -> f64 {
        rate / self.rate(f64::from(batch))
    }
}

/// Bytes of weights that every decoding step reads: all but embedding tables that only give rows, and experts.
pub fn weight_bytes(plan: &Plan) -> u64 {
    let mut read = vec![false; plan.weights.len()];
    let mut mark = |weight: u32| {
        if let Some(read) = read.get_mut(weight as usize) {
            *read = true;
        }
    };
    let mut mark_operands = |operands: &[Operand]| {
        for operand in operands {
            if let Operand::Weight(weight) = operand {
                mark(*weight);
            }
        }
    };
    for launch in &plan.launches {
        match &launch.op {
            Op::Embed { .. } => {}
            Op::RopeTable { freqs, .. } => mark_operands(&[Operand::Weight(*freqs)]),
            Op::Region { region, .. } => mark_operands(&region.operands),
            Op::MatMul {
                prologue, segments, ..
            } => {
                prologue
                    .iter()
                    .for_each(|region| mark_operands(&region.operands));
                for segment in segments {
                    mark_operands(&[Operand::Weight(segment.weight)]);
                    mark_operands(&segment.epilogue.operands);
                }
            }
            Op::Attention { epilogue, .. } => mark_operands(&epilogue.operands),
            Op::Route { .. } => {}
            Op::ExpertMatMul { segments, .. } => {
                for segment in segments {
                    mark_operands(&segment.epilogue.operands);
                }
            }
        }
    }
    let used = plan.weights.iter().zip(read).filter(|(_, read)| *read);
    used.map(|(weight, _)| weight.len).sum()
}

/// Bytes of keys and values that a step reads for a sequence, on average over `steps` steps that follow `before`
/// positions: each sees all positions so far, its own included, or those of a layer's window.
pub fn kv_bytes(groups: &[KvGroup], before: u32, steps: u32) -> f64 {
    let group = |group: &KvGroup| {
        let window = group.window.unwrap_or(u32::MAX);
        let seen = (1..=steps).map(|step| u64::from(before.saturating_add(step).min(window)));
        let positions = seen.sum::<u64>() as f64 / f64::from(steps);
        positions * group.block_bytes() as f64 / KV_BLOCK as f64
    };
    groups.iter().map(group).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::plan::KvDType;

    #[test]
    fn the_roof_is_bytes_a_second_by_bytes_a_step() {
        let roof = Roof {
            read_rate: 1e10,
            weights_rate: None,
            weight_bytes: 90_000_000,
            expert_bytes: Vec::new(),
            kv_bytes: 1e7,
        };
        assert_eq!(roof.rate(1.0), 100.0);
        assert_eq!(roof.rate(11.0), 550.0);
        assert_eq!(roof.share(1, 25.0), 0.25);
    }

    #[test]
    fn experts_are_read_as_measured() {
        let roof = Roof {
            read_rate: 1e10,
            weights_rate: None,
            weight_bytes: 100,
            expert_bytes: vec![(1.0, 10.0), (8.0, 80.0), (32.0, 200.0)],
            kv_bytes: 0.0,
        };
        let weights = [0.5, 1.0, 4.5, 8.0, 20.0, 64.0].map(|batch| roof.weights(batch));
        assert_eq!(weights, [110.0, 110.0, 145.0, 180.0, 240.0, 300.0]);
    }

    #[test]
    fn a_window_bounds_what_is_read() {
        let group = |window| KvGroup {
            dtype: KvDType::F16,
            layers: 3,
            kv_heads: 2,
            head_dim: 64,
            window,
        };
        // Keys and values of three layers, two heads, 64 dimensions, two bytes.
        let position = 2.0 * 3.0 * 2.0 * 64.0 * 2.0;
        // Positions 3, 4 and 5 are seen; with the window, never more than 4.
        assert_eq!(kv_bytes(&[group(None)], 2, 3), 4.0 * position);
        let windowed = kv_bytes(&[group(Some(4))], 2, 3);
        assert!((windowed - 11.0 / 3.0 * position).abs() < 1e-6);
    }
}
