//! Private memory: each lane has a stretch of its own, as long as the descriptor says.

use super::super::Env;
use super::narrow;
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{FlatInst, sreg};
use crate::memory_op::FlatOp;
use crate::wave::{WAVE, Wave};

/// A SCRATCH instruction.
pub(super) fn execute(wave: &mut Wave, env: &Env, inst: &FlatInst, op: FlatOp) -> Exec {
    let base = if inst.saddr == sreg::NULL {
        0
    } else {
        wave.s[usize::from(inst.saddr)]
    };
    let base = base.wrapping_add(inst.offset as u32);
    let mut at = [base; WAVE];
    if inst.vaddr_enable {
        for (lane, at) in at.iter_mut().enumerate() {
            *at = at.wrapping_add(wave.v[usize::from(inst.addr)][lane]);
        }
    }
    access(wave, env, inst, op, &at)
}

/// A FLAT instruction on the lanes whose addresses lie in the aperture of scratch.
pub(super) fn flat(
    wave: &mut Wave,
    env: &Env,
    inst: &FlatInst,
    op: FlatOp,
    at: &[u64; WAVE],
) -> Exec {
    access(wave, env, inst, op, &at.map(|address| address as u32))
}

fn access(wave: &mut Wave, env: &Env, inst: &FlatInst, op: FlatOp, at: &[u32; WAVE]) -> Exec {
    let size = wave.scratch.len() / WAVE;
    let (bytes, write) = match op {
        FlatOp::Load(load) => (load.bytes, false),
        FlatOp::Store(store) => (store.bytes, true),
        FlatOp::Atomic(_) => {
            return Trap::unsupported(format!("flat_{} on scratch", inst.op.name()));
        }
    };
    let bytes = usize::from(bytes);
    for lane in Wave::lanes(wave.active) {
        let offset = at[lane] as usize;
        if offset > size || bytes > size - offset {
            let kind = FaultKind::ScratchOutOfRange {
                write,
                bytes: bytes as u32,
                scratch: size as u32,
            };
            return Err(Trap::at(kind, lane, offset as u64));
        }
        let start = lane * size + offset;
        if let Some(written) = &mut wave.written {
            for byte in start..start + bytes {
                if write {
                    written.scratch[byte / 64] |= 1 << (byte % 64);
                } else if written.scratch[byte / 64] >> (byte % 64) & 1 == 0
                    && env.checks.unwritten_memory
                {
                    return Err(Trap::at(
                        FaultKind::UnwrittenScratch {
                            bytes: bytes as u32,
                        },
                        lane,
                        offset as u64,
                    ));
                }
            }
        }
        match op {
            FlatOp::Load(load) => {
                let word = |from: &[u8]| {
                    from.iter()
                        .rev()
                        .fold(0u32, |word, &byte| word << 8 | u32::from(byte))
                };
                for (i, chunk) in wave.scratch[start..start + bytes].chunks(4).enumerate() {
                    let to = &mut wave.v[usize::from(inst.dst) + i][lane];
                    if bytes < 4 {
                        narrow(to, load, word(chunk))
                    } else {
                        *to = word(chunk)
                    }
                }
            }
            FlatOp::Store(store) => {
                for i in 0..bytes {
                    let from = wave.v[usize::from(inst.data) + i / 4][lane];
                    let from = if store.high { from >> 16 } else { from };
                    wave.scratch[start + i] = (from >> (8 * (i % 4))) as u8;
                }
            }
            FlatOp::Atomic(_) => {}
        }
    }
    Ok(())
}
