//! Bias, head norm, rotation and KV write in the epilogues of the matmuls whose results they work on.

use bundle_format::plan::KvGroup;

use crate::ir::{Epilogue, Graph, Op, ValueId};

/// Follows each plain part of a matmul into what its result alone goes through: bias, head norm, rotation, KV write. Norms of heads,
/// and writes with a scale for some of a head, only of heads that divide `together` features, where that is given.
pub fn fuse_rope_kv(graph: &mut Graph, together: Option<u32>) {
    let whole = |head_dim: u32| together.is_none_or(|features| features.is_multiple_of(head_dim));
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::MatMul {
            prologue,
            mut parts,
            experts: None,
        } = graph.nodes[index].op.clone()
        else {
            continue;
        };
        let (mut table, mut slots): (Option<ValueId>, Option<ValueId>) = (None, None);
        for (part, result) in parts.iter_mut().enumerate().map(|(i, p)| (p, i)) {
            if part.epilogue != Epilogue::Store {
                continue;
            }
            let mut value = graph.nodes[index].outputs[result];
            if let Some(user) = graph.only_user(value)
                && let Op::Bias { bias } = graph.nodes[user].op
                && part.norm.is_none()
            {
                part.bias = Some(bias);
                value = graph.nodes[user].outputs[0];
                dead.push(user);
            }
            if let Some(user) = graph.only_user(value)
                && let Op::HeadNorm { norm } = graph.nodes[user].op
                && whole(graph.tensor(norm.weight).cols)
            {
                part.norm = Some(norm);
                value = graph.nodes[user].outputs[0];
                dead.push(user);
            }
            if let Some(user) = graph.only_user(value)
                && let Op::Rope {
                    head_dim,
                    halves: true,
                } = graph.nodes[user].op
                && table.is_none_or(|t| t == graph.nodes[user].inputs[1])
            {
                table = Some(graph.nodes[user].inputs[1]);
                part.epilogue = Epilogue::Rope { head_dim };
                value = graph.nodes[user].outputs[0];
                dead.push(user);
            }
            if let Some(user) = graph.only_user(value)
                && let Op::KvWrite {
                    group,
                    layer,
                    part: kv,
                } = graph.nodes[user].op
                && slots.is_none_or(|s| s == graph.nodes[user].inputs[1])
                && stores_whole_blocks(&graph.kv[group as usize], part.epilogue)
                && (graph.kv[group as usize].dtype.block() == 1
                    || whole(graph.kv[group as usize].head_dim))
            {
                slots = Some(graph.nodes[user].inputs[1]);
                let rope = match part.epilogue {
                    Epilogue::Rope { head_dim } => Some(head_dim),
                    _ => None,
                };
                part.epilogue = Epilogue::KvWrite {
                    rope,
                    group,
                    layer,
                    part: kv,
                };
                value = graph.nodes[user].outputs[0];
                dead.push(user);
            }
            graph.nodes[index].outputs[result] = value;
            // The dead nodes must not be found as users again.
            for &d in &dead {
                graph.nodes[d].inputs.clear();
            }
        }
        let node = &mut graph.nodes[index];
        node.op = Op::MatMul {
            prologue,
            parts,
            experts: None,
        };
        node.inputs.extend(table.into_iter().chain(slots));
    }
    graph.remove_nodes(&dead);
}

/// Whether what an epilogue yields can be stored at once. A rotation yields halves of heads, which must be whole blocks of
/// a quantised cache; else the head goes through memory first.
fn stores_whole_blocks(kv: &KvGroup, epilogue: Epilogue) -> bool {
    match epilogue {
        Epilogue::Rope { head_dim } => (head_dim / 2).is_multiple_of(kv.dtype.block()),
        _ => true,
    }
}
