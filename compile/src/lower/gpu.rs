//! What a plan for a GPU has otherwise: the layout of KV blocks, and the order of rows that a rotation pairs.

use bundle_format::plan::{KvDType, Op, Plan};
use bundle_format::region::Inst;

/// Arranges KV pools and weights for matrix units.
pub fn arrange(plan: &mut Plan) {
    for kv in &mut plan.kv {
        if kv.dtype == KvDType::F16 {
            kv.dtype = KvDType::F16Rows;
        }
    }
    for launch in &plan.launches {
        let Op::MatMul { segments, .. } = &launch.op else {
            continue;
        };
        for segment in segments {
            let epilogue = &segment.epilogue;
            let weight = &mut plan.weights[segment.weight as usize];
            let sums = |i: &Inst| matches!(i, Inst::UnitSum { .. });
            // Gate and up interleave by their slices; where a unit is summed over, a tile is not enough anyway.
            let rotates = epilogue.unit == 2 * epilogue.width && weight.interleave == 0;
            if rotates && !epilogue.body.iter().any(sums) {
                weight.pairs = epilogue.unit;
            }
        }
    }
}
