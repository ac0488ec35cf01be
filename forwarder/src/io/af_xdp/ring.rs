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
    /// Next entry we write.
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

    /// Room for `wanted` entries, or for fewer when there is no more. The kernel sees what was put
    /// there when this is dropped.
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

    /// Entries for which there is room, `wanted` at most.
    #[inline]
    pub(super) fn room(&self, wanted: u32) -> u32 {
        let free = |consumed| self.ring.size.saturating_sub(self.next.wrapping_sub(consumed));
        if free(self.consumed) >= wanted {
            return wanted;
        }
        free(self.ring.consumer().load(Ordering::Acquire)).min(wanted)
    }

    /// Entries that the kernel does not show as taken yet.
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
            // SAFETY: masked, so in the mapping, which `self` keeps; written by us, and by nobody else.
            unsafe { self.ring.entries.add(at as usize).read() }
        })
    }

    /// Whether the kernel asks to be woken (XDP_RING_NEED_WAKEUP).
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// Entries being written. What a loop over them needs stands here, and not behind a reference, so that
/// it can stay in registers.
#[derive(Debug)]
pub(super) struct Batch<'a, T: Entry> {
    entries: NonNull<T>,
    mask: u32,
    next: u32,
    /// Here the room ends.
    end: u32,
    producer: &'a mut Producer<T>,
}

impl<T: Entry> Batch<'_, T> {
    /// Entries that still find room.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.end.wrapping_sub(self.next)
    }

    /// Entries written.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.next.wrapping_sub(self.producer.next)
    }

    /// Writes one entry. `false`: there is no room, and nothing was written.
    #[inline]
    pub(super) fn push(&mut self, entry: T) -> bool {
        if self.next == self.end {
            return false;
        }
        // SAFETY: masked, so in the mapping, which the producer keeps. Between the kernel's index and
        // ours plus its size nobody else reads or writes (net/xdp/xsk_queue.h, the comment on
        // barriers).
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

/// A ring the kernel fills: the RX ring and the completion ring.
#[derive(Debug)]
pub(super) struct Consumer<T: Entry> {
    ring: Ring<T>,
    /// Next entry we read.
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

    /// Up to `wanted` of the entries that are there, oldest first. The kernel has the room of those
    /// that were taken again when this is dropped.
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

    /// Whether there is nothing to take now.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.ring.producer().load(Ordering::Relaxed)
    }
}

/// Entries being read; as with [`Batch`], for the sake of registers.
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
        // SAFETY: masked, so in the mapping, which the consumer keeps; written by the kernel before it
        // moved its index (Acquire in `take`), and valid whatever the bits are.
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

/// Rings of which a test is the kernel.
#[cfg(test)]
pub(super) mod in_memory {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// A mapping of up to 200 entries as the kernel lays it out, of memory that nobody else has; both
    /// indexes at `start`.
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

    /// One whose ring has these entries.
    fn consumer(start: u32, entries: std::ops::Range<u64>) -> Consumer<u64> {
        let mut filled = producer(start);
        let mut batch = filled.batch(SIZE);
        assert!(entries.clone().all(|entry| batch.push(entry)));
        drop(batch);
        Consumer { ring: filled.ring, next: start, produced: start }
    }

    #[test]
    fn what_is_written_is_shown_at_the_end_and_read_in_order_beyond_the_last_index() {
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
    fn a_batch_has_the_room_that_was_asked_for_or_there_is() {
        let mut writer = producer(u32::MAX);
        let mut batch = writer.batch(3);
        assert!((0..3).all(|entry| batch.push(entry)));
        assert!(!batch.push(3), "no more than was asked for");
        drop(batch);
        assert_eq!(writer.batch(SIZE + 1).room(), SIZE - 3);
        // The kernel has taken two: not known until it is looked at.
        writer.ring.consumer().store(1, Ordering::Relaxed);
        assert_eq!(writer.batch(SIZE - 3).room(), SIZE - 3);
        assert_eq!((writer.room(SIZE - 3), writer.room(SIZE)), (SIZE - 3, SIZE - 1));
        assert_eq!(writer.batch(SIZE).room(), SIZE - 1);
        // Nothing written, nothing shown.
        assert_eq!(writer.ring.producer().load(Ordering::Relaxed), 2);
        // An index that cannot be: further than was written.
        writer.ring.consumer().store(77, Ordering::Relaxed);
        assert_eq!((writer.room(SIZE), writer.batch(SIZE).room()), (0, 0));
    }

    #[test]
    fn what_the_kernel_has_not_taken_can_be_read_again() {
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
    fn what_was_not_read_is_there_again() {
        let mut reader = consumer(u32::MAX - 1, 0..5);
        let mut entries = reader.take(4);
        assert_eq!((entries.len(), entries.next(), entries.next()), (4, Some(0), Some(1)));
        drop(entries);
        assert_eq!(reader.ring.consumer().load(Ordering::Relaxed), 0);
        assert_eq!(reader.take(SIZE).collect::<Vec<_>>(), [2, 3, 4]);
        // An index that cannot be: each entry at most once.
        reader.ring.producer().store(1000, Ordering::Relaxed);
        assert_eq!(reader.take(u32::MAX).len(), SIZE as usize);
    }
}
