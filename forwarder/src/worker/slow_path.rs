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

/// Maximum number of frames queued for the kernel, per worker.
const FRAMES: usize = 256;
/// Maximum number of neighbour requests queued, per worker.
const REQUESTS: usize = 256;

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
    buffer: Box<[u8; MAX_JUMBO]>,
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

/// The worker's end.
#[derive(Debug)]
pub struct SlowPath {
    empty: Receiver<Box<[u8; MAX_JUMBO]>>,
    frames: Sender<PuntedFrame>,
    requests: Sender<NeighRequest>,
    /// `None`: no flow is offloaded.
    offers: Option<Sender<Offer>>,
    /// Wakes the thread that takes frames.
    punter: Arc<Wakeup>,
    /// Wakes the thread that takes requests.
    control: Arc<Wakeup>,
}

/// The end of the thread that passes frames to the kernel.
#[derive(Debug)]
pub struct PuntQueue {
    recycle: Sender<Box<[u8; MAX_JUMBO]>>,
    frames: Receiver<PuntedFrame>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct NeighRequests(Receiver<NeighRequest>);

/// Creates the three ends. `punter` is woken for frames, `control` for requests.
pub fn slow_path(
    punter: Arc<Wakeup>,
    control: Arc<Wakeup>,
) -> (SlowPath, PuntQueue, NeighRequests) {
    let (recycle, empty) = bounded(FRAMES);
    let (frames_in, frames_out) = bounded(FRAMES);
    let (requests_in, requests_out) = bounded(REQUESTS);
    for _ in 0..FRAMES {
        // There is room for each: the channel holds FRAMES.
        let _ = recycle.try_send(Box::new([0; MAX_JUMBO]));
    }
    (
        SlowPath { empty, frames: frames_in, requests: requests_in, offers: None, punter, control },
        PuntQueue { recycle, frames: frames_out },
        NeighRequests(requests_out),
    )
}

impl SlowPath {
    /// Queues a copy of a frame. `false`: no buffer was free.
    pub fn punt(&self, skb: &SkBuff, reason: PuntReason) -> bool {
        let head = skb.mac_header();
        if head.len() + skb.data_len() > MAX_JUMBO {
            return false;
        }
        let Ok(mut buffer) = self.empty.try_recv() else { return false };
        let mut len = 0;
        for slice in std::iter::once(head).chain(skb.frags()) {
            buffer[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        let punted = PuntedFrame { ifindex: skb.iif, port: skb.port, reason, len, buffer };
        let sent = self.frames.try_send(punted).is_ok();
        self.punter.wake();
        sent
    }

    /// Number of frames that can be queued now.
    pub fn room(&self) -> usize {
        self.empty.len()
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
    /// Passes queued frames to `inject`, at most `max`, and reuses their buffers. Returns their number.
    pub fn drain(&self, max: usize, mut inject: impl FnMut(&mut PuntedFrame)) -> usize {
        let mut taken = 0;
        while taken < max
            && let Ok(mut frame) = self.frames.try_recv()
        {
            inject(&mut frame);
            let _ = self.recycle.try_send(frame.buffer);
            taken += 1;
        }
        taken
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
    use crate::skb::Umem;

    #[test]
    fn frames_pass_in_order_buffers_go_round_and_a_full_queue_refuses() {
        let wakeup = || Wakeup::new().expect("an eventfd");
        let (worker, punter, _requests) = slow_path(wakeup(), wakeup());
        let mut pool = Umem::anonymous(1).into_pool();
        let mut skb = SkBuff::alloc_skb(&mut pool, 0).expect("one frame");
        skb.put(1).expect("room");
        skb.iif = 7;
        for round in 0..2u8 {
            for n in 0..FRAMES {
                skb.data_mut()[0] = (n as u8).wrapping_add(round);
                assert!(worker.punt(&skb, PuntReason::Local));
            }
            assert!(!worker.punt(&skb, PuntReason::Local), "no buffer is free");
            let mut n = 0;
            let mut take = |frame: &mut PuntedFrame| {
                assert_eq!(
                    (frame.ifindex, frame.bytes_mut()[0]),
                    (7, (n as u8).wrapping_add(round))
                );
                n += 1;
            };
            assert_eq!(punter.drain(3, &mut take), 3);
            assert_eq!(punter.drain(usize::MAX, take), FRAMES - 3);
            assert_eq!(n, FRAMES);
        }
    }
}
