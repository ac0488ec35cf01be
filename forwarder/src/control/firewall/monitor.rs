//! The rules as they change: what the kernel tells of is read at once, the rest at short intervals.
//!
//! | changed | how it is noticed |
//! | --- | --- |
//! | nftables, XFRM, tc filters, interfaces and XDP programs on them | notices by netlink |
//! | netfilter hooks (the old iptables, BPF links, IPVS), tcx programs | every [`POLL_PERIOD`] |
//! | all of it | every [`FULL_PERIOD`], whatever was told |
//!
//! A storm of notices is taken off the sockets without being looked at, and the rules are read once
//! for all that came; between two readings passes [`READ_GAP`], or several times what reading took.
//! The sockets are subscribed before the first reading, so that no change falls between.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use super::hooks::Reader;
use super::nftables::Nftables;
use super::{Rules, tc, xfrm};
use crate::control::netdev::nic;
use crate::control::netlink::events::{Events, Group};
use crate::io::af_xdp::bpf::{TcxHook, tcx_programs};

/// What the kernel gives no notice of is looked at this often.
pub const POLL_PERIOD: Duration = Duration::from_millis(50);
/// Everything is read anew this often, for the case that a notice was missed.
pub const FULL_PERIOD: Duration = Duration::from_secs(1);
/// Shortest time between two readings while notices continue.
pub const READ_GAP: Duration = Duration::from_millis(5);
/// So many times what the last reading took passes before the next: reading is at most a fifth of
/// the control thread's time.
const READ_REST: u32 = 4;
/// Interfaces whose tcx programs are looked at in one turn; of more, each in its turn.
const TCX_DEVICES: usize = 64;
/// Octets. What does not fit is one notice too (ENOBUFS), so this only needs to be enough for the
/// common case.
const RCVBUF_OCTETS: usize = 64 << 10;
/// More datagrams than fit into the receive buffer: then something is adding as fast as they are
/// taken.
const DATAGRAMS_MAX: usize = 256;

/// Part of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nftables,
    Xfrm,
    Tc,
    Links,
}

/// NFNLGRP_NFTABLES; XFRMNLGRP_SA and XFRMNLGRP_POLICY, which tells of defaults too; RTNLGRP_TC;
/// RTNLGRP_LINK.
const SOURCES: [(Part, isize, &[Group]); 4] = [
    (Part::Nftables, NETLINK_NETFILTER, &[Group::Required(7)]),
    (Part::Xfrm, NETLINK_XFRM, &[Group::Required(3), Group::Required(4)]),
    (Part::Tc, NETLINK_ROUTE, &[Group::Required(4)]),
    (Part::Links, NETLINK_ROUTE, &[Group::Required(1)]),
];

/// Notices about one part.
#[derive(Debug)]
struct Source {
    part: Part,
    protocol: isize,
    groups: &'static [Group],
    /// `None`: the kernel has no such protocol (yet), or the socket failed.
    events: Option<Events>,
    /// Something was told, and not read since.
    is_stale: bool,
}

impl Source {
    /// Subscribes where that is not done. What was told before is not known.
    fn subscribe(&mut self) -> io::Result<()> {
        if self.events.is_some() {
            return Ok(());
        }
        self.is_stale = true;
        self.events = match Events::open(self.protocol, self.groups, RCVBUF_OCTETS) {
            Ok(events) => Some(events),
            Err(error) => match io::Error::from(error) {
                error if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
                error => return Err(error),
            },
        };
        Ok(())
    }

    /// Takes the notices that wait. Whether none is left.
    fn take_notices(&mut self) -> bool {
        let Some(events) = &mut self.events else { return true };
        match events.take_notice(DATAGRAMS_MAX) {
            Ok(false) => true,
            Ok(true) => {
                self.is_stale = true;
                // More may have come while those were taken.
                matches!(events.take_notice(1), Ok(false))
            }
            // Subscribed anew with the next full reading; until then all is read that often.
            Err(_) => {
                (self.events, self.is_stale) = (None, true);
                true
            }
        }
    }
}

/// The rules, and what it takes to follow them. Belongs to the thread in whose network namespace it
/// was started.
#[derive(Debug)]
pub struct Monitor {
    sources: Vec<Source>,
    hooks: Reader,
    /// An error: the kernel could not be asked, and nothing is known.
    rules: io::Result<Rules>,
    /// Ports whose tcx programs are followed, by name.
    watched: Vec<String>,
    /// Revisions of the tcx hooks of the watched ports and their VLANs, by ifindex.
    tcx: BTreeMap<u32, [u64; 2]>,
    /// The interface whose tcx programs were looked at last.
    tcx_turn: u32,
    is_drained: bool,
    /// Something was read since [`Monitor::take_news`]: what follows from the rules may be outdated.
    has_news: bool,
    read_due: Instant,
    poll_due: Instant,
    full_due: Instant,
    polled: Instant,
}

impl Monitor {
    /// Subscribes, then reads the rules.
    ///
    /// # Errors
    /// When the kernel cannot be heard or asked.
    pub fn start() -> io::Result<Monitor> {
        let now = Instant::now();
        let sources = SOURCES.map(|(part, protocol, groups)| Source {
            part,
            protocol,
            groups,
            events: None,
            is_stale: true,
        });
        let mut sources = Vec::from(sources);
        sources.iter_mut().try_for_each(Source::subscribe)?;
        let mut hooks = Reader::open()?;
        let rules = Rules::read_by(&mut hooks)?;
        sources.iter_mut().for_each(|source| source.is_stale = false);
        Ok(Monitor {
            sources,
            hooks,
            rules: Ok(rules),
            watched: Vec::new(),
            tcx: BTreeMap::new(),
            tcx_turn: 0,
            is_drained: false,
            has_news: true,
            read_due: now,
            poll_due: now,
            full_due: now + FULL_PERIOD,
            polled: now,
        })
    }

    /// Sockets that are readable when [`Monitor::process`] has something to do before
    /// [`Monitor::due`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().filter_map(|source| source.events.as_ref()).map(AsFd::as_fd)
    }

    /// When to call [`Monitor::process`] next, though no socket is readable.
    pub fn due(&self) -> Instant {
        if self.has_news {
            return self.polled;
        }
        let due = self.poll_due.min(self.full_due);
        if self.is_stale() { due.min(self.read_due) } else { due }
    }

    /// Takes notices and reads what they are about, or what is due. Whether the answers of
    /// [`Monitor::bypassed`] and [`Monitor::own`] may be others than before the last
    /// [`Monitor::take_news`], whatever has read them since. Does not wait; the work is bounded, also
    /// while notices keep coming.
    pub fn process(&mut self, now: Instant) -> bool {
        self.is_drained = true;
        for source in &mut self.sources {
            self.is_drained &= source.take_notices();
        }
        if now >= self.full_due {
            self.read_all();
            return true;
        }
        if self.is_stale() && now >= self.read_due {
            self.has_news |= self.read_stale();
            self.rest(now);
        }
        if now >= self.poll_due {
            self.has_news |= self.poll(now);
        }
        self.has_news
    }

    /// The caller asks for [`Monitor::bypassed`] and [`Monitor::own`] now, and acts on the answers.
    pub fn take_news(&mut self) {
        self.has_news = false;
    }

    /// Whether the rules are known as they are, and acted on: no notice waits, what is polled was looked
    /// at within the last two periods, and nothing was read since [`Monitor::take_news`].
    pub fn is_current(&self, now: Instant) -> bool {
        let since_poll = now.saturating_duration_since(self.polled);
        self.is_drained && !self.is_stale() && !self.has_news && since_poll <= 2 * POLL_PERIOD
    }

    /// Reads everything now.
    pub fn read_all(&mut self) {
        let now = Instant::now();
        self.has_news = true;
        let subscribed = self.sources.iter_mut().try_for_each(Source::subscribe);
        self.rules = subscribed.and_then(|()| Rules::read_by(&mut self.hooks));
        self.sources.iter_mut().for_each(|source| source.is_stale = false);
        self.full_due = now + FULL_PERIOD;
        self.poll_due = now + POLL_PERIOD;
        self.polled = now;
        self.rest(now);
    }

    /// Names the ports. Their tcx programs and those of their VLANs are followed, of which the
    /// kernel gives no notice.
    pub fn watch(&mut self, ports: Vec<String>) {
        self.watched = ports;
    }

    /// What would be bypassed for packets between `ports` and their VLANs, a line each. What cannot
    /// be read may hold anything, and is a line too.
    pub fn bypassed(&self, ports: &[String]) -> Vec<String> {
        self.answer(|rules| rules.bypassed(ports))
    }

    /// Rules that an interface or its VLANs alone have, as [`Monitor::bypassed`].
    pub fn own(&self, name: &str) -> Vec<String> {
        self.answer(|rules| rules.own(name))
    }

    fn answer(&self, ask: impl FnOnce(&Rules) -> io::Result<Vec<String>>) -> Vec<String> {
        let unknown = |error: &io::Error| vec![format!("the firewall cannot be read: {error}")];
        match &self.rules {
            Ok(rules) => ask(rules).unwrap_or_else(|error| unknown(&error)),
            Err(error) => unknown(error),
        }
    }

    fn is_stale(&self) -> bool {
        self.sources.iter().any(|source| source.is_stale)
    }

    /// Puts the next reading off, after one that began at `from`.
    fn rest(&mut self, from: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(from);
        self.read_due = now + READ_GAP.max(took * READ_REST);
    }

    /// Reads the parts that were told of. Whether any may be another now.
    fn read_stale(&mut self) -> bool {
        let mut changed = false;
        for source in self.sources.iter_mut().filter(|source| source.is_stale) {
            source.is_stale = false;
            let Ok(rules) = &mut self.rules else { continue };
            match rules.read_part(source.part) {
                Ok(part_changed) => changed |= part_changed,
                Err(error) => (self.rules, changed) = (Err(error), true),
            }
        }
        changed
    }

    /// Looks at what the kernel gives no notice of. Whether anything changed.
    fn poll(&mut self, now: Instant) -> bool {
        (self.polled, self.poll_due) = (now, now + POLL_PERIOD);
        let polled = match &mut self.rules {
            // Tried again with the next full reading.
            Err(_) => return false,
            Ok(rules) => rules.read_hooks(&mut self.hooks),
        };
        match polled.and_then(|hooks| Ok(self.poll_tcx()? || hooks)) {
            Ok(changed) => changed,
            Err(error) => {
                self.rules = Err(error);
                true
            }
        }
    }

    fn poll_tcx(&mut self) -> io::Result<bool> {
        let Ok(rules) = &self.rules else { return Ok(false) };
        let mut devices: Vec<u32> =
            rules.devices(&self.watched).iter().map(|nic| nic.ifindex).collect();
        devices.sort_unstable();
        self.tcx.retain(|ifindex, _| devices.binary_search(ifindex).is_ok());
        if devices.len() > TCX_DEVICES {
            let first = devices.partition_point(|ifindex| *ifindex <= self.tcx_turn);
            devices.rotate_left(first);
            devices.truncate(TCX_DEVICES);
        }
        self.tcx_turn = devices.last().copied().unwrap_or_default();
        let mut changed = false;
        for ifindex in devices {
            let revision = |hook| tcx_programs(ifindex, hook).map(|programs| programs.revision);
            let revisions = [revision(TcxHook::Ingress)?, revision(TcxHook::Egress)?];
            changed |= self.tcx.insert(ifindex, revisions) != Some(revisions);
        }
        Ok(changed)
    }
}

impl Rules {
    /// Reads a part anew. Whether the answers may be others.
    fn read_part(&mut self, part: Part) -> io::Result<bool> {
        match part {
            Part::Nftables => {
                let nftables = Nftables::read()?;
                let changed = nftables != self.nftables;
                self.nftables = nftables;
                Ok(changed)
            }
            Part::Xfrm => {
                let xfrm = xfrm::read()?;
                let changed = xfrm != self.xfrm;
                self.xfrm = xfrm;
                Ok(changed)
            }
            // Filters are read when they are asked for.
            Part::Tc => {
                self.qdiscs = tc::qdiscs()?;
                Ok(true)
            }
            Part::Links => {
                self.nics = nic::read()?;
                self.qdiscs = tc::qdiscs()?;
                Ok(true)
            }
        }
    }

    fn read_hooks(&mut self, reader: &mut Reader) -> io::Result<bool> {
        let hooks = reader.read(false)?;
        let changed = hooks != self.hooks;
        self.hooks = hooks;
        Ok(changed)
    }
}
