//! FLAT, GLOBAL and SCRATCH: each active lane has an address of its own.

use super::{Env, ds};
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{Flat, FlatInst, Segment, Src, sreg};
use crate::memory::{Access, Region, find};
use crate::memory_op::{Atomic, FlatOp, Half, Load, Store, flat_op};
use crate::wave::{LDS_APERTURE, Literal, SCRATCH_APERTURE, WAVE, Wave};

mod atomic;
mod scratch;

pub(crate) use atomic::combine;

/// Executes an instruction of the FLAT encodings.
#[inline(never)]
pub(super) fn execute(wave: &mut Wave, env: &mut Env, inst: &FlatInst) -> Exec {
    let exec = wave.exec();
    wave.active = exec;
    if exec == 0 {
        return Ok(());
    }
    let op = flat_op(inst.op);
    match inst.segment {
        Segment::Scratch => scratch::execute(wave, env, inst, op),
        Segment::Global => global(wave, env, inst, op, &addresses(wave, inst), exec),
        Segment::Flat => {
            // The upper half of the address says which memory it is: lanes may differ.
            let at = addresses(wave, inst);
            let in_aperture =
                |base: u64| super::alu::mask(|lane| at[lane] >> 32 == base >> 32) & exec;
            let (lds, private) = (in_aperture(LDS_APERTURE), in_aperture(SCRATCH_APERTURE));
            if lds != 0 {
                wave.active = lds;
                ds::flat(wave, env, inst, op, &at)?;
            }
            if private != 0 {
                wave.active = private;
                scratch::flat(wave, env, inst, op, &at)?;
            }
            let rest = exec & !lds & !private;
            if rest == 0 {
                return Ok(());
            }
            wave.active = rest;
            global(wave, env, inst, op, &at, rest)
        }
    }
}

/// Addresses of a GLOBAL or FLAT instruction.
#[inline(always)]
fn addresses(wave: &Wave, inst: &FlatInst) -> [u64; WAVE] {
    let offset = i64::from(inst.offset);
    let low = &wave.v[usize::from(inst.addr)];
    let mut out = [0; WAVE];
    if matches!(inst.op, Flat::LoadAddtidB32 | Flat::StoreAddtidB32) {
        let base = wave
            .scalar64(Src::S(inst.saddr), Literal::Signed)
            .wrapping_add_signed(offset);
        for (lane, out) in out.iter_mut().enumerate() {
            *out = base.wrapping_add(4 * lane as u64);
        }
    } else if inst.segment == Segment::Global && inst.saddr != sreg::NULL {
        let base = wave
            .scalar64(Src::S(inst.saddr), Literal::Signed)
            .wrapping_add_signed(offset);
        for lane in 0..WAVE {
            out[lane] = base.wrapping_add(u64::from(low[lane]));
        }
    } else {
        let high = &wave.v[usize::from(inst.addr) + 1];
        for lane in 0..WAVE {
            out[lane] =
                (u64::from(low[lane]) | u64::from(high[lane]) << 32).wrapping_add_signed(offset);
        }
    }
    out
}

/// The region that holds `len` bytes at an address, and where in it they are. `hint` is the last region found.
#[inline(always)]
pub(super) fn locate<'a>(
    env: &Env<'a>,
    hint: &mut usize,
    address: u64,
    len: u64,
) -> Option<(&'a Region, u64)> {
    let regions = env.regions;
    if let Some(region) = regions.get(*hint)
        && region.holds(address, len)
    {
        return Some((region, address - region.base));
    }
    let at = find(regions, address)?;
    let region = &regions[at];
    if !region.holds(address, len) {
        return None;
    }
    *hint = at;
    Some((region, address - region.base))
}

fn out_of_bounds(write: bool, bytes: u32, lane: usize, address: u64) -> Box<Trap> {
    Trap::at(FaultKind::GlobalOutOfBounds { write, bytes }, lane, address)
}

#[inline(always)]
fn global(
    wave: &mut Wave,
    env: &Env,
    inst: &FlatInst,
    op: FlatOp,
    at: &[u64; WAVE],
    active: u32,
) -> Exec {
    match op {
        FlatOp::Load(load) => load_global(wave, env, inst, load, at, active),
        FlatOp::Store(store) => store_global(wave, env, inst, store, at, active),
        FlatOp::Atomic(atomic) => atomic_global(wave, env, inst, atomic, at, active),
    }
}

/// The one region that all active lanes access, if there is one: found with one look-up.
#[inline(always)]
fn common<'a>(
    wave: &mut Wave,
    env: &Env<'a>,
    at: &[u64; WAVE],
    active: u32,
    bytes: u64,
) -> Option<&'a Region> {
    let (mut low, mut high) = (u64::MAX, 0);
    for lane in 0..WAVE {
        let on = active >> lane & 1 != 0;
        low = low.min(if on { at[lane] } else { u64::MAX });
        high = high.max(if on { at[lane] } else { 0 });
    }
    let len = (high - low).checked_add(bytes)?;
    locate(env, &mut wave.region, low, len).map(|(region, _)| region)
}

fn load_global(
    wave: &mut Wave,
    env: &Env,
    inst: &FlatInst,
    load: Load,
    at: &[u64; WAVE],
    active: u32,
) -> Exec {
    let bytes = u64::from(load.bytes);
    let check = env.checks.unwritten_memory;
    wave.traffic[0] += bytes * u64::from(active.count_ones());
    let common = common(wave, env, at, active, bytes);
    let dst = usize::from(inst.dst);
    for lane in Wave::lanes(active) {
        let (region, offset) = match common {
            Some(region) => (region, at[lane] - region.base),
            None => locate(env, &mut wave.region, at[lane], bytes)
                .ok_or_else(|| out_of_bounds(false, load.bytes.into(), lane, at[lane]))?,
        };
        if check && !region.is_written(offset, bytes) {
            return Err(Trap::at(
                FaultKind::UnwrittenGlobal {
                    bytes: load.bytes.into(),
                },
                lane,
                at[lane],
            ));
        }
        match load.bytes {
            4 => put(wave, dst, lane, region.load::<1>(offset)),
            8 => put(wave, dst, lane, region.load::<2>(offset)),
            12 => put(wave, dst, lane, region.load::<3>(offset)),
            16 => put(wave, dst, lane, region.load::<4>(offset)),
            2 => narrow(&mut wave.v[dst][lane], load, region.load_u16(offset).into()),
            _ => narrow(&mut wave.v[dst][lane], load, region.load_u8(offset).into()),
        }
    }
    Ok(())
}

/// Puts a lane's dwords into consecutive registers.
#[inline(always)]
pub(super) fn put<const N: usize>(wave: &mut Wave, first: usize, lane: usize, values: [u32; N]) {
    for (i, value) in values.into_iter().enumerate() {
        wave.v[first + i][lane] = value;
    }
}

/// A lane's dwords in consecutive registers.
#[inline(always)]
pub(super) fn get<const N: usize>(wave: &Wave, first: usize, lane: usize) -> [u32; N] {
    std::array::from_fn(|i| wave.v[first + i][lane])
}

/// Puts a byte or 16 bits where the load says.
#[inline(always)]
pub(super) fn narrow(to: &mut u32, load: Load, value: u32) {
    let value = match (load.signed, load.bytes) {
        (true, 1) => i32::from(value as i8) as u32,
        (true, _) => i32::from(value as i16) as u32,
        _ => value,
    };
    *to = match load.half {
        Half::Whole => value,
        Half::Low => *to & 0xffff_0000 | value & 0xffff,
        Half::High => *to & 0xffff | value << 16,
    };
}

fn store_global(
    wave: &mut Wave,
    env: &Env,
    inst: &FlatInst,
    store: Store,
    at: &[u64; WAVE],
    active: u32,
) -> Exec {
    let bytes = u64::from(store.bytes);
    wave.traffic[1] += bytes * u64::from(active.count_ones());
    let common = common(wave, env, at, active, bytes);
    let data = usize::from(inst.data);
    for lane in Wave::lanes(active) {
        let (region, offset) = match common {
            Some(region) => (region, at[lane] - region.base),
            None => locate(env, &mut wave.region, at[lane], bytes)
                .ok_or_else(|| out_of_bounds(true, store.bytes.into(), lane, at[lane]))?,
        };
        if region.access == Access::Read {
            return Err(Trap::at(
                FaultKind::ReadOnly {
                    bytes: store.bytes.into(),
                },
                lane,
                at[lane],
            ));
        }
        let first = wave.v[data][lane];
        match store.bytes {
            1 => region.store_u8(offset, (if store.high { first >> 16 } else { first }) as u8),
            2 => region.store_u16(
                offset,
                (if store.high { first >> 16 } else { first }) as u16,
            ),
            4 => region.store::<1>(offset, [first]),
            8 => region.store::<2>(offset, get(wave, data, lane)),
            12 => region.store::<3>(offset, get(wave, data, lane)),
            _ => region.store::<4>(offset, get(wave, data, lane)),
        }
        region.mark_written(offset, bytes);
    }
    Ok(())
}

fn atomic_global(
    wave: &mut Wave,
    env: &Env,
    inst: &FlatInst,
    op: Atomic,
    at: &[u64; WAVE],
    active: u32,
) -> Exec {
    let bytes = if op.wide { 8 } else { 4 };
    for lane in Wave::lanes(active) {
        let (region, offset) = locate(env, &mut wave.region, at[lane], bytes)
            .ok_or_else(|| out_of_bounds(true, bytes as u32, lane, at[lane]))?;
        if region.access == Access::Read {
            return Err(Trap::at(
                FaultKind::ReadOnly {
                    bytes: bytes as u32,
                },
                lane,
                at[lane],
            ));
        }
        if env.checks.unwritten_memory
            && op.op != crate::memory_op::AtomicOp::Swap
            && !region.is_written(offset, bytes)
        {
            return Err(Trap::at(
                FaultKind::UnwrittenGlobal {
                    bytes: bytes as u32,
                },
                lane,
                at[lane],
            ));
        }
        let (value, compare) = atomic::data(wave, usize::from(inst.data), op, lane);
        let misaligned = || {
            Trap::at(
                FaultKind::Misaligned {
                    bytes: bytes as u32,
                },
                lane,
                at[lane],
            )
        };
        let before = if op.wide {
            let cell = region.atomic_u64(offset).ok_or_else(misaligned)?;
            atomic::update_u64(cell, op, value, compare)
        } else {
            let cell = region.atomic_u32(offset).ok_or_else(misaligned)?;
            u64::from(atomic::update_u32(cell, op, value, compare))
        };
        region.mark_written(offset, bytes);
        if inst.glc {
            wave.v[usize::from(inst.dst)][lane] = before as u32;
            if op.wide {
                wave.v[usize::from(inst.dst) + 1][lane] = (before >> 32) as u32;
            }
        }
    }
    Ok(())
}
