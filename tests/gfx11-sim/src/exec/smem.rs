//! Loads through the scalar cache.

use super::Env;
use super::flat::locate;
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{Smem, Src};
use crate::wave::{Literal, Wave};

/// Executes an SMEM instruction.
#[inline(never)]
pub(super) fn execute(
    wave: &mut Wave,
    env: &mut Env,
    op: Smem,
    dst: u8,
    base: u8,
    offset: i32,
    soffset: u8,
) -> Exec {
    let count = match op {
        Smem::LoadB32 => 1,
        Smem::LoadB64 => 2,
        Smem::LoadB128 => 4,
        Smem::LoadB256 => 8,
        Smem::LoadB512 => 16,
        Smem::Gl1Inv | Smem::DcacheInv => return Ok(()),
        _ => return Trap::unsupported(op.name()),
    };
    let base = wave.scalar64(Src::S(base), Literal::Signed);
    let address = base
        .wrapping_add_signed(i64::from(offset))
        .wrapping_add(u64::from(wave.s[usize::from(soffset)]))
        & !3;
    for i in 0..count {
        let address = address.wrapping_add(4 * u64::from(i));
        let (region, at) = locate(env, &mut wave.region, address, 4).ok_or_else(|| {
            Box::new(Trap {
                kind: FaultKind::GlobalOutOfBounds {
                    write: false,
                    bytes: 4,
                },
                lane: None,
                address: Some(address),
            })
        })?;
        if env.checks.unwritten_memory && !region.is_written(at, 4) {
            let kind = FaultKind::UnwrittenGlobal { bytes: 4 };
            return Err(Box::new(Trap {
                kind,
                lane: None,
                address: Some(address),
            }));
        }
        let value = region.load_u32(at);
        wave.set_s(dst.wrapping_add(i), value);
    }
    Ok(())
}
