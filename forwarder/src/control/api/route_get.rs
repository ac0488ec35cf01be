//! `route get`: the result for one packet in the tables that workers use, in the format of `ip route get`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::control::mirror::rib::RibAddr;
use crate::control::mirror::show::ViaView;
use crate::fib::{FamilyFib, FibInfo, FibResult, Flow, Lpm, RouteType};
use crate::stats::PuntReason;
use crate::tables::{Inet6Ifaddr, Link, Tables};

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteGet {
    /// RTN_*; absent for unicast. "noroute" where no route matches, "punt" where the kernel decides.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The destination.
    pub dst: IpAddr,
    /// The source, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// Gateway of the destination's family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Gateway of the other family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<ViaView>,
    /// Output interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// Source that a packet of our own would take; only when no source was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefsrc: Option<IpAddr>,
    /// IP MTU of the route in octets; 0: not forwarded.
    pub mtu: u32,
    /// Input interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Number of next hops among which the flow's hash selects; only if several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nexthops: Option<usize>,
    /// Why the kernel forwards the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub punt: Option<&'static str>,
}

/// Looks up `dst` as a worker does for a packet from `from` received on the interface with ifindex
/// `iif` (0: the router itself) with fwmark `mark`. Of several next hops the answer has the first that is
/// alive.
pub fn route_get(
    tables: &Tables,
    dst: IpAddr,
    from: Option<IpAddr>,
    iif: u32,
    mark: u32,
) -> RouteGet {
    match dst {
        IpAddr::V4(addr) => lookup(tables, &tables.fib4, addr.to_bits(), from, iif, mark),
        IpAddr::V6(addr) => lookup(tables, &tables.fib6, addr.to_bits(), from, iif, mark),
    }
}

fn lookup<A: RibAddr>(
    tables: &Tables,
    fib: &FamilyFib<Lpm<A>>,
    daddr: A,
    from: Option<IpAddr>,
    iif: u32,
    mark: u32,
) -> RouteGet {
    let saddr = from.and_then(A::from_ip).unwrap_or(A::ZERO);
    let flow = Flow { saddr, daddr, iif, mark };
    let mut answer = RouteGet {
        kind: None,
        dst: daddr.to_ip(),
        from,
        gateway: None,
        via: None,
        dev: None,
        prefsrc: None,
        mtu: 0,
        iif: tables.links.ifindex(iif).map(|link| link.name.clone()),
        nexthops: None,
        punt: None,
    };
    match fib.fib_lookup(&flow) {
        FibResult::NoRoute => answer.kind = Some("noroute"),
        FibResult::Rule(kind) => answer.set_kind(kind),
        FibResult::Route(info) => {
            answer.set_kind(info.kind);
            answer.set_info(tables, info);
        }
    }
    answer
}

impl RouteGet {
    fn set_kind(&mut self, kind: RouteType) {
        self.kind = match kind {
            RouteType::Unicast => None,
            RouteType::Local => Some("local"),
            RouteType::Broadcast => Some("broadcast"),
            RouteType::Multicast => Some("multicast"),
            RouteType::Anycast => Some("anycast"),
            RouteType::Blackhole => Some("blackhole"),
            RouteType::Unreachable => Some("unreachable"),
            RouteType::Prohibit => Some("prohibit"),
            RouteType::Throw => Some("throw"),
            RouteType::Punt(_) => Some("punt"),
        };
        if let RouteType::Punt(reason) = kind {
            self.punt = Some(reason.name());
        }
    }

    fn set_info(&mut self, tables: &Tables, info: &FibInfo) {
        let mut alive = info.nexthops.iter().filter(|nh| !nh.dead);
        let Some(nexthop) = alive.next() else { return };
        let others = alive.count();
        self.nexthops = (others != 0).then_some(others + 1);
        let link = tables.links.ifindex(nexthop.oif);
        self.dev = link.map(|link| link.name.clone());
        if info.kind != RouteType::Unicast {
            return;
        }
        (self.gateway, self.via) = ViaView::divide(nexthop.gateway, self.dst.is_ipv6());
        let link_mtu = link.map_or(0, |l| if self.dst.is_ipv4() { l.mtu } else { l.mtu6 });
        self.mtu = if info.mtu == 0 { link_mtu } else { info.mtu };
        if self.from.is_none() {
            self.prefsrc =
                info.prefsrc.or_else(|| source(tables, info, link?, self.dst, nexthop.gateway));
        }
        // An xfrm interface has a number whether or not it is followed.
        let is_left = |link: &Link| link.noarp && link.dev().is_none();
        if nexthop.dev.is_none() || link.is_some_and(is_left) {
            self.punt = Some(PuntReason::ForeignOif.name());
        }
    }
}

/// The source address that the kernel shows.
fn source(
    tables: &Tables,
    info: &FibInfo,
    link: &Link,
    dst: IpAddr,
    gateway: Option<IpAddr>,
) -> Option<IpAddr> {
    let nearest = |towards: Ipv6Addr| {
        let is_near = |own: &&Inet6Ifaddr| {
            let shift = u32::from(128u8.saturating_sub(own.prefixlen));
            (own.addr.to_bits() ^ towards.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        };
        let found = link.addrs6.iter().find(is_near).or(link.addrs6.first());
        found.map(|own| own.addr.into())
    };
    match (dst, gateway) {
        (IpAddr::V4(_), gateway) => {
            let addr = tables.links.fib_result_prefsrc(info, link, gateway);
            (addr != 0).then(|| Ipv4Addr::from_bits(addr).into())
        }
        (IpAddr::V6(_), Some(IpAddr::V6(gateway))) => nearest(gateway),
        (IpAddr::V6(dst), _) => nearest(dst),
    }
}

impl fmt::Display for RouteGet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = self.kind {
            write!(f, "{kind} ")?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(via) = &self.via {
            write!(f, " via {} {}", via.family, via.host)?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        if let Some(src) = self.prefsrc {
            write!(f, " src {src}")?;
        }
        if self.mtu != 0 {
            write!(f, " mtu {}", self.mtu)?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(count) = self.nexthops {
            write!(f, " nexthops {count}")?;
        }
        if let Some(punt) = self.punt {
            write!(f, " punt {punt}")?;
        }
        Ok(())
    }
}
