//! SwiGLU or GeGLU in the epilogue of the matmul that makes gate and up.

use crate::ir::{Epilogue, Graph, Op, Part};

/// Where one matmul makes gate and up and nothing else reads them, their weights interleave, so that a tile holds both, and
/// the product never reaches memory in f32.
pub fn fuse_swiglu(graph: &mut Graph) {
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::Glu { activation, to } = graph.nodes[index].op else {
            continue;
        };
        let (gate, up) = (graph.nodes[index].inputs[0], graph.nodes[index].inputs[1]);
        let maker = graph.nodes.iter().position(|n| n.outputs == [gate, up]);
        let Some(maker) = maker else { continue };
        if graph.only_user(gate) != Some(index) || graph.only_user(up) != Some(index) {
            continue;
        }
        let Op::MatMul {
            prologue: None,
            parts,
            experts,
        } = &graph.nodes[maker].op
        else {
            continue;
        };
        let [a, b] = &parts[..] else { continue };
        if !a.is_plain() || !b.is_plain() {
            continue;
        }
        let tensors = vec![a.tensors[0], b.tensors[0]];
        let (gate, up) = (graph.tensor(tensors[0]), graph.tensor(tensors[1]));
        let experts = *experts;
        // Of one expert: blocks of both interleave within it.
        let rows = gate.rows / experts.unwrap_or(1);
        if gate.encoding != up.encoding || rows % 32 != 0 {
            continue;
        }
        let outputs = graph.nodes[index].outputs.clone();
        let node = &mut graph.nodes[maker];
        node.op = Op::MatMul {
            prologue: None,
            parts: vec![Part {
                tensors,
                bias: None,
                norm: None,
                epilogue: Epilogue::Glu { activation, to },
            }],
            experts,
        };
        node.outputs = outputs;
        dead.push(index);
    }
    graph.remove_nodes(&dead);
}
