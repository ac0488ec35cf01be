//! Which worker serves which queue, and the handoff of packets to another worker for ports on which their
//! own worker has no sending queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::calls::WorkerCalls;
use super::error::PortError;
use crate::worker::handoff::{Waker, channel};

/// The worker that serves a queue; the same for every port.
pub(in crate::control::daemon) fn worker_of(queue: u32, workers: usize) -> usize {
    queue as usize % workers.max(1)
}

/// The worker whose queue `worker` sends by on a port of which the queues below `tx_queues` can send.
pub(in crate::control::daemon) fn sends_by(worker: usize, tx_queues: u32) -> usize {
    // A worker's first queue has the worker's number.
    if worker < tx_queues as usize { worker } else { worker % tx_queues.max(1) as usize }
}

/// The existing handoffs; each is created when the first port needs it, and kept.
#[derive(Debug)]
pub(super) struct Handoffs {
    wakers: Vec<Arc<Waker>>,
    /// (From, to).
    made: BTreeSet<(usize, usize)>,
    /// Packets that a handoff holds.
    packets: usize,
}

impl Handoffs {
    /// Between `workers` workers.
    ///
    /// # Errors
    /// Those of eventfd(2), such as EMFILE.
    pub(super) fn new(workers: usize, packets: usize) -> Result<Handoffs> {
        let wakers = (0..workers).map(|_| Waker::new()).collect::<Result<_, _>>();
        let wakers = wakers.context("cannot create an eventfd")?;
        Ok(Handoffs { wakers, made: BTreeSet::new(), packets })
    }

    /// Sets for every worker how it sends on a port of which the queues below `tx_queues` can send.
    pub(super) fn lead(
        &mut self,
        port: u16,
        tx_queues: u32,
        workers: &mut WorkerCalls,
    ) -> Result<(), PortError> {
        for worker in 0..workers.len() {
            let by = sends_by(worker, tx_queues);
            if by != worker {
                self.connect(worker, by, workers)?;
            }
            let by = (by != worker).then_some(by);
            workers.change_handoffs(
                worker,
                move |handoffs| handoffs.set_target(port, by),
                move |handoffs, before| {
                    handoffs.set_target(port, before);
                },
            )?;
        }
        Ok(())
    }

    fn connect(
        &mut self,
        from: usize,
        to: usize,
        workers: &mut WorkerCalls,
    ) -> Result<(), PortError> {
        if self.made.contains(&(from, to)) {
            return Ok(());
        }
        let waker = self.wakers.get(to).ok_or(PortError::WorkerStalled(to))?;
        let (out, into) = channel(self.packets, to, Arc::clone(waker));
        let its = Arc::clone(waker);
        // First the receiving worker, then the sending one.
        workers.change_handoffs(
            to,
            move |handoffs| handoffs.add_rx(into, its),
            |handoffs, ()| handoffs.undo_add_rx(),
        )?;
        workers.change_handoffs(
            from,
            move |handoffs| handoffs.add(out),
            |handoffs, ()| handoffs.undo_add(),
        )?;
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
                for tx_queues in 1..=queues {
                    let serves = |worker: usize, queue: u32| worker_of(queue, workers) == worker;
                    for worker in 0..workers {
                        let by = sends_by(worker, tx_queues);
                        let first = (0..queues).find(|&queue| serves(by, queue));
                        assert!(first.is_some_and(|queue| queue < tx_queues), "{worker} by {by}");
                        let own = (0..queues).find(|&queue| serves(worker, queue));
                        assert_eq!(by == worker, own.is_some_and(|queue| queue < tx_queues));
                    }
                }
            }
        }
    }
}
