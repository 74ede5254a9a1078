//! SMEM, FLAT/GLOBAL/SCRATCH, DS, and the cache invalidations of MUBUF.

use super::Words;
use crate::isa::{Ds, DsInst, Flat, FlatInst, Kind, Segment, Smem};

pub(super) fn smem(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    Some(Kind::Smem {
        op: Smem::from_code((w >> 18) & 0xff)?,
        dst: ((w >> 6) & 0x7f) as u8,
        base: ((w & 0x3f) << 1) as u8,
        offset: sign_extend(x, 21),
        soffset: (x >> 25) as u8,
    })
}

pub(super) fn flat(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    let segment = match (w >> 16) & 3 {
        0 => Segment::Flat,
        1 => Segment::Scratch,
        2 => Segment::Global,
        _ => return None,
    };
    let op = Flat::from_code((w >> 18) & 0x7f)?;
    let known = match segment {
        Segment::Global => true,
        Segment::Scratch => (op as u16) < Flat::LoadAddtidB32 as u16,
        Segment::Flat => !matches!(
            op,
            Flat::LoadAddtidB32 | Flat::StoreAddtidB32 | Flat::AtomicCsubU32
        ),
    };
    if !known {
        return None;
    }
    Some(Kind::Flat(FlatInst {
        op,
        segment,
        addr: x as u8,
        data: (x >> 8) as u8,
        saddr: ((x >> 16) & 0x7f) as u8,
        vaddr_enable: x & 1 << 23 != 0,
        dst: (x >> 24) as u8,
        offset: sign_extend(w, 13),
        dlc: w & 1 << 13 != 0,
        glc: w & 1 << 14 != 0,
        slc: w & 1 << 15 != 0,
    }))
}

pub(super) fn ds(words: &mut Words) -> Option<Kind> {
    let (w, x) = (words.first(), words.next());
    Some(Kind::Ds(DsInst {
        op: Ds::from_code((w >> 18) & 0xff)?,
        addr: x as u8,
        data0: (x >> 8) as u8,
        data1: (x >> 16) as u8,
        dst: (x >> 24) as u8,
        offset0: w as u8,
        offset1: (w >> 8) as u8,
        gds: w & 1 << 17 != 0,
    }))
}

pub(super) fn mubuf(words: &mut Words) -> Option<Kind> {
    let w = words.first();
    words.next();
    match (w >> 18) & 0xff {
        0x2b => Some(Kind::CacheInvalidate("buffer_gl0_inv")),
        0x2c => Some(Kind::CacheInvalidate("buffer_gl1_inv")),
        // Buffer resources: code compiled from flat pointers has none.
        _ => None,
    }
}

fn sign_extend(word: u32, bits: u32) -> i32 {
    ((word << (32 - bits)) as i32) >> (32 - bits)
}
