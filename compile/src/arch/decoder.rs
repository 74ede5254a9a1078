//! The decoder-only transformer that every architecture here is a variant of: x + attention(norm(x)), then
//! x + feed_forward(norm(x)), a number of times. Architectures say how theirs differs ([`Decoder`]); this file builds it.

mod mixture;

use bundle_format::plan::{DType, Dim, Encoding, Input, KvDType, KvGroup};
use bundle_format::region::KvPart;

pub use mixture::Mixture;

use super::config::Sizes;
use super::import::Importer;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{
    Activation, Graph, HeadNorm, Op, Part, RopeFreqs, Tensor, TensorId, TensorSource, Transform,
    Type, ValueId,
};

/// What tells a model from others of its kind.
pub struct Decoder {
    /// GGUF's name of the architecture.
    pub arch: &'static str,
    pub layers: u32,
    pub embedding: u32,
    pub feed_forward: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Rows of the embedding table.
    pub vocab: u32,
    /// Of all norms.
    pub eps: f32,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Factor of the attention's scores.
    pub attention_scale: f32,
    /// The rotary embeddings that layers choose from.
    pub ropes: Vec<Rope>,
    /// Whether rotated dimensions are half a head apart in the file; otherwise they are neighbours.
    pub rope_halves: bool,
    /// Of each layer.
    pub kinds: Vec<LayerKind>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether each head's query and key is normed.
    pub qk_norm: bool,
    /// Whether what attention and feed forward add is normed first.
    pub post_norms: bool,
    /// Whether the file has one tensor for query, key and value, and one for gate and up.
    pub joined: bool,
    pub activation: Activation,
    /// The experts in place of every layer's feed forward.
    pub mixture: Option<Mixture>,
    /// Tensors of the file that this model, for its context, does without.
    pub unused: &'static [&'static str],
}

/// A rotary embedding.
#[derive(Clone, PartialEq)]
pub struct Rope {
    pub freqs: RopeFreqs,
    /// Factor of cosines and sines (YaRN).
    pub mscale: f32,
}

/// What layers differ in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Positions that a query sees, itself included; none: all.
    pub window: Option<u32>,
    /// Index into [`Decoder::ropes`].
    pub rope: usize,
}

impl Decoder {
    /// A model of these sizes with one rotary embedding and nothing special: each architecture says what it has besides.
    pub fn plain(arch: &'static str, sizes: Sizes, rope: Rope) -> Decoder {
        let Sizes {
            layers,
            embedding,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps,
        } = sizes;
        let kind = LayerKind {
            window: None,
            rope: 0,
        };
        Decoder {
            arch,
            layers,
            embedding,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            ropes: vec![rope],
            rope_halves: true,
            kinds: vec![kind; layers as usize],
            qkv_bias: false,
            qk_norm: false,
            post_norms: false,
            joined: false,
            activation: Activation::Silu,
            mixture: None,
            unused: &[],
        }
    }

    /// The model's graph, with every tensor of the file in its place.
    pub fn build(&self, gguf: &Gguf<'_>) -> Result<Graph, Error> {
        let mut builder = Builder {
            model: self,
            import: Importer::new(gguf),
            graph: Graph::new(self.arch),
            groups: Vec::new(),
            slots: Vec::new(),
            ropes: Vec::new(),
        };
        builder.whole()?;
        self.unused
            .iter()
            .for_each(|name| builder.import.leave(name));
        builder.import.finish(self.arch)?;
        Ok(builder.graph)
    }
}

struct Builder<'m, 'a, 'g> {
    model: &'m Decoder,
    import: Importer<'a, 'g>,
    graph: Graph,
    /// The window of each KV group.
    groups: Vec<Option<u32>>,
    /// The slots of each KV group.
    slots: Vec<ValueId>,
    /// The table of each rotary embedding.
    ropes: Vec<ValueId>,
}

impl Builder<'_, '_, '_> {
    fn whole(&mut self) -> Result<(), Error> {
        let model = self.model;
        self.kv_groups();
        let table = self.import.matrix(
            &mut self.graph,
            "token_embd.weight",
            model.vocab,
            model.embedding,
        )?;
        let tokens = self.input("tokens", Input::Tokens, Dim::Tokens);
        let positions = self.input("positions", Input::Positions, Dim::Tokens);
        for group in 0..self.groups.len() as u32 {
            let name = if group == 0 {
                "slots".to_string()
            } else {
                format!("slots.{group}")
            };
            let slots = self.input(&name, Input::Slots(group), Dim::Tokens);
            self.slots.push(slots);
        }
        let rows = self.input("rows", Input::Rows, Dim::Rows);
        for (index, rope) in model.ropes.iter().enumerate() {
            self.rope_table(index, rope, positions)?;
        }
        let stream = Type::f32(Dim::Tokens, model.embedding);
        let embed = Op::Embed {
            table,
            scale: model.embedding_scale,
        };
        let mut x = self.graph.push("embed", embed, &[tokens], stream);
        let mut in_group = vec![0; self.groups.len()];
        for layer in 0..model.layers {
            let kind = model.kinds[layer as usize];
            let group = self
                .groups
                .iter()
                .position(|&w| w == kind.window)
                .unwrap_or(0);
            x = self.attention_block(layer, group as u32, in_group[group], kind.rope, x)?;
            x = self.feed_forward_block(layer, x)?;
            in_group[group] += 1;
        }
        let gathered = Type::f32(Dim::Rows, model.embedding);
        let x = self.graph.push(
            "gather",
            Op::GatherRows { to: DType::F32 },
            &[x, rows],
            gathered,
        );
        let x = self.norm("output_norm", "output_norm.weight", x)?;
        self.graph.hidden = Some(x);
        // Without a head of its own, the model's is the embedding table.
        let head = match self.import.has("output.weight") {
            true => self.import.matrix(
                &mut self.graph,
                "output.weight",
                model.vocab,
                model.embedding,
            )?,
            false => table,
        };
        self.graph.logits = self.matmul("output", head, x);
        Ok(())
    }

    /// A KV group for each window, in the order of the layers.
    fn kv_groups(&mut self) {
        let model = self.model;
        for kind in &model.kinds {
            if !self.groups.contains(&kind.window) {
                self.groups.push(kind.window);
                let layers = model
                    .kinds
                    .iter()
                    .filter(|k| k.window == kind.window)
                    .count() as u32;
                self.graph.kv.push(KvGroup {
                    dtype: KvDType::F16,
                    layers,
                    kv_heads: model.kv_heads,
                    head_dim: model.head_dim,
                    window: kind.window,
                });
            }
        }
    }

    fn rope_table(&mut self, index: usize, rope: &Rope, positions: ValueId) -> Result<(), Error> {
        let suffix = if index == 0 {
            String::new()
        } else {
            format!(".{index}")
        };
        if let Some(factors) = &rope.freqs.factors {
            // Only checked here; the packer reads it.
            self.import.check_vector(factors, rope.freqs.dim / 2)?;
        }
        let freqs = self.graph.new_tensor(Tensor {
            // Not a name that a file has: tensors are found by name.
            name: format!("rope_freqs{suffix}"),
            encoding: Encoding::F32,
            rows: 1,
            cols: rope.freqs.dim / 2,
            source: TensorSource::RopeFreqs(rope.freqs.clone()),
            transform: Transform::None,
        });
        let op = Op::RopeTable {
            freqs,
            mscale: rope.mscale,
        };
        let ty = Type::f32(Dim::Tokens, rope.freqs.dim);
        let table = self
            .graph
            .push(&format!("rope_table{suffix}"), op, &[positions], ty);
        self.ropes.push(table);
        Ok(())
    }

    /// x + attention(norm(x)). `at` is the layer's index in its KV group.
    fn attention_block(
        &mut self,
        layer: u32,
        group: u32,
        at: u32,
        rope: usize,
        x: ValueId,
    ) -> Result<ValueId, Error> {
        let model = self.model;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (embedding, head_dim) = (model.embedding, model.head_dim);
        let (q_cols, kv_cols) = (model.heads * head_dim, model.kv_heads * head_dim);

        let normed = self.norm(&name("attn_norm"), &name("attn_norm.weight"), x)?;
        let [wq, wk, wv] = if model.joined {
            self.joined(
                &name("attn_qkv.weight"),
                ["q", "k", "v"],
                [q_cols, kv_cols, kv_cols],
            )?
        } else {
            [
                self.import
                    .matrix(&mut self.graph, &name("attn_q.weight"), q_cols, embedding)?,
                self.import
                    .matrix(&mut self.graph, &name("attn_k.weight"), kv_cols, embedding)?,
                self.import
                    .matrix(&mut self.graph, &name("attn_v.weight"), kv_cols, embedding)?,
            ]
        };
        let mut q = self.matmul(&name("attn_q"), wq, normed);
        let mut k = self.matmul(&name("attn_k"), wk, normed);
        let mut v = self.matmul(&name("attn_v"), wv, normed);
        if model.qkv_bias {
            q = self.bias(&name("attn_q.bias"), q, q_cols)?;
            k = self.bias(&name("attn_k.bias"), k, kv_cols)?;
            v = self.bias(&name("attn_v.bias"), v, kv_cols)?;
        }
        if model.qk_norm {
            q = self.head_norm(&name("attn_q_norm"), q)?;
            k = self.head_norm(&name("attn_k_norm"), k)?;
        }
        let rotate = Op::Rope {
            head_dim,
            halves: model.rope_halves,
        };
        let table = self.ropes[rope];
        let q = self.graph.push(
            &name("rope_q"),
            rotate.clone(),
            &[q, table],
            self.graph.ty(q),
        );
        let k = self
            .graph
            .push(&name("rope_k"), rotate, &[k, table], self.graph.ty(k));
        let slots = self.slots[group as usize];
        let write = |part: KvPart| Op::KvWrite {
            group,
            layer: at,
            part,
        };
        let keys = self
            .graph
            .push(&name("write_k"), write(KvPart::Key), &[k, slots], Type::Kv);
        let values = self.graph.push(
            &name("write_v"),
            write(KvPart::Value),
            &[v, slots],
            Type::Kv,
        );
        let attention = Op::Attention {
            group,
            layer: at,
            heads: model.heads,
            scale: model.attention_scale,
            to: DType::F32,
        };
        let attended = self.graph.push(
            &name("attention"),
            attention,
            &[q, keys, values],
            self.graph.ty(q),
        );
        let wo = self.import.matrix(
            &mut self.graph,
            &name("attn_output.weight"),
            embedding,
            q_cols,
        )?;
        let mut attended = self.matmul(&name("attn_output"), wo, attended);
        if model.post_norms {
            attended = self.norm(
                &name("post_attention_norm"),
                &name("post_attention_norm.weight"),
                attended,
            )?;
        }
        Ok(self.graph.push(
            &name("attn_residual"),
            Op::Add,
            &[x, attended],
            self.graph.ty(x),
        ))
    }

    /// x + feed_forward(norm(x))
    fn feed_forward_block(&mut self, layer: u32, x: ValueId) -> Result<ValueId, Error> {
        let model = self.model;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let normed = self.norm(&name("ffn_norm"), &name("ffn_norm.weight"), x)?;
        let mut fed = match &model.mixture {
            Some(mixture) => self.mixture(layer, mixture, normed)?,
            None => self.gated(layer, "", model.feed_forward, normed)?,
        };
        if model.post_norms {
            fed = self.norm(&name("post_ffw_norm"), &name("post_ffw_norm.weight"), fed)?;
        }
        Ok(self
            .graph
            .push(&name("ffn_residual"), Op::Add, &[x, fed], self.graph.ty(x)))
    }

    /// down(activation(gate(x)) * up(x)), of tensors whose names have `kind` behind them.
    fn gated(
        &mut self,
        layer: u32,
        kind: &str,
        feed_forward: u32,
        x: ValueId,
    ) -> Result<ValueId, Error> {
        let model = self.model;
        let embedding = model.embedding;
        let name = |part: &str| format!("blk.{layer}.{part}{kind}");
        let weight = |part: &str| format!("blk.{layer}.{part}{kind}.weight");
        let [gate, up] = if model.joined {
            self.joined(
                &weight("ffn_up"),
                ["gate", "up"],
                [feed_forward, feed_forward],
            )?
        } else {
            let mut matrix = |part: &str| {
                let name = weight(part);
                self.import
                    .matrix(&mut self.graph, &name, feed_forward, embedding)
            };
            [matrix("ffn_gate")?, matrix("ffn_up")?]
        };
        let gate = self.matmul(&name("ffn_gate"), gate, x);
        let up = self.matmul(&name("ffn_up"), up, x);
        let product = self.glu(&name(model.activation.glu_name()), gate, up);
        let down = weight("ffn_down");
        let down = self
            .import
            .matrix(&mut self.graph, &down, embedding, feed_forward)?;
        Ok(self.matmul(&name("ffn_down"), down, product))
    }

    fn glu(&mut self, name: &str, gate: ValueId, up: ValueId) -> ValueId {
        let glu = Op::Glu {
            activation: self.model.activation,
            to: DType::F32,
        };
        self.graph.push(name, glu, &[gate, up], self.graph.ty(gate))
    }

    fn input(&mut self, name: &str, input: Input, dim: Dim) -> ValueId {
        self.graph.push(name, Op::Input(input), &[], Type::u32(dim))
    }

    fn norm(&mut self, name: &str, tensor: &str, x: ValueId) -> Result<ValueId, Error> {
        let weight = self
            .import
            .vector(&mut self.graph, tensor, self.model.embedding)?;
        let (eps, to) = (self.model.eps, DType::F32);
        let norm = Op::RmsNorm {
            weight,
            eps,
            add: false,
            post: None,
            gather: false,
            keep: false,
            to,
        };
        Ok(self.graph.push(name, norm, &[x], self.graph.ty(x)))
    }

    fn head_norm(&mut self, name: &str, x: ValueId) -> Result<ValueId, Error> {
        let weight = self.import.vector(
            &mut self.graph,
            &format!("{name}.weight"),
            self.model.head_dim,
        )?;
        let norm = Op::HeadNorm {
            norm: HeadNorm {
                weight,
                eps: self.model.eps,
            },
        };
        Ok(self.graph.push(name, norm, &[x], self.graph.ty(x)))
    }

    fn bias(&mut self, name: &str, x: ValueId, cols: u32) -> Result<ValueId, Error> {
        let bias = self.import.vector(&mut self.graph, name, cols)?;
        Ok(self
            .graph
            .push(name, Op::Bias { bias }, &[x], self.graph.ty(x)))
    }

    fn matmul(&mut self, name: &str, weight: TensorId, x: ValueId) -> ValueId {
        let dim = match self.graph.ty(x) {
            Type::Rows { dim, .. } => dim,
            Type::Kv => Dim::Tokens,
        };
        let ty = Type::f32(dim, self.graph.tensor(weight).rows);
        let parts = vec![Part::plain(weight)];
        let op = Op::MatMul {
            prologue: None,
            parts,
            experts: None,
        };
        self.graph.push(name, op, &[x], ty)
    }

    /// The parts of a tensor that holds several, one after the other.
    fn joined<const N: usize>(
        &mut self,
        tensor: &str,
        parts: [&str; N],
        rows: [u32; N],
    ) -> Result<[TensorId; N], Error> {
        let whole = self.import.matrix(
            &mut self.graph,
            tensor,
            rows.iter().sum(),
            self.model.embedding,
        )?;
        // The whole is not used as such: its parts take its place among the tensors.
        let whole = self.graph.tensors.remove(whole.0 as usize);
        let mut first_row = 0;
        let mut ids = [TensorId(0); N];
        for i in 0..N {
            let stem = tensor.trim_end_matches(".weight");
            ids[i] = self.graph.new_tensor(Tensor {
                name: format!("{stem}.{}", parts[i]),
                rows: rows[i],
                source: TensorSource::File {
                    tensor: tensor.to_string(),
                    first_row,
                },
                ..whole.clone()
            });
            first_row += rows[i];
        }
        Ok(ids)
    }
}
