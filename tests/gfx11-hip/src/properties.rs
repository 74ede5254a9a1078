//! `hipDeviceProp_tR0600` of the simulated GPU.

/// Bytes of the structure.
pub const BYTES: usize = 1472;

const NAME: usize = 0;
const TOTAL_MEMORY: usize = 288;
const SHARED_PER_BLOCK: usize = 296;
const WARP_SIZE: usize = 308;
const MAJOR: usize = 360;
const MINOR: usize = 364;
const PROCESSORS: usize = 388;
const INTEGRATED: usize = 396;
const ARCH_NAME: usize = 1160;

/// The structure's bytes.
pub fn properties(memory: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(NAME, b"gfx1151 simulator");
    put(TOTAL_MEMORY, &memory.to_ne_bytes());
    put(SHARED_PER_BLOCK, &(64u64 << 10).to_ne_bytes());
    put(WARP_SIZE, &32i32.to_ne_bytes());
    put(MAJOR, &11i32.to_ne_bytes());
    put(MINOR, &5i32.to_ne_bytes());
    put(PROCESSORS, &20i32.to_ne_bytes());
    put(INTEGRATED, &1i32.to_ne_bytes());
    put(ARCH_NAME, b"gfx1151");
    bytes
}
