//! A decoder of the MessagePack that metadata notes hold: maps, arrays, strings, integers, booleans. Nesting is bounded.

use super::ObjectError;

/// A decoded value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Binary(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// A map's value by its key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries
                .iter()
                .find(|(k, _)| matches!(k, Value::Text(text) if text == key))
                .map(|(_, v)| v),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<u64> {
        match self {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// Decodes one value, which must fill the bytes but for padding of zeros.
pub(super) fn decode(bytes: &[u8]) -> Result<Value, ObjectError> {
    let mut reader = Reader { bytes, at: 0 };
    reader.value(0)
}

const MAX_DEPTH: usize = 16;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, why: &str) -> Result<T, ObjectError> {
        Err(ObjectError::Malformed(format!(
            "metadata: {why} at byte {}",
            self.at
        )))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ObjectError> {
        match self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end))
        {
            Some(slice) => {
                self.at += len;
                Ok(slice)
            }
            None => self.fail("a value is cut off"),
        }
    }

    /// A big-endian number of up to eight bytes.
    fn number(&mut self, len: usize) -> Result<u64, ObjectError> {
        Ok(self
            .take(len)?
            .iter()
            .fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, ObjectError> {
        Ok(self.number(bytes)? as usize)
    }

    fn value(&mut self, depth: usize) -> Result<Value, ObjectError> {
        if depth > MAX_DEPTH {
            return self.fail("values are nested too deep");
        }
        let tag = self.take(1)?[0];
        Ok(match tag {
            0x00..=0x7f => Value::Int(i64::from(tag)),
            0x80..=0x8f => self.map(usize::from(tag & 15), depth)?,
            0x90..=0x9f => self.array(usize::from(tag & 15), depth)?,
            0xa0..=0xbf => self.text(usize::from(tag & 31))?,
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let len = self.length(1 << (tag - 0xc4))?;
                Value::Binary(self.take(len)?.to_vec())
            }
            0xca => Value::Float(f64::from(f32::from_bits(self.number(4)? as u32))),
            0xcb => Value::Float(f64::from_bits(self.number(8)?)),
            0xcc..=0xcf => Value::Int(self.number(1 << (tag - 0xcc))? as i64),
            0xd0..=0xd3 => {
                let len = 1usize << (tag - 0xd0);
                let unused = 64 - 8 * len as u32;
                Value::Int(((self.number(len)? << unused) as i64) >> unused)
            }
            0xd9..=0xdb => {
                let len = self.length(1 << (tag - 0xd9))?;
                self.text(len)?
            }
            0xdc | 0xdd => {
                let len = self.length(2 << (tag - 0xdc))?;
                self.array(len, depth)?
            }
            0xde | 0xdf => {
                let len = self.length(2 << (tag - 0xde))?;
                self.map(len, depth)?
            }
            0xe0..=0xff => Value::Int(i64::from(tag as i8)),
            _ => return self.fail("an unknown kind of value"),
        })
    }

    fn text(&mut self, len: usize) -> Result<Value, ObjectError> {
        let bytes = self.take(len)?.to_vec();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Value::Text(text)),
            Err(_) => self.fail("a string is not UTF-8"),
        }
    }

    // Lengths are not trusted with memory: every element takes at least a byte, so reading ends with the file.
    fn array(&mut self, len: usize, depth: usize) -> Result<Value, ObjectError> {
        let mut values = Vec::new();
        for _ in 0..len {
            values.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    fn map(&mut self, len: usize, depth: usize) -> Result<Value, ObjectError> {
        let mut entries = Vec::new();
        for _ in 0..len {
            entries.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_notes_hold() {
        let bytes = b"\x82\xa4.neg\xd0\xff\xa1x\x93\x01\xcd\x01\x00\xc3";
        let value = decode(bytes).unwrap();
        assert_eq!(value.get(".neg"), Some(&Value::Int(-1)));
        assert_eq!(
            value.get("x"),
            Some(&Value::Array(vec![
                Value::Int(1),
                Value::Int(256),
                Value::Bool(true)
            ]))
        );
    }

    #[test]
    fn refuses_what_is_cut_or_endless() {
        assert!(decode(b"\xdd\xff\xff\xff\xff\x01").is_err());
        assert!(decode(&[0x91; 64]).is_err());
        assert!(decode(b"\xd9\x05ab").is_err());
        assert!(decode(b"\xc1").is_err());
    }
}
