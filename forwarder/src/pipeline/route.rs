//! The IPv4 routing decision: `ip_route_input_slow`, `__mkroute_input` and `fib_validate_source` of
//! the kernel, without its cache; and the choice of source addresses.
//!
//! Packets whose route is not mirrored, or leads to an interface that is not one of our ports, are punted
//! before anything about the packet has changed.

use std::net::{IpAddr, Ipv4Addr};

use super::burst_routes::BurstRoutes;
use super::dst::{Dst, SourceValidation};
use super::headers::Iphdr;
use super::inet_addr::inet_addr_onlink;
use super::ip_error::{RouteError, ip_error};
use super::{Ctx, Exit};
use crate::fib::{FibInfo, FibResult, Flow, Nexthop, RouteType};
use crate::hash_table::mix;
use crate::ipsec::Family;
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{LOOPBACK_IFINDEX, Link, RpFilter};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_loopback, ipv4_is_multicast, ipv4_is_zeronet};
use crate::wire::{FlowKey, HashFields, Ipv4Packet, Protocol};

/// `ip_route_input`: the route of a received packet, and `ip_error` if there is none.
#[inline(always)]
pub(super) fn ip_route_input<'a, 'k>(
    skb: &SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &'k mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<&'k mut Dst<'a>, Exit> {
    // Built where it is needed, which is cheaper than keeping it.
    let flow = || Flow { saddr: iph.saddr, daddr: iph.daddr, iif: dev.ifindex, mark: skb.mark };
    if routes.hint4.is_of(&flow()) {
        return routes.hint4.dst();
    }
    // ip_route_input_slow.
    let tables = ctx.tables;
    let maybe_martian = |addr: u32| MAYBE_MARTIAN[usize::from((addr >> 24) as u8)];
    if maybe_martian(iph.saddr) | maybe_martian(iph.daddr) {
        martians(Ipv4Addr::from_bits(iph.saddr), Ipv4Addr::from_bits(iph.daddr), dev)?;
    }
    let info = match routes.ahead.v4.unicast(routes.n, iph.daddr) {
        Some(info) => info,
        None => match routes.ahead.v4.by_rules(flow()) {
            Ok(info) => info,
            Err(other) => return Err(ip_error(skb, no_unicast_route(other)?, dev, ctx)),
        },
    };
    if !dev.forwarding4 {
        let error = RouteError::HostUnreach(DropReason::ForwardingOff);
        return Err(ip_error(skb, error, dev, ctx));
    }
    let has_all_locals = routes.has_all_locals;
    let dst = routes.hint4.by(info, dev.ifindex, || {
        let nexthop = fib_select_path(info, || multipath_hash(skb, ctx))?;
        let dst = Dst::forwarded(info, nexthop, Family::Ipv4, tables)?;
        Ok(Dst {
            source_validation: SourceValidation::of(dev, dst.dev.ifindex, has_all_locals),
            ..dst
        })
    })?;
    let scope_host = fib_validate_source(iph, skb.mark, dev, dst, ctx)?;
    let comes_back = scope_host && dst.dev.ifindex == dev.ifindex && dev.send_redirects;
    dst.redirect = comes_back && is_redirect_due(iph.saddr, dst);
    routes.hint4.learn(flow());
    routes.hint4.dst()
}

/// First octets that addresses needing a martian check can have. A table, so that both addresses are
/// checked at once.
static MAYBE_MARTIAN: [bool; 256] = {
    let mut maybe = [false; 256];
    let mut octet = 0;
    while octet < 256 {
        maybe[octet] = matches!(octet, 0 | 127 | 224..);
        octet += 1;
    }
    maybe
};

/// Martian destinations and sources, which a lookup would not reject, in the order of
/// `ip_route_input_slow`.
#[cold]
pub(super) fn martians(saddr: Ipv4Addr, daddr: Ipv4Addr, dev: &Link) -> Result<(), Exit> {
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
    // RFC 1812 §5.3.7: 0.0.0.0 and 127/8 are not forwarded. The kernel forwards the rest of 0/8, and
    // 240/4.
    if ipv4_is_zeronet(saddr) {
        return SOURCE;
    }
    if ipv4_is_zeronet(daddr) || (ipv4_is_loopback(daddr) && !dev.route_localnet) {
        return DESTINATION;
    }
    if ipv4_is_loopback(saddr) {
        // Whether it is rejected as one of our addresses: see `local_source`.
        return if dev.route_localnet { Err(Exit::Punt(PuntReason::NotUnicast)) } else { SOURCE };
    }
    Ok(())
}

/// Maps a lookup result that is not a unicast route to an error or a punt.
#[cold]
fn no_unicast_route(result: FibResult<'_>) -> Result<RouteError, Exit> {
    let (kind, by_rule) = match result {
        FibResult::NoRoute => return Ok(RouteError::NetUnreach(DropReason::IpNoRoute)),
        FibResult::Route(info) => (info.kind, false),
        FibResult::Rule(kind) => (kind, true),
    };
    match kind {
        RouteType::Blackhole => Ok(RouteError::Silent(DropReason::Blackhole)),
        // fib4_rule_action returns ENETUNREACH where fib_props has EHOSTUNREACH.
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

/// `fib_validate_source`: whether the source is valid on this interface. `Ok(true)`: it is on this link.
#[inline]
fn fib_validate_source(
    iph: &Iphdr,
    mark: u32,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &Ctx<'_>,
) -> Result<bool, Exit> {
    match dst.source_validation {
        SourceValidation::NotLocal if ctx.tables.links.is_local4(iph.saddr) => {
            local_source(iph, ctx)
        }
        SourceValidation::Off | SourceValidation::NotLocal => Ok(false),
        // Whether the mark counts depends on src_valid_mark, which is not mirrored.
        SourceValidation::ByRoute if mark != 0 && dev.rp_filter != RpFilter::Off => {
            Err(Exit::Punt(PuntReason::Netfilter))
        }
        SourceValidation::ByRoute => {
            // Looked up as the reverse packet.
            let iif = dst.dev.ifindex;
            let flow = Flow { saddr: iph.daddr, daddr: iph.saddr, iif, mark: 0 };
            validate_source_by_route(&flow, dev, ctx)
        }
    }
}

/// Rejects a source that is one of our addresses; a separate function, to keep its set-up out of the
/// common path. Whether the kernel rejects one of our broadcast addresses depends on state that it does
/// not export (`fib4_has_custom_rules`, `fib_has_custom_local_routes`: whether there ever were any), so
/// such packets are punted.
#[cold]
#[inline(never)]
fn local_source(iph: &Iphdr, ctx: &Ctx<'_>) -> Result<bool, Exit> {
    if ctx.tables.links.is_own4(iph.saddr) {
        return Err(Exit::Drop(DropReason::IpLocalSource));
    }
    Err(Exit::Punt(PuntReason::NotUnicast))
}

/// `__fib_validate_source`: looks up the reverse flow `back`.
#[inline(never)]
pub(super) fn validate_source_by_route(
    back: &Flow<u32>,
    dev: &Link,
    ctx: &Ctx<'_>,
) -> Result<bool, Exit> {
    let refuse = || {
        ctx.mib(Mib::TcpExtIPReversePathFilter);
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
        // The lookup ends with an error, as without a route.
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
    // Strict mode accepts only routes through this interface; loose mode also rejects if it has no address.
    let no_addr = dev.addrs4.is_empty();
    match dev.rp_filter {
        RpFilter::Off => Ok(false),
        RpFilter::Strict => refuse(),
        RpFilter::Loose if no_addr => refuse(),
        RpFilter::Loose => Ok(false),
    }
}

/// Whether the kernel sends a redirect: the sender is a neighbour on the link that the packet leaves by
/// (IPSKB_DOREDIRECT in `__mkroute_input`). `ip_forward` applies the rate limit.
#[cold]
fn is_redirect_due(saddr: u32, dst: &Dst<'_>) -> bool {
    let gateway = match dst.gateway() {
        Some(IpAddr::V4(gateway)) => Some(gateway.to_bits()),
        _ => None,
    };
    dst.dev.shared_media || inet_addr_onlink(dst.dev, saddr, gateway)
}

/// The next hop of a packet. `hash`: see [`FibInfo::select`].
///
/// # Errors
/// The kernel selects it, or no next hop is alive.
#[inline]
pub(super) fn fib_select_path(
    info: &FibInfo,
    hash: impl FnOnce() -> Result<u32, Exit>,
) -> Result<&Nexthop, Exit> {
    let hash = if info.nexthops.len() > 1 { hash()? } else { 0 };
    info.select(|| hash).ok_or(BY_KERNEL)
}

/// The kernel has to select the next hop.
pub(super) const BY_KERNEL: Exit = Exit::Punt(PuntReason::RouteUnsupported);

/// `fib_multipath_hash`.
///
/// # Errors
/// The kernel selects the next hop.
#[cold]
fn multipath_hash(skb: &SkBuff, ctx: &Ctx<'_>) -> Result<u32, Exit> {
    let packet = Ipv4Packet::new_unchecked(skb.network_header());
    let sysctl = &ctx.tables.sysctl;
    if sysctl.multipath_use_neigh {
        return Err(BY_KERNEL);
    }
    let (policy, fields) = (sysctl.multipath_hash_policy4, sysctl.multipath_hash_fields4);
    let key = match MultipathHash::of(policy, fields, packet.protocol())? {
        MultipathHash::L3 => FlowKey::l3_ipv4(&packet),
        // Also of an ICMP error.
        MultipathHash::Inner => FlowKey::of_fields_ipv4(&packet, HashFields::ADDRESSES),
        MultipathHash::L4 => FlowKey::l4_ipv4(&packet),
        MultipathHash::Fields(fields) => FlowKey::of_fields_ipv4(&packet, fields),
    };
    Ok(key.hash(ctx.state.hash_seed))
}

/// `fib_multipath_hash_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MultipathHash {
    L3,
    L4,
    /// The addresses inside a tunnel.
    Inner,
    Fields(HashFields),
}

impl MultipathHash {
    /// By which fields packets of a protocol are hashed.
    ///
    /// # Errors
    /// The policy is not known here, or the kernel looks into a tunnel (`__skb_flow_dissect`).
    pub fn of(policy: u8, fields: HashFields, protocol: Protocol) -> Result<MultipathHash, Exit> {
        let (hash, has_inner) = match policy {
            0 => (MultipathHash::L3, false),
            1 => (MultipathHash::L4, false),
            2 => (MultipathHash::Inner, true),
            3 => (MultipathHash::Fields(fields), fields.have_inner()),
            _ => return Err(BY_KERNEL),
        };
        match protocol {
            Protocol::IPIP | Protocol::IPV6 | Protocol::GRE if has_inner => Err(BY_KERNEL),
            _ => Ok(hash),
        }
    }
}

/// The route of a packet of our own: `ip_route_output_key` for destination `daddr`.
///
/// # Errors
/// [`Exit::Punt`] when only the kernel can send there, [`Exit::Drop`] when no route exists.
pub(super) fn ip_route_output<'a>(daddr: u32, saddr: u32, ctx: &Ctx<'a>) -> Result<Dst<'a>, Exit> {
    let flow = Flow { saddr, daddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let info = match ctx.tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        FibResult::Route(&FibInfo { kind: RouteType::Punt(reason), .. })
        | FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        _ => return Err(Exit::Drop(DropReason::IpNoRoute)),
    };
    let nexthop = fib_select_path(info, || match ctx.tables.sysctl.multipath_use_neigh {
        true => Err(BY_KERNEL),
        false => Ok(mix32(ctx.state.hash_seed ^ u64::from(daddr))),
    })?;
    Dst::new(info, nexthop, ctx.tables)
}

/// Fibonacci hashing.
pub(super) fn mix32(word: u64) -> u32 {
    (mix(word) >> 32) as u32
}
