//! Selection of our IPv4 address for a route or an interface, and classification of addresses (the
//! kernel's net/ipv4/devinet.c and fib_semantics.c).

use std::net::{IpAddr, Ipv4Addr};

use super::dst::Dst;
use crate::fib::{FibInfo, FibResult, Flow, RouteType};
use crate::tables::{LOOPBACK_IFINDEX, Link, Tables};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_loopback, ipv4_is_multicast, ipv4_is_zeronet};

/// `fib_result_prefsrc`: the source address of a route. 0: there is none.
pub(super) fn fib_result_prefsrc(tables: &Tables, dst: &Dst<'_>) -> u32 {
    match (dst.prefsrc(), dst.gateway()) {
        (Some(IpAddr::V4(prefsrc)), _) => prefsrc.to_bits(),
        (_, Some(IpAddr::V4(gateway))) => inet_select_addr(tables, dst.dev, gateway.to_bits()),
        _ => inet_select_addr(tables, dst.dev, 0),
    }
}

/// `inet_select_addr`: the interface's address on the subnet of `dst`, else its first, else the
/// first of any interface. 0: there is none.
pub(super) fn inet_select_addr(tables: &Tables, dev: &Link, dst: u32) -> u32 {
    let on_subnet = dev.addrs4.iter().find(|&&(local, len)| dst == 0 || in_prefix(local, len, dst));
    let of_dev = on_subnet.or_else(|| dev.addrs4.first());
    let of_any = || {
        let all = tables.links.iter().flat_map(|link| &link.addrs4);
        // Addresses of scope host are excluded.
        all.into_iter().find(|addr| !ipv4_is_loopback(addr.0))
    };
    of_dev.or_else(of_any).map_or(0, |addr| addr.0.to_bits())
}

/// `fib_compute_spec_dst`: our address as seen by the sender of a forwarded packet.
pub(super) fn fib_compute_spec_dst(tables: &Tables, dev: &Link, saddr: u32) -> u32 {
    let flow = Flow { saddr: 0, daddr: saddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let route_back = match tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        _ => return inet_select_addr(tables, dev, saddr),
    };
    if let Some(IpAddr::V4(prefsrc)) = route_back.prefsrc {
        return prefsrc.to_bits();
    }
    let nexthop = route_back.nexthops.iter().find(|nexthop| !nexthop.dead);
    let oif = nexthop.and_then(|nexthop| tables.links.ifindex(nexthop.oif)).unwrap_or(dev);
    match nexthop.and_then(|nexthop| nexthop.gateway) {
        Some(IpAddr::V4(gateway)) => inet_select_addr(tables, oif, gateway.to_bits()),
        _ => inet_select_addr(tables, oif, 0),
    }
}

/// `inet_addr_type` is RTN_UNICAST: the address belongs to another host.
pub(super) fn is_unicast_elsewhere(tables: &Tables, addr: u32) -> bool {
    let std = Ipv4Addr::from_bits(addr);
    if ipv4_is_zeronet(std) || ipv4_is_lbcast(std) || ipv4_is_multicast(std) {
        return false;
    }
    let flow = Flow { saddr: 0, daddr: addr, iif: LOOPBACK_IFINDEX, mark: 0 };
    !matches!(
        tables.fib4.fib_lookup(&flow),
        FibResult::Route(FibInfo { kind: RouteType::Local | RouteType::Broadcast, .. })
    )
}

/// `inet_addr_onlink`: one of our prefixes on the interface contains both addresses.
pub(super) fn inet_addr_onlink(dev: &Link, a: u32, b: Option<u32>) -> bool {
    dev.addrs4
        .iter()
        .any(|&(local, len)| in_prefix(local, len, a) && b.is_none_or(|b| in_prefix(local, len, b)))
}

fn in_prefix(local: Ipv4Addr, len: u8, addr: u32) -> bool {
    let host_bits = 32 - u32::from(len.min(32));
    (local.to_bits() ^ addr).checked_shr(host_bits).unwrap_or(0) == 0
}
