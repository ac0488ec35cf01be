//! Ports that are queues of network interfaces, through AF_XDP sockets
//! (Documentation/networking/af_xdp.rst; needs Linux 5.4 or later).
//!
//! - [`AfXdp`]: the ports of one worker over one packet memory, so that a frame goes from any
//!   port's RX ring to any port's TX ring without a copy;
//! - `port_table`: these ports by number, and how they share the memory's frames;
//! - `area`: that memory;
//! - `slots`: keeps the tokens of frames while the kernel has the frames;
//! - `ring`, `socket`: the kernel interface;
//! - `bind`: binding modes; `port`: receiving and sending; `close`: accounting of packets when a
//!   port is closed; `rx_chain`: received packets of several descriptors;
//! - [`AfXdpDevice`]: a port as a network device;
//! - [`HeartbeatPage`]: heartbeats of threads for the XDP program;
//! - [`link`]: attaches an XDP program in a given mode;
//! - [`bpf`]: queries about programs of other owners.
//!
//! The XDP program and the XSKMAP are managed elsewhere: [`AfXdp::socket_fd`] returns the
//! descriptor for the map. Attach the program after the sockets are open: some drivers (igb) fill
//! their RX rings then, from fill rings that must already be full.
//!
//! The rings are driven here, without libxdp and its bindings, because those bind before the fill
//! ring can be filled, cannot release the first socket of a shared UMEM, and bind all sockets that
//! share one in the first one's mode. `io/xsk_rs` is a driver on them with these limits; it uses the
//! port table and the types of ports, errors and statistics defined here.

mod area;
mod bind;
pub mod bpf;
mod close;
mod device;
pub(super) mod error;
mod heartbeat;
pub mod hook_iter;
pub mod link;
pub mod mapped_words;
mod membership;
mod net_iter;
pub(super) mod netdev;
mod port;
pub(super) mod port_table;
mod ring;
mod rx_chain;
pub mod rx_handlers;
pub(super) mod slots;
pub(super) mod socket;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use self::area::Area;
use self::membership::Membership;
use self::port::Port;
use self::port_table::{PortTable, SocketPort};
use self::slots::{Owner, Slots};
use self::socket::{Layout, Socket};
use super::{FrameAccounting, PacketIo, drop_all};
use crate::skb::{Burst, FramePool};
use crate::stats::{DropReason, WorkerStats};

pub use device::AfXdpDevice;
pub use error::OpenError;
pub use heartbeat::{HeartbeatPage, is_fresh};
pub use net_iter::DeviceLayout;
pub use netdev::{driver_info, driver_name, netns_id};
pub use socket::is_bound;

/// The requested binding mode of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BindMode {
    /// Zero-copy if the driver supports it, otherwise copy.
    #[default]
    Auto,
    /// Zero-copy, or an error.
    ZeroCopy,
    /// Copy, even if the driver supports zero-copy.
    Copy,
}

/// The mode in which a socket was bound, as the kernel reports it (XDP_OPTIONS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundMode {
    /// The NIC reads and writes the frames directly.
    ZeroCopy,
    /// The kernel copies packets into and out of the frames.
    Copy,
}

impl std::fmt::Display for BoundMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            BoundMode::ZeroCopy => "zero-copy",
            BoundMode::Copy => "copy",
        })
    }
}

/// The state of a port's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// In service.
    Up,
    /// The kernel does not send on it now (ENETDOWN); sending is retried automatically.
    Down,
    /// The interface no longer exists. Remove the port; it can be added again when the interface
    /// exists again.
    Gone,
}

/// Configuration of a port: a queue of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortConfig {
    /// Name of the interface, for messages.
    pub ifname: String,
    /// Its index in the network namespace of the calling thread.
    pub ifindex: u32,
    /// The queue, counted from 0.
    pub queue: u32,
    /// The requested mode.
    pub mode: BindMode,
    /// Whether packets that do not fit in one frame may take several, if the kernel supports it
    /// (XDP_USE_SG, Linux 6.6).
    pub multi_buffer: bool,
    /// Maximum descriptors of a packet that the driver sends in zero-copy mode (`xdp-zc-max-segs`
    /// of netdev netlink).
    pub zerocopy_segments: u32,
}

/// Sizes of a port's rings in frames, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Fill ring and RX ring: maximum packets waiting for the worker.
    pub fill: u32,
    /// TX ring and completion ring: maximum packets waiting for the kernel.
    pub tx: u32,
}

impl Default for RingSizes {
    /// 2048: a worker that does not run for 2 ms at 1 Mpps loses no packets.
    fn default() -> RingSizes {
        RingSizes { fill: 2048, tx: 2048 }
    }
}

/// Options that all ports of a worker share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Ring sizes.
    pub rings: RingSizes,
    /// Frames in addition to those that fill every ring: for bursts being processed, packets
    /// waiting for neighbour resolution, fragments, own packets.
    pub reserve: u32,
    /// How often binding to a busy queue is tried. A queue stays busy for a while after it was
    /// closed.
    pub busy_tries: u32,
    /// Pause between two tries.
    pub busy_pause: Duration,
    /// Busy polling: maximum packets that the kernel takes from a queue for each poll requested
    /// through a socket; `None`: the kernel polls on interrupts. Needs Linux 5.11 and
    /// CAP_NET_ADMIN.
    pub busy_poll_budget: Option<u16>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            rings: RingSizes::default(),
            reserve: 1024,
            busy_tries: 50,
            busy_pause: Duration::from_millis(20),
            busy_poll_budget: None,
        }
    }
}

/// XDP_STATISTICS: the kernel's counters of sockets, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpStatistics {
    /// Dropped for reasons without a separate counter.
    pub rx_dropped: u64,
    /// Dropped because of an invalid address in the fill ring.
    pub rx_invalid_descs: u64,
    /// Not sent because of an invalid descriptor in the TX ring.
    pub tx_invalid_descs: u64,
    /// Dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the TX ring empty.
    pub tx_ring_empty_descs: u64,
}

impl XdpStatistics {
    /// Adds what was counted for another socket.
    pub(super) fn add(&mut self, other: &XdpStatistics) {
        self.rx_dropped += other.rx_dropped;
        self.rx_invalid_descs += other.rx_invalid_descs;
        self.tx_invalid_descs += other.tx_invalid_descs;
        self.rx_ring_full += other.rx_ring_full;
        self.rx_fill_ring_empty_descs += other.rx_fill_ring_empty_descs;
        self.tx_ring_empty_descs += other.tx_ring_empty_descs;
    }
}

/// State of an open port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// The requested configuration.
    pub config: PortConfig,
    /// The mode in which it was bound.
    pub mode: BoundMode,
    /// The errno with which the driver refused zero-copy, if it was tried.
    pub no_zerocopy: Option<i32>,
    /// Whether packets may take several frames.
    pub multi_buffer: bool,
    /// The state of the interface.
    pub state: PortState,
}

/// The AF_XDP ports of one worker.
///
/// Dropping it closes the sockets, but loses the frames in their rings; [`AfXdp::close`] recovers
/// them.
#[derive(Debug)]
pub struct AfXdp {
    // Declared first, so that sockets close before the memory they use is unmapped.
    table: PortTable<Port>,
    slots: Slots,
    draining: Vec<Draining>,
    area: Arc<Area>,
    /// Number of the next binding; see [`Owner`].
    next_binding: u32,
    /// By port: memberships for frames to other addresses.
    memberships: Vec<Option<Membership>>,
}

/// A closed zero-copy port whose NIC may still write to its frames.
#[derive(Debug)]
struct Draining {
    owners: [Owner; 2],
    ifindex: u32,
    queue: u32,
    frames: usize,
}

impl AfXdp {
    /// Opens `ports`, numbered by position, with memory for all of them; returns the pool of that
    /// memory. The sockets belong to the network namespace of the calling thread.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing stays open then.
    pub fn open(ports: &[PortConfig], options: &Options) -> Result<(AfXdp, FramePool), OpenError> {
        let (mut io, mut pool) = AfXdp::with_slots(ports.len(), ports.len(), options)?;
        for (port, config) in ports.iter().enumerate() {
            io.add_port(port as u16, config, &mut pool)?;
        }
        Ok((io, pool))
    }

    /// Opens no ports, but reserves numbers for `ports` of them, to be opened one by one, and
    /// memory for `expected`. If more are open, they share the memory, so fewer packets can wait at
    /// each. More than 1024 ports beyond the expected ones may get no memory.
    ///
    /// # Errors
    /// [`OpenError::BadOptions`], [`OpenError::NoMemory`].
    pub fn with_slots(
        ports: usize,
        expected: usize,
        options: &Options,
    ) -> Result<(AfXdp, FramePool), OpenError> {
        let (table, frames) = PortTable::new(ports, expected, options)?;
        let (area, pool) = Area::map(frames).map_err(|source| OpenError::NoMemory {
            octets: u64::from(frames) * crate::skb::FRAME_SIZE as u64,
            source,
        })?;
        let io = AfXdp {
            table,
            slots: Slots::new(area.start(), area.frames()),
            draining: Vec::new(),
            area,
            next_binding: 0,
            memberships: (0..ports).map(|_| None).collect(),
        };
        Ok((io, pool))
    }

    /// Opens port number `port`, which is not open now.
    ///
    /// May sleep, see [`Options::busy_tries`], and takes the kernel's RTNL lock.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has changed then.
    pub fn add_port(
        &mut self,
        port: u16,
        config: &PortConfig,
        pool: &mut FramePool,
    ) -> Result<(), OpenError> {
        self.table.check_free(port)?;
        if pool.available() < self.table.share_of_next() {
            self.reclaim(pool);
        }
        let fill = self.table.fill_of_next(&config.ifname, pool.available())?;
        let (binding, options) = (self.next_binding, self.table.options());
        let opened = Port::open(config, options, binding, fill, &self.area, &mut self.slots, pool)?;
        self.next_binding += 1;
        self.table.insert(port, opened);
        // The previous user has released the queue, or binding would have failed.
        self.reclaim_where(pool, |d| (d.ifindex, d.queue) == (config.ifindex, config.queue));
        Ok(())
    }

    /// Closes a port and returns its frames to `pool`; its number stays reserved. Frames that a NIC
    /// may still write to are returned later, see [`AfXdp::reclaim`]. Packets that were waiting to
    /// be sent or received are dropped and counted (DEV_READY); those that the kernel has taken
    /// from the TX ring count as sent, as they do while the port is open. A NIC in zero-copy mode
    /// gets up to 30 ms to complete its packets. To lose no received packets, remove the socket
    /// from the XSKMAP and process a few bursts first.
    pub fn remove_port(&mut self, port: u16, pool: &mut FramePool, stats: &WorkerStats) {
        let Some(mut closed) = self.table.take(port) else { return };
        closed.finish(port, &mut self.slots, pool, stats);
        self.table.keep_statistics(port, &closed);
        let (owners, (rx, tx)) = (closed.owners(), closed.frames());
        let draining = Draining {
            owners,
            ifindex: closed.config.ifindex,
            queue: closed.config.queue,
            frames: rx + tx,
        };
        let zerocopy = closed.mode == BoundMode::ZeroCopy;
        // close(2) returns when no CPU is in the receive path any more (xsk_unbind_dev:
        // synchronize_net). In copy mode nothing else writes to frames. A NIC's own access ends
        // later, in the kernel's deferred release of the pool (xp_release_deferred).
        drop(closed);
        self.draining.push(draining);
        if !zerocopy {
            self.reclaim_where(pool, |d| d.owners == owners);
        }
        self.reclaim(pool);
    }

    /// Returns frames of removed ports that the kernel has released since. Returns the number of
    /// frames that are not released yet. Makes system calls: do not call it for every burst.
    pub fn reclaim(&mut self, pool: &mut FramePool) -> usize {
        if !self.draining.is_empty() {
            let released: Vec<[Owner; 2]> = self
                .draining
                .iter()
                .filter(|d| self.is_released(d.ifindex, d.queue))
                .map(|d| d.owners)
                .collect();
            self.reclaim_where(pool, |d| released.contains(&d.owners));
        }
        self.draining.iter().map(|d| d.frames).sum()
    }

    /// Whether none of our pools is on the queue any more. The kernel disables a zero-copy pool
    /// before it removes it from the queue (xp_clear_dev), and a queue with a pool is busy.
    fn is_released(&self, ifindex: u32, queue: u32) -> bool {
        if !netdev::exists(ifindex) {
            // Unregistering an interface waits for the release (xsk_notifier).
            return true;
        }
        let probe = || -> Result<(), io::Error> {
            let (area, _pool) = Area::map(1)?;
            let sizes = RingSizes { fill: 1, tx: 1 };
            let socket =
                Socket::open(&area, Layout::Aligned, &sizes).map_err(|(_, error)| error)?;
            socket.bind(ifindex, queue, libc::XDP_COPY)
        };
        probe().is_ok()
    }

    fn reclaim_where(&mut self, pool: &mut FramePool, released: impl Fn(&Draining) -> bool) {
        let slots = &mut self.slots;
        self.draining.retain(|draining| {
            let released = released(draining);
            if released {
                for owner in draining.owners {
                    slots.reclaim(owner, pool);
                }
            }
            !released
        });
    }

    /// Closes all ports and returns their frames to the pool. Returns the number of frames that are
    /// not returned because a NIC may still write to them; the memory then stays mapped.
    pub fn close(mut self, pool: &mut FramePool, stats: &WorkerStats) -> usize {
        self.close_all(pool, stats);
        for _ in 0..self.table.options().busy_tries {
            if self.reclaim(pool) == 0 {
                return 0;
            }
            std::thread::sleep(self.table.options().busy_pause);
        }
        self.reclaim(pool)
    }

    /// The socket of a port, for the XSKMAP entry of the port's queue. Removing the port closes it,
    /// which also removes it from the map.
    pub fn socket_fd(&self, port: u16) -> Option<BorrowedFd<'_>> {
        self.table.get(port).map(Port::fd)
    }

    /// The state of a port. `None`: removed, or never opened. Checks whether the interface still
    /// exists.
    pub fn port_info(&mut self, port: u16) -> Option<PortInfo> {
        self.table.get_mut(port).map(Port::info)
    }

    /// Whether a port can send, as last noticed. `None`: removed, or never opened. Makes no system
    /// call.
    pub fn tx_state(&self, port: u16) -> Option<PortState> {
        self.table.get(port).map(Port::tx_state)
    }

    /// The kernel's counters of a port, including sockets that were closed before.
    ///
    /// # Errors
    /// Errors of getsockopt(2); ENOENT for an invalid port number.
    pub fn statistics(&self, port: u16) -> io::Result<XdpStatistics> {
        self.table.statistics(port)
    }

    /// Call when a port number is used for another interface: drops the counters of closed sockets.
    pub fn forget_statistics(&mut self, port: u16) {
        self.table.forget_statistics(port);
    }
}

impl PacketIo for AfXdp {
    fn ports(&self) -> usize {
        self.table.used()
    }

    #[inline]
    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        match self.table.get_mut(port) {
            Some(this) => this.rx_burst(port, &mut self.slots, pool, burst, stats),
            None => 0,
        }
    }

    fn tx_room(&self, port: u16) -> usize {
        self.table.get(port).map_or(0, Port::tx_room_up)
    }

    #[inline]
    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if let Some(this) = self.table.get_mut(port) {
            return this.tx_burst(port, &mut self.slots, pool, burst, stats);
        }
        drop_all(DropReason::DevNotReady, port, pool, burst, stats);
        0
    }

    #[inline]
    fn kick(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        for (port, this) in self.table.iter_mut() {
            this.kick(port, &mut self.slots, pool, stats);
        }
    }

    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool {
        self.table.wait(timeout, wakeup)
    }

    fn close_all(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        for port in 0..self.table.used() {
            self.remove_port(port as u16, pool, stats);
        }
    }

    fn accounting(&self) -> FrameAccounting {
        let draining = self.draining.iter().map(|d| d.frames).sum();
        FrameAccounting { draining, ..self.table.accounting() }
    }
}
