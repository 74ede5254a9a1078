//! What a region alone doesn't say: how its operands and its tile lie in memory.

use bundle_format::plan::{
    Buffer, DType, Encoding, KV_BLOCK, KvDType, KvGroup, Q8_BLOCK, Weight, quants_bytes,
};
use bundle_format::region::{KvPart, Operand, Region};
use bundle_format::target::Target;

use crate::error::Error;

/// Everything besides the region that its code depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionContext {
    pub target: Target,
    /// Layout of each of the region's operands, in their order.
    pub operands: Vec<Layout>,
    /// Elements between rows of the tile: the variant's `tile_cols`. Of no meaning where the region reads no tile.
    pub tile_stride: u32,
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows of f32.
    F32 { cols: u32, row_bytes: u64 },
    /// One row of f32, whatever the iteration's row.
    Vector { cols: u32 },
    /// Rows of u32; one column is dense.
    Indices { cols: u32, row_bytes: u64 },
    /// Rows of quantised blocks.
    Quant {
        ty: QuantType,
        cols: u32,
        row_bytes: u64,
    },
    /// A KV pool, `block_bytes` from block to block.
    Kv {
        dtype: KvDType,
        part: KvPart,
        heads: u32,
        head_dim: u32,
        block_bytes: u64,
    },
}

/// Types of quantised blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantType {
    /// [`DType::Q8`]
    Q8,
    /// [`DType::Q11`]
    Q11,
    /// [`DType::Q14`]
    Q14,
    /// [`DType::Q8K`]
    Q8K,
}

impl QuantType {
    /// The largest quant: what a block's largest magnitude becomes.
    pub fn levels(self) -> f32 {
        match self {
            QuantType::Q8 | QuantType::Q8K => 127.0,
            QuantType::Q11 => 127.0 * 8.0,
            QuantType::Q14 => 8191.0,
        }
    }

    /// Bytes of a quant.
    pub fn bytes(self) -> u8 {
        match self {
            QuantType::Q8 | QuantType::Q8K => 1,
            QuantType::Q11 | QuantType::Q14 => 2,
        }
    }

    /// Elements of a block.
    pub fn block(self) -> u32 {
        self.dtype().block() as u32
    }

    /// Offsets of the scales and of the sums in a row of `cols` elements, in bytes.
    pub fn scales_and_sums(self, cols: u32) -> [u64; 2] {
        let scales = quants_bytes(self.dtype(), cols);
        [scales, scales + u64::from(cols / self.block()) * 4]
    }

    fn dtype(self) -> DType {
        match self {
            QuantType::Q8 => DType::Q8,
            QuantType::Q11 => DType::Q11,
            QuantType::Q14 => DType::Q14,
            QuantType::Q8K => DType::Q8K,
        }
    }
}

impl RegionContext {
    /// Looks up the operands of `region` in the tables of the plan that it will be part of.
    ///
    /// # Errors
    /// [`Error::Bug`] where an operand names no entry of a table, or one that regions can't use.
    pub fn new(
        target: Target,
        region: &Region,
        buffers: &[Buffer],
        weights: &[Weight],
        kv: &[KvGroup],
        tile_stride: u32,
    ) -> Result<RegionContext, Error> {
        let layout_of = |operand: &Operand| -> Result<Layout, String> {
            match *operand {
                Operand::Buffer(id) => buffer_layout(lookup(buffers, id, "buffers")?),
                Operand::Weight(id) => weight_layout(lookup(weights, id, "weights")?),
                Operand::Kv { group, layer, part } => {
                    kv_layout(lookup(kv, group, "KV groups")?, layer, part)
                }
            }
        };
        let operands = region
            .operands
            .iter()
            .enumerate()
            .map(|(i, operand)| {
                layout_of(operand)
                    .map_err(|e| Error::Bug(format!("region {}: operand {i}: {e}", region.name)))
            })
            .collect::<Result<_, _>>()?;
        Ok(RegionContext {
            target,
            operands,
            tile_stride,
        })
    }
}

fn lookup<'a, T>(table: &'a [T], id: u32, what: &str) -> Result<&'a T, String> {
    table
        .get(id as usize)
        .ok_or_else(|| format!("number {id} of {} {what}", table.len()))
}

fn buffer_layout(buffer: &Buffer) -> Result<Layout, String> {
    let (cols, row_bytes) = (buffer.cols, buffer.row_bytes());
    match buffer.dtype {
        DType::F32 => Ok(Layout::F32 { cols, row_bytes }),
        DType::Q8 => Ok(quant_layout(QuantType::Q8, cols, row_bytes)),
        DType::Q11 => Ok(quant_layout(QuantType::Q11, cols, row_bytes)),
        DType::Q14 => Ok(quant_layout(QuantType::Q14, cols, row_bytes)),
        DType::Q8K => Ok(quant_layout(QuantType::Q8K, cols, row_bytes)),
        DType::F16 => Err(format!("buffer {} is f16, for GPUs", buffer.name)),
        DType::U32 => Ok(Layout::Indices { cols, row_bytes }),
    }
}

fn quant_layout(ty: QuantType, cols: u32, row_bytes: u64) -> Layout {
    Layout::Quant {
        ty,
        cols,
        row_bytes,
    }
}

fn weight_layout(weight: &Weight) -> Result<Layout, String> {
    if weight.encoding != Encoding::F32 || weight.rows != 1 {
        return Err(format!(
            "weight {} is {:?} of {} rows, expected F32 of one row",
            weight.name, weight.encoding, weight.rows
        ));
    }
    Ok(Layout::Vector { cols: weight.cols })
}

fn kv_layout(group: &KvGroup, layer: u32, part: KvPart) -> Result<Layout, String> {
    if layer >= group.layers {
        return Err(format!(
            "layer {layer} of a KV group of {} layers",
            group.layers
        ));
    }
    Ok(Layout::Kv {
        dtype: group.dtype,
        part,
        heads: group.kv_heads,
        head_dim: group.head_dim,
        block_bytes: group.part_bytes(),
    })
}

/// Bytes of an f16.
const F16: u64 = 2;

/// Bytes from element to element along the axes of a KV block.
#[derive(Clone, Copy, Debug)]
pub struct KvStrides {
    pub head: u64,
    /// From an even position to the next even one.
    pub two_positions: u64,
    /// From an even position to the odd one behind it.
    pub position: u64,
    /// From an even dimension to the next even one.
    pub two_dims: u64,
    /// From an even dimension to the odd one behind it.
    pub dim: u64,
}

impl KvStrides {
    /// Of the layout that [`KvDType`] states.
    pub fn of(dtype: KvDType, part: KvPart, head_dim: u32) -> KvStrides {
        let [two_positions, position, two_dims, dim] = match (dtype, part) {
            (KvDType::F16, KvPart::Key) => [
                2 * F16,
                F16,
                2 * KV_BLOCK as u64 * F16,
                KV_BLOCK as u64 * F16,
            ],
            (KvDType::F16, KvPart::Value) | (KvDType::F16Rows, _) => {
                let position = head_dim as u64 * F16;
                [2 * position, position, 2 * F16, F16]
            }
            // Pairs of dimensions, for each of which the positions follow one another.
            (KvDType::Q8_0, KvPart::Key) => [4, 2, 2 * KV_BLOCK as u64, 1],
            // Pairs of positions, for each of which the dimensions follow one another.
            (KvDType::Q8_0, KvPart::Value) => [2 * head_dim as u64, 1, 4, 2],
            (KvDType::Q8Rows, _) => [2 * head_dim as u64, head_dim as u64, 2, 1],
        };
        KvStrides {
            head: dtype.head_bytes(head_dim),
            two_positions,
            position,
            two_dims,
            dim,
        }
    }
}

/// Where the scales of a quantised head are, in bytes: each 32 dimensions have one of every position of the block.
pub struct KvScales {
    /// From the head's start.
    pub start: u64,
    /// From position to position.
    pub position: u64,
    /// From dimension to dimension, of which only every 32nd counts.
    pub dim: u64,
}

impl KvScales {
    /// Of [`KvDType::Q8_0`].
    pub fn of(head_dim: u32) -> KvScales {
        KvScales {
            start: head_dim as u64 * KV_BLOCK as u64,
            position: F16,
            dim: KV_BLOCK as u64 * F16 / Q8_BLOCK as u64,
        }
    }
}
