//! Metadata values: scalars by value, strings and arrays as views of the file's bytes.

use super::cursor::Cursor;
use super::error::{Error, ErrorKind, Fault, Name, Place};

/// Arrays within arrays that are accepted; real files have no nesting at all.
pub const MAX_NESTING: u32 = 8;

/// The type of a metadata value, with GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// Every type, at the index of its number.
    pub const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of a value in the file; none for strings and arrays, which have no fixed size.
    pub fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    /// The fewest bytes that a value takes: of a string its length, of an array its item type and length.
    fn min_bytes(self) -> u64 {
        match self {
            ValueType::String => 8,
            ValueType::Array => 12,
            scalar => scalar.size().map_or(1, |size| size as u64),
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Fault> {
        let offset = cursor.offset();
        let found = cursor.u32("a value's type")?;
        Self::ALL.get(found as usize).copied().ok_or(Fault {
            offset,
            kind: ErrorKind::ValueType { found },
        })
    }
}

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes that need not be UTF-8.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type.
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The type for an error's text: `array of string`.
    pub(super) fn type_text(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.item_type.name()),
            scalar => scalar.value_type().name().to_owned(),
        }
    }

    pub(super) fn read(
        cursor: &mut Cursor<'a>,
        ty: ValueType,
        key: &'a str,
    ) -> Result<Self, Fault> {
        match ty {
            ValueType::String => cursor.string("a string").map(Value::String),
            ValueType::Array => Array::read(cursor, key, 1).map(Value::Array),
            scalar => {
                let offset = cursor.offset();
                let bytes = cursor.take("a value", scalar.min_bytes())?;
                check_bools(scalar, bytes, offset)?;
                Ok(decode_scalar(scalar, bytes))
            }
        }
    }
}

/// An array as it lies in the file, already checked: lengths, nesting and booleans of every item are valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    item_type: ValueType,
    len: u64,
    /// The items' bytes.
    bytes: &'a [u8],
    /// Of the items, from the file's start.
    offset: u64,
    /// The metadata key that the array belongs to.
    key: &'a str,
}

impl<'a> Array<'a> {
    pub fn item_type(&self) -> ValueType {
        self.item_type
    }

    /// Items.
    pub fn len(&self) -> usize {
        // An item takes at least one byte of a slice, so the count fits.
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items as they lie in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Array { item_type, key, .. } = *self;
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map(move |_| {
            Value::read(&mut cursor, item_type, key)
                .ok()
                .expect("every item was read once in `Array::read`")
        })
    }

    fn read(cursor: &mut Cursor<'a>, key: &'a str, depth: u32) -> Result<Self, Fault> {
        if depth > MAX_NESTING {
            return Err(cursor.fault(ErrorKind::Nesting { most: MAX_NESTING }));
        }
        let item_type = ValueType::read(cursor)?;
        let len = cursor.u64("an array's length")?;
        cursor.check_count("array items", len, item_type.min_bytes())?;
        let offset = cursor.offset();
        match item_type {
            ValueType::String => {
                for _ in 0..len {
                    cursor.string("a string")?;
                }
            }
            ValueType::Array => {
                for _ in 0..len {
                    Array::read(cursor, key, depth + 1)?;
                }
            }
            scalar => {
                // No overflow: the count was checked against the bytes left.
                let bytes = cursor.take("array items", len * scalar.min_bytes())?;
                check_bools(scalar, bytes, offset)?;
            }
        }
        Ok(Array {
            item_type,
            len,
            bytes: cursor.since(offset),
            offset,
            key,
        })
    }
}

/// Strings of an array, as bytes that need not be UTF-8.
#[derive(Clone)]
pub struct Strings<'a> {
    array: Array<'a>,
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Strings<'a> {
    /// The strings that are left as text. An item that isn't UTF-8 is an error with its key and place.
    pub fn utf8(self) -> impl ExactSizeIterator<Item = Result<&'a str, Error>> {
        let array = self.array;
        self.map(move |bytes| {
            std::str::from_utf8(bytes).map_err(|e| Error {
                place: Place::Key(Name::from(array.key)),
                // Both are slices of the file, the string within the array.
                offset: Some(
                    array.offset + (bytes.as_ptr() as usize - array.bytes.as_ptr() as usize) as u64,
                ),
                kind: not_utf8(e),
            })
        })
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let string = self.cursor.string("a string").ok();
        Some(string.expect("every item was read once in `Array::read`"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// Numbers of an array, converted to `T`.
#[derive(Clone)]
pub struct Numbers<'a, T> {
    item_type: ValueType,
    items: std::slice::ChunksExact<'a, u8>,
    convert: fn(&Value<'a>) -> Result<T, ErrorKind>,
}

impl<T> Iterator for Numbers<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let value = decode_scalar(self.item_type, self.items.next()?);
        let number = (self.convert)(&value).ok();
        Some(number.expect("every item was converted once in `Numbers::from_value`"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}

impl<T> ExactSizeIterator for Numbers<'_, T> {}

/// What a typed getter can ask for. An integer of any type becomes any other that holds it; an f64 becomes an f32.
pub trait FromValue<'a>: Sized {
    /// For an error's text.
    const EXPECTED: &'static str;

    /// # Errors
    /// [`ErrorKind::WrongType`], [`ErrorKind::OutOfRange`] or [`ErrorKind::NotUtf8`].
    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind>;
}

fn wrong_type<'a, T: FromValue<'a>>(value: &Value<'a>) -> ErrorKind {
    ErrorKind::WrongType {
        expected: T::EXPECTED,
        found: value.type_text(),
    }
}

fn not_utf8(e: std::str::Utf8Error) -> ErrorKind {
    ErrorKind::NotUtf8 {
        what: "string",
        valid_up_to: e.valid_up_to(),
    }
}

/// Marks types that [`Numbers`] yields.
pub trait Number<'a>: FromValue<'a> {
    /// For an error's text.
    const EXPECTED_ARRAY: &'static str;
}

macro_rules! integers {
    ($($t:ident),*) => {$(
        impl<'a> FromValue<'a> for $t {
            const EXPECTED: &'static str = concat!("an integer (", stringify!($t), ")");

            fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
                let found = value.integer().ok_or_else(|| wrong_type::<Self>(value))?;
                $t::try_from(found).map_err(|_| ErrorKind::OutOfRange {
                    expected: Self::EXPECTED,
                    found,
                })
            }
        }

        impl Number<'_> for $t {
            const EXPECTED_ARRAY: &'static str = concat!("an array of integers (", stringify!($t), ")");
        }
    )*};
}

integers!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

impl<'a> FromValue<'a> for f32 {
    const EXPECTED: &'static str = "a number (f32)";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::F32(v) => Ok(v),
            Value::F64(v) => Ok(v as f32),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl Number<'_> for f32 {
    const EXPECTED_ARRAY: &'static str = "an array of numbers (f32)";
}

impl<'a> FromValue<'a> for f64 {
    const EXPECTED: &'static str = "a number (f64)";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::F32(v) => Ok(v.into()),
            Value::F64(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl Number<'_> for f64 {
    const EXPECTED_ARRAY: &'static str = "an array of numbers (f64)";
}

impl<'a> FromValue<'a> for bool {
    const EXPECTED: &'static str = "a bool";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::Bool(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl<'a> FromValue<'a> for &'a [u8] {
    const EXPECTED: &'static str = "a string";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::String(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a string";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        std::str::from_utf8(FromValue::from_value(value)?).map_err(not_utf8)
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const EXPECTED: &'static str = "an array";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::Array(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl<'a> FromValue<'a> for Strings<'a> {
    const EXPECTED: &'static str = "an array of strings";

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        match *value {
            Value::Array(array) if array.item_type == ValueType::String => Ok(Strings {
                array,
                cursor: Cursor::new(array.bytes),
                left: array.len(),
            }),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl<'a, T: Number<'a>> FromValue<'a> for Numbers<'a, T> {
    const EXPECTED: &'static str = T::EXPECTED_ARRAY;

    fn from_value(value: &Value<'a>) -> Result<Self, ErrorKind> {
        let Value::Array(array) = *value else {
            return Err(wrong_type::<Self>(value));
        };
        let Some(size) = array.item_type.size() else {
            return Err(wrong_type::<Self>(value));
        };
        let items = array.bytes.chunks_exact(size);
        for item in items.clone() {
            T::from_value(&decode_scalar(array.item_type, item)).map_err(|kind| match kind {
                ErrorKind::WrongType { .. } => wrong_type::<Self>(value),
                other => other,
            })?;
        }
        Ok(Numbers {
            item_type: array.item_type,
            items,
            convert: T::from_value,
        })
    }
}

fn check_bools(ty: ValueType, bytes: &[u8], offset: u64) -> Result<(), Fault> {
    if ty == ValueType::Bool
        && let Some(i) = bytes.iter().position(|&b| b > 1)
    {
        return Err(Fault {
            offset: offset + i as u64,
            kind: ErrorKind::Bool { found: bytes[i] },
        });
    }
    Ok(())
}

/// A scalar of `bytes`, which are exactly as many as its type has.
fn decode_scalar<'a>(ty: ValueType, bytes: &[u8]) -> Value<'a> {
    fn field<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes
            .try_into()
            .expect("callers cut the bytes by `ValueType::size`")
    }
    match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(field(bytes))),
        ValueType::I8 => Value::I8(i8::from_le_bytes(field(bytes))),
        ValueType::U16 => Value::U16(u16::from_le_bytes(field(bytes))),
        ValueType::I16 => Value::I16(i16::from_le_bytes(field(bytes))),
        ValueType::U32 => Value::U32(u32::from_le_bytes(field(bytes))),
        ValueType::I32 => Value::I32(i32::from_le_bytes(field(bytes))),
        ValueType::F32 => Value::F32(f32::from_le_bytes(field(bytes))),
        ValueType::Bool => Value::Bool(u8::from_le_bytes(field(bytes)) != 0),
        ValueType::U64 => Value::U64(u64::from_le_bytes(field(bytes))),
        ValueType::I64 => Value::I64(i64::from_le_bytes(field(bytes))),
        ValueType::F64 => Value::F64(f64::from_le_bytes(field(bytes))),
        ValueType::String | ValueType::Array => {
            unreachable!("callers pass types that have a size")
        }
    }
}
