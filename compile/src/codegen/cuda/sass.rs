//! Machine code of NVIDIA chips, as far as the gate needs it: whether a function reads or writes local memory.
//!
//! A cubin is an ELF file of 64 bits with a section `.text.NAME` for each function. From sm_70 on an instruction has 128 bits,
//! of which the lowest nine with the three above them are its opcode and the form of its operands.

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
