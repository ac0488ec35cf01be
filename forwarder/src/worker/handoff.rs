//! Handing packets over to the worker that has a TX queue on their port (VPP: handoff).
//!
//! Where a port has fewer queues than there are workers, a worker without a queue of its own sends on the
//! queue of another worker. Workers share no frames: the sender copies a packet into a buffer of a
//! bounded [`channel`] and frees its frames; the receiver copies it into frames of its own and sends it.
//! The buffers are allocated with the channel and reused. When all are in use the packet is dropped
//! (CPU_BACKLOG), as the kernel does when the backlog of another CPU is full (`enqueue_to_backlog`).
//!
//! All packets of an RX queue for a port use the same channel, which is first in, first out, so the order
//! within flows is kept.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::pipeline::RoutedBurst;
use crate::skb::burst::BURST;
use crate::skb::{Burst, FramePool, MAX_JUMBO, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// [`MAX_JUMBO`] octets for a packet. Pages that are never written take no memory.
type Buffer = Box<[u8]>;

/// A packet that is handed over, from its Ethernet header.
#[derive(Debug)]
struct HandoffPacket {
    buffer: Buffer,
    len: usize,
    /// The output port.
    oif: u16,
    /// The input port, see [`SkBuff::port`].
    port: u16,
    iif: u32,
    timed: bool,
    tstamp_ns: u64,
    /// When it was handed over, in nanoseconds of CLOCK_MONOTONIC.
    sent_ns: u64,
}

/// Wakes a sleeping worker; for a worker that is awake it costs one load.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    /// A waker of a worker that is awake.
    ///
    /// # Errors
    /// Errors of eventfd(2), such as EMFILE.
    pub fn new() -> std::io::Result<Arc<Waker>> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Waker { event, asleep: AtomicBool::new(false) }))
    }

    /// Called by the sender after it has queued packets.
    fn wake(&self) {
        // Pairs with the fence in `fall_asleep`: either we see that it sleeps, or it sees our packets.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // Fails only when the counter would overflow; it is readable then anyway.
            let _ = self.event.write(1);
        }
    }

    /// Called by the worker before its last check for packets.
    fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        // A sender may write after this; the next sleep is then short.
        let _ = self.event.read();
    }
}

/// The sender's end of a channel.
#[derive(Debug)]
pub struct HandoffTx {
    /// Number of the receiving worker.
    to: usize,
    full: Sender<HandoffPacket>,
    empty: Receiver<Buffer>,
    waker: Arc<Waker>,
}

/// The receiver's end of a channel.
#[derive(Debug)]
pub struct HandoffRx {
    full: Receiver<HandoffPacket>,
    empty: Sender<Buffer>,
    /// The sender has closed it, and all packets were taken.
    is_closed: bool,
}

/// A channel for `packets` packets to worker number `to`, which `waker` wakes.
pub fn channel(packets: usize, to: usize, waker: Arc<Waker>) -> (HandoffTx, HandoffRx) {
    let (recycle, empty) = bounded(packets);
    let (full, handoff) = bounded(packets);
    for _ in 0..packets {
        // There is room for each.
        let _ = recycle.try_send(vec![0; MAX_JUMBO].into_boxed_slice());
    }
    (
        HandoffTx { to, full, empty, waker },
        HandoffRx { full: handoff, empty: recycle, is_closed: false },
    )
}

impl HandoffTx {
    /// Number of packets for which a buffer is certainly free now.
    pub(super) fn room(&self) -> usize {
        self.empty.len()
    }

    /// Hands over the first `room` packets, to be sent on port `oif`, and empties `egress`: the others
    /// are dropped and counted (CPU_BACKLOG, tx_dropped). `now_ns` is CLOCK_MONOTONIC.
    pub(super) fn send(
        &self,
        oif: u16,
        room: usize,
        now_ns: u64,
        egress: &mut Burst,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let packets = egress.len();
        let mut sent = 0;
        for (n, skb) in egress.drain(usize::MAX).enumerate() {
            let len = skb.len();
            if n < room
                && len <= MAX_JUMBO
                && let Ok(mut buffer) = self.empty.try_recv()
            {
                // Cannot fail: `len` is the packet's length.
                let _ = skb.copy_bits(0, &mut buffer[..len]);
                let handoff = HandoffPacket {
                    len,
                    buffer,
                    oif,
                    port: skb.port,
                    iif: skb.iif,
                    timed: skb.timed,
                    tstamp_ns: skb.tstamp_ns,
                    sent_ns: now_ns,
                };
                // Fails only if the worker has ended: there are no more packets than buffers.
                sent += usize::from(self.full.try_send(handoff).is_ok());
            }
            pool.kfree_skb(skb);
        }
        self.waker.wake();
        stats.handed_over_out.add(sent as u64);
        for _ in sent..packets {
            stats.tx_drop(DropReason::CpuBacklog, oif);
        }
    }
}

impl HandoffRx {
    /// Returns a packet's buffer to the sender.
    fn recycle(&self, handoff: HandoffPacket) {
        // There is room for every buffer; the sender may have ended.
        let _ = self.empty.try_send(handoff.buffer);
    }
}

/// The result of [`Handoffs::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    pub packets: usize,
    /// One of them is being timed.
    pub timed: bool,
}

/// One worker's ends of all channels, and the channel to use for each port.
#[derive(Debug, Default)]
pub struct Handoffs {
    /// By port: the index in `out` of the channel to use. `None`, or beyond the end: the worker has a TX
    /// queue of its own.
    by_port: Vec<Option<usize>>,
    out: Vec<HandoffTx>,
    /// Numbers of the workers that send for this one.
    targets: Vec<usize>,
    into: Vec<HandoffRx>,
    /// The worker's own, set with its first incoming channel.
    waker: Option<Arc<Waker>>,
}

impl Handoffs {
    /// Adds an incoming channel; `waker` is the worker's own.
    pub fn add_rx(&mut self, rx: HandoffRx, waker: Arc<Waker>) {
        // Remove channels that were closed without use.
        self.into.retain(|rx| !rx.is_closed);
        self.into.push(rx);
        self.waker = Some(waker);
    }

    /// Removes the incoming channel that was added last.
    pub fn undo_add_rx(&mut self) {
        self.into.pop();
    }

    /// Adds an outgoing channel.
    pub fn add(&mut self, tx: HandoffTx) {
        self.out.push(tx);
    }

    /// Removes the outgoing channel that was added last, before a port uses it.
    pub fn undo_add(&mut self) {
        self.out.pop();
    }

    /// Hands packets for `port` to worker `by`, to which there must be a channel; `None`: the worker's
    /// own TX queue sends them. Returns the worker that sent them before.
    pub fn set_target(&mut self, port: u16, by: Option<usize>) -> Option<usize> {
        let before = self.tx_for(usize::from(port)).map(|tx| tx.to);
        let port = usize::from(port);
        let place = by.and_then(|to| self.out.iter().position(|tx| tx.to == to));
        if self.by_port.len() <= port {
            self.by_port.resize(port + 1, None);
        }
        self.by_port[port] = place;
        let is_used = |n: &usize| self.by_port.contains(&Some(*n));
        self.targets = (0..self.out.len()).filter(is_used).map(|n| self.out[n].to).collect();
        before
    }

    /// The workers that send for this one.
    #[inline]
    pub(super) fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// The channel to use for a port; `None`: a TX queue of the worker's own.
    #[inline]
    pub(super) fn tx_for(&self, port: usize) -> Option<&HandoffTx> {
        self.out.get((*self.by_port.get(port)?)?)
    }

    /// Number of incoming channels.
    #[inline]
    pub(super) fn channels_in(&self) -> usize {
        self.into.len()
    }

    /// Receives packets from a channel, at most a burst, into the egress of their ports. Dropped and
    /// counted are those for which no frame is free (NOMEM, tx_dropped), and those handed over before
    /// `oldest_ns` of CLOCK_MONOTONIC (QUEUE_PURGE).
    pub(super) fn take(
        &mut self,
        channel: usize,
        oldest_ns: u64,
        pool: &mut FramePool,
        egress: &mut [RoutedBurst],
        stats: &WorkerStats,
    ) -> Taken {
        let mut taken = Taken::default();
        let Some(rx) = self.into.get_mut(channel) else { return taken };
        while taken.packets < BURST {
            let handoff = match rx.full.try_recv() {
                Ok(handoff) => handoff,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    rx.is_closed = true;
                    break;
                }
            };
            taken.packets += 1;
            if handoff.sent_ns < oldest_ns {
                stats.tx_drop(DropReason::QueuePurge, handoff.oif);
                rx.recycle(handoff);
                continue;
            }
            taken.timed |= handoff.timed;
            match (copy_in(&handoff, pool), egress.get_mut(usize::from(handoff.oif))) {
                (Some(skb), Some(egress)) if egress.room() > 0 => {
                    if let Err(skb) = egress.push_handed_over(skb) {
                        // Unreachable: there was room.
                        pool.kfree_skb(skb);
                    }
                }
                (skb, _) => {
                    skb.into_iter().for_each(|skb| pool.kfree_skb(skb));
                    stats.tx_drop(DropReason::NoMem, handoff.oif);
                }
            }
            rx.recycle(handoff);
        }
        stats.handed_over_in.add(taken.packets as u64);
        taken
    }

    /// The file descriptor that becomes readable when packets are handed over, if there are incoming
    /// channels.
    pub(super) fn wakeup(&self) -> Option<BorrowedFd<'_>> {
        self.waker.as_ref().map(|waker| waker.event.as_fd())
    }

    /// Whether the worker may sleep. If so, a sender wakes it from now on.
    pub(super) fn may_sleep(&self) -> bool {
        let Some(waker) = &self.waker else { return true };
        waker.fall_asleep();
        let idle = self.into.iter().all(|rx| rx.full.is_empty());
        if !idle {
            waker.awake();
        }
        idle
    }

    /// The worker is awake again.
    pub(super) fn awake(&self) {
        if let Some(waker) = &self.waker {
            waker.awake();
        }
    }

    /// Closes the outgoing channels, and wakes the workers that wait for this.
    pub(super) fn close(&mut self) {
        for tx in self.out.drain(..) {
            tx.waker.wake();
        }
    }

    /// Drops packets that were handed over and not taken, and counts them (tx_dropped).
    pub(super) fn drop_all(&mut self, reason: DropReason, stats: &WorkerStats) {
        for rx in &self.into {
            for handoff in rx.full.try_iter().take(rx.full.len()) {
                stats.handed_over_in.inc();
                stats.tx_drop(reason, handoff.oif);
                rx.recycle(handoff);
            }
        }
    }

    /// Whether no more packets can be handed over: every sender has closed, and all packets were taken.
    pub(super) fn is_closed(&self) -> bool {
        self.into.iter().all(|rx| rx.is_closed)
    }
}

/// Copies a packet that was handed over into frames of this worker. `None`: too few are free.
fn copy_in(handoff: &HandoffPacket, pool: &mut FramePool) -> Option<SkBuff> {
    let mut skb = SkBuff::of_octets(pool, handoff.buffer.get(..handoff.len)?)?;
    (skb.port, skb.iif) = (handoff.port, handoff.iif);
    (skb.timed, skb.tstamp_ns) = (handoff.timed, handoff.tstamp_ns);
    Some(skb)
}
