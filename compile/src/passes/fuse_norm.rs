//! The residual sum and the gather of the wanted rows, in the norm that reads them.

use crate::ir::{Graph, Op, verify};

/// `add` then `rms_norm` becomes one node that gives the sum and its norm; `add`, `gather_rows`, `rms_norm` one that
/// computes only the wanted rows.
pub fn fuse_add_norm(graph: &mut Graph) {
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::RmsNorm {
            weight,
            eps,
            add: false,
            gather: false,
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
            .position(|n| n.outputs == [x] && n.op == Op::GatherRows)
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
        if let Some(add) = add {
            inputs = graph.nodes[add].inputs.clone();
            if rows.is_none() {
                outputs.insert(0, x);
            }
            graph.nodes[add].inputs.clear();
            graph.nodes[add].outputs.clear();
            dead.push(add);
        }
        inputs.extend(rows);
        let fused = Op::RmsNorm {
            weight,
            eps,
            add: add.is_some(),
            gather: rows.is_some(),
            to,
        };
        let node = &mut graph.nodes[index];
        (node.op, node.inputs, node.outputs) = (fused, inputs, outputs);
    }
    graph.remove_nodes(&dead);
}
