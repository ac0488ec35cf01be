//! The thread that opens and closes ports. Drivers reset links when a program is attached or a socket
//! bound, and workers may not answer: the control thread does not wait for any of that.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};

use super::active::ActivePort;
use super::calls::WorkerCalls;
use super::check::{CheckRequest, CheckResult, check_ports, check_tx_states};
use super::error::PortError;
use super::handoff::Handoffs;
use super::open::{OpenRequest, close, open};
use crate::control::config::RunOptions;
use crate::control::process::signals::Signals;
use crate::control::steering::Attacher;
use crate::control::steering::punt::PuntDevice;
use crate::worker::slow_path::Wakeup;

/// Interval between checks for other reasons to end a wait.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// What is needed to open a port.
#[derive(Debug)]
pub(in crate::control::daemon) struct PortContext {
    pub(super) attacher: Attacher,
    pub(super) workers: WorkerCalls,
    /// The workers' CPUs.
    pub(super) cpus: Vec<Option<usize>>,
    pub(super) handoffs: Handoffs,
    /// The user's options.
    pub(super) options: Arc<RunOptions>,
    /// Maximum number of ports.
    pub(super) max_ports: u16,
    /// Maximum queues of one port that a worker can serve.
    pub(super) queues_per_worker: u32,
    /// Signals end a wait for a busy queue.
    pub(super) signals: Arc<Signals>,
}

impl PortContext {
    /// The slot of a queue in its worker's driver.
    pub(super) fn slot(&self, port: u16, queue: u32) -> u16 {
        let round = queue as usize / self.workers.len().max(1);
        port + (round * usize::from(self.max_ports)) as u16
    }
}

/// A job for the thread.
#[derive(Debug)]
pub(super) enum Job {
    Open(Box<OpenRequest>),
    Close { index: u16, port: Box<ActivePort>, punt: Arc<PuntDevice> },
    Check(Vec<CheckRequest>),
}

/// The result of a job.
#[derive(Debug)]
pub(super) enum Done {
    Opened(Opened),
    Closed { index: u16 },
    Checked(Vec<CheckResult>),
}

/// The result of opening a port.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) index: u16,
    pub(super) result: Result<Box<ActivePort>, PortError>,
    /// The workers have been notified that the number is this interface's.
    pub(super) is_named: bool,
}

/// The control thread's handle of the thread. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct PortThread {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    thread: JoinHandle<()>,
}

impl PortThread {
    /// Starts the thread; `wakeup` is woken when a job is done.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(context: PortContext, wakeup: Arc<Wakeup>) -> Result<PortThread> {
        let (jobs, to_do) = unbounded();
        let (finished, done) = unbounded();
        let thread = thread::Builder::new().name("fr-ports".into());
        let thread = thread.spawn(move || run(context, &to_do, &finished, &wakeup));
        let thread = thread.context("cannot start the thread that opens ports")?;
        Ok(PortThread { jobs, done, thread })
    }

    /// Submits a job. Returns whether it will be done: it is not after the thread has ended.
    pub(super) fn submit(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }

    /// The next result, if there is one. Does not wait.
    ///
    /// # Errors
    /// The thread has ended by itself.
    pub(super) fn try_next(&self) -> Result<Option<Done>> {
        match self.done.try_recv() {
            Ok(done) => Ok(Some(done)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }

    /// As [`PortThread::try_next`], but waits a moment for a result.
    ///
    /// # Errors
    /// The thread has ended by itself.
    pub(super) fn next_soon(&self) -> Result<Option<Done>> {
        match self.done.recv_timeout(CHECK_INTERVAL) {
            Ok(done) => Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }

    /// Lets it finish its current job until `end`. Returns the results so far.
    pub(super) fn stop(self, end: Instant) -> Vec<Done> {
        let PortThread { jobs, done, thread } = self;
        drop(jobs);
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        done.try_iter().collect()
    }
}

fn ended() -> anyhow::Error {
    anyhow::anyhow!("the thread that opens ports ended by itself, which is a bug")
}

fn run(mut context: PortContext, jobs: &Receiver<Job>, done: &Sender<Done>, wakeup: &Wakeup) {
    for job in jobs {
        context.workers.begin_job();
        context.workers.close_all_owed();
        let outcome = match job {
            Job::Open(request) => Done::Opened(name_and_open(&request, &mut context)),
            Job::Close { index, port, punt } => {
                close(index, *port, &punt, &mut context);
                Done::Closed { index }
            }
            Job::Check(requests) => {
                let mut results = check_ports(&requests);
                check_tx_states(&requests, &mut results, &mut context);
                Done::Checked(results)
            }
        };
        if done.send(outcome).is_err() {
            return;
        }
        wakeup.wake();
    }
}

fn name_and_open(request: &OpenRequest, context: &mut PortContext) -> Opened {
    let named = request.naming.map_or(Ok(()), |naming| {
        (0..context.workers.len()).try_for_each(|worker| {
            let (port, name) = ((request.index, context.max_ports), &request.link.name);
            context.workers.rename(worker, port, name, naming)
        })
    });
    let is_named = named.is_ok();
    let result = named.and_then(|()| open(request, context)).map(Box::new);
    Opened { index: request.index, result, is_named }
}
