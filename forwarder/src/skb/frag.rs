//! Frames of a packet other than its head, in order (`skb_frag_t` of the kernel).
//!
//! A frag is a link of a chain. Links are allocated with the pool and stored in it; a packet takes one
//! for each further frame, so that making a packet longer allocates nothing.

use std::mem::ManuallyDrop;

use super::{FRAME_SIZE, Frame, FramePool, NoRoom, SkBuff};

/// Maximum number of frags of a packet (MAX_SKB_FRAGS of the kernel at its default).
pub const MAX_SKB_FRAGS: usize = 17;

/// A link in use. As with a frame's token, dropping one frees nothing and loses it to its pool; a packet,
/// which is moved often, therefore needs no drop code.
pub(super) type Link = ManuallyDrop<Box<Frag>>;

/// One further frame of a packet, and the next link.
#[derive(Debug, Default)]
pub struct Frag {
    /// `None` only while the link is in the pool.
    pub(super) frame: Option<Frame>,
    pub(super) offset: u16,
    pub(super) len: u16,
    pub(super) next: Option<Link>,
}

impl Frag {
    /// Its part of the packet.
    #[inline]
    pub(super) fn octets(&self) -> &[u8] {
        let (start, len) = (usize::from(self.offset), usize::from(self.len));
        let octets = self.frame.as_ref().and_then(|frame| frame.bytes().get(start..start + len));
        octets.unwrap_or(&[])
    }

    /// Removes its first `len` octets.
    pub(super) fn pull(&mut self, len: usize) {
        let len = (len as u16).min(self.len);
        self.offset += len;
        self.len -= len;
    }
}

/// One frame of a packet that was taken apart.
#[derive(Debug)]
pub struct Piece {
    /// The frame.
    pub frame: Frame,
    /// Offset of the packet's octets in the frame.
    pub offset: usize,
    /// Number of octets.
    pub len: usize,
}

/// The further frames of a packet that was taken apart, first to last. They must be taken out, or
/// returned by [`FramePool::free_frags`].
#[derive(Debug, Default)]
pub struct Frags(pub(super) Option<Link>);

impl Frags {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Takes the first one out; its link returns to the pool.
    pub fn pop(&mut self, pool: &mut FramePool) -> Option<Piece> {
        let mut frag = self.0.take()?;
        self.0 = frag.next.take();
        let frame = frag.frame.take();
        let (offset, len) = (usize::from(frag.offset), usize::from(frag.len));
        pool.put_link(ManuallyDrop::into_inner(frag));
        frame.map(|frame| Piece { frame, offset, len })
    }
}

impl SkBuff {
    /// The frags' part of [`SkBuff::trim`].
    #[cold]
    pub(super) fn trim_frags(&mut self, len: usize) {
        let mut left = len.saturating_sub(self.headlen());
        let mut at = self.frags.as_mut();
        while let Some(frag) = at {
            frag.len = left.min(frag.len.into()) as u16;
            left -= usize::from(frag.len);
            at = frag.next.as_mut();
        }
    }

    /// Octets in frags.
    #[cold]
    pub(super) fn frags_len(&self) -> usize {
        self.frags().map(<[u8]>::len).sum()
    }

    fn links(&self) -> impl Iterator<Item = &Frag> {
        std::iter::successors(self.frags.as_ref(), |frag| frag.next.as_ref()).map(|frag| &***frag)
    }

    /// The octets of each frag, in order.
    pub fn frags(&self) -> impl Iterator<Item = &[u8]> {
        self.links().map(Frag::octets)
    }

    /// The `len` octets starting at `offset` from data, in one slice per frame; fewer when the packet
    /// ends before.
    pub fn slices(&self, offset: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let (mut skip, mut left) = (offset, len);
        std::iter::once(self.data()).chain(self.frags()).filter_map(move |slice| {
            let start = skip.min(slice.len());
            skip -= start;
            let end = slice.len().min(start.saturating_add(left));
            left -= end - start;
            slice.get(start..end).filter(|slice| !slice.is_empty())
        })
    }

    /// `skb_copy_bits`: copies the octets starting at `offset` from data, from all frames.
    ///
    /// # Errors
    /// [`NoRoom`] when the packet ends before; the available octets are copied.
    pub fn copy_bits(&self, offset: usize, to: &mut [u8]) -> Result<(), NoRoom> {
        let wanted = to.len();
        let mut done = 0;
        for slice in self.slices(offset, wanted) {
            to[done..done + slice.len()].copy_from_slice(slice);
            done += slice.len();
        }
        if done < wanted { Err(NoRoom { wanted, available: done }) } else { Ok(()) }
    }

    /// The packet in one slice; copied to `scratch`, which is cleared first, only if it has frags.
    #[inline]
    pub fn whole<'a>(&'a self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        if self.frags.is_none() {
            return self.data();
        }
        scratch.clear();
        self.slices(0, usize::MAX).for_each(|slice| scratch.extend_from_slice(slice));
        scratch
    }

    /// `skb_add_rx_frag`: appends `len` octets at `offset` in `frame` to the packet.
    ///
    /// # Errors
    /// Returns the frame when the octets exceed it, or the packet already has [`MAX_SKB_FRAGS`].
    pub fn add_frag(
        &mut self,
        frame: Frame,
        offset: usize,
        len: usize,
        pool: &mut FramePool,
    ) -> Result<(), Frame> {
        if offset > FRAME_SIZE || len > FRAME_SIZE - offset || self.frames() > MAX_SKB_FRAGS {
            return Err(frame);
        }
        let Some(mut link) = pool.take_link() else { return Err(frame) };
        (link.offset, link.len) = (offset as u16, len as u16);
        link.frame = Some(frame);
        let mut end = &mut self.frags;
        while let Some(frag) = end {
            end = &mut frag.next;
        }
        *end = Some(ManuallyDrop::new(link));
        Ok(())
    }

    /// Appends octets: as many as fit into the head, the others in frags.
    ///
    /// # Errors
    /// [`NoRoom`] when too few frames are free or there are [`MAX_SKB_FRAGS`]; octets appended before
    /// remain.
    pub fn append(&mut self, octets: &[u8], pool: &mut FramePool) -> Result<(), NoRoom> {
        let (head, mut rest) = octets.split_at(octets.len().min(self.tailroom()));
        self.put(head.len())?.copy_from_slice(head);
        if !rest.is_empty() {
            rest = self.fill_last(rest);
        }
        while !rest.is_empty() {
            let no_room = NoRoom { wanted: rest.len(), available: 0 };
            let mut frame = pool.alloc().ok_or(no_room)?;
            let (now, later) = rest.split_at(rest.len().min(FRAME_SIZE));
            frame.bytes_mut()[..now.len()].copy_from_slice(now);
            if let Err(frame) = self.add_frag(frame, 0, now.len(), pool) {
                pool.free(frame);
                return Err(no_room);
            }
            rest = later;
        }
        Ok(())
    }

    /// Fills the rest of the last frag's frame; returns the octets that do not fit.
    fn fill_last<'a>(&mut self, octets: &'a [u8]) -> &'a [u8] {
        let mut at = self.frags.as_mut();
        while let Some(frag) = at {
            if frag.next.is_some() {
                at = frag.next.as_mut();
                continue;
            }
            let end = usize::from(frag.offset + frag.len);
            let (now, later) = octets.split_at(octets.len().min(FRAME_SIZE - end));
            if let Some(frame) = &mut frag.frame {
                frame.bytes_mut()[end..end + now.len()].copy_from_slice(now);
                frag.len += now.len() as u16;
            }
            return later;
        }
        octets
    }

    /// `pskb_may_pull`: makes `len` octets available in the head, moving them there if needed. Returns
    /// whether the packet is long enough and the head's frame has room.
    #[inline]
    pub fn may_pull(&mut self, len: usize) -> bool {
        len <= self.headlen() || (self.frags.is_some() && self.pull_tail(len - self.headlen()))
    }

    /// `__pskb_pull_tail`: moves `len` octets from the frags to the head; all or none.
    #[cold]
    fn pull_tail(&mut self, len: usize) -> bool {
        let tail = self.tail as usize;
        if len > FRAME_SIZE - tail || len > self.frags_len() {
            return false;
        }
        let mut done = 0;
        let mut at = self.frags.as_mut();
        while let Some(frag) = at {
            let now = (len - done).min(frag.len.into());
            let to = tail + done..tail + done + now;
            self.frame.bytes_mut()[to].copy_from_slice(&frag.octets()[..now]);
            frag.pull(now);
            done += now;
            at = frag.next.as_mut();
        }
        self.tail += len as u16;
        true
    }

    /// `skb_linearize`: moves the whole packet to the head, which may move in its frame. `false`: it is
    /// longer than a frame, and nothing has changed.
    pub fn linearize(&mut self) -> bool {
        let len = self.len();
        if !self.is_nonlinear() {
            return true;
        }
        if len > FRAME_SIZE {
            return false;
        }
        let start = (self.data as usize).min(FRAME_SIZE - len);
        self.move_to(start).is_ok() && self.may_pull(len)
    }

    /// Octets free in front of the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.data as usize
    }
}
