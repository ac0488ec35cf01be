//! `ferroute run`: brings the parts up, keeps them in step with the kernel, takes them down.
//!
//! One control thread (this one) owns everything but the workers: the mirror, the ports, the slow
//! path, the answers to the control socket. It sleeps in poll(2) on netlink, signals and a bell.
//!
//! - [`port`]: one interface, from absent to active;
//! - [`queues`], [`crossroads`]: its queues, and which worker serves which;
//! - [`relay`]: requests of the control socket, brought to this thread;
//! - [`report`], [`show`], [`links`], [`latency`]: their answers;
//! - [`capture`]: copies of packets, on their way to those who asked.

/// A line on standard error, which may be gone: then it is lost, and nothing else.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "ferroute: {}", format_args!($($arg)*));
    }};
}

mod capture;
mod crossroads;
mod latency;
mod links;
mod port;
mod queues;
mod relay;
mod report;
mod show;

use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Receiver;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::capture::Captures;
use self::crossroads::{Crossroads, worker_of};
use self::latency::Baseline;
use self::port::{Equipment, Port, State};
use self::relay::{Pending, relay};
use super::api::Request;
use super::config::{CpuList, QUEUES_MAX, RunOptions};
use super::device::{irq, keep::RUN_DIR, poll};
use super::mirror::{Changes, Mirror, MirrorOptions};
use super::nic::{self, Queues};
use super::punt::PuntDevice;
use super::server::Server;
use super::xdp::Steering;
use super::{firewall, privilege};
use crate::io::af_xdp::{AfXdp, Options, RingSizes};
use crate::pipeline::PipelineState;
use crate::stats::WorkerStats;
use crate::tables::Links;
use crate::worker::poll::{FrameCensus, Parts, PollMode};
use crate::worker::slow_path::{Bell, SlowPathQueue, slow_path};
use crate::worker::{Residence, Worker, WorkerHandle, affinity};

/// A worker does what it is asked between two turns; one kept from its CPU, or that opens a socket,
/// may take a while.
const WORKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest sleep of the control thread: what has no notification (sysctls, time-outs) is looked at
/// this often at least.
const TICK: Duration = Duration::from_millis(100);
/// How often a busy queue is tried at the start, some 20 ms apart: after a restart the kernel may
/// still be letting go of it.
const BUSY_TRIES: u32 = 50;
/// The same for a queue that has come: forwarding goes on meanwhile.
const BUSY_TRIES_LATER: u32 = 5;
/// How often is looked at what no event tells of: rules that appear while we run must not be
/// bypassed, and a port that could not be served may be free.
const CHECK: Duration = Duration::from_secs(1);

/// Runs until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// What stands in the way of starting: privilege, interface, program, socket, firewall; each says
/// what to do. Later trouble with one port is reported by `status` and leaves it to the kernel.
pub fn run(options: RunOptions) -> Result<()> {
    privilege::require()?;
    let mut daemon = Daemon::start(options)?;
    let ended = daemon.serve();
    daemon.stop();
    ended
}

struct Daemon {
    options: RunOptions,
    started: Instant,
    signals: SignalFd,
    bell: Arc<Bell>,
    mirror: Mirror,
    steering: Steering,
    punt: PuntDevice,
    workers: Vec<WorkerHandle<AfXdp>>,
    threads: Vec<JoinHandle<FrameCensus>>,
    cpus: Vec<Option<usize>>,
    /// Most queues of one port that a worker can serve.
    rounds: u32,
    crossroads: Crossroads,
    slow_paths: Vec<SlowPathQueue>,
    ports: Vec<Port>,
    /// What nftables, iptables or XFRM would do and we do not; empty: nothing.
    bypassed: Vec<String>,
    checked: Instant,
    pending: Receiver<Pending>,
    server: Option<Server>,
    stopping: bool,
    /// Why a family's local addresses are not all in the XDP program's maps.
    unknown_locals: Option<String>,
    /// Why VLANs are not all in its maps.
    unknown_vlans: Option<String>,
    /// The TAP device does not take frames: the kernel gets everything until it does again.
    punt_broken: bool,
    /// Generation of the tables by which the programs were last told what to steer.
    steered: u64,
    /// Of the flow hash, the same for all workers.
    hash_seed: u64,
    /// Where the histograms of latency begin.
    baseline: Baseline,
    captures: Captures,
}

impl Daemon {
    fn start(options: RunOptions) -> Result<Daemon> {
        // Before any thread exists, so that every thread inherits the mask.
        let signals = take_signals()?;
        let bell = Bell::new().context("cannot create an eventfd")?;
        let bypassed = firewall::bypassed(&options.interfaces)
            .context("cannot read the firewall's rules, so it is not known what they are")?;
        if !bypassed.is_empty() && !options.ignore_firewall {
            bail!(
                "Ferroute would bypass rules that the kernel applies to forwarded packets:\n  {}\n\
                 remove them, or start with --ignore-firewall if they need not hold for the traffic \
                 between the ports",
                bypassed.join("\n  ")
            );
        }
        let mirror = Mirror::start(MirrorOptions::default())?;
        let steering = Steering::new()?;
        let punt = PuntDevice::open(&steering)?;
        let (relay, pending) = relay(Arc::clone(&bell));
        let ports = options.interfaces.iter().enumerate();
        let mut daemon = Daemon {
            started: Instant::now(),
            signals,
            bell,
            mirror,
            steering,
            punt,
            workers: Vec::new(),
            threads: Vec::new(),
            cpus: Vec::new(),
            rounds: 1,
            crossroads: Crossroads::new(0, 0)?,
            slow_paths: Vec::new(),
            ports: ports.map(|(n, name)| Port::new(n as u16, name)).collect(),
            bypassed,
            checked: Instant::now(),
            pending,
            server: None,
            stopping: false,
            unknown_locals: None,
            unknown_vlans: None,
            punt_broken: false,
            steered: 0,
            hash_seed: RandomState::new().hash_one("flows"),
            baseline: Baseline::new(),
            captures: Captures::new(),
            options,
        };
        daemon.refuse_unfit_interfaces()?;
        tell_leftovers(poll::restore_leftovers(Path::new(RUN_DIR)), "for polling");
        tell_leftovers(irq::restore_leftovers(Path::new(RUN_DIR)), "of interrupts");
        daemon.server = Some(Server::start(&daemon.options.control, Arc::new(relay))?);
        daemon.start_workers()?;
        // Rules may have come since they were looked at.
        daemon.watch_firewall()?;
        daemon.bring_up_ports(true)?;
        say!("{}", daemon.summary());
        Ok(daemon)
    }

    /// At the start, what cannot be served is the user's mistake; later it is the network's course.
    fn refuse_unfit_interfaces(&self) -> Result<()> {
        let links = self.links();
        for port in &self.ports {
            let name = &port.ifname;
            let Some(link) = links.iter().find(|link| link.name == *name) else {
                let known: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
                bail!("no interface {name}; there are: {}", known.join(" "));
            };
            if let Some(obstacle) = Port::obstacle(link, self.is_up(link.ifindex)) {
                bail!("interface {name}: {obstacle}");
            }
        }
        Ok(())
    }

    /// Administratively; a cable may be unplugged.
    fn is_up(&self, ifindex: u32) -> bool {
        self.mirror.state().links.get(&ifindex).is_some_and(|link| link.is_up())
    }

    fn links(&self) -> Arc<Links> {
        Arc::clone(&self.mirror.tables().links)
    }

    /// One worker a CPU of `--cpus`, or of those allowed, but no more than a port has queues.
    fn start_workers(&mut self) -> Result<()> {
        let queues = self.queues()?;
        let allowed = affinity::allowed_cpus();
        // `--queues` may leave some out.
        let limit = self.options.queues.unwrap_or(QUEUES_MAX);
        let most = queues.iter().map(|queues| queues.rx.min(limit)).max().unwrap_or(1) as usize;
        let cpus = self.options.cpus.as_ref().map(CpuList::cpus);
        let count = cpus.map_or(allowed.len(), <[usize]>::len).min(most);
        if let Some(idle) = cpus.and_then(|cpus| cpus.get(count..)).filter(|idle| !idle.is_empty())
        {
            say!(
                "no port has more than {most} queue(s) to serve: there is no work for CPUs {idle:?}"
            );
        }
        let most = queues.iter().map(|queues| queues.rx_max.min(QUEUES_MAX)).max().unwrap_or(1);
        self.rounds = most.div_ceil(count as u32).max(1);
        self.crossroads = Crossroads::new(count, self.options.tx_ring as usize)?;
        for n in 0..count {
            let cpu = match cpus {
                Some(cpus) => cpus.get(n).copied(),
                // The last CPUs first: the first serves interrupts and everything else.
                None => Some(allowed[allowed.len() - 1 - n % allowed.len()]),
            };
            let served =
                |queues: &Queues| (0..queues.rx.min(limit)).filter(|&q| worker_of(q, count) == n);
            let expected = queues.iter().flat_map(served).count();
            let (worker, handle, queue) = self.make_worker(count, expected)?;
            let thread = spawn(worker, n, cpu)?;
            self.workers.push(handle);
            self.threads.push(thread);
            self.cpus.push(cpu);
            self.slow_paths.push(queue);
        }
        Ok(())
    }

    /// Queues of each port.
    fn queues(&self) -> Result<Vec<Queues>> {
        let links = self.links();
        let queues = |port: &Port| {
            let link = links.iter().find(|link| link.name == port.ifname);
            let link = link.with_context(|| format!("interface {} is gone", port.ifname))?;
            nic::queues(link.ifindex)
                .with_context(|| format!("{}: cannot read the number of its queues", port.ifname))
        };
        self.ports.iter().map(queues).collect()
    }

    /// A worker that is expected to serve so many queues of all ports together.
    fn make_worker(
        &self,
        count: usize,
        expected: usize,
    ) -> Result<(Worker<AfXdp>, WorkerHandle<AfXdp>, SlowPathQueue)> {
        let ports = self.ports.len() as u16;
        let slots = usize::from(ports) * self.rounds as usize;
        let rings = RingSizes { fill: self.options.rx_ring, tx: self.options.tx_ring };
        let busy_poll_budget =
            (self.options.poll == PollMode::Busy).then_some(self.options.busy_budget);
        let options = Options { rings, busy_tries: 1, busy_poll_budget, ..Options::default() };
        let (io, pool) = AfXdp::with_slots(slots, expected, &options)?;
        let (slow_path, queue) = slow_path(Arc::clone(&self.bell));
        let reader =
            self.mirror.quiescence().reader().context("more workers than readers of the tables")?;
        let residence = Residence::new(ports, self.options.latency_sample).with_context(|| {
            format!("no memory to measure latency between {ports} ports; use --latency-sample 0")
        })?;
        let (mut worker, handle) = Worker::new(Parts {
            io,
            ports,
            pool,
            tables: self.mirror.published().subscribe(),
            reader,
            stats: Arc::new(WorkerStats::new(slots)),
            residence,
            state: PipelineState::new(RandomState::new().hash_one("worker"), count)
                .with_hash_seed(self.hash_seed),
            slow_path,
        });
        worker.set_accounting(self.options.account);
        worker.set_poll_mode(self.options.poll);
        Ok((worker, handle, queue))
    }

    /// Activates every port that can be. `must`: one that cannot is an error.
    fn bring_up_ports(&mut self, must: bool) -> Result<()> {
        let links = self.links();
        let mut with = Equipment {
            steering: &mut self.steering,
            punt: &self.punt,
            workers: &self.workers,
            options: &self.options,
            rounds: self.rounds,
            cpus: &self.cpus,
            crossroads: &mut self.crossroads,
            tries: if must { BUSY_TRIES } else { 1 },
        };
        let mut changed = false;
        let state = self.mirror.state();
        for port in &mut self.ports {
            let link = links.iter().find(|link| link.name == port.ifname);
            let obstacle = link.and_then(|link| {
                let is_up = state.links.get(&link.ifindex).is_some_and(|link| link.is_up());
                Port::obstacle(link, is_up)
            });
            changed |= follow_link(port, link, obstacle, &mut with, must)?;
        }
        if changed {
            self.tell_mirror();
        }
        self.steer()
    }

    /// Which interfaces are ports now.
    fn tell_mirror(&mut self) {
        let active = self.ports.iter().filter(|port| port.state == State::Active);
        let active: Vec<(u32, u16)> = active.map(|p| (p.ifindex, p.index)).collect();
        self.mirror.set_ports(&active);
    }

    /// Local addresses first, then steering: a frame for the router itself never goes astray.
    fn steer(&mut self) -> Result<()> {
        let tables = self.mirror.tables();
        self.steered = tables.generation;
        if self.stopping || !self.steering_allowed() {
            return self.ports.iter_mut().try_for_each(|port| port.steer(false, false));
        }
        let local4 = self.mirror.local4().into_iter().collect();
        let local6 = self.mirror.local6().into_iter().collect();
        // Without all its addresses a family would have to be guessed at: the kernel has it.
        let known4 = self.steering.set_local4(&local4);
        let known6 = self.steering.set_local6(&local6);
        let ipv4 = known4.is_ok() && !tables.fib4.punts_all();
        let ipv6 = known6.is_ok() && !tables.fib6.punts_all();
        let unknown = known4.err().or(known6.err()).map(|error| {
            format!(
                "{error}; a family whose local addresses are not all known is left to the kernel"
            )
        });
        if unknown != self.unknown_locals {
            if let Some(why) = &unknown {
                say!("{why}");
            }
            self.unknown_locals = unknown;
        }
        let mut unknown_vlans = None;
        for port in &mut self.ports {
            if let Err(error) = port.steer_vlans(&tables.links) {
                unknown_vlans = Some(format!("{error:#}; such VLANs are left to the kernel"));
            }
        }
        if unknown_vlans != self.unknown_vlans {
            if let Some(why) = &unknown_vlans {
                say!("{why}");
            }
            self.unknown_vlans = unknown_vlans;
        }
        self.ports.iter_mut().try_for_each(|port| {
            // An interface that is not followed (in a VRF, under a macvlan) is no port in the tables.
            let followed = tables.links.port(port.index).is_some();
            port.steer(ipv4 && followed, ipv6 && followed)
        })
    }

    fn steering_allowed(&self) -> bool {
        !self.punt_broken && (self.bypassed.is_empty() || self.options.ignore_firewall)
    }

    fn serve(&mut self) -> Result<()> {
        while !self.stopping {
            self.sleep()?;
            self.bell.silence();
            if matches!(self.signals.read_signal(), Ok(Some(_))) {
                break;
            }
            let changes = self.mirror.process()?;
            self.follow(&changes)?;
            self.run_slow_path()?;
            self.answer_requests();
            self.tell_captures();
            let changes = self.mirror.tick(Instant::now())?;
            self.follow(&changes)?;
            if self.checked.elapsed() >= CHECK {
                self.checked = Instant::now();
                if let Some(n) = self.threads.iter().position(JoinHandle::is_finished) {
                    bail!("worker {n} ended by itself, which is a bug; the kernel forwards on");
                }
                self.watch_firewall()?;
                self.mend_punt()?;
                self.retry_ports()?;
                self.ports.iter_mut().for_each(Port::refresh_polling);
                self.look_for_unserved();
            }
        }
        Ok(())
    }

    /// A port whose queue was busy, or whose interface had another's program, may be free by now, and
    /// one that is served may be unfit: no event tells.
    fn retry_ports(&mut self) -> Result<()> {
        let nics = nic::read().unwrap_or_default();
        let (mut changed, mut given_up) = (false, false);
        for port in &mut self.ports {
            let spoilt = port.spoilt(&nics);
            if spoilt.is_none() && !port.queues_changed() {
                continue;
            }
            let mut with = Equipment {
                steering: &mut self.steering,
                punt: &self.punt,
                workers: &self.workers,
                options: &self.options,
                rounds: self.rounds,
                cpus: &self.cpus,
                crossroads: &mut self.crossroads,
                tries: BUSY_TRIES_LATER,
            };
            if let Some(why) = spoilt {
                say!("interface {} {why}; left to the kernel", port.ifname);
                port.deactivate(State::Waiting(why), &with);
            } else {
                say!("interface {}: its number of queues has changed", port.ifname);
                port.follow_queues(&mut with);
            }
            given_up |= port.state != State::Active;
            changed = true;
        }
        if given_up {
            self.tell_mirror();
        }
        let due = self.ports.iter().any(Port::retry_is_due);
        match due || given_up {
            true => self.bring_up_ports(false),
            false if changed => self.steer(),
            false => Ok(()),
        }
    }

    /// A queue whose packets the kernel has is told of, once; `status` goes on to.
    fn look_for_unserved(&mut self) {
        for port in &mut self.ports {
            if port.look_for_unserved()
                && let Some(what) = port.unserved()
            {
                say!("{what}");
            }
        }
    }

    fn sleep(&self) -> Result<()> {
        let events = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.mirror.as_fd(), events)];
        fds.push(PollFd::new(self.bell.as_fd(), events));
        fds.push(PollFd::new(self.signals.as_fd(), events));
        match poll(&mut fds, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("poll(2)"),
        }
    }

    fn follow(&mut self, changes: &Changes) -> Result<()> {
        if changes.links {
            self.bring_up_ports(false)?;
        } else if changes.local_addresses || changes.generation != self.steered {
            self.steer()?;
        }
        Ok(())
    }

    fn run_slow_path(&mut self) -> Result<()> {
        let mut refused = None;
        for queue in &self.slow_paths {
            queue.drain_frames(|frame| {
                let ifindex = frame.ifindex;
                refused = self.punt.inject(ifindex, frame.bytes_mut()).err().or(refused.take());
            });
            for request in queue.requests() {
                self.mirror.resolve(request.oif, request.addr)?;
            }
        }
        if let Some(error) = refused.filter(|_| !self.punt_broken) {
            say!("{} does not take frames ({error}); all is left to the kernel", self.punt.name());
            self.punt_broken = true;
            self.steer()?;
        }
        Ok(())
    }

    /// Makes a new TAP device after the old one was taken away or down.
    fn mend_punt(&mut self) -> Result<()> {
        if !self.punt_broken {
            return Ok(());
        }
        let Ok(punt) = PuntDevice::open(&self.steering) else { return Ok(()) };
        for port in self.ports.iter().filter(|port| port.state == State::Active) {
            port.admit(&punt)?;
        }
        say!("{} takes frames for the kernel again", punt.name());
        self.punt = punt;
        self.punt_broken = false;
        self.steer()
    }

    fn answer_requests(&mut self) {
        while let Ok(pending) = self.pending.try_recv() {
            let answer = match &pending.request {
                Request::Capture(request) => self.capture(request),
                _ => self.report(&pending).into(),
            };
            pending.answer(answer);
        }
    }

    /// A rule that appears while we run is not bypassed: steering stops until it is gone.
    fn watch_firewall(&mut self) -> Result<()> {
        // What cannot be read may hold anything.
        let bypassed = firewall::bypassed(&self.options.interfaces)
            .unwrap_or_else(|error| vec![format!("the firewall cannot be read: {error}")]);
        if bypassed == self.bypassed {
            return Ok(());
        }
        self.bypassed = bypassed;
        if !self.options.ignore_firewall {
            let left = if self.bypassed.is_empty() { "userspace again" } else { "the kernel" };
            say!("the firewall changed; forwarding is done by {left}");
        }
        self.steer()
    }

    /// Nothing that has arrived is lost: the kernel takes what comes from now on, the workers
    /// finish what they have.
    fn stop(&mut self) {
        self.stopping = true;
        if let Err(error) = self.steer() {
            say!("cannot stop steering: {error:#}");
        }
        self.workers.iter().for_each(WorkerHandle::stop);
        for (n, thread) in self.threads.drain(..).enumerate() {
            match thread.join() {
                Ok(census) if census.is_conserved() => {}
                Ok(census) => say!("worker {n} lost frames: {census:?}"),
                Err(_) => say!("worker {n} panicked; this is a bug"),
            }
        }
        self.ports.iter_mut().for_each(Port::restore_polling);
        self.ports.iter_mut().for_each(Port::restore_irqs);
        // What the workers handed over last.
        if let Err(error) = self.run_slow_path() {
            say!("{error:#}");
        }
        self.captures.finish();
        self.server = None;
        say!("{}", self.totals());
    }
}

/// Takes a port to where its interface is now. Returns whether its ifindex changed hands.
fn follow_link(
    port: &mut Port,
    link: Option<&crate::tables::Link>,
    obstacle: Option<String>,
    with: &mut Equipment<'_>,
    must: bool,
) -> Result<bool> {
    let Some(link) = link else {
        let was_active = port.state == State::Active;
        if port.state != State::Absent {
            port.deactivate(State::Absent, with);
            say!("interface {} is gone; waiting for it to return", port.ifname);
        }
        return Ok(was_active);
    };
    let mut changed = false;
    if port.state == State::Active && port.ifindex != link.ifindex {
        port.deactivate(State::Absent, with);
        changed = true;
    }
    if port.is_outgrown(link) && obstacle.is_none() {
        say!("interface {}: its MTU is {} now; it is opened anew for that", port.ifname, link.mtu);
        port.deactivate(State::Absent, with);
        // What was closed just now stays busy for a while.
        with.tries = with.tries.max(BUSY_TRIES_LATER);
        changed = true;
    }
    let oversized = obstacle.clone().filter(|_| link.up);
    match (port.state == State::Active, oversized) {
        // Down and active is no obstacle: nothing arrives, and the sockets wait with the link.
        (true, None) => port.follow(link, with.punt)?,
        (true, Some(why)) => {
            say!("interface {}: {why}; left to the kernel", port.ifname);
            port.deactivate(State::Waiting(why), with);
            changed = true;
        }
        (false, _) => {
            if let Some(why) = obstacle {
                port.state = State::Waiting(why);
            } else if must
                || port.state == State::Absent
                || port.mtu_changed(link)
                || port.retry_is_due()
            {
                let before = port.state.clone();
                match port.activate(link, with) {
                    Ok(()) => {
                        if !must {
                            say!("interface {} is back", port.ifname);
                        }
                        changed = true;
                    }
                    Err(error) if must => return Err(error),
                    // Tried again and again: told once.
                    Err(error) if port.state != before => {
                        say!("interface {}: {error:#}; left to the kernel", port.ifname);
                    }
                    Err(_) => {}
                }
            }
        }
    }
    Ok(changed)
}

/// Says what was put back that an earlier run had set, and what could not be.
fn tell_leftovers(restored: std::io::Result<Vec<String>>, what: &str) {
    match restored {
        Ok(names) if names.is_empty() => {}
        Ok(names) => say!("{}: put back what an earlier run had set {what}", names.join(", ")),
        Err(error) => say!("cannot put back what an earlier run set {what}: {error}"),
    }
}

fn take_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    // The terminal is gone.
    mask.add(Signal::SIGHUP);
    mask.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot create a signalfd")
}

/// Starts a worker's thread and waits until it is pinned.
fn spawn(worker: Worker<AfXdp>, n: usize, cpu: Option<usize>) -> Result<JoinHandle<FrameCensus>> {
    let (pinned, result) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name(format!("fr-worker{n}")).spawn(move || {
        let outcome = cpu.map_or(Ok(()), affinity::pin_to);
        let failed = outcome.is_err();
        // The starter waits for this; if it has given up, there is nobody to work for.
        if pinned.send(outcome).is_err() || failed {
            return FrameCensus::default();
        }
        worker.run()
    });
    let thread = thread.context("cannot start a worker thread")?;
    result.recv().context("a worker thread ended at once")??;
    Ok(thread)
}
