//! The security associations that workers use: a thread that follows those of the kernel.
//!
//! The kernel keeps every SA, and may use it at any moment: it has the packets that workers leave to it, those of this
//! host, and all when workers stop. Therefore
//!
//! - sequence numbers for sending are reserved in the kernel's counter before workers use them ([`followed`]); while the
//!   kernel itself sends on an SA, workers do not;
//! - what workers received is written into the kernel's replay window ten times a second, and at the end: until then the
//!   kernel would accept a repeated packet once;
//! - usage is written back with it, and limits that workers reach are reported to key management.
//!
//! An SA that workers cannot use (its algorithm, mode, an attribute) stays the kernel's, with all policies that it may be
//! chosen for.
//!
//! Or the SAs are those of a file, and none the kernel's: [`stored`], [`conflict`].
//!
//! While the thread is not up to date, the control thread withholds its heartbeat, and the kernel has all packets.

mod conflict;
mod followed;
mod stored;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::RandomState;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use netlink_sys::protocols::NETLINK_XFRM;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::followed::{Followed, Kind, Place};
use tracing::{info, warn};

use super::flow_entry::Locals;
use crate::control::config::xfrm::StaticXfrm;
use crate::control::netlink::events::{self, Events, Group};
use crate::control::netlink::message::Messages;
use crate::control::netlink::query::{NlSock, is_interrupted};
use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::xfrm::changes::{
    End, XFRMNLGRP_EXPIRE, XFRMNLGRP_MIGRATE, XFRMNLGRP_SA, changed, ended,
};
use crate::control::xfrm::state::{self, SaId};
use crate::control::xfrm::store::Store;
use crate::ipsec::{Order, Sad, StateConfig, UdpPorts};
use crate::netfilter::conntrack::{FlowKey, FlowTable};
use crate::tables::{Links, XfrmStates};
use crate::wire::Protocol;
use crate::worker::clock::monotonic_ns;

/// How often sequence numbers are looked after while workers use SAs.
const TICK: Duration = Duration::from_millis(5);
/// Longest wait for an event.
const WAIT: Duration = Duration::from_millis(100);
/// How old the last sign that the SAs are the kernel's may be for the control thread's heartbeat.
const CURRENT_NS: u64 = 1_000_000_000;
/// Until the next attempt after an error, at first and at most: each uses up sequence numbers.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];
/// While SAs change all the time, reading them takes at most a fifth of a CPU.
const READ_REST: u32 = 4;
/// Receive buffer for events, octets.
const RCVBUF: usize = 4 << 20;
/// SAs of the kernel that are named.
const NAMED_MAX: usize = 16;
/// SAs that are looked at in one tick, and those of them for which the kernel is asked something.
const SAS_PER_TICK: usize = 4096;
const ASKED_PER_TICK: usize = 128;
/// Failed requests in a row, after which everything is begun anew.
const ERRORS_MAX: u32 = 16;
/// How long after its deletion workers may send on an SA, if they do not have the SAs that were read after that before: an
/// IKE daemon deletes an SA as soon as there is the one that replaces it.
const REPLACED: Duration = Duration::from_secs(1);
/// Datagrams of notifications that are read at once.
const DATAGRAMS_MAX: usize = 256;
/// With more SAs than this the kernel has all of them: see [`followed`] for the work that each is.
const SAS_MAX: usize = 65_536;

/// What the thread tells of the SAs.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The SAs for workers.
    pub(super) states: Arc<XfrmStates>,
    /// SAs that stay the kernel's, and why, a line each; at most [`NAMED_MAX`].
    pub(super) kernels: Vec<String>,
}

/// The connections that workers carry, where the ruleset tracks them: they use an SA only if the connection of its
/// packets is one of them.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) flows: Arc<FlowTable>,
    /// Whether IPv4 and IPv6 are tracked.
    pub(super) families: [bool; 2],
}

impl Tracked {
    /// Whether packets of an SA are of a connection that workers carry, or are not tracked.
    pub(super) fn carries(&self, protocol: Protocol, config: &StateConfig) -> bool {
        let [ipv4, ipv6] = self.families;
        let is_tracked = if config.dst.is_ipv4() { ipv4 } else { ipv6 };
        let (protocol, ports) = match config.encap {
            Some(ports) => (Protocol::UDP, ports),
            None => (protocol, UdpPorts { src: 0, dst: 0 }),
        };
        let key = FlowKey::new(config.src, config.dst, protocol.0, ports.src, ports.dst);
        !is_tracked || self.flows.find(&key).is_some()
    }

    fn is_same(&self, other: &Tracked) -> bool {
        Arc::ptr_eq(&self.flows, &other.flows) && self.families == other.families
    }
}

/// State shared by the thread and its owner.
#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    locals: ArcSwap<Locals>,
    /// The `if_id` of the xfrm interfaces that workers use.
    xfrmis: ArcSwap<BTreeSet<u32>>,
    tracked: ArcSwapOption<Tracked>,
    /// The workers may use SAs.
    is_enabled: AtomicBool,
    /// The SAs of a file, instead of the kernel's.
    file: ArcSwapOption<StaticXfrm>,
    /// Why those of the file must not be used.
    conflict: ArcSwapOption<String>,
    /// How often these have changed.
    changes: AtomicU64,
    report: ArcSwap<Report>,
    /// When the SAs were last known to be the kernel's, CLOCK_MONOTONIC; 0: the workers have none.
    valid_ns: AtomicU64,
}

/// The control thread's handle of the thread `fr-xfrm`, and with SAs of a file of `fr-sa-store`.
pub(super) struct SaFollower {
    shared: Arc<Shared>,
    /// The report that the owner has taken.
    taken: Arc<Report>,
    is_enabled: bool,
    /// [`Links::id`] of those that it knows.
    links: u64,
    /// With the SAs of a file: the kernel has its policies.
    is_guarded: bool,
    threads: Vec<JoinHandle<()>>,
}

impl SaFollower {
    /// Starts the thread; it calls `notify` when SAs have changed. `locals`: the router's own addresses, at which SAs for
    /// receiving end; `links`: the interfaces.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(
        locals: Locals,
        links: &Links,
        notify: impl Fn() + Send + 'static,
    ) -> io::Result<SaFollower> {
        let shared = Arc::new(Shared::default());
        shared.locals.store(Arc::new(locals));
        shared.xfrmis.store(Arc::new(xfrmis(links)));
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("fr-xfrm".into()).spawn(move || {
            privilege::confine_follower();
            follow(&own, &notify);
        })?;
        Ok(SaFollower::new(shared, links.id, vec![thread]))
    }

    fn new(shared: Arc<Shared>, links: u64, threads: Vec<JoinHandle<()>>) -> SaFollower {
        let taken = Arc::default();
        SaFollower { shared, taken, is_enabled: false, links, is_guarded: true, threads }
    }

    /// The same with the SAs of a file, while the kernel has none: one thread stores their sequence numbers in a directory,
    /// the other one watches the kernel.
    ///
    /// # Errors
    /// When the directory cannot be used, the kernel has SAs, or no thread can be started.
    pub(super) fn start_with_file(
        file: Arc<StaticXfrm>,
        directory: &Path,
        locals: Locals,
        notify: impl Fn() + Send + 'static,
    ) -> Result<SaFollower> {
        let shared = Arc::new(Shared::default());
        let mut requests = NlSock::open(NETLINK_XFRM).context("a netlink socket of XFRM")?;
        let found = conflict::conflict(&mut requests).context("cannot read the kernel's SAs")?;
        if let Some(found) = found {
            bail!("[xfrm]: {found}");
        }
        let store = Store::open(directory)?;
        info!("IPsec: sequence numbers of the file's SAs are stored in {}", directory.display());
        shared.locals.store(Arc::new(locals));
        shared.file.store(Some(file));
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).spawn(run);
            thread.with_context(|| format!("cannot start the thread {name}"))
        };
        let (own, watched) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            start("fr-xfrm", Box::new(move || conflict::watch(&watched)))?,
            start("fr-sa-store", Box::new(move || stored::keep(&own, &store, &notify)))?,
        ];
        // SAs of a file have no xfrm interfaces.
        Ok(SaFollower::new(shared, 0, threads))
    }

    /// With the SAs of a file: whether the kernel has its policies.
    pub(super) fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// Whether the kernel has the policies of the file from now on. Returns whether that is news.
    pub(super) fn set_guarded(&mut self, is_guarded: bool) -> bool {
        std::mem::replace(&mut self.is_guarded, is_guarded) != is_guarded
    }

    /// Has the workers use the SAs of a file from now on that has changed.
    pub(super) fn set_file(&self, file: Arc<StaticXfrm>) {
        self.shared.file.store(Some(file));
        self.refresh();
    }

    /// What has changed since the last call.
    pub(super) fn take_report(&mut self) -> Option<Arc<Report>> {
        let report = self.shared.report.load_full();
        if Arc::ptr_eq(&report, &self.taken) {
            return None;
        }
        self.taken = Arc::clone(&report);
        Some(report)
    }

    /// The report that was taken last. `None`: the workers may not use SAs.
    pub(super) fn report(&self) -> Option<&Report> {
        self.is_enabled.then_some(&*self.taken)
    }

    /// Whether the workers' SAs are known to be the kernel's: if not, all packets must be passed to the kernel.
    pub(super) fn is_current(&self, now_ns: u64) -> bool {
        let valid_ns = self.shared.valid_ns.load(Relaxed);
        valid_ns == 0 || now_ns.saturating_sub(valid_ns) < CURRENT_NS
    }

    /// The router's own addresses from now on.
    pub(super) fn set_locals(&self, locals: Locals) {
        if **self.shared.locals.load() != locals {
            self.shared.locals.store(Arc::new(locals));
            self.shared.changes.fetch_add(1, Release);
        }
    }

    /// The interfaces from now on: SAs of xfrm interfaces that workers do not use are the kernel's.
    pub(super) fn set_links(&mut self, links: &Links) {
        if std::mem::replace(&mut self.links, links.id) == links.id {
            return;
        }
        let xfrmis = xfrmis(links);
        if **self.shared.xfrmis.load() != xfrmis {
            self.shared.xfrmis.store(Arc::new(xfrmis));
            self.shared.changes.fetch_add(1, Release);
        }
    }

    /// Which connections workers carry from now on; `None`: none are tracked. Returns whether that is news.
    pub(super) fn set_tracked(&self, tracked: Option<Tracked>) -> bool {
        let is_same = match (&*self.shared.tracked.load(), &tracked) {
            (Some(old), Some(new)) => old.is_same(new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if !is_same {
            self.shared.tracked.store(tracked.map(Arc::new));
        }
        !is_same
    }

    /// Has all SAs read again: the kernel may have received on them while the workers had to wait.
    pub(super) fn refresh(&self) {
        self.shared.changes.fetch_add(1, Release);
    }

    /// Whether the workers may use SAs from now on. Returns whether that is news.
    pub(super) fn set_enabled(&mut self, is_enabled: bool) -> bool {
        let is_news = std::mem::replace(&mut self.is_enabled, is_enabled) != is_enabled;
        if is_news {
            self.shared.is_enabled.store(is_enabled, Relaxed);
            self.shared.changes.fetch_add(1, Release);
        }
        is_news
    }

    /// Which thread has ended, which is a bug, and what becomes of packets.
    pub(super) fn ended(&self) -> Option<String> {
        let ended = self.threads.iter().find(|thread| thread.is_finished())?;
        let then = match self.shared.file.load().is_some() {
            true => "the kernel drops what IPsec policies protect, and forwards the rest",
            false => "the kernel keeps forwarding",
        };
        let name = ended.thread().name().unwrap_or("fr-xfrm");
        Some(format!("the thread {name} ended by itself, which is a bug; {then}"))
    }

    /// Ends the threads, and waits for them until `end`. The workers have stopped.
    pub(super) fn stop(&mut self, end: Instant) {
        self.shared.stopping.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            join_until(thread, end);
        }
    }
}

/// The `if_id` of xfrm interfaces that workers use.
fn xfrmis(links: &Links) -> BTreeSet<u32> {
    links.iter().filter(|link| link.up).filter_map(|link| Some(link.xfrmi?.if_id)).collect()
}

/// Runs until it is stopped; after an error, from the start.
fn follow(shared: &Shared, notify: &dyn Fn()) {
    let (mut said, mut retry) = (None, RETRY[0]);
    while !shared.stopping.load(Relaxed) {
        let result = Follower::open(shared, notify).and_then(|mut follower| {
            let result = follower.run();
            follower.end();
            result
        });
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| error != said) {
            warn!(
                "the kernel's IPsec SAs cannot be followed: {error}; the kernel has their packets"
            );
        }
        said = error;
        let until = Instant::now() + retry;
        retry = (retry * 2).min(RETRY[1]);
        while said.is_some() && Instant::now() < until && !shared.stopping.load(Relaxed) {
            thread::sleep(WAIT);
        }
    }
}

/// SAs for sending that the kernel has deleted, and workers may still use.
#[derive(Default)]
struct Replaced(Vec<(SaId, Followed)>);

impl Replaced {
    /// Retires some.
    fn retire(&mut self, is_over: impl Fn(SaId, &Followed) -> bool) {
        let over = self.0.extract_if(.., |(id, sa)| is_over(*id, sa));
        over.for_each(|(_, sa)| sa.retire());
    }
}

/// The SAs of the kernel.
struct Follower<'a> {
    shared: &'a Shared,
    notify: &'a dyn Fn(),
    requests: NlSock,
    events: Events,
    /// Fingerprints of keys are compared within the process only.
    hasher: RandomState,
    sas: HashMap<SaId, Followed>,
    /// In the order in which they were added.
    order: Vec<SaId>,
    /// Where the next tick continues in `order`.
    cursor: usize,
    /// Which workers use until they have the others.
    replaced: Replaced,
    /// Something has changed since they were read.
    is_stale: bool,
    /// Changes by the control thread that have been taken into account.
    changes: u64,
    read_again_at: Instant,
    /// Notifications have been received since the buffer was wiped.
    has_received: bool,
    /// Requests that have failed since the last one that did not.
    errors: u32,
}

impl<'a> Follower<'a> {
    fn open(shared: &'a Shared, notify: &'a dyn Fn()) -> io::Result<Follower<'a>> {
        let groups = [
            Group::Required(XFRMNLGRP_SA),
            Group::Required(XFRMNLGRP_EXPIRE),
            Group::Optional(XFRMNLGRP_MIGRATE),
        ];
        let events = Events::open(NETLINK_XFRM, &groups, RCVBUF).map_err(io::Error::other)?;
        Ok(Follower {
            shared,
            notify,
            requests: NlSock::open(NETLINK_XFRM)?,
            events,
            hasher: RandomState::new(),
            sas: HashMap::new(),
            order: Vec::new(),
            cursor: 0,
            replaced: Replaced::default(),
            is_stale: true,
            changes: 0,
            read_again_at: Instant::now(),
            has_received: false,
            errors: 0,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        while !self.shared.stopping.load(Relaxed) {
            let now_ns = monotonic_ns();
            self.receive()?;
            let changes = self.shared.changes.load(Acquire);
            if changes != self.changes {
                (self.changes, self.is_stale) = (changes, true);
            }
            if self.is_stale && Instant::now() >= self.read_again_at {
                self.read()?;
            }
            self.tick()?;
            if self.shared.valid_ns.load(Relaxed) != 0 {
                self.shared.valid_ns.store(now_ns, Relaxed);
            }
            self.wait();
        }
        Ok(())
    }

    /// Waits for an event, or for the next tick.
    fn wait(&self) {
        let until_read = self.read_again_at.saturating_duration_since(Instant::now());
        let tick = if self.is_in_use() { TICK } else { WAIT };
        let wait = if self.is_stale { until_read.min(tick) } else { tick };
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        // Errors show when the socket is read.
        let _ = poll(&mut fds, timeout);
    }

    fn is_in_use(&self) -> bool {
        self.sas.values().any(Followed::is_workers)
    }

    fn receive(&mut self) -> io::Result<()> {
        let (mut is_empty, mut received) = (false, Ok(()));
        for _ in 0..DATAGRAMS_MAX {
            match self.events.receive() {
                Err(error) => received = Err(io::Error::other(error)),
                Ok(events::Received::Empty) => is_empty = true,
                Ok(events::Received::Overrun) => self.is_stale = true,
                Ok(events::Received::Datagram(octets)) => {
                    let mut messages = Messages::new(octets);
                    for message in messages.by_ref() {
                        self.is_stale |= changed(&message).is_some();
                        match ended(&message) {
                            Some(End::Deleted(id)) => {
                                self.sas.get_mut(&id).into_iter().for_each(Followed::delete);
                            }
                            Some(End::Expired(id)) => {
                                self.sas.get(&id).into_iter().for_each(Followed::retire);
                                self.replaced.retire(|replaced, _| replaced == id);
                            }
                            Some(End::All) => {
                                self.sas.values().for_each(Followed::retire);
                                self.replaced.retire(|_, _| true);
                            }
                            None => {}
                        }
                    }
                    self.is_stale |= messages.broken();
                    self.has_received = true;
                }
            }
            if is_empty || received.is_err() {
                break;
            }
        }
        if std::mem::take(&mut self.has_received) {
            // Notifications have keys.
            self.events.wipe();
        }
        received
    }

    /// Reads all SAs, and gives the workers those that are new.
    fn read(&mut self) -> io::Result<()> {
        let from = Instant::now();
        self.is_stale = false;
        let is_enabled = self.shared.is_enabled.load(Relaxed);
        let list = match state::read(&mut self.requests) {
            // They change all the time: those from before hold until they can be read.
            Err(error) if is_interrupted(&error) => {
                self.is_stale = true;
                self.read_again_at = Instant::now() + from.elapsed() * READ_REST;
                return Ok(());
            }
            list => list?,
        };
        if list.len() > SAS_MAX {
            return Err(io::Error::other(format!(
                "{} SAs, of which {SAS_MAX} at most are followed",
                list.len()
            )));
        }
        let locals = self.shared.locals.load_full();
        let xfrmis = self.shared.xfrmis.load_full();
        let tracked = self.shared.tracked.load_full();
        let mut old = std::mem::take(&mut self.sas);
        let mut is_changed = false;
        self.order.clear();
        // A dump begins with the newest.
        let mut failed = None;
        for mut kernel in list.into_iter().rev() {
            let id = kernel.id;
            if id.spi == 0 || !is_enabled {
                // It is being negotiated, or the kernel has all.
                continue;
            }
            let fingerprint = followed::fingerprint(&kernel, &self.hasher);
            let if_id = kernel.config.if_id;
            let place = Place {
                is_local: locals.contains(id.dst),
                has_interface: if_id == 0 || xfrmis.contains(&if_id),
            };
            let sa = match old.remove(&id) {
                Some(sa) if sa.is(fingerprint, place) => {
                    sa.merge(&kernel.replay);
                    sa
                }
                known => {
                    if let Some(known) = known {
                        let lives_on = known.lives_on_in(&kernel);
                        known.retire();
                        // What the workers did with it is the kernel's, and that of its successor. One that was added
                        // after it ended has a window and counters of its own.
                        if lives_on
                            && let Err(error) = known.hand_over(&mut kernel, &mut self.requests)
                        {
                            failed = self.bear(error).err().or(failed);
                        }
                    }
                    is_changed = true;
                    // One that was deleted and added again, perhaps with the same keys and numbers.
                    self.replaced.retire(|replaced, _| replaced == id);
                    let mut sa = Followed::new(kernel, fingerprint, place);
                    match sa.take_over(&id, &mut self.requests, tracked.as_deref()) {
                        Ok(exists) => self.is_stale |= !exists,
                        // It is tried again when workers want to send.
                        Err(error) => failed = self.bear(error).err().or(failed),
                    }
                    sa
                }
            };
            self.order.push(id);
            self.sas.insert(id, sa);
        }
        is_changed |= !old.is_empty();
        for (id, mut sa) in old {
            if is_enabled && sa.is_outbound() {
                // Unless a notification has told it before.
                sa.delete();
                self.replaced.0.push((id, sa));
                continue;
            }
            sa.retire();
            sa.settle();
            // Most do not exist any more; others the kernel has now.
            let _ = sa.write_back(&id, &mut self.requests);
        }
        if !is_enabled {
            self.replaced.retire(|_, _| true);
        }
        self.read_again_at = Instant::now() + from.elapsed() * READ_REST;
        if let Some(error) = failed {
            return Err(error);
        }
        if is_changed {
            self.publish();
        }
        Ok(())
    }

    /// An error about one SA, such as want of memory, is none of the others, unless there are many.
    fn bear(&mut self, error: io::Error) -> io::Result<()> {
        self.errors += 1;
        if self.errors > ERRORS_MAX { Err(error) } else { Ok(()) }
    }

    /// Gives the SAs to the control thread, which gives them to the workers.
    fn publish(&self) {
        let (mut inbound, mut states) = (Vec::new(), XfrmStates::default());
        let mut kernels = Vec::new();
        // The kernel may find one of its own for packets of an SA that differs by the mark only.
        let place = |id: &SaId| (id.dst, id.spi, id.proto);
        let is_kernels = |(_, sa): &(&SaId, &Followed)| !sa.is_workers();
        let taken: HashSet<_> =
            self.sas.iter().filter(is_kernels).map(|(id, _)| place(id)).collect();
        for id in &self.order {
            match self.sas.get(id).map(|sa| &sa.kind) {
                Some(Kind::Inbound(_)) if taken.contains(&place(id)) => {}
                Some(Kind::Inbound(state)) => inbound.push(Arc::clone(state)),
                Some(Kind::Outbound(state)) => states.outbound.push(Arc::clone(state)),
                Some(Kind::Kernels(wanted, reason)) => {
                    states.kernels.push(*wanted);
                    if kernels.len() < NAMED_MAX {
                        kernels.push(format!("{id}: {reason}"));
                    }
                }
                None => {}
            }
        }
        states.inbound = Sad::new(inbound, Order::OldestFirst);
        let is_used = !states.inbound.is_empty() || !states.outbound.is_empty();
        self.shared.valid_ns.store(if is_used { monotonic_ns() } else { 0 }, Relaxed);
        self.shared.report.store(Arc::new(Report { states: Arc::new(states), kernels }));
        (self.notify)();
    }

    /// Looks after some SAs: sequence numbers, replay windows, usage.
    fn tick(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.replaced.retire(|_, sa| sa.was_deleted(now, REPLACED));
        if self.is_stale {
            // They have not been read since.
            let late = self.sas.values().filter(|sa| sa.was_deleted(now, REPLACED));
            late.for_each(Followed::retire);
        }
        let tracked = self.shared.tracked.load_full();
        let tracked = tracked.as_deref();
        let count = self.order.len().min(SAS_PER_TICK);
        let mut asked = 0;
        for _ in 0..count {
            if asked >= ASKED_PER_TICK {
                break;
            }
            let Some(id) = self.order.get(self.cursor).or_else(|| self.order.first()).copied()
            else {
                break;
            };
            self.cursor = if self.cursor + 1 < self.order.len() { self.cursor + 1 } else { 0 };
            if let Some(sa) = self.sas.get_mut(&id).filter(|sa| sa.needs_care(now, tracked)) {
                asked += 1;
                match sa.look_after(&id, &mut self.requests, now, tracked) {
                    Ok(true) => self.errors = 0,
                    Ok(false) => {
                        sa.delete();
                        self.is_stale = true;
                    }
                    Err(error) => self.bear(error)?,
                }
            }
        }
        Ok(())
    }

    /// Takes the SAs from the workers, and writes what they did into the kernel's.
    fn end(&mut self) {
        self.shared.valid_ns.store(0, Relaxed);
        self.shared.report.store(Arc::default());
        (self.notify)();
        self.replaced.retire(|_, _| true);
        self.sas.values().for_each(Followed::retire);
        for (id, mut sa) in self.sas.drain() {
            sa.settle();
            // The kernel has the SA as it is, whatever becomes of this.
            let _ = sa.write_back(&id, &mut self.requests);
        }
    }
}
