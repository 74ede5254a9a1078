//! The rules of the graph. A pass that breaks one is our bug, found before it becomes a wrong answer.

use std::collections::BTreeSet;

use bundle_format::plan::{DType, Dim, Encoding, Input, Q8_BLOCK};

use super::graph::{Graph, Node, TensorId, ValueId};
use super::op::{Epilogue, Op, Type};

/// Checks every rule: values are made once and before use, and each node's operands have the types that its operation
/// takes and gives. The error names the node and the rule.
pub fn verify(graph: &Graph) -> Result<(), String> {
    let mut made = BTreeSet::new();
    for node in &graph.nodes {
        let fail = |what: String| Err(format!("node '{}' ({}): {what}", node.name, node.op.name()));
        for &v in &node.inputs {
            if v.0 as usize >= graph.values.len() || !made.contains(&v) {
                return fail(format!("%{} is used before it is made", v.0));
            }
        }
        for &v in &node.outputs {
            if v.0 as usize >= graph.values.len() || !made.insert(v) {
                return fail(format!("%{} is made twice or out of range", v.0));
            }
        }
        if let Err(what) = check_node(graph, node) {
            return fail(what);
        }
    }
    for result in graph.hidden.into_iter().chain([graph.logits]) {
        if !made.contains(&result) {
            return Err(format!("the result %{} is never made", result.0));
        }
        match graph.ty(result) {
            Type::Rows {
                dtype: DType::F32,
                dim: Dim::Rows,
                ..
            } => {}
            other => return Err(format!("a result is {other:?}, expected f32 rows of R")),
        }
    }
    Ok(())
}

fn check_node(graph: &Graph, node: &Node) -> Result<(), String> {
    let inputs: Vec<Type> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let outputs: Vec<Type> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
    let expected = result_types(graph, node, &inputs)?;
    if outputs != expected {
        return Err(format!("gives {outputs:?}, expected {expected:?}"));
    }
    Ok(())
}

/// The types that a node's outputs must have, given those of its inputs.
fn result_types(graph: &Graph, node: &Node, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let wrong = || Err(format!("takes {inputs:?}, which it can't"));
    Ok(match &node.op {
        Op::Input(input) => {
            if !inputs.is_empty() {
                return wrong();
            }
            vec![Type::u32(match input {
                Input::Rows => Dim::Rows,
                Input::Tokens | Input::Positions | Input::Sequences | Input::Slots(_) => {
                    Dim::Tokens
                }
            })]
        }
        Op::Embed { table, .. } => {
            if inputs != [Type::u32(Dim::Tokens)] {
                return wrong();
            }
            vec![Type::f32(Dim::Tokens, tensor(graph, *table)?.1)]
        }
        Op::RopeTable { freqs, .. } => {
            if inputs != [Type::u32(Dim::Tokens)] {
                return wrong();
            }
            vec![Type::f32(Dim::Tokens, vector(graph, *freqs)? * 2)]
        }
        Op::GatherRows { to } => match inputs {
            [
                Type::Rows {
                    dtype: DType::F32,
                    dim: Dim::Tokens,
                    cols,
                },
                Type::Rows {
                    dtype: DType::U32,
                    dim: dim @ (Dim::Rows | Dim::Pairs(_)),
                    cols: 1,
                },
            ] => {
                if *to != DType::F32 {
                    whole_blocks(*cols, *to)?;
                }
                vec![Type::f32(*dim, *cols).with_dtype(*to)]
            }
            _ => return wrong(),
        },
        Op::Add => match inputs {
            [
                a @ Type::Rows {
                    dtype: DType::F32, ..
                },
                b,
            ] if a == b => vec![*a],
            _ => return wrong(),
        },
        Op::RmsNorm {
            weight,
            add,
            post,
            gather,
            keep,
            to,
            ..
        } => {
            let [
                x @ Type::Rows {
                    dtype: DType::F32,
                    dim,
                    cols,
                },
                rest @ ..,
            ] = inputs
            else {
                return wrong();
            };
            let mut rest = rest.iter();
            if *add && rest.next() != Some(x) {
                return wrong();
            }
            if *gather && (rest.next() != Some(&Type::u32(Dim::Rows)) || *dim != Dim::Tokens) {
                return wrong();
            }
            if rest.next().is_some() || vector(graph, *weight)? != *cols {
                return wrong();
            }
            if let Some(post) = post
                && (!*add || vector(graph, *post)? != *cols)
            {
                return Err("norms a residual that it doesn't add or that has another size".into());
            }
            let out = Type::f32(if *gather { Dim::Rows } else { *dim }, *cols);
            if *to != DType::F32 {
                whole_blocks(*cols, *to)?;
            }
            let sum = (*add && !*gather).then_some(out);
            if *keep && *to == DType::F32 {
                return Err("keeps beside its result what is the same".into());
            }
            let kept = keep.then_some(out);
            let results = sum.into_iter().chain(kept);
            results.chain([out.with_dtype(*to)]).collect()
        }
        Op::Bias { bias } => match inputs {
            [
                x @ Type::Rows {
                    dtype: DType::F32,
                    cols,
                    ..
                },
            ] if vector(graph, *bias)? == *cols => vec![*x],
            _ => return wrong(),
        },
        Op::HeadNorm { norm } => match inputs {
            [
                x @ Type::Rows {
                    dtype: DType::F32,
                    cols,
                    ..
                },
            ] if cols % vector(graph, norm.weight)? == 0 => vec![*x],
            _ => return wrong(),
        },
        Op::Quantise { to } => match inputs {
            [
                x @ Type::Rows {
                    dtype: DType::F32,
                    cols,
                    ..
                },
            ] => {
                whole_blocks(*cols, *to)?;
                vec![x.with_dtype(*to)]
            }
            _ => return wrong(),
        },
        Op::MatMul {
            prologue,
            parts,
            experts,
        } => {
            let [x @ Type::Rows { dtype, dim, cols }, rest @ ..] = inputs else {
                return wrong();
            };
            let (dim, rest, experts) = match (experts, rest) {
                (None, rest) => (dim, rest, 1),
                // Its rows are pairs.
                (
                    Some(experts),
                    [
                        Type::Rows {
                            dtype: DType::U32,
                            dim: pairs @ Dim::Pairs(_),
                            cols: 1,
                        },
                        starts,
                        rest @ ..,
                    ],
                ) if *starts == Type::indices(Dim::One, experts + 1)
                    && (dim == pairs || *dim == Dim::Tokens) =>
                {
                    (pairs, rest, *experts)
                }
                _ => return wrong(),
            };
            let mut rest = rest.iter();
            let mut outputs = Vec::new();
            if let Some(norm) = prologue {
                if experts != 1 {
                    return Err("norms the rows of experts".into());
                }
                if *dtype != DType::F32 || norm.add && rest.next() != Some(x) {
                    return wrong();
                }
                for weight in norm.post.iter().chain([&norm.weight]) {
                    if vector(graph, *weight)? != *cols {
                        return wrong();
                    }
                }
                if norm.post.is_some() && !norm.add {
                    return Err("norms a residual that it doesn't add".into());
                }
                outputs.extend(norm.add.then_some(*x));
                outputs.extend(norm.keep.then(|| x.with_dtype(DType::F16)));
            }
            let table = if parts.iter().any(|p| p.epilogue.rotates()) {
                rest.next()
            } else {
                None
            };
            let slots = if parts.iter().any(|p| p.epilogue.writes_kv()) {
                rest.next()
            } else {
                None
            };
            if rest.next().is_some()
                || slots.is_some_and(|&s| s != Type::u32(Dim::Tokens))
                || parts.is_empty()
            {
                return wrong();
            }
            for part in parts {
                let mut rows = 0;
                for &t in &part.tensors {
                    let (encoding, k, n) = tensor(graph, t)?;
                    if k != *cols {
                        return Err(format!(
                            "multiplies {cols} columns with '{}' of {k}",
                            graph.tensor(t).name
                        ));
                    }
                    if !multiplies(encoding, *dtype) {
                        return Err(format!(
                            "multiplies {dtype:?} with {encoding:?} of '{}'",
                            graph.tensor(t).name
                        ));
                    }
                    if n % experts != 0 {
                        return Err(format!("{n} rows of {experts} experts"));
                    }
                    rows += n / experts;
                }
                let features = match part.epilogue {
                    Epilogue::Glu { .. } if part.bias.is_some() || part.norm.is_some() => {
                        return Err("a gate with a bias or a norm".into());
                    }
                    _ => rows,
                };
                if let Some(bias) = part.bias
                    && vector(graph, bias)? != features
                {
                    return Err(format!("a bias of another size than {features}"));
                }
                let norm_dim = part.norm.map(|n| vector(graph, n.weight)).transpose()?;
                if norm_dim.is_some_and(|n| features % n != 0) {
                    return Err(format!(
                        "norms heads of {norm_dim:?} in {features} features"
                    ));
                }
                let head = |head_dim: u32| {
                    if norm_dim.is_some_and(|n| n != head_dim) {
                        return Err(format!("norms heads of {norm_dim:?}, rotates {head_dim}"));
                    }
                    if rows % head_dim != 0 || table != Some(&Type::f32(Dim::Tokens, head_dim)) {
                        return Err(format!(
                            "rotates heads of {head_dim} in {rows} features with table {table:?}"
                        ));
                    }
                    Ok(())
                };
                outputs.push(match part.epilogue {
                    Epilogue::Store => Type::f32(*dim, rows),
                    Epilogue::Rope { head_dim } => {
                        head(head_dim)?;
                        Type::f32(*dim, rows)
                    }
                    Epilogue::KvWrite { rope, group, .. } => {
                        if let Some(head_dim) = rope {
                            head(head_dim)?;
                        }
                        kv_cols(graph, group, rows)?;
                        Type::Kv
                    }
                    Epilogue::Glu { to, .. } => {
                        let [gate, up] = part.tensors[..] else {
                            return Err("a gate takes two tensors".into());
                        };
                        if graph.tensor(gate).rows != graph.tensor(up).rows
                            || graph.tensor(gate).encoding != graph.tensor(up).encoding
                        {
                            return Err("gate and up differ in rows or encoding".into());
                        }
                        whole_blocks(rows / 2, to)?;
                        Type::f32(*dim, rows / 2).with_dtype(to)
                    }
                });
                if part.tensors.len() != 1 && !matches!(part.epilogue, Epilogue::Glu { .. }) {
                    return Err(format!("a part of {} tensors", part.tensors.len()));
                }
            }
            outputs
        }
        Op::Rope { head_dim, .. } => match inputs {
            [
                x @ Type::Rows {
                    dtype: DType::F32,
                    cols,
                    ..
                },
                table,
            ] if *table == Type::f32(Dim::Tokens, *head_dim) && cols % head_dim == 0 => {
                vec![*x]
            }
            _ => return wrong(),
        },
        Op::KvWrite { group, .. } => match inputs {
            [
                Type::Rows {
                    dtype: DType::F32,
                    dim: Dim::Tokens,
                    cols,
                },
                slots,
            ] if *slots == Type::u32(Dim::Tokens) => {
                kv_cols(graph, *group, *cols)?;
                vec![Type::Kv]
            }
            _ => return wrong(),
        },
        Op::Attention {
            group,
            layer,
            heads,
            to,
            ..
        } => {
            let Some(kv) = graph.kv.get(*group as usize) else {
                return Err(format!("no KV group {group}"));
            };
            let cols = heads * kv.head_dim;
            if inputs != [Type::f32(Dim::Tokens, cols), Type::Kv, Type::Kv]
                || *layer >= kv.layers
                || heads % kv.kv_heads != 0
            {
                return wrong();
            }
            vec![inputs[0].with_dtype(*to)]
        }
        Op::Glu { to, .. } => match inputs {
            [
                gate @ Type::Rows {
                    dtype: DType::F32, ..
                },
                up,
            ] if gate == up => vec![gate.with_dtype(*to)],
            _ => return wrong(),
        },
        Op::Route { used, .. } => match inputs {
            [
                Type::Rows {
                    dtype: DType::F32,
                    dim: Dim::Tokens,
                    cols: experts,
                },
            ] if (1..=*experts).contains(used) => vec![
                Type::f32(Dim::Tokens, *used),
                Type::indices(Dim::Tokens, *used),
                Type::u32(Dim::Pairs(*used)),
                Type::indices(Dim::One, experts + 1),
            ],
            _ => return wrong(),
        },
        Op::Combine { shared } => match inputs {
            [
                Type::Rows {
                    dtype: DType::F32,
                    dim: Dim::Pairs(used),
                    cols,
                },
                places,
                weights,
                rest @ ..,
            ] if *places == Type::indices(Dim::Tokens, *used)
                && *weights == Type::f32(Dim::Tokens, *used) =>
            {
                let sum = Type::f32(Dim::Tokens, *cols);
                match (shared, rest) {
                    (false, []) => {}
                    (true, [other, gate])
                        if *other == sum && *gate == Type::f32(Dim::Tokens, 1) => {}
                    _ => return wrong(),
                }
                vec![sum]
            }
            _ => return wrong(),
        },
    })
}

/// Whether matmuls over this encoding take rows of a type: f32 ones all do before the pass that quantises, and f16 ones on GPUs.
pub fn multiplies(encoding: Encoding, rows: DType) -> bool {
    match rows {
        DType::F32 | DType::F16 => true,
        DType::U32 => false,
        DType::Q8 | DType::Q11 | DType::Q14 | DType::Q8K => {
            kernels::quant::activation_types(encoding).contains(&rows)
        }
    }
}

/// Encoding, columns and rows of a tensor.
fn tensor(graph: &Graph, id: TensorId) -> Result<(Encoding, u32, u32), String> {
    let t = graph
        .tensors
        .get(id.0 as usize)
        .ok_or_else(|| format!("no tensor {}", id.0))?;
    Ok((t.encoding, t.cols, t.rows))
}

fn vector(graph: &Graph, id: TensorId) -> Result<u32, String> {
    match tensor(graph, id)? {
        (Encoding::F32, cols, 1) => Ok(cols),
        other => Err(format!(
            "'{}' is {other:?}, expected an f32 vector",
            graph.tensor(id).name
        )),
    }
}

fn kv_cols(graph: &Graph, group: u32, cols: u32) -> Result<(), String> {
    let kv = graph
        .kv
        .get(group as usize)
        .ok_or_else(|| format!("no KV group {group}"))?;
    match kv.kv_heads * kv.head_dim == cols {
        true => Ok(()),
        false => Err(format!(
            "writes {cols} columns into a KV group of {} x {}",
            kv.kv_heads, kv.head_dim
        )),
    }
}

fn whole_blocks(cols: u32, to: DType) -> Result<(), String> {
    // Rows of f16 may lie in blocks, too.
    let block = to.block().max(Q8_BLOCK);
    match cols as usize % block {
        0 => Ok(()),
        _ => Err(format!(
            "quantises {cols} columns, not a multiple of {block}"
        )),
    }
}

/// Whether a value is used at all.
pub fn is_used(graph: &Graph, value: ValueId) -> bool {
    graph.is_result(value) || !graph.users(value).is_empty()
}
