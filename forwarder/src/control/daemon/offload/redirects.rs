//! Frames that were redirected to a port and not sent: counted as drops, and a port that takes none gets no flows for
//! a while. Most drivers say in advance whether they take redirected frames; some refuse them only when they come.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use xdp_prog::redirect::Failures;

use crate::control::steering::RedirectFailures;
use crate::stats::{DropReason, WorkerStats};

/// Looks, of [`super::FEATURES_NS`] each, in which a port has to refuse frames before it gets no flows.
const LOOKS: u32 = 5;
/// How long it gets none.
const OFF_NS: u64 = 60_000_000_000;

/// What is known of one port.
#[derive(Debug, Default, Clone, Copy)]
struct Port {
    /// What is counted as drops.
    counted: Failures,
    /// Frames that it had refused, and that were redirected to it, when it was last looked at.
    looked: [u64; 2],
    /// Looks in a row in which it refused most of its frames.
    refusals: u32,
    /// It gets no flows until then.
    off_until_ns: u64,
}

/// The failures of all ports.
#[derive(Debug)]
pub(super) struct Redirects {
    failures: Arc<RedirectFailures>,
    ports: Mutex<Vec<Port>>,
    /// By number: it gets no flows.
    off: Box<[AtomicBool]>,
}

impl Redirects {
    pub(super) fn new(failures: Arc<RedirectFailures>, ports: usize) -> Redirects {
        Redirects {
            failures,
            ports: Mutex::new(vec![Port::default(); ports]),
            off: (0..ports).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Adds what has failed since the last time to the drops.
    pub(super) fn count(&self, stats: &WorkerStats) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, port) in (0..).zip(ports.iter_mut()) {
            count(port, self.failures.of_port(number), number, stats);
        }
    }

    /// Whether a port gets no flows because it refuses them.
    pub(super) fn is_off(&self, number: u16) -> bool {
        self.off.get(usize::from(number)).is_some_and(|off| off.load(Relaxed))
    }

    /// Looks at all ports, every [`super::FEATURES_NS`]. `redirected`: frames that were redirected to each since the
    /// start.
    pub(super) fn look(&self, stats: &WorkerStats, redirected: impl Fn(u16) -> u64, now_ns: u64) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for ((number, port), off) in (0..).zip(ports.iter_mut()).zip(&self.off) {
            let failed = self.failures.of_port(number);
            off.store(port.look(failed, redirected(number), now_ns), Relaxed);
            count(port, failed, number, stats);
        }
    }
}

fn count(port: &mut Port, failed: Failures, number: u16, stats: &WorkerStats) {
    let refused = failed.refused.saturating_sub(port.counted.refused);
    let dropped = failed.dropped.saturating_sub(port.counted.dropped);
    port.counted = failed;
    for (reason, frames) in
        [(DropReason::RedirectRefused, refused), (DropReason::FullRing, dropped)]
    {
        stats.tx_drops(reason, number, frames);
    }
}

impl Port {
    /// Returns whether the port gets no flows now.
    fn look(&mut self, failed: Failures, redirected: u64, now_ns: u64) -> bool {
        let now = [failed.refused, redirected];
        let before = std::mem::replace(&mut self.looked, now);
        let [refused, frames] = [0, 1].map(|n| now[n].saturating_sub(before[n]));
        if refused == 0 && frames == 0 {
            // Nothing was redirected to it.
            return now_ns < self.off_until_ns;
        }
        self.refusals = if refused > 0 && refused >= frames / 2 { self.refusals + 1 } else { 0 };
        if self.refusals >= LOOKS {
            self.refusals = 0;
            self.off_until_ns = now_ns + OFF_NS;
        }
        now_ns < self.off_until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_NS: u64 = super::super::FEATURES_NS;

    /// Looks at a port to which 100 frames are redirected each time, of which it refuses as many as the list says.
    fn looks(port: &mut Port, refused: &[u64], from: u64) -> Vec<bool> {
        let look = |(n, refused): (u64, &u64)| {
            let failed = Failures { refused: port.looked[0] + refused, ..Failures::default() };
            port.look(failed, port.looked[1] + 100, (from + n) * LOOK_NS)
        };
        (0..).zip(refused).map(look).collect()
    }

    #[test]
    fn a_port_that_refuses_frames_gets_no_flows_for_a_while() {
        let mut port = Port::default();
        assert_eq!(looks(&mut port, &[100, 100, 100, 100, 0, 50, 60, 100, 100], 1), [false; 9]);
        assert_eq!(looks(&mut port, &[100], 10), [true]);
        let off = OFF_NS / LOOK_NS;
        // Nothing is redirected to it meanwhile.
        let (failed, redirected) =
            (Failures { refused: port.looked[0], dropped: 0 }, port.looked[1]);
        assert!(port.look(failed, redirected, (10 + off) * LOOK_NS - 1));
        assert!(!port.look(failed, redirected, (10 + off) * LOOK_NS));
    }

    #[test]
    fn frames_that_a_full_ring_drops_or_that_are_few_change_nothing() {
        let mut port = Port::default();
        assert_eq!(looks(&mut port, &[49; 10], 1), [false; 10]);
        let full = Failures { dropped: 1000, refused: port.looked[0] };
        assert!((20..30).all(|n| !port.look(full, port.looked[1] + 100, n * LOOK_NS)));
    }
}
