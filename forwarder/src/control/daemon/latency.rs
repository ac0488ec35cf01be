//! `latency`: the workers' measurements, summed since the last reset.
//!
//! Only the workers write their counters. A reset, or giving a port number to another interface, therefore
//! stores the current values; what is reported is the difference from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::Supervisor;
use super::snapshot::{Snapshot, View};
use crate::control::api::{LatencyReport, PairLatency};
use crate::io::Driver;
use crate::stats::histogram::value_at;
use crate::worker::WorkerHandle;

/// Counts by counter number.
type Counts = BTreeMap<u32, u64>;

/// Counter values at the last reset, or when one of their ports was given to another interface.
pub(super) struct Baseline {
    resets: u64,
    since: Instant,
    /// By (in-port, out-port), summed over all workers.
    pairs: BTreeMap<(u16, u16), Counts>,
}

impl Baseline {
    /// At the start all values are zero.
    pub(super) fn new() -> Baseline {
        Baseline { resets: 0, since: Instant::now(), pairs: BTreeMap::new() }
    }
}

impl View {
    /// Answers `latency` with what was measured since the last reset; `reset` makes now the last reset.
    pub(super) fn latency(&self, snapshot: &Snapshot, reset: bool) -> LatencyReport {
        loop {
            let baseline = self.baseline.load();
            let totals = snapshot.totals();
            let mut report = snapshot.measured(&baseline, &totals);
            report.offloaded = snapshot.offloaded();
            if !reset {
                return report;
            }
            let next =
                Baseline { resets: baseline.resets + 1, since: Instant::now(), pairs: totals };
            // If another client's reset or a port number's change of interface came in between, what was
            // counted since then is reported.
            let before = self.baseline.compare_and_swap(&baseline, Arc::new(next));
            if Arc::ptr_eq(&before, &baseline) {
                return report;
            }
        }
    }

    /// What was measured since the last reset, without the share of offloaded packets.
    pub(super) fn measured(&self, snapshot: &Snapshot) -> LatencyReport {
        snapshot.measured(&self.baseline.load(), &snapshot.totals())
    }
}

impl Snapshot {
    fn totals(&self) -> BTreeMap<(u16, u16), Counts> {
        let ports = self.ports.len() as u16;
        let pairs = (0..ports).flat_map(|iif| (0..ports).map(move |oif| (iif, oif)));
        let counted = pairs.map(|pair| (pair, counts(&self.workers, pair)));
        counted.filter(|(_, counts)| !counts.is_empty()).collect()
    }

    fn measured(
        &self,
        baseline: &Baseline,
        totals: &BTreeMap<(u16, u16), Counts>,
    ) -> LatencyReport {
        let name = |port: u16| self.ports[usize::from(port)].ifname.clone();
        let since = |(&pair, counts): (&(u16, u16), &Counts)| PairLatency {
            iif: name(pair.0),
            oif: name(pair.1),
            counts: difference(counts, baseline.pairs.get(&pair)),
        };
        LatencyReport {
            sample: self.latency_sample,
            resets: baseline.resets,
            age_us: baseline.since.elapsed().as_micros() as u64,
            ports: self.listed().map(|port| port.ifname.clone()).collect(),
            pairs: totals.iter().map(since).filter(|pair| !pair.counts.is_empty()).collect(),
            offloaded: None,
        }
    }

    /// Packets that the XDP program has forwarded itself, and all.
    fn offloaded(&self) -> Option<[u64; 2]> {
        self.offloads.as_ref().map(|offloads| {
            let offloaded = offloads.received();
            let workers = self.workers.iter().map(|worker| worker.stats.account(0, 0).received);
            [offloaded, offloaded + workers.sum::<u64>()]
        })
    }
}

impl Supervisor {
    /// Forgets what was measured from and to a port, because the number has another interface now. Nothing
    /// is measured for it meanwhile: the number has been unused for some time.
    pub(super) fn forget_latency(&mut self, port: u16) {
        let others = 0..self.ports.len() as u16;
        let pairs = others.flat_map(|other| [(port, other), (other, port)]);
        let forgotten: Vec<_> =
            pairs.map(|pair| (pair, counts(self.workers.handles(), pair))).collect();
        self.clients.view.baseline.rcu(|baseline| Baseline {
            pairs: baseline.pairs.clone().into_iter().chain(forgotten.iter().cloned()).collect(),
            ..**baseline
        });
    }
}

/// What all workers together have counted of a port pair.
fn counts(workers: &[WorkerHandle<Driver>], (iif, oif): (u16, u16)) -> Counts {
    let mut sum = Counts::new();
    for worker in workers {
        for (index, count) in worker.residence.counts(iif, oif) {
            *sum.entry(index).or_default() += count;
        }
    }
    sum
}

/// Counts since `before`, as (lowest value of the counter in nanoseconds, count).
fn difference(counts: &Counts, before: Option<&Counts>) -> Vec<(u64, u64)> {
    let before = |index| before.and_then(|before| before.get(index)).copied().unwrap_or(0);
    let since = counts.iter().map(|(index, &count)| (index, count.wrapping_sub(before(index))));
    since.filter(|(_, n)| *n > 0).map(|(&index, n)| (value_at(index as usize), n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counts_since_the_reset_are_reported() {
        let before = Counts::from([(3, 10), (7, 1)]);
        let now = Counts::from([(3, 12), (7, 1), (4000, 5)]);
        assert_eq!(difference(&now, Some(&before)), [(3, 2), (value_at(4000), 5)]);
        assert_eq!(difference(&before, None), [(3, 10), (7, 1)]);
        assert_eq!(difference(&before, Some(&before)), []);
    }
}
