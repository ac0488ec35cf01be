//! The permission to forward, which expires.
//!
//! Each turn a worker gives a heartbeat for the queues it serves. When one is too old, the XDP
//! program passes the queue's frames to the kernel. A worker that sends by the queues of another
//! gives none while that one gives none, for its packets would wait there. The control thread gives one whenever it has
//! followed the kernel's tables and filters up to that moment; when it is too old, the program
//! passes everything to the kernel, and workers leave alone what has arrived until the tables are
//! known to be current again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::clock::Clock;
use crate::io::af_xdp::{HeartbeatPage, is_fresh};
use crate::stats::PuntReason;

/// What a worker may do with packets that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Forward them.
    Forward,
    /// Hand them back: the kernel has filters that are not applied here, or a worker that they would
    /// be sent by stands still.
    HandBack(PuntReason),
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
    /// The same of other workers' heartbeats.
    worker_timeout_ns: u64,
    clock: Clock,
    /// The control thread's word that packets are the kernel's. It is given before the heartbeat.
    hand_back: Arc<AtomicBool>,
}

impl Liveness {
    /// Of a worker that serves `queues`; the control thread's heartbeat counts for the second of
    /// `timeouts`, other workers' for the first. Times are those of `clock`. While `hand_back` is set,
    /// packets are the kernel's.
    pub fn new(
        page: Arc<HeartbeatPage>,
        queues: impl IntoIterator<Item = usize>,
        timeouts: [Duration; 2],
        clock: Clock,
        hand_back: Arc<AtomicBool>,
    ) -> Liveness {
        let queues = queues.into_iter().collect();
        let ns = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let [worker_timeout_ns, control_timeout_ns] = timeouts.map(ns);
        Liveness { page, queues, control_timeout_ns, worker_timeout_ns, clock, hand_back }
    }

    /// Age at which a worker's heartbeat no longer counts, in nanoseconds.
    pub fn worker_timeout_ns(&self) -> u64 {
        self.worker_timeout_ns
    }

    /// The worker is alive at `now_ns`. `targets`: the workers by whose queues it sends.
    #[inline]
    pub fn beat(&self, now_ns: u64, targets: &[usize]) {
        let time_ns = self.clock.monotonic_ns(now_ns);
        // Workers lead packets to workers with lower numbers only, so they do not wait for each other.
        self.store(if self.are_fresh(targets, time_ns) { time_ns } else { 0 });
    }

    /// Stores the heartbeat of the worker's queues; 0: the kernel has them from now on.
    #[inline]
    fn store(&self, time_ns: u64) {
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(time_ns, Ordering::Relaxed);
        }
    }

    /// Whether other workers give heartbeats.
    #[inline]
    fn are_fresh(&self, workers: &[usize], now_ns: u64) -> bool {
        // The first queue that a worker serves has its own number.
        workers.iter().all(|&worker| {
            let word = self.page.queue(worker);
            word.is_some_and(|word| is_fresh(word, now_ns, self.worker_timeout_ns))
        })
    }

    /// What may be done at `now_ns`. `targets`: the workers by whose queues the worker sends.
    #[inline]
    pub fn permission(&self, now_ns: u64, targets: &[usize]) -> Permission {
        let now_ns = self.clock.monotonic_ns(now_ns);
        // What was published before the heartbeat is seen.
        if !is_fresh(self.page.control(), now_ns, self.control_timeout_ns) {
            Permission::Wait
        } else if self.hand_back.load(Ordering::Relaxed) {
            Permission::HandBack(PuntReason::Filtered)
        } else if !self.are_fresh(targets, now_ns) {
            Permission::HandBack(PuntReason::Stalled)
        } else {
            Permission::Forward
        }
    }
}

/// The worker ends, maybe by a panic.
impl Drop for Liveness {
    fn drop(&mut self) {
        self.store(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness(page: &Arc<HeartbeatPage>) -> Liveness {
        let (queues, timeouts) = ([1, 3, 5_000], [50, 100].map(Duration::from_nanos));
        Liveness::new(Arc::clone(page), queues, timeouts, Clock::start(), Arc::default())
    }

    #[test]
    fn forwarding_is_permitted_while_the_control_thread_is_heard() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        assert_eq!(liveness.permission(0, &[]), Permission::Wait, "nothing was heard yet");
        page.beat_control(liveness.clock.monotonic_ns(50));
        assert_eq!(
            liveness.permission(40, &[]),
            Permission::Forward,
            "given since this turn began"
        );
        assert_eq!(liveness.permission(150, &[]), Permission::Forward);
        assert_eq!(liveness.permission(151, &[]), Permission::Wait);
        liveness.hand_back.store(true, Ordering::Relaxed);
        assert_eq!(liveness.permission(150, &[]), Permission::HandBack(PuntReason::Filtered));
        assert_eq!(liveness.permission(151, &[]), Permission::Wait);
    }

    #[test]
    fn a_worker_answers_for_its_own_queues() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        let words = || [0, 1, 2, 3].map(|q| page.queue(q).map(|w| w.load(Ordering::Relaxed)));
        liveness.beat(7, &[]);
        let time = Some(liveness.clock.monotonic_ns(7));
        assert_eq!(words(), [Some(0), time, Some(0), time]);
        drop(liveness);
        assert_eq!(words(), [Some(0); 4]);
    }

    #[test]
    fn a_worker_stands_aside_while_one_that_it_sends_by_gives_no_heartbeat() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        let at = |ns| liveness.clock.monotonic_ns(ns);
        let own = || page.queue(1).map(|word| word.load(Ordering::Relaxed));
        let store = |queue, ns| page.queue(queue).expect("a queue").store(ns, Ordering::Relaxed);
        page.beat_control(at(100));
        let stalled = Permission::HandBack(PuntReason::Stalled);
        liveness.beat(100, &[0]);
        assert_eq!(
            (liveness.permission(100, &[0]), own()),
            (stalled, Some(0)),
            "it never gave one"
        );
        store(0, at(60));
        liveness.beat(100, &[0]);
        assert_eq!((liveness.permission(100, &[0]), own()), (Permission::Forward, Some(at(100))));
        liveness.beat(111, &[0]);
        assert_eq!((liveness.permission(111, &[0]), own()), (stalled, Some(0)));
        store(2, at(111));
        assert_eq!(liveness.permission(111, &[2]), Permission::Forward);
        assert_eq!(liveness.permission(111, &[2, 0]), stalled, "all of them are needed");
    }
}
