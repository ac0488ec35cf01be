//! Ports that match a pattern, as interfaces appear and disappear.
//!
//! The workers have memory for a fixed number of ports from the start. A port keeps its number, counters
//! and captures while its interface is gone, to go on when the interface returns. Its number is given to
//! another interface only when that needs the room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::warn;

use super::PortManager;
use super::port::{Port, PortState};
use crate::control::config::interfaces::Candidate;
use crate::control::config::{PORTS_MAX, RunOptions};
use crate::control::firewall::monitor::Monitor;
use crate::control::mirror::Mirror;

/// Default number of ports for which there is room beyond those that exist at the start.
const SPARE: u16 = 8;
/// How long a port's number stays free before another interface gets it: packets received on the old one
/// may wait three seconds for a neighbour, and carry the number.
const REUSE_TIMEOUT: Duration = Duration::from_secs(4);

/// The interfaces that patterns match now, and whether they are up.
pub(in crate::control::daemon) type Matching = BTreeMap<String, bool>;

/// Matched interfaces with rules that would be bypassed, and the message for each.
pub(in crate::control::daemon) type Filtered = BTreeMap<String, String>;

/// A port number for a new interface.
enum Place {
    At(u16),
    /// A number is free, but not for [`REUSE_TIMEOUT`] yet, or its port is being closed.
    Soon,
    None,
}

/// The interfaces that patterns match now.
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
    /// Sets the maximum number of ports, once: those that exist, and some that may be added.
    pub(in crate::control::daemon) fn make_room(
        &mut self,
        options: &RunOptions,
        matching: &Matching,
    ) {
        let named = self.ports.len() as u16;
        self.max_ports = match options.max_ports {
            Some(max) => max,
            None if options.interfaces.has_patterns() || options.source.is_some() => {
                let there = matching.values().filter(|up| **up).count();
                let there = u16::try_from(there).unwrap_or(PORTS_MAX);
                named.saturating_add(there).saturating_add(SPARE).min(PORTS_MAX).max(named)
            }
            None => named,
        };
    }

    /// Has ports follow the list of names, which a reload may change: a port that is not named any more is one only
    /// while a pattern matches it, and one that is named now stays without.
    pub(in crate::control::daemon) fn follow_names(&mut self, options: &RunOptions) {
        let named = options.interfaces.named();
        for port in &mut self.ports {
            port.matched = !named.contains(&port.ifname);
        }
    }

    /// Makes ports of interfaces that are named and are not ports yet, or that match, are up, and are not ports yet, as far as there is room.
    /// Returns the numbers of new ones. Interfaces that are down may stay so permanently, and get no number.
    pub(in crate::control::daemon) fn take_newcomers(
        &mut self,
        options: &RunOptions,
        matching: &Matching,
    ) -> Vec<u16> {
        let (mut taken, mut without_room) = (Vec::new(), BTreeSet::new());
        self.room_soon.clear();
        let named = options.interfaces.named().iter().map(|name| (name, false));
        let matched = matching.iter().filter(|(_, up)| **up).map(|(name, _)| (name, true));
        for (name, is_matched) in named.chain(matched) {
            let known = |port: &Port| port.matched == is_matched && port.ifname == *name;
            if self.ports.iter().any(known) {
                continue;
            }
            match self.place(matching) {
                Place::At(index) => {
                    let new = if is_matched { Port::matched } else { Port::new };
                    let port = new(index, name);
                    match self.ports.get_mut(usize::from(index)) {
                        Some(before) => *before = port,
                        None => self.ports.push(port),
                    }
                    taken.push(index);
                }
                Place::Soon => {
                    self.room_soon.insert(name.clone());
                }
                Place::None => {
                    without_room.insert(name.clone());
                }
            }
        }
        for name in without_room.difference(&self.without_room) {
            warn!("{}", self.no_room(options, name));
        }
        self.without_room = without_room;
        taken
    }

    /// Has the workers notified, before the port is opened, that its number belongs to its interface from
    /// now on. `naming`: see `Supervisor::notify_captures`.
    pub(in crate::control::daemon) fn set_naming(&mut self, index: u16, naming: u64) {
        if let Some(port) = self.ports.get_mut(usize::from(index)) {
            port.naming = Some(naming);
        }
    }

    /// Interfaces that are named or match but cannot be ports for lack of room, each with what to do.
    pub(in crate::control::daemon) fn without_room(
        &self,
        options: &RunOptions,
    ) -> impl Iterator<Item = String> {
        let soon = self.room_soon.iter().map(|name| {
            format!("interface {name} waits until the number of a removed port is free; left to the kernel")
        });
        self.without_room.iter().map(|name| self.no_room(options, name)).chain(soon)
    }

    /// Whether a named interface is not a port because there is no room for it, or not yet.
    pub(in crate::control::daemon) fn has_named_without_number(
        &self,
        options: &RunOptions,
    ) -> bool {
        let mut named = options.interfaces.named().iter();
        named.any(|name| self.without_room.contains(name) || self.room_soon.contains(name))
    }

    fn no_room(&self, options: &RunOptions, name: &str) -> String {
        let max = self.max_ports;
        let why = match options.interfaces.named().iter().any(|named| named == name) {
            true => "is named".to_owned(),
            false => format!("matches {}", options.interfaces.patterns()),
        };
        format!(
            "interface {name} {why}, but there is no room for more than {max} ports; left \
             to the kernel; restart with a larger --max-ports"
        )
    }

    /// The ports that match a pattern and were not named.
    pub(in crate::control::daemon) fn matched_names(&self) -> impl Iterator<Item = &str> {
        self.listed().filter(|port| port.matched).map(|port| port.ifname.as_str())
    }

    /// Whether a port of that name matched a pattern and was not named.
    pub(in crate::control::daemon) fn is_matched(&self, name: &str) -> bool {
        self.iter().any(|port| port.matched && port.ifname == name)
    }

    fn place(&self, matching: &Matching) -> Place {
        let leaves = |port: &Port| port.matched && matching.get(&port.ifname) != Some(&true);
        let is_free = |port: &&Port| {
            leaves(port) && matches!(port.state(), PortState::Absent | PortState::Waiting(_))
        };
        let becomes_free =
            |port: &Port| leaves(port) && matches!(port.state(), PortState::Closing(_));
        if self.ports.len() < usize::from(self.max_ports) {
            return Place::At(self.ports.len() as u16);
        }
        match self.ports.iter().filter(is_free).min_by_key(|port| port.idle_since) {
            Some(port) if port.idle_since.elapsed() >= REUSE_TIMEOUT => Place::At(port.index),
            Some(_) => Place::Soon,
            None if self.ports.iter().any(becomes_free) => Place::Soon,
            None => Place::None,
        }
    }

    /// Sets which matched interfaces have rules on them. Returns whether that has changed.
    pub(in crate::control::daemon) fn set_filtered(&mut self, filtered: Filtered) -> bool {
        let changed = filtered != self.filtered;
        self.filtered = filtered;
        changed
    }

    /// Sets which of some interfaces have rules on them.
    pub(in crate::control::daemon) fn update_filtered(&mut self, of: &[&str], filtered: Filtered) {
        for name in of {
            self.filtered.remove(*name);
        }
        self.filtered.extend(filtered);
    }

    /// Sets which interfaces would become ports, but may have rules on them that are not known yet.
    pub(in crate::control::daemon) fn set_unread(&mut self, unread: BTreeSet<String>) {
        self.unread = unread;
    }

    /// Whether there are such interfaces.
    pub(in crate::control::daemon) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }
}

/// Rules that apply only to single matched interfaces: those interfaces are left to the kernel, and the
/// rest is forwarded.
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
