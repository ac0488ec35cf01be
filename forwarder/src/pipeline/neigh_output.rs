//! The last step: the link-layer header, and the queue of the outgoing port (`neigh_output`,
//! `dev_queue_xmit` of the kernel).

use std::net::IpAddr;

use super::Ctx;
use super::csum_partial::skb_checksum_help;
use super::dst::Dst;
use super::neigh_hold::hold;
use super::post_routing::PostRouted;
use super::vlan::vlan_dev_hard_header;
use crate::skb::SkBuff;
use crate::stats::DropReason;
use crate::tables::Link;
use crate::trace::FinalDisposition;
use crate::wire::ethernet::{EthernetFrame, HEADER_LEN, MacAddr};

/// `neigh_hh_output`: completes the frame of a packet that is sent unfragmented and of which only the
/// addresses are left to write. `false`: there is more to do, and nothing was changed.
#[inline(always)]
pub(super) fn neigh_hh_output(skb: &mut SkBuff, dst: &Dst<'_>, _routed: &PostRouted) -> bool {
    if let (Some(neigh), Some(hh)) = (dst.neigh, &dst.hh)
        && dst.fits(skb)
        && let Some(header) = skb.set_mac_chunk::<HEADER_LEN>()
    {
        hh.write(header);
        neigh.mark_used();
        skb_checksum_help(skb);
        return true;
    }
    false
}

/// Sends a packet to a neighbour, or holds it until the neighbour's address is known.
#[inline(always)]
pub(super) fn neigh_output(
    skb: SkBuff,
    dst: &Dst<'_>,
    nexthop: &IpAddr,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    let oif = dst.dev.ifindex;
    let neigh = dst.neigh.or_else(|| ctx.tables.neigh.lookup(oif, nexthop));
    if let Some(neigh) = neigh
        && let Some(lladdr) = neigh.lladdr
    {
        neigh.mark_used();
        return dev_queue_xmit(skb, dst.port, dst.dev, lladdr, routed, ctx);
    }
    hold(skb, oif, *nexthop, routed, ctx);
}

/// Writes the link-layer addresses, and the tags if the interface has some, and queues the frame on its
/// port. The EtherType is already in front of the IP header: it was received with the packet, or written
/// when the packet was created.
#[inline(always)]
pub(super) fn dev_queue_xmit(
    mut skb: SkBuff,
    port: u16,
    dev: &Link,
    lladdr: [u8; 6],
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    skb_checksum_help(&mut skb);
    if !dev.up {
        return ctx.drop_output(skb, DropReason::DevNotReady);
    }
    // A packet received with tags and sent without them is shorter.
    let header = match &dev.vlan {
        None => skb.set_mac_chunk::<HEADER_LEN>(),
        Some(vlan) => vlan_dev_hard_header(&mut skb, vlan, ctx.tables)
            .and_then(|header| header.first_chunk_mut()),
    };
    let Some(header) = header else {
        return ctx.drop_output(skb, DropReason::SkbNoHeadroom);
    };
    let mut frame = EthernetFrame::new_unchecked(header);
    frame.set_dst_addr(MacAddr(lladdr));
    frame.set_src_addr(MacAddr(dev.mac));
    enqueue(skb, port, routed, ctx);
}

/// Appends a complete frame to its port's queue.
#[inline]
pub(super) fn enqueue(skb: SkBuff, port: u16, routed: &PostRouted, ctx: &mut Ctx<'_>) {
    let Some(egress) = ctx.out.egress.get_mut(usize::from(port)) else {
        return ctx.drop_output(skb, DropReason::DevNotReady);
    };
    if let Err(skb) = egress.push(skb, routed) {
        refuse(skb, port, ctx);
    }
}

/// The queue is full.
#[cold]
fn refuse(skb: SkBuff, port: u16, ctx: &mut Ctx<'_>) {
    let reason = DropReason::FullRing;
    ctx.stats.tx_drop(reason, port);
    ctx.out.trace.note(FinalDisposition::Dropped(reason));
    if ctx.out.tap.is_on() {
        ctx.out.tap.dropped(&skb, reason);
    }
    ctx.pool.kfree_skb(skb);
}
