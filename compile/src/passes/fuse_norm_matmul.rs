//! Norms in the prologue of the matmul that reads them.
//!
//! A step of one row spends more time on starting a norm, and on waiting for its end, than on norming: each block of the
//! matmul norms the row for itself, with its first weights already on their way.

use bundle_format::plan::DType;

use crate::ir::{Graph, Op, Prologue, ValueId};

/// A norm in f16 that one matmul alone reads becomes that matmul's prologue, with the sum that it gives. Norms that keep or gather
/// rows stay: what they keep is wanted without the product, too.
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
        let Some(user) = sums.pop().and_then(|x| graph.only_user(x)) else {
            continue;
        };
        // The sum is made where the product is: its users must come behind.
        let early = |&sum: &ValueId| graph.users(sum).iter().any(|&at| at <= user);
        if sums.iter().any(early) {
            continue;
        }
        let inputs = graph.nodes[index].inputs.clone();
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
        });
        node.inputs.splice(..1, inputs);
        node.outputs.splice(..0, sums);
        dead.push(index);
    }
    graph.remove_nodes(&dead);
}
