//! Queues from a worker to other threads: frames for the kernel, and neighbours to resolve.
//!
//! Bounded, and allocated at start. A frame is copied into one of a fixed number of buffers, which two
//! threads exchange; when none is free, the frame is dropped (PUNT_FAILED) without waiting.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::pipeline::Offer;
use crate::skb::{MAX_JUMBO, SkBuff};
use crate::stats::PuntReason;

/// Lengths of buffers for frames, octets. A frame takes the shortest free one that is long enough.
const LENS: [usize; 3] = [256, 2048, MAX_JUMBO];
/// The number of buffers of each length, by queue; together 8.6 MiB per worker, and 1 MiB for the queues.
///
/// Most frames to neighbours that are not resolved are short: a first packet for each of many hosts waits here as long as the
/// kernel takes for those before it, 5,000 of them for as long as a thread may wait for a CPU (a second and more). Other
/// packets, those to the router itself among them, must not wait so long behind a flood.
const BUFFERS: [[usize; LENS.len()]; QUEUES] = [[0, 0, 256], [8192, 1024, 256]];
/// Queues of frames per worker; see [`queue_of`].
const QUEUES: usize = 2;
/// Maximum number of neighbour requests queued, per worker.
const REQUESTS: usize = 256;

/// Maximum number of frames in the queue of a reason.
#[cfg(test)]
pub(super) fn frames_max(reason: PuntReason) -> usize {
    BUFFERS[queue_of(reason)].iter().sum()
}

/// The queue of a reason. Packets to neighbours that are not resolved come in bursts of thousands, of a scan for example:
/// in a queue of their own they neither take the buffers of others nor delay them.
fn queue_of(reason: PuntReason) -> usize {
    usize::from(reason == PuntReason::NeighUnresolved)
}

/// A punted frame.
#[derive(Debug)]
pub struct PuntedFrame {
    /// ifindex of the input interface.
    pub ifindex: u32,
    /// The input port.
    pub port: u16,
    /// The punt reason; counted per port and reason.
    pub reason: PuntReason,
    len: usize,
    buffer: Box<[u8]>,
}

impl PuntedFrame {
    /// The frame from its Ethernet header.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

/// A next hop to be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighRequest {
    /// ifindex of its interface.
    pub oif: u32,
    /// Its address.
    pub addr: IpAddr,
}

/// Wakes a thread that sleeps in poll(2).
#[derive(Debug)]
pub struct Wakeup {
    event: EventFd,
    pending: AtomicBool,
}

impl Wakeup {
    /// A wakeup that is not signalled.
    ///
    /// # Errors
    /// Errors of eventfd(2), such as EMFILE.
    pub fn new() -> std::io::Result<Arc<Wakeup>> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Wakeup { event, pending: AtomicBool::new(false) }))
    }

    /// Wakes the thread; a system call only if it has not been woken already.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // Fails only when the counter would overflow; it is readable then anyway.
            let _ = self.event.write(1);
        }
    }

    /// Called by the thread before it reads the queues.
    pub fn clear(&self) {
        let _ = self.event.read();
        // A swap, not a store: the queues must not be read before it.
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The worker's end of a queue of frames.
#[derive(Debug)]
struct FrameSender {
    /// Free buffers by length, as [`LENS`]: the one used last is used next, so that little memory is touched.
    free: [Vec<Box<[u8]>>; LENS.len()],
    returned: Receiver<Box<[u8]>>,
    frames: Sender<PuntedFrame>,
}

impl FrameSender {
    /// Takes back the buffers of frames that the kernel has by now.
    fn reclaim(&mut self) {
        for buffer in self.returned.try_iter() {
            let class = LENS.iter().position(|octets| buffer.len() == *octets);
            if let Some(free) = class.and_then(|class| self.free.get_mut(class)) {
                free.push(buffer);
            }
        }
    }

    /// A buffer for a frame of `len` octets.
    fn take(&mut self, len: usize) -> Option<Box<[u8]>> {
        self.reclaim();
        let classes = LENS.iter().zip(&mut self.free);
        let mut long_enough = classes.filter(|(octets, _)| len <= **octets);
        long_enough.find_map(|(_, free)| free.pop())
    }

    /// Whether `frames` frames of any length can be queued.
    fn has_room(&mut self, frames: usize) -> bool {
        self.reclaim();
        self.free.last().is_some_and(|longest| longest.len() >= frames)
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct SlowPath {
    queues: [FrameSender; QUEUES],
    requests: Sender<NeighRequest>,
    /// `None`: no flow is offloaded.
    offers: Option<Sender<Offer>>,
    /// Wakes the thread that takes frames.
    punter: Arc<Wakeup>,
    /// Wakes the thread that takes requests.
    control: Arc<Wakeup>,
}

/// The other end of a queue of frames.
#[derive(Debug)]
struct FrameReceiver {
    recycle: Sender<Box<[u8]>>,
    frames: Receiver<PuntedFrame>,
}

/// The end of the thread that passes frames to the kernel.
#[derive(Debug)]
pub struct PuntQueue([FrameReceiver; QUEUES]);

/// The control thread's end.
#[derive(Debug)]
pub struct NeighRequests(Receiver<NeighRequest>);

/// Creates the three ends. `punter` is woken for frames, `control` for requests.
pub fn slow_path(
    punter: Arc<Wakeup>,
    control: Arc<Wakeup>,
) -> (SlowPath, PuntQueue, NeighRequests) {
    let (requests_in, requests_out) = bounded(REQUESTS);
    let [(own, its), (own_neigh, its_neigh)] = BUFFERS.map(frames);
    (
        SlowPath { queues: [own, own_neigh], requests: requests_in, offers: None, punter, control },
        PuntQueue([its, its_neigh]),
        NeighRequests(requests_out),
    )
}

/// A queue of frames, with so many buffers of each length.
fn frames(numbers: [usize; LENS.len()]) -> (FrameSender, FrameReceiver) {
    let all = numbers.iter().sum();
    let (recycle, returned) = bounded(all);
    let (frames_in, frames_out) = bounded(all);
    let buffers = |class: usize| {
        (0..numbers[class]).map(|_| vec![0; LENS[class]].into_boxed_slice()).collect()
    };
    let free = std::array::from_fn(buffers);
    let sender = FrameSender { free, returned, frames: frames_in };
    (sender, FrameReceiver { recycle, frames: frames_out })
}

impl SlowPath {
    /// Queues a copy of a frame. `false`: no buffer was free.
    pub fn punt(&mut self, skb: &SkBuff, reason: PuntReason) -> bool {
        let head = skb.mac_header();
        let Some(queue) = self.queues.get_mut(queue_of(reason)) else { return false };
        let Some(mut buffer) = queue.take(head.len() + skb.data_len()) else { return false };
        let mut len = 0;
        for slice in std::iter::once(head).chain(skb.frags()) {
            buffer[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        let punted = PuntedFrame { ifindex: skb.iif, port: skb.port, reason, len, buffer };
        let sent = queue.frames.try_send(punted).is_ok();
        self.punter.wake();
        sent
    }

    /// Whether `frames` frames of any length can be queued for this reason.
    pub fn has_room(&mut self, frames: usize, reason: PuntReason) -> bool {
        self.queues.get_mut(queue_of(reason)).is_some_and(|queue| queue.has_room(frames))
    }

    /// Sets where offers of flows go. A full queue loses them; flows are offered again.
    pub fn set_offers(&mut self, offers: Sender<Offer>) {
        self.offers = Some(offers);
    }

    /// Queues an offer.
    pub fn offer(&self, offer: Offer) {
        if let Some(offers) = &self.offers {
            let _ = offers.try_send(offer);
        }
    }

    /// Queues a neighbour request. `false`: the queue is full; the packet that needs the neighbour waits,
    /// and the request is repeated.
    pub fn resolve(&self, oif: u32, addr: IpAddr) -> bool {
        let sent = self.requests.try_send(NeighRequest { oif, addr }).is_ok();
        self.control.wake();
        sent
    }
}

impl PuntQueue {
    /// Passes queued frames to `inject`, at most `max`, of both queues in turn, and returns their buffers. Returns their
    /// number.
    pub fn drain(&self, max: usize, mut inject: impl FnMut(&mut PuntedFrame)) -> usize {
        let mut taken = 0;
        loop {
            let before = taken;
            for queue in &self.0 {
                if taken < max
                    && let Ok(mut frame) = queue.frames.try_recv()
                {
                    inject(&mut frame);
                    let _ = queue.recycle.try_send(frame.buffer);
                    taken += 1;
                }
            }
            if taken == before {
                return taken;
            }
        }
    }
}

impl NeighRequests {
    /// The queued requests.
    pub fn iter(&self) -> impl Iterator<Item = NeighRequest> + '_ {
        self.0.try_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::{FramePool, Umem};

    fn queues() -> (SlowPath, PuntQueue) {
        let wakeup = || Wakeup::new().expect("an eventfd");
        let (worker, punter, _requests) = slow_path(wakeup(), wakeup());
        (worker, punter)
    }

    fn packet(pool: &mut FramePool, octets: usize) -> SkBuff {
        let mut skb = SkBuff::alloc_skb(pool, 0).expect("one frame");
        skb.put(octets).expect("room");
        skb.iif = 7;
        skb
    }

    #[test]
    fn frames_pass_in_order_buffers_go_round_and_a_full_queue_refuses() {
        for reason in [PuntReason::Local, PuntReason::NeighUnresolved] {
            let frames = frames_max(reason);
            let (mut worker, punter) = queues();
            let mut pool = Umem::anonymous(1).into_pool();
            let mut skb = packet(&mut pool, 1);
            for round in 0..2u8 {
                for n in 0..frames {
                    skb.data_mut()[0] = (n as u8).wrapping_add(round);
                    assert!(worker.punt(&skb, reason));
                }
                assert!(!worker.punt(&skb, reason), "no buffer is free");
                let mut n = 0;
                let mut take = |frame: &mut PuntedFrame| {
                    assert_eq!(
                        (frame.ifindex, frame.bytes_mut()[0]),
                        (7, (n as u8).wrapping_add(round))
                    );
                    n += 1;
                };
                assert_eq!(punter.drain(3, &mut take), 3);
                assert_eq!(punter.drain(usize::MAX, take), frames - 3);
                assert_eq!(n, frames);
            }
        }
    }

    #[test]
    fn a_burst_to_new_neighbours_takes_no_room_of_others_and_delays_them_by_as_many() {
        let frames = frames_max(PuntReason::NeighUnresolved);
        let (mut worker, punter) = queues();
        let mut pool = Umem::anonymous(1).into_pool();
        let skb = packet(&mut pool, 60);
        let burst = (0..2 * frames).filter(|_| worker.punt(&skb, PuntReason::NeighUnresolved));
        assert_eq!(burst.count(), frames);
        assert!((0..100).all(|_| worker.punt(&skb, PuntReason::Local)));
        let mut local = 0;
        let taken =
            punter.drain(200, |frame| local += u32::from(frame.reason == PuntReason::Local));
        assert_eq!((taken, local), (200, 100));
        assert_eq!(punter.drain(usize::MAX, |_| {}), frames - 100);
    }

    #[test]
    fn long_frames_take_long_buffers_and_short_ones_any() {
        let (mut worker, punter) = queues();
        let mut pool = Umem::anonymous(3).into_pool();
        let [short, medium, long] = [256, 2048, 2049].map(|octets| packet(&mut pool, octets));
        let mut fill = |skb: &SkBuff| {
            std::iter::repeat_with(|| worker.punt(skb, PuntReason::NeighUnresolved))
                .take_while(|it| *it)
                .count()
        };
        let [shorts, mediums, longs] = BUFFERS[1];
        assert_eq!(fill(&long), longs);
        assert_eq!(fill(&medium), mediums);
        assert_eq!(fill(&short), shorts);
        assert!(!worker.has_room(1, PuntReason::NeighUnresolved));
        let lens = std::cell::RefCell::new(Vec::new());
        let take = |frame: &mut PuntedFrame| lens.borrow_mut().push(frame.bytes_mut().len());
        punter.drain(64, take);
        assert_eq!(*lens.borrow(), [2049; 64]);
        // Without another frame: a worker that waits for room sends none.
        assert!(worker.has_room(64, PuntReason::NeighUnresolved));
        assert!(!worker.has_room(65, PuntReason::NeighUnresolved));
        assert!(worker.has_room(frames_max(PuntReason::Local), PuntReason::Local));
    }
}
