//! How other threads reach a worker: commands, which it runs between two turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ask::{NoAnswer, Patience, ask};
use super::clock::Clock;
use super::handoff::Handoffs;
use super::poll::WorkerFrames;
use super::residence::Residence;
use crate::capture::{Session, Tap};
use crate::skb::FramePool;
use crate::stats::{PacketAccount, WorkerStats};

/// Commands that wait for a worker at most.
pub(super) const COMMANDS: usize = 16;
/// Those of them that [`WorkerHandle::try_call`] leaves room for: they are the control thread's.
const COMMANDS_KEPT: usize = 8;

/// Runs with a worker's driver, free frames and counters.
type Call<I> = Box<dyn FnOnce(&mut I, &mut FramePool, &WorkerStats) + Send>;

/// What the control thread may ask of a worker; done between two turns.
pub enum Command<I> {
    /// Runs on the worker's thread with its driver: to add or remove a port, to read a ring.
    Call(Call<I>),
    /// Runs on the worker's thread with its captures: to begin or end one.
    Tap(Box<dyn FnOnce(&mut Tap) + Send>),
    /// Runs on the worker's thread with its ways to and from other workers: to change them.
    Cross(Box<dyn FnOnce(&mut Handoffs) + Send>),
    /// Answers where the worker's frames are, and where its packets went.
    FrameAccounting(Sender<(WorkerFrames, PacketAccount)>),
}

impl<I> std::fmt::Debug for Command<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Call(_) => "Call",
            Command::Tap(_) => "Tap",
            Command::Cross(_) => "Cross",
            Command::FrameAccounting(_) => "FrameAccounting",
        })
    }
}

/// The control thread's hold on a worker.
#[derive(Debug)]
pub struct WorkerHandle<I> {
    pub(super) commands: Sender<Command<I>>,
    pub(super) stop: Arc<AtomicBool>,
    /// What the worker counts.
    pub stats: Arc<WorkerStats>,
    /// How long frames stay with it.
    pub residence: Arc<Residence>,
    /// By which it tells the time.
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
    /// Tells the worker to finish.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Where the worker's frames are now, and where its packets went, both between the same two turns.
    /// `None`: the worker is gone or did not get to it.
    pub fn accounting(&self, timeout: Duration) -> Option<(WorkerFrames, PacketAccount)> {
        let (answer, result) = bounded(1);
        let deadline = Instant::now() + timeout;
        self.commands.send_deadline(Command::FrameAccounting(answer), deadline).ok()?;
        result.recv_deadline(deadline).ok()
    }

    /// Asks where the worker's frames are, as [`WorkerHandle::try_call`] asks.
    pub fn try_accounting(&self) -> Option<Receiver<(WorkerFrames, PacketAccount)>> {
        self.try_ask(Command::FrameAccounting)
    }

    /// Has `call` run on the worker's thread between two turns, and waits for nothing: not for room
    /// among its commands either. `None`: it is gone, or does not get to its commands.
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

    /// A hold on the worker's captures alone.
    pub fn taps(&self) -> TapHandle<I> {
        TapHandle { commands: self.commands.clone() }
    }

    /// Changes the worker's ways to and from others, between two turns. Should it be done when nobody
    /// waits for it any more, the worker undoes it.
    ///
    /// # Errors
    /// [`NoAnswer`]: nothing has been done, or the worker undoes what it did by `undo`.
    pub fn cross_or_undo<T: Send + 'static>(
        &self,
        patience: Patience,
        change: impl FnOnce(&mut Handoffs) -> T + Send + 'static,
        undo: impl FnOnce(&mut Handoffs, T) + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.commands, patience, |reply| {
            Command::Cross(Box::new(move |handoffs| {
                if let Some(unwanted) = reply.give(|| change(handoffs)) {
                    undo(handoffs, unwanted);
                }
            }))
        })
    }

    /// Runs `call` on the worker's thread between two turns and waits for its result. Should that come
    /// when nobody waits for it any more, the worker undoes it.
    ///
    /// # Errors
    /// [`NoAnswer`]: nothing has been done, or the worker undoes what it did by `undo`.
    pub fn call_or_undo<T: Send + 'static>(
        &self,
        patience: Patience,
        call: impl FnOnce(&mut I, &mut FramePool, &WorkerStats) -> T + Send + 'static,
        undo: impl FnOnce(&mut I, &mut FramePool, &WorkerStats, T) + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.commands, patience, |reply| {
            Command::Call(Box::new(move |io, pool, stats| {
                if let Some(unwanted) = reply.give(|| call(io, pool, stats)) {
                    undo(io, pool, stats, unwanted);
                }
            }))
        })
    }
}

/// Begins and ends captures on a worker; for threads other than the control thread, too.
#[derive(Debug)]
pub struct TapHandle<I> {
    commands: Sender<Command<I>>,
}

impl<I> TapHandle<I> {
    /// Begins a capture. `None`: the worker is gone, did not get to it within `timeout` and ends it
    /// should it begin it later, or has [`SESSIONS_MAX`](crate::capture::tap::SESSIONS_MAX) already.
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

    /// Ends a capture; what it copied has been handed over then. `None`: as for [`Self::attach`],
    /// or there is no such capture. A worker that does not get to it in time ends it later.
    pub fn detach(&self, id: u64, timeout: Duration) -> Option<()> {
        let (answer, result) = bounded(1);
        let deadline = Instant::now() + timeout;
        let command = Command::Tap(Box::new(move |tap| drop(answer.send(tap.detach(id)))));
        self.commands.send_deadline(command, deadline).ok()?;
        // Its memory is freed here, not on the worker.
        result.recv_deadline(deadline).ok()?.map(drop)
    }

    /// Tells captures that a port is another interface from now on, see [`Tap::name_port`].
    ///
    /// # Errors
    /// [`NoAnswer`]; a worker that had begun does it all the same. It may be told again.
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
        ask(&self.commands, Patience::brief(timeout), |reply| {
            Command::Tap(Box::new(move |tap| {
                if let Some(unwanted) = reply.give(|| call(tap)) {
                    undo(tap, unwanted);
                }
            }))
        })
    }
}
