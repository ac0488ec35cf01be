//! The packet memory: one mapping divided into frames of [`FRAME_SIZE`] octets.
//!
//! A [`Umem`] is either our own anonymous memory (in-memory and pcap drivers) or the area that an AF_XDP
//! driver registered with the kernel. It creates the token of every frame exactly once, at start, in a
//! [`FramePool`]; from then on tokens are moved, never copied.

#![expect(unsafe_code, reason = "turns one memory area into disjoint frames")]

use std::num::NonZero;
use std::ptr::NonNull;

use super::frag::{Frag, Frags};
use super::{FRAME_SIZE, Frame, SkBuff};

/// A memory area of `frames` × [`FRAME_SIZE`] octets, and the owner of its mapping.
pub struct Umem {
    base: NonNull<u8>,
    frames: u32,
    /// Keeps the area mapped as long as this value exists.
    _keeper: Box<dyn Send>,
}

// SAFETY: the area belongs to this value alone; the keeper is Send by its bound.
unsafe impl Send for Umem {}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Umem").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Umem {
    /// Allocates an area of `frames` zeroed frames in ordinary memory, which is backed by real memory on
    /// first write.
    pub fn anonymous(frames: u32) -> Umem {
        // The allocator provides zeroed octets without writing them; for a type with the alignment of a
        // frame each would be written. One frame more, so that the first can be aligned.
        let octets = vec![0u8; (frames as usize + 1) * FRAME_SIZE].into_boxed_slice();
        // Only the raw pointer is kept: a Box moved into the keeper would assert unique access to memory
        // that frames point into.
        let octets = NonNull::from(Box::leak(octets));
        let start = octets.cast::<u8>();
        let skipped = start.addr().get().next_multiple_of(FRAME_SIZE) - start.addr().get();
        // SAFETY: less than a frame is skipped, and one frame more than is used was allocated.
        let base = unsafe { start.add(skipped) };
        Umem { base, frames, _keeper: Box::new(Octets(octets)) }
    }

    /// Takes over an area that a driver has mapped.
    ///
    /// # Safety
    /// `base` is aligned to 4096 octets and starts an area of `frames` × [`FRAME_SIZE`] octets, readable
    /// and writable and not accessed by other Rust references, for as long as `keeper` lives. The kernel
    /// accesses only frames whose tokens the driver has given up to it.
    pub unsafe fn from_raw(base: NonNull<u8>, frames: u32, keeper: Box<dyn Send>) -> Umem {
        Umem { base, frames, _keeper: keeper }
    }

    /// Number of frames in the area.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Turns the area into its pool of free frames: the only place where tokens are created.
    pub fn into_pool(self) -> FramePool {
        let free = (0..self.frames)
            .map(|index| {
                // SAFETY: index < frames, so the offset stays inside the area (see from_raw).
                let start = unsafe { self.base.add(index as usize * FRAME_SIZE) };
                // SAFETY: each index is visited once and `self` is consumed, so each frame has
                // exactly one token; the pool keeps the area mapped (see FramePool's Drop).
                unsafe { Frame::from_raw(start) }
            })
            .collect();
        let links = (0..self.frames).map(|_| Box::default()).collect();
        let (start, len) = (self.base.addr(), self.frames as usize * FRAME_SIZE);
        FramePool { free, links, start, len, umem: Some(self) }
    }
}

struct Octets(NonNull<[u8]>);

// SAFETY: plain memory, owned by this value.
unsafe impl Send for Octets {}

impl Drop for Octets {
    fn drop(&mut self) {
        // SAFETY: the pointer came from Box::leak of exactly this slice, and is released once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The free frames of one [`Umem`]. A stack, so that the frame freed last, still in cache, is used next.
#[derive(Debug)]
pub struct FramePool {
    free: Vec<Frame>,
    /// Links, one for each frame, so that any frame may become a frag.
    #[expect(clippy::vec_box, reason = "links move from here into chains as they are")]
    links: Vec<Box<Frag>>,
    /// Start of the area, and its length in octets.
    start: NonZero<usize>,
    len: usize,
    umem: Option<Umem>,
}

impl FramePool {
    /// Takes a free frame; `None` when all are in use. Never allocates.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Returns a frame. Never allocates: there is room for every frame of the area. A frame of another
    /// area is not accepted, and is lost to its pool: this pool must not hand it out after that area is
    /// unmapped.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        // Always true; the check avoids code for growing.
        let room = self.free.len() < self.free.capacity();
        if frame.umem_offset(self.start) < self.len && room {
            self.free.push(frame);
        } else {
            debug_assert!(false, "{frame:?} belongs to another umem, or was returned twice");
        }
    }

    /// `kfree_skb`: returns every frame of a packet. Never allocates.
    #[inline]
    pub fn kfree_skb(&mut self, skb: SkBuff) {
        let (head, frags) = skb.into_frames();
        self.free(head.frame);
        if !frags.is_empty() {
            self.free_frags(frags);
        }
    }

    /// Returns the frames that were a packet's frags.
    #[cold]
    pub fn free_frags(&mut self, mut frags: Frags) {
        while let Some(piece) = frags.pop(self) {
            self.free(piece.frame);
        }
    }

    /// Takes a link for a frame that becomes a frag.
    pub(super) fn take_link(&mut self) -> Option<Box<Frag>> {
        self.links.pop()
    }

    /// Never allocates: there is room for every link made with the pool.
    pub(super) fn put_link(&mut self, link: Box<Frag>) {
        self.links.push(link);
    }

    /// Number of free frames.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Number of frames of the whole area.
    pub fn total(&self) -> u32 {
        self.umem.as_ref().map_or(0, Umem::frames)
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        // Something may still point at a frame that was not returned (a token, or the kernel). Then the
        // area stays mapped for the rest of the process: a leak, but never a dangling pointer.
        if self.free.len() != self.total() as usize {
            std::mem::forget(self.umem.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_handed_out_once_and_frames_do_not_overlap() {
        let mut pool = Umem::anonymous(4).into_pool();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(frames.len(), 4);
        for (n, frame) in frames.iter_mut().enumerate() {
            frame.bytes_mut().fill(n as u8 + 1);
        }
        for (n, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|&b| b == n as u8 + 1));
        }
        let start = pool.start;
        let mut offsets: Vec<usize> = frames.iter().map(|frame| frame.umem_offset(start)).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, [0, FRAME_SIZE, 2 * FRAME_SIZE, 3 * FRAME_SIZE]);
        frames.into_iter().for_each(|frame| pool.free(frame));
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn frames_in_ordinary_memory_are_aligned_and_zero() {
        for count in [0, 1, 3, 100] {
            let mut pool = Umem::anonymous(count).into_pool();
            assert!(pool.start.get().is_multiple_of(FRAME_SIZE));
            let frames: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
            assert_eq!(frames.len(), count as usize);
            assert!(frames.iter().all(|frame| frame.bytes().iter().all(|&octet| octet == 0)));
            frames.into_iter().for_each(|frame| pool.free(frame));
        }
    }

    #[test]
    fn memory_outlives_the_pool_while_a_frame_is_out() {
        let mut pool = Umem::anonymous(2).into_pool();
        let mut frame = pool.alloc().expect("two frames");
        drop(pool);
        frame.bytes_mut()[0] = 7;
        assert_eq!(frame.bytes()[0], 7);
    }
}
