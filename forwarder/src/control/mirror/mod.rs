//! The netlink mirror: follows the kernel's links, addresses, routes, rules, nexthop objects,
//! neighbours and settings, and publishes them as the tables that workers read.
//!
//! The mirror subscribes first and dumps then. Events that were queued before or during a dump are
//! applied after it; the result is correct because each event contains the state, not a difference.
//! `follow` handles changes without an event; `self_check` finds others. One thread owns the mirror and polls it; only replies
//! of the kernel are waited for.
//!
//! - `parse`: parses messages;
//! - `state`, `rib`: the kernel's state; `dump`, `follow`: apply dumps and events to it;
//! - `compile`: the tables; `resolve`: neighbour resolution; `show`: output for people.
//!
//! Left out: XFRM (`set_policies` gets its policies), VRFs (their interfaces stay with the kernel), multicast
//! forwarding, cached exceptions such as learnt path MTUs.

pub mod compile;
mod dump;
// Public so that messages can be applied without a kernel (tests/fuzz).
#[doc(hidden)]
pub mod follow;

mod parse;
mod resolve;
pub mod rib;
mod rx_handlers;
mod self_check;
pub mod show;
pub mod state;
mod sysctl;
#[cfg(test)]
mod tests;
mod unmirrored;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

pub use self::follow::MirrorCounters;

pub use self::state::RouterState;
pub use crate::control::netlink::socket::SockError;

use self::compile::Compiler;
use self::compile::rules::RT_TABLE_LOCAL;
use self::follow::{Follower, Parts};
use self::resolve::Resolver;
use self::rib::RTN_LOCAL;
use self::rx_handlers::Taken;
use self::self_check::SelfCheck;
use self::state::Family;
use crate::control::netlink::events::{Events, Received};
use crate::control::netlink::message::Messages;
use crate::control::netlink::rtnl::{self, Requests};
use crate::fib::Qsbr;
use crate::tables::{Epochs, Published, Tables, XfrmPolicies};

/// Datagrams applied before the tables are published, so that a flood of events becomes visible in
/// steps.
const BATCH_DATAGRAMS: usize = 4096;
/// Far more than a receive buffer holds: the kernel then fills it as fast as it is emptied, and the
/// next overrun is near.
const DISCARD_DATAGRAMS_MAX: usize = 4 << 20;
/// How often /proc/sys is read, because the kernel sends no event for its changes.
const SYSCTL_INTERVAL: Duration = Duration::from_millis(50);
/// VLAN sub-interfaces whose settings are read at a time.
const VLAN_SYSCTLS: usize = 16;
/// VLAN sub-interfaces whose files are kept open; with thousands of them, hardly any would be
/// reused.
const KEPT_VLANS: usize = 64;
/// The same of xfrm interfaces.
const XFRMI_SYSCTLS: usize = 16;
const KEPT_XFRMIS: usize = 16;
/// How often neighbours in use are confirmed; DELAY_PROBE_TIME is 5 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// VLAN sub-interfaces whose neighbours' settings are read at a time, at that interval.
const NEIGH_VLANS: usize = 64;
/// How often ids that workers may still hold are checked.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(100);

/// How many dumps may fail in a row (for lack of memory, for example).
const FAILURES_MAX: u32 = 10;

const NUD_STALE: u16 = 0x04;

/// Options of the mirror.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// Receive buffer for events, in octets (SO_RCVBUFFORCE). Replacing a full Internet table at
    /// once causes some 200 MB of events; an overrun costs a dump.
    pub rcvbuf_octets: usize,
    /// Ports: ifindex and port number.
    pub ports: Vec<(u32, u16)>,
    /// Threads that read the tables at the same time: at most one worker for each queue of a port,
    /// and one for `route get`.
    pub readers: usize,
}

impl Default for MirrorOptions {
    fn default() -> MirrorOptions {
        MirrorOptions {
            rcvbuf_octets: 32 << 20,
            ports: Vec::new(),
            readers: xdp_prog::QUEUES_MAX + 1,
        }
    }
}

/// Why the mirror has to stop.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// Netlink failed.
    #[error(transparent)]
    Sock(#[from] SockError),
    /// A thread that reads the tables is stalled, and memory would grow without bound.
    #[error(
        "{numbers} replaced routes cannot be freed: a thread that reads the tables has been stalled for \
         {} s, and memory would grow without bound; the kernel keeps forwarding",
        since.as_secs()
    )]
    StalledReader {
        /// Route ids that wait for the thread.
        numbers: usize,
        /// How long the thread has been stalled.
        since: Duration,
    },
}

/// What a call of [`Mirror::process`] or [`Mirror::tick`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Interfaces were added, removed or changed.
    pub links: bool,
    /// The router's own addresses ([`Mirror::local4`], [`Mirror::local6`]) changed.
    pub local_addresses: bool,
    /// Generation of the tables published last.
    pub generation: u64,
    /// More events are queued: call again.
    pub more: bool,
}

/// Kernel configuration that is not followed; the packets concerned are left to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unmirrored {
    /// The object, described for people.
    pub what: String,
    /// Why it is not followed, and the consequence.
    pub why: String,
}

/// The netlink mirror; owned by the control thread.
#[derive(Debug)]
pub struct Mirror {
    events: Events,
    requests: Requests,
    follower: Follower,
    compiler: Compiler,
    resolver: Resolver,
    taken: Taken,
    /// Failed dumps since the last successful one.
    failures: u32,
    next_sysctl: Instant,
    sysctls: sysctl::Files,
    /// The VLAN sub-interface and the xfrm interface whose settings were read last.
    sysctl_turn: [u32; 2],
    next_keepalive: Instant,
    /// The VLAN sub-interface whose neighbours' settings were read last.
    neigh_turn: u32,
    next_reclaim: Instant,
    self_check: SelfCheck,
}

impl Mirror {
    /// Subscribes, dumps everything and publishes it. Mirrors the network namespace of the calling
    /// thread.
    pub fn start(options: MirrorOptions) -> Result<Mirror, MirrorError> {
        let now = Instant::now();
        let mut mirror = Mirror {
            events: rtnl::events(options.rcvbuf_octets)?,
            requests: Requests::open()?,
            follower: Follower::default(),
            compiler: Compiler::new(options.readers),
            resolver: Resolver::default(),
            taken: Taken::open(),
            failures: 0,
            next_sysctl: now,
            sysctls: sysctl::Files::default(),
            sysctl_turn: [0; 2],
            next_keepalive: now + KEEPALIVE_INTERVAL,
            neigh_turn: 0,
            next_reclaim: now + RECLAIM_INTERVAL,
            self_check: SelfCheck::new(now),
        };
        mirror.compiler.ports = options.ports.into_iter().collect();
        mirror.follower.resync(&mut mirror.requests, Parts::ALL, now)?;
        mirror.follower.counters.resyncs = 0;
        mirror.follower.touched.links = true;
        mirror.follower.touched.rules = true;
        mirror.follower.locals_changed = true;
        mirror.poll_sysctls(now, VLAN_SYSCTLS);
        mirror.read_neigh_tried();
        mirror.compile();
        Ok(mirror)
    }

    /// Applies the events since the last call and publishes the result. Does not block.
    pub fn process(&mut self) -> Result<Changes, MirrorError> {
        let now = Instant::now();
        let more = self.drain(now)?;
        self.settle(now, more)
    }

    /// Does periodic work; see [`Mirror::next_tick`].
    pub fn tick(&mut self, now: Instant) -> Result<Changes, MirrorError> {
        if now >= self.next_sysctl {
            self.poll_sysctls(now, VLAN_SYSCTLS);
        }
        if now >= self.next_keepalive {
            self.next_keepalive = now + KEEPALIVE_INTERVAL;
            self.keepalive(now)?;
            self.read_neigh_tried();
        }
        if now >= self.next_reclaim {
            self.next_reclaim = now + RECLAIM_INTERVAL;
            self.compiler.reclaim(&mut self.follower.state, now);
            if let Some((numbers, since)) = self.compiler.overdue(now) {
                return Err(MirrorError::StalledReader { numbers, since });
            }
        }
        // Apply queued events before a new dump, or they would be applied after it.
        let more = self.drain(now)?;
        let changes = self.settle(now, more)?;
        self.self_check(now, changes)
    }

    /// Reads all settings that have no events, regardless of when they were read last; used after a
    /// pause.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn read_sysctls(&mut self, now: Instant) -> Result<Changes, MirrorError> {
        self.poll_sysctls(now, usize::MAX);
        let more = self.drain(now)?;
        self.settle(now, more)
    }

    /// When to call [`Mirror::tick`] next.
    pub fn next_tick(&self) -> Instant {
        let timers = self.next_sysctl.min(self.next_keepalive).min(self.next_reclaim);
        let timers = timers.min(self.self_check.due);
        self.follower.due().map_or(timers, |due| due.min(timers))
    }

    /// Whether the mirrored state is up to date. False from when messages were lost, or a dump
    /// failed or was interrupted, until a dump of the parts concerned is complete; also false while
    /// rx_handlers or settings cannot be read.
    pub fn is_current(&self) -> bool {
        self.follower.lost.is_none() && self.taken.is_current() && !self.sysctls.has_failed()
    }

    /// Applies queued events, at most one batch. Returns whether more are queued.
    fn drain(&mut self, now: Instant) -> Result<bool, MirrorError> {
        for _ in 0..BATCH_DATAGRAMS {
            match self.events.receive()? {
                Received::Empty => return Ok(false),
                Received::Overrun => {
                    self.follower.lost = Parts::ALL;
                    self.discard()?;
                    self.resync_all(now)?;
                    return Ok(true);
                }
                Received::Datagram(datagram) => {
                    let mut messages = Messages::new(datagram);
                    for message in messages.by_ref() {
                        self.follower.event(&message, now);
                    }
                    if messages.broken() {
                        self.follower.counters.unparsable += 1;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Discards queued messages after an overrun. They are older than the dump that follows.
    /// Applied after it they would restore objects whose removal is among the lost messages.
    fn discard(&mut self) -> Result<(), MirrorError> {
        self.follower.counters.enobufs += 1;
        for _ in 0..DISCARD_DATAGRAMS_MAX {
            match self.events.receive()? {
                Received::Empty => break,
                Received::Overrun => self.follower.counters.enobufs += 1,
                Received::Datagram(_) => {}
            }
        }
        Ok(())
    }

    fn resync_all(&mut self, now: Instant) -> Result<(), MirrorError> {
        self.ask(Parts::ALL, now)
    }

    /// Dumps parts. A failed dump is repeated a moment later; if dumps fail repeatedly, the error
    /// is returned.
    fn ask(&mut self, parts: Parts, now: Instant) -> Result<(), MirrorError> {
        match self.follower.resync(&mut self.requests, parts, now) {
            Ok(()) => self.failures = 0,
            Err(error) if self.failures == FAILURES_MAX => return Err(error.into()),
            Err(_) => {
                self.failures += 1;
                // Drops the rest of an unfinished reply.
                self.requests = Requests::open()?;
                self.follower.lose(Parts::ALL, Instant::now());
            }
        }
        Ok(())
    }

    /// Dumps doubtful parts, then publishes.
    fn settle(&mut self, now: Instant, mut more: bool) -> Result<Changes, MirrorError> {
        let due = self.follower.take_due(now);
        if !due.is_none() {
            self.ask(due, now)?;
            if due.routes4 || due.routes6 {
                self.follower.doubt_dead(now);
            }
            // Otherwise queued events from before the dump would restore old state for a moment.
            more = self.drain(now)?;
        }
        let touched = self.follower.touched;
        let local_addresses = self.compile();
        Ok(Changes {
            links: touched.links,
            local_addresses,
            generation: self.compiler.tables().generation,
            more,
        })
    }

    /// Compiles the tables. Returns whether our own addresses changed.
    fn compile(&mut self) -> bool {
        if self.follower.touched.links {
            self.taken.read(&mut self.follower.state.taken);
        }
        publish(&mut self.follower, &mut self.compiler)
    }

    /// Reads everything that has no events. `vlans_max`: how many VLANs' settings are read.
    fn poll_sysctls(&mut self, now: Instant, vlans_max: usize) {
        self.next_sysctl = now + SYSCTL_INTERVAL;
        let state = &mut self.follower.state;
        self.follower.touched.links |= self.taken.read(&mut state.taken);
        let files = &mut self.sysctls;
        files.begin(now);
        let sysctls = sysctl::read_all(files, &state.sysctls);
        let all = sysctl::read_dev(files, "all");
        // Settings that could not be read keep their previous values; see `is_current`.
        if !files.has_failed() {
            self.follower.touched.sysctls |= state.sysctls != sysctls;
            state.sysctls = sysctls;
            self.follower.touched.conf |= state.sysctls_all != all;
            state.sysctls_all = all;
        }
        // Only packets of ports and their VLANs are forwarded here; there may be thousands of
        // VLANs.
        let devs = &self.compiler.devs;
        let vlans = devs.vlans_after(self.sysctl_turn[0], vlans_max);
        let xfrmis = devs.xfrmis_after(self.sysctl_turn[1], XFRMI_SYSCTLS);
        let next_turn = [&vlans, &xfrmis].map(|uppers| uppers.last().copied().unwrap_or_default());
        let ports = self.compiler.ports.keys().copied();
        let kept =
            || devs.vlans_after(0, KEPT_VLANS).into_iter().chain(devs.xfrmis_after(0, KEPT_XFRMIS));
        let followed = || ports.clone().chain(kept());
        let name = |ifindex| state.links.get(&ifindex).map(|link| link.name.as_str());
        files.keep_only(&followed().filter_map(name).collect());
        for ifindex in ports.chain(vlans).chain(xfrmis) {
            let Some(link) = state.links.get(&ifindex) else { continue };
            let own = sysctl::read_dev(files, &link.name);
            if files.has_failed() {
                continue;
            }
            self.follower.touched.conf |= state.sysctls_dev.insert(ifindex, own) != Some(own);
        }
        // Otherwise the same VLANs are read again next time.
        if !files.has_failed() {
            self.sysctl_turn = next_turn;
        }
    }

    /// Confirms neighbours that workers send to and that are stale in the kernel.
    fn keepalive(&mut self, now: Instant) -> Result<(), MirrorError> {
        for (oif, addr) in self.compiler.take_used() {
            let neigh = self.follower.state.neighs.get(&(oif, addr));
            if neigh.is_some_and(|neigh| neigh.state & NUD_STALE != 0) {
                self.resolve_at(oif, addr, now)?;
            }
        }
        Ok(())
    }

    /// Reads for how long the kernel tries to resolve neighbours on ports, and on some of their VLANs in turn.
    fn read_neigh_tried(&mut self) {
        let vlans = self.compiler.devs.vlans_after(self.neigh_turn, NEIGH_VLANS);
        self.neigh_turn = vlans.last().copied().unwrap_or_default();
        let state = &mut self.follower.state;
        state.neigh_tried.retain(|(_, ifindex), _| state.links.contains_key(ifindex));
        for ifindex in self.compiler.ports.keys().copied().chain(vlans) {
            let Some(link) = state.links.get(&ifindex) else { continue };
            for family in Family::ALL {
                let key = (family, ifindex);
                if let Some(tried) = sysctl::read_neigh_tried(family, &link.name) {
                    let changed = state.neigh_tried.insert(key, tried) != Some(tried);
                    self.follower.touched.conf |= changed;
                }
            }
        }
    }

    /// Asks the kernel to resolve a neighbour, at most five times per second each. The result arrives
    /// as an event. Returns whether the request was sent.
    pub fn resolve(&mut self, oif: u32, addr: IpAddr) -> Result<bool, MirrorError> {
        self.resolve_at(oif, addr, Instant::now())
    }

    fn resolve_at(&mut self, oif: u32, addr: IpAddr, now: Instant) -> Result<bool, MirrorError> {
        match self.resolver.resolve(&mut self.requests, oif, addr, now) {
            Ok(asked) => Ok(asked),
            // The interface is gone or down, or the table is full: no result will arrive.
            Err(SockError::Refused { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The handle by which workers get the tables.
    pub fn published(&self) -> Arc<Published<Tables>> {
        Arc::clone(self.compiler.published())
    }

    /// The handle by which workers report a quiescent state: once per burst, before they refresh
    /// their snapshot.
    pub fn qsbr(&self) -> Arc<Qsbr> {
        Arc::clone(self.compiler.qsbr())
    }

    /// Sets what filters packets of xfrm interfaces, by ifindex, as far as that is known; empty: nothing does. Publishes.
    pub fn set_xfrmi_filters(&mut self, filters: BTreeMap<u32, String>) {
        if self.follower.state.xfrmi_filters != filters {
            self.follower.state.xfrmi_filters = filters;
            self.follower.touched.links = true;
            self.compile();
        }
    }

    /// Sets the IPsec policies. Publishes.
    pub fn set_policies(&mut self, policies: Arc<XfrmPolicies>) {
        self.compiler.set_policies(policies);
    }

    /// Sets the SAs, with the same policies. Publishes. What is offloaded does not depend on them.
    pub fn set_sas(&mut self, policies: Arc<XfrmPolicies>) {
        self.compiler.set_sas(policies);
    }

    /// Sets the epochs of what offloaded flows depend on, before there are any. Publishes.
    pub fn set_epochs(&mut self, epochs: Arc<Epochs>) {
        self.compiler.set_epochs(epochs);
    }

    /// Sets the ports (ifindex and port number). Publishes.
    pub fn set_ports(&mut self, ports: &[(u32, u16)]) {
        self.compiler.ports = ports.iter().copied().collect();
        self.follower.touched.links = true;
        self.poll_sysctls(Instant::now(), VLAN_SYSCTLS);
        self.compile();
    }

    /// IPv4 addresses and prefixes that are local to the router, broadcasts included.
    pub fn local4(&self) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        let nets = self.follower.state.routes4.locals();
        nets.map(|(addr, len)| (Ipv4Addr::from_bits(addr), len))
    }

    /// IPv6 addresses and prefixes that are local to the router, anycast included.
    pub fn local6(&self) -> impl Iterator<Item = (Ipv6Addr, u8)> {
        let nets = self.follower.state.routes6.locals();
        nets.map(|(addr, len)| (Ipv6Addr::from_bits(addr), len))
    }

    /// Changes whenever [`Mirror::local4`] or [`Mirror::local6`] change.
    pub fn locals_version(&self) -> [u64; 2] {
        let state = &self.follower.state;
        [state.routes4.locals_version(), state.routes6.locals_version()]
    }

    /// The kernel's state.
    pub fn state(&self) -> &RouterState {
        &self.follower.state
    }

    /// The tables published last.
    pub fn tables(&self) -> Arc<Tables> {
        self.compiler.published().load()
    }

    /// Kernel configuration that is not followed.
    pub fn unmirrored(&self) -> Vec<Unmirrored> {
        let mut list = unmirrored::list(self.state(), &self.compiler.ports);
        unmirrored::chosen_by_iif(&self.compiler.chosen_by_iif(self.state()), &mut list);
        if let Some(why) = self.compiler.broken() {
            list.push(Unmirrored { what: "all routes of a family".into(), why });
        }
        list.extend(self.taken.unmirrored());
        let unparsable = self.follower.counters.unparsable;
        if unparsable != 0 {
            list.push(Unmirrored {
                what: format!("{unparsable} netlink messages"),
                why: "could not be parsed; their contents are not mirrored".into(),
            });
        }
        list
    }

    /// Settings in force on ports that are not followed, although packets are forwarded.
    pub fn not_followed(&self) -> Vec<String> {
        unmirrored::not_followed(self.state(), &self.compiler.ports)
    }

    /// Counters of the mirror.
    pub fn counters(&self) -> MirrorCounters {
        self.follower.counters
    }
}

/// The socket for events, for poll(2).
impl AsFd for Mirror {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Compiles and publishes the tables. Returns whether our own addresses changed. Public for
/// tests/fuzz, which has no kernel to start a [`Mirror`] with.
#[doc(hidden)]
pub fn publish(follower: &mut Follower, compiler: &mut Compiler) -> bool {
    let touched = std::mem::take(&mut follower.touched);
    let locals = follower.state.routes4.take_locals_changed()
        | follower.state.routes6.take_locals_changed()
        | std::mem::take(&mut follower.locals_changed);
    if locals {
        let custom = has_custom_local_routes(&follower.state);
        follower.state.sysctls.custom_local_routes |= custom;
    }
    let touched = compile::Touched { sysctls: touched.sysctls || locals, ..touched };
    compiler.update(&mut follower.state, touched);
    locals
}

/// `fib_has_custom_local_routes`: another program than the kernel added local addresses in any
/// table, or routes to the local table.
fn has_custom_local_routes(state: &RouterState) -> bool {
    const RTPROT_KERNEL: u8 = 2;
    let rib = &state.routes4;
    let custom =
        |id: &u32| rib.bodies().get(*id).is_some_and(|body| body.protocol != RTPROT_KERNEL);
    rib.table(RT_TABLE_LOCAL).any(|(_, ids)| ids.iter().any(custom))
        || rib
            .bodies()
            .iter()
            .any(|(_, body)| body.kind == RTN_LOCAL && body.protocol != RTPROT_KERNEL)
}
