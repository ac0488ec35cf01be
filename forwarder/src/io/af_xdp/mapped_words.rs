//! A BPF array that is mapped into memory, as 32-bit words.

#![expect(unsafe_code, reason = "maps the memory of a BPF array")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::tables::epochs::SharedWords;

/// The mapped array; unmapped when it is dropped.
#[derive(Debug)]
pub struct MappedWords {
    base: NonNull<AtomicU32>,
    len: usize,
}

// SAFETY: the mapping belongs to this value and is only read and written as atomic words.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the first `len` words of a BPF array that was created with BPF_F_MMAPABLE.
    ///
    /// # Errors
    /// Errors of mmap(2): EINVAL for a smaller map, or one that cannot be mapped.
    pub fn map(array: BorrowedFd<'_>, len: usize) -> io::Result<MappedWords> {
        MappedWords::map_by(libc::MAP_SHARED, array.as_raw_fd(), len)
    }

    /// Allocates memory that no BPF program reads, for tests.
    ///
    /// # Errors
    /// Errors of mmap(2), mostly ENOMEM.
    pub fn anonymous(len: usize) -> io::Result<MappedWords> {
        MappedWords::map_by(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, len)
    }

    fn map_by(flags: libc::c_int, fd: libc::c_int, len: usize) -> io::Result<MappedWords> {
        let octets = len.checked_mul(size_of::<AtomicU32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: requests a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), octets, access, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<AtomicU32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(MappedWords { base, len })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has `len` words, is page-aligned, and lives as long as `self`. All accesses in this
        // process are atomic, and BPF programs access whole words.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Two words as one of 64 bits; `None` if `at`, the position of the first, is odd or outside.
    pub fn long(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(2) || at + 1 >= self.len {
            return None;
        }
        // SAFETY: inside the mapping, which is page-aligned, at a multiple of eight octets; it lives as long as
        // `self`. Words that are accessed by this function are not accessed as single words at the same time, and BPF
        // programs access them as a whole.
        Some(unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast::<u64>()) })
    }
}

impl SharedWords for MappedWords {
    fn words(&self) -> &[AtomicU32] {
        MappedWords::words(self)
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping created in `map_by`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<AtomicU32>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn words_are_zero_at_first_and_keep_what_is_stored() {
        let mapped = MappedWords::anonymous(5000).expect("memory");
        assert!(mapped.words().len() == 5000 && mapped.words()[4999].load(Relaxed) == 0);
        mapped.words()[4999].store(7, Relaxed);
        assert_eq!(mapped.words()[4999].load(Relaxed), 7);
        assert_eq!(mapped.long(4998).expect("inside").load(Relaxed), 7 << 32);
        assert!(mapped.long(4999).is_none() && mapped.long(5000).is_none());
    }
}
