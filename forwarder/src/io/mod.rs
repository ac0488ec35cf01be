//! Ports: drivers that receive and send frames.
//!
//! - [`PacketIo`]: the driver interface that workers use;
//! - [`device`]: a port as a network device: its parameters and callbacks;
//! - `mem`: ports in memory, for tests and benchmarks;
//! - `pcap`: ports that are capture files;
//! - `af_xdp`: ports that are queues of network interfaces;
//! - `xsk_rs`: the same through the crate xsk-rs, with the cargo feature of that name;
//! - [`driver`]: the one of these two that the user chose;
//! - [`out_file`]: files that users name for output.
//!
//! A driver moves frames without copying them (except a packet of several frames on a port that
//! sends only single-frame packets), and does not allocate after the start. It counts received,
//! sent and dropped packets in the worker's statistics, each packet once.

pub mod af_xdp;
pub mod device;
pub mod driver;
pub mod mem;
pub mod out_file;
pub mod pcap;
#[cfg(feature = "xsk-rs")]
pub mod xsk_rs;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::skb::{Burst, FramePool};
use crate::stats::{DropReason, WorkerStats};

pub use driver::{Driver, DriverKind};
pub use mem::MemIo;

/// Frames of a worker that are neither free in the pool nor held by the worker: the driver's part
/// of the equation `free + fill + rx + held + tx + completion + draining = all frames`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameAccounting {
    /// Given to the kernel to receive into, or received and not taken yet (the kernel moves frames
    /// from one ring to the other, so they can only be counted together).
    pub fill_and_rx: usize,
    /// Given to the kernel to send, or sent and not reclaimed yet.
    pub tx_and_completion: usize,
    /// Frames of removed ports that the kernel may not have released yet. They return to the pool
    /// when it has.
    pub draining: usize,
    /// Packets given to the kernel to send and not reported as completed; they are neither sent nor
    /// dropped yet. Not a count of frames.
    pub sending: usize,
}

impl FrameAccounting {
    /// Total frames of the driver.
    pub fn total(&self) -> usize {
        self.fill_and_rx + self.tx_and_completion + self.draining
    }
}

/// The ports of one worker.
///
/// One burst of a worker: `rx_burst` for each port, then `tx_burst` for each port, then one `kick`.
pub trait PacketIo {
    /// The number of ports, which are numbered from 0.
    fn ports(&self) -> usize;

    /// Takes received frames of a port, up to the room of `burst`, and refills the port's fill ring
    /// from `pool`. Sets `port` and `iif` of each packet, and `tstamp_ns` if packets have a time
    /// stamp (capture files). Returns the number of packets. Invalid packets are dropped and
    /// counted, both as received and as dropped.
    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize;

    /// How many packets [`Self::tx_burst`] is certain to queue now.
    fn tx_room(&self, port: u16) -> usize;

    /// Queues packets for sending, oldest first, and empties `burst`. Packets that do not fit in
    /// the TX ring are dropped and counted (FULL_RING, tx_dropped), as by a NIC's full queue; so
    /// are packets for a port that is down or gone (DEV_READY). Returns the number of queued
    /// packets. They count as sent (tx_packets) when the kernel completes them; until then they are
    /// in [`FrameAccounting::sending`].
    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize;

    /// Submits queued packets, wakes the kernel if it requests that, and returns completed frames
    /// to `pool`. Call it after every burst, even if nothing was queued: in-flight frames need it.
    fn kick(&mut self, pool: &mut FramePool, stats: &WorkerStats);

    /// Sleeps until a frame may have arrived or `wakeup` is readable, at most `timeout`; returns
    /// whether one of these happened. May return early.
    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool;

    /// Frames the driver holds now.
    fn accounting(&self) -> FrameAccounting;

    /// Closes all ports: packets waiting to be received or sent are dropped and counted
    /// (DEV_READY). The default is for drivers in which no packets wait.
    fn close_all(&mut self, _pool: &mut FramePool, _stats: &WorkerStats) {}
}

/// Drops packets that do not fit in a TX ring, as a NIC's full queue does: counts them and frees
/// their frames.
fn drop_unsent(port: u16, pool: &mut FramePool, burst: &mut Burst, stats: &WorkerStats) {
    drop_all(DropReason::FullRing, port, pool, burst, stats);
}

/// Drops the packets of `burst`, which are for `port`: counts each under `reason` and as
/// tx_dropped, and frees its frame.
fn drop_all(
    reason: DropReason,
    port: u16,
    pool: &mut FramePool,
    burst: &mut Burst,
    stats: &WorkerStats,
) {
    for skb in burst.drain(usize::MAX) {
        stats.tx_drop(reason, port);
        pool.kfree_skb(skb);
    }
}
