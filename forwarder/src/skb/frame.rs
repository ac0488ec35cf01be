//! The frame token: only its owner may access the frame.
//!
//! Not `Clone`. Dropping one without returning it to its pool loses the frame (the frame accounting
//! detects this); it never frees memory.

#![expect(unsafe_code, reason = "the one place where frame memory is dereferenced")]

use std::num::NonZero;
use std::ptr::NonNull;

use super::FRAME_SIZE;

/// The exclusive right to access one UMEM frame of [`FRAME_SIZE`] octets.
#[derive(Debug)]
pub struct Frame {
    start: NonNull<u8>,
}

// SAFETY: the octets are accessed through the token only, so moving it moves the access.
unsafe impl Send for Frame {}

impl Frame {
    /// Creates the token of a frame.
    ///
    /// # Safety
    /// `start` begins [`FRAME_SIZE`] initialised octets, valid for reads and writes while any token may
    /// exist, and no other token for them exists.
    pub(super) unsafe fn from_raw(start: NonNull<u8>) -> Frame {
        Frame { start }
    }

    /// Offset of the frame from the `start` of an area, in octets. For a frame of another area it is the
    /// area's length or more.
    #[inline]
    pub(crate) fn umem_offset(&self, start: NonZero<usize>) -> usize {
        self.start.addr().get().wrapping_sub(start.get())
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
