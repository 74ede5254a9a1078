//! The named shapes of `fastc synth`: sizes as the published configurations say them.

use super::tensors::{self, Parameters};
use crate::error::Error;

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    pub family: Family,
    pub layers: u32,
    pub embedding: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Dimensions of a head.
    pub head_dim: u32,
    /// Hidden features of a dense feed forward. Files of mixtures say this size too, though no layer may have it.
    pub feed_forward: u32,
    pub experts: Option<Experts>,
    /// The least size of the vocabulary; none: whatever the tokenizer has.
    pub vocab: Option<u32>,
    pub context: u32,
    pub rope_base: f32,
    pub rms_epsilon: f32,
    /// Positions that most layers see; none: all layers see all.
    pub window: Option<u32>,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

/// What an architecture's layers have besides attention, feed forward and a norm before each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// GGUF's name of the architecture.
    pub arch: &'static str,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether each head's query and key is normed.
    pub qk_norm: bool,
    /// Whether what attention and feed forward add is normed first.
    pub post_norms: bool,
    /// The keys under which a file says [`Shape::head_dim`]; none: it is the embedding over the heads.
    pub head_dim_keys: &'static [&'static str],
    /// Whether a file says the size of its vocabulary.
    pub says_vocab: bool,
}

/// The experts in place of a layer's feed forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    pub count: u32,
    /// Of them, for each token.
    pub used: u32,
    /// Hidden features of each; none: [`Shape::feed_forward`], and files don't say it again.
    pub feed_forward: Option<u32>,
    /// Hidden features of an expert, with a gate of its own, that sees every token.
    pub shared: Option<u32>,
}

const LLAMA: Family = Family {
    arch: "llama",
    qkv_bias: false,
    qk_norm: false,
    post_norms: false,
    head_dim_keys: &["rope.dimension_count"],
    says_vocab: true,
};
const QWEN2: Family = Family {
    arch: "qwen2",
    qkv_bias: true,
    head_dim_keys: &[],
    says_vocab: false,
    ..LLAMA
};
const QWEN2_MOE: Family = Family {
    arch: "qwen2moe",
    ..QWEN2
};
const QWEN3: Family = Family {
    arch: "qwen3",
    qk_norm: true,
    head_dim_keys: &["attention.key_length", "attention.value_length"],
    says_vocab: false,
    ..LLAMA
};
const QWEN3_MOE: Family = Family {
    arch: "qwen3moe",
    ..QWEN3
};
const GEMMA3: Family = Family {
    arch: "gemma3",
    post_norms: true,
    ..QWEN3
};

/// A small Llama.
const TINY: Shape = Shape {
    name: "tiny",
    family: LLAMA,
    layers: 2,
    embedding: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    feed_forward: 256,
    experts: None,
    vocab: None,
    context: 512,
    rope_base: 10_000.0,
    rms_epsilon: 1e-5,
    window: None,
    tied: false,
};

const LLAMA2_7B: Shape = Shape {
    name: "llama2-7b",
    layers: 32,
    embedding: 4096,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    feed_forward: 11_008,
    vocab: Some(32_000),
    context: 4096,
    ..TINY
};

const QWEN3_8B: Shape = Shape {
    name: "qwen3-8b",
    family: QWEN3,
    layers: 36,
    embedding: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    feed_forward: 12_288,
    vocab: Some(151_936),
    context: 40_960,
    rope_base: 1_000_000.0,
    rms_epsilon: 1e-6,
    ..TINY
};

impl Shape {
    /// Every shape, in the order in which help texts list them.
    pub const ALL: &[Shape] = &[
        TINY,
        // The least that has whole blocks of 256.
        Shape {
            name: "tiny256",
            embedding: 256,
            head_dim: 64,
            feed_forward: 512,
            ..TINY
        },
        // The least mixtures of each kind.
        Shape {
            name: "tiny-qwen2moe",
            family: QWEN2_MOE,
            experts: Some(Experts {
                count: 10,
                used: 3,
                feed_forward: Some(64),
                shared: Some(192),
            }),
            ..TINY
        },
        Shape {
            name: "tiny-qwen3moe",
            family: QWEN3_MOE,
            head_dim: 64,
            experts: Some(Experts {
                count: 16,
                used: 4,
                feed_forward: Some(192),
                shared: None,
            }),
            ..TINY
        },
        Shape {
            name: "tiny-mixtral",
            experts: Some(Experts {
                count: 4,
                used: 2,
                feed_forward: None,
                shared: None,
            }),
            ..TINY
        },
        Shape {
            name: "smollm2-135m",
            layers: 30,
            embedding: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            feed_forward: 1536,
            vocab: Some(49_152),
            context: 8192,
            rope_base: 100_000.0,
            tied: true,
            ..TINY
        },
        Shape {
            name: "tinyllama",
            layers: 22,
            embedding: 2048,
            heads: 32,
            kv_heads: 4,
            head_dim: 64,
            feed_forward: 5632,
            vocab: Some(32_000),
            context: 2048,
            ..TINY
        },
        LLAMA2_7B,
        Shape {
            name: "llama3-8b",
            kv_heads: 8,
            feed_forward: 14_336,
            vocab: Some(128_256),
            context: 8192,
            rope_base: 500_000.0,
            ..LLAMA2_7B
        },
        Shape {
            name: "qwen2.5-7b",
            family: QWEN2,
            layers: 28,
            embedding: 3584,
            heads: 28,
            kv_heads: 4,
            head_dim: 128,
            feed_forward: 18_944,
            vocab: Some(152_064),
            context: 131_072,
            rope_base: 1_000_000.0,
            rms_epsilon: 1e-6,
            ..TINY
        },
        QWEN3_8B,
        Shape {
            name: "gemma3-1b",
            family: GEMMA3,
            layers: 26,
            embedding: 1152,
            heads: 4,
            kv_heads: 1,
            head_dim: 256,
            feed_forward: 6912,
            vocab: Some(262_144),
            context: 32_768,
            rope_base: 1_000_000.0,
            rms_epsilon: 1e-6,
            window: Some(512),
            tied: true,
            ..TINY
        },
        Shape {
            name: "qwen15-moe",
            family: QWEN2_MOE,
            layers: 24,
            embedding: 2048,
            heads: 16,
            kv_heads: 16,
            head_dim: 128,
            feed_forward: 5632,
            experts: Some(Experts {
                count: 60,
                used: 4,
                feed_forward: Some(1408),
                shared: Some(5632),
            }),
            vocab: Some(151_936),
            context: 8192,
            rope_base: 1_000_000.0,
            rms_epsilon: 1e-6,
            ..TINY
        },
        Shape {
            name: "qwen3-30b-a3b",
            family: QWEN3_MOE,
            layers: 48,
            embedding: 2048,
            kv_heads: 4,
            feed_forward: 6144,
            experts: Some(Experts {
                count: 128,
                used: 8,
                feed_forward: Some(768),
                shared: None,
            }),
            ..QWEN3_8B
        },
        Shape {
            name: "mixtral-8x7b",
            kv_heads: 8,
            feed_forward: 14_336,
            experts: Some(Experts {
                count: 8,
                used: 2,
                feed_forward: None,
                shared: None,
            }),
            context: 32_768,
            rope_base: 1_000_000.0,
            ..LLAMA2_7B
        },
    ];

    /// The shape of a name.
    ///
    /// # Errors
    /// [`Error::User`] lists the names.
    pub fn named(name: &str) -> Result<&'static Shape, Error> {
        Self::ALL
            .iter()
            .find(|shape| shape.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|shape| shape.name).collect();
                Error::User(format!(
                    "unknown shape `{name}`; expected one of {}",
                    names.join(", ")
                ))
            })
    }

    /// Queries of one position over all heads.
    pub fn query_dim(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// Keys (or values) of one position over all heads.
    pub fn kv_dim(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// What a whole model of `vocab` tokens has.
    pub fn parameters(&self, vocab: u64) -> Parameters {
        let encoding = bundle_format::plan::Encoding::F32;
        tensors::parameters(&tensors::list(self, self.layers, vocab, encoding), self)
    }
}
