//! Output to the next hop (`ip_finish_output2` and `ip6_finish_output2` of the kernel).

use std::net::IpAddr;

use super::Ctx;
use super::dst::Dst;
use super::neigh_output::neigh_output;
use super::post_routing::PostRouted;
use crate::skb::SkBuff;
use crate::wire::{EtherType, Ipv4Packet, Ipv6Packet};

/// Sends a packet that is not longer than the MTU: to the gateway, of either family, or to the
/// destination itself.
pub(super) fn finish_output2(
    skb: SkBuff,
    protocol: EtherType,
    dst: &Dst<'_>,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    let nexthop = match dst.gateway() {
        Some(gateway) => *gateway,
        None => destination(&skb, protocol),
    };
    neigh_output(skb, dst, &nexthop, routed, ctx);
}

#[inline]
fn destination(skb: &SkBuff, protocol: EtherType) -> IpAddr {
    let packet = skb.network_header();
    match protocol {
        EtherType::IPV4 => IpAddr::V4(Ipv4Packet::new_unchecked(packet).dst_addr()),
        _ => IpAddr::V6(Ipv6Packet::new_unchecked(packet).dst_addr()),
    }
}
