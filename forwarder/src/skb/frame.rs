//! The frame token: who owns it may touch the frame, nobody else.
//!
//! Not `Clone`. Dropping one without returning it to its pool loses the frame (the conservation
//! law notices); it never frees memory.

#![expect(unsafe_code, reason = "the one place where frame memory is dereferenced")]

use std::ptr::NonNull;

use super::FRAME_SIZE;

/// The exclusive right to one UMEM frame of [`FRAME_SIZE`] octets.
#[derive(Debug)]
pub struct Frame {
    start: NonNull<u8>,
    index: u32,
}

// SAFETY: the token is the only access to its octets, so moving it moves the access.
unsafe impl Send for Frame {}

impl Frame {
    /// Makes the token of a frame.
    ///
    /// # Safety
    /// `start` begins [`FRAME_SIZE`] initialised octets, valid for reads and writes while any
    /// token may exist, and no other token for them exists.
    pub(super) unsafe fn from_raw(start: NonNull<u8>, index: u32) -> Frame {
        Frame { start, index }
    }

    /// Position in the area, counted in frames.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Offset of the frame from the start of the area, in octets.
    #[inline]
    pub fn umem_offset(&self) -> usize {
        self.index as usize * FRAME_SIZE
    }

    /// Whether the frame lies in the area that starts at `base`.
    #[inline]
    pub(crate) fn is_of(&self, base: NonNull<u8>) -> bool {
        self.start.as_ptr() as usize == base.as_ptr() as usize + self.umem_offset()
    }

    /// The whole frame.
    #[inline]
    pub fn bytes(&self) -> &[u8; FRAME_SIZE] {
        // SAFETY: from_raw's contract; a shared borrow of the token shares the octets.
        unsafe { self.start.cast::<[u8; FRAME_SIZE]>().as_ref() }
    }

    /// The whole frame, writable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; FRAME_SIZE] {
        // SAFETY: from_raw's contract; an exclusive borrow of the only token.
        unsafe { self.start.cast::<[u8; FRAME_SIZE]>().as_mut() }
    }
}
