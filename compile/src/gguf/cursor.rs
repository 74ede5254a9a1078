//! Bounds-checked reading of little-endian fields.

use super::error::{ErrorKind, Fault};

/// A position in the file. It never moves past the end; a claimed length is compared with what is left before anything
/// is done with it.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, position: 0 }
    }

    /// Bytes from the file's start.
    pub fn offset(&self) -> u64 {
        self.position as u64
    }

    /// The bytes from `start`, an earlier [`Cursor::offset`], to here.
    pub fn since(&self, start: u64) -> &'a [u8] {
        &self.bytes[start as usize..self.position]
    }

    fn available(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The next `n` bytes; `what` they are, for the error.
    pub fn take(&mut self, what: &'static str, n: u64) -> Result<&'a [u8], Fault> {
        if n > self.available() {
            return Err(self.fault(ErrorKind::Truncated {
                what,
                needed: n,
                available: self.available(),
            }));
        }
        let start = self.position;
        self.position += n as usize;
        Ok(&self.bytes[start..self.position])
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut field = [0; N];
        field.copy_from_slice(self.take(what, N as u64)?);
        Ok(field)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length as u64, then its bytes.
    pub fn string(&mut self, what: &'static str) -> Result<&'a [u8], Fault> {
        let len = self.u64("a string's length")?;
        self.take(what, len)
    }

    /// Checks that `count` things of at least `min_bytes` each fit in what is left of the file.
    pub fn check_count(&self, what: &'static str, count: u64, min_bytes: u64) -> Result<(), Fault> {
        let most = self.available() / min_bytes;
        if count > most {
            return Err(self.fault(ErrorKind::Count { what, count, most }));
        }
        Ok(())
    }

    /// An error at the present position.
    pub fn fault(&self, kind: ErrorKind) -> Fault {
        Fault {
            offset: self.offset(),
            kind,
        }
    }
}
