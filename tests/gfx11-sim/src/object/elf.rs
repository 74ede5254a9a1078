//! The parts of an AMDGPU ELF that a loader reads: header, loadable segments, symbols, relocations, the metadata note.

use super::ObjectError;
use super::bytes::{Bytes, text};

/// `EM_AMDGPU`.
const MACHINE: u16 = 224;
/// `ELFOSABI_AMDGPU_HSA`.
const HSA: u8 = 64;
/// `EF_AMDGPU_MACH_AMDGCN_GFX1151`, in the low byte of `e_flags`.
pub(crate) const GFX1151: u32 = 0x4a;

pub(super) struct Elf<'a> {
    pub segments: Vec<Segment<'a>>,
    pub symbols: Vec<Symbol>,
    pub relocations: Vec<Relocation>,
    /// The MessagePack of `NT_AMDGPU_METADATA`.
    pub metadata: Option<&'a [u8]>,
}

/// A `PT_LOAD` segment.
pub(super) struct Segment<'a> {
    pub address: u64,
    pub bytes: &'a [u8],
    pub memory_len: u64,
    pub executable: bool,
    pub writable: bool,
}

/// A symbol of the dynamic table: what a loader can see.
pub(super) struct Symbol {
    pub name: String,
    pub address: u64,
    pub len: u64,
    pub kind: u8,
    pub defined: bool,
}

/// A relocation of the dynamic table.
pub(super) struct Relocation {
    pub address: u64,
    pub kind: u32,
    pub symbol: usize,
    pub addend: i64,
}

impl<'a> Elf<'a> {
    pub fn read(file: &'a [u8]) -> Result<Self, ObjectError> {
        let b = Bytes(file);
        if file.get(..7) != Some(b"\x7fELF\x02\x01\x01") {
            return Err(ObjectError::Malformed(
                "no 64-bit little-endian ELF header at offset 0".into(),
            ));
        }
        if file.get(7) != Some(&HSA) || b.u16(18, "e_machine")? != MACHINE {
            return Err(ObjectError::Malformed(
                "not an ELF of AMDGPU with the HSA ABI (e_machine 224, OS/ABI 64)".into(),
            ));
        }
        let flags = b.u32(48, "e_flags")?;
        if flags & 0xff != GFX1151 {
            return Err(ObjectError::WrongTarget { found: flags });
        }
        let mut elf = Self {
            segments: Vec::new(),
            symbols: Vec::new(),
            relocations: Vec::new(),
            metadata: None,
        };
        elf.read_segments(b)?;
        elf.read_sections(b)?;
        Ok(elf)
    }

    fn read_segments(&mut self, b: Bytes<'a>) -> Result<(), ObjectError> {
        let (offset, size, count) = (
            b.u64(32, "e_phoff")?,
            b.u16(54, "e_phentsize")?,
            b.u16(56, "e_phnum")?,
        );
        for i in 0..u64::from(count) {
            let at = offset.saturating_add(i * u64::from(size));
            let kind = b.u32(at, "p_type")?;
            let (file_offset, file_len) = (b.u64(at + 8, "p_offset")?, b.u64(at + 32, "p_filesz")?);
            match kind {
                1 => {
                    let flags = b.u32(at + 4, "p_flags")?;
                    let segment = Segment {
                        address: b.u64(at + 16, "p_vaddr")?,
                        bytes: b.slice(file_offset, file_len, "segment")?,
                        memory_len: b.u64(at + 40, "p_memsz")?,
                        executable: flags & 1 != 0,
                        writable: flags & 2 != 0,
                    };
                    if segment.memory_len < file_len || segment.memory_len > 1 << 32 {
                        return Err(ObjectError::Malformed(format!(
                            "segment {i}: p_memsz {} is no size",
                            segment.memory_len
                        )));
                    }
                    self.segments.push(segment);
                }
                4 => self.read_notes(Bytes(b.slice(file_offset, file_len, "notes")?))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_notes(&mut self, notes: Bytes<'a>) -> Result<(), ObjectError> {
        let mut at = 0u64;
        while at + 12 <= notes.0.len() as u64 {
            let (name_len, len) = (
                u64::from(notes.u32(at, "note")?),
                u64::from(notes.u32(at + 4, "note")?),
            );
            let kind = notes.u32(at + 8, "note")?;
            let name = notes.slice(at + 12, name_len, "note's name")?;
            let start = at + 12 + name_len.next_multiple_of(4);
            let body = notes.slice(start, len, "note's description")?;
            if kind == 32 && name == b"AMDGPU\0" {
                self.metadata = Some(body);
            }
            at = start + len.next_multiple_of(4);
        }
        Ok(())
    }

    fn read_sections(&mut self, b: Bytes<'a>) -> Result<(), ObjectError> {
        let (offset, size, count) = (
            b.u64(40, "e_shoff")?,
            b.u16(58, "e_shentsize")?,
            b.u16(60, "e_shnum")?,
        );
        let header = |i: u64| offset.saturating_add(i.saturating_mul(u64::from(size)));
        for i in 0..u64::from(count) {
            let at = header(i);
            let kind = b.u32(at + 4, "sh_type")?;
            let body = |at: u64| -> Result<&'a [u8], ObjectError> {
                b.slice(
                    b.u64(at + 24, "sh_offset")?,
                    b.u64(at + 32, "sh_size")?,
                    "section",
                )
            };
            match kind {
                // SHT_DYNSYM, with its strings in the linked section.
                11 => {
                    let strings = body(header(u64::from(b.u32(at + 40, "sh_link")?)))?;
                    self.read_symbols(Bytes(body(at)?), strings)?;
                }
                // SHT_RELA.
                4 => {
                    for entry in body(at)?.chunks_exact(24) {
                        let entry = Bytes(entry);
                        let info = entry.u64(8, "r_info")?;
                        self.relocations.push(Relocation {
                            address: entry.u64(0, "r_offset")?,
                            kind: info as u32,
                            symbol: (info >> 32) as usize,
                            addend: entry.u64(16, "r_addend")? as i64,
                        });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_symbols(&mut self, table: Bytes<'a>, strings: &[u8]) -> Result<(), ObjectError> {
        for entry in table.0.chunks_exact(24) {
            let entry_bytes = Bytes(entry);
            self.symbols.push(Symbol {
                name: text(
                    strings,
                    entry_bytes.u32(0, "st_name")? as usize,
                    "symbol's name",
                )?,
                kind: entry[4] & 15,
                defined: entry_bytes.u16(6, "st_shndx")? != 0,
                address: entry_bytes.u64(8, "st_value")?,
                len: entry_bytes.u64(16, "st_size")?,
            });
        }
        Ok(())
    }
}
