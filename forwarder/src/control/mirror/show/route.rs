//! `ip route show table all`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::names;
use crate::control::mirror::rib::{
    Net, RTNH_F_DEAD, RTNH_F_LINKDOWN, RTNH_F_ONLINK, Rib, RibAddr, RouteBody,
};
use crate::control::mirror::state::{Family, RouterState};
use crate::fib::Prefix;

const RTN_UNICAST: u8 = 1;
const RTPROT_BOOT: u8 = 3;
const RT_TABLE_MAIN: u32 = 254;
const RTNH_F_PERVASIVE: u8 = 2;

/// A gateway of the other family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViaView {
    /// "inet" or "inet6".
    pub family: &'static str,
    /// Its address.
    pub host: IpAddr,
}

impl ViaView {
    /// Divides a gateway of either family into that of an IPv4 or IPv6 (`v6`) route's own family and that
    /// of the other.
    pub fn divide(gateway: Option<IpAddr>, v6: bool) -> (Option<IpAddr>, Option<ViaView>) {
        match gateway {
            Some(host) if host.is_ipv6() != v6 => {
                let family = if host.is_ipv4() { "inet" } else { "inet6" };
                (None, Some(ViaView { family, host }))
            }
            own => (own, None),
        }
    }
}

/// A next hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HopView {
    /// Gateway of the route's own family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Gateway of the other family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<ViaView>,
    /// Interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// Weight; only in multipath routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// RTNH_F_* without the prefix; a route with one next hop shows them at the route.
    pub flags: Vec<&'static str>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// RTN_*; omitted for unicast.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Prefix, or "default".
    pub dst: String,
    /// Source prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// DSCP and ECN octet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<String>,
    /// Nexthop object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nhid: Option<u32>,
    /// The next hop, if there is one only.
    #[serde(flatten)]
    pub hop: Option<HopView>,
    /// Table; omitted for main.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Protocol that installed it; omitted for boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// RT_SCOPE_*; omitted for global.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Preferred source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefsrc: Option<IpAddr>,
    /// Lower is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// An empty list for a route without next hops or with several.
    #[serde(rename = "flags", skip_serializing_if = "Option::is_none")]
    pub no_flags: Option<[&'static str; 0]>,
    /// RTA_FLOW: realms.
    #[serde(rename = "flow", skip_serializing_if = "Option::is_none")]
    pub realms: Option<RealmsView>,
    /// RTAX_*, in one element as iproute2 has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<BTreeMap<&'static str, u32>>,
    /// Router preference; IPv6 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pref: Option<&'static str>,
    /// The next hops of a multipath route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nexthops: Vec<HopView>,
}

/// Realms of a route, for accounting by `tc`; numbers, without names of /etc/iproute2/rt_realms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RealmsView {
    /// Source realm; omitted if 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Destination realm.
    pub to: String,
}

impl RealmsView {
    fn of(realms: u32) -> Option<RealmsView> {
        let name = |realm: u32| if realm == 0 { "cosmos".to_owned() } else { realm.to_string() };
        let (from, to) = (realms >> 16, realms & 0xffff);
        (realms != 0).then(|| RealmsView { from: (from != 0).then(|| name(from)), to: name(to) })
    }
}

impl fmt::Display for RealmsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            Some(from) => write!(f, "realms {from}/{}", self.to),
            None => write!(f, "realm {}", self.to),
        }
    }
}

/// All routes, IPv4 first, by table and prefix.
pub fn routes(state: &RouterState) -> Vec<RouteView> {
    let mut views = sorted(state, &state.routes4);
    views.extend(sorted(state, &state.routes6));
    views
}

fn sorted<A: RibAddr>(state: &RouterState, rib: &Rib<A>) -> Vec<RouteView> {
    let mut all: Vec<_> = rib.iter().collect();
    // A stable sort keeps the kernel's order at each prefix.
    all.sort_by_key(|(table, net, _)| (*table, *net));
    all.into_iter().map(|(table, net, body)| route(state, table, net, body)).collect()
}

/// One route.
pub fn route<A: RibAddr>(
    state: &RouterState,
    table: u32,
    net: Net<A>,
    body: &RouteBody,
) -> RouteView {
    let family = if A::V6 { Family::V6 } else { Family::V4 };
    let dst = Prefix::truncated(net.0, net.1).map_or_else(|e| e.to_string(), |p| p.to_string());
    let mut hops = hops(state, family, body);
    // In IPv6 a group is shown as multipath even with a single member (`rt6_fill_node_nexthop`).
    let group = A::V6
        && body.nhid != 0
        && state.nexthops.get(&body.nhid).is_some_and(|object| !object.group.is_empty());
    let hop = (hops.len() == 1 && !group).then(|| {
        let hop = hops.remove(0);
        HopView { weight: None, ..hop }
    });
    let metrics: BTreeMap<&'static str, u32> = body
        .metrics
        .iter()
        .filter_map(|(kind, value)| Some((names::metric(*kind)?, *value)))
        .collect();
    RouteView {
        kind: (body.kind != RTN_UNICAST).then(|| names::route_type(body.kind)),
        dst,
        from: body.src.map(|(addr, len)| format!("{addr}/{len}")),
        tos: (body.tos != 0).then(|| format!("{:#04x}", body.tos)),
        nhid: Some(body.nhid).filter(|id| *id != 0),
        no_flags: hop.is_none().then_some([]),
        hop,
        table: (table != RT_TABLE_MAIN).then(|| names::table(table)),
        protocol: (body.protocol != RTPROT_BOOT).then(|| names::protocol(body.protocol)),
        scope: (body.scope != 0).then(|| names::scope(body.scope)),
        prefsrc: body.prefsrc,
        metric: (A::V6 || body.priority != 0).then_some(body.priority),
        realms: RealmsView::of(body.realms),
        metrics: if metrics.is_empty() { Vec::new() } else { vec![metrics] },
        pref: A::V6.then(|| names::pref(body.pref)),
        nexthops: hops,
    }
}

/// The next hops; those of a nexthop object are looked up.
fn hops(state: &RouterState, family: Family, body: &RouteBody) -> Vec<HopView> {
    let immortal = body.outlives_its_link(family == Family::V6);
    let view = |oif: u32, gateway: Option<IpAddr>, weight: u32, flags: u8| {
        let (gateway, via) = ViaView::divide(gateway, family == Family::V6);
        HopView {
            gateway,
            via,
            dev: (oif != 0).then(|| state.ifname(oif)),
            weight: Some(weight),
            flags: hop_flags(state, family, oif, if immortal { None } else { Some(flags) }),
        }
    };
    let from_object = |id: u32, weight: u32| {
        let object = state.nexthops.get(&id)?;
        // The kernel reports the loopback device if there is no output interface.
        let oif = if object.blackhole { 1 } else { object.oif };
        Some(view(oif, object.gateway, weight, object.flags as u8))
    };
    match state.nexthops.get(&body.nhid) {
        Some(object) if body.nhid != 0 && !object.group.is_empty() => {
            object.group.iter().filter_map(|(id, weight)| from_object(*id, *weight)).collect()
        }
        Some(object) if body.nhid != 0 => from_object(object.id, 1).into_iter().collect(),
        _ => body.nexthops.iter().map(|nh| view(nh.oif, nh.gateway, nh.weight, nh.flags)).collect(),
    }
}

fn hop_flags(
    state: &RouterState,
    family: Family,
    oif: u32,
    flags: Option<u8>,
) -> Vec<&'static str> {
    let Some(flags) = flags else { return Vec::new() };
    let quiet = state.links.get(&oif).is_some_and(|link| !link.is_running());
    let told_dead = flags & RTNH_F_DEAD != 0;
    let named = [
        (told_dead || (oif != 0 && state.nexthop_is_dead(family, oif)), "dead"),
        (flags & RTNH_F_ONLINK != 0, "onlink"),
        (flags & RTNH_F_PERVASIVE != 0, "pervasive"),
        (quiet || flags & RTNH_F_LINKDOWN != 0, "linkdown"),
    ];
    named.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}

impl fmt::Display for HopView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway}")?;
            sep = " ";
        }
        if let Some(via) = &self.via {
            write!(f, "{sep}via {} {}", via.family, via.host)?;
            sep = " ";
        }
        if let Some(dev) = &self.dev {
            write!(f, "{sep}dev {dev}")?;
        }
        if let Some(weight) = self.weight {
            write!(f, " weight {weight}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RouteView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = &self.kind {
            write!(f, "{kind} ")?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        if let Some(tos) = &self.tos {
            write!(f, " tos {tos}")?;
        }
        if let Some(nhid) = self.nhid {
            write!(f, " nhid {nhid}")?;
        }
        if let Some(hop) = &self.hop {
            write!(f, " {hop}")?;
        }
        let words = [("table", &self.table), ("proto", &self.protocol), ("scope", &self.scope)];
        for (word, value) in words {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        if let Some(prefsrc) = self.prefsrc {
            write!(f, " src {prefsrc}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        for flag in self.hop.iter().flat_map(|hop| &hop.flags) {
            write!(f, " {flag}")?;
        }
        if let Some(realms) = &self.realms {
            write!(f, " {realms}")?;
        }
        for (name, value) in self.metrics.iter().flatten() {
            write!(f, " {name} {value}")?;
        }
        if let Some(pref) = self.pref {
            write!(f, " pref {pref}")?;
        }
        for hop in &self.nexthops {
            write!(f, "\n\tnexthop {hop}")?;
            for flag in &hop.flags {
                write!(f, " {flag}")?;
            }
        }
        Ok(())
    }
}
