//! What a model's file holds, under the names and in the shapes and types that llama.cpp's converter and quantiser give
//! them: hyperparameters and tensors.

use bundle_format::plan::Encoding;

use super::shape::{Experts, Shape};
use crate::gguf::{TensorType, WriteError, Writer};

/// A tensor and the distribution of its elements.
pub struct Tensor {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub encoding: Encoding,
    pub mean: f32,
    pub deviation: f32,
    /// Whether it is one of a mixture's experts, of which a token meets some.
    pub routed: bool,
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// Numbers of a model, its embedding table included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub total: u64,
    /// Those that a token meets: fewer in a mixture of experts.
    pub active: u64,
}

/// What these tensors of a model of `shape` have.
pub fn parameters(tensors: &[Tensor], shape: &Shape) -> Parameters {
    let sum = |routed| -> u64 {
        let tensors = tensors.iter().filter(|t| t.routed == routed);
        tensors.map(Tensor::elements).sum()
    };
    let (dense, routed) = (sum(false), sum(true));
    let met = match shape.experts {
        Some(experts) => routed / experts.count as u64 * experts.used as u64,
        None => routed,
    };
    Parameters {
        total: dense + routed,
        active: dense + met,
    }
}

/// The encoding of a matrix of `cols` columns where `encoding` is asked for: as llama.cpp's quantiser does, blocks of 256
/// that a row isn't a whole number of give way to the nearest type of 32.
pub fn fitting(encoding: Encoding, cols: u32) -> Encoding {
    if cols.is_multiple_of(TensorType::from(encoding).block) {
        return encoding;
    }
    match encoding {
        Encoding::Q2_K | Encoding::Q3_K | Encoding::IQ4_XS => Encoding::IQ4_NL,
        Encoding::Q4_K => Encoding::Q5_0,
        Encoding::Q5_K => Encoding::Q5_1,
        Encoding::Q6_K => Encoding::Q8_0,
        other => other,
    }
}

/// What [`fitting`] put in the place of `encoding` anywhere.
pub fn replaced(tensors: &[Tensor], encoding: Encoding) -> Option<Encoding> {
    let mut matrices = tensors.iter().map(|t| t.encoding);
    matrices.find(|&e| e != Encoding::F32 && e != encoding)
}

/// All tensors of a model, in the order of the file. Matrices keep the size of what they multiply: a deviation of 1 over
/// the root of their inputs.
pub fn list(shape: &Shape, layers: u32, vocab: u64, encoding: Encoding) -> Vec<Tensor> {
    let mut list = List {
        shape,
        encoding,
        tensors: Vec::new(),
    };
    list.matrix("token_embd", shape.embedding, vocab);
    if let (false, Some(table)) = (shape.tied, list.tensors.last_mut()) {
        // Nothing is summed where it isn't the head too.
        table.deviation = 1.0;
    }
    for layer in 0..layers {
        list.attention(layer);
        list.feed_forward(layer);
    }
    list.norm("output_norm", shape.embedding);
    if !shape.tied {
        list.matrix("output", shape.embedding, vocab);
    }
    list.tensors
}

struct List<'a> {
    shape: &'a Shape,
    encoding: Encoding,
    tensors: Vec<Tensor>,
}

impl List<'_> {
    fn attention(&mut self, layer: u32) {
        let Shape { family, .. } = *self.shape;
        let (embedding, head_dim) = (self.shape.embedding, self.shape.head_dim);
        let (query, kv) = (self.shape.query_dim(), self.shape.kv_dim());
        let name = |part: &str| format!("blk.{layer}.{part}");
        self.norm(&name("attn_norm"), embedding);
        for (part, rows) in [("attn_q", query), ("attn_k", kv), ("attn_v", kv)] {
            self.matrix(&name(part), embedding, rows as u64);
            if family.qkv_bias {
                self.vector(format!("{}.bias", name(part)), rows, 0.0, 0.1);
            }
        }
        if family.qk_norm {
            self.norm(&name("attn_q_norm"), head_dim);
            self.norm(&name("attn_k_norm"), head_dim);
        }
        self.matrix(&name("attn_output"), query, embedding as u64);
        if family.post_norms {
            self.norm(&name("post_attention_norm"), embedding);
        }
    }

    fn feed_forward(&mut self, layer: u32) {
        let embedding = self.shape.embedding;
        let name = |part: &str| format!("blk.{layer}.{part}");
        self.norm(&name("ffn_norm"), embedding);
        match self.shape.experts {
            None => self.gate_up_down(&name("ffn"), "", self.shape.feed_forward, None),
            Some(experts) => self.mixture(&name("ffn"), experts),
        }
        if self.shape.family.post_norms {
            self.norm(&name("post_ffw_norm"), embedding);
        }
    }

    fn mixture(&mut self, ffn: &str, experts: Experts) {
        let hidden = experts.feed_forward.unwrap_or(self.shape.feed_forward);
        self.router(format!("{ffn}_gate_inp.weight"), &[experts.count]);
        self.gate_up_down(ffn, "_exps", hidden, Some(experts.count));
        if let Some(shared) = experts.shared {
            self.router(format!("{ffn}_gate_inp_shexp.weight"), &[]);
            self.gate_up_down(ffn, "_shexp", shared, None);
        }
    }

    fn gate_up_down(&mut self, ffn: &str, kind: &str, hidden: u32, experts: Option<u32>) {
        let embedding = self.shape.embedding;
        for (part, cols, rows) in [
            ("gate", embedding, hidden),
            ("up", embedding, hidden),
            ("down", hidden, embedding),
        ] {
            self.matrix(&format!("{ffn}_{part}{kind}"), cols, rows as u64);
            if let (Some(count), Some(tensor)) = (experts, self.tensors.last_mut()) {
                tensor.dims.push(count as u64);
                tensor.routed = true;
            }
        }
    }

    /// A quantised matrix.
    fn matrix(&mut self, name: &str, cols: u32, rows: u64) {
        self.tensors.push(Tensor {
            name: format!("{name}.weight"),
            dims: vec![cols as u64, rows],
            encoding: fitting(self.encoding, cols),
            mean: 0.0,
            deviation: 1.0 / (cols as f32).sqrt(),
            routed: false,
        });
    }

    /// What chooses experts: never quantised.
    fn router(&mut self, name: String, rows: &[u32]) {
        let cols = self.shape.embedding;
        self.vector(name, cols, 0.0, 1.0 / (cols as f32).sqrt());
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.dims.extend(rows.iter().map(|&r| r as u64));
        }
    }

    fn norm(&mut self, name: &str, len: u32) {
        self.vector(format!("{name}.weight"), len, 1.0, 0.1);
    }

    fn vector(&mut self, name: String, len: u32, mean: f32, deviation: f32) {
        self.tensors.push(Tensor {
            name,
            dims: vec![len as u64],
            encoding: Encoding::F32,
            mean,
            deviation,
            routed: false,
        });
    }
}

/// Puts all keys but the tokenizer's.
pub fn put_hyperparameters(
    writer: &mut Writer,
    shape: &Shape,
    layers: u32,
    vocab: u32,
    encoding: Encoding,
) -> Result<(), WriteError> {
    writer.put("general.architecture", shape.family.arch)?;
    writer.put("general.type", "model")?;
    writer.put("general.name", &format!("synthetic {}", shape.name))?;
    writer.put("general.file_type", &file_type(encoding))?;
    if TensorType::from(encoding).block > 1 {
        writer.put("general.quantization_version", &2u32)?;
    }
    let mut number = |key: &str, value: u32| {
        let key = format!("{}.{key}", shape.family.arch);
        writer.put(&key, &value)
    };
    number("block_count", layers)?;
    number("context_length", shape.context)?;
    number("embedding_length", shape.embedding)?;
    number("feed_forward_length", shape.feed_forward)?;
    number("attention.head_count", shape.heads)?;
    number("attention.head_count_kv", shape.kv_heads)?;
    for key in shape.family.head_dim_keys {
        number(key, shape.head_dim)?;
    }
    if shape.family.says_vocab {
        number("vocab_size", vocab)?;
    }
    if let Some(window) = shape.window {
        number("attention.sliding_window", window)?;
    }
    if let Some(experts) = shape.experts {
        number("expert_count", experts.count)?;
        number("expert_used_count", experts.used)?;
        if let Some(hidden) = experts.feed_forward {
            number("expert_feed_forward_length", hidden)?;
        }
        if let Some(hidden) = experts.shared {
            number("expert_shared_feed_forward_length", hidden)?;
        }
    }
    let mut real = |key: &str, value: f32| {
        let key = format!("{}.{key}", shape.family.arch);
        writer.put(&key, &value)
    };
    real("attention.layer_norm_rms_epsilon", shape.rms_epsilon)?;
    real("rope.freq_base", shape.rope_base)
}

/// GGUF's number for a file that is mostly of one type.
fn file_type(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F32 => 0,
        Encoding::F16 => 1,
        Encoding::Q4_0 => 2,
        Encoding::Q4_1 => 3,
        Encoding::Q8_0 => 7,
        Encoding::BF16 => 32,
        Encoding::Q5_0 => 8,
        Encoding::Q5_1 => 9,
        Encoding::Q2_K => 10,
        Encoding::Q3_K => 11,
        Encoding::Q4_K => 14,
        Encoding::Q5_K => 16,
        Encoding::Q6_K => 18,
        Encoding::IQ4_NL => 25,
        Encoding::IQ4_XS => 30,
        Encoding::MXFP4 => 38,
    }
}
