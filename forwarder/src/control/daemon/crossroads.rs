//! Which worker serves which queue, and the ways between workers for ports on which one has none.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::WORKER_TIMEOUT;
use crate::io::af_xdp::AfXdp;
use crate::worker::WorkerHandle;
use crate::worker::crossing::{Waker, way};

/// The worker that serves a queue, of every port.
pub(super) fn worker_of(queue: u32, workers: usize) -> usize {
    queue as usize % workers.max(1)
}

/// The worker by whose queue `worker` sends on a port of which queues below `senders` can send.
pub(super) fn sends_by(worker: usize, senders: u32) -> usize {
    // A worker's first queue has its own number.
    if worker < senders as usize { worker } else { worker % senders.max(1) as usize }
}

/// The ways there are; made when the first port needs them, and kept.
#[derive(Debug)]
pub(super) struct Crossroads {
    wakers: Vec<Arc<Waker>>,
    made: BTreeSet<(usize, usize)>,
    /// Packets that a way holds.
    packets: usize,
}

impl Crossroads {
    /// Between `workers` workers.
    pub(super) fn new(workers: usize, packets: usize) -> Result<Crossroads> {
        let wakers = (0..workers).map(|_| Waker::new()).collect::<Result<_, _>>();
        let wakers = wakers.context("cannot create an eventfd")?;
        Ok(Crossroads { wakers, made: BTreeSet::new(), packets })
    }

    /// Tells every worker how it reaches a port of which queues below `senders` can send.
    pub(super) fn lead(
        &mut self,
        port: u16,
        senders: u32,
        workers: &[WorkerHandle<AfXdp>],
    ) -> Result<()> {
        for (n, worker) in workers.iter().enumerate() {
            let by = sends_by(n, senders);
            if by != n {
                self.connect(n, by, workers)?;
            }
            worker
                .cross(WORKER_TIMEOUT, move |crossings| {
                    crossings.lead(port, (by != n).then_some(by))
                })
                .with_context(|| format!("worker {n} does not answer"))?;
        }
        Ok(())
    }

    fn connect(&mut self, from: usize, to: usize, workers: &[WorkerHandle<AfXdp>]) -> Result<()> {
        if self.made.contains(&(from, to)) {
            return Ok(());
        }
        let waker = &self.wakers[to];
        let (out, into) = way(self.packets, to, Arc::clone(waker));
        let its = Arc::clone(waker);
        let silent = |n: usize| format!("worker {n} does not answer");
        // Who takes first, then who sends.
        workers[to]
            .cross(WORKER_TIMEOUT, move |crossings| crossings.admit(into, its))
            .with_context(|| silent(to))?;
        workers[from]
            .cross(WORKER_TIMEOUT, move |crossings| crossings.add(out))
            .with_context(|| silent(from))?;
        self.made.insert((from, to));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_one_worker_and_every_worker_sends_by_one_that_serves_a_sending_queue() {
        for workers in 1..9 {
            for queues in 1..9u32 {
                for senders in 1..=queues {
                    let serves = |worker: usize, queue: u32| worker_of(queue, workers) == worker;
                    for worker in 0..workers {
                        let by = sends_by(worker, senders);
                        let first = (0..queues).find(|&queue| serves(by, queue));
                        assert!(first.is_some_and(|queue| queue < senders), "{worker} by {by}");
                        let own = (0..queues).find(|&queue| serves(worker, queue));
                        assert_eq!(by == worker, own.is_some_and(|queue| queue < senders));
                    }
                }
            }
        }
    }
}
