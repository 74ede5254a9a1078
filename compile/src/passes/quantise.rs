//! Activations in the precision that the weights are multiplied in.

use std::collections::BTreeMap;

use bundle_format::plan::DType;

use super::Settings;
use crate::ir::verify::takes_quantised;
use crate::ir::{Graph, Node, Op, Type, ValueId};

/// How finely activations that meet quantised weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// 11 bits where the rounding of 8 would show: before the head, whose inputs are few, and everywhere in models below
    /// [`SMALL`]. 8 bits elsewhere.
    Auto,
    /// 8 bits.
    Q8,
    /// 11 bits.
    Q11,
    /// f16, for the matrix units of GPUs.
    F16,
}

/// Embedding sizes below which a model is small: the rounding errors of a product's terms average out over its length, and
/// over few terms they don't. Measured on SmolLM2-135M (576): see kernels/NOTES.md, "Activations".
const SMALL: u32 = 1024;

impl Activations {
    /// The type of the input of a matmul over `cols` features, in a model of an embedding size.
    fn of(self, embedding: u32, is_head: bool) -> DType {
        match self {
            Activations::Auto if is_head || embedding < SMALL => DType::Q11,
            Activations::Auto | Activations::Q8 => DType::Q8,
            Activations::Q11 => DType::Q11,
            Activations::F16 => DType::F16,
        }
    }
}

/// Puts a `quantise` before the matmuls of quantised weights, one for each value however many matmuls read it.
pub fn quantise_activations(graph: &mut Graph, settings: &Settings) {
    let embedding = graph.nodes.iter().find_map(|n| match n.op {
        Op::Embed { table, .. } => Some(graph.tensor(table).cols),
        _ => None,
    });
    let embedding = embedding.unwrap_or(SMALL);
    let mut quantised: BTreeMap<(ValueId, bool), ValueId> = BTreeMap::new();
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        let x = node.inputs.first().copied();
        if let (Op::MatMul { parts, .. }, Some(x)) = (&node.op, x)
            && (settings.activations == Activations::F16
                || takes_quantised(graph.tensor(parts[0].tensors[0]).encoding))
            && matches!(
                graph.ty(x),
                Type::Rows {
                    dtype: DType::F32,
                    ..
                }
            )
        {
            let to = settings
                .activations
                .of(embedding, node.outputs.contains(&graph.logits));
            let q = *quantised.entry((x, to == DType::Q11)).or_insert_with(|| {
                let q = graph.new_value(graph.ty(x).with_dtype(to));
                let name = format!("{}.x", node.name);
                nodes.push(Node {
                    name,
                    op: Op::Quantise { to },
                    inputs: vec![x],
                    outputs: vec![q],
                });
                q
            });
            node.inputs[0] = q;
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
}
