//! IPv4 forwarding: `ip_error` and `ip_forward` of the kernel.
//!
//! Every check stands before the first write.

use super::eth_input::is_l2_multicast;
use super::ip_input::Iphdr;
use super::ip_options::{IpOptions, Surroundings};
use super::route::{Dst, RouteError, inet_select_addr};
use super::{Ctx, Exit, IcmpError, nf_hook};
use crate::netfilter::Hook;
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::Link;
use crate::wire::EtherType;
use crate::wire::icmpv4::{Icmpv4Type, exceeded, unreach};
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};
use std::net::IpAddr;

/// `ip_rcv_options`: compiles the options of a packet that has some.
#[cold]
pub(super) fn ip_rcv_options(skb: &SkBuff, dev: &Link, ctx: &Ctx<'_>) -> Result<IpOptions, Exit> {
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    let around = surroundings(&Iphdr::of(skb), dev, ctx);
    let (options, result) = IpOptions::compile(ipv4.option_octets(), &around);
    if let Err(pointer) = result {
        ctx.stats.mib(Mib::IpInHdrErrors);
        let info = u32::from(pointer) << 24;
        let problem = Icmpv4Type::PARAMETERPROB.0;
        return Err(Exit::Icmp(IcmpError::with_info(problem, 0, info, DropReason::IpOptions)));
    }
    if options.source_route && !dev.accept_source_route {
        return Err(Exit::Drop(DropReason::IpSourceRoute));
    }
    // Source routes are the kernel's to follow, CIPSO its to judge, and a router alert (RFC 2113)
    // may interest one of its sockets.
    if options.source_route || options.cipso || options.router_alert {
        return Err(Exit::Punt(PuntReason::IpOption));
    }
    Ok(options)
}

/// What options are compiled against.
pub(super) fn surroundings<'a>(iph: &Iphdr, dev: &'a Link, ctx: &Ctx<'a>) -> Surroundings<'a> {
    const DAY_NS: u64 = 86_400_000_000_000;
    let utc_ns = ctx.now_ns.wrapping_add(ctx.state.utc_offset_ns);
    Surroundings {
        tables: ctx.tables,
        dev,
        saddr: iph.saddr,
        timestamp_ms: (utc_ns % DAY_NS / 1_000_000) as u32,
    }
}

/// `ip_error`: refuses a packet for which there is no way. Its options are looked at first
/// (`ip_rcv_finish_core`), and may be a reason of their own.
#[cold]
pub(super) fn ip_error(skb: &SkBuff, error: RouteError, dev: &Link, ctx: &mut Ctx<'_>) -> Exit {
    let iph = Iphdr::of(skb);
    if iph.has_options()
        && let Err(exit) = ip_rcv_options(skb, dev, ctx)
    {
        return exit;
    }
    let (code, reason) = match error {
        RouteError::Silent(reason) => return Exit::Drop(reason),
        RouteError::HostUnreach(reason) => (unreach::HOST_UNREACH, reason),
        RouteError::NetUnreach(reason) => (unreach::NET_UNREACH, reason),
        RouteError::Filtered => (unreach::PKT_FILTERED, DropReason::Prohibit),
    };
    if !dev.forwarding4 {
        // Hosts do not say why they do not forward; and no route or one, it is the same to them.
        ctx.stats.mib(Mib::IpInAddrErrors);
        return Exit::Drop(DropReason::ForwardingOff);
    }
    if matches!(error, RouteError::NetUnreach(_)) {
        ctx.stats.mib(Mib::IpInNoRoutes);
    }
    if !ctx.state.limiter.error_allow(u128::from(iph.saddr), ctx.now_ns) {
        return Exit::Drop(reason);
    }
    Exit::Icmp(IcmpError::new(Icmpv4Type::DEST_UNREACH.0, code, reason))
}

/// `ip_forward`, up to its first write.
#[inline]
pub(super) fn ip_forward_checks(
    skb: &SkBuff,
    iph: &Iphdr,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    if is_l2_multicast(skb) {
        return Err(Exit::Drop(DropReason::UnicastInL2Multicast));
    }
    // RFC 1812 §5.3.1.
    if iph.ttl <= 1 {
        ctx.stats.mib(Mib::IpInHdrErrors);
        let exceeded = (Icmpv4Type::TIME_EXCEEDED.0, exceeded::EXC_TTL);
        return Err(Exit::Icmp(IcmpError::new(exceeded.0, exceeded.1, DropReason::TtlExceeded)));
    }
    if dst.redirect && ctx.state.limiter.redirect_allow(u128::from(iph.saddr), ctx.now_ns) {
        // The kernel forwards it and tells the sender.
        return Err(Exit::Punt(PuntReason::Redirect));
    }
    ctx.stats.mib(Mib::IpForwDatagrams);
    if u32::from(iph.tot_len) > dst.mtu {
        return exceeds_mtu(skb, dst, ctx);
    }
    Ok(())
}

/// Too long for the way: to be cut, if it may be.
#[cold]
fn exceeds_mtu(skb: &SkBuff, dst: &Dst<'_>, ctx: &Ctx<'_>) -> Result<(), Exit> {
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    if ipv4.dont_frag() {
        // RFC 1191 §4.
        ctx.stats.mib(Mib::IpFragFails);
        let (unreach, code) = (Icmpv4Type::DEST_UNREACH.0, unreach::FRAG_NEEDED);
        let reason = DropReason::PktTooBig;
        return Err(Exit::Icmp(IcmpError::with_info(unreach, code, dst.mtu, reason)));
    }
    let payload_len = ipv4.total_len().saturating_sub(ipv4.header_len() as u16);
    if ipv4.frag_offset().checked_add(payload_len).is_none() {
        // No such packet can be put together. The kernel cuts it all the same, and the offsets run
        // into the flags; it may do so itself.
        return Err(Exit::Punt(PuntReason::OversizeFragment));
    }
    Ok(())
}

/// The rest of `ip_forward`: from here on the packet is changed.
#[inline]
pub(super) fn ip_forward(
    skb: &mut SkBuff,
    options: Option<IpOptions>,
    dst: &Dst<'_>,
    ctx: &Ctx<'_>,
) -> Result<(), Exit> {
    if let Some(fixed) = skb.network_chunk_mut::<HEADER_LEN_MIN>() {
        Ipv4Packet::new_unchecked(fixed).decrease_ttl();
    }
    nf_hook(Hook::Forward, skb, dst.dev.ifindex, EtherType::IPV4, ctx)?;
    if let Some(options) = options {
        ip_forward_options(skb, options, dst, ctx);
    }
    Ok(())
}

/// `ip_forward_options`.
#[cold]
fn ip_forward_options(skb: &mut SkBuff, mut options: IpOptions, dst: &Dst<'_>, ctx: &Ctx<'_>) {
    let mut ipv4 = Ipv4Packet::new_unchecked(skb.network_header_mut());
    let daddr = ipv4.dst_addr().to_bits();
    // ip_rt_get_source: by the route that the packet takes.
    let our_addr = || match (dst.prefsrc(), dst.gateway()) {
        (Some(IpAddr::V4(prefsrc)), _) => prefsrc.to_bits(),
        (_, Some(IpAddr::V4(gateway))) => inet_select_addr(ctx.tables, dst.dev, gateway.to_bits()),
        _ => inet_select_addr(ctx.tables, dst.dev, daddr),
    };
    if let Some(octets) = options.forwarded(our_addr) {
        let area = ipv4.option_octets_mut();
        if area.len() == octets.len() {
            area.copy_from_slice(octets);
        }
        ipv4.fill_checksum();
    }
}
