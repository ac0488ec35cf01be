//! Where the tokens of frames rest while the kernel has the frames.
//!
//! A frame given to the kernel leaves its token here, under the name of the ring it was given to.
//! Whatever address the kernel hands back is only believed if a token lies under that name: an
//! address that was never given, given elsewhere, or handed back twice finds none. So no address,
//! right or wrong, can make a second token of a frame.

use std::num::NonZero;

use crate::skb::{FRAME_SIZE, Frame, FramePool};

/// Names one direction of one binding of a port. Never used again when the port is bound anew.
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
    /// Of a frame given to be sent that ends a packet: the packet's length in octets. Else 0.
    packet_len: u32,
}

/// Packets, and their octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::io) struct Packets {
    pub(in crate::io) count: u32,
    pub(in crate::io) octets: u64,
}

impl Packets {
    /// Adds a frame: it counts if it ends a packet, and then as the whole packet.
    #[inline]
    pub(in crate::io) fn add(&mut self, packet_len: u32) {
        self.count += u32::from(packet_len > 0);
        self.octets += u64::from(packet_len);
    }
}

/// One place for each frame of the area.
#[derive(Debug)]
pub(in crate::io) struct Slots {
    places: Box<[Slot]>,
    /// Where the area starts.
    start: NonZero<usize>,
}

impl Slots {
    /// Empty places for the `frames` frames of the area that starts at `start`.
    pub(in crate::io) fn new(start: NonZero<usize>, frames: u32) -> Slots {
        let places =
            (0..frames).map(|_| Slot { frame: None, owner: Owner(0), packet_len: 0 }).collect();
        Slots { places, start }
    }

    /// The places as one owner uses them.
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

/// [`Slots`] as one owner uses them, for a loop over many frames.
#[derive(Debug)]
pub(in crate::io) struct OwnedSlots<'a> {
    places: &'a mut [Slot],
    start: NonZero<usize>,
    owner: Owner,
}

impl OwnedSlots<'_> {
    /// Lays down the token of a frame that goes to the kernel, and returns the frame's offset in
    /// the area in octets. A frame of another area comes back.
    #[inline]
    pub(in crate::io) fn give(&mut self, frame: Frame) -> Result<u64, Frame> {
        self.give_to_send(frame, 0)
    }

    /// [`Self::give`] for a frame that is to be sent. `packet_len`: the length in octets of the packet
    /// that ends with it; 0: the packet goes on.
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

    /// [`Self::take`], and where in the frame `addr` is, in octets.
    #[inline]
    pub(in crate::io) fn take_at(&mut self, addr: u64) -> (Option<Frame>, usize) {
        (self.take(addr), (addr % FRAME_SIZE as u64) as usize)
    }

    /// Takes up the token of the frame that `addr`, an offset in the area in octets, lies in.
    /// `None`: that frame was not given to the owner.
    #[inline]
    pub(in crate::io) fn take(&mut self, addr: u64) -> Option<Frame> {
        self.take_sent(addr).map(|(frame, _)| frame)
    }

    /// [`Self::take`], with what the frame was given with ([`Self::give_to_send`]).
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
    fn only_what_was_given_comes_back_and_only_once_and_only_to_its_owner() {
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
    fn packets_are_counted_where_they_end_and_while_they_are_given() {
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
    fn a_frame_of_another_area_comes_back() {
        let (area, _pool) = Area::map(1).expect("maps");
        let mut slots = Slots::new(area.start(), 1);
        let mut other = Umem::anonymous(1).into_pool();
        let frame = other.alloc().expect("one frame");
        let frame = slots.of(Owner::rx(1)).give(frame).expect_err("not of this area");
        other.free(frame);
    }
}
