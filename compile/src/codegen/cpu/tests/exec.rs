//! Makes generated code executable, for tests and benches on an x86-64 processor of the third level.

use kernels::abi::RegionFn;

/// A private mapping, executable and not writable.
pub struct Code {
    address: *mut libc::c_void,
    len: usize,
}

impl Code {
    pub fn new(bytes: &[u8]) -> Code {
        for feature in ["avx2", "fma", "bmi2"] {
            let has = match feature {
                "avx2" => is_x86_feature_detected!("avx2"),
                "fma" => is_x86_feature_detected!("fma"),
                _ => is_x86_feature_detected!("bmi2"),
            };
            assert!(has, "this processor lacks {feature}");
        }
        let len = bytes.len();
        // SAFETY: a new anonymous mapping of `len` bytes is written within its bounds, before it becomes executable.
        unsafe {
            let address = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(address, libc::MAP_FAILED, "mmap of {len} bytes");
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast::<u8>(), len);
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            assert_eq!(libc::mprotect(address, len, protection), 0, "mprotect");
            Code { address, len }
        }
    }

    /// The function at byte `offset`.
    pub fn function(&self, offset: usize) -> RegionFn {
        assert!(offset < self.len);
        // SAFETY: the caller compiled a region to these bytes; the mapping outlives the calls of each test.
        unsafe { std::mem::transmute(self.address.cast::<u8>().add(offset)) }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
