//! Answers to the control socket.

use std::time::Duration;

use super::Daemon;
use super::crossroads::{sends_by, worker_of};
use super::port::State;
use super::relay::Pending;
use crate::control::api::show;
use crate::control::api::{
    self, Counters, DropsReport, MirrorStatus, NamedCount, Object, PortReport, PortStatus, Request,
    Response, StatReport, StatusReport, WorkerPort, WorkerReport, WorkerStatus,
};
use crate::control::mirror::state::Family;
use crate::io::af_xdp::XdpStatistics;
use crate::stats::{Cost, Counter, DropReason, Mib, PortStats, PuntReason, WorkerStats};
use crate::worker::poll::FrameCensus;

/// A worker answers between two turns; one that does not is asleep or stopping.
const WORKER_TIMEOUT: Duration = Duration::from_millis(500);

impl Daemon {
    /// The answer to a request.
    pub(super) fn report(&mut self, pending: &Pending) -> Response {
        match &pending.request {
            Request::Status => Response::Status(self.status()),
            Request::Stat => Response::Stat(self.stat()),
            Request::Drops => Response::Drops(self.drops()),
            Request::Capture(_) => Response::error("a capture is no report"),
            Request::Latency { reset } => Response::Latency(self.latency(*reset)),
            Request::Show(request) if request.details && request.object == Object::Link => {
                Response::Rendered(self.detailed_links(request, &pending.details))
            }
            Request::Show(request) => Response::Rendered(show::show(self.mirror.state(), request)),
            Request::RouteGet(request) => {
                match show::get(self.mirror.state(), &self.mirror.tables(), request) {
                    Ok(rendered) => Response::Rendered(rendered),
                    Err(message) => Response::error(message),
                }
            }
        }
    }

    fn state(&self) -> api::State {
        let active = self.ports.iter().filter(|port| port.state == State::Active).count();
        if self.stopping {
            api::State::Stopping
        } else if active == 0 {
            api::State::Starting
        } else if self.ports.iter().any(|port| !port.matched && port.state != State::Active)
            || !self.steering_allowed()
        {
            api::State::Degraded
        } else {
            api::State::Forwarding
        }
    }

    fn status(&self) -> StatusReport {
        let links = self.links();
        let port = |port: &super::Port| PortStatus {
            ifname: port.ifname.clone(),
            matched: port.matched,
            ifindex: port.ifindex,
            state: match links.ifindex(port.ifindex) {
                Some(link) if !link.up && port.state == State::Active => {
                    if self.is_up(link.ifindex) { "no carrier" } else { "down" }.to_owned()
                }
                _ => port.state.describe().to_owned(),
            },
            xdp_mode: port.program.as_ref().map_or(String::new(), |p| p.mode().to_string()),
            bind_mode: port.bind_mode.map_or(String::new(), |mode| mode.to_string()),
            queues: port.queues,
            mtu: links.ifindex(port.ifindex).map_or(0, |link| link.mtu),
            vlans: links
                .iter()
                .filter(|link| link.vlan.is_some() && link.port == Some(port.index))
                .map(|link| link.name.clone())
                .collect(),
        };
        let worker = |(n, cpu): (usize, &Option<usize>)| {
            let stats = &self.workers[n].stats;
            WorkerStatus {
                worker: n as u32,
                cpu: cpu.map(|cpu| cpu as u32),
                ports: self.worker_ports(n),
                loops: stats.turns.get(),
                busy_loops: stats.busy_turns.get(),
            }
        };
        StatusReport {
            state: self.state(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ports: self.listed().map(port).collect(),
            workers: self.cpus.iter().enumerate().map(worker).collect(),
            mirror: self.mirror_status(),
            warnings: self.warnings(),
        }
    }

    fn mirror_status(&self) -> MirrorStatus {
        let state = self.mirror.state();
        let counters = self.mirror.counters();
        let unmirrored = self.mirror.unmirrored();
        MirrorStatus {
            ready: true,
            generation: self.mirror.tables().generation,
            links: state.links.len() as u64,
            addrs: state.addrs.len() as u64,
            routes4: state.routes4.len() as u64,
            routes6: state.routes6.len() as u64,
            rules: (state.rules(Family::V4).len() + state.rules(Family::V6).len()) as u64,
            nexthops: state.nexthops.len() as u64,
            neighbours: state.neighs.len() as u64,
            resyncs: counters.resyncs,
            unmirrored: unmirrored.into_iter().map(|u| format!("{}: {}", u.what, u.why)).collect(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .bypassed
            .iter()
            .map(|what| {
                let then = if self.options.ignore_firewall {
                    "not applied to what passes through userspace (--ignore-firewall)"
                } else {
                    "everything is left to the kernel until it is gone"
                };
                format!("{what}: {then}")
            })
            .collect();
        warnings.extend(self.unknown_locals.clone());
        warnings.extend(self.unknown_vlans.clone());
        if self.punt_broken {
            warnings.push(format!("{} does not take frames", self.punter.device().name()));
        }
        let links = self.links();
        for port in &self.ports {
            let Some(link) = links.ifindex(port.ifindex) else { continue };
            for (family, on) in [("IPv4", link.forwarding4), ("IPv6", link.forwarding6)] {
                if !on {
                    warnings.push(format!("{family} forwarding is off on {}", link.name));
                }
            }
        }
        warnings.extend(self.ports.iter().filter_map(super::Port::unserved));
        let idle = self.listed().filter(|port| port.state != State::Active);
        warnings.extend(idle.map(|p| format!("interface {}: {}", p.ifname, p.state.describe())));
        warnings.extend(self.crowded.iter().map(|name| self.no_room(name)));
        warnings.extend(self.unmatched());
        warnings
    }

    /// That no interface matches.
    fn unmatched(&self) -> Option<String> {
        let interfaces = &self.options.interfaces;
        let none = interfaces.has_patterns() && !self.listed().any(|port| port.matched);
        let patterns = interfaces.patterns();
        none.then(|| format!("no interface that is up matches {patterns}; waiting for one"))
    }

    /// The ports there are for people.
    pub(super) fn listed(&self) -> impl Iterator<Item = &super::Port> {
        self.ports.iter().filter(|port| port.is_listed())
    }

    fn stat(&self) -> StatReport {
        let worker = |(n, handle): (usize, &super::WorkerHandle<super::AfXdp>)| {
            let stats = &handle.stats;
            WorkerReport {
                worker: n as u32,
                mib: named(Mib::ALL.iter().map(|m| m.name()), &stats.mib),
                drops: named(DropReason::ALL.iter().map(|r| r.name()), &stats.drops),
                punts: named(PuntReason::ALL.iter().map(|r| r.name()), &stats.punts),
                frames: handle.census(WORKER_TIMEOUT).map_or_else(Counters::new, frames),
                polling: polling(stats),
                ports: self.worker_ports(n),
                crossings: crossings(stats),
                cost: if self.options.account { cost(&stats.cost) } else { Counters::new() },
            }
        };
        let ports = self.listed().map(|port| self.port_report(port)).collect();
        StatReport { workers: self.workers.iter().enumerate().map(worker).collect(), ports }
    }

    /// What a worker does for each port that is served.
    fn worker_ports(&self, worker: usize) -> Vec<WorkerPort> {
        let active = self.ports.iter().filter(|port| port.state == State::Active);
        let served = |queue: &u32| worker_of(*queue, self.workers.len()) == worker;
        let port = |port: &super::Port| WorkerPort {
            ifname: port.ifname.clone(),
            queues: (0..port.queues).filter(served).collect(),
            sends_by: sends_by(worker, port.senders) as u32,
        };
        active.map(port).collect()
    }

    fn port_report(&self, port: &super::Port) -> PortReport {
        let mut counters = Counters::new();
        let mut driver = Counters::new();
        for worker in &self.workers {
            for (slot, stats) in worker.stats.slots_of(port.index, self.max_ports) {
                add(&mut counters, &port_counters(stats));
                let statistics = worker.call(WORKER_TIMEOUT, move |io, _, _| io.statistics(slot));
                add(
                    &mut driver,
                    &statistics.and_then(Result::ok).map_or_else(Counters::new, named_statistics),
                );
            }
        }
        let mut xdp = Counters::new();
        let queues = port.program.as_ref().and_then(|p| p.counters(port.queues).ok());
        for queue in queues.into_iter().flatten() {
            for (reason, count) in xdp_prog::Reason::ALL.iter().zip(queue) {
                *xdp.entry(reason.name().to_owned()).or_default() += count;
            }
        }
        PortReport { ifname: port.ifname.clone(), counters, driver, xdp }
    }

    fn drops(&self) -> DropsReport {
        let total = |of: &dyn Fn(&WorkerStats) -> u64| -> u64 {
            self.workers.iter().map(|worker| of(&worker.stats)).sum()
        };
        let row = |name: &str, help: &str, count| NamedCount {
            reason: name.to_owned(),
            count,
            help: help.to_owned(),
        };
        let drops = DropReason::ALL.iter().map(|&reason| {
            row(reason.name(), reason.help(), total(&|s| s.drops[reason as usize].get()))
        });
        let punts = PuntReason::ALL.iter().map(|&reason| {
            row(reason.name(), reason.help(), total(&|s| s.punts[reason as usize].get()))
        });
        DropsReport { drops: drops.collect(), punts: punts.collect() }
    }

    /// One line for the log at the start.
    pub(super) fn summary(&self) -> String {
        let port = |port: &super::Port| {
            let program = port.program.as_ref().map_or(String::new(), |p| p.mode().to_string());
            let bind = port.bind_mode.map_or(String::new(), |mode| mode.to_string());
            format!("{} ({program} XDP, {bind}, {} queue(s))", port.ifname, port.queues)
        };
        let active = self.ports.iter().filter(|port| port.state == State::Active);
        let ports: Vec<String> = active.map(port).collect();
        let workers = self.workers.len();
        match self.unmatched() {
            Some(why) if ports.is_empty() => why,
            _ => format!("forwarding between {} with {workers} worker(s)", ports.join(", ")),
        }
    }

    /// One line for the log at the end.
    pub(super) fn totals(&self) -> String {
        let sum = |of: &dyn Fn(&PortStats) -> u64| -> u64 {
            self.workers.iter().flat_map(|w| w.stats.ports.iter()).map(of).sum()
        };
        let drops: u64 = self.workers.iter().map(|w| w.stats.drops_total()).sum();
        let [received, sent, punted] = self.retired;
        let refused = match self.punter.lost() {
            0 => String::new(),
            lost => format!("; of those to the kernel {lost} were not taken"),
        };
        format!(
            "stopped; received {}, sent {}, to the kernel {}, dropped {drops}{refused}",
            received + sum(&|p| p.rx_packets.get()),
            sent + sum(&|p| p.tx_packets.get()),
            punted + sum(&|p| p.punted.get()),
        )
    }
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

fn crossings(stats: &WorkerStats) -> Counters {
    let entry = |name: &str, counter: &Counter| (name.to_owned(), counter.get());
    Counters::from([
        entry("crossed_out", &stats.crossed_out),
        entry("crossed_in", &stats.crossed_in),
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

fn named<'a>(names: impl Iterator<Item = &'a str>, counters: &[Counter]) -> Counters {
    names.zip(counters).map(|(name, counter)| (name.to_owned(), counter.get())).collect()
}

pub(super) fn port_counters(stats: &PortStats) -> Counters {
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
    [
        ("rx_packets", rx_packets),
        ("rx_bytes", rx_bytes),
        ("tx_packets", tx_packets),
        ("tx_bytes", tx_bytes),
        ("rx_dropped", rx_dropped),
        ("tx_dropped", tx_dropped),
        ("punted", punted),
    ]
    .into_iter()
    .map(|(name, counter)| (name.to_owned(), counter.get()))
    .collect()
}

pub(super) fn add(sum: &mut Counters, part: &Counters) {
    for (name, count) in part {
        *sum.entry(name.clone()).or_default() += count;
    }
}

fn frames(census: FrameCensus) -> Counters {
    [
        ("total", census.total),
        ("free", census.free),
        ("fill_and_rx", census.fill_and_rx),
        ("tx_and_completion", census.tx_and_completion),
        ("draining", census.draining),
        ("held", census.held),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count as u64))
    .collect()
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
