//! `fib`: route lookups of rules (net/ipv4/netfilter/nft_fib_ipv4.c, net/ipv6/netfilter/nft_fib_ipv6.c).
//!
//! The kernel's lookups for rules differ from those of packets in details that depend on more than the
//! tables of the workers have: next hops without carrier, IPv6 prefixes with several routes, link-local
//! addresses. Where such a detail can matter, the packet is left to the kernel.

use super::packet::Packet;
use super::ruleset::{Family, FibDev, FibKey, FibQuery};
use crate::fib::{FamilyFib, FibInfo, FibResult, Flow, Lpm6, PrefixMatch, RouteType};
use crate::netfilter::Hook;
use crate::tables::{LOOPBACK_IFINDEX, Link, Tables};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_loopback, ipv4_is_multicast, ipv4_is_zeronet};
use crate::wire::ipv6::{ipv6_addr_is_linklocal, ipv6_addr_is_multicast};

/// RTN_*: types of addresses.
const RTN_UNICAST: u32 = 1;
const RTN_LOCAL: u32 = 2;
const RTN_BROADCAST: u32 = 3;
const RTN_ANYCAST: u32 = 4;
const RTN_MULTICAST: u32 = 5;
const RTN_BLACKHOLE: u32 = 6;
const RTN_UNREACHABLE: u32 = 7;
const RTN_PROHIBIT: u32 = 8;

/// The result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// An interface; `None`: there is no route, or none by the interface of the packet.
    Dev(Option<&'a Link>),
    /// RTN_*.
    Type(u32),
}

/// One lookup: what is looked up, and for which packet.
struct Lookup<'a> {
    query: FibQuery,
    packet: &'a Packet<'a>,
    tables: &'a Tables,
    /// The interface of the packet that the query names.
    dev: Option<&'a Link>,
    /// The packet's mark, or 0 if the query does not include it.
    mark: u32,
}

/// `nft_fib4_eval`, `nft_fib4_eval_type`, `nft_fib6_eval`, `nft_fib6_eval_type`. `None`: only the kernel can
/// tell. `header`: the packet's octets from the network header.
pub(super) fn lookup<'a>(
    query: FibQuery,
    packet: &'a Packet<'a>,
    header: &[u8],
    mark: u32,
) -> Option<Found<'a>> {
    let dev = match query.dev {
        Some(FibDev::Iif) => Some(packet.iif?),
        Some(FibDev::Oif) => Some(packet.oif?),
        None => None,
    };
    let mark = if query.mark { mark } else { 0 };
    let this = Lookup { query, packet, tables: packet.tables?, dev, mark };
    match packet.family {
        Family::Ip => {
            let addrs = header.first_chunk::<20>()?.last_chunk::<8>()?.as_chunks::<4>().0;
            let [saddr, daddr] = addrs else { return None };
            this.ipv4(u32::from_be_bytes(*saddr), u32::from_be_bytes(*daddr))
        }
        Family::Ip6 => {
            let addrs = header.first_chunk::<40>()?.last_chunk::<32>()?.as_chunks::<16>().0;
            let [saddr, daddr] = addrs else { return None };
            this.ipv6(u128::from_be_bytes(*saddr), u128::from_be_bytes(*daddr))
        }
        _ => None,
    }
}

impl<'a> Lookup<'a> {
    fn ipv4(&self, saddr: u32, daddr: u32) -> Option<Found<'a>> {
        let (addr, other) = if self.query.daddr { (daddr, saddr) } else { (saddr, daddr) };
        if self.query.key == FibKey::Type {
            return self.type4(addr).map(Found::Type);
        }
        // From 0/8 to a limited broadcast address is as from the loopback interface.
        if self.tables.fib4.ignores_linkdown || ipv4_is_zeronet(saddr.into()) {
            return None;
        }
        // `get_saddr`.
        let is_odd = ipv4_is_multicast(other.into())
            || ipv4_is_lbcast(other.into())
            || ipv4_is_zeronet(other.into());
        let other = if is_odd { 0 } else { other };
        self.by_both_iifs(|iif| {
            let flow = Flow { saddr: other, daddr: addr, iif, mark: self.mark };
            let Some(info) = route(self.tables.fib4.fib_lookup(&flow))? else { return Some(None) };
            if info.kind == RouteType::Local {
                return Some(None);
            }
            match self.dev {
                // `fib_info_nh_uses_dev`.
                Some(dev) => {
                    let uses_dev = info.nexthops.iter().any(|nexthop| nexthop.oif == dev.ifindex);
                    Some(uses_dev.then_some(dev))
                }
                None => {
                    let first = info.nexthops.iter().find(|nexthop| !nexthop.dead)?;
                    self.tables.links.ifindex(first.oif).map(Some)
                }
            }
        })
    }

    /// The interface that a lookup gives. At FORWARD, `saddr . iif` is looked up as received on the output
    /// interface (not by all versions of the kernel for IPv6), which only rules for interfaces tell apart.
    fn by_both_iifs(&self, lookup: impl Fn(u32) -> Option<Option<&'a Link>>) -> Option<Found<'a>> {
        let found = lookup(LOOPBACK_IFINDEX)?;
        let is_reverse = self.query.dev == Some(FibDev::Iif) && !self.query.daddr;
        if is_reverse && self.packet.hook == Hook::Forward {
            let other = lookup(self.packet.oif?.ifindex)?;
            let ifindex = |link: Option<&Link>| link.map(|link| link.ifindex);
            if ifindex(other) != ifindex(found) {
                return None;
            }
        }
        Some(Found::Dev(found))
    }

    /// `inet_dev_addr_type`.
    fn type4(&self, addr: u32) -> Option<u32> {
        if ipv4_is_zeronet(addr.into()) || ipv4_is_lbcast(addr.into()) {
            return Some(RTN_BROADCAST);
        }
        if ipv4_is_multicast(addr.into()) {
            return Some(RTN_MULTICAST);
        }
        let Some(info) = route(self.tables.fib4.local_lookup(addr))? else {
            // A route of table main within 127/8 counts only as long as main and local are one table.
            return (!ipv4_is_loopback(addr.into())).then_some(RTN_UNICAST);
        };
        let kind = match info.kind {
            RouteType::Local => RTN_LOCAL,
            RouteType::Broadcast => RTN_BROADCAST,
            RouteType::Anycast => RTN_ANYCAST,
            RouteType::Multicast => RTN_MULTICAST,
            _ if ipv4_is_loopback(addr.into()) => return None,
            _ => return Some(RTN_UNICAST),
        };
        let is_of_dev = match self.dev {
            Some(dev) => info.nexthops.first()?.oif == dev.ifindex,
            None => true,
        };
        Some(if is_of_dev { kind } else { RTN_UNICAST })
    }

    fn ipv6(&self, saddr: u128, daddr: u128) -> Option<Found<'a>> {
        let (addr, other) = if self.query.daddr { (daddr, saddr) } else { (saddr, daddr) };
        // Link-local addresses are looked up on one link; others than unicast ones, and those that
        // contain IPv4 addresses, are special in several places.
        if !is_plain(addr) || !is_plain(other) {
            return None;
        }
        let fib = &self.tables.fib6;
        if self.query.key == FibKey::Type {
            let flow = Flow { saddr: other, daddr: addr, iif: LOOPBACK_IFINDEX, mark: self.mark };
            return self.type6(fib.fib_lookup(&flow), addr).map(Found::Type);
        }
        if fib.ignores_linkdown || is_irregular(fib, addr) {
            return None;
        }
        self.by_both_iifs(|iif| {
            let flow = Flow { saddr: other, daddr: addr, iif, mark: self.mark };
            let Some(info) = route(fib.fib_lookup(&flow))? else { return Some(None) };
            match info.kind {
                RouteType::Local | RouteType::Anycast => return Some(None),
                RouteType::Unicast => {}
                _ => return None,
            }
            // Of several next hops, a hash chooses one.
            let [nexthop] = &*info.nexthops else { return None };
            match self.dev {
                Some(dev) => Some((nexthop.oif == dev.ifindex).then_some(dev)),
                None => self.tables.links.ifindex(nexthop.oif).map(Some),
            }
        })
    }

    /// `__nft_fib6_eval_type`.
    fn type6(&self, result: FibResult<'_>, addr: u128) -> Option<u32> {
        let info = match result {
            FibResult::NoRoute => return Some(RTN_UNREACHABLE),
            FibResult::Rule(kind) => return rejected(kind),
            FibResult::Route(info) => info,
        };
        match info.kind {
            RouteType::Anycast => Some(RTN_ANYCAST),
            RouteType::Local if self.dev.is_none() => Some(RTN_LOCAL),
            RouteType::Unicast => {
                // `ipv6_anycast_destination`: the address of a subnet, whose length is unknown here.
                let is_on_link = info.nexthops.iter().any(|nexthop| nexthop.gateway.is_none());
                let may_be_subnet = is_on_link && addr & 3 == 0;
                let is_of_dev = self
                    .dev
                    .is_some_and(|dev| dev.addrs6.iter().any(|own| own.addr.to_bits() == addr));
                (!may_be_subnet && !is_of_dev).then_some(RTN_UNICAST)
            }
            // Whether it is an address of the interface depends on its state.
            RouteType::Local => None,
            kind => rejected(kind),
        }
    }
}

/// The type of an address whose route or rule rejects packets.
fn rejected(kind: RouteType) -> Option<u32> {
    match kind {
        RouteType::Blackhole => Some(RTN_BLACKHOLE),
        RouteType::Unreachable => Some(RTN_UNREACHABLE),
        RouteType::Prohibit => Some(RTN_PROHIBIT),
        _ => None,
    }
}

/// The route that a lookup gives; `Some(None)`: it gives an error; `None`: the kernel's is not known.
fn route(result: FibResult<'_>) -> Option<Option<&FibInfo>> {
    match result {
        FibResult::NoRoute => Some(None),
        FibResult::Rule(RouteType::Punt(_)) => None,
        FibResult::Rule(_) => Some(None),
        FibResult::Route(info) => match info.kind {
            RouteType::Punt(_) => None,
            RouteType::Blackhole
            | RouteType::Unreachable
            | RouteType::Prohibit
            | RouteType::Throw => Some(None),
            _ => Some(Some(info)),
        },
    }
}

/// Whether an IPv6 address is unicast, not link-local, and not of ::/3.
fn is_plain(addr: u128) -> bool {
    addr >> 125 != 0 && !ipv6_addr_is_multicast(addr.into()) && !ipv6_addr_is_linklocal(addr.into())
}

/// Whether a route for the address may be chosen in another way than for packets (`rt6_device_match`).
fn is_irregular(fib: &FamilyFib<Lpm6>, addr: u128) -> bool {
    fib.irregular.iter().any(|(net, len)| Lpm6::network(addr, *len) == *net)
}
