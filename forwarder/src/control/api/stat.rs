//! The answer to `stat`: counters of workers and ports, and of what is offloaded.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WorkerPort;

/// Answers [`Request::Stat`](super::Request::Stat) and [`Request::Counters`](super::Request::Counters). Counters run from the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatReport {
    /// One per worker.
    pub workers: Vec<WorkerReport>,
    /// One per port, in the order given to `run`: all workers together, and what is offloaded.
    pub ports: Vec<PortReport>,
    /// With `run --offload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<OffloadReport>,
}

/// What the XDP program forwarded by itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OffloadReport {
    /// As `nstat` names them.
    pub mib: Counters,
    /// Packets, and where they went: received, sent, dropped.
    pub packets: Counters,
    /// By `DropReason::name`: packets that the kernel or a driver did not send. Empty if there are none.
    #[serde(default, skip_serializing_if = "Counters::is_empty")]
    pub drops: Counters,
    /// Flows: `flows` are offloaded now, of at most `flows_max`; others count what has happened to them since the
    /// start.
    pub flows: Counters,
}

/// A counter by its name.
pub type Counters = BTreeMap<String, u64>;

/// What one worker counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerReport {
    /// From 0.
    pub worker: u32,
    /// As `nstat` names them (`Mib::name`).
    pub mib: Counters,
    /// By `DropReason::name`.
    pub drops: Counters,
    /// By `PuntReason::name`.
    pub punts: Counters,
    /// Where its packets went (`PacketAccount::named`). In the answer to `stat`, read between two turns: received + made +
    /// handed_over_in = sent + dropped + handed_to_kernel + fragmented + reassembled + handed_over_out + held + sending; empty
    /// if the worker is silent. In the answer to `counters`, read while the worker runs, and held and sending are 0.
    #[serde(default)]
    pub packets: Counters,
    /// Where its frames are: free, fill_and_rx, held, tx_and_completion, total. Only in the answer to `stat`.
    pub frames: Counters,
    /// How it polled: polls, polls_with_packets, budget_exhausted (bursts that were full), sleeps,
    /// wakeups (those that a packet ended), idle_ns (without packets, polling or asleep).
    #[serde(default)]
    pub polling: Counters,
    /// What it does for each served port.
    #[serde(default)]
    pub ports: Vec<WorkerPort>,
    /// Packets sent on another worker's queue, and other workers' packets sent on its own queue:
    /// handed_over_out, handed_over_in.
    #[serde(default)]
    pub handoffs: Counters,
    /// What frames cost, if that is measured: frames, user_ns, kick_ns.
    #[serde(default, skip_serializing_if = "Counters::is_empty")]
    pub cost: Counters,
    /// It did not report in time where its frames are. Only in the answer to `stat`; a worker that has no turn is seen by
    /// `polls`, which stay the same: an idle worker has a turn every 20 ms.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// What one port counted. Octets include the Ethernet header.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortReport {
    /// Interface name.
    pub ifname: String,
    /// rx_packets, rx_bytes, tx_packets, tx_bytes, rx_dropped, tx_dropped, punted, ….
    pub counters: Counters,
    /// XDP_STATISTICS of its sockets: rx_dropped, rx_ring_full, rx_fill_ring_empty_descs, …. Only in the answer to `stat`.
    pub driver: Counters,
    /// What the XDP program did with frames: pass_local, steer_ipv4, ….
    pub xdp: Counters,
}

impl StatReport {
    /// The MIB counters of all workers together, and of what is offloaded.
    pub fn mib(&self) -> Counters {
        let offload = self.offload.iter().map(|offload| &offload.mib);
        sum(self.workers.iter().map(|worker| &worker.mib).chain(offload))
    }

    /// Drops of all workers together, and of what is offloaded.
    pub fn drops(&self) -> Counters {
        let offload = self.offload.iter().map(|offload| &offload.drops);
        sum(self.workers.iter().map(|worker| &worker.drops).chain(offload))
    }

    /// Punts of all workers together.
    pub fn punts(&self) -> Counters {
        sum(self.workers.iter().map(|worker| &worker.punts))
    }

    /// Where the packets of all workers went, and those that were offloaded.
    pub fn packets(&self) -> Counters {
        let offload = self.offload.iter().map(|offload| &offload.packets);
        sum(self.workers.iter().map(|worker| &worker.packets).chain(offload))
    }

    /// How all workers polled.
    pub fn polling(&self) -> Counters {
        sum(self.workers.iter().map(|worker| &worker.polling))
    }

    /// Packets handed over between workers, all workers together.
    pub fn handoffs(&self) -> Counters {
        sum(self.workers.iter().map(|worker| &worker.handoffs))
    }

    /// The frame accounting of all workers together.
    pub fn frames(&self) -> Counters {
        sum(self.workers.iter().map(|worker| &worker.frames))
    }
}

fn sum<'a>(parts: impl Iterator<Item = &'a Counters>) -> Counters {
    let mut total = Counters::new();
    for (name, count) in parts.flatten() {
        *total.entry(name.clone()).or_default() += count;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up() {
        let worker = |count| WorkerReport {
            mib: Counters::from([("IpForwDatagrams".into(), count)]),
            ..WorkerReport::default()
        };
        let offload = OffloadReport {
            mib: Counters::from([("IpForwDatagrams".into(), 100)]),
            ..OffloadReport::default()
        };
        let workers = vec![worker(2), worker(3)];
        let report = StatReport { workers, offload: Some(offload), ..StatReport::default() };
        assert_eq!(report.mib(), Counters::from([("IpForwDatagrams".into(), 105)]));
    }
}
