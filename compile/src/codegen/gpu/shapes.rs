//! Constants that shared sources and plans have in common: sizes of blocks and work. The sources check them.

/// The constants of sample.cuh; the source checks them.
pub mod sample {
    pub const THREADS: u32 = 256;
    /// Counters of a row.
    pub const COUNTERS: u32 = 2 + 1024;
    /// Sums of so many weights fit 64 bits.
    pub const MAX_VOCAB: u32 = 1 << 19;
    const SLICE: u32 = THREADS * 16;
    const LIST: u64 = 8192;

    /// Blocks of a row.
    pub fn slices(vocab: u32) -> u32 {
        vocab.div_ceil(SLICE)
    }

    /// Bytes that the kernels hand on, a row.
    pub fn work_bytes(vocab: u32) -> u64 {
        8 * (4 + u64::from(slices(vocab)) + LIST)
    }
}
