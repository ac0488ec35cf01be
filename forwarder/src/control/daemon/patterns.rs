//! Ports that nobody named: interfaces that match a pattern, as they come and go.
//!
//! The workers have room for so many ports from the start. A port keeps its number, with counters and
//! captures, while its interface is gone, so that it goes on when the interface returns; only when
//! another one needs the room it has to give way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::port::{Port, State};
use super::{Daemon, WORKER_TIMEOUT};
use crate::control::config::PORTS_MAX;
use crate::control::config::interfaces::Candidate;
use crate::say;

/// Ports for which there is room beyond those there at the start, when nobody says otherwise.
const SPARE: u16 = 8;
/// How long a port's number stays free before it is another interface's: packets that came by the one
/// that is gone may wait three seconds for a neighbour, and carry the number.
const REST: Duration = Duration::from_secs(4);

/// The interfaces that patterns take now, and whether they are up.
pub(super) type Matching = BTreeMap<String, bool>;

/// Where a port could be.
enum Place {
    At(u16),
    /// A number is free but has not rested.
    Soon,
    None,
}

impl Daemon {
    pub(super) fn matching(&self) -> Matching {
        let interfaces = &self.options.interfaces;
        if !interfaces.has_patterns() {
            return Matching::new();
        }
        let all: Vec<Candidate<'_>> =
            self.mirror.state().links.values().map(Candidate::from).collect();
        let matching = interfaces.matching(&all).into_iter();
        matching.map(|found| (found.name.to_owned(), found.is_up)).collect()
    }

    /// How many ports there can be, decided once: those there are, and some that may come.
    pub(super) fn make_room(&mut self, matching: &Matching) {
        let named = self.ports.len() as u16;
        self.max_ports = match self.options.max_ports {
            Some(max) => max,
            None if self.options.interfaces.has_patterns() => {
                let there = matching.values().filter(|up| **up).count();
                let there = u16::try_from(there).unwrap_or(PORTS_MAX);
                named.saturating_add(there).saturating_add(SPARE).min(PORTS_MAX).max(named)
            }
            None => named,
        };
    }

    /// Makes ports of interfaces that match, are up, and are none yet, as far as there is room.
    /// Whether there are new ones. Interfaces that are down may stay so for good; they wait without.
    pub(super) fn take_newcomers(&mut self, matching: &Matching) -> bool {
        let (mut taken, mut crowded) = (false, BTreeSet::new());
        self.room_soon = false;
        let known = |port: &Port, name: &String| port.matched && port.ifname == *name;
        for name in matching.iter().filter(|(_, up)| **up).map(|(name, _)| name) {
            if self.ports.iter().any(|port| known(port, name)) {
                continue;
            }
            match self.place(matching) {
                Place::At(index) => {
                    self.occupy(index, name);
                    taken = true;
                }
                Place::Soon => self.room_soon = true,
                Place::None => {
                    crowded.insert(name.clone());
                }
            }
        }
        for name in crowded.difference(&self.crowded) {
            say!("{}", self.no_room(name));
        }
        self.crowded = crowded;
        taken
    }

    /// An interface that matches and cannot be a port.
    pub(super) fn no_room(&self, name: &str) -> String {
        let (patterns, max) = (self.options.interfaces.patterns(), self.max_ports);
        format!(
            "interface {name} matches {patterns}, but there is no room for more than {max} ports; left \
             to the kernel; restart with a larger --max-ports"
        )
    }

    /// The ports that nobody named.
    pub(super) fn matched_names(&self) -> impl Iterator<Item = &str> {
        self.listed().filter(|port| port.matched).map(|port| port.ifname.as_str())
    }

    fn place(&self, matching: &Matching) -> Place {
        let is_free = |port: &&Port| {
            let returns = matching.get(&port.ifname) == Some(&true);
            port.matched && port.state != State::Active && !returns
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

    fn occupy(&mut self, index: u16, name: &str) {
        let port = Port::matched(index, name);
        match self.ports.get_mut(usize::from(index)) {
            Some(before) => {
                *before = port;
                self.forget(index);
            }
            None => self.ports.push(port),
        }
        // Before the workers: what is copied under a name is read by those who know it.
        let naming = self.tell_captures();
        for worker in &self.workers {
            // One that does not answer is stopping.
            let _ = worker.taps().name_port(index, name, naming, WORKER_TIMEOUT);
        }
    }

    /// What was counted for another interface is not this one's.
    fn forget(&mut self, index: u16) {
        let ports = self.max_ports;
        for worker in &self.workers {
            let counted = worker.call(WORKER_TIMEOUT, move |_, _, stats| {
                let counted = stats.slots_of(index, ports).map(|(_, slot)| slot.reset());
                counted.fold([0; 3], |sum, slot| add(sum, &slot))
            });
            self.retired = add(self.retired, &counted.unwrap_or_default());
        }
        self.forget_latency(index);
    }

    /// Rules on matched interfaces themselves, and on no others: these are left to the kernel, and
    /// the rest goes on.
    pub(super) fn hindrances<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<String, String> {
        if self.options.ignore_firewall {
            return BTreeMap::new();
        }
        let own = |name: &str| {
            let own = self.firewall.own(name);
            let why = format!("rules on it would be bypassed: {}", own.join("; "));
            (!own.is_empty()).then(|| (name.to_owned(), why))
        };
        names.filter_map(own).collect()
    }
}

fn add(sum: [u64; 3], more: &[u64; 3]) -> [u64; 3] {
    std::array::from_fn(|n| sum[n] + more[n])
}
