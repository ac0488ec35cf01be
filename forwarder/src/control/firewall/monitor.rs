//! The rules as they change: what the kernel tells of is read at once, the rest at short intervals.
//!
//! | changed | how it is noticed |
//! | --- | --- |
//! | nftables, XFRM, tc filters, interfaces and XDP programs on them | notices by netlink |
//! | netfilter hooks (the old iptables, BPF links, IPVS), tcx programs | every [`POLL_PERIOD`] |
//! | all of it | every [`FULL_PERIOD`], whatever was told |
//!
//! A storm of notices is taken off the sockets, and the rules are read once for all that came; between
//! two readings passes [`READ_GAP`], or several times what it took to read and to act on it. Of tc
//! filters, of which there may be thousands, only those places are read that were told of, and all in
//! turn, for [`SLICE`] at a time. The sockets are subscribed before the first reading, so that no
//! change falls between.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use super::devices::replace;
use super::hooks::Reader;
use super::nftables::Nftables;
use super::sockets::Sockets;
use super::tc::Notice;
use super::{Asker, Rules};
use crate::control::netdev::nic::Nic;
use crate::control::netlink::events::{Events, Group, Received};
use crate::control::netlink::message::Messages;
use crate::control::netlink::query::is_interrupted;

/// What the kernel gives no notice of is looked at this often.
pub const POLL_PERIOD: Duration = Duration::from_millis(50);
/// Everything is read anew this often, for the case that a notice was missed.
pub const FULL_PERIOD: Duration = Duration::from_secs(1);
/// Shortest time between two readings while notices continue.
pub const READ_GAP: Duration = Duration::from_millis(5);
/// So many times what the last reading took, and what followed from it, passes before the next: that is
/// at most a fifth of the control thread's time. Polls are not counted, nor readings of everything at the
/// start, after an error and after a pause, which do not wait for it.
const READ_REST: u32 = 4;
/// How long places of single interfaces are read in one turn.
const SLICE: Duration = Duration::from_millis(2);
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

    /// Takes the notices that wait; those of traffic control are put into `told`. Whether none is left.
    fn take_notices(&mut self, told: &mut Vec<Notice>) -> bool {
        let Some(events) = &mut self.events else { return true };
        for _ in 0..=DATAGRAMS_MAX {
            match (events.receive(), self.part) {
                (Ok(Received::Empty), _) => return true,
                (Ok(Received::Datagram(octets)), Part::Tc) => {
                    for notice in Messages::new(octets).filter_map(|it| Notice::of(&it)) {
                        // Of filters alone: the disciplines are the same.
                        self.is_stale |= matches!(notice, Notice::Qdisc { .. } | Notice::All);
                        told.push(notice);
                    }
                }
                (Ok(Received::Overrun), Part::Tc) => {
                    self.is_stale = true;
                    told.push(Notice::All);
                }
                (Ok(_), _) => self.is_stale = true,
                // Subscribed anew with the next full reading.
                (Err(_), _) => {
                    (self.events, self.is_stale) = (None, true);
                    return true;
                }
            }
        }
        false
    }
}

/// The rules, and what it takes to follow them. Belongs to the thread in whose network namespace it
/// was started.
#[derive(Debug)]
pub struct Monitor {
    sources: Vec<Source>,
    asker: Asker,
    /// An error: the kernel could not be asked, and nothing is known.
    rules: io::Result<Rules>,
    /// Ports that are followed, by name: what they and their VLANs have of their own.
    watched: Vec<String>,
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
    /// Subscribes, then reads the rules, those of `ports` included.
    ///
    /// # Errors
    /// When the kernel cannot be heard or asked.
    pub fn start(ports: &[String]) -> io::Result<Monitor> {
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
        let mut asker = Asker::open()?;
        let rules = Rules::read_by(&mut asker, ports)?;
        sources.iter_mut().for_each(|source| source.is_stale = false);
        Ok(Monitor {
            sources,
            asker,
            rules: Ok(rules),
            watched: ports.to_vec(),
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
        // After an error nothing is read but everything.
        let is_pending =
            self.rules().is_some_and(|rules| self.is_stale() || rules.devices.is_pending());
        let read_due = if is_pending { self.read_due } else { self.read_due.max(self.full_due) };
        self.poll_due.min(read_due)
    }

    /// Takes notices and reads what they are about, or what is due. Whether the answers of
    /// [`Monitor::bypassed`] and [`Monitor::own`] may be others than before the last
    /// [`Monitor::take_news`], whatever has read them since. Does not wait; the work is bounded, also
    /// while notices keep coming.
    pub fn process(&mut self, now: Instant) -> bool {
        self.take_notices(now);
        if now >= self.read_due {
            if now >= self.full_due {
                self.begin_full_reading(now);
            }
            self.read_pending(now);
        }
        if now >= self.poll_due {
            self.poll(now, false);
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

    /// Reads everything now, however long that takes.
    pub fn read_all(&mut self) {
        let now = Instant::now();
        self.has_news = true;
        let subscribed = self.sources.iter_mut().try_for_each(Source::subscribe);
        let read = subscribed.and_then(|()| Rules::read_by(&mut self.asker, &self.watched));
        self.set(read);
        self.sources.iter_mut().for_each(|source| source.is_stale = false);
        self.full_due = now + FULL_PERIOD;
        self.poll_due = now + POLL_PERIOD;
        self.polled = now;
        self.rest(now);
    }

    /// Names the ports. What they and their VLANs have of their own is followed, and read where it was
    /// not: see [`Monitor::knows`].
    pub fn watch(&mut self, ports: Vec<String>) {
        self.watched = ports;
        if let Ok(rules) = &mut self.rules {
            rules.follow_devices(&self.watched);
        }
    }

    /// Whether it was read what an interface, of that name and number, and its VLANs have of their own.
    pub fn knows(&self, name: &str, ifindex: u32) -> bool {
        let Some(rules) = self.rules() else { return false };
        let devices = rules.devices(&[name.to_owned()]);
        devices.iter().any(|nic| nic.name == name && nic.ifindex == ifindex)
            && devices.iter().all(|nic| rules.devices.is_known(nic.ifindex))
    }

    /// There are interfaces that are not known: they are read now, or with the next reading.
    pub fn read_newcomers(&mut self, now: Instant) {
        let links = |source: &&mut Source| source.part == Part::Links;
        self.sources.iter_mut().filter(links).for_each(|source| source.is_stale = true);
        if now >= self.read_due {
            self.read_pending(now);
        }
    }

    /// What would be bypassed for packets between `ports`, which are watched, and their VLANs, a line
    /// each. What cannot be read may hold anything, and is a line too.
    pub fn bypassed(&self, ports: &[String]) -> Vec<String> {
        match &self.rules {
            Ok(rules) => rules.bypassed(ports),
            Err(error) => vec![format!("the firewall cannot be read: {error}")],
        }
    }

    /// Rules that an interface, which is watched, or its VLANs alone have. None when nothing is known,
    /// which is a line for all.
    pub fn own(&self, name: &str) -> Vec<String> {
        self.rules().map_or_else(Vec::new, |rules| rules.own(&[name.to_owned()]))
    }

    /// Puts the next reading off, after one that began at `from` and was acted on.
    pub fn rest(&mut self, from: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(from);
        self.read_due = now + READ_GAP.max(took * READ_REST);
    }

    fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref().ok()
    }

    fn set(&mut self, rules: io::Result<Rules>) {
        self.rules = rules;
        if self.rules.is_err() {
            self.fail();
        }
    }

    /// Nothing is known any more. An answer may still be under way.
    fn fail(&mut self) {
        self.asker.sockets = Sockets::default();
        self.has_news = true;
    }

    /// Whether something was told that is not read yet.
    fn is_stale(&self) -> bool {
        self.sources.iter().any(|source| source.is_stale)
            || self.rules().is_some_and(|rules| rules.devices.is_stale())
    }

    fn take_notices(&mut self, now: Instant) {
        let mut told = Vec::new();
        self.is_drained = true;
        for source in &mut self.sources {
            let had_events = source.events.is_some();
            self.is_drained &= source.take_notices(&mut told);
            if had_events && source.events.is_none() {
                self.full_due = now;
            }
        }
        if let Ok(rules) = &mut self.rules {
            told.into_iter().for_each(|it| rules.devices.take_notice(it, &rules.qdiscs));
        }
    }

    /// Has everything read, whatever was told: the parts that all ports share with the next reading,
    /// what single interfaces have in turn.
    fn begin_full_reading(&mut self, now: Instant) {
        let lost_notices = self.sources.iter().any(|s| s.part == Part::Tc && s.events.is_none());
        let subscribed = self.sources.iter_mut().try_for_each(Source::subscribe);
        match (&mut self.rules, subscribed) {
            (Ok(rules), Ok(())) => {
                self.sources.iter_mut().for_each(|source| source.is_stale = true);
                if lost_notices {
                    rules.devices.take_notice(Notice::All, &rules.qdiscs);
                }
                rules.devices.verify(&rules.qdiscs);
                self.full_due = now + FULL_PERIOD;
                self.poll(now, true);
            }
            _ => self.read_all(),
        }
    }

    /// Reads what was told of, and a part of what is to be verified.
    fn read_pending(&mut self, from: Instant) {
        let Some(rules) = self.rules() else { return };
        if rules.devices.is_pending() || self.sources.iter().any(|source| source.is_stale) {
            let read = self.read_parts(from);
            self.note(read);
            self.rest(from);
        }
    }

    fn read_parts(&mut self, from: Instant) -> io::Result<bool> {
        let Ok(rules) = &mut self.rules else { return Ok(false) };
        let mut changed = false;
        for source in self.sources.iter_mut().filter(|source| source.is_stale) {
            match rules.read_part(source.part, &mut self.asker, &self.watched) {
                // It stays as it was, and is stale.
                Err(error) if is_interrupted(&error) => continue,
                read => changed |= read?,
            }
            source.is_stale = false;
            if source.part == Part::Nftables {
                // Which of its functions are there is to be of the same moment.
                self.poll_due = from;
            }
        }
        let end = Instant::now() + SLICE;
        Ok(rules.read_devices(&mut self.asker, Some(end))? || changed)
    }

    /// Looks at what the kernel gives no notice of.
    fn poll(&mut self, now: Instant, thorough: bool) {
        self.poll_due = now + POLL_PERIOD;
        let polled = match &mut self.rules {
            Ok(rules) => rules.read_hooks(&mut self.asker.hooks, thorough),
            // Tried again with the next full reading.
            Err(_) => Ok(false),
        };
        let polled = polled.and_then(|hooks| Ok(self.poll_tcx()? || hooks));
        if !polled.as_ref().is_err_and(is_interrupted) {
            self.polled = now;
        }
        self.note(polled);
    }

    /// Notes whether something changed.
    fn note(&mut self, changed: io::Result<bool>) {
        match changed {
            Ok(changed) => self.has_news |= changed,
            // What was not read stays stale; what was may have changed.
            Err(error) if is_interrupted(&error) => self.has_news = true,
            Err(error) => self.set(Err(error)),
        }
    }

    fn poll_tcx(&mut self) -> io::Result<bool> {
        let Ok(rules) = &mut self.rules else { return Ok(false) };
        let mut devices: Vec<u32> = rules.devices.ifindexes().collect();
        if devices.len() > TCX_DEVICES {
            let first = devices.partition_point(|ifindex| *ifindex <= self.tcx_turn);
            devices.rotate_left(first);
            devices.truncate(TCX_DEVICES);
        }
        self.tcx_turn = devices.last().copied().unwrap_or_default();
        let mut changed = false;
        for ifindex in devices {
            changed |= rules.devices.read_tcx(ifindex)?;
        }
        Ok(changed)
    }
}

impl Rules {
    /// Reads a part anew. Whether the answers may be others.
    fn read_part(&mut self, part: Part, asker: &mut Asker, ports: &[String]) -> io::Result<bool> {
        match part {
            Part::Nftables => {
                let nftables = asker.nftables()?;
                Ok(self.set_nftables(nftables))
            }
            Part::Xfrm => Ok(replace(&mut self.xfrm, asker.xfrm()?)),
            Part::Tc => {
                let qdiscs = asker.qdiscs()?;
                // Filters of those that came are read afterwards.
                Ok(self.set_qdiscs(qdiscs))
            }
            Part::Links => {
                let nics = asker.nics()?;
                let renamed = renamed(&self.nics, &nics);
                // Up to Linux 6.15 chains and flowtables of an interface are told with the name that it
                // has now, and no notice tells of another one. So a name is known together with what
                // nftables has there; read after it, for a name that changes again is a notice again.
                let nftables = if renamed.is_empty() { None } else { Some(asker.nftables()?) };
                let qdiscs = asker.qdiscs()?;
                let mut changed = !nics.iter().map(relevant).eq(self.nics.iter().map(relevant));
                changed |= self.set_qdiscs(qdiscs);
                changed |= nftables.is_some_and(|nftables| self.set_nftables(nftables));
                self.nics = nics;
                self.follow_devices(ports);
                renamed.into_iter().for_each(|it| self.devices.take_notice_of_name(it));
                Ok(changed)
            }
        }
    }

    fn set_nftables(&mut self, nftables: Nftables) -> bool {
        let changed = replace(&mut self.nftables, nftables);
        if changed {
            self.devices.take_notice_of_hooks();
        }
        changed
    }

    fn read_hooks(&mut self, reader: &mut Reader, thorough: bool) -> io::Result<bool> {
        Ok(replace(&mut self.hooks, reader.read(thorough)?))
    }
}

/// Interfaces that had no name before, or another one.
fn renamed(before: &[Nic], now: &[Nic]) -> Vec<u32> {
    let names: BTreeSet<_> = before.iter().map(|nic| (nic.ifindex, &nic.name)).collect();
    let is_new = |nic: &&Nic| !names.contains(&(nic.ifindex, &nic.name));
    now.iter().filter(is_new).map(|nic| nic.ifindex).collect()
}

/// Members of an interface from which the answers are made.
fn relevant(nic: &Nic) -> impl PartialEq + use<'_> {
    (nic.ifindex, &nic.name, &nic.kind, nic.lower, &nic.xdp_programs)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// With a monitor in a network namespace that ends with the test, and has an interface.
    fn with_monitor(test: impl FnOnce(Monitor) + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run("ip link add eth5 type veth peer name eth6");
            test(Monitor::start(&[]).expect("the kernel can be asked"));
        });
        thread.join().expect("the test does not panic");
    }

    fn run(line: &str) {
        let status = Command::new("sh").args(["-c", line]).status().expect("sh starts");
        assert!(status.success(), "{line}");
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_what_was_interrupted_is_not_current_and_what_was_known_is_kept() {
        with_monitor(|mut monitor| {
            let now = Instant::now();
            monitor.process(now);
            monitor.take_news();
            assert!(monitor.is_current(now));
            monitor.note(Err(io::ErrorKind::Interrupted.into()));
            assert!(monitor.rules().is_some() && monitor.has_news);
            monitor.note(Err(io::ErrorKind::Other.into()));
            assert!(monitor.rules().is_none());
        });
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_a_name_is_known_together_with_what_nftables_has_there() {
        with_monitor(|mut monitor| {
            monitor.watch(vec!["lan5".into()]);
            // As a kernel up to 6.15 told it before the interface had its name.
            let before = Nftables::on_ingress("eth5");
            monitor.rules.as_mut().expect("is known").nftables = before.clone();
            run("ip link set eth5 name lan5");
            let ifindex = nix::net::if_::if_nametoindex("lan5").expect("is there");
            assert!(!monitor.knows("lan5", ifindex));
            monitor.read_newcomers(Instant::now());
            let end = Instant::now() + FULL_PERIOD * 10;
            while !monitor.knows("lan5", ifindex) && Instant::now() < end {
                monitor.process(Instant::now());
            }
            assert!(monitor.knows("lan5", ifindex));
            assert_ne!(monitor.rules().expect("is known").nftables, before);
        });
    }

    #[test]
    fn an_interface_is_renamed_when_its_number_had_another_name_or_none() {
        let nic = |ifindex, name: &str| Nic { ifindex, name: name.into(), ..Nic::default() };
        let before = [nic(1, "lo"), nic(5, "eth5"), nic(6, "lan6"), nic(7, "eth7")];
        let now = [nic(1, "lo"), nic(5, "lan5"), nic(6, "lan6"), nic(8, "eth7")];
        assert_eq!(renamed(&before, &now), [5, 8]);
    }
}
