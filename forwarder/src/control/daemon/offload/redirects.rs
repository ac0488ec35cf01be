//! Frames that were redirected to a port and not sent: counted as drops, and a port that takes none gets no flows for
//! a while. Most drivers say in advance whether they take redirected frames; some refuse them only when they come.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use xdp_prog::redirect::Failures;

use crate::control::steering::RedirectFailures;
use crate::stats::{DropReason, WorkerStats};

/// Looks, of [`super::FEATURES_NS`] each, over which a port is judged. Refused frames are known at once, and how many
/// were redirected two looks later.
const LOOKS: usize = 10;
/// Looks after the first refused frame until it is judged.
const LOOKS_MIN: usize = 5;
/// How long a port that refuses frames gets no flows; twice as long each time that it does so again.
const OFF_NS: u64 = 60_000_000_000;
/// How often that is doubled.
const DOUBLINGS_MAX: u32 = 6;

/// What is known of one port.
#[derive(Debug, Default, Clone, Copy)]
struct Port {
    /// What is counted as drops.
    counted: Failures,
    /// Frames that it had refused, and that were redirected to it, when it was last looked at.
    looked: [u64; 2],
    /// The same of each of the last looks, the oldest first.
    recent: [[u64; 2]; LOOKS],
    /// It gets no flows until then.
    off_until_ns: u64,
    /// How often that was so.
    times_off: u32,
    /// Its driver says that it takes frames.
    has_feature: bool,
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

    /// A port's driver says now whether it takes frames. What it did before it began to is forgotten.
    pub(super) fn set_feature(&self, number: u16, has_feature: bool) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(port) = ports.get_mut(usize::from(number)) else { return };
        let had_feature = std::mem::replace(&mut port.has_feature, has_feature);
        if has_feature && !had_feature {
            let Port { counted, looked, has_feature, .. } = *port;
            *port = Port { counted, looked, has_feature, ..Port::default() };
            self.off[usize::from(number)].store(false, Relaxed);
        }
    }

    /// A port's number belongs to another interface from now on. `reset`: resets its counters, while nobody else adds
    /// to them.
    pub(super) fn forget(&self, number: u16, stats: &WorkerStats, reset: impl FnOnce()) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = ports.get_mut(usize::from(number)) {
            let failed = self.failures.of_port(number);
            count(port, failed, number, stats);
            let looked = [failed.refused, 0];
            *port = Port { counted: failed, looked, ..Port::default() };
            self.off[usize::from(number)].store(false, Relaxed);
        }
        reset();
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
        let is_off = now_ns < self.off_until_ns;
        let before = std::mem::replace(&mut self.looked, now);
        if is_off {
            // What is still on its way then is no new refusal.
            self.recent = Default::default();
            return true;
        }
        self.recent.rotate_left(1);
        self.recent[LOOKS - 1] = [0, 1].map(|n| now[n].saturating_sub(before[n]));
        let [refused, frames] = [0, 1].map(|n| self.recent.iter().map(|look| look[n]).sum::<u64>());
        let first = self.recent.iter().position(|[refused, _]| *refused > 0);
        let is_long = first.is_some_and(|first| first + LOOKS_MIN <= LOOKS);
        if is_long && refused >= frames / 2 {
            self.recent = Default::default();
            self.off_until_ns = now_ns + (OFF_NS << self.times_off.min(DOUBLINGS_MAX));
            self.times_off += 1;
        }
        now_ns < self.off_until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_NS: u64 = super::super::FEATURES_NS;

    /// Looks at a port that has refused, and got, as many frames since the look before. Returns the first look at
    /// which it gets no flows.
    fn first_off(port: &mut Port, from: u64, frames: &[[u64; 2]]) -> Option<usize> {
        let mut look = |(n, [refused, redirected]): (u64, &[u64; 2])| {
            let failed = Failures { refused: port.looked[0] + refused, dropped: 0 };
            port.look(failed, port.looked[1] + redirected, (from + n) * LOOK_NS)
        };
        let offs: Vec<bool> = (from..).zip(frames).map(|(n, of)| look((n - from, of))).collect();
        offs.iter().position(|is_off| *is_off)
    }

    #[test]
    fn a_port_that_refuses_frames_gets_no_flows_for_a_while() {
        let mut port = Port::default();
        assert_eq!(first_off(&mut port, 1, &[[100, 100]; 8]), Some(4));
        let until = port.off_until_ns;
        let (failed, redirected) =
            (Failures { refused: port.looked[0], dropped: 0 }, port.looked[1]);
        // Nothing is redirected to it meanwhile. Then it is tried again, and the next time it takes longer.
        assert!((1..LOOKS as u64 + 1).all(|n| port.look(failed, redirected, until - n)));
        assert!(!port.look(failed, redirected, until));
        let at = until / LOOK_NS + 1;
        assert_eq!(first_off(&mut port, at, &[[1, 1]; 8]), Some(4));
        assert!(port.off_until_ns - until > 2 * OFF_NS - LOOK_NS);
    }

    #[test]
    fn it_is_noticed_although_frames_are_counted_later_and_are_few() {
        let mut late = vec![[1000, 0], [0, 0], [0, 1000]];
        late.extend([[0, 0]; 4]);
        assert_eq!(first_off(&mut Port::default(), 1, &late), Some(4));
        let sparse: Vec<[u64; 2]> = (0..10).map(|n| [n % 2, (n + 1) % 2]).collect();
        assert!(first_off(&mut Port::default(), 1, &sparse).is_some());
    }

    #[test]
    fn some_refused_frames_or_a_full_ring_change_nothing() {
        let mut port = Port::default();
        assert_eq!(first_off(&mut port, 1, &[[49, 100]; 30]), None);
        // Until its driver says that it takes none.
        let mut port = Port::default();
        let mut frames = vec![[0, 100]; 6];
        frames.extend([[100, 100], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]);
        assert_eq!(first_off(&mut port, 1, &frames), None);
        let full = Failures { dropped: 1000, refused: port.looked[0] };
        assert!((20..40).all(|n| !port.look(full, port.looked[1] + 100, n * LOOK_NS)));
    }
}
