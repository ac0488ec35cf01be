//! How packets of a flow are forwarded, and why the XDP program does not do it: asked of the tables, hook functions and
//! predicates by which workers and the thread `fr-offload` decide.

use std::net::IpAddr;

use xdp_prog::offload::Width;

use super::offload::{OffloadedFlow, Offloads};
use crate::control::api::flow_rows::{Forwarding, NotOffloaded, Reason};
use crate::control::netlink::rtnl::lladdr;
use crate::fib::{FibInfo, FibResult, Flow, RouteType};
use crate::netfilter::Hooks;
use crate::netfilter::conntrack::{FlowKey, FlowView};
use crate::netfilter::nft::Family;
use crate::pipeline::{Obstacle, may_be_wide6, obstacle, passes_policies};
use crate::tables::{Link, Tables};

/// Entries that expire within this time are not offloaded (`Offloads::expires_soon`).
const EXPIRING_NS: u64 = 600_000_000;

/// Where packets are sent.
#[derive(Debug, Clone, Copy)]
struct Routed<'a> {
    oif: &'a Link,
    is_multipath: bool,
    nexthop: IpAddr,
    lladdr: Option<[u8; 6]>,
}

/// What decides about flows, at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deciding<'a> {
    /// `None`: nothing is offloaded.
    pub(super) offloads: Option<&'a Offloads>,
    pub(super) hooks: &'a Hooks,
    pub(super) tables: &'a Tables,
    /// CLOCK_MONOTONIC.
    pub(super) now_ns: u64,
}

/// How the packets of an entry are forwarded.
pub(super) fn of_entry(offloads: &Offloads, flow: &OffloadedFlow) -> Forwarding {
    let view = &flow.view;
    Forwarding {
        iif: Some(offloads.dev_name(view.in_dev)),
        oif: Some(offloads.ifname(view.nexthop.0)),
        nexthop: Some(view.nexthop.1),
        lladdr: Some(lladdr(&view.lladdr)),
        offloaded: flow.holds,
        ..Forwarding::default()
    }
}

impl Deciding<'_> {
    /// How the packets of each direction of a connection are forwarded. `entries`: those by which the program forwards
    /// them. `is_why`: it is also asked why it does not.
    pub(super) fn of_connection(
        &self,
        view: &FlowView,
        entries: [Option<&OffloadedFlow>; 2],
        is_why: bool,
    ) -> [Forwarding; 2] {
        let [original, reply] = view.desc.keys;
        // The source as it was received, and the destination as it is translated.
        let ends = |key: FlowKey, other: FlowKey| [key.addresses()[0], other.addresses()[0]];
        let ways = [ends(original, reply), ends(reply, original)];
        let routed = self.route_both(ways);
        std::array::from_fn(|at| match (entries[at], self.offloads) {
            (Some(entry), Some(offloads)) => of_entry(offloads, entry),
            _ => {
                let way = (routed[1 - at], routed[at]);
                let why = || self.why_not_carried(view, at, way);
                forwarding(way, is_why.then(why))
            }
        })
    }

    /// How packets between two addresses are forwarded, without connections, and why not by the program. `iif`: where
    /// they arrive; by default, where packets to their source leave.
    pub(super) fn of_pair(&self, [from, to]: [IpAddr; 2], iif: Option<&str>) -> Forwarding {
        let mut routed = self.route_both([[from, to], [to, from]]);
        if let Some(iif) = iif {
            routed[1] = self.tables.links.named(iif).ok_or(Reason::NotAPort).map(|oif| Routed {
                oif,
                is_multipath: false,
                nexthop: from,
                lladdr: None,
            });
            let ifindex = routed[1].map_or(0, |it| it.oif.ifindex);
            routed[0] = self.route(from, to, ifindex);
        }
        let way = (routed[1], routed[0]);
        forwarding(way, Some(self.why_not_wide([from, to], way)))
    }

    /// The routes of both directions, each of which arrives where the other one leaves.
    fn route_both(&self, [there, back]: [[IpAddr; 2]; 2]) -> [Result<Routed<'_>, Reason>; 2] {
        let ifindex = |routed: Result<Routed<'_>, Reason>| routed.map_or(0, |it| it.oif.ifindex);
        let guessed = self.route(back[0], back[1], 0);
        let out = self.route(there[0], there[1], ifindex(guessed));
        [out, self.route(back[0], back[1], ifindex(out))]
    }

    fn route(&self, from: IpAddr, to: IpAddr, iif: u32) -> Result<Routed<'_>, Reason> {
        let Tables { fib4, fib6, links, neigh, .. } = self.tables;
        let looks_at_marks =
            if to.is_ipv4() { fib4.looks_at_marks() } else { fib6.looks_at_marks() };
        // A packet may have any of them.
        if looks_at_marks && self.hooks.nft().is_some_and(|nft| nft.program().sets_marks()) {
            return Err(Reason::RoutedByMark);
        }
        let found = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (saddr, daddr) = (from.to_bits(), to.to_bits());
                fib4.fib_lookup(&Flow { saddr, daddr, iif, mark: 0 })
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (saddr, daddr) = (from.to_bits(), to.to_bits());
                fib6.fib_lookup(&Flow { saddr, daddr, iif, mark: 0 })
            }
            _ => FibResult::NoRoute,
        };
        let info: &FibInfo = match found {
            FibResult::Route(info) if info.kind == RouteType::Unicast => info,
            FibResult::Route(FibInfo { kind: RouteType::Punt(_), .. })
            | FibResult::Rule(RouteType::Punt(_)) => return Err(Reason::RouteUnsupported),
            _ => return Err(Reason::NoRoute),
        };
        let nexthop = info.nexthops.iter().find(|it| !it.dead).ok_or(Reason::NoRoute)?;
        let oif = nexthop.dev.and_then(|dev| links.dev(dev)).filter(|link| !link.noarp);
        let oif = oif.ok_or(Reason::NotAPort)?;
        let gateway = nexthop.gateway.unwrap_or(to);
        let lladdr = neigh.lookup(oif.ifindex, &gateway).and_then(|neigh| neigh.lladdr);
        let is_multipath = info.nexthops.len() > 1;
        Ok(Routed { oif, is_multipath, nexthop: gateway, lladdr })
    }

    /// Why packets of a direction of a carried connection have no entry.
    fn why_not_carried(&self, view: &FlowView, at: usize, way: Way<'_>) -> NotOffloaded {
        let key = &view.desc.keys[at];
        let pf = if key.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let by_rules = || {
            if self.hooks.have_device_chains() {
                Some(Reason::IngressChain)
            } else if !self.hooks.may_decide(pf) || view.undecided[at].is_some() {
                Some(Reason::RulesPerPacket)
            } else {
                None
            }
        };
        let translated = view.desc.keys.get(1 - at).map(FlowKey::inverted);
        let by_policies = || self.by_policies(key, translated, way);
        let expires =
            || (view.desc.expires_ns <= self.now_ns + EXPIRING_NS).then_some(Reason::Expiring);
        self.why_not(key, true, way, || by_rules().or_else(by_policies).or_else(expires))
    }

    /// Why packets with these addresses have no entry, without connections.
    fn why_not_wide(&self, [from, to]: [IpAddr; 2], way: Way<'_>) -> NotOffloaded {
        let key = FlowKey::new(from, to, Width::Addresses.protocol(), 0, 0);
        let may_be_wide = way.0.is_ok_and(|iif| from.is_ipv4() || may_be_wide6(iif.oif));
        self.why_not(&key, false, way, || {
            if self.hooks.have_device_chains() {
                Some(Reason::IngressChain)
            } else if !self.hooks.is_empty() {
                Some(Reason::RulesWithoutTracking)
            } else if self.tables.xfrm.concern_any() && self.tables.xfrm.see_more_than_addresses() {
                Some(Reason::IpsecPolicy)
            } else {
                let by_policies = || self.by_policies(&key, None, way);
                (!may_be_wide).then_some(Reason::ProxyNdp).or_else(by_policies)
            }
        })
    }

    fn by_policies(
        &self,
        key: &FlowKey,
        translated: Option<FlowKey>,
        way: Way<'_>,
    ) -> Option<Reason> {
        let oif = way.1.ok()?.oif.ifindex;
        let passes = passes_policies(key, || translated, oif, self.tables);
        (!passes).then_some(Reason::IpsecPolicy)
    }

    /// Why packets with a key have no entry. `by_rules`: a reason that is not about their way.
    fn why_not(
        &self,
        key: &FlowKey,
        is_carried: bool,
        way: Way<'_>,
        by_rules: impl FnOnce() -> Option<Reason>,
    ) -> NotOffloaded {
        let Some(offloads) = self.offloads else { return because(Reason::OffloadOff) };
        let (iif, oif) = match way {
            (Ok(iif), Ok(oif)) => (iif, oif),
            (_, Err(Reason::RoutedByMark)) | (Err(Reason::RoutedByMark), _) => {
                return because(by_rules().unwrap_or(Reason::RoutedByMark));
            }
            (_, Err(reason)) | (Err(reason), _) => return because(reason),
        };
        let by_way = || match obstacle(iif.oif, oif.oif, oif.is_multipath)? {
            Obstacle::SameInterface => Some(Reason::SameInterface),
            Obstacle::Multipath => Some(Reason::Multipath),
            Obstacle::EgressQosMap => Some(Reason::EgressQosMap),
        };
        let (Some(in_port), Some(out_port), Some(dev)) =
            (iif.oif.port, oif.oif.port, iif.oif.flow_number())
        else {
            return because(Reason::NotAPort);
        };
        let reason = by_way()
            .or_else(|| offloads.obstacle(in_port, out_port))
            .or_else(by_rules)
            .or_else(|| oif.lladdr.is_none().then_some(Reason::NeighbourUnresolved))
            .or_else(|| offloads.want_of_room(key, dev));
        match reason {
            Some(reason) => because(reason),
            None => NotOffloaded {
                reason: Reason::BelowThreshold,
                rule: None,
                counted: offloads.counted(key, is_carried),
            },
        }
    }
}

/// Where packets to the source leave, and those to the destination.
type Way<'a> = (Result<Routed<'a>, Reason>, Result<Routed<'a>, Reason>);

fn because(reason: Reason) -> NotOffloaded {
    NotOffloaded { reason, rule: None, counted: None }
}

fn forwarding((iif, oif): Way<'_>, not_offloaded: Option<NotOffloaded>) -> Forwarding {
    let name = |routed: Result<Routed<'_>, Reason>| routed.ok().map(|it| it.oif.name.clone());
    Forwarding {
        iif: name(iif),
        oif: name(oif),
        nexthop: oif.ok().map(|it| it.nexthop),
        lladdr: oif.ok().and_then(|it| it.lladdr).map(|octets| lladdr(&octets)),
        not_offloaded,
        ..Forwarding::default()
    }
}
