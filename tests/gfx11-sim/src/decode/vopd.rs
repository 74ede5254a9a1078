//! VOPD: two operations of one instruction, which read before either writes.

use super::{Words, src_or_literal};
use crate::isa::{Kind, Mods, Src, Vector, Vop, sreg};

pub(super) fn decode(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    let (opx, opy) = (operation(w >> 22 & 15)?, operation(w >> 17 & 31)?);
    // Both share the one literal, which constants of `fmaak` and `fmamk` are too.
    let mut literal = None;
    let dstx = x >> 24;
    // The destinations lie in different banks: the lowest bit of the second is the other's inverse.
    let dsty = (x >> 17 & 0x7f) << 1 | (dstx & 1 ^ 1);
    let first = half(opx, dstx, w & 0x1ff, w >> 9 & 0xff, &mut literal, words)?;
    let second = half(opy, dsty, x & 0x1ff, x >> 9 & 0xff, &mut literal, words)?;
    // Only the second half has the integer operations.
    (w >> 22 & 15 < 13).then_some(Kind::Dual(first, second))
}

fn half(
    op: Vop,
    dst: u32,
    src0: u32,
    src1: u32,
    literal: &mut Option<u32>,
    words: &mut Words,
) -> Option<Vector> {
    let src0 = src_or_literal(src0, literal, words)?;
    let src1 = Src::V(src1 as u16);
    let src = match op {
        Vop::FmaakF32 => [src0, src1, src_or_literal(255, literal, words)?],
        Vop::FmamkF32 => [src0, src_or_literal(255, literal, words)?, src1],
        Vop::CndmaskB32 => [src0, src1, Src::S(sreg::VCC)],
        _ => [src0, src1, Src::None],
    };
    Some(Vector {
        op,
        dst: dst as u8,
        sdst: sreg::VCC,
        src,
        mods: Mods::default(),
        dpp: None,
    })
}

fn operation(code: u32) -> Option<Vop> {
    Some(match code {
        0 => Vop::FmacF32,
        1 => Vop::FmaakF32,
        2 => Vop::FmamkF32,
        3 => Vop::MulF32,
        4 => Vop::AddF32,
        5 => Vop::SubF32,
        6 => Vop::SubrevF32,
        7 => Vop::MulDx9ZeroF32,
        8 => Vop::MovB32,
        9 => Vop::CndmaskB32,
        10 => Vop::MaxF32,
        11 => Vop::MinF32,
        12 => Vop::Dot2accF32F16,
        16 => Vop::AddNcU32,
        17 => Vop::LshlrevB32,
        18 => Vop::AndB32,
        _ => return None,
    })
}
