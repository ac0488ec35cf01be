//! Heartbeats: time stamps by which userspace threads show the XDP program that they are alive.
//!
//! The time stamps are in a BPF array that is mapped into memory ([`xdp_prog::Heartbeats`]), so
//! updating one is a single store. `worker/liveness.rs` and `xdp-prog` determine when they are
//! updated and what happens when they are too old.

#![expect(unsafe_code, reason = "maps the memory of a BPF array")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xdp_prog::QUEUES_MAX;

/// Whether a heartbeat is set and at most `timeout_ns` old at `now_ns`. A thread that reads a valid
/// one sees everything that was written before it.
#[inline]
pub fn is_fresh(word: &AtomicU64, now_ns: u64, timeout_ns: u64) -> bool {
    let beat_ns = word.load(Ordering::Acquire);
    beat_ns != 0 && now_ns.saturating_sub(beat_ns) <= timeout_ns
}

/// The mapped array; unmapped when the last holder is dropped.
#[derive(Debug)]
pub struct HeartbeatPage {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value and is only read and written as atomic words.
unsafe impl Send for HeartbeatPage {}
// SAFETY: as above.
unsafe impl Sync for HeartbeatPage {}

impl HeartbeatPage {
    const LEN: usize = size_of::<xdp_prog::Heartbeats>();

    /// Maps a BPF array that was created with BPF_F_MMAPABLE and holds one
    /// [`xdp_prog::Heartbeats`].
    ///
    /// # Errors
    /// Errors of mmap(2): EINVAL for a smaller map, or one that cannot be mapped.
    pub fn map(array: BorrowedFd<'_>) -> io::Result<Arc<HeartbeatPage>> {
        HeartbeatPage::map_by(libc::MAP_SHARED, array.as_raw_fd())
    }

    /// Allocates memory that no BPF program reads, for drivers without a kernel and for tests.
    ///
    /// # Errors
    /// Errors of mmap(2), mostly ENOMEM.
    pub fn anonymous() -> io::Result<Arc<HeartbeatPage>> {
        HeartbeatPage::map_by(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn map_by(flags: libc::c_int, fd: libc::c_int) -> io::Result<Arc<HeartbeatPage>> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: requests a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), Self::LEN, access, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(HeartbeatPage { base }))
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + size_of::<u64>() <= Self::LEN && offset.is_multiple_of(8));
        // SAFETY: inside the mapping, which is page-aligned and lives as long as `self`; the
        // offsets are those of aligned words. All accesses in this process are atomic, and the BPF
        // program accesses whole words.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast::<u64>()) }
    }

    /// The control thread's heartbeat: CLOCK_MONOTONIC in nanoseconds, 0 for none.
    pub fn control(&self) -> &AtomicU64 {
        self.word(offset_of!(xdp_prog::Heartbeats, control))
    }

    /// The heartbeat of the worker that serves an RX queue; `None` beyond [`QUEUES_MAX`].
    pub fn queue(&self, queue: usize) -> Option<&AtomicU64> {
        let queues = offset_of!(xdp_prog::Heartbeats, queues);
        let at = queues + queue * size_of::<xdp_prog::Heartbeat>();
        (queue < QUEUES_MAX).then(|| self.word(at))
    }

    /// Sets the control thread's heartbeat. A worker that reads it sees everything written before
    /// it.
    pub fn beat_control(&self, now_ns: u64) {
        self.control().store(now_ns, Ordering::Release);
    }
}

impl Drop for HeartbeatPage {
    fn drop(&mut self) {
        // SAFETY: the mapping created in `map_by`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_its_own_word_up_to_the_maximum() {
        let page = HeartbeatPage::anonymous().expect("memory");
        page.beat_control(1);
        for queue in 0..QUEUES_MAX {
            page.queue(queue).expect("a queue").store(queue as u64 + 2, Ordering::Relaxed);
        }
        assert_eq!(page.control().load(Ordering::Relaxed), 1);
        let words =
            (0..QUEUES_MAX).map(|queue| page.queue(queue).map(|w| w.load(Ordering::Relaxed)));
        assert!(words.enumerate().all(|(queue, word)| word == Some(queue as u64 + 2)));
        assert!(page.queue(QUEUES_MAX).is_none());
    }
}
