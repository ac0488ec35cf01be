//! IPv6 output behind POST_ROUTING: `ip6_finish_output` of the kernel. Routers do not fragment; what
//! is left to do is to look at the route's own MTU, and to find the next hop.

use std::net::IpAddr;

use super::ip_output::PostRouted;
use super::neigh_output::neigh_output;
use super::route::Dst;
use super::{Ctx, IcmpError, icmp6_send};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib};
use crate::wire::Ipv6Packet;
use crate::wire::icmpv6::Icmpv6Type;

/// Sends the packet to the router, or to the destination itself.
#[inline]
pub(super) fn ip6_finish_output(
    skb: SkBuff,
    dst: &Dst<'_>,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    if !dst.fits(&skb) {
        return too_big(skb, dst, ctx);
    }
    match dst.gateway() {
        Some(gateway) => neigh_output(skb, dst, gateway, routed, ctx),
        None => {
            let daddr = Ipv6Packet::new_unchecked(skb.network_header()).dst_addr();
            neigh_output(skb, dst, &IpAddr::V6(daddr), routed, ctx);
        }
    }
}

/// The end of `ip6_fragment` for a packet that is not our own. The quote is of the packet as it was
/// about to leave, as the kernel's is.
#[cold]
fn too_big(skb: SkBuff, dst: &Dst<'_>, ctx: &mut Ctx<'_>) {
    let reason = DropReason::PktTooBig;
    let error = IcmpError::with_info(Icmpv6Type::PKT_TOOBIG.0, 0, dst.mtu, reason);
    // Changed already, the packet cannot be handed back for the kernel to tell.
    let _ = icmp6_send(&skb, &error, ctx);
    ctx.stats.mib(Mib::Ip6FragFails);
    ctx.drop_skb(skb, reason);
}
