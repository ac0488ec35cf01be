//! The four rings of an AF_XDP socket: single producer, single consumer, shared with the kernel
//! (Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h).
//!
//! Indexes run freely through 32 bits and are masked on access. Each side keeps its own index and
//! a copy of the other's, and looks at shared memory only when the copy does not suffice.

#![expect(unsafe_code, reason = "rings are memory shared with the kernel")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// What may stand in a ring: plain numbers, valid whatever their bits are.
pub(super) trait Entry: Copy {}
impl Entry for u64 {}
impl Entry for libc::xdp_desc {}

/// One mapped ring.
#[derive(Debug)]
struct Ring<T> {
    map: NonNull<c_void>,
    map_len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
}

// SAFETY: the mapping belongs to this value, and T is plain data.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps the ring of `size` entries (a power of two) that a socket has at `page_offset`.
    fn map(
        fd: BorrowedFd<'_>,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Ring<T>> {
        let (desc, entry) = (offsets.desc as usize, size_of::<T>());
        let map_len = desc + size as usize * entry;
        let indexes = [offsets.producer, offsets.consumer, offsets.flags];
        let fits = indexes.iter().all(|&at| at as usize + 4 <= map_len && at % 4 == 0);
        if !fits || desc % align_of::<T>() != 0 || !size.is_power_of_two() {
            return Err(io::Error::other("the kernel's ring layout is not understood"));
        }
        // SAFETY: a new mapping at an address the kernel chooses.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                page_offset,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `at` is inside the mapping: checked above for the indexes, by the length for the
        // entries.
        let at = |at: u64| unsafe { map.byte_add(at as usize) };
        Ok(Ring {
            map,
            map_len,
            producer: at(offsets.producer).cast(),
            consumer: at(offsets.consumer).cast(),
            flags: at(offsets.flags).cast(),
            entries: at(offsets.desc).cast(),
            size,
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: in the mapping and aligned (see map); the kernel uses it atomically too.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: masked, so below `size`, and the mapping has `size` entries.
        unsafe { self.entries.add((index & (self.size - 1)) as usize).as_ptr() }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, once.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}

/// A ring we fill: the fill ring and the TX ring.
#[derive(Debug)]
pub(super) struct Producer<T: Entry> {
    ring: Ring<T>,
    /// Next entry we write; the kernel sees it after `submit`.
    next: u32,
    /// The kernel's index when last looked at.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// Maps a ring that nobody has used yet; see [`Ring::map`].
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Producer<T>> {
        let ring = Ring::map(fd, page_offset, offsets, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Ok(Producer { ring, next, consumed })
    }

    /// Writes one entry, to be seen after the next [`submit`](Self::submit). `false`: the ring is
    /// full and nothing was written.
    #[inline]
    pub(super) fn push(&mut self, entry: T) -> bool {
        if self.next.wrapping_sub(self.consumed) >= self.ring.size {
            self.consumed = self.ring.consumer().load(Ordering::Acquire);
            if self.next.wrapping_sub(self.consumed) >= self.ring.size {
                return false;
            }
        }
        // SAFETY: in the mapping. Between the kernel's index and ours plus its size nobody else
        // reads or writes (net/xdp/xsk_queue.h, the comment on barriers).
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Entries that could be written now.
    #[inline]
    pub(super) fn room(&mut self) -> u32 {
        self.ring.size - self.pending()
    }

    /// Shows the kernel everything pushed so far.
    #[inline]
    pub(super) fn submit(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Entries that the kernel has not taken yet.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed)
    }

    /// Whether the kernel asks to be woken (XDP_RING_NEED_WAKEUP).
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring the kernel fills: the RX ring and the completion ring.
#[derive(Debug)]
pub(super) struct Consumer<T: Entry> {
    ring: Ring<T>,
    /// Next entry we read; the kernel sees it after `release`.
    next: u32,
    /// The kernel's index when last looked at.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// Maps a ring that nobody has used yet; see [`Ring::map`].
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Consumer<T>> {
        let ring = Ring::map(fd, page_offset, offsets, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let produced = ring.producer().load(Ordering::Acquire);
        Ok(Consumer { ring, next, produced })
    }

    /// The next entry. `None`: there is none.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: in the mapping, written by the kernel before it moved its index (Acquire above),
        // and valid whatever the bits are.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Whether there is nothing to pop now.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.ring.producer().load(Ordering::Relaxed)
    }

    /// Gives the kernel the room of everything popped so far.
    #[inline]
    pub(super) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}
