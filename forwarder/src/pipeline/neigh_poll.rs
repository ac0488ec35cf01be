//! Packets held for a neighbour: sent once it is resolved, or dropped after a timeout.
//!
//! They are tried again with each new generation of tables; when the kernel has given up, after three seconds by
//! default, they are dropped with Host Unreachable or Address Unreachable (`arp_error_report`,
//! `ndisc_error_report`).

use super::icmp_send::icmp_send;
use super::icmp6_send::icmp6_send;
use super::neigh_hold::POLL_NS;
use super::neigh_output::dev_queue_xmit;
use super::{Ctx, IcmpError};
use crate::neigh::Neighbour;
use crate::stats::DropReason;
use crate::tables::{Link, NEIGH_TRIED_NS};
use crate::wire::icmpv4::{self, Icmpv4Type};
use crate::wire::icmpv6::{self, Icmpv6Type};

/// Interval between requests: the kernel discards its pending resolutions when the interface goes down.
const ASK_AGAIN_NS: u64 = 250_000_000;

/// Sends the held packets whose neighbour is resolved by now, and drops those that waited too long. The
/// worker calls it when it has new tables, and in every poll iteration: without held packets, or with
/// unchanged tables and less than 50 ms after the last check, it costs a comparison.
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
        let link = ctx.tables.links.ifindex(oif);
        let tried_ns =
            link.map_or(NEIGH_TRIED_NS, |link| link.neigh_tried_ns[usize::from(addr.is_ipv6())]);
        let link = link.filter(|link| link.port.is_some());
        // Checked first: after a stall the packets may be of any age.
        if ctx.now_ns.saturating_sub(slot.since_ns) >= tried_ns {
            give_up(at, ctx);
        } else if let (Some(neigh), Some(link)) = (neigh, link) {
            release(at, neigh, link, ctx);
        } else if ctx.now_ns.saturating_sub(slot.asked_ns) >= ASK_AGAIN_NS {
            slot.asked_ns = ctx.now_ns;
            ctx.out.request_neigh(oif, addr);
        }
    }
}

fn release(at: usize, neigh: &Neighbour, link: &Link, ctx: &mut Ctx<'_>) {
    let mut packets = ctx.state.hold.take(at);
    for (skb, routed) in packets.drain_routed() {
        match (link.port, neigh.lladdr) {
            (Some(port), Some(lladdr)) => {
                neigh.mark_used();
                dev_queue_xmit(skb, port, link, lladdr, &routed, ctx);
            }
            _ => ctx.drop_skb(skb, DropReason::DevNotReady),
        }
    }
    ctx.state.hold.put_back(at, packets);
}

/// Drops the packets of a slot with ICMP errors, which quote the packet as it was about to be sent, as in
/// the kernel.
fn give_up(at: usize, ctx: &mut Ctx<'_>) {
    const REASON: DropReason = DropReason::NeighFailed;
    let mut packets = ctx.state.hold.take(at);
    for skb in packets.drain(usize::MAX) {
        // The packet has already been changed, so it cannot be punted; if only the kernel can send to its
        // sender, no error is sent.
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
    ctx.state.hold.put_back(at, packets);
}

/// Drops every held packet.
pub fn drop_held(ctx: &mut Ctx<'_>, reason: DropReason) {
    for at in 0..ctx.state.hold.slots.len() {
        let mut packets = ctx.state.hold.take(at);
        for skb in packets.drain(usize::MAX) {
            ctx.drop_skb(skb, reason);
        }
        ctx.state.hold.put_back(at, packets);
    }
}
