//! What is read of the daemon for a scrape, and where it comes from.

use std::time::Duration;

use crate::control::api::{LatencyReport, NamedCount, StatReport, StatusReport};

/// Where readings come from.
pub trait Source: Send + Sync {
    /// Reads everything. Called on one thread, at intervals of at least
    /// [`READING_INTERVAL`](super::READING_INTERVAL); it may take some 100 ms.
    fn read(&self) -> Reading;
}

/// The state of the daemon at one time.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// State, ports, workers, mirror; `None`: nothing is known yet.
    pub status: Option<StatusReport>,
    /// Whether packets may be steered to userspace: otherwise the kernel forwards everything.
    pub is_steering: bool,
    /// Since the start.
    pub uptime: Duration,
    /// Counters.
    pub stat: StatReport,
    /// Drops of all workers and of what is offloaded, with their meanings.
    pub drops: Vec<NamedCount>,
    /// Packets handed to the kernel, with their meanings.
    pub punts: Vec<NamedCount>,
    /// How long frames stayed in userspace.
    pub latency: LatencyReport,
    /// What is known of the ports besides, in the order of the status.
    pub ports: Vec<PortReading>,
    /// Ages of heartbeats.
    pub heartbeats: Heartbeats,
    /// Counters of rules; a bounded number.
    pub rules: Vec<RuleCount>,
    /// Counters that have a name; a bounded number.
    pub objects: Vec<RuleCount>,
    /// Counters of rules and named ones that are left out.
    pub rules_left_out: u64,
    /// The kernel's connection tracking table; `None`: the kernel has none.
    pub conntrack: Option<Conntrack>,
    /// Carried directions that are not offloaded, by reason; `None`: without flow offload, or no connection is tracked.
    pub not_offloaded: Option<NotOffloaded>,
    /// The counters of `/proc/net/xfrm_stat`.
    pub xfrm_stat: Vec<(String, u64)>,
}

/// What is known of a port besides status and counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortReading {
    /// Interface name.
    pub ifname: String,
    /// Whether its link is up.
    pub is_up: bool,
    /// Of each RX queue, what the XDP program did with its frames.
    pub queues: Vec<QueueReading>,
}

/// What the XDP program did with the frames of an RX queue since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueReading {
    /// Frames that it redirected to a socket.
    pub userspace: u64,
    /// Frames that it forwarded itself.
    pub offload: u64,
    /// Frames that it passed to the kernel.
    pub kernel: u64,
}

/// How long ago threads have shown that they are alive; `None`: not yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeats {
    /// The last turn of the control thread.
    pub turn: Option<Duration>,
    /// The moment up to which the control thread has followed the kernel.
    pub control: Option<Duration>,
    /// By worker.
    pub workers: Vec<Option<Duration>>,
}

/// A counter of the ruleset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Family and name of the table.
    pub table: String,
    /// The chain of a rule; empty for a counter with a name.
    pub chain: String,
    /// The handle of the rule, or the name.
    pub name: String,
    /// Packets and octets that workers and the XDP program counted.
    pub workers: (u64, u64),
    /// Packets and octets that the kernel had counted when the ruleset was read.
    pub kernel: (u64, u64),
}

/// The kernel's connection tracking table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// `nf_conntrack_count`.
    pub entries: u64,
    /// `nf_conntrack_max`; 0: unlimited.
    pub entries_max: u64,
}

/// Directions of carried connections that the XDP program does not forward.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotOffloaded {
    /// Connections that were looked at; a bounded number.
    pub examined: u64,
    /// Number of directions by reason, as `flows show -d` names it.
    pub directions: Vec<(String, u64)>,
}
