//! The local data share of one workgroup: its bytes, which of them were written, and who touched them since the last
//! barrier.

use crate::fault::{Exec, FaultKind, Trap};

pub(crate) struct Lds {
    bytes: Vec<u8>,
    /// For each dword a bit for each of its bytes that was written. Empty: not tracked.
    written: Vec<u8>,
    races: Option<Races>,
}

/// Who touched what since the last barrier: dwords as long as they are touched as a whole, then their bytes.
struct Races {
    dwords: Vec<Touch>,
    /// Of dwords that are split.
    bytes: Vec<Touch>,
    /// Barriers of all workgroups that this was used for before, so that nothing of theirs is taken for this one's.
    before: u32,
    /// The most barriers of this one.
    most: u32,
}

/// What happened to a dword or a byte since barrier number `since`.
#[derive(Clone, Copy, Default)]
struct Touch {
    since: u32,
    /// A bit for each wave that read.
    readers: u32,
    /// One more than the wave that wrote last; 0 for none.
    writer: u8,
    /// That write was an atomic.
    atomic: bool,
    /// A dword: its bytes say more.
    split: bool,
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
        let dwords = len.div_ceil(4);
        Self {
            bytes: vec![0; len],
            written: vec![0; if track_writes { dwords } else { 0 }],
            races: track_races.then(|| Races {
                dwords: vec![Touch::default(); dwords],
                bytes: vec![Touch::default(); 4 * dwords],
                before: 1,
                most: 0,
            }),
        }
    }

    /// As new: for the next workgroup.
    pub fn clear(&mut self) {
        self.bytes.fill(0xff);
        self.written.fill(0);
        if let Some(races) = &mut self.races {
            match races.before.checked_add(races.most + 1) {
                Some(before) => races.before = before,
                None => {
                    races.dwords.fill(Touch::default());
                    races.before = 1;
                }
            }
            races.most = 0;
        }
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
        if !self.written.is_empty() || self.races.is_some() {
            self.track(at, len, by)?;
        }
        Ok(at as usize)
    }

    #[inline(never)]
    fn track(&mut self, at: u32, len: u32, by: By) -> Exec {
        if at.is_multiple_of(4) && len.is_multiple_of(4) {
            return self.track_dwords(at, len, by);
        }
        self.track_bytes(at, len, by)
    }

    /// Nearly every access is of whole dwords.
    #[inline(always)]
    fn track_dwords(&mut self, at: u32, len: u32, by: By) -> Exec {
        let trap = |kind| Trap::at(kind, by.lane, at.into());
        let dwords = (at / 4) as usize..((at + len) / 4) as usize;
        if !self.written.is_empty() {
            let written = &mut self.written[dwords.clone()];
            if by.access != Kind::Write && written.iter().any(|&bits| bits != 0xf) {
                return Err(trap(FaultKind::UnwrittenLds { bytes: len }));
            }
            if by.access != Kind::Read {
                written.fill(0xf);
            }
        }
        if let Some(races) = &mut self.races {
            races.most = races.most.max(by.barriers);
            let since = races.before + by.barriers;
            for (touch, dword) in races.dwords[dwords.clone()].iter_mut().zip(dwords) {
                if touch.since == since && touch.split {
                    let mut bytes = races.bytes[4 * dword..4 * dword + 4].iter_mut();
                    bytes.try_for_each(|byte| byte.note(by)).map_err(trap)?;
                    continue;
                }
                if touch.since != since {
                    *touch = Touch {
                        since,
                        ..Touch::default()
                    };
                }
                touch.note(by).map_err(trap)?;
            }
        }
        Ok(())
    }

    fn track_bytes(&mut self, at: u32, len: u32, by: By) -> Exec {
        let trap = |kind| Trap::at(kind, by.lane, at.into());
        for dword in (at / 4) as usize..(at + len).div_ceil(4) as usize {
            let first = (4 * dword as u32).max(at) - 4 * dword as u32;
            let last = (4 * dword as u32 + 4).min(at + len) - 4 * dword as u32;
            if let Some(written) = self.written.get_mut(dword) {
                let bits = (1u8 << last) - (1u8 << first);
                if by.access != Kind::Write && *written & bits != bits {
                    return Err(trap(FaultKind::UnwrittenLds { bytes: len }));
                }
                if by.access != Kind::Read {
                    *written |= bits;
                }
            }
            if let Some(races) = &mut self.races {
                races
                    .note(dword, first as usize..last as usize, by)
                    .map_err(trap)?;
            }
        }
        Ok(())
    }

    /// Four bytes at a checked place.
    #[inline(always)]
    pub fn load_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// Dwords at a checked place.
    #[inline(always)]
    pub fn load<const N: usize>(&self, at: usize) -> [u32; N] {
        let bytes = &self.bytes[at..at + 4 * N];
        std::array::from_fn(|i| u32::from_le_bytes([0, 1, 2, 3].map(|b| bytes[4 * i + b])))
    }

    /// Stores them.
    #[inline(always)]
    pub fn store<const N: usize>(&mut self, at: usize, values: [u32; N]) {
        let bytes = &mut self.bytes[at..at + 4 * N];
        for (chunk, value) in bytes.chunks_exact_mut(4).zip(values) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
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

impl Races {
    /// Notes an access of some bytes of a dword.
    fn note(
        &mut self,
        dword: usize,
        part: std::ops::Range<usize>,
        by: By,
    ) -> Result<(), FaultKind> {
        self.most = self.most.max(by.barriers);
        let since = self.before + by.barriers;
        let whole = &mut self.dwords[dword];
        if whole.since != since {
            *whole = Touch {
                since,
                ..Touch::default()
            };
        }
        if part.len() == 4 && !whole.split {
            return whole.note(by);
        }
        let bytes = &mut self.bytes[4 * dword..4 * dword + 4];
        if !whole.split {
            bytes.fill(*whole);
            whole.split = true;
        }
        bytes[part].iter_mut().try_for_each(|byte| byte.note(by))
    }
}

impl Touch {
    /// Notes an access, unless it races with one before it.
    #[inline(always)]
    fn note(&mut self, by: By) -> Result<(), FaultKind> {
        let me = by.wave as u8 + 1;
        // Atomics on the same byte order themselves.
        if self.writer != 0 && self.writer != me && !(self.atomic && by.access == Kind::Atomic) {
            return Err(FaultKind::LdsRace {
                other: u32::from(self.writer) - 1,
                other_writes: true,
            });
        }
        let others = self.readers & !(1 << by.wave);
        if by.access != Kind::Read && others != 0 {
            return Err(FaultKind::LdsRace {
                other: others.trailing_zeros(),
                other_writes: false,
            });
        }
        match by.access {
            Kind::Read => self.readers |= 1 << by.wave,
            access => (self.writer, self.atomic) = (me, access == Kind::Atomic),
        }
        Ok(())
    }
}
