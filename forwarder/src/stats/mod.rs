//! What is counted: named drops, the kernel's MIB counters, and per-port figures.
//!
//! One [`WorkerStats`] a worker. The worker alone writes it, with plain loads and stores (an atomic
//! with one writer needs no locked instruction); anyone may read it at any time.

pub mod counter;
pub mod drop_reason;
pub mod hdr;
pub mod mib;

pub use counter::Counter;
pub use drop_reason::{DropReason, PuntReason};
pub use hdr::HdrCounters;
pub use mib::Mib;

/// Frames and octets of one port as one worker saw them; octets include the Ethernet header.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PortStats {
    /// Frames taken from RX rings.
    pub rx_packets: Counter,
    /// Octets of those.
    pub rx_bytes: Counter,
    /// Frames put on TX rings.
    pub tx_packets: Counter,
    /// Octets of those.
    pub tx_bytes: Counter,
    /// Frames that came in by this port and were dropped, whatever the reason.
    pub rx_dropped: Counter,
    /// Frames meant for this port that its TX ring could not take.
    pub tx_dropped: Counter,
    /// Frames that came in by this port and were handed back to the kernel.
    pub punted: Counter,
    /// When frames were last put on its TX ring, by the worker's clock in nanoseconds; 0: never.
    pub last_tx_ns: Counter,
}

impl PortStats {
    /// Begins anew; only the worker may. Gives what was counted as packets received, sent, and handed
    /// back to the kernel.
    pub fn reset(&self) -> [u64; 3] {
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
        let counted = [rx_packets, tx_packets, punted].map(Counter::get);
        for counter in
            [rx_packets, rx_bytes, tx_packets, tx_bytes, rx_dropped, tx_dropped, punted, last_tx_ns]
        {
            counter.set(0);
        }
        counted
    }
}

/// Time spent in turns that took a frame and were not interrupted; zeros unless asked for.
#[derive(Debug, Default)]
pub struct Cost {
    /// Frames of those turns.
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
    /// Turns of the worker's loop: polls, in NAPI's words.
    pub turns: Counter,
    /// Those of them that took a frame.
    pub busy_turns: Counter,
    /// Bursts that were full: more may have been waiting (NAPI: the budget was exhausted).
    pub full_bursts: Counter,
    /// Times the worker slept.
    pub sleeps: Counter,
    /// Those of them that a frame ended.
    pub wakeups: Counter,
    /// Nanoseconds in turns that took no frame, and asleep.
    pub idle_ns: Counter,
    /// Packets that left by another worker's queue, the port having none of this one's.
    pub crossed_out: Counter,
    /// Packets of other workers that this one was given to send.
    pub crossed_in: Counter,
    /// What a frame costs, where the worker accounts for it.
    pub cost: Cost,
    /// Drops by [`DropReason`].
    pub drops: [Counter; DropReason::COUNT],
    /// Frames handed back to the kernel, by [`PuntReason`].
    pub punts: [Counter; PuntReason::COUNT],
    /// Counters as `nstat` prints them, by [`Mib`].
    pub mib: [Counter; Mib::COUNT],
    /// By the worker's port index.
    pub ports: Box<[PortStats]>,
}

impl WorkerStats {
    /// A port's slots in the driver: every `ports`th, from the port's own number on.
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
            crossed_out: Counter::default(),
            crossed_in: Counter::default(),
            cost: Cost::default(),
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

    /// Counts a packet that was to leave by a port and is dropped (tx_dropped).
    #[cold]
    pub fn tx_drop(&self, reason: DropReason, port: u16) {
        self.drop(reason);
        if let Some(counters) = self.ports.get(usize::from(port)) {
            counters.tx_dropped.inc();
        }
    }

    /// Counts one frame handed back to the kernel.
    #[inline]
    pub fn punt(&self, reason: PuntReason) {
        self.punts[reason as usize].inc();
    }

    /// Adds one to a MIB counter.
    #[inline]
    pub fn mib(&self, name: Mib) {
        self.mib[name as usize].inc();
    }

    /// Drops of every reason together.
    pub fn drops_total(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }
}
