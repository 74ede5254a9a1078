//! The gather of the wanted rows, before whatever only they need.

use bundle_format::plan::{DType, Dim};

use crate::ir::{Graph, Node, Op, Type, ValueId};

const GATHER: Op = Op::GatherRows { to: DType::F32 };

/// Of the last layer a prompt's rows need their keys and values; what comes behind the attention only those need of which logits are wanted.
/// So the gather in front of the head moves up through all that works row by row: instead of its one value those are gathered that this reads,
/// the attention's output and the residual. Nothing moves where that would spare no product, as in front of a router, whose pairs are of all
/// tokens.
pub fn gather_early(graph: &mut Graph) {
    let gathers = |n: &Node| n.op == GATHER && is_rows_of(graph.ty(n.outputs[0]), Dim::Rows);
    let Some(gather) = graph.nodes.iter().position(gathers) else {
        return;
    };
    let (x, rows, wanted) = {
        let node = &graph.nodes[gather];
        (node.inputs[0], node.inputs[1], node.outputs[0])
    };
    // What makes values that nothing but the gather and what moves reads.
    let mut moved = Vec::new();
    for index in (0..gather).rev() {
        let node = &graph.nodes[index];
        let is_own = |&value: &ValueId| {
            let users = graph.users(value);
            !graph.is_result(value)
                && !users.is_empty()
                && users
                    .iter()
                    .all(|user| *user == gather || moved.contains(user))
        };
        if works_by_rows(&node.op) && node.outputs.iter().all(is_own) {
            moved.push(index);
        }
    }
    let is_product = |index: &usize| matches!(graph.nodes[*index].op, Op::MatMul { .. });
    if !moved.iter().any(is_product) {
        return;
    }
    moved.reverse();
    let inner: Vec<ValueId> = moved
        .iter()
        .flat_map(|&n| graph.nodes[n].outputs.clone())
        .collect();
    for &value in &inner {
        if let Type::Rows { dim, .. } = &mut graph.values[value.0 as usize] {
            *dim = Dim::Rows;
        }
    }
    // Each value from outside is gathered before what first reads it.
    let mut gathered: Vec<(ValueId, ValueId)> = Vec::new();
    let mut new = Vec::new();
    for &index in &moved {
        for input in 0..graph.nodes[index].inputs.len() {
            let value = graph.nodes[index].inputs[input];
            if inner.contains(&value) {
                continue;
            }
            let known = gathered.iter().find(|(from, _)| *from == value);
            let to = match known {
                Some((_, to)) => *to,
                None => {
                    let Type::Rows { cols, .. } = graph.ty(value) else {
                        continue;
                    };
                    let to = graph.new_value(Type::f32(Dim::Rows, cols));
                    gathered.push((value, to));
                    let name = format!("{}.rows", graph.nodes[index].name);
                    let (op, inputs, outputs) = (GATHER, vec![value, rows], vec![to]);
                    new.push((
                        index,
                        Node {
                            name,
                            op,
                            inputs,
                            outputs,
                        },
                    ));
                    to
                }
            };
            graph.nodes[index].inputs[input] = to;
        }
    }
    graph.nodes[gather].inputs.clear();
    for node in &mut graph.nodes {
        node.inputs
            .iter_mut()
            .filter(|v| **v == wanted)
            .for_each(|v| *v = x);
    }
    graph.remove_nodes(&[gather]);
    for (index, node) in new.into_iter().rev() {
        graph.nodes.insert(index, node);
    }
}

fn is_rows_of(ty: Type, wanted: Dim) -> bool {
    matches!(ty, Type::Rows { dim, .. } if dim == wanted)
}

/// Whether each row of the results is of the same row of the inputs, all of them f32.
fn works_by_rows(op: &Op) -> bool {
    match op {
        Op::Add | Op::Bias { .. } | Op::HeadNorm { .. } => true,
        Op::RmsNorm {
            add: false,
            post: None,
            gather: false,
            keep: false,
            to,
            ..
        }
        | Op::Glu { to, .. } => *to == DType::F32,
        Op::MatMul {
            prologue,
            parts,
            experts,
        } => prologue.is_none() && experts.is_none() && parts.iter().all(|part| part.is_plain()),
        _ => false,
    }
}
