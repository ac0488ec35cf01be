//! The IPv4 routing decision: `ip_route_input_slow`, `__mkroute_input` and `fib_validate_source` of
//! the kernel, without its cache; and the choice of source addresses.
//!
//! What is not mirrored, or leads out by an interface that is not a port of ours, goes back to the
//! kernel before anything about the packet has changed.

use std::net::{IpAddr, Ipv4Addr};

use super::burst_routes::BurstRoutes;
use super::dst::{Dst, SourceValidation};
use super::headers::Iphdr;
use super::inet_addr::{LOOPBACK_IFINDEX, inet_addr_onlink};
use super::ip_error::{RouteError, ip_error};
use super::{Ctx, Exit};
use crate::fib::{FibInfo, FibResult, Flow, RouteType};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Link, RpFilter};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_loopback, ipv4_is_multicast, ipv4_is_zeronet};
use crate::wire::{FlowKey, Ipv4Packet};

/// `ip_route_input`: where a packet from the wire goes, and `ip_error` where that is nowhere.
#[inline]
pub(super) fn ip_route_input<'a, 'k>(
    skb: &SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &'k mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<&'k mut Dst<'a>, Exit> {
    // Made where it is asked for, which is cheaper than kept.
    let flow = || Flow { saddr: iph.saddr, daddr: iph.daddr, iif: dev.ifindex, mark: skb.mark };
    if routes.hint4.is_of(&flow()) {
        return routes.hint4.dst();
    }
    // ip_route_input_slow.
    let tables = ctx.tables;
    let odd = |addr: u32| ODD[usize::from((addr >> 24) as u8)];
    if odd(iph.saddr) | odd(iph.daddr) {
        martians(Ipv4Addr::from_bits(iph.saddr), Ipv4Addr::from_bits(iph.daddr), dev)?;
    }
    let info = match routes.ahead.v4.unicast(routes.n, iph.daddr) {
        Some(info) => info,
        None => match routes.ahead.v4.by_rules(flow()) {
            Ok(info) => info,
            Err(other) => return Err(ip_error(skb, refused(other)?, dev, ctx)),
        },
    };
    if !dev.forwarding4 {
        let error = RouteError::HostUnreach(DropReason::ForwardingOff);
        return Err(ip_error(skb, error, dev, ctx));
    }
    let has_all_locals = routes.has_all_locals;
    let dst = routes.hint4.by(info, dev.ifindex, || {
        let hash = || multipath_hash(skb, ctx);
        let nexthop = info.select(hash).ok_or(Exit::Punt(PuntReason::RouteUnsupported))?;
        let dst = Dst::new(info, nexthop, tables)?;
        Ok(Dst {
            source_validation: SourceValidation::of(dev, dst.dev.ifindex, has_all_locals),
            ..dst
        })
    })?;
    let scope_host = fib_validate_source(iph, dev, dst, ctx)?;
    let comes_back = scope_host && dst.dev.ifindex == dev.ifindex && dev.send_redirects;
    dst.redirect = comes_back && deserves_redirect(iph.saddr, dst);
    routes.hint4.learn(flow());
    routes.hint4.dst()
}

/// First octets by which martians are told from the rest. A table, for both addresses at once.
static ODD: [bool; 256] = {
    let mut odd = [false; 256];
    let mut octet = 0;
    while octet < 256 {
        odd[octet] = matches!(octet, 0 | 127 | 224..);
        octet += 1;
    }
    odd
};

/// Destinations and sources that no lookup would refuse, in the order of `ip_route_input_slow`.
#[cold]
fn martians(saddr: Ipv4Addr, daddr: Ipv4Addr, dev: &Link) -> Result<(), Exit> {
    const SOURCE: Result<(), Exit> = Err(Exit::Drop(DropReason::IpInvalidSource));
    const DESTINATION: Result<(), Exit> = Err(Exit::Drop(DropReason::IpInvalidDest));
    if ipv4_is_multicast(daddr) {
        return Err(Exit::Punt(PuntReason::NotUnicast));
    }
    if ipv4_is_multicast(saddr) || ipv4_is_lbcast(saddr) {
        return SOURCE;
    }
    if ipv4_is_lbcast(daddr) || (saddr.is_unspecified() && daddr.is_unspecified()) {
        return Err(Exit::Punt(PuntReason::NotUnicast));
    }
    // RFC 1812 §5.3.7: 0.0.0.0 and 127/8 are not forwarded. The rest of 0/8, and 240/4, the kernel
    // forwards.
    if ipv4_is_zeronet(saddr) {
        return SOURCE;
    }
    if ipv4_is_zeronet(daddr) || (ipv4_is_loopback(daddr) && !dev.route_localnet) {
        return DESTINATION;
    }
    if ipv4_is_loopback(saddr) {
        // Is it refused as one of ours? See `local_source`.
        return if dev.route_localnet { Err(Exit::Punt(PuntReason::NotUnicast)) } else { SOURCE };
    }
    Ok(())
}

/// What a lookup that found no way to forward means; what is not an error is the kernel's.
#[cold]
fn refused(result: FibResult<'_>) -> Result<RouteError, Exit> {
    let (kind, by_rule) = match result {
        FibResult::NoRoute => return Ok(RouteError::NetUnreach(DropReason::IpNoRoute)),
        FibResult::Route(info) => (info.kind, false),
        FibResult::Rule(kind) => (kind, true),
    };
    match kind {
        RouteType::Blackhole => Ok(RouteError::Silent(DropReason::Blackhole)),
        // fib4_rule_action answers ENETUNREACH where fib_props has EHOSTUNREACH.
        RouteType::Unreachable if by_rule => Ok(RouteError::NetUnreach(DropReason::Unreachable)),
        RouteType::Unreachable => Ok(RouteError::HostUnreach(DropReason::Unreachable)),
        RouteType::Prohibit => Ok(RouteError::Filtered),
        RouteType::Local => Err(Exit::Punt(PuntReason::Local)),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            Err(Exit::Punt(PuntReason::NotUnicast))
        }
        RouteType::Punt(reason) => Err(Exit::Punt(reason)),
        RouteType::Unicast | RouteType::Throw => Err(Exit::Punt(PuntReason::RouteUnsupported)),
    }
}

/// `fib_validate_source`: whether the source may come from here. `Ok(true)`: it is on this link.
#[inline]
fn fib_validate_source(
    iph: &Iphdr,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &Ctx<'_>,
) -> Result<bool, Exit> {
    match dst.source_validation {
        SourceValidation::NotLocal if ctx.tables.links.is_local4(iph.saddr) => {
            local_source(iph, ctx)
        }
        SourceValidation::Off | SourceValidation::NotLocal => Ok(false),
        SourceValidation::ByRoute => {
            // As a packet that goes back. The mark is left out unless src_valid_mark says otherwise,
            // which is not mirrored.
            let iif = dst.dev.ifindex;
            let flow = Flow { saddr: iph.daddr, daddr: iph.saddr, iif, mark: 0 };
            validate_source_by_route(&flow, dev, ctx)
        }
    }
}

/// Refuses a source that is ours: apart, so that for all others nothing is prepared. Whether one that is
/// a broadcast address of ours is refused depends on what no one tells (`fib4_has_custom_rules`,
/// `fib_has_custom_local_routes`, which say whether there ever were any): the kernel decides.
#[cold]
#[inline(never)]
fn local_source(iph: &Iphdr, ctx: &Ctx<'_>) -> Result<bool, Exit> {
    if ctx.tables.links.is_own4(iph.saddr) {
        return Err(Exit::Drop(DropReason::IpLocalSource));
    }
    Err(Exit::Punt(PuntReason::NotUnicast))
}

/// `__fib_validate_source`: looks the way `back` up.
#[inline(never)]
fn validate_source_by_route(back: &Flow<u32>, dev: &Link, ctx: &Ctx<'_>) -> Result<bool, Exit> {
    let refuse = || {
        ctx.stats.mib(Mib::TcpExtIPReversePathFilter);
        Err(Exit::Drop(DropReason::IpRpfilter))
    };
    let info = match ctx.tables.fib4.fib_lookup(back) {
        FibResult::Route(info) => info,
        FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        FibResult::Rule(_) | FibResult::NoRoute if dev.rp_filter == RpFilter::Off => {
            return Ok(false);
        }
        FibResult::Rule(_) | FibResult::NoRoute => return refuse(),
    };
    match info.kind {
        RouteType::Unicast => {}
        RouteType::Local if dev.accept_local => {}
        RouteType::Local => return Err(Exit::Drop(DropReason::IpLocalSource)),
        RouteType::Punt(reason) => return Err(Exit::Punt(reason)),
        // These end the lookup with an error, as no route does.
        RouteType::Blackhole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            return if dev.rp_filter == RpFilter::Off { Ok(false) } else { refuse() };
        }
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Err(Exit::Drop(DropReason::IpInvalidSource));
        }
    }
    if info.nexthops.iter().any(|nexthop| nexthop.oif == dev.ifindex) {
        // nhc_scope is RT_SCOPE_HOST: the source is a neighbour.
        let first = info.nexthops.iter().find(|nexthop| !nexthop.dead);
        return Ok(first.is_some_and(|nexthop| nexthop.gateway.is_none()));
    }
    // Without an address of its own the interface cannot tell; with one, strict means here only.
    let no_addr = dev.addrs4.is_empty();
    match dev.rp_filter {
        RpFilter::Off => Ok(false),
        RpFilter::Strict => refuse(),
        RpFilter::Loose if no_addr => refuse(),
        RpFilter::Loose => Ok(false),
    }
}

/// Whether the kernel tells the sender, a neighbour on the link that the packet leaves by again,
/// of a shorter way (IPSKB_DOREDIRECT in `__mkroute_input`). How often is for `ip_forward`.
#[cold]
fn deserves_redirect(saddr: u32, dst: &Dst<'_>) -> bool {
    let gateway = match dst.gateway() {
        Some(IpAddr::V4(gateway)) => Some(gateway.to_bits()),
        _ => None,
    };
    dst.dev.shared_media || inet_addr_onlink(dst.dev, saddr, gateway)
}

/// `fib_multipath_hash`.
#[cold]
fn multipath_hash(skb: &SkBuff, ctx: &Ctx<'_>) -> u32 {
    let packet = Ipv4Packet::new_unchecked(skb.network_header());
    let key = match ctx.tables.sysctl.multipath_hash_policy4 {
        0 => FlowKey::l3_ipv4(&packet),
        _ => FlowKey::l4_ipv4(&packet),
    };
    key.hash(ctx.state.hash_seed)
}

/// The way of a packet of our own: `ip_route_output_key` for destination `daddr`.
///
/// # Errors
/// [`Exit::Punt`] when only the kernel can send there, [`Exit::Drop`] when nobody can.
pub(super) fn ip_route_output<'a>(daddr: u32, saddr: u32, ctx: &Ctx<'a>) -> Result<Dst<'a>, Exit> {
    let flow = Flow { saddr, daddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let info = match ctx.tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        FibResult::Route(&FibInfo { kind: RouteType::Punt(reason), .. })
        | FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        _ => return Err(Exit::Drop(DropReason::IpNoRoute)),
    };
    let hash = || mix32(ctx.state.hash_seed ^ u64::from(daddr));
    let nexthop = info.select(hash).ok_or(Exit::Punt(PuntReason::RouteUnsupported))?;
    Dst::new(info, nexthop, ctx.tables)
}

/// Fibonacci hashing.
pub(super) fn mix32(word: u64) -> u32 {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}
