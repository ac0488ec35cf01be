//! Readings for metrics, made on the thread of the metrics server: from the last published snapshot and shared counters.
//! The control thread is not asked; each worker is, for the statistics of its sockets.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Result;

use super::flow_list::{CONNECTIONS, FlowSource};
use super::relay::Relay;
use super::snapshot::{PortView, STALLED_AFTER, Snapshot, control_silent};
use crate::control::api::flow_filter::FlowFilter;
use crate::control::api::listen::Listening;
use crate::control::api::server::Server;
use crate::control::api::{State, StatusReport};
use crate::control::conntrack::Sysctls;
use crate::control::metrics::reading::{
    Conntrack, Heartbeats, NotOffloaded, PortReading, QueueReading, RuleCount,
};
use crate::control::metrics::samples::RULES_MAX;
use crate::control::metrics::{MetricsServer, MetricsSocket, Reading, Source};
use crate::control::xfrm::stat;
use crate::netfilter::nft::{CounterKind, Nft};
use crate::worker::clock::monotonic_ns;

/// Connections that are asked why they are not offloaded: some 10 ms at most.
const EXAMINED_MAX: usize = 1024;

/// The sockets that clients connect to.
pub(super) struct Sockets {
    pub(super) control: Listening,
    pub(super) metrics: Option<MetricsSocket>,
}

/// Their servers.
pub(super) struct Servers {
    _control: Server,
    _metrics: Option<MetricsServer>,
}

impl Sockets {
    /// A function that removes their files, for ending the process without dropping this.
    pub(super) fn remover(&self) -> impl FnOnce() + Send + 'static {
        let control = self.control.files.remover();
        let metrics = self.metrics.as_ref().map(MetricsSocket::remover);
        move || {
            control();
            if let Some(remove) = metrics {
                remove();
            }
        }
    }

    /// Starts answering.
    pub(super) fn serve(self, relay: Arc<Relay>) -> Result<Servers> {
        let metrics =
            self.metrics.map(|socket| MetricsServer::serve(socket, Arc::clone(&relay) as _));
        let _metrics = metrics.transpose()?;
        Ok(Servers { _control: Server::serve(self.control, relay)?, _metrics })
    }
}

impl Source for Relay {
    fn read(&self) -> Reading {
        let snapshot = self.view.snapshot();
        let heartbeats = self.heartbeats(&snapshot);
        let drops = snapshot.drops();
        let (rules, objects, rules_left_out) =
            snapshot.nft.as_deref().map(counters).unwrap_or_default();
        Reading {
            status: Some(with_stalls(
                snapshot.status.clone(),
                &heartbeats,
                snapshot.control_timeout,
            )),
            is_steering: snapshot.is_steering && !snapshot.is_control_silent(),
            uptime: snapshot.started.elapsed(),
            stat: snapshot.stat_shared(),
            drops: drops.drops,
            punts: drops.punts,
            latency: self.view.measured(&snapshot),
            ports: self.port_readings(&snapshot),
            heartbeats,
            rules,
            objects,
            rules_left_out,
            conntrack: conntrack(),
            not_offloaded: self.not_offloaded(&snapshot),
            xfrm_stat: xfrm_stat(),
        }
    }
}

impl Relay {
    fn port_readings(&self, snapshot: &Snapshot) -> Vec<PortReading> {
        let links = Arc::clone(&self.view.tables.load().links);
        let port = |port: &PortView| PortReading {
            ifname: port.ifname.clone(),
            is_up: links.named(&port.ifname).is_some_and(|link| link.up),
            queues: port.counts.as_ref().map_or_else(Vec::new, |(counts, queues)| {
                counts.queues(*queues).unwrap_or_default().iter().map(by_way).collect()
            }),
        };
        snapshot.listed().map(port).collect()
    }

    fn heartbeats(&self, snapshot: &Snapshot) -> Heartbeats {
        let now_ns = monotonic_ns();
        let age = |beat_ns: u64| {
            (beat_ns != 0).then(|| Duration::from_nanos(now_ns.saturating_sub(beat_ns)))
        };
        let Some(page) = &snapshot.heartbeats else { return Heartbeats::default() };
        // A worker's first queue has the worker's number.
        let worker = |worker| age(page.queue(worker).map_or(0, |word| word.load(Relaxed)));
        Heartbeats {
            turn: self.view.turned_ago(),
            control: age(page.control().load(Relaxed)),
            workers: (0..snapshot.workers.len()).map(worker).collect(),
        }
    }

    /// Why carried connections are not offloaded, asked of some of them.
    fn not_offloaded(&self, snapshot: &Snapshot) -> Option<NotOffloaded> {
        snapshot.offloads.as_ref()?;
        let table = snapshot.flows.clone()?;
        let source = FlowSource::new(self, FlowFilter::default());
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        let mut report = NotOffloaded::default();
        let views: Vec<_> = table.views(0).take(EXAMINED_MAX).collect();
        for part in views.chunks(CONNECTIONS) {
            for (row, _) in source.connections(part, true) {
                report.examined += 1;
                for direction in &row.directions {
                    if let Some(why) = &direction.forwarding.not_offloaded {
                        *reasons.entry(why.reason.key()).or_default() += 1;
                    }
                }
            }
        }
        report.directions = reasons.into_iter().collect();
        Some(report)
    }
}

/// Adds what the control thread cannot know: that it, or a worker, is stalled, or that its heartbeat is older than
/// `control_timeout`. Their texts do not change while they are, so that each is one series, and come first: they are the
/// cause, and the number of series is limited.
fn with_stalls(
    mut status: StatusReport,
    heartbeats: &Heartbeats,
    control_timeout: Duration,
) -> StatusReport {
    let is_stalled = |age: &Option<Duration>| age.is_some_and(|age| age >= STALLED_AFTER);
    let is_forwarding = matches!(status.state, State::Forwarding | State::Degraded);
    let is_silent = heartbeats.control.is_none_or(|age| age > control_timeout);
    let mut stalls = Vec::new();
    if is_stalled(&heartbeats.turn) {
        let seconds = STALLED_AFTER.as_secs();
        let text = format!(
            "control thread: no turn for more than {seconds} s; ports and tables are as of then"
        );
        stalls.push(text);
    } else if is_forwarding && is_silent {
        stalls.push(control_silent(control_timeout));
    }
    let workers = heartbeats.workers.iter().enumerate().filter(|(_, age)| is_stalled(age));
    stalls.extend(workers.map(|(n, _)| format!("worker {n} does not answer")));
    if status.state == State::Forwarding && !stalls.is_empty() {
        status.state = State::Degraded;
    }
    status.warnings.splice(..0, stalls);
    status
}

fn by_way(counts: &xdp_prog::QueueCounters) -> QueueReading {
    let mut queue = QueueReading::default();
    for (reason, count) in xdp_prog::Reason::ALL.iter().zip(counts) {
        let way = match (reason.is_steered(), reason.is_offloaded()) {
            (true, _) => &mut queue.userspace,
            (_, true) => &mut queue.offload,
            _ => &mut queue.kernel,
        };
        *way += count;
    }
    queue
}

/// The counters of rules, those with names, and how many are left out. Of a rule with several, the first.
fn counters(nft: &Nft) -> (Vec<RuleCount>, Vec<RuleCount>, u64) {
    let (mut rules, mut objects) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    let places = nft.program().counters();
    for (number, place) in places.iter().enumerate() {
        if seen.len() >= RULES_MAX {
            return (rules, objects, (places.len() - number) as u64);
        }
        let (chain, name, list) = match &place.kind {
            CounterKind::Rule { chain, handle, .. } => {
                (chain.as_str(), handle.to_string(), &mut rules)
            }
            CounterKind::Object(name) => ("", name.clone(), &mut objects),
        };
        if !seen.insert((place.table.as_str(), chain, name.clone())) {
            continue;
        }
        list.push(RuleCount {
            table: place.table.clone(),
            chain: chain.to_owned(),
            name,
            workers: nft.counted(number),
            kernel: (place.packets, place.octets),
        });
    }
    (rules, objects, 0)
}

fn conntrack() -> Option<Conntrack> {
    let Sysctls { count, max, .. } = Sysctls::read().ok()?;
    Some(Conntrack { entries: count.into(), entries_max: max.into() })
}

fn xfrm_stat() -> Vec<(String, u64)> {
    let file = fs::read_to_string(stat::PATH).unwrap_or_default();
    stat::counters(&file).map(|(_, name, count)| (name.to_owned(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::MirrorStatus;

    #[test]
    fn a_stalled_thread_is_a_warning_and_the_state_is_degraded() {
        let status = || StatusReport {
            state: State::Forwarding,
            pid: 1,
            version: String::new(),
            driver: String::new(),
            uptime_seconds: 0,
            ports: Vec::new(),
            workers: Vec::new(),
            mirror: MirrorStatus::default(),
            carried_flows: None,
            offloaded_flows: None,
            ipsec_policies: None,
            ipsec_sas: None,
            warnings: vec!["IPv6 forwarding is off on eth0".into()],
        };
        let (short, long) = (Some(Duration::from_millis(20)), Some(Duration::from_secs(3)));
        let heartbeats =
            |turn, workers: [_; 2]| Heartbeats { turn, control: short, workers: workers.into() };
        let with = |heartbeats| with_stalls(status(), &heartbeats, Duration::from_secs(1));
        let fine = with(heartbeats(short, [short, None]));
        assert_eq!((fine.state, fine.warnings.len()), (State::Forwarding, 1));
        let worker = with(heartbeats(short, [short, long]));
        assert_eq!(
            (worker.state, worker.warnings[0].as_str()),
            (State::Degraded, "worker 1 does not answer")
        );
        let control = with(heartbeats(long, [short, short]));
        assert_eq!(control.state, State::Degraded);
        assert!(control.warnings[0].starts_with("control thread: no turn for more than 1 s"));
        // It has turns, and does not keep up.
        for age in [long, None] {
            let late = with(Heartbeats { control: age, ..heartbeats(short, [short, short]) });
            assert_eq!((late.state, late.warnings.len()), (State::Degraded, 2));
            assert!(late.warnings[0].contains("have not been followed for more than 1000 ms"));
        }
    }
}
