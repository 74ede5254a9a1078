//! Matmuls of one input, in one launch: one barrier, and one reading of the activations.

use crate::ir::{Epilogue, Graph, Op, Part, ValueId};

/// Joins the matmuls whose results (rotated or not) become queries, keys and values.
pub fn fuse_qkv(graph: &mut Graph) {
    join(graph, "qkv", |graph, value| {
        // Through what lies between the product and its use.
        let mut at = value;
        while let Some(user) = graph.only_user(at)
            && matches!(
                graph.nodes[user].op,
                Op::Bias { .. } | Op::HeadNorm { .. } | Op::Rope { .. }
            )
        {
            at = graph.nodes[user].outputs[0];
        }
        let users = graph.users(at);
        users
            .iter()
            .any(|&u| matches!(graph.nodes[u].op, Op::KvWrite { .. } | Op::Attention { .. }))
    });
}

/// Joins the matmuls whose results become gate and up.
pub fn fuse_gate_up(graph: &mut Graph) {
    join(graph, "gate_up", |graph, value| {
        graph
            .users(value)
            .iter()
            .any(|&u| matches!(graph.nodes[u].op, Op::Glu { .. }))
    });
}

/// Joins a router and the gate of the expert that every token goes to.
pub fn fuse_router(graph: &mut Graph) {
    join(graph, "router", |graph, value| {
        let users = graph.users(value);
        users.iter().any(|&u| match graph.nodes[u].op {
            Op::Route { .. } => true,
            Op::Combine { shared: true } => graph.nodes[u].inputs.last() == Some(&value),
            _ => false,
        })
    });
}

/// Joins a router and the gate and up of the expert that every token goes to: what these read hides the route.
pub fn fuse_shared(graph: &mut Graph) {
    let mut next = 0;
    while next < graph.nodes.len() {
        let index = next;
        next += 1;
        let routes = |&value: &ValueId| {
            let users = graph.users(value);
            let mut users = users.iter().map(|&u| &graph.nodes[u].op);
            users.any(|op| matches!(op, Op::Route { .. }))
        };
        let of = |at: usize| match &graph.nodes[at].op {
            Op::MatMul {
                prologue: None,
                parts,
                experts: None,
            } if graph.nodes[at].inputs.len() == 1 => Some(parts),
            _ => None,
        };
        if of(index).is_none() || !graph.nodes[index].outputs.iter().any(routes) {
            continue;
        }
        let gated = |&at: &usize| {
            let glu = |parts: &Vec<Part>| matches!(&parts[..], [part] if matches!(part.epilogue, Epilogue::Glu { .. }));
            graph.nodes[at].inputs == graph.nodes[index].inputs && of(at).is_some_and(glu)
        };
        let Some(other) = (index + 1..graph.nodes.len()).find(gated) else {
            continue;
        };
        let (Some(more), outputs) = (of(other).cloned(), graph.nodes[other].outputs.clone()) else {
            continue;
        };
        let node = &mut graph.nodes[index];
        if let Op::MatMul { parts, .. } = &mut node.op {
            parts.extend(more);
            node.outputs.extend(outputs);
        }
        graph.remove_nodes(&[other]);
    }
}

/// Joins consecutive single matmuls of the same inputs whose results satisfy `wanted`, at the place of the first.
fn join(graph: &mut Graph, name: &str, wanted: impl Fn(&Graph, ValueId) -> bool) {
    let candidate = |graph: &Graph, index: usize| {
        let node = &graph.nodes[index];
        // Without a rope table or slots: with an input, or that and the list of pairs.
        matches!(&node.op, Op::MatMul { prologue: None, experts, .. }
            if node.inputs.len() == if experts.is_some() { 3 } else { 1 })
            && wanted(graph, node.outputs[0])
    };
    let mut index = 0;
    while index < graph.nodes.len() {
        if candidate(graph, index) {
            let inputs = &graph.nodes[index].inputs;
            let same = |&i: &usize| graph.nodes[i].inputs == *inputs && candidate(graph, i);
            let others: Vec<usize> = (index + 1..graph.nodes.len()).filter(same).collect();
            for &other in &others {
                let Op::MatMul { parts: more, .. } = graph.nodes[other].op.clone() else {
                    continue;
                };
                let outputs = graph.nodes[other].outputs.clone();
                let node = &mut graph.nodes[index];
                if let Op::MatMul { parts, .. } = &mut node.op {
                    parts.extend(more);
                    node.outputs.extend(outputs);
                }
            }
            if !others.is_empty() {
                let first = &graph.nodes[index].name;
                let stem = first.rsplit_once('.').map_or("", |(stem, _)| stem);
                // Of a mixture: all of the experts, or the one that every token goes to.
                let kinds = ["_exps", "_shexp"];
                let kind = kinds.iter().find(|kind| first.ends_with(**kind));
                let joined = format!("{stem}.{name}{}", kind.unwrap_or(&""));
                graph.nodes[index].name = joined;
            }
            graph.remove_nodes(&others);
        }
        index += 1;
    }
}
