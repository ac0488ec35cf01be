//! What clients' threads see of the daemon: a snapshot of its state, published by the control thread, and
//! what is shared with the workers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use xdp_prog::QueueCounters;

use super::Supervisor;
use super::capture::Captures;
use super::events::Events;
use super::flows::FlowFollower;
use super::latency::Baseline;
use super::offload::Offloads;
use super::ports::{sends_by, worker_of};
use super::trace::RunningTraces;
use crate::control::api::{self, MirrorStatus, PortStatus, StatusReport, WorkerPort, WorkerStatus};
use crate::control::config::offload::OffloadMode;
use crate::control::mirror::state::Family;
use crate::control::steering::QueueCounts;
use crate::fib::Reader;
use crate::io::Driver;
use crate::io::af_xdp::{BoundMode, HeartbeatPage, is_fresh};
use crate::netfilter::Hooks;
use crate::netfilter::conntrack::FlowTable;
use crate::netfilter::nft::{Nft, Tracking};
use crate::tables::{Forwarding6, Published, Tables};
use crate::worker::WorkerHandle;
use crate::worker::clock::monotonic_ns;
use crate::worker::poll::PollMode;

/// The control thread has a turn every 100 ms; after this long without one, `status` reports it.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(1);
/// The list of what is not mirrored may take a fifth of the time. With many routes, making it may take
/// milliseconds.
const UNMIRRORED_REST: u32 = 4;

/// The daemon's state as clients' threads see it.
pub(super) struct View {
    pub(super) started: Instant,
    snapshot: ArcSwap<Snapshot>,
    /// Milliseconds from the start to the control thread's last turn; 0: none yet.
    turned_ms: AtomicU64,
    /// The tables that workers use.
    pub(super) tables: Arc<Published<Tables>>,
    /// The reader with which clients' threads read the tables.
    pub(super) reader: Mutex<Reader>,
    /// Counter values from which the latency histograms count.
    pub(super) baseline: ArcSwap<Baseline>,
    pub(super) captures: Captures,
    pub(super) traces: RunningTraces,
    pub(super) events: Events,
}

/// The control thread's state when the snapshot was made.
pub(super) struct Snapshot {
    /// Without the workers' counters, and without what the client's thread finds out itself.
    pub(super) status: StatusReport,
    pub(super) started: Instant,
    /// By number, including those that are not listed.
    pub(super) ports: Vec<PortView>,
    pub(super) workers: Arc<[WorkerHandle<Driver>]>,
    pub(super) cpus: Vec<Option<usize>>,
    pub(super) max_ports: u16,
    pub(super) account: bool,
    pub(super) latency_sample: u32,
    pub(super) poll: PollMode,
    /// Descriptors of the RX and TX rings.
    pub(super) rings: [u32; 2],
    /// The hook functions that workers run.
    pub(super) hooks: Arc<Published<Hooks>>,
    /// The nftables ruleset that workers apply.
    pub(super) nft: Option<Arc<Nft>>,
    /// The flows that workers carry, once the ruleset has tracked connections.
    pub(super) flows: Option<Arc<FlowTable>>,
    /// The flows that the XDP program forwards by itself, with `--offload`.
    pub(super) offloads: Option<Arc<Offloads>>,
    /// The heartbeats of workers and of the control thread; `None`: there are none yet.
    pub(super) heartbeats: Option<Arc<HeartbeatPage>>,
    /// After this time without a heartbeat of the control thread, the kernel forwards everything.
    pub(super) control_timeout: Duration,
    /// Packets may be steered to userspace.
    pub(super) is_steering: bool,
    /// Number of events that it includes.
    pub(super) events: u64,
}

/// A port.
#[derive(Clone)]
pub(super) struct PortView {
    pub(super) index: u16,
    pub(super) ifname: String,
    pub(super) is_listed: bool,
    pub(super) is_active: bool,
    pub(super) state: String,
    pub(super) queues: u32,
    pub(super) tx_queues: u32,
    pub(super) bind_mode: Option<BoundMode>,
    pub(super) xdp_mode: String,
    pub(super) no_zerocopy: Option<String>,
    pub(super) multi_buffer: bool,
    /// The program's counters, which clients' threads read themselves, and its number of queues.
    pub(super) counts: Option<(QueueCounts, u32)>,
    /// Counts of the programs attached before it.
    pub(super) counted_before: QueueCounters,
}

/// Routes and rules that are not mirrored.
#[derive(Default)]
pub(super) struct Unmirrored {
    list: Vec<String>,
    /// State of the mirror when the list was made: generation, events, resyncs.
    of: (u64, u64, u64),
    /// The list is not made again before this.
    rests_until: Option<Instant>,
}

impl View {
    pub(super) fn new(tables: Arc<Published<Tables>>, reader: Reader, first: Snapshot) -> View {
        reader.offline();
        View {
            started: first.started,
            snapshot: ArcSwap::from_pointee(first),
            turned_ms: AtomicU64::new(0),
            tables,
            reader: Mutex::new(reader),
            baseline: ArcSwap::from_pointee(Baseline::new()),
            captures: Captures::new(),
            traces: RunningTraces::default(),
            events: Events::default(),
        }
    }

    /// The newest snapshot.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Notes that the control thread begins or ends a turn.
    pub(super) fn has_turned(&self) {
        self.turned_ms.store((self.started.elapsed().as_millis() as u64).max(1), Relaxed);
    }

    /// Whether the control thread has had a turn.
    pub(super) fn has_served(&self) -> bool {
        self.turned_ms.load(Relaxed) != 0
    }

    /// How long the control thread has had no turn; `None`: it has not had any.
    pub(super) fn turned_ago(&self) -> Option<Duration> {
        let turned = Some(self.turned_ms.load(Relaxed)).filter(|ms| *ms != 0)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(turned)))
    }

    /// The same, if that is too long.
    pub(super) fn stalled(&self) -> Option<Duration> {
        self.turned_ago().filter(|ago| *ago >= STALLED_AFTER)
    }
}

/// The warning while the control thread's heartbeat is too old. Its text does not change while it is.
pub(super) fn control_silent(timeout: Duration) -> String {
    format!(
        "control thread: the kernel's changes have not been followed for more than {} ms; the kernel forwards until they are",
        timeout.as_millis()
    )
}

impl Snapshot {
    /// The snapshot before there is any state.
    pub(super) fn starting(options: &super::RunOptions) -> Snapshot {
        Snapshot {
            status: StatusReport {
                state: api::State::Starting,
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                driver: options.driver.to_string(),
                uptime_seconds: 0,
                ports: Vec::new(),
                workers: Vec::new(),
                mirror: MirrorStatus::default(),
                carried_flows: None,
                offloaded_flows: None,
                ipsec_policies: None,
                ipsec_sas: None,
                warnings: Vec::new(),
            },
            started: Instant::now(),
            ports: Vec::new(),
            workers: Arc::new([]),
            cpus: Vec::new(),
            max_ports: 0,
            account: options.account,
            latency_sample: options.latency_sample,
            poll: options.poll,
            rings: [options.rx_ring, options.tx_ring],
            hooks: Arc::new(Published::new(Arc::default())),
            nft: None,
            flows: None,
            offloads: None,
            heartbeats: None,
            control_timeout: options.timeouts.control,
            is_steering: false,
            events: 0,
        }
    }

    /// Whether the kernel forwards everything because the control thread's heartbeat is missing or too old: it does not
    /// run, or does not keep up with the kernel's changes.
    pub(super) fn is_control_silent(&self) -> bool {
        let timeout_ns = self.control_timeout.as_nanos() as u64;
        let page = self.heartbeats.as_ref();
        !page.is_some_and(|page| is_fresh(page.control(), monotonic_ns(), timeout_ns))
    }

    /// The ports that are shown to users.
    pub(super) fn listed(&self) -> impl Iterator<Item = &PortView> {
        self.ports.iter().filter(|port| port.is_listed)
    }

    /// What a worker does for each served port.
    pub(super) fn worker_ports(&self, worker: usize) -> Vec<WorkerPort> {
        let served = |queue: &u32| worker_of(*queue, self.workers.len()) == worker;
        let port = |port: &PortView| WorkerPort {
            ifname: port.ifname.clone(),
            queues: (0..port.queues).filter(served).collect(),
            sends_by: sends_by(worker, port.tx_queues) as u32,
        };
        self.ports.iter().filter(|port| port.is_active).map(port).collect()
    }
}

impl Supervisor {
    /// Publishes a snapshot with everything that may have changed.
    pub(super) fn publish_report(&mut self) {
        self.renew_unmirrored();
        self.publish();
    }

    /// Publishes a snapshot; the list of what is not mirrored may be an older one.
    pub(super) fn publish(&mut self) {
        let handles = self.clients.view.snapshot();
        let workers = match handles.workers.len() == self.workers.handles().len() {
            true => Arc::clone(&handles.workers),
            false => self.workers.handles().iter().cloned().collect(),
        };
        let mut snapshot = Snapshot {
            status: self.status(),
            started: self.clients.view.started,
            ports: self.ports.iter().map(port_view).collect(),
            workers,
            cpus: self.workers.cpus().to_vec(),
            max_ports: self.ports.max_ports(),
            account: self.options.account,
            latency_sample: self.options.latency_sample,
            poll: self.options.poll,
            rings: [self.options.rx_ring, self.options.tx_ring],
            hooks: Arc::clone(self.hooks.published()),
            nft: self.hooks.nft().cloned(),
            flows: self.flows.as_ref().map(|flows| Arc::clone(flows.table())),
            offloads: self.offload.as_ref().map(|it| Arc::clone(it.offloads())),
            heartbeats: Some(Arc::clone(self.steering_state.heartbeats())),
            control_timeout: self.options.timeouts.control,
            is_steering: !self.stopping && self.steering_allowed(),
            events: self.clients.view.events.count(),
        };
        let worker = |(n, cpu): (usize, &Option<usize>)| WorkerStatus {
            worker: n as u32,
            cpu: cpu.map(|cpu| cpu as u32),
            ports: snapshot.worker_ports(n),
            ..WorkerStatus::default()
        };
        snapshot.status.workers = snapshot.cpus.iter().enumerate().map(worker).collect();
        self.clients.view.snapshot.store(Arc::new(snapshot));
    }

    fn status(&self) -> StatusReport {
        let links = self.links();
        let mut vlans = vec![Vec::new(); self.ports.len()];
        for link in links.iter().filter(|link| link.vlan.is_some()) {
            if let Some(of) = link.port.and_then(|port| vlans.get_mut(usize::from(port))) {
                of.push(link.name.clone());
            }
        }
        let port = |port: &super::ports::Port| PortStatus {
            ifname: port.ifname.clone(),
            matched: port.matched,
            ifindex: port.ifindex(),
            state: match links.ifindex(port.ifindex()) {
                Some(link) if !link.up && port.is_active() => {
                    if self.is_up(link.ifindex) { "no carrier" } else { "down" }.to_owned()
                }
                _ => port.describe().to_owned(),
            },
            xdp_mode: port.program().map_or(String::new(), |p| p.mode().to_string()),
            bind_mode: port.bind_mode().map_or(String::new(), |mode| mode.to_string()),
            queues: port.queues(),
            mtu: links.ifindex(port.ifindex()).map_or(0, |link| link.mtu),
            vlans: vlans.get(usize::from(port.index)).cloned().unwrap_or_default(),
        };
        StatusReport {
            state: self.state(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: self.options.driver.to_string(),
            uptime_seconds: 0,
            ports: self.ports.listed().map(port).collect(),
            workers: Vec::new(),
            mirror: self.mirror_status(),
            carried_flows: self.carried_flows(),
            offloaded_flows: self.offload.as_ref().map(|it| it.offloads().len() as u64),
            ipsec_policies: Some(self.mirror.tables().xfrm.len() as u64).filter(|len| *len > 0),
            ipsec_sas: self.ipsec_sas(),
            warnings: self.warnings(),
        }
    }

    /// Number of connections that workers carry, if the ruleset tracks connections.
    fn carried_flows(&self) -> Option<u64> {
        let is_tracked = self.hooks.nft()?.program().tracking() != [Tracking::Off; 2];
        self.flows.as_ref().filter(|_| is_tracked).map(FlowFollower::carried)
    }

    pub(super) fn state(&self) -> api::State {
        let active = self.ports.iter().filter(|port| port.is_active()).count();
        if self.stopping {
            api::State::Stopping
        } else if active == 0 {
            api::State::Starting
        } else if self.ports.iter().any(|port| !port.matched && !port.is_active())
            || self.ports.has_named_without_number(&self.options)
            || !self.steering_allowed()
        {
            api::State::Degraded
        } else {
            api::State::Forwarding
        }
    }

    fn mirror_status(&self) -> MirrorStatus {
        let state = self.mirror.state();
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
            resyncs: self.mirror.counters().resyncs,
            corrections: self.mirror.counters().corrections,
            unmirrored: self.clients.unmirrored.list.clone(),
            stalled_ms: None,
        }
    }

    fn renew_unmirrored(&mut self) {
        let counters = self.mirror.counters();
        let of = (self.mirror.tables().generation, counters.events, counters.resyncs);
        let begun = Instant::now();
        let rests = self.clients.unmirrored.rests_until.is_some_and(|until| begun < until);
        if rests || of == self.clients.unmirrored.of {
            return;
        }
        let list = self.mirror.unmirrored().into_iter();
        self.clients.unmirrored = Unmirrored {
            list: list.map(|u| format!("{}: {}", u.what, u.why)).collect(),
            of,
            rests_until: Some(Instant::now() + begun.elapsed() * UNMIRRORED_REST),
        };
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
        if self.ruleset_pending {
            warnings.push(
                "nftables: the ruleset is being read; everything is left to the kernel until then"
                    .into(),
            );
        }
        let flowtables = self.hooks.nft().into_iter().flat_map(|nft| nft.ruleset().flowtables());
        warnings.extend(flowtables.map(|name| {
            format!(
                "nftables: flowtable {name}: connections that rules add to it (flow add) are left to the \
                 kernel; delete these rules and the flowtable, and userspace carries them"
            )
        }));
        warnings.extend(self.steering_state.warnings().cloned());
        warnings.extend(self.mirror.not_followed());
        if self.options.offload.mode == OffloadMode::On {
            warnings.extend(self.offload.iter().flat_map(|offload| offload.offloads().warnings()));
        }
        if self.punter.is_broken() {
            warnings.push(format!("{} does not take frames", self.punter.device().name()));
        }
        let links = self.links();
        for port in self.ports.iter() {
            let Some(link) = links.ifindex(port.ifindex()) else { continue };
            for (family, on) in
                [("IPv4", link.forwarding4), ("IPv6", link.forwarding6 != Forwarding6::Off)]
            {
                if !on {
                    warnings.push(format!("{family} forwarding is off on {}", link.name));
                }
            }
        }
        warnings.extend(self.ports.iter().filter_map(super::ports::Port::unserved));
        let idle = self.ports.listed().filter(|port| !port.is_active());
        warnings.extend(idle.map(|p| format!("interface {}: {}", p.ifname, p.describe())));
        warnings.extend(self.ports.without_room(&self.options));
        warnings.extend(self.unmatched());
        warnings
    }

    /// The message if no interface matches.
    pub(super) fn unmatched(&self) -> Option<String> {
        let interfaces = &self.options.interfaces;
        let none = interfaces.has_patterns() && !self.ports.listed().any(|port| port.matched);
        let patterns = interfaces.patterns();
        none.then(|| format!("no interface that is up matches {patterns}; waiting for one"))
    }
}

fn port_view(port: &super::ports::Port) -> PortView {
    let (counts, counted_before) = port.xdp_counts();
    PortView {
        index: port.index,
        ifname: port.ifname.clone(),
        is_listed: port.is_listed(),
        is_active: port.is_active(),
        state: port.describe().to_owned(),
        queues: port.queues(),
        tx_queues: port.tx_queues(),
        bind_mode: port.bind_mode(),
        xdp_mode: port.program().map_or(String::new(), |p| p.mode().to_string()),
        no_zerocopy: port.no_zerocopy().map(str::to_owned),
        multi_buffer: port.multi_buffer(),
        counts,
        counted_before,
    }
}
