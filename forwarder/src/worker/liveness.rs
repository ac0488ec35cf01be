//! Permission to forward, which expires.
//!
//! In each loop iteration a worker writes a heartbeat for the queues it serves. When a queue's heartbeat
//! is too old, the XDP program passes the queue's frames to the kernel. A worker that sends on the queues
//! of another worker writes no heartbeat while that worker writes none, because its packets would wait
//! there. The control thread writes a heartbeat whenever it has followed the kernel's tables and filters
//! up to that moment; when it is too old, the program passes everything to the kernel, and workers leave
//! received packets in place until the tables are known to be current again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::clock::Clock;
use crate::io::af_xdp::{HeartbeatPage, is_fresh};
use crate::stats::PuntReason;

/// What a worker may do with received packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Forward them.
    Forward,
    /// Punt them: the kernel has filters that are not applied here, or a worker that would send them is
    /// stalled.
    HandBack(PuntReason),
    /// Leave them in place: it is not known whether the tables are current.
    Wait,
}

/// Ages at which heartbeats expire, in nanoseconds. Ro: workers; wo: the control thread.
#[derive(Debug, Default)]
pub struct HeartbeatTimeouts {
    worker_ns: AtomicU64,
    control_ns: AtomicU64,
}

impl HeartbeatTimeouts {
    /// The first applies to workers' heartbeats, the second to the control thread's.
    pub fn new(timeouts: [Duration; 2]) -> Arc<HeartbeatTimeouts> {
        let this = Arc::new(HeartbeatTimeouts::default());
        this.set(timeouts);
        this
    }

    /// Sets both, as [`HeartbeatTimeouts::new`] does.
    pub fn set(&self, timeouts: [Duration; 2]) {
        let ns = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let [worker, control] = timeouts.map(ns);
        self.worker_ns.store(worker, Ordering::Relaxed);
        self.control_ns.store(control, Ordering::Relaxed);
    }
}

/// A worker's side.
#[derive(Debug)]
pub struct Liveness {
    page: Arc<HeartbeatPage>,
    /// RX queues, of any port, that the worker serves.
    queues: Vec<usize>,
    /// Of the control thread's heartbeat, and of those of other workers.
    timeouts: Arc<HeartbeatTimeouts>,
    clock: Clock,
    /// Set by the control thread while packets must be punted; written before its heartbeat.
    hand_back: Arc<AtomicBool>,
}

impl Liveness {
    /// The liveness of a worker that serves `queues`. Times are those of `clock`. While `hand_back` is set,
    /// packets are punted.
    pub fn new(
        page: Arc<HeartbeatPage>,
        queues: impl IntoIterator<Item = usize>,
        timeouts: Arc<HeartbeatTimeouts>,
        clock: Clock,
        hand_back: Arc<AtomicBool>,
    ) -> Liveness {
        let queues = queues.into_iter().collect();
        Liveness { page, queues, timeouts, clock, hand_back }
    }

    /// Age at which a worker's heartbeat expires, in nanoseconds.
    pub fn worker_timeout_ns(&self) -> u64 {
        self.timeouts.worker_ns.load(Ordering::Relaxed)
    }

    /// Writes the worker's heartbeat for `now_ns`. `targets`: the workers that send for this one.
    #[inline]
    pub fn beat(&self, now_ns: u64, targets: &[usize]) {
        let time_ns = self.clock.monotonic_ns(now_ns);
        // Workers hand packets over to workers with lower numbers only, so they do not wait for each
        // other.
        self.store(if self.are_fresh(targets, time_ns) { time_ns } else { 0 });
    }

    /// Stores the heartbeat of the worker's queues; 0: the XDP program passes their frames to the kernel.
    #[inline]
    fn store(&self, time_ns: u64) {
        for word in self.queues.iter().filter_map(|&queue| self.page.queue(queue)) {
            word.store(time_ns, Ordering::Relaxed);
        }
    }

    /// Whether the heartbeats of other workers are fresh.
    #[inline]
    fn are_fresh(&self, workers: &[usize], now_ns: u64) -> bool {
        // A worker's first queue has the worker's number.
        workers.iter().all(|&worker| {
            let word = self.page.queue(worker);
            word.is_some_and(|word| is_fresh(word, now_ns, self.worker_timeout_ns()))
        })
    }

    /// The permission at `now_ns`. `targets`: the workers that send for this one.
    #[inline]
    pub fn permission(&self, now_ns: u64, targets: &[usize]) -> Permission {
        let now_ns = self.clock.monotonic_ns(now_ns);
        let control_ns = self.timeouts.control_ns.load(Ordering::Relaxed);
        // Reading the heartbeat makes visible what was published before it.
        if !is_fresh(self.page.control(), now_ns, control_ns) {
            Permission::Wait
        } else if self.hand_back.load(Ordering::Acquire) {
            Permission::HandBack(PuntReason::Filtered)
        } else if !self.are_fresh(targets, now_ns) {
            Permission::HandBack(PuntReason::Stalled)
        } else {
            Permission::Forward
        }
    }
}

/// Expires the heartbeat when the worker ends, also by a panic.
impl Drop for Liveness {
    fn drop(&mut self) {
        self.store(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness(page: &Arc<HeartbeatPage>) -> Liveness {
        let queues = [1, 3, 5_000];
        let timeouts = HeartbeatTimeouts::new([50, 100].map(Duration::from_nanos));
        Liveness::new(Arc::clone(page), queues, timeouts, Clock::start(), Arc::default())
    }

    #[test]
    fn forwarding_is_permitted_while_the_control_heartbeat_is_fresh() {
        let page = HeartbeatPage::anonymous().expect("memory");
        let liveness = liveness(&page);
        assert_eq!(liveness.permission(0, &[]), Permission::Wait, "no heartbeat yet");
        page.beat_control(liveness.clock.monotonic_ns(50));
        assert_eq!(
            liveness.permission(40, &[]),
            Permission::Forward,
            "a heartbeat since this iteration began"
        );
        assert_eq!(liveness.permission(150, &[]), Permission::Forward);
        assert_eq!(liveness.permission(151, &[]), Permission::Wait);
        liveness.hand_back.store(true, Ordering::Relaxed);
        assert_eq!(liveness.permission(150, &[]), Permission::HandBack(PuntReason::Filtered));
        assert_eq!(liveness.permission(151, &[]), Permission::Wait);
    }

    #[test]
    fn a_worker_writes_heartbeats_of_its_own_queues() {
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
    fn a_worker_writes_no_heartbeat_while_its_sender_writes_none() {
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
            "it never wrote one"
        );
        store(0, at(60));
        liveness.beat(100, &[0]);
        assert_eq!((liveness.permission(100, &[0]), own()), (Permission::Forward, Some(at(100))));
        liveness.beat(111, &[0]);
        assert_eq!((liveness.permission(111, &[0]), own()), (stalled, Some(0)));
        store(2, at(111));
        assert_eq!(liveness.permission(111, &[2]), Permission::Forward);
        assert_eq!(liveness.permission(111, &[2, 0]), stalled, "all workers must be alive");
    }
}
