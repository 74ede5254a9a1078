//! The assembler's text of an instruction, for faults and for the comparison with LLVM's disassembler.

use std::fmt::Write;

use crate::isa::{
    Compare, Condition, Dpp, DsInst, Flat, FlatInst, Inst, Kind, Mods, Packed, Segment, Src, Ty,
    Vector, Vop, Vop3p, packed_signature, sreg, vector_signature,
};
use crate::memory_op::{DsOp, FlatOp, ds_op, flat_op};
use crate::wave::FLOATS_16;

mod scalar;
pub(crate) use scalar::{sop1_widths, sop2_widths};

/// The mnemonic as LLVM prints it, with the suffix of its encoding.
pub fn mnemonic(inst: &Inst) -> String {
    let words = inst.words[0];
    let long = words >> 26 == 0b110101 || words >> 26 == 0b110011;
    let suffix = |dpp: Option<Dpp>, both: bool| match (dpp.is_some(), long, both) {
        (true, true, _) => "_e64_dpp",
        (true, false, _) => "_dpp",
        (false, true, true) => "_e64",
        (false, false, true) => "_e32",
        _ => "",
    };
    match inst.kind {
        Kind::Vector(v) => format!("{}{}", v.op.name(), suffix(v.dpp, has_both_forms(v.op))),
        Kind::Compare(c) => format!("{}{}", c.op, suffix(c.dpp, true)),
        Kind::Packed(p) => format!(
            "{}{}",
            p.op.name(),
            if p.dpp.is_some() { "_e64_dpp" } else { "" }
        ),
        Kind::Dual(x, _) => dual_name(x.op),
        Kind::Flat(f) => flat_name(&f),
        Kind::Ds(d) => d.op.name().into(),
        Kind::CacheInvalidate(name) => name.into(),
        Kind::Unknown => "(unknown)".into(),
        kind => scalar::mnemonic(kind),
    }
}

/// The whole text.
pub fn disassemble(inst: &Inst) -> String {
    let mut out = mnemonic(inst);
    let operands = match inst.kind {
        Kind::Vector(v) => vector(&v, inst),
        Kind::Compare(c) => compare(&c, inst),
        Kind::Packed(p) => packed(&p),
        Kind::Dual(x, y) => format!("{} :: {} {}", dual(&x), dual_name(y.op), dual(&y)),
        Kind::Flat(f) => flat(&f),
        Kind::Ds(d) => ds(&d),
        Kind::CacheInvalidate(_) => String::new(),
        Kind::Unknown => {
            let mut text = String::new();
            for word in &inst.words[..usize::from(inst.len)] {
                write!(text, "{word:08X} ").expect("a string takes everything");
            }
            text.trim_end().into()
        }
        kind => scalar::operands(kind, inst),
    };
    if !operands.is_empty() {
        out.push(' ');
        out.push_str(&operands);
    }
    out
}

fn has_both_forms(op: Vop) -> bool {
    let code = op as u16;
    let one_form = matches!(
        op,
        Vop::ReadfirstlaneB32
            | Vop::SwapB32
            | Vop::SwaprelB32
            | Vop::Permlane64B32
            | Vop::FmamkF32
            | Vop::FmaakF32
            | Vop::FmamkF16
            | Vop::FmaakF16
            | Vop::Dot2accF32F16
            | Vop::PkFmacF16
            | Vop::Nop
    );
    code < 0x200 && !one_form
}

fn range(letter: char, first: u32, count: u8) -> String {
    match count {
        0 | 1 => format!("{letter}{first}"),
        n => format!("{letter}[{first}:{}]", first + u32::from(n) - 1),
    }
}

fn v(first: u8, count: u8) -> String {
    range('v', u32::from(first), count)
}

/// A scalar register or a group of them.
fn s(first: u8, count: u8) -> String {
    let pair = count > 1;
    match first {
        sreg::VCC if pair => "vcc".into(),
        sreg::VCC => "vcc_lo".into(),
        107 => "vcc_hi".into(),
        108..=123 => {
            let n = u32::from(first) - 108;
            if pair {
                format!("ttmp[{n}:{}]", n + u32::from(count) - 1)
            } else {
                format!("ttmp{n}")
            }
        }
        sreg::NULL => "null".into(),
        sreg::M0 => "m0".into(),
        sreg::EXEC if pair => "exec".into(),
        sreg::EXEC => "exec_lo".into(),
        127 => "exec_hi".into(),
        _ => range('s', u32::from(first), count),
    }
}

/// A source as an operand of this many registers.
fn src(source: Src, count: u8) -> String {
    match source {
        Src::V(n) => range('v', u32::from(n), count),
        Src::S(n) => s(n, count),
        Src::Int(n) => n.to_string(),
        Src::Float(n) => [
            "0.5",
            "-0.5",
            "1.0",
            "-1.0",
            "2.0",
            "-2.0",
            "4.0",
            "-4.0",
            "0.15915494",
        ][usize::from(n)]
        .into(),
        Src::Literal(n) => format!("{n:#x}"),
        Src::Special(n) => match n {
            235 => "src_shared_base",
            236 => "src_shared_limit",
            237 => "src_private_base",
            238 => "src_private_limit",
            251 => "src_vccz",
            252 => "src_execz",
            _ => "src_scc",
        }
        .into(),
        Src::None => "off".into(),
    }
}

/// A source with the modifiers of its number.
fn modified(source: Src, ty: Ty, i: usize, mods: &Mods) -> String {
    let bit = |mask: u8| mask >> i & 1 != 0;
    let mut text = match (source, ty) {
        (Src::Float(8), Ty::F64 | Ty::B64) => "0.15915494309189532".into(),
        (Src::Float(8), Ty::F16) => "0.1592".into(),
        // LLVM has no names for floats as 16-bit integers.
        (Src::Float(n), Ty::I16 | Ty::U16 | Ty::B16) => format!("{:#x}", FLOATS_16[usize::from(n)]),
        (Src::Literal(n), ty) if ty.is_16() => format!("{:#x}", n & 0xffff),
        _ => src(source, ty.registers()),
    };
    if bit(mods.abs) {
        text = format!("|{text}|");
    }
    match (bit(mods.neg), source) {
        // A minus before a number would be part of it.
        (true, Src::Int(_) | Src::Float(_) | Src::Literal(_)) if !bit(mods.abs) => {
            format!("neg({text})")
        }
        (true, _) => format!("-{text}"),
        _ => text,
    }
}

fn half_name(high: u8, i: usize) -> &'static str {
    if high >> i & 1 != 0 { ".h" } else { ".l" }
}

fn result_modifiers(mods: &Mods, sources: u8) -> String {
    let mut out = String::new();
    if mods.high != 0 {
        let bits: Vec<String> = (0..sources)
            .chain([3])
            .map(|i| (mods.high >> i & 1).to_string())
            .collect();
        out += &format!(" op_sel:[{}]", bits.join(","));
    }
    if mods.clamp {
        out += " clamp";
    }
    out + ["", " mul:2", " mul:4", " div:2"][usize::from(mods.omod & 3)]
}

fn dpp_text(dpp: Option<Dpp>) -> String {
    match dpp {
        None => String::new(),
        Some(Dpp::Eight {
            lanes,
            fetch_inactive,
        }) => {
            let picks: Vec<String> = (0..8).map(|i| (lanes >> (3 * i) & 7).to_string()).collect();
            format!(
                " dpp8:[{}]{}",
                picks.join(","),
                if fetch_inactive { " fi:1" } else { "" }
            )
        }
        Some(Dpp::Row {
            control,
            row_mask,
            bank_mask,
            bound_ctrl,
            fetch_inactive,
        }) => {
            let n = control & 15;
            let pattern = match control {
                0..=0xff => format!(
                    "quad_perm:[{},{},{},{}]",
                    control & 3,
                    control >> 2 & 3,
                    control >> 4 & 3,
                    control >> 6 & 3
                ),
                0x101..=0x10f => format!("row_shl:{n}"),
                0x111..=0x11f => format!("row_shr:{n}"),
                0x121..=0x12f => format!("row_ror:{n}"),
                0x140 => "row_mirror".into(),
                0x141 => "row_half_mirror".into(),
                0x150..=0x15f => format!("row_share:{n}"),
                0x160..=0x16f => format!("row_xmask:{n}"),
                _ => format!("dpp_ctrl:{control:#x}"),
            };
            let mut out = format!(" {pattern} row_mask:{row_mask:#x} bank_mask:{bank_mask:#x}");
            if bound_ctrl {
                out += " bound_ctrl:1";
            }
            if fetch_inactive {
                out += " fi:1";
            }
            out
        }
    }
}

fn vector(inst: &Vector, whole: &Inst) -> String {
    let sig = vector_signature(inst.op);
    let short = whole.words[0] >> 31 == 0;
    let mut parts = Vec::new();
    match sig.dst {
        Ty::None => {}
        Ty::Scalar => parts.push(s(inst.dst, 1)),
        // The one operation of this LLVM whose operands are halves by name.
        _ if inst.op == Vop::MovB16 => parts.push(v(inst.dst, 1) + half_name(inst.mods.high, 3)),
        ty => parts.push(v(inst.dst, ty.registers())),
    }
    if sig.sdst {
        parts.push(s(inst.sdst, 1));
    }
    let scalar_select = matches!(inst.op, Vop::Permlane16B32 | Vop::Permlanex16B32);
    let mut sources = 0;
    for (i, ty) in sig
        .src
        .into_iter()
        .enumerate()
        .filter(|(_, ty)| *ty != Ty::None)
    {
        sources += 1;
        let mods = if scalar_select {
            Mods::default()
        } else {
            inst.mods
        };
        parts.push(match (inst.op, inst.src[i]) {
            // 16-bit registers of the short encodings are told by halves.
            (Vop::MovB16, Src::V(_)) => {
                modified(inst.src[i], ty, i, &mods) + half_name(inst.mods.high, i)
            }
            _ if short && ty.is_16() && inst.mods.high >> i & 1 != 0 => {
                modified(inst.src[i], ty, i, &mods) + ".h"
            }
            _ => modified(inst.src[i], ty, i, &mods),
        });
    }
    let mods = if short {
        Mods {
            high: 0,
            ..inst.mods
        }
    } else {
        inst.mods
    };
    if scalar_select && mods.high != 0 {
        // Two switches rather than halves: fetch inactive, bound control.
        return format!(
            "{} op_sel:[{},{}]",
            parts.join(", "),
            mods.high & 1,
            mods.high >> 1 & 1
        );
    }
    parts.join(", ") + &result_modifiers(&mods, sources) + &dpp_text(inst.dpp)
}

fn compare(inst: &Compare, whole: &Inst) -> String {
    let ty = inst.op.ty;
    let mask_ty = if inst.op.condition == Condition::Class {
        Ty::B32
    } else {
        ty
    };
    let mut parts = Vec::new();
    let long = whole.words[0] >> 31 != 0;
    if !inst.op.exec {
        parts.push(s(inst.dst, 1));
    }
    parts.push(modified(inst.src[0], ty, 0, &inst.mods));
    parts.push(modified(inst.src[1], mask_ty, 1, &inst.mods));
    let mods = if long {
        inst.mods
    } else {
        Mods {
            high: 0,
            ..inst.mods
        }
    };
    parts.join(", ") + &result_modifiers(&mods, 2) + &dpp_text(inst.dpp)
}

fn packed(inst: &Packed) -> String {
    let (dst, registers) = packed_signature(inst.op);
    let mut parts = vec![v(inst.dst, dst)];
    let mix = matches!(
        inst.op,
        Vop3p::FmaMixF32 | Vop3p::FmaMixloF16 | Vop3p::FmaMixhiF16
    );
    let mut sources = 0;
    for (i, n) in registers.into_iter().enumerate().filter(|(_, n)| *n > 0) {
        sources += 1;
        let mods = if mix {
            Mods {
                neg: inst.neg_lo,
                abs: inst.neg_hi,
                ..Mods::default()
            }
        } else {
            Mods::default()
        };
        parts.push(modified(inst.src[i], Ty::Regs(n), i, &mods));
    }
    let mut out = parts.join(", ");
    let mut list = |name: &str, mask: u8, normal: u8| {
        let all = (1u8 << sources) - 1;
        if mask & all != normal & all {
            let bits: Vec<String> = (0..sources).map(|i| (mask >> i & 1).to_string()).collect();
            write!(out, " {name}:[{}]", bits.join(",")).expect("a string takes everything");
        }
    };
    list("op_sel", inst.op_sel, 0);
    list("op_sel_hi", inst.op_sel_hi, if mix { 0 } else { 7 });
    if !mix {
        list("neg_lo", inst.neg_lo, 0);
        list("neg_hi", inst.neg_hi, 0);
    }
    if inst.clamp {
        out += " clamp";
    }
    out + &dpp_text(inst.dpp)
}

fn dual_name(op: Vop) -> String {
    op.name().replacen("v_", "v_dual_", 1)
}

fn dual(inst: &Vector) -> String {
    let mut parts = vec![v(inst.dst, 1)];
    let sources = vector_signature(inst.op).src.into_iter().zip(inst.src);
    parts.extend(
        sources
            .filter(|(ty, _)| !matches!(ty, Ty::None | Ty::Mask))
            .map(|(_, source)| src(source, 1)),
    );
    parts.join(", ")
}

fn flat_name(inst: &FlatInst) -> String {
    let segment = match inst.segment {
        Segment::Flat => "flat",
        Segment::Scratch => "scratch",
        Segment::Global => "global",
    };
    format!("{segment}_{}", inst.op.name())
}

fn flat(inst: &FlatInst) -> String {
    let op = flat_op(inst.op);
    let mut parts = Vec::new();
    let addtid = matches!(inst.op, Flat::LoadAddtidB32 | Flat::StoreAddtidB32);
    let (data, result) = match op {
        FlatOp::Load(load) => (0, load.registers()),
        FlatOp::Store(store) => (store.registers(), 0),
        FlatOp::Atomic(atomic) => (
            atomic.data_registers(),
            if inst.glc { atomic.registers() } else { 0 },
        ),
    };
    if result > 0 {
        parts.push(v(inst.dst, result));
    }
    let scalar = inst.saddr != sreg::NULL;
    match inst.segment {
        _ if addtid => {}
        Segment::Scratch if !inst.vaddr_enable => parts.push("off".into()),
        Segment::Scratch => parts.push(v(inst.addr, 1)),
        Segment::Global if scalar => parts.push(v(inst.addr, 1)),
        _ => parts.push(v(inst.addr, 2)),
    }
    if data > 0 {
        parts.push(v(inst.data, data));
    }
    if inst.segment != Segment::Flat {
        parts.push(match (scalar, inst.segment) {
            (false, _) => "off".into(),
            (true, Segment::Global) => s(inst.saddr, 2),
            _ => s(inst.saddr, 1),
        });
    }
    let mut out = parts.join(", ");
    if inst.offset != 0 {
        write!(out, " offset:{}", inst.offset).expect("a string takes everything");
    }
    for (bit, name) in [(inst.glc, " glc"), (inst.slc, " slc"), (inst.dlc, " dlc")] {
        if bit {
            out += name;
        }
    }
    out
}

fn ds(inst: &DsInst) -> String {
    let mut parts = Vec::new();
    let mut two = false;
    match ds_op(inst.op) {
        DsOp::Load(load) => parts.extend([v(inst.dst, load.registers()), v(inst.addr, 1)]),
        DsOp::Store(store) => parts.extend([v(inst.addr, 1), v(inst.data0, store.registers())]),
        DsOp::Load2 { bytes, .. } => {
            two = true;
            parts.extend([v(inst.dst, bytes / 2), v(inst.addr, 1)]);
        }
        DsOp::Store2 { bytes, .. } => {
            two = true;
            parts.extend([
                v(inst.addr, 1),
                v(inst.data0, bytes / 4),
                v(inst.data1, bytes / 4),
            ]);
        }
        DsOp::Atomic { atomic, returns } => {
            let n = atomic.registers();
            if returns {
                parts.push(v(inst.dst, n));
            }
            parts.extend([v(inst.addr, 1), v(inst.data0, n)]);
            if atomic.data_registers() > n {
                parts.push(v(inst.data1, n));
            }
        }
        DsOp::Permute { .. } => parts.extend([v(inst.dst, 1), v(inst.addr, 1), v(inst.data0, 1)]),
        DsOp::Swizzle => {
            return format!(
                "{}, {} offset:{}",
                v(inst.dst, 1),
                v(inst.addr, 1),
                swizzle_text(inst.offset())
            );
        }
        DsOp::AddtidLoad => parts.push(v(inst.dst, 1)),
        DsOp::AddtidStore => parts.push(v(inst.data0, 1)),
        DsOp::Counter { .. } => parts.push(v(inst.dst, 1)),
        DsOp::Nop => {}
        DsOp::Other => {
            let name = inst.op.name();
            two = name.contains("2addr");
            let n = 1 + u8::from(name.ends_with("64"));
            if name.contains("_rtn") {
                parts.push(v(inst.dst, if two { 2 * n } else { n }));
            }
            parts.extend([v(inst.addr, 1), v(inst.data0, n)]);
            if two || name.contains("mskor") || name.contains("wrap") {
                parts.push(v(inst.data1, n));
            }
        }
    }
    let mut out = parts.join(", ");
    if two {
        for (name, offset) in [("offset0", inst.offset0), ("offset1", inst.offset1)] {
            if offset != 0 {
                write!(out, " {name}:{offset}").expect("a string takes everything");
            }
        }
    } else if inst.offset() != 0 {
        write!(out, " offset:{}", inst.offset()).expect("a string takes everything");
    }
    if inst.gds {
        out += " gds";
    }
    out
}

fn swizzle_text(offset: u32) -> String {
    if offset & 0x8000 != 0 && offset < 0xc000 {
        let picks: Vec<String> = (0..4)
            .map(|i| (offset >> (2 * i) & 3).to_string())
            .collect();
        return format!("swizzle(QUAD_PERM,{})", picks.join(","));
    }
    if offset & 0x8000 == 0 {
        let (and, or, xor) = (offset & 31, offset >> 5 & 31, offset >> 10 & 31);
        if and == 31 && or == 0 && xor.is_power_of_two() {
            return format!("swizzle(SWAP,{xor})");
        }
        if and == 31 && or == 0 && xor > 0 && (xor + 1).is_power_of_two() {
            return format!("swizzle(REVERSE,{})", xor + 1);
        }
    }
    offset.to_string()
}
