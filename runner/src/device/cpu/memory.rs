//! Anonymous memory of the CPU device: buffers, KV pools, and code.

use std::ptr::NonNull;

use crate::Error;

/// Private zeroed pages. The system commits each at its first use, so a large mapping costs nothing until then.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory; who reads and writes it when is up to its user, as with any raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes for `what`, page-aligned.
    ///
    /// # Errors
    /// [`Error::User`] where the system has not so much address space.
    pub fn new(len: u64, what: &str) -> Result<Self, Error> {
        let refuse = |reason: String| {
            Error::User(format!(
                "can't map {len} bytes for {what}: {reason}; give less memory to the KV cache or lift the memory limit"
            ))
        };
        if len == 0 {
            return Ok(Self {
                start: NonNull::dangling(),
                len: 0,
            });
        }
        let bytes = usize::try_from(len).map_err(|_| refuse("too large".into()))?;
        // SAFETY: a new anonymous mapping at an address of the system's choice touches no memory in use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(refuse(std::io::Error::last_os_error().to_string()));
        }
        let start = NonNull::new(start.cast())
            .ok_or_else(|| Error::Bug("mmap returned address 0".into()))?;
        Ok(Self { start, len: bytes })
    }

    /// The first byte; of no use where the mapping is empty.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: this is the range that `new` mapped, and its owner is gone.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

/// Machine code, executable and no longer writable.
#[derive(Debug)]
pub struct Code {
    mapping: Mapping,
}

impl Code {
    /// Copies `code` to private memory, has `check` look at that very copy, and makes it executable. No page is ever
    /// writable and executable at once, and none that becomes executable can change after the check.
    ///
    /// # Errors
    /// What `check` says, and [`Error::User`] where the system gives no executable memory.
    pub fn new(code: &[u8], check: impl FnOnce(&[u8]) -> Result<(), Error>) -> Result<Self, Error> {
        let mapping = Mapping::new(code.len() as u64, "code")?;
        // SAFETY: the mapping is new, `code.len()` bytes long, and nobody else knows it.
        let copy = unsafe { std::slice::from_raw_parts_mut(mapping.start(), code.len()) };
        copy.copy_from_slice(code);
        check(copy)?;
        if !code.is_empty() {
            // SAFETY: the range is the mapping's own; the slice above is not used any more.
            let failed = unsafe {
                libc::mprotect(
                    mapping.start().cast(),
                    mapping.len(),
                    libc::PROT_READ | libc::PROT_EXEC,
                )
            } != 0;
            if failed {
                return Err(Error::User(format!(
                    "the system refuses executable memory: {}; allow this process to map code (mprotect PROT_EXEC)",
                    std::io::Error::last_os_error()
                )));
            }
        }
        Ok(Self { mapping })
    }

    /// The address of the function at `offset`; none where it doesn't lie in the code.
    pub fn function(&self, offset: u64) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        (offset < self.mapping.len())
            .then(|| self.mapping.start().wrapping_add(offset).cast_const())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_zero_aligned_and_lazy() {
        // More than the machine has: only what is touched counts.
        let map = Mapping::new(1 << 40, "a test").unwrap();
        assert_eq!(map.start() as usize % 4096, 0);
        let last = map.start().wrapping_add(map.len() - 1);
        // SAFETY: inside the mapping.
        unsafe {
            assert_eq!((map.start().read(), last.read()), (0, 0));
            last.write(7);
            assert_eq!(last.read(), 7);
        }
        assert_eq!(Mapping::new(0, "nothing").unwrap().len(), 0);
        let error = Mapping::new(u64::MAX, "the KV pools").unwrap_err();
        assert!(error.to_string().contains("the KV pools"), "{error}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn code_runs() {
        // lea rax, [rdi + 1]; ret
        let bytes = [0x48, 0x8d, 0x47, 0x01, 0xc3];
        let code = Code::new(&bytes, |copy| {
            assert_eq!(copy, bytes);
            Ok(())
        })
        .unwrap();
        let address = code.function(0).unwrap();
        // SAFETY: the bytes are a function of this signature.
        let increment: extern "C" fn(u64) -> u64 = unsafe { std::mem::transmute(address) };
        assert_eq!(increment(41), 42);
        assert!(code.function(5).is_none());
    }

    #[test]
    fn code_that_fails_its_check_is_not_made_executable() {
        let error = Code::new(&[0xc3], |_| Err(Error::User("wrong hash".into()))).unwrap_err();
        assert_eq!(error.to_string(), "wrong hash");
    }
}
