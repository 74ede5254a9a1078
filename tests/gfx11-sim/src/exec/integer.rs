//! 32-bit integers, shifts, bits, carries, selection.

use super::alu::{map1, map2, map3, mask, source};
use super::for_each_lane;
use crate::isa::{Src, Vector, Vop};
use crate::wave::{Lanes, Wave};

for_each_lane! {
    /// Executes an operation of `Unit::Integer`.
    fn execute(wave: &mut Wave, inst: &Vector) {
        let clamp = inst.mods.clamp;
        match inst.op {
            Vop::Nop => {}
            Vop::MovB32 => one(wave, inst, |a| a),
            Vop::NotB32 => one(wave, inst, |a| !a),
            Vop::BfrevB32 => one(wave, inst, u32::reverse_bits),
            Vop::CndmaskB32 => {
                let select = wave.scalar(inst.src[2]);
                let (a, b) = (source(wave, inst, 0), source(wave, inst, 1));
                let (a, b) = (&wave.v[a], &wave.v[b]);
                let mut out = [0; 32];
                for lane in 0..32 {
                    let mask = 0u32.wrapping_sub(select >> lane & 1);
                    out[lane] = b[lane] & mask | a[lane] & !mask;
                }
                wave.put(inst.dst, &out);
            }
            Vop::AddNcU32 if clamp => two(wave, inst, u32::saturating_add),
            Vop::SubNcU32 if clamp => two(wave, inst, u32::saturating_sub),
            Vop::SubrevNcU32 if clamp => two(wave, inst, |a, b| b.saturating_sub(a)),
            Vop::AddNcI32 if clamp => two(wave, inst, |a, b| (a as i32).saturating_add(b as i32) as u32),
            Vop::SubNcI32 if clamp => two(wave, inst, |a, b| (a as i32).saturating_sub(b as i32) as u32),
            Vop::AddNcU32 | Vop::AddNcI32 => two(wave, inst, u32::wrapping_add),
            Vop::SubNcU32 | Vop::SubNcI32 => two(wave, inst, u32::wrapping_sub),
            Vop::SubrevNcU32 => two(wave, inst, |a, b| b.wrapping_sub(a)),
            Vop::AndB32 => two(wave, inst, |a, b| a & b),
            Vop::OrB32 => two(wave, inst, |a, b| a | b),
            Vop::XorB32 => two(wave, inst, |a, b| a ^ b),
            Vop::XnorB32 => two(wave, inst, |a, b| !(a ^ b)),
            Vop::LshlrevB32 => two(wave, inst, |a, b| b << (a & 31)),
            Vop::LshrrevB32 => two(wave, inst, |a, b| b >> (a & 31)),
            Vop::AshrrevI32 => two(wave, inst, |a, b| ((b as i32) >> (a & 31)) as u32),
            Vop::MinI32 => two(wave, inst, |a, b| (a as i32).min(b as i32) as u32),
            Vop::MaxI32 => two(wave, inst, |a, b| (a as i32).max(b as i32) as u32),
            Vop::MinU32 => two(wave, inst, u32::min),
            Vop::MaxU32 => two(wave, inst, u32::max),
            Vop::MulLoU32 => two(wave, inst, u32::wrapping_mul),
            Vop::MulHiU32 => two(wave, inst, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
            Vop::MulHiI32 => two(wave, inst, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
            Vop::MulI32I24 => two(wave, inst, |a, b| i24(a).wrapping_mul(i24(b)) as u32),
            Vop::MulU32U24 => two(wave, inst, |a, b| u24(a).wrapping_mul(u24(b))),
            Vop::MulHiI32I24 => two(wave, inst, |a, b| ((i64::from(i24(a)) * i64::from(i24(b))) >> 32) as u32),
            Vop::MulHiU32U24 => two(wave, inst, |a, b| ((u64::from(u24(a)) * u64::from(u24(b))) >> 32) as u32),
            Vop::MadI32I24 if clamp => three(wave, inst, |a, b, c| {
                saturate_i32(i64::from(i24(a)) * i64::from(i24(b)) + i64::from(c as i32))
            }),
            Vop::MadU32U24 if clamp => three(wave, inst, |a, b, c| {
                (u64::from(u24(a)) * u64::from(u24(b)) + u64::from(c)).min(u64::from(u32::MAX)) as u32
            }),
            Vop::MadI32I24 => three(wave, inst, |a, b, c| (i24(a).wrapping_mul(i24(b)) as u32).wrapping_add(c)),
            Vop::MadU32U24 => three(wave, inst, |a, b, c| u24(a).wrapping_mul(u24(b)).wrapping_add(c)),
            Vop::Xor3B32 => three(wave, inst, |a, b, c| a ^ b ^ c),
            Vop::Or3B32 => three(wave, inst, |a, b, c| a | b | c),
            Vop::AndOrB32 => three(wave, inst, |a, b, c| a & b | c),
            Vop::LshlOrB32 => three(wave, inst, |a, b, c| a << (b & 31) | c),
            Vop::LshlAddU32 => three(wave, inst, |a, b, c| (a << (b & 31)).wrapping_add(c)),
            Vop::AddLshlU32 => three(wave, inst, |a, b, c| a.wrapping_add(b) << (c & 31)),
            Vop::Add3U32 => three(wave, inst, |a, b, c| a.wrapping_add(b).wrapping_add(c)),
            Vop::XadU32 => three(wave, inst, |a, b, c| (a ^ b).wrapping_add(c)),
            Vop::BfeU32 => three(wave, inst, |a, b, c| a >> (b & 31) & ((1u32 << (c & 31)) - 1)),
            Vop::BfeI32 => three(wave, inst, bfe_i32),
            Vop::BfiB32 => three(wave, inst, |a, b, c| a & b | !a & c),
            Vop::AlignbitB32 => three(wave, inst, |a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (c & 31)) as u32),
            Vop::AlignbyteB32 => three(wave, inst, |a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (8 * (c & 3))) as u32),
            Vop::PermB32 => three(wave, inst, perm),
            _ => rare(wave, inst),
        }
    }
}

/// What no inner loop has.
#[inline(never)]
fn rare(wave: &mut Wave, inst: &Vector) {
    match inst.op {
        Vop::AddCoU32 | Vop::AddCoCiU32 => carry(wave, inst, |a, b, c| {
            let sum = u64::from(a) + u64::from(b) + u64::from(c);
            (sum as u32, sum >> 32 != 0)
        }),
        Vop::SubCoU32 | Vop::SubCoCiU32 => carry(wave, inst, borrow),
        Vop::SubrevCoU32 | Vop::SubrevCoCiU32 => carry(wave, inst, |a, b, c| borrow(b, a, c)),
        // "No such bit" is -1.
        Vop::ClzI32U32 => one(wave, inst, |a| {
            if a == 0 { u32::MAX } else { a.leading_zeros() }
        }),
        Vop::CtzI32B32 => one(wave, inst, |a| {
            if a == 0 { u32::MAX } else { a.trailing_zeros() }
        }),
        Vop::ClsI32 => one(wave, inst, leading_signs),
        Vop::BcntU32B32 => two(wave, inst, |a, b| a.count_ones().wrapping_add(b)),
        Vop::BfmB32 => two(wave, inst, |a, b| ((1u32 << (a & 31)) - 1) << (b & 31)),
        Vop::MbcntLoU32B32 => {
            let (a, b) = (source(wave, inst, 0), source(wave, inst, 1));
            let mut out = [0; 32];
            for (lane, out) in out.iter_mut().enumerate() {
                let below = (1u32 << lane) - 1;
                *out = (wave.v[a][lane] & below)
                    .count_ones()
                    .wrapping_add(wave.v[b][lane]);
            }
            wave.put(inst.dst, &out);
        }
        // Lanes 32 and up don't exist.
        Vop::MbcntHiU32B32 => two(wave, inst, |_, b| b),
        Vop::Min3I32 => signed3(wave, inst, |a, b, c| a.min(b).min(c)),
        Vop::Max3I32 => signed3(wave, inst, |a, b, c| a.max(b).max(c)),
        Vop::Med3I32 => signed3(wave, inst, |a, b, c| a.max(b).min(a.min(b).max(c))),
        Vop::MaxminI32 => signed3(wave, inst, |a, b, c| a.max(b).min(c)),
        Vop::MinmaxI32 => signed3(wave, inst, |a, b, c| a.min(b).max(c)),
        Vop::Min3U32 => three(wave, inst, |a, b, c| a.min(b).min(c)),
        Vop::Max3U32 => three(wave, inst, |a, b, c| a.max(b).max(c)),
        Vop::Med3U32 => three(wave, inst, |a, b, c| a.max(b).min(a.min(b).max(c))),
        Vop::MaxminU32 => three(wave, inst, |a, b, c| a.max(b).min(c)),
        Vop::MinmaxU32 => three(wave, inst, |a, b, c| a.min(b).max(c)),
        Vop::SadU8 => three(wave, inst, |a, b, c| sad_u8(a, b).wrapping_add(c)),
        Vop::SadHiU8 => three(wave, inst, |a, b, c| (sad_u8(a, b) << 16).wrapping_add(c)),
        Vop::SadU16 => three(wave, inst, |a, b, c| {
            let low = (a & 0xffff).abs_diff(b & 0xffff);
            low.wrapping_add((a >> 16).abs_diff(b >> 16))
                .wrapping_add(c)
        }),
        Vop::SadU32 => three(wave, inst, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        Vop::MsadU8 => three(wave, inst, |a, b, c| {
            // Bytes of zero in the reference don't count.
            let bytes = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            bytes
                .filter(|(_, b)| *b != 0)
                .map(|(a, b)| u32::from(a.abs_diff(b)))
                .sum::<u32>()
                .wrapping_add(c)
        }),
        Vop::LerpU8 => {
            three(wave, inst, |a, b, c| {
                let [a, b, c] = [a, b, c].map(u32::to_le_bytes);
                u32::from_le_bytes([0, 1, 2, 3].map(|i| {
                    ((u16::from(a[i]) + u16::from(b[i]) + u16::from(c[i] & 1)) >> 1) as u8
                }))
            })
        }
        op => unreachable!("{op:?} belongs to another unit"),
    }
}

#[inline(always)]
fn one(wave: &mut Wave, inst: &Vector, f: impl Fn(u32) -> u32) {
    let a = source(wave, inst, 0);
    let out = map1(wave, a, f);
    wave.put(inst.dst, &out);
}

#[inline(always)]
fn two(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (source(wave, inst, 0), source(wave, inst, 1));
    let out = map2(wave, a, b, f);
    wave.put(inst.dst, &out);
}

#[inline(always)]
fn three(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (
        source(wave, inst, 0),
        source(wave, inst, 1),
        source(wave, inst, 2),
    );
    let out = map3(wave, a, b, c, f);
    wave.put(inst.dst, &out);
}

fn signed3(wave: &mut Wave, inst: &Vector, f: impl Fn(i32, i32, i32) -> i32) {
    three(wave, inst, |a, b, c| f(a as i32, b as i32, c as i32) as u32);
}

/// An addition with carry in (source 2, when there is one) and out. Clamping saturates.
fn carry(wave: &mut Wave, inst: &Vector, f: impl Fn(u32, u32, u32) -> (u32, bool)) {
    let carries = if inst.src[2] == Src::None {
        0
    } else {
        wave.scalar(inst.src[2])
    };
    let (a, b) = (source(wave, inst, 0), source(wave, inst, 1));
    let mut out: Lanes = [0; 32];
    let mut over = [false; 32];
    for lane in 0..32 {
        (out[lane], over[lane]) = f(wave.v[a][lane], wave.v[b][lane], carries >> lane & 1);
    }
    if inst.mods.clamp {
        let limit = if matches!(inst.op, Vop::AddCoU32 | Vop::AddCoCiU32) {
            u32::MAX
        } else {
            0
        };
        for lane in 0..32 {
            out[lane] = if over[lane] { limit } else { out[lane] };
        }
    }
    let active = wave.active;
    wave.put(inst.dst, &out);
    wave.set_s(inst.sdst, mask(|lane| over[lane]) & active);
}

fn borrow(a: u32, b: u32, c: u32) -> (u32, bool) {
    (
        a.wrapping_sub(b).wrapping_sub(c),
        u64::from(a) < u64::from(b) + u64::from(c),
    )
}

#[inline(always)]
pub(super) fn i24(x: u32) -> i32 {
    (x << 8) as i32 >> 8
}

#[inline(always)]
fn u24(x: u32) -> u32 {
    x & 0x00ff_ffff
}

pub(super) fn saturate_i32(x: i64) -> u32 {
    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32 as u32
}

#[inline(always)]
fn bfe_i32(a: u32, offset: u32, width: u32) -> u32 {
    let (offset, width) = (offset & 31, width & 31);
    let field = a >> offset & ((1u32 << width) - 1);
    // The sign is the field's top bit; no bits are zero.
    let sign = if width == 0 { 0 } else { 1u32 << (width - 1) };
    (field ^ sign).wrapping_sub(sign)
}

/// Bits that repeat the sign, before one that doesn't; -1 when all do.
pub(super) fn leading_signs(a: u32) -> u32 {
    let differs = a ^ ((a as i32) >> 31) as u32;
    if differs == 0 {
        u32::MAX
    } else {
        differs.leading_zeros()
    }
}

fn sad_u8(a: u32, b: u32) -> u32 {
    a.to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .map(|(a, b)| u32::from(a.abs_diff(b)))
        .sum()
}

/// Picks four bytes of {a, b} (b holds bytes 0 to 3); further selectors are signs and constants.
#[inline(always)]
pub(super) fn perm(a: u32, b: u32, selectors: u32) -> u32 {
    let data = u64::from(a) << 32 | u64::from(b);
    let mut out = 0;
    for i in 0..4 {
        let select = selectors >> (8 * i) & 0xff;
        let byte = match select {
            0..=7 => (data >> (8 * select)) as u32 & 0xff,
            8..=11 => {
                let sign = (data >> (16 * (select - 8) + 15)) as u32 & 1;
                0u32.wrapping_sub(sign) & 0xff
            }
            12 => 0,
            _ => 0xff,
        };
        out |= byte << (8 * i);
    }
    out
}
