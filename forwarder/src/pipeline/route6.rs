//! The IPv6 routing decision: `ip6_route_input` and `ip6_pkt_drop` of the kernel; and the choice of
//! source addresses (RFC 6724 §5).

use std::net::{IpAddr, Ipv6Addr};

use super::burst_routes::BurstRoutes;
use super::dst::Dst;
use super::headers::Ipv6hdr;
use super::route::{MultipathHash, fib_select_path, mix32};
use super::{Ctx, Exit, IcmpError};
use crate::fib::{FibInfo, FibResult, Flow, RouteType};
use crate::ipsec::Family;
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Inet6Ifaddr, LOOPBACK_IFINDEX, Link, Tables};
use crate::wire::icmpv6::{Icmpv6Type, unreach};
use crate::wire::ipv6::{
    MTU_MIN, Scope, ipv6_addr_any, ipv6_addr_is_linklocal, ipv6_addr_is_multicast,
    ipv6_addr_loopback, ipv6_addr_scope,
};
use crate::wire::{FlowKey, HashFields, Ipv6Packet};

/// `ip6_route_input`: the route of a received packet. Rejections are those of `ip6_pkt_discard`,
/// `ip6_pkt_prohibit` and `dst_discard`.
#[inline(always)]
pub(super) fn ip6_route_input<'a, 'k>(
    skb: &SkBuff,
    hdr: &Ipv6hdr,
    dev: &'a Link,
    routes: &'k mut BurstRoutes<'a>,
    ctx: &Ctx<'a>,
) -> Result<&'k mut Dst<'a>, Exit> {
    let (saddr, daddr) = (hdr.saddr.to_bits(), hdr.daddr.to_bits());
    let flow = Flow { saddr, daddr, iif: dev.ifindex, mark: skb.mark };
    if routes.hint6.is_of(&flow) {
        return routes.hint6.dst();
    }
    if ipv6_addr_is_multicast(hdr.daddr) {
        return Err(Exit::Punt(PuntReason::NotUnicast));
    }
    if ipv6_addr_is_linklocal(hdr.daddr) {
        return Err(Exit::Punt(PuntReason::Local));
    }
    let info = match routes.ahead.v6.unicast(routes.n, daddr) {
        Some(info) => info,
        None => match routes.ahead.v6.by_rules(flow) {
            Ok(info) => info,
            Err(other) => return Err(no_unicast_route(other, hdr, ctx)),
        },
    };
    routes.hint6.by(info, flow.iif, || {
        let nexthop = fib_select_path(info, || multipath_hash(skb, ctx))?;
        Ok(with_mtu6(info, Dst::forwarded(info, nexthop, Family::Ipv6, ctx.tables)?))
    })?;
    routes.hint6.learn(flow);
    routes.hint6.dst()
}

/// `ip6_dst_mtu_maybe_forward`, then the route's own MTU, which the kernel checks on output; at least the
/// IPv6 minimum link MTU.
#[inline]
fn with_mtu6<'a>(info: &'a FibInfo, mut dst: Dst<'a>) -> Dst<'a> {
    let of_dev = mtu_of_dev(dst.dev);
    dst.mtu = if info.mtu != 0 { info.mtu.min(of_dev).max(MTU_MIN) } else { of_dev };
    dst
}

/// IPv6 MTU of an interface, octets; at least the IPv6 minimum link MTU.
#[inline]
pub(super) fn mtu_of_dev(dev: &Link) -> u32 {
    dev.mtu6.min(dev.mtu).max(MTU_MIN)
}

/// `ip6_pkt_drop`, and punts of routes that the kernel handles.
#[cold]
fn no_unicast_route(result: FibResult<'_>, hdr: &Ipv6hdr, ctx: &Ctx<'_>) -> Exit {
    let kind = match result {
        FibResult::NoRoute => RouteType::Throw,
        FibResult::Route(info) => info.kind,
        FibResult::Rule(kind) => kind,
    };
    // net/ipv6 uses one code for no route and for unreachable routes.
    let (code, reason) = match kind {
        RouteType::Throw => (unreach::NOROUTE, DropReason::IpNoRoute),
        RouteType::Unreachable => (unreach::NOROUTE, DropReason::Unreachable),
        RouteType::Prohibit => (unreach::ADM_PROHIBITED, DropReason::Prohibit),
        RouteType::Blackhole => return Exit::Drop(DropReason::Blackhole),
        RouteType::Local | RouteType::Anycast => return Exit::Punt(PuntReason::Local),
        RouteType::Broadcast | RouteType::Multicast => return Exit::Punt(PuntReason::NotUnicast),
        RouteType::Punt(reason) => return Exit::Punt(reason),
        RouteType::Unicast => return Exit::Punt(PuntReason::RouteUnsupported),
    };
    let unspecified = ipv6_addr_any(hdr.daddr);
    ctx.mib(if unspecified { Mib::Ip6InAddrErrors } else { Mib::Ip6InNoRoutes });
    Exit::Icmp(IcmpError::new(Icmpv6Type::DEST_UNREACH.0, code, reason))
}

/// `rt6_multipath_hash`.
///
/// # Errors
/// The kernel selects the next hop.
#[cold]
fn multipath_hash(skb: &SkBuff, ctx: &Ctx<'_>) -> Result<u32, Exit> {
    let packet = Ipv6Packet::new_unchecked(skb.network_header());
    let sysctl = &ctx.tables.sysctl;
    let protocol = packet.upper_layer().map_or(packet.next_header(), |upper| upper.protocol);
    let (policy, fields) = (sysctl.multipath_hash_policy6, sysctl.multipath_hash_fields6);
    let key = match MultipathHash::of(policy, fields, protocol)? {
        MultipathHash::L3 => FlowKey::l3_ipv6(&packet),
        // Also of an ICMPv6 error.
        MultipathHash::Inner => FlowKey::of_fields_ipv6(&packet, HashFields::L3_IPV6),
        MultipathHash::L4 => FlowKey::l4_ipv6(&packet),
        MultipathHash::Fields(fields) => FlowKey::of_fields_ipv6(&packet, fields),
    };
    Ok(key.hash(ctx.state.hash_seed))
}

/// The route of a packet of our own to `daddr`. A link-local address is on the link of `dev`.
///
/// # Errors
/// [`Exit::Punt`] when only the kernel can send there, [`Exit::Drop`] when no route exists.
pub(super) fn ip6_route_output<'a>(
    daddr: Ipv6Addr,
    dev: &'a Link,
    ctx: &Ctx<'a>,
) -> Result<Dst<'a>, Exit> {
    if ipv6_addr_is_linklocal(daddr) {
        let port = dev.port.ok_or(Exit::Punt(PuntReason::ForeignOif))?;
        return Ok(Dst::on_link(dev, port, mtu_of_dev(dev)));
    }
    let flow = Flow { saddr: 0, daddr: daddr.to_bits(), iif: LOOPBACK_IFINDEX, mark: 0 };
    let info = match ctx.tables.fib6.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        FibResult::Route(&FibInfo { kind: RouteType::Punt(reason), .. })
        | FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        _ => return Err(Exit::Drop(DropReason::IpNoRoute)),
    };
    let seed = ctx.state.hash_seed;
    let hash = || mix32(seed ^ daddr.to_bits() as u64 ^ (daddr.to_bits() >> 64) as u64);
    let nexthop = fib_select_path(info, || Ok(hash()))?;
    Ok(with_mtu6(info, Dst::new(info, nexthop, ctx.tables)?))
}

/// `ipv6_dev_get_saddr`: our best source address for `daddr` (RFC 6724 §5, the rules that apply to a
/// router: 1 same, 2 scope, 3 not deprecated, 5 interface, 6 label, 7 temporary, 8 longest prefix). `None`: there is none.
pub(super) fn ipv6_dev_get_saddr(tables: &Tables, dev: &Link, daddr: Ipv6Addr) -> Option<Ipv6Addr> {
    let dscope = ipv6_addr_scope(daddr);
    let labels = &tables.sysctl.addr_labels;
    let dlabel = labels.label(daddr, dev.ifindex);
    let score = |link: &Link, own: &Inet6Ifaddr| {
        let addr = own.addr;
        let scope = ipv6_addr_scope(addr);
        // Rule 2: the narrowest scope that is wide enough; else the widest.
        let suits = if scope >= dscope { 128 - i16::from(scope.0) } else { i16::from(scope.0) };
        let is_preferred = !own.deprecated && (!own.optimistic || link.use_optimistic);
        let same_link = link.ifindex == dev.ifindex;
        let is_private_as_wanted = own.temporary == link.prefers_temporary;
        // The kernel's own: an ORCHID (RFC 4843) only for another one.
        let orchid = is_orchid(addr) == is_orchid(daddr);
        let common = (addr.to_bits() ^ daddr.to_bits()).leading_zeros();
        let common = common.min(u32::from(own.prefixlen));
        let label = labels.label(addr, link.ifindex) == dlabel;
        let of_addr = (label, is_private_as_wanted, orchid, common, !own.optimistic);
        (addr == daddr, suits, is_preferred, same_link, of_addr)
    };
    // A link-local destination needs an address of its own link.
    let this_link_only = dscope <= Scope::LINK_LOCAL || dev.use_oif_addrs_only;
    let links = tables.links.iter().filter(|link| !this_link_only || link.ifindex == dev.ifindex);
    let mut best = None;
    for link in links {
        for own in link.addrs6.iter().filter(|own| !ipv6_addr_loopback(own.addr)) {
            let score = score(link, own);
            if best.is_none_or(|(top, _)| score > top) {
                best = Some((score, own.addr));
            }
        }
    }
    best.map(|(_, addr)| addr)
}

/// `ipv6_addr_orchid`: 2001:10::/28.
fn is_orchid(addr: Ipv6Addr) -> bool {
    addr.to_bits() >> 100 == 0x0200_1001
}

/// The preferred source of the route, or the best address, for a reply to a packet received on `dev`.
pub(super) fn icmp6_saddr(
    tables: &Tables,
    dst: &Dst<'_>,
    dev: &Link,
    daddr: Ipv6Addr,
) -> Option<Ipv6Addr> {
    match dst.prefsrc() {
        Some(IpAddr::V6(prefsrc)) => Some(prefsrc),
        _ => ipv6_dev_get_saddr(tables, dev, daddr),
    }
}
