//! MessagePack, as far as the metadata of code objects has it: maps, arrays, strings, booleans and integers.

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nil,
    Bool(bool),
    /// Of any width; negative ones don't occur where sizes and counts are told.
    Int(i64),
    Text(String),
    Array(Vec<Value>),
    /// Keys in the order of the file.
    Map(Vec<(Value, Value)>),
}

/// Values within values, at most.
const MAX_DEPTH: u32 = 16;

impl Value {
    /// The value of some bytes, which it takes wholly. None where they are cut short or hold another kind of value.
    pub fn parse(bytes: &[u8]) -> Option<Value> {
        let mut reader = Reader { bytes };
        let value = reader.value(MAX_DEPTH)?;
        reader.bytes.is_empty().then_some(value)
    }

    /// What a map has for a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(entries) = self else {
            return None;
        };
        let is_key = |(k, _): &&(Value, Value)| matches!(k, Value::Text(text) if text == key);
        entries.iter().find(is_key).map(|(_, value)| value)
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<u32> {
        match *self {
            Value::Int(n) => u32::try_from(n).ok(),
            _ => None,
        }
    }

    pub fn array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    /// A number of up to eight bytes, the most significant first.
    fn number(&mut self, len: usize) -> Option<u64> {
        let bytes = self.take(len)?;
        Some(bytes.iter().fold(0, |v, &b| v << 8 | u64::from(b)))
    }

    fn length(&mut self, len: usize) -> Option<usize> {
        usize::try_from(self.number(len)?).ok()
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let kind = self.number(1)? as u8;
        Some(match kind {
            0x00..=0x7f => Value::Int(i64::from(kind)),
            0xe0..=0xff => Value::Int(i64::from(kind as i8)),
            0x80..=0x8f => self.map(usize::from(kind & 15), depth)?,
            0x90..=0x9f => self.list(usize::from(kind & 15), depth)?,
            0xa0..=0xbf => self.string(usize::from(kind & 31))?,
            0xc0 => Value::Nil,
            0xc2 | 0xc3 => Value::Bool(kind == 0xc3),
            0xcc..=0xcf => {
                let n = self.number(1 << (kind - 0xcc))?;
                Value::Int(i64::try_from(n).ok()?)
            }
            0xd0..=0xd3 => {
                let len = 1 << (kind - 0xd0);
                let unused = 64 - 8 * len as u32;
                Value::Int((self.number(len)? << unused) as i64 >> unused)
            }
            0xd9..=0xdb => {
                let len = self.length(1 << (kind - 0xd9))?;
                self.string(len)?
            }
            0xdc | 0xdd => {
                let len = self.length(2 << (kind - 0xdc))?;
                self.list(len, depth)?
            }
            0xde | 0xdf => {
                let len = self.length(2 << (kind - 0xde))?;
                self.map(len, depth)?
            }
            _ => return None,
        })
    }

    fn string(&mut self, len: usize) -> Option<Value> {
        let text = std::str::from_utf8(self.take(len)?).ok()?;
        Some(Value::Text(text.to_string()))
    }

    fn list(&mut self, len: usize, depth: u32) -> Option<Value> {
        // No more room than there are bytes for.
        let mut values = Vec::with_capacity(len.min(self.bytes.len()));
        for _ in 0..len {
            values.push(self.value(depth)?);
        }
        Some(Value::Array(values))
    }

    fn map(&mut self, len: usize, depth: u32) -> Option<Value> {
        let mut entries = Vec::with_capacity(len.min(self.bytes.len()));
        for _ in 0..len {
            entries.push((self.value(depth)?, self.value(depth)?));
        }
        Some(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_each_kind_are_read() {
        let bytes = [
            0x84, 0xa1, b'a', 0x93, 0x01, 0xcd, 0x01, 0x02, 0xd0, 0xff, 0xa1, b'b', 0xc3, 0xd9, 1,
            b'c', 0xd9, 2, b'x', b'y', 0xa1, b'd', 0xce, 0, 1, 0, 0,
        ];
        let value = Value::parse(&bytes).unwrap();
        let list = value.get("a").and_then(Value::array).unwrap();
        assert_eq!(list, [Value::Int(1), Value::Int(0x102), Value::Int(-1)]);
        assert_eq!(value.get("b"), Some(&Value::Bool(true)));
        assert_eq!(value.get("c").and_then(Value::text), Some("xy"));
        assert_eq!(value.get("d").and_then(Value::number), Some(65536));
        assert_eq!(value.get("e"), None);
    }

    #[test]
    fn what_is_cut_short_or_too_deep_is_none() {
        for bytes in [
            &[0x92, 1][..],
            &[0xd9, 9, b'x'],
            &[0xdd, 255, 255, 255, 255],
            &[0xc1],
            &[1, 1],
            &[],
        ] {
            assert_eq!(Value::parse(bytes), None, "{bytes:?}");
        }
        assert_eq!(Value::parse(&[0x91; 64]), None);
    }
}
