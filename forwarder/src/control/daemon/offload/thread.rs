//! The thread `fr-offload`, and the control thread's handle of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{BATCH, FEATURES_NS, OFFERS, Offloads, SCAN, SWEEP_NS, WAIT};
use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::steering::{RedirectFailures, Steering};
use crate::neigh::NeighTable;
use crate::netfilter::Hooks;
use crate::pipeline::Offer;
use crate::tables::{Snapshot, Tables};
use crate::worker::clock::monotonic_ns;

/// The control thread's handle of the thread `fr-offload`.
#[derive(Debug)]
pub(in crate::control::daemon) struct Offloader {
    offloads: Arc<Offloads>,
    offers: Sender<Offer>,
    taken: Option<Receiver<Offer>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The neighbours that next hops were last compared with.
    neigh: Option<Arc<NeighTable>>,
    /// The interfaces by which frames leave that are redirected to ports.
    tx_ports: Vec<Option<u32>>,
    failures: Option<Arc<RedirectFailures>>,
}

impl Offloader {
    /// Does not start the thread yet. `failures`: those of `offloads`.
    pub(in crate::control::daemon) fn new(
        offloads: Offloads,
        failures: Option<Arc<RedirectFailures>>,
    ) -> Offloader {
        let (offers, taken) = bounded(OFFERS);
        Offloader {
            offloads: Arc::new(offloads),
            offers,
            taken: Some(taken),
            stopping: Arc::default(),
            thread: None,
            neigh: None,
            tx_ports: Vec::new(),
            failures,
        }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(in crate::control::daemon) fn start(&mut self, hooks: Snapshot<Hooks>) -> io::Result<()> {
        let Some(offers) = self.taken.take() else { return Ok(()) };
        let (offloads, stopping) = (Arc::clone(&self.offloads), Arc::clone(&self.stopping));
        let thread = thread::Builder::new().name("fr-offload".into()).spawn(move || {
            privilege::drop_all();
            run(&offloads, &offers, hooks, &stopping);
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    pub(in crate::control::daemon) fn offloads(&self) -> &Arc<Offloads> {
        &self.offloads
    }

    /// Where workers send offers to.
    pub(in crate::control::daemon) fn offers(&self) -> Sender<Offer> {
        self.offers.clone()
    }

    /// Has frames that are redirected to a port leave by an interface, if that is new. Returns whether they do.
    pub(in crate::control::daemon) fn set_tx_port(
        &mut self,
        steering: &Steering,
        port: u16,
        ifindex: Option<u32>,
    ) -> bool {
        let at = usize::from(port);
        if self.tx_ports.len() <= at {
            self.tx_ports.resize(at + 1, None);
        }
        let Some(known) = self.tx_ports.get_mut(at) else { return false };
        if *known != ifindex {
            let before = *known;
            *known = steering.set_tx_port(port, ifindex).map_or(None, |()| ifindex);
            if let Some(failures) = &self.failures {
                // Without, what is not sent is not counted.
                let _ = failures.set_port(port, before, *known);
            }
        }
        *known == ifindex
    }

    /// To be called after new tables were published, before a heartbeat.
    pub(in crate::control::daemon) fn follow(&mut self, tables: &Tables) {
        if self.neigh.as_ref().is_none_or(|neigh| !Arc::ptr_eq(neigh, &tables.neigh)) {
            self.neigh = Some(Arc::clone(&tables.neigh));
            self.offloads.follow_neighbours(tables);
        }
    }

    /// Whether the thread has ended, which is a bug.
    pub(in crate::control::daemon) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the thread, and waits for it until `end`. What the program has forwarded is counted.
    pub(in crate::control::daemon) fn stop(&mut self, end: Instant) {
        self.stopping.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            join_until(thread, end);
        }
    }
}

fn run(
    offloads: &Offloads,
    offers: &Receiver<Offer>,
    mut hooks: Snapshot<Hooks>,
    stopping: &AtomicBool,
) {
    let capacity = offloads.capacity() as u32;
    let mut cursor = 0;
    // Of the epochs, when the present pass over the table and the two before began: what was entered behind the
    // first of these is looked at in the second.
    let mut changes = [0; 3];
    let mut swept_ns = monotonic_ns();
    let mut features_ns = 0;
    while !stopping.load(Acquire) {
        let first = match offers.recv_timeout(WAIT) {
            Ok(offer) => Some(offer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        hooks.refresh();
        let nft = hooks.get().nft();
        if let Some(first) = first {
            let mut inner = offloads.lock();
            let more = std::iter::once(first).chain(offers.try_iter()).take(BATCH);
            more.for_each(|offer| offloads.enter(&mut inner, offer, nft));
        }
        let now_ns = monotonic_ns();
        offloads.reap(&mut offloads.lock(), now_ns);
        // As much of the table as belongs to the time since.
        let share = u64::from(capacity) * now_ns.saturating_sub(swept_ns) / SWEEP_NS;
        if share >= u64::from(SCAN.min(capacity)) {
            swept_ns = now_ns;
            let mut left = share.min(u64::from(capacity)) as u32;
            while left > 0 {
                if cursor == 0 {
                    changes = [offloads.epochs.changes(), changes[0], changes[1]];
                }
                let end = cursor + left.min(SCAN).min(capacity - cursor);
                offloads.sweep(cursor, end, changes[0] != changes[2]);
                left -= end - cursor;
                cursor = if end >= capacity { 0 } else { end };
            }
            offloads.mark_neighbours();
        }
        offloads.renamed.1.try_iter().for_each(|port| offloads.restart_counters(port));
        let has_new_ports = offloads.has_new_ports.swap(false, Acquire);
        if has_new_ports || now_ns.saturating_sub(features_ns) >= FEATURES_NS {
            features_ns = now_ns;
            offloads.follow_features();
        }
    }
    offloads.sweep(0, capacity, false);
    // No program runs any more.
    offloads.reap(&mut offloads.lock(), u64::MAX);
    offloads.count_failures();
}
