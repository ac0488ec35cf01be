//! Commands to a worker from other threads, run between two loop iterations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ask::{CallTimeouts, NoAnswer, ask};
use super::clock::Clock;
use super::handoff::Handoffs;
use super::poll::WorkerFrames;
use super::residence::Residence;
use super::trace_handle::TraceHandle;
use crate::capture::{Session, Tap};
use crate::skb::FramePool;
use crate::stats::{PacketAccount, WorkerStats};
use crate::trace::Traces;

/// Maximum number of commands that wait for a worker.
pub(super) const COMMANDS: usize = 16;
/// Of these, reserved for the control thread: [`WorkerHandle::try_call`] leaves them free.
const COMMANDS_KEPT: usize = 8;

/// Runs with a worker's driver, free frames and counters.
type Call<I> = Box<dyn FnOnce(&mut I, &mut FramePool, &WorkerStats) + Send>;

/// A command to a worker, run between two loop iterations.
pub enum Command<I> {
    /// Runs on the worker's thread with its driver: adds or removes a port, or reads a ring.
    Call(Call<I>),
    /// Runs on the worker's thread with its captures: begins or ends one.
    Tap(Box<dyn FnOnce(&mut Tap) + Send>),
    /// Runs on the worker's thread with its traces: begins or ends one.
    Traces(Box<dyn FnOnce(&mut Traces) + Send>),
    /// Runs on the worker's thread with its handoff channels: changes them.
    Handoffs(Box<dyn FnOnce(&mut Handoffs) + Send>),
    /// Returns the accounting of the worker's frames and packets.
    FrameAccounting(Sender<(WorkerFrames, PacketAccount)>),
}

impl<I> std::fmt::Debug for Command<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Call(_) => "Call",
            Command::Tap(_) => "Tap",
            Command::Traces(_) => "Traces",
            Command::Handoffs(_) => "Handoffs",
            Command::FrameAccounting(_) => "FrameAccounting",
        })
    }
}

/// The control thread's handle of a worker.
#[derive(Debug)]
pub struct WorkerHandle<I> {
    pub(super) commands: Sender<Command<I>>,
    pub(super) stop: Arc<AtomicBool>,
    /// The worker's counters.
    pub stats: Arc<WorkerStats>,
    /// Residence time of frames.
    pub residence: Arc<Residence>,
    /// The worker's clock.
    pub clock: Clock,
}

impl<I> Clone for WorkerHandle<I> {
    fn clone(&self) -> WorkerHandle<I> {
        WorkerHandle {
            commands: self.commands.clone(),
            stop: Arc::clone(&self.stop),
            stats: Arc::clone(&self.stats),
            residence: Arc::clone(&self.residence),
            clock: self.clock,
        }
    }
}

impl<I> WorkerHandle<I> {
    /// Requests the worker to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Accounting of the worker's frames and packets, both taken between the same two loop iterations.
    /// `None`: the worker has ended or did not respond in time.
    pub fn accounting(&self, timeout: Duration) -> Option<(WorkerFrames, PacketAccount)> {
        let (answer, result) = bounded(1);
        let deadline = Instant::now() + timeout;
        self.commands.send_deadline(Command::FrameAccounting(answer), deadline).ok()?;
        result.recv_deadline(deadline).ok()
    }

    /// Requests the accounting as [`WorkerHandle::try_call`] does.
    pub fn try_accounting(&self) -> Option<Receiver<(WorkerFrames, PacketAccount)>> {
        self.try_ask(Command::FrameAccounting)
    }

    /// Has `call` run on the worker's thread between two loop iterations, without waiting for it or for
    /// room in the command queue. `None`: the worker has ended, or the queue is full.
    pub fn try_call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut I, &mut FramePool, &WorkerStats) -> T + Send + 'static,
    ) -> Option<Receiver<T>> {
        self.try_ask(|answer| {
            Command::Call(Box::new(move |io, pool, stats| {
                let _ = answer.send(call(io, pool, stats));
            }))
        })
    }

    fn try_ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command<I>) -> Option<Receiver<T>> {
        if self.commands.len() >= COMMANDS - COMMANDS_KEPT {
            return None;
        }
        let (answer, result) = bounded(1);
        self.commands.try_send(command(answer)).ok()?;
        Some(result)
    }

    /// A handle of the worker's captures only.
    pub fn taps(&self) -> TapHandle<I> {
        TapHandle { commands: self.commands.clone() }
    }

    /// A handle of the worker's traces only.
    pub fn traces(&self) -> TraceHandle<I> {
        TraceHandle { commands: self.commands.clone() }
    }

    /// Changes the worker's handoff channels, between two loop iterations. If this completes after the
    /// caller stopped waiting, the worker undoes it.
    ///
    /// # Errors
    /// [`NoAnswer`]: nothing has been done, or the worker undoes it by `undo`.
    pub fn change_handoffs_or_undo<T: Send + 'static>(
        &self,
        timeouts: CallTimeouts,
        change: impl FnOnce(&mut Handoffs) -> T + Send + 'static,
        undo: impl FnOnce(&mut Handoffs, T) + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.commands, timeouts, |reply| {
            Command::Handoffs(Box::new(move |handoffs| {
                if let Some(unwanted) = reply.run(|| change(handoffs)) {
                    undo(handoffs, unwanted);
                }
            }))
        })
    }

    /// Runs `call` on the worker's thread between two loop iterations and waits for its result. If this
    /// completes after the caller stopped waiting, the worker undoes it.
    ///
    /// # Errors
    /// [`NoAnswer`]: nothing has been done, or the worker undoes it by `undo`.
    pub fn call_or_undo<T: Send + 'static>(
        &self,
        timeouts: CallTimeouts,
        call: impl FnOnce(&mut I, &mut FramePool, &WorkerStats) -> T + Send + 'static,
        undo: impl FnOnce(&mut I, &mut FramePool, &WorkerStats, T) + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.commands, timeouts, |reply| {
            Command::Call(Box::new(move |io, pool, stats| {
                if let Some(unwanted) = reply.run(|| call(io, pool, stats)) {
                    undo(io, pool, stats, unwanted);
                }
            }))
        })
    }
}

/// Begins and ends captures on a worker; may be used by any thread.
#[derive(Debug)]
pub struct TapHandle<I> {
    commands: Sender<Command<I>>,
}

impl<I> TapHandle<I> {
    /// Begins a capture. `None`: the worker has ended, did not respond within `timeout` (and ends the
    /// capture if it begins it later), or has [`SESSIONS_MAX`](crate::capture::tap::SESSIONS_MAX)
    /// captures already.
    pub fn attach(&self, session: Session, timeout: Duration) -> Option<()> {
        let id = session.id();
        let undo = move |tap: &mut Tap, refused: Option<Session>| {
            if refused.is_none() {
                tap.detach(id);
            }
        };
        match self.ask(timeout, move |tap| tap.attach(session), undo).ok()? {
            None => Some(()),
            Some(_refused) => None,
        }
    }

    /// Ends a capture; its copies have been handed over when this returns. `None`: as for
    /// [`Self::attach`], or there is no such capture. A worker that does not respond in time ends it
    /// later.
    pub fn detach(&self, id: u64, timeout: Duration) -> Option<()> {
        let (answer, result) = bounded(1);
        let deadline = Instant::now() + timeout;
        let command = Command::Tap(Box::new(move |tap| drop(answer.send(tap.detach(id)))));
        self.commands.send_deadline(command, deadline).ok()?;
        // Its memory is freed here, not by the worker.
        result.recv_deadline(deadline).ok()?.map(drop)
    }

    /// Changes the interface of a port for captures, see [`Tap::name_port`].
    ///
    /// # Errors
    /// [`NoAnswer`]; a worker that had begun completes it nevertheless. The call may be repeated.
    pub fn name_port(
        &self,
        port: u16,
        name: &str,
        naming: u64,
        timeout: Duration,
    ) -> Result<(), NoAnswer> {
        let name = name.to_owned();
        self.ask(timeout, move |tap| tap.name_port(port, &name, naming), |_, ()| {})
    }

    fn ask<T: Send + 'static>(
        &self,
        timeout: Duration,
        call: impl FnOnce(&mut Tap) -> T + Send + 'static,
        undo: impl FnOnce(&mut Tap, T) + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.commands, CallTimeouts::brief(timeout), |reply| {
            Command::Tap(Box::new(move |tap| {
                if let Some(unwanted) = reply.run(|| call(tap)) {
                    undo(tap, unwanted);
                }
            }))
        })
    }
}
