//! The ports of the daemon, and what brings each to where its interface is.
//!
//! The control thread decides; sockets and programs are opened and closed by a thread of their own,
//! for drivers and workers may make it wait.
//!
//! - [`port`]: one port and its states; [`active`]: what it has while it is open;
//! - [`follow`]: ports as their interfaces come, change and go;
//! - [`patterns`]: which interfaces are ports though nobody named them;
//! - [`look`]: whether ports are what they seem;
//! - [`thread`]: the thread; [`open`], [`queues`]: what it does for one port; [`calls`]: what it asks
//!   of workers;
//! - [`handoff`]: which worker serves which queue, and how packets come to another's.

mod active;
mod calls;
mod error;
mod follow;
mod handoff;
mod look;
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
use self::handoff::Handoffs;
use self::look::{Finding, Sight, Watch, look};
use self::port::PortState;
use self::thread::{Done, Job, Opened, PortThread};
use super::CHECK;
use crate::control::config::RunOptions;
use crate::control::mirror::Mirror;
use crate::control::process::signals::Signals;
use crate::control::steering::Attacher;
use crate::control::steering::punt::PuntDevice;
use crate::io::Driver;
use crate::say;
use crate::tables::Links;
use crate::worker::WorkerHandle;
use crate::worker::slow_path::Wakeup;

pub(super) use self::follow::obstacle;
pub(super) use self::handoff::{sends_by, worker_of};
pub(super) use self::patterns::{Filtered, Matching, filtered, matching};
pub(super) use self::port::{Port, add_counts};
pub(super) use self::thread::PortContext;

/// What the control thread knows when it looks after ports.
pub(super) struct Surroundings<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) links: Arc<Links>,
    pub(super) options: &'a RunOptions,
    /// The way back to the kernel.
    pub(super) punt: Arc<PuntDevice>,
    /// Whether a worker gives heartbeats.
    pub(super) is_alive: &'a dyn Fn(usize) -> bool,
}

impl Surroundings<'_> {
    /// The interfaces that patterns take now.
    pub(super) fn matching(&self) -> Matching {
        matching(self.mirror, self.options)
    }

    /// Administratively; a cable may be unplugged.
    fn is_up(&self, ifindex: u32) -> bool {
        self.mirror.state().links.get(&ifindex).is_some_and(|link| link.is_up())
    }
}

/// The ports.
#[derive(Debug)]
pub(super) struct PortManager {
    /// By their numbers.
    ports: Vec<Port>,
    /// How many there can be.
    max_ports: u16,
    /// `None`: there are no workers yet, or no longer.
    thread: Option<PortThread>,
    /// A look is under way.
    is_looking: bool,
    /// Ports are opened for the first time: one that was named and cannot be opened is an error.
    is_starting: bool,
    /// Number of the next opening.
    next_generation: u64,
    /// Interfaces that match and for which there is no room.
    without_room: BTreeSet<String>,
    /// There will be room for one of them when a number has rested.
    room_soon: bool,
    /// Why matched interfaces are left to the kernel: rules on them.
    filtered: Filtered,
    /// Interfaces that could be ports if it were known whether they have rules on them.
    unread: BTreeSet<String>,
    /// End what waits for a queue.
    signals: Arc<Signals>,
}

impl PortManager {
    /// Of interfaces that were named; none is open. `signals` end what waits for a queue.
    pub(super) fn new(names: &[String], signals: Arc<Signals>) -> PortManager {
        PortManager {
            ports: (0u16..).zip(names).map(|(n, name)| Port::new(n, name)).collect(),
            max_ports: 0,
            thread: None,
            is_looking: false,
            is_starting: true,
            next_generation: 0,
            without_room: BTreeSet::new(),
            room_soon: false,
            filtered: Filtered::new(),
            unread: BTreeSet::new(),
            signals,
        }
    }

    /// Starts the thread that opens and closes ports.
    ///
    /// # Errors
    /// When there is no thread or no descriptor to be had.
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

    /// The ports there are for people.
    pub(super) fn listed(&self) -> impl Iterator<Item = &Port> {
        self.iter().filter(|port| port.is_listed())
    }

    /// How many ports there can be.
    pub(super) fn max_ports(&self) -> u16 {
        self.max_ports
    }

    /// What the tables are to know of: ifindex and number of ports by which packets come, or may
    /// still lie in rings. Not of one that the kernel filters: what comes or leaves by it is handed
    /// back.
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

    /// Whether packets may still be sent by a port whose packets the kernel filters, because its
    /// sockets are not closed yet.
    pub(super) fn is_closing_filtered(&self) -> bool {
        self.closing().any(|port| self.filtered.contains_key(&port.ifname))
    }

    fn is_closing(&self) -> bool {
        self.closing().next().is_some()
    }

    fn closing(&self) -> impl Iterator<Item = &Port> {
        self.iter().filter(|port| matches!(port.state(), PortState::Closing(_)))
    }

    /// From now on a port that cannot be opened is no error.
    pub(super) fn end_start(&mut self) {
        self.is_starting = false;
    }

    /// Whether a port could be opened that no event tells of.
    pub(super) fn wants_retry(&self, around: &Surroundings<'_>) -> bool {
        let now = Instant::now();
        self.iter().any(|port| port.wants_retry(now, around.is_alive))
    }

    /// Whether there will be room for an interface that matches when a number has rested.
    pub(super) fn has_room_soon(&self) -> bool {
        self.room_soon
    }

    fn submit(&self, job: Job) -> Result<()> {
        match self.thread.as_ref().is_some_and(|thread| thread.submit(job)) {
            true => Ok(()),
            false => bail!("the thread that opens ports is not there, which is a bug"),
        }
    }

    /// Takes what the thread has done. Whether ports were opened or closed.
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

    /// The same, and waits a moment for something to be done before.
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
            Done::Opened(opened) => self.end_opening(opened, &around.punt)?,
            Done::Closed { index } => {
                self.ports.get_mut(usize::from(index)).into_iter().for_each(Port::end_closing);
            }
            Done::Looked(sights) => {
                self.is_looking = false;
                self.act_on(sights, around)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn end_opening(&mut self, opened: Opened, punt: &PuntDevice) -> Result<()> {
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
                // Tried again and again: told once.
                if port.end_opening(Err(&error)) {
                    say!("interface {}: {}; left to the kernel", port.ifname, port.describe());
                }
            }
            Ok(active) => {
                // The device may have been replaced since the thread admitted the port.
                active.admit(punt)?;
                port.end_opening(Ok(active));
                match (port.matched, self.is_starting) {
                    (true, _) => say!("interface {} is a port now", port.ifname),
                    (false, true) => {}
                    (false, false) => say!("interface {} is back", port.ifname),
                }
            }
        }
        Ok(())
    }

    /// Looks whether ports are what they seem. `now`: before anything else is done; else by the thread,
    /// unless that still does so.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(super) fn look(&mut self, now: bool, around: &Surroundings<'_>) -> Result<()> {
        let watches: Vec<Watch> = self.iter().filter_map(Watch::of).collect();
        if now {
            return self.act_on(look(&watches), around);
        }
        self.look_at_sockets(around)?;
        if !self.is_looking && !watches.is_empty() {
            self.submit(Job::Look(watches))?;
            self.is_looking = true;
        }
        Ok(())
    }

    fn look_at_sockets(&mut self, around: &Surroundings<'_>) -> Result<()> {
        for index in 0..self.ports.len() {
            if self.ports[index].active().is_some_and(|active| !active.has_its_sockets()) {
                self.reopen(index, &Finding::SocketsUnbound, around)?;
            }
        }
        Ok(())
    }

    /// Ports that are not what they seem go to the kernel, and are opened anew.
    fn act_on(&mut self, sights: Vec<Sight>, around: &Surroundings<'_>) -> Result<()> {
        // They may be why the rest was seen.
        self.look_at_sockets(around)?;
        for Sight { index, generation, finding, is_down } in sights {
            let index = usize::from(index);
            let active = self.ports.get_mut(index).and_then(Port::active_mut);
            let Some(active) = active.filter(|active| active.generation == generation) else {
                continue;
            };
            let link = around.links.ifindex(active.ifindex);
            let is_down = is_down && link.is_some_and(|link| link.up);
            let since = active.down_since.filter(|_| is_down);
            active.down_since = since.or(is_down.then(Instant::now));
            let stays_down = since.is_some_and(|since| since.elapsed() >= CHECK / 2);
            let finding = finding.or(stays_down.then_some(Finding::StaysDown));
            if let Some(finding) = finding {
                self.reopen(index, &finding, around)?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self, index: usize, finding: &Finding, around: &Surroundings<'_>) -> Result<()> {
        let Some(port) = self.ports.get_mut(index) else { return Ok(()) };
        let separator = if matches!(finding, Finding::Unfit(_)) { "" } else { ":" };
        let what = format!("interface {}{separator} {finding}", port.ifname);
        let Some(active) = port.begin_reopening(finding.to_string(), finding.is_failure()) else {
            return Ok(());
        };
        say!("{what}; left to the kernel until it is opened anew");
        self.close(index as u16, active, &around.punt)
    }

    /// Gives what was an open port to the kernel at once, and has the thread close it.
    fn close(
        &self,
        index: u16,
        mut port: Box<active::ActivePort>,
        punt: &Arc<PuntDevice>,
    ) -> Result<()> {
        // Its program goes in a moment, if this fails.
        let _ = port.steer(false, false);
        self.submit(Job::Close { index, port, punt: Arc::clone(punt) })
    }

    /// A queue whose packets the kernel has is told of, once; `status` goes on to.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(super) fn look_for_unserved(&mut self, around: &Surroundings<'_>) -> Result<()> {
        for index in 0..self.ports.len() {
            let Some(active) = self.ports[index].active_mut() else { continue };
            match active.look_for_unserved() {
                Ok(false) => {}
                Ok(true) => self.ports[index].unserved().iter().for_each(|what| say!("{what}")),
                // The kernel takes none that is not bound.
                Err(_) => self.reopen(index, &Finding::SocketsUnbound, around)?,
            }
        }
        Ok(())
    }

    /// Puts back what was set of interfaces. Waits for the thread until `end`.
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
