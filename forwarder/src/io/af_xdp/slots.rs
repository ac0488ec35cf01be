//! Keeps the tokens of frames while the kernel has the frames.
//!
//! The token of a frame given to the kernel is stored here together with an owner, which identifies
//! the ring it was given to. An address that the kernel returns is accepted only if there is a
//! token with this owner: an address that was never given, given to another ring, or returned twice
//! has none. Therefore no address, right or wrong, can create a second token of a frame.

use std::num::NonZero;

use crate::skb::{FRAME_SIZE, Frame, FramePool};

/// Identifies one direction of one binding of a port. Never reused when the port is bound again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::io) struct Owner(u32);

impl Owner {
    /// The receiving side of binding number `binding`.
    pub(in crate::io) fn rx(binding: u32) -> Owner {
        Owner(binding << 1)
    }

    /// The sending side of binding number `binding`.
    pub(in crate::io) fn tx(binding: u32) -> Owner {
        Owner(binding << 1 | 1)
    }
}

#[derive(Debug)]
struct Slot {
    frame: Option<Frame>,
    owner: Owner,
    /// Length in octets of the packet that ends with this frame, if it was given to be sent;
    /// otherwise 0.
    packet_len: u32,
}

/// Number of packets and their octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::io) struct Packets {
    pub(in crate::io) count: u32,
    pub(in crate::io) octets: u64,
}

impl Packets {
    /// Adds a frame, which counts only if it ends a packet.
    #[inline]
    pub(in crate::io) fn add(&mut self, packet_len: u32) {
        self.count += u32::from(packet_len > 0);
        self.octets += u64::from(packet_len);
    }
}

/// One slot for each frame of the area.
#[derive(Debug)]
pub(in crate::io) struct Slots {
    places: Box<[Slot]>,
    /// Start of the area.
    start: NonZero<usize>,
}

impl Slots {
    /// Empty places for the `frames` frames of the area that starts at `start`.
    pub(in crate::io) fn new(start: NonZero<usize>, frames: u32) -> Slots {
        let places =
            (0..frames).map(|_| Slot { frame: None, owner: Owner(0), packet_len: 0 }).collect();
        Slots { places, start }
    }

    /// The slots as accessed by one owner.
    #[inline]
    pub(in crate::io) fn of(&mut self, owner: Owner) -> OwnedSlots<'_> {
        OwnedSlots { places: &mut self.places, start: self.start, owner }
    }

    /// Frees all frames given to `owner`. Only for a ring that the kernel has let go of.
    pub(in crate::io) fn reclaim(&mut self, owner: Owner, pool: &mut FramePool) -> usize {
        let mut count = 0;
        for slot in self.places.iter_mut().filter(|slot| slot.owner == owner) {
            if let Some(frame) = slot.frame.take() {
                pool.free(frame);
                count += 1;
            }
        }
        count
    }
}

/// [`Slots`] as accessed by one owner, for a loop over many frames.
#[derive(Debug)]
pub(in crate::io) struct OwnedSlots<'a> {
    places: &'a mut [Slot],
    start: NonZero<usize>,
    owner: Owner,
}

impl OwnedSlots<'_> {
    /// Stores the token of a frame given to the kernel, and returns the frame's offset in the area
    /// in octets. Returns a frame of another area as an error.
    #[inline]
    pub(in crate::io) fn give(&mut self, frame: Frame) -> Result<u64, Frame> {
        self.give_to_send(frame, 0)
    }

    /// As [`Self::give`], for a frame to be sent. `packet_len`: length in octets of the packet that
    /// ends with it; 0: the packet continues.
    #[inline]
    pub(in crate::io) fn give_to_send(
        &mut self,
        frame: Frame,
        packet_len: u32,
    ) -> Result<u64, Frame> {
        let offset = frame.umem_offset(self.start);
        match self.places.get_mut(offset / FRAME_SIZE) {
            Some(slot) if slot.frame.is_none() => {
                *slot = Slot { frame: Some(frame), owner: self.owner, packet_len };
                Ok(offset as u64)
            }
            _ => Err(frame),
        }
    }

    /// As [`Self::take`], and also returns the offset of `addr` in the frame, in octets.
    #[inline]
    pub(in crate::io) fn take_at(&mut self, addr: u64) -> (Option<Frame>, usize) {
        (self.take(addr), (addr % FRAME_SIZE as u64) as usize)
    }

    /// Takes the token of the frame that contains `addr`, an offset in the area in octets. `None`:
    /// the frame was not given to this owner.
    #[inline]
    pub(in crate::io) fn take(&mut self, addr: u64) -> Option<Frame> {
        self.take_sent(addr).map(|(frame, _)| frame)
    }

    /// As [`Self::take`], with the packet length passed to [`Self::give_to_send`].
    #[inline]
    pub(in crate::io) fn take_sent(&mut self, addr: u64) -> Option<(Frame, u32)> {
        let slot = self.places.get_mut((addr / FRAME_SIZE as u64) as usize)?;
        if slot.owner != self.owner {
            return None;
        }
        Some((slot.frame.take()?, slot.packet_len))
    }

    /// All packets that the owner was given to send and whose last frame was not taken up again.
    pub(in crate::io) fn packets(&self) -> Packets {
        let mut packets = Packets::default();
        for slot in self.places.iter().filter(|slot| slot.owner == self.owner) {
            packets.add(slot.frame.as_ref().map_or(0, |_| slot.packet_len));
        }
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::af_xdp::area::Area;
    use crate::skb::Umem;

    #[test]
    fn only_a_given_frame_is_taken_once_and_by_its_owner() {
        let (area, mut pool) = Area::map(4).expect("maps");
        let mut slots = Slots::new(area.start(), 4);
        let frame = pool.alloc().expect("four frames");
        let offset = frame.umem_offset(area.start());
        let addr = slots.of(Owner::rx(1)).give(frame).expect("free place");
        assert_eq!(addr, offset as u64);
        assert!(slots.of(Owner::tx(1)).take(addr).is_none());
        assert!(slots.of(Owner::rx(2)).take(addr).is_none());
        assert!(slots.of(Owner::rx(1)).take(4 * FRAME_SIZE as u64).is_none());
        assert!(slots.of(Owner::rx(1)).take(u64::MAX).is_none());
        let frame = slots.of(Owner::rx(1)).take(addr + 300).expect("given above");
        assert_eq!(frame.umem_offset(area.start()), offset);
        assert!(slots.of(Owner::rx(1)).take(addr).is_none());
        pool.free(frame);
    }

    #[test]
    fn reclaiming_takes_one_owners_frames_and_no_others() {
        let (area, mut pool) = Area::map(4).expect("maps");
        let mut slots = Slots::new(area.start(), 4);
        for n in 0..4 {
            let owner = if n == 0 { Owner::tx(7) } else { Owner::rx(7) };
            let frame = pool.alloc().expect("four frames");
            slots.of(owner).give(frame).expect("free place");
        }
        assert_eq!(slots.reclaim(Owner::rx(7), &mut pool), 3);
        assert_eq!(slots.reclaim(Owner::rx(7), &mut pool), 0);
        assert_eq!(pool.available(), 3);
        assert_eq!(slots.reclaim(Owner::tx(7), &mut pool), 1);
    }

    #[test]
    fn packets_are_counted_at_their_last_frame_while_given() {
        let (area, mut pool) = Area::map(4).expect("maps");
        let mut slots = Slots::new(area.start(), 4);
        let mut addrs = Vec::new();
        for len in [60, 0, 9014] {
            let frame = pool.alloc().expect("four frames");
            addrs.push(slots.of(Owner::tx(7)).give_to_send(frame, len).expect("free place"));
        }
        let frame = pool.alloc().expect("four frames");
        slots.of(Owner::tx(8)).give_to_send(frame, 99).expect("free place");
        let mut own = slots.of(Owner::tx(7));
        assert_eq!(own.packets(), Packets { count: 2, octets: 9074 });
        let (frame, len) = own.take_sent(addrs[0] + 17).expect("given above");
        pool.free(frame);
        assert_eq!(len, 60);
        assert!(own.take_sent(addrs[0]).is_none());
        assert_eq!(own.packets(), Packets { count: 1, octets: 9014 });
    }

    #[test]
    fn a_frame_of_another_area_is_returned() {
        let (area, _pool) = Area::map(1).expect("maps");
        let mut slots = Slots::new(area.start(), 1);
        let mut other = Umem::anonymous(1).into_pool();
        let frame = other.alloc().expect("one frame");
        let frame = slots.of(Owner::rx(1)).give(frame).expect_err("not of this area");
        other.free(frame);
    }
}
