//! What a plan for a GPU has otherwise: the layout of KV blocks, and the order of rows that a rotation pairs.

use bundle_format::plan::{KvDType, KvGroup, Op, Plan};
use bundle_format::region::{Inst, Operand, Region};

/// Arranges KV pools and weights for matrix units.
pub fn arrange(plan: &mut Plan) {
    for kv in &mut plan.kv {
        kv.dtype = match kv.dtype {
            KvDType::F16 | KvDType::F16Rows => KvDType::F16Rows,
            KvDType::Q8_0 | KvDType::Q8Rows => KvDType::Q8Rows,
        };
    }
    for launch in &plan.launches {
        let Op::MatMul { segments, .. } = &launch.op else {
            continue;
        };
        for segment in segments {
            let epilogue = &segment.epilogue;
            let weight = &mut plan.weights[segment.weight as usize];
            // Gate and up interleave by their slices; where a unit goes together, a tile is not enough anyway.
            let rotates = epilogue.unit == 2 * epilogue.width && weight.interleave == 0;
            if rotates && !goes_together(epilogue, &plan.kv) {
                weight.pairs = epilogue.unit;
            }
        }
    }
}

/// Whether a region's elements of a unit depend on one another: it sums over them, or stores them with a common scale.
pub fn goes_together(region: &Region, kv: &[KvGroup]) -> bool {
    region.body.iter().any(|inst| match *inst {
        Inst::UnitSum { .. } => true,
        Inst::StoreKv { dst, .. } => match region.operands[dst as usize] {
            Operand::Kv { group, .. } => kv[group as usize].dtype == KvDType::Q8Rows,
            _ => false,
        },
        _ => false,
    })
}
