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
    /// A dense column of u32.
    Indices,
    /// Rows of quantised blocks.
    Quant {
        ty: QuantType,
        cols: u32,
        row_bytes: u64,
    },
    /// A KV pool of f16 ([`KvDType::F16`]), `block_bytes` from block to block.
    Kv {
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
    /// [`DType::Q16`]
    Q16,
}

impl QuantType {
    /// The largest quant: what a block's largest magnitude becomes.
    pub fn levels(self) -> f32 {
        match self {
            QuantType::Q8 => 127.0,
            QuantType::Q16 => 127.0 * 128.0,
        }
    }

    /// Offsets of the scales and of the sums in a row of `cols` elements, in bytes.
    pub fn scales_and_sums(self, cols: u32) -> [u64; 2] {
        let dtype = match self {
            QuantType::Q8 => DType::Q8,
            QuantType::Q16 => DType::Q16,
        };
        let scales = quants_bytes(dtype, cols);
        [scales, scales + cols as u64 / Q8_BLOCK as u64 * 4]
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
        DType::Q16 => Ok(quant_layout(QuantType::Q16, cols, row_bytes)),
        DType::F16 => Err(format!("buffer {} is f16, for GPUs", buffer.name)),
        DType::U32 if cols == 1 => Ok(Layout::Indices),
        DType::U32 => Err(format!(
            "u32 buffer {} has {cols} columns, expected 1",
            buffer.name
        )),
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
    match group.dtype {
        KvDType::F16 => Ok(Layout::Kv {
            part,
            heads: group.kv_heads,
            head_dim: group.head_dim,
            block_bytes: group.part_bytes(),
        }),
        other => Err(format!("no code for KV pools of {other:?}")),
    }
}

/// Bytes of an f16.
const F16: u64 = 2;

/// Bytes from element to element along the axes of a KV block.
#[derive(Clone, Copy, Debug)]
pub struct KvStrides {
    pub head: u64,
    pub position: u64,
    pub dim: u64,
}

impl KvStrides {
    /// Of the layout that [`KvDType::F16`] states.
    pub fn of(part: KvPart, head_dim: u32) -> KvStrides {
        let head = head_dim as u64 * KV_BLOCK as u64 * F16;
        match part {
            KvPart::Key => KvStrides {
                head,
                position: F16,
                dim: KV_BLOCK as u64 * F16,
            },
            KvPart::Value => KvStrides {
                head,
                position: head_dim as u64 * F16,
                dim: F16,
            },
        }
    }
}
