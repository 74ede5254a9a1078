//! Matmuls of experts that find the rows of their tokens by themselves.

use bundle_format::plan::DType;

use crate::ir::{Graph, Op};

const PLAIN: Op = Op::GatherRows { to: DType::F32 };

/// A matmul of experts whose rows were gathered by the list of tokens that it has anyway reads them by that list.
pub fn index_experts(graph: &mut Graph) {
    for index in 0..graph.nodes.len() {
        if !matches!(
            graph.nodes[index].op,
            Op::MatMul {
                experts: Some(_),
                ..
            }
        ) {
            continue;
        }
        let [x, tokens, ..] = graph.nodes[index].inputs[..] else {
            continue;
        };
        let gather = graph
            .nodes
            .iter()
            .find(|n| n.op == PLAIN && n.outputs == [x] && n.inputs[1] == tokens);
        if let Some(gather) = gather {
            graph.nodes[index].inputs[0] = gather.inputs[0];
        }
    }
    let unused = |graph: &Graph, index: usize| {
        let node = &graph.nodes[index];
        node.op == PLAIN
            && graph.users(node.outputs[0]).is_empty()
            && !graph.is_result(node.outputs[0])
    };
    let dead: Vec<usize> = (0..graph.nodes.len())
        .filter(|&index| unused(graph, index))
        .collect();
    graph.remove_nodes(&dead);
}
