//! The residual sum and the gather of the wanted rows, in the norm that reads them.

use bundle_format::plan::DType;

use crate::ir::{Graph, Op, TensorId, ValueId, verify};

/// `add` then `rms_norm` becomes one node that gives the sum and its norm; `add`, `gather_rows`, `rms_norm` one that
/// computes only the wanted rows. A residual that was itself normed (Gemma's post-norms) is normed there too.
pub fn fuse_add_norm(graph: &mut Graph) {
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::RmsNorm {
            weight,
            eps,
            add: false,
            post: None,
            gather: false,
            keep: false,
            to,
        } = graph.nodes[index].op
        else {
            continue;
        };
        let mut x = graph.nodes[index].inputs[0];
        let mut rows = None;
        if let Some(gather) = graph
            .nodes
            .iter()
            .position(|n| n.outputs == [x] && n.op == Op::GatherRows { to: DType::F32 })
            && graph.only_user(x) == Some(index)
        {
            x = graph.nodes[gather].inputs[0];
            rows = Some(graph.nodes[gather].inputs[1]);
            graph.nodes[gather].inputs.clear();
            dead.push(gather);
        }
        let add = graph
            .nodes
            .iter()
            .position(|n| n.outputs == [x] && n.op == Op::Add);
        // Behind a gather the sum isn't kept, so nothing else may read it; and what reads it must come after the norm.
        let add = add.filter(|_| rows.is_none() || !verify::is_used(graph, x));
        let add = add.filter(|_| graph.users(x).iter().all(|&user| user >= index));
        let mut inputs = vec![x];
        let mut outputs = graph.nodes[index].outputs.clone();
        let mut post = None;
        if let Some(add) = add {
            inputs = graph.nodes[add].inputs.clone();
            if rows.is_none() {
                outputs.insert(0, x);
            }
            graph.nodes[add].inputs.clear();
            graph.nodes[add].outputs.clear();
            dead.push(add);
            if let Some((norm, which, weight)) = normed_residual(graph, &inputs, eps) {
                // The sum is the same whichever comes first; the normed one goes second.
                inputs = vec![inputs[1 - which], graph.nodes[norm].inputs[0]];
                post = Some(weight);
                graph.nodes[norm].inputs.clear();
                dead.push(norm);
            }
        }
        inputs.extend(rows);
        let fused = Op::RmsNorm {
            weight,
            eps,
            add: add.is_some(),
            post,
            gather: rows.is_some(),
            keep: false,
            to,
        };
        let node = &mut graph.nodes[index];
        (node.op, node.inputs, node.outputs) = (fused, inputs, outputs);
    }
    graph.remove_nodes(&dead);
}

/// A plain norm of the same eps among two summands that nothing else reads: its node, which summand, its weight.
fn normed_residual(
    graph: &Graph,
    summands: &[ValueId],
    eps: f32,
) -> Option<(usize, usize, TensorId)> {
    summands.iter().enumerate().find_map(|(which, &value)| {
        let node = graph.nodes.iter().position(|n| n.outputs == [value])?;
        match graph.nodes[node].op {
            Op::RmsNorm {
                weight,
                eps: own,
                add: false,
                post: None,
                gather: false,
                keep: false,
                to: DType::F32,
            } if own == eps && !verify::is_used(graph, value) => Some((node, which, weight)),
            _ => None,
        }
    })
}
