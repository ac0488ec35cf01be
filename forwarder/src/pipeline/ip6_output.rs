//! IPv6 output after POST_ROUTING (`ip6_finish_output` of the kernel). Routers do not fragment; the
//! route's own MTU is checked here.

use super::dst::Dst;
use super::icmp6_send::icmp6_send;
use super::ip_output::finish_output2;
use super::post_routing::PostRouted;
use super::{Ctx, IcmpError};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib};
use crate::trace::FinalDisposition;
use crate::wire::EtherType;
use crate::wire::icmpv6::Icmpv6Type;

/// Sends a packet, if it is not longer than the MTU.
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
    finish_output2(skb, EtherType::IPV6, dst, routed, ctx);
}

/// The end of `ip6_fragment` for a forwarded packet. As in the kernel, the error quotes the packet as it
/// was about to be sent.
#[cold]
fn too_big(skb: SkBuff, dst: &Dst<'_>, ctx: &mut Ctx<'_>) {
    let reason = DropReason::PktTooBig;
    let error = IcmpError::with_info(Icmpv6Type::PKT_TOOBIG.0, 0, dst.mtu, reason);
    // The packet has been changed, so it cannot be punted for the kernel to reply.
    let sent = ctx.errors_sent();
    let _ = icmp6_send(&skb, &error, ctx);
    ctx.out.trace.note(match ctx.errors_sent() != sent {
        true => FinalDisposition::IcmpError {
            is_ipv6: true,
            icmp_type: error.icmp_type,
            code: error.code,
            reason,
        },
        false => FinalDisposition::Dropped(reason),
    });
    ctx.stats.mib(Mib::Ip6FragFails);
    ctx.drop_skb(skb, reason);
}
