//! Packets that leave by a port on which their worker has no queue: they cross to a worker that has
//! one.
//!
//! Workers share no frames. The sender copies a packet into a buffer of a [way](way) and frees its
//! frames; the receiver copies it into frames of its own and sends it. Buffers are allocated when the
//! way is made, and go round. When all are under way the packet is dropped (CPU_BACKLOG), as the
//! kernel does with a full backlog of another CPU (`enqueue_to_backlog`).
//!
//! What comes by one queue leaves a port by one worker and crosses to it by one way, first in, first
//! out: a flow stays in order.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::pipeline::RoutedBurst;
use crate::skb::burst::BURST;
use crate::skb::{Burst, FramePool, MAX_JUMBO, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// What a packet is copied into: [`MAX_JUMBO`] octets. What no packet is long enough for takes no
/// memory.
type Buffer = Box<[u8]>;

/// A packet on its way, from its Ethernet header on.
#[derive(Debug)]
struct Crossing {
    buffer: Buffer,
    len: usize,
    /// The port it leaves by.
    oif: u16,
    /// The port it came in by, see [`SkBuff::port`].
    port: u16,
    iif: u32,
    timed: bool,
    tstamp_ns: u64,
    /// When it was sent over, in nanoseconds of CLOCK_MONOTONIC.
    sent_ns: u64,
}

/// Wakes a worker that sleeps; costs one that does not sleep nothing but a look.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    /// Of a worker that is awake.
    ///
    /// # Errors
    /// EMFILE and the like from eventfd(2).
    pub fn new() -> std::io::Result<Arc<Waker>> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Waker { event, asleep: AtomicBool::new(false) }))
    }

    /// By the sender, after its packets are on their way.
    fn wake(&self) {
        // Pairs with the fence in `fall_asleep`: either we see that it sleeps, or it sees our packets.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // Fails only when the counter would overflow, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }

    /// By the worker, before it looks for packets a last time.
    fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        // A sender may write after this; then the next sleep is short.
        let _ = self.event.read();
    }
}

/// The sender's end of a way.
#[derive(Debug)]
pub struct WayOut {
    /// Number of the worker it leads to.
    to: usize,
    full: Sender<Crossing>,
    empty: Receiver<Buffer>,
    waker: Arc<Waker>,
}

/// The receiver's end of a way.
#[derive(Debug)]
pub struct WayIn {
    full: Receiver<Crossing>,
    empty: Sender<Buffer>,
    /// The sender has closed it, and all was taken.
    over: bool,
}

/// A way for `packets` packets to worker number `to`, whose waker this is.
pub fn way(packets: usize, to: usize, waker: Arc<Waker>) -> (WayOut, WayIn) {
    let (recycle, empty) = bounded(packets);
    let (full, crossing) = bounded(packets);
    for _ in 0..packets {
        // There is room for each.
        let _ = recycle.try_send(vec![0; MAX_JUMBO].into_boxed_slice());
    }
    (WayOut { to, full, empty, waker }, WayIn { full: crossing, empty: recycle, over: false })
}

impl WayOut {
    /// Packets for which there certainly is a buffer now.
    pub(super) fn room(&self) -> usize {
        self.empty.len()
    }

    /// Sends the first `room` packets over, to leave by port `oif`, and empties `egress`: the others
    /// are dropped and counted (CPU_BACKLOG, tx_dropped). `now_ns` is of CLOCK_MONOTONIC.
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
                // It has as many octets as it is long.
                let _ = skb.copy_bits(0, &mut buffer[..len]);
                let crossing = Crossing {
                    len,
                    buffer,
                    oif,
                    port: skb.port,
                    iif: skb.iif,
                    timed: skb.timed,
                    tstamp_ns: skb.tstamp_ns,
                    sent_ns: now_ns,
                };
                // There is room for as many as there are buffers, unless the worker has ended.
                sent += usize::from(self.full.try_send(crossing).is_ok());
            }
            pool.kfree_skb(skb);
        }
        self.waker.wake();
        stats.crossed_out.add(sent as u64);
        for _ in sent..packets {
            stats.tx_drop(DropReason::CpuBacklog, oif);
        }
    }
}

impl WayIn {
    /// Gives a packet's buffer back to the sender.
    fn recycle(&self, crossing: Crossing) {
        // There is room for every buffer; the sender may be gone.
        let _ = self.empty.try_send(crossing.buffer);
    }
}

/// What [`Crossings::take`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    pub packets: usize,
    /// One of them is being timed.
    pub timed: bool,
}

/// One worker's ends of all ways, and which port it reaches by which.
#[derive(Debug, Default)]
pub struct Crossings {
    /// By port: the place in `out` of the way to it. Beyond its end, and `None`: by a queue of its own.
    by_port: Vec<Option<usize>>,
    out: Vec<WayOut>,
    /// Numbers of the workers that ports are reached by.
    targets: Vec<usize>,
    into: Vec<WayIn>,
    /// Its own; with the first way that leads to it.
    waker: Option<Arc<Waker>>,
}

impl Crossings {
    /// A way that leads to it; `waker` is its own.
    pub fn admit(&mut self, way: WayIn, waker: Arc<Waker>) {
        // One whose sender never got its end is no use to anybody.
        self.into.retain(|way| !way.over);
        self.into.push(way);
        self.waker = Some(waker);
    }

    /// Takes the way that was admitted last back.
    pub fn undo_admit(&mut self) {
        self.into.pop();
    }

    /// A way that leads elsewhere.
    pub fn add(&mut self, way: WayOut) {
        self.out.push(way);
    }

    /// Takes the way that was added last back, before a port leads to it.
    pub fn undo_add(&mut self) {
        self.out.pop();
    }

    /// Packets for `port` leave by a queue of worker `by`, to whom there is a way; `None`: by a queue
    /// of its own. Returns by whose they left before.
    pub fn lead(&mut self, port: u16, by: Option<usize>) -> Option<usize> {
        let before = self.way(usize::from(port)).map(|way| way.to);
        let port = usize::from(port);
        let place = by.and_then(|to| self.out.iter().position(|way| way.to == to));
        if self.by_port.len() <= port {
            self.by_port.resize(port + 1, None);
        }
        self.by_port[port] = place;
        let led_to = |n: &usize| self.by_port.contains(&Some(*n));
        self.targets = (0..self.out.len()).filter(led_to).map(|n| self.out[n].to).collect();
        before
    }

    /// The workers without whom some of the packets cannot be sent.
    #[inline]
    pub(super) fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// The way to a port; `None`: by a queue of its own.
    #[inline]
    pub(super) fn way(&self, port: usize) -> Option<&WayOut> {
        self.out.get((*self.by_port.get(port)?)?)
    }

    /// Ways that lead to it.
    #[inline]
    pub(super) fn ways_in(&self) -> usize {
        self.into.len()
    }

    /// Takes packets from a way, a burst at most, into the egress of the ports they leave by. Those
    /// for which there is no frame are dropped and counted (NOMEM, tx_dropped), and those sent over
    /// before `oldest_ns` of CLOCK_MONOTONIC (QUEUE_PURGE).
    pub(super) fn take(
        &mut self,
        way: usize,
        oldest_ns: u64,
        pool: &mut FramePool,
        egress: &mut [RoutedBurst],
        stats: &WorkerStats,
    ) -> Taken {
        let mut taken = Taken::default();
        let Some(way) = self.into.get_mut(way) else { return taken };
        while taken.packets < BURST {
            let crossing = match way.full.try_recv() {
                Ok(crossing) => crossing,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    way.over = true;
                    break;
                }
            };
            taken.packets += 1;
            if crossing.sent_ns < oldest_ns {
                stats.tx_drop(DropReason::QueuePurge, crossing.oif);
                way.recycle(crossing);
                continue;
            }
            taken.timed |= crossing.timed;
            match (land(&crossing, pool), egress.get_mut(usize::from(crossing.oif))) {
                (Some(skb), Some(egress)) if egress.room() > 0 => {
                    if let Err(skb) = egress.push_handed_over(skb) {
                        // There was room.
                        pool.kfree_skb(skb);
                    }
                }
                (skb, _) => {
                    skb.into_iter().for_each(|skb| pool.kfree_skb(skb));
                    stats.tx_drop(DropReason::NoMem, crossing.oif);
                }
            }
            way.recycle(crossing);
        }
        stats.crossed_in.add(taken.packets as u64);
        taken
    }

    /// What rings when packets come over, if any can.
    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.waker.as_ref().map(|waker| waker.event.as_fd())
    }

    /// Whether the worker may sleep: from here on, who sends it a packet wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        let Some(waker) = &self.waker else { return true };
        waker.fall_asleep();
        let idle = self.into.iter().all(|way| way.full.is_empty());
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

    /// Sends nothing over any more, and lets those know who wait for it.
    pub(super) fn close(&mut self) {
        for way in self.out.drain(..) {
            way.waker.wake();
        }
    }

    /// Drops what has come over and was not taken, and counts it (tx_dropped).
    pub(super) fn drop_all(&mut self, reason: DropReason, stats: &WorkerStats) {
        for way in &self.into {
            for crossing in way.full.try_iter().take(way.full.len()) {
                stats.crossed_in.inc();
                stats.tx_drop(reason, crossing.oif);
                way.recycle(crossing);
            }
        }
    }

    /// Whether nothing comes over any more: every sender has closed, and all was taken.
    pub(super) fn is_over(&self) -> bool {
        self.into.iter().all(|way| way.over)
    }
}

/// A packet that has come over, in frames of this worker's. `None`: too few are free.
fn land(crossing: &Crossing, pool: &mut FramePool) -> Option<SkBuff> {
    let mut skb = SkBuff::of_octets(pool, crossing.buffer.get(..crossing.len)?)?;
    (skb.port, skb.iif) = (crossing.port, crossing.iif);
    (skb.timed, skb.tstamp_ns) = (crossing.timed, crossing.tstamp_ns);
    Some(skb)
}
