//! The result of a route lookup: the data path's view of the kernel's `fib_info` and `fib_nh`.

use std::net::IpAddr;

use smallvec::SmallVec;

use crate::stats::PuntReason;

/// Route types, RTN_* of rtnetlink, as far as the data path distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteType {
    /// Forwarded to a next hop.
    Unicast,
    /// Addressed to this host.
    Local,
    /// A broadcast address of ours.
    Broadcast,
    /// A multicast route.
    Multicast,
    /// An anycast address of ours.
    Anycast,
    /// Dropped silently.
    Blackhole,
    /// Dropped with Host Unreachable (IPv6: No route).
    Unreachable,
    /// Dropped with Administratively Prohibited.
    Prohibit,
    /// The lookup continues with the next rule.
    Throw,
    /// Cannot be handled in userspace; its packets are punted.
    Punt(PuntReason),
}

/// A next hop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nexthop {
    /// ifindex of the outgoing interface; 0 when there is none.
    pub oif: u32,
    /// Its number among the interfaces that packets are sent by (`Links::dev`); `None`: it belongs to the
    /// kernel only, and packets for it are punted.
    pub dev: Option<u16>,
    /// The gateway; `None`: the destination is on link. Either family: an IPv4 route may have an IPv6
    /// gateway (RTA_VIA).
    pub gateway: Option<IpAddr>,
    /// Share of the flows, RTNH weight 1 to 65536.
    pub weight: u32,
    /// RTNH_F_DEAD, or RTNH_F_LINKDOWN if ignore_routes_with_linkdown is set: not used.
    pub dead: bool,
    /// RTNH_F_ONLINK.
    pub onlink: bool,
}

/// The next hops of a route. A single one is stored inline.
pub type Nexthops = SmallVec<[Nexthop; 1]>;

/// A route without its prefix; many prefixes share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FibInfo {
    /// The route type.
    pub kind: RouteType,
    /// Next hops; empty for types that have none.
    pub nexthops: Nexthops,
    /// RTAX_MTU: the route's own IP MTU in octets; 0: the outgoing interface's.
    pub mtu: u32,
    /// RTA_PREFSRC: the source address of our own packets.
    pub prefsrc: Option<IpAddr>,
    /// `fib_scope`, RT_SCOPE_*: the source of our own packets has no narrower one.
    pub scope: u8,
    /// RTAX_HOPLIMIT: TTL or hop limit of our own packets; 0: the interface's or the namespace's.
    pub hop_limit: u8,
}

impl FibInfo {
    /// A route of a type that has no next hop.
    pub fn special(kind: RouteType) -> FibInfo {
        FibInfo { kind, nexthops: Nexthops::new(), mtu: 0, prefsrc: None, scope: 0, hop_limit: 0 }
    }

    /// The next hop for a flow: hash-threshold by the weights of the next hops that are not dead (RFC
    /// 2992; kernel: `fib_select_multipath`). `None` when all are dead.
    #[inline]
    pub fn select(&self, flow_hash: impl FnOnce() -> u32) -> Option<&Nexthop> {
        match &*self.nexthops {
            [only] if !only.dead => Some(only),
            [] | [_] => None,
            several => select_multipath(several, flow_hash()),
        }
    }
}

fn select_multipath(nexthops: &[Nexthop], hash: u32) -> Option<&Nexthop> {
    let total: u64 = nexthops.iter().filter(|nh| !nh.dead).map(|nh| u64::from(nh.weight)).sum();
    // hash / 2^32 of the total weight: each next hop has a range as long as its weight.
    let mut point = (u64::from(hash) * total) >> 32;
    nexthops.iter().filter(|nh| !nh.dead).find(|nh| {
        let weight = u64::from(nh.weight);
        let mine = point < weight;
        point = point.wrapping_sub(weight);
        mine
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nexthop(oif: u32, weight: u32, dead: bool) -> Nexthop {
        Nexthop { oif, dev: None, gateway: None, weight, dead, onlink: false }
    }

    fn route(nexthops: Vec<Nexthop>) -> FibInfo {
        FibInfo { nexthops: nexthops.into(), ..FibInfo::special(RouteType::Unicast) }
    }

    #[test]
    fn flows_spread_by_weight() {
        let info = route(vec![nexthop(1, 3, false), nexthop(2, 1, false)]);
        let count = |oif| {
            (0..4096u32).filter(|n| info.select(|| n << 20).is_some_and(|nh| nh.oif == oif)).count()
        };
        assert_eq!((count(1), count(2)), (3072, 1024));
    }

    #[test]
    fn a_dead_nexthop_takes_no_flow_and_none_alive_is_none() {
        let info = route(vec![nexthop(1, 1, true), nexthop(2, 1, false), nexthop(3, 1, true)]);
        assert!((0..256u32).all(|n| info.select(|| n << 24).is_some_and(|nh| nh.oif == 2)));
        assert!(route(vec![nexthop(1, 1, true)]).select(|| 0).is_none());
        assert!(route(vec![nexthop(1, 1, true), nexthop(2, 1, true)]).select(|| 0).is_none());
    }
}
