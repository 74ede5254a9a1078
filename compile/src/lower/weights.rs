//! The pack pass: which tensors become which weights, in which layout and order.

use std::collections::{BTreeMap, BTreeSet};

use bundle_format::plan::{ALIGN, DType, Encoding, Slice, Weight, WeightLayout};

use bundle_format::target::Target;

use crate::error::Error;
use crate::ir::{Graph, Op, TensorId, Type};

/// How a target lays matrices out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// But for those that rows of 14 bits are multiplied with, which have a layout of their own.
    pub matrix: WeightLayout,
    /// Rows that gate and up take in turn.
    pub interleave: u32,
}

impl Layout {
    pub fn of(target: Target) -> Layout {
        match target.is_gpu() {
            // Half a tile of each: what goes together is in one.
            true => Layout {
                matrix: WeightLayout::Fragment16,
                interleave: 8,
            },
            // A quantisation block of the result.
            false => Layout {
                matrix: WeightLayout::Interleave8,
                interleave: bundle_format::plan::Q8_BLOCK as u32,
            },
        }
    }
}

/// The weights of a plan, and what they are made of.
pub struct Weights {
    pub list: Vec<Weight>,
    layout: Layout,
    /// Tensors of the matrices that lie in pairs.
    paired: BTreeSet<Vec<TensorId>>,
    /// Tensors of each weight, and its index.
    index: BTreeMap<Vec<TensorId>, u32>,
}

impl Weights {
    /// Chooses the weights in the order in which nodes first read them, which is the order in the file: a step reads
    /// forward.
    pub fn choose(graph: &Graph, layout: Layout) -> Result<Weights, Error> {
        let mut weights = Weights {
            list: Vec::new(),
            layout,
            paired: paired(graph),
            index: BTreeMap::new(),
        };
        for node in &graph.nodes {
            match &node.op {
                Op::Embed { table, .. } => weights.add_matrix(graph, &[*table])?,
                Op::RopeTable { freqs, .. } => weights.add_vector(graph, &[*freqs])?,
                Op::RmsNorm { weight, post, .. } => {
                    for weight in post.iter().chain([weight]) {
                        weights.add_vector(graph, &[*weight])?;
                    }
                }
                Op::Bias { bias } => weights.add_vector(graph, &[*bias])?,
                Op::HeadNorm { norm } => weights.add_vector(graph, &[norm.weight])?,
                Op::MatMul {
                    prologue, parts, ..
                } => {
                    if let Some(norm) = prologue {
                        for weight in norm.post.iter().chain([&norm.weight]) {
                            weights.add_vector(graph, &[*weight])?;
                        }
                    }
                    for part in parts {
                        weights.add_matrix(graph, &part.tensors)?;
                        for vector in part
                            .bias
                            .iter()
                            .chain(part.norm.as_ref().map(|n| &n.weight))
                        {
                            weights.add_vector(graph, &[*vector])?;
                        }
                    }
                }
                Op::Input(_)
                | Op::GatherRows { .. }
                | Op::Add
                | Op::Quantise { .. }
                | Op::Rope { .. }
                | Op::KvWrite { .. }
                | Op::Attention { .. }
                | Op::Glu { .. }
                | Op::Route { .. }
                | Op::Combine { .. } => {}
            }
        }
        let mut offset = 0;
        for weight in &mut weights.list {
            weight.offset = offset;
            offset = (offset + weight.len).next_multiple_of(ALIGN as u64);
        }
        Ok(weights)
    }

    /// The weight made of these tensors.
    pub fn of(&self, tensors: &[TensorId]) -> Result<u32, Error> {
        let found = self.index.get(tensors).copied();
        found.ok_or_else(|| Error::Bug(format!("no weight was packed of tensors {tensors:?}")))
    }

    /// Rows that gate and up take in turn.
    pub fn interleave(&self) -> u32 {
        self.layout.interleave
    }

    fn add_vector(&mut self, graph: &Graph, tensors: &[TensorId]) -> Result<(), Error> {
        self.add(graph, tensors, WeightLayout::RowMajor)
    }

    fn add_matrix(&mut self, graph: &Graph, tensors: &[TensorId]) -> Result<(), Error> {
        let layout = match graph.tensor(tensors[0]).encoding {
            // A router's: matrix units would round it.
            Encoding::F32 if self.layout.matrix == WeightLayout::Fragment16 => {
                WeightLayout::RowMajor
            }
            _ if self.paired.contains(tensors) => WeightLayout::Pairs8,
            _ => self.layout.matrix,
        };
        self.add(graph, tensors, layout)
    }

    fn add(
        &mut self,
        graph: &Graph,
        tensors: &[TensorId],
        layout: WeightLayout,
    ) -> Result<(), Error> {
        if self.index.contains_key(tensors) {
            return Ok(());
        }
        let first = graph.tensor(tensors[0]);
        let slices: Vec<Slice> = tensors
            .iter()
            .map(|&t| Slice {
                tensor: graph.tensor(t).name.clone(),
                rows: graph.tensor(t).rows,
            })
            .collect();
        let rows = slices.iter().map(|s| s.rows).sum();
        let name = slices
            .iter()
            .map(|s| s.tensor.as_str())
            .collect::<Vec<_>>()
            .join("+");
        let (encoding, cols) = (first.encoding, first.cols);
        let len = kernels::pack::weight_len(encoding, layout, rows as u64, cols as u64)
            .ok_or_else(|| {
                let reason = format!("weight '{name}': {cols} columns of {encoding:?}");
                match layout {
                    WeightLayout::Fragment16 => Error::Unsupported(format!(
                        "{reason}: this target takes F16 and quantised matrices of a multiple of 64 columns; compile the \
                         model for cpu, or convert it"
                    )),
                    _ => Error::Bug(format!("{reason} are not whole blocks")),
                }
            })?;
        self.index.insert(tensors.to_vec(), self.list.len() as u32);
        self.list.push(Weight {
            name,
            encoding,
            layout,
            rows,
            cols,
            offset: 0,
            len,
            interleave: if slices.len() > 1 {
                self.layout.interleave
            } else {
                0
            },
            pairs: 0,
            slices,
            shard: None,
        });
        Ok(())
    }
}

/// Tensors of the matrices that rows of 14 bits are multiplied with. They lie in pairs for whatever else reads them: an embedding table
/// that is the head, too.
fn paired(graph: &Graph) -> BTreeSet<Vec<TensorId>> {
    let mut paired = BTreeSet::new();
    for node in &graph.nodes {
        let Op::MatMul { parts, .. } = &node.op else {
            continue;
        };
        let x = graph.ty(node.inputs[0]);
        if matches!(
            x,
            Type::Rows {
                dtype: DType::Q14,
                ..
            }
        ) {
            paired.extend(parts.iter().map(|part| part.tensors.clone()));
        }
    }
    paired
}
