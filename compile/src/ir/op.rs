//! Operations and the types of their values.
//!
//! Shapes are `[rows, cols]` with symbolic rows: T (tokens of the step), R (rows of which logits are wanted), T n (pairs of
//! a token and one of its n experts) or 1.

use bundle_format::plan::{DType, Dim, Input};
use bundle_format::region::KvPart;

use super::graph::TensorId;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Rows {
        dtype: DType,
        dim: Dim,
        cols: u32,
    },
    /// The keys or values of one layer, with this step's rows written: an effect, not data.
    Kv,
}

impl Type {
    pub fn f32(dim: Dim, cols: u32) -> Type {
        Type::Rows {
            dtype: DType::F32,
            dim,
            cols,
        }
    }

    pub fn u32(dim: Dim) -> Type {
        Type::Rows {
            dtype: DType::U32,
            dim,
            cols: 1,
        }
    }

    pub fn indices(dim: Dim, cols: u32) -> Type {
        Type::Rows {
            dtype: DType::U32,
            dim,
            cols,
        }
    }

    /// The same shape with another element type.
    pub fn with_dtype(self, dtype: DType) -> Type {
        match self {
            Type::Rows { dim, cols, .. } => Type::Rows { dtype, dim, cols },
            Type::Kv => Type::Kv,
        }
    }
}

/// What a node computes. Inputs and outputs are listed as `inputs -> outputs`. `to` is the element type of the result: F32,
/// or what it is quantised to.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `-> u32[dim]`: what the host gives the step.
    Input(Input),
    /// `tokens -> f32[T, cols]`: rows of the table, scaled.
    Embed { table: TensorId, scale: f32 },
    /// `positions -> f32[T, 2n]`: n cosines, then n sines, of position times frequency.
    RopeTable { freqs: TensorId, mscale: f32 },
    /// `x (f32[T]), rows -> f32, q8, q8k, q11, q14 or f16 [R]`, or `x (f32[T]), tokens (u32[T n]) -> [T n]`
    GatherRows { to: DType },
    /// `a, b -> f32`: a + b.
    Add,
    /// `x (, residual) (, rows) -> (sum,) (normed,) result`: h = x (+ residual), h / sqrt(mean(h^2) + eps) * weight. With `add` the
    /// sum is an output; with `gather` only the wanted rows are computed, and the sum is not kept. With `post`, the
    /// residual is itself normed first, with that weight and the same eps. With `keep`, a quantised result is an output in
    /// f32, too.
    RmsNorm {
        weight: TensorId,
        eps: f32,
        add: bool,
        post: Option<TensorId>,
        gather: bool,
        keep: bool,
        to: DType,
    },
    /// `x -> f32`: x + bias, an f32 vector, in every row.
    Bias { bias: TensorId },
    /// `x -> f32`: each head of x normed on its own; the weight has a head's size.
    HeadNorm { norm: HeadNorm },
    /// `x (f32) -> q8, q8k, q11, q14 or f16`
    Quantise { to: DType },
    /// `x (, residual) (, rope table) (, slots) -> (sum,) (normed,) one value a part`: x times the transposed weight of each part. With a
    /// prologue, x is normed first and becomes f16. The table is an input if a part rotates, the slots if a part writes KV.
    ///
    /// With `experts`, each part's tensors are those of so many experts, one after the other: `x (T or T n rows), tokens,
    /// starts -> one value of T n rows a part`, a row for each place in the list of a [`Op::Route`], times the weights of its
    /// expert. It is the row of the place's token where x has T rows.
    MatMul {
        prologue: Option<Prologue>,
        parts: Vec<Part>,
        experts: Option<u32>,
    },
    /// `logits (f32[T, E]) -> weights (f32[T, n]), places (u32[T, n]), tokens (u32[T n]), starts (u32[1, E + 1])`: see
    /// [`bundle_format::plan::Op::Route`].
    Route {
        /// n
        used: u32,
        renormalise: bool,
        scale: f32,
    },
    /// `y (f32[T n, cols]), places, weights (, shared (f32[T, cols]), gate (f32[T, 1])) -> f32[T, cols]`: the sum over the slots
    /// of a token, ascending, of weight times the row of y at the slot's place; with `shared`, and sigmoid(gate) * shared.
    Combine { shared: bool },
    /// `x, rope table -> f32`: rotates the heads of x. `halves`: dimension i pairs with i + head_dim / 2; otherwise 2i with
    /// 2i + 1.
    Rope { head_dim: u32, halves: bool },
    /// `x, slots -> kv`
    KvWrite {
        group: u32,
        layer: u32,
        part: KvPart,
    },
    /// `q, keys (kv), values (kv) -> f32, q8, q8k, q11, q14 or f16 [T, heads * head_dim]`
    Attention {
        group: u32,
        layer: u32,
        heads: u32,
        scale: f32,
        to: DType,
    },
    /// `gate, up -> f32, q8, q8k, q11, q14 or f16`: activation(gate) * up.
    Glu { activation: Activation, to: DType },
}

/// The norm of each head: h / sqrt(mean(h^2) + eps) * weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorm {
    /// f32, as long as a head.
    pub weight: TensorId,
    pub eps: f32,
}

/// The norm in front of a product, as [`Op::RmsNorm`] has it: with `add` a residual is added to x first, itself normed with
/// `post`, and the sum is an output. With `keep`, so is the normed x, in f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prologue {
    pub weight: TensorId,
    pub eps: f32,
    pub add: bool,
    pub post: Option<TensorId>,
    pub keep: bool,
}

/// What a gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x / (1 + e^-x)
    Silu,
    /// x / (1 + e^-2u) with u = sqrt(2 / pi) * (x + 0.044715 x^3): the usual approximation of x times the normal
    /// distribution's share below x by a tanh (Hendrycks and Gimpel, Gaussian Error Linear Units, section 2), which is
    /// what GGUF models with a GELU were trained with.
    GeluTanh,
}

impl Activation {
    /// The usual name of activation(gate) * up.
    pub fn glu_name(self) -> &'static str {
        match self {
            Activation::Silu => "swiglu",
            Activation::GeluTanh => "geglu",
        }
    }
}

/// Consecutive output features of a matmul.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// One tensor, or gate and up for [`Epilogue::Glu`].
    pub tensors: Vec<TensorId>,
    /// Added to the product first.
    pub bias: Option<TensorId>,
    /// Then each head is normed.
    pub norm: Option<HeadNorm>,
    pub epilogue: Epilogue,
}

impl Part {
    /// The product of a tensor, stored.
    pub fn plain(tensor: TensorId) -> Part {
        Part {
            tensors: vec![tensor],
            bias: None,
            norm: None,
            epilogue: Epilogue::Store,
        }
    }

    /// Whether it is the product of one tensor, stored.
    pub fn is_plain(&self) -> bool {
        *self == Part::plain(self.tensors[0])
    }
}

/// What happens to a matmul's results before they leave the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `-> f32`
    Store,
    /// `-> f32`: rotated by halves.
    Rope { head_dim: u32 },
    /// `-> kv`: rotated by halves if `rope` is the head size, then written.
    KvWrite {
        rope: Option<u32>,
        group: u32,
        layer: u32,
        part: KvPart,
    },
    /// `-> f32, q8, q8k, q11, q14 or f16`, half as many features.
    Glu { activation: Activation, to: DType },
}

impl Epilogue {
    /// Whether it reads the rope table.
    pub fn rotates(self) -> bool {
        matches!(
            self,
            Epilogue::Rope { .. } | Epilogue::KvWrite { rope: Some(_), .. }
        )
    }

    /// Whether it reads the slots.
    pub fn writes_kv(self) -> bool {
        matches!(self, Epilogue::KvWrite { .. })
    }
}

impl Op {
    /// Its name in text form.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Embed { .. } => "embed",
            Op::RopeTable { .. } => "rope_table",
            Op::GatherRows { .. } => "gather_rows",
            Op::Add => "add",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Bias { .. } => "bias",
            Op::HeadNorm { .. } => "head_norm",
            Op::Quantise { .. } => "quantise",
            Op::MatMul { .. } => "matmul",
            Op::Rope { .. } => "rope",
            Op::KvWrite { .. } => "kv_write",
            Op::Attention { .. } => "attention",
            Op::Glu { activation, .. } => activation.glu_name(),
            Op::Route { .. } => "route",
            Op::Combine { .. } => "combine",
        }
    }
}
