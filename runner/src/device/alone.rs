//! What one launch is given and what it leaves, so that a device's launches can be held against what they mean, each by itself:
//! an error is seen where it is made, and not hidden by what comes behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bundle_format::plan::{KV_BLOCK, KvDType, KvGroup, Op};
use bundle_format::region::{Inst, KvPart, Operand, OperandId, Region, RowMap};
use half::f16;

use super::Step;

/// The keys or the values of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvPool {
    pub group: u32,
    pub layer: u32,
    pub part: KvPart,
}

/// Numbers in a device's memory.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// `[rows, cols]` of buffers of floats, by the plan's index.
    pub floats: BTreeMap<u32, Vec<f32>>,
    /// `[rows, cols]` of buffers of indices.
    pub indices: BTreeMap<u32, Vec<u32>>,
    /// `[position][head][dim]` of each of the step's blocks, for positions that have been written; others hold anything.
    pub pools: HashMap<KvPool, BTreeMap<u32, Vec<f32>>>,
}

impl Contents {
    /// With those of others, which count where both have some.
    pub fn add(&mut self, others: Contents) {
        self.floats.extend(others.floats);
        self.indices.extend(others.indices);
        self.pools.extend(others.pools);
    }
}

/// What an op touches.
#[derive(Clone, Debug, Default)]
pub struct Touch {
    /// Buffers that it reads and writes. What it makes for itself alone (a prologue's x) is in neither.
    pub reads: BTreeSet<u32>,
    pub writes: BTreeSet<u32>,
    pub pools_read: Vec<KvPool>,
    pub pools_written: Vec<KvPool>,
}

impl Touch {
    pub fn of(op: &Op) -> Touch {
        let mut touch = Touch::default();
        match op {
            Op::Embed { tokens, out, .. } => touch.buffers(&[*tokens], &[*out]),
            Op::RopeTable { positions, out, .. } => touch.buffers(&[*positions], &[*out]),
            Op::Region { region, .. } => touch.region(region),
            Op::MatMul {
                x,
                prologue,
                segments,
            } => {
                touch.buffers(&[*x], &[]);
                let epilogues = segments.iter().map(|s| &s.epilogue);
                for region in prologue.iter().chain(epilogues) {
                    touch.region(region);
                }
                if prologue.is_some() {
                    touch.reads.remove(x);
                    touch.writes.remove(x);
                }
            }
            Op::Attention {
                q,
                group,
                layer,
                epilogue,
                ..
            } => {
                touch.buffers(&[*q], &[]);
                touch.region(epilogue);
                touch
                    .pools_read
                    .extend([KvPart::Key, KvPart::Value].map(|part| KvPool {
                        group: *group,
                        layer: *layer,
                        part,
                    }));
            }
            Op::Route {
                logits,
                weights,
                places,
                tokens,
                starts,
                ..
            } => touch.buffers(&[*logits], &[*weights, *places, *tokens, *starts]),
            Op::ExpertMatMul {
                x,
                tokens,
                starts,
                segments,
            } => {
                touch.buffers(&[*x, *tokens, *starts], &[]);
                for segment in segments {
                    touch.region(&segment.epilogue);
                }
            }
        }
        touch
    }

    fn buffers(&mut self, reads: &[u32], writes: &[u32]) {
        self.reads.extend(reads);
        self.writes.extend(writes);
    }

    fn region(&mut self, region: &Region) {
        let buffer = |operand: OperandId| match region.operands[operand as usize] {
            Operand::Buffer(index) => Some(index),
            Operand::Weight(_) | Operand::Kv { .. } => None,
        };
        for inst in &region.body {
            match *inst {
                Inst::Load { src, row, .. } => {
                    self.reads.extend(buffer(src));
                    if let RowMap::Via(index) | RowMap::At { index, .. } = row {
                        self.reads.extend(buffer(index));
                    }
                }
                Inst::RowValue { src, .. } => self.reads.extend(buffer(src)),
                Inst::Store { dst, .. } | Inst::StoreQuant { dst, .. } => {
                    self.writes.extend(buffer(dst));
                }
                Inst::StoreKv { dst, slots, .. } => {
                    self.reads.extend(buffer(slots));
                    if let Operand::Kv { group, layer, part } = region.operands[dst as usize] {
                        self.pools_written.push(KvPool { group, layer, part });
                    }
                }
                Inst::Const { .. }
                | Inst::Tile { .. }
                | Inst::Unary { .. }
                | Inst::Binary { .. }
                | Inst::Fma { .. }
                | Inst::RowSum { .. }
                | Inst::UnitSum { .. } => {}
            }
        }
    }
}

/// The blocks of a KV group that a step's sequences have, ascending.
pub(super) fn blocks(step: &Step, group: u32) -> BTreeSet<u32> {
    let tables = step.kv[group as usize].tables.iter();
    tables.flat_map(|table| table.iter().copied()).collect()
}

/// The numbers of a GPU's block, as `[position][head][dim]`.
pub(super) fn block(kv: &KvGroup, bytes: &[u8]) -> Vec<f32> {
    let (heads, dims) = (kv.kv_heads as usize, kv.head_dim as usize);
    let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let head_bytes = kv.dtype.head_bytes(kv.head_dim) as usize;
    let mut out = Vec::with_capacity(KV_BLOCK * heads * dims);
    for position in 0..KV_BLOCK {
        for head in 0..heads {
            let start = head * head_bytes;
            out.extend((0..dims).map(|dim| match kv.dtype {
                KvDType::F16Rows => half(start + 2 * (position * dims + dim)),
                KvDType::Q8Rows => {
                    let scales = start + KV_BLOCK * dims;
                    let quant = bytes[start + position * dims + dim] as i8;
                    f32::from(quant) * half(scales + 2 * (position * (dims / 32) + dim / 32))
                }
                KvDType::F16 | KvDType::Q8_0 => f32::NAN,
            }));
        }
    }
    out
}
