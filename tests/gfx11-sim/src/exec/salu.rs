//! The scalar unit: integers, bits, EXEC masks, jumps through registers, hardware registers.

use super::{Env, jump, salu_float};
use crate::fault::{Exec, Trap};
use crate::isa::{Inst, Sop1, Sop2, SopConst, Sopc, Sopk, Src, sreg};
use crate::wave::{Literal, Mode, Wave};

/// Two sources.
#[inline(always)]
pub(super) fn sop2(wave: &mut Wave, op: Sop2, dst: u8, a: Src, b: Src) -> Exec {
    use Sop2::*;
    let (x, y) = (wave.scalar(a), wave.scalar(b));
    // Logic and shifts say whether the result is not zero.
    let logic = |wave: &mut Wave, value: u32| {
        wave.set_s(dst, value);
        wave.scc = value != 0;
    };
    let with_scc = |wave: &mut Wave, (value, scc): (u32, bool)| {
        wave.set_s(dst, value);
        wave.scc = scc;
    };
    match op {
        AddU32 => with_scc(wave, x.overflowing_add(y)),
        SubU32 => with_scc(wave, x.overflowing_sub(y)),
        AddI32 => with_scc(wave, signed((x as i32).overflowing_add(y as i32))),
        SubI32 => with_scc(wave, signed((x as i32).overflowing_sub(y as i32))),
        AddcU32 => {
            let sum = u64::from(x) + u64::from(y) + u64::from(wave.scc);
            with_scc(wave, (sum as u32, sum >> 32 != 0));
        }
        SubbU32 => {
            let borrow = u32::from(wave.scc);
            let out = x.wrapping_sub(y).wrapping_sub(borrow);
            with_scc(wave, (out, u64::from(x) < u64::from(y) + u64::from(borrow)));
        }
        AbsdiffI32 => logic(wave, (x as i32).wrapping_sub(y as i32).unsigned_abs()),
        LshlB32 => logic(wave, x << (y & 31)),
        LshrB32 => logic(wave, x >> (y & 31)),
        AshrI32 => logic(wave, ((x as i32) >> (y & 31)) as u32),
        Lshl1AddU32 => with_scc(wave, shift_add(x, 1, y)),
        Lshl2AddU32 => with_scc(wave, shift_add(x, 2, y)),
        Lshl3AddU32 => with_scc(wave, shift_add(x, 3, y)),
        Lshl4AddU32 => with_scc(wave, shift_add(x, 4, y)),
        MinI32 => with_scc(
            wave,
            ((x as i32).min(y as i32) as u32, (x as i32) < y as i32),
        ),
        MaxI32 => with_scc(
            wave,
            ((x as i32).max(y as i32) as u32, (x as i32) >= y as i32),
        ),
        MinU32 => with_scc(wave, (x.min(y), x < y)),
        MaxU32 => with_scc(wave, (x.max(y), x >= y)),
        AndB32 => logic(wave, x & y),
        OrB32 => logic(wave, x | y),
        XorB32 => logic(wave, x ^ y),
        NandB32 => logic(wave, !(x & y)),
        NorB32 => logic(wave, !(x | y)),
        XnorB32 => logic(wave, !(x ^ y)),
        AndNot1B32 => logic(wave, x & !y),
        OrNot1B32 => logic(wave, x | !y),
        BfeU32 => logic(
            wave,
            bfe(u64::from(x), y & 31, y >> 16 & 0x7f, 32, false) as u32,
        ),
        BfeI32 => logic(
            wave,
            bfe(u64::from(x), y & 31, y >> 16 & 0x7f, 32, true) as u32,
        ),
        BfmB32 => wave.set_s(dst, ((1u32 << (x & 31)) - 1) << (y & 31)),
        MulI32 => wave.set_s(dst, x.wrapping_mul(y)),
        MulHiU32 => wave.set_s(dst, ((u64::from(x) * u64::from(y)) >> 32) as u32),
        MulHiI32 => wave.set_s(
            dst,
            ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32,
        ),
        CselectB32 => wave.set_s(dst, if wave.scc { x } else { y }),
        PackLlB32B16 => wave.set_s(dst, x & 0xffff | y << 16),
        PackLhB32B16 => wave.set_s(dst, x & 0xffff | y & 0xffff_0000),
        PackHhB32B16 => wave.set_s(dst, x >> 16 | y & 0xffff_0000),
        PackHlB32B16 => wave.set_s(dst, x >> 16 | y << 16),
        AndB64 | OrB64 | XorB64 | NandB64 | NorB64 | XnorB64 | AndNot1B64 | OrNot1B64 | LshlB64
        | LshrB64 | AshrI64 | BfeU64 | BfeI64 | BfmB64 | CselectB64 => wide2(wave, op, dst, a, b),
        _ => salu_float::sop2(wave, op, dst, a, b),
    }
    Ok(())
}

#[inline(always)]
fn signed((value, overflow): (i32, bool)) -> (u32, bool) {
    (value as u32, overflow)
}

#[inline(always)]
fn shift_add(x: u32, n: u32, y: u32) -> (u32, bool) {
    let sum = (u64::from(x) << n) + u64::from(y);
    (sum as u32, sum >> 32 != 0)
}

/// A field of `width` bits at `offset` of a value of `bits` bits.
fn bfe(x: u64, offset: u32, width: u32, bits: u32, signed: bool) -> u64 {
    let width = width.min(bits);
    if width == 0 {
        return 0;
    }
    let field = x >> offset & (u64::MAX >> (64 - width));
    // The sign is the field's top bit, which a field that sticks out of the value doesn't have.
    if signed && offset + width <= bits {
        ((field << (64 - width)) as i64 >> (64 - width)) as u64
    } else if signed {
        let sign = (x << (64 - bits)) as i64 >> (64 - bits);
        (sign >> offset) as u64
    } else {
        field
    }
}

#[inline(never)]
fn wide2(wave: &mut Wave, op: Sop2, dst: u8, a: Src, b: Src) {
    use Sop2::*;
    let (x, y) = (
        wave.scalar64(a, Literal::Signed),
        wave.scalar64(b, Literal::Signed),
    );
    let n = wave.scalar(b);
    let out = match op {
        AndB64 => x & y,
        OrB64 => x | y,
        XorB64 => x ^ y,
        NandB64 => !(x & y),
        NorB64 => !(x | y),
        XnorB64 => !(x ^ y),
        AndNot1B64 => x & !y,
        OrNot1B64 => x | !y,
        LshlB64 => x << (n & 63),
        LshrB64 => x >> (n & 63),
        AshrI64 => ((x as i64) >> (n & 63)) as u64,
        BfeU64 => bfe(x, n & 63, n >> 16 & 0x7f, 64, false),
        BfeI64 => bfe(x, n & 63, n >> 16 & 0x7f, 64, true),
        BfmB64 => {
            let width = wave.scalar(a) & 63;
            wave.set_s64(dst, ((1u64 << width) - 1) << (n & 63));
            return;
        }
        _ => {
            wave.set_s64(dst, if wave.scc { x } else { y });
            return;
        }
    };
    wave.set_s64(dst, out);
    wave.scc = out != 0;
}

/// One source.
#[inline(always)]
pub(super) fn sop1(wave: &mut Wave, env: &Env, inst: &Inst, op: Sop1, dst: u8, src: Src) -> Exec {
    match op {
        Sop1::MovB32 => {
            let x = wave.scalar(src);
            wave.set_s(dst, x);
            Ok(())
        }
        Sop1::MovB64 => {
            let x = wave.scalar64(src, Literal::Signed);
            wave.set_s64(dst, x);
            Ok(())
        }
        _ => rare1(wave, env, inst, op, dst, src),
    }
}

#[inline(never)]
fn rare1(wave: &mut Wave, env: &Env, inst: &Inst, op: Sop1, dst: u8, src: Src) -> Exec {
    use Sop1::*;
    let x = wave.scalar(src);
    let logic = |wave: &mut Wave, value: u32| {
        wave.set_s(dst, value);
        wave.scc = value != 0;
    };
    match op {
        CmovB32 if wave.scc => wave.set_s(dst, x),
        CmovB64 if wave.scc => {
            let x = wave.scalar64(src, Literal::Signed);
            wave.set_s64(dst, x);
        }
        CmovB32 | CmovB64 => {}
        BrevB32 => wave.set_s(dst, x.reverse_bits()),
        CtzI32B32 => wave.set_s(dst, if x == 0 { u32::MAX } else { x.trailing_zeros() }),
        ClzI32U32 => wave.set_s(dst, if x == 0 { u32::MAX } else { x.leading_zeros() }),
        ClsI32 => wave.set_s(dst, super::integer::leading_signs(x)),
        SextI32I8 => wave.set_s(dst, i32::from(x as i8) as u32),
        SextI32I16 => wave.set_s(dst, i32::from(x as i16) as u32),
        Bitset0B32 => {
            let out = wave.s[usize::from(dst)] & !(1 << (x & 31));
            wave.set_s(dst, out);
        }
        Bitset1B32 => {
            let out = wave.s[usize::from(dst)] | 1 << (x & 31);
            wave.set_s(dst, out);
        }
        BitreplicateB64B32 => {
            let out = (0..32).fold(0u64, |out, i| out | (u64::from(x >> i & 1) * 3) << (2 * i));
            wave.set_s64(dst, out);
        }
        AbsI32 => logic(wave, (x as i32).unsigned_abs()),
        Bcnt0I32B32 => logic(wave, x.count_zeros()),
        Bcnt1I32B32 => logic(wave, x.count_ones()),
        QuadmaskB32 => logic(
            wave,
            (0..8).fold(0, |out, i| out | u32::from(x >> (4 * i) & 15 != 0) << i),
        ),
        WqmB32 => logic(
            wave,
            (0..8).fold(0, |out, i| {
                out | if x >> (4 * i) & 15 != 0 {
                    15 << (4 * i)
                } else {
                    0
                }
            }),
        ),
        NotB32 => logic(wave, !x),
        AndSaveexecB32 => save_exec(wave, dst, |exec| x & exec),
        OrSaveexecB32 => save_exec(wave, dst, |exec| x | exec),
        XorSaveexecB32 => save_exec(wave, dst, |exec| x ^ exec),
        NandSaveexecB32 => save_exec(wave, dst, |exec| !(x & exec)),
        NorSaveexecB32 => save_exec(wave, dst, |exec| !(x | exec)),
        XnorSaveexecB32 => save_exec(wave, dst, |exec| !(x ^ exec)),
        AndNot0SaveexecB32 => save_exec(wave, dst, |exec| !x & exec),
        OrNot0SaveexecB32 => save_exec(wave, dst, |exec| !x | exec),
        AndNot1SaveexecB32 => save_exec(wave, dst, |exec| x & !exec),
        OrNot1SaveexecB32 => save_exec(wave, dst, |exec| x | !exec),
        AndNot0WrexecB32 => write_exec(wave, dst, |exec| !x & exec),
        AndNot1WrexecB32 => write_exec(wave, dst, |exec| x & !exec),
        MovrelsB32 | MovreldB32 => {
            let offset = wave.s[usize::from(sreg::M0)];
            let (from, to) = match (op, src) {
                (MovrelsB32, Src::S(n)) => (u32::from(n).wrapping_add(offset), u32::from(dst)),
                (MovreldB32, Src::S(n)) => (u32::from(n), u32::from(dst).wrapping_add(offset)),
                _ => return Trap::unsupported(op.name()),
            };
            if from > 127 || to > 127 {
                return Trap::unsupported(format!(
                    "{} beyond the registers: M0 is {offset}",
                    op.name()
                ));
            }
            let value = wave.s[from as usize];
            wave.set_s(to as u8, value);
        }
        GetpcB64 => wave.set_s64(dst, address(env, i64::from(inst.at) + i64::from(inst.len))),
        SetpcB64 => {
            let target = wave.scalar64(src, Literal::Signed);
            jump(wave, env, dword(env, target))?;
        }
        SwappcB64 => {
            let target = wave.scalar64(src, Literal::Signed);
            wave.set_s64(dst, address(env, i64::from(inst.at) + i64::from(inst.len)));
            jump(wave, env, dword(env, target))?;
        }
        BrevB64 | CtzI32B64 | ClzI32U64 | ClsI32I64 | Bitset0B64 | Bitset1B64 | Bcnt0I32B64
        | Bcnt1I32B64 | NotB64 => {
            wide1(wave, op, dst, src);
        }
        CeilF32 | FloorF32 | TruncF32 | RndneF32 | CvtF32I32 | CvtF32U32 | CvtI32F32
        | CvtU32F32 | CvtF16F32 | CvtF32F16 | CvtHiF32F16 | CeilF16 | FloorF16 | TruncF16
        | RndneF16 => salu_float::sop1(wave, op, dst, src),
        _ => return Trap::unsupported(op.name()),
    }
    Ok(())
}

fn wide1(wave: &mut Wave, op: Sop1, dst: u8, src: Src) {
    let x = wave.scalar64(src, Literal::Signed);
    let bit = 1u64 << (wave.scalar(src) & 63);
    let before = wave.scalar64(Src::S(dst), Literal::Signed);
    match op {
        Sop1::BrevB64 => wave.set_s64(dst, x.reverse_bits()),
        Sop1::CtzI32B64 => wave.set_s(dst, if x == 0 { u32::MAX } else { x.trailing_zeros() }),
        Sop1::ClzI32U64 => wave.set_s(dst, if x == 0 { u32::MAX } else { x.leading_zeros() }),
        Sop1::ClsI32I64 => {
            let differs = x ^ ((x as i64) >> 63) as u64;
            wave.set_s(
                dst,
                if differs == 0 {
                    u32::MAX
                } else {
                    differs.leading_zeros()
                },
            );
        }
        Sop1::Bitset0B64 => wave.set_s64(dst, before & !bit),
        Sop1::Bitset1B64 => wave.set_s64(dst, before | bit),
        Sop1::Bcnt0I32B64 | Sop1::Bcnt1I32B64 => {
            let count = if op == Sop1::Bcnt0I32B64 {
                x.count_zeros()
            } else {
                x.count_ones()
            };
            wave.set_s(dst, count);
            wave.scc = count != 0;
        }
        _ => {
            wave.set_s64(dst, !x);
            wave.scc = !x != 0;
        }
    }
}

/// The old EXEC goes to a register, the new one is calculated.
fn save_exec(wave: &mut Wave, dst: u8, f: impl Fn(u32) -> u32) {
    let exec = wave.exec();
    wave.set_s(dst, exec);
    wave.set_s(sreg::EXEC, f(exec));
    wave.scc = wave.exec() != 0;
}

/// The new EXEC goes to a register too.
fn write_exec(wave: &mut Wave, dst: u8, f: impl Fn(u32) -> u32) {
    let exec = f(wave.exec());
    wave.set_s(sreg::EXEC, exec);
    wave.set_s(dst, exec);
    wave.scc = exec != 0;
}

fn address(env: &Env, dword: i64) -> u64 {
    env.code.base().wrapping_add_signed(4 * dword)
}

fn dword(env: &Env, address: u64) -> i64 {
    let offset = address.wrapping_sub(env.code.base()) as i64;
    // An address between dwords is no instruction's.
    if offset % 4 == 0 { offset / 4 } else { -1 }
}

/// A 16-bit constant.
#[inline(never)]
pub(super) fn sopk(wave: &mut Wave, env: &Env, inst: &Inst, op: Sopk, dst: u8, imm: i16) -> Exec {
    use Sopk::*;
    let k = i32::from(imm);
    let u = u32::from(imm as u16);
    let x = wave.s[usize::from(dst)];
    match op {
        MovkI32 => wave.set_s(dst, k as u32),
        CmovkI32 if wave.scc => wave.set_s(dst, k as u32),
        CmovkI32 | Version => {}
        CmpkEqI32 => wave.scc = x as i32 == k,
        CmpkLgI32 => wave.scc = x as i32 != k,
        CmpkGtI32 => wave.scc = x as i32 > k,
        CmpkGeI32 => wave.scc = x as i32 >= k,
        CmpkLtI32 => wave.scc = (x as i32) < k,
        CmpkLeI32 => wave.scc = x as i32 <= k,
        CmpkEqU32 => wave.scc = x == u,
        CmpkLgU32 => wave.scc = x != u,
        CmpkGtU32 => wave.scc = x > u,
        CmpkGeU32 => wave.scc = x >= u,
        CmpkLtU32 => wave.scc = x < u,
        CmpkLeU32 => wave.scc = x <= u,
        AddkI32 => {
            let (sum, overflow) = (x as i32).overflowing_add(k);
            wave.set_s(dst, sum as u32);
            wave.scc = overflow;
        }
        MulkI32 => wave.set_s(dst, (x as i32).wrapping_mul(k) as u32),
        GetregB32 => {
            let value = hardware_register(wave, imm as u16 & 63)?;
            let (offset, width) = field(imm as u16);
            wave.set_s(
                dst,
                (u64::from(value) >> offset & ((1u64 << width) - 1)) as u32,
            );
        }
        SetregB32 => set_hardware_register(wave, imm as u16, x)?,
        CallB64 => {
            let next = i64::from(inst.at) + i64::from(inst.len);
            wave.set_s64(dst, address(env, next));
            jump(wave, env, next + i64::from(imm))?;
        }
        WaitcntVscnt | WaitcntVmcnt | WaitcntExpcnt | WaitcntLgkmcnt => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::AcqRel);
        }
        SubvectorLoopBegin | SubvectorLoopEnd => return Trap::unsupported(op.name()),
    }
    Ok(())
}

/// Offset and width of a hardware register's field.
fn field(imm: u16) -> (u32, u32) {
    (u32::from(imm >> 6 & 31), u32::from(imm >> 11) + 1)
}

fn hardware_register(wave: &Wave, id: u16) -> Exec<u32> {
    match id {
        1 => Ok(wave.mode.0),
        // SHADER_CYCLES: instructions stand for cycles.
        29 => Ok(wave.executed as u32 & 0xf_ffff),
        _ => Trap::unsupported(format!("hardware register {id}")),
    }
}

fn set_hardware_register(wave: &mut Wave, imm: u16, value: u32) -> Exec {
    if imm & 63 != 1 {
        return Trap::unsupported(format!("a write of hardware register {}", imm & 63));
    }
    let (offset, width) = field(imm);
    let mask = (((1u64 << width) - 1) << offset) as u32;
    set_mode(wave, wave.mode.0 & !mask | value << offset & mask)
}

/// Writes MODE. f32 rounds to nearest even only; conversions to f16 know all rounding modes.
pub(crate) fn set_mode(wave: &mut Wave, mode: u32) -> Exec {
    if Mode(mode).round().0 != 0 {
        return Trap::unsupported(format!("rounding mode {} of f32", mode & 3));
    }
    wave.mode = Mode(mode);
    Ok(())
}

/// A comparison into SCC.
#[inline(always)]
pub(super) fn sopc(wave: &mut Wave, op: Sopc, a: Src, b: Src) -> Exec {
    use Sopc::*;
    let (x, y) = (wave.scalar(a), wave.scalar(b));
    let (i, j) = (x as i32, y as i32);
    wave.scc = match op {
        CmpEqI32 | CmpEqU32 => x == y,
        CmpLgI32 | CmpLgU32 => x != y,
        CmpGtI32 => i > j,
        CmpGeI32 => i >= j,
        CmpLtI32 => i < j,
        CmpLeI32 => i <= j,
        CmpGtU32 => x > y,
        CmpGeU32 => x >= y,
        CmpLtU32 => x < y,
        CmpLeU32 => x <= y,
        Bitcmp0B32 => x >> (y & 31) & 1 == 0,
        Bitcmp1B32 => x >> (y & 31) & 1 != 0,
        Bitcmp0B64 => wave.scalar64(a, Literal::Signed) >> (y & 63) & 1 == 0,
        Bitcmp1B64 => wave.scalar64(a, Literal::Signed) >> (y & 63) & 1 != 0,
        CmpEqU64 => wave.scalar64(a, Literal::Signed) == wave.scalar64(b, Literal::Signed),
        CmpLgU64 => wave.scalar64(a, Literal::Signed) != wave.scalar64(b, Literal::Signed),
        _ => salu_float::compare(wave, op, a, b),
    };
    Ok(())
}

/// What always has a literal.
pub(super) fn constant(
    wave: &mut Wave,
    op: SopConst,
    dst: u8,
    a: Src,
    b: Src,
    constant: u32,
) -> Exec {
    match (op, a) {
        (SopConst::SetregImm32B32, Src::Literal(field)) => {
            set_hardware_register(wave, field as u16, constant)
        }
        _ => {
            salu_float::constant(wave, op, dst, a, b, constant);
            Ok(())
        }
    }
}
