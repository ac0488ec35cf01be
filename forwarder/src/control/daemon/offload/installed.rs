//! What is kept of the entries of the table besides the table.

use std::sync::Arc;

use slab::Slab;

use crate::netfilter::conntrack::FlowKey;
use crate::netfilter::nft::Nft;
use crate::pipeline::OfferedFlow;

/// An entry of the table. There may be a million.
#[derive(Debug)]
pub(super) struct Installed {
    /// [`FlowEntry::count`](xdp_prog::offload::FlowEntry::count) as it was last added to counters.
    pub(super) count: u64,
    pub(super) packets: u64,
    pub(super) octets: u64,
    pub(super) carried: Option<Box<Carried>>,
    pub(super) since: Ticks,
    /// When there were packets last.
    pub(super) active: Ticks,
    pub(super) in_port: u16,
    pub(super) out_port: u16,
    /// See [`Offer::header_lens`](crate::pipeline::Offer::header_lens).
    pub(super) header_lens: [u8; 2],
    pub(super) is_ipv4: bool,
}

/// What an entry of a tracked connection is.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) key: FlowKey,
    pub(super) flow: OfferedFlow,
    /// Has the flow's counters.
    pub(super) nft: Option<Arc<Nft>>,
}

/// CLOCK_MONOTONIC in units of 2^24 ns, about 17 ms. Wraps after 2.3 years; what is
/// more than half of that away is in the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticks(u32);

impl Ticks {
    const SHIFT: u32 = 24;

    pub(super) fn of(now_ns: u64) -> Ticks {
        Ticks((now_ns >> Ticks::SHIFT) as u32)
    }

    /// The number of units.
    pub(super) fn number(self) -> u32 {
        self.0
    }

    /// Nanoseconds since then; 0 if the clock was read before.
    pub(super) fn elapsed_ns(self, now_ns: u64) -> u64 {
        let ticks = Ticks::of(now_ns).0.wrapping_sub(self.0);
        if ticks > u32::MAX / 2 { 0 } else { u64::from(ticks) << Ticks::SHIFT }
    }
}

/// Entries by number. Memory is used for those that there are, and 4 octets for each that there may be.
#[derive(Debug)]
pub(super) struct InstalledFlows {
    /// One more than the position in `flows`; 0: there is none.
    places: Vec<u32>,
    flows: Slab<Installed>,
}

impl InstalledFlows {
    pub(super) fn new(capacity: usize) -> InstalledFlows {
        InstalledFlows { places: vec![0; capacity], flows: Slab::new() }
    }

    fn place(&self, number: u32) -> Option<usize> {
        (*self.places.get(number as usize)? as usize).checked_sub(1)
    }

    pub(super) fn get(&self, number: u32) -> Option<&Installed> {
        self.flows.get(self.place(number)?)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Installed> {
        let place = self.place(number)?;
        self.flows.get_mut(place)
    }

    /// Keeps an entry; one with its number is forgotten.
    pub(super) fn insert(&mut self, number: u32, installed: Installed) {
        self.remove(number);
        if let Some(place) = self.places.get_mut(number as usize) {
            *place = self.flows.insert(installed) as u32 + 1;
        }
    }

    pub(super) fn remove(&mut self, number: u32) {
        if let Some(place) = self.place(number) {
            self.flows.try_remove(place);
            self.places[number as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(packets: u64) -> Installed {
        Installed {
            count: 0,
            packets,
            octets: 0,
            carried: None,
            since: Ticks::of(0),
            active: Ticks::of(0),
            in_port: 0,
            out_port: 0,
            header_lens: [14; 2],
            is_ipv4: true,
        }
    }

    #[test]
    fn entries_are_found_by_number_until_they_are_removed() {
        let mut flows = InstalledFlows::new(100);
        (0..50).for_each(|number| flows.insert(number * 2, installed(number.into())));
        flows.remove(10);
        flows.remove(11);
        flows.insert(99, installed(7));
        flows.insert(99, installed(8));
        let packets = |number| flows.get(number).map(|it| it.packets);
        assert_eq!((packets(0), packets(10), packets(12)), (Some(0), None, Some(6)));
        assert_eq!((packets(99), packets(100), packets(3)), (Some(8), None, None));
        assert_eq!(flows.flows.len(), 50);
        assert!(size_of::<Option<Installed>>() <= 48);
    }

    #[test]
    fn ticks_tell_how_long_ago_it_was() {
        let then = Ticks::of(u64::from(u32::MAX) << 24);
        assert_eq!(then.elapsed_ns((1 << 56) + (59 << 24) + 5), 60 << 24);
        assert_eq!(Ticks::of(5 << 24).elapsed_ns((5 << 24) - 1), 0);
    }
}
