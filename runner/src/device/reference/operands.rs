//! The memory of the reference device, and what a region sees of it.

use std::collections::BTreeMap;

use bundle_format::plan::{Buffer as PlanBuffer, DType, Dim, KV_BLOCK, KvGroup};
use bundle_format::region::{KvPart, Operand, OperandId, Region};
use kernels::reference::Operands;

use crate::device::BlockCopy;
use crate::device::alone::KvPool;
use crate::load::Loaded;

/// Buffers, pools, and the vectors that regions read.
pub struct Memory {
    /// By the plan's index.
    pub buffers: Vec<Buffer>,
    /// By group, then layer, then part.
    pools: Vec<Vec<[Pool; 2]>>,
    /// By the plan's index of weights.
    vectors: BTreeMap<u32, Vec<f32>>,
}

/// One buffer of the plan.
pub struct Buffer {
    pub dtype: DType,
    pub extent: Dim,
    pub cols: usize,
    /// Rows of the present step.
    pub rows: usize,
    /// `[rows, cols]`, for F32 and quantised buffers.
    pub floats: Vec<f32>,
    /// `[rows, cols]`, for U32 buffers.
    pub indices: Vec<u32>,
}

/// Keys or values of one layer, as `[slot, head, dim]`.
pub struct Pool {
    heads: usize,
    head_dim: usize,
    floats: Vec<f32>,
}

impl Memory {
    pub fn new(loaded: &Loaded, blocks: usize) -> Self {
        let plan = loaded.plan();
        let pools = plan
            .kv
            .iter()
            .map(|group| {
                let layer = |_| [Pool::new(group, blocks), Pool::new(group, blocks)];
                (0..group.layers).map(layer).collect()
            })
            .collect();
        let mut vectors = BTreeMap::new();
        for region in plan.launches.iter().flat_map(|l| regions(&l.op)) {
            for operand in &region.operands {
                if let Operand::Weight(index) = *operand {
                    let weight = &plan.weights[index as usize];
                    vectors
                        .entry(index)
                        .or_insert_with(|| super::vector(loaded, weight));
                }
            }
        }
        Self {
            buffers: plan.buffers.iter().map(Buffer::new).collect(),
            pools,
            vectors,
        }
    }

    /// An input buffer and another one to write.
    pub fn pair(&mut self, input: u32, out: u32) -> [&mut Buffer; 2] {
        self.buffers
            .get_disjoint_mut([input as usize, out as usize])
            .expect("the reader has checked that both exist and that one is u32, the other f32")
    }

    /// Copies a block in all layers and parts of a group.
    pub fn copy(&mut self, group: usize, copy: &BlockCopy) {
        for pool in self.pools[group].iter_mut().flatten() {
            let len = pool.start(KV_BLOCK as u32, 0);
            let (from, to) = (copy.from as usize * len, copy.to as usize * len);
            pool.floats.copy_within(from..from + len, to);
        }
    }

    /// A block of a pool, as `[position][head][dim]`.
    pub fn block_mut(&mut self, pool: KvPool, block: u32) -> &mut [f32] {
        let layers = &mut self.pools[pool.group as usize];
        let pool = &mut layers[pool.layer as usize][part_index(pool.part)];
        let len = pool.start(KV_BLOCK as u32, 0);
        &mut pool.floats[block as usize * len..][..len]
    }

    pub fn pool(&self, group: u32, layer: u32, part: KvPart) -> &Pool {
        &self.pools[group as usize][layer as usize][part_index(part)]
    }
}

fn part_index(part: KvPart) -> usize {
    match part {
        KvPart::Key => 0,
        KvPart::Value => 1,
    }
}

/// The regions of an op.
fn regions(op: &bundle_format::plan::Op) -> Vec<&Region> {
    use bundle_format::plan::Op;
    match op {
        Op::Embed { .. } | Op::RopeTable { .. } | Op::Route { .. } => vec![],
        Op::Region { region, .. } => vec![region],
        Op::MatMul {
            prologue, segments, ..
        } => {
            let epilogues = segments.iter().map(|s| &s.epilogue);
            prologue.iter().chain(epilogues).collect()
        }
        Op::ExpertMatMul { segments, .. } => segments.iter().map(|s| &s.epilogue).collect(),
        Op::Attention { epilogue, .. } => vec![epilogue],
    }
}

impl Buffer {
    fn new(buffer: &PlanBuffer) -> Self {
        Self {
            dtype: buffer.dtype,
            extent: buffer.extent,
            cols: buffer.cols as usize,
            rows: 0,
            floats: Vec::new(),
            indices: Vec::new(),
        }
    }

    /// Makes the buffer one of `rows` rows of NaN.
    pub fn reset(&mut self, rows: usize) {
        self.rows = rows;
        self.floats.clear();
        self.indices.clear();
        match self.dtype {
            DType::F32 | DType::Q8 | DType::Q11 | DType::F16 | DType::Q14 | DType::Q8K => {
                self.floats.resize(rows * self.cols, f32::NAN)
            }
            DType::U32 => self.indices.resize(rows * self.cols, u32::MAX),
        }
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.floats[row * self.cols..][..self.cols]
    }

    pub fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        self.floats.chunks_exact_mut(self.cols)
    }
}

impl Pool {
    fn new(group: &KvGroup, blocks: usize) -> Self {
        let (heads, head_dim) = (group.kv_heads as usize, group.head_dim as usize);
        Self {
            heads,
            head_dim,
            // Zeroed memory that the system commits at its first use.
            floats: vec![0.0; blocks * KV_BLOCK * heads * head_dim],
        }
    }

    /// What a slot holds for a head.
    pub fn head(&self, slot: u32, head: usize) -> &[f32] {
        &self.floats[self.start(slot, head)..][..self.head_dim]
    }

    fn start(&self, slot: u32, head: usize) -> usize {
        (slot as usize * self.heads + head) * self.head_dim
    }
}

/// A region's operands in the device's memory.
pub struct RegionOperands<'a> {
    pub region: &'a Region,
    pub memory: &'a mut Memory,
}

impl RegionOperands<'_> {
    /// The buffer of an operand that the reader has checked to be one.
    fn buffer(&mut self, operand: OperandId) -> &mut Buffer {
        match self.region.operands[operand as usize] {
            Operand::Buffer(index) => &mut self.memory.buffers[index as usize],
            other => unreachable!("operand {operand} is {other:?}, not a buffer"),
        }
    }
}

impl Operands for RegionOperands<'_> {
    fn load(&self, operand: OperandId, row: usize, col: usize) -> f32 {
        match self.region.operands[operand as usize] {
            Operand::Buffer(index) => {
                let buffer = &self.memory.buffers[index as usize];
                buffer.floats[row * buffer.cols + col]
            }
            Operand::Weight(index) => self.memory.vectors[&index][col],
            other => unreachable!("operand {operand} is {other:?}, which is not loaded from"),
        }
    }

    fn index(&self, operand: OperandId, row: usize, col: usize) -> u32 {
        match self.region.operands[operand as usize] {
            Operand::Buffer(index) => {
                let buffer = &self.memory.buffers[index as usize];
                buffer.indices[row * buffer.cols + col]
            }
            other => unreachable!("operand {operand} is {other:?}, not indices"),
        }
    }

    fn store(&mut self, operand: OperandId, row: usize, col: usize, value: f32) {
        let buffer = self.buffer(operand);
        buffer.floats[row * buffer.cols + col] = value;
    }

    fn store_quant(&mut self, operand: OperandId, row: usize, col: usize, values: &[f32]) {
        let buffer = self.buffer(operand);
        buffer.floats[row * buffer.cols + col..][..values.len()].copy_from_slice(values);
    }

    fn store_kv(&mut self, operand: OperandId, slot: u32, head: usize, dim: usize, value: f32) {
        match self.region.operands[operand as usize] {
            Operand::Kv { group, layer, part } => {
                let layers = &mut self.memory.pools[group as usize];
                let pool = &mut layers[layer as usize][part_index(part)];
                let start = pool.start(slot, head);
                pool.floats[start + dim] = value;
            }
            other => unreachable!("operand {operand} is {other:?}, not a KV pool"),
        }
    }
}
