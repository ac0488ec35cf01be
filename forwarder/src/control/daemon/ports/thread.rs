//! The thread that opens and closes ports. Drivers reset links when a program is attached or a socket
//! bound, and workers may not answer: the control thread waits for none of that.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};

use super::active::ActivePort;
use super::calls::WorkerCalls;
use super::error::PortError;
use super::handoff::Handoffs;
use super::look::{Sight, Watch, look, look_at_workers};
use super::open::{OpenRequest, close, open};
use crate::control::config::RunOptions;
use crate::control::process::signals::Signals;
use crate::control::steering::Attacher;
use crate::control::steering::punt::PuntDevice;
use crate::worker::slow_path::Wakeup;

/// Between two looks at what else may end a wait.
const MOMENT: Duration = Duration::from_millis(20);

/// What opening a port takes.
#[derive(Debug)]
pub(in crate::control::daemon) struct PortContext {
    pub(super) attacher: Attacher,
    pub(super) workers: WorkerCalls,
    /// The workers' CPUs.
    pub(super) cpus: Vec<Option<usize>>,
    pub(super) handoffs: Handoffs,
    /// What the user asked for.
    pub(super) options: Arc<RunOptions>,
    /// How many ports there can be.
    pub(super) max_ports: u16,
    /// Most queues of one port that a worker can serve.
    pub(super) queues_per_worker: u32,
    /// End what waits for a queue.
    pub(super) signals: Arc<Signals>,
}

impl PortContext {
    /// The place of a queue in its worker's driver.
    pub(super) fn slot(&self, port: u16, queue: u32) -> u16 {
        let round = queue as usize / self.workers.len().max(1);
        port + (round * usize::from(self.max_ports)) as u16
    }
}

/// What the thread is to do.
#[derive(Debug)]
pub(super) enum Job {
    Open(Box<OpenRequest>),
    Close { index: u16, port: Box<ActivePort>, punt: Arc<PuntDevice> },
    Look(Vec<Watch>),
}

/// What it has done.
#[derive(Debug)]
pub(super) enum Done {
    Opened(Opened),
    Closed { index: u16 },
    Looked(Vec<Sight>),
}

/// The outcome of opening a port.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) index: u16,
    pub(super) result: Result<Box<ActivePort>, PortError>,
    /// The workers know that the number is this interface's.
    pub(super) is_named: bool,
}

/// The control thread's hold on the thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct PortThread {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    thread: JoinHandle<()>,
}

impl PortThread {
    /// Starts it; `wakeup` is rung when something is done.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(context: PortContext, wakeup: Arc<Wakeup>) -> Result<PortThread> {
        let (jobs, to_do) = unbounded();
        let (finished, done) = unbounded();
        let thread = thread::Builder::new().name("fr-ports".into());
        let thread = thread.spawn(move || run(context, &to_do, &finished, &wakeup));
        let thread = thread.context("cannot start the thread that opens ports")?;
        Ok(PortThread { jobs, done, thread })
    }

    /// Whether it will be done; not after the thread has ended.
    pub(super) fn submit(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }

    /// What was done since, if anything. Does not wait.
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

    /// The same, and waits a moment for it.
    ///
    /// # Errors
    /// The thread has ended by itself.
    pub(super) fn next_soon(&self) -> Result<Option<Done>> {
        match self.done.recv_timeout(MOMENT) {
            Ok(done) => Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }

    /// Lets it finish what it is doing until `end`. What it opened or closed meanwhile.
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
            Job::Look(watches) => {
                let mut sights = look(&watches);
                look_at_workers(&watches, &mut sights, &mut context);
                Done::Looked(sights)
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
