//! IPv6 output behind POST_ROUTING: `ip6_finish_output2` of the kernel. Routers do not fragment, so
//! nothing else is left to do.

use std::net::IpAddr;

use super::Ctx;
use super::ip_output::PostRouted;
use super::neigh_output::neigh_output;
use super::route::Dst;
use crate::skb::SkBuff;
use crate::wire::Ipv6Packet;

/// Sends the packet to the router, or to the destination itself.
#[inline]
pub(super) fn ip6_finish_output(
    skb: SkBuff,
    dst: &Dst<'_>,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    match dst.gateway() {
        Some(gateway) => neigh_output(skb, dst, gateway, routed, ctx),
        None => {
            let daddr = Ipv6Packet::new_unchecked(skb.network_header()).dst_addr();
            neigh_output(skb, dst, &IpAddr::V6(daddr), routed, ctx);
        }
    }
}
