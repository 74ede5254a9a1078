//! GGUF, versions 2 and 3, little-endian: what the compiler reads.
//!
//! A file is a header, metadata entries (key, type, value), tensor entries (name, dimensions, type, offset), padding to the
//! alignment, and the tensors' data. [`Gguf::parse`] checks all of it at once and borrows from the bytes: strings, arrays
//! and data are views. The file is untrusted. Nothing is allocated in proportion to a count that the rest of the file
//! could not hold, and every error says where it is, what was expected and what was found.
//!
//! In the order in which data flows: `cursor` bounds-checked fields, [`value`] and [`metadata`] keys and values,
//! [`tensor_type`] and [`tensor`] the tensors, [`error`] what can be wrong; and the other way round, [`writer`].

mod cursor;
pub mod error;
pub mod metadata;
pub mod tensor;
pub mod tensor_type;
pub mod value;
pub mod writer;

use std::collections::HashMap;
use std::fmt;

pub use error::{Error, ErrorKind};
pub use metadata::Metadata;
pub use tensor::TensorInfo;
pub use tensor_type::TensorType;
pub use value::{Array, Numbers, Strings, Value, ValueType};
pub use writer::{TensorSpec, WriteError, Writer};

use cursor::Cursor;
use error::{Name, Place};

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The key that gives the alignment of tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// Alignment of tensor data where the file has no [`ALIGNMENT_KEY`], in bytes.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// A parsed file, borrowing from its bytes.
pub struct Gguf<'a> {
    /// 2 or 3.
    pub version: u32,
    /// Of each tensor's data, in bytes; a power of two.
    pub alignment: u32,
    pub metadata: Metadata<'a>,
    tensors: Vec<TensorInfo<'a>>,
    /// Only ever looked up, never iterated.
    index: HashMap<&'a str, usize>,
}

impl<'a> Gguf<'a> {
    /// Parses a whole file, usually a memory map. Tensors of types that can't be compiled are fine here; see
    /// [`TensorInfo::encoding`].
    ///
    /// # Errors
    /// The file is not a GGUF, of another version or byte order, damaged, or cut.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes);
        let header = Header::read(&mut cursor)?;
        let metadata = Metadata::read(&mut cursor, header.metadata)?;
        let alignment = alignment(&metadata)?;

        let mut entries = Vec::new();
        for i in 0..header.tensors {
            entries.push(tensor::Entry::read(&mut cursor, i)?);
        }

        // A file without tensors may end before the padding.
        let data_offset = cursor.offset().next_multiple_of(alignment as u64);
        let data = usize::try_from(data_offset)
            .ok()
            .and_then(|start| bytes.get(start..))
            .unwrap_or_default();
        let tensors = entries
            .into_iter()
            .map(|entry| entry.locate(data, data_offset, alignment as u64))
            .collect::<Result<Vec<_>, _>>()?;
        let index = index_by_name(&tensors)?;
        tensor::check_overlap(&tensors)?;
        Ok(Gguf {
            version: header.version,
            alignment,
            metadata,
            tensors,
            index,
        })
    }

    /// Takes the tensors of a further part of a split model. The metadata stay the first part's.
    ///
    /// # Errors
    /// A tensor is in both.
    pub fn append(&mut self, part: Gguf<'a>) -> Result<(), Error> {
        self.tensors.extend(part.tensors);
        self.index = index_by_name(&self.tensors)?;
        Ok(())
    }

    /// In the file's order.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor's encoded elements, row after row.
    pub fn data(&self, tensor: &TensorInfo<'a>) -> &'a [u8] {
        tensor.data
    }
}

impl fmt::Debug for Gguf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

struct Header {
    version: u32,
    /// Tensor entries.
    tensors: u64,
    /// Metadata entries.
    metadata: u64,
}

impl Header {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let at_start = |kind| Error {
            place: Place::Header,
            offset: Some(0),
            kind,
        };
        let in_header = |fault: error::Fault| fault.at(Place::Header);

        let found = cursor.array("magic").map_err(in_header)?;
        if found != MAGIC {
            return Err(at_start(ErrorKind::NotGguf { found }));
        }
        let version = cursor.u32("version").map_err(in_header)?;
        // A big-endian file has the same magic; its small version number shows in the upper half.
        if version & 0xffff == 0 && version != 0 {
            return Err(at_start(ErrorKind::BigEndian {
                version: version.swap_bytes(),
            }));
        }
        if !(2..=3).contains(&version) {
            return Err(at_start(ErrorKind::Version { found: version }));
        }
        let tensors = cursor.u64("the number of tensors").map_err(in_header)?;
        let metadata = cursor
            .u64("the number of metadata entries")
            .map_err(in_header)?;
        cursor
            .check_count("tensors", tensors, tensor::MIN_ENTRY_BYTES)
            .map_err(in_header)?;
        Ok(Header {
            version,
            tensors,
            metadata,
        })
    }
}

fn alignment(metadata: &Metadata<'_>) -> Result<u32, Error> {
    let found = metadata
        .optional(ALIGNMENT_KEY)?
        .unwrap_or(DEFAULT_ALIGNMENT);
    if !found.is_power_of_two() {
        return Err(Error {
            place: Place::Key(Name::from(ALIGNMENT_KEY)),
            offset: None,
            kind: ErrorKind::Alignment { found },
        });
    }
    Ok(found)
}

fn index_by_name<'a>(tensors: &[TensorInfo<'a>]) -> Result<HashMap<&'a str, usize>, Error> {
    let mut index = HashMap::new();
    for (i, tensor) in tensors.iter().enumerate() {
        if let Some(first) = index.insert(tensor.name, i) {
            return Err(Error {
                place: Place::Tensor(Name::from(tensor.name)),
                offset: None,
                kind: ErrorKind::DuplicateTensor { first },
            });
        }
    }
    Ok(index)
}
