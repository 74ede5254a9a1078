//! Constant work moved into the weights.

use crate::ir::{Graph, Op, TensorId, Transform};

/// GGUF's `llama` files rotate dimension pairs (2i, 2i + 1). A score is a sum over the dimensions of a head, so queries and
/// keys may be permuted alike: with the rows of their weights moved, pairs lie half a head apart, where a vector unit
/// rotates them without shuffles.
pub fn fold_rope(graph: &mut Graph) {
    let makers = graph.makers();
    for index in 0..graph.nodes.len() {
        let Op::Rope {
            head_dim,
            halves: false,
        } = graph.nodes[index].op
        else {
            continue;
        };
        let Some(&maker) = makers.get(&graph.nodes[index].inputs[0]) else {
            continue;
        };
        let Op::MatMul { parts, .. } = &graph.nodes[maker].op else {
            continue;
        };
        let [part] = &parts[..] else { continue };
        let tensors: Vec<TensorId> = part.tensors.clone();
        for id in tensors {
            graph.tensors[id.0 as usize].transform = Transform::RopeHalves { head_dim };
        }
        graph.nodes[index].op = Op::Rope {
            head_dim,
            halves: true,
        };
    }
}
