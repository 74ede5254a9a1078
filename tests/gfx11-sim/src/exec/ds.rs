//! The local data share, and lanes' exchanges that go through its crossbar.

use super::Env;
use super::flat::{combine, get, narrow, put};
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{DsInst, FlatInst, sreg};
use crate::lds::{By, Kind, Lds};
use crate::memory_op::{Atomic, DsOp, FlatOp, Half, Load, Store, ds_op};
use crate::wave::{Lanes, WAVE, Wave};

/// Executes a DS instruction.
#[inline(never)]
pub(super) fn execute(wave: &mut Wave, env: &mut Env, inst: &DsInst) -> Exec {
    wave.active = wave.exec();
    if inst.gds {
        return Trap::unsupported(format!("{} of the global data share", inst.op.name()));
    }
    let address = |wave: &Wave| wave.v[usize::from(inst.addr)];
    let offset = inst.offset();
    match ds_op(inst.op) {
        DsOp::Load(op) => load(
            wave,
            env.lds,
            op,
            inst.dst.into(),
            &shift(address(wave), offset),
        ),
        DsOp::Store(op) => store(
            wave,
            env.lds,
            op,
            inst.data0.into(),
            &shift(address(wave), offset),
        ),
        DsOp::Load2 { bytes, unit } => {
            let part = whole(bytes);
            // Both addresses are read before the first result may overwrite them.
            let at = address(wave);
            let second = usize::from(inst.dst) + usize::from(part.registers());
            load(
                wave,
                env.lds,
                part,
                inst.dst.into(),
                &shift(at, u32::from(inst.offset0) * unit),
            )?;
            load(
                wave,
                env.lds,
                part,
                second,
                &shift(at, u32::from(inst.offset1) * unit),
            )
        }
        DsOp::Store2 { bytes, unit } => {
            let part = Store { bytes, high: false };
            let at = address(wave);
            store(
                wave,
                env.lds,
                part,
                inst.data0.into(),
                &shift(at, u32::from(inst.offset0) * unit),
            )?;
            store(
                wave,
                env.lds,
                part,
                inst.data1.into(),
                &shift(at, u32::from(inst.offset1) * unit),
            )
        }
        DsOp::Atomic {
            atomic: op,
            returns,
        } => {
            let dst = returns.then_some(usize::from(inst.dst));
            let (value, compare) = (usize::from(inst.data0), usize::from(inst.data1));
            atomic(
                wave,
                env.lds,
                op,
                dst,
                value,
                compare,
                &shift(address(wave), offset),
            )
        }
        DsOp::Permute { backward } => {
            permute(wave, inst, backward, offset);
            Ok(())
        }
        DsOp::Swizzle => swizzle(wave, inst, offset),
        DsOp::AddtidLoad | DsOp::AddtidStore => {
            let base = (wave.s[usize::from(sreg::M0)] & 0xffff).wrapping_add(offset);
            let at = std::array::from_fn(|lane| base.wrapping_add(4 * lane as u32));
            if ds_op(inst.op) == DsOp::AddtidLoad {
                load(wave, env.lds, whole(4), inst.dst.into(), &at)
            } else {
                store(
                    wave,
                    env.lds,
                    Store {
                        bytes: 4,
                        high: false,
                    },
                    inst.data0.into(),
                    &at,
                )
            }
        }
        DsOp::Nop => Ok(()),
        DsOp::Counter { .. } | DsOp::Other => Trap::unsupported(inst.op.name()),
    }
}

/// A FLAT instruction on the lanes whose addresses lie in the aperture of LDS.
pub(super) fn flat(
    wave: &mut Wave,
    env: &mut Env,
    inst: &FlatInst,
    op: FlatOp,
    at: &[u64; WAVE],
) -> Exec {
    let at = at.map(|address| address as u32);
    match op {
        FlatOp::Load(op) => load(wave, env.lds, op, inst.dst.into(), &at),
        FlatOp::Store(op) => store(wave, env.lds, op, inst.data.into(), &at),
        FlatOp::Atomic(op) => {
            let dst = inst.glc.then_some(usize::from(inst.dst));
            let value = usize::from(inst.data);
            atomic(
                wave,
                env.lds,
                op,
                dst,
                value,
                value + usize::from(op.registers()),
                &at,
            )
        }
    }
}

/// A load of whole registers.
fn whole(bytes: u8) -> Load {
    Load {
        bytes,
        signed: false,
        half: Half::Whole,
    }
}

#[inline(always)]
fn shift(address: Lanes, offset: u32) -> Lanes {
    address.map(|x| x.wrapping_add(offset))
}

#[inline(always)]
fn by(wave: &Wave, lane: usize, access: Kind) -> By {
    By {
        wave: wave.id,
        barriers: wave.barriers,
        lane,
        access,
    }
}

#[inline(always)]
fn load(wave: &mut Wave, lds: &mut Lds, op: Load, dst: usize, address: &Lanes) -> Exec {
    for lane in Wave::lanes(wave.active) {
        let at = lds.check(address[lane], op.bytes.into(), by(wave, lane, Kind::Read))?;
        match op.bytes {
            1 | 2 => narrow(&mut wave.v[dst][lane], op, lds.load_narrow(at, op.bytes)),
            4 => put(wave, dst, lane, lds.load::<1>(at)),
            8 => put(wave, dst, lane, lds.load::<2>(at)),
            12 => put(wave, dst, lane, lds.load::<3>(at)),
            _ => put(wave, dst, lane, lds.load::<4>(at)),
        }
    }
    Ok(())
}

#[inline(always)]
fn store(wave: &mut Wave, lds: &mut Lds, op: Store, data: usize, address: &Lanes) -> Exec {
    for lane in Wave::lanes(wave.active) {
        let at = lds.check(address[lane], op.bytes.into(), by(wave, lane, Kind::Write))?;
        match op.bytes {
            1 | 2 => {
                let value = wave.v[data][lane] >> if op.high { 16 } else { 0 };
                lds.store_narrow(at, op.bytes, value);
            }
            4 => lds.store::<1>(at, get(wave, data, lane)),
            8 => lds.store::<2>(at, get(wave, data, lane)),
            12 => lds.store::<3>(at, get(wave, data, lane)),
            _ => lds.store::<4>(at, get(wave, data, lane)),
        }
    }
    Ok(())
}

fn atomic(
    wave: &mut Wave,
    lds: &mut Lds,
    op: Atomic,
    dst: Option<usize>,
    value: usize,
    compare: usize,
    address: &Lanes,
) -> Exec {
    let bytes = if op.wide { 8 } else { 4 };
    let read = |wave: &Wave, first: usize, lane: usize| {
        let low = u64::from(wave.v[first][lane]);
        if op.wide {
            low | u64::from(wave.v[first + 1][lane]) << 32
        } else {
            low
        }
    };
    for lane in Wave::lanes(wave.active) {
        let at = lds.check(address[lane], bytes, by(wave, lane, Kind::Atomic))?;
        if at % bytes as usize != 0 {
            return Err(Trap::at(FaultKind::Misaligned { bytes }, lane, at as u64));
        }
        let high = if op.wide {
            u64::from(lds.load_u32(at + 4)) << 32
        } else {
            0
        };
        let old = u64::from(lds.load_u32(at)) | high;
        // Only comparisons have second data.
        let other = if op.data_registers() > op.registers() {
            read(wave, compare, lane)
        } else {
            0
        };
        let new = combine(op, old, read(wave, value, lane), other);
        lds.store_u32(at, new as u32);
        if op.wide {
            lds.store_u32(at + 4, (new >> 32) as u32);
        }
        if let Some(dst) = dst {
            wave.v[dst][lane] = old as u32;
            if op.wide {
                wave.v[dst + 1][lane] = (old >> 32) as u32;
            }
        }
    }
    Ok(())
}

/// Lanes are addressed in bytes, modulo the wave. Backward: each lane fetches; forward: each lane sends, the highest one
/// wins, and who gets nothing gets zero. Inactive lanes are zero as sources.
fn permute(wave: &mut Wave, inst: &DsInst, backward: bool, offset: u32) {
    let select =
        wave.v[usize::from(inst.addr)].map(|x| (x.wrapping_add(offset) / 4) as usize % WAVE);
    let data = wave.v[usize::from(inst.data0)];
    let mut out: Lanes = [0; WAVE];
    let active = wave.active;
    for lane in Wave::lanes(active) {
        if !backward {
            out[select[lane]] = data[lane];
        } else if active >> select[lane] & 1 != 0 {
            out[lane] = data[select[lane]];
        }
    }
    wave.put(inst.dst, &out);
}

/// A fixed pattern: four lanes choose among themselves, or lane numbers go through AND, OR and XOR, or lanes rotate.
fn swizzle(wave: &mut Wave, inst: &DsInst, pattern: u32) -> Exec {
    let data = wave.v[usize::from(inst.addr)];
    let active = wave.active;
    let source = |lane: usize| -> Option<usize> {
        Some(match pattern {
            p if p & 0x8000 == 0 => {
                let (and, or, xor) = (p as usize & 31, p as usize >> 5 & 31, p as usize >> 10 & 31);
                (lane & and | or) ^ xor
            }
            p if p < 0xc000 => lane & !3 | (p >> (2 * (lane & 3)) & 3) as usize,
            p if p < 0xe000 => {
                let (mask, n) = (p as usize & 31, p as usize >> 5 & 31);
                let n = if p & 0x400 != 0 { WAVE - n } else { n };
                lane & mask | (lane + n) & !mask & 31
            }
            _ => return None,
        })
    };
    let mut out: Lanes = [0; WAVE];
    for (lane, out) in out.iter_mut().enumerate() {
        let Some(from) = source(lane) else {
            return Trap::unsupported(format!("ds_swizzle_b32 pattern {pattern:#x}"));
        };
        // Inactive lanes read as zero.
        *out = if active >> from & 1 != 0 {
            data[from]
        } else {
            0
        };
    }
    wave.put(inst.dst, &out);
    Ok(())
}
