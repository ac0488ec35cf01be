//! The last step: the link-layer header, and the queue of the outgoing port (`neigh_output`,
//! `dev_queue_xmit` of the kernel).

use std::net::IpAddr;

use super::csum_partial::skb_checksum_help;
use super::ip_output::PostRouted;
use super::route::Dst;
use super::vlan::vlan_dev_hard_header;
use super::{Ctx, hold};
use crate::neigh::Neighbour;
use crate::skb::SkBuff;
use crate::stats::DropReason;
use crate::tables::Link;
use crate::wire::ethernet::{EthernetFrame, HEADER_LEN, MacAddr};

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
    let neigh = match dst.gateway() {
        Some(_) => dst.neigh.or_else(|| gateway_lookup(oif, nexthop, ctx)),
        None => ctx.tables.neigh.lookup(oif, nexthop),
    };
    if let Some(neigh) = neigh
        && let Some(lladdr) = neigh.lladdr
    {
        neigh.mark_used();
        return dev_queue_xmit(skb, dst.port, dst.dev, lladdr, routed, ctx);
    }
    hold::hold(skb, oif, *nexthop, routed, ctx);
}

/// For packets of our own, and in vain for those whose router is not known.
#[cold]
fn gateway_lookup<'a>(oif: u32, nexthop: &IpAddr, ctx: &Ctx<'a>) -> Option<&'a Neighbour> {
    ctx.tables.neigh.lookup(oif, nexthop)
}

/// Writes the link-layer addresses, and tags where the interface has some, and queues the frame on
/// its port. The EtherType is there already, in front of the IP header: it was received with the
/// packet, or written by whoever made it.
#[inline(always)]
pub(super) fn dev_queue_xmit(
    mut skb: SkBuff,
    port: u16,
    dev: &Link,
    lladdr: [u8; 6],
    _routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    skb_checksum_help(&mut skb);
    if !dev.up {
        return ctx.drop_skb(skb, DropReason::DevNotReady);
    }
    // What was received with tags and leaves without is shorter by them.
    let header = match &dev.vlan {
        None => skb.set_mac_chunk::<HEADER_LEN>(),
        Some(vlan) => vlan_dev_hard_header(&mut skb, vlan, ctx.tables)
            .and_then(|header| header.first_chunk_mut()),
    };
    let Some(header) = header else {
        return ctx.drop_skb(skb, DropReason::SkbNoHeadroom);
    };
    let mut frame = EthernetFrame::new_unchecked(header);
    frame.set_dst_addr(MacAddr(lladdr));
    frame.set_src_addr(MacAddr(dev.mac));
    let Some(egress) = ctx.out.egress.get_mut(usize::from(port)) else {
        return ctx.drop_skb(skb, DropReason::DevNotReady);
    };
    if let Err(skb) = egress.push(skb) {
        if let Some(port) = ctx.stats.ports.get(usize::from(port)) {
            port.tx_dropped.inc();
        }
        ctx.drop_skb(skb, DropReason::FullRing);
    }
}
