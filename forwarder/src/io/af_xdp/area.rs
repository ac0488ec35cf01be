//! The packet memory of a worker, which each of its sockets registers with the kernel (UMEM).

#![expect(unsafe_code, reason = "maps and unmaps the packet memory")]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::skb::{FRAME_SIZE, FramePool, Umem};

/// An anonymous mapping of whole frames; unmapped when the last holder is dropped. The kernel pins
/// registered pages, so unmapping never removes memory that it uses.
#[derive(Debug)]
pub(super) struct Area {
    base: NonNull<u8>,
    frames: u32,
}

// SAFETY: the mapping belongs to this value, which only returns its address; code that dereferences
// the address is responsible for it (see Umem::from_raw).
unsafe impl Send for Area {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Area {}

impl Area {
    /// Maps an area of `frames` frames and creates their pool.
    ///
    /// # Errors
    /// Errors of mmap(2), mostly ENOMEM.
    pub(super) fn map(frames: u32) -> io::Result<(Arc<Area>, FramePool)> {
        let len = frames as usize * FRAME_SIZE;
        // SAFETY: requests new memory at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTFORK] {
            // Advice only. Huge pages reduce TLB misses; and without MADV_DONTFORK a child process
            // would make the kernel copy every pinned page.
            // SAFETY: exactly the mapping created above.
            unsafe { libc::madvise(base, len, advice) };
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let area = Arc::new(Area { base, frames });
        // SAFETY: mmap returns zeroed, page-aligned memory of this length, and the keeper keeps it
        // mapped. Only tokens create references to it; the kernel is given frames only by `Slots`,
        // which keeps their tokens until the frames are returned.
        let umem = unsafe { Umem::from_raw(base, frames, Box::new(Arc::clone(&area))) };
        Ok((area, umem.into_pool()))
    }

    /// Address of the first octet, for the kernel.
    pub(super) fn addr(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// The same address, for comparisons.
    pub(super) fn start(&self) -> NonZero<usize> {
        self.base.addr()
    }

    /// Length in octets.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.frames) * FRAME_SIZE as u64
    }

    /// Length in frames.
    pub(super) fn frames(&self) -> u32 {
        self.frames
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len() as usize) };
    }
}
