//! The named shapes of `fastc synth`.

use crate::error::Error;

/// The sizes of a `llama` model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    pub layers: u32,
    pub embedding: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub feed_forward: u32,
    /// The least size of the vocabulary; none: whatever the tokenizer has.
    pub vocab: Option<u32>,
    pub context: u32,
    pub rope_base: f32,
    pub rms_epsilon: f32,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

impl Shape {
    /// Every shape, in the order in which help texts list them.
    pub const ALL: &[Shape] = &[
        Shape {
            name: "tiny",
            layers: 2,
            embedding: 128,
            heads: 4,
            kv_heads: 2,
            feed_forward: 256,
            vocab: None,
            context: 512,
            rope_base: 10_000.0,
            rms_epsilon: 1e-5,
            tied: false,
        },
        // The least that has whole blocks of 256.
        Shape {
            name: "tiny256",
            layers: 2,
            embedding: 256,
            heads: 4,
            kv_heads: 2,
            feed_forward: 512,
            vocab: None,
            context: 512,
            rope_base: 10_000.0,
            rms_epsilon: 1e-5,
            tied: false,
        },
        Shape {
            name: "smollm2-135m",
            layers: 30,
            embedding: 576,
            heads: 9,
            kv_heads: 3,
            feed_forward: 1536,
            vocab: Some(49_152),
            context: 8192,
            rope_base: 100_000.0,
            rms_epsilon: 1e-5,
            tied: true,
        },
        Shape {
            name: "tinyllama",
            layers: 22,
            embedding: 2048,
            heads: 32,
            kv_heads: 4,
            feed_forward: 5632,
            vocab: Some(32_000),
            context: 2048,
            rope_base: 10_000.0,
            rms_epsilon: 1e-5,
            tied: false,
        },
        Shape {
            name: "llama2-7b",
            layers: 32,
            embedding: 4096,
            heads: 32,
            kv_heads: 32,
            feed_forward: 11_008,
            vocab: Some(32_000),
            context: 4096,
            rope_base: 10_000.0,
            rms_epsilon: 1e-5,
            tied: false,
        },
        Shape {
            name: "llama3-8b",
            layers: 32,
            embedding: 4096,
            heads: 32,
            kv_heads: 8,
            feed_forward: 14_336,
            vocab: Some(128_256),
            context: 8192,
            rope_base: 500_000.0,
            rms_epsilon: 1e-5,
            tied: false,
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

    /// Dimensions of a head.
    pub fn head_dim(&self) -> u32 {
        self.embedding / self.heads
    }

    /// Keys (or values) of one position over all heads.
    pub fn kv_dim(&self) -> u32 {
        self.kv_heads * self.head_dim()
    }
}
