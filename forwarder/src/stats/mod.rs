//! Counters: named drops, the kernel's MIB counters, and per-port counters.
//!
//! One [`WorkerStats`] per worker. Only the worker writes it, with plain loads and stores (an atomic with
//! one writer needs no locked instruction); any thread may read it at any time.

mod account;
pub mod counter;
pub mod drop_reason;
pub mod histogram;
pub mod mib;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use account::PacketAccount;
pub use counter::Counter;
pub use drop_reason::{DropReason, PuntReason};
pub use histogram::HdrCounters;
pub use mib::Mib;

/// Frames and octets of one port as counted by one worker; octets include the Ethernet header.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PortStats {
    /// Packets taken from RX rings, including invalid ones.
    pub rx_packets: Counter,
    /// Octets of the valid ones.
    pub rx_bytes: Counter,
    /// Packets sent: taken from TX rings and reported as completed.
    pub tx_packets: Counter,
    /// Octets of those.
    pub tx_bytes: Counter,
    /// Packets received on this port that were dropped before they reached the queue of an outgoing port,
    /// for any reason.
    pub rx_dropped: Counter,
    /// Packets for this port that were dropped at its queue or after it.
    pub tx_dropped: Counter,
    /// Packets received on this port that were punted.
    pub punted: Counter,
    /// When frames were last put on its TX ring, by the worker's clock in nanoseconds; 0: never.
    pub last_tx_ns: Counter,
}

impl PortStats {
    /// Resets the counters; only the worker may call this.
    fn reset(&self) {
        let PortStats {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            rx_dropped,
            tx_dropped,
            punted,
            last_tx_ns,
        } = self;
        for counter in
            [rx_packets, rx_bytes, tx_packets, tx_bytes, rx_dropped, tx_dropped, punted, last_tx_ns]
        {
            counter.set(0);
        }
    }
}

/// Packets that a worker punted and that the kernel did not take. Other threads than the worker write it,
/// so unlike a [`Counter`] it uses locked additions.
#[derive(Debug)]
#[repr(align(64))]
pub struct Undelivered {
    by_reason: [AtomicU64; PuntReason::COUNT],
    /// Indexed by the worker's port index.
    by_port: Box<[AtomicU64]>,
}

impl Undelivered {
    fn new(ports: usize) -> Undelivered {
        Undelivered {
            by_reason: std::array::from_fn(|_| AtomicU64::default()),
            by_port: (0..ports).map(|_| AtomicU64::default()).collect(),
        }
    }

    /// Counts a packet received by `port` and punted for `reason`.
    pub fn count(&self, reason: PuntReason, port: u16) {
        self.by_reason[reason as usize].fetch_add(1, Relaxed);
        if let Some(counter) = self.by_port.get(usize::from(port)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// For all reasons and ports.
    pub fn total(&self) -> u64 {
        self.by_reason.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// For one reason.
    pub fn of_reason(&self, reason: PuntReason) -> u64 {
        self.by_reason[reason as usize].load(Relaxed)
    }

    /// For one port.
    pub fn of_port(&self, port: u16) -> u64 {
        self.by_port.get(usize::from(port)).map_or(0, |count| count.load(Relaxed))
    }

    /// Resets the counters of a port that is another interface now.
    fn forget_port(&self, port: u16) {
        if let Some(counter) = self.by_port.get(usize::from(port)) {
            counter.store(0, Relaxed);
        }
    }
}

/// Time spent in iterations that took a frame and were not interrupted; zeros unless enabled.
#[derive(Debug, Default)]
pub struct Cost {
    /// Frames of those iterations.
    pub frames: Counter,
    /// Nanoseconds in userspace.
    pub user_ns: Counter,
    /// Nanoseconds in the driver's kick: its system calls, and what they complete.
    pub kick_ns: Counter,
}

/// All counters of one worker.
#[derive(Debug)]
#[repr(align(64))]
pub struct WorkerStats {
    /// Iterations of the worker's loop (NAPI: polls).
    pub turns: Counter,
    /// Those that took a frame.
    pub busy_turns: Counter,
    /// Bursts that were full: more may have been waiting (NAPI: the budget was exhausted).
    pub full_bursts: Counter,
    /// Times the worker slept.
    pub sleeps: Counter,
    /// Sleeps that a frame ended.
    pub wakeups: Counter,
    /// Nanoseconds in iterations that took no frame, and asleep.
    pub idle_ns: Counter,
    /// Packets handed over to another worker because this one has no queue on the output port.
    pub handed_over_out: Counter,
    /// Packets that other workers handed over to this one for sending.
    pub handed_over_in: Counter,
    /// Packets created by the router: ICMP errors, fragments, and packets made of fragments.
    pub made: Counter,
    /// Packets that were replaced by their fragments.
    pub fragmented: Counter,
    /// Fragments that were replaced by the packet that they make.
    pub reassembled: Counter,
    /// Packets that ports received and sent before they became other interfaces.
    forgotten: [Counter; 2],
    /// The cost of a frame, if the worker measures it.
    pub cost: Cost,
    /// Drops by [`DropReason`], without those counted by other threads, see [`WorkerStats::drop_count`].
    pub drops: [Counter; DropReason::COUNT],
    /// Punted packets by [`PuntReason`], including those that the kernel did not take, see
    /// [`WorkerStats::punt_count`].
    pub punts: [Counter; PuntReason::COUNT],
    /// Punted packets that the kernel did not take.
    pub undelivered: Undelivered,
    /// Counters as `nstat` prints them, by [`Mib`].
    pub mib: [Counter; Mib::COUNT],
    /// By the worker's port index.
    pub ports: Box<[PortStats]>,
}

impl WorkerStats {
    /// A port's slots in the driver: the port's own number, and every `ports`th after it.
    pub fn slots_of(&self, port: u16, ports: u16) -> impl Iterator<Item = (u16, &PortStats)> {
        let slots = (0u16..).zip(&self.ports).skip(usize::from(port));
        slots.step_by(usize::from(ports.max(1)))
    }

    /// Zeroed counters for `ports` ports.
    pub fn new(ports: usize) -> WorkerStats {
        WorkerStats {
            turns: Counter::default(),
            busy_turns: Counter::default(),
            full_bursts: Counter::default(),
            sleeps: Counter::default(),
            wakeups: Counter::default(),
            idle_ns: Counter::default(),
            handed_over_out: Counter::default(),
            handed_over_in: Counter::default(),
            made: Counter::default(),
            fragmented: Counter::default(),
            reassembled: Counter::default(),
            forgotten: Default::default(),
            cost: Cost::default(),
            undelivered: Undelivered::new(ports),
            drops: std::array::from_fn(|_| Counter::default()),
            punts: std::array::from_fn(|_| Counter::default()),
            mib: std::array::from_fn(|_| Counter::default()),
            ports: (0..ports).map(|_| PortStats::default()).collect(),
        }
    }

    /// Counts one drop.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].inc();
    }

    /// Counts a packet for an output port that is dropped (tx_dropped).
    #[cold]
    pub fn tx_drop(&self, reason: DropReason, port: u16) {
        self.drop(reason);
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.tx_dropped.inc();
        }
    }

    /// Counts packets for an output port that are dropped.
    pub fn tx_drops(&self, reason: DropReason, port: u16, packets: u64) {
        self.drops[reason as usize].add(packets);
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.tx_dropped.add(packets);
        }
    }

    /// Counts a packet received on a port that is dropped (rx_dropped).
    #[cold]
    pub fn drop_received(&self, reason: DropReason, port: u16) {
        self.drop(reason);
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.rx_dropped.inc();
        }
    }

    /// Counts a packet that a port's driver receives and drops.
    #[cold]
    pub fn rx_drop(&self, reason: DropReason, port: u16) {
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.rx_packets.inc();
        }
        self.drop_received(reason, port);
    }

    /// Counts a packet received on a port and punted.
    #[cold]
    pub fn punt(&self, reason: PuntReason, port: u16) {
        self.punts[reason as usize].inc();
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.punted.inc();
        }
    }

    /// Resets all slots of a port that is another interface from now on. Only the worker may call this.
    pub fn forget_port(&self, port: u16, ports: u16) {
        for (_, slot) in self.slots_of(port, ports) {
            let [received, sent] = &self.forgotten;
            received.add(slot.rx_packets.get());
            sent.add(slot.tx_packets.get());
            slot.reset();
        }
        self.undelivered.forget_port(port);
    }

    /// Adds one to a MIB counter.
    #[inline]
    pub fn mib(&self, name: Mib) {
        self.mib[name as usize].inc();
    }

    /// Drops for all reasons together.
    pub fn drops_total(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum::<u64>() + self.undelivered.total()
    }
}
