//! Norms in the prologue of the matmul that reads them.
//!
//! A step of one row spends more time on starting a norm, and on waiting for its end, than on norming: each block of the
//! matmul norms the row for itself, with its first weights already on their way.

use bundle_format::plan::{DType, Encoding};

use crate::ir::{Graph, Op, Prologue, ValueId};

/// A norm in f16 that one matmul alone reads becomes that matmul's prologue, with the sum that it gives; so does one that a router
/// reads first, which then keeps what it norms for the others. Norms that keep f32 or gather rows stay: what they keep is wanted
/// without the product, too.
pub fn fuse_norm_matmul(graph: &mut Graph) {
    let mut dead = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::RmsNorm {
            weight,
            eps,
            add,
            post,
            gather: false,
            keep: false,
            to: DType::F16,
        } = graph.nodes[index].op
        else {
            continue;
        };
        let mut sums = graph.nodes[index].outputs.clone();
        let Some(x) = sums.pop().filter(|&x| !graph.is_result(x)) else {
            continue;
        };
        let users = graph.users(x);
        let Some(&user) = users.iter().min() else {
            continue;
        };
        let keep = users.len() > 1;
        // The sum is made where the product is: its users must come behind.
        let early = |&sum: &ValueId| graph.users(sum).iter().any(|&at| at <= user);
        if sums.iter().any(early) {
            continue;
        }
        let inputs = graph.nodes[index].inputs.clone();
        let is_router = |graph: &Graph| match &graph.nodes[user].op {
            Op::MatMul { parts, .. } => {
                let mut tensors = parts.iter().flat_map(|p| &p.tensors);
                tensors.any(|&t| graph.tensor(t).encoding == Encoding::F32)
            }
            _ => false,
        };
        if keep && !is_router(graph) || graph.nodes[user].inputs[0] != x {
            continue;
        }
        let node = &mut graph.nodes[user];
        let Op::MatMul {
            prologue: prologue @ None,
            experts: None,
            ..
        } = &mut node.op
        else {
            continue;
        };
        *prologue = Some(Prologue {
            weight,
            eps,
            add,
            post,
            keep,
        });
        node.inputs.splice(..1, inputs);
        sums.extend(keep.then_some(x));
        node.outputs.splice(..0, sums);
        dead.push(index);
    }
    graph.remove_nodes(&dead);
}
