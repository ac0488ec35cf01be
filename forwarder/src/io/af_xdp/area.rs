//! The memory that frames lie in and that every socket of a worker registers with the kernel.

#![expect(unsafe_code, reason = "maps and unmaps the packet memory")]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::skb::{FRAME_SIZE, FramePool, Umem};

/// An anonymous mapping of whole frames; unmapped when the last holder is gone. The kernel pins
/// the pages of what is registered with it, so unmapping never takes memory from under it.
#[derive(Debug)]
pub(super) struct Area {
    base: NonNull<u8>,
    frames: u32,
}

// SAFETY: the mapping belongs to this value; it hands out its address only, and who dereferences
// that answers for it (see Umem::from_raw).
unsafe impl Send for Area {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Area {}

impl Area {
    /// Maps an area of `frames` frames and makes their pool.
    ///
    /// # Errors
    /// What mmap(2) says, ENOMEM above all.
    pub(super) fn map(frames: u32) -> io::Result<(Arc<Area>, FramePool)> {
        let len = frames as usize * FRAME_SIZE;
        // SAFETY: asks for new memory at an address the kernel chooses.
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
            // Advice only. Fewer TLB misses where there are huge pages; and a child process would
            // otherwise make the kernel copy every pinned page.
            // SAFETY: exactly the mapping made above.
            unsafe { libc::madvise(base, len, advice) };
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let area = Arc::new(Area { base, frames });
        // SAFETY: mmap returns zeroed, page-aligned memory of this length, and the keeper holds it
        // mapped. Nobody makes references to it but the tokens; the kernel is given frames only by
        // `Slots`, which keeps their tokens until it has them back.
        let umem = unsafe { Umem::from_raw(base, frames, Box::new(Arc::clone(&area))) };
        Ok((area, umem.into_pool()))
    }

    /// Address of the first octet, by which the kernel writes.
    pub(super) fn addr(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// The same, to compare with.
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
