//! Quantisation of activations in the node that makes them.

use bundle_format::plan::{DType, Q8_BLOCK};

use crate::ir::{Epilogue, Graph, Op};

/// A `quantise` that is the only user of a norm, an attention or a SwiGLU moves into it, and into a gather. A norm may have other users (a router,
/// for one) or be a result of the graph besides: then it gives both. Not so for blocks larger than what an epilogue sees of a row, which
/// are quantised in a launch of their own.
pub fn fuse_quantise(graph: &mut Graph) {
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::Quantise { to: wanted } = graph.nodes[index].op else {
            continue;
        };
        let (x, q) = (graph.nodes[index].inputs[0], graph.nodes[index].outputs[0]);
        let Some(maker) = graph.nodes.iter().position(|n| n.outputs.contains(&x)) else {
            continue;
        };
        let keeps = graph.is_result(x) || graph.users(x) != [index];
        let Some(at) = graph.nodes[maker].outputs.iter().position(|&v| v == x) else {
            continue;
        };
        let kv = graph.kv.clone();
        let fits_epilogues = wanted.block() <= Q8_BLOCK;
        let fused = match &mut graph.nodes[maker].op {
            Op::RmsNorm { to, keep, .. } => {
                let plain = *to == DType::F32;
                if plain {
                    (*to, *keep) = (wanted, keeps);
                }
                plain
            }
            _ if keeps => false,
            Op::Glu { to, .. } | Op::GatherRows { to } => {
                *to = wanted;
                true
            }
            // An epilogue sees one head at a time, so a block must not cross heads.
            Op::Attention { to, group, .. }
                if fits_epilogues
                    && (kv[*group as usize].head_dim as usize).is_multiple_of(Q8_BLOCK) =>
            {
                *to = wanted;
                true
            }
            Op::MatMul { parts, .. } => match &mut parts[at].epilogue {
                Epilogue::Glu { to, .. } if fits_epilogues => {
                    *to = wanted;
                    true
                }
                Epilogue::Glu { .. }
                | Epilogue::Store
                | Epilogue::Rope { .. }
                | Epilogue::KvWrite { .. } => false,
            },
            Op::Attention { .. }
            | Op::Input(_)
            | Op::Embed { .. }
            | Op::RopeTable { .. }
            | Op::Add
            | Op::Bias { .. }
            | Op::HeadNorm { .. }
            | Op::Quantise { .. }
            | Op::Rope { .. }
            | Op::KvWrite { .. }
            | Op::Route { .. }
            | Op::Combine { .. } => false,
        };
        if fused {
            let outputs = &mut graph.nodes[maker].outputs;
            match keeps {
                true => outputs.insert(at + 1, q),
                false => outputs[at] = q,
            }
            dead.push(index);
        }
    }
    graph.remove_nodes(&dead);
}
