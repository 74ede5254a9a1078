//! The argument block: what the caller gives, and what the runtime fills in.

use std::sync::Arc;

use crate::memory::{Access, Memory, Region};
use crate::object::Kernel;
use crate::wave::{LDS_APERTURE, SCRATCH_APERTURE};

/// The bytes of the whole block.
pub(crate) fn build(
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_lds: u32,
    given: &[u8],
) -> Result<Vec<u8>, String> {
    let args = &kernel.metadata.args;
    let size = kernel
        .metadata
        .kernarg_size
        .max(kernel.descriptor.kernarg_size) as usize;
    let needed = args
        .iter()
        .filter(|arg| !arg.is_hidden())
        .map(|arg| (arg.offset + arg.size) as usize)
        .max()
        .unwrap_or(0);
    if given.len() < needed || given.len() > size.max(needed) {
        return Err(format!(
            "{} bytes of arguments, expected {needed} (or up to {size} with hidden ones)",
            given.len()
        ));
    }
    let mut bytes = given.to_vec();
    // Runtimes place blocks in units of a cache line, and the compiler loads up to the end of one in wide pieces.
    bytes.resize(size.max(given.len()).next_multiple_of(64), 0);
    for arg in args.iter().filter(|arg| arg.is_hidden()) {
        let axis = match arg.kind.as_bytes().last() {
            Some(b'y') => 1,
            Some(b'z') => 2,
            _ => 0,
        };
        let value: u64 = match arg.kind.as_str() {
            "hidden_block_count_x" | "hidden_block_count_y" | "hidden_block_count_z" => {
                grid[axis].into()
            }
            "hidden_group_size_x" | "hidden_group_size_y" | "hidden_group_size_z" => {
                block[axis].into()
            }
            "hidden_grid_dims" => (0..3)
                .rev()
                .find(|&i| grid[i] > 1 || block[i] > 1)
                .map_or(1, |i| i as u64 + 1),
            "hidden_dynamic_lds_size" => dynamic_lds.into(),
            "hidden_private_base" => SCRATCH_APERTURE >> 32,
            "hidden_shared_base" => LDS_APERTURE >> 32,
            // No remainders (workgroups are whole), no offsets, no services of a runtime.
            _ => 0,
        };
        let (at, len) = (arg.offset as usize, arg.size.min(8) as usize);
        let to = bytes
            .get_mut(at..at + len)
            .ok_or_else(|| format!("metadata puts {} beyond the argument block", arg.kind))?;
        to.copy_from_slice(&value.to_le_bytes()[..len]);
    }
    Ok(bytes)
}

/// The dispatch packet that `dispatch_ptr` points to.
pub(crate) fn packet(grid: [u32; 3], block: [u32; 3], lds: u32, kernarg: u64) -> [u8; 64] {
    let mut out = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &2u16.to_le_bytes());
    put(2, &3u16.to_le_bytes());
    for axis in 0..3 {
        put(4 + 2 * axis, &(block[axis] as u16).to_le_bytes());
        put(
            12 + 4 * axis,
            &grid[axis].wrapping_mul(block[axis]).to_le_bytes(),
        );
    }
    put(28, &lds.to_le_bytes());
    put(40, &kernarg.to_le_bytes());
    out
}

/// Makes bytes visible to one launch, and gives their address.
pub(crate) fn region(
    memory: &Memory,
    regions: &mut Vec<Arc<Region>>,
    bytes: &[u8],
    name: &'static str,
) -> u64 {
    let base = memory.reserve(bytes.len() as u64);
    let region = Region::owned(base, bytes.len() as u64, Access::Read, name, false);
    region.write(0, bytes);
    let at = regions.partition_point(|r| r.base < base);
    regions.insert(at, Arc::new(region));
    base
}
