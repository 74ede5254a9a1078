//! Kernel descriptors (`NAME.kd`, 64 bytes in .rodata): what the command processor sets up before the first instruction.

use super::ObjectError;
use super::bytes::Bytes;

/// A kernel descriptor's contents, as AMDGPU's ABI for HSA lays them out for GFX11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes of LDS that the code declares.
    pub group_segment_fixed_size: u32,
    /// Bytes of scratch a lane.
    pub private_segment_fixed_size: u32,
    /// Bytes of the argument block.
    pub kernarg_size: u32,
    /// Entry point, relative to the descriptor.
    pub entry_offset: i64,
    /// Vector registers in granules of eight, as allocated (the upper bound of what the code may name).
    pub vgprs: u32,
    /// Scalar registers set by the packet, the first of a wave.
    pub user_sgprs: u32,
    /// Workgroup ids x, y, z wanted in scalar registers behind those.
    pub workgroup_ids: [bool; 3],
    /// `workgroup_info` wanted behind those.
    pub workgroup_info: bool,
    /// Work-item ids packed in v0: x alone, x and y, or all three.
    pub work_item_ids: u32,
    /// Initial MODE bits: round (0..4), denormals (4..8), DX10_CLAMP (8), IEEE (9), FP16_OVFL (23).
    pub mode: u32,
    /// Which scalar registers the packet sets.
    pub user: UserRegisters,
    /// Scratch is set up.
    pub private_segment: bool,
    /// Lanes of a wave: 32 or 64.
    pub wave_size: u32,
    /// A workgroup spreads over both CUs of a WGP.
    pub wgp_mode: bool,
}

/// What the packet puts into the first scalar registers, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct UserRegisters {
    pub private_segment_buffer: bool,
    pub dispatch_ptr: bool,
    pub queue_ptr: bool,
    pub kernarg_ptr: bool,
    pub dispatch_id: bool,
    pub flat_scratch_init: bool,
    pub private_segment_size: bool,
}

impl Descriptor {
    /// From the 64 bytes of the descriptor of kernel `name`.
    pub(super) fn read(bytes: &[u8], name: &str) -> Result<Self, ObjectError> {
        let b = Bytes(bytes);
        let what = "kernel descriptor";
        let (rsrc1, rsrc2) = (b.u32(48, what)?, b.u32(52, what)?);
        let properties = b.u16(56, what)?;
        let bit = |n: u32| properties >> n & 1 != 0;
        let wave_size = if bit(10) { 32 } else { 64 };
        if wave_size != 32 {
            return Err(ObjectError::Unsupported(format!(
                "kernel {name}: wave64 (compile with -mwavefrontsize32, the default)"
            )));
        }
        Ok(Self {
            group_segment_fixed_size: b.u32(0, what)?,
            private_segment_fixed_size: b.u32(4, what)?,
            kernarg_size: b.u32(8, what)?,
            entry_offset: b.u64(16, what)? as i64,
            vgprs: ((rsrc1 & 63) + 1) * 8,
            user_sgprs: rsrc2 >> 1 & 31,
            workgroup_ids: [7, 8, 9].map(|n| rsrc2 >> n & 1 != 0),
            workgroup_info: rsrc2 >> 10 & 1 != 0,
            work_item_ids: rsrc2 >> 11 & 3,
            mode: rsrc1 >> 12 & 0xff
                | (rsrc1 >> 21 & 1) << 8
                | (rsrc1 >> 23 & 1) << 9
                | (rsrc1 >> 26 & 1) << 23,
            user: UserRegisters {
                private_segment_buffer: bit(0),
                dispatch_ptr: bit(1),
                queue_ptr: bit(2),
                kernarg_ptr: bit(3),
                dispatch_id: bit(4),
                flat_scratch_init: bit(5),
                private_segment_size: bit(6),
            },
            private_segment: rsrc2 & 1 != 0,
            wave_size,
            wgp_mode: rsrc1 >> 29 & 1 != 0,
        })
    }
}
