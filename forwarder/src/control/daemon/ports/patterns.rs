//! Ports that nobody named: interfaces that match a pattern, as they come and go.
//!
//! The workers have room for so many ports from the start. A port keeps its number, with counters and
//! captures, while its interface is gone, so that it goes on when the interface returns; only when
//! another one needs the room it has to give way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::PortManager;
use super::port::{Port, PortState};
use crate::control::config::interfaces::Candidate;
use crate::control::config::{PORTS_MAX, RunOptions};
use crate::control::firewall::monitor::Monitor;
use crate::control::mirror::Mirror;
use crate::say;

/// Ports for which there is room beyond those there at the start, when nobody says otherwise.
const SPARE: u16 = 8;
/// How long a port's number stays free before it is another interface's: packets that came by the one
/// that is gone may wait three seconds for a neighbour, and carry the number.
const REST: Duration = Duration::from_secs(4);

/// The interfaces that patterns take now, and whether they are up.
pub(in crate::control::daemon) type Matching = BTreeMap<String, bool>;

/// Matched interfaces with rules on them that would be bypassed, and what is said of each.
pub(in crate::control::daemon) type Filtered = BTreeMap<String, String>;

/// Where a port could be.
enum Place {
    At(u16),
    /// A number is free but has not rested.
    Soon,
    None,
}

/// The interfaces that patterns take now.
pub(in crate::control::daemon) fn matching(mirror: &Mirror, options: &RunOptions) -> Matching {
    let interfaces = &options.interfaces;
    if !interfaces.has_patterns() {
        return Matching::new();
    }
    let all: Vec<Candidate<'_>> = mirror.state().links.values().map(Candidate::from).collect();
    let matching = interfaces.matching(&all).into_iter();
    matching.map(|found| (found.name.to_owned(), found.is_up)).collect()
}

impl PortManager {
    /// How many ports there can be, decided once: those there are, and some that may come.
    pub(in crate::control::daemon) fn make_room(
        &mut self,
        options: &RunOptions,
        matching: &Matching,
    ) {
        let named = self.ports.len() as u16;
        self.max_ports = match options.max_ports {
            Some(max) => max,
            None if options.interfaces.has_patterns() => {
                let there = matching.values().filter(|up| **up).count();
                let there = u16::try_from(there).unwrap_or(PORTS_MAX);
                named.saturating_add(there).saturating_add(SPARE).min(PORTS_MAX).max(named)
            }
            None => named,
        };
    }

    /// Makes ports of interfaces that match, are up, and are none yet, as far as there is room. The
    /// numbers of new ones. Interfaces that are down may stay so for good; they wait without.
    pub(in crate::control::daemon) fn take_newcomers(
        &mut self,
        options: &RunOptions,
        matching: &Matching,
    ) -> Vec<u16> {
        let (mut taken, mut without_room) = (Vec::new(), BTreeSet::new());
        self.room_soon = false;
        let known = |port: &Port, name: &String| port.matched && port.ifname == *name;
        for name in matching.iter().filter(|(_, up)| **up).map(|(name, _)| name) {
            if self.ports.iter().any(|port| known(port, name)) {
                continue;
            }
            match self.place(matching) {
                Place::At(index) => {
                    let port = Port::matched(index, name);
                    match self.ports.get_mut(usize::from(index)) {
                        Some(before) => *before = port,
                        None => self.ports.push(port),
                    }
                    taken.push(index);
                }
                Place::Soon => self.room_soon = true,
                Place::None => {
                    without_room.insert(name.clone());
                }
            }
        }
        for name in without_room.difference(&self.without_room) {
            say!("{}", self.no_room(options, name));
        }
        self.without_room = without_room;
        taken
    }

    /// Has the workers told, before the port is opened, that its number is its interface's from now on.
    /// `naming`: see `Supervisor::tell_captures`.
    pub(in crate::control::daemon) fn set_naming(&mut self, index: u16, naming: u64) {
        if let Some(port) = self.ports.get_mut(usize::from(index)) {
            port.naming = Some(naming);
        }
    }

    /// Interfaces that match and cannot be ports for want of room, each with what to do.
    pub(in crate::control::daemon) fn without_room(
        &self,
        options: &RunOptions,
    ) -> impl Iterator<Item = String> {
        self.without_room.iter().map(|name| self.no_room(options, name))
    }

    fn no_room(&self, options: &RunOptions, name: &str) -> String {
        let (patterns, max) = (options.interfaces.patterns(), self.max_ports);
        format!(
            "interface {name} matches {patterns}, but there is no room for more than {max} ports; left \
             to the kernel; restart with a larger --max-ports"
        )
    }

    /// The ports that nobody named.
    pub(in crate::control::daemon) fn matched_names(&self) -> impl Iterator<Item = &str> {
        self.listed().filter(|port| port.matched).map(|port| port.ifname.as_str())
    }

    /// Whether a port of that name is one that nobody named.
    pub(in crate::control::daemon) fn is_matched(&self, name: &str) -> bool {
        self.iter().any(|port| port.matched && port.ifname == name)
    }

    fn place(&self, matching: &Matching) -> Place {
        let is_free = |port: &&Port| {
            let returns = matching.get(&port.ifname) == Some(&true);
            let has_none = matches!(port.state(), PortState::Absent | PortState::Waiting(_));
            port.matched && has_none && !returns
        };
        if self.ports.len() < usize::from(self.max_ports) {
            return Place::At(self.ports.len() as u16);
        }
        match self.ports.iter().filter(is_free).min_by_key(|port| port.idle_since) {
            Some(port) if port.idle_since.elapsed() >= REST => Place::At(port.index),
            Some(_) => Place::Soon,
            None => Place::None,
        }
    }

    /// Notes which matched interfaces have rules on them. Whether that has changed.
    pub(in crate::control::daemon) fn set_filtered(&mut self, filtered: Filtered) -> bool {
        let changed = filtered != self.filtered;
        self.filtered = filtered;
        changed
    }

    /// Notes which of some interfaces have rules on them.
    pub(in crate::control::daemon) fn update_filtered(&mut self, of: &[&str], filtered: Filtered) {
        for name in of {
            self.filtered.remove(*name);
        }
        self.filtered.extend(filtered);
    }

    /// Notes of which interfaces, that would become ports, it is not known yet whether they have rules
    /// on them.
    pub(in crate::control::daemon) fn set_unread(&mut self, unread: BTreeSet<String>) {
        self.unread = unread;
    }

    /// Whether there are such.
    pub(in crate::control::daemon) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }
}

/// Rules on matched interfaces themselves, and on no others: these are left to the kernel, and the
/// rest goes on.
pub(in crate::control::daemon) fn filtered<'a>(
    firewall: &Monitor,
    options: &RunOptions,
    names: impl Iterator<Item = &'a str>,
) -> Filtered {
    if options.ignore_firewall {
        return Filtered::new();
    }
    let own = |name: &str| {
        let own = firewall.own(name);
        let why = format!("rules on it would be bypassed: {}", own.join("; "));
        (!own.is_empty()).then(|| (name.to_owned(), why))
    };
    names.filter_map(own).collect()
}
