//! `ferroute run`: starts the parts, keeps them in step with the kernel, stops them.
//!
//! One control thread (this one) follows the kernel and manages the ports. It sleeps in poll(2) on netlink,
//! signals and a wakeup, and waits for nothing else: packets for the kernel, log messages and clients have
//! their own threads. Each time it has followed the kernel up to a moment it updates its heartbeat. Without
//! a recent heartbeat neither the XDP programs nor the workers forward.
//!
//! - [`start`]: preparation of the process, before anything runs that has to be stopped;
//! - [`ports`]: the ports, and the thread that opens and closes them;
//! - [`workers`]: the threads that forward, and their capacity;
//! - [`flows`], [`flow_entry`]: the thread that follows the kernel's connections, for rulesets that track them;
//! - [`offload`]: flows that the XDP program forwards by itself;
//! - [`ruleset`]: the nftables ruleset that the workers apply;
//! - [`steering_state`]: which frames the XDP programs redirect to userspace;
//! - [`punter`]: the thread that hands packets back to the kernel;
//! - [`reload`]: the configuration file, read again;
//! - [`relay`]: requests of the control socket, answered on their clients' threads;
//! - [`snapshot`]: the state of this thread that clients see;
//! - [`service`]: what the service manager is told;
//! - [`events`]: subscriptions of clients; [`observe`]: events that are found by comparing the state with the last;
//! - [`report`], [`links`], [`latency`], [`flow_report`], [`flow_list`]: the answers;
//! - [`metrics`]: readings for the metrics server;
//! - [`capture`]: copies of packets for clients; [`trace`], [`trace_report`]: the way of packets.

mod capture;
mod events;
mod flow_entry;
mod flow_list;
mod flow_report;
mod flow_rule;
mod flow_way;
mod flows;
mod ipsec;
mod latency;
mod links;
mod metrics;
mod observe;
mod offload;
mod ports;
mod punter;
mod relay;
mod reload;
mod report;
mod ruleset;
mod sas;
mod service;
mod snapshot;
mod start;
mod steering_state;
mod trace;
mod trace_report;
mod workers;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::flows::FlowFollower;
use self::metrics::Sockets;
use self::observe::Observed;
use self::offload::Offloader;
use self::ports::{Port, PortManager, Surroundings};
use self::punter::Punter;
use self::relay::{Clients, relay};
use self::reload::Reloads;
use self::sas::SaFollower;
use self::service::Service;
use self::snapshot::{Snapshot, View};
use self::steering_state::SteeringState;
use self::workers::WorkerSet;
use tracing::{error, info};

use crate::control::api::event::Event;
use crate::control::config::RunOptions;
use crate::control::firewall::monitor::Monitor;
use crate::control::firewall::ruleset::{Compiled, Followed, RulesetReader};
use crate::control::mirror::{Changes, Mirror, MirrorOptions};
use crate::control::process::log::Log;
use crate::control::process::signals::{Interrupted, Signals};
use crate::control::process::{limits, privilege, time_namespace};
use crate::control::steering::punt::PuntDevice;
use crate::io::af_xdp::is_fresh;
use crate::ipsec::{Direction, Policy};
use crate::netfilter::{NetHooks, NfHookOps};
use crate::tables::Links;
use crate::worker::clock::monotonic_ns;
use crate::worker::slow_path::Wakeup;

/// Longest sleep of the control thread: state without notifications (sysctls, time-outs) is checked at
/// least this often.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the workers, and then the punter thread, have to finish what has arrived: more than they need.
const THREADS_TIMEOUT: Duration = Duration::from_secs(2);
/// How much more time the thread that opens and closes ports has.
const PORTS_TIMEOUT: Duration = Duration::from_millis(500);
/// How often conditions without events are checked, such as whether a busy port is free now.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a turn may spend on answers to clients, after everything else.
const ANSWER_BUDGET: Duration = Duration::from_millis(2);

/// Runs until SIGTERM or SIGINT. SIGHUP has the configuration file read again; without one, it ends it as well.
///
/// # Errors
/// What prevents the start: privilege, interface, program, socket, firewall; each error has advice.
/// Later trouble with one port is reported by `status` and leaves that port to the kernel.
pub fn run(options: RunOptions) -> Result<()> {
    run_with_hooks(options, Vec::new())
}

/// The same, with hook functions of the caller, which run beside the nftables ruleset.
///
/// # Errors
/// As [`run`].
pub fn run_with_hooks(options: RunOptions, hooks: Vec<NfHookOps>) -> Result<()> {
    limits::raise();
    let ports = options.interfaces.named().len().max(1) as u64;
    time_namespace::require_kernel_clock()?;
    privilege::require(limits::locked_least(ports, options.rx_ring, options.tx_ring))?;
    // Before any thread exists, so that every thread inherits them.
    let signals = if options.source.is_some() { Signals::take_with_reload } else { Signals::take };
    let signals = Arc::new(signals()?);
    privilege::seal(options.changes_interrupts())?;
    let _log = Log::start(options.log_level, options.log_format)
        .context("cannot start the thread that writes messages")?;
    let mut supervisor = match start::start(options, signals, hooks) {
        Err(error) if error.is::<Interrupted>() => {
            info!("{error}");
            return Ok(());
        }
        started => started?,
    };
    let ended = supervisor.serve();
    supervisor.stop(ended.is_ok());
    info!("{}", supervisor.totals());
    ended
}

/// What the control thread owns.
struct Supervisor {
    options: Arc<RunOptions>,
    signals: Arc<Signals>,
    wakeup: Arc<Wakeup>,
    mirror: Mirror,
    firewall: Monitor,
    /// The hook functions of the workers.
    hooks: NetHooks,
    /// Those of the program that uses the library.
    own_hooks: Vec<NfHookOps>,
    ruleset: RulesetReader,
    /// Since a ruleset tracked connections.
    flows: Option<FlowFollower>,
    /// With `--offload`, since the workers were started.
    offload: Option<Offloader>,
    /// The ruleset that was read before the workers were started.
    first_ruleset: Option<Compiled>,
    /// The workers may not apply the kernel's nftables ruleset yet.
    ruleset_pending: bool,
    /// Rules that the kernel would apply to forwarded packets and userspace does not, a line each.
    bypassed: Vec<String>,
    /// The IPsec policies that the workers apply.
    policies: Vec<(Direction, Policy)>,
    /// Since there were policies.
    sas: Option<SaFollower>,
    steering_state: SteeringState,
    punter: Punter,
    workers: WorkerSet,
    ports: PortManager,
    clients: Clients,
    service: Service,
    reloads: Reloads,
    observed: Observed,
    /// When conditions without events were last checked.
    checked: Instant,
    /// The moment that the control thread's last heartbeat stands for.
    beat: Instant,
    /// When everything was last read again after a pause.
    caught_up: Instant,
    /// Not all that the kernel has sent has been read.
    unread: bool,
    stopping: bool,
}

impl Supervisor {
    /// `chosen`: the options before the start changed any. `sockets` are listening; `signals` were taken before any thread was
    /// started.
    fn start(
        mut options: RunOptions,
        chosen: RunOptions,
        signals: Arc<Signals>,
        sockets: Sockets,
        own_hooks: Vec<NfHookOps>,
    ) -> Result<Supervisor> {
        let wakeup = Wakeup::new().context("cannot create an eventfd")?;
        let mut firewall = Monitor::start(options.interfaces.named())
            .context("cannot read the firewall's rules")?;
        let first_ruleset = match options.ignore_firewall {
            true => None,
            false => Some(
                Compiled::read(firewall.nftables_notices())
                    .context("cannot read the nftables ruleset")?,
            ),
        };
        if let Some(compiled) = &first_ruleset {
            // The workers apply it before anything is forwarded, see `begin`.
            firewall.set_followed(Followed::of(compiled));
        }
        let bypassed = firewall.bypassed(options.interfaces.named());
        start::refuse(&bypassed, &options, &signals)?;
        signals.check()?;
        let mirror = Mirror::start(MirrorOptions::default())?;
        signals.check()?;
        let mut steering = offload::steering(&mut options.offload)?;
        steering.set_timeouts(options.timeouts.worker, options.timeouts.control)?;
        let punter = Punter::new(PuntDevice::open(&steering)?, Arc::clone(&wakeup))?;
        let reader =
            mirror.qsbr().background_reader().context("no reader of the tables is left")?;
        let first = Snapshot::starting(&options);
        let view = Arc::new(View::new(mirror.published(), reader, first));
        let source = options.source.clone();
        let (relay, asks) = relay(Arc::clone(&wakeup), Arc::clone(&view), source);
        let relay = Arc::new(relay);
        let reader_wakeup = Arc::clone(&wakeup);
        let ruleset = RulesetReader::start(move || reader_wakeup.wake())
            .context("cannot start the thread fr-nft")?;
        let mut supervisor = Supervisor {
            signals: Arc::clone(&signals),
            wakeup,
            mirror,
            firewall,
            hooks: NetHooks::new(0),
            own_hooks,
            ruleset,
            flows: None,
            offload: None,
            first_ruleset,
            ruleset_pending: false,
            bypassed,
            policies: Vec::new(),
            sas: None,
            steering_state: SteeringState::new(steering),
            punter,
            workers: WorkerSet::default(),
            ports: PortManager::new(options.interfaces.named(), signals),
            clients: Clients::new(asks, view),
            service: Service::from_environment(),
            reloads: Reloads::new(Arc::clone(&relay), &options, chosen),
            observed: Observed::new(),
            checked: Instant::now(),
            beat: Instant::now(),
            caught_up: Instant::now(),
            unread: false,
            stopping: false,
            options: Arc::new(options),
        };
        supervisor.follow_policies()?;
        supervisor.refuse_unfit_interfaces()?;
        let matching = ports::matching(&supervisor.mirror, &supervisor.options);
        supervisor.ports.make_room(&supervisor.options, &matching);
        supervisor.ports.take_newcomers(&supervisor.options, &matching);
        supervisor.clients.serve(sockets.serve(relay)?);
        match supervisor.begin() {
            Ok(()) => Ok(supervisor),
            Err(error) => {
                // After a failure, nothing that was set for some ports stays set.
                supervisor.stop(false);
                Err(error)
            }
        }
    }

    /// Starts the workers and serves the ports.
    fn begin(&mut self) -> Result<()> {
        self.start_workers()?;
        // If it has changed since it was read, it is read again.
        if let Some(compiled) = self.first_ruleset.take() {
            self.apply_ruleset(compiled)?;
        }
        // Rules may have appeared since they were read, and matched interfaces may have rules of their own.
        self.watch_ports();
        self.firewall.read_all();
        self.follow_firewall()?;
        self.wait_for_ruleset()?;
        self.open_ports()?;
        self.signals.check()?;
        info!("{}", self.summary());
        Ok(())
    }

    /// At the start, an interface that cannot be served is the user's error; later it is an event of the
    /// network.
    fn refuse_unfit_interfaces(&self) -> Result<()> {
        let links = self.links();
        for port in self.ports.iter() {
            let name = &port.ifname;
            let Some(link) = links.named(name) else {
                let known: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
                bail!("no interface {name}; there are: {}", known.join(" "));
            };
            if let Some(obstacle) = ports::obstacle(link, self.is_up(link.ifindex)) {
                bail!("interface {name}: {obstacle}");
            }
        }
        Ok(())
    }

    /// Administratively; there may be no carrier.
    fn is_up(&self, ifindex: u32) -> bool {
        self.mirror.state().links.get(&ifindex).is_some_and(|link| link.is_up())
    }

    fn links(&self) -> Arc<Links> {
        Arc::clone(&self.mirror.tables().links)
    }

    /// Opens all ports, before anything is forwarded.
    fn open_ports(&mut self) -> Result<()> {
        self.bring_up_ports()?;
        while self.ports.is_changing() {
            while self.ports.is_changing() {
                self.signals.check()?;
                self.with_ports(PortManager::wait_done)?;
            }
            self.mirror.set_ports(&self.ports.in_tables());
            self.bring_up_ports()?;
        }
        self.ports.end_start();
        Ok(())
    }

    /// Moves every port towards the state that its interface requires.
    fn bring_up_ports(&mut self) -> Result<()> {
        self.follow_links()?;
        let matching = ports::matching(&self.mirror, &self.options);
        let newcomers = self.ports.take_newcomers(&self.options, &matching);
        if !newcomers.is_empty() {
            // Before the workers: captures must know a name before workers write copies under it.
            let naming = self.notify_captures();
            for port in newcomers {
                self.ports.set_naming(port, naming);
                self.forget_latency(port);
                if let Some(offload) = &self.offload {
                    offload.offloads().forget_port(port);
                }
            }
            // Matched interfaces that have another name now may have been ports until now.
            self.follow_links()?;
        }
        self.notify_captures();
        self.steer()
    }

    fn follow_links(&mut self) -> Result<()> {
        if !self.options.ignore_firewall {
            self.watch_ports();
            let coming = self.with_ports(|ports, around| Ok(ports.coming(around)))?;
            if coming.iter().any(|(name, ifindex)| !self.firewall.knows(name, *ifindex)) {
                self.firewall.read_newcomers(Instant::now());
            }
            // What this reading requires of all ports is done in the next turn, before a heartbeat.
            let is_unread = |(name, ifindex): &&(String, u32)| !self.firewall.knows(name, *ifindex);
            self.ports.set_unread(
                coming.iter().filter(is_unread).map(|(name, _)| name.clone()).collect(),
            );
            let names = coming.iter().map(|(name, _)| name.as_str());
            let matched: Vec<&str> = names.filter(|name| self.ports.is_matched(name)).collect();
            let filtered = ports::filtered(&self.firewall, &self.options, matched.iter().copied());
            self.ports.update_filtered(&matched, filtered);
        }
        self.with_ports(PortManager::follow_links)
    }

    /// Has the firewall watched on the interfaces that are ports or may become ports.
    fn watch_ports(&mut self) {
        self.firewall.watch(self.ports.iter().map(|port| port.ifname.clone()).collect());
    }

    /// Takes the results of the thread that opens and closes ports. A port that could not be opened is
    /// tried again when it may be free.
    fn take_changed_ports(&mut self) -> Result<()> {
        if self.with_ports(PortManager::take_done)? {
            self.mirror.set_ports(&self.ports.in_tables());
            self.bring_up_ports()?;
        } else if self.with_ports(|ports, around| Ok(ports.wants_retry(around)))? {
            self.bring_up_ports()?;
        }
        Ok(())
    }

    /// Gives the ports the context they need.
    fn with_ports<T>(
        &mut self,
        act: impl FnOnce(&mut PortManager, &Surroundings<'_>) -> Result<T>,
    ) -> Result<T> {
        let heartbeats = self.steering_state.heartbeats();
        let now_ns = monotonic_ns();
        let timeout_ns = self.options.timeouts.worker.as_nanos() as u64;
        // A worker's first queue has the worker's number.
        let is_alive = |worker: usize| {
            heartbeats.queue(worker).is_some_and(|word| is_fresh(word, now_ns, timeout_ns))
        };
        let around = Surroundings {
            mirror: &self.mirror,
            links: Arc::clone(&self.mirror.tables().links),
            options: &self.options,
            punt: self.punter.device(),
            is_alive: &is_alive,
            events: &self.clients.view.events,
        };
        act(&mut self.ports, &around)
    }

    /// Has the programs steer according to the current tables.
    fn steer(&mut self) -> Result<()> {
        self.workers.set_hand_back(self.must_hand_back());
        let allowed = !self.stopping && self.steering_allowed();
        self.steering_state.apply(&self.mirror, &mut self.ports, allowed)?;
        self.set_offload_ports()
    }

    fn steering_allowed(&self) -> bool {
        !self.punter.is_broken() && !self.must_hand_back()
    }

    /// Whether packets that userspace would send may be ones that the kernel filters.
    fn must_hand_back(&self) -> bool {
        self.is_filtered() || self.ports.has_open_filtered()
    }

    /// Whether the kernel filters forwarded packets, which userspace does not, and this is not ignored.
    fn is_filtered(&self) -> bool {
        (!self.bypassed.is_empty() || self.ruleset_pending) && !self.options.ignore_firewall
    }

    fn serve(&mut self) -> Result<()> {
        while !self.stopping {
            self.sleep()?;
            self.wakeup.clear();
            if self.signals.is_pending() {
                break;
            }
            // What the kernel sent before this moment has been followed when the heartbeat is given,
            // however long this thread is delayed in between.
            let (now, now_ns) = (Instant::now(), monotonic_ns());
            let was_away = now.saturating_duration_since(self.beat.max(self.caught_up))
                >= self.options.timeouts.control;
            let is_followed =
                if was_away { self.catch_up(now).map(|()| true)? } else { self.follow_kernel()? };
            self.check_periodically(was_away)?;
            if let Some(offload) = &mut self.offload {
                offload.follow(&self.mirror.tables());
            }
            let is_current = self.mirror.is_current()
                && self.are_flows_current(now_ns)
                && self.are_sas_current(now_ns);
            let is_beating = is_followed && !self.unread && is_current;
            if is_beating {
                self.give_heartbeat(now, now_ns);
            }
            self.notify_service(is_beating);
            self.workers.resolve_neighbours(&mut self.mirror)?;
            self.notice_refused_punts()?;
            self.answer_pages(ANSWER_BUDGET);
            self.follow_reloads()?;
            self.notify_captures();
            self.observe();
        }
        Ok(())
    }

    /// Reads what the kernel sent, a bounded part at a time. Returns whether that was all.
    fn follow_kernel(&mut self) -> Result<bool> {
        // First: until it is read, a rule is bypassed.
        self.watch_firewall()?;
        self.take_ruleset()?;
        self.take_sas()?;
        let changes = self.mirror.process()?;
        self.follow(&changes)?;
        let changes = self.mirror.tick(Instant::now())?;
        self.follow(&changes)?;
        self.unread = changes.more;
        let is_followed = !changes.more && self.mirror.is_current();
        Ok(is_followed && self.firewall.is_current(Instant::now()))
    }

    /// Reads everything again after a pause in which the kernel could not be followed: the process was
    /// stopped, or messages were lost. Later notifications are followed as usual.
    fn catch_up(&mut self, now: Instant) -> Result<()> {
        self.caught_up = now;
        if let Some(sas) = &self.sas {
            sas.refresh();
        }
        self.firewall.read_all();
        self.follow_firewall()?;
        let changes = self.mirror.process()?;
        self.follow(&changes)?;
        let changes = self.mirror.read_sysctls(now)?;
        self.follow(&changes)?;
        self.unread = changes.more;
        Ok(())
    }

    /// Checks conditions that have no events.
    fn check_periodically(&mut self, was_away: bool) -> Result<()> {
        self.take_changed_ports()?;
        if self.checked.elapsed() < CHECK_INTERVAL && !was_away {
            return Ok(());
        }
        self.checked = Instant::now();
        if let Some(n) = self.workers.ended() {
            bail!("worker {n} ended by itself, which is a bug; the kernel keeps forwarding");
        }
        if self.ruleset.has_ended() {
            bail!("the thread fr-nft ended by itself, which is a bug; the kernel keeps forwarding");
        }
        if self.flows.as_ref().is_some_and(FlowFollower::has_ended) {
            bail!("the thread fr-ct ended by itself, which is a bug; the kernel keeps forwarding");
        }
        if let Some(ended) = self.sas.as_ref().and_then(SaFollower::ended) {
            bail!("{ended}");
        }
        if self.offload.as_ref().is_some_and(Offloader::has_ended) {
            bail!(
                "the thread fr-offload ended by itself, which is a bug; the kernel keeps forwarding"
            );
        }
        if self.punter.has_ended() {
            bail!(
                "the thread that hands packets back ended by itself, which is a bug; the kernel \
                 keeps forwarding"
            );
        }
        self.repair_punt()?;
        self.check_sas()?;
        self.check_ports(was_away)?;
        // For when this thread does not get to publishing a newer one.
        self.publish();
        Ok(())
    }

    /// The tables are those that the kernel had at `now`, and no filter that existed then is bypassed.
    fn give_heartbeat(&mut self, now: Instant, now_ns: u64) {
        self.beat = now;
        self.steering_state.heartbeats().beat_control(now_ns);
    }

    /// Checks conditions of ports that have no events.
    fn check_ports(&mut self, was_away: bool) -> Result<()> {
        self.with_ports(|ports, around| ports.check_open_ports(was_away, around))?;
        self.with_ports(PortManager::find_unserved_queues)?;
        // The kernel would make this thread wait for a driver that is busy.
        if !self.ports.is_changing() {
            let open = self.ports.iter_mut().filter_map(Port::active_mut);
            open.for_each(|port| port.refresh_polling());
        }
        if self.ports.has_room_soon() { self.bring_up_ports() } else { Ok(()) }
    }

    fn sleep(&self) -> Result<()> {
        let events = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.mirror.as_fd(), events)];
        fds.push(PollFd::new(self.wakeup.as_fd(), events));
        fds.push(PollFd::new(self.signals.as_fd(), events));
        fds.extend(self.signals.hangup().map(|fd| PollFd::new(fd, events)));
        fds.extend(self.firewall.fds().map(|fd| PollFd::new(fd, events)));
        let due = self.firewall.due().min(self.mirror.next_tick());
        let due = due.saturating_duration_since(Instant::now());
        let timeout = if self.unread { Duration::ZERO } else { TICK_INTERVAL.min(due) };
        // Rounded up: waking before the time would be useless.
        let timeout = timeout.as_nanos().div_ceil(1_000_000) as u64;
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("poll(2)"),
        }
    }

    fn follow(&mut self, changes: &Changes) -> Result<()> {
        if changes.local_addresses {
            self.tell_locals();
        }
        if changes.links {
            self.bring_up_ports()?;
        } else if changes.local_addresses || changes.generation != self.steering_state.generation()
        {
            self.steer()?;
        }
        Ok(())
    }

    fn notice_refused_punts(&mut self) -> Result<()> {
        let Some(error) = self.punter.take_first_refusal() else { return Ok(()) };
        let device = self.punter.device();
        let (ifname, error) = (device.name().to_owned(), Some(error.to_string()));
        self.clients.view.events.say(Event::PuntDevice { ifname, error });
        self.steer()
    }

    /// Creates a new TAP device after the old one was removed or set down.
    fn repair_punt(&mut self) -> Result<()> {
        if !self.punter.is_broken() {
            return Ok(());
        }
        let Ok(punt) = PuntDevice::open(self.steering_state.steering()) else { return Ok(()) };
        for port in self.ports.iter().filter_map(Port::active) {
            port.admit(&punt)?;
        }
        let ifname = punt.name().to_owned();
        self.clients.view.events.say(Event::PuntDevice { ifname, error: None });
        self.punter.replace(punt);
        self.steer()
    }

    /// A rule that appears while running is not bypassed: steering stops until it is gone.
    fn watch_firewall(&mut self) -> Result<()> {
        let from = Instant::now();
        if self.firewall.process(from) {
            self.follow_firewall()?;
            self.firewall.rest(from);
        }
        Ok(())
    }

    fn follow_firewall(&mut self) -> Result<()> {
        self.firewall.take_news();
        self.watch_ports();
        let mut ports = self.options.interfaces.named().to_vec();
        if self.options.ignore_firewall {
            ports.extend(self.ports.matched_names().map(str::to_owned));
        }
        let bypassed = self.firewall.bypassed(&ports);
        // Before the ruleset: no packet is opened or protected without the rules that belong to its policy.
        self.follow_policies()?;
        let pending = self.follow_ruleset()?;
        self.follow_sas()?;
        // Before steering: a rule that is no longer one of all ports may be one of a single port that is still open.
        let filtered = ports::filtered(&self.firewall, &self.options, self.ports.matched_names());
        let is_filtered_anew = self.ports.set_filtered(filtered);
        if bypassed != self.bypassed || pending != self.ruleset_pending {
            let is_news = bypassed != self.bypassed;
            (self.bypassed, self.ruleset_pending) = (bypassed, pending);
            if is_news && !self.options.ignore_firewall {
                let bypassed = self.bypassed.first().cloned();
                self.clients.view.events.say(Event::Firewall { bypassed });
            }
            self.steer()?;
        }
        if is_filtered_anew || self.ports.has_unread() {
            self.bring_up_ports()?;
        }
        Ok(())
    }

    /// Packets that have arrived are not lost: the kernel forwards those that arrive from now on, and the
    /// workers finish what they have. `current`: the tables are still known to match the kernel's.
    fn stop(&mut self, current: bool) {
        self.stopping = true;
        self.service.stopping();
        self.observe_stop();
        self.publish();
        self.clients.refuse();
        if let Err(error) = self.steer() {
            error!("cannot stop steering: {error:#}");
        }
        let (now, now_ns) = (Instant::now(), monotonic_ns());
        if current && self.follow_kernel().unwrap_or(false) {
            self.give_heartbeat(now, now_ns);
        }
        let end = Instant::now() + THREADS_TIMEOUT;
        self.workers.stop(end);
        self.ruleset.stop(end);
        if let Some(flows) = &mut self.flows {
            flows.stop(end);
        }
        self.ports.stop(end + PORTS_TIMEOUT);
        if let Some(offload) = &mut self.offload {
            // No program forwards any more.
            offload.stop(Instant::now() + PORTS_TIMEOUT);
        }
        // Hands over the workers' last packets.
        self.punter.stop(Instant::now() + THREADS_TIMEOUT);
        if let Some(sas) = &mut self.sas {
            sas.stop(Instant::now() + THREADS_TIMEOUT);
        }
        self.clients.finish();
    }
}
