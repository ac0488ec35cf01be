//! The poll loop of a worker.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::clock::Clock;
use super::handle::{COMMANDS, Command, WorkerHandle};
use super::handoff::Handoffs;
use super::liveness::{Liveness, Permission};
use super::residence::{Residence, Sampler};
use super::slow_path::SlowPath;
use crate::capture::Tap;
use crate::fib::qsbr::Reader;
use crate::io::PacketIo;
use crate::netfilter::Hooks;
use crate::pipeline::{self, Ctx, Effects, PipelineState};
use crate::skb::burst::BURST;
use crate::skb::{Burst, FramePool};
use crate::stats::{DropReason, PacketAccount, PuntReason, WorkerStats};
use crate::tables::{Snapshot, Tables};

/// An adaptive worker sleeps after this long without a frame.
const IDLE_BEFORE_SLEEP_NS: u64 = 200_000;
/// Longest sleep: commands and new tables are noticed at least this often.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Pause of a worker that may not forward because the tables are not known to be current.
const WAIT_INTERVAL: Duration = Duration::from_millis(1);
/// Longest sleep while packets wait for a neighbour or for other fragments, or to be sent.
const SLEEP_WITH_HELD_MAX: Duration = Duration::from_millis(1);
/// How long RX rings must stay empty before a stopping worker assumes that no more packets arrive.
const DRAIN_NS: u64 = 5_000_000;
/// A stopping worker ends after this long even if packets still arrive.
#[cfg(not(test))]
const DRAIN_LIMIT_NS: u64 = 500_000_000;
/// Tests may run on loaded machines.
#[cfg(test)]
const DRAIN_LIMIT_NS: u64 = 60_000_000_000;

/// Bursts taken from one queue before the next queue is served, and, unless a TX ring fills up, before a
/// system call: its cache misses are then paid once per iteration. (A driver's NAPI weight is one burst,
/// its budget 300 packets.)
const BURSTS_PER_TURN: usize = 4;

/// A timed iteration that took longer was preempted, and is not counted.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);

/// Longest time that an offered flow waits for empty receive rings.
const OFFER_WAIT_NS: u64 = 10_000_000;
/// With as many offered flows none waits.
const OFFERS_WAITING_MAX: usize = 16;

/// How a worker detects received frames; compare a driver under NAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// It polls all the time, and needs a core of its own.
    Busy,
    /// It polls while frames arrive, and sleeps after 200 µs without any.
    #[default]
    Adaptive,
    /// It sleeps whenever an iteration finds no frames.
    Interrupt,
}

impl PollMode {
    /// How long a worker polls without a frame before it sleeps, in nanoseconds.
    fn patience_ns(self) -> u64 {
        match self {
            PollMode::Busy => u64::MAX,
            PollMode::Adaptive => IDLE_BEFORE_SLEEP_NS,
            PollMode::Interrupt => 0,
        }
    }
}

/// Number of a worker's frames by place; see [`crate::io::FrameAccounting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct WorkerFrames {
    /// Every frame of the UMEM.
    pub total: usize,
    /// Free in the pool.
    pub free: usize,
    /// In fill and RX rings.
    pub fill_and_rx: usize,
    /// In TX and completion rings.
    pub tx_and_completion: usize,
    /// Of removed ports, until the kernel has certainly released them.
    pub draining: usize,
    /// Waiting for a neighbour, or for other fragments.
    pub held: usize,
}

impl WorkerFrames {
    /// Whether every frame is accounted for.
    pub fn is_conserved(&self) -> bool {
        self.free + self.fill_and_rx + self.tx_and_completion + self.draining + self.held
            == self.total
    }
}

/// One worker's state; see [`Worker::run`].
#[derive(Debug)]
pub struct Worker<I> {
    io: I,
    /// Ports of the router. The driver has this number of slots or a multiple: slot `n` is a queue of
    /// port `n % ports`, and a port's first slot is the one used to send. Where that is empty, `handoffs`
    /// has the worker that sends.
    ports: u16,
    pool: FramePool,
    tables: Snapshot<Tables>,
    hooks: Snapshot<Hooks>,
    reader: Reader,
    stats: Arc<WorkerStats>,
    state: PipelineState,
    out: Effects,
    burst: Burst,
    slow_path: SlowPath,
    handoffs: Handoffs,
    sampler: Sampler,
    commands: Receiver<Command<I>>,
    stop: Arc<AtomicBool>,
    clock: Clock,
    liveness: Option<Liveness>,
    /// Whether iterations are timed.
    accounting: bool,
    mode: PollMode,
    /// Since when flows that are offered wait.
    offers_since_ns: Option<u64>,
}

/// The parts of a worker.
#[derive(Debug)]
pub struct Parts<I> {
    /// Its driver.
    pub io: I,
    /// Ports of the router; the driver has this many slots or a multiple, see [`Worker`].
    pub ports: u16,
    /// State of the pipeline.
    pub state: PipelineState,
    /// The free frames of its UMEM.
    pub pool: FramePool,
    /// The tables.
    pub tables: Snapshot<Tables>,
    /// The hook functions.
    pub hooks: Snapshot<Hooks>,
    /// Its reader slot for the longest-prefix-match tables.
    pub reader: Reader,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Selects the frames that are timed, and holds the histograms.
    pub residence: Residence,
    /// Its queues to other threads.
    pub slow_path: SlowPath,
    /// Its clock; the control thread's heartbeat, and its own, use the same.
    pub clock: Clock,
    /// Its heartbeat, and the permission to forward; `None`: no control thread is needed.
    pub liveness: Option<Liveness>,
}

impl<I: PacketIo> Worker<I> {
    /// Assembles a worker and its handle.
    pub fn new(parts: Parts<I>) -> (Worker<I>, WorkerHandle<I>) {
        let (sender, commands) = bounded(COMMANDS);
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::clone(&parts.stats);
        let residence = Arc::new(parts.residence);
        let sampler = Sampler::new(Arc::clone(&residence), RandomState::new().hash_one("sampler"));
        let clock = parts.clock;
        let handle =
            WorkerHandle { commands: sender, stop: Arc::clone(&stop), stats, residence, clock };
        let out = Effects::new(usize::from(parts.ports));
        let mut state = parts.state;
        state.utc_offset_ns = clock.utc_offset_ns();
        state.set_monotonic_offset_ns(clock.monotonic_ns(0));
        state.take_hook_states(parts.hooks.get());
        let worker = Worker {
            io: parts.io,
            ports: parts.ports.max(1),
            pool: parts.pool,
            tables: parts.tables,
            hooks: parts.hooks,
            reader: parts.reader,
            stats: parts.stats,
            state,
            out,
            burst: Burst::default(),
            slow_path: parts.slow_path,
            handoffs: Handoffs::default(),
            sampler,
            commands,
            stop,
            clock,
            liveness: parts.liveness,
            accounting: false,
            mode: PollMode::default(),
            offers_since_ns: None,
        };
        (worker, handle)
    }

    /// Enables timing of every iteration, for [`WorkerStats::cost`]: three clock readings per iteration.
    pub fn set_accounting(&mut self, on: bool) {
        self.accounting = on;
    }

    /// Sets the poll mode.
    pub fn set_poll_mode(&mut self, mode: PollMode) {
        self.mode = mode;
    }

    /// The worker's handoff channels, before it runs.
    pub fn handoffs(&mut self) -> &mut Handoffs {
        &mut self.handoffs
    }

    /// Access for tests.
    #[cfg(test)]
    pub(super) fn io(&mut self) -> (&mut I, &mut FramePool) {
        (&mut self.io, &mut self.pool)
    }

    /// The worker's captures, before it runs.
    pub fn tap(&mut self) -> &mut Tap {
        &mut self.out.tap
    }

    /// Forwards until it is stopped, then processes what has been received, and closes its ports. Returns
    /// the final accounting of frames.
    pub fn run(mut self) -> WorkerFrames {
        let patience_ns = self.mode.patience_ns();
        let mut now_ns = self.clock.now_ns();
        let mut last_work_ns = now_ns;
        let mut idle = false;
        while !self.stop.load(Ordering::Relaxed) && self.handle_commands() {
            // Read after the commands, which may have taken long.
            let begun_ns = std::mem::replace(&mut now_ns, self.clock.now_ns());
            if idle {
                self.stats.idle_ns.add(now_ns.saturating_sub(begun_ns));
            }
            idle = self.turn(now_ns) == 0;
            if !idle {
                last_work_ns = now_ns;
            } else if now_ns.saturating_sub(last_work_ns) >= patience_ns {
                self.sleep();
            }
        }
        self.drain();
        self.io.close_all(&mut self.pool, &self.stats);
        self.accounting()
    }

    /// One loop iteration: receives bursts from every port, forwards and sends them. Returns the number
    /// of packets taken, including those handed over by other workers. While the tables are not known to
    /// be current, packets stay where they are.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        if let Some(liveness) = &self.liveness {
            liveness.beat(now_ns, self.handoffs.targets());
        }
        let permission = self.permission(now_ns);
        if permission == Permission::Wait {
            self.stand_by();
            return 0;
        }
        let begun = self.accounting.then(Instant::now);
        self.refresh();
        let mut crossed = 0;
        match permission {
            Permission::HandBack(PuntReason::Filtered) => self.purge(now_ns),
            _ => crossed = self.send_waiting(now_ns),
        }
        let taken = self.take_received(permission, now_ns);
        let user = begun.map(|begun| begun.elapsed());
        self.io.kick(&mut self.pool, &self.stats);
        if let (Some(begun), Some(user)) = (begun, user) {
            self.account(taken, user, begun.elapsed());
        }
        if !self.out.offers.is_empty() {
            self.hand_over_offers(taken, now_ns);
        }
        if self.out.tap.is_on() {
            self.out.tap.hand_over();
        }
        self.reader.quiescent();
        self.stats.turns.inc();
        if taken + crossed > 0 {
            self.stats.busy_turns.inc();
        }
        taken + crossed
    }

    /// Takes the newest tables and hook functions.
    #[inline]
    fn refresh(&mut self) {
        // What is decided by newer tables depends on no older epochs than those.
        self.state.before_refresh(&self.tables.get().epochs);
        self.tables.refresh();
        if self.hooks.refresh() {
            self.state.take_hook_states(self.hooks.get());
        }
    }

    /// Sends packets that waited for a neighbour, hands over fragments that waited in vain, and sends packets that other workers have no queue for.
    /// Returns the number of the latter.
    #[inline]
    fn send_waiting(&mut self, now_ns: u64) -> usize {
        if self.state.held() > 0 {
            self.sampler.arm();
            self.with_ctx(now_ns, |_, ctx| pipeline::poll_held(ctx));
            self.flush(now_ns);
        }
        if self.handoffs.channels_in() > 0 { self.take_handoffs(now_ns) } else { 0 }
    }

    /// Drops packets that wait to be sent and that the kernel would filter. They have been changed
    /// already, and cannot be punted. Fragments can.
    #[cold]
    fn purge(&mut self, now_ns: u64) {
        if self.state.held() > 0 {
            self.with_ctx(now_ns, |_, ctx| pipeline::drop_held(ctx, DropReason::QueuePurge));
            self.flush(now_ns);
        }
        self.handoffs.drop_all(DropReason::QueuePurge, &self.stats);
    }

    /// Takes received packets, several bursts per port, as far as `permission` allows. It is checked
    /// again for each burst, because the thread may have been preempted at any point. Returns the number
    /// of packets.
    fn take_received(&mut self, mut permission: Permission, mut now_ns: u64) -> usize {
        let mut taken = 0;
        for slot in 0..self.io.ports() as u16 {
            for _ in 0..BURSTS_PER_TURN {
                let may_take = match permission {
                    Permission::Forward => true,
                    Permission::HandBack(reason) => self.slow_path.has_room(BURST, reason),
                    Permission::Wait => false,
                };
                if !may_take {
                    return taken;
                }
                let received = self.receive(slot);
                if received == 0 {
                    break;
                }
                taken += received;
                if self.liveness.is_some() {
                    now_ns = self.clock.now_ns();
                    permission = self.permission(now_ns);
                    // The heartbeat just read is valid for the newest tables only.
                    self.refresh();
                }
                match permission {
                    Permission::Forward => self.carry_out(now_ns, pipeline::forward_burst),
                    Permission::HandBack(reason) => self.hand_back(reason, now_ns),
                    Permission::Wait => self.hand_back(PuntReason::Stalled, now_ns),
                }
                if received < BURST {
                    break;
                }
            }
        }
        taken
    }

    /// Forwards nothing; still sends what was forwarded before, and runs commands.
    fn stand_by(&mut self) {
        self.io.kick(&mut self.pool, &self.stats);
        self.reader.quiescent();
        self.stats.turns.inc();
        std::thread::sleep(WAIT_INTERVAL);
    }

    /// Sends packets that other workers have no queue for. Returns their number.
    fn take_handoffs(&mut self, now_ns: u64) -> usize {
        let longest_ns = self.liveness.as_ref().map_or(u64::MAX, Liveness::worker_timeout_ns);
        let oldest_ns = self.clock.monotonic_ns(now_ns).saturating_sub(longest_ns);
        let mut packets = 0;
        for channel in 0..self.handoffs.channels_in() {
            // As much as from a queue of its own.
            for _ in 0..BURSTS_PER_TURN {
                let egress = &mut self.out.egress;
                let taken =
                    self.handoffs.take(channel, oldest_ns, &mut self.pool, egress, &self.stats);
                if taken.packets > 0 {
                    if taken.timed {
                        self.sampler.arm();
                    }
                    self.flush(now_ns);
                    packets += taken.packets;
                }
                if taken.packets < BURST {
                    break;
                }
            }
        }
        packets
    }

    fn permission(&self, now_ns: u64) -> Permission {
        let targets = self.handoffs.targets();
        self.liveness.as_ref().map_or(Permission::Forward, |l| l.permission(now_ns, targets))
    }

    /// Takes one burst of a slot. Returns the number of packets.
    fn receive(&mut self, slot: u16) -> usize {
        let received = self.io.rx_burst(slot, &mut self.pool, &mut self.burst, &self.stats);
        if received == 0 {
            return 0;
        }
        if self.burst.room() == 0 {
            self.stats.full_bursts.inc();
        }
        if slot >= self.ports {
            let port = slot % self.ports;
            self.burst.as_mut_slice().iter_mut().for_each(|skb| skb.port = port);
        }
        self.sampler.choose(self.burst.as_mut_slice());
        if self.out.tap.is_on() {
            self.out.tap.received(self.burst.as_mut_slice());
        }
        received
    }

    /// Runs the burst through the data path, or another `stage`, and sends the result.
    #[inline]
    fn carry_out(&mut self, now_ns: u64, stage: impl Fn(&mut Burst, &mut Ctx<'_>) + Copy) {
        while !self.burst.is_empty() {
            self.with_ctx(now_ns, stage);
            self.flush(now_ns);
        }
    }

    /// Punts the burst.
    #[cold]
    fn hand_back(&mut self, reason: PuntReason, now_ns: u64) {
        self.carry_out(now_ns, |burst, ctx| pipeline::hand_back_burst(burst, reason, ctx));
    }

    /// Adds an iteration's time, unless it was interrupted or had nothing to do.
    fn account(&self, taken: usize, user: Duration, all: Duration) {
        if taken > 0 && all < PREEMPTED_MIN {
            let cost = &self.stats.cost;
            cost.frames.add(taken as u64);
            cost.user_ns.add(user.as_nanos() as u64);
            cost.kick_ns.add((all - user).as_nanos() as u64);
        }
    }

    /// The pipeline's context, borrowed from the worker.
    #[inline]
    fn with_ctx(&mut self, now_ns: u64, stage: impl FnOnce(&mut Burst, &mut Ctx<'_>)) {
        let mut ctx = Ctx {
            tables: self.tables.get(),
            hooks: self.hooks.get(),
            pool: &mut self.pool,
            stats: &self.stats,
            state: &mut self.state,
            out: &mut self.out,
            now_ns,
        };
        stage(&mut self.burst, &mut ctx);
    }

    /// Sends, punts and requests what the pipeline left in its effects.
    #[inline]
    fn flush(&mut self, now_ns: u64) {
        for (port, egress) in self.out.egress.iter_mut().enumerate() {
            if !egress.is_empty() {
                let (tapped, traced) = (self.out.tap.is_on(), self.out.trace.is_on());
                if let Some(tx) = self.handoffs.tx_for(port) {
                    let (port, room) = (port as u16, tx.room());
                    if tapped && let Some(beyond) = egress.as_slice().get(room..) {
                        self.out.tap.refused(port, beyond, DropReason::CpuBacklog);
                    }
                    if traced {
                        self.out.trace.refused(port, room, DropReason::CpuBacklog);
                    }
                    let now_ns = self.clock.monotonic_ns(now_ns);
                    tx.send(port, room, now_ns, egress.to_send(), &mut self.pool, &self.stats);
                    continue;
                }
                let port = port as u16;
                self.sampler.find(egress.as_slice());
                if self.io.tx_room(port) < egress.len() {
                    // The kernel may not have been notified yet of what earlier bursts put there.
                    self.io.kick(&mut self.pool, &self.stats);
                }
                if tapped {
                    let certain = self.io.tx_room(port);
                    self.out.tap.leaving(port, egress.as_slice(), certain, &self.stats);
                }
                if traced {
                    self.out.trace.sending(&self.stats);
                }
                let put = self.io.tx_burst(port, &mut self.pool, egress.to_send(), &self.stats);
                self.sampler.record(port, put);
                if tapped {
                    self.out.tap.left(put, &self.stats);
                }
                if traced {
                    self.out.trace.sent(port, put, &self.stats);
                }
                if put > 0
                    && let Some(counters) = self.stats.ports.get(usize::from(port))
                {
                    counters.last_tx_ns.set(now_ns);
                }
            }
        }
        self.sampler.disarm();
        if !self.out.punts.is_empty() {
            let reasons = self.out.punt_reasons.drain(..);
            let punts = self.out.punts.drain(usize::MAX).zip(reasons);
            for (place, (skb, reason)) in punts.enumerate() {
                if self.slow_path.punt(&skb, reason) {
                    self.stats.punt(reason, skb.port);
                } else {
                    self.stats.drop_received(DropReason::PuntFailed, skb.port);
                    if self.out.tap.is_on() {
                        self.out.tap.dropped(&skb, DropReason::PuntFailed);
                    }
                    self.out.trace.punt_failed(place);
                }
                self.pool.kfree_skb(skb);
            }
        }
        for (oif, addr) in self.out.neigh_requests.drain(..) {
            self.slow_path.resolve(oif, addr);
        }
        if self.out.trace.is_on() {
            self.out.trace.deliver();
        }
    }

    /// Offers flows to be offloaded, when their packets were sent: the next ones overtake those that still wait here or
    /// in the receive rings. While `taken`, the packets of this turn, do not show that the rings are empty, offers
    /// wait, but not for longer than [`OFFER_WAIT_NS`].
    #[cold]
    fn hand_over_offers(&mut self, taken: usize, now_ns: u64) {
        let since_ns = *self.offers_since_ns.get_or_insert(now_ns);
        let may_wait = now_ns.saturating_sub(since_ns) < OFFER_WAIT_NS
            && self.out.offers.len() <= OFFERS_WAITING_MAX;
        if taken >= BURST && may_wait {
            return;
        }
        self.offers_since_ns = None;
        for offer in self.out.offers.drain(..) {
            self.slow_path.offer(offer);
        }
    }

    /// Runs the waiting commands. `false`: the control thread has ended.
    fn handle_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Call(call)) => call(&mut self.io, &mut self.pool, &self.stats),
                Ok(Command::Tap(call)) => call(&mut self.out.tap),
                Ok(Command::Traces(call)) => call(&mut self.out.trace),
                Ok(Command::Handoffs(call)) => call(&mut self.handoffs),
                Ok(Command::FrameAccounting(answer)) => {
                    // The caller may have stopped waiting.
                    let _ = answer.send((self.accounting(), self.packet_account()));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn sleep(&mut self) {
        let pending = self.state.held() > 0 || self.io.accounting().tx_and_completion > 0;
        let timeout = if pending { SLEEP_WITH_HELD_MAX } else { SLEEP_MAX };
        self.stats.sleeps.inc();
        self.reader.offline();
        if self.handoffs.may_sleep() {
            if self.io.wait(timeout, self.handoffs.wakeup()) {
                self.stats.wakeups.inc();
            }
            self.handoffs.awake();
        }
        self.reader.online();
        // The system's clock may have been set; update the offset.
        self.state.utc_offset_ns = self.clock.utc_offset_ns();
    }

    /// Processes what is still in the rings, then what other workers still hand over, and waits until
    /// everything is sent.
    fn drain(&mut self) {
        let now_ns = self.drain_until(|_, idle_ns| idle_ns > DRAIN_NS);
        self.with_ctx(now_ns, |_, ctx| pipeline::drop_held(ctx, DropReason::Shutdown));
        self.flush(now_ns);
        self.handoffs.close();
        if self.handoffs.channels_in() > 0 {
            // They close their channels at the same point.
            self.drain_until(|worker, idle_ns| worker.handoffs.is_closed() && idle_ns > 0);
            self.handoffs.drop_all(DropReason::Shutdown, &self.stats);
        }
    }

    /// Runs iterations until `done`, which is passed the time without work, but not longer than a limit.
    /// Returns the time.
    fn drain_until(&mut self, done: impl Fn(&Self, u64) -> bool) -> u64 {
        let start_ns = self.clock.now_ns();
        let mut last_work_ns = start_ns;
        loop {
            let now_ns = self.clock.now_ns();
            if self.turn(now_ns) > 0 || self.io.accounting().tx_and_completion > 0 {
                last_work_ns = now_ns;
            }
            if done(self, now_ns - last_work_ns) || now_ns - start_ns > DRAIN_LIMIT_NS {
                return now_ns;
            }
        }
    }

    /// The account of all packets.
    pub(super) fn packet_account(&self) -> PacketAccount {
        let sending = self.io.accounting().sending;
        self.stats.account(self.state.held_packets() as u64, sending as u64)
    }

    pub(super) fn accounting(&self) -> WorkerFrames {
        let driver = self.io.accounting();
        WorkerFrames {
            total: self.pool.total() as usize,
            free: self.pool.available(),
            fill_and_rx: driver.fill_and_rx,
            tx_and_completion: driver.tx_and_completion,
            draining: driver.draining,
            held: self.state.held(),
        }
    }
}
