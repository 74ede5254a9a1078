//! The file's keys and values, in order, with typed getters.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::{Error, ErrorKind, Fault, Name, Place};
use super::value::{FromValue, Value, ValueType};

/// Longest key or tensor name, in bytes.
pub const MAX_NAME: u64 = 65535;

/// The fewest bytes of an entry: the key's length, one byte of key, the type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// Keys and values in the file's order.
pub struct Metadata<'a> {
    entries: Vec<Entry<'a>>,
    /// Only ever looked up, never iterated.
    index: HashMap<&'a str, usize>,
}

struct Entry<'a> {
    key: &'a str,
    value: Value<'a>,
    /// Of the entry, from the file's start.
    offset: u64,
}

impl<'a> Metadata<'a> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, Value<'a>)> {
        self.entries.iter().map(|entry| (entry.key, entry.value))
    }

    /// The value of any type.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entry(key).map(|entry| entry.value)
    }

    /// A value that the model must have: `required::<u32>("llama.block_count")`.
    ///
    /// # Errors
    /// The key is missing, its value has another type or is out of the type's range.
    pub fn required<T: FromValue<'a>>(&self, key: &str) -> Result<T, Error> {
        self.optional(key)?.ok_or_else(|| Error {
            place: Place::Key(Name::from(key)),
            offset: None,
            kind: ErrorKind::MissingKey {
                expected: T::EXPECTED,
            },
        })
    }

    /// A value that the model may have.
    ///
    /// # Errors
    /// The value has another type or is out of the type's range.
    pub fn optional<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        T::from_value(&entry.value).map(Some).map_err(|kind| Error {
            place: Place::Key(Name::from(key)),
            offset: Some(entry.offset),
            kind,
        })
    }

    fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.index.get(key).map(|&i| &self.entries[i])
    }

    pub(super) fn read(cursor: &mut Cursor<'a>, count: u64) -> Result<Self, Error> {
        let mut metadata = Metadata {
            entries: Vec::new(),
            index: HashMap::new(),
        };
        cursor
            .check_count("metadata entries", count, MIN_ENTRY_BYTES)
            .map_err(|fault| fault.at(Place::Header))?;
        for i in 0..count {
            let offset = cursor.offset();
            let key = read_name(cursor).map_err(|fault| fault.at(Place::Entry(i)))?;
            let place = || Place::Key(Name::from(key));
            if let Some(first) = metadata.entry(key) {
                return Err(Error {
                    place: place(),
                    offset: Some(offset),
                    kind: ErrorKind::DuplicateKey {
                        first: first.offset,
                    },
                });
            }
            let value = ValueType::read(cursor)
                .and_then(|ty| Value::read(cursor, ty, key))
                .map_err(|fault| fault.at(place()))?;
            metadata.index.insert(key, metadata.entries.len());
            metadata.entries.push(Entry { key, value, offset });
        }
        Ok(metadata)
    }
}

/// A key or a tensor's name: UTF-8 and not empty.
pub(super) fn read_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Fault> {
    let offset = cursor.offset();
    let name = cursor.string("a name")?;
    let found = name.len() as u64;
    if found == 0 || found > MAX_NAME {
        return Err(Fault {
            offset,
            kind: ErrorKind::NameLength {
                found,
                most: MAX_NAME,
            },
        });
    }
    std::str::from_utf8(name).map_err(|e| Fault {
        offset,
        kind: ErrorKind::NotUtf8 {
            what: "name",
            valid_up_to: e.valid_up_to(),
        },
    })
}
