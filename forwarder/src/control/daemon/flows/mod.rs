//! The flows that workers carry while the ruleset tracks connections: a thread that follows the kernel's
//! connection tracking table.
//!
//! A connection is carried once it is established and has been for a moment, so that short ones cost
//! nothing. Before that, its entry is made ready for the kernel to take it back at any time without notice:
//! the kernel no longer compares sequence numbers with windows, of which it sees only a part
//! (IP_CT_TCP_FLAG_BE_LIBERAL). While packets are carried, the entry's time-out is renewed.
//!
//! While the thread is not up to date, the control thread withholds its heartbeat, and the kernel has all packets.
//!
//! - here: the thread and its handle, what is known of the kernel's table, and its events;
//! - `carry`: how connections become carried flows;
//! - `probation`: those that never become assured;
//! - `reading`: the kernel's table is read, in parts, by two more threads;
//! - `maintain`: time-outs of entries.

mod carry;
mod maintain;
mod probation;
mod reading;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_sys::protocols::NETLINK_NETFILTER;

use self::carry::Candidate;
use self::probation::Probation;
use self::reading::Reading;
use tracing::warn;

use super::flow_entry::{IPPROTO_TCP, Locals, Scope, flow_key, may_be_carried};
use super::offload::Offloads;
use crate::control::conntrack::{
    self, Change, Entry, Event, Events, Received, Sysctls, Tuple, Unassured, own_number,
};
use crate::control::netlink::query::NlSock;
use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::steering::FlowGate;
use crate::netfilter::conntrack::{FlowKey, FlowTable, FlowWriter, TupleKind};
use crate::netfilter::nft::Tracking;
use crate::worker::clock::monotonic_ns;

/// How long a TCP connection must have been established.
const CARRY_DELAY_NS: u64 = 200_000_000;
/// How often entries are renewed and verified.
const MAINTENANCE_NS: u64 = 1_000_000_000;
/// Longest wait for an event.
const WAIT: Duration = Duration::from_millis(50);
/// Wait before the next events are received: at high rates, each would wake the thread up.
const COALESCE: Duration = Duration::from_millis(2);
/// How old the last sign that the table agrees with the kernel's may be for the control thread's heartbeat.
const CURRENT_NS: u64 = 500_000_000;
/// Until the next attempt after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum number of connections that are remembered as left to the kernel.
const REFUSED_MAX: usize = 100_000;
const NS_PER_S: u64 = 1_000_000_000;
/// Receive buffer for events, octets.
const RCVBUF: usize = 16 << 20;
/// Entries that are changed with one request.
const BATCH: usize = 512;

/// State shared by the thread and its owner.
#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    /// The ruleset may set time-outs of its own, which are not extended, or restrict the events of entries.
    sets_entries: AtomicBool,
    locals: ArcSwap<Locals>,
    /// Of IPv4 and IPv6, which connections the ruleset needs.
    tracking: ArcSwap<[Tracking; 2]>,
    /// The addresses have changed: connections of IPsec that were not the router's may be now.
    has_new_locals: AtomicBool,
    carried: AtomicU64,
    /// How often the ruleset has changed.
    ruleset_changes: AtomicU64,
    /// The ruleset has a flowtable, or had one before its last change.
    has_flowtables: AtomicBool,
}

/// The control thread's handle of the thread `fr-ct`.
#[derive(Debug)]
pub(super) struct FlowFollower {
    shared: Arc<Shared>,
    table: Arc<FlowTable>,
    thread: Option<JoinHandle<()>>,
}

impl FlowFollower {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(
        mut gate: FlowGate,
        locals: Locals,
        offloads: Option<Arc<Offloads>>,
    ) -> io::Result<FlowFollower> {
        let seed = RandomState::new().hash_one("carried flows");
        let (table, writer) = FlowTable::new(gate.flows_max(), seed);
        let shared = Arc::new(Shared::default());
        shared.locals.store(Arc::new(locals));
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("fr-ct".into()).spawn(move || {
            privilege::confine_follower();
            follow(&own, writer, &mut gate, offloads.as_deref());
        })?;
        Ok(FlowFollower { shared, table, thread: Some(thread) })
    }

    /// The carried flows.
    pub(super) fn table(&self) -> &Arc<FlowTable> {
        &self.table
    }

    /// Number of flows that are carried.
    pub(super) fn carried(&self) -> u64 {
        self.shared.carried.load(Relaxed)
    }

    /// Whether the carried flows are known to agree with the kernel's table: if not, all packets must be passed
    /// to the kernel.
    pub(super) fn is_current(&self, now_ns: u64) -> bool {
        self.carried() == 0 || now_ns.saturating_sub(self.table.valid_ns()) < CURRENT_NS
    }

    /// The router's own addresses from now on.
    pub(super) fn set_locals(&self, locals: Locals) {
        if **self.shared.locals.load() != locals {
            self.shared.locals.store(Arc::new(locals));
            self.shared.has_new_locals.store(true, Relaxed);
        }
    }

    /// Of IPv4 and IPv6, the connections that workers carry from now on.
    pub(super) fn set_tracking(&self, tracking: [Tracking; 2]) {
        self.shared.tracking.store(Arc::new(tracking));
    }

    /// The workers apply another ruleset, which may set time-outs or events of connections.
    /// `has_flowtables`: it has a flowtable, or the one before it.
    pub(super) fn set_ruleset(&self, sets_entries: bool, has_flowtables: bool) {
        self.shared.has_flowtables.store(has_flowtables, Relaxed);
        self.shared.sets_entries.store(sets_entries, Relaxed);
        self.shared.ruleset_changes.fetch_add(1, Relaxed);
    }

    /// Whether the thread has ended, which is a bug.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the thread, and waits for it until `end`.
    pub(super) fn stop(&mut self, end: Instant) {
        self.shared.stopping.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            join_until(thread, end);
        }
    }
}

/// Runs until it is stopped; after an error, from the start.
fn follow(
    shared: &Shared,
    mut writer: FlowWriter,
    gate: &mut FlowGate,
    offloads: Option<&Offloads>,
) {
    let mut said = None;
    while !shared.stopping.load(Relaxed) {
        if **shared.tracking.load() == [Tracking::Off; 2] {
            thread::sleep(WAIT);
            continue;
        }
        let result =
            Follower::open(shared, &mut writer, gate, offloads).and_then(|mut it| it.run());
        writer.table().set_valid(0);
        if let Some(offloads) = offloads {
            offloads.forget_carried();
        }
        writer.clear();
        gate.clear();
        shared.carried.store(0, Relaxed);
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| error != said) {
            warn!(
                "the kernel's connections cannot be followed: {error}; packets that rules need \
                 connection tracking for are left to the kernel"
            );
        }
        said = error;
        let wait = if said.is_some() { RETRY } else { Duration::ZERO };
        let until = Instant::now() + wait;
        while Instant::now() < until && !shared.stopping.load(Relaxed) {
            thread::sleep(WAIT);
        }
    }
}

/// A flow that is carried. There may be a million of them.
#[derive(Debug, Clone, Copy)]
struct Carried {
    /// When the entry was last renewed, or verified.
    renewed_ns: u64,
    /// The time-out that the entry had when it was carried first.
    timeout_s: u32,
    /// The entry's id (CTA_ID).
    id: Option<u32>,
    /// Whether the kernel sends events of the entry.
    has_events: bool,
    /// A RST has shortened the entry's time-out.
    is_shortened: bool,
    /// Whether `timeout_s` is from an event, and not what was left of it.
    is_timeout_fresh: bool,
    /// Whether the XDP program steers its packets by the flow. Those of IPsec to the router it steers by their SA.
    is_gated: bool,
}

/// A connection that workers left to the kernel.
#[derive(Debug, Clone, Copy)]
struct Refused {
    id: Option<u32>,
    has_events: bool,
}

/// The table, and what is known of the kernel's.
struct Follower<'a> {
    shared: &'a Shared,
    writer: &'a mut FlowWriter,
    gate: &'a mut FlowGate,
    /// The flows that the XDP program forwards by itself.
    offloads: Option<&'a Offloads>,
    events: Events,
    requests: NlSock,
    /// For changes of entries that are read.
    ready_requests: Arc<Mutex<NlSock>>,
    /// Of both sockets, see [`own_number`].
    own_numbers: [u32; 2],
    sysctls: Sysctls,
    /// Of IPv4 and IPv6, which connections are carried.
    tracking: [Tracking; 2],
    /// By number.
    carried: Vec<Option<Carried>>,
    without_events: usize,
    /// Carried flows of ICMP echo, whose time-out is short.
    echoes: usize,
    /// Established, and to be carried when they have been for a moment.
    waiting: HashMap<Tuple, Entry>,
    /// When, CLOCK_MONOTONIC, and which.
    due: VecDeque<(u64, Tuple)>,
    /// Those that never become assured.
    probation: Probation,
    maintained_ns: u64,
    /// Connections were not carried for want of room, or are no longer remembered as refused.
    has_left_out: bool,
    /// The flow at which maintenance continues, and where it ends this time.
    cursor: usize,
    cursor_end: usize,
    /// Renewals in this second.
    renewals: u64,
    /// Flows with `is_shortened`, by number.
    shortened: Vec<u32>,
    /// Flows without `is_gated`, by number.
    ungated: Vec<u32>,
    /// Those from this number on are refreshed next.
    refreshed_from: u32,
    /// Connections that workers left to the kernel: until the ruleset changes.
    refused: HashMap<Tuple, Refused>,
    /// Those that are to be tried again.
    retried: Vec<Tuple>,
    /// The kernel's table is being read.
    reading: Option<Reading>,
    /// Events were lost: the flows are not known to agree with the kernel's table until it has been read.
    is_uncertain: bool,
    /// Entries without events that the last reading left to the kernel.
    without_events_left: usize,
    /// How long reading the kernel's table took.
    reading_took: Duration,
    /// When it was last read to carry connections that had been left out.
    read_at: Instant,
    /// How long trying connections again took.
    retrying_took: Duration,
    /// When connections were last tried again because the ruleset had changed, and which change that was.
    retried_at: Instant,
    ruleset_change: u64,
    /// The table is read twice: the kernel takes connections out of a deleted flowtable later, and sends no event of that.
    reads_again: bool,
}

impl<'a> Follower<'a> {
    fn open(
        shared: &'a Shared,
        writer: &'a mut FlowWriter,
        gate: &'a mut FlowGate,
        offloads: Option<&'a Offloads>,
    ) -> io::Result<Follower<'a>> {
        let mut requests = NlSock::open(NETLINK_NETFILTER)?;
        if !conntrack::is_available(&mut requests)? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel has no nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)",
            ));
        }
        let events = Events::open_changes(RCVBUF)?;
        let ready_requests = NlSock::open(NETLINK_NETFILTER)?;
        let own_numbers = [&requests, &ready_requests].map(own_number);
        let _more_events = events.leave_out(own_numbers, Unassured::All);
        Ok(Follower {
            shared,
            writer,
            gate,
            offloads,
            events,
            requests,
            ready_requests: Arc::new(Mutex::new(ready_requests)),
            own_numbers,
            sysctls: Sysctls::read()?,
            tracking: **shared.tracking.load(),
            carried: Vec::new(),
            without_events: 0,
            echoes: 0,
            waiting: HashMap::new(),
            due: VecDeque::new(),
            probation: Probation::default(),
            maintained_ns: 0,
            has_left_out: false,
            cursor: 0,
            cursor_end: 0,
            renewals: 0,
            shortened: Vec::new(),
            ungated: Vec::new(),
            refreshed_from: 0,
            refused: HashMap::new(),
            retried: Vec::new(),
            reading: None,
            is_uncertain: false,
            without_events_left: 0,
            reading_took: Duration::ZERO,
            read_at: Instant::now(),
            retrying_took: Duration::ZERO,
            retried_at: Instant::now(),
            ruleset_change: shared.ruleset_changes.load(Relaxed),
            reads_again: false,
        })
    }

    /// Until the ruleset needs no connections.
    fn run(&mut self) -> io::Result<()> {
        self.resynchronise()?;
        while !self.shared.stopping.load(Relaxed) {
            let tracking = **self.shared.tracking.load();
            if tracking == [Tracking::Off; 2] {
                break;
            }
            self.track(tracking)?;
            let now_ns = monotonic_ns();
            let is_due = self.due.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns);
            let is_busy = is_due
                || self.probation.is_due(now_ns)
                || self.is_maintaining()
                || self.reading.is_some()
                || !self.retried.is_empty();
            let wait = if is_busy { Duration::ZERO } else { WAIT };
            let mut events = Vec::new();
            let received = self.events.receive(wait, |event| events.push(event))?;
            if received == Received::Overrun {
                self.resynchronise()?;
                continue;
            }
            let is_quiet = !is_busy && received == Received::Drained;
            events.into_iter().for_each(|event| self.apply(event));
            self.look_at_noted();
            if received == Received::Drained && !self.is_uncertain {
                self.writer.table().set_valid(now_ns);
            }
            self.carry_due();
            self.end_probation();
            self.retry();
            self.read_on()?;
            if self.is_maintaining() || now_ns.saturating_sub(self.maintained_ns) >= MAINTENANCE_NS
            {
                if !self.is_maintaining() {
                    self.maintained_ns = now_ns;
                    self.sysctls = Sysctls::read()?;
                    let ignores = self.sysctls.tcp_ignores_invalid_rst;
                    self.writer.table().set_ignores_invalid_rst(ignores);
                    self.maintain_probation(now_ns);
                    self.verify()?;
                    self.begin_maintenance(now_ns);
                }
                self.maintain(now_ns);
            }
            self.shared.carried.store(self.writer.len() as u64, Relaxed);
            if is_quiet {
                thread::sleep(COALESCE);
            }
        }
        Ok(())
    }

    /// Which connections are carried.
    fn scope(&self) -> Scope {
        Scope { locals: self.shared.locals.load_full(), tracking: self.tracking }
    }

    /// The ruleset needs these connections: the flows of a family for which that has changed are given up, and the table
    /// is read for those that can be carried now.
    fn track(&mut self, tracking: [Tracking; 2]) -> io::Result<()> {
        if self.tracking == tracking {
            return Ok(());
        }
        let has_changed = [0, 1].map(|family| self.tracking[family] != tracking[family]);
        self.tracking = tracking;
        for number in 0..self.carried.len() as u32 {
            let key = self.writer.get(number).map(|desc| desc.keys[0]);
            if key.is_some_and(|key| has_changed[usize::from(!key.is_ipv4())]) {
                self.drop_number(number);
            }
        }
        let is_same = |tuple: &Tuple| !has_changed[usize::from(tuple.source.is_ipv6())];
        self.waiting.retain(|tuple, _| is_same(tuple));
        self.due.retain(|(_, tuple)| is_same(tuple));
        if self.is_uncertain {
            return self.resynchronise();
        }
        // What is being read was chosen by the old ones.
        self.begin_reading()
    }

    fn apply(&mut self, event: Event) {
        let (entry, is_destroyed) = match event {
            Event::Destroy(entry) => (entry, true),
            Event::New(entry) | Event::Update(entry) => (entry, false),
        };
        self.count_event(&entry);
        // Another zone has connections of its own.
        if entry.zone != 0 {
            return;
        }
        if let Some(reading) = &mut self.reading {
            reading.touch(&entry.original, false);
        }
        let scope = self.scope();
        let number = self.writer.number(&flow_key(&entry.original));
        let number = match number {
            Some(number) if !is_of(&self.carried, self.writer, number, &entry) => {
                // Another connection with these tuples.
                self.drop_number(number);
                None
            }
            number => number,
        };
        // An event has the state of TCP only if it changed.
        let is_unchanged = entry.tcp.is_none() && entry.original.protocol == IPPROTO_TCP;
        let may_be_carried = !is_destroyed && may_be_carried(&entry, &scope);
        if !may_be_carried {
            self.refused.remove(&entry.original);
        }
        let is_known = number.is_some() || self.waiting.contains_key(&entry.original);
        if !may_be_carried || (is_unchanged && !is_known) {
            self.waiting.remove(&entry.original);
            if let Some(number) = number {
                self.drop_number(number);
            }
            return;
        }
        match number {
            Some(number) => {
                if let Some(reading) = &mut self.reading {
                    // What is read of it may be older.
                    reading.saw(number);
                }
                self.set(number, entry.status, entry.mark);
                if let Some(timeout_s) = entry.timeout_s {
                    let expires_ns = monotonic_ns() + u64::from(timeout_s) * NS_PER_S;
                    self.writer.set_expires_ns(number, expires_ns);
                }
                if let Some(Some(carried)) = self.carried.get_mut(number as usize)
                    && !carried.has_events
                    && !self.shared.sets_entries.load(Relaxed)
                {
                    carried.has_events = true;
                    self.without_events -= 1;
                }
            }
            None if self.is_refused(&entry) || self.begin_probation(&entry, true) => {}
            None => match self.waiting.get_mut(&entry.original) {
                // An event has the state of TCP only if it changed.
                Some(known) => *known = Entry { tcp: entry.tcp.or(known.tcp), ..entry },
                None if entry.original.protocol == IPPROTO_TCP => {
                    self.waiting.insert(entry.original, entry);
                    self.due.push_back((monotonic_ns() + CARRY_DELAY_NS, entry.original));
                }
                // UDP is assured, and therefore two seconds old; ESP and AH to the router have been answered.
                None => self.carry(&[Candidate::of_event(entry)]),
            },
        }
    }

    /// Leaves a flow to the kernel.
    fn drop_number(&mut self, number: u32) {
        let Some(carried) = self.carried.get_mut(number as usize).and_then(Option::take) else {
            return;
        };
        self.without_events -= usize::from(!carried.has_events);
        let Some(desc) = self.writer.get(number) else { return };
        self.echoes -= usize::from(desc.keys[0].kind() == Some(TupleKind::Echo));
        if let Some(reading) = &mut self.reading {
            // The entry may be among those that are being made ready.
            reading.touch(&Tuple::of_key(&desc.keys[0]), true);
        }
        self.writer.remove(&desc.keys[0]);
        self.forget_offloaded(&desc.keys);
        if carried.is_gated {
            self.gate.remove(&desc.keys.map(gate_key));
        }
    }

    /// Changes status and mark of a flow.
    fn set(&mut self, number: u32, status: u32, mark: u32) {
        if self.writer.set(number, status, mark)
            && let Some(desc) = self.writer.get(number)
        {
            self.forget_offloaded(&desc.keys);
        }
    }

    /// Packets of a flow that has changed are the workers' again.
    fn forget_offloaded(&self, keys: &[FlowKey; 2]) {
        if let Some(offloads) = self.offloads {
            offloads.forget(&keys.map(gate_key));
        }
    }

    /// Leaves flows to the kernel that workers have closed, also in the XDP program, and shortens the time-outs of
    /// those that may be closed.
    fn look_at_noted(&mut self) {
        let table = Arc::clone(self.writer.table());
        let (now_ns, mut shortened) = (monotonic_ns(), Vec::new());
        for number in table.take_noted() {
            let Some(Some(carried)) = self.carried.get_mut(number as usize) else { continue };
            let Some(desc) = self.writer.get(number) else { continue };
            let tuple = Tuple::of_key(&desc.keys[0]);
            // Another flow may have the number by now.
            if table.is_closing(number) {
                let refused = Refused { id: carried.id, has_events: carried.has_events };
                self.refuse(tuple, refused);
                self.drop_number(number);
            } else if table.take_reset(number)
                && (carried.is_timeout_fresh || !self.shared.sets_entries.load(Relaxed))
            {
                // As `nf_conntrack_tcp_packet`: until the next packet.
                carried.is_shortened = true;
                carried.renewed_ns = now_ns;
                self.shortened.push(number);
                let timeout_s = maintain::CLOSE_TIMEOUT_S;
                self.writer.set_expires_ns(number, now_ns + u64::from(timeout_s) * NS_PER_S);
                shortened.push(liberal(tuple, Some(timeout_s)));
            }
        }
        // One that is gone needs none.
        let _ = conntrack::update(&mut self.requests, &shortened);
    }

    /// Remembers that a connection stays with the kernel.
    fn refuse(&mut self, tuple: Tuple, refused: Refused) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
            self.has_left_out = true;
        }
        self.refused.insert(tuple, refused);
    }

    /// Whether workers left a connection to the kernel.
    fn is_refused(&self, entry: &Entry) -> bool {
        self.refused.get(&entry.original).is_some_and(|refused| refused.id == entry.id)
    }
}

/// Makes an entry ready to be carried, with another time-out or the same.
fn liberal(tuple: Tuple, timeout_s: Option<u32>) -> Change {
    let (is_assured, is_expected, forgets_max_ack) = (false, false, false);
    Change { tuple, timeout_s, is_assured, is_expected, is_liberal: Some(true), forgets_max_ack }
}

/// Changes nothing: the kernel answers with the entry.
fn unchanged(tuple: Tuple) -> Change {
    Change { is_liberal: None, ..liberal(tuple, None) }
}

/// The key that the XDP program has for packets of a key.
fn gate_key(key: FlowKey) -> [u64; xdp_prog::FLOW_WORDS] {
    *key.words()
}

/// Whether a flow is that of an entry: another one may have the same tuples, or the same reversed.
fn is_of(carried: &[Option<Carried>], writer: &FlowWriter, number: u32, entry: &Entry) -> bool {
    let carried = carried.get(number as usize).copied().flatten();
    // Ids may be used again, and NAT may translate the next connection differently.
    let keys = [&entry.original, &entry.reply].map(flow_key);
    let has_keys = writer.get(number).is_some_and(|desc| desc.keys == keys);
    has_keys && carried.is_some_and(|it| it.id == entry.id)
}
