//! The feed forward of a mixture: a router sends each token to some experts, whose results are summed by its weights.

use bundle_format::plan::{DType, Dim};

use super::Builder;
use crate::error::Error;
use crate::ir::{Node, Op, Part, Type, ValueId};

/// A mixture of experts.
#[derive(Clone, Copy, PartialEq)]
pub struct Mixture {
    pub count: u32,
    /// Of them, for each token.
    pub used: u32,
    /// Hidden features of each.
    pub feed_forward: u32,
    /// Hidden features of one that every token goes to, times a gate of its own.
    pub shared: Option<u32>,
    /// Whether a token's weights are to sum to 1 before they are scaled.
    pub renormalise: bool,
    pub scale: f32,
}

impl Builder<'_, '_, '_> {
    /// The weighted sum of what each token's experts make of it.
    pub(super) fn mixture(
        &mut self,
        layer: u32,
        mixture: &Mixture,
        x: ValueId,
    ) -> Result<ValueId, Error> {
        let model = self.model;
        let embedding = model.embedding;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let Mixture {
            count,
            used,
            feed_forward,
            ..
        } = *mixture;
        let router = name("ffn_gate_inp.weight");
        let router = self
            .import
            .matrix(&mut self.graph, &router, count, embedding)?;
        let logits = self.matmul(&name("ffn_gate_inp"), router, x);
        let [weights, places, tokens, starts] = self.route(&name("route"), mixture, logits);
        // Before the experts: a GPU reads these weights while it routes.
        let shared = match mixture.shared {
            Some(shared) => {
                let gate = name("ffn_gate_inp_shexp.weight");
                let gate = self.import.matrix(&mut self.graph, &gate, 1, embedding)?;
                let gate = self.matmul(&name("ffn_gate_inp_shexp"), gate, x);
                Some([self.gated(layer, "_shexp", shared, x)?, gate])
            }
            None => None,
        };
        let pairs = Dim::Pairs(used);
        let gathered = self.graph.push(
            &name("gather_exps"),
            Op::GatherRows { to: DType::F32 },
            &[x, tokens],
            Type::f32(pairs, embedding),
        );
        let list = [tokens, starts];
        let gate = self.experts(layer, "ffn_gate", (feed_forward, embedding), gathered, list)?;
        let up = self.experts(layer, "ffn_up", (feed_forward, embedding), gathered, list)?;
        let glu = format!("{}_exps", model.activation.glu_name());
        let product = self.glu(&name(&glu), gate, up);
        let y = self.experts(layer, "ffn_down", (embedding, feed_forward), product, list)?;
        let mut inputs = vec![y, places, weights];
        inputs.extend(shared.into_iter().flatten());
        let shared = mixture.shared.is_some();
        let ty = Type::f32(Dim::Tokens, embedding);
        Ok(self
            .graph
            .push(&name("ffn_moe"), Op::Combine { shared }, &inputs, ty))
    }

    /// The product of each pair's row with the matrix of its expert, of so many rows and columns.
    fn experts(
        &mut self,
        layer: u32,
        part: &str,
        (rows, cols): (u32, u32),
        x: ValueId,
        [tokens, starts]: [ValueId; 2],
    ) -> Result<ValueId, Error> {
        let (Type::Rows { cols: columns, .. }, Type::Rows { dim, .. }) =
            (self.graph.ty(starts), self.graph.ty(tokens))
        else {
            return Err(Error::Bug(format!("layer {layer}: a list without rows")));
        };
        let count = columns - 1;
        let tensor = self
            .import
            .experts(&mut self.graph, (layer, part), count, rows, cols)?;
        let op = Op::MatMul {
            prologue: None,
            parts: vec![Part::plain(tensor)],
            experts: Some(count),
        };
        let name = format!("blk.{layer}.{part}_exps");
        let ty = Type::f32(dim, rows);
        Ok(self.graph.push(&name, op, &[x, tokens, starts], ty))
    }

    /// The weights and places of each token's slots, and the tokens and starts of the list of pairs.
    fn route(&mut self, name: &str, mixture: &Mixture, logits: ValueId) -> [ValueId; 4] {
        let Mixture {
            count,
            used,
            renormalise,
            scale,
            ..
        } = *mixture;
        let outputs = [
            Type::f32(Dim::Tokens, used),
            Type::indices(Dim::Tokens, used),
            Type::u32(Dim::Pairs(used)),
            Type::indices(Dim::One, count + 1),
        ]
        .map(|ty| self.graph.new_value(ty));
        self.graph.nodes.push(Node {
            name: name.to_string(),
            op: Op::Route {
                used,
                renormalise,
                scale,
            },
            inputs: vec![logits],
            outputs: outputs.to_vec(),
        });
        outputs
    }
}
