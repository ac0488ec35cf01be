//! Dumps all or a part of the kernel's state and replaces the mirrored state by it: at the start,
//! after events were lost, and where `follow` is in doubt. Objects that are not in the dump are
//! removed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::rules::RT_TABLE_LOCAL;
use super::compile::{Touched, links};
use super::follow::{Follower, Parts};
use super::parse::{self, ParsedRoute};
use super::rib::{Dump, Rib, RibAddr};
use super::state::{Family, LinkState, Neighs, Netconf};
use super::sysctl;
use crate::control::netlink::message::Message;
use crate::control::netlink::rtnl::Requests;
use crate::control::netlink::socket::{DumpEnd, SockError};
use crate::tables::AddrLabels;

/// After a dump made because of doubts, the next one waits for this many times its duration.
const REST: u32 = 5;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;
const RTM_GETADDRLABEL: u16 = 74;
const RTM_GETNETCONF: u16 = 82;
const RTM_GETNEXTHOP: u16 = 106;

/// Where dumps come from.
pub(super) trait Dumps {
    /// Dumps all objects of a kind: RTM_GET* `kind` with its fixed `header`.
    fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError>;
}

impl Dumps for Requests {
    fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        Requests::dump(self, what, kind, header, each)
    }
}

impl Follower {
    /// Dumps parts of the state and replaces them. A part whose dump was complete is no longer
    /// marked as lost; a part whose dumps were all interrupted is marked as lost.
    pub(super) fn resync(
        &mut self,
        requests: &mut dyn Dumps,
        parts: Parts,
        now: Instant,
    ) -> Result<(), SockError> {
        if parts.is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        self.counters.resyncs += 1;
        self.ask(requests, parts, now)?;
        self.rest_until = Some(Instant::now() + begun.elapsed() * REST);
        Ok(())
    }

    fn ask(
        &mut self,
        requests: &mut dyn Dumps,
        parts: Parts,
        now: Instant,
    ) -> Result<(), SockError> {
        // Links are dumped under RTNL, which the process that caused the doubt held until its
        // change was complete.
        let end = self.resync_links(requests)?;
        self.note_end(end, |parts| &mut parts.links);
        self.replace(requests, parts, now)
    }

    /// Dumps a part of the state other than links, and replaces it, unless the dump is interrupted. Returns whether it was
    /// different; the kernel does not report each neighbour that it gives up, nor address labels, so these do not count.
    /// `now`: before the dump.
    pub(super) fn compare(
        &mut self,
        requests: &mut dyn Dumps,
        part: Parts,
        now: Instant,
    ) -> Result<bool, SockError> {
        debug_assert_eq!(self.touched, Touched::default(), "the tables are compiled");
        self.is_comparing = true;
        (self.has_changed_routes, self.has_changed_lladdrs) = (false, false);
        let dumped = self.replace(requests, part, now);
        self.is_comparing = false;
        let others = Touched { neighs: false, sysctls: false, ..self.touched };
        dumped.map(|()| {
            self.has_changed_routes || self.has_changed_lladdrs || others != Touched::default()
        })
    }

    /// Dumps all parts but links, and replaces them.
    fn replace(
        &mut self,
        requests: &mut dyn Dumps,
        parts: Parts,
        now: Instant,
    ) -> Result<(), SockError> {
        if parts.netconf {
            let end = self.resync_netconf(requests)?;
            self.note_end(end, |parts| &mut parts.netconf);
        }
        if parts.addrs {
            let end = self.resync_addrs(requests)?;
            self.note_end(end, |parts| &mut parts.addrs);
        }
        if parts.rules {
            let end = self.resync_rules(requests)?;
            self.note_end(end, |parts| &mut parts.rules);
        }
        if parts.nexthops {
            let end = self.resync_nexthops(requests)?;
            self.note_end(end, |parts| &mut parts.nexthops);
        }
        if parts.routes4 {
            let mut rib = std::mem::take(&mut self.state.routes4);
            let end = self.resync_routes(requests, &mut rib, Family::V4, now);
            self.state.routes4 = rib;
            self.note_end(end?, |parts| &mut parts.routes4);
        }
        if parts.routes6 {
            let expires = self.route_expires.take();
            let mut rib = std::mem::take(&mut self.state.routes6);
            let end = self.resync_routes(requests, &mut rib, Family::V6, now);
            self.state.routes6 = rib;
            if end.is_err() || self.is_comparing {
                self.route_expires = expires.into_iter().chain(self.route_expires).min();
            }
            self.note_end(end?, |parts| &mut parts.routes6);
        }
        if parts.addr_labels {
            let end = self.resync_addr_labels(requests)?;
            self.note_end(end, |parts| &mut parts.addr_labels);
        }
        if parts.neighs {
            let end = self.resync_neighs(requests)?;
            self.note_end(end, |parts| &mut parts.neighs);
        }
        Ok(())
    }

    /// Notes how the last dump of a part ended. The contents of an interrupted dump are used,
    /// because they are newer than the previous state, but the part stays marked as lost.
    fn note_end(&mut self, end: DumpEnd, part: impl Fn(&mut Parts) -> &mut bool) {
        match end {
            DumpEnd::Complete => *part(&mut self.lost) = false,
            DumpEnd::Interrupted => {
                let mut parts = Parts::default();
                *part(&mut parts) = true;
                self.lose(parts, Instant::now());
            }
        }
    }

    /// Dumps one type of object, and repeats the dump if it was interrupted; messages that `parse`
    /// rejects are counted.
    fn dump<T>(
        &mut self,
        requests: &mut dyn Dumps,
        what: &'static str,
        (kind, header): (u16, &[u8]),
        parse: impl Fn(&Message<'_>) -> Parsed<T>,
    ) -> Result<(Vec<T>, DumpEnd), SockError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (mut all, mut unparsable) = (Vec::new(), 0);
            let end = requests.dump(what, kind, header, &mut |message| match parse(message) {
                Parsed::Object(object) => all.push(object),
                Parsed::Foreign => {}
                Parsed::Unparsable => unparsable += 1,
            })?;
            if end == DumpEnd::Interrupted {
                self.counters.dump_intr += 1;
                if self.is_comparing {
                    return Err(interrupted(what));
                }
                if attempt < self.interrupted_max {
                    continue;
                }
            }
            // A comparison reads nothing that was not counted before.
            self.counters.unparsable += if self.is_comparing { 0 } else { unparsable };
            return Ok((all, end));
        }
    }

    fn resync_links(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        // IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS.
        let mut header = vec![0u8; 16];
        header.extend([8, 0, 29, 0, 8, 0, 0, 0]);
        let request = (RTM_GETLINK, header.as_slice());
        let (links, mut end) =
            self.dump(requests, "dump links", request, |m| Parsed::from(parse::link(m)))?;
        let links: BTreeMap<_, _> = links.into_iter().map(|link| (link.ifindex, link)).collect();
        if *self.state.links != links {
            self.touched.links = true;
            let old = std::mem::replace(&mut self.state.links, Arc::new(links));
            self.follow_flags(&old);
        }
        for (ifindex, link) in &*self.state.links {
            if self.state.sysctls_dev.contains_key(ifindex) {
                continue;
            }
            match sysctl::read_dev_once(&link.name) {
                Some(own) => drop(self.state.sysctls_dev.insert(*ifindex, own)),
                // Causes another dump.
                None => end = DumpEnd::Interrupted,
            }
        }
        Ok(end)
    }

    /// Handles flag changes found in a dump. Their event is still queued, and must not remove
    /// routes that were added after the change.
    fn follow_flags(&mut self, old: &BTreeMap<u32, LinkState>) {
        let lost: Vec<(u32, bool)> = old
            .values()
            .filter_map(|old| {
                let new = self.state.links.get(&old.ifindex)?;
                let down = old.is_up() && !new.is_up();
                let quiet = old.is_running() && !new.is_running();
                (down || quiet).then_some((new.ifindex, new.is_up()))
            })
            .collect();
        let now = Instant::now();
        for (ifindex, up) in lost {
            self.carrier_lost(ifindex, up, now);
        }
        let gone: Vec<u32> =
            old.keys().filter(|ifindex| !self.state.links.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.link_gone(ifindex, now);
        }
    }

    fn resync_addrs(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        let (mut addrs, mut end) = (Vec::new(), DumpEnd::Complete);
        for family in Family::ALL {
            let header = [family.af(), 0, 0, 0, 0, 0, 0, 0];
            let request = (RTM_GETADDR, header.as_slice());
            let (some, its_end) =
                self.dump(requests, "dump addresses", request, |m| Parsed::from(parse::addr(m)))?;
            addrs.extend(some);
            end = end.and(its_end);
        }
        self.touched.addrs |= *self.state.addrs != addrs;
        self.state.addrs = Arc::new(addrs);
        Ok(end)
    }

    fn resync_rules(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        let mut end = DumpEnd::Complete;
        for family in Family::ALL {
            let mut header = [0u8; 12];
            header[0] = family.af();
            let request = (RTM_GETRULE, header.as_slice());
            let (rules, its_end) =
                self.dump(requests, "dump rules", request, |m| Parsed::from(parse::rule(m)))?;
            end = end.and(its_end);
            self.touched.rules |= *self.state.rules(family) != rules;
            match family {
                Family::V4 => self.state.rules4 = Arc::new(rules),
                Family::V6 => self.state.rules6 = Arc::new(rules),
            }
        }
        Ok(end)
    }

    pub(super) fn resync_nexthops(
        &mut self,
        requests: &mut dyn Dumps,
    ) -> Result<DumpEnd, SockError> {
        let request = (RTM_GETNEXTHOP, [0u8; 8].as_slice());
        let dump =
            self.dump(requests, "dump nexthops", request, |m| Parsed::from(parse::nexthop(m)));
        let (nexthops, end) = match dump {
            Ok(nexthops) => nexthops,
            // Before Linux 5.3 there are none.
            Err(error) if is_unsupported(&error) => (Vec::new(), DumpEnd::Complete),
            Err(error) => return Err(error),
        };
        let nexthops = nexthops.into_iter().map(|nexthop| (nexthop.id, nexthop)).collect();
        self.touched.nexthops |= self.state.nexthops != nexthops;
        self.state.nexthops = nexthops;
        Ok(end)
    }

    fn resync_routes<A: RibAddr>(
        &mut self,
        requests: &mut dyn Dumps,
        rib: &mut Rib<A>,
        family: Family,
        now: Instant,
    ) -> Result<DumpEnd, SockError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (mut dump, mut expires) = (Dump::default(), None);
            let end = routes(requests, family, &mut |route: ParsedRoute<A>| {
                let soonest: Option<Duration> = expires;
                expires = soonest.into_iter().chain(route.expires).min();
                rib.load(&mut dump, route.table, route.net, route.body);
            });
            let (end, unparsable) = match end {
                Ok(end) => end,
                Err(error) => {
                    rib.discard(dump);
                    return Err(error);
                }
            };
            if end == DumpEnd::Interrupted {
                self.counters.dump_intr += 1;
                if self.is_comparing {
                    rib.discard(dump);
                    return Err(interrupted("dump routes"));
                }
                if attempt < self.interrupted_max {
                    rib.discard(dump);
                    continue;
                }
            }
            self.counters.unparsable += if self.is_comparing { 0 } else { unparsable };
            self.note_expiry(expires, now);
            self.has_changed_routes |= rib.commit(dump);
            return Ok(end);
        }
    }

    fn resync_neighs(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        let request = (RTM_GETNEIGH, [0u8; 12].as_slice());
        let (neighs, end) = self.dump(requests, "dump neighbours", request, |message| {
            if parse::neigh_is_foreign(message) {
                return Parsed::Foreign;
            }
            Parsed::from(parse::neigh(message))
        })?;
        let neighs: Neighs =
            neighs.into_iter().map(|neigh| ((neigh.ifindex, neigh.dst), neigh)).collect();
        self.touched.neighs |= are_seen_otherwise(&self.state.neighs, &neighs);
        self.has_changed_lladdrs |= have_other_lladdrs(&self.state.neighs, &neighs);
        self.state.neighs = neighs;
        Ok(end)
    }

    fn resync_addr_labels(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        let mut header = [0u8; 12];
        header[0] = Family::V6.af();
        let request = (RTM_GETADDRLABEL, header.as_slice());
        let dump = self.dump(requests, "dump address labels", request, |message| {
            Parsed::from(parse::addr_label(message))
        });
        let (labels, end) = match dump {
            Ok((labels, end)) => (AddrLabels::new(labels), end),
            // A kernel without IPv6.
            Err(error) if is_unsupported(&error) => (AddrLabels::default(), DumpEnd::Complete),
            Err(error) => return Err(error),
        };
        if *self.state.sysctls.addr_labels != labels {
            self.state.sysctls.addr_labels = Arc::new(labels);
            self.touched.sysctls = true;
        }
        Ok(end)
    }

    fn resync_netconf(&mut self, requests: &mut dyn Dumps) -> Result<DumpEnd, SockError> {
        let (mut netconf, mut end) = (HashMap::new(), DumpEnd::Complete);
        for family in Family::ALL {
            let header = [family.af(), 0, 0, 0];
            let request = (RTM_GETNETCONF, header.as_slice());
            let (all, its_end) =
                self.dump(requests, "dump netconf", request, |m| Parsed::from(parse::netconf(m)))?;
            end = end.and(its_end);
            let own = all.into_iter().filter(|(_, of, _)| *of != Netconf::DEFAULT);
            netconf.extend(own.map(|(family, of, conf)| ((family, of), conf)));
        }
        self.touched.conf |= self.state.netconf != netconf;
        self.state.netconf = netconf;
        Ok(end)
    }
}

/// Whether workers get different neighbours.
fn are_seen_otherwise(old: &Neighs, new: &Neighs) -> bool {
    let seen = |neighs: &Neighs, key: &(u32, IpAddr)| neighs.get(key).and_then(links::visible);
    let differs = |key: &(u32, IpAddr)| seen(old, key) != seen(new, key);
    old.keys().chain(new.keys()).any(differs)
}

/// Whether a link-layer address is another one.
fn have_other_lladdrs(old: &Neighs, new: &Neighs) -> bool {
    let lladdr = |neighs: &Neighs, key| neighs.get(key).and_then(links::visible).flatten();
    old.keys().chain(new.keys()).any(|key| lladdr(old, key) != lladdr(new, key))
}

/// The kernel has no objects of the kind.
fn is_unsupported(error: &SockError) -> bool {
    matches!(error, SockError::Refused { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP))
}

/// The kernel does not have the routing table.
fn is_missing(error: &SockError) -> bool {
    matches!(error, SockError::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
}

/// A comparison ends with an interrupted dump: the next one may not be.
pub(super) fn interrupted(what: &'static str) -> SockError {
    SockError::Refused { what, source: io::ErrorKind::Interrupted.into(), text: String::new() }
}

/// Dumps the routes of a family. Returns how the dump ended, and how many routes could not be parsed.
///
/// # Errors
/// EMSGSIZE too if a route has more next hops than a message of a dump holds, some 1,100 (IPv6) or 2,000 (IPv4): the kernel
/// ends an IPv6 dump there as if it were complete (`inet6_dump_fib`), and what is missing would be taken to be removed.
pub(super) fn routes<A: RibAddr>(
    requests: &mut dyn Dumps,
    family: Family,
    each: &mut dyn FnMut(ParsedRoute<A>),
) -> Result<(DumpEnd, u64), SockError> {
    const WHAT: &str = "dump routes";
    let is_of_family = |message: &Message<'_>| parse::route_family(message) == Some(family.af());
    let mut header = [0u8; 12];
    header[0] = family.af();
    // Table local first: it is the last one in a dump of all, and missing in one that ended too early. It also makes the
    // kernel use long messages from the start, as long as what has been received (`netlink_dump`).
    header[4] = RT_TABLE_LOCAL as u8;
    let local_header = header;
    let has_local = |requests: &mut dyn Dumps| {
        let mut has_any = false;
        let dumped = requests.dump(WHAT, RTM_GETROUTE, &local_header, &mut |message| {
            let route = Some(message).filter(|it| is_of_family(it)).and_then(parse::route::<A>);
            has_any |= route.is_some_and(|route| route.table == RT_TABLE_LOCAL);
        });
        match dumped {
            // It has not been made yet: no interface is up (`inet_dump_fib`).
            Err(error) if is_missing(&error) => Ok(false),
            dumped => dumped.map(|_| has_any),
        }
    };
    let had_local = has_local(requests)?;
    header[4] = 0;
    let (mut unparsable, mut ends_with_local) = (0, false);
    let end = requests.dump(WHAT, RTM_GETROUTE, &header, &mut |message| {
        if parse::route_is_cloned(message) || !is_of_family(message) {
            return;
        }
        match parse::route(message) {
            Some(route) => {
                ends_with_local |= route.table == RT_TABLE_LOCAL;
                each(route);
            }
            None => unparsable += 1,
        }
    })?;
    // Its routes may have been removed meanwhile.
    if had_local && !ends_with_local && end == DumpEnd::Complete && has_local(requests)? {
        let source = io::Error::from_raw_os_error(libc::EMSGSIZE);
        let text = "it ends before table local, at a route with too many next hops".to_owned();
        return Err(SockError::Refused { what: WHAT, source, text });
    }
    Ok((end, unparsable))
}

/// The result of parsing one message of a dump.
enum Parsed<T> {
    Object(T),
    Foreign,
    Unparsable,
}

impl<T> From<Option<T>> for Parsed<T> {
    fn from(object: Option<T>) -> Parsed<T> {
        object.map_or(Parsed::Unparsable, Parsed::Object)
    }
}
