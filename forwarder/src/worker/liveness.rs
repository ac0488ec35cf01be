//! The permission to forward, which expires.
//!
//! Each turn a worker gives a heartbeat for the queues it serves. When one is too old, the XDP
//! program passes the queue's frames to the kernel. The control thread gives one whenever it has
//! followed the kernel's tables and filters up to that moment; when it is too old, the program
//! passes everything to the kernel, and workers leave alone what has arrived until the tables are
//! known to be current again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clock::Clock;
use crate::io::af_xdp::{HeartbeatPage, is_fresh};

/// What a worker may do with packets that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Forward them.
    Forward,
    /// Hand them back: the kernel has filters that are not applied here.
    HandBack,
    /// Leave them where they are: whether the tables are current is not known.
    Wait,
}

/// A worker's side.
#[derive(Debug)]
pub struct Liveness {
    page: Arc<HeartbeatPage>,
    /// RX queues, of whichever port, that the worker serves.
    queues: Vec<usize>,
    /// Age at which the control thread's heartbeat no longer counts, in nanoseconds.
    control_timeout_ns: u64,
    clock: Clock,
    /// The control thread's word that packets are the kernel's. It is given before the heartbeat.
    hand_back: Arc<AtomicBool>,
}

impl Liveness {
    /// Of a worker that serves `queues`; the control thread's heartbeat counts for
    /// `control_timeout_ns`. Times are those of `clock`. While `hand_back` is set, packets are the
    /// kernel's.
    pub fn new(
        page: Arc<HeartbeatPage>,
        queues: impl IntoIterator<Item = usize>,
        control_timeout_ns: u64,
        clock: Clock,
        hand_back: Arc<AtomicBool>,
    ) -> Liveness {
        let queues = queues.into_iter().collect();
        Liveness { page, queues, control_timeout_ns, clock, hand_back }
    }

    /// The worker is alive at `now_ns`.
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        let time_ns = self.clock.monotonic_ns(now_ns);
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(time_ns, Ordering::Relaxed);
        }
    }

    /// What may be done at `now_ns`.
    #[inline]
    pub fn permission(&self, now_ns: u64) -> Permission {
        let now_ns = self.clock.monotonic_ns(now_ns);
        // What was published before the heartbeat is seen.
        if !is_fresh(self.page.control(), now_ns, self.control_timeout_ns) {
            Permission::Wait
        } else if self.hand_back.load(Ordering::Relaxed) {
            Permission::HandBack
        } else {
            Permission::Forward
        }
    }

    /// The kernel has the worker's queues from now on.
    fn withdraw(&self) {
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The worker ends, maybe by a panic.
impl Drop for Liveness {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness(page: &Arc<HeartbeatPage>) -> Liveness {
        let queues = [1, 3, 5_000];
        Liveness::new(Arc::clone(page), queues, 100, Clock::start(), Arc::default())
    }

    #[test]
    fn forwarding_is_permitted_while_the_control_thread_is_heard() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        assert_eq!(liveness.permission(0), Permission::Wait, "nothing was heard yet");
        page.beat_control(liveness.clock.monotonic_ns(50));
        assert_eq!(liveness.permission(40), Permission::Forward, "given since this turn began");
        assert_eq!(liveness.permission(150), Permission::Forward);
        assert_eq!(liveness.permission(151), Permission::Wait);
        liveness.hand_back.store(true, Ordering::Relaxed);
        assert_eq!(liveness.permission(150), Permission::HandBack);
        assert_eq!(liveness.permission(151), Permission::Wait);
    }

    #[test]
    fn a_worker_answers_for_its_own_queues() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        let words = || [0, 1, 2, 3].map(|q| page.queue(q).map(|w| w.load(Ordering::Relaxed)));
        liveness.beat(7);
        let time = Some(liveness.clock.monotonic_ns(7));
        assert_eq!(words(), [Some(0), time, Some(0), time]);
        drop(liveness);
        assert_eq!(words(), [Some(0); 4]);
    }
}
