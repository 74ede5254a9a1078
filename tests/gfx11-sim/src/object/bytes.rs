//! Bounded little-endian reads of an untrusted file.

use super::ObjectError;

/// A file, or a stretch of it.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn slice(self, offset: u64, len: u64, what: &str) -> Result<&'a [u8], ObjectError> {
        let range = usize::try_from(offset).ok().zip(
            offset
                .checked_add(len)
                .and_then(|end| usize::try_from(end).ok()),
        );
        range
            .and_then(|(from, to)| self.0.get(from..to))
            .ok_or_else(|| {
                ObjectError::Malformed(format!(
                    "{what}: {len} bytes at offset {offset:#x} of {} are out of the file",
                    self.0.len()
                ))
            })
    }

    fn array<const N: usize>(self, offset: u64, what: &str) -> Result<[u8; N], ObjectError> {
        let bytes = self.slice(offset, N as u64, what)?;
        Ok(bytes.try_into().expect("a slice of N bytes"))
    }

    pub fn u16(self, offset: u64, what: &str) -> Result<u16, ObjectError> {
        Ok(u16::from_le_bytes(self.array(offset, what)?))
    }

    pub fn u32(self, offset: u64, what: &str) -> Result<u32, ObjectError> {
        Ok(u32::from_le_bytes(self.array(offset, what)?))
    }

    pub fn u64(self, offset: u64, what: &str) -> Result<u64, ObjectError> {
        Ok(u64::from_le_bytes(self.array(offset, what)?))
    }
}

/// The text up to a zero.
pub(super) fn text(bytes: &[u8], offset: usize, what: &str) -> Result<String, ObjectError> {
    let tail = bytes.get(offset..).ok_or_else(|| {
        ObjectError::Malformed(format!("{what}: string at {offset:#x} is out of its table"))
    })?;
    let end = tail
        .iter()
        .position(|&b| b == 0)
        .ok_or_else(|| ObjectError::Malformed(format!("{what}: string without an end")))?;
    String::from_utf8(tail[..end].to_vec())
        .map_err(|_| ObjectError::Malformed(format!("{what}: not UTF-8")))
}
