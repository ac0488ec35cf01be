//! Ports: where frames come from and go to.
//!
//! - [`PacketIo`]: what a worker asks of a driver, whichever it is;
//! - [`device`]: a port as a network device: its parameters and callbacks;
//! - `mem`: ports in memory, for tests and benchmarks;
//! - `pcap`: ports that are capture files;
//! - `af_xdp`: ports that are queues of network interfaces;
//! - `xsk_rs`: the same through the crate xsk-rs, with the cargo feature of that name;
//! - [`driver`]: the one of these two that the user chose;
//! - [`out_file`]: files that users name for output.
//!
//! A driver moves frames, it never copies one (unless a port takes only packets of one frame, and
//! one is in several) and never allocates after start. It counts what it received, what was sent and
//! what it dropped in the worker's statistics, each packet once.

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

/// Where the frames of a worker are that are neither free in the pool nor held by the worker: the
/// driver's part of the conservation law
/// `free + fill + rx + held + tx + completion + draining = all frames`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameAccounting {
    /// Given to the kernel to receive into, or received and not taken yet (the kernel moves a frame
    /// from the one to the other, so they can only be counted together).
    pub fill_and_rx: usize,
    /// Given to the kernel to send, or sent and not taken back yet.
    pub tx_and_completion: usize,
    /// Of ports that were removed, while it is not certain that the kernel has let go of them. They
    /// come back to the pool when it has.
    pub draining: usize,
    /// Packets given to the kernel to send and not reported as completed: those are neither sent nor
    /// dropped yet. Not a count of frames.
    pub sending: usize,
}

impl FrameAccounting {
    /// Frames the driver has.
    pub fn total(&self) -> usize {
        self.fill_and_rx + self.tx_and_completion + self.draining
    }
}

/// The ports of one worker.
///
/// One turn of a worker: for each port `rx_burst`; then for each port `tx_burst`; then one `kick`.
pub trait PacketIo {
    /// How many ports there are; they are numbered from 0.
    fn ports(&self) -> usize;

    /// Takes received frames of a port, up to the room of `burst`, and keeps the port's fill ring
    /// supplied from `pool`. Sets `port` and `iif` of each packet, and `tstamp_ns` where packets
    /// bring their own time (capture files). Returns how many came. What is not sound is dropped and
    /// counted, both as received and as dropped.
    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize;

    /// How many packets [`Self::tx_burst`] would certainly queue now.
    fn tx_room(&self, port: u16) -> usize;

    /// Queues packets for sending, oldest first, and empties `burst`: what the TX ring cannot take
    /// is dropped and counted (FULL_RING, tx_dropped), as a NIC's full queue does; so is what is for
    /// a port that is down or gone (DEV_READY). Returns how many were queued. They count as sent
    /// (tx_packets) once the kernel says so; until then they are in [`FrameAccounting::sending`].
    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize;

    /// Submits what was queued, wakes the kernel where it asks for it, and takes completed frames
    /// back into `pool`. Called every turn, also when nothing was queued: frames under way need it.
    fn kick(&mut self, pool: &mut FramePool, stats: &WorkerStats);

    /// Sleeps until a frame may have arrived, or `wakeup` can be read, at most `timeout`; `true`: one of
    /// the two. May return early.
    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool;

    /// Frames the driver holds now.
    fn accounting(&self) -> FrameAccounting;

    /// Closes all ports: what still waits to be taken or sent is dropped and counted (DEV_READY). For a
    /// driver whose packets wait nowhere there is nothing to do.
    fn close_all(&mut self, _pool: &mut FramePool, _stats: &WorkerStats) {}
}

/// Drops what a TX ring could not take, as a NIC's full queue does: counted, frames freed.
fn drop_unsent(port: u16, pool: &mut FramePool, burst: &mut Burst, stats: &WorkerStats) {
    drop_all(DropReason::FullRing, port, pool, burst, stats);
}

/// Empties `burst`, which was meant for `port`: each packet is counted under `reason` and as
/// tx_dropped, its frame freed.
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
