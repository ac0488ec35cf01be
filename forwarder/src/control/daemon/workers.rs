//! The workers: their number, capacity, start and end.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{error, warn};

use super::Supervisor;
use super::offload::{OffloadPort, Offloader, Offloads};
use super::ports::{Port, worker_of};
use crate::control::config::{CpuList, QUEUES_MAX};
use crate::control::mirror::Mirror;
use crate::control::netdev::nic::{self, Queues};
use crate::control::process::threads::join_until;
use crate::control::process::{limits, privilege};
use crate::control::steering::XdpMode;
use crate::io::Driver;
use crate::io::af_xdp::{BoundMode, Options, RingSizes};
use crate::netfilter::NetHooks;
use crate::pipeline::PipelineState;
use crate::stats::WorkerStats;
use crate::worker::clock::Clock;
use crate::worker::poll::{Parts, PollMode, WorkerFrames};
use crate::worker::slow_path::{NeighRequests, PuntQueue, slow_path};
use crate::worker::{HeartbeatTimeouts, Liveness, Residence, Worker, WorkerHandle, affinity};

/// Queues that a port added later may have, if those at the start do not have more.
const LATE_QUEUES: u32 = 8;

/// Neighbours requested from the kernel for one worker before netlink is read again.
const NEIGHBOURS_PER_TURN: usize = 32;

/// The workers that have been started, by number.
pub(super) struct WorkerSet {
    handles: Vec<WorkerHandle<Driver>>,
    threads: Vec<JoinHandle<WorkerFrames>>,
    cpus: Vec<Option<usize>>,
    neigh_requests: Vec<NeighRequests>,
    /// The workers hand the packets in their rings back to the kernel, which filters them.
    hand_back: Arc<AtomicBool>,
    /// How long heartbeats are valid, for workers.
    timeouts: Arc<HeartbeatTimeouts>,
    /// Packets of a flow after which workers offer it to the XDP program.
    threshold: Arc<AtomicU16>,
    /// Seed of the flow hash, the same for all workers.
    hash_seed: u64,
}

impl Default for WorkerSet {
    fn default() -> WorkerSet {
        WorkerSet {
            handles: Vec::new(),
            threads: Vec::new(),
            cpus: Vec::new(),
            neigh_requests: Vec::new(),
            hand_back: Arc::default(),
            timeouts: Arc::default(),
            threshold: Arc::default(),
            hash_seed: RandomState::new().hash_one("flows"),
        }
    }
}

impl WorkerSet {
    pub(super) fn handles(&self) -> &[WorkerHandle<Driver>] {
        &self.handles
    }

    /// The CPU that each is pinned to; `None`: not pinned.
    pub(super) fn cpus(&self) -> &[Option<usize>] {
        &self.cpus
    }

    /// Sets whether workers hand the packets in their rings to the kernel.
    pub(super) fn set_hand_back(&self, on: bool) {
        // With the hook functions that were published before.
        self.hand_back.store(on, Ordering::Release);
    }

    /// Sets how long workers' heartbeats and that of the control thread are valid, for workers.
    pub(super) fn set_timeouts(&self, timeouts: [Duration; 2]) {
        self.timeouts.set(timeouts);
    }

    /// Sets after how many packets workers offer a flow, at least 1.
    pub(super) fn set_threshold(&self, threshold: u16) {
        self.threshold.store(threshold.max(1), Ordering::Relaxed);
    }

    /// A worker whose thread has ended.
    pub(super) fn ended(&self) -> Option<usize> {
        self.threads.iter().position(JoinHandle::is_finished)
    }

    /// Asks the kernel to resolve neighbours that workers request, a limited number per worker and turn;
    /// workers repeat a request that is still needed.
    pub(super) fn resolve_neighbours(&self, mirror: &mut Mirror) -> Result<()> {
        for requests in &self.neigh_requests {
            for request in requests.iter().take(NEIGHBOURS_PER_TURN) {
                mirror.resolve(request.oif, request.addr)?;
            }
        }
        Ok(())
    }

    /// Makes the workers finish the packets that have arrived, and waits for that until `end`.
    pub(super) fn stop(&mut self, end: Instant) {
        self.handles.iter().for_each(WorkerHandle::stop);
        for (n, thread) in self.threads.drain(..).enumerate() {
            match join_until(thread, end) {
                Some(Ok(accounting)) if accounting.is_conserved() => {}
                Some(Ok(accounting)) => error!("worker {n} lost frames: {accounting:?}"),
                Some(Err(_)) => error!("worker {n} panicked; this is a bug"),
                None => error!("worker {n} did not stop in time; its packets are lost"),
            }
        }
    }
}

impl Supervisor {
    /// Starts one worker for each CPU of `--cpus`, or of those allowed, but no more than a port has queues
    /// unless ports with more may be added later.
    pub(super) fn start_workers(&mut self) -> Result<()> {
        let queues = self.queues()?;
        // Ports that a reload adds although no room was requested share the memory of the others.
        let has_patterns = self.options.interfaces.has_patterns();
        let more_may_come = has_patterns || self.options.max_ports.is_some();
        let timeouts = [self.options.timeouts.worker, self.options.timeouts.control];
        self.workers.set_timeouts(timeouts);
        self.workers.set_threshold(self.options.offload.threshold);
        let allowed = affinity::allowed_cpus();
        // `--queues` may exclude some.
        let limit = self.options.queues.unwrap_or(QUEUES_MAX);
        let most = queues.iter().map(|queues| queues.rx.min(limit)).max().unwrap_or(1) as usize;
        let options = Arc::clone(&self.options);
        let cpus = options.cpus.as_ref().map(CpuList::cpus);
        let most = if has_patterns && cpus.is_some() { limit as usize } else { most };
        let count = cpus.map_or(allowed.len(), <[usize]>::len).min(most);
        if let Some(idle) = cpus.and_then(|cpus| cpus.get(count..)).filter(|idle| !idle.is_empty())
        {
            warn!(
                "no port has more than {most} queue(s) to serve: there is no work for CPUs {idle:?}"
            );
        }
        let most = queues.iter().map(|queues| queues.rx_max.min(QUEUES_MAX)).max().unwrap_or(1);
        let most = if more_may_come { most.max(LATE_QUEUES) } else { most };
        let queues_per_worker = most.div_ceil(count as u32).max(1);
        let sockets = queues.iter().map(|queues| u64::from(queues.rx.min(limit))).sum();
        let needed = limits::descriptors_needed(queues.len() as u64, sockets, count as u64);
        if let Some(what) = limits::too_few_descriptors(needed) {
            warn!("{what}");
        }
        // The last one counts what is offloaded.
        self.hooks = NetHooks::new(count + usize::from(self.options.offload.is_on()));
        self.hooks.nf_register_net_hooks(self.own_hooks.iter().cloned());
        self.make_offloader(count)?;
        let mut punts = Vec::new();
        for n in 0..count {
            let cpu = match cpus {
                Some(cpus) => cpus.get(n).copied(),
                // The last CPUs first: the first one serves interrupts and everything else.
                None => Some(allowed[allowed.len() - 1 - n % allowed.len()]),
            };
            let served = |queues: &Queues| {
                (0..queues.rx.min(limit)).filter(|&q| worker_of(q, count) == n).count()
            };
            let served: Vec<usize> = queues.iter().map(served).collect();
            // Memory is for half of the maximum number of ports, or for those that exist if they are more:
            // if all are added, they share it.
            let to_come =
                usize::from(self.ports.max_ports()).div_ceil(2).saturating_sub(served.len());
            let late = usize::from(n < LATE_QUEUES as usize);
            let each = served.iter().copied().max().unwrap_or(0).max(late);
            let expected =
                served.iter().sum::<usize>() + to_come * each * usize::from(more_may_come);
            let (worker, handle, frames, requests) =
                self.make_worker(n, (count, queues_per_worker), expected)?;
            let busy = self.options.poll == PollMode::Busy;
            let thread = spawn(worker, n, cpu, busy)?;
            punts.push((frames, Arc::clone(&handle.stats)));
            self.workers.handles.push(handle);
            self.workers.threads.push(thread);
            self.workers.cpus.push(cpu);
            self.workers.neigh_requests.push(requests);
        }
        self.punter.start(punts)?;
        let (workers, cpus) = (self.workers.handles.clone(), self.workers.cpus.clone());
        let (options, wakeup) = (Arc::clone(&self.options), Arc::clone(&self.wakeup));
        self.ports.start(
            self.steering_state.attacher(),
            workers,
            cpus,
            queues_per_worker,
            options,
            wakeup,
        )
    }

    /// With `--offload`: the table of offloaded flows, and the thread that writes it.
    fn make_offloader(&mut self, workers: usize) -> Result<()> {
        if !self.options.offload.is_on() {
            return Ok(());
        }
        let steering = self.steering_state.steering();
        let epochs = Arc::new(steering.epochs()?);
        let table = steering.offload_table()?;
        let ports = usize::from(self.ports.max_ports());
        self.mirror.set_epochs(epochs);
        let tables = self.mirror.published();
        let failures = match steering.redirect_failures() {
            Ok(failures) => Some(Arc::new(failures)),
            Err(error) => {
                warn!(
                    "{error}: they count as sent, and flows stay offloaded to a port that refuses them"
                );
                None
            }
        };
        let offloads = Offloads::new(table, tables, ports, workers, failures.clone());
        let mut offload = Offloader::new(offloads, failures);
        offload
            .start(self.hooks.published().subscribe())
            .context("cannot start the thread fr-offload")?;
        self.offload = Some(offload);
        Ok(())
    }

    /// Tells the programs and the thread fr-offload which ports there are.
    pub(super) fn set_offload_ports(&mut self) -> Result<()> {
        let Some(offload) = &mut self.offload else { return Ok(()) };
        let steering = self.steering_state.steering();
        let links = &self.mirror.tables().links;
        let mut ports = Vec::new();
        for port in self.ports.iter_mut() {
            let (number, ifname) = (port.index, port.ifname.clone());
            let is_zerocopy = port.bind_mode() == Some(BoundMode::ZeroCopy);
            let Some(active) = port.active_mut() else {
                offload.set_tx_port(steering, number, None);
                continue;
            };
            let is_native = active.xdp_mode() == XdpMode::Native;
            let is_input = is_native && self.options.offload.mode.includes(is_zerocopy);
            let has_partial = links.port(number).is_none_or(|link| link.partial_csum);
            active.set_offload(is_input.then_some(number), has_partial)?;
            let ifindex = active.ifindex();
            // The interface may be gone, and its event not yet read.
            let is_native = is_native && offload.set_tx_port(steering, number, Some(ifindex));
            ports.push(OffloadPort { number, ifname, ifindex, is_input, is_native });
        }
        offload.offloads().set_vlans_of(self.steering_state.vlans_of());
        offload.offloads().set_ports(ports);
        Ok(())
    }

    /// Queues of each port.
    fn queues(&self) -> Result<Vec<Queues>> {
        let links = self.links();
        let queues = |port: &Port| {
            let link = links.named(&port.ifname);
            let link = link.with_context(|| format!("interface {} is gone", port.ifname))?;
            nic::queues(link.ifindex)
                .with_context(|| format!("{}: cannot read the number of its queues", port.ifname))
        };
        let queues = self.ports.iter().map(|port| (port.matched, queues(port)));
        // A matched interface may have gone meanwhile.
        let queues = queues.filter(|(matched, queues)| !matched || queues.is_ok());
        queues.map(|(_, queues)| queues).collect()
    }

    /// Worker `n` of `count`. It is expected to serve `expected` queues of all ports together, and can
    /// serve `queues_per_worker` of each.
    fn make_worker(
        &self,
        n: usize,
        (count, queues_per_worker): (usize, u32),
        expected: usize,
    ) -> Result<(Worker<Driver>, WorkerHandle<Driver>, PuntQueue, NeighRequests)> {
        let ports = self.ports.max_ports();
        let slots = usize::from(ports) * queues_per_worker as usize;
        let rings = RingSizes { fill: self.options.rx_ring, tx: self.options.tx_ring };
        let busy_poll_budget =
            (self.options.poll == PollMode::Busy).then_some(self.options.busy_budget);
        let options = Options { rings, busy_tries: 1, busy_poll_budget, ..Options::default() };
        let (io, pool) = Driver::with_slots(self.options.driver, slots, expected, &options)?;
        let (mut slow_path, frames, requests) =
            slow_path(self.punter.wakeup(), Arc::clone(&self.wakeup));
        let reader =
            self.mirror.qsbr().reader().context("more workers than readers of the tables")?;
        let residence = Residence::new(ports, self.options.latency_sample).with_context(|| {
            format!("no memory to measure latency between {ports} ports; use --latency-sample 0")
        })?;
        let clock = Clock::start();
        let queues = (0..xdp_prog::QUEUES_MAX).filter(|&q| worker_of(q as u32, count) == n);
        // No queue beyond that has a socket.
        let queues = queues.take(queues_per_worker as usize);
        let timeouts = Arc::clone(&self.workers.timeouts);
        let page = Arc::clone(self.steering_state.heartbeats());
        let hand_back = Arc::clone(&self.workers.hand_back);
        let liveness = Liveness::new(page, queues, timeouts, clock, hand_back);
        let mut state = PipelineState::new(RandomState::new().hash_one("worker"), count)
            .with_hash_seed(self.workers.hash_seed)
            .of_worker(n);
        if let Some(offload) = &self.offload {
            slow_path.set_offers(offload.offers());
            let ports = offload.offloads().ports();
            let threshold = Arc::clone(&self.workers.threshold);
            let seed = RandomState::new().hash_one("offload");
            state = state.with_offload(Arc::clone(ports), threshold, seed);
            offload.offloads().add_meter(state.meter(), clock);
        }
        let (mut worker, handle) = Worker::new(Parts {
            io,
            ports,
            pool,
            tables: self.mirror.published().subscribe(),
            hooks: self.hooks.published().subscribe(),
            reader,
            stats: Arc::new(WorkerStats::new(slots)),
            residence,
            state,
            slow_path,
            clock,
            liveness: Some(liveness),
        });
        worker.set_accounting(self.options.account);
        worker.set_poll_mode(self.options.poll);
        Ok((worker, handle, frames, requests))
    }
}

/// Starts a worker's thread and waits until it is pinned and has dropped its privileges. `busy`: it polls
/// queues itself.
fn spawn(
    worker: Worker<Driver>,
    n: usize,
    cpu: Option<usize>,
    busy: bool,
) -> Result<JoinHandle<WorkerFrames>> {
    let (pinned, result) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name(format!("fr-worker{n}")).spawn(move || {
        let pin = || cpu.map_or(Ok(()), affinity::pin_to).map_err(anyhow::Error::from);
        let outcome = privilege::confine_worker(busy).and_then(|()| pin());
        let failed = outcome.is_err();
        // The starter waits for this; if it has given up, the worker is not needed.
        if pinned.send(outcome).is_err() || failed {
            return WorkerFrames::default();
        }
        worker.run()
    });
    let thread = thread.context("cannot start a worker thread")?;
    result.recv().context("a worker thread ended at once")??;
    Ok(thread)
}
