//! Activations in the precision that the weights are multiplied in.

use std::collections::{HashMap, HashSet};

use bundle_format::plan::{DType, Q8_BLOCK};

use super::Settings;
use crate::ir::verify::multiplies;
use crate::ir::{Graph, Node, Op, Tensor, Type, ValueId};

/// How finely activations are quantised. On processors those that meet F16 and BF16 have 14 bits if these are whole blocks, whose weights
/// are packed as integers of as many, and are f32 otherwise: what that does to a model's answers is in kernels/NOTES.md, "Weights of 16
/// bits".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// 11 bits where the rounding of 8 would show: before the head, whose inputs are few, and everywhere in models below
    /// [`SMALL`], but not of attention's results in blocks of 32, if they are [enough](FEW_AVERAGES). 8 bits elsewhere.
    Auto,
    /// 8 bits, with a scale for as many as a block of the weights has.
    Q8,
    /// 11 bits.
    Q11,
    /// f32 wherever there are such products, which leave F16 and BF16 as they are; 11 bits with quantised weights.
    F32,
    /// f16, for the matrix units of GPUs, whatever the weights.
    F16,
}

/// Embedding sizes below which a model is small: the rounding errors of a product's terms average out over its length, and
/// over few terms they don't. Measured on SmolLM2-135M (576): see kernels/NOTES.md, "Activations".
const SMALL: u32 = 1024;

/// Of attention's results, which are averages, so many terms are enough.
const FEW_AVERAGES: u32 = 512;

/// Where the rounding of a matmul's inputs to 8 bits would show.
#[derive(Clone, Copy)]
enum Shows {
    Never,
    /// With a scale for 256, not with one for 32.
    InLargeBlocks,
    Always,
}

impl Activations {
    /// The type of the rows that a matmul multiplies with a tensor, given where the rounding of 8 bits would show.
    fn of(self, tensor: &Tensor, shows: Shows) -> DType {
        let encoding = tensor.encoding;
        let whole_blocks = (tensor.cols as usize).is_multiple_of(Q8_BLOCK);
        let of_8_bits = match multiplies(encoding, DType::Q8K) {
            true => DType::Q8K,
            false => DType::Q8,
        };
        match self {
            Activations::F16 => DType::F16,
            Activations::F32 if multiplies(encoding, DType::Q14) => DType::F32,
            _ if multiplies(encoding, DType::Q14) && whole_blocks => DType::Q14,
            _ if !multiplies(encoding, DType::Q11) => DType::F32,
            Activations::Q8 => of_8_bits,
            Activations::Auto => match (shows, of_8_bits) {
                (Shows::Never, _) | (Shows::InLargeBlocks, DType::Q8) => of_8_bits,
                _ => DType::Q11,
            },
            Activations::Q11 | Activations::F32 => DType::Q11,
        }
    }
}

/// Puts a `quantise` before the matmuls whose weights are multiplied with other rows than f32, one for each value and type however
/// many matmuls read it.
pub fn quantise_activations(graph: &mut Graph, settings: &Settings) {
    let embedding = graph.nodes.iter().find_map(|n| match n.op {
        Op::Embed { table, .. } => Some(graph.tensor(table).cols),
        _ => None,
    });
    let is_small = embedding.is_some_and(|embedding| embedding < SMALL);
    let mut averages = HashSet::new();
    let mut quantised: HashMap<(ValueId, DType), ValueId> = HashMap::new();
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        let is_average = match node.op {
            Op::Attention { .. } => true,
            Op::GatherRows { .. } => averages.contains(&node.inputs[0]),
            _ => false,
        };
        if is_average {
            averages.extend(node.outputs.iter().copied());
        }
        let x = node.inputs.first().copied();
        if let (Op::MatMul { parts, .. }, Some(x)) = (&node.op, x)
            && matches!(
                graph.ty(x),
                Type::Rows {
                    dtype: DType::F32,
                    ..
                }
            )
        {
            // Nothing is joined yet: the tensors of one matmul are of one kind.
            let tensor = graph.tensor(parts[0].tensors[0]);
            let is_head = node.outputs.contains(&graph.logits);
            let shows = match (is_head, is_small) {
                (true, _) => Shows::Always,
                (_, false) => Shows::Never,
                (_, true) if averages.contains(&x) && tensor.cols >= FEW_AVERAGES => {
                    Shows::InLargeBlocks
                }
                (_, true) => Shows::Always,
            };
            let to = settings.activations.of(tensor, shows);
            if to != DType::F32 {
                node.inputs[0] = *quantised.entry((x, to)).or_insert_with(|| {
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
            }
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
}
