//! A reading as samples of the metrics of the [`catalog`].
//!
//! The number of series is bounded, however many rules, pairs of ports and queues there are: what is left out is counted
//! in [`catalog::LEFT_OUT`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use super::catalog::{self, Metric};
use super::reading::{Reading, RuleCount};
use crate::control::api::{Counters, PairLatency, State, StatusReport};
use crate::stats::Mib;

/// Rules and named counters that have series each.
pub const RULES_MAX: usize = 1000;
/// Pairs of ports that have a histogram: those with the most frames.
const PAIRS_MAX: usize = 64;
/// RX queues that have series, of all ports together.
const QUEUES_MAX: usize = 1024;
/// Warnings that have a series.
const WARNINGS_MAX: usize = 16;
/// Characters of a warning that are kept.
const WARNING_LENGTH_MAX: usize = 240;

/// Upper bounds of the buckets of latency, nanoseconds: three for each power of ten, from below a frame's shortest time to
/// above the wait for a neighbour.
const BUCKETS_NS: [u64; 21] = [
    250,
    500,
    1000,
    2500,
    5000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    5_000_000_000,
];

/// What the server knows of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerCounts {
    /// Readings, with the present one.
    pub readings: u64,
    /// How long the present one took.
    pub took: Duration,
    /// Connections that were closed.
    pub closed: u64,
}

/// The value of a sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a counter of seconds, or a gauge.
    Number(f64),
    /// Of an info.
    Info,
    /// Of a histogram: sum, count, and the counts of buckets by their upper bounds, the last of which is infinite.
    Buckets(f64, u64, Vec<(f64, u64)>),
}

/// The samples of a metric.
#[derive(Debug, Clone)]
pub struct Family {
    /// The metric.
    pub metric: Metric,
    /// Values of its labels, and the value.
    pub samples: Vec<(Vec<String>, Value)>,
}

/// Collects families.
#[derive(Debug, Default)]
struct Families(Vec<Family>);

impl Families {
    fn add(&mut self, metric: Metric, samples: impl IntoIterator<Item = (Vec<String>, Value)>) {
        let samples: Vec<_> = samples.into_iter().collect();
        debug_assert!(samples.iter().all(|(labels, _)| labels.len() == metric.labels.len()));
        if !samples.is_empty() {
            self.0.push(Family { metric, samples });
        }
    }

    fn count(&mut self, metric: Metric, count: u64) {
        self.add(metric, [(vec![], Value::Count(count))]);
    }

    fn gauge(&mut self, metric: Metric, value: impl Into<f64>) {
        self.add(metric, [(vec![], Value::Number(value.into()))]);
    }

    /// A number of things.
    fn number(&mut self, metric: Metric, number: u64) {
        self.gauge(metric, number as f64);
    }

    fn age(&mut self, metric: Metric, age: Option<Duration>) {
        self.add(metric, age.map(|age| (vec![], Value::Number(age.as_secs_f64()))));
    }

    /// A counter for each element of a list.
    fn each<T>(
        &mut self,
        metric: Metric,
        list: &[T],
        label: impl Fn(&T) -> String,
        count: impl Fn(&T) -> u64,
    ) {
        self.add(metric, list.iter().map(|it| (vec![label(it)], Value::Count(count(it)))));
    }
}

fn of(counters: &Counters, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

fn labels<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.map(str::to_owned).to_vec()
}

fn flag(is: bool) -> Value {
    Value::Number(f64::from(u8::from(is)))
}

/// The last values of counters. Some counters are differences, such as packets that were handed to the kernel without those
/// that it then refused, and decrease a little when their parts are read or counted at different times. A client would take
/// that for a reset, and count all of it again.
#[derive(Debug, Default)]
pub struct LastCounts(HashMap<(Cow<'static, str>, Vec<String>), u64>);

impl LastCounts {
    /// Keeps each counter at its last value while it is a little less. Below half of it, the counter is taken to have begun
    /// anew, as those of a port do whose number another interface had.
    pub fn keep(&mut self, families: &mut [Family]) {
        // Of what is not there any more, nothing is kept.
        let mut counts = HashMap::new();
        for family in families {
            for (labels, value) in &mut family.samples {
                let Value::Count(count) = value else { continue };
                let series = (family.metric.base.clone(), labels.clone());
                if let Some(&last) = self.0.get(&series)
                    && *count < last
                    && *count >= last / 2
                {
                    *count = last;
                }
                counts.insert(series, *count);
            }
        }
        self.0 = counts;
    }
}

/// The samples of a reading.
pub fn samples(reading: &Reading, server: ServerCounts) -> Vec<Family> {
    let mut to = Families::default();
    let mut left_out = BTreeMap::from([("rules", reading.rules_left_out)]);
    if let Some(status) = &reading.status {
        daemon(&mut to, status, reading, &mut left_out);
        port_states(&mut to, status, reading);
        mirror(&mut to, status);
    }
    ports(&mut to, reading, &mut left_out);
    workers(&mut to, reading);
    totals(&mut to, reading);
    rules(&mut to, reading);
    connections(&mut to, reading);
    offload(&mut to, reading);
    ipsec(&mut to, reading);
    latency(&mut to, reading, &mut left_out);
    to.count(catalog::READINGS, server.readings);
    to.gauge(catalog::READING_TIME, server.took.as_secs_f64());
    to.count(catalog::CLOSED, server.closed);
    let left_out =
        left_out.iter().map(|(of, number)| (labels([of]), Value::Number(*number as f64)));
    to.add(catalog::LEFT_OUT, left_out);
    to.0
}

fn daemon(
    to: &mut Families,
    status: &StatusReport,
    reading: &Reading,
    left_out: &mut BTreeMap<&'static str, u64>,
) {
    to.add(catalog::BUILD, [(labels([&status.version, &status.driver]), Value::Info)]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Rounded, so that it does not change between readings.
    let started = now.saturating_sub(reading.uptime).as_secs_f64().round();
    to.gauge(catalog::START_TIME, started);
    let states = [State::Starting, State::Forwarding, State::Degraded, State::Stopping];
    let state = |state: State| (labels([state.name()]), flag(state == status.state));
    to.add(catalog::STATE, states.map(state));
    to.gauge(catalog::FORWARDING, u8::from(status.state == State::Forwarding));
    to.number(catalog::WARNINGS, status.warnings.len() as u64);
    // A series may be there only once.
    let mut seen = BTreeSet::new();
    let mut shown: Vec<String> = status
        .warnings
        .iter()
        .map(|text| text.chars().take(WARNING_LENGTH_MAX).collect::<String>())
        .filter(|text| seen.insert(text.clone()))
        .collect();
    left_out.insert("warnings", shown.len().saturating_sub(WARNINGS_MAX) as u64);
    shown.truncate(WARNINGS_MAX);
    shown.sort();
    to.add(catalog::WARNING, shown.into_iter().map(|text| (vec![text], flag(true))));
}

fn port_states(to: &mut Families, status: &StatusReport, reading: &Reading) {
    let each = |value: &dyn Fn(&crate::control::api::PortStatus) -> Value| -> Vec<_> {
        status.ports.iter().map(|port| (labels([&port.ifname]), value(port))).collect()
    };
    let is_forwarding =
        reading.is_steering && matches!(status.state, State::Forwarding | State::Degraded);
    to.add(
        catalog::PORT_FORWARDING,
        each(&|port| {
            flag(is_forwarding && !port.xdp_mode.is_empty() && !port.bind_mode.is_empty())
        }),
    );
    to.add(
        catalog::PORT_UP,
        reading.ports.iter().map(|port| (labels([&port.ifname]), flag(port.is_up))),
    );
    to.add(
        catalog::PORT,
        status.ports.iter().map(|port| {
            let state = &port.state.chars().take(WARNING_LENGTH_MAX).collect::<String>();
            (labels([&port.ifname, state, &port.xdp_mode, &port.bind_mode]), Value::Info)
        }),
    );
    to.add(catalog::PORT_MTU, each(&|port| Value::Number(port.mtu.into())));
    to.add(catalog::PORT_QUEUES, each(&|port| Value::Number(port.queues.into())));
    to.add(catalog::PORT_VLANS, each(&|port| Value::Number(port.vlans.len() as f64)));
}

fn ports(to: &mut Families, reading: &Reading, left_out: &mut BTreeMap<&'static str, u64>) {
    let ports = &reading.stat.ports;
    for (metric, name) in [
        (catalog::PORT_RX_PACKETS, "rx_packets"),
        (catalog::PORT_RX_BYTES, "rx_bytes"),
        (catalog::PORT_TX_PACKETS, "tx_packets"),
        (catalog::PORT_TX_BYTES, "tx_bytes"),
        (catalog::PORT_RX_DROPS, "rx_dropped"),
        (catalog::PORT_TX_DROPS, "tx_dropped"),
        (catalog::PORT_PUNTS, "punted"),
    ] {
        to.each(metric, ports, |port| port.ifname.clone(), |port| of(&port.counters, name));
    }
    // Without sockets, or if a worker does not answer, there are no counters.
    let open = ports.iter().filter(|port| !port.driver.is_empty());
    let split = |metric: Metric, of_what: [(&str, &str); 2], to: &mut Families| {
        let samples = open.clone().flat_map(|port| {
            of_what.map(|(label, name)| {
                (labels([&port.ifname, label]), Value::Count(of(&port.driver, name)))
            })
        });
        to.add(metric, samples);
    };
    split(catalog::PORT_MISSED, [("ring_full", "rx_ring_full"), ("no_memory", "rx_dropped")], to);
    let invalid = [("receive", "rx_invalid_descs"), ("transmit", "tx_invalid_descs")];
    split(catalog::PORT_INVALID, invalid, to);
    for (metric, name) in [
        (catalog::PORT_FILL_EMPTY, "rx_fill_ring_empty_descs"),
        (catalog::PORT_TX_EMPTY, "tx_ring_empty_descs"),
    ] {
        let sample =
            open.clone().map(|port| (labels([&port.ifname]), Value::Count(of(&port.driver, name))));
        to.add(metric, sample);
    }
    let xdp = ports.iter().flat_map(|port| {
        port.xdp
            .iter()
            .map(|(reason, count)| (labels([&port.ifname, reason]), Value::Count(*count)))
    });
    to.add(catalog::PORT_XDP, xdp);
    let queues = reading.ports.iter().flat_map(|port| {
        port.queues.iter().enumerate().map(|(queue, counts)| (&port.ifname, queue, counts))
    });
    let number: usize = reading.ports.iter().map(|port| port.queues.len()).sum();
    left_out.insert("queues", number.saturating_sub(QUEUES_MAX) as u64);
    let samples = queues.take(QUEUES_MAX).flat_map(|(port, queue, counts)| {
        let ways = [
            ("userspace", counts.userspace),
            ("offload", counts.offload),
            ("kernel", counts.kernel),
        ];
        ways.map(|(way, count)| (labels([port, &queue.to_string(), way]), Value::Count(count)))
    });
    to.add(catalog::QUEUE_PACKETS, samples);
}

fn workers(to: &mut Families, reading: &Reading) {
    let workers = &reading.stat.workers;
    let name = |worker: &crate::control::api::WorkerReport| worker.worker.to_string();
    let cpus = reading.status.iter().flat_map(|status| &status.workers).map(|worker| {
        let cpu = worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string());
        (vec![worker.worker.to_string(), cpu], Value::Info)
    });
    to.add(catalog::WORKER, cpus);
    let ages = reading.heartbeats.workers.iter().enumerate().filter_map(|(worker, age)| {
        Some((vec![worker.to_string()], Value::Number((*age)?.as_secs_f64())))
    });
    to.add(catalog::WORKER_HEARTBEAT, ages);
    let idle = workers.iter().map(|worker| {
        (vec![name(worker)], Value::Number(of(&worker.polling, "idle_ns") as f64 / 1e9))
    });
    to.add(catalog::WORKER_IDLE, idle);
    for (metric, counter) in [
        (catalog::WORKER_POLLS, "polls"),
        (catalog::WORKER_BUSY_POLLS, "polls_with_packets"),
        (catalog::WORKER_FULL, "budget_exhausted"),
        (catalog::WORKER_SLEEPS, "sleeps"),
        (catalog::WORKER_WAKEUPS, "wakeups"),
    ] {
        to.each(metric, workers, name, |worker| of(&worker.polling, counter));
    }
    for (metric, counter) in [
        (catalog::WORKER_RX, "received"),
        (catalog::WORKER_TX, "sent"),
        (catalog::WORKER_DROPS, "dropped"),
        (catalog::WORKER_PUNTS, "handed_to_kernel"),
        (catalog::WORKER_HANDOFFS, "handed_over_out"),
    ] {
        to.each(metric, workers, name, |worker| of(&worker.packets, counter));
    }
}

fn totals(to: &mut Families, reading: &Reading) {
    let packets = reading.stat.packets();
    for (metric, name) in [
        (catalog::RECEIVED, "received"),
        (catalog::SENT, "sent"),
        (catalog::MADE, "made"),
        (catalog::FRAGMENTED, "fragmented"),
        (catalog::REASSEMBLED, "reassembled"),
    ] {
        to.count(metric, of(&packets, name));
    }
    to.each(catalog::DROPS, &reading.drops, |drop| drop.reason.clone(), |drop| drop.count);
    to.each(catalog::PUNTS, &reading.punts, |punt| punt.reason.clone(), |punt| punt.count);
    let mib = reading.stat.mib();
    for counter in Mib::ALL {
        to.count(catalog::mib(*counter), of(&mib, counter.name()));
    }
}

fn rules(to: &mut Families, reading: &Reading) {
    let add =
        |metric: Metric, counts: &[RuleCount], value: fn((u64, u64)) -> u64, to: &mut Families| {
            let is_rule = metric.labels.contains(&"chain");
            let samples = counts.iter().flat_map(|count| {
                let RuleCount { table, chain, name, workers, kernel } = count;
                [("workers", *workers), ("kernel", *kernel)].map(|(by, pair)| {
                    let labels = match is_rule {
                        true => labels([table, chain, name, by]),
                        false => labels([table, name, by]),
                    };
                    (labels, Value::Count(value(pair)))
                })
            });
            to.add(metric, samples);
        };
    add(catalog::RULE_PACKETS, &reading.rules, |pair| pair.0, to);
    add(catalog::RULE_BYTES, &reading.rules, |pair| pair.1, to);
    add(catalog::OBJECT_PACKETS, &reading.objects, |pair| pair.0, to);
    add(catalog::OBJECT_BYTES, &reading.objects, |pair| pair.1, to);
}

fn connections(to: &mut Families, reading: &Reading) {
    if let Some(carried) = reading.status.as_ref().and_then(|status| status.carried_flows) {
        to.number(catalog::CARRIED, carried);
    }
    if let Some(conntrack) = reading.conntrack {
        to.number(catalog::CONNTRACK, conntrack.entries);
        to.number(catalog::CONNTRACK_MAX, conntrack.entries_max);
    }
}

fn offload(to: &mut Families, reading: &Reading) {
    if let Some(report) = &reading.stat.offload {
        to.number(catalog::OFFLOAD_FLOWS, of(&report.flows, "flows"));
        to.number(catalog::OFFLOAD_FLOWS_MAX, of(&report.flows, "flows_max"));
        to.count(catalog::OFFLOAD_INSTALLED, of(&report.flows, "installed"));
        let counts = |names: [&str; 2]| {
            names.map(|name| (labels([name]), Value::Count(of(&report.flows, name))))
        };
        to.add(catalog::OFFLOAD_REFUSED, counts(["outdated", "table_full"]));
        to.add(catalog::OFFLOAD_REMOVED, counts(["voided", "aged"]));
        to.count(catalog::OFFLOAD_RECEIVED, of(&report.packets, "received"));
        to.count(catalog::OFFLOAD_SENT, of(&report.packets, "sent"));
        to.count(catalog::OFFLOAD_DROPS, of(&report.packets, "dropped"));
    }
    if let Some(not) = &reading.not_offloaded {
        to.number(catalog::EXAMINED, not.examined);
        let reasons = not.directions.iter();
        let reasons =
            reasons.map(|(reason, number)| (vec![reason.clone()], Value::Number(*number as f64)));
        to.add(catalog::NOT_OFFLOADED, reasons);
    }
}

fn mirror(to: &mut Families, status: &StatusReport) {
    let mirror = &status.mirror;
    to.gauge(catalog::MIRROR_READY, u8::from(mirror.ready));
    to.count(catalog::PUBLICATIONS, mirror.generation);
    to.count(catalog::RESYNCS, mirror.resyncs);
    to.count(catalog::CORRECTIONS, mirror.corrections);
    to.number(catalog::LINKS, mirror.links);
    to.number(catalog::ADDRS, mirror.addrs);
    let routes = [("ipv4", mirror.routes4), ("ipv6", mirror.routes6)];
    to.add(
        catalog::ROUTES,
        routes.map(|(family, number)| (labels([family]), Value::Number(number as f64))),
    );
    to.number(catalog::RULES, mirror.rules);
    to.number(catalog::NEXTHOPS, mirror.nexthops);
    to.number(catalog::NEIGHBOURS, mirror.neighbours);
    to.number(catalog::UNMIRRORED, mirror.unmirrored.len() as u64);
}

fn ipsec(to: &mut Families, reading: &Reading) {
    to.age(catalog::TURN_AGE, reading.heartbeats.turn);
    to.age(catalog::CONTROL_HEARTBEAT, reading.heartbeats.control);
    let Some(status) = &reading.status else { return };
    to.number(catalog::POLICIES, status.ipsec_policies.unwrap_or(0));
    let sas = status.ipsec_sas.clone().unwrap_or_default();
    let sas = [("workers_in", sas.inbound), ("workers_out", sas.outbound), ("kernel", sas.kernel)];
    to.add(catalog::SAS, sas.map(|(by, number)| (labels([by]), Value::Number(number as f64))));
    to.each(catalog::XFRM_STAT, &reading.xfrm_stat, |(name, _)| name.clone(), |(_, count)| *count);
}

fn latency(to: &mut Families, reading: &Reading, left_out: &mut BTreeMap<&'static str, u64>) {
    let report = &reading.latency;
    let sample = if report.sample == 0 { 0.0 } else { 1.0 / f64::from(report.sample) };
    to.gauge(catalog::LATENCY_SAMPLE, sample);
    let frames = |pair: &PairLatency| pair.counts.iter().map(|(_, count)| count).sum::<u64>();
    let mut pairs: Vec<&PairLatency> = report.pairs.iter().collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse(frames(pair)));
    left_out.insert("latency_pairs", pairs.len().saturating_sub(PAIRS_MAX) as u64);
    pairs.truncate(PAIRS_MAX);
    // In an order that does not change with the counts.
    pairs.sort_by_key(|pair| (&pair.iif, &pair.oif));
    to.add(
        catalog::LATENCY,
        pairs.iter().map(|pair| (labels([&pair.iif, &pair.oif]), buckets(&pair.counts))),
    );
}

/// A histogram with [`BUCKETS_NS`] of the counts of an HDR histogram, which has each value to a thousandth.
fn buckets(counts: &[(u64, u64)]) -> Value {
    let mut buckets = [0u64; BUCKETS_NS.len() + 1];
    let (mut sum, mut number) = (0.0, 0);
    for &(value_ns, count) in counts {
        buckets[BUCKETS_NS.partition_point(|bound| *bound < value_ns)] += count;
        sum += value_ns as f64 * count as f64;
        number += count;
    }
    let bounds = BUCKETS_NS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
    Value::Buckets(sum / 1e9, number, bounds.zip(buckets).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_is_not_less() {
        let Value::Buckets(sum, count, buckets) =
            buckets(&[(250, 2), (251, 1), (9_000_000_000, 4)])
        else {
            panic!("a histogram")
        };
        assert_eq!(count, 7);
        assert!((sum - 36.000_000_751).abs() < 1e-9, "{sum}");
        assert_eq!(buckets[..2], [(2.5e-7, 2), (5e-7, 1)]);
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 4)));
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 7);
    }

    #[test]
    fn the_number_of_pairs_is_bounded_and_the_busiest_are_kept() {
        let pair = |n: u64| PairLatency {
            iif: format!("p{n:03}"),
            oif: "o".into(),
            counts: vec![(1, n + 1)],
        };
        let mut reading = Reading::default();
        reading.latency.pairs = (0..100).map(pair).collect();
        let families = samples(&reading, ServerCounts::default());
        let find = |metric: Metric| {
            families.iter().find(|family| family.metric == metric).expect("is there")
        };
        let pairs = &find(catalog::LATENCY).samples;
        assert_eq!(pairs.len(), PAIRS_MAX);
        assert_eq!(pairs[0].0, ["p036", "o"]);
        let left_out = &find(catalog::LEFT_OUT).samples;
        assert!(
            left_out.contains(&(labels(["latency_pairs"]), Value::Number(36.0))),
            "{left_out:?}"
        );
    }

    fn status(warnings: &[String]) -> StatusReport {
        let status = serde_json::from_value(serde_json::json!({
            "state": "degraded", "pid": 1, "version": "1", "uptime_seconds": 1, "ports": [],
            "workers": [], "mirror": serde_json::to_value(crate::control::api::MirrorStatus::default()).expect("writes"),
            "warnings": warnings,
        }));
        status.expect("a status")
    }

    fn of_metric(reading: &Reading, metric: Metric) -> Vec<(Vec<String>, Value)> {
        let families = samples(reading, ServerCounts::default());
        families.into_iter().find(|family| family.metric == metric).expect("is there").samples
    }

    #[test]
    fn equal_warnings_are_one_series_and_the_first_ones_are_kept() {
        let text = |n: usize| format!("warning {n:02}");
        for (warnings, series, left_out) in [
            (vec![text(1), text(1), text(2)], 2, 0.0),
            // The last ones in the order of the alphabet come first.
            ((0..40).rev().flat_map(|n| [text(n), text(n)]).collect(), WARNINGS_MAX, 24.0),
        ] {
            let first = warnings[0].clone();
            let reading = Reading { status: Some(status(&warnings)), ..Reading::default() };
            let shown = of_metric(&reading, catalog::WARNING);
            assert_eq!(shown.len(), series);
            assert!(shown.iter().any(|(labels, _)| *labels == [first.clone()]), "{shown:?}");
            let counted = of_metric(&reading, catalog::LEFT_OUT);
            assert!(counted.contains(&(labels(["warnings"]), Value::Number(left_out))));
        }
    }

    #[test]
    fn no_port_forwards_while_nothing_is_steered() {
        let mut status = status(&[]);
        status.ports = vec![crate::control::api::PortStatus {
            ifname: "a".into(),
            xdp_mode: "native".into(),
            bind_mode: "copy".into(),
            ..Default::default()
        }];
        for is_steering in [true, false] {
            let status = Some(status.clone());
            let reading = Reading { status, is_steering, ..Reading::default() };
            let forwards = of_metric(&reading, catalog::PORT_FORWARDING);
            assert_eq!(forwards, [(labels(["a"]), flag(is_steering))]);
        }
    }

    #[test]
    fn a_counter_does_not_decrease_unless_it_begins_anew() {
        let mut last = LastCounts::default();
        let mut kept = |count| {
            let samples = vec![(labels(["LOCAL"]), Value::Count(count))];
            let mut families = [Family { metric: catalog::PUNTS, samples }];
            last.keep(&mut families);
            families[0].samples[0].1.clone()
        };
        for (count, expected) in [(100, 100), (98, 100), (99, 100), (101, 101), (3, 3), (4, 4)] {
            assert_eq!(kept(count), Value::Count(expected));
        }
    }
}
