//! Words to instructions. The leading bits of the first word name the encoding; an operation's operand types decide what
//! its fields mean. An encoding that isn't known decodes to `Kind::Unknown` with the length that its leading bits imply:
//! it is an error when a wave gets there, not before.

mod memory;
mod scalar;
mod vector;
mod vopd;

use crate::isa::{Inst, Kind, Src};

/// Decodes the instruction at `at` (dwords into `text`, which must be inside).
pub fn decode(text: &[u32], at: usize) -> Inst {
    let mut words = Words { text, at, used: 1 };
    let kind = kind(&mut words);
    // A truncated instruction at the end of the section is one word that nobody knows.
    let (kind, len) = if at + words.used > text.len() {
        (Kind::Unknown, 1)
    } else {
        (kind.unwrap_or(Kind::Unknown), words.used)
    };
    let mut encoding = [0; 3];
    encoding[..len].copy_from_slice(&text[at..at + len]);
    Inst {
        at: at as u32,
        len: len as u8,
        words: encoding,
        kind,
    }
}

/// Decodes a whole section, from its start to its end. Padding between functions is code too (`s_code_end`).
pub fn decode_all(text: &[u32]) -> Vec<Inst> {
    let mut out = Vec::with_capacity(text.len() / 2 + 1);
    let mut at = 0;
    while at < text.len() {
        let inst = decode(text, at);
        at += usize::from(inst.len);
        out.push(inst);
    }
    out
}

/// The words of one instruction, taken one after another.
struct Words<'a> {
    text: &'a [u32],
    at: usize,
    used: usize,
}

impl Words<'_> {
    fn first(&self) -> u32 {
        self.text[self.at]
    }

    /// The next word. Beyond the end it is zero: `decode` sees that too many were used.
    fn next(&mut self) -> u32 {
        let word = self.text.get(self.at + self.used).copied().unwrap_or(0);
        self.used += 1;
        word
    }
}

fn kind(words: &mut Words) -> Option<Kind> {
    let w = words.first();
    match w >> 30 {
        0b00 | 0b01 => vector::vop12c(words),
        0b10 => scalar::decode(words),
        _ => match w >> 26 {
            0b110101 => vector::vop3(words),
            0b110011 => match (w >> 24) & 3 {
                0 => vector::vop3p(words),
                // VINTERP (8 bytes) and LDSDIR (4) belong to pixel shaders.
                1 => unknown(words, 2),
                _ => None,
            },
            0b110010 => vopd::decode(words),
            0b110111 => memory::flat(words),
            0b110110 => memory::ds(words),
            0b111101 => memory::smem(words),
            0b111000 => memory::mubuf(words),
            // MTBUF, MIMG (with the dwords of its further addresses) and exports.
            0b111010 | 0b111110 => unknown(words, 2),
            0b111100 => unknown(words, 2 + (w as usize & 1)),
            _ => None,
        },
    }
}

fn unknown(words: &mut Words, len: usize) -> Option<Kind> {
    words.used = len;
    None
}

/// A source field of 9 bits. Literals and DPP are the caller's.
fn src9(field: u32) -> Option<Src> {
    Some(match field {
        256..=511 => Src::V((field - 256) as u16),
        0..=127 => Src::S(field as u8),
        128..=192 => Src::Int((field - 128) as i8),
        193..=208 => Src::Int((192 - field as i32) as i8),
        235..=238 | 251..=253 => Src::Special(field as u8),
        240..=248 => Src::Float((field - 240) as u8),
        _ => return None,
    })
}

/// A source field that may be a literal: the word behind the instruction, read once.
fn src_or_literal(field: u32, literal: &mut Option<u32>, words: &mut Words) -> Option<Src> {
    if field != 255 {
        return src9(field);
    }
    let value = *literal.get_or_insert_with(|| words.next());
    Some(Src::Literal(value))
}
