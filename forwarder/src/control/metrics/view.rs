//! A reading as JSON, for the page: `/api/v1/overview`.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::reading::Reading;
use crate::control::api::{Counters, NamedCount, PairLatency, PortStatus};
use crate::histogram::{self, Summary};

/// Pairs of ports that are shown.
const PAIRS_MAX: usize = 16;
/// Warnings that are shown.
const WARNINGS_MAX: usize = 32;
/// The percentiles of a curve.
const PERCENTILES: [f64; 17] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 80.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99,
    99.999, 100.0,
];

/// What the page shows. Rates are the differences of two answers.
#[derive(Debug, Serialize)]
pub struct Overview<'a> {
    version: &'a str,
    driver: &'a str,
    state: &'a str,
    /// Seconds since the start: the time of the counters.
    uptime_s: f64,
    warnings: Vec<&'a str>,
    warnings_left_out: usize,
    ports: Vec<PortView<'a>>,
    workers: Vec<WorkerView>,
    packets: Counters,
    drops: Vec<&'a NamedCount>,
    punts: Vec<&'a NamedCount>,
    latency: LatencyView<'a>,
    offload: Option<&'a Counters>,
    carried_connections: Option<u64>,
    routes: [u64; 2],
    neighbours: u64,
}

#[derive(Debug, Serialize)]
struct PortView<'a> {
    #[serde(flatten)]
    status: &'a PortStatus,
    is_up: bool,
    counters: Option<&'a Counters>,
    /// Frames that found no room in a socket; `None`: it has none, or a worker did not answer in time.
    missed: Option<u64>,
}

#[derive(Debug, Serialize)]
struct WorkerView {
    worker: u32,
    cpu: Option<u32>,
    /// Seconds without packets.
    idle_s: f64,
    received: u64,
    heartbeat_age_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct LatencyView<'a> {
    /// One frame in this many is measured; 0: none.
    sample: u32,
    /// Seconds since the start or the last reset.
    age_s: f64,
    pairs: Vec<PairView<'a>>,
    pairs_left_out: usize,
}

#[derive(Debug, Serialize)]
struct PairView<'a> {
    iif: &'a str,
    oif: &'a str,
    summary: Summary,
    /// Percentile, nanoseconds.
    curve: Vec<(f64, u64)>,
}

impl Overview<'_> {
    /// Of a reading. `None`: nothing is known yet.
    pub fn of(reading: &Reading) -> Option<Overview<'_>> {
        let status = reading.status.as_ref()?;
        let port = |status| port(reading, status);
        let worker = |(at, worker): (usize, &crate::control::api::WorkerReport)| WorkerView {
            worker: worker.worker,
            cpu: status.workers.get(at).and_then(|worker| worker.cpu),
            idle_s: worker.polling.get("idle_ns").copied().unwrap_or(0) as f64 / 1e9,
            received: worker.packets.get("received").copied().unwrap_or(0),
            heartbeat_age_s: reading
                .heartbeats
                .workers
                .get(at)
                .copied()
                .flatten()
                .map(|age| age.as_secs_f64()),
        };
        Some(Overview {
            version: &status.version,
            driver: &status.driver,
            state: status.state.name(),
            uptime_s: reading.uptime.as_secs_f64(),
            warnings: status.warnings.iter().take(WARNINGS_MAX).map(String::as_str).collect(),
            warnings_left_out: status.warnings.len().saturating_sub(WARNINGS_MAX),
            ports: status.ports.iter().map(port).collect(),
            workers: reading.stat.workers.iter().enumerate().map(worker).collect(),
            packets: reading.stat.packets(),
            drops: reading.drops.iter().filter(|drop| drop.count > 0).collect(),
            punts: reading.punts.iter().filter(|punt| punt.count > 0).collect(),
            latency: latency(reading),
            offload: reading.stat.offload.as_ref().map(|offload| &offload.flows),
            carried_connections: status.carried_flows,
            routes: [status.mirror.routes4, status.mirror.routes6],
            neighbours: status.mirror.neighbours,
        })
    }
}

fn port<'a>(reading: &'a Reading, status: &'a PortStatus) -> PortView<'a> {
    let report = reading.stat.ports.iter().find(|port| port.ifname == status.ifname);
    let known = reading.ports.iter().find(|port| port.ifname == status.ifname);
    let missed = |name| report.and_then(|port| port.driver.get(name)).copied();
    PortView {
        status,
        is_up: known.is_some_and(|port| port.is_up),
        counters: report.map(|port| &port.counters),
        missed: missed("rx_ring_full").zip(missed("rx_dropped")).map(|(full, room)| full + room),
    }
}

fn latency(reading: &Reading) -> LatencyView<'_> {
    let report = &reading.latency;
    let frames = |pair: &PairLatency| pair.counts.iter().map(|(_, count)| count).sum::<u64>();
    let mut pairs: Vec<&PairLatency> = report.pairs.iter().collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse(frames(pair)));
    pairs.truncate(PAIRS_MAX);
    LatencyView {
        sample: report.sample,
        age_s: report.age_us as f64 / 1e6,
        pairs: pairs.into_iter().map(pair).collect(),
        pairs_left_out: report.pairs.len().saturating_sub(PAIRS_MAX),
    }
}

fn pair(pair: &PairLatency) -> PairView<'_> {
    let mut histogram: Histogram<u64> = histogram::histogram();
    for &(value, count) in &pair.counts {
        histogram.saturating_record_n(value, count);
    }
    let curve = PERCENTILES.map(|p| (p, histogram.value_at_quantile((p / 100.0).next_down())));
    PairView {
        iif: &pair.iif,
        oif: &pair.oif,
        summary: Summary::of(&histogram),
        curve: curve.to_vec(),
    }
}
