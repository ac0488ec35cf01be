//! IPv4 output: POST_ROUTING, then whole or in fragments to the neighbour (`ip_output`,
//! `ip_finish_output` of the kernel).

use std::net::{IpAddr, Ipv4Addr};

use super::ip_fragment::ip_fragment;
use super::neigh_output::neigh_output;
use super::route::Dst;
use super::{Ctx, Exit, nf_hook};
use crate::netfilter::Hook;
use crate::skb::SkBuff;
use crate::wire::EtherType;
use crate::wire::ipv4::Ipv4Packet;

/// The witness that a packet passed POST_ROUTING. Only [`post_routing`] makes one, and nothing is
/// sent without: no packet can go round the hook. Fragments of one packet share its witness.
#[derive(Debug, Clone)]
pub(super) struct PostRouted(());

/// Runs the POST_ROUTING hook, the last before the wire.
#[inline]
pub(super) fn post_routing(
    skb: &mut SkBuff,
    dst: &Dst<'_>,
    protocol: EtherType,
    ctx: &Ctx<'_>,
) -> Result<PostRouted, Exit> {
    nf_hook(Hook::PostRouting, skb, dst.dev.ifindex, protocol, ctx)?;
    Ok(PostRouted(()))
}

/// `ip_finish_output`: sends the packet, in fragments if it is longer than the way allows.
pub(super) fn ip_finish_output(skb: SkBuff, dst: &Dst<'_>, routed: &PostRouted, ctx: &mut Ctx<'_>) {
    if !dst.fits(&skb) {
        return ip_fragment(skb, dst, routed, ctx);
    }
    ip_finish_output2(skb, dst, routed, ctx);
}

/// `ip_finish_output2`: to the router, of whichever family, or to the destination itself.
pub(super) fn ip_finish_output2(
    skb: SkBuff,
    dst: &Dst<'_>,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    match dst.gateway() {
        Some(gateway) => neigh_output(skb, dst, gateway, routed, ctx),
        None => {
            let daddr = IpAddr::V4(destination(&skb));
            neigh_output(skb, dst, &daddr, routed, ctx);
        }
    }
}

#[inline]
fn destination(skb: &SkBuff) -> Ipv4Addr {
    Ipv4Packet::new_unchecked(skb.network_header()).dst_addr()
}
