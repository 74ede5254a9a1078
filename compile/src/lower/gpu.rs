//! What a plan for a GPU has otherwise: the layout of KV blocks, and the order of rows that a rotation pairs.

use bundle_format::plan::{Dim, Encoding, KvDType, KvGroup, Op, Plan, Segment, WeightLayout};
use bundle_format::region::{Inst, Operand, Region, RowMap};

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

/// The buffer through which a product of experts hands pairs' results to the launch behind it that sums them for each token, where
/// those are all that it gives: kernels may do both, without the buffer.
pub fn summed(product: &Op, sum: &Op) -> Option<u32> {
    let (Op::ExpertMatMul { segments, .. }, Op::Region { extent, region }) = (product, sum) else {
        return None;
    };
    let [segment] = &segments[..] else {
        return None;
    };
    let epilogue = &segment.epilogue;
    let [Inst::Tile { offset: 0 }, Inst::Store { dst, x: 0, .. }] = epilogue.body[..] else {
        return None;
    };
    let Operand::Buffer(y) = epilogue.operands[dst as usize] else {
        return None;
    };
    let is_y = |src: u32| region.operands[src as usize] == Operand::Buffer(y);
    let loads = region.body.iter().filter_map(|inst| match *inst {
        Inst::Load { src, row, .. } if is_y(src) => Some(matches!(row, RowMap::At { .. })),
        _ => None,
    });
    let by_place = loads.clone().count() > 0 && loads.into_iter().all(|at| at);
    let flat = epilogue.is_flat() && region.is_flat() && *extent == Dim::Tokens;
    (by_place && flat && !region.has_row_sum()).then_some(y)
}

/// Whether a launch multiplies with a router's weights, and the one behind it sends tokens by these logits: kernels may do both.
pub fn routed(plan: &Plan, product: &Op, route: &Op) -> bool {
    let (Op::MatMul { segments, .. }, Op::Route { logits, .. }) = (product, route) else {
        return false;
    };
    segments.iter().any(|s| {
        s.epilogue.operands.contains(&Operand::Buffer(*logits))
            && plan.weights[s.weight as usize].encoding == Encoding::F32
    })
}

/// Whether a launch multiplies rows of tokens, and the one behind it pairs of a token and an expert, without waiting for what the first
/// gives: kernels may do both side by side.
pub fn beside(first: &Op, second: &Op) -> bool {
    let Op::MatMul {
        x: own,
        prologue: None,
        segments,
    } = first
    else {
        return false;
    };
    let Op::ExpertMatMul {
        x,
        tokens,
        starts,
        segments: others,
    } = second
    else {
        return false;
    };
    let operands = |segments: &[Segment]| -> Vec<Operand> {
        let all = segments.iter().flat_map(|s| s.epilogue.operands.clone());
        // Weights are read and no more.
        all.filter(|o| !matches!(o, Operand::Weight(_))).collect()
    };
    let (of_first, of_second) = (operands(segments), operands(others));
    let reads = [*x, *tokens, *starts].map(Operand::Buffer);
    !of_second.contains(&Operand::Buffer(*own))
        && !of_first
            .iter()
            .any(|o| of_second.contains(o) || reads.contains(o))
}

/// Whether kernels of a launch may do the work of the one before it, in a plan for a GPU.
pub fn may_join(plan: &Plan, first: &Op, second: &Op) -> bool {
    let segments = match first {
        Op::MatMul { segments, .. } | Op::ExpertMatMul { segments, .. } => segments,
        _ => return false,
    };
    let layouts = segments
        .iter()
        .map(|s| plan.weights[s.weight as usize].layout);
    let for_gpu = |l| match l {
        WeightLayout::Fragment16 | WeightLayout::RowMajor => true,
        WeightLayout::Interleave8 | WeightLayout::Pairs8 => false,
    };
    layouts.into_iter().all(for_gpu)
        && (summed(first, second).is_some() || routed(plan, first, second) || beside(first, second))
}
