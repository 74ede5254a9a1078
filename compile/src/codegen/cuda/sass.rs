//! Machine code of NVIDIA chips, as far as the gate and the model of speed need it: whether a function reads or writes local memory,
//! and what it is made of.
//!
//! A cubin is an ELF file of 64 bits with a section `.text.NAME` for each function. From sm_70 on an instruction has 128 bits,
//! of which the lowest nine with the three above them are its opcode and the form of its operands.

use std::collections::BTreeMap;

use crate::codegen::gpu::work::{Instruction, Turns, Unit, Work, count};
use crate::error::Error;

/// Loads from and stores to local memory: the opcodes without the form of operands.
const LOCAL_LOAD: u16 = 0x183;
const LOCAL_STORE: u16 = 0x187;
const OPCODE: u16 = 0x1ff;

const INSTRUCTION: usize = 16;

/// Number of instructions of each function that touch local memory, by the functions' names.
pub fn local_accesses(cubin: &[u8]) -> Result<Vec<(String, usize)>, Error> {
    let functions = functions(cubin)
        .ok_or_else(|| Error::Bug("NVRTC's cubin is no ELF file of sections".to_string()))?;
    let count = |code: &[u8]| {
        let opcodes = code
            .chunks_exact(INSTRUCTION)
            .map(|i| u16::from_le_bytes([i[0], i[1]]) & OPCODE);
        opcodes
            .filter(|&o| o == LOCAL_LOAD || o == LOCAL_STORE)
            .count()
    };
    Ok(functions
        .into_iter()
        .map(|(name, code)| (name, count(code)))
        .collect())
}

/// Branches, products of 16 by 8 by 16, loads and stores of global and shared memory, by the lower 12 bits.
const BRANCH: u64 = 0x947;
const PRODUCT: u64 = 0x23c;
const GLOBAL_LOAD: u64 = 0x181;
const GLOBAL_STORE: u64 = 0x186;
const SHARED: [u64; 3] = [0x184, 0x188, 0x3b];

/// Counts every function of a cubin for Hopper, where a branch's distance is told in instructions.
pub fn work(cubin: &[u8], turns: &BTreeMap<String, Turns>) -> BTreeMap<String, Work> {
    let all = functions(cubin).unwrap_or_default();
    let counted = all.into_iter().map(|(name, code)| {
        let turns = turns.get(&name).copied().unwrap_or_default();
        let work = count(&instructions(code), turns);
        (name, work)
    });
    counted.collect()
}

fn instructions(code: &[u8]) -> Vec<Instruction> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
    let parse = |(at, bytes): (usize, &[u8])| {
        let (low, high) = (word(&bytes[..8]), word(&bytes[8..]));
        let offset = at as u32;
        let opcode = low & u64::from(OPCODE);
        let bytes = match high >> 9 & 7 {
            6 => 16,
            5 => 8,
            4 => 4,
            _ => 2,
        };
        let unit = match () {
            () if low & 0xfff == BRANCH => Unit::Control,
            () if low & 0xfff == PRODUCT => Unit::Matrix,
            () if opcode == GLOBAL_LOAD => Unit::Load { bytes },
            () if opcode == GLOBAL_STORE => Unit::Store,
            () if SHARED.contains(&opcode) => Unit::Shared { bytes },
            () => Unit::Vector,
        };
        // 54 bits with sign: the lowest six in bits 18 to 23, the others from bit 34 on.
        let upper = ((low >> 34 | high << 30) as i64) << 16 >> 16;
        let distance = upper << 6 | (low >> 18 & 63) as i64;
        let target = (unit == Unit::Control)
            .then(|| u32::try_from(i64::from(offset) + 1 + distance).ok())
            .flatten();
        Instruction {
            offset,
            unit,
            target,
        }
    };
    let all = code.chunks_exact(INSTRUCTION).enumerate();
    all.map(parse).collect()
}

/// The functions of a cubin: names and code. None where an offset lies outside the file.
fn functions(cubin: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let elf = cubin.strip_prefix(b"\x7fELF\x02\x01").map(|_| cubin)?;
    let headers = number(elf, 0x28, 8)?;
    let size = number(elf, 0x3a, 2)?;
    let count = number(elf, 0x3c, 2)?;
    let names = number(elf, 0x3e, 2)?;
    let section = |index: usize| {
        let at = headers.checked_add(index.checked_mul(size)?)?;
        let (offset, len) = (number(elf, at + 0x18, 8)?, number(elf, at + 0x20, 8)?);
        Some((number(elf, at, 4)?, offset, len))
    };
    let (_, names, names_len) = section(names)?;
    let names = elf.get(names..names.checked_add(names_len)?)?;
    let mut all = Vec::new();
    for index in 0..count {
        let (name, offset, len) = section(index)?;
        let name = names.get(name..)?.split(|&b| b == 0).next()?;
        if let Some(name) = name.strip_prefix(b".text.") {
            let code = elf.get(offset..offset.checked_add(len)?)?;
            all.push((String::from_utf8_lossy(name).into_owned(), code));
        }
    }
    Some(all)
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let value = bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(words: &[(u64, u64)]) -> Vec<u8> {
        let both = words.iter().flat_map(|(low, high)| [*low, *high]);
        both.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn branches_go_where_the_assembler_meant_them_to() {
        // What ends every function, a branch to itself; and one that goes back by 388 instructions from the next one.
        let to_itself = (0xffff_fffc_00fc_7947, 0x000f_c000_0383_ffff);
        let back = (0xffff_ffe4_00f0_8947, 0x000f_de00_0383_ffff);
        let mut words = vec![(0x7918, 0); 400];
        words[3] = to_itself;
        words[399] = back;
        let all = instructions(&code(&words));
        assert_eq!(all[3].target, Some(3));
        assert_eq!(all[399].target, Some(12));
        assert_eq!((all[0].unit, all[0].target), (Unit::Vector, None));
    }

    #[test]
    fn a_loop_of_products_and_loads_is_the_main_one() {
        // ldg.e.128, hmma, three others and the branch back over all of them.
        let load = (0x981, 6 << 9);
        let back = 0xffff_fffc_0000_0947 | (64 - 6) << 18;
        let words = [
            (0x7918, 0),
            load,
            (0x23c, 0),
            (0x7918, 0),
            (0x7918, 0),
            (0x7918, 0),
            (back, 0x3_ffff),
            (0x7918, 0),
        ];
        let work = count(&instructions(&code(&words)), Turns::Once);
        assert_eq!(work.turn.instructions, 6.0);
        assert_eq!((work.turn.matrix, work.turn.loaded_bytes), (1.0, 512.0));
        assert_eq!(work.once.instructions, 2.0);
    }
}
