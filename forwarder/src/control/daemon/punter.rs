//! Packets on their way back to the kernel: a thread that writes what the workers hand over to the
//! TAP device.
//!
//! The kernel routes and filters such a packet within the write(2), so a long ruleset, or a flood
//! of packets that only the kernel can forward, keeps this thread busy and no other. What it does
//! not get to in time is dropped by the workers as PUNT_FAILED.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::steering::punt::PuntDevice;
use crate::stats::WorkerStats;
use crate::worker::slow_path::{PuntQueue, Wakeup};

/// Packets of one worker before the next has its turn.
const TURN: usize = 64;

/// What the thread and its owner share.
#[derive(Debug)]
struct Shared {
    device: ArcSwap<PuntDevice>,
    /// Rung by workers.
    wakeup: Arc<Wakeup>,
    /// Rung when a packet was refused.
    control: Arc<Wakeup>,
    refused: Mutex<Option<io::Error>>,
    stopping: AtomicBool,
}

/// The control thread's hold on the thread.
#[derive(Debug)]
pub(super) struct Punter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// A packet was refused, and the device has not been replaced since.
    broken: bool,
}

impl Punter {
    /// Of a device, without a thread yet. `control` is rung when the device refuses a packet.
    ///
    /// # Errors
    /// EMFILE and the like from eventfd(2).
    pub(super) fn new(device: PuntDevice, control: Arc<Wakeup>) -> Result<Punter> {
        let shared = Shared {
            device: ArcSwap::from_pointee(device),
            wakeup: Wakeup::new().context("cannot create an eventfd")?,
            control,
            refused: Mutex::new(None),
            stopping: AtomicBool::new(false),
        };
        Ok(Punter { shared: Arc::new(shared), thread: None, broken: false })
    }

    /// Rung by workers that hand packets over.
    pub(super) fn wakeup(&self) -> Arc<Wakeup> {
        Arc::clone(&self.shared.wakeup)
    }

    /// Takes packets from the workers' queues from now on, each with what its worker counts.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(&mut self, queues: Vec<(PuntQueue, Arc<WorkerStats>)>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("fr-punt".into());
        let thread = thread.spawn(move || {
            // It writes to the descriptor of a device that is there.
            privilege::drop_all();
            shared.run(&queues);
        });
        self.thread = Some(thread.context("cannot start the thread that hands packets back")?);
        Ok(())
    }

    /// The device.
    pub(super) fn device(&self) -> Arc<PuntDevice> {
        self.shared.device.load_full()
    }

    /// Uses another device from now on, which is not broken.
    pub(super) fn replace(&mut self, device: PuntDevice) {
        self.shared.device.store(Arc::new(device));
        // Of the old one.
        self.take_refusal();
        self.broken = false;
    }

    /// Whether the thread has ended, which it does only when it is stopped.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Whether the device refuses packets.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Why a packet was refused, once for each device.
    pub(super) fn take_first_refusal(&mut self) -> Option<io::Error> {
        let refusal = self.take_refusal()?;
        (!std::mem::replace(&mut self.broken, true)).then_some(refusal)
    }

    fn take_refusal(&self) -> Option<io::Error> {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Hands over what the workers, which have ended, have left; at most until `end`.
    pub(super) fn stop(&mut self, end: Instant) {
        self.shared.stopping.store(true, Relaxed);
        self.shared.wakeup.wake();
        match self.thread.take().map(|thread| join_until(thread, end)) {
            Some(None) => crate::say!("the thread that hands packets back does not end"),
            Some(Some(Err(_))) => {
                crate::say!("the thread that hands packets back panicked; this is a bug");
            }
            Some(Some(Ok(()))) | None => {}
        }
    }
}

impl Shared {
    fn run(&self, queues: &[(PuntQueue, Arc<WorkerStats>)]) {
        loop {
            let mut fds = [PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN)];
            // Nothing but EINTR can come of it.
            let _ = poll(&mut fds, PollTimeout::NONE);
            self.wakeup.clear();
            let stopping = self.stopping.load(Relaxed);
            let mut more = true;
            while more {
                more = false;
                for (queue, stats) in queues {
                    more |= self.take_turn(queue, stats);
                }
            }
            if stopping {
                return;
            }
        }
    }

    /// A worker's turn. Whether it may have more.
    fn take_turn(&self, queue: &PuntQueue, stats: &WorkerStats) -> bool {
        let device = self.device.load();
        let taken = queue.drain(TURN, |frame| {
            let Err(error) = device.inject(frame.ifindex, frame.bytes_mut()) else { return };
            stats.undelivered.count(frame.reason, frame.port);
            // A port that is closed by now says nothing of the device.
            if error.kind() != io::ErrorKind::NotFound {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.control.wake();
            }
        });
        taken == TURN
    }
}
