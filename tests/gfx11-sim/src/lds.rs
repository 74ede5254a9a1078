//! The local data share of one workgroup: its bytes, which of them were written, and who touched them since the last
//! barrier.

use crate::fault::{Exec, FaultKind, Trap};

pub(crate) struct Lds {
    bytes: Vec<u8>,
    /// A bit a byte. Empty: not tracked.
    written: Vec<u64>,
    /// Empty: not tracked.
    touched: Vec<Touch>,
}

/// What happened to a byte since barrier number `since`.
#[derive(Clone, Copy, Default)]
struct Touch {
    since: u32,
    /// One more than the wave that wrote last; 0 for none.
    writer: u8,
    /// That write was an atomic.
    atomic: bool,
    /// A bit for each wave that read.
    readers: u32,
}

/// Who accesses, and how.
#[derive(Clone, Copy)]
pub(crate) struct By {
    pub wave: u32,
    /// Barriers that the wave has passed.
    pub barriers: u32,
    pub lane: usize,
    pub access: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Atomic,
}

impl Lds {
    pub fn new(len: usize, track_writes: bool, track_races: bool) -> Self {
        let written = if track_writes {
            vec![0; len.div_ceil(64)]
        } else {
            Vec::new()
        };
        let touched = if track_races {
            vec![Touch::default(); len]
        } else {
            Vec::new()
        };
        Self {
            bytes: vec![0; len],
            written,
            touched,
        }
    }

    /// As new: for the next workgroup.
    pub fn clear(&mut self) {
        self.bytes.fill(0xff);
        self.written.fill(0);
        self.touched.fill(Touch::default());
    }

    /// Checks an access of `len` bytes and notes it.
    #[inline(always)]
    pub fn check(&mut self, at: u32, len: u32, by: By) -> Exec<usize> {
        let write = by.access != Kind::Read;
        let size = self.bytes.len() as u32;
        if at > size || len > size - at {
            let kind = FaultKind::LdsOutOfRange {
                write,
                bytes: len,
                lds: size,
            };
            return Err(Trap::at(kind, by.lane, at.into()));
        }
        if !self.written.is_empty() || !self.touched.is_empty() {
            self.track(at, len, by)?;
        }
        Ok(at as usize)
    }

    #[inline(never)]
    fn track(&mut self, at: u32, len: u32, by: By) -> Exec {
        let range = at as usize..(at + len) as usize;
        if !self.written.is_empty() {
            for byte in range.clone() {
                let bit = 1u64 << (byte % 64);
                if by.access != Kind::Write && self.written[byte / 64] & bit == 0 {
                    return Err(Trap::at(
                        FaultKind::UnwrittenLds { bytes: len },
                        by.lane,
                        at.into(),
                    ));
                }
                if by.access != Kind::Read {
                    self.written[byte / 64] |= bit;
                }
            }
        }
        if self.touched.is_empty() {
            return Ok(());
        }
        for touch in &mut self.touched[range] {
            if touch.since != by.barriers {
                *touch = Touch {
                    since: by.barriers,
                    ..Touch::default()
                };
            }
            let me = by.wave as u8 + 1;
            let wrote = touch.writer != 0 && touch.writer != me;
            // Atomics on the same byte order themselves.
            if wrote && !(touch.atomic && by.access == Kind::Atomic) {
                let kind = FaultKind::LdsRace {
                    other: u32::from(touch.writer) - 1,
                    other_writes: true,
                };
                return Err(Trap::at(kind, by.lane, at.into()));
            }
            let others = touch.readers & !(1 << by.wave);
            if by.access != Kind::Read && others != 0 {
                let kind = FaultKind::LdsRace {
                    other: others.trailing_zeros(),
                    other_writes: false,
                };
                return Err(Trap::at(kind, by.lane, at.into()));
            }
            match by.access {
                Kind::Read => touch.readers |= 1 << by.wave,
                access => (touch.writer, touch.atomic) = (me, access == Kind::Atomic),
            }
        }
        Ok(())
    }

    /// Four bytes at a checked place.
    #[inline(always)]
    pub fn load_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// One or two bytes.
    #[inline(always)]
    pub fn load_narrow(&self, at: usize, len: u8) -> u32 {
        if len == 1 {
            self.bytes[at].into()
        } else {
            u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).into()
        }
    }

    #[inline(always)]
    pub fn store_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[inline(always)]
    pub fn store_narrow(&mut self, at: usize, len: u8, value: u32) {
        self.bytes[at..at + usize::from(len)]
            .copy_from_slice(&value.to_le_bytes()[..usize::from(len)]);
    }
}
