//! Machine code of RDNA 3 and 3.5, as far as the gate needs it: where instructions begin, and which kinds there are.
//!
//! An instruction is one, two or three words of 32 bits. The highest bits of the first word tell the encoding, and the
//! encoding where operands lie, one of which may say that another word follows: a constant, or how lanes are permuted.

use crate::codegen::gpu::work::{self, Unit};

/// What the instructions of a function are, as far as kernels promise some and must not have others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    pub instructions: u32,
    /// Matrix instructions: v_wmma_….
    pub matrix: u32,
    /// Dot products of pairs or fours: v_dot….
    pub dot: u32,
    /// Packed arithmetic, v_pk_…, matrix and dot instructions among it.
    pub packed: u32,
    pub global_loads: u32,
    pub global_stores: u32,
    /// Loads and stores of scratch memory.
    pub scratch: u32,
    pub shared: u32,
    pub barriers: u32,
}

/// An instruction, and its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub word: u32,
    pub does: work::Instruction,
}

/// The instructions of a function. None where a word begins no instruction that is known, or the last one is cut short.
pub fn instructions(code: &[u8]) -> Option<Vec<Instruction>> {
    let words: Vec<u32> = code
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
        .collect();
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(&word) = words.get(at) {
        // What lies behind the end is padding.
        if word == S_CODE_END {
            break;
        }
        let len = length(word, words.get(at + 1).copied())?;
        if at + len > words.len() {
            return None;
        }
        let offset = at as u32;
        all.push(Instruction {
            word,
            does: work::Instruction {
                offset,
                unit: unit(word),
                target: branch(word).and_then(|by| (offset + 1).checked_add_signed(by)),
            },
        });
        at += len;
    }
    Some(all)
}

/// What a function is made of. None where its instructions are not known.
pub fn mix(code: &[u8]) -> Option<Mix> {
    let mut mix = Mix::default();
    for instruction in instructions(code)? {
        mix.count(instruction.word);
    }
    Some(mix)
}

/// How many words a branch goes on from the next instruction: s_branch and s_cbranch_….
fn branch(word: u32) -> Option<i32> {
    let is = word >> 23 == 0b1_0111_1111 && matches!(word >> 16 & 0x7f, 0x20..=0x26);
    is.then_some(i32::from(word as u16 as i16))
}

fn unit(word: u32) -> Unit {
    if word >> 31 == 0 {
        // VOP1, whose opcodes 0x25 to 0x36 and from 0x54 on are functions at a quarter of the rate.
        let transcendental = matches!(word >> 9 & 0xff, 0x25..=0x36 | 0x54..=0x58 | 0x60 | 0x61);
        return match word >> 25 == 0b0111111 && transcendental {
            true => Unit::Transcendental,
            false => Unit::Vector,
        };
    }
    match word >> 26 {
        0b100000..=0b101111 if word >> 23 == 0b1_0111_1111 => Unit::Control,
        0b100000..=0b101111 | 0b111101 => Unit::Scalar,
        0b110011 if word >> 24 & 3 == 0 && matches!(word >> 16 & 0x7f, 0x40..=0x45) => Unit::Matrix,
        0b110110 => Unit::Shared {
            bytes: match word >> 18 & 0xff {
                // ds_store_b128, ds_load_b128, and two of 64 bits.
                0xdf | 0xff | 0x4e | 0x4f | 0x77 | 0x78 => 16,
                0xde | 0xfe => 12,
                0x4d | 0x76 | 0x0e | 0x0f | 0x37 | 0x38 => 8,
                _ => 4,
            },
        },
        0b110111 => match word >> 18 & 0x7f {
            0x18..=0x1d | 0x24 | 0x25 => Unit::Store,
            0x15 => Unit::Load { bytes: 8 },
            0x16 => Unit::Load { bytes: 12 },
            0x17 => Unit::Load { bytes: 16 },
            _ => Unit::Load { bytes: 4 },
        },
        _ => Unit::Vector,
    }
}

const S_CODE_END: u32 = 0xbf9f_0000;
const S_BARRIER: u32 = 0xbfbd_0000;

impl Mix {
    fn count(&mut self, word: u32) {
        self.instructions += 1;
        match word >> 26 {
            // VOP2's v_dot2acc_f32_f16, and as a half of VOPD.
            0b000001 if word >> 25 == 2 => self.dot += 1,
            0b110010 if word >> 22 & 15 == 12 || word >> 17 & 31 == 12 => self.dot += 1,
            // VOP3P
            0b110011 if word >> 24 & 3 == 0 => {
                self.packed += 1;
                match word >> 16 & 0x7f {
                    0x40..=0x45 => self.matrix += 1,
                    0x13 | 0x16 | 0x17 | 0x18 | 0x19 | 0x1a => self.dot += 1,
                    _ => {}
                }
            }
            0b110110 => self.shared += 1,
            // FLAT, of which a segment is scratch (1) or global memory (2).
            0b110111 => {
                let stores = matches!(word >> 18 & 0x7f, 0x18..=0x1d | 0x24 | 0x25);
                match word >> 16 & 3 {
                    1 => self.scratch += 1,
                    _ if stores => self.global_stores += 1,
                    _ => self.global_loads += 1,
                }
            }
            _ if word & 0xffff_0000 == S_BARRIER => self.barriers += 1,
            _ => {}
        }
    }
}

/// A source that says that a constant follows, or how lanes are permuted.
const LITERAL: u32 = 0xff;
const DPP16: u32 = 0xfa;
const DPP8: [u32; 2] = [0xe9, 0xea];

/// Words of the instruction that a word begins.
fn length(word: u32, second: Option<u32>) -> Option<usize> {
    let scalar_literal = |source: u32| source & 0xff == LITERAL;
    let one_more = |more: bool| Some(1 + usize::from(more));
    if word >> 31 == 0 {
        // VOP2, and in its place VOP1 and VOPC.
        let (op, source) = (word >> 25, word & 0x1ff);
        // v_fmamk and v_fmaak have a constant whatever their sources are.
        let constant = matches!(op, 0x2c | 0x2d | 0x37 | 0x38);
        return one_more(
            constant || source == LITERAL || source == DPP16 || DPP8.contains(&source),
        );
    }
    match word >> 26 {
        // Scalar: SOP2, and in its place SOPK, SOP1, SOPC and SOPP.
        0b100000..=0b101111 => match word >> 23 {
            0b101111111 => Some(1),
            0b101111110 => one_more(scalar_literal(word) || scalar_literal(word >> 8)),
            0b101111101 => one_more(scalar_literal(word)),
            _ if word >> 28 == 0b1011 => one_more(word >> 23 & 0x1f == 0x13),
            _ => one_more(scalar_literal(word) || scalar_literal(word >> 8)),
        },
        // VOPD, of two VOP2-like halves.
        0b110010 => {
            let (second, both) = (second?, (word >> 22 & 15, word >> 17 & 31));
            // v_dual_fmaak and v_dual_fmamk.
            let constant = matches!(both.0, 1 | 2) || matches!(both.1, 1 | 2);
            let literal = word & 0x1ff == LITERAL || second & 0x1ff == LITERAL;
            Some(2 + usize::from(constant || literal))
        }
        // LDSDIR, VOP3P, VINTERP.
        0b110011 => match word >> 24 & 3 {
            0 => three_sources(second?),
            1 => Some(2),
            _ => Some(1),
        },
        0b110101 => three_sources(second?),
        // SMEM, DS, FLAT, MUBUF, MTBUF, EXP.
        0b111101 | 0b110110 | 0b110111 | 0b111000 | 0b111010 | 0b111110 => Some(2),
        _ => None,
    }
}

/// VOP3 and VOP3P: sources are in the second word.
fn three_sources(second: u32) -> Option<usize> {
    let sources = [second & 0x1ff, second >> 9 & 0x1ff, second >> 18 & 0x1ff];
    let permuted = sources[0] == DPP16 || DPP8.contains(&sources[0]);
    Some(2 + usize::from(permuted || sources.contains(&LITERAL)))
}
