//! Follows the rules as they change: notifications are processed at once, the rest is polled.
//!
//! | change | detection |
//! | --- | --- |
//! | nftables, XFRM, tc filters, interfaces and XDP programs on them | netlink notifications |
//! | netfilter hooks (iptables-legacy, BPF links, IPVS), tcx programs | every [`POLL_INTERVAL`] |
//! | everything | every [`FULL_INTERVAL`], regardless of notifications |
//!
//! A burst of notifications is drained from the sockets and causes one reading. The gap between two
//! readings is [`READ_INTERVAL_MIN`], or several times the duration of reading and acting on it. Of tc
//! filters, of which there may be thousands, only places with a notification are read, and all
//! others in turn, for [`SLICE_TIME`] at a time. The sockets are subscribed before the first reading, so
//! that no change is missed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

use super::devices::replace;
use super::hooks::Reader;
use super::nftables::Nftables;
use super::ruleset::Followed;
use super::sockets::{NFNETLINK, XFRM_USER};
use super::tc::Notice;
use super::{Asker, Rules};
use crate::control::netdev::nic::Nic;
use crate::control::netlink::autoload::Module;
use crate::control::netlink::events::{Events, Group, Received};
use crate::control::netlink::message::Messages;
use crate::control::netlink::query::is_interrupted;
use crate::ipsec::{Direction, Policy};

/// How often objects without notifications are polled.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often everything is read, in case a notification was missed.
pub const FULL_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two readings while notifications continue.
pub const READ_INTERVAL_MIN: Duration = Duration::from_millis(5);
/// The next reading waits for this multiple of the time that the last one took, acting on it
/// included: readings take at most a fifth of the control thread's time. Not limited by this:
/// polls, and readings of everything at the start, after an error and after a pause.
const READ_REST: u32 = 4;
/// How long places of single interfaces are read in one turn.
const SLICE_TIME: Duration = Duration::from_millis(2);
/// Interfaces whose tcx programs are read in one turn; if there are more, they take turns.
const TCX_DEVICES: usize = 64;
/// In octets. An overrun (ENOBUFS) is a notification too, so this only needs to suffice for the
/// common case.
const RCVBUF_OCTETS: usize = 64 << 10;
/// More datagrams than the receive buffer holds: beyond this they arrive as fast as they are
/// drained.
const DATAGRAMS_MAX: usize = 256;

/// A part of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nftables,
    Xfrm,
    Tc,
    Links,
}

/// NFNLGRP_NFTABLES; XFRMNLGRP_EXPIRE, as policies that expire are removed without another notification, and
/// XFRMNLGRP_POLICY, which includes changed defaults;
/// RTNLGRP_TC; RTNLGRP_LINK.
const SOURCES: [(Part, isize, &str, &[Group]); 4] = [
    (Part::Nftables, NETLINK_NETFILTER, NFNETLINK, &[Group::Required(7)]),
    (Part::Xfrm, NETLINK_XFRM, XFRM_USER, &[Group::Required(2), Group::Required(4)]),
    (Part::Tc, NETLINK_ROUTE, "", &[Group::Required(4)]),
    (Part::Links, NETLINK_ROUTE, "", &[Group::Required(1)]),
];

/// Notifications about one part.
#[derive(Debug)]
struct Source {
    part: Part,
    protocol: isize,
    module: Module,
    groups: &'static [Group],
    /// `None`: the kernel has no such protocol (yet), or the socket failed.
    events: Option<Events>,
    /// A notification arrived since the last reading.
    is_stale: bool,
    /// Notifications that arrived, overruns included.
    notices: u64,
}

impl Source {
    /// Subscribes unless subscribed. Earlier notifications are missing, so the part is stale.
    fn subscribe(&mut self) -> io::Result<()> {
        if self.events.is_some() || !self.module.may_be_asked() {
            return Ok(());
        }
        // Notifications may have been lost.
        self.is_stale = true;
        self.notices += 1;
        self.events = match Events::open(self.protocol, self.groups, RCVBUF_OCTETS) {
            Ok(events) => Some(events),
            Err(error) => match io::Error::from(error) {
                error if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                    self.module.set_missing();
                    None
                }
                error => return Err(error),
            },
        };
        Ok(())
    }

    /// Drains notifications; those of traffic control are added to `tc_notices`. Returns whether none is
    /// left.
    fn take_notices(&mut self, tc_notices: &mut Vec<Notice>) -> bool {
        let Some(events) = &mut self.events else { return true };
        for _ in 0..=DATAGRAMS_MAX {
            match (events.receive(), self.part) {
                (Ok(Received::Empty), _) => return true,
                (Ok(Received::Datagram(octets)), Part::Tc) => {
                    for notice in Messages::new(octets).filter_map(|it| Notice::of(&it)) {
                        // A notification about filters only does not change the qdiscs.
                        self.is_stale |= matches!(notice, Notice::Qdisc { .. } | Notice::All);
                        tc_notices.push(notice);
                    }
                }
                (Ok(Received::Overrun), Part::Tc) => {
                    self.is_stale = true;
                    tc_notices.push(Notice::All);
                }
                (Ok(_), _) => {
                    self.is_stale = true;
                    self.notices += 1;
                }
                // Subscribed again with the next full reading.
                (Err(_), _) => {
                    (self.events, self.is_stale) = (None, true);
                    self.notices += 1;
                    return true;
                }
            }
        }
        false
    }
}

/// The rules, and the sockets to follow them. Belongs to the thread in whose network namespace it
/// was started.
#[derive(Debug)]
pub struct Monitor {
    sources: Vec<Source>,
    asker: Asker,
    /// Error: a request failed, and nothing is known.
    rules: io::Result<Rules>,
    /// Names of the ports whose rules, and those of their VLANs, are followed.
    watched: Vec<String>,
    /// The interface whose tcx programs were read last.
    tcx_turn: u32,
    is_drained: bool,
    /// Something was read since [`Monitor::take_news`]: decisions based on the rules may be
    /// outdated.
    has_news: bool,
    read_due: Instant,
    poll_due: Instant,
    full_due: Instant,
    polled: Instant,
}

impl Monitor {
    /// Subscribes, then reads the rules, including those of `ports`.
    ///
    /// # Errors
    /// When subscribing or a request fails.
    pub fn start(ports: &[String]) -> io::Result<Monitor> {
        let now = Instant::now();
        let sources = SOURCES.map(|(part, protocol, module, groups)| Source {
            part,
            protocol,
            module: Module::new(module),
            groups,
            events: None,
            is_stale: true,
            notices: 0,
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
            full_due: now + FULL_INTERVAL,
            polled: now,
        })
    }

    /// Sockets that become readable when [`Monitor::process`] has work before [`Monitor::due`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().filter_map(|source| source.events.as_ref()).map(AsFd::as_fd)
    }

    /// When to call [`Monitor::process`] next even if no socket is readable.
    pub fn due(&self) -> Instant {
        if self.has_news {
            return self.polled;
        }
        // After an error everything has to be read first.
        let is_pending =
            self.rules().is_some_and(|rules| self.is_stale() || rules.devices.is_pending());
        let read_due = if is_pending { self.read_due } else { self.read_due.max(self.full_due) };
        self.poll_due.min(read_due)
    }

    /// Processes notifications, and reads what they concern or what is due. Returns whether the
    /// results of [`Monitor::bypassed`] and [`Monitor::own`] may have changed since the last
    /// [`Monitor::take_news`], including changes read by other methods. Does not block; the work is
    /// bounded even if notifications keep arriving.
    pub fn process(&mut self, now: Instant) -> bool {
        let notices = self.nftables_notices();
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
        self.has_news |= self.nftables_notices() != notices;
        self.has_news
    }

    /// The caller now calls [`Monitor::bypassed`] and [`Monitor::own`] and acts on the results.
    pub fn take_news(&mut self) {
        self.has_news = false;
    }

    /// Whether the rules are up to date and acted on: no notification is pending, polled objects
    /// were read within the last two periods, and nothing was read since [`Monitor::take_news`].
    pub fn is_current(&self, now: Instant) -> bool {
        let since_poll = now.saturating_duration_since(self.polled);
        self.is_drained && !self.is_stale() && !self.has_news && since_poll <= 2 * POLL_INTERVAL
    }

    /// Reads everything now, however long that takes.
    pub fn read_all(&mut self) {
        let now = Instant::now();
        self.has_news = true;
        // Before the reading: what is read afterwards is newer than these.
        self.take_notices(now);
        let subscribed = self.sources.iter_mut().try_for_each(Source::subscribe);
        let mut read = subscribed.and_then(|()| Rules::read_by(&mut self.asker, &self.watched));
        if let (Ok(rules), Ok(before)) = (&mut read, &mut self.rules) {
            rules.followed = std::mem::take(&mut before.followed);
            rules.untold_changes = before.untold_changes
                + u64::from(before.nftables.is_changed_untold(&rules.nftables));
        }
        self.set(read);
        self.sources.iter_mut().for_each(|source| source.is_stale = false);
        self.full_due = now + FULL_INTERVAL;
        self.poll_due = now + POLL_INTERVAL;
        self.polled = now;
        self.rest(now);
    }

    /// Sets the ports. Their rules and those of their VLANs are followed, and read if they were
    /// not: see [`Monitor::knows`].
    pub fn watch(&mut self, ports: Vec<String>) {
        self.watched = ports;
        if let Ok(rules) = &mut self.rules {
            rules.follow_devices(&self.watched);
        }
    }

    /// Whether the rules of an interface with that name and ifindex, and of its VLANs, were read.
    pub fn knows(&self, name: &str, ifindex: u32) -> bool {
        let Some(rules) = self.rules() else { return false };
        let devices = rules.devices(&[name.to_owned()]);
        devices.iter().any(|nic| nic.name == name && nic.ifindex == ifindex)
            && devices.iter().all(|nic| rules.devices.is_known(nic.ifindex))
    }

    /// Some interfaces are not known: they are read now, or with the next reading.
    pub fn read_newcomers(&mut self, now: Instant) {
        let links = |source: &&mut Source| source.part == Part::Links;
        self.sources.iter_mut().filter(links).for_each(|source| source.is_stale = true);
        if now >= self.read_due {
            self.read_pending(now);
        }
    }

    /// What would be bypassed for packets between `ports`, which must be watched, and their VLANs,
    /// a line each. If the rules cannot be read, a line reports it, because they may contain anything.
    pub fn bypassed(&self, ports: &[String]) -> Vec<String> {
        match &self.rules {
            Ok(rules) => rules.bypassed(ports),
            Err(error) => vec![format!("the firewall cannot be read: {error}")],
        }
    }

    /// Whether the workers may apply another nftables ruleset than the kernel: until they apply the
    /// current one, the kernel must have all packets.
    pub fn is_ruleset_pending(&self) -> bool {
        self.rules().is_some_and(|rules| {
            let nftables = &rules.nftables;
            let notices = self.nftables_notices();
            rules.has_ruleset() && !rules.followed.is(nftables.generation(), notices)
        })
    }

    /// How many notifications of nftables have been received, and changes without one been found.
    pub fn nftables_notices(&self) -> u64 {
        let nftables = self.sources.iter().find(|source| source.part == Part::Nftables);
        let received = nftables.map_or(0, |source| source.notices);
        received + self.rules().map_or(0, |rules| rules.untold_changes)
    }

    /// Whether the nftables ruleset has chains that workers must apply.
    pub fn has_ruleset(&self) -> bool {
        self.rules().is_some_and(Rules::has_ruleset)
    }

    /// Whether it is known that the nftables ruleset has no chains that workers must apply.
    pub fn has_no_ruleset(&self) -> bool {
        self.rules().is_some_and(|rules| !rules.has_ruleset())
    }

    /// What filters packets to or from the router itself, such as those that IPsec protects, besides the nftables ruleset.
    /// `None`: nothing does.
    pub fn local_filter(&self) -> Option<String> {
        let unknown = || Some("the firewall's rules are not known".to_owned());
        self.rules().map_or_else(unknown, Rules::local_filter)
    }

    /// IPsec policies that workers apply. `None`: they cannot be read, which [`Monitor::bypassed`] reports; those from
    /// before may still hold.
    pub fn policies(&self) -> Option<&[(Direction, Policy)]> {
        self.rules().and_then(Rules::policies)
    }

    /// What filters packets of each xfrm interface; see [`Rules::of_xfrmis`].
    pub fn of_xfrmis(&self) -> BTreeMap<u32, String> {
        self.rules().map_or_else(BTreeMap::new, Rules::of_xfrmis)
    }

    /// What the workers apply of the nftables ruleset from now on.
    pub fn set_followed(&mut self, followed: Followed) {
        self.has_news = true;
        if let Ok(rules) = &mut self.rules {
            rules.followed = followed;
        }
    }

    /// Rules of a watched interface or its VLANs alone. Empty if nothing is known, which
    /// [`Monitor::bypassed`] reports.
    pub fn own(&self, name: &str) -> Vec<String> {
        self.rules().map_or_else(Vec::new, |rules| rules.own(&[name.to_owned()]))
    }

    /// Postpones the next reading, after one that began at `from` and was acted on.
    pub fn rest(&mut self, from: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(from);
        self.read_due = now + READ_INTERVAL_MIN.max(took * READ_REST);
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

    /// Drops the sockets after an error, because a reply may still arrive. Nothing is known any more.
    fn fail(&mut self) {
        self.asker.sockets.close();
        self.has_news = true;
    }

    /// Whether a notification is pending.
    fn is_stale(&self) -> bool {
        self.sources.iter().any(|source| source.is_stale)
            || self.rules().is_some_and(|rules| rules.devices.is_stale())
    }

    fn take_notices(&mut self, now: Instant) {
        let mut tc_notices = Vec::new();
        self.is_drained = true;
        for source in &mut self.sources {
            let had_events = source.events.is_some();
            self.is_drained &= source.take_notices(&mut tc_notices);
            if had_events && source.events.is_none() {
                self.full_due = now;
            }
        }
        if let Ok(rules) = &mut self.rules {
            tc_notices.into_iter().for_each(|it| rules.devices.take_notice(it, &rules.qdiscs));
        }
    }

    /// Schedules a reading of everything: the parts that all ports share with the next reading,
    /// places of single interfaces in turn.
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
                self.full_due = now + FULL_INTERVAL;
                self.poll(now, true);
            }
            _ => self.read_all(),
        }
    }

    /// Reads what is stale, and a part of what has to be verified.
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
                // The part keeps its value and stays stale.
                Err(error) if is_interrupted(&error) => continue,
                read => changed |= read?,
            }
            source.is_stale = false;
            if source.part == Part::Nftables {
                // The hook functions must be read at the same time.
                self.poll_due = from;
            }
        }
        let end = Instant::now() + SLICE_TIME;
        Ok(rules.read_devices(&mut self.asker, Some(end))? || changed)
    }

    /// Reads objects that have no notifications.
    fn poll(&mut self, now: Instant, thorough: bool) {
        self.poll_due = now + POLL_INTERVAL;
        let polled = match &mut self.rules {
            Ok(rules) => rules.read_hooks(&mut self.asker.hooks, thorough),
            // Repeated with the next full reading.
            Err(_) => Ok(false),
        };
        let polled = polled.and_then(|hooks| Ok(self.poll_tcx()? || hooks));
        if !polled.as_ref().is_err_and(is_interrupted) {
            self.polled = now;
        }
        self.note(polled);
    }

    /// Notes the result of a reading.
    fn note(&mut self, changed: io::Result<bool>) {
        match changed {
            Ok(changed) => self.has_news |= changed,
            // Parts that were not read stay stale; others may have changed.
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
    /// Reads a part. Returns whether the results may have changed.
    fn read_part(&mut self, part: Part, asker: &mut Asker, ports: &[String]) -> io::Result<bool> {
        match part {
            Part::Nftables => {
                let nftables = asker.nftables()?;
                Ok(self.set_nftables(nftables))
            }
            Part::Xfrm => Ok(replace(&mut self.xfrm, asker.xfrm()?)),
            Part::Tc => {
                let qdiscs = asker.qdiscs()?;
                // Filters of added qdiscs are read afterwards.
                Ok(self.set_qdiscs(qdiscs))
            }
            Part::Links => {
                let nics = asker.nics()?;
                let renamed = renamed(&self.nics, &nics);
                // Up to Linux 6.15 chains and flowtables of an interface are reported with its
                // current name, without a notification when it is renamed. Therefore nftables is
                // read together with a new name, and after it: another renaming causes another
                // notification.
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
        self.untold_changes += u64::from(self.nftables.is_changed_untold(&nftables));
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

/// Interfaces that are new or were renamed.
fn renamed(before: &[Nic], now: &[Nic]) -> Vec<u32> {
    let names: BTreeSet<_> = before.iter().map(|nic| (nic.ifindex, &nic.name)).collect();
    let is_new = |nic: &&Nic| !names.contains(&(nic.ifindex, &nic.name));
    now.iter().filter(is_new).map(|nic| nic.ifindex).collect()
}

/// The members of an interface that affect the results.
fn relevant(nic: &Nic) -> impl PartialEq + use<'_> {
    (nic.ifindex, &nic.name, &nic.kind, nic.lower, &nic.xdp_programs)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test with a monitor in its own network namespace, which has an interface.
    fn with_monitor(test: impl FnOnce(Monitor) + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run("ip link add eth5 type veth peer name eth6");
            test(Monitor::start(&[]).expect("the rules can be read"));
        });
        thread.join().expect("the test does not panic");
    }

    fn run(line: &str) {
        let status = Command::new("sh").args(["-c", line]).status().expect("sh starts");
        assert!(status.success(), "{line}");
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_after_an_interrupted_dump_the_rules_are_kept_and_not_current() {
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
    fn root_nftables_is_read_together_with_a_new_interface_name() {
        with_monitor(|mut monitor| {
            monitor.watch(vec!["lan5".into()]);
            // As a kernel up to 6.15 reported it before the interface was renamed.
            let before = Nftables::on_ingress("eth5");
            monitor.rules.as_mut().expect("is known").nftables = before.clone();
            run("ip link set eth5 name lan5");
            let ifindex = nix::net::if_::if_nametoindex("lan5").expect("is there");
            assert!(!monitor.knows("lan5", ifindex));
            monitor.read_newcomers(Instant::now());
            let end = Instant::now() + FULL_INTERVAL * 10;
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
