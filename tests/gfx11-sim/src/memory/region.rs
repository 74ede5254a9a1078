//! One allocation: host memory behind a range of device addresses. Waves of different workgroups run on different host
//! threads and may touch the same bytes, so every access is atomic: relaxed for plain loads and stores, which cost the
//! same as ordinary ones on the hosts that this runs on.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// What kernels may do with an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Code, constants, arguments.
    Read,
    /// Everything else.
    ReadWrite,
}

pub(crate) struct Region {
    pub base: u64,
    pub len: u64,
    pub access: Access,
    pub name: &'static str,
    host: NonNull<u8>,
    /// None: memory of the host's.
    layout: Option<Layout>,
    /// A byte for each dword, a bit for each byte that was written. None: everything counts as written.
    written: Option<Box<[AtomicU8]>>,
    /// All of it was written at once, so `written` needs no look.
    complete: AtomicBool,
}

// SAFETY: `host` is memory that the region owns, or that the caller of `borrowed` lends for the region's life, and it is
// accessed through atomics only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: `owned` allocated it with this layout.
            unsafe { dealloc(self.host.as_ptr(), layout) }
        }
    }
}

impl Region {
    /// Zeroed memory that counts as unwritten.
    pub fn owned(base: u64, len: u64, access: Access, name: &'static str, track: bool) -> Self {
        // Whole dwords plus one: an unaligned access inside the region never leaves its host memory.
        let bytes = usize::try_from(len.next_multiple_of(4) + 4)
            .expect("an allocation fits the host's addresses");
        let layout = Layout::from_size_align(bytes, 256).expect("a size below isize::MAX");
        // SAFETY: the size is not zero.
        let host = unsafe { alloc_zeroed(layout) };
        let Some(host) = NonNull::new(host) else {
            handle_alloc_error(layout)
        };
        let written = track.then(|| (0..bytes / 4).map(|_| AtomicU8::new(0)).collect());
        Self {
            base,
            len,
            access,
            name,
            host,
            layout: Some(layout),
            written,
            complete: AtomicBool::new(!track),
        }
    }

    /// Memory of the host at its own address, which counts as written.
    ///
    /// # Safety
    ///
    /// `ptr` points to `len` bytes that outlive the region and that nobody else accesses other than atomically while a
    /// launch does.
    pub unsafe fn borrowed(ptr: *mut u8, len: u64) -> Self {
        let host = NonNull::new(ptr).expect("memory of the host is not null");
        let base = ptr as u64;
        let complete = AtomicBool::new(true);
        Self {
            base,
            len,
            access: Access::ReadWrite,
            name: "host memory",
            host,
            layout: None,
            written: None,
            complete,
        }
    }

    #[inline(always)]
    pub fn holds(&self, address: u64, len: u64) -> bool {
        address >= self.base
            && address - self.base <= self.len
            && len <= self.len - (address - self.base)
    }

    #[inline(always)]
    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "a bug of the simulator: access outside a region"
        );
        // SAFETY: the offset was just checked to be inside the allocation.
        unsafe { self.host.as_ptr().add(offset as usize) }
    }

    /// Loads 4 bytes at any alignment. `offset + 4` must be inside.
    #[inline(always)]
    pub fn load_u32(&self, offset: u64) -> u32 {
        let p = self.at(offset, 4);
        if p.addr().is_multiple_of(4) {
            // SAFETY: inside the region (`at`), aligned, and accessed atomically everywhere.
            return unsafe { AtomicU32::from_ptr(p.cast()) }.load(Relaxed);
        }
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.load_u8(offset + i)))
    }

    /// `N` dwords at an aligned offset; None when it isn't aligned.
    #[inline(always)]
    pub fn dwords<const N: usize>(&self, offset: u64) -> Option<&[AtomicU32; N]> {
        let p = self.at(offset, 4 * N as u64);
        // SAFETY: inside the region, aligned when it is used, and it lives as long as `self`.
        p.addr()
            .is_multiple_of(4)
            .then(|| unsafe { &*p.cast::<[AtomicU32; N]>() })
    }

    /// Loads `N` dwords at any alignment.
    #[inline(always)]
    pub fn load<const N: usize>(&self, offset: u64) -> [u32; N] {
        match self.dwords::<N>(offset) {
            Some(dwords) => std::array::from_fn(|i| dwords[i].load(Relaxed)),
            None => std::array::from_fn(|i| self.load_u32(offset + 4 * i as u64)),
        }
    }

    /// Stores `N` dwords at any alignment.
    #[inline(always)]
    pub fn store<const N: usize>(&self, offset: u64, values: [u32; N]) {
        match self.dwords::<N>(offset) {
            Some(dwords) => {
                for (dword, value) in dwords.iter().zip(values) {
                    dword.store(value, Relaxed);
                }
            }
            None => {
                for (i, value) in values.into_iter().enumerate() {
                    self.store_u32(offset + 4 * i as u64, value);
                }
            }
        }
    }

    /// Loads 2 bytes at any alignment.
    #[inline(always)]
    pub fn load_u16(&self, offset: u64) -> u16 {
        let p = self.at(offset, 2);
        if p.addr().is_multiple_of(2) {
            // SAFETY: as in `load_u32`.
            return unsafe { AtomicU16::from_ptr(p.cast()) }.load(Relaxed);
        }
        u16::from_le_bytes([0, 1].map(|i| self.load_u8(offset + i)))
    }

    /// Loads a byte.
    #[inline(always)]
    pub fn load_u8(&self, offset: u64) -> u8 {
        // SAFETY: inside the region (`at`); bytes are always aligned.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }.load(Relaxed)
    }

    /// Stores 4 bytes at any alignment.
    #[inline(always)]
    pub fn store_u32(&self, offset: u64, value: u32) {
        let p = self.at(offset, 4);
        if p.addr().is_multiple_of(4) {
            // SAFETY: as in `load_u32`.
            return unsafe { AtomicU32::from_ptr(p.cast()) }.store(value, Relaxed);
        }
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.store_u8(offset + i as u64, byte);
        }
    }

    /// Stores 2 bytes at any alignment.
    #[inline(always)]
    pub fn store_u16(&self, offset: u64, value: u16) {
        let p = self.at(offset, 2);
        if p.addr().is_multiple_of(2) {
            // SAFETY: as in `load_u32`.
            return unsafe { AtomicU16::from_ptr(p.cast()) }.store(value, Relaxed);
        }
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.store_u8(offset + i as u64, byte);
        }
    }

    /// Stores a byte.
    #[inline(always)]
    pub fn store_u8(&self, offset: u64, value: u8) {
        // SAFETY: as in `load_u8`.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }.store(value, Relaxed)
    }

    /// The dword at an aligned offset, for atomics; None when it isn't aligned.
    pub fn atomic_u32(&self, offset: u64) -> Option<&AtomicU32> {
        let p = self.at(offset, 4);
        // SAFETY: inside the region, aligned when it is used, and it lives as long as `self`.
        p.addr()
            .is_multiple_of(4)
            .then(|| unsafe { AtomicU32::from_ptr(p.cast()) })
    }

    /// The 8 bytes at an aligned offset, for atomics.
    pub fn atomic_u64(&self, offset: u64) -> Option<&AtomicU64> {
        let p = self.at(offset, 8);
        // SAFETY: as in `atomic_u32`.
        p.addr()
            .is_multiple_of(8)
            .then(|| unsafe { AtomicU64::from_ptr(p.cast()) })
    }

    /// Whether all these bytes were written.
    #[inline(always)]
    pub fn is_written(&self, offset: u64, len: u64) -> bool {
        match &self.written {
            Some(written) if !self.complete.load(Relaxed) => {
                if offset.is_multiple_of(4) && len.is_multiple_of(4) {
                    let first = (offset / 4) as usize;
                    let dwords = &written[first..first + (len / 4) as usize];
                    return dwords.iter().all(|bytes| bytes.load(Relaxed) == 15);
                }
                (offset..offset + len)
                    .all(|o| written[(o / 4) as usize].load(Relaxed) >> (o % 4) & 1 != 0)
            }
            _ => true,
        }
    }

    /// Notes that these bytes were written.
    #[inline(always)]
    pub fn mark_written(&self, offset: u64, len: u64) {
        let Some(written) = &self.written else { return };
        if self.complete.load(Relaxed) {
            return;
        }
        if offset.is_multiple_of(4) && len.is_multiple_of(4) {
            let first = (offset / 4) as usize;
            for bytes in &written[first..first + (len / 4) as usize] {
                bytes.store(15, Relaxed);
            }
            return;
        }
        let mut o = offset;
        while o < offset + len {
            if o.is_multiple_of(4) && o + 4 <= offset + len {
                written[(o / 4) as usize].store(15, Relaxed);
                o += 4;
            } else {
                written[(o / 4) as usize].fetch_or(1 << (o % 4), Relaxed);
                o += 1;
            }
        }
    }

    /// Forgets that these bytes were written.
    pub fn mark_unwritten(&self, offset: u64, len: u64) {
        let Some(written) = &self.written else { return };
        if self.complete.swap(false, Relaxed) {
            for byte in written.iter() {
                byte.store(15, Relaxed);
            }
        }
        for o in offset..offset + len {
            written[(o / 4) as usize].fetch_and(!(1 << (o % 4)), Relaxed);
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut chunks = into.chunks_exact_mut(4);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.load_u32(at).to_le_bytes());
            at += 4;
        }
        for byte in chunks.into_remainder() {
            *byte = self.load_u8(at);
            at += 1;
        }
    }

    /// Copies bytes in, and notes that they were written.
    pub fn write(&self, offset: u64, from: &[u8]) {
        let chunks = from.chunks_exact(4);
        let tail = chunks.remainder();
        let mut at = offset;
        for chunk in chunks {
            self.store_u32(
                at,
                u32::from_le_bytes(chunk.try_into().expect("chunks of four")),
            );
            at += 4;
        }
        for &byte in tail {
            self.store_u8(at, byte);
            at += 1;
        }
        self.note_written(offset, from.len() as u64);
    }

    /// Sets bytes, and notes that they were written.
    pub fn fill(&self, offset: u64, value: u8, len: u64) {
        let word = u32::from_le_bytes([value; 4]);
        let whole = len / 4 * 4;
        for at in (offset..offset + whole).step_by(4) {
            self.store_u32(at, word);
        }
        for at in offset + whole..offset + len {
            self.store_u8(at, value);
        }
        self.note_written(offset, len);
    }

    fn note_written(&self, offset: u64, len: u64) {
        if offset == 0 && len == self.len {
            self.complete.store(true, Relaxed);
        } else {
            self.mark_written(offset, len);
        }
    }
}
