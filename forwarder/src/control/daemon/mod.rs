//! `ferroute run`: brings the parts up, keeps them in step with the kernel, takes them down.
//!
//! One control thread (this one) owns everything but the workers: the mirror, the ports, the slow
//! path, the answers to the control socket. It sleeps in poll(2) on netlink, signals and a bell.
//!
//! - [`port`]: one interface, from absent to active;
//! - [`patterns`]: which interfaces are ports though nobody named them;
//! - [`workers`]: the threads that forward, and what they have room for;
//! - [`queues`], [`crossroads`]: a port's queues, and which worker serves which;
//! - [`relay`]: requests of the control socket, answered on their clients' threads;
//! - [`snapshot`]: what those see of this thread's state;
//! - [`report`], [`links`], [`latency`]: their answers;
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
mod follow;
mod latency;
mod links;
mod patterns;
mod port;
mod queues;
mod relay;
mod report;
mod snapshot;

mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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

use self::crossroads::Crossroads;
use self::port::{Port, State};
use self::relay::{Ask, relay};
use self::snapshot::{Snapshot, Unmirrored, View};
use crate::control::api::server::Server;
use crate::control::config::RunOptions;
use crate::control::firewall::{self, Rules};
use crate::control::mirror::{Changes, Mirror, MirrorOptions};
use crate::control::netdev::nic;
use crate::control::netdev::{irq, keep::RUN_DIR, poll};
use crate::control::process::privilege;
use crate::control::steering::Steering;
use crate::control::steering::punt::PuntDevice;
use crate::io::af_xdp::AfXdp;
use crate::tables::Links;
use crate::worker::WorkerHandle;
use crate::worker::poll::FrameCensus;
use crate::worker::slow_path::{Bell, SlowPathQueue};

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

/// What a turn may spend on answers to clients, after everything else.
const ANSWER_BUDGET: Duration = Duration::from_millis(2);

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
    /// How many ports there can be.
    max_ports: u16,
    /// Most queues of one port that a worker can serve.
    rounds: u32,
    crossroads: Crossroads,
    slow_paths: Vec<SlowPathQueue>,
    /// By their numbers.
    ports: Vec<Port>,
    /// Interfaces that match and for which there is no room.
    crowded: BTreeSet<String>,
    /// There will be room for one of them when a number has rested.
    room_soon: bool,
    /// Why matched interfaces are left to the kernel: rules on them.
    hindered: BTreeMap<String, String>,
    /// Received, sent, and handed back by ports whose numbers are others' now.
    retired: [u64; 3],
    /// What nftables, iptables or XFRM would do and we do not; empty: nothing.
    bypassed: Vec<String>,
    checked: Instant,
    /// What clients ask, and what of it was asked before this turn.
    asks: Receiver<Ask>,
    asked: VecDeque<Ask>,
    view: Arc<View>,
    unmirrored: Unmirrored,
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
}

impl Daemon {
    fn start(options: RunOptions) -> Result<Daemon> {
        // Before any thread exists, so that every thread inherits the mask.
        let signals = take_signals()?;
        let bell = Bell::new().context("cannot create an eventfd")?;
        let bypassed = firewall::bypassed(options.interfaces.named())
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
        let reader = mirror.quiescence().reader().context("no reader of the tables is left")?;
        let first = Snapshot::starting(&options);
        let view = Arc::new(View::new(mirror.published(), reader, first));
        let (relay, asks) = relay(Arc::clone(&bell), Arc::clone(&view));
        let ports = options.interfaces.named().iter().enumerate();
        let mut daemon = Daemon {
            started: view.started,
            signals,
            bell,
            mirror,
            steering,
            punt,
            workers: Vec::new(),
            threads: Vec::new(),
            cpus: Vec::new(),
            max_ports: 0,
            rounds: 1,
            crossroads: Crossroads::new(0, 0)?,
            slow_paths: Vec::new(),
            ports: ports.map(|(n, name)| Port::new(n as u16, name)).collect(),
            crowded: BTreeSet::new(),
            room_soon: false,
            hindered: BTreeMap::new(),
            retired: [0; 3],
            bypassed,
            checked: Instant::now(),
            asks,
            asked: VecDeque::new(),
            view,
            unmirrored: Unmirrored::default(),
            server: None,
            stopping: false,
            unknown_locals: None,
            unknown_vlans: None,
            punt_broken: false,
            steered: 0,
            hash_seed: RandomState::new().hash_one("flows"),
            options,
        };
        daemon.refuse_unfit_interfaces()?;
        let matching = daemon.matching();
        daemon.make_room(&matching);
        daemon.take_newcomers(&matching);
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
            let Some(link) = links.named(name) else {
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

    /// Activates every port that can be. `must`: one that was named and cannot is an error.
    fn bring_up_ports(&mut self, must: bool) -> Result<()> {
        let matching = self.matching();
        self.follow_links(&matching, if must { BUSY_TRIES } else { 1 }, must)?;
        if self.take_newcomers(&matching) {
            // Of another name, they may have been ports until now.
            self.follow_links(&matching, BUSY_TRIES_LATER, must)?;
        }
        self.tell_captures();
        self.steer()
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
            self.answer_pages(ANSWER_BUDGET);
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
                // For when this thread does not get to a newer one.
                self.publish();
            }
        }
        Ok(())
    }

    /// A port whose queue was busy, or whose interface had another's program, may be free by now, and
    /// one that is served may be unfit: no event tells.
    fn retry_ports(&mut self) -> Result<()> {
        let nics = nic::read().unwrap_or_default();
        let (mut changed, mut given_up) = (false, false);
        let (ports, mut with) = self.ports_and_equipment(BUSY_TRIES_LATER);
        for port in ports {
            let spoilt = port.spoilt(&nics);
            if spoilt.is_none() && !port.queues_changed() {
                continue;
            }
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
        let due = self.room_soon || self.ports.iter().any(Port::wants_retry);
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

    /// A rule that appears while we run is not bypassed: steering stops until it is gone.
    fn watch_firewall(&mut self) -> Result<()> {
        let rules = Rules::read();
        if let Ok(rules) = &rules {
            let hindered = self.hindrances(rules, self.matched_names());
            if hindered != self.hindered {
                self.hindered = hindered;
                self.bring_up_ports(false)?;
            }
        }
        let mut ports = self.options.interfaces.named().to_vec();
        if self.options.ignore_firewall {
            ports.extend(self.matched_names().map(str::to_owned));
        }
        // What cannot be read may hold anything.
        let bypassed = rules
            .and_then(|rules| rules.bypassed(&ports))
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
        self.publish();
        // Whoever waits for a page is told that there will be none.
        (self.asks, self.asked) = (crossbeam_channel::never(), VecDeque::new());
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
        self.view.captures.finish();
        self.server = None;
        say!("{}", self.totals());
    }
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
