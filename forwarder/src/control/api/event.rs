//! What happens in the daemon that users and programs want to know at once: one type, of which both the line in the log and
//! the line of a subscription are made. Left out: numbers that grow all the time, which are counters.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::subscribe::Topic;
use super::{IpsecSas, State};
use crate::control::config::reload::KeyChange;

/// An event. More types and fields may come without a new version of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Forwarding begins or stops, or does so for another reason.
    State(StateChange),
    /// A port changes.
    Port(PortEvent),
    /// Workers got new tables.
    Tables(TablesChange),
    /// A part of the mirror was read again: notifications were lost, or the kernel does not report all of a change.
    Resync {
        /// How often since the start.
        resyncs: u64,
        /// Notifications were lost (ENOBUFS).
        lost: bool,
    },
    /// The self-check found parts of the mirror that differ from the kernel's state, and replaced them.
    Correction {
        /// How often since the start.
        corrections: u64,
    },
    /// The nftables ruleset was read again.
    Ruleset(RulesetEvent),
    /// Rules that only the kernel can apply have appeared, changed or disappeared.
    Firewall {
        /// The first of them; absent: there are none, userspace forwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bypassed: Option<String>,
    },
    /// The offload of flows to the XDP program changes.
    Offload(OffloadChange),
    /// A worker gives no heartbeat, and the kernel forwards what is its own; or it does again.
    Worker {
        /// From 0.
        worker: u32,
        /// It gives no heartbeat.
        stalled: bool,
    },
    /// The control thread does not follow the kernel's changes in time, and the kernel forwards; or it does again.
    ControlThread {
        /// It does not.
        stalled: bool,
    },
    /// The TAP device by which packets are handed to the kernel does not take them, and the kernel forwards; or it does again.
    PuntDevice {
        /// Its name.
        ifname: String,
        /// Why it does not; absent: it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The configuration file was read again.
    Reload(ReloadEvent),
    /// IPsec policies or security associations change.
    Ipsec {
        /// Number of policies.
        policies: u64,
        /// The security associations; absent: there are no policies.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sas: Option<IpsecSas>,
    },
}

/// The state of forwarding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateChange {
    /// Now.
    pub state: State,
    /// Before.
    pub was: State,
    /// How many ports forward, or why the kernel does.
    pub why: String,
}

/// A change of a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortEvent {
    /// Interface name.
    pub ifname: String,
    /// What has happened.
    pub change: PortChange,
    /// Why, as far as that is not said by `change`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What happens to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortChange {
    /// The interface is a port now: packets that it receives go to userspace.
    Added,
    /// The interface of a port has returned: as `added`.
    Back,
    /// The interface is gone; it is a port again when it returns.
    Gone,
    /// The interface is no longer a port.
    Removed,
    /// Another interface has its name now.
    Replaced,
    /// It is left to the kernel.
    Left,
    /// It is left to the kernel until it is opened again, which is tried at once.
    Reopening,
    /// The interface is up and has a carrier.
    Up,
    /// The interface is down or has no carrier.
    Down,
}

/// New tables of routes, neighbours and links.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TablesChange {
    /// Number of publications since the start.
    pub generation: u64,
    /// The same at the last event of this type: those between are summed up here.
    pub was: u64,
    /// How many objects there are now.
    pub objects: TableCounts,
    /// How many notifications of the kernel about them were applied since the last event of this type.
    pub notifications: TableCounts,
}

/// Numbers of the kinds of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableCounts {
    /// Interfaces.
    pub links: u64,
    /// Addresses.
    pub addrs: u64,
    /// Routes, all tables, IPv4 and IPv6.
    pub routes: u64,
    /// Rules.
    pub rules: u64,
    /// Nexthop objects.
    pub nexthops: u64,
    /// Neighbours.
    pub neighbours: u64,
}

impl TableCounts {
    /// What was added since `before`.
    pub fn since(&self, before: &TableCounts) -> TableCounts {
        TableCounts {
            links: self.links.saturating_sub(before.links),
            addrs: self.addrs.saturating_sub(before.addrs),
            routes: self.routes.saturating_sub(before.routes),
            rules: self.rules.saturating_sub(before.rules),
            nexthops: self.nexthops.saturating_sub(before.nexthops),
            neighbours: self.neighbours.saturating_sub(before.neighbours),
        }
    }

    fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("links", self.links),
            ("addrs", self.addrs),
            ("routes", self.routes),
            ("rules", self.rules),
            ("nexthops", self.nexthops),
            ("neighbours", self.neighbours),
        ]
    }
}

/// A nftables ruleset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RulesetEvent {
    /// The kernel's generation id of the ruleset; 0: it could not be read.
    pub generation: u32,
    /// Workers apply it. Rules of it that they cannot apply are reported by `firewall`.
    pub applied: bool,
    /// Why it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Flow offload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OffloadChange {
    /// The state.
    pub state: OffloadState,
    /// Ports whose flows are not offloaded, a line each.
    pub refused: Vec<String>,
}

/// The state of flow offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OffloadState {
    /// No flow is offloaded.
    Off,
    /// Flows are offloaded.
    On,
    /// No flow is offloaded while a capture or a trace runs.
    Paused,
}

/// A reload of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadEvent {
    /// Keys with another value than before.
    pub changes: Vec<KeyChange>,
    /// Why it was refused; nothing has changed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Event {
    /// The topic that it belongs to.
    pub fn topic(&self) -> Topic {
        match self {
            Event::State(_) => Topic::State,
            Event::Port(_) => Topic::Ports,
            Event::Tables(_) | Event::Resync { .. } | Event::Correction { .. } => Topic::Tables,
            Event::Ruleset(_) | Event::Firewall { .. } => Topic::Rules,
            Event::Offload(_) => Topic::Offload,
            Event::Worker { .. } | Event::ControlThread { .. } | Event::PuntDevice { .. } => {
                Topic::Workers
            }
            Event::Reload(_) => Topic::Config,
            Event::Ipsec { .. } => Topic::Ipsec,
        }
    }

    /// The name of its type, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::State(_) => "state",
            Event::Port(_) => "port",
            Event::Tables(_) => "tables",
            Event::Resync { .. } => "resync",
            Event::Correction { .. } => "correction",
            Event::Ruleset(_) => "ruleset",
            Event::Firewall { .. } => "firewall",
            Event::Offload(_) => "offload",
            Event::Worker { .. } => "worker",
            Event::ControlThread { .. } => "control_thread",
            Event::PuntDevice { .. } => "punt_device",
            Event::Reload(_) => "reload",
            Event::Ipsec { .. } => "ipsec",
        }
    }

    /// The interface that it is about.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Event::Port(PortEvent { ifname, .. }) | Event::PuntDevice { ifname, .. } => {
                Some(ifname)
            }
            _ => None,
        }
    }

    /// Whether packets are left to the kernel because of it, or something is not as configured.
    pub fn is_trouble(&self) -> bool {
        match self {
            Event::Port(PortEvent { change, .. }) => matches!(
                change,
                PortChange::Left | PortChange::Reopening | PortChange::Gone | PortChange::Down
            ),
            Event::Worker { stalled, .. } | Event::ControlThread { stalled } => *stalled,
            Event::PuntDevice { error, .. } => error.is_some(),
            Event::Firewall { bypassed } => bypassed.is_some(),
            Event::Ruleset(ruleset) => ruleset.error.is_some(),
            Event::Reload(reload) => reload.refused.is_some(),
            _ => false,
        }
    }

    /// A change of a port.
    pub fn port(ifname: &str, change: PortChange, why: Option<String>) -> Event {
        Event::Port(PortEvent { ifname: ifname.to_owned(), change, why })
    }
}

impl fmt::Display for Event {
    /// One line for people: of the log, and of `ferroute monitor`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::State(StateChange { state, was, why }) if state == was => {
                write!(f, "still {}: {why}", state.name())
            }
            Event::State(StateChange { state, was, why }) => {
                write!(f, "{}, was {}: {why}", state.name(), was.name())
            }
            Event::Port(event) => event.fmt(f),
            Event::Tables(change) => change.fmt(f),
            Event::Resync { resyncs, lost } => {
                let why = if *lost { "notifications of the kernel were lost; " } else { "" };
                write!(f, "{why}tables were read again ({resyncs} since the start)")
            }
            Event::Correction { corrections } => write!(
                f,
                "the self-check replaced what differed from the kernel's tables ({corrections} since the start)"
            ),
            Event::Ruleset(RulesetEvent { error: Some(error), .. }) => {
                write!(f, "the nftables ruleset could not be read: {error}")
            }
            Event::Ruleset(RulesetEvent { generation, .. }) => {
                write!(f, "nftables ruleset, generation {generation}: workers apply it")
            }
            Event::Firewall { bypassed: None } => {
                f.write_str("the firewall changed; forwarding is done by userspace again")
            }
            Event::Firewall { bypassed: Some(first) } => {
                write!(f, "the firewall changed; forwarding is done by the kernel: {first}")
            }
            Event::Offload(change) => change.fmt(f),
            Event::Worker { worker, stalled: true } => write!(
                f,
                "worker {worker} gives no heartbeat; the kernel forwards what is its own"
            ),
            Event::Worker { worker, stalled: false } => {
                write!(f, "worker {worker} gives heartbeats again")
            }
            Event::ControlThread { stalled: true } => f.write_str(
                "control thread: the kernel's changes are not followed in time; the kernel forwards until they are",
            ),
            Event::ControlThread { stalled: false } => {
                f.write_str("control thread: the kernel's changes are followed again")
            }
            Event::PuntDevice { ifname, error: Some(error) } => write!(
                f,
                "{ifname} does not take frames ({error}); everything is left to the kernel"
            ),
            Event::PuntDevice { ifname, error: None } => {
                write!(f, "{ifname} takes frames for the kernel again")
            }
            Event::Reload(event) => event.fmt(f),
            Event::Ipsec { policies, sas: None } => write!(f, "IPsec: {policies} policies"),
            Event::Ipsec { policies, sas: Some(sas) } => write!(
                f,
                "IPsec: {policies} policies; SAs: {} receive, {} send, {} only in the kernel",
                sas.inbound, sas.outbound, sas.kernel
            ),
        }
    }
}

impl fmt::Display for PortEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortEvent { ifname, change, why } = self;
        let why = why.as_deref().unwrap_or_default();
        write!(f, "interface {ifname}")?;
        match change {
            PortChange::Added => f.write_str(" is a port now"),
            PortChange::Back => f.write_str(" is back"),
            PortChange::Gone => f.write_str(" is gone; waiting for it to return"),
            PortChange::Removed if why.is_empty() => {
                f.write_str(" is gone: it is no longer a port")
            }
            PortChange::Removed => write!(f, " is no longer a port: {why}"),
            PortChange::Replaced => f.write_str(" was replaced by another one"),
            PortChange::Left => write!(f, ": {why}; left to the kernel"),
            PortChange::Reopening => write!(f, ": {why}; left to the kernel until it is reopened"),
            PortChange::Up => f.write_str(" is up"),
            PortChange::Down => f.write_str(" is down or has no carrier"),
        }
    }
}

impl fmt::Display for TablesChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tables: generation {}", self.generation)?;
        let mut separator = ':';
        for ((name, count), (_, seen)) in
            self.objects.named().into_iter().zip(self.notifications.named())
        {
            if seen > 0 {
                write!(f, "{separator} {count} {name} ({seen} changed)")?;
                separator = ',';
            }
        }
        Ok(())
    }
}

impl fmt::Display for OffloadChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            OffloadState::Off => "no flows are offloaded",
            OffloadState::On => "flows are offloaded",
            OffloadState::Paused => "no flows are offloaded while a capture or a trace runs",
        })?;
        match &self.refused[..] {
            [] => Ok(()),
            refused => write!(f, "; {}", refused.join("; ")),
        }
    }
}

impl fmt::Display for ReloadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.refused {
            return write!(f, "reload refused, nothing changes: {error}");
        }
        if self.changes.is_empty() {
            return f.write_str("reload: no key has changed");
        }
        let keys: Vec<&str> = self.changes.iter().map(|change| change.key.as_str()).collect();
        write!(f, "reload: changed: {}", keys.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_an_object_with_its_type_and_survives_the_wire() {
        let notifications = TableCounts { routes: 2, ..TableCounts::default() };
        let events = [
            (Event::port("eth0", PortChange::Left, Some("down".into())), "port"),
            (
                Event::Tables(TablesChange { generation: 7, notifications, ..<_>::default() }),
                "tables",
            ),
            (Event::Firewall { bypassed: None }, "firewall"),
            (Event::Worker { worker: 1, stalled: true }, "worker"),
            (Event::Ipsec { policies: 2, sas: Some(IpsecSas::default()) }, "ipsec"),
        ];
        for (event, name) in events {
            let value = serde_json::to_value(&event).expect("writes");
            assert_eq!(value["type"], name);
            assert_eq!(serde_json::from_value::<Event>(value).expect("reads"), event);
        }
    }

    #[test]
    fn the_text_is_that_of_the_log() {
        let port = |change, why: Option<&str>| {
            Event::port("eth0", change, why.map(str::to_owned)).to_string()
        };
        assert_eq!(
            port(PortChange::Left, Some("down")),
            "interface eth0: down; left to the kernel"
        );
        assert_eq!(
            port(PortChange::Removed, None),
            "interface eth0 is gone: it is no longer a port"
        );
        let objects = TableCounts { routes: 9, neighbours: 3, ..TableCounts::default() };
        let notifications = TableCounts { routes: 2, neighbours: 1, ..TableCounts::default() };
        let change = TablesChange { generation: 7, was: 5, objects, notifications };
        assert_eq!(
            Event::Tables(change).to_string(),
            "tables: generation 7: 9 routes (2 changed), 3 neighbours (1 changed)"
        );
    }
}
