//! Inputs, state and outputs of the data path.
//!
//! [`Ctx`] borrows everything for one burst; [`PipelineState`] is the state of a worker's pipeline that
//! persists between bursts; [`Effects`] is the work left for the worker afterwards. All memory is
//! allocated on construction.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use super::flow_cache::FlowCache;
use super::frag_queue::{FragQueues, HELD_MAX};
use super::hold_queue::HoldQueue;
use super::nf_hook::HookEnv;
use super::offload::{MeterReader, OFFERS, Offer, Offload, OffloadPorts};
use super::packet_mibs::PacketMibs;
use super::post_routing::RoutedBurst;
use super::ratelimit::IcmpLimiter;
use super::secpath::Kept;
use super::xfrm_ahead::SasAhead;
use crate::capture::Tap;
use crate::netfilter::{HookStates, Hooks};
use crate::skb::{Burst, FramePool, SkBuff, burst::BURST};
use crate::stats::{DropReason, Mib, PuntReason, WorkerStats};
use crate::tables::{Epochs, Tables};
use crate::trace::{FinalDisposition, Traces};

/// Frames that one call may queue on one port: a burst, and room for fragments. Packets in excess are
/// dropped as FULL_RING; the device's own queue would not have taken them either (the kernel's default
/// txqueuelen is 1000).
pub const EGRESS: usize = 1024;

/// Neighbours requested in one call. Further ones are requested with a later packet.
pub const NEIGH_REQUESTS: usize = 64;

/// Packets that one call may hand back to the kernel.
const PUNTS: usize = 2 * BURST + HELD_MAX;

/// The context of one burst.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// The tables that the control thread published last. Read only.
    pub tables: &'a Tables,
    /// The hook functions that the control thread published last.
    pub hooks: &'a Hooks,
    /// Free frames: ICMP errors and fragments are allocated from it, dropped packets return to it.
    pub pool: &'a mut FramePool,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// State that persists between bursts.
    pub state: &'a mut PipelineState,
    /// Work left for the worker.
    pub out: &'a mut Effects,
    /// The worker's clock, nanoseconds.
    pub now_ns: u64,
}

/// State of a worker's pipeline that persists between bursts.
#[derive(Debug)]
pub struct PipelineState {
    /// Rate limits of ICMP errors.
    pub(super) limiter: IcmpLimiter,
    /// The MIB counters of the current packet.
    pub(super) mibs: PacketMibs,
    /// Packets that wait for a neighbour's address.
    pub(super) hold: HoldQueue,
    /// What hook functions keep.
    pub(super) hooks: HookStates,
    /// Where packets of carried flows leave.
    pub(super) flow_cache: FlowCache,
    /// Flows that could be offloaded to the XDP program.
    pub(super) offload: Offload,
    /// The SAs of a burst's packets.
    pub(super) sas_ahead: SasAhead,
    /// Fragments of IPsec packets that wait for the others.
    pub(super) frags: FragQueues,
    /// The IPsec packet whose protection was removed last, as it was received.
    pub(super) xfrm_received: Kept,
    /// The packet that was protected last, as it was before.
    pub(super) xfrm_unsealed: Kept,
    /// The next IPv4 identification of a packet of our own.
    pub(super) ip_id: u16,
    /// Makes the path that a flow takes unpredictable to others.
    pub(super) hash_seed: u64,
    /// Added to the worker's clock gives nanoseconds of UTC since 1970; for the IPv4
    /// timestamp option and the limits of SAs. Set by the worker at start and updated at any interval.
    pub utc_offset_ns: u64,
}

impl PipelineState {
    /// The state of one of `workers` workers, which share the namespace's limit of ICMP messages evenly.
    /// `seed` should be random.
    pub fn new(seed: u64, workers: usize) -> PipelineState {
        PipelineState {
            limiter: IcmpLimiter::new(seed, workers),
            mibs: PacketMibs::default(),
            hold: HoldQueue::new(),
            hooks: HookStates::new(0),
            flow_cache: FlowCache::new(seed),
            offload: Offload::default(),
            sas_ahead: SasAhead::new(),
            frags: FragQueues::new(),
            xfrm_received: Kept::new(),
            xfrm_unsealed: Kept::new(),
            ip_id: (seed >> 16) as u16,
            hash_seed: seed,
            utc_offset_ns: 0,
        }
    }

    /// Sets the seed of the flow hash. It must be the same for all workers: packets of one flow, and the
    /// ICMP errors about it, arrive on different queues.
    #[must_use]
    pub fn with_hash_seed(self, hash_seed: u64) -> PipelineState {
        PipelineState { hash_seed, ..self }
    }

    /// Sets the number of the worker; 0 if this is not called.
    #[must_use]
    pub fn of_worker(self, worker: usize) -> PipelineState {
        PipelineState { hooks: HookStates::new(worker), ..self }
    }

    /// Offers flows with `threshold` packets within a second between these ports to be offloaded. `seed`: random.
    #[must_use]
    pub fn with_offload(
        self,
        ports: Arc<OffloadPorts>,
        threshold: Arc<AtomicU16>,
        seed: u64,
    ) -> Self {
        PipelineState { offload: Offload::new(ports, threshold, seed), ..self }
    }

    /// The counts of packets by which flows are offered, for other threads. `None`: nothing is offered.
    pub fn meter(&self) -> Option<MeterReader> {
        self.offload.on.as_ref().map(|on| on.meter.reader())
    }

    /// To be called before tables and hook functions are refreshed, with the epochs.
    #[inline]
    pub fn before_refresh(&mut self, epochs: &Epochs) {
        self.offload.begin(epochs);
    }

    /// Sets what, added to the worker's clock, gives CLOCK_MONOTONIC, nanoseconds.
    pub fn set_monotonic_offset_ns(&mut self, offset_ns: u64) {
        self.hooks.monotonic_offset_ns = offset_ns;
    }

    /// To be called whenever the hook functions have changed, before they run.
    pub fn take_hook_states(&mut self, hooks: &Hooks) {
        self.hooks.take(hooks);
    }

    /// Frames of packets that wait, for a neighbour or for other fragments: `held` in the frame accounting.
    pub fn held(&self) -> usize {
        self.hold.held + self.frags.held()
    }

    /// The packets that wait.
    pub fn held_packets(&self) -> usize {
        self.hold.packets() + self.frags.packets()
    }
}

/// Work left for the worker after a call: packets to send, packets to punt, neighbours to resolve.
#[derive(Debug)]
pub struct Effects {
    /// Frames to send, by port.
    pub egress: Box<[RoutedBurst]>,
    /// Packets for the kernel. The caller punts them and counts them ([`WorkerStats::punt`]), or drops
    /// them.
    pub punts: Burst,
    /// The punt reason of each of them.
    pub punt_reasons: Vec<PuntReason>,
    /// Neighbours to be resolved: (ifindex, address). At most [`NEIGH_REQUESTS`].
    pub neigh_requests: Vec<(u32, IpAddr)>,
    /// Flows that could be offloaded. At most [`OFFERS`].
    pub offers: Vec<Offer>,
    /// Captures, which also see dropped packets.
    pub tap: Tap,
    /// Traces.
    pub trace: Traces,
}

impl Effects {
    /// Empty queues for `ports` ports.
    pub fn new(ports: usize) -> Effects {
        Effects {
            egress: (0..ports).map(|_| RoutedBurst::with_capacity(EGRESS)).collect(),
            punts: Burst::with_capacity(PUNTS),
            punt_reasons: Vec::with_capacity(PUNTS),
            neigh_requests: Vec::with_capacity(NEIGH_REQUESTS),
            offers: Vec::with_capacity(OFFERS),
            tap: Tap::new(),
            trace: Traces::new(),
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

    /// Requests resolution of a neighbour, once per call.
    pub(super) fn request_neigh(&mut self, oif: u32, addr: IpAddr) {
        if self.neigh_requests.len() < NEIGH_REQUESTS && !self.neigh_requests.contains(&(oif, addr))
        {
            self.neigh_requests.push((oif, addr));
        }
    }
}

impl Ctx<'_> {
    /// `kfree_skb_reason`: frees a packet and counts the reason.
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

    /// [`Ctx::drop_skb`] of a packet that has been routed: its trace does not know yet.
    #[cold]
    pub(super) fn drop_output(&mut self, skb: SkBuff, reason: DropReason) {
        self.out.trace.note(FinalDisposition::Dropped(reason));
        self.drop_skb(skb, reason);
    }

    /// The current packet counts there, unless it is handed to the kernel.
    #[inline(always)]
    pub(super) fn mib(&self, name: Mib) {
        self.state.mibs.count(name);
    }

    /// Seconds of UTC since 1970, which the limits of SAs are in.
    pub(super) fn now_s(&self) -> u64 {
        self.now_ns.wrapping_add(self.state.utc_offset_ns) / 1_000_000_000
    }

    /// Changes when an ICMP error is sent; not when one is made and hook functions drop it.
    pub(super) fn errors_sent(&self) -> u64 {
        let dropped = self.stats.drops[DropReason::NetfilterDrop as usize].get();
        self.stats.made.get().wrapping_sub(dropped)
    }

    /// For [`nf_hook`](super::nf_hook::nf_hook).
    #[inline]
    pub(super) fn hook_env(&mut self) -> HookEnv<'_> {
        HookEnv {
            hooks: self.hooks,
            states: &mut self.state.hooks,
            tables: self.tables,
            stats: self.stats,
            trace: &mut self.out.trace,
            now_ns: self.now_ns,
        }
    }

    /// `icmp_global_allow`, with the namespace's settings.
    pub(super) fn icmp_global_allow(&mut self) -> bool {
        let sysctl = &self.tables.sysctl;
        let (per_sec, burst) = (sysctl.icmp_msgs_per_sec, sysctl.icmp_msgs_burst);
        self.state.limiter.global_allow(per_sec, burst, self.now_ns)
    }

    /// Frees a packet that was consumed, not lost (`consume_skb`).
    pub(super) fn consume_skb(&mut self, skb: SkBuff) {
        self.pool.kfree_skb(skb);
    }

    /// Hands a packet back to the kernel.
    pub(super) fn punt_skb(&mut self, mut skb: SkBuff, reason: PuntReason) {
        // The kernel would treat the partial checksum as a wrong one.
        super::csum_partial::skb_checksum_help(&mut skb);
        if let Some(link) = self.tables.links.port(skb.port) {
            // The kernel determines the VLAN itself.
            skb.iif = link.ifindex;
        }
        if let Err(skb) = self.out.punts.push(skb) {
            return self.drop_output(skb, DropReason::PuntFailed);
        }
        self.out.punt_reasons.push(reason);
    }
}
