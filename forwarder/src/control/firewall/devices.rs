//! Filters of single interfaces, kept between readings: tc filters, tcx programs and functions at
//! the interface's netfilter hooks.
//!
//! Each place that can have filters takes one request, and an HTB with thousands of classes has as
//! many places. Therefore only places for which a notification arrived are read again; all others
//! are verified in turn. [`Devices::read`] does a part of both, up to a deadline.
//!
//! A dump of qdiscs or classes may omit existing ones: between the parts of the reply the kernel
//! only remembers a count, and does not report what was removed meanwhile (`tc_dump_qdisc`,
//! `tc_dump_tclass_qdisc`). Therefore a filter is removed here only after its own parent was read
//! and had none.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::time::Instant;

use super::Asker;
use super::hooks::Hook;
use super::tc::{self, Notice, Qdisc};
use crate::control::netdev::nic::Nic;
use crate::io::af_xdp::bpf::{TcxHook, TcxPrograms, tcx_programs};

/// A place of an interface that can have filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Netfilter hooks.
    #[default]
    Hooks,
    /// Both tcx hooks.
    Tcx,
    /// A qdisc, by its handle: all its parents are read again.
    Qdisc(u32),
    /// A qdisc whose classes changed: only parents that were not read before are read.
    Classes(u32),
    /// A parent of tc filters.
    Parent(u32),
}

/// The filters of one interface.
#[derive(Debug, Default)]
pub struct Device {
    /// Functions at its netfilter hooks.
    pub hooks: Vec<Hook>,
    /// Programs at each of [`TCX_HOOKS`].
    pub tcx: [TcxPrograms; 2],
    /// Kinds of tc filters at each parent that was read.
    pub filters: BTreeMap<u32, BTreeSet<String>>,
}

/// The tcx hooks and their names.
pub const TCX_HOOKS: [(TcxHook, &str); 2] =
    [(TcxHook::Ingress, "ingress"), (TcxHook::Egress, "egress")];

/// The interfaces, by ifindex.
#[derive(Debug, Default)]
pub struct Devices {
    of: BTreeMap<u32, Device>,
    /// Places for which a notification arrived, or that were never read.
    stale: BTreeSet<(u32, Place)>,
    /// Places that are read although no notification arrived, in case one was missed.
    unverified: BTreeSet<(u32, Place)>,
    /// The stale place that was read last. The next one after it is read next, so that no place
    /// waits for others that become stale again and again.
    last: (u32, Place),
}

impl Devices {
    /// Sets the interfaces to follow.
    pub fn follow(&mut self, nics: &[&Nic], qdiscs: &BTreeSet<Qdisc>) {
        let is_followed = |ifindex: &u32| nics.iter().any(|nic| nic.ifindex == *ifindex);
        self.of.retain(|ifindex, _| is_followed(ifindex));
        let of = &self.of;
        self.stale.retain(|(ifindex, _)| of.contains_key(ifindex));
        self.unverified.retain(|(ifindex, _)| of.contains_key(ifindex));
        for nic in nics {
            if let Entry::Vacant(new) = self.of.entry(nic.ifindex) {
                new.insert(Device::default());
                self.stale.extend(places(nic.ifindex, qdiscs));
            }
        }
    }

    /// Updates the places after the qdiscs changed.
    pub fn follow_qdiscs(&mut self, before: &BTreeSet<Qdisc>, now: &BTreeSet<Qdisc>) {
        for gone in before.difference(now) {
            if let Some(device) = self.of.get_mut(&gone.ifindex) {
                let parents = device.parents(BTreeSet::new(), &[gone]);
                let places = parents.into_iter().map(|it| (gone.ifindex, Place::Parent(it)));
                self.stale.extend(places);
            }
        }
        for new in now.difference(before) {
            self.mark_stale(new.ifindex, Place::Qdisc(new.handle));
        }
    }

    /// Processes a notification. `qdiscs`: those known before it.
    pub fn take_notice(&mut self, notice: Notice, qdiscs: &BTreeSet<Qdisc>) {
        let is_clsact = |qdisc: &&Qdisc| qdisc.is_clsact();
        match notice {
            Notice::Qdisc { ifindex, handle } => self.mark_stale(ifindex, Place::Qdisc(handle)),
            Notice::Class { ifindex, qdisc, class } => {
                self.mark_stale(ifindex, Place::Classes(qdisc));
                if self.of.get(&ifindex).is_some_and(|it| it.filters.contains_key(&class)) {
                    self.mark_stale(ifindex, Place::Parent(class));
                }
            }
            Notice::Parent { ifindex, parent } => self.mark_stale(ifindex, Place::Parent(parent)),
            Notice::Block => qdiscs
                .iter()
                .filter(is_clsact)
                .for_each(|qdisc| self.mark_stale(qdisc.ifindex, Place::Qdisc(qdisc.handle))),
            Notice::All => qdiscs
                .iter()
                .for_each(|qdisc| self.mark_stale(qdisc.ifindex, Place::Qdisc(qdisc.handle))),
        }
    }

    /// nftables changed, and with it possibly its functions at the interfaces.
    pub fn take_notice_of_hooks(&mut self) {
        self.stale.extend(self.of.keys().map(|ifindex| (*ifindex, Place::Hooks)));
    }

    /// An interface was renamed; its hooks are requested by name.
    pub fn take_notice_of_name(&mut self, ifindex: u32) {
        self.mark_stale(ifindex, Place::Hooks);
    }

    fn mark_stale(&mut self, ifindex: u32, place: Place) {
        if self.of.contains_key(&ifindex) {
            self.stale.insert((ifindex, place));
        }
    }

    /// Starts a verification of everything, unless one is in progress.
    pub fn verify(&mut self, qdiscs: &BTreeSet<Qdisc>) {
        if self.unverified.is_empty() {
            let places = self.of.keys().flat_map(|ifindex| places(*ifindex, qdiscs));
            self.unverified = places.collect();
        }
    }

    /// Whether there are places with a notification, or that were never read.
    pub fn is_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whether there is anything to read.
    pub fn is_pending(&self) -> bool {
        self.is_stale() || !self.unverified.is_empty()
    }

    /// Whether an interface is followed and none of its places is stale.
    pub fn is_known(&self, ifindex: u32) -> bool {
        let stale = self.stale.range((ifindex, Place::Hooks)..).next();
        self.of.contains_key(&ifindex) && stale.is_none_or(|(of, _)| *of != ifindex)
    }

    /// The filters of an interface.
    pub fn get(&self, ifindex: u32) -> Option<&Device> {
        self.of.get(&ifindex)
    }

    /// The followed interfaces, in ascending order.
    pub fn ifindexes(&self) -> impl Iterator<Item = u32> {
        self.of.keys().copied()
    }

    /// Reads one place after another, stale ones first, until `end` or until nothing is left, but
    /// at least one. Returns whether the results may have changed, also because an interface became
    /// known.
    ///
    /// # Errors
    /// When a request fails. Places that were not read remain to be read.
    pub fn read(
        &mut self,
        asker: &mut Asker,
        nics: &[Nic],
        qdiscs: &BTreeSet<Qdisc>,
        end: Option<Instant>,
    ) -> io::Result<bool> {
        let mut changed = false;
        loop {
            let stale = self.take_stale();
            let Some(at) = stale.or_else(|| self.unverified.pop_first()) else { break };
            let read = self.read_place(at, stale.is_some(), asker, nics, qdiscs);
            if read.is_err() {
                self.stale.insert(at);
            }
            changed |= read? || stale.is_some() && self.is_known(at.0);
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
        }
        Ok(changed)
    }

    fn take_stale(&mut self) -> Option<(u32, Place)> {
        let behind = (Bound::Excluded(self.last), Bound::Unbounded);
        let next = self.stale.range(behind).next().or_else(|| self.stale.first()).copied()?;
        self.last = next;
        self.stale.take(&next)
    }

    /// Reads one place. Returns whether its filters changed.
    fn read_place(
        &mut self,
        (ifindex, place): (u32, Place),
        is_told: bool,
        asker: &mut Asker,
        nics: &[Nic],
        qdiscs: &BTreeSet<Qdisc>,
    ) -> io::Result<bool> {
        let Some(device) = self.of.get_mut(&ifindex) else { return Ok(false) };
        match place {
            Place::Hooks => {
                let nic = nics.iter().find(|nic| nic.ifindex == ifindex);
                let found = nic.map(|nic| asker.hooks.on_device(&nic.name)).transpose()?;
                Ok(replace(&mut device.hooks, found.unwrap_or_default()))
            }
            Place::Tcx => device.read_tcx(ifindex),
            Place::Parent(parent) => {
                let found = tc::filters(asker.sockets.route()?, ifindex, parent)?;
                Ok(device.set_filters(parent, found))
            }
            Place::Qdisc(handle) | Place::Classes(handle) => {
                let of: Vec<&Qdisc> = qdiscs.iter().filter(|it| it.is(ifindex, handle)).collect();
                let mut listed = BTreeSet::new();
                for qdisc in &of {
                    listed.extend(tc::parents(asker.sockets.route()?, qdisc)?);
                }
                let mut parents = device.parents(listed, &of);
                if place == Place::Classes(handle) {
                    parents.retain(|parent| !device.filters.contains_key(parent));
                }
                let to_read = if is_told { &mut self.stale } else { &mut self.unverified };
                to_read.extend(parents.into_iter().map(|parent| (ifindex, Place::Parent(parent))));
                Ok(false)
            }
        }
    }

    /// Reads the tcx programs of an interface. Returns whether they changed.
    ///
    /// # Errors
    /// When a request fails.
    pub fn read_tcx(&mut self, ifindex: u32) -> io::Result<bool> {
        self.of.get_mut(&ifindex).map_or(Ok(false), |device| device.read_tcx(ifindex))
    }
}

impl Device {
    /// Parents of the qdiscs `of` that may have filters: those that are `listed`, and those that
    /// had filters when they were read last. Other parents of these qdiscs are removed.
    fn parents(&mut self, mut listed: BTreeSet<u32>, of: &[&Qdisc]) -> BTreeSet<u32> {
        self.filters.retain(|parent, kinds| {
            let is_of = of.iter().any(|qdisc| qdisc.has(*parent));
            if is_of && !kinds.is_empty() {
                listed.insert(*parent);
            }
            !is_of || listed.contains(parent)
        });
        listed
    }

    /// Sets the filters of a parent after it was read. A parent that had filters and has none any
    /// more may be gone, and is removed. Returns whether this is a change.
    fn set_filters(&mut self, parent: u32, kinds: BTreeSet<String>) -> bool {
        match self.filters.entry(parent) {
            Entry::Occupied(known) if kinds.is_empty() && !known.get().is_empty() => {
                known.remove();
                true
            }
            known => replace(known.or_default(), kinds),
        }
    }

    fn read_tcx(&mut self, ifindex: u32) -> io::Result<bool> {
        let mut changed = false;
        for ((hook, _), programs) in TCX_HOOKS.iter().zip(&mut self.tcx) {
            changed |= replace(programs, tcx_programs(ifindex, *hook)?);
        }
        Ok(changed)
    }
}

/// Places of an interface from which all others are found.
fn places(ifindex: u32, qdiscs: &BTreeSet<Qdisc>) -> impl Iterator<Item = (u32, Place)> {
    let own = qdiscs.iter().filter(move |qdisc| qdisc.ifindex == ifindex);
    let own = own.map(|qdisc| Place::Qdisc(qdisc.handle));
    [Place::Hooks, Place::Tcx].into_iter().chain(own).map(move |place| (ifindex, place))
}

/// Returns whether the value changed.
pub fn replace<T: PartialEq>(before: &mut T, now: T) -> bool {
    let changed = *before != now;
    *before = now;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(ifindex: u32) -> Nic {
        Nic { ifindex, ..Nic::default() }
    }

    fn qdisc(ifindex: u32, handle: u32, kind: &str) -> Qdisc {
        Qdisc { ifindex, handle, is_root: false, kind: kind.into() }
    }

    #[test]
    fn a_notification_makes_only_its_place_stale() {
        let (one, two) = (nic(1), nic(2));
        let before = BTreeSet::from([
            qdisc(1, 0x1_0000, "htb"),
            qdisc(2, 0xffff_0000, "clsact"),
            qdisc(3, 0xffff_0000, "clsact"),
        ]);
        let mut devices = Devices::default();
        devices.follow(&[&one, &two], &before);
        assert!(!devices.is_known(1) && !devices.is_known(2) && !devices.is_known(3));
        devices.stale.clear();
        assert!(devices.is_known(1) && devices.is_known(2) && !devices.is_known(3));

        devices.take_notice(Notice::Parent { ifindex: 1, parent: 0x1_0005 }, &before);
        devices.take_notice(Notice::Parent { ifindex: 3, parent: 0x1_0005 }, &before);
        devices.take_notice(Notice::Block, &before);
        let expected =
            BTreeSet::from([(1, Place::Parent(0x1_0005)), (2, Place::Qdisc(0xffff_0000))]);
        assert_eq!(devices.stale, expected);

        devices.stale.clear();
        devices.follow(&[&one, &two], &before);
        assert!(!devices.is_stale(), "known places are not read again");
        let now = BTreeSet::from([qdisc(1, 0x2_0000, "htb"), qdisc(2, 0xffff_0000, "clsact")]);
        devices.follow_qdiscs(&before, &now);
        assert_eq!(devices.stale, BTreeSet::from([(1, Place::Qdisc(0x2_0000))]));
    }

    fn kinds() -> BTreeSet<String> {
        BTreeSet::from(["u32".to_owned()])
    }

    #[test]
    fn a_filter_is_removed_only_after_its_parent_was_read() {
        let (one, htb) = (nic(1), qdisc(1, 0x1_0000, "htb"));
        let before = BTreeSet::from([htb.clone(), qdisc(1, 0x2_0000, "htb")]);
        let mut devices = Devices::default();
        devices.follow(&[&one], &before);
        devices.stale.clear();
        let device = devices.of.get_mut(&1).expect("is followed");
        for (parent, has_any) in [(0x1_0005, true), (0x1_0006, false), (0x2_0005, true)] {
            device.set_filters(parent, if has_any { kinds() } else { BTreeSet::new() });
        }
        let known = device.filters.clone();
        let listed = BTreeSet::from([0x1_0006, 0x1_0007]);
        let parents = device.parents(listed.clone(), &[&htb]);
        assert_eq!(
            parents,
            BTreeSet::from([0x1_0005, 0x1_0006, 0x1_0007]),
            "a class is not listed"
        );
        assert_eq!(device.filters, known);

        // The same for a qdisc that is not listed.
        let now = BTreeSet::from([qdisc(1, 0x2_0000, "htb")]);
        devices.follow_qdiscs(&before, &now);
        assert_eq!(devices.stale, BTreeSet::from([(1, Place::Parent(0x1_0005))]));
        let device = devices.of.get_mut(&1).expect("is followed");
        assert_eq!(device.filters.get(&0x1_0005), Some(&kinds()));
        assert!(device.set_filters(0x1_0005, BTreeSet::new()));
        assert_eq!(device.filters, BTreeMap::from([(0x2_0005, kinds())]));
    }

    #[test]
    fn a_change_of_classes_makes_unread_classes_stale() {
        let (one, qdiscs) = (nic(1), BTreeSet::from([qdisc(1, 0x1_0000, "htb")]));
        let mut devices = Devices::default();
        devices.follow(&[&one], &qdiscs);
        devices.stale.clear();
        let notice = |class| Notice::Class { ifindex: 1, qdisc: 0x1_0000, class };
        devices.take_notice(notice(0x1_0005), &qdiscs);
        assert_eq!(devices.stale, BTreeSet::from([(1, Place::Classes(0x1_0000))]));
        devices.of.get_mut(&1).expect("is followed").set_filters(0x1_0005, kinds());
        devices.take_notice(notice(0x1_0005), &qdiscs);
        let expected = [(1, Place::Classes(0x1_0000)), (1, Place::Parent(0x1_0005))];
        assert_eq!(devices.stale, BTreeSet::from(expected), "its filters may be gone");
    }

    #[test]
    fn no_place_waits_for_others_that_become_stale_again() {
        let mut devices = Devices::default();
        devices.follow(&[&nic(2), &nic(9)], &BTreeSet::new());
        let mut read = BTreeSet::new();
        // Hooks and tcx of both interfaces, and the parent.
        for _ in 0..5 {
            read.extend(devices.take_stale());
            devices.mark_stale(2, Place::Hooks);
            devices.mark_stale(2, Place::Parent(5));
        }
        assert!(!devices.is_known(2) && devices.is_known(9), "read: {read:?}");
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_each_interface_that_becomes_known_is_reported() {
        let mut asker = Asker::open().expect("opens");
        let mut devices = Devices::default();
        devices.follow(&[&nic(2), &nic(9)], &BTreeSet::new());
        devices.stale = BTreeSet::from([(2, Place::Hooks), (9, Place::Hooks)]);
        let end = Some(Instant::now());
        let has_news = devices.read(&mut asker, &[], &BTreeSet::new(), end).expect("reads");
        assert!(has_news && devices.is_known(2) && !devices.is_known(9));
    }

    #[test]
    fn everything_is_verified_in_turn_and_stale_places_come_first() {
        let (one, qdiscs) = (nic(1), BTreeSet::from([qdisc(1, 0x1_0000, "htb")]));
        let mut devices = Devices::default();
        devices.follow(&[&one], &qdiscs);
        devices.stale.clear();
        devices.verify(&qdiscs);
        assert!(devices.is_pending() && !devices.is_stale() && devices.is_known(1));
        assert_eq!(devices.unverified.len(), 3);
        devices.unverified.pop_first();
        devices.verify(&qdiscs);
        assert_eq!(devices.unverified.len(), 2, "a verification continues where it stopped");
    }
}
