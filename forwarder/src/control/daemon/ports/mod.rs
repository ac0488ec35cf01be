//! The daemon's ports, and how each follows its interface.
//!
//! The control thread decides; a separate thread opens and closes sockets and programs, because drivers and
//! workers may make it wait.
//!
//! - [`port`]: one port and its states; [`active`]: what it has while it is open;
//! - [`follow`]: ports follow their interfaces as these appear, change and disappear;
//! - [`patterns`]: interfaces that are ports because they match a pattern;
//! - [`check`]: checks of open ports against the kernel's state;
//! - [`thread`]: the thread; [`open`], [`queues`]: what it does for one port; [`calls`]: its requests to
//!   workers;
//! - [`handoff`]: which worker serves which queue, and handoff of packets to another worker.

mod active;
mod calls;
mod check;
mod error;
mod follow;
mod handoff;
mod open;
mod patterns;
mod port;
mod queues;
mod thread;

use std::collections::BTreeSet;
use std::ops::Index;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};

use self::calls::WorkerCalls;
use self::check::{CheckRequest, CheckResult, Finding, check_ports};
use self::handoff::Handoffs;
use self::port::PortState;
use self::thread::{Done, Job, Opened, PortThread};
use tracing::warn;

use super::CHECK_INTERVAL;
use super::events::Events;
use crate::control::api::event::{Event, PortChange};
use crate::control::config::RunOptions;
use crate::control::mirror::Mirror;
use crate::control::process::signals::Signals;
use crate::control::steering::Attacher;
use crate::control::steering::punt::PuntDevice;
use crate::io::Driver;
use crate::tables::Links;
use crate::worker::WorkerHandle;
use crate::worker::slow_path::Wakeup;

pub(super) use self::follow::obstacle;
pub(super) use self::handoff::{sends_by, worker_of};
pub(super) use self::patterns::{Filtered, Matching, filtered, matching};
pub(super) use self::port::{Port, add_counts};
pub(super) use self::thread::PortContext;

/// The control thread's context when it manages ports.
pub(super) struct Surroundings<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) links: Arc<Links>,
    pub(super) options: &'a RunOptions,
    /// The device that hands packets back to the kernel.
    pub(super) punt: Arc<PuntDevice>,
    /// Whether a worker gives heartbeats.
    pub(super) is_alive: &'a dyn Fn(usize) -> bool,
    /// Takes events, for the log and for subscribers.
    pub(super) events: &'a Events,
}

impl Surroundings<'_> {
    /// Tells that a port changes.
    fn say(&self, port: &Port, change: PortChange, why: Option<&str>) {
        self.events.say(Event::port(&port.ifname, change, why.map(str::to_owned)));
    }

    /// The interfaces that patterns match now.
    pub(super) fn matching(&self) -> Matching {
        matching(self.mirror, self.options)
    }

    /// Administratively; there may be no carrier.
    fn is_up(&self, ifindex: u32) -> bool {
        self.mirror.state().links.get(&ifindex).is_some_and(|link| link.is_up())
    }
}

/// The ports.
#[derive(Debug)]
pub(super) struct PortManager {
    /// By number.
    ports: Vec<Port>,
    /// Maximum number of ports.
    max_ports: u16,
    /// `None`: there are no workers yet, or no longer.
    thread: Option<PortThread>,
    /// A check of the ports is in progress.
    is_checking: bool,
    /// Ports are opened for the first time: a named one that cannot be opened is an error.
    is_starting: bool,
    /// Number of the next opening.
    next_generation: u64,
    /// Interfaces for which there is no room.
    without_room: BTreeSet<String>,
    /// Interfaces that get room when a free port number may be reused.
    room_soon: BTreeSet<String>,
    /// Matched interfaces left to the kernel because of rules on them.
    filtered: Filtered,
    /// Interfaces that could be ports, but it is not known yet whether they have rules on them.
    unread: BTreeSet<String>,
    /// Signals end a wait for a busy queue.
    signals: Arc<Signals>,
}

impl PortManager {
    /// Ports for the named interfaces; none is open. `signals` end a wait for a busy queue.
    pub(super) fn new(names: &[String], signals: Arc<Signals>) -> PortManager {
        PortManager {
            ports: (0u16..).zip(names).map(|(n, name)| Port::new(n, name)).collect(),
            max_ports: 0,
            thread: None,
            is_checking: false,
            is_starting: true,
            next_generation: 0,
            without_room: BTreeSet::new(),
            room_soon: BTreeSet::new(),
            filtered: Filtered::new(),
            unread: BTreeSet::new(),
            signals,
        }
    }

    /// Starts the thread that opens and closes ports.
    ///
    /// # Errors
    /// If the thread or its descriptors cannot be created.
    pub(super) fn start(
        &mut self,
        attacher: Attacher,
        workers: Vec<WorkerHandle<Driver>>,
        cpus: Vec<Option<usize>>,
        queues_per_worker: u32,
        options: Arc<RunOptions>,
        wakeup: Arc<Wakeup>,
    ) -> Result<()> {
        let handoffs = Handoffs::new(workers.len(), options.tx_ring as usize)?;
        let max_ports = self.max_ports;
        let workers = WorkerCalls::new(workers);
        let signals = Arc::clone(&self.signals);
        let context = PortContext {
            attacher,
            workers,
            cpus,
            handoffs,
            options,
            max_ports,
            queues_per_worker,
            signals,
        };
        self.thread = Some(PortThread::start(context, wakeup)?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    /// In the order of their numbers.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Port> {
        self.ports.iter()
    }

    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Port> {
        self.ports.iter_mut()
    }

    /// The ports that are shown to users.
    pub(super) fn listed(&self) -> impl Iterator<Item = &Port> {
        self.iter().filter(|port| port.is_listed())
    }

    /// How many ports there can be.
    pub(super) fn max_ports(&self) -> u16 {
        self.max_ports
    }

    /// Ifindex and number of the ports to put into the tables: ports by which packets come, or whose
    /// packets may still be in rings. Not a port that the kernel filters: packets that arrive or leave on it
    /// are handed back.
    pub(super) fn in_tables(&self) -> Vec<(u32, u16)> {
        let ports = self.iter().filter(|port| !self.filtered.contains_key(&port.ifname));
        ports.filter_map(|port| Some((port.table_ifindex()?, port.index))).collect()
    }

    /// Whether ports are being opened or closed.
    pub(super) fn is_changing(&self) -> bool {
        let is_changing =
            |port: &Port| matches!(port.state(), PortState::Opening(_) | PortState::Closing(_));
        self.iter().any(is_changing)
    }

    /// Whether packets may still be received or sent on a port whose packets the kernel filters, because its sockets
    /// are not closed yet.
    pub(super) fn has_open_filtered(&self) -> bool {
        self.iter()
            .any(|port| port.table_ifindex().is_some() && self.filtered.contains_key(&port.ifname))
    }

    fn is_closing(&self) -> bool {
        self.closing().next().is_some()
    }

    fn closing(&self) -> impl Iterator<Item = &Port> {
        self.iter().filter(|port| matches!(port.state(), PortState::Closing(_)))
    }

    /// From now on a port that cannot be opened is not an error.
    pub(super) fn end_start(&mut self) {
        self.is_starting = false;
    }

    /// Whether a port may be openable now, without an event.
    pub(super) fn wants_retry(&self, around: &Surroundings<'_>) -> bool {
        let now = Instant::now();
        self.iter().any(|port| port.wants_retry(now, around.is_alive))
    }

    /// Whether there will be room for an interface when a free port number may be reused.
    pub(super) fn has_room_soon(&self) -> bool {
        !self.room_soon.is_empty()
    }

    fn submit(&self, job: Job) -> Result<()> {
        match self.thread.as_ref().is_some_and(|thread| thread.submit(job)) {
            true => Ok(()),
            false => bail!("the thread that opens ports is missing, which is a bug"),
        }
    }

    /// Takes the thread's results. Returns whether ports were opened or closed.
    ///
    /// # Errors
    /// The thread has ended; while starting, a port that was named could not be opened.
    pub(super) fn take_done(&mut self, around: &Surroundings<'_>) -> Result<bool> {
        let mut changed = false;
        while let Some(thread) = &self.thread
            && let Some(done) = thread.try_next()?
        {
            changed |= self.apply(done, around)?;
        }
        Ok(changed)
    }

    /// As [`PortManager::take_done`], but waits a moment for a result first.
    ///
    /// # Errors
    /// As for [`PortManager::take_done`].
    pub(super) fn wait_done(&mut self, around: &Surroundings<'_>) -> Result<bool> {
        let Some(thread) = &self.thread else { return Ok(false) };
        match thread.next_soon()? {
            Some(done) => self.apply(done, around),
            None => Ok(false),
        }
    }

    fn apply(&mut self, done: Done, around: &Surroundings<'_>) -> Result<bool> {
        match done {
            Done::Opened(opened) => self.end_opening(opened, around)?,
            Done::Closed { index } => {
                self.ports.get_mut(usize::from(index)).into_iter().for_each(Port::end_closing);
            }
            Done::Checked(results) => {
                self.is_checking = false;
                self.act_on(results, around)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn end_opening(&mut self, opened: Opened, around: &Surroundings<'_>) -> Result<()> {
        let Opened { index, result, is_named } = opened;
        let Some(port) = self.ports.get_mut(usize::from(index)) else { return Ok(()) };
        if is_named {
            port.naming = None;
        }
        match result {
            Err(error) if self.is_starting && !port.matched => {
                bail!("{}", error.about(&port.ifname))
            }
            Err(error) => {
                // It is tried repeatedly, but logged once.
                if port.end_opening(Err(&error)) {
                    around.say(port, PortChange::Left, Some(port.describe()));
                }
            }
            Ok(active) => {
                // The device may have been replaced since the thread registered the port with it.
                active.admit(&around.punt)?;
                let was_open = port.was_open;
                port.end_opening(Ok(active));
                match (port.matched, self.is_starting) {
                    (false, true) => {}
                    (false, false) if was_open => around.say(port, PortChange::Back, None),
                    _ => around.say(port, PortChange::Added, None),
                }
            }
        }
        Ok(())
    }

    /// Checks the ports against the kernel's state. `now`: before anything else is done; otherwise by the
    /// thread, unless it is still doing so.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(super) fn check_open_ports(&mut self, now: bool, around: &Surroundings<'_>) -> Result<()> {
        let requests: Vec<CheckRequest> = self.iter().filter_map(CheckRequest::of).collect();
        if now {
            return self.act_on(check_ports(&requests), around);
        }
        self.check_sockets(around)?;
        if !self.is_checking && !requests.is_empty() {
            self.submit(Job::Check(requests))?;
            self.is_checking = true;
        }
        Ok(())
    }

    fn check_sockets(&mut self, around: &Surroundings<'_>) -> Result<()> {
        for index in 0..self.ports.len() {
            if self.ports[index].active().is_some_and(|active| !active.has_its_sockets()) {
                self.reopen(index, &Finding::SocketsUnbound, around)?;
            }
        }
        Ok(())
    }

    /// Leaves ports with a finding to the kernel, to be reopened.
    fn act_on(&mut self, results: Vec<CheckResult>, around: &Surroundings<'_>) -> Result<()> {
        // Missing sockets may be the cause of the other findings.
        self.check_sockets(around)?;
        for CheckResult { index, generation, finding, is_down } in results {
            let index = usize::from(index);
            let active = self.ports.get_mut(index).and_then(Port::active_mut);
            let Some(active) = active.filter(|active| active.generation == generation) else {
                continue;
            };
            let link = around.links.ifindex(active.ifindex);
            let is_down = is_down && link.is_some_and(|link| link.up);
            let since = active.down_since.filter(|_| is_down);
            active.down_since = since.or(is_down.then(Instant::now));
            let stays_down = since.is_some_and(|since| since.elapsed() >= CHECK_INTERVAL / 2);
            let finding = finding.or(stays_down.then_some(Finding::StaysDown));
            if let Some(finding) = finding {
                self.reopen(index, &finding, around)?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self, index: usize, finding: &Finding, around: &Surroundings<'_>) -> Result<()> {
        let Some(port) = self.ports.get_mut(index) else { return Ok(()) };
        let Some(active) = port.begin_reopening(finding.to_string(), finding.is_failure()) else {
            return Ok(());
        };
        let why = match finding {
            Finding::Unfit(why) => format!("it {why}"),
            other => other.to_string(),
        };
        around.say(port, PortChange::Reopening, Some(&why));
        self.close(index as u16, active, &around.punt)
    }

    /// Leaves an open port to the kernel at once, and has the thread close it.
    fn close(
        &self,
        index: u16,
        mut port: Box<active::ActivePort>,
        punt: &Arc<PuntDevice>,
    ) -> Result<()> {
        // If this fails, the program is detached soon in any case.
        let _ = port.steer(false, false);
        self.submit(Job::Close { index, port, punt: Arc::clone(punt) })
    }

    /// Logs each queue whose packets go to the kernel, once; `status` keeps reporting it.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(super) fn find_unserved_queues(&mut self, around: &Surroundings<'_>) -> Result<()> {
        for index in 0..self.ports.len() {
            let Some(active) = self.ports[index].active_mut() else { continue };
            match active.find_unserved_queues() {
                Ok(false) => {}
                Ok(true) => self.ports[index].unserved().iter().for_each(|what| warn!("{what}")),
                // The kernel does not accept a socket that is not bound.
                Err(_) => self.reopen(index, &Finding::SocketsUnbound, around)?,
            }
        }
        Ok(())
    }

    /// Restores the interfaces' settings. Waits for the thread until `end`.
    pub(super) fn stop(&mut self, end: Instant) {
        let done = self.thread.take().map_or_else(Vec::new, |thread| thread.stop(end));
        for done in done {
            if let Done::Opened(Opened { result: Ok(mut active), .. }) = done {
                active.restore_polling();
                active.restore_irqs();
            }
        }
        for active in self.ports.iter_mut().filter_map(Port::active_mut) {
            active.restore_polling();
            active.restore_irqs();
        }
    }
}

impl Index<u16> for PortManager {
    type Output = Port;

    fn index(&self, port: u16) -> &Port {
        &self.ports[usize::from(port)]
    }
}
