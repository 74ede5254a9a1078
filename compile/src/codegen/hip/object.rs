//! A code object: an ELF file with a note that tells what each kernel takes. What is read here is what the loader reads.

use super::msgpack::Value;
use crate::error::Error;

/// `EM_AMDGPU`.
const MACHINE: usize = 224;

/// `SHT_NOTE`, `SHT_DYNSYM`; `NT_AMDGPU_METADATA` of owner AMDGPU.
const NOTES: usize = 7;
const SYMBOLS: usize = 11;
const METADATA: usize = 32;

/// What `e_flags` tells of the chip: its number (`EF_AMDGPU_MACH`), and of xnack and sramecc, which have bits above it.
#[derive(Debug)]
pub struct Object<'a> {
    pub flags: u32,
    /// `amdgcn-amd-amdhsa--gfx1151`
    pub target: String,
    pub functions: Vec<Function<'a>>,
}

/// What the metadata tells of one kernel, and its instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub symbol: String,
    pub vector_registers: u32,
    pub scalar_registers: u32,
    pub vector_spills: u32,
    pub scalar_spills: u32,
    /// Bytes of scratch memory of a thread.
    pub private: u32,
    /// Whether the scratch memory has no bound.
    pub dynamic_stack: bool,
    /// Bytes of shared memory of a block that are in the object.
    pub shared: u32,
    /// Bytes of all arguments.
    pub arguments_size: u32,
    pub arguments: Vec<Argument>,
    pub wavefront: u32,
    pub threads: u32,
    pub code: &'a [u8],
}

/// Where an argument lies, and what it is: `global_buffer`, `by_value`; those that nobody passes are `hidden_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    pub offset: u32,
    pub size: u32,
    pub kind: String,
}

impl Object<'_> {
    /// Reads an object.
    pub fn parse(bytes: &[u8]) -> Result<Object<'_>, Error> {
        let elf = Elf::of(bytes).ok_or_else(|| bug("is no ELF file for AMD GPUs"))?;
        let metadata = elf
            .metadata()
            .ok_or_else(|| bug("has no note of its kernels"))?;
        let target = metadata.get("amdhsa.target").and_then(Value::text);
        let kernels = metadata.get("amdhsa.kernels").and_then(Value::array);
        let functions = kernels
            .ok_or_else(|| bug("tells of no kernels"))?
            .iter()
            .map(|kernel| elf.function(kernel))
            .collect::<Result<_, Error>>()?;
        Ok(Object {
            flags: elf.flags,
            target: target.unwrap_or_default().to_string(),
            functions,
        })
    }
}

fn bug(what: &str) -> Error {
    Error::Bug(format!("clang's code object {what}"))
}

struct Elf<'a> {
    flags: u32,
    sections: Vec<Section<'a>>,
}

struct Section<'a> {
    kind: usize,
    address: usize,
    /// The section with its strings.
    link: usize,
    content: &'a [u8],
}

impl<'a> Elf<'a> {
    fn of(bytes: &'a [u8]) -> Option<Elf<'a>> {
        bytes.strip_prefix(b"\x7fELF\x02\x01")?;
        if number(bytes, 0x12, 2)? != MACHINE {
            return None;
        }
        let (start, size, count) = (
            number(bytes, 0x28, 8)?,
            number(bytes, 0x3a, 2)?,
            number(bytes, 0x3c, 2)?,
        );
        let section = |index: usize| {
            let at = start.checked_add(index.checked_mul(size)?)?;
            let kind = number(bytes, at + 4, 4)?;
            let (offset, len) = (number(bytes, at + 0x18, 8)?, number(bytes, at + 0x20, 8)?);
            // One without contents, as .bss, has no bytes in the file.
            let content = match kind {
                0 | 8 => &[],
                _ => bytes.get(offset..offset.checked_add(len)?)?,
            };
            Some(Section {
                kind,
                address: number(bytes, at + 0x10, 8)?,
                link: number(bytes, at + 0x28, 4)?,
                content,
            })
        };
        Some(Elf {
            flags: number(bytes, 0x30, 4)? as u32,
            sections: (0..count).map(section).collect::<Option<_>>()?,
        })
    }

    /// The map of the note of AMDGPU.
    fn metadata(&self) -> Option<Value> {
        let notes = self.sections.iter().filter(|s| s.kind == NOTES);
        notes
            .map(|s| s.content)
            .find_map(note)
            .and_then(Value::parse)
    }

    /// The instructions of a symbol.
    fn code(&self, symbol: &str) -> Option<&'a [u8]> {
        let table = self.sections.iter().find(|s| s.kind == SYMBOLS)?;
        let names = self.sections.get(table.link)?.content;
        let entry = table.content.chunks_exact(24).find(|entry| {
            let name = number(entry, 0, 4).and_then(|at| names.get(at..));
            name.and_then(|n| n.split(|&b| b == 0).next()) == Some(symbol.as_bytes())
        })?;
        let section = self.sections.get(number(entry, 6, 2)?)?;
        let start = number(entry, 8, 8)?.checked_sub(section.address)?;
        let len = number(entry, 16, 8)?;
        section.content.get(start..start.checked_add(len)?)
    }

    fn function(&self, kernel: &Value) -> Result<Function<'a>, Error> {
        let symbol = kernel.get(".name").and_then(Value::text);
        let symbol = symbol.ok_or_else(|| bug("has a kernel without a name"))?;
        let missing = |key: &str| bug(&format!("says no {key} of kernel {symbol}"));
        let count = |key: &str| kernel.get(key).and_then(Value::number);
        let needed = |key: &str| count(key).ok_or_else(|| missing(key));
        let argument = |value: &Value| {
            Some(Argument {
                offset: value.get(".offset")?.number()?,
                size: value.get(".size")?.number()?,
                kind: value.get(".value_kind")?.text()?.to_string(),
            })
        };
        let arguments = kernel.get(".args").and_then(Value::array).unwrap_or(&[]);
        Ok(Function {
            symbol: symbol.to_string(),
            vector_registers: needed(".vgpr_count")?,
            scalar_registers: needed(".sgpr_count")?,
            vector_spills: needed(".vgpr_spill_count")?,
            scalar_spills: needed(".sgpr_spill_count")?,
            private: needed(".private_segment_fixed_size")?,
            dynamic_stack: kernel.get(".uses_dynamic_stack") == Some(&Value::Bool(true)),
            shared: needed(".group_segment_fixed_size")?,
            arguments_size: needed(".kernarg_segment_size")?,
            arguments: arguments
                .iter()
                .map(argument)
                .collect::<Option<_>>()
                .ok_or_else(|| missing(".args"))?,
            wavefront: needed(".wavefront_size")?,
            threads: needed(".max_flat_workgroup_size")?,
            code: self
                .code(symbol)
                .ok_or_else(|| bug(&format!("has no code of kernel {symbol}")))?,
        })
    }
}

/// The description of the first note that tells of kernels.
fn note(mut bytes: &[u8]) -> Option<&[u8]> {
    while !bytes.is_empty() {
        let (name, len, kind) = (
            number(bytes, 0, 4)?,
            number(bytes, 4, 4)?,
            number(bytes, 8, 4)?,
        );
        let at = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = at.checked_add(len)?;
        let found = (
            bytes.get(12..12usize.checked_add(name)?)?,
            bytes.get(at..end)?,
        );
        if kind == METADATA && found.0.starts_with(b"AMDGPU") {
            return Some(found.1);
        }
        bytes = bytes.get(end.checked_next_multiple_of(4)?..).unwrap_or(&[]);
    }
    None
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let value = bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
    usize::try_from(value).ok()
}
