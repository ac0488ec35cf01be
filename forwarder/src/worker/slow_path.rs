//! From a worker to the control side: frames for the kernel, and neighbours to resolve.
//!
//! Bounded and allocated at start. A frame is copied into one of a fixed number of buffers that go
//! round between two threads; when all are under way, it is dropped (PUNT_FAILED) rather than
//! waited for.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::skb::{MAX_JUMBO, SkBuff};
use crate::stats::PuntReason;

/// Frames under way to the kernel at most, a worker.
const FRAMES: usize = 256;
/// Neighbour requests under way at most, a worker.
const REQUESTS: usize = 256;

/// A frame on its way back to the kernel.
#[derive(Debug)]
pub struct PuntedFrame {
    /// ifindex of the interface it came in by.
    pub ifindex: u32,
    /// The port that this is.
    pub port: u16,
    /// Why it is the kernel's: with the port, what it is counted under.
    pub reason: PuntReason,
    len: usize,
    buffer: Box<[u8; MAX_JUMBO]>,
}

impl PuntedFrame {
    /// The frame from its Ethernet header on.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

/// A next hop whose link-layer address is wanted.
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
    /// A silent wakeup.
    ///
    /// # Errors
    /// EMFILE and the like from eventfd(2).
    pub fn new() -> std::io::Result<Arc<Wakeup>> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Wakeup { event, pending: AtomicBool::new(false) }))
    }

    /// Wakes the thread; a system call only if it has not been woken already.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // Fails only when the counter would overflow, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }

    /// Called by the thread before it looks at the queues.
    pub fn clear(&self) {
        let _ = self.event.read();
        // A swap, not a store: what the queues hold must not be read before it.
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
    /// Of the thread that takes frames.
    punter: Arc<Wakeup>,
    /// Of the thread that takes requests.
    control: Arc<Wakeup>,
}

/// The end of the thread that hands frames to the kernel.
#[derive(Debug)]
pub struct PuntQueue {
    recycle: Sender<Box<[u8; MAX_JUMBO]>>,
    frames: Receiver<PuntedFrame>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct NeighRequests(Receiver<NeighRequest>);

/// Makes the ends. `punter` is rung for frames, `control` for requests.
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
        SlowPath { empty, frames: frames_in, requests: requests_in, punter, control },
        PuntQueue { recycle, frames: frames_out },
        NeighRequests(requests_out),
    )
}

impl SlowPath {
    /// Hands a copy of a frame over. `false`: no buffer was free.
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

    /// How many frames can be handed over now.
    pub fn room(&self) -> usize {
        self.empty.len()
    }

    /// Asks for a neighbour. `false`: too many requests are under way; the packet that needs it
    /// waits, and asks again.
    pub fn resolve(&self, oif: u32, addr: IpAddr) -> bool {
        let sent = self.requests.try_send(NeighRequest { oif, addr }).is_ok();
        self.control.wake();
        sent
    }
}

impl PuntQueue {
    /// Passes waiting frames to `inject`, at most `max`, and reuses their buffers. Returns how many.
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
    /// The waiting requests.
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
