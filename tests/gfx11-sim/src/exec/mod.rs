//! What instructions do to a wave. One file a unit; `step` chooses it.

mod alu;
mod compare;
mod convert;
mod dpp;
mod ds;
mod flat;
mod float16;
mod float32;
mod integer;
mod lanes;
mod packed;
mod salu;
mod salu_float;
mod smem;
mod wide;
mod wmma;

use std::sync::Arc;

use crate::code::Code;
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{Inst, Kind, Sopp, Vector, Vop};
use crate::lds::Lds;
use crate::memory::Region;
use crate::wave::{State, Wave};

/// What a wave's instructions can see beside the wave.
pub(crate) struct Env<'a> {
    pub code: &'a Code,
    pub regions: &'a [Arc<Region>],
    pub lds: &'a mut Lds,
    pub checks: Checks,
}

/// Checks that cost time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checks {
    pub unwritten_memory: bool,
    pub races: bool,
}

/// Makes functions that the compiler vectorises twice: for any x86-64 processor (or another architecture), and for those
/// with AVX2, FMA and F16C, where 32 lanes are four registers and a multiply-add is one instruction. `Wave::simd` chooses.
macro_rules! for_each_lane {
    ($(#[$meta:meta])* fn $name:ident($wave:ident: &mut Wave, $inst:ident: $ty:ty) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[inline(never)]
        pub(super) fn $name($wave: &mut Wave, $inst: $ty) $(-> $ret)? {
            #[inline(always)]
            fn body($wave: &mut Wave, $inst: $ty) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
                fn wide($wave: &mut Wave, $inst: $ty) $(-> $ret)? {
                    body($wave, $inst)
                }
                if $wave.simd {
                    // SAFETY: `simd` says that the processor has these features.
                    return unsafe { wide($wave, $inst) };
                }
            }
            body($wave, $inst)
        }
    };
}
use for_each_lane;

/// Executes one instruction. The program counter is already behind it.
#[inline(always)]
pub(crate) fn step(wave: &mut Wave, env: &mut Env, inst: &Inst) -> Exec {
    match &inst.kind {
        Kind::Vector(v) => vector(wave, v),
        Kind::Packed(p) => packed::execute(wave, p),
        Kind::Compare(c) => compare::execute(wave, c),
        Kind::Dual(x, y) => dual(wave, x, y),
        Kind::Flat(f) => flat::execute(wave, env, f),
        Kind::Ds(d) => ds::execute(wave, env, d),
        Kind::Smem {
            op,
            dst,
            base,
            offset,
            soffset,
        } => smem::execute(wave, env, *op, *dst, *base, *offset, *soffset),
        Kind::Sop2 { op, dst, a, b } => salu::sop2(wave, *op, *dst, *a, *b),
        Kind::Sop1 { op, dst, src } => salu::sop1(wave, env, inst, *op, *dst, *src),
        Kind::Sopk { op, dst, imm } => salu::sopk(wave, env, inst, *op, *dst, *imm),
        Kind::Sopc { op, a, b } => salu::sopc(wave, *op, *a, *b),
        Kind::SopConst {
            op,
            dst,
            a,
            b,
            constant,
        } => salu::constant(wave, *op, *dst, *a, *b, *constant),
        Kind::Sopp { op, imm } => sopp(wave, env, inst, *op, *imm),
        Kind::CacheInvalidate(_) => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(())
        }
        Kind::Unknown => Err(Trap::new(FaultKind::UnknownInstruction)),
    }
}

/// A vector instruction outside VOPD.
fn vector(wave: &mut Wave, inst: &Vector) -> Exec {
    wave.active = wave.exec();
    match inst.dpp {
        None => operation(wave, inst),
        Some(dpp) => {
            let moved = Vector {
                src: [
                    dpp::rearrange(wave, inst.src[0], dpp)?,
                    inst.src[1],
                    inst.src[2],
                ],
                ..*inst
            };
            operation(wave, &moved)
        }
    }
}

/// The operation itself, on the lanes in `Wave::active`.
#[inline(always)]
fn operation(wave: &mut Wave, inst: &Vector) -> Exec {
    match alu::unit(inst.op) {
        alu::Unit::Float32 => {
            float32::execute(wave, inst);
            Ok(())
        }
        alu::Unit::Integer => {
            integer::execute(wave, inst);
            Ok(())
        }
        alu::Unit::Float16 => float16::execute(wave, inst),
        alu::Unit::Convert => convert::execute(wave, inst),
        alu::Unit::Wide => wide::execute(wave, inst),
        alu::Unit::Lanes => lanes::execute(wave, inst),
        alu::Unit::None => Trap::unsupported(inst.op.name()),
    }
}

/// VOPD: both halves read before either writes.
fn dual(wave: &mut Wave, x: &Vector, y: &Vector) -> Exec {
    wave.active = wave.exec();
    let shared = y.src.contains(&crate::isa::Src::V(u16::from(x.dst)));
    if !shared {
        operation(wave, x)?;
        return operation(wave, y);
    }
    let before = wave.v[usize::from(x.dst)];
    operation(wave, x)?;
    let after = std::mem::replace(&mut wave.v[usize::from(x.dst)], before);
    operation(wave, y)?;
    wave.v[usize::from(x.dst)] = after;
    Ok(())
}

fn sopp(wave: &mut Wave, env: &Env, inst: &Inst, op: Sopp, imm: u16) -> Exec {
    let taken = match op {
        Sopp::Branch => true,
        Sopp::CbranchScc0 => !wave.scc,
        Sopp::CbranchScc1 => wave.scc,
        Sopp::CbranchVccz => wave.s[106] == 0,
        Sopp::CbranchVccnz => wave.s[106] != 0,
        Sopp::CbranchExecz => wave.exec() == 0,
        Sopp::CbranchExecnz => wave.exec() != 0,
        Sopp::Endpgm | Sopp::EndpgmSaved => {
            wave.state = State::Ended;
            return Ok(());
        }
        Sopp::Barrier => {
            wave.state = State::AtBarrier;
            return Ok(());
        }
        // What orders memory accesses on the device: here they happen in program order, and other threads see them so.
        Sopp::Waitcnt | Sopp::WaitIdle => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::AcqRel);
            return Ok(());
        }
        // Hints, timing, and messages that concern scheduling only.
        Sopp::Nop
        | Sopp::Sleep
        | Sopp::SetInstPrefetchDistance
        | Sopp::Clause
        | Sopp::DelayAlu
        | Sopp::WaitcntDepctr
        | Sopp::WaitEvent
        | Sopp::SingleuseVdst
        | Sopp::Wakeup
        | Sopp::Setprio
        | Sopp::Incperflevel
        | Sopp::Decperflevel
        | Sopp::IcacheInv
        | Sopp::Ttracedata
        | Sopp::TtracedataImm => {
            wave.yields |= op == Sopp::Sleep;
            return Ok(());
        }
        Sopp::Sendmsg if imm == 3 => return Ok(()), // MSG_DEALLOC_VGPRS
        Sopp::RoundMode => return salu::set_mode(wave, wave.mode.0 & !0xf | u32::from(imm & 0xf)),
        Sopp::DenormMode => {
            return salu::set_mode(wave, wave.mode.0 & !0xf0 | u32::from(imm & 0xf) << 4);
        }
        Sopp::Trap => return Err(Trap::new(FaultKind::Trap(imm))),
        Sopp::CodeEnd => return Err(Trap::new(FaultKind::UnknownInstruction)),
        Sopp::Sendmsg => return Trap::unsupported(format!("s_sendmsg {imm}")),
        _ => return Trap::unsupported(op.name()),
    };
    if taken {
        let target = i64::from(inst.at) + i64::from(inst.len) + i64::from(imm as i16);
        jump(wave, env, target)?;
    }
    Ok(())
}

/// Continues at a dword of the code.
pub(crate) fn jump(wave: &mut Wave, env: &Env, dword: i64) -> Exec {
    let code = env.code;
    match code.at_dword(dword) {
        Some(at) => {
            wave.pc = at;
            Ok(())
        }
        None => Err(Trap::new(FaultKind::BadJump {
            target: code.base().wrapping_add_signed(4 * dword),
        })),
    }
}

pub(crate) fn is_transcendental(op: Vop) -> bool {
    use Vop::*;
    matches!(
        op,
        ExpF32
            | LogF32
            | RcpF32
            | RcpIflagF32
            | RsqF32
            | RcpF64
            | RsqF64
            | SqrtF32
            | SqrtF64
            | SinF32
            | CosF32
            | RcpF16
    ) || matches!(op, SqrtF16 | RsqF16 | LogF16 | ExpF16 | SinF16 | CosF16)
}
