//! SOP1, SOP2, SOPK, SOPC, SOPP.

use super::{Words, src_or_literal};
use crate::isa::{Kind, Sop1, Sop2, SopConst, Sopc, Sopk, Sopp};

pub(super) fn decode(words: &mut Words) -> Option<Kind> {
    let w = words.first();
    let dst = ((w >> 16) & 0x7f) as u8;
    match w >> 23 {
        0x17d => sop1(words, dst),
        0x17e => {
            let op = Sopc::from_code((w >> 16) & 0x7f)?;
            let mut literal = None;
            let a = src_or_literal(w & 0xff, &mut literal, words)?;
            let b = src_or_literal((w >> 8) & 0xff, &mut literal, words)?;
            Some(Kind::Sopc { op, a, b })
        }
        0x17f => Some(Kind::Sopp {
            op: Sopp::from_code((w >> 16) & 0x7f)?,
            imm: w as u16,
        }),
        0x160..0x180 => sopk(words, dst),
        _ => sop2(words, dst),
    }
}

fn sop1(words: &mut Words, dst: u8) -> Option<Kind> {
    let w = words.first();
    let op = Sop1::from_code((w >> 8) & 0xff)?;
    let src = src_or_literal(w & 0xff, &mut None, words)?;
    Some(Kind::Sop1 { op, dst, src })
}

fn sopk(words: &mut Words, dst: u8) -> Option<Kind> {
    let w = words.first();
    let code = (w >> 23) & 0x1f;
    if code == 0x13 {
        let constant = words.next();
        let a = crate::isa::Src::Literal(w & 0xffff);
        return Some(Kind::SopConst {
            op: SopConst::SetregImm32B32,
            dst,
            a,
            b: crate::isa::Src::None,
            constant,
        });
    }
    Some(Kind::Sopk {
        op: Sopk::from_code(code)?,
        dst,
        imm: w as i16,
    })
}

fn sop2(words: &mut Words, dst: u8) -> Option<Kind> {
    let w = words.first();
    let code = (w >> 23) & 0x7f;
    let constant = match code {
        0x45 => Some(SopConst::FmaakF32),
        0x46 => Some(SopConst::FmamkF32),
        _ => None,
    };
    let mut literal = constant.map(|_| words.next());
    let a = src_or_literal(w & 0xff, &mut literal, words)?;
    let b = src_or_literal((w >> 8) & 0xff, &mut literal, words)?;
    match constant {
        Some(op) => Some(Kind::SopConst {
            op,
            dst,
            a,
            b,
            constant: literal?,
        }),
        None => Some(Kind::Sop2 {
            op: Sop2::from_code(code)?,
            dst,
            a,
            b,
        }),
    }
}
