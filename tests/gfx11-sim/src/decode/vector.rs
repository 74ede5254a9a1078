//! VOP1, VOP2, VOPC, VOP3, VOP3P, each with DPP and literals.

use super::{Words, src_or_literal, src9};
use crate::isa::{
    Compare, Comparison, Dpp, Kind, Mods, Packed, Src, Ty, Vector, Vop, Vop3p, packed_signature,
    sreg, vector_signature,
};

/// VOP2 and, inside its space of opcodes, VOP1 and VOPC.
pub(super) fn vop12c(words: &mut Words) -> Option<Kind> {
    let w = words.first();
    let (src0, mid, top) = (w & 0x1ff, (w >> 9) & 0xff, (w >> 17) & 0xff);
    match w >> 25 {
        0x3f => {
            let op = Vop::from_code(0x180 + mid);
            let (src0, dpp, mods) = first_source(src0, words)?;
            vector(op?, top, [src0, Src::None, Src::None], mods, dpp)
        }
        0x3e => {
            let op = Comparison::from_code(top);
            let (src0, dpp, mods) = first_source(src0, words)?;
            let op = op?;
            let dst = if op.exec { sreg::EXEC } else { sreg::VCC };
            let mut compare = Compare {
                op,
                dst,
                src: [src0, Src::V(mid as u16)],
                mods,
                dpp,
            };
            for i in 0..2 {
                halves(
                    &mut compare.src[i],
                    compare_ty(op, i),
                    1 << i,
                    &mut compare.mods,
                );
            }
            Some(Kind::Compare(compare))
        }
        code => {
            let op = Vop::from_code(0x100 + code);
            let constant = match op {
                Some(Vop::FmamkF32 | Vop::FmaakF32 | Vop::FmamkF16 | Vop::FmaakF16) => {
                    Some(words.next())
                }
                _ => None,
            };
            let src1 = Src::V(mid as u16);
            if let Some(constant) = constant {
                let src0 = src_or_literal(src0, &mut Some(constant), words)?;
                let src = match op? {
                    Vop::FmamkF32 | Vop::FmamkF16 => [src0, Src::Literal(constant), src1],
                    _ => [src0, src1, Src::Literal(constant)],
                };
                return vector(op?, top, src, Mods::default(), None);
            }
            let (src0, dpp, mods) = first_source(src0, words)?;
            let src2 = match op? {
                Vop::CndmaskB32 | Vop::AddCoCiU32 | Vop::SubCoCiU32 | Vop::SubrevCoCiU32 => {
                    Src::S(sreg::VCC)
                }
                _ => Src::None,
            };
            vector(op?, top, [src0, src1, src2], mods, dpp)
        }
    }
}

fn vector(op: Vop, dst: u32, src: [Src; 3], mods: Mods, dpp: Option<Dpp>) -> Option<Kind> {
    let mut inst = Vector {
        op,
        dst: dst as u8,
        sdst: sreg::VCC,
        src,
        mods,
        dpp,
    };
    let sig = vector_signature(op);
    for (i, ty) in sig.src.into_iter().enumerate() {
        halves(&mut inst.src[i], ty, 1 << i, &mut inst.mods);
    }
    if sig.dst.is_16() && inst.dst >= 128 {
        inst.dst -= 128;
        inst.mods.high |= 8;
    }
    Some(Kind::Vector(inst))
}

/// In the short encodings a 16-bit operand has seven bits of a register's number; the eighth chooses the half.
fn halves(src: &mut Src, ty: Ty, bit: u8, mods: &mut Mods) {
    if let Src::V(register @ 128..256) = *src
        && ty.is_16()
    {
        *src = Src::V(register - 128);
        mods.high |= bit;
    }
}

fn compare_ty(op: Comparison, source: usize) -> Ty {
    match (op.condition, source) {
        // The mask of classes.
        (crate::isa::Condition::Class, 1) if op.ty != Ty::F16 => Ty::B32,
        _ => op.ty,
    }
}

/// Source 0 of a short encoding: a literal or DPP takes another word, in which DPP has modifiers of its own.
fn first_source(field: u32, words: &mut Words) -> Option<(Src, Option<Dpp>, Mods)> {
    match field {
        250 => {
            let x = words.next();
            let bit = |n: u32| (x >> n & 1) as u8;
            let mods = Mods {
                neg: bit(20) | bit(22) << 1,
                abs: bit(21) | bit(23) << 1,
                ..Mods::default()
            };
            Some((Src::V((x & 0xff) as u16), Some(dpp16(x)), mods))
        }
        233 | 234 => {
            let x = words.next();
            Some((
                Src::V((x & 0xff) as u16),
                Some(dpp8(x, field)),
                Mods::default(),
            ))
        }
        _ => Some((
            src_or_literal(field, &mut None, words)?,
            None,
            Mods::default(),
        )),
    }
}

fn dpp16(x: u32) -> Dpp {
    Dpp::Row {
        control: (x >> 8 & 0x1ff) as u16,
        fetch_inactive: x & 1 << 18 != 0,
        bound_ctrl: x & 1 << 19 != 0,
        bank_mask: (x >> 24 & 15) as u8,
        row_mask: (x >> 28) as u8,
    }
}

fn dpp8(x: u32, field: u32) -> Dpp {
    Dpp::Eight {
        lanes: x >> 8,
        fetch_inactive: field == 234,
    }
}

/// The three source fields of a long encoding. Source 0 may be DPP, any may be the literal.
fn long_sources(x: u32, used: [bool; 3], words: &mut Words) -> Option<([Src; 3], Option<Dpp>)> {
    let fields = [x & 0x1ff, x >> 9 & 0x1ff, x >> 18 & 0x1ff];
    let mut src = [Src::None; 3];
    let mut literal = None;
    let mut dpp = None;
    for i in 0..3 {
        if !used[i] {
            continue;
        }
        src[i] = match fields[i] {
            250 if i == 0 => {
                let y = words.next();
                dpp = Some(dpp16(y));
                Src::V((y & 0xff) as u16)
            }
            field @ (233 | 234) if i == 0 => {
                let y = words.next();
                dpp = Some(dpp8(y, field));
                Src::V((y & 0xff) as u16)
            }
            255 => src_or_literal(255, &mut literal, words)?,
            field => src9(field)?,
        };
    }
    Some((src, dpp))
}

pub(super) fn vop3(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    let code = w >> 16 & 0x3ff;
    let mods = Mods {
        neg: (x >> 29) as u8,
        abs: (w >> 8 & 7) as u8,
        high: (w >> 11 & 15) as u8,
        omod: (x >> 27 & 3) as u8,
        clamp: w & 1 << 15 != 0,
    };
    if code < 0x100 {
        let op = Comparison::from_code(code)?;
        let (src, dpp) = long_sources(x, [true, true, false], words)?;
        return Some(Kind::Compare(Compare {
            op,
            dst: w as u8 & 0x7f,
            src: [src[0], src[1]],
            mods,
            dpp,
        }));
    }
    let op = Vop::from_code(code)?;
    if matches!(
        op,
        Vop::FmamkF32
            | Vop::FmaakF32
            | Vop::FmamkF16
            | Vop::FmaakF16
            | Vop::SwapB32
            | Vop::ReadfirstlaneB32
    ) || matches!(
        op,
        Vop::Dot2accF32F16 | Vop::PkFmacF16 | Vop::Permlane64B32 | Vop::SwaprelB32
    ) {
        return None;
    }
    let sig = vector_signature(op);
    let (src, dpp) = long_sources(x, sig.src.map(|ty| ty != Ty::None), words)?;
    let (sdst, mods) = match sig.sdst {
        // The fields of `abs` and `op_sel` are the scalar destination's.
        true => (
            (w >> 8 & 0x7f) as u8,
            Mods {
                abs: 0,
                high: 0,
                ..mods
            },
        ),
        false => (sreg::VCC, mods),
    };
    Some(Kind::Vector(Vector {
        op,
        dst: w as u8,
        sdst,
        src,
        mods,
        dpp,
    }))
}

pub(super) fn vop3p(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    let op = Vop3p::from_code(w >> 16 & 0x7f)?;
    let (_, used) = packed_signature(op);
    let (src, dpp) = long_sources(x, used.map(|n| n > 0), words)?;
    Some(Kind::Packed(Packed {
        op,
        dst: w as u8,
        src,
        neg_lo: (x >> 29) as u8,
        neg_hi: (w >> 8 & 7) as u8,
        op_sel: (w >> 11 & 7) as u8,
        op_sel_hi: ((x >> 27 & 3) | (w >> 14 & 1) << 2) as u8,
        clamp: w & 1 << 15 != 0,
        dpp,
    }))
}
