//! From the graph to the plan: values become buffers, tensors become packed weights, nodes become launches.
//!
//! [`weights`] what is packed and how, [`regions`] the element-wise code of each node, [`specialise`] the variants of each
//! launch, [`memory`] where buffers lie. Code is added by `codegen`.

pub mod gpu;
pub mod memory;
pub mod regions;
pub mod specialise;
pub mod weights;

use std::collections::BTreeMap;

use bundle_format::plan::{
    Buffer, DType, Dim, Input, Launch, Limits, Op as PlanOp, Output, Place, Plan, Role, Segment,
};
use bundle_format::region::Region;
use bundle_format::target::Target;

use crate::error::Error;
use crate::ir::{Epilogue, Graph, Node, Op, Type, ValueId};
use regions::{Chain, KvPlace, Sink};
use weights::{Layout, Weights};

/// Makes the plan of a graph for a target. Variants name microkernels and tile shapes, but no code yet.
pub fn lower(graph: &Graph, target: Target, limits: Limits) -> Result<Plan, Error> {
    let layout = Layout::of(target);
    let weights = Weights::choose(graph, layout)?;
    let mut buffers = Buffers::new(graph);
    let mut launches = Vec::new();
    for node in &graph.nodes {
        let Some(op) = lower_node(graph, node, &mut buffers, &weights)? else {
            continue;
        };
        launches.push(Launch {
            name: node.name.clone(),
            deps: Vec::new(),
            op,
            variants: Vec::new(),
        });
    }
    let mut plan = Plan {
        limits,
        world_size: 1,
        kv: graph.kv.clone(),
        buffers: buffers.list,
        arena_bytes: 0,
        weights: weights.list,
        launches,
        sampling: None,
        stability: Vec::new(),
    };
    if target.is_gpu() {
        gpu::arrange(&mut plan);
    }
    memory::place(&mut plan)?;
    memory::depend(&mut plan);
    if !target.is_gpu() {
        specialise::specialise(&mut plan, target)?;
    }
    Ok(plan)
}

/// The buffers of values, made in order of first use.
struct Buffers {
    list: Vec<Buffer>,
    of: BTreeMap<ValueId, u32>,
}

impl Buffers {
    /// The inputs first: every plan has all of them.
    fn new(graph: &Graph) -> Buffers {
        let mut buffers = Buffers {
            list: Vec::new(),
            of: BTreeMap::new(),
        };
        let groups = 0..graph.kv.len() as u32;
        let inputs = [
            Input::Tokens,
            Input::Positions,
            Input::Sequences,
            Input::Rows,
        ];
        for input in inputs.into_iter().chain(groups.map(Input::Slots)) {
            let (name, extent) = match input {
                Input::Tokens => ("tokens".to_string(), Dim::Tokens),
                Input::Positions => ("positions".to_string(), Dim::Tokens),
                Input::Sequences => ("sequences".to_string(), Dim::Tokens),
                Input::Rows => ("rows".to_string(), Dim::Rows),
                Input::Slots(group) => (format!("slots.{group}"), Dim::Tokens),
            };
            let node = graph.nodes.iter().find(|n| n.op == Op::Input(input));
            if let Some(node) = node {
                buffers
                    .of
                    .insert(node.outputs[0], buffers.list.len() as u32);
            }
            let place = Place {
                offset: 0,
                role: Role::Input(input),
            };
            buffers.list.push(Buffer {
                name,
                dtype: DType::U32,
                extent,
                cols: 1,
                place,
            });
        }
        buffers
    }

    /// The buffer of a value; made if the value is new.
    fn get(&mut self, graph: &Graph, value: ValueId, name: &str) -> Result<u32, Error> {
        if let Some(&buffer) = self.of.get(&value) {
            return Ok(buffer);
        }
        let Type::Rows { dtype, dim, cols } = graph.ty(value) else {
            return Err(Error::Bug(format!(
                "value %{} of '{name}' is an effect and has no buffer",
                value.0
            )));
        };
        let (name, role) = if value == graph.logits {
            ("logits", Role::Output(Output::Logits))
        } else if Some(value) == graph.hidden {
            ("hidden", Role::Output(Output::Hidden))
        } else {
            (name, Role::Scratch)
        };
        let buffer = self.list.len() as u32;
        self.list.push(Buffer {
            name: name.to_string(),
            dtype,
            extent: dim,
            cols,
            place: Place { offset: 0, role },
        });
        self.of.insert(value, buffer);
        Ok(buffer)
    }

    /// A new buffer for what a matmul's prologue makes of its input.
    fn normed(&mut self, graph: &Graph, node: &Node) -> Result<u32, Error> {
        let Type::Rows { dim, cols, .. } = graph.ty(node.inputs[0]) else {
            return Err(Error::Bug(format!("node '{}' norms an effect", node.name)));
        };
        self.list.push(Buffer {
            name: format!("{}.x", node.name),
            dtype: DType::F16,
            extent: dim,
            cols,
            place: Place {
                offset: 0,
                role: Role::Scratch,
            },
        });
        Ok(self.list.len() as u32 - 1)
    }
}

/// The launch of a node; none for inputs.
fn lower_node(
    graph: &Graph,
    node: &Node,
    buffers: &mut Buffers,
    weights: &Weights,
) -> Result<Option<PlanOp>, Error> {
    let normed = match &node.op {
        Op::MatMul {
            prologue: Some(_), ..
        } => Some(buffers.normed(graph, node)?),
        _ => None,
    };
    let mut of =
        |value: ValueId, suffix: &str| buffers.get(graph, value, &format!("{}{suffix}", node.name));
    let inputs: Vec<Option<u32>> = node
        .inputs
        .iter()
        .map(|&v| {
            if graph.ty(v) == Type::Kv {
                Ok(None)
            } else {
                of(v, "").map(Some)
            }
        })
        .collect::<Result<_, _>>()?;
    let input = |i: usize| {
        let found = inputs.get(i).copied().flatten();
        found.ok_or_else(|| Error::Bug(format!("node '{}' has no data input {i}", node.name)))
    };
    let rows_of = |v: ValueId| match graph.ty(v) {
        Type::Rows { dim, cols, .. } => Ok((dim, cols)),
        Type::Kv => Err(Error::Bug(format!(
            "node '{}': an effect where rows were expected",
            node.name
        ))),
    };
    let region = |extent: Dim, region: Region| Ok(Some(PlanOp::Region { extent, region }));
    match &node.op {
        Op::Input(_) => Ok(None),
        Op::Embed { table, scale } => Ok(Some(PlanOp::Embed {
            tokens: input(0)?,
            table: weights.of(&[*table])?,
            out: of(node.outputs[0], "")?,
            scale: *scale,
        })),
        Op::RopeTable { freqs, mscale } => Ok(Some(PlanOp::RopeTable {
            positions: input(0)?,
            freqs: weights.of(&[*freqs])?,
            out: of(node.outputs[0], "")?,
            mscale: *mscale,
        })),
        Op::GatherRows { to } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            region(
                dim,
                regions::gather(input(0)?, input(1)?, of(node.outputs[0], "")?, cols, *to),
            )
        }
        Op::Add => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            region(
                dim,
                regions::add(input(0)?, input(1)?, of(node.outputs[0], "")?, cols),
            )
        }
        Op::RmsNorm {
            weight,
            eps,
            add,
            post,
            gather,
            keep,
            to,
        } => {
            let out = *node.outputs.last().unwrap_or(&graph.logits);
            let (dim, cols) = rows_of(out)?;
            let norm = regions::RmsNorm {
                x: input(0)?,
                residual: if *add { Some(input(1)?) } else { None },
                rows: if *gather {
                    Some(input(1 + *add as usize)?)
                } else {
                    None
                },
                sum: if *add && !*gather {
                    Some(of(node.outputs[0], ".sum")?)
                } else {
                    None
                },
                kept: match node.outputs[..] {
                    [.., kept, _] if *keep => Some((of(kept, ".kept")?, DType::F32)),
                    _ => None,
                },
                post: post.map(|p| weights.of(&[p])).transpose()?,
                weight: weights.of(&[*weight])?,
                eps: *eps,
                out: of(out, "")?,
                to: *to,
                cols,
            };
            region(dim, norm.build())
        }
        Op::Quantise { to } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            region(
                dim,
                regions::quantise(input(0)?, of(node.outputs[0], "")?, cols, *to),
            )
        }
        Op::Glu { activation, to } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            let out = of(node.outputs[0], "")?;
            region(
                dim,
                regions::glu(*activation, input(0)?, input(1)?, out, cols, *to),
            )
        }
        Op::Bias { bias } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            let to = Sink::Buffer(of(node.outputs[0], "")?);
            let bias = Some(weights.of(&[*bias])?);
            let chain = Chain {
                bias,
                ..chain(Some(input(0)?), to, cols)
            };
            region(dim, build(chain, node)?)
        }
        Op::HeadNorm { norm } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            let to = Sink::Buffer(of(node.outputs[0], "")?);
            let head_dim = Some(graph.tensor(norm.weight).cols);
            let norm = Some((weights.of(&[norm.weight])?, norm.eps));
            let chain = Chain {
                norm,
                head_dim,
                ..chain(Some(input(0)?), to, cols)
            };
            region(dim, build(chain, node)?)
        }
        Op::Rope { head_dim, halves } => {
            if !halves {
                let name = &node.name;
                return Err(Error::Bug(format!(
                    "node '{name}' still rotates interleaved pairs"
                )));
            }
            let (dim, cols) = rows_of(node.outputs[0])?;
            let to = Sink::Buffer(of(node.outputs[0], "")?);
            let (table, head_dim) = (Some(input(1)?), Some(*head_dim));
            let chain = Chain {
                table,
                head_dim,
                ..chain(Some(input(0)?), to, cols)
            };
            region(dim, build(chain, node)?)
        }
        Op::KvWrite { group, layer, part } => {
            let (dim, cols) = rows_of(node.inputs[0])?;
            let place = KvPlace {
                group: *group,
                layer: *layer,
                part: *part,
            };
            let to = Sink::Kv {
                place,
                slots: input(1)?,
            };
            let head_dim = Some(graph.kv[*group as usize].head_dim);
            region(
                dim,
                build(
                    Chain {
                        head_dim,
                        ..chain(Some(input(0)?), to, cols)
                    },
                    node,
                )?,
            )
        }
        Op::Attention {
            group,
            layer,
            heads,
            scale,
            to,
        } => {
            let head_dim = graph.kv[*group as usize].head_dim;
            let out = of(node.outputs[0], "")?;
            let epilogue = regions::attention_epilogue(out, *heads * head_dim, head_dim, *to);
            let (q, group, layer, heads, scale) = (input(0)?, *group, *layer, *heads, *scale);
            Ok(Some(PlanOp::Attention {
                q,
                group,
                layer,
                heads,
                scale,
                epilogue,
            }))
        }
        Op::Route {
            used: _,
            renormalise,
            scale,
        } => {
            let [weights, places, tokens, starts] = node.outputs[..] else {
                return Err(Error::Bug(format!(
                    "node '{}' has {} results, expected 4",
                    node.name,
                    node.outputs.len()
                )));
            };
            Ok(Some(PlanOp::Route {
                logits: input(0)?,
                renormalise: *renormalise,
                scale: *scale,
                weights: of(weights, ".weights")?,
                places: of(places, ".places")?,
                tokens: of(tokens, ".tokens")?,
                starts: of(starts, ".starts")?,
            }))
        }
        Op::Combine { shared } => {
            let (dim, cols) = rows_of(node.outputs[0])?;
            let (_, used) = rows_of(node.inputs[2])?;
            let combine = regions::Combine {
                y: input(0)?,
                places: input(1)?,
                weights: input(2)?,
                used,
                shared: match shared {
                    true => Some((input(3)?, input(4)?)),
                    false => None,
                },
                out: of(node.outputs[0], "")?,
                cols,
            };
            region(dim, combine.build())
        }
        Op::MatMul {
            prologue,
            parts,
            experts,
        } => {
            let each = experts.unwrap_or(1);
            let rotates = parts.iter().any(|p| p.epilogue.rotates());
            // Behind x and the residual: the table, then the slots.
            let adds = prologue.is_some_and(|norm| norm.add);
            let keeps = prologue.is_some_and(|norm| norm.keep);
            let table = 1 + adds as usize;
            let first = match (prologue, normed) {
                (Some(norm), Some(out)) => {
                    let (_, cols) = rows_of(node.inputs[0])?;
                    let norm = regions::RmsNorm {
                        x: input(0)?,
                        residual: adds.then(|| input(1)).transpose()?,
                        rows: None,
                        sum: adds.then(|| of(node.outputs[0], ".sum")).transpose()?,
                        kept: match node.outputs.get(adds as usize) {
                            Some(&kept) if keeps => Some((of(kept, ".kept")?, DType::F16)),
                            _ => None,
                        },
                        post: norm.post.map(|p| weights.of(&[p])).transpose()?,
                        weight: weights.of(&[norm.weight])?,
                        eps: norm.eps,
                        out,
                        to: DType::F16,
                        cols,
                    };
                    Some(norm.build())
                }
                _ => None,
            };
            let results = &node.outputs[adds as usize + keeps as usize..];
            let mut segments = Vec::new();
            for (part, &result) in parts.iter().zip(results) {
                let rows: u32 = part.tensors.iter().map(|&t| graph.tensor(t).rows).sum();
                let cols = rows / each;
                let suffix = suffix(graph, part.tensors[0], parts.len());
                let mut out = || of(result, &suffix);
                let slots = || input(table + rotates as usize);
                let (to, head_dim) = match part.epilogue {
                    Epilogue::Store => (Sink::Buffer(out()?), None),
                    Epilogue::Rope { head_dim } => (Sink::Buffer(out()?), Some(head_dim)),
                    Epilogue::KvWrite {
                        group, layer, part, ..
                    } => {
                        let place = KvPlace { group, layer, part };
                        let head_dim = graph.kv[group as usize].head_dim;
                        (
                            Sink::Kv {
                                place,
                                slots: slots()?,
                            },
                            Some(head_dim),
                        )
                    }
                    Epilogue::Glu { activation, to } => {
                        let epilogue = regions::glu_epilogue(
                            activation,
                            out()?,
                            cols,
                            to,
                            weights.interleave(),
                        );
                        segments.push(Segment {
                            weight: weights.of(&part.tensors)?,
                            epilogue,
                        });
                        continue;
                    }
                };
                let norm = part
                    .norm
                    .map(|n| Ok::<_, Error>((weights.of(&[n.weight])?, n.eps)));
                let norm_dim = part.norm.map(|n| graph.tensor(n.weight).cols);
                let chain = Chain {
                    bias: part.bias.map(|b| weights.of(&[b])).transpose()?,
                    norm: norm.transpose()?,
                    table: if part.epilogue.rotates() {
                        Some(input(table)?)
                    } else {
                        None
                    },
                    head_dim: head_dim.or(norm_dim),
                    ..chain(None, to, cols)
                };
                let epilogue = build(chain, node)?;
                segments.push(Segment {
                    weight: weights.of(&part.tensors)?,
                    epilogue,
                });
            }
            let x = match normed {
                Some(x) => x,
                None => input(0)?,
            };
            Ok(Some(match experts {
                None => PlanOp::MatMul {
                    x,
                    prologue: first,
                    segments,
                },
                Some(_) => PlanOp::ExpertMatMul {
                    x,
                    tokens: input(1)?,
                    starts: input(2)?,
                    segments,
                },
            }))
        }
    }
}

/// A chain of nothing but a store.
fn chain(from: Option<u32>, to: Sink, cols: u32) -> Chain {
    Chain {
        from,
        bias: None,
        norm: None,
        table: None,
        to,
        head_dim: None,
        cols,
    }
}

fn build(chain: Chain, node: &Node) -> Result<Region, Error> {
    let missing = || Error::Bug(format!("node '{}' works on heads of no size", node.name));
    chain.build().ok_or_else(missing)
}

/// What tells the results of a matmul of several parts apart: `.attn_q`.
fn suffix(graph: &Graph, tensor: crate::ir::TensorId, parts: usize) -> String {
    let name = graph.tensor(tensor).name.trim_end_matches(".weight");
    if parts == 1 {
        String::new()
    } else {
        format!(".{}", name.rsplit('.').next().unwrap_or(name))
    }
}
