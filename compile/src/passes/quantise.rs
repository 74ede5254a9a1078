//! Activations in the precision that the weights are multiplied in.

use std::collections::BTreeMap;

use bundle_format::plan::DType;

use crate::ir::verify::activations;
use crate::ir::{Graph, Node, Op, Type, ValueId};

/// Puts a `quantise` before the matmuls of quantised weights, one for each value however many matmuls read it.
pub fn quantise_activations(graph: &mut Graph) {
    let mut quantised: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        if let Op::MatMul { parts } = &node.op {
            let wants = activations(graph.tensor(parts[0].tensors[0]).encoding);
            let x = node.inputs[0];
            if wants == DType::Q8
                && matches!(
                    graph.ty(x),
                    Type::Rows {
                        dtype: DType::F32,
                        ..
                    }
                )
            {
                let q = *quantised.entry(x).or_insert_with(|| {
                    let q = graph.new_value(graph.ty(x).with_dtype(DType::Q8));
                    let name = format!("{}.x", node.name);
                    nodes.push(Node {
                        name,
                        op: Op::Quantise,
                        inputs: vec![x],
                        outputs: vec![q],
                    });
                    q
                });
                node.inputs[0] = q;
            }
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
}
