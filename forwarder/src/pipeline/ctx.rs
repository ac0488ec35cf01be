//! What the road is given and what it leaves behind.
//!
//! [`Ctx`] borrows everything for one burst; [`PipelineState`] is what a worker's pipeline
//! remembers between bursts; [`Effects`] is what the worker has to carry out afterwards. All
//! memory is allocated when they are made.

use std::net::IpAddr;

use super::hold_queue::HoldQueue;
use super::post_routing::RoutedBurst;
use super::ratelimit::IcmpLimiter;
use crate::capture::Tap;
use crate::skb::{Burst, FramePool, SkBuff, burst::BURST};
use crate::stats::{DropReason, PuntReason, WorkerStats};
use crate::tables::Tables;

/// Frames that one call may put on one port: a burst, and room for fragments. What is beyond is
/// dropped as FULL_RING; the device's own queue would not have taken it either (the kernel's
/// default txqueuelen is 1000).
pub const EGRESS: usize = 1024;

/// Neighbours asked for in one call. More are asked for again with the next packet.
pub const NEIGH_REQUESTS: usize = 64;

/// Packets that one call may hand back to the kernel.
const PUNTS: usize = 2 * BURST;

/// One burst's surroundings.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// The network as the control thread last published it. Read only.
    pub tables: &'a Tables,
    /// Free frames: ICMP errors and fragments take from it, dropped packets return to it.
    pub pool: &'a mut FramePool,
    /// What happened, counted.
    pub stats: &'a WorkerStats,
    /// What is remembered between bursts.
    pub state: &'a mut PipelineState,
    /// What is to be done afterwards.
    pub out: &'a mut Effects,
    /// The worker's clock, nanoseconds.
    pub now_ns: u64,
}

/// What a worker's pipeline remembers between bursts.
#[derive(Debug)]
pub struct PipelineState {
    /// Limits of ICMP errors.
    pub(super) limiter: IcmpLimiter,
    /// Packets that wait for a neighbour's address.
    pub(super) hold: HoldQueue,
    /// The next IPv4 identification of a packet of our own.
    pub(super) ip_id: u16,
    /// Keeps others from foreseeing which path a flow takes.
    pub(super) hash_seed: u64,
    /// Added to the worker's clock it gives nanoseconds since midnight UTC of some day; for the
    /// IPv4 timestamp option. The worker sets it at start, and again as often as it likes.
    pub utc_offset_ns: u64,
}

impl PipelineState {
    /// The state of one of `workers` workers. They share the namespace's limit of ICMP messages
    /// evenly. `seed` should be random.
    pub fn new(seed: u64, workers: usize) -> PipelineState {
        PipelineState {
            limiter: IcmpLimiter::new(seed, workers),
            hold: HoldQueue::new(),
            ip_id: (seed >> 16) as u16,
            hash_seed: seed,
            utc_offset_ns: 0,
        }
    }

    /// Sets the seed of the flow hash: workers must agree on it, for the packets of one flow, and
    /// the ICMP errors about it, come by different queues.
    #[must_use]
    pub fn with_hash_seed(self, hash_seed: u64) -> PipelineState {
        PipelineState { hash_seed, ..self }
    }

    /// Frames of packets that wait for a neighbour: the `held` of the conservation law.
    pub fn held(&self) -> usize {
        self.hold.held
    }

    /// The packets that wait for a neighbour.
    pub fn held_packets(&self) -> usize {
        self.hold.packets()
    }
}

/// What the worker has to carry out after a call: send, hand back, ask.
#[derive(Debug)]
pub struct Effects {
    /// Frames to send, by port.
    pub egress: Box<[RoutedBurst]>,
    /// Packets for the kernel. Who hands them over counts them ([`WorkerStats::punt`]), or drops them.
    pub punts: Burst,
    /// Why, for each of them.
    pub punt_reasons: Vec<PuntReason>,
    /// Neighbours whose address is wanted: (ifindex, address). At most [`NEIGH_REQUESTS`].
    pub neigh_requests: Vec<(u32, IpAddr)>,
    /// Captures, which are shown what is dropped.
    pub tap: Tap,
}

impl Effects {
    /// Nothing to do, on `ports` ports.
    pub fn new(ports: usize) -> Effects {
        Effects {
            egress: (0..ports).map(|_| RoutedBurst::with_capacity(EGRESS)).collect(),
            punts: Burst::with_capacity(PUNTS),
            punt_reasons: Vec::with_capacity(PUNTS),
            neigh_requests: Vec::with_capacity(NEIGH_REQUESTS),
            tap: Tap::new(),
        }
    }

    /// Frames waiting to be sent or handed back.
    pub fn len(&self) -> usize {
        self.egress.iter().map(RoutedBurst::frames).sum::<usize>() + self.punts.frames()
    }

    /// Whether there is nothing to send or hand back.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes a wish for a neighbour's address, once.
    pub(super) fn ask_neigh(&mut self, oif: u32, addr: IpAddr) {
        if self.neigh_requests.len() < NEIGH_REQUESTS && !self.neigh_requests.contains(&(oif, addr))
        {
            self.neigh_requests.push((oif, addr));
        }
    }
}

impl Ctx<'_> {
    /// `kfree_skb_reason`: ends a packet and counts why.
    pub(super) fn drop_skb(&mut self, skb: SkBuff, reason: DropReason) {
        self.stats.drop(reason);
        if self.out.tap.is_on() {
            self.out.tap.dropped(&skb, reason);
        }
        if let Some(port) = self.stats.ports.get(usize::from(skb.port)).filter(|_| skb.iif != 0) {
            port.rx_dropped.inc();
        }
        self.pool.kfree_skb(skb);
    }

    /// `icmp_global_allow`, with the namespace's settings.
    pub(super) fn icmp_global_allow(&mut self) -> bool {
        let sysctl = &self.tables.sysctl;
        let (per_sec, burst) = (sysctl.icmp_msgs_per_sec, sysctl.icmp_msgs_burst);
        self.state.limiter.global_allow(per_sec, burst, self.now_ns)
    }

    /// Ends a packet that was used up, not lost (`consume_skb`).
    pub(super) fn consume_skb(&mut self, skb: SkBuff) {
        self.pool.kfree_skb(skb);
    }

    /// Hands a packet back to the kernel.
    pub(super) fn punt_skb(&mut self, mut skb: SkBuff, reason: PuntReason) {
        // The kernel would take the partial checksum for a wrong one.
        super::csum_partial::skb_checksum_help(&mut skb);
        if let Some(link) = self.tables.links.port(skb.port) {
            // The kernel finds the VLAN by itself.
            skb.iif = link.ifindex;
        }
        if let Err(skb) = self.out.punts.push(skb) {
            return self.drop_skb(skb, DropReason::PuntFailed);
        }
        self.out.punt_reasons.push(reason);
    }
}
