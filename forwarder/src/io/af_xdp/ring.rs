//! The four rings of an AF_XDP socket: single producer, single consumer, shared with the kernel
//! (Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h).
//!
//! Indexes are free-running 32-bit counters and are masked on access. Each side has its own index
//! and a cached copy of the other's, and reads shared memory only if the copy is insufficient.

#![expect(unsafe_code, reason = "rings are memory shared with the kernel")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A ring entry: plain numbers, valid for any bit pattern.
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
    /// Maps the ring of `size` entries (a power of two) at `page_offset` of a socket.
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
            return Err(io::Error::other("the kernel's ring layout is not supported"));
        }
        // SAFETY: a new mapping at an address that the kernel chooses.
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
        // SAFETY: `at` is inside the mapping: checked above for the indexes, ensured by the length
        // for the entries.
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
        // SAFETY: in the mapping and aligned (see map); the kernel accesses it atomically too.
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
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping created in `map`, unmapped once.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}

/// A ring that we fill: the fill ring or the TX ring.
#[derive(Debug)]
pub(super) struct Producer<T: Entry> {
    ring: Ring<T>,
    /// Next entry to write.
    next: u32,
    /// Cached copy of the kernel's index.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// Maps an unused ring; see [`Ring::map`].
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

    /// Room for up to `wanted` entries. The kernel sees the written entries when this is dropped.
    #[inline]
    #[must_use]
    pub(super) fn batch(&mut self, wanted: u32) -> Batch<'_, T> {
        let size = self.ring.size;
        let mut pending = self.next.wrapping_sub(self.consumed);
        if size.saturating_sub(pending) < wanted {
            pending = self.pending();
        }
        Batch {
            entries: self.ring.entries,
            mask: size - 1,
            next: self.next,
            end: self.next.wrapping_add(size.saturating_sub(pending).min(wanted)),
            producer: self,
        }
    }

    /// Number of free entries, at most `wanted`.
    #[inline]
    pub(super) fn room(&self, wanted: u32) -> u32 {
        let free = |consumed| self.ring.size.saturating_sub(self.next.wrapping_sub(consumed));
        if free(self.consumed) >= wanted {
            return wanted;
        }
        free(self.ring.consumer().load(Ordering::Acquire)).min(wanted)
    }

    /// Number of entries that the kernel does not show as taken yet.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed)
    }

    /// The entries that the kernel does not show as taken yet, oldest first.
    pub(super) fn untaken(&mut self) -> impl DoubleEndedIterator<Item = T> + '_ {
        let (size, next) = (self.ring.size, self.next);
        let count = self.pending().min(size);
        (0..count).map(move |n| {
            let at = next.wrapping_sub(count - n) & (size - 1);
            // SAFETY: masked, so in the mapping, which `self` keeps; written only by us.
            unsafe { self.ring.entries.add(at as usize).read() }
        })
    }

    /// Whether the kernel requests a wakeup (XDP_RING_NEED_WAKEUP).
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// Entries being written. Contains copies of the values that a loop needs, so that they can stay in
/// registers.
#[derive(Debug)]
pub(super) struct Batch<'a, T: Entry> {
    entries: NonNull<T>,
    mask: u32,
    next: u32,
    /// End of the room.
    end: u32,
    producer: &'a mut Producer<T>,
}

impl<T: Entry> Batch<'_, T> {
    /// Number of entries that still fit.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.end.wrapping_sub(self.next)
    }

    /// Number of entries written.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.next.wrapping_sub(self.producer.next)
    }

    /// Writes one entry. `false`: there was no room, and nothing was written.
    #[inline]
    pub(super) fn push(&mut self, entry: T) -> bool {
        if self.next == self.end {
            return false;
        }
        // SAFETY: masked, so in the mapping, which the producer keeps. Between the kernel's index
        // and ours plus the ring size nobody else reads or writes (net/xdp/xsk_queue.h, the comment
        // on barriers).
        unsafe { self.entries.add((self.next & self.mask) as usize).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }
}

impl<T: Entry> Drop for Batch<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.len() > 0 {
            self.producer.next = self.next;
            self.producer.ring.producer().store(self.next, Ordering::Release);
        }
    }
}

/// A ring that the kernel fills: the RX ring or the completion ring.
#[derive(Debug)]
pub(super) struct Consumer<T: Entry> {
    ring: Ring<T>,
    /// Next entry to read.
    next: u32,
    /// Cached copy of the kernel's index.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// Maps an unused ring; see [`Ring::map`].
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

    /// Up to `wanted` available entries, oldest first. The entries that were taken are returned to
    /// the kernel when this is dropped.
    #[inline]
    pub(super) fn take(&mut self, wanted: u32) -> Entries<'_, T> {
        let wanted = wanted.min(self.ring.size);
        if self.produced.wrapping_sub(self.next) < wanted {
            self.produced = self.ring.producer().load(Ordering::Acquire);
        }
        let ready = self.produced.wrapping_sub(self.next).min(wanted);
        Entries {
            entries: self.ring.entries,
            mask: self.ring.size - 1,
            next: self.next,
            end: self.next.wrapping_add(ready),
            consumer: self,
        }
    }

    /// Whether no entry is available.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.ring.producer().load(Ordering::Relaxed)
    }
}

/// Entries being read; holds copies for registers, as [`Batch`] does.
#[derive(Debug)]
pub(super) struct Entries<'a, T: Entry> {
    entries: NonNull<T>,
    mask: u32,
    next: u32,
    end: u32,
    consumer: &'a mut Consumer<T>,
}

impl<T: Entry> Iterator for Entries<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: masked, so in the mapping, which the consumer keeps; the kernel wrote it before
        // it moved its index (Acquire in `take`), and any bits are valid.
        let entry = unsafe { self.entries.add((self.next & self.mask) as usize).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.wrapping_sub(self.next) as usize;
        (left, Some(left))
    }
}

impl<T: Entry> ExactSizeIterator for Entries<'_, T> {}

impl<T: Entry> Drop for Entries<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.next != self.consumer.next {
            self.consumer.next = self.next;
            self.consumer.ring.consumer().store(self.next, Ordering::Release);
        }
    }
}

/// Rings for tests, which play the kernel.
#[cfg(test)]
pub(super) mod in_memory {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// A mapping of up to 200 entries in the kernel's layout, of private memory; both indexes are
    /// `start`.
    pub(super) fn ring<T: Entry>(start: u32, size: u32) -> Ring<T> {
        let offsets = libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 192, flags: 128 };
        let memory = memfd_create(c"ring", MFdFlags::empty()).expect("memory");
        nix::unistd::ftruncate(&memory, 4096).expect("a page");
        let ring = Ring::map(memory.as_fd(), 0, &offsets, size).expect("maps");
        ring.producer().store(start, Ordering::Relaxed);
        ring.consumer().store(start, Ordering::Relaxed);
        ring
    }

    pub(in super::super) fn producer<T: Entry>(start: u32, size: u32) -> Producer<T> {
        Producer { ring: ring(start, size), next: start, consumed: start }
    }

    pub(in super::super) fn consumer<T: Entry>(start: u32, size: u32) -> Consumer<T> {
        Consumer { ring: ring(start, size), next: start, produced: start }
    }

    impl<T: Entry> Producer<T> {
        /// The kernel takes the oldest `count` entries.
        pub(in super::super) fn taken_by_kernel(&self, count: u32) {
            self.ring.consumer().fetch_add(count, Ordering::Release);
        }
    }

    impl<T: Entry> Consumer<T> {
        /// The kernel appends an entry.
        pub(in super::super) fn given_by_kernel(&self, entry: T) {
            let at = self.ring.producer().load(Ordering::Relaxed);
            let mask = self.ring.size - 1;
            // SAFETY: masked, so in the mapping.
            unsafe { self.ring.entries.add((at & mask) as usize).write(entry) };
            self.ring.producer().store(at.wrapping_add(1), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 8;

    fn producer(start: u32) -> Producer<u64> {
        in_memory::producer(start, SIZE)
    }

    /// A consumer of a ring with these entries.
    fn consumer(start: u32, entries: std::ops::Range<u64>) -> Consumer<u64> {
        let mut filled = producer(start);
        let mut batch = filled.batch(SIZE);
        assert!(entries.clone().all(|entry| batch.push(entry)));
        drop(batch);
        Consumer { ring: filled.ring, next: start, produced: start }
    }

    #[test]
    fn entries_are_published_on_drop_and_read_in_order_across_index_wraparound() {
        for start in [0, 5, u32::MAX - 3] {
            let mut writer = producer(start);
            let mut batch = writer.batch(SIZE);
            assert!((0..6).all(|entry| batch.push(entry)));
            assert_eq!((batch.len(), batch.room()), (6, 2));
            assert_eq!(batch.producer.ring.producer().load(Ordering::Relaxed), start);
            drop(batch);
            assert_eq!(writer.ring.producer().load(Ordering::Relaxed), start.wrapping_add(6));
            assert_eq!(writer.pending(), 6);
            let mut reader = Consumer { ring: writer.ring, next: start, produced: start };
            assert_eq!(reader.take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
            assert_eq!(reader.ring.consumer().load(Ordering::Relaxed), start.wrapping_add(4));
            assert_eq!(reader.take(u32::MAX).collect::<Vec<_>>(), [4, 5]);
            assert!(reader.is_empty() && reader.take(1).next().is_none());
        }
    }

    #[test]
    fn a_batch_has_the_requested_room_or_what_is_left() {
        let mut writer = producer(u32::MAX);
        let mut batch = writer.batch(3);
        assert!((0..3).all(|entry| batch.push(entry)));
        assert!(!batch.push(3), "no more than requested");
        drop(batch);
        assert_eq!(writer.batch(SIZE + 1).room(), SIZE - 3);
        // The kernel has taken two, which is unknown until its index is read.
        writer.ring.consumer().store(1, Ordering::Relaxed);
        assert_eq!(writer.batch(SIZE - 3).room(), SIZE - 3);
        assert_eq!((writer.room(SIZE - 3), writer.room(SIZE)), (SIZE - 3, SIZE - 1));
        assert_eq!(writer.batch(SIZE).room(), SIZE - 1);
        // Nothing written, nothing published.
        assert_eq!(writer.ring.producer().load(Ordering::Relaxed), 2);
        // An invalid index: greater than what was written.
        writer.ring.consumer().store(77, Ordering::Relaxed);
        assert_eq!((writer.room(SIZE), writer.batch(SIZE).room()), (0, 0));
    }

    #[test]
    fn untaken_entries_can_be_read_again() {
        for start in [0, u32::MAX - 2] {
            let mut writer = producer(start);
            let mut batch = writer.batch(SIZE);
            assert!((0..6).all(|entry| batch.push(entry)));
            drop(batch);
            assert_eq!(writer.untaken().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
            writer.taken_by_kernel(4);
            assert_eq!(writer.untaken().collect::<Vec<_>>(), [4, 5]);
            assert_eq!(writer.untaken().rev().collect::<Vec<_>>(), [5, 4]);
            writer.taken_by_kernel(2);
            assert_eq!(writer.untaken().count(), 0);
        }
    }

    #[test]
    fn unread_entries_remain_available() {
        let mut reader = consumer(u32::MAX - 1, 0..5);
        let mut entries = reader.take(4);
        assert_eq!((entries.len(), entries.next(), entries.next()), (4, Some(0), Some(1)));
        drop(entries);
        assert_eq!(reader.ring.consumer().load(Ordering::Relaxed), 0);
        assert_eq!(reader.take(SIZE).collect::<Vec<_>>(), [2, 3, 4]);
        // An invalid index: each entry is returned at most once.
        reader.ring.producer().store(1000, Ordering::Relaxed);
        assert_eq!(reader.take(u32::MAX).len(), SIZE as usize);
    }
}
