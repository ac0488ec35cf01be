//! What happened between two samples.

use std::time::Duration;

use super::sample::Sample;
use crate::cli::latency;
use crate::control::api::{
    Counters, LatencyReport, PortReport, PortStatus, StatusReport, WorkerReport,
};
use crate::histogram::Summary;

/// Per second, unless it says something else.
#[derive(Debug, Clone)]
pub struct Rates {
    pub status: StatusReport,
    /// Between the samples; `None`: there is only one of this daemon yet, and all rates are 0.
    pub interval: Option<Duration>,
    /// What `stat` calls `packets`: those of all workers, and those that are offloaded.
    pub packets: PacketRates,
    pub ports: Vec<PortRates>,
    pub workers: Vec<WorkerRates>,
    /// All reasons that have a count.
    pub reasons: Vec<ReasonRate>,
    /// Of the frames that were measured in the interval.
    pub latency: LatencyRows,
    /// Of those since the start, or since `latency --reset`.
    pub latency_total: LatencyRows,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PacketRates {
    pub received: f64,
    pub sent: f64,
    pub dropped: f64,
    /// Handed to the kernel by workers, or left to it by the XDP program.
    pub to_kernel: f64,
    /// Of those received: forwarded by the XDP program.
    pub offloaded: f64,
    /// Octets of all ports, with the Ethernet header.
    pub rx_octets: f64,
    pub tx_octets: f64,
    /// What workers counted is missing, of those without [`WorkerRates::packets`].
    pub is_incomplete: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct PortRates {
    pub ifname: String,
    /// `forwarding`, or why not.
    pub state: String,
    /// How the XDP program is attached and the sockets are bound; empty: they are not.
    pub mode: String,
    pub rx_packets: f64,
    pub rx_octets: f64,
    pub tx_packets: f64,
    pub tx_octets: f64,
    pub dropped: f64,
    /// Handed to the kernel by workers, or left to it by the XDP program.
    pub to_kernel: f64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerRates {
    pub worker: u32,
    /// `None`: not pinned.
    pub cpu: Option<u32>,
    /// Share of time with packets, 0 to 1; `None`: it is silent, and does not tell.
    pub busy: Option<f64>,
    /// `None`: in one of the samples they are unknown.
    pub packets: Option<WorkerPackets>,
    /// It had no turn in the interval, or did not answer in time.
    pub is_silent: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerPackets {
    pub received: f64,
    pub sent: f64,
    pub dropped: f64,
}

/// Where packets went that Ferroute did not forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Dropped by a worker, or not sent by the kernel or a driver.
    Dropped,
    /// Handed to the kernel by a worker.
    Punted,
    /// Left to the kernel by the XDP program.
    Passed,
}

impl Fate {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Dropped => "drop",
            Fate::Punted => "punt",
            Fate::Passed => "pass",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ReasonRate {
    pub fate: Fate,
    pub name: String,
    pub rate: f64,
    /// Since the start.
    pub count: u64,
}

/// Time in userspace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatencyRows {
    /// One frame in this many is measured; 0: none.
    pub sample: u32,
    /// In port, out port; those with the most frames first.
    pub pairs: Vec<(String, String, Summary)>,
    pub total: Summary,
}

/// The time between two samples, if they are of one daemon.
#[derive(Clone, Copy)]
struct Interval(Option<Duration>);

impl Interval {
    /// A counter that is lower than before (a port's sockets were opened again) has no rate.
    fn rate(self, now: u64, before: u64) -> f64 {
        self.0.map_or(0.0, |length| now.saturating_sub(before) as f64 / length.as_secs_f64())
    }
}

impl Rates {
    /// Of two samples. If the daemon was restarted in between, as without a first sample.
    pub fn between(before: Option<&Sample>, now: &Sample) -> Rates {
        let (old, new) = (before.map(|it| &it.status), &now.status);
        let is_same =
            |old: &StatusReport| old.pid == new.pid && old.uptime_seconds <= new.uptime_seconds;
        let before = before.filter(|_| old.is_some_and(is_same));
        let passed = before.map(|before| now.at.saturating_duration_since(before.at));
        let interval = Interval(passed.map(|passed| passed.max(Duration::from_millis(1))));
        let ports: Vec<PortRates> =
            new.ports.iter().map(|port| port_rates(port, before, now, interval)).collect();
        let worker = |worker| worker_rates(worker, before, now, interval);
        Rates {
            status: new.clone(),
            interval: interval.0,
            packets: packet_rates(before, now, interval, &ports),
            ports,
            workers: now.stat.workers.iter().map(worker).collect(),
            reasons: reasons(before, now, interval),
            latency: match before {
                None => LatencyRows::of(&now.latency, false),
                Some(old) => LatencyRows::of(&latency::since(&now.latency, &old.latency), true),
            },
            latency_total: LatencyRows::of(&now.latency, true),
        }
    }
}

fn of(counters: &Counters, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// What the XDP program left to the kernel. Packets that workers hand to the kernel pass it once more, and are not
/// counted again.
fn passes(port: &PortReport) -> impl Iterator<Item = (&str, u64)> {
    let counts = port.xdp.iter().filter(|(name, _)| *name != "pass_punted");
    counts.filter_map(|(name, count)| Some((name.strip_prefix("pass_")?, *count)))
}

fn packet_rates(
    before: Option<&Sample>,
    now: &Sample,
    interval: Interval,
    ports: &[PortRates],
) -> PacketRates {
    let is_known =
        |worker: u32| has_packets(now, worker) && before.is_none_or(|it| has_packets(it, worker));
    let mut workers = now.stat.workers.iter().map(|worker| worker.worker);
    let is_incomplete = !workers.all(is_known);
    let total = |sample: &Sample, name: &str| -> u64 {
        let workers = sample.stat.workers.iter().filter(|worker| is_known(worker.worker));
        let workers = workers.map(|worker| &worker.packets);
        let offload = sample.stat.offload.iter().map(|offload| &offload.packets);
        workers.chain(offload).map(|packets| of(packets, name)).sum()
    };
    let rate =
        |name| interval.rate(total(now, name), before.map_or(0, |before| total(before, name)));
    let offloaded = |sample: &Sample| {
        sample.stat.offload.as_ref().map_or(0, |offload| of(&offload.packets, "received"))
    };
    let left =
        |sample: &Sample| sample.stat.ports.iter().flat_map(passes).map(|(_, count)| count).sum();
    PacketRates {
        received: rate("received"),
        sent: rate("sent"),
        dropped: rate("dropped"),
        to_kernel: rate("handed_to_kernel") + interval.rate(left(now), before.map_or(0, left)),
        offloaded: interval.rate(offloaded(now), before.map_or(0, offloaded)),
        rx_octets: ports.iter().map(|port| port.rx_octets).sum(),
        tx_octets: ports.iter().map(|port| port.tx_octets).sum(),
        is_incomplete,
    }
}

/// Whether a sample has where the packets of a worker went. A daemon without `counters` leaves them out of the answer while
/// the worker is silent: the difference to another sample would be everything since the start.
fn has_packets(sample: &Sample, worker: u32) -> bool {
    let mut workers = sample.stat.workers.iter();
    workers.any(|it| it.worker == worker && !it.packets.is_empty())
}

fn port_rates(
    status: &PortStatus,
    before: Option<&Sample>,
    now: &Sample,
    interval: Interval,
) -> PortRates {
    let find = |sample: &Sample| {
        sample.stat.ports.iter().find(|port| port.ifname == status.ifname).cloned()
    };
    let (old, new) = (before.and_then(find), find(now).unwrap_or_default());
    // What a port had counted that was added in the interval is not of the interval.
    let interval = Interval(interval.0.filter(|_| old.is_some()));
    let old = old.unwrap_or_default();
    let rate = |name: &str| interval.rate(of(&new.counters, name), of(&old.counters, name));
    let left = |port: &PortReport| {
        of(&port.counters, "punted") + passes(port).map(|(_, count)| count).sum::<u64>()
    };
    PortRates {
        ifname: status.ifname.clone(),
        state: status.state.clone(),
        mode: format!("{} {}", status.xdp_mode, status.bind_mode).trim().to_owned(),
        rx_packets: rate("rx_packets"),
        rx_octets: rate("rx_bytes"),
        tx_packets: rate("tx_packets"),
        tx_octets: rate("tx_bytes"),
        dropped: rate("rx_dropped") + rate("tx_dropped"),
        to_kernel: interval.rate(left(&new), left(&old)),
    }
}

fn worker_rates(
    worker: &WorkerReport,
    before: Option<&Sample>,
    now: &Sample,
    interval: Interval,
) -> WorkerRates {
    let status = now.status.workers.iter().find(|status| status.worker == worker.worker);
    let old = before.and_then(|it| it.stat.workers.iter().find(|old| old.worker == worker.worker));
    let interval = Interval(interval.0.filter(|_| old.is_some()));
    let rate = |counters: fn(&WorkerReport) -> &Counters, name: &str| {
        interval.rate(of(counters(worker), name), old.map_or(0, |old| of(counters(old), name)))
    };
    let polls = |worker: &WorkerReport| worker.polling.get("polls").copied();
    let has_no_turn = old.and_then(polls).is_some_and(|old| polls(worker) == Some(old));
    let is_silent = worker.silent || has_no_turn;
    let busy = match interval.0 {
        None => 0.0,
        Some(_) => (1.0 - rate(|it| &it.polling, "idle_ns") * 1e-9).clamp(0.0, 1.0),
    };
    let is_known = has_packets(now, worker.worker)
        && before.is_none_or(|before| has_packets(before, worker.worker));
    WorkerRates {
        worker: worker.worker,
        cpu: status.and_then(|status| status.cpu),
        busy: (!is_silent).then_some(busy),
        packets: is_known.then(|| WorkerPackets {
            received: rate(|it| &it.packets, "received"),
            sent: rate(|it| &it.packets, "sent"),
            dropped: rate(|it| &it.packets, "dropped"),
        }),
        is_silent,
    }
}

/// One kind of counters of a sample.
type CountersOf = fn(&Sample) -> Counters;

/// What the XDP program left to the kernel, on all ports.
fn all_passes(sample: &Sample) -> Counters {
    let mut sum = Counters::new();
    for (name, count) in sample.stat.ports.iter().flat_map(passes) {
        *sum.entry(name.to_owned()).or_default() += count;
    }
    sum
}

fn reasons(before: Option<&Sample>, now: &Sample, interval: Interval) -> Vec<ReasonRate> {
    let groups: [(Fate, CountersOf); 3] = [
        (Fate::Dropped, |sample| sample.stat.drops()),
        (Fate::Punted, |sample| sample.stat.punts()),
        (Fate::Passed, all_passes),
    ];
    let mut reasons = Vec::new();
    for (fate, counters) in groups {
        let old = before.map(counters).unwrap_or_default();
        for (name, count) in counters(now).into_iter().filter(|(_, count)| *count != 0) {
            let rate = interval.rate(count, of(&old, &name));
            reasons.push(ReasonRate { fate, name, rate, count });
        }
    }
    reasons.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.count.cmp(&a.count)));
    reasons
}

impl LatencyRows {
    /// Of a report, or without rows.
    fn of(report: &LatencyReport, has_rows: bool) -> LatencyRows {
        if !has_rows {
            return LatencyRows { sample: report.sample, ..LatencyRows::default() };
        }
        let pairs = report.pairs.iter().map(|pair| {
            let summary = Summary::of(&latency::histogram(&pair.counts));
            (pair.iif.clone(), pair.oif.clone(), summary)
        });
        let mut pairs: Vec<_> = pairs.filter(|(.., summary)| summary.count > 0).collect();
        pairs.sort_by_key(|(.., summary)| std::cmp::Reverse(summary.count));
        let total = Summary::of(&latency::whole(report));
        LatencyRows { sample: report.sample, pairs, total }
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Instant;

    use super::*;
    use crate::control::api::{
        MirrorStatus, OffloadReport, PairLatency, StatReport, State, WorkerStatus,
    };

    fn counters(of: &[(&str, u64)]) -> Counters {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    fn status(ports: usize) -> StatusReport {
        let port = |n| PortStatus {
            ifname: format!("eth{n}"),
            state: "forwarding".into(),
            xdp_mode: "native".into(),
            bind_mode: "copy".into(),
            ..PortStatus::default()
        };
        StatusReport {
            state: State::Forwarding,
            pid: 7,
            version: "0.1.0".into(),
            driver: "af_xdp".into(),
            uptime_seconds: 61,
            ports: (0..ports).map(port).collect(),
            workers: vec![WorkerStatus { cpu: Some(3), ..WorkerStatus::default() }],
            mirror: MirrorStatus { routes4: 10, routes6: 3, ..MirrorStatus::default() },
            carried_flows: Some(2),
            offloaded_flows: Some(4),
            ipsec_policies: None,
            ipsec_sas: None,
            warnings: Vec::new(),
        }
    }

    /// What is counted `n` times.
    pub fn sample(at: Instant, ports: usize, n: u64) -> Sample {
        let worker = WorkerReport {
            drops: counters(&[("IP_RPFILTER", 3 * n), ("NOMEM", 7)]),
            punts: counters(&[("LOCAL", 2 * n), ("XFRM", 0)]),
            packets: counters(&[("received", 100 * n), ("sent", 90 * n), ("dropped", 3 * n)]),
            polling: counters(&[("idle_ns", 250_000_000 * n), ("polls", 1000 * n)]),
            ..WorkerReport::default()
        };
        let port = |at| PortReport {
            ifname: format!("eth{at}"),
            counters: counters(&[
                ("rx_packets", 100 * n),
                ("rx_bytes", 6400 * n),
                ("tx_dropped", n),
                ("punted", 2 * n),
            ]),
            xdp: counters(&[
                ("pass_local", 8 * n),
                ("pass_punted", 50 * n),
                ("steer_ipv4", 100 * n),
            ]),
            ..PortReport::default()
        };
        let offload = OffloadReport {
            packets: counters(&[("received", 300 * n), ("sent", 300 * n)]),
            ..OffloadReport::default()
        };
        let pair =
            PairLatency { iif: "eth0".into(), oif: "eth1".into(), counts: vec![(1000, 10 * n)] };
        Sample {
            at,
            status: status(ports),
            stat: StatReport {
                workers: vec![worker],
                ports: (0..ports).map(port).collect(),
                offload: Some(offload),
            },
            latency: LatencyReport { sample: 64, pairs: vec![pair], ..LatencyReport::default() },
        }
    }

    #[test]
    fn rates_are_per_second() {
        let start = Instant::now();
        let later = start + Duration::from_millis(500);
        let rates = Rates::between(Some(&sample(start, 1, 1)), &sample(later, 1, 2));
        let PacketRates { received, sent, dropped, to_kernel, offloaded, rx_octets, .. } =
            rates.packets;
        assert_eq!((received, sent, dropped, to_kernel), (800.0, 780.0, 6.0, 16.0));
        assert_eq!((offloaded, rx_octets), (600.0, 12_800.0));
        let port = &rates.ports[0];
        assert_eq!((port.rx_packets, port.rx_octets), (200.0, 12_800.0));
        assert_eq!((port.to_kernel, port.dropped), (20.0, 2.0));
        // Idle for half of the time.
        let worker = &rates.workers[0];
        assert_eq!((worker.busy, worker.is_silent), (Some(0.5), false));
        assert_eq!(
            worker.packets,
            Some(WorkerPackets { received: 200.0, sent: 180.0, dropped: 6.0 })
        );
        assert_eq!(rates.workers[0].cpu, Some(3));
        let reason =
            |fate, name: &str, rate, count| ReasonRate { fate, name: name.into(), rate, count };
        let expected = [
            reason(Fate::Passed, "local", 16.0, 16),
            reason(Fate::Dropped, "IP_RPFILTER", 6.0, 6),
            reason(Fate::Punted, "LOCAL", 4.0, 4),
            reason(Fate::Dropped, "NOMEM", 0.0, 7),
        ];
        assert_eq!(rates.reasons, expected);
        assert_eq!(rates.latency.pairs.len(), 1);
        assert_eq!((rates.latency.total.count, rates.latency_total.total.count), (10, 20));
        assert_eq!(rates.latency.total.p50_ns, 1000);
    }

    #[test]
    fn counters_that_go_back_have_no_rate() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let rates = Rates::between(Some(&sample(start, 1, 50)), &sample(later, 1, 2));
        assert_eq!(rates.packets, PacketRates::default());
        assert_eq!((rates.ports[0].rx_packets, rates.ports[0].to_kernel), (0.0, 0.0));
        assert!(rates.reasons.iter().all(|reason| reason.rate == 0.0));
    }

    #[test]
    fn a_daemon_that_was_restarted_has_no_rates_yet() {
        let start = Instant::now();
        let (before, now) = (sample(start, 1, 2), sample(start + Duration::from_secs(1), 1, 50));
        let restarted = |change: fn(&mut StatusReport)| {
            let mut now = now.clone();
            change(&mut now.status);
            Rates::between(Some(&before), &now)
        };
        for rates in [
            restarted(|status| status.pid = 8),
            restarted(|status| status.uptime_seconds = 0),
            Rates::between(None, &now),
        ] {
            assert_eq!((rates.interval, rates.packets), (None, PacketRates::default()));
            assert_eq!((rates.workers[0].busy, rates.latency.total.count), (Some(0.0), 0));
            assert_eq!((rates.reasons[0].rate, rates.latency_total.total.count), (0.0, 500));
        }
    }

    /// As a daemon without `counters` answers while a worker has no turn.
    fn without_worker(mut sample: Sample) -> Sample {
        let worker = &mut sample.stat.workers[0];
        (worker.packets, worker.silent) = (Counters::new(), true);
        sample
    }

    #[test]
    fn what_a_worker_counted_before_it_was_silent_is_not_of_the_interval() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let (before, now) = (sample(start, 1, 5000), sample(later, 1, 5001));
        for (before, now, is_silent) in [
            (without_worker(before.clone()), now.clone(), false),
            (before.clone(), without_worker(now.clone()), true),
            (without_worker(before.clone()), without_worker(now.clone()), true),
        ] {
            let rates = Rates::between(Some(&before), &now);
            // Offloaded ones are known.
            assert_eq!((rates.packets.received, rates.packets.sent), (300.0, 300.0));
            assert!(rates.packets.is_incomplete);
            let worker = &rates.workers[0];
            assert_eq!((worker.packets, worker.is_silent), (None, is_silent));
            assert_eq!(worker.busy.is_none(), is_silent);
            assert_eq!(rates.ports[0].rx_packets, 100.0);
        }
        let rates = Rates::between(Some(&before), &now);
        assert_eq!((rates.packets.received, rates.packets.is_incomplete), (400.0, false));
    }

    #[test]
    fn a_worker_without_turns_is_silent_and_not_busy() {
        let start = Instant::now();
        let (before, mut now) = (sample(start, 1, 7), sample(start, 1, 7));
        now.at += Duration::from_secs(1);
        let worker = &Rates::between(Some(&before), &now).workers[0];
        assert_eq!((worker.busy, worker.is_silent), (None, true));
        // Its counters are read all the same.
        assert_eq!(worker.packets, Some(WorkerPackets::default()));
        // A first sample does not show it.
        assert!(!Rates::between(None, &now).workers[0].is_silent);
    }

    #[test]
    fn what_a_new_port_had_counted_is_not_of_the_interval() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let rates = Rates::between(Some(&sample(start, 1, 1)), &sample(later, 2, 2));
        assert_eq!((rates.ports[0].rx_packets, rates.ports[1].rx_packets), (100.0, 0.0));
    }

    #[test]
    fn without_packets_there_is_no_latency() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let rates = Rates::between(Some(&sample(start, 1, 2)), &sample(later, 1, 2));
        assert_eq!((rates.latency.pairs.len(), rates.latency.total.count), (0, 0));
        assert_eq!(rates.latency.sample, 64);
    }
}
