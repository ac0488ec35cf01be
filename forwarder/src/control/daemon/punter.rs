//! Packets handed back to the kernel: a thread that writes what the workers queue to the TAP device.
//!
//! The kernel routes and filters such a packet within write(2). A long ruleset, or a flood of packets that
//! only the kernel can forward, therefore keeps only this thread busy. Packets that it does not get to in
//! time are dropped by the workers as PUNT_FAILED.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::error;

use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::steering::punt::PuntDevice;
use crate::stats::WorkerStats;
use crate::worker::slow_path::{PuntQueue, Wakeup};

/// Packets of one worker before the next worker's are taken.
const TURN: usize = 64;

/// How long before the end the thread gives up.
const GIVE_UP: Duration = Duration::from_millis(200);

/// State shared by the thread and its owner.
#[derive(Debug)]
struct Shared {
    device: ArcSwap<PuntDevice>,
    /// Woken by workers.
    wakeup: Arc<Wakeup>,
    /// Woken when a packet was refused.
    control: Arc<Wakeup>,
    refused: Mutex<Option<io::Error>>,
    stopping: AtomicBool,
    /// When stopping: what is still queued then is not handed over.
    end: OnceLock<Instant>,
}

/// The control thread's handle of the thread.
#[derive(Debug)]
pub(super) struct Punter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// A packet was refused, and the device has not been replaced since.
    broken: bool,
}

impl Punter {
    /// For a device, without a thread yet. `control` is woken when the device refuses a packet.
    ///
    /// # Errors
    /// Those of eventfd(2), such as EMFILE.
    pub(super) fn new(device: PuntDevice, control: Arc<Wakeup>) -> Result<Punter> {
        let shared = Shared {
            device: ArcSwap::from_pointee(device),
            wakeup: Wakeup::new().context("cannot create an eventfd")?,
            control,
            refused: Mutex::new(None),
            stopping: AtomicBool::new(false),
            end: OnceLock::new(),
        };
        Ok(Punter { shared: Arc::new(shared), thread: None, broken: false })
    }

    /// Woken by workers that hand packets over.
    pub(super) fn wakeup(&self) -> Arc<Wakeup> {
        Arc::clone(&self.shared.wakeup)
    }

    /// Starts the thread, which takes packets from the workers' queues; each queue comes with its worker's
    /// counters.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(&mut self, queues: Vec<(PuntQueue, Arc<WorkerStats>)>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("fr-punt".into());
        let thread = thread.spawn(move || {
            // The thread only writes to a descriptor that is already open.
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

    /// Uses another device from now on, which is taken to work.
    pub(super) fn replace(&mut self, device: PuntDevice) {
        self.shared.device.store(Arc::new(device));
        // A refusal by the old device.
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

    /// The reason for the first refused packet of each device.
    pub(super) fn take_first_refusal(&mut self) -> Option<io::Error> {
        let refusal = self.take_refusal()?;
        (!std::mem::replace(&mut self.broken, true)).then_some(refusal)
    }

    fn take_refusal(&self) -> Option<io::Error> {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Hands over what the ended workers have left, at most until `end`.
    pub(super) fn stop(&mut self, end: Instant) {
        let _ = self.shared.end.set(end.checked_sub(GIVE_UP).unwrap_or(end));
        self.shared.stopping.store(true, Relaxed);
        self.shared.wakeup.wake();
        match self.thread.take().map(|thread| join_until(thread, end)) {
            Some(None) => error!("the thread that hands packets back does not end"),
            Some(Some(Err(_))) => {
                error!("the thread that hands packets back panicked; this is a bug");
            }
            Some(Some(Ok(()))) | None => {}
        }
    }
}

impl Shared {
    fn run(&self, queues: &[(PuntQueue, Arc<WorkerStats>)]) {
        loop {
            let mut fds = [PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN)];
            // The only possible error is EINTR.
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

    /// Takes a worker's packets. Returns whether it may have more.
    fn take_turn(&self, queue: &PuntQueue, stats: &WorkerStats) -> bool {
        let device = self.device.load();
        let is_over = self.end.get().is_some_and(|end| Instant::now() >= *end);
        let taken = queue.drain(TURN, |frame| {
            if is_over {
                stats.undelivered.count(frame.reason, frame.port);
                return;
            }
            let Err(error) = device.inject(frame.ifindex, frame.bytes_mut()) else { return };
            stats.undelivered.count(frame.reason, frame.port);
            // A port that is closed by now is not a failure of the device.
            if error.kind() != io::ErrorKind::NotFound {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.control.wake();
            }
        });
        taken == TURN
    }
}
