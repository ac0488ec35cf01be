//! IPv6 forwarding: `ip6_forward` of the kernel. All checks precede the first write.
//!
//! Routing headers of packets in transit are not examined (RFC 8200 §4.4).

use super::dst::Dst;
use super::eth_input::is_l2_multicast;
use super::headers::Ipv6hdr;
use super::mode::Mode;
use super::nf_hook::{Devices, HooksRan, nf_hook};
use super::route6::mtu_of_dev;
use super::{Ctx, Exit, IcmpError};
use crate::netfilter::{Family, Hook};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Forwarding6, Link};
use crate::wire::Protocol;
use crate::wire::icmpv6::{Icmpv6Type, exceeded, unreach};
use crate::wire::ipv6::{
    HEADER_LEN, Ipv6Packet, ipv6_addr_any, ipv6_addr_is_linklocal, ipv6_addr_is_multicast,
    ipv6_addr_loopback,
};
use crate::wire::ipv6_ext::is_ext_header;

/// Interval of redirects about one destination.
const REDIRECT_NS: u64 = 1_000_000_000;

/// `ip6_forward`, up to its first write. `may_redirect`: a redirect may be due.
#[inline(always)]
pub(super) fn ip6_forward_checks(
    skb: &SkBuff,
    hdr: &Ipv6hdr,
    (dev, may_redirect): (&Link, bool),
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    if dev.forwarding6 != Forwarding6::On {
        not_plainly(hdr, dev, ctx)?;
    }
    if is_l2_multicast(skb) {
        return Err(Exit::Drop(DropReason::UnicastInL2Multicast));
    }
    // RFC 8200 §3.
    if hdr.hop_limit <= 1 {
        ctx.mib(Mib::Ip6InHdrErrors);
        let (exceeded, code) = (Icmpv6Type::TIME_EXCEED.0, exceeded::EXC_HOPLIMIT);
        return Err(Exit::Icmp(IcmpError::new(exceeded, code, DropReason::TtlExceeded)));
    }
    if dst.dev.ifindex == dev.ifindex && may_redirect {
        let daddr = hdr.daddr.to_bits();
        if ctx.state.limiter.xrlim_allow(daddr, REDIRECT_NS, ctx.now_ns) {
            // The kernel forwards it and sends the redirect.
            return Err(Exit::Punt(PuntReason::Redirect));
        }
    } else {
        source_scope(hdr, ctx)?;
    }
    ctx.mib(Mib::Ip6OutForwDatagrams);
    // The route's own MTU is checked on output, as in the kernel.
    let mtu = mtu_of_dev(dst.dev);
    if hdr.len > mtu as usize {
        // RFC 8201 §4: routers do not fragment.
        ctx.mib(Mib::Ip6InTooBigErrors);
        ctx.mib(Mib::Ip6FragFails);
        let (too_big, reason) = (Icmpv6Type::PKT_TOOBIG.0, DropReason::PktTooBig);
        return Err(Exit::Icmp(IcmpError::with_info(too_big, 0, mtu, reason)));
    }
    Ok(())
}

/// Forwarding is disabled, or enabled with one exception: neighbour discovery for an address that the
/// kernel is a proxy for is punted. Extension headers are not searched for it.
#[cold]
fn not_plainly(hdr: &Ipv6hdr, dev: &Link, ctx: &Ctx<'_>) -> Result<(), Exit> {
    if dev.forwarding6 == Forwarding6::Off {
        ctx.mib(Mib::Ip6InAddrErrors);
        return Err(Exit::Drop(DropReason::ForwardingOff));
    }
    if hdr.next_header == Protocol::ICMPV6 || is_ext_header(hdr.next_header) {
        return Err(Exit::Punt(PuntReason::Local));
    }
    Ok(())
}

/// Sources that must not cross a router (RFC 4291 §2.5.2, §2.5.3, §2.5.6, §2.7). Those of multicast and loopback were
/// dropped on reception, but rules may have written them since.
#[inline]
fn source_scope(hdr: &Ipv6hdr, ctx: &Ctx<'_>) -> Result<(), Exit> {
    if ipv6_addr_any(hdr.saddr)
        || ipv6_addr_loopback(hdr.saddr)
        || ipv6_addr_is_multicast(hdr.saddr)
    {
        ctx.mib(Mib::Ip6InAddrErrors);
        return Err(Exit::Drop(DropReason::IpInvalidSource));
    }
    if ipv6_addr_is_linklocal(hdr.saddr) {
        ctx.mib(Mib::Ip6InAddrErrors);
        let (unreach, code) = (Icmpv6Type::DEST_UNREACH.0, unreach::NOT_NEIGHBOUR);
        return Err(Exit::Icmp(IcmpError::new(unreach, code, DropReason::IpBeyondScope)));
    }
    Ok(())
}

/// The rest of `ip6_forward`, which changes the packet.
#[inline]
pub(super) fn ip6_forward<M: Mode>(
    skb: &mut SkBuff,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<HooksRan, Exit> {
    decrease_hop_limit(skb);
    let devices = Devices { iif: Some(dev), oif: Some(dst.dev) };
    nf_hook::<M>(Hook::Forward, skb, Family::Ip6, devices, ctx.hook_env())
}

/// Decrements the hop limit.
#[inline(always)]
pub(super) fn decrease_hop_limit(skb: &mut SkBuff) {
    if let Some(fixed) = skb.network_chunk_mut::<HEADER_LEN>() {
        Ipv6Packet::new_unchecked(fixed).decrease_hop_limit();
    }
}
