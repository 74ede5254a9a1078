//! Text of scalar instructions.

use super::{s, src};
use crate::isa::{Inst, Kind, Smem, Sop1, Sop2, SopConst, Sopk, Sopp, Src, sreg};

pub(super) fn mnemonic(kind: Kind) -> String {
    match kind {
        Kind::Sop1 { op, .. } => op.name(),
        Kind::Sop2 { op, .. } => op.name(),
        Kind::Sopk { op, .. } => op.name(),
        Kind::Sopc { op, .. } => op.name(),
        Kind::Sopp { op, .. } => op.name(),
        Kind::Smem { op, .. } => op.name(),
        Kind::SopConst {
            op: SopConst::FmaakF32,
            ..
        } => "s_fmaak_f32",
        Kind::SopConst {
            op: SopConst::FmamkF32,
            ..
        } => "s_fmamk_f32",
        Kind::SopConst {
            op: SopConst::SetregImm32B32,
            ..
        } => "s_setreg_imm32_b32",
        _ => "(not scalar)",
    }
    .into()
}

pub(super) fn operands(kind: Kind, inst: &Inst) -> String {
    match kind {
        Kind::Sop1 {
            op,
            dst,
            src: source,
        } => {
            let (to, from) = sop1_widths(op);
            match op {
                Sop1::GetpcB64 => s(dst, 2),
                Sop1::SetpcB64 | Sop1::RfeB64 => src(source, 2),
                _ => format!("{}, {}", s(dst, to), src(source, from)),
            }
        }
        Kind::Sop2 { op, dst, a, b } => {
            let (to, from_a, from_b) = sop2_widths(op);
            let half = op.name().ends_with("_f16");
            let text = |source, n| match source {
                Src::Literal(bits) if half => format!("{:#x}", bits & 0xffff),
                _ => src(source, n),
            };
            format!("{}, {}, {}", s(dst, to), text(a, from_a), text(b, from_b))
        }
        Kind::Sopc { op, a, b } => {
            let wide = op.name().ends_with("64");
            let (wa, wb) = (1 + u8::from(wide), 1 + u8::from(op.name().ends_with("u64")));
            format!("{}, {}", src(a, wa), src(b, wb))
        }
        Kind::Sopk {
            op: Sopk::GetregB32,
            dst,
            imm,
        } => format!("{}, {}", s(dst, 1), hwreg(imm as u16)),
        Kind::Sopk {
            op: Sopk::SetregB32,
            dst,
            imm,
        } => format!("{}, {}", hwreg(imm as u16), s(dst, 1)),
        Kind::Sopk { dst, imm, .. } => format!("{}, {:#x}", s(dst, 1), imm as u16),
        Kind::Sopp { op, imm } => sopp(op, imm),
        Kind::Smem {
            op,
            dst,
            base,
            offset,
            soffset,
        } => smem(op, dst, base, offset, soffset),
        Kind::SopConst {
            op,
            dst,
            a,
            b,
            constant,
        } => match op {
            SopConst::FmaakF32 => {
                format!("{}, {}, {}, {constant:#x}", s(dst, 1), src(a, 1), src(b, 1))
            }
            SopConst::FmamkF32 => {
                format!("{}, {}, {constant:#x}, {}", s(dst, 1), src(a, 1), src(b, 1))
            }
            SopConst::SetregImm32B32 => match a {
                Src::Literal(field) => format!("{}, {constant}", hwreg(field as u16)),
                _ => String::new(),
            },
        },
        _ => format!("{:08X}", inst.words[0]),
    }
}

/// Registers of the destination and of the source, from the mnemonic: `s_X_to_from`.
pub(crate) fn sop1_widths(op: Sop1) -> (u8, u8) {
    let name = op.name();
    let wide = |token: &str| 1 + u8::from(token.ends_with("64"));
    match op {
        Sop1::Bitset0B64
        | Sop1::Bitset1B64
        | Sop1::BitreplicateB64B32
        | Sop1::SendmsgRtnB64
        | Sop1::GetpcB64 => (2, 1),
        Sop1::CtzI32B64
        | Sop1::ClzI32U64
        | Sop1::ClsI32I64
        | Sop1::Bcnt0I32B64
        | Sop1::Bcnt1I32B64 => (1, 2),
        _ => (wide(name), wide(name)),
    }
}

/// Registers of the destination and of both sources.
pub(crate) fn sop2_widths(op: Sop2) -> (u8, u8, u8) {
    match op {
        Sop2::BfmB64 => (2, 1, 1),
        Sop2::LshlB64 | Sop2::LshrB64 | Sop2::AshrI64 | Sop2::BfeU64 | Sop2::BfeI64 => (2, 2, 1),
        _ if op.name().ends_with("64") => (2, 2, 2),
        _ => (1, 1, 1),
    }
}

fn hwreg(field: u16) -> String {
    let (id, offset, size) = (field & 63, field >> 6 & 31, (field >> 11) + 1);
    let name = match id {
        1 => "HW_REG_MODE".to_string(),
        2 => "HW_REG_STATUS".to_string(),
        3 => "HW_REG_TRAPSTS".to_string(),
        15 => "HW_REG_SH_MEM_BASES".to_string(),
        20 => "HW_REG_FLAT_SCR_LO".to_string(),
        21 => "HW_REG_FLAT_SCR_HI".to_string(),
        23 => "HW_REG_HW_ID1".to_string(),
        24 => "HW_REG_HW_ID2".to_string(),
        29 => "HW_REG_SHADER_CYCLES".to_string(),
        n => n.to_string(),
    };
    match (offset, size) {
        (0, 32) => format!("hwreg({name})"),
        _ => format!("hwreg({name}, {offset}, {size})"),
    }
}

fn smem(op: Smem, dst: u8, base: u8, offset: i32, soffset: u8) -> String {
    let count = match op {
        Smem::LoadB32 | Smem::BufferLoadB32 => 1,
        Smem::LoadB64 | Smem::BufferLoadB64 => 2,
        Smem::LoadB128 | Smem::BufferLoadB128 => 4,
        Smem::LoadB256 | Smem::BufferLoadB256 => 8,
        Smem::LoadB512 | Smem::BufferLoadB512 => 16,
        _ => return String::new(),
    };
    let bases = if op.name().starts_with("s_buffer") {
        4
    } else {
        2
    };
    let tail = match (soffset, offset) {
        (sreg::NULL, 0) => "null".to_string(),
        (sreg::NULL, n) if n < 0 => format!("-{:#x}", -n),
        (sreg::NULL, n) => format!("{n:#x}"),
        (n, 0) => s(n, 1),
        (n, o) => format!("{} offset:{o:#x}", s(n, 1)),
    };
    format!("{}, {}, {tail}", s(dst, count), s(base, bases))
}

fn sopp(op: Sopp, imm: u16) -> String {
    match op {
        Sopp::WaitIdle
        | Sopp::CodeEnd
        | Sopp::Endpgm
        | Sopp::EndpgmSaved
        | Sopp::Wakeup
        | Sopp::IcacheInv
        | Sopp::Barrier => String::new(),
        Sopp::Ttracedata => String::new(),
        Sopp::Waitcnt => waitcnt(imm),
        Sopp::DelayAlu => delay_alu(imm),
        Sopp::WaitcntDepctr => depctr(imm),
        Sopp::Sendmsg | Sopp::Sendmsghalt => match imm {
            3 => "sendmsg(MSG_DEALLOC_VGPRS)".into(),
            1 => "sendmsg(MSG_INTERRUPT)".into(),
            n => n.to_string(),
        },
        Sopp::Clause
        | Sopp::SetInstPrefetchDistance
        | Sopp::RoundMode
        | Sopp::WaitEvent
        | Sopp::SingleuseVdst => {
            format!("{imm:#x}")
        }
        // Branches count in dwords behind themselves; LLVM prints the number as it is in the encoding.
        _ => imm.to_string(),
    }
}

fn waitcnt(imm: u16) -> String {
    let (vm, exp, lgkm) = (imm >> 10 & 63, imm & 7, imm >> 4 & 63);
    let all = [("vmcnt", vm, 63), ("expcnt", exp, 7), ("lgkmcnt", lgkm, 63)];
    // Counters that are waited for; all of them when none is.
    let none = all.iter().all(|(_, n, max)| n == max);
    let parts: Vec<String> = all
        .iter()
        .filter(|(_, n, max)| none || n != max)
        .map(|(name, n, _)| format!("{name}({n})"))
        .collect();
    parts.join(" ")
}

fn depctr(imm: u16) -> String {
    let fields = [
        ("depctr_hold_cnt", imm >> 7 & 1, 1),
        ("depctr_sa_sdst", imm & 1, 1),
        ("depctr_va_vdst", imm >> 12 & 15, 15),
        ("depctr_va_sdst", imm >> 9 & 7, 7),
        ("depctr_va_ssrc", imm >> 8 & 1, 1),
        ("depctr_va_vcc", imm >> 1 & 1, 1),
        ("depctr_vm_vsrc", imm >> 2 & 7, 7),
    ];
    let parts: Vec<String> = fields
        .iter()
        .filter(|(_, n, default)| n != default)
        .map(|(name, n, _)| format!("{name}({n})"))
        .collect();
    parts.join(" ")
}

fn delay_alu(imm: u16) -> String {
    const IDS: [&str; 12] = [
        "NO_DEP",
        "VALU_DEP_1",
        "VALU_DEP_2",
        "VALU_DEP_3",
        "VALU_DEP_4",
        "TRANS32_DEP_1",
        "TRANS32_DEP_2",
        "TRANS32_DEP_3",
        "FMA_ACCUM_CYCLE_1",
        "SALU_CYCLE_1",
        "SALU_CYCLE_2",
        "SALU_CYCLE_3",
    ];
    const SKIPS: [&str; 6] = ["SAME", "NEXT", "SKIP_1", "SKIP_2", "SKIP_3", "SKIP_4"];
    let (first, skip, second) = (
        usize::from(imm & 15),
        usize::from(imm >> 4 & 7),
        usize::from(imm >> 7 & 15),
    );
    let mut parts = Vec::new();
    if first > 0 {
        parts.push(format!("instid0({})", IDS.get(first).unwrap_or(&"?")));
    }
    if skip > 0 {
        parts.push(format!("instskip({})", SKIPS.get(skip).unwrap_or(&"?")));
    }
    if second > 0 {
        parts.push(format!("instid1({})", IDS.get(second).unwrap_or(&"?")));
    }
    if parts.is_empty() {
        "0".into()
    } else {
        parts.join(" | ")
    }
}
