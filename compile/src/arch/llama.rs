//! `llama`: RMSNorm, rotary grouped-query attention, SwiGLU; Llama 1 to 3, TinyLlama, SmolLM2.

use bundle_format::plan::{DType, Dim, Input, KvDType, KvGroup};
use bundle_format::region::KvPart;

use super::import::Importer;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{
    Epilogue, Graph, Op, Part, Tensor, TensorId, TensorSource, Transform, Type, ValueId,
};

/// The sizes of a model.
struct Config {
    layers: u32,
    embedding: u32,
    feed_forward: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    vocab: u32,
    eps: f32,
    rope_base: f32,
}

impl Config {
    fn read(gguf: &Gguf<'_>) -> Result<Config, Error> {
        let meta = &gguf.metadata;
        let required =
            |key: &str| -> Result<u32, Error> { Ok(meta.required(&format!("llama.{key}"))?) };
        let optional = |key: &str| -> Result<Option<u32>, Error> {
            Ok(meta.optional(&format!("llama.{key}"))?)
        };
        let (embedding, heads) = (
            required("embedding_length")?,
            required("attention.head_count")?,
        );
        let kv_heads = optional("attention.head_count_kv")?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::User(format!(
                "llama.attention.head_count {heads} is not a multiple of llama.attention.head_count_kv {kv_heads}"
            )));
        }
        let head_dim = match optional("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if embedding % heads == 0 => embedding / heads,
            None => {
                return Err(Error::User(format!(
                    "llama.embedding_length {embedding} is not a multiple of llama.attention.head_count {heads}"
                )));
            }
        };
        if let Some(value) = optional("attention.value_length")?.filter(|&v| v != head_dim) {
            return Err(Error::Unsupported(format!(
                "values of {value} dimensions beside keys of {head_dim}"
            )));
        }
        if !head_dim.is_multiple_of(16) || !(32..=256).contains(&head_dim) {
            return Err(Error::Unsupported(format!(
                "heads of {head_dim}; supported: 32 to 256 in steps of 16"
            )));
        }
        if let Some(rope) = optional("rope.dimension_count")?.filter(|&r| r != head_dim) {
            return Err(Error::Unsupported(format!(
                "rotation of {rope} of a head's {head_dim} dimensions"
            )));
        }
        if let Some(kind) = meta
            .optional::<&str>("llama.rope.scaling.type")?
            .filter(|&k| k != "none")
        {
            return Err(Error::Unsupported(format!(
                "llama.rope.scaling.type '{kind}'; supported: none"
            )));
        }
        if let Some(experts) = optional("expert_count")?.filter(|&n| n > 0) {
            return Err(Error::Unsupported(format!(
                "llama.expert_count {experts}: mixture of experts"
            )));
        }
        let eps = meta.required::<f32>("llama.attention.layer_norm_rms_epsilon")?;
        let rope_base = meta
            .optional::<f32>("llama.rope.freq_base")?
            .unwrap_or(10_000.0);
        if !(eps.is_finite() && eps >= 0.0) || !(rope_base.is_finite() && rope_base > 0.0) {
            return Err(Error::User(format!(
                "llama.attention.layer_norm_rms_epsilon {eps} or llama.rope.freq_base {rope_base} is not a positive number"
            )));
        }
        let embedding_rows = gguf.tensor("token_embd.weight").map(|t| t.rows());
        let vocab = embedding_rows
            .and_then(|r| u32::try_from(r).ok())
            .ok_or_else(|| {
                Error::User(
                    "tensor 'token_embd.weight' is missing; is this a vocabulary-only file?"
                        .to_string(),
                )
            })?;
        let config = Config {
            layers: required("block_count")?,
            embedding,
            feed_forward: required("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps,
            rope_base,
        };
        config.check()
    }

    /// Products of sizes that the compiler forms must fit; a real model is far below.
    fn check(self) -> Result<Config, Error> {
        let limit = 1 << 20;
        let sizes = [
            ("llama.block_count", self.layers),
            ("llama.embedding_length", self.embedding),
            ("llama.feed_forward_length", self.feed_forward),
            ("llama.attention.head_count", self.heads),
        ];
        match sizes
            .into_iter()
            .find(|&(_, size)| size == 0 || size > limit)
        {
            None => Ok(self),
            Some((key, size)) => Err(Error::User(format!(
                "{key} is {size}, expected 1 to {limit}"
            ))),
        }
    }
}

/// The graph of a llama model.
pub fn build(gguf: &Gguf<'_>) -> Result<Graph, Error> {
    let config = Config::read(gguf)?;
    let mut import = Importer::new(gguf);
    let mut graph = Graph::new("llama");
    graph.kv.push(KvGroup {
        dtype: KvDType::F16,
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        window: None,
    });
    let table = import.matrix(
        &mut graph,
        "token_embd.weight",
        config.vocab,
        config.embedding,
    )?;
    let freqs = graph.new_tensor(Tensor {
        name: "rope_freqs".to_string(),
        encoding: bundle_format::plan::Encoding::F32,
        rows: 1,
        cols: config.head_dim / 2,
        source: TensorSource::RopeFreqs {
            base: config.rope_base,
            dim: config.head_dim,
        },
        transform: Transform::None,
    });

    let tokens = input(&mut graph, "tokens", Input::Tokens, Dim::Tokens);
    let positions = input(&mut graph, "positions", Input::Positions, Dim::Tokens);
    let slots = input(&mut graph, "slots", Input::Slots(0), Dim::Tokens);
    let rows = input(&mut graph, "rows", Input::Rows, Dim::Rows);
    let rope = Op::RopeTable { freqs, mscale: 1.0 };
    let rope = graph.push(
        "rope_table",
        rope,
        &[positions],
        Type::f32(Dim::Tokens, config.head_dim),
    );
    let stream = Type::f32(Dim::Tokens, config.embedding);
    let mut x = graph.push("embed", Op::Embed { table, scale: 1.0 }, &[tokens], stream);
    for layer in 0..config.layers {
        x = block(&mut graph, &mut import, &config, layer, x, rope, slots)?;
    }
    let x = graph.push(
        "gather",
        Op::GatherRows,
        &[x, rows],
        Type::f32(Dim::Rows, config.embedding),
    );
    let norm = import.vector(&mut graph, "output_norm.weight", config.embedding)?;
    let x = rms_norm(&mut graph, "output_norm", norm, config.eps, x);
    // Without a head of its own, the model's is the embedding table.
    let head = match import.has("output.weight") {
        true => import.matrix(&mut graph, "output.weight", config.vocab, config.embedding)?,
        false => table,
    };
    graph.logits = matmul(&mut graph, "output", head, x);
    import.finish("llama")?;
    Ok(graph)
}

/// One transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).
fn block(
    graph: &mut Graph,
    import: &mut Importer<'_, '_>,
    config: &Config,
    layer: u32,
    x: ValueId,
    rope: ValueId,
    slots: ValueId,
) -> Result<ValueId, Error> {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let (embedding, head_dim) = (config.embedding, config.head_dim);
    let tensor = |part: &str| format!("blk.{layer}.{part}.weight");
    let (q_cols, kv_cols) = (config.heads * head_dim, config.kv_heads * head_dim);
    let attn_norm = import.vector(graph, &tensor("attn_norm"), embedding)?;
    let wq = import.matrix(graph, &tensor("attn_q"), q_cols, embedding)?;
    let wk = import.matrix(graph, &tensor("attn_k"), kv_cols, embedding)?;
    let wv = import.matrix(graph, &tensor("attn_v"), kv_cols, embedding)?;
    let wo = import.matrix(graph, &tensor("attn_output"), embedding, q_cols)?;
    let ffn_norm = import.vector(graph, &tensor("ffn_norm"), embedding)?;
    let gate = import.matrix(graph, &tensor("ffn_gate"), config.feed_forward, embedding)?;
    let up = import.matrix(graph, &tensor("ffn_up"), config.feed_forward, embedding)?;
    let down = import.matrix(graph, &tensor("ffn_down"), embedding, config.feed_forward)?;

    let normed = rms_norm(graph, &name("attn_norm"), attn_norm, config.eps, x);
    let q = matmul(graph, &name("attn_q"), wq, normed);
    let k = matmul(graph, &name("attn_k"), wk, normed);
    let v = matmul(graph, &name("attn_v"), wv, normed);
    let rotate = Op::Rope {
        head_dim,
        halves: false,
    };
    let q = graph.push(&name("rope_q"), rotate.clone(), &[q, rope], graph.ty(q));
    let k = graph.push(&name("rope_k"), rotate, &[k, rope], graph.ty(k));
    let write = |part: KvPart| Op::KvWrite {
        group: 0,
        layer,
        part,
    };
    let keys = graph.push(&name("write_k"), write(KvPart::Key), &[k, slots], Type::Kv);
    let values = graph.push(
        &name("write_v"),
        write(KvPart::Value),
        &[v, slots],
        Type::Kv,
    );
    let scale = 1.0 / (head_dim as f32).sqrt();
    let attention = Op::Attention {
        group: 0,
        layer,
        heads: config.heads,
        scale,
        to: DType::F32,
    };
    let attended = graph.push(
        &name("attention"),
        attention,
        &[q, keys, values],
        graph.ty(q),
    );
    let attended = matmul(graph, &name("attn_output"), wo, attended);
    let x = graph.push(&name("attn_residual"), Op::Add, &[x, attended], graph.ty(x));

    let normed = rms_norm(graph, &name("ffn_norm"), ffn_norm, config.eps, x);
    let gate = matmul(graph, &name("ffn_gate"), gate, normed);
    let up = matmul(graph, &name("ffn_up"), up, normed);
    let product = graph.push(
        &name("swiglu"),
        Op::SwiGlu { to: DType::F32 },
        &[gate, up],
        graph.ty(gate),
    );
    let fed = matmul(graph, &name("ffn_down"), down, product);
    Ok(graph.push(&name("ffn_residual"), Op::Add, &[x, fed], graph.ty(x)))
}

fn input(graph: &mut Graph, name: &str, input: Input, dim: Dim) -> ValueId {
    graph.push(name, Op::Input(input), &[], Type::u32(dim))
}

fn rms_norm(graph: &mut Graph, name: &str, weight: TensorId, eps: f32, x: ValueId) -> ValueId {
    let norm = Op::RmsNorm {
        weight,
        eps,
        add: false,
        gather: false,
        to: DType::F32,
    };
    graph.push(name, norm, &[x], graph.ty(x))
}

fn matmul(graph: &mut Graph, name: &str, weight: TensorId, x: ValueId) -> ValueId {
    let dim = match graph.ty(x) {
        Type::Rows { dim, .. } => dim,
        Type::Kv => Dim::Tokens,
    };
    let ty = Type::f32(dim, graph.tensor(weight).rows);
    let parts = vec![Part {
        tensors: vec![weight],
        epilogue: Epilogue::Store,
    }];
    graph.push(name, Op::MatMul { parts }, &[x], ty)
}
