//! Reading the sizes that all architectures share out of a GGUF's metadata.

use bundle_format::plan::Q8_BLOCK;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{RopeFreqs, RopeScaling};

use super::decoder::{Mixture, Rope};

/// Metadata under an architecture's prefix.
pub struct Config<'a, 'g> {
    pub gguf: &'g Gguf<'a>,
    pub arch: &'static str,
}

/// Sizes of a model.
pub struct Sizes {
    pub layers: u32,
    pub embedding: u32,
    pub feed_forward: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub vocab: u32,
    pub eps: f32,
}

/// Sizes above which a value is a mistake; real models are far below.
const LIMIT: u32 = 1 << 20;

/// The most experts of a layer.
const EXPERTS: u32 = 1024;

impl Config<'_, '_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub fn required(&self, key: &str) -> Result<u32, Error> {
        Ok(self.gguf.metadata.required(&self.key(key))?)
    }

    pub fn optional(&self, key: &str) -> Result<Option<u32>, Error> {
        Ok(self.gguf.metadata.optional(&self.key(key))?)
    }

    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let value: Option<f32> = self.gguf.metadata.optional(&self.key(key))?;
        match value {
            Some(v) if !(v.is_finite() && v > 0.0) => Err(Error::User(format!(
                "{} is {v}, expected a positive number",
                self.key(key)
            ))),
            other => Ok(other),
        }
    }

    /// The sizes, checked.
    pub fn sizes(&self) -> Result<Sizes, Error> {
        let (embedding, heads) = (
            self.size("embedding_length")?,
            self.size("attention.head_count")?,
        );
        let kv_heads = self.optional("attention.head_count_kv")?.unwrap_or(heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::User(format!(
                "{} {heads} is not a multiple of {} {kv_heads}",
                self.key("attention.head_count"),
                self.key("attention.head_count_kv")
            )));
        }
        let head_dim = match self.optional("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if embedding % heads == 0 => embedding / heads,
            None => {
                return Err(Error::User(format!(
                    "{} {embedding} is not a multiple of {} {heads}",
                    self.key("embedding_length"),
                    self.key("attention.head_count")
                )));
            }
        };
        if let Some(value) = self
            .optional("attention.value_length")?
            .filter(|&v| v != head_dim)
        {
            return Err(Error::Unsupported(format!(
                "values of {value} dimensions beside keys of {head_dim}"
            )));
        }
        if !head_dim.is_multiple_of(16) || !(32..=256).contains(&head_dim) {
            return Err(Error::Unsupported(format!(
                "heads of {head_dim}; supported: 32 to 256 in steps of 16"
            )));
        }
        if let Some(rope) = self
            .optional("rope.dimension_count")?
            .filter(|&r| r != head_dim)
        {
            return Err(Error::Unsupported(format!(
                "rotation of {rope} of a head's {head_dim} dimensions"
            )));
        }
        let eps: f32 = self
            .gguf
            .metadata
            .required(&self.key("attention.layer_norm_rms_epsilon"))?;
        if !(eps.is_finite() && eps >= 0.0) {
            let key = self.key("attention.layer_norm_rms_epsilon");
            return Err(Error::User(format!(
                "{key} is {eps}, expected a small positive number"
            )));
        }
        let table = self.gguf.tensor("token_embd.weight").map(|t| t.rows());
        let vocab = table
            .and_then(|rows| u32::try_from(rows).ok())
            .ok_or_else(|| {
                Error::User(
                    "tensor 'token_embd.weight' is missing; is this a vocabulary-only file?"
                        .to_string(),
                )
            })?;
        Ok(Sizes {
            layers: self.size("block_count")?,
            embedding,
            feed_forward: self.feed_forward()?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps,
        })
    }

    /// Hidden features of a dense feed forward; files of mixtures may leave them out, whose layers have none.
    fn feed_forward(&self) -> Result<u32, Error> {
        let mixture = self.optional("expert_count")?.is_some_and(|n| n > 0);
        match self.optional("feed_forward_length")? {
            None | Some(0) if mixture => Ok(0),
            _ => self.size("feed_forward_length"),
        }
    }

    /// The experts that the metadata describe; none: the model is dense. `renormalise`: what the architecture does where a
    /// file doesn't say.
    pub fn mixture(&self, sizes: &Sizes, renormalise: bool) -> Result<Option<Mixture>, Error> {
        let Some(count) = self.optional("expert_count")?.filter(|&n| n > 0) else {
            return Ok(None);
        };
        let used = self.size("expert_used_count")?;
        if count > EXPERTS || used > count {
            return Err(Error::User(format!(
                "{} {count} and {} {used}: expected up to {EXPERTS}, and no more of a token than there are",
                self.key("expert_count"),
                self.key("expert_used_count")
            )));
        }
        if let Some(function) = self.optional("expert_gating_func")?.filter(|&f| f > 1) {
            return Err(Error::Unsupported(format!(
                "{} {function}; supported: 1, softmax",
                self.key("expert_gating_func")
            )));
        }
        if let Some(step) = self
            .optional("interleave_moe_layer_step")?
            .filter(|&n| n > 1)
        {
            return Err(Error::Unsupported(format!(
                "{} {step}: dense layers among those of experts",
                self.key("interleave_moe_layer_step")
            )));
        }
        let feed_forward = match self.optional("expert_feed_forward_length")? {
            Some(_) => self.size("expert_feed_forward_length")?,
            None => sizes.feed_forward,
        };
        hidden_features(feed_forward, sizes)?;
        let renormalise = self
            .gguf
            .metadata
            .optional::<bool>(&self.key("expert_weights_norm"))?
            .unwrap_or(renormalise);
        Ok(Some(Mixture {
            count,
            used,
            feed_forward,
            shared: None,
            renormalise,
            scale: match self.optional_f32("expert_weights_scale")? {
                // Files of models that have none say 0.
                None | Some(0.0) => 1.0,
                Some(scale) => scale,
            },
        }))
    }

    /// Refuses a mixture in an architecture that is known without.
    pub fn refuse_mixture(&self) -> Result<(), Error> {
        match self.optional("expert_count")?.filter(|&n| n > 0) {
            None => Ok(()),
            Some(experts) => Err(Error::Unsupported(format!(
                "{} {experts}: {} with a mixture of experts; this build compiles those of llama, qwen2moe and qwen3moe",
                self.key("expert_count"),
                self.arch
            ))),
        }
    }

    /// As [`Config::mixture`], of an architecture that has no dense models.
    pub fn required_mixture(&self, sizes: &Sizes, renormalise: bool) -> Result<Mixture, Error> {
        let mut mixture = self.mixture(sizes, renormalise)?;
        if let Some(mixture) = &mut mixture
            && self.optional("expert_feed_forward_length")?.is_none()
        {
            // The dense model's size is there, of which each of a token's experts has a part.
            mixture.feed_forward = sizes.feed_forward / mixture.used;
            hidden_features(mixture.feed_forward, sizes)?;
        }
        mixture.ok_or_else(|| {
            let key = self.key("expert_count");
            Error::User(format!(
                "{key} is missing or 0; a {} model has experts",
                self.arch
            ))
        })
    }

    pub fn size(&self, key: &str) -> Result<u32, Error> {
        match self.required(key)? {
            size @ 1..=LIMIT => Ok(size),
            other => Err(Error::User(format!(
                "{} is {other}, expected 1 to {LIMIT}",
                self.key(key)
            ))),
        }
    }

    /// The rotary embedding that the metadata and, if it is there, the factor tensor of this name describe.
    pub fn rope(&self, dim: u32, factors: Option<&str>) -> Result<Rope, Error> {
        let base = self.optional_f32("rope.freq_base")?.unwrap_or(10_000.0);
        let factors = factors
            .filter(|name| self.gguf.tensor(name).is_some())
            .map(str::to_string);
        let kind: Option<&str> = self
            .gguf
            .metadata
            .optional(&self.key("rope.scaling.type"))?;
        // Older files name only the factor, of a linear scaling.
        let factor = match self.optional_f32("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.optional_f32("rope.scale_linear")?,
        };
        let needed = || {
            let key = self.key("rope.scaling.factor");
            factor.ok_or_else(|| {
                Error::User(format!(
                    "{key} is missing, which {} needs",
                    kind.unwrap_or("linear")
                ))
            })
        };
        let attention = self
            .optional_f32("rope.scaling.attn_factor")?
            .unwrap_or(1.0);
        let (scaling, mscale) = match kind {
            Some("none") => (RopeScaling::None, 1.0),
            None if factor.is_none_or(|f| f == 1.0) => (RopeScaling::None, 1.0),
            None | Some("linear") => (RopeScaling::Linear { factor: needed()? }, 1.0),
            Some("yarn") => {
                let factor = needed()?;
                let original = self.required("rope.scaling.original_context_length")?;
                let beta_fast = self
                    .optional_f32("rope.scaling.yarn_beta_fast")?
                    .unwrap_or(32.0);
                let beta_slow = self
                    .optional_f32("rope.scaling.yarn_beta_slow")?
                    .unwrap_or(1.0);
                let mscale = attention * (1.0 + 0.1 * factor.ln());
                (
                    RopeScaling::Yarn {
                        factor,
                        original,
                        beta_fast,
                        beta_slow,
                    },
                    mscale,
                )
            }
            // The factors do all the scaling.
            Some("longrope") => (RopeScaling::None, attention),
            Some(other) => {
                let key = self.key("rope.scaling.type");
                return Err(Error::Unsupported(format!(
                    "{key} '{other}'; supported: none, linear, yarn, longrope"
                )));
            }
        };
        Ok(Rope {
            freqs: RopeFreqs {
                base,
                dim,
                scaling,
                factors,
            },
            mscale,
        })
    }
}

/// Checks the size of an expert: blocks of gate and up interleave within it, and its rows are whole groups of packed ones.
fn hidden_features(feed_forward: u32, sizes: &Sizes) -> Result<(), Error> {
    let whole = |n: u32| n > 0 && n.is_multiple_of(Q8_BLOCK as u32);
    match whole(feed_forward) && whole(sizes.embedding) {
        true => Ok(()),
        false => Err(Error::Unsupported(format!(
            "experts of {feed_forward} hidden features for embeddings of {}; supported: multiples of {Q8_BLOCK}",
            sizes.embedding
        ))),
    }
}
