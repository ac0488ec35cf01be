//! The queue of packets that wait until the kernel has resolved a neighbour (the kernel's `arp_queue`).
//! [`super::neigh_hold`] fills it, [`super::neigh_poll`] empties it.

use std::net::IpAddr;

use super::post_routing::RoutedBurst;

/// Neighbours that can be waited for at once.
const NEIGHBOURS: usize = 64;
/// Packets held for one neighbour: the kernel's unres_qlen. (It holds 212,992 octets of memory, some 90 full-sized
/// packets.)
const PER_NEIGHBOUR: usize = 101;

/// The packets for one neighbour; a slot without packets is free.
#[derive(Debug)]
pub(super) struct Slot {
    pub oif: u32,
    pub addr: IpAddr,
    pub since_ns: u64,
    pub asked_ns: u64,
    pub packets: RoutedBurst,
}

impl Slot {
    fn is_for(&self, oif: u32, addr: IpAddr) -> bool {
        self.oif == oif && self.addr == addr && !self.packets.is_empty()
    }

    /// Not free while its packets are taken out: its capacity is 0 then.
    fn is_free(&self) -> bool {
        self.packets.is_empty() && self.packets.room() > 0
    }
}

/// All held packets.
#[derive(Debug)]
pub(super) struct HoldQueue {
    pub slots: Box<[Slot]>,
    /// Frames of all held packets.
    pub held: usize,
    /// Frames of packets of the current burst that will be held.
    pub reserved: usize,
    /// Generation of the tables in which the neighbours were last looked up.
    pub generation: u64,
    /// When to check next for packets that have waited too long.
    pub poll_ns: u64,
}

impl HoldQueue {
    pub fn new() -> HoldQueue {
        let slot = |_| Slot {
            oif: 0,
            addr: IpAddr::V4(0.into()),
            since_ns: 0,
            asked_ns: 0,
            packets: RoutedBurst::with_capacity(PER_NEIGHBOUR),
        };
        let slots = (0..NEIGHBOURS).map(slot).collect();
        HoldQueue { slots, held: 0, reserved: 0, generation: 0, poll_ns: 0 }
    }

    /// Number of held packets.
    pub fn packets(&self) -> usize {
        self.slots.iter().map(|slot| slot.packets.len()).sum()
    }

    /// Whether packets wait for a neighbour.
    pub fn has(&self, oif: u32, addr: IpAddr) -> bool {
        self.slots.iter().any(|slot| slot.is_for(oif, addr))
    }

    /// Whether there is a slot for another neighbour, beside those for which room is reserved, whatever their neighbours
    /// are.
    pub fn has_slot(&self) -> bool {
        self.slots.iter().filter(|slot| slot.is_free()).count() > self.reserved
    }

    /// The slot for a neighbour, and whether it was free until now.
    pub fn slot(&mut self, oif: u32, addr: IpAddr) -> Option<(&mut Slot, bool)> {
        let own = self.slots.iter().position(|slot| slot.is_for(oif, addr));
        let at = own.or_else(|| self.slots.iter().position(Slot::is_free))?;
        Some((&mut self.slots[at], own.is_none()))
    }

    /// Takes the packets out of a slot. It counts as in use until [`HoldQueue::put_back`].
    pub fn take(&mut self, at: usize) -> RoutedBurst {
        let packets = std::mem::replace(&mut self.slots[at].packets, RoutedBurst::with_capacity(0));
        self.held -= packets.frames();
        packets
    }

    /// Returns the emptied burst to its slot, which becomes free.
    pub fn put_back(&mut self, at: usize, empty: RoutedBurst) {
        self.slots[at].packets = empty;
    }
}
