//! Code objects: an ELF loaded into simulated memory, its kernels and variables.

mod bytes;
mod descriptor;
mod elf;
mod metadata;
mod msgpack;

use std::collections::HashMap;
use std::sync::Arc;

pub use descriptor::{Descriptor, UserRegisters};
pub use metadata::{Arg, KernelMetadata};

use crate::code::Code;
use crate::memory::{Access, Memory};
use elf::Elf;

/// Why a code object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The file breaks its format.
    #[error("code object: {0}")]
    Malformed(String),
    /// Code for another chip.
    #[error(
        "code object: e_flags {found:#x} name another chip, expected gfx1151 (0x4a): compile with --offload-arch=gfx1151"
    )]
    WrongTarget {
        /// All of `e_flags`.
        found: u32,
    },
    /// A feature that the simulator lacks.
    #[error("code object: unsupported: {0}")]
    Unsupported(String),
}

/// A kernel, ready to launch. Clones share the code.
#[derive(Clone)]
pub struct Kernel {
    /// What the note says of it: name, arguments, sizes.
    pub metadata: KernelMetadata,
    /// What its descriptor says.
    pub descriptor: Descriptor,
    pub(crate) code: Arc<Code>,
    /// Dword of the first instruction in `code`.
    pub(crate) entry: usize,
    /// Keeps the segments alive.
    _segments: Arc<Segments>,
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The decoded instructions of the section that it is in.
    pub fn code(&self) -> &Code {
        &self.code
    }
}

/// A loaded code object. Its segments are allocations of the memory that it was loaded into until it and its kernels
/// are dropped.
pub struct CodeObject {
    kernels: HashMap<String, Kernel>,
    variables: HashMap<String, (u64, u64)>,
}

/// The allocations of a code object.
struct Segments {
    memory: Memory,
    addresses: Vec<u64>,
}

impl Drop for Segments {
    fn drop(&mut self) {
        for &address in &self.addresses {
            // They were allocated here and nobody else has had a reason to free them: a failure would be a bug of the
            // caller, which a destructor can't report.
            let _ = self.memory.free(address);
        }
    }
}

impl CodeObject {
    /// Reads, checks and loads a code object of gfx1151 (the ELF itself, no bundle of several targets).
    pub fn load(memory: &Memory, file: &[u8]) -> Result<Self, ObjectError> {
        let elf = Elf::read(file)?;
        let note = elf
            .metadata
            .ok_or_else(|| ObjectError::Malformed("no AMDGPU metadata note".into()))?;
        let metadata = metadata::read(note)?;
        let mut image = Image::of(&elf)?;
        // Segments keep their distances, so all lie in one range of addresses.
        let base = memory.reserve(image.end());
        image.relocate(&elf, base)?;
        let segments = Arc::new(image.install(&elf, memory, base));
        let mut codes = Vec::new();
        for segment in elf.segments.iter().filter(|s| s.executable) {
            codes.push((
                segment.address,
                Arc::new(Code::decode(
                    segment.bytes,
                    base + segment.address,
                    &elf_functions(&elf, base),
                )),
            ));
        }
        let kernels = metadata
            .into_iter()
            .map(|meta| {
                Ok((
                    meta.name.clone(),
                    kernel(&elf, &image, meta, &codes, &segments)?,
                ))
            })
            .collect::<Result<_, ObjectError>>()?;
        let objects = elf
            .symbols
            .iter()
            .filter(|s| s.kind == 1 && s.defined && !s.name.ends_with(".kd"));
        let variables = objects
            .map(|s| (s.name.clone(), (base + s.address, s.len)))
            .collect();
        Ok(Self { kernels, variables })
    }

    /// A kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, in no order.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }

    /// Address and length of a global variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.get(name).copied()
    }
}

fn elf_functions(elf: &Elf, base: u64) -> Vec<(u64, String)> {
    elf.symbols
        .iter()
        .filter(|s| s.kind == 2 && s.defined)
        .map(|s| (base + s.address, s.name.clone()))
        .collect()
}

fn kernel(
    elf: &Elf,
    image: &Image,
    metadata: KernelMetadata,
    codes: &[(u64, Arc<Code>)],
    segments: &Arc<Segments>,
) -> Result<Kernel, ObjectError> {
    let symbol = elf
        .symbols
        .iter()
        .find(|s| s.name == metadata.symbol && s.defined);
    let symbol = symbol.ok_or_else(|| {
        ObjectError::Malformed(format!(
            "kernel {}: no symbol {}",
            metadata.name, metadata.symbol
        ))
    })?;
    let descriptor = Descriptor::read(image.bytes(symbol.address, 64)?, &metadata.name)?;
    let entry = symbol.address.wrapping_add_signed(descriptor.entry_offset);
    let inside = codes.iter().find(|(address, code)| {
        entry >= *address && entry - address < 4 * code.len() as u64 && entry % 4 == 0
    });
    let (address, code) = inside.ok_or_else(|| {
        ObjectError::Malformed(format!(
            "kernel {}: its entry {entry:#x} is in no executable segment",
            metadata.name
        ))
    })?;
    Ok(Kernel {
        entry: ((entry - address) / 4) as usize,
        code: Arc::clone(code),
        descriptor,
        metadata,
        _segments: Arc::clone(segments),
    })
}

/// Segments as they lie in memory.
struct Image {
    parts: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn of(elf: &Elf) -> Result<Self, ObjectError> {
        let mut parts = Vec::new();
        for segment in &elf.segments {
            let mut bytes = segment.bytes.to_vec();
            bytes.resize(segment.memory_len as usize, 0);
            parts.push((segment.address, bytes));
        }
        if !elf.segments.iter().all(|s| s.address < 1 << 32) {
            return Err(ObjectError::Malformed("a segment lies beyond 4 GiB".into()));
        }
        Ok(Self { parts })
    }

    fn end(&self) -> u64 {
        self.parts
            .iter()
            .map(|(address, bytes)| address + bytes.len() as u64)
            .max()
            .unwrap_or(0)
    }

    fn bytes(&self, address: u64, len: usize) -> Result<&[u8], ObjectError> {
        let part = self.parts.iter().find(|(base, bytes)| {
            address >= *base && address - base + len as u64 <= bytes.len() as u64
        });
        let (base, bytes) = part.ok_or_else(|| {
            ObjectError::Malformed(format!("{len} bytes at {address:#x} are in no segment"))
        })?;
        let from = (address - base) as usize;
        Ok(&bytes[from..from + len])
    }

    /// Applies the dynamic relocations: addresses of functions and variables in tables of the data.
    fn relocate(&mut self, elf: &Elf, base: u64) -> Result<(), ObjectError> {
        for relocation in &elf.relocations {
            let symbol = || {
                let symbol = elf.symbols.get(relocation.symbol).filter(|s| s.defined);
                let none = || {
                    ObjectError::Malformed(format!(
                        "a relocation names symbol {}, which has no place",
                        relocation.symbol
                    ))
                };
                symbol.map(|s| base + s.address).ok_or_else(none)
            };
            let value = match relocation.kind {
                3 => symbol()?.wrapping_add_signed(relocation.addend),
                13 => base.wrapping_add_signed(relocation.addend),
                kind => {
                    return Err(ObjectError::Unsupported(format!(
                        "relocation kind {kind} at {:#x}",
                        relocation.address
                    )));
                }
            };
            self.bytes(relocation.address, 8)?;
            for (address, bytes) in &mut self.parts {
                if relocation.address >= *address
                    && relocation.address - *address + 8 <= bytes.len() as u64
                {
                    let at = (relocation.address - *address) as usize;
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn install(&self, elf: &Elf, memory: &Memory, base: u64) -> Segments {
        let mut addresses = Vec::new();
        for (segment, (address, bytes)) in elf.segments.iter().zip(&self.parts) {
            if bytes.is_empty() {
                continue;
            }
            let access = if segment.writable {
                Access::ReadWrite
            } else {
                Access::Read
            };
            let name = if segment.executable {
                "code"
            } else {
                "code object's data"
            };
            memory.install(base + address, bytes, access, name);
            addresses.push(base + address);
        }
        Segments {
            memory: memory.clone(),
            addresses,
        }
    }
}
