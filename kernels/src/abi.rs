//! The launch ABI: how the runner calls microkernels and compiled regions on the CPU.
//!
//! A bundle names microkernels by id and records [`VERSION`]; the runner refuses another version or an unknown id. An id
//! keeps its meaning for ever: a changed meaning is a new id.

/// Version of this ABI: of the argument structures, of the layouts in [`crate::pack`] and of rows of activations, of the signature of regions, and of what the
/// kernels of GPUs find behind their arguments.
pub const VERSION: u32 = 8;

/// The type of a compiled region, in a calling convention.
macro_rules! region_fn {
    ($convention:literal) => {
        unsafe extern $convention fn(
            args: *const *mut u8,
            tile: *mut f32,
            row0: u64,
            rows: u64,
            col0: u64,
            cols: u64,
        )
    };
}

/// A compiled region (`bundle_format::region`). On x86-64 it has the System V calling convention, whatever the operating
/// system.
///
/// `args` holds one base pointer per operand, in order. `tile` points at (`row0`, `col0`) of a row-major f32 tile whose row
/// stride is the variant's `tile_cols` (it is null for a region that reads no tile). `col0` counts from the region's
/// column 0, so for a matmul from the segment's first row.
#[cfg(target_arch = "x86_64")]
pub type RegionFn = region_fn!("sysv64");

/// A compiled region (`bundle_format::region`); its arguments are those on x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub type RegionFn = region_fn!("C");

/// One tile of a matrix product: `out[r, n] = sum over k of x[r, k] * w[col0 + n, k]`.
///
/// Of quantised weights and rows the sum over 32 k is exact, integer scales included; such sums are folded in ascending order, in f32,
/// each a fused multiply-add. Where 32 k are a block of the encoding's, one by the product of both scales, then one for the minimum. Where
/// 256 are, with rows in blocks of as many the sums of all of these are exact, of products and of minima, each times its factor, and their
/// sum comes by the activations' scale; with other rows for each 32 k one by the activations' scale to a sum of the block's; minima first, a
/// fused multiply-add for each 32 k; at last the block's sum by its factor. So all levels have the same bits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MatMulArgs {
    /// Rows of activations: of quantised blocks or of f32, as the microkernel says.
    pub x: *const u8,
    /// Bytes between rows of `x`.
    pub x_stride: u64,
    /// Which row of `x` each of the tile's rows is; null: they are the first ones, in order.
    pub index: *const u32,
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

impl MatMulArgs {
    /// Row `row` of the tile's activations.
    ///
    /// # Safety
    /// `row` is one of the tile's, and `index`, unless it is null, has an element for it.
    #[inline(always)]
    pub unsafe fn x_row(&self, row: usize) -> *const u8 {
        let at = match self.index.is_null() {
            true => row,
            // SAFETY: the caller's promise.
            false => unsafe { *self.index.add(row) as usize },
        };
        self.x.wrapping_add(at * self.x_stride as usize)
    }

    /// N rows from `row` on; behind the tile's last, that one again.
    ///
    /// # Safety
    /// As [`MatMulArgs::x_row`].
    #[inline(always)]
    pub unsafe fn x_rows<const N: usize>(&self, row: usize) -> [*const u8; N] {
        let last = self.rows as usize - 1;
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| unsafe { self.x_row((row + i).min(last)) })
    }
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

/// The experts that tokens go to, and their weights: `bundle_format::plan::Op::Route` up to the list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteArgs {
    /// Rows of `experts` logits.
    pub logits: *const f32,
    /// Elements between rows of `logits`.
    pub logits_stride: u64,
    /// Rows of `used` weights.
    pub weights: *mut f32,
    /// Elements between rows of `weights`.
    pub weights_stride: u64,
    /// Rows of `used` experts.
    pub chosen: *mut u32,
    /// Elements between rows of `chosen`.
    pub chosen_stride: u64,
    pub rows: u64,
    pub experts: u64,
    /// Experts of a token, at most `experts`.
    pub used: u64,
    /// Whether the weights of a token are to sum to 1 before they are scaled.
    pub renormalise: bool,
    pub scale: f32,
    /// Where the number of the first row goes that has a logit which is not finite; left alone where there is none. Such a
    /// row goes to the first experts with weights of 0.
    pub bad: *mut u64,
}

/// A microkernel's entry point, by what it takes.
#[derive(Clone, Copy, Debug)]
pub enum MicroFn {
    MatMul(unsafe fn(&MatMulArgs)),
    Attention(unsafe fn(&AttentionArgs)),
    Embed(unsafe fn(&EmbedArgs)),
    RopeTable(unsafe fn(&RopeTableArgs)),
    Route(unsafe fn(&RouteArgs)),
}

/// Ids of microkernels: what a plan's `Part::micro` holds. They are the same at every instruction-set level.
pub mod id {
    use bundle_format::plan::{DType, Encoding, KvDType, WeightLayout};

    // 0x101 and up; later encodings 0x120 plus the encoding's number. With Q11 rows 0x160 plus the number (0x11_ and 0x14_ were
    // rows of 15 bits), with Q8K rows 0x180 plus the number.
    pub const MATMUL_F32: u32 = 0x101;
    pub const MATMUL_F16: u32 = 0x102;
    pub const MATMUL_Q4_0: u32 = 0x103;
    pub const MATMUL_Q4_1: u32 = 0x104;
    pub const MATMUL_Q8_0: u32 = 0x105;
    pub const MATMUL_BF16: u32 = 0x125;
    pub const MATMUL_Q5_0: u32 = 0x126;
    pub const MATMUL_Q5_1: u32 = 0x127;
    pub const MATMUL_IQ4_NL: u32 = 0x12d;
    pub const MATMUL_MXFP4: u32 = 0x12f;
    pub const MATMUL_Q4_0_Q11: u32 = 0x162;
    pub const MATMUL_Q4_1_Q11: u32 = 0x163;
    pub const MATMUL_Q8_0_Q11: u32 = 0x164;
    pub const MATMUL_Q5_0_Q11: u32 = 0x166;
    pub const MATMUL_Q5_1_Q11: u32 = 0x167;
    pub const MATMUL_Q2_K_Q11: u32 = 0x168;
    pub const MATMUL_Q3_K_Q11: u32 = 0x169;
    pub const MATMUL_Q4_K_Q11: u32 = 0x16a;
    pub const MATMUL_Q5_K_Q11: u32 = 0x16b;
    pub const MATMUL_Q6_K_Q11: u32 = 0x16c;
    pub const MATMUL_IQ4_NL_Q11: u32 = 0x16d;
    pub const MATMUL_IQ4_XS_Q11: u32 = 0x16e;
    pub const MATMUL_MXFP4_Q11: u32 = 0x16f;
    pub const MATMUL_Q2_K_Q8K: u32 = 0x188;
    pub const MATMUL_Q3_K_Q8K: u32 = 0x189;
    pub const MATMUL_Q4_K_Q8K: u32 = 0x18a;
    pub const MATMUL_Q5_K_Q8K: u32 = 0x18b;
    pub const MATMUL_Q6_K_Q8K: u32 = 0x18c;
    pub const MATMUL_IQ4_XS_Q8K: u32 = 0x18e;
    // `WeightLayout::Pairs8`, whatever the encoding was, with Q14 rows.
    pub const MATMUL_PAIRS: u32 = 0x1a0;
    // 0x201 plus the encoding's number.
    pub const EMBED_F32: u32 = 0x201;
    pub const EMBED_F16: u32 = 0x202;
    pub const EMBED_Q4_0: u32 = 0x203;
    pub const EMBED_Q4_1: u32 = 0x204;
    pub const EMBED_Q8_0: u32 = 0x205;
    pub const EMBED_BF16: u32 = 0x206;
    pub const EMBED_Q5_0: u32 = 0x207;
    pub const EMBED_Q5_1: u32 = 0x208;
    pub const EMBED_Q2_K: u32 = 0x209;
    pub const EMBED_Q3_K: u32 = 0x20a;
    pub const EMBED_Q4_K: u32 = 0x20b;
    pub const EMBED_Q5_K: u32 = 0x20c;
    pub const EMBED_Q6_K: u32 = 0x20d;
    pub const EMBED_IQ4_NL: u32 = 0x20e;
    pub const EMBED_IQ4_XS: u32 = 0x20f;
    pub const EMBED_MXFP4: u32 = 0x210;
    // `WeightLayout::Pairs8`.
    pub const EMBED_PAIRS: u32 = 0x240;
    pub const ATTENTION_F16: u32 = 0x301;
    pub const ATTENTION_Q8_0: u32 = 0x302;
    pub const ROPE_TABLE: u32 = 0x401;
    pub const ROUTE: u32 = 0x501;

    /// Multiplies packed weights of an encoding with rows of activations of a type; none where the type is not one of
    /// [`activation_types`](crate::quant::activation_types).
    pub const fn matmul(encoding: Encoding, activations: DType) -> Option<u32> {
        let id = match (activations, encoding) {
            (DType::F32, Encoding::F32) => MATMUL_F32,
            (DType::F32, Encoding::F16) => MATMUL_F16,
            (DType::F32, Encoding::BF16) => MATMUL_BF16,
            (DType::Q8, Encoding::Q4_0) => MATMUL_Q4_0,
            (DType::Q8, Encoding::Q4_1) => MATMUL_Q4_1,
            (DType::Q8, Encoding::Q5_0) => MATMUL_Q5_0,
            (DType::Q8, Encoding::Q5_1) => MATMUL_Q5_1,
            (DType::Q8, Encoding::Q8_0) => MATMUL_Q8_0,
            (DType::Q8, Encoding::IQ4_NL) => MATMUL_IQ4_NL,
            (DType::Q8, Encoding::MXFP4) => MATMUL_MXFP4,
            (DType::Q8K, Encoding::Q2_K) => MATMUL_Q2_K_Q8K,
            (DType::Q8K, Encoding::Q3_K) => MATMUL_Q3_K_Q8K,
            (DType::Q8K, Encoding::Q4_K) => MATMUL_Q4_K_Q8K,
            (DType::Q8K, Encoding::Q5_K) => MATMUL_Q5_K_Q8K,
            (DType::Q8K, Encoding::Q6_K) => MATMUL_Q6_K_Q8K,
            (DType::Q8K, Encoding::IQ4_XS) => MATMUL_IQ4_XS_Q8K,
            (DType::Q11, Encoding::Q4_0) => MATMUL_Q4_0_Q11,
            (DType::Q11, Encoding::Q4_1) => MATMUL_Q4_1_Q11,
            (DType::Q11, Encoding::Q5_0) => MATMUL_Q5_0_Q11,
            (DType::Q11, Encoding::Q5_1) => MATMUL_Q5_1_Q11,
            (DType::Q11, Encoding::Q8_0) => MATMUL_Q8_0_Q11,
            (DType::Q11, Encoding::Q2_K) => MATMUL_Q2_K_Q11,
            (DType::Q11, Encoding::Q3_K) => MATMUL_Q3_K_Q11,
            (DType::Q11, Encoding::Q4_K) => MATMUL_Q4_K_Q11,
            (DType::Q11, Encoding::Q5_K) => MATMUL_Q5_K_Q11,
            (DType::Q11, Encoding::Q6_K) => MATMUL_Q6_K_Q11,
            (DType::Q11, Encoding::IQ4_NL) => MATMUL_IQ4_NL_Q11,
            (DType::Q11, Encoding::IQ4_XS) => MATMUL_IQ4_XS_Q11,
            (DType::Q11, Encoding::MXFP4) => MATMUL_MXFP4_Q11,
            (DType::Q14, Encoding::F16 | Encoding::BF16) => MATMUL_PAIRS,
            _ => return None,
        };
        Some(id)
    }

    /// Looks rows up in a table of an encoding, in [`WeightLayout::Interleave8`] or, where the encoding has that, in
    /// [`WeightLayout::Pairs8`].
    pub const fn embed(encoding: Encoding, layout: WeightLayout) -> u32 {
        match encoding {
            _ if matches!(layout, WeightLayout::Pairs8) => EMBED_PAIRS,
            Encoding::F32 => EMBED_F32,
            Encoding::F16 => EMBED_F16,
            Encoding::Q4_0 => EMBED_Q4_0,
            Encoding::Q4_1 => EMBED_Q4_1,
            Encoding::Q8_0 => EMBED_Q8_0,
            Encoding::BF16 => EMBED_BF16,
            Encoding::Q5_0 => EMBED_Q5_0,
            Encoding::Q5_1 => EMBED_Q5_1,
            Encoding::Q2_K => EMBED_Q2_K,
            Encoding::Q3_K => EMBED_Q3_K,
            Encoding::Q4_K => EMBED_Q4_K,
            Encoding::Q5_K => EMBED_Q5_K,
            Encoding::Q6_K => EMBED_Q6_K,
            Encoding::IQ4_NL => EMBED_IQ4_NL,
            Encoding::IQ4_XS => EMBED_IQ4_XS,
            Encoding::MXFP4 => EMBED_MXFP4,
        }
    }

    /// Attends over pools of a type; none for those of GPUs.
    pub const fn attention(kv: KvDType) -> Option<u32> {
        match kv {
            KvDType::F16 => Some(ATTENTION_F16),
            KvDType::Q8_0 => Some(ATTENTION_Q8_0),
            KvDType::F16Rows | KvDType::Q8Rows => None,
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
            let others = [DType::F32, DType::U32, DType::F16];
            for dtype in DType::QUANTISED.into_iter().chain(others) {
                assert_eq!(
                    id::matmul(encoding, dtype).is_some(),
                    activation_types(encoding).contains(&dtype),
                    "{encoding:?} x {dtype:?}"
                );
            }
        }
    }
}
