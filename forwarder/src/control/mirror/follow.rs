//! Applies events to the state, including changes that the kernel makes without an event.
//!
//! The kernel sends no event when it removes IPv4 routes because an interface went down or lost an
//! address (`fib_sync_down_dev`, `fib_sync_down_addr`), when it removes nexthop objects together
//! with their interface (`nexthop_flush_dev`), and when it removes routes together with their
//! nexthop object. The same removals are made here at once. Because this code may differ from the
//! kernel's, the objects concerned are dumped a moment later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::{Touched, links};
use super::parse;
use super::rib::{Applied, RT_SCOPE_HOST, RTNH_F_DEAD, Rib, RibAddr, RouteBody};
use super::rx_handlers;
use super::self_check::CHECKED_PARTS;
use super::state::{AddrState, Family, Netconf, RouterState};
use super::sysctl;
use crate::control::netlink::message::Message;

/// How long after a doubt the state is dumped again: by then the kernel has completed its change
/// (under RTNL), and a burst of doubts costs one dump.
const DOUBT_WAIT: Duration = Duration::from_millis(20);
/// How often routes with dead next hops on an interface that is up are dumped again: after 40 ms,
/// 80 ms and so on, 0.6 s in total.
const DEAD_RETRIES: u32 = 4;
/// How long after a failed or interrupted dump it is repeated.
const LOST_WAIT: Duration = Duration::from_millis(250);
/// How often an interrupted dump is repeated immediately, before its contents are used and it is
/// repeated later.
const INTERRUPTED_MAX: u32 = 8;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// The place in [`MirrorCounters::kinds`] of a type of message; `None`: of other objects.
fn kind_of(message: u16) -> Option<usize> {
    Some(match message {
        RTM_NEWLINK | RTM_DELLINK => 0,
        RTM_NEWADDR | RTM_DELADDR => 1,
        RTM_NEWROUTE | RTM_DELROUTE => 2,
        RTM_NEWRULE | RTM_DELRULE => 3,
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => 4,
        RTM_NEWNEIGH | RTM_DELNEIGH => 5,
        _ => return None,
    })
}

/// Counters of the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct MirrorCounters {
    /// Events processed.
    pub events: u64,
    /// Those of them that were about links, addresses, routes, rules, nexthop objects and neighbours.
    pub kinds: [u64; 6],
    /// Times all or a part of the state was dumped again.
    pub resyncs: u64,
    /// Times the kernel could not queue events (ENOBUFS).
    pub enobufs: u64,
    /// Dumps that were interrupted and repeated (NLM_F_DUMP_INTR).
    pub dump_intr: u64,
    /// Messages that could not be parsed; their contents are not mirrored.
    pub unparsable: u64,
    /// Times a part of the state differed from the kernel's without an event, and was replaced.
    pub corrections: u64,
    /// Times the self-check has compared each of its parts with a dump of the kernel.
    pub compared: [u64; CHECKED_PARTS],
}

impl MirrorCounters {
    /// Complete rounds of the self-check: since a change, two of them have compared every part with the kernel's state
    /// after it.
    pub fn check_rounds(&self) -> u64 {
        self.compared.into_iter().min().unwrap_or(0)
    }
}

/// Parts of the state to be dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Interfaces.
    pub links: bool,
    /// Addresses.
    pub addrs: bool,
    /// Rules.
    pub rules: bool,
    /// Nexthop objects.
    pub nexthops: bool,
    /// IPv4 routes.
    pub routes4: bool,
    /// IPv6 routes.
    pub routes6: bool,
    /// Neighbours.
    pub neighs: bool,
    /// Netconf.
    pub netconf: bool,
    /// Labels of IPv6 addresses.
    pub addr_labels: bool,
}

impl Parts {
    /// Everything.
    pub const ALL: Parts = Parts {
        links: true,
        addrs: true,
        rules: true,
        nexthops: true,
        routes4: true,
        routes6: true,
        neighs: true,
        netconf: true,
        addr_labels: true,
    };

    /// Whether no part is set.
    pub fn is_none(&self) -> bool {
        *self == Parts::default()
    }

    pub(super) fn add(&mut self, other: Parts) {
        self.links |= other.links;
        self.addrs |= other.addrs;
        self.rules |= other.rules;
        self.nexthops |= other.nexthops;
        self.routes4 |= other.routes4;
        self.routes6 |= other.routes6;
        self.neighs |= other.neighs;
        self.netconf |= other.netconf;
        self.addr_labels |= other.addr_labels;
    }
}

/// The mirrored state, and which parts of it may be wrong.
#[derive(Debug)]
pub struct Follower {
    /// The kernel's state.
    pub state: RouterState,
    /// What changed since the last compilation.
    pub touched: Touched,
    /// Counters of the mirror.
    pub counters: MirrorCounters,
    /// The set of own addresses changed.
    pub locals_changed: bool,
    doubts: Parts,
    doubts_due: Option<Instant>,
    /// Parts for which messages were lost or the last dump was incomplete.
    pub(super) lost: Parts,
    /// [`INTERRUPTED_MAX`], except in tests of interrupted dumps.
    pub(super) interrupted_max: u32,
    /// How often routes with dead next hops were dumped again since an interface changed.
    dead_retries: u32,
    /// No dump because of doubts before this time: dumps of many routes take long, and events have
    /// priority.
    pub(super) rest_until: Option<Instant>,
    pub(super) route_expires: Option<Instant>,
    /// The state is compared with a dump, which is given up if it is interrupted.
    pub(super) is_comparing: bool,
    /// A dump of routes differed from those before.
    pub(super) has_changed_routes: bool,
    /// A dump had other link-layer addresses than those before.
    pub(super) has_changed_lladdrs: bool,
}

impl Default for Follower {
    fn default() -> Follower {
        Follower {
            state: RouterState::default(),
            touched: Touched::default(),
            counters: MirrorCounters::default(),
            locals_changed: false,
            doubts: Parts::default(),
            doubts_due: None,
            lost: Parts::default(),
            interrupted_max: INTERRUPTED_MAX,
            dead_retries: 0,
            rest_until: None,
            route_expires: None,
            is_comparing: false,
            has_changed_routes: false,
            has_changed_lladdrs: false,
        }
    }
}

impl Follower {
    /// Applies one event.
    pub fn event(&mut self, message: &Message<'_>, now: Instant) {
        self.counters.events += 1;
        if let Some(kind) = kind_of(message.kind) {
            self.counters.kinds[kind] += 1;
        }
        let parsed = match message.kind {
            RTM_NEWLINK | RTM_DELLINK => self.link(message, now),
            RTM_NEWADDR | RTM_DELADDR => self.addr(message, now),
            RTM_NEWROUTE | RTM_DELROUTE => self.route(message, now),
            RTM_NEWRULE | RTM_DELRULE => self.rule(message, now),
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.nexthop(message, now),
            RTM_NEWNEIGH | RTM_DELNEIGH => self.neigh(message),
            RTM_NEWNETCONF | RTM_DELNETCONF => self.netconf(message, now),
            _ => Some(()),
        };
        if parsed.is_none() {
            self.counters.unparsable += 1;
        }
    }

    /// Marks parts as doubtful.
    pub fn doubt(&mut self, now: Instant, mark: impl FnOnce(&mut Parts)) {
        self.doubt_after(DOUBT_WAIT, now, mark);
    }

    fn doubt_after(&mut self, wait: Duration, now: Instant, mark: impl FnOnce(&mut Parts)) {
        mark(&mut self.doubts);
        let soon = now + wait;
        self.doubts_due.get_or_insert(self.rest_until.map_or(soon, |rest| rest.max(soon)));
    }

    /// Marks parts as lost until a dump of them is complete. They are dumped again soon, even
    /// before `rest_until`.
    pub(super) fn lose(&mut self, parts: Parts, now: Instant) {
        self.lost.add(parts);
        self.doubts.add(parts);
        let soon = now + LOST_WAIT;
        self.doubts_due = Some(self.doubts_due.map_or(soon, |due| due.min(soon)));
    }

    /// Dumps routes again, a bounded number of times, if next hops are marked dead although their
    /// interface is up. The kernel clears RTNH_F_DEAD without an event, some time after the event
    /// of the interface (`addrconf_notify`, `fib_sync_up`); but next hops also stay dead if the
    /// interface has no address.
    pub(super) fn doubt_dead(&mut self, now: Instant) {
        let dead4 = has_dead_of_live(&self.state, &self.state.routes4, Family::V4);
        let dead6 = has_dead_of_live(&self.state, &self.state.routes6, Family::V6);
        if (dead4 || dead6) && self.dead_retries < DEAD_RETRIES {
            self.dead_retries += 1;
            let wait = DOUBT_WAIT * (1 << self.dead_retries);
            self.doubt_after(wait, now, |parts| {
                parts.routes4 |= dead4;
                parts.routes6 |= dead6;
            });
        }
    }

    /// Whether something is to be dumped again because of a doubt.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubts_due.is_some()
    }

    /// When something has to be dumped again.
    pub fn due(&self) -> Option<Instant> {
        match (self.doubts_due, self.route_expires) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The doubtful parts, if they are due.
    pub fn take_due(&mut self, now: Instant) -> Parts {
        if self.route_expires.is_some_and(|at| at <= now) {
            self.route_expires = None;
            self.doubts.routes6 = true;
            self.doubts_due = Some(now);
        }
        if self.doubts_due.is_none_or(|due| due > now) {
            return Parts::default();
        }
        self.doubts_due = None;
        std::mem::take(&mut self.doubts)
    }

    fn link(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        // Messages of AF_BRIDGE and other families contain attributes that are not mirrored.
        if message.payload.first() != Some(&0) {
            return Some(());
        }
        let link = parse::link(message)?;
        let ifindex = link.ifindex;
        self.touched.links = true;
        if message.kind == RTM_DELLINK {
            self.link_gone(ifindex, now);
            if let Some(lower) = rx_handlers::lower_of_moved(&link) {
                self.state.taken.insert(lower);
            }
            return Some(());
        }
        let old = self.state.links.get(&ifindex);
        let was = old.map(|link| (link.is_up(), link.is_running(), link.name.clone()));
        let is = (link.is_up(), link.is_running(), link.name.clone());
        if was.as_ref().is_none_or(|was| was.2 != is.2) {
            if let Some(own) = sysctl::read_dev_once(&link.name) {
                self.state.sysctls_dev.insert(ifindex, own);
            } else {
                // Read with the next dump.
                self.state.sysctls_dev.remove(&ifindex);
                self.lose(Parts { links: true, ..Parts::default() }, now);
            }
        }
        Arc::make_mut(&mut self.state.links).insert(ifindex, link);
        self.dead_retries = 0;
        let Some(was) = was else {
            // The event of the first end of a veth pair is sent before its peer exists.
            self.doubt(now, |parts| parts.links = true);
            return Some(());
        };
        if (was.0 && !is.0) || (was.1 && !is.1) {
            self.carrier_lost(ifindex, is.0, now);
        } else if was.0 != is.0 || was.1 != is.1 {
            self.doubt(now, |parts| (parts.routes4, parts.routes6) = (true, true));
        }
        Some(())
    }

    pub(super) fn carrier_lost(&mut self, ifindex: u32, up: bool, now: Instant) {
        self.drop_nexthops(|nexthop_oif| nexthop_oif == ifindex);
        if !up {
            let links = &self.state.links;
            let dead = |oif: u32| links.get(&oif).is_none_or(|link| !link.is_up());
            let gone = |body: &RouteBody| {
                body.scope < RT_SCOPE_HOST && leads_only(body, &dead) && leads(body, ifindex)
            };
            flush_with(&mut self.state.routes4, gone);
        }
        self.doubt(now, |parts| {
            (parts.routes4, parts.routes6, parts.nexthops) = (true, true, true);
        });
    }

    pub(super) fn link_gone(&mut self, ifindex: u32, now: Instant) {
        Arc::make_mut(&mut self.state.links).remove(&ifindex);
        self.state.sysctls_dev.remove(&ifindex);
        self.state.taken.remove(&ifindex);
        self.state.xfrmi_filters.remove(&ifindex);
        Arc::make_mut(&mut self.state.addrs).retain(|addr| addr.ifindex != ifindex);
        self.state.neighs.retain(|(oif, _), _| *oif != ifindex);
        self.state.netconf.retain(|(_, of), _| *of != ifindex.cast_signed());
        self.touched.neighs = true;
        self.touched.addrs = true;
        self.drop_nexthops(|oif| oif == ifindex);
        let dead = |oif: u32| oif == ifindex;
        let gone = |body: &RouteBody| leads_only(body, &dead);
        flush_with(&mut self.state.routes4, gone);
        flush_with(&mut self.state.routes6, gone);
        self.doubt(now, |parts| {
            (parts.routes4, parts.routes6, parts.nexthops) = (true, true, true);
        });
    }

    /// Removes the nexthop objects of an interface, groups with their last member, and routes with
    /// their object.
    fn drop_nexthops(&mut self, gone: impl Fn(u32) -> bool) {
        let ids: Vec<u32> = self
            .state
            .nexthops
            .values()
            .filter(|nexthop| nexthop.oif != 0 && gone(nexthop.oif))
            .map(|nexthop| nexthop.id)
            .collect();
        for id in ids {
            self.drop_nexthop(id);
        }
    }

    fn drop_nexthop(&mut self, id: u32) {
        self.touched.nexthops = true;
        let mut gone = vec![id];
        self.state.nexthops.remove(&id);
        self.state.nexthops.retain(|group_id, nexthop| {
            let was_group = !nexthop.group.is_empty();
            nexthop.group.retain(|(member, _)| *member != id);
            let empty = was_group && nexthop.group.is_empty();
            if empty {
                gone.push(*group_id);
            }
            !empty
        });
        let uses = |body: &RouteBody| body.nhid != 0 && gone.contains(&body.nhid);
        flush_with(&mut self.state.routes4, uses);
        flush_with(&mut self.state.routes6, uses);
    }

    fn addr(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        let addr = parse::addr(message)?;
        self.touched.addrs = true;
        if message.kind == RTM_NEWADDR {
            self.state.add_addr(addr);
            // `fib_sync_up`: next hops that were dead because the interface had no address become
            // alive.
            if self.state.routes4.bodies().iter().any(|(_, body)| body.has_dead()) {
                self.doubt(now, |parts| parts.routes4 = true);
            }
        } else if self.state.del_addr(&addr) {
            match addr.local.is_ipv4() {
                true => {
                    self.addr4_gone(&addr);
                    self.doubt(now, |parts| parts.routes4 = true);
                }
                // With disable_ipv6, its routes go as well; with route.skip_notify_on_dev_down, without events.
                false if !self.has_addr(addr.ifindex, Family::V6) => {
                    self.doubt(now, |parts| parts.routes6 = true);
                }
                false => {}
            }
        }
        // The kernel determines the order of addresses, and may have promoted secondary ones.
        self.doubt(now, |parts| parts.addrs = true);
        Some(())
    }

    /// `fib_sync_down_addr`, and `fib_disable_ip` for the last address of an interface.
    fn addr4_gone(&mut self, gone: &AddrState) {
        let still = |same: &dyn Fn(&AddrState) -> bool| self.state.addrs.iter().any(same);
        if !still(&|addr| addr.local == gone.local) {
            let local: IpAddr = gone.local;
            flush_with(&mut self.state.routes4, |body| body.prefsrc == Some(local));
        }
        if !self.has_addr(gone.ifindex, Family::V4) {
            let dead = |oif: u32| oif == gone.ifindex;
            flush_with(&mut self.state.routes4, |body| leads_only(body, &dead));
        }
    }

    fn has_addr(&self, ifindex: u32, family: Family) -> bool {
        let is_one =
            |addr: &AddrState| addr.ifindex == ifindex && Family::of(&addr.local) == family;
        self.state.addrs.iter().any(is_one)
    }

    fn route(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        if parse::route_is_cloned(message) {
            return Some(());
        }
        let family = Family::from_af(parse::route_family(message)?);
        let del = message.kind == RTM_DELROUTE;
        match family {
            Some(Family::V4) => {
                let route = parse::route::<u32>(message)?;
                let applied = apply_route(&mut self.state.routes4, route, del, message.flags);
                if applied == Applied::Doubt {
                    self.doubt(now, |parts| parts.routes4 = true);
                }
            }
            Some(Family::V6) => {
                let route = parse::route::<u128>(message)?;
                self.note_expiry(route.expires, now);
                let applied = apply_route(&mut self.state.routes6, route, del, message.flags);
                if applied == Applied::Doubt {
                    self.doubt(now, |parts| parts.routes6 = true);
                }
            }
            // Multicast forwarding (RTNL_FAMILY_IPMR) and MPLS are not IP unicast.
            None => {}
        }
        Some(())
    }

    pub(super) fn note_expiry(&mut self, left: Option<Duration>, now: Instant) {
        let Some(left) = left else { return };
        let at = now + left;
        self.route_expires = Some(self.route_expires.map_or(at, |soonest| soonest.min(at)));
    }

    fn rule(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        // RTNL_FAMILY_IPMR has rules too.
        if message.payload.first().copied().and_then(Family::from_af).is_none() {
            return Some(());
        }
        let rule = parse::rule(message)?;
        self.touched.rules |= if message.kind == RTM_NEWRULE {
            self.state.add_rule(rule)
        } else {
            // Without NLM_F_EXCL the kernel accepts duplicate rules; they are stored once here.
            self.doubt(now, |parts| parts.rules = true);
            self.state.del_rule(&rule)
        };
        Some(())
    }

    fn nexthop(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        let nexthop = parse::nexthop(message)?;
        self.touched.nexthops = true;
        if message.kind == RTM_NEWNEXTHOP {
            let id = nexthop.id;
            let was_blackhole = self.state.is_blackhole(id);
            self.state.nexthops.insert(id, nexthop);
            // The kernel reports the type of a route by its object. With nexthop_compat_mode=0, it does not report that the
            // type has changed with the object.
            if was_blackhole != self.state.is_blackhole(id) {
                let uses = |body: &RouteBody| body.nhid != 0 && self.state.leads_by(body.nhid, id);
                let used4 = self.state.routes4.bodies().iter().any(|(_, body)| uses(body));
                let used6 = self.state.routes6.bodies().iter().any(|(_, body)| uses(body));
                if used4 || used6 {
                    self.doubt(now, |parts| {
                        parts.routes4 |= used4;
                        parts.routes6 |= used6;
                    });
                }
            }
        } else {
            // A dump may have been without it already; the kernel has removed its routes without events.
            self.drop_nexthop(nexthop.id);
            self.doubt(now, |parts| {
                (parts.nexthops, parts.routes4, parts.routes6) = (true, true, true);
            });
        }
        Some(())
    }

    fn neigh(&mut self, message: &Message<'_>) -> Option<()> {
        if parse::neigh_is_foreign(message) {
            return Some(());
        }
        let neigh = parse::neigh(message)?;
        let key = (neigh.ifindex, neigh.dst);
        let new = if message.kind == RTM_NEWNEIGH { links::visible(&neigh) } else { None };
        let old = if message.kind == RTM_NEWNEIGH {
            self.state.neighs.insert(key, neigh)
        } else {
            self.state.neighs.remove(&key)
        };
        self.touched.neighs |= old.as_ref().and_then(links::visible) != new;
        Some(())
    }

    fn netconf(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        // MPLS has netconf too.
        if message.payload.first().copied().and_then(Family::from_af).is_none() {
            return Some(());
        }
        let (family, ifindex, conf) = parse::netconf(message)?;
        if ifindex == Netconf::DEFAULT {
            // It is of no interface. In IPv4 it becomes the setting of all that have none of their own
            // (`devinet_copy_dflt_conf`).
            if family == Family::V4 {
                let is_of_routes = conf.0[Netconf::IGNORE_LINKDOWN].is_some();
                self.doubt(now, |parts| {
                    parts.netconf = true;
                    parts.routes4 |= is_of_routes;
                });
            }
            return Some(());
        }
        if conf.0[Netconf::IGNORE_LINKDOWN].is_some() {
            // This setting affects RTNH_F_DEAD.
            self.doubt(now, |parts| (parts.routes4, parts.routes6) = (true, true));
        }
        self.touched.conf |= if message.kind == RTM_NEWNETCONF {
            self.state.add_netconf(family, ifindex, &conf)
        } else {
            self.state.netconf.remove(&(family, ifindex)).is_some()
        };
        Some(())
    }
}

fn apply_route<A: RibAddr>(
    rib: &mut Rib<A>,
    route: parse::ParsedRoute<A>,
    del: bool,
    flags: u16,
) -> Applied {
    if del {
        rib.del(route.table, route.net, &route.body)
    } else {
        rib.add(route.table, route.net, route.body, flags)
    }
}

fn flush_with<A: RibAddr>(rib: &mut Rib<A>, gone: impl Fn(&RouteBody) -> bool) {
    rib.flush(gone);
}

/// Whether a next hop is marked dead although its interface does not explain it.
fn has_dead_of_live<A: RibAddr>(state: &RouterState, rib: &Rib<A>, family: Family) -> bool {
    let is_live = |oif| !state.nexthop_is_dead(family, oif);
    rib.bodies().iter().any(|(_, body)| {
        body.nexthops.iter().any(|nh| nh.flags & RTNH_F_DEAD != 0 && is_live(nh.oif))
    })
}

/// Whether the body has next hops and the interfaces of all of them are `dead`.
fn leads_only(body: &RouteBody, dead: &impl Fn(u32) -> bool) -> bool {
    !body.nexthops.is_empty() && body.nexthops.iter().all(|nh| nh.oif != 0 && dead(nh.oif))
}

fn leads(body: &RouteBody, oif: u32) -> bool {
    body.nexthops.iter().any(|nh| nh.oif == oif)
}
