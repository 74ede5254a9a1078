//! Global memory: allocations in an address space of their own, with gaps between them, so that an access one byte
//! beyond an allocation hits nothing.

mod region;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

pub use region::Access;
pub(crate) use region::Region;

/// Device memory. Clones are the same memory; it can be shared between threads. Kernels that run see the allocations
/// that existed when they were launched.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    regions: RwLock<Regions>,
    next: AtomicU64,
    track: bool,
}

/// Allocations in ascending order of their addresses.
pub(crate) type Regions = Arc<Vec<Arc<Region>>>;

/// Where allocations start: far from the host's own addresses and from the apertures of LDS and scratch.
const FIRST: u64 = 0x10_0000_0000;
const PAGE: u64 = 4096;

/// Why the host can't have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Bytes that no allocation has.
    #[error("{len} bytes at {address:#x} are not inside an allocation{}", nearest_text(.nearest))]
    OutOfBounds {
        /// First byte.
        address: u64,
        /// How many.
        len: u64,
        /// The closest allocation.
        nearest: Option<Nearest>,
    },
    /// Not the start of an allocation.
    #[error("{address:#x} is not the start of an allocation")]
    NotAllocated {
        /// What was to be freed.
        address: u64,
    },
}

/// An allocation close to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Its first byte.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is.
    pub name: String,
    /// Bytes from the address to its start (positive), or from its last byte to the address (negative); 0: it holds the address.
    pub distance: i64,
}

fn nearest_text(nearest: &Option<Nearest>) -> String {
    nearest.as_ref().map_or(String::new(), |n| format!("; {n}"))
}

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            base,
            len,
            name,
            distance,
        } = self;
        write!(f, "the nearest is {name} of {len} bytes at {base:#x}, ")?;
        match distance {
            0 => write!(f, "which holds its start"),
            n if *n > 0 => write!(f, "{n} bytes behind the address"),
            n => write!(f, "which ends {} bytes before the address", -n - 1),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty memory that knows which bytes were written (a quarter more host memory).
    pub fn new() -> Self {
        Self::with_tracking(true)
    }

    /// An empty memory; without `track`, reads of bytes that were never written are not noticed.
    pub fn with_tracking(track: bool) -> Self {
        let inner = Inner {
            regions: RwLock::default(),
            next: AtomicU64::new(FIRST),
            track,
        };
        Self(Arc::new(inner))
    }

    /// Allocates `len` bytes and gives their address, a multiple of 4096. Their contents count as unwritten.
    pub fn alloc(&self, len: u64) -> u64 {
        let base = self.reserve(len);
        self.insert(Region::owned(
            base,
            len,
            Access::ReadWrite,
            "allocation",
            self.0.track,
        ));
        base
    }

    /// Makes host memory visible to kernels at its own address, as pinned host memory is.
    ///
    /// # Safety
    ///
    /// `ptr` points to `len` bytes that live until `free` and until every launch that started before it has ended, and
    /// that the host doesn't touch while a launch does.
    pub unsafe fn map_host(&self, ptr: *mut u8, len: u64) -> u64 {
        // SAFETY: the caller's promise is that of `Region::borrowed`.
        let region = unsafe { Region::borrowed(ptr, len) };
        let base = region.base;
        self.insert(region);
        base
    }

    /// Frees what `alloc` or `map_host` gave.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut regions = self
            .0
            .regions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let at = regions
            .binary_search_by_key(&address, |r| r.base)
            .map_err(|_| MemoryError::NotAllocated { address })?;
        let mut list = regions.to_vec();
        list.remove(at);
        *regions = Arc::new(list);
        Ok(())
    }

    /// Copies bytes to the host.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let (region, offset) = self.find(address, into.len() as u64)?;
        region.read(offset, into);
        Ok(())
    }

    /// Copies bytes from the host.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let (region, offset) = self.find(address, from.len() as u64)?;
        region.write(offset, from);
        Ok(())
    }

    /// Sets `len` bytes.
    pub fn fill(&self, address: u64, value: u8, len: u64) -> Result<(), MemoryError> {
        let (region, offset) = self.find(address, len)?;
        region.fill(offset, value, len);
        Ok(())
    }

    /// Copies bytes between allocations, or inside one where they don't overlap.
    pub fn copy(&self, to: u64, from: u64, len: u64) -> Result<(), MemoryError> {
        let (target, target_offset) = self.find(to, len)?;
        let (source, source_offset) = self.find(from, len)?;
        let mut buffer = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(1 << 20) as usize;
            source.read(source_offset + done, &mut buffer[..now]);
            target.write(target_offset + done, &buffer[..now]);
            done += now as u64;
        }
        Ok(())
    }

    /// Base and length of the allocation that holds an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let regions = self.snapshot();
        let region = &regions[find(&regions, address)?];
        Some((region.base, region.len))
    }

    /// Forgets that a range was written, as if it were new.
    pub fn mark_unwritten(&self, address: u64, len: u64) -> Result<(), MemoryError> {
        let (region, offset) = self.find(address, len)?;
        region.mark_unwritten(offset, len);
        Ok(())
    }

    /// A range of addresses that nothing else gets.
    pub(crate) fn reserve(&self, len: u64) -> u64 {
        let room = len.max(1).next_multiple_of(PAGE) + PAGE;
        self.0.next.fetch_add(room, Ordering::Relaxed)
    }

    /// Puts bytes at an address of a reserved range.
    pub(crate) fn install(&self, address: u64, bytes: &[u8], access: Access, name: &'static str) {
        let region = Region::owned(address, bytes.len() as u64, access, name, self.0.track);
        region.write(0, bytes);
        self.insert(region);
    }

    pub(crate) fn snapshot(&self) -> Regions {
        Arc::clone(
            &self
                .0
                .regions
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn insert(&self, region: Region) {
        let mut regions = self
            .0
            .regions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let at = regions.partition_point(|r| r.base < region.base);
        let mut list = regions.to_vec();
        list.insert(at, Arc::new(region));
        *regions = Arc::new(list);
    }

    fn find(&self, address: u64, len: u64) -> Result<(Arc<Region>, u64), MemoryError> {
        let regions = self.snapshot();
        if let Some(at) = find(&regions, address)
            && regions[at].holds(address, len)
        {
            return Ok((Arc::clone(&regions[at]), address - regions[at].base));
        }
        Err(MemoryError::OutOfBounds {
            address,
            len,
            nearest: nearest(&regions, address),
        })
    }
}

/// The number of the region that holds an address.
pub(crate) fn find(regions: &[Arc<Region>], address: u64) -> Option<usize> {
    let at = regions
        .partition_point(|r| r.base <= address)
        .checked_sub(1)?;
    regions[at].holds(address, 1).then_some(at)
}

/// The region closest to an address.
pub(crate) fn nearest(regions: &[Arc<Region>], address: u64) -> Option<Nearest> {
    let distance = |r: &Region| match address {
        a if a < r.base => i64::try_from(r.base - a).unwrap_or(i64::MAX),
        a if a >= r.base + r.len => -i64::try_from(a - r.base - r.len + 1).unwrap_or(i64::MAX),
        _ => 0,
    };
    let before = regions.iter().rev().find(|r| r.base <= address);
    let after = regions.iter().find(|r| r.base > address);
    let region = before
        .into_iter()
        .chain(after)
        .min_by_key(|r| distance(r).unsigned_abs())?;
    Some(Nearest {
        base: region.base,
        len: region.len,
        name: region.name.into(),
        distance: distance(region),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_ends_are_checked() {
        let memory = Memory::new();
        let a = memory.alloc(10);
        let b = memory.alloc(4097);
        memory.write(a + 1, b"12345").unwrap();
        memory.fill(b, 7, 4097).unwrap();
        memory.copy(b + 3, a + 2, 3).unwrap();
        let mut bytes = [0; 7];
        memory.read(b, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\x07\x07\x07234\x07");
        assert!(memory.write(a + 8, b"123").is_err());
        assert!(memory.write(a - 1, b"1").is_err());
        let error = memory.read(a + 10, &mut [0]).unwrap_err();
        assert!(
            error.to_string().contains("which ends 0 bytes before"),
            "{error}"
        );
        memory.free(a).unwrap();
        assert!(memory.read(a, &mut [0]).is_err());
        assert_eq!(
            memory.free(a),
            Err(MemoryError::NotAllocated { address: a })
        );
    }
}
