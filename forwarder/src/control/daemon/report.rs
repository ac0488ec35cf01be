//! Reports to clients, made on their threads from a snapshot, the counters that workers share, and what
//! workers answer in time. Also the log lines at the start and at the end.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::Supervisor;
use super::ports::add_counts;
use super::relay::REPORT_TIMEOUT;
use super::snapshot::{PortView, Snapshot, control_silent};
use crate::control::api::{
    self, Counters, DropsReport, NamedCount, PortReport, StatReport, StatusReport, WorkerReport,
};
use crate::io::Driver;
use crate::io::af_xdp::XdpStatistics;
use crate::stats::{
    Cost, Counter, DropReason, Mib, PacketAccount, PortStats, PuntReason, WorkerStats,
};
use crate::worker::WorkerHandle;
use crate::worker::poll::WorkerFrames;

/// Interval between checks whether a worker has had a turn.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// What one worker reports of itself; `None`: it was not asked, or does not answer in time.
#[derive(Clone)]
struct WorkerAnswer {
    /// It was asked, and does not answer in time.
    is_silent: bool,
    accounting: Option<(WorkerFrames, PacketAccount)>,
    /// Of its sockets, by slot.
    statistics: Option<Vec<Option<XdpStatistics>>>,
}

impl Snapshot {
    /// Number of turns that each worker has had.
    pub(super) fn turns(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.stats.turns.get()).collect()
    }

    /// Workers that have no turn until `until`, counted from `turns`; an idle worker has a turn every 20
    /// ms.
    pub(super) fn silent_since(&self, turns: &[u64], until: Instant) -> Vec<usize> {
        loop {
            let now = self.turns();
            let is_silent = |n: &usize| turns.get(*n) == Some(&now[*n]);
            let silent: Vec<usize> = (0..now.len()).filter(is_silent).collect();
            if silent.is_empty() || Instant::now() >= until {
                return silent;
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
    }

    /// Answers `status`. `silent`: workers that have no turns; `stalled`: for how long the control thread
    /// has had none.
    pub(super) fn status(&self, silent: &[usize], stalled: Option<Duration>) -> StatusReport {
        let mut report = self.status.clone();
        report.uptime_seconds = self.started.elapsed().as_secs();
        for (worker, handle) in report.workers.iter_mut().zip(&*self.workers) {
            worker.loops = handle.stats.turns.get();
            worker.busy_loops = handle.stats.busy_turns.get();
        }
        report.warnings.extend(silent.iter().map(|n| format!("worker {n} does not answer")));
        if let Some(stalled) = stalled {
            report.warnings.push(format!(
                "control thread: no turn for {:.1} s; ports and tables are as of then",
                stalled.as_secs_f64()
            ));
            report.mirror.stalled_ms = Some(stalled.as_millis() as u64);
        }
        let is_forwarding = matches!(report.state, api::State::Forwarding | api::State::Degraded);
        let is_control_silent = is_forwarding && self.is_control_silent();
        if is_control_silent && stalled.is_none() {
            report.warnings.push(control_silent(self.control_timeout));
        }
        let is_hanging = is_control_silent || stalled.is_some() || !silent.is_empty();
        if report.state == api::State::Forwarding && is_hanging {
            report.state = api::State::Degraded;
        }
        report
    }

    /// Answers `stat`. If a worker does not answer in time, what only it knows is left out: where its
    /// frames are, and the statistics of the sockets of ports that it serves.
    pub(super) fn stat(&self) -> StatReport {
        let answers = self.ask_workers(true);
        if let Some(offloads) = &self.offloads {
            offloads.count_all();
        }
        self.stat_of(&answers, |_| Counters::new())
    }

    /// The same for metrics: workers are only asked for the statistics of their sockets, and what the XDP program has
    /// forwarded is as of the last sweep of the thread `fr-offload`, at most 0.2 s ago.
    pub(super) fn stat_shared(&self) -> StatReport {
        let answers = self.ask_workers(false);
        self.stat_of(&answers, |stats| named(stats.account(0, 0).named()))
    }

    /// Answers `counters`, and counts for subscriptions: only what is in shared memory. No worker is asked: none does any
    /// work for it, and one that has no turn delays nothing.
    pub(super) fn counters(&self) -> StatReport {
        let not_asked = WorkerAnswer { is_silent: false, accounting: None, statistics: None };
        let answers = vec![not_asked; self.workers.len()];
        if let Some(offloads) = &self.offloads {
            offloads.count_all();
        }
        self.stat_of(&answers, |stats| named(stats.account(0, 0).named()))
    }

    /// `packets_of`: where the packets went of a worker that does not tell it itself.
    fn stat_of(
        &self,
        answers: &[WorkerAnswer],
        packets_of: impl Fn(&WorkerStats) -> Counters,
    ) -> StatReport {
        let offload = self.offloads.as_ref().map(|offloads| offloads.report());
        let worker = |(n, answer): (usize, &WorkerAnswer)| {
            let stats = &self.workers[n].stats;
            let (accounting, packets) = answer.accounting.unzip();
            let drops = DropReason::ALL.iter().map(|r| (r.name(), stats.drop_count(*r)));
            let punts = PuntReason::ALL.iter().map(|r| (r.name(), stats.punt_count(*r)));
            WorkerReport {
                worker: n as u32,
                mib: named(Mib::ALL.iter().map(|m| (m.name(), stats.mib[*m as usize].get()))),
                drops: named(drops),
                punts: named(punts),
                packets: packets.map_or_else(|| packets_of(stats), |it| named(it.named())),
                frames: accounting.map_or_else(Counters::new, frames),
                polling: polling(stats),
                ports: self.worker_ports(n),
                handoffs: handoffs(stats),
                cost: if self.account { cost(&stats.cost) } else { Counters::new() },
                silent: answer.is_silent,
            }
        };
        StatReport {
            workers: answers.iter().enumerate().map(worker).collect(),
            ports: self.listed().map(|port| self.port_report(port, answers)).collect(),
            offload,
        }
    }

    /// Sends the request to all workers before waiting for the first answer. `accounting`: also for where their frames are.
    fn ask_workers(&self, accounting: bool) -> Vec<WorkerAnswer> {
        type Statistics = Vec<Option<XdpStatistics>>;
        let ask = |worker: &WorkerHandle<Driver>| {
            let statistics = worker.try_call(|io, _, stats| -> Statistics {
                (0..stats.ports.len() as u16).map(|slot| io.statistics(slot).ok()).collect()
            });
            (accounting.then(|| worker.try_accounting()).flatten(), statistics)
        };
        let asked: Vec<_> = self.workers.iter().map(ask).collect();
        let until = Instant::now() + REPORT_TIMEOUT;
        let answer = |(asked, statistics)| {
            let (answer, statistics) = (wait(asked, until), wait(statistics, until));
            let is_silent = if accounting { answer.is_none() } else { statistics.is_none() };
            WorkerAnswer { is_silent, accounting: answer, statistics }
        };
        asked.into_iter().map(answer).collect()
    }

    fn port_report(&self, port: &PortView, answers: &[WorkerAnswer]) -> PortReport {
        let mut counters = Counters::new();
        let mut statistics = Vec::new();
        for (worker, answer) in self.workers.iter().zip(answers) {
            for (slot, stats) in worker.stats.slots_of(port.index, self.max_ports) {
                add(&mut counters, &port_counters(&worker.stats, slot, stats));
                let of_slot =
                    |all: &Vec<Option<XdpStatistics>>| all.get(usize::from(slot)).copied();
                statistics.push(answer.statistics.as_ref().map(|all| of_slot(all).flatten()));
            }
        }
        if let Some(offloads) = &self.offloads {
            add(&mut counters, &offloads.port_counters(port.index));
        }
        let mut counts = port.counted_before;
        port.counts.iter().for_each(|program| add_counts(&mut counts, program));
        let xdp = named(xdp_prog::Reason::ALL.iter().map(|reason| reason.name()).zip(counts));
        PortReport {
            ifname: port.ifname.clone(),
            counters,
            driver: driver_counters(statistics),
            xdp,
        }
    }

    /// Answers `drops`.
    pub(super) fn drops(&self) -> DropsReport {
        let total = |of: &dyn Fn(&WorkerStats) -> u64| -> u64 {
            let offloaded = self.offloads.iter().map(|offloads| of(offloads.stats()));
            self.workers.iter().map(|worker| of(&worker.stats)).chain(offloaded).sum()
        };
        let row = |name: &str, help: &str, count| NamedCount {
            reason: name.to_owned(),
            count,
            help: help.to_owned(),
        };
        let drops = DropReason::ALL
            .iter()
            .map(|&reason| row(reason.name(), reason.help(), total(&|s| s.drop_count(reason))));
        let punts = PuntReason::ALL
            .iter()
            .map(|&reason| row(reason.name(), reason.help(), total(&|s| s.punt_count(reason))));
        DropsReport { drops: drops.collect(), punts: punts.collect() }
    }
}

impl Supervisor {
    /// One line for the log at the start.
    pub(super) fn summary(&self) -> String {
        let port = |port: &super::ports::Port| {
            let program = port.program().map_or(String::new(), |p| p.mode().to_string());
            let bind = port.bind_mode().map_or(String::new(), |mode| mode.to_string());
            format!("{} ({program} XDP, {bind}, {} queue(s))", port.ifname, port.queues())
        };
        let active = self.ports.iter().filter(|port| port.is_active());
        let ports: Vec<String> = active.map(port).collect();
        let workers = self.workers.handles().len();
        match self.unmatched() {
            Some(why) if ports.is_empty() => why,
            _ => format!("forwarding between {} with {workers} worker(s)", ports.join(", ")),
        }
    }

    /// One line for the log at the end, when no worker runs and no packet is in flight.
    pub(super) fn totals(&self) -> String {
        let workers = self.workers.handles().iter().map(|worker| worker.stats.account(0, 0));
        let offloaded = self.offload.iter().map(|it| it.offloads().account());
        let accounts: Vec<PacketAccount> = workers.chain(offloaded).collect();
        let sum = |of: fn(&PacketAccount) -> u64| -> u64 { accounts.iter().map(of).sum() };
        format!(
            "stopped; received {}, sent {}, to the kernel {}, dropped {}, made {}",
            sum(|account| account.received),
            sum(|account| account.sent),
            sum(|account| account.handed_to_kernel),
            sum(|account| account.dropped),
            // A fragmented packet no longer exists: its fragments do; and the other way round.
            sum(|account| account.made.saturating_sub(account.fragmented + account.reassembled)),
        )
    }
}

fn wait<T>(asked: Option<Receiver<T>>, until: Instant) -> Option<T> {
    asked?.recv_deadline(until).ok()
}

fn polling(stats: &WorkerStats) -> Counters {
    let entry = |name: &str, counter: &Counter| (name.to_owned(), counter.get());
    Counters::from([
        entry("polls", &stats.turns),
        entry("polls_with_packets", &stats.busy_turns),
        entry("budget_exhausted", &stats.full_bursts),
        entry("sleeps", &stats.sleeps),
        entry("wakeups", &stats.wakeups),
        entry("idle_ns", &stats.idle_ns),
    ])
}

fn handoffs(stats: &WorkerStats) -> Counters {
    let entry = |name: &str, counter: &Counter| (name.to_owned(), counter.get());
    Counters::from([
        entry("handed_over_out", &stats.handed_over_out),
        entry("handed_over_in", &stats.handed_over_in),
    ])
}

fn cost(cost: &Cost) -> Counters {
    let entry = |name: &str, counter: &Counter| (name.to_owned(), counter.get());
    Counters::from([
        entry("frames", &cost.frames),
        entry("user_ns", &cost.user_ns),
        entry("kick_ns", &cost.kick_ns),
    ])
}

pub(super) fn named<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> Counters {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// The counters of one worker for one slot of a port.
pub(super) fn port_counters(worker: &WorkerStats, slot: u16, stats: &PortStats) -> Counters {
    let PortStats {
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        rx_dropped,
        tx_dropped,
        punted,
        last_tx_ns: _,
    } = stats;
    let undelivered = worker.undelivered.of_port(slot);
    named([
        ("rx_packets", rx_packets.get()),
        ("rx_bytes", rx_bytes.get()),
        ("tx_packets", tx_packets.get()),
        ("tx_bytes", tx_bytes.get()),
        ("rx_dropped", rx_dropped.get() + undelivered),
        ("tx_dropped", tx_dropped.get()),
        ("punted", punted.get().saturating_sub(undelivered)),
    ])
}

pub(super) fn add(sum: &mut Counters, part: &Counters) {
    for (name, count) in part {
        *sum.entry(name.clone()).or_default() += count;
    }
}

fn frames(accounting: WorkerFrames) -> Counters {
    [
        ("total", accounting.total),
        ("free", accounting.free),
        ("fill_and_rx", accounting.fill_and_rx),
        ("tx_and_completion", accounting.tx_and_completion),
        ("draining", accounting.draining),
        ("held", accounting.held),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count as u64))
    .collect()
}

/// The sum over the sockets of a port. Each element is of one slot: `None` if its worker did not answer, `Some(None)` if
/// there is no socket. Nothing unless all have answered: the sum of some would be less than one before, as after a reset.
fn driver_counters(statistics: Vec<Option<Option<XdpStatistics>>>) -> Counters {
    let Some(answered) = statistics.into_iter().collect::<Option<Vec<_>>>() else {
        return Counters::new();
    };
    let mut sum = Counters::new();
    answered.into_iter().flatten().for_each(|of| add(&mut sum, &named_statistics(of)));
    sum
}

fn named_statistics(statistics: XdpStatistics) -> Counters {
    let XdpStatistics {
        rx_dropped,
        rx_invalid_descs,
        tx_invalid_descs,
        rx_ring_full,
        rx_fill_ring_empty_descs,
        tx_ring_empty_descs,
    } = statistics;
    [
        ("rx_dropped", rx_dropped),
        ("rx_invalid_descs", rx_invalid_descs),
        ("tx_invalid_descs", tx_invalid_descs),
        ("rx_ring_full", rx_ring_full),
        ("rx_fill_ring_empty_descs", rx_fill_ring_empty_descs),
        ("tx_ring_empty_descs", tx_ring_empty_descs),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_sockets_are_left_out_unless_every_worker_answered() {
        let some = |rx_ring_full| Some(Some(XdpStatistics { rx_ring_full, ..<_>::default() }));
        let sum = driver_counters(vec![some(2), Some(None), some(3)]);
        assert_eq!(sum.get("rx_ring_full"), Some(&5));
        assert!(driver_counters(vec![some(2), None, some(3)]).is_empty());
        assert!(driver_counters(vec![Some(None)]).is_empty(), "no socket");
    }
}
