//! The permission to forward, which expires.
//!
//! Each turn a worker gives a heartbeat for the queues it serves. When one is too old, the XDP
//! program passes the queue's frames to the kernel. The control thread gives one whenever it has
//! followed the kernel's tables and filters up to that moment; when it is too old, the program
//! passes everything to the kernel, and workers leave alone what has arrived until the tables are
//! known to be current again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::clock::Clock;
use crate::io::af_xdp::HeartbeatPage;

/// A worker's side.
#[derive(Debug)]
pub struct Liveness {
    page: Arc<HeartbeatPage>,
    /// RX queues, of whichever port, that the worker serves.
    queues: Vec<usize>,
    /// Age at which the control thread's heartbeat no longer counts, in nanoseconds.
    control_timeout_ns: u64,
    clock: Clock,
}

impl Liveness {
    /// Of a worker that serves `queues`; the control thread's heartbeat counts for
    /// `control_timeout_ns`. Times are those of `clock`.
    pub fn new(
        page: Arc<HeartbeatPage>,
        queues: impl IntoIterator<Item = usize>,
        control_timeout_ns: u64,
        clock: Clock,
    ) -> Liveness {
        Liveness { page, queues: queues.into_iter().collect(), control_timeout_ns, clock }
    }

    /// The worker is alive at `now_ns`.
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        let time_ns = self.clock.monotonic_ns(now_ns);
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(time_ns, Ordering::Relaxed);
        }
    }

    /// Whether the tables are known to be current at `now_ns`.
    #[inline]
    pub fn may_forward(&self, now_ns: u64) -> bool {
        // Acquire: the tables that were published before the heartbeat are seen.
        let beat_ns = self.page.control().load(Ordering::Acquire);
        let age_ns = self.clock.monotonic_ns(now_ns).saturating_sub(beat_ns);
        beat_ns != 0 && age_ns <= self.control_timeout_ns
    }

    /// The worker ends: the kernel has its queues from now on.
    pub fn withdraw(&self) {
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_permitted_while_the_control_thread_is_heard() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let clock = Clock::start();
        let liveness = Liveness::new(Arc::clone(&page), [1, 3], 100, clock);
        assert!(!liveness.may_forward(0), "nothing was heard yet");
        page.beat_control(clock.monotonic_ns(50));
        assert!(liveness.may_forward(40), "given since this turn began");
        assert!(liveness.may_forward(150));
        assert!(!liveness.may_forward(151));
    }

    #[test]
    fn a_worker_answers_for_its_own_queues() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let clock = Clock::start();
        let liveness = Liveness::new(Arc::clone(&page), [1, 3, 5_000], 100, clock);
        let words = || [0, 1, 2, 3].map(|q| page.queue(q).map(|w| w.load(Ordering::Relaxed)));
        liveness.beat(7);
        let time = Some(clock.monotonic_ns(7));
        assert_eq!(words(), [Some(0), time, Some(0), time]);
        liveness.withdraw();
        assert_eq!(words(), [Some(0); 4]);
    }
}
