//! Writes GGUF files: the header at once, then each tensor's data from a callback, so that no more than a piece of a
//! tensor need be in memory.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::error::{Error, ErrorKind, Name, Place};
use super::metadata::MAX_NAME;
use super::tensor::{MAX_DIMS, data_bytes};
use super::value::{Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, TensorType};

/// The version that is written.
const VERSION: u32 = 3;

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A key or tensor that no reader would accept.
    #[error("{0}")]
    Invalid(#[from] Error),
    #[error("expected {expected} bytes of data for tensor {tensor}, found {found}")]
    DataLength {
        tensor: Name,
        expected: u64,
        found: u64,
    },
}

impl From<WriteError> for crate::error::Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Io(e) => Self::User(e.to_string()),
            other => Self::Bug(other.to_string()),
        }
    }
}

/// A tensor whose data is still to come.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub ty: TensorType,
    /// Of the data, from the start of the tensor data.
    pub start: u64,
    /// Of the data.
    pub bytes: u64,
}

/// Collects keys and tensors, then writes the file.
pub struct Writer {
    alignment: u32,
    /// Encoded metadata entries.
    metadata: Vec<u8>,
    /// Offset of each key in `metadata`.
    keys: HashMap<String, u64>,
    tensors: Vec<TensorSpec>,
    /// Index of each tensor, by name.
    names: HashMap<String, usize>,
    /// Bytes of tensor data so far, padding included.
    data_bytes: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A file of the default alignment.
    pub fn new() -> Self {
        Writer {
            alignment: DEFAULT_ALIGNMENT,
            metadata: Vec::new(),
            keys: HashMap::new(),
            tensors: Vec::new(),
            names: HashMap::new(),
            data_bytes: 0,
        }
    }

    /// A file that says its alignment, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Alignment`]: not a power of two.
    pub fn with_alignment(alignment: u32) -> Result<Self, WriteError> {
        if !alignment.is_power_of_two() {
            return Err(invalid_key(
                ALIGNMENT_KEY,
                ErrorKind::Alignment { found: alignment },
            ));
        }
        let mut writer = Self::new();
        writer.alignment = alignment;
        writer.put(ALIGNMENT_KEY, &alignment)?;
        Ok(writer)
    }

    /// Adds a key. The alignment is [`Writer::with_alignment`]'s business.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateKey`] or [`ErrorKind::NameLength`].
    pub fn put(&mut self, key: &str, value: &(impl Encode + ?Sized)) -> Result<(), WriteError> {
        check_name(key).map_err(|kind| invalid_key(key, kind))?;
        let offset = self.metadata.len() as u64;
        if let Some(first) = self.keys.insert(key.to_owned(), offset) {
            return Err(invalid_key(key, ErrorKind::DuplicateKey { first }));
        }
        key.encode(&mut self.metadata);
        (value.value_type() as u32).encode(&mut self.metadata);
        value.encode(&mut self.metadata);
        Ok(())
    }

    /// Adds a tensor with `dims` innermost first.
    ///
    /// # Errors
    /// The name is taken, empty or too long; the dimensions are too many, zero, too large, or don't fit the type's block.
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: TensorType) -> Result<(), WriteError> {
        let spec = self.plan(name, dims, ty).map_err(|kind| {
            WriteError::Invalid(Error {
                place: Place::Tensor(Name::from(name)),
                offset: None,
                kind,
            })
        })?;
        self.names.insert(spec.name.clone(), self.tensors.len());
        self.data_bytes = spec.start + self.padded(spec.bytes);
        self.tensors.push(spec);
        Ok(())
    }

    fn plan(&self, name: &str, dims: &[u64], ty: TensorType) -> Result<TensorSpec, ErrorKind> {
        check_name(name)?;
        if let Some(&first) = self.names.get(name) {
            return Err(ErrorKind::DuplicateTensor { first });
        }
        if dims.is_empty() || dims.len() > MAX_DIMS {
            return Err(ErrorKind::DimensionCount {
                found: dims.len() as u32,
                most: MAX_DIMS as u32,
            });
        }
        let bytes = data_bytes(dims, ty)?;
        // Leaves room for the padding and the header.
        if self.data_bytes + bytes >= 1 << 62 {
            return Err(ErrorKind::TooLarge {
                dims: dims.to_vec(),
            });
        }
        Ok(TensorSpec {
            name: name.to_owned(),
            dims: dims.to_vec(),
            ty,
            start: self.data_bytes,
            bytes,
        })
    }

    /// In the order in which their data will be asked for.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Bytes of tensor data, padding included.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Writes the file. `data` is called for each tensor in order and writes exactly its [`TensorSpec::bytes`].
    ///
    /// # Errors
    /// Of `out`, of `data`, or [`WriteError::DataLength`]; the file is then incomplete.
    pub fn write<W, E>(
        &self,
        out: &mut W,
        mut data: impl FnMut(&TensorSpec, &mut Counted<'_, W>) -> Result<(), E>,
    ) -> Result<(), E>
    where
        W: Write,
        E: From<WriteError>,
    {
        let io = |e| E::from(WriteError::Io(e));
        out.write_all(&self.header()).map_err(io)?;
        for tensor in &self.tensors {
            let mut counted = Counted { out, written: 0 };
            data(tensor, &mut counted)?;
            let found = counted.written;
            if found != tensor.bytes {
                return Err(E::from(WriteError::DataLength {
                    tensor: Name::from(tensor.name.as_str()),
                    expected: tensor.bytes,
                    found,
                }));
            }
            let padding = self.padded(found) - found;
            io::copy(&mut io::repeat(0).take(padding), out).map_err(io)?;
        }
        Ok(())
    }

    /// All that comes before the tensor data, padding included.
    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        VERSION.encode(&mut header);
        (self.tensors.len() as u64).encode(&mut header);
        (self.keys.len() as u64).encode(&mut header);
        header.extend_from_slice(&self.metadata);
        for tensor in &self.tensors {
            tensor.name.encode(&mut header);
            (tensor.dims.len() as u32).encode(&mut header);
            for dim in &tensor.dims {
                dim.encode(&mut header);
            }
            tensor.ty.id.encode(&mut header);
            tensor.start.encode(&mut header);
        }
        header.resize(self.padded(header.len() as u64) as usize, 0);
        header
    }

    fn padded(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.alignment as u64)
    }
}

fn check_name(name: &str) -> Result<(), ErrorKind> {
    let found = name.len() as u64;
    if found == 0 || found > MAX_NAME {
        return Err(ErrorKind::NameLength {
            found,
            most: MAX_NAME,
        });
    }
    Ok(())
}

fn invalid_key(key: &str, kind: ErrorKind) -> WriteError {
    WriteError::Invalid(Error {
        place: Place::Key(Name::from(key)),
        offset: None,
        kind,
    })
}

/// The output for one tensor's data.
pub struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A metadata value that can be written.
pub trait Encode {
    fn value_type(&self) -> ValueType;

    /// Appends the value, without its type.
    fn encode(&self, out: &mut Vec<u8>);
}

/// A metadata value that can be an item of an array: all of a Rust type have one value type.
pub trait Item: Encode {
    const TYPE: ValueType;
}

/// A string that need not be UTF-8.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

macro_rules! encode {
    ($($t:ty, $variant:ident, |$v:ident, $out:ident| $encode:expr;)*) => {$(
        impl Encode for $t {
            fn value_type(&self) -> ValueType {
                ValueType::$variant
            }

            fn encode(&self, $out: &mut Vec<u8>) {
                let $v = self;
                $encode
            }
        }

        impl Item for $t {
            const TYPE: ValueType = ValueType::$variant;
        }
    )*};
}

encode! {
    u8, U8, |v, out| out.push(*v);
    i8, I8, |v, out| out.extend(v.to_le_bytes());
    u16, U16, |v, out| out.extend(v.to_le_bytes());
    i16, I16, |v, out| out.extend(v.to_le_bytes());
    u32, U32, |v, out| out.extend(v.to_le_bytes());
    i32, I32, |v, out| out.extend(v.to_le_bytes());
    u64, U64, |v, out| out.extend(v.to_le_bytes());
    i64, I64, |v, out| out.extend(v.to_le_bytes());
    f32, F32, |v, out| out.extend(v.to_le_bytes());
    f64, F64, |v, out| out.extend(v.to_le_bytes());
    bool, Bool, |v, out| out.push(*v as u8);
    &str, String, |v, out| append_string(v.as_bytes(), out);
    String, String, |v, out| append_string(v.as_bytes(), out);
    Bytes<'_>, String, |v, out| append_string(v.0, out);
}

impl Encode for str {
    fn value_type(&self) -> ValueType {
        ValueType::String
    }

    fn encode(&self, out: &mut Vec<u8>) {
        append_string(self.as_bytes(), out);
    }
}

/// An array.
impl<T: Item> Encode for [T] {
    fn value_type(&self) -> ValueType {
        ValueType::Array
    }

    fn encode(&self, out: &mut Vec<u8>) {
        (T::TYPE as u32).encode(out);
        (self.len() as u64).encode(out);
        for item in self {
            item.encode(out);
        }
    }
}

/// An array of arrays.
impl<T: Item> Item for Vec<T> {
    const TYPE: ValueType = ValueType::Array;
}

impl<T: Item> Encode for Vec<T> {
    fn value_type(&self) -> ValueType {
        ValueType::Array
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

/// A value of another file, as it is.
impl Encode for Value<'_> {
    fn value_type(&self) -> ValueType {
        Value::value_type(self)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => v.encode(out),
            Value::I8(v) => v.encode(out),
            Value::U16(v) => v.encode(out),
            Value::I16(v) => v.encode(out),
            Value::U32(v) => v.encode(out),
            Value::I32(v) => v.encode(out),
            Value::F32(v) => v.encode(out),
            Value::Bool(v) => v.encode(out),
            Value::U64(v) => v.encode(out),
            Value::I64(v) => v.encode(out),
            Value::F64(v) => v.encode(out),
            Value::String(v) => append_string(v, out),
            Value::Array(array) => {
                (array.item_type() as u32).encode(out);
                (array.len() as u64).encode(out);
                out.extend_from_slice(array.bytes());
            }
        }
    }
}

/// Appends a string: its length as u64, then its bytes.
fn append_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}
