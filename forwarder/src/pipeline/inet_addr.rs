//! Selection of our IPv4 address for a route or an interface, and classification of addresses (the
//! kernel's net/ipv4/devinet.c and fib_semantics.c).

use std::net::Ipv4Addr;

use super::dst::Dst;
use crate::fib::{FibInfo, FibResult, Flow, RouteType};
use crate::tables::{InIfaddr, LOOPBACK_IFINDEX, Link, Tables};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_multicast, ipv4_is_zeronet};

/// `fib_result_prefsrc`: the source address of a route. 0: there is none.
pub(super) fn fib_result_prefsrc(tables: &Tables, dst: &Dst<'_>) -> u32 {
    dst.info
        .map_or(0, |info| tables.links.fib_result_prefsrc(info, dst.dev, dst.gateway().copied()))
}

/// `fib_compute_spec_dst`: our address as seen by the sender of a forwarded packet.
pub(super) fn fib_compute_spec_dst(tables: &Tables, dev: &Link, saddr: u32) -> u32 {
    let flow = Flow { saddr: 0, daddr: saddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let route_back = match tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        _ => return tables.links.inet_select_addr(dev, saddr, 0),
    };
    let nexthop = route_back.nexthops.iter().find(|nexthop| !nexthop.dead);
    let oif = nexthop.and_then(|nexthop| tables.links.ifindex(nexthop.oif)).unwrap_or(dev);
    let gateway = nexthop.and_then(|nexthop| nexthop.gateway);
    tables.links.fib_result_prefsrc(route_back, oif, gateway)
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
    let are_on =
        |addr: &InIfaddr| addr.inet_ifa_match(a) && b.is_none_or(|b| addr.inet_ifa_match(b));
    dev.addrs4.iter().any(are_on)
}
