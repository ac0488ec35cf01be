//! Requests of the thread that opens and closes ports to the workers. No call waits long. A call that timed
//! out is cancelled, or undone if the worker had begun it; closing and renaming are not undone, but
//! requested again. A socket that could not be closed is remembered and closed when its worker answers
//! again.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::error::PortError;
use crate::io::Driver;
use crate::io::af_xdp::{PortConfig, PortInfo, PortState};
use crate::worker::{CallTimeouts, Handoffs, NoAnswer, WorkerHandle};

/// A worker begins with a command within a turn, 20 ms when it sleeps. This is longer because a worker may
/// have to wait for its CPU.
const BEGIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Binding a socket may reset a NIC's link, which takes 1 to 2 s (igb).
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUTS: CallTimeouts = CallTimeouts { begin: BEGIN_TIMEOUT, finish: FINISH_TIMEOUT };

/// The workers, and the sockets still to be closed at each.
#[derive(Debug)]
pub(super) struct WorkerCalls {
    handles: Vec<WorkerHandle<Driver>>,
    /// By worker: slots whose sockets are to be closed.
    owed: Vec<BTreeSet<u16>>,
    /// Workers that did not answer since [`WorkerCalls::begin_job`]: they are not waited for again.
    silent: BTreeSet<usize>,
}

impl WorkerCalls {
    pub(super) fn new(handles: Vec<WorkerHandle<Driver>>) -> WorkerCalls {
        let owed = handles.iter().map(|_| BTreeSet::new()).collect();
        WorkerCalls { handles, owed, silent: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Clears `silent`: every worker is waited for again.
    pub(super) fn begin_job(&mut self) {
        self.silent.clear();
    }

    /// Opens a socket in a slot of a worker's driver. Returns its properties and a duplicate of its
    /// descriptor.
    pub(super) fn open(
        &mut self,
        worker: usize,
        slot: u16,
        config: PortConfig,
    ) -> Result<(PortInfo, OwnedFd), PortError> {
        self.close_owed(worker)?;
        let opened = self.ask(worker, |handle| {
            handle.call_or_undo(
                TIMEOUTS,
                move |io, pool, stats| {
                    // The slot is empty unless an earlier close failed.
                    io.remove_port(slot, pool, stats);
                    io.add_port(slot, &config, pool)?;
                    match describe(io, slot) {
                        Ok(opened) => Ok(opened),
                        Err(error) => {
                            io.remove_port(slot, pool, stats);
                            Err(PortError::Descriptors(error))
                        }
                    }
                },
                move |io, pool, stats, late| {
                    // The duplicate descriptor first, or the socket would stay open.
                    drop(late);
                    io.remove_port(slot, pool, stats);
                },
            )
        });
        opened?
    }

    /// Closes the socket in a slot, now or as soon as the worker answers.
    pub(super) fn close(&mut self, worker: usize, slot: u16) {
        if let Some(owed) = self.owed.get_mut(worker) {
            owed.insert(slot);
        }
        // A failure leaves it in `owed`.
        let _ = self.close_owed(worker);
    }

    /// Closes all sockets that could not be closed before.
    pub(super) fn close_all_owed(&mut self) {
        for worker in 0..self.len() {
            let _ = self.close_owed(worker);
        }
    }

    fn close_owed(&mut self, worker: usize) -> Result<(), PortError> {
        let owed = self.owed.get(worker).cloned().unwrap_or_default();
        if owed.is_empty() {
            return Ok(());
        }
        self.ask(worker, |handle| {
            let close = move |io: &mut Driver, pool: &mut _, stats: &_| {
                owed.iter().for_each(|&slot| io.remove_port(slot, pool, stats));
            };
            handle.call_or_undo(TIMEOUTS, close, |_, _, _, ()| {})
        })?;
        self.owed[worker].clear();
        Ok(())
    }

    /// Whether the sockets in some slots of a worker can send, as last noticed by the worker.
    pub(super) fn tx_states(
        &mut self,
        worker: usize,
        slots: Vec<u16>,
    ) -> Result<Vec<(u16, Option<PortState>)>, PortError> {
        self.ask(worker, |handle| {
            let states = move |io: &mut Driver, _: &mut _, _: &_| {
                slots.into_iter().map(|slot| (slot, io.tx_state(slot))).collect()
            };
            handle.call_or_undo(TIMEOUTS, states, |_, _, _, _| {})
        })
    }

    /// Informs a worker that a port number now belongs to another interface: captures use the new name, and
    /// counters restart at 0.
    pub(super) fn rename(
        &mut self,
        worker: usize,
        (port, max_ports): (u16, u16),
        name: &str,
        naming: u64,
    ) -> Result<(), PortError> {
        self.ask(worker, |handle| handle.taps().name_port(port, name, naming, BEGIN_TIMEOUT))?;
        self.ask(worker, |handle| {
            let reset = move |io: &mut Driver, _: &mut _, stats: &crate::stats::WorkerStats| {
                stats.slots_of(port, max_ports).for_each(|(slot, _)| io.forget_statistics(slot));
                stats.forget_port(port, max_ports);
            };
            handle.call_or_undo(TIMEOUTS, reset, |_, _, _, _| {})
        })
    }

    /// Changes a worker's handoffs from and to others. The worker undoes it if this call has timed out.
    pub(super) fn change_handoffs<T: Send + 'static>(
        &mut self,
        worker: usize,
        change: impl FnOnce(&mut Handoffs) -> T + Send + 'static,
        undo: impl FnOnce(&mut Handoffs, T) + Send + 'static,
    ) -> Result<(), PortError> {
        self.ask(worker, |handle| {
            handle
                .change_handoffs_or_undo(CallTimeouts::brief(BEGIN_TIMEOUT), change, undo)
                .map(drop)
        })
    }

    fn ask<T>(
        &mut self,
        worker: usize,
        call: impl FnOnce(&WorkerHandle<Driver>) -> Result<T, NoAnswer>,
    ) -> Result<T, PortError> {
        let stalled = PortError::WorkerStalled(worker);
        let Some(handle) = self.handles.get(worker) else { return Err(stalled) };
        if self.silent.contains(&worker) {
            return Err(stalled);
        }
        call(handle).map_err(|_| {
            self.silent.insert(worker);
            stalled
        })
    }
}

/// A socket that has just been opened, and another descriptor of it.
fn describe(io: &mut Driver, slot: u16) -> std::io::Result<(PortInfo, OwnedFd)> {
    let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let info = io.port_info(slot).ok_or_else(gone)?;
    let socket = io.socket_fd(slot).ok_or_else(gone)?.try_clone_to_owned()?;
    Ok((info, socket))
}
