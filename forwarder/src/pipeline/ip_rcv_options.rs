//! IPv4 options of a received packet (`ip_rcv_options` of the kernel).

use super::headers::Iphdr;
use super::ip_options::{IpOptions, OptionsContext};
use super::{Ctx, Exit, IcmpError};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::Link;
use crate::wire::icmpv4::Icmpv4Type;
use crate::wire::ipv4::Ipv4Packet;

/// `ip_rcv_options`: compiles the options of a packet that has options.
#[cold]
pub(super) fn ip_rcv_options(skb: &SkBuff, dev: &Link, ctx: &Ctx<'_>) -> Result<IpOptions, Exit> {
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    let context = options_context(&Iphdr::of(skb), dev, ctx);
    let (options, result) = IpOptions::compile(ipv4.option_octets(), &context);
    if let Err(pointer) = result {
        ctx.mib(Mib::IpInHdrErrors);
        let info = u32::from(pointer) << 24;
        let problem = Icmpv4Type::PARAMETERPROB.0;
        return Err(Exit::Icmp(IcmpError::with_info(problem, 0, info, DropReason::IpOptions)));
    }
    if options.source_route && !dev.accept_source_route {
        return Err(Exit::Drop(DropReason::IpSourceRoute));
    }
    // The kernel follows source routes and checks CIPSO; a router alert (RFC 2113) may be for one of its
    // sockets.
    if options.source_route || options.cipso || options.router_alert {
        return Err(Exit::Punt(PuntReason::IpOption));
    }
    Ok(options)
}

/// Inputs for compiling options.
pub(super) fn options_context<'a>(iph: &Iphdr, dev: &'a Link, ctx: &Ctx<'a>) -> OptionsContext<'a> {
    const DAY_NS: u64 = 86_400_000_000_000;
    let utc_ns = ctx.now_ns.wrapping_add(ctx.state.utc_offset_ns);
    OptionsContext {
        tables: ctx.tables,
        dev,
        saddr: iph.saddr,
        timestamp_ms: (utc_ns % DAY_NS / 1_000_000) as u32,
    }
}
