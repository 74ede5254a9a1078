//! What the model of speed knows of each GPU: what was measured of it, and what is assumed.

use bundle_format::gpu::Kernel;
use bundle_format::target::Target;

/// What a GPU does in a second.
pub struct Gpu {
    pub name: &'static str,
    /// Bytes from memory.
    pub(super) read: f64,
    /// Operations of matrix products in f16, as they were reached.
    pub(super) matrix: f64,
    /// Vector units, each of which issues an instruction of a warp a cycle.
    pub(super) units: f64,
    /// Cycles.
    pub(super) clock: f64,
    /// Bytes of shared memory a cycle, for each vector unit.
    pub(super) shared: f64,
    /// From a read of memory to its data, seconds.
    pub(super) latency: f64,
    /// From the end of a kernel to the first instruction of the next, seconds.
    pub(super) gap: f64,
    /// Warps of a vector unit, registers of a lane that they share and in which granules.
    pub(super) warps: u32,
    pub(super) registers: (u32, u32),
    /// Vector units and bytes of shared memory of a processor, and granules of the latter.
    pub(super) processor: (u32, u32, u32),
    /// Operations of a matrix instruction, how many of them a second, and whether the vector unit goes on meanwhile.
    pub(super) product: f64,
    pub(super) products: f64,
    pub(super) apart: bool,
    /// Bytes a second of the last cache that all processors share, and the share of reads of activations that come from there; where
    /// that is known.
    pub(super) cache: Option<(f64, f64)>,
    /// Cycles from an instruction of a warp to its next, on average, of which the unit's other warps fill as many as they are.
    pub(super) dependent: f64,
    /// The same of a warp that has its unit to itself.
    pub(super) alone: f64,
    /// Where instructions of products of many rows are not counted in the machine code, what stands for that.
    pub(super) tiles: Option<Tiles>,
    /// Where those of products of one row are not, the share of the read rate that they reach: of codes, which are unpacked, and
    /// of f16.
    pub(super) one: Option<[f64; 2]>,
    /// The share that attention reaches, where its instructions are not counted.
    pub(super) attention: f64,
    /// Of products of experts, the share of reads of activations that come from the last cache, and cycles from an instruction to the
    /// next, in place of those of other products.
    pub(super) experts: Option<(f64, f64)>,
    /// Whether kernels read their weights before the one before them has ended.
    pub(super) early: bool,
}

/// Products of many rows in tiles, of which one is under way on each processor.
pub struct Tiles {
    /// Rows and features of a tile, and the fewest rows of such products.
    pub(super) size: u32,
    pub(super) many: u32,
    /// Tiles at a time.
    pub(super) together: u32,
    /// What blocks of an expert's rows, which have fewer rows for the same weights, reach of the rate of these tiles.
    pub(super) of_experts: f64,
}

/// Strix Halo. Memory's rate is measured, as is what matrix products reach of 59.4 TFLOPS; latency, gap and the cycles of a wavefront alone
/// are assumptions.
const GFX1151: Gpu = Gpu {
    name: "gfx1151",
    read: 212e9,
    matrix: 36.9e12,
    units: 80.0,
    clock: 2.9e9,
    shared: 64.0,
    latency: 0.8e-6,
    gap: 2.0e-6,
    warps: 16,
    registers: (1536, 24),
    processor: (4, 128 << 10, 1 << 10),
    product: 8192.0,
    products: 36.9e12,
    apart: false,
    cache: None,
    dependent: 1.0,
    alone: 5.0,
    tiles: None,
    one: None,
    attention: 1.0,
    experts: None,
    early: false,
};

/// H100 (SXM). The read rate is that of a kernel that only reads, the gap that between launches of a graph that may overlap, the
/// shares of one row those of kernels by themselves (an H200's): all measured, and none of them in whole steps of a model. What tiles of
/// matrix products reach is fitted to llama2-7b's prefill. Products of few rows are by `mma.sync`, at 62% of the unit's rate. Of the
/// kernels of 32 rows, of which a unit has two warps, ncu saw 30 to 42% of issue slots used. The second cache's rate is as published;
/// that half of the activations come from it was chosen for TinyLlama at batch 32. What blocks of experts reach in a prompt is that of Qwen3-30B-A3B's
/// two products by themselves (an H200: 183 and 100 us without the launch). Two numbers are fitted to steps of one model each, on an
/// H200: what attention reads to llama2-7b at batch 32, and those of experts to Qwen1.5-MoE-A2.7B at 8 and 32.
const H100: Gpu = Gpu {
    name: "H100",
    read: 3.04e12,
    matrix: 445e12,
    units: 528.0,
    clock: 1.755e9,
    shared: 32.0,
    latency: 0.8e-6,
    gap: 1.6e-6,
    warps: 16,
    registers: (512, 8),
    processor: (4, 228 << 10, 1 << 10),
    product: 4096.0,
    products: 613e12,
    apart: true,
    cache: Some((5.5e12, 0.5)),
    dependent: 5.5,
    alone: 5.5,
    tiles: Some(Tiles {
        size: 128,
        many: 65,
        together: 132,
        of_experts: 0.62,
    }),
    one: Some([0.85, 1.0]),
    attention: 0.72,
    experts: Some((0.28, 4.0)),
    early: true,
};

/// The same chip with more memory.
const H200: Gpu = Gpu {
    name: "H200",
    read: 4.36e12,
    ..H100
};

impl Gpu {
    /// The GPUs of a target of which there is a model.
    pub fn of(target: Target) -> &'static [Gpu] {
        match target {
            Target::Gfx1151 => &[GFX1151],
            Target::Sm90a => &[H100, H200],
            _ => &[],
        }
    }

    /// Warps of a kernel that a vector unit has at a time, and what limits them.
    pub fn occupancy(&self, kernel: &Kernel) -> (f64, &'static str) {
        let (units, shared, granule) = self.processor;
        let block = f64::from(kernel.threads.div_ceil(32));
        let (all, of) = self.registers;
        let by_registers = all / kernel.registers.max(1).next_multiple_of(of);
        let by_registers = by_registers.min(self.warps);
        // Blocks are whole.
        let blocks = (f64::from(by_registers * units) / block).floor().max(1.0);
        let bytes = (kernel.fixed_shared + kernel.shared).next_multiple_of(granule);
        let by_shared = f64::from(shared.checked_div(bytes).unwrap_or(u32::MAX));
        let warps = |blocks: f64| blocks * block / f64::from(units);
        match by_shared < blocks {
            true => (warps(by_shared), "shared memory"),
            false if by_registers < self.warps => (warps(blocks), "registers"),
            false => (warps(blocks), "wavefronts"),
        }
    }
}
