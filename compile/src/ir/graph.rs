//! The graph: tensors, values and nodes in the order of execution.

use std::collections::BTreeMap;

use bundle_format::plan::{Encoding, KvGroup};

use super::op::{Op, Type};

/// Index into [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// Index into [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

/// A constant of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub encoding: Encoding,
    /// Output features; 1 for a vector.
    pub rows: u32,
    /// Input features.
    pub cols: u32,
    pub source: TensorSource,
    pub transform: Transform,
}

/// Where a tensor's elements come from.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorSource {
    /// A GGUF tensor, from a row on.
    File { tensor: String, first_row: u32 },
    /// GGUF tensors of as many rows each, one after the other.
    Stack { tensors: Vec<String> },
    /// The rotary embedding's frequencies: see [`RopeFreqs`].
    RopeFreqs(RopeFreqs),
}

/// `base^(-2i / dim)` for i in 0 .. dim / 2, in f64 rounded to f32 (Su et al., RoFormer, section 3.2.2), scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFreqs {
    pub base: f32,
    pub dim: u32,
    pub scaling: RopeScaling,
    /// A GGUF tensor of dim / 2 factors that the frequencies are divided by.
    pub factors: Option<String>,
}

/// How a model's rotary embedding was stretched beyond its first training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency is divided by the factor (Chen et al., Extending Context Window via Positional Interpolation).
    Linear {
        factor: f32,
    },
    /// Low frequencies are divided by the factor, high ones kept, and those between mixed (Peng et al., YaRN, section
    /// 3.2): the ramp runs over the dimensions that turn `beta_fast` to `beta_slow` times within `original` positions.
    Yarn {
        factor: f32,
        original: u32,
        beta_fast: f32,
        beta_slow: f32,
    },
}

impl RopeFreqs {
    /// The frequencies, given the factors that each is divided by.
    pub fn values(&self, factors: &[f32]) -> Vec<f32> {
        let (base, dim) = (self.base as f64, self.dim as f64);
        // The dimension pair that turns `turns` times within `original` positions.
        let pair_of = |turns: f32, original: u32| {
            dim * (original as f64 / (turns as f64 * std::f64::consts::TAU)).ln()
                / (2.0 * base.ln())
        };
        let freq = |(i, &divisor): (usize, &f32)| {
            let plain = base.powf(-2.0 * i as f64 / dim) / divisor as f64;
            let scaled = match self.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / factor as f64,
                RopeScaling::Yarn {
                    factor,
                    original,
                    beta_fast,
                    beta_slow,
                } => {
                    let low = pair_of(beta_fast, original).floor().max(0.0);
                    let high = pair_of(beta_slow, original).ceil().min(dim - 1.0);
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    plain / factor as f64 * ramp + plain * (1.0 - ramp)
                }
            };
            scaled as f32
        };
        factors.iter().enumerate().map(freq).collect()
    }
}

/// What the packer does to a tensor's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    None,
    /// In each head, row 2i moves to i and row 2i + 1 to i + head_dim / 2, so that rotated pairs are half a head apart.
    RopeHalves {
        head_dim: u32,
    },
}

impl Transform {
    /// The source row of a packed row.
    pub fn source_row(self, row: u32) -> u32 {
        match self {
            Transform::None => row,
            Transform::RopeHalves { head_dim } => {
                let (head, i, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
            }
        }
    }
}

/// An operation with its operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// For people: `blk.0.attn_norm`.
    pub name: String,
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

/// What one step computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// GGUF's name of the architecture.
    pub arch: String,
    pub kv: Vec<KvGroup>,
    pub tensors: Vec<Tensor>,
    pub values: Vec<Type>,
    /// Each value is made by one node, before the nodes that use it.
    pub nodes: Vec<Node>,
    /// f32 `[R, embedding]`: what the output head multiplies, which is a result, too; none in graphs that keep it to
    /// themselves.
    pub hidden: Option<ValueId>,
    /// f32 `[R, vocab]`
    pub logits: ValueId,
}

impl Graph {
    pub fn new(arch: &str) -> Graph {
        Graph {
            arch: arch.to_string(),
            kv: Vec::new(),
            tensors: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            hidden: None,
            logits: ValueId(0),
        }
    }

    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    pub fn ty(&self, id: ValueId) -> Type {
        self.values[id.0 as usize]
    }

    pub fn new_value(&mut self, ty: Type) -> ValueId {
        self.values.push(ty);
        ValueId(self.values.len() as u32 - 1)
    }

    pub fn new_tensor(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        TensorId(self.tensors.len() as u32 - 1)
    }

    /// Appends a node with one output.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[ValueId], ty: Type) -> ValueId {
        let out = self.new_value(ty);
        self.nodes.push(Node {
            name: name.to_string(),
            op,
            inputs: inputs.to_vec(),
            outputs: vec![out],
        });
        out
    }

    /// Which node makes a value, by index.
    pub fn makers(&self) -> BTreeMap<ValueId, usize> {
        let made = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(i, n)| n.outputs.iter().map(move |&v| (v, i)));
        made.collect()
    }

    /// Which nodes use a value, by index, a node as often as it names the value.
    pub fn users(&self, value: ValueId) -> Vec<usize> {
        let uses = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(i, n)| n.inputs.iter().map(move |&v| (v, i)));
        uses.filter(|&(v, _)| v == value).map(|(_, i)| i).collect()
    }

    /// Whether a value is one of the graph's results.
    pub fn is_result(&self, value: ValueId) -> bool {
        value == self.logits || Some(value) == self.hidden
    }

    /// The only user of a value that is not one of the graph's results.
    pub fn only_user(&self, value: ValueId) -> Option<usize> {
        match self.users(value)[..] {
            [user] if !self.is_result(value) => Some(user),
            _ => None,
        }
    }

    /// Removes the marked nodes. Their outputs must be unused.
    pub fn remove_nodes(&mut self, dead: &[usize]) {
        let mut index = 0;
        self.nodes.retain(|_| {
            index += 1;
            !dead.contains(&(index - 1))
        });
    }

    /// Numbers values in the order in which they are made and drops those that no node makes, and tensors that no node
    /// uses, so that equal graphs are equal texts.
    pub fn renumber(&mut self) {
        let mut values = Vec::new();
        let mut map = BTreeMap::new();
        for node in &self.nodes {
            for &out in &node.outputs {
                map.insert(out, ValueId(values.len() as u32));
                values.push(self.values[out.0 as usize]);
            }
        }
        for node in &mut self.nodes {
            for v in node.inputs.iter_mut().chain(node.outputs.iter_mut()) {
                *v = *map.get(v).unwrap_or(v);
            }
        }
        for result in self.hidden.iter_mut().chain([&mut self.logits]) {
            *result = *map.get(result).unwrap_or(result);
        }
        self.values = values;
    }
}
