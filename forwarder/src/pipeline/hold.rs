//! Packets that wait until the kernel has found a neighbour's address (the kernel's `arp_queue`).
//!
//! A packet for a neighbour without an address is held, and the control thread is asked to have
//! the kernel resolve it. With new tables the packets are tried again; after three seconds, the
//! kernel's three probes, they are given up with Host or Address Unreachable
//! (`arp_error_report`, `ndisc_error_report`).

use std::net::IpAddr;

use super::ip_output::PostRouted;
use super::neigh_output::dev_queue_xmit;
use super::{Ctx, IcmpError, icmp_send, icmp6_send};
use crate::neigh::Neighbour;
use crate::skb::{Burst, SkBuff};
use crate::stats::DropReason;
use crate::tables::Link;
use crate::wire::icmpv4::{self, Icmpv4Type};
use crate::wire::icmpv6::{self, Icmpv6Type};

/// Neighbours waited for at once.
const NEIGHBOURS: usize = 64;
/// Packets held for one neighbour. The kernel holds 212,992 octets of memory, some 90 full-sized
/// packets; a TCP connection starts with ten.
const PER_NEIGHBOUR: usize = 32;
/// Frames held in all.
const HELD_MAX: usize = 512;
/// mcast_solicit × retrans_time: when the kernel gives a neighbour up.
const TIMEOUT_NS: u64 = 3_000_000_000;
/// How long to wait before asking again: the kernel forgets whom it looks for when the interface
/// goes down in between.
const ASK_AGAIN_NS: u64 = 250_000_000;
/// How often to look for packets that waited too long.
const POLL_NS: u64 = 50_000_000;

/// The packets for one neighbour; free when there are none.
#[derive(Debug)]
struct Slot {
    oif: u32,
    addr: IpAddr,
    since_ns: u64,
    asked_ns: u64,
    routed: Option<PostRouted>,
    packets: Burst,
}

impl Slot {
    fn is_for(&self, oif: u32, addr: IpAddr) -> bool {
        self.oif == oif && self.addr == addr && !self.packets.is_empty()
    }

    /// Not while its packets are taken out: then it has no room.
    fn is_free(&self) -> bool {
        self.packets.is_empty() && self.packets.room() > 0
    }
}

/// All packets that wait.
#[derive(Debug)]
pub(super) struct HoldQueue {
    slots: Box<[Slot]>,
    /// Frames of the packets in them.
    held: usize,
    generation: u64,
    poll_ns: u64,
}

impl HoldQueue {
    pub(super) fn new() -> HoldQueue {
        let slot = |_| Slot {
            oif: 0,
            addr: IpAddr::V4(0.into()),
            since_ns: 0,
            asked_ns: 0,
            routed: None,
            packets: Burst::with_capacity(PER_NEIGHBOUR),
        };
        let slots = (0..NEIGHBOURS).map(slot).collect();
        HoldQueue { slots, held: 0, generation: 0, poll_ns: 0 }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Packets in them.
    pub(super) fn packets(&self) -> usize {
        self.slots.iter().map(|slot| slot.packets.len()).sum()
    }

    /// The slot for a neighbour, and whether it was free until now.
    fn slot(&mut self, oif: u32, addr: IpAddr) -> Option<(&mut Slot, bool)> {
        let own = self.slots.iter().position(|slot| slot.is_for(oif, addr));
        let at = own.or_else(|| self.slots.iter().position(Slot::is_free))?;
        Some((&mut self.slots[at], own.is_none()))
    }
}

/// Holds a packet until its neighbour is known (`__neigh_event_send`).
#[cold]
pub(super) fn hold(
    mut skb: SkBuff,
    oif: u32,
    addr: IpAddr,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    // There may be other captures when it goes on.
    skb.passed_over = 0;
    let queue = &mut ctx.state.hold;
    // Frames are for packets under way first: a sweep over dead addresses must not take them all.
    let scarce = queue.held >= HELD_MAX.min(ctx.pool.total() as usize / 4);
    if queue.held == 0 {
        queue.generation = ctx.tables.generation;
        queue.poll_ns = ctx.now_ns + POLL_NS;
    }
    let (slot, new) = match queue.slot(oif, addr) {
        Some(found @ (_, new)) if !(new && scarce) => found,
        // Not held, but asked for: once the kernel has the answer, packets flow.
        _ => {
            ctx.out.ask_neigh(oif, addr);
            return ctx.drop_skb(skb, DropReason::NeighQueueFull);
        }
    };
    if new {
        (slot.oif, slot.addr, slot.routed) = (oif, addr, Some(routed.clone()));
        (slot.since_ns, slot.asked_ns) = (ctx.now_ns, ctx.now_ns);
        ctx.out.ask_neigh(oif, addr);
    }
    // As in the kernel, the oldest makes room.
    let full = scarce || slot.packets.room() == 0;
    let oldest = if full { slot.packets.drain(1).next() } else { None };
    let frames = skb.frames();
    let refused = slot.packets.push(skb).err();
    queue.held += frames;
    for skb in [oldest, refused].into_iter().flatten() {
        ctx.state.hold.held -= skb.frames();
        ctx.drop_skb(skb, DropReason::NeighQueueFull);
    }
}

/// Sends the held packets whose neighbour is known by now, and gives up those that waited too
/// long. The worker calls it when it has new tables, and every turn: without held packets, or with
/// nothing new within the last 50 ms, it costs a comparison.
#[inline]
pub fn poll_held(ctx: &mut Ctx<'_>) {
    let queue = &ctx.state.hold;
    let news = queue.generation != ctx.tables.generation;
    if queue.held == 0 || (!news && ctx.now_ns < queue.poll_ns) {
        return;
    }
    poll_slots(ctx);
}

#[cold]
fn poll_slots(ctx: &mut Ctx<'_>) {
    ctx.state.hold.generation = ctx.tables.generation;
    ctx.state.hold.poll_ns = ctx.now_ns + POLL_NS;
    for at in 0..ctx.state.hold.slots.len() {
        let slot = &mut ctx.state.hold.slots[at];
        if slot.packets.is_empty() {
            continue;
        }
        let (oif, addr) = (slot.oif, slot.addr);
        let neigh = ctx.tables.neigh.lookup(oif, &addr).filter(|neigh| neigh.lladdr.is_some());
        let link = ctx.tables.links.ifindex(oif).filter(|link| link.port.is_some());
        // First: after a stall the packets may be of any age.
        if ctx.now_ns.saturating_sub(slot.since_ns) >= TIMEOUT_NS {
            give_up(at, ctx);
        } else if let (Some(neigh), Some(link)) = (neigh, link) {
            release(at, neigh, link, ctx);
        } else if ctx.now_ns.saturating_sub(slot.asked_ns) >= ASK_AGAIN_NS {
            slot.asked_ns = ctx.now_ns;
            ctx.out.ask_neigh(oif, addr);
        }
    }
}

/// Takes the packets out of a slot; it is not free until they are put back, empty.
fn take(at: usize, ctx: &mut Ctx<'_>) -> Burst {
    let empty = Burst::with_capacity(0);
    let packets = std::mem::replace(&mut ctx.state.hold.slots[at].packets, empty);
    ctx.state.hold.held -= packets.frames();
    packets
}

fn release(at: usize, neigh: &Neighbour, link: &Link, ctx: &mut Ctx<'_>) {
    let mut packets = take(at, ctx);
    let routed = ctx.state.hold.slots[at].routed.take();
    for skb in packets.drain(usize::MAX) {
        match (&routed, link.port, neigh.lladdr) {
            (Some(routed), Some(port), Some(lladdr)) => {
                neigh.mark_used();
                dev_queue_xmit(skb, port, link, lladdr, routed, ctx);
            }
            _ => ctx.drop_skb(skb, DropReason::DevNotReady),
        }
    }
    ctx.state.hold.slots[at].packets = packets;
}

/// The quote is of the packet as it was about to leave, as the kernel's is.
fn give_up(at: usize, ctx: &mut Ctx<'_>) {
    const REASON: DropReason = DropReason::NeighFailed;
    let mut packets = take(at, ctx);
    for skb in packets.drain(usize::MAX) {
        // It has been changed already, so it cannot be handed back to the kernel; when the way to
        // its sender is not ours, the sender is not told.
        let _ = match skb.network_header().first().map(|octet| octet >> 4) {
            Some(4) => {
                let (unreach, code) = (Icmpv4Type::DEST_UNREACH.0, icmpv4::unreach::HOST_UNREACH);
                icmp_send(&skb, &IcmpError::new(unreach, code, REASON), ctx)
            }
            _ => {
                let (unreach, code) = (Icmpv6Type::DEST_UNREACH.0, icmpv6::unreach::ADDR_UNREACH);
                icmp6_send(&skb, &IcmpError::new(unreach, code, REASON), ctx)
            }
        };
        ctx.drop_skb(skb, REASON);
    }
    ctx.state.hold.slots[at].packets = packets;
}

/// Drops every held packet.
pub fn drop_held(ctx: &mut Ctx<'_>, reason: DropReason) {
    for at in 0..ctx.state.hold.slots.len() {
        let mut packets = take(at, ctx);
        for skb in packets.drain(usize::MAX) {
            ctx.drop_skb(skb, reason);
        }
        ctx.state.hold.slots[at].packets = packets;
    }
}
