//! Flow offload: the flows that the XDP program could forward by itself, as their packets were forwarded here.
//!
//! A flow is offered when enough of its packets were seen within about 8 seconds. An offer has the key of a packet as
//! received, the link-layer addresses and the translation of the frame as sent, and the epochs that the decision depends
//! on. The thread that takes it makes no decision of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};

use smallvec::SmallVec;
use xdp_prog::{FLOW_WORDS, VlanKey};

use crate::hash_table::{hash_words, mix};
use crate::netfilter::conntrack::{FlowKey, FoundFlow};
use crate::tables::Epochs;

/// Flows that a worker may offer at a time. Others are offered with a later packet.
pub const OFFERS: usize = 1024;
/// Places of a worker's [`FlowMeter`].
const PLACES: usize = 1 << 16;
/// The packets for which a carried flow is offered, if the threshold is not lower: the kernel has already seen packets
/// both ways.
const THRESHOLD_CARRIED: u16 = 4;

/// Which ports take part, by number. The control thread sets it.
#[derive(Debug, Default)]
pub struct OffloadPorts(Box<[AtomicU8]>);

impl OffloadPorts {
    /// Flows that arrive on the port may be offloaded.
    pub const RX: u8 = 1;
    /// Flows that leave by the port may be.
    pub const TX: u8 = 2;

    /// None of `ports` ports.
    pub fn new(ports: usize) -> OffloadPorts {
        OffloadPorts((0..ports).map(|_| AtomicU8::new(0)).collect())
    }

    /// Sets the bits of a port. Returns what they were.
    pub fn set(&self, port: u16, bits: u8) -> u8 {
        self.0.get(usize::from(port)).map_or(0, |it| it.swap(bits, Relaxed))
    }

    /// Whether any port takes part.
    pub fn has_any(&self) -> bool {
        self.0.iter().any(|it| it.load(Relaxed) != 0)
    }

    /// Whether a port has a bit.
    #[inline]
    pub fn has(&self, port: u16, bit: u8) -> bool {
        self.0.get(usize::from(port)).is_some_and(|it| it.load(Relaxed) & bit != 0)
    }
}

/// A flow that could be offloaded.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The key of its packets as the XDP program makes it, without the interface.
    pub key: [u64; FLOW_WORDS],
    /// Number of the interface that packets come from: see [`Link::flow_number`](crate::tables::Link::flow_number).
    pub in_dev: u16,
    /// [`Links::id`](crate::tables::Links::id) of those that have the number.
    pub links: u64,
    /// Its port.
    pub in_port: u16,
    /// The port that they leave by.
    pub out_port: u16,
    /// The tags that they leave with; 0: none.
    pub tags: VlanKey,
    /// Lengths of the link-layer headers that frames come with and leave with, octets.
    pub header_lens: [u8; 2],
    /// The longest packet, octets from the IP header on.
    pub mtu: u16,
    /// The link-layer addresses of frames: destination, source.
    pub macs: [[u8; 6]; 2],
    /// ifindex of the outgoing interface, and the neighbour's address.
    pub nexthop: (u32, IpAddr),
    /// The sum of the epochs that it depends on, without that of the next hop.
    pub basis: u32,
    /// [`Epochs::neigh_changes`] before the packet was forwarded.
    pub neigh_changes: u64,
    /// Set if it is a flow of a tracked connection.
    pub carried: Option<OfferedFlow>,
}

/// What an offer of a tracked connection's flow depends on and does besides.
#[derive(Debug, Clone)]
pub struct OfferedFlow {
    /// The flow.
    pub flow: FoundFlow,
    /// What NAT makes of its packets.
    pub target: Option<FlowKey>,
    /// The ruleset's counters that each packet passes, and the ruleset by [`Hooks::nft_id`].
    ///
    /// [`Hooks::nft_id`]: crate::netfilter::Hooks::nft_id
    pub counters: SmallVec<[u32; 6]>,
    /// See `counters`.
    pub nft_id: u64,
}

impl Offer {
    /// What NAT makes of the flow's packets, if anything.
    pub fn target(&self) -> Option<FlowKey> {
        self.carried.as_ref().and_then(|carried| carried.target)
    }
}

/// A carried flow whose packet is being forwarded, to be offered once it has passed all hooks.
#[derive(Debug)]
pub(super) struct Due {
    pub key: FlowKey,
    pub carried: OfferedFlow,
}

/// A worker's state.
#[derive(Debug, Default)]
pub(super) struct Offload {
    /// Nothing is offered without.
    pub on: Option<On>,
}

/// The state of a worker that offers flows.
#[derive(Debug)]
pub(super) struct On {
    pub ports: Arc<OffloadPorts>,
    pub meter: FlowMeter,
    /// Of [`Epochs`], before the tables were refreshed.
    pub changes: u64,
    pub neigh_changes: u64,
    /// The flow of the present packet has had enough packets.
    is_due: bool,
    pub due: Option<Due>,
}

impl Offload {
    /// Offers flows with `threshold` packets within about 8 seconds between these ports. `seed`: random.
    pub fn new(ports: Arc<OffloadPorts>, threshold: Arc<AtomicU16>, seed: u64) -> Offload {
        let meter = FlowMeter::new(threshold, seed);
        let on = On { ports, meter, changes: 0, neigh_changes: 0, is_due: false, due: None };
        Offload { on: Some(on) }
    }

    /// Whether anything is offered.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// To be called before the tables are refreshed: what is decided afterwards depends on the epochs as they are, or
    /// on newer ones.
    #[inline]
    pub fn begin(&mut self, epochs: &Epochs) {
        if let Some(on) = &mut self.on {
            (on.changes, on.neigh_changes) = (epochs.changes(), epochs.neigh_changes());
        }
    }

    /// A packet of a carried flow, received on `port`, can pass as others of it did. Returns whether the flow is to be
    /// offered with this one: then it is to be routed again.
    #[inline]
    pub fn is_due(&mut self, key: &FlowKey, port: u16, now_ns: u64) -> bool {
        let Some(on) = &mut self.on else { return false };
        on.due = None;
        let hash = key.hash(on.meter.seed);
        on.is_due = on.ports.has(port, OffloadPorts::RX) && on.meter.count_carried(hash, now_ns);
        on.is_due
    }

    /// The same of a packet that the XDP program would leave to workers: its flow is not offered.
    #[inline]
    pub fn is_never_due(&mut self) {
        if let Some(on) = &mut self.on {
            (on.is_due, on.due) = (false, None);
        }
    }

    /// A packet of a carried flow passes, and has been routed and translated.
    #[inline]
    pub fn passes(&mut self, key: &FlowKey, carried: impl FnOnce() -> OfferedFlow) {
        if let Some(on) = &mut self.on
            && std::mem::take(&mut on.is_due)
        {
            on.due = Some(Due { key: *key, carried: carried() });
        }
    }
}

/// Counts packets by flow, to find those with many. Two flows may have the same place: the one with fewer packets
/// then loses it, and where places are changes with each window.
#[derive(Debug)]
pub(super) struct FlowMeter {
    /// Flow (upper half), window (16 bits), packets (16 bits). Only the worker writes them.
    places: Arc<[AtomicU64]>,
    /// At least 1. Wo: the control thread.
    threshold: Arc<AtomicU16>,
    pub seed: u64,
}

/// The window in which packets of a flow are counted: 2^33 ns, about 8 seconds.
const WINDOW_SHIFT: u32 = 33;

impl FlowMeter {
    pub fn new(threshold: Arc<AtomicU16>, seed: u64) -> FlowMeter {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        FlowMeter { places, threshold, seed }
    }

    #[inline]
    fn threshold(&self) -> u16 {
        self.threshold.load(Relaxed)
    }

    /// Reads the counts of this meter from other threads.
    pub fn reader(&self) -> MeterReader {
        let FlowMeter { places, threshold, seed } = self;
        MeterReader { places: Arc::clone(places), threshold: Arc::clone(threshold), seed: *seed }
    }

    /// Counts a packet of the flow with this hash. Returns whether it has had as many in this window, and begins anew.
    #[inline]
    pub fn count(&mut self, hash: u64, now_ns: u64) -> bool {
        self.reaches(self.threshold(), hash, now_ns)
    }

    /// As [`FlowMeter::count`], of a flow that is carried.
    #[inline]
    fn count_carried(&mut self, hash: u64, now_ns: u64) -> bool {
        self.reaches(self.threshold().min(THRESHOLD_CARRIED), hash, now_ns)
    }

    #[inline]
    fn reaches(&mut self, threshold: u16, hash: u64, now_ns: u64) -> bool {
        let window = window(now_ns);
        let Some(place) = self.places.get(place_of(hash, window)) else { return false };
        let counted = place.load(Relaxed);
        let (flow, then, packets) = (counted >> 32, counted >> 16 & 0xffff, counted & 0xffff);
        let new = |packets: u64| hash >> 32 << 32 | window << 16 | packets;
        let packets = match flow == hash >> 32 && then == window {
            true => packets + 1,
            false if then == window && packets > 1 => {
                place.store(counted - 1, Relaxed);
                return false;
            }
            false => 1,
        };
        let is_due = packets >= u64::from(threshold);
        place.store(new(if is_due { 0 } else { packets }), Relaxed);
        is_due
    }
}

/// The window that a time is in.
#[inline]
fn window(now_ns: u64) -> u64 {
    now_ns >> WINDOW_SHIFT & 0xffff
}

/// The place of the flow with this hash.
#[inline]
fn place_of(hash: u64, window: u64) -> usize {
    (mix(hash ^ window) >> 48) as usize
}

/// Reads the packets that a worker has counted of a flow.
#[derive(Debug, Clone)]
pub struct MeterReader {
    places: Arc<[AtomicU64]>,
    threshold: Arc<AtomicU16>,
    seed: u64,
}

impl MeterReader {
    /// Packets of a carried flow, in this window and since it was last offered, and from how many on it is offered.
    /// `now_ns`: by the worker's clock.
    pub fn carried(&self, key: &FlowKey, now_ns: u64) -> (u16, u16) {
        let threshold = self.threshold.load(Relaxed).min(THRESHOLD_CARRIED);
        (self.packets(key.hash(self.seed), now_ns), threshold)
    }

    /// The same of packets with the addresses of a key of [`Width`](xdp_prog::offload::Width).
    pub fn wide(&self, key: &FlowKey, now_ns: u64) -> (u16, u16) {
        (self.packets(wide_hash(key, self.seed), now_ns), self.threshold.load(Relaxed))
    }

    fn packets(&self, hash: u64, now_ns: u64) -> u16 {
        let window = window(now_ns);
        let counted = self.places.get(place_of(hash, window)).map_or(0, |it| it.load(Relaxed));
        let is_its = counted >> 32 == hash >> 32 && counted >> 16 & 0xffff == window;
        if is_its { counted as u16 } else { 0 }
    }
}

/// The hash by which packets with the addresses of a key are counted.
#[inline]
pub(super) fn wide_hash(key: &FlowKey, seed: u64) -> u64 {
    hash_words(seed, key.words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_due_with_its_packets_of_one_window() {
        let mut meter = FlowMeter::new(Arc::new(64.into()), 1);
        let hash = |n: u64| mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234);
        assert_eq!((0..128).filter(|_| meter.count(hash(1), 0)).count(), 2);
        // As many, but over two windows.
        assert!(!(0..40).any(|_| meter.count(hash(2), 1 << (WINDOW_SHIFT - 1))));
        assert!(!(0..40).any(|_| meter.count(hash(2), 1 << WINDOW_SHIFT)));
        assert_eq!(
            (0..3).filter(|_| FlowMeter::new(Arc::new(1.into()), 1).count(hash(3), 0)).count(),
            3
        );
    }

    #[test]
    fn other_threads_read_what_a_worker_has_counted() {
        let mut meter = FlowMeter::new(Arc::new(64.into()), 9);
        let reader = meter.reader();
        let key = FlowKey::new([10, 0, 0, 1].into(), [192, 0, 2, 1].into(), 17, 1000, 53);
        for n in 1..=3 {
            assert!(!meter.count_carried(key.hash(9), 5));
            assert_eq!(reader.carried(&key, 6), (n, THRESHOLD_CARRIED));
        }
        assert!(meter.count_carried(key.hash(9), 7));
        assert_eq!(reader.carried(&key, 8).0, 0, "it begins anew");
        let wide = FlowKey::new([10, 0, 0, 1].into(), [192, 0, 2, 1].into(), 0, 0, 0);
        (0..9).for_each(|_| assert!(!meter.count(wide_hash(&wide, 9), 5)));
        assert_eq!(reader.wide(&wide, 6), (9, 64));
        assert_eq!(reader.wide(&wide, 1 << WINDOW_SHIFT), (0, 64), "another window");
        assert_eq!(reader.wide(&key, 6), (0, 64), "another flow");
    }

    #[test]
    fn many_flows_become_due_and_floods_of_single_packets_do_not() {
        let mut meter = FlowMeter::new(Arc::new(64.into()), 1);
        let hash = |n: u64| mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234);
        let mut due = std::collections::HashSet::new();
        for window in 0..8u64 {
            for _ in 0..64 {
                for flow in 0..20_000 {
                    if !due.contains(&flow) && meter.count(hash(flow), window << WINDOW_SHIFT) {
                        due.insert(flow);
                    }
                }
            }
        }
        assert!(due.len() > 19_900, "{} of 20,000", due.len());
        let flood = (0..1_000_000u64).filter(|n| meter.count(hash(1 << 32 | n), 9 << WINDOW_SHIFT));
        assert_eq!(flood.count(), 0);
    }
}
