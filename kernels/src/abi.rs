//! The launch ABI: how the runner calls microkernels and compiled regions on the CPU.
//!
//! A bundle names microkernels by id and records [`VERSION`]; the runner refuses another version or an unknown id. An id
//! keeps its meaning for ever: a changed meaning is a new id.

/// Version of this ABI: of the argument structures, of the layouts in [`crate::pack`], and of the signature of regions.
pub const VERSION: u32 = 1;

/// A compiled region (`bundle_format::region`).
///
/// `args` holds one base pointer per operand, in order. `tile` points at (`row0`, `col0`) of a row-major f32 tile whose row
/// stride is the variant's `tile_cols` (it is null for a region that reads no tile). `col0` counts from the region's
/// column 0, so for a matmul from the segment's first row.
pub type RegionFn = unsafe extern "C" fn(
    args: *const *mut u8,
    tile: *mut f32,
    row0: u64,
    rows: u64,
    col0: u64,
    cols: u64,
);

/// One tile of a matrix product: `out[r, n] = sum over k of x[r, k] * w[col0 + n, k]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MatMulArgs {
    /// The first of the tile's rows of activations: Q8, Q16 or f32 rows, as the microkernel says.
    pub x: *const u8,
    /// Bytes between rows of `x`.
    pub x_stride: u64,
    /// The packed weight, from its first row.
    pub w: *const u8,
    /// Output, row-major. The microkernel writes `cols` rounded up to 8 columns.
    pub out: *mut f32,
    /// Elements between rows of `out`; a multiple of 8.
    pub out_stride: u64,
    /// Input features.
    pub k: u64,
    /// Rows (tokens) of the tile.
    pub rows: u64,
    /// First output feature; a multiple of 8.
    pub col0: u64,
    /// Output features of the tile.
    pub cols: u64,
}

/// Attention of some query heads of one token, or of consecutive tokens of one sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// Queries at (first token, head 0), f32.
    pub q: *const f32,
    /// Elements between tokens of `q`.
    pub q_stride: u64,
    /// Output at (first token, `head0`), f32, heads `head_dim` apart.
    pub out: *mut f32,
    /// Elements between tokens of `out`.
    pub out_stride: u64,
    /// Key pool of the layer (`bundle_format::plan::KvDType` gives the layout).
    pub keys: *const u8,
    pub values: *const u8,
    /// Bytes between blocks in each pool.
    pub block_stride: u64,
    /// The sequence's block numbers, from position 0.
    pub table: *const u32,
    /// Position of the first token; token i of the call is at `position + i`.
    pub position: u64,
    /// Tokens of the call.
    pub tokens: u64,
    /// First query head and number of query heads of the call.
    pub head0: u64,
    pub heads: u64,
    /// Query heads that share a KV head.
    pub group_size: u64,
    pub head_dim: u64,
    /// Positions that a query sees, itself included; `u64::MAX`: all.
    pub window: u64,
    /// Factor of the scores.
    pub scale: f32,
}

/// Rows of an embedding table, dequantised: `out[i, :] = w[tokens[i], :] * scale`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EmbedArgs {
    pub tokens: *const u32,
    pub w: *const u8,
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub out_stride: u64,
    pub k: u64,
    pub rows: u64,
    pub scale: f32,
}

/// Cosines and sines of the rotary embedding: `out[i, j] = mscale * cos(positions[i] * freqs[j])`, and the sines behind
/// the `n` cosines.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RopeTableArgs {
    pub positions: *const u32,
    pub freqs: *const f32,
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub out_stride: u64,
    /// Angles a row.
    pub n: u64,
    pub rows: u64,
    pub mscale: f32,
}

/// A microkernel's entry point, by what it takes.
#[derive(Clone, Copy, Debug)]
pub enum MicroFn {
    MatMul(unsafe fn(&MatMulArgs)),
    Attention(unsafe fn(&AttentionArgs)),
    Embed(unsafe fn(&EmbedArgs)),
    RopeTable(unsafe fn(&RopeTableArgs)),
}

/// Ids of microkernels: what a plan's `Part::micro` holds. They are the same at every instruction-set level.
pub mod id {
    use bundle_format::plan::{DType, Encoding, KvDType};

    pub const MATMUL_F32: u32 = 0x101;
    pub const MATMUL_F16: u32 = 0x102;
    pub const MATMUL_Q4_0: u32 = 0x103;
    pub const MATMUL_Q4_1: u32 = 0x104;
    pub const MATMUL_Q8_0: u32 = 0x105;
    pub const MATMUL_Q4_0_Q16: u32 = 0x113;
    pub const MATMUL_Q4_1_Q16: u32 = 0x114;
    pub const MATMUL_Q8_0_Q16: u32 = 0x115;
    pub const EMBED_F32: u32 = 0x201;
    pub const EMBED_F16: u32 = 0x202;
    pub const EMBED_Q4_0: u32 = 0x203;
    pub const EMBED_Q4_1: u32 = 0x204;
    pub const EMBED_Q8_0: u32 = 0x205;
    pub const ATTENTION_F16: u32 = 0x301;
    pub const ROPE_TABLE: u32 = 0x401;

    /// Multiplies packed weights of an encoding with rows of activations of a type; none where the type is not one of
    /// [`activation_types`](crate::quant::activation_types).
    pub const fn matmul(encoding: Encoding, activations: DType) -> Option<u32> {
        Some(match (encoding, activations) {
            (Encoding::F32, DType::F32) => MATMUL_F32,
            (Encoding::F16, DType::F32) => MATMUL_F16,
            (Encoding::Q4_0, DType::Q8) => MATMUL_Q4_0,
            (Encoding::Q4_1, DType::Q8) => MATMUL_Q4_1,
            (Encoding::Q8_0, DType::Q8) => MATMUL_Q8_0,
            (Encoding::Q4_0, DType::Q16) => MATMUL_Q4_0_Q16,
            (Encoding::Q4_1, DType::Q16) => MATMUL_Q4_1_Q16,
            (Encoding::Q8_0, DType::Q16) => MATMUL_Q8_0_Q16,
            (Encoding::F32 | Encoding::F16, DType::U32 | DType::Q8 | DType::Q16)
            | (Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q8_0, DType::F32 | DType::U32) => {
                return None;
            }
        })
    }

    /// Looks rows up in a packed table of an encoding.
    pub const fn embed(encoding: Encoding) -> u32 {
        match encoding {
            Encoding::F32 => EMBED_F32,
            Encoding::F16 => EMBED_F16,
            Encoding::Q4_0 => EMBED_Q4_0,
            Encoding::Q4_1 => EMBED_Q4_1,
            Encoding::Q8_0 => EMBED_Q8_0,
        }
    }

    /// Attends over pools of a type.
    pub const fn attention(kv: KvDType) -> u32 {
        match kv {
            KvDType::F16 => ATTENTION_F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{ENCODINGS, activation_types};
    use bundle_format::plan::DType;

    #[test]
    fn a_plan_may_say_what_a_microkernel_takes() {
        for encoding in ENCODINGS {
            for dtype in [DType::F32, DType::U32, DType::Q8, DType::Q16] {
                assert_eq!(
                    id::matmul(encoding, dtype).is_some(),
                    activation_types(encoding).contains(&dtype),
                    "{encoding:?} x {dtype:?}"
                );
            }
        }
    }
}
