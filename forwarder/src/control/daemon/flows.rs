//! The flows that workers carry while the ruleset tracks connections: a thread that follows the kernel's
//! connection tracking table.
//!
//! A connection is carried once it is established and has been for a moment, so that short ones cost
//! nothing. Before that, its entry is made ready for the kernel to take it back at any time without notice:
//! the kernel no longer compares sequence numbers with windows, of which it sees only a part
//! (IP_CT_TCP_FLAG_BE_LIBERAL). While packets are carried, the entry's time-out is renewed.
//!
//! While the thread is not up to date, the control thread withholds its heartbeat, and the kernel has all packets.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::flow_entry::{
    FLOWS_WITHOUT_EVENTS_MAX, Found, IPPROTO_TCP, Locals, flow_key, gate_key, is_carriable,
    is_masqueraded, is_offloaded, liberal, may_be_carried,
};
use crate::control::conntrack::{self, Change, Entry, Event, Events, Received, Sysctls, Tuple};
use crate::control::netlink::query::{DumpEnd, NlSock};
use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::control::steering::FlowGate;
use crate::netfilter::conntrack::{FlowDesc, FlowTable, FlowWriter};
use crate::say;
use crate::worker::clock::monotonic_ns;

/// How long a connection must have been established.
const CARRY_DELAY_NS: u64 = 200_000_000;
/// How often entries are renewed and verified.
const MAINTENANCE_NS: u64 = 1_000_000_000;
/// The longest interval between renewals of an entry.
const RENEWAL_MAX_NS: u64 = 60_000_000_000;
/// Longest wait for an event.
const WAIT: Duration = Duration::from_millis(50);
/// How old the last sign that the table agrees with the kernel's may be for the control thread's heartbeat.
const CURRENT_NS: u64 = 500_000_000;
/// Until the next attempt after an error.
const RETRY: Duration = Duration::from_secs(1);
/// After the ruleset changed, the kernel's table is not read again before this.
const RULESET_REST: Duration = Duration::from_secs(10);
/// The next reading because of a change waits for this multiple of the time that the last one took.
const COMPARE_REST: u32 = 50;
/// How long reading the kernel's table may take to be done every second.
const COMPARE_MAX: Duration = Duration::from_millis(200);
/// Maximum number of connections that are remembered as left to the kernel.
const REFUSED_MAX: usize = 100_000;
const NS_PER_S: u64 = 1_000_000_000;
/// Time-out of an entry after a RST that does not close it: the default of nf_conntrack_tcp_timeout_close.
const CLOSE_TIMEOUT_S: u32 = 10;
/// Time-out of an entry that was renewed while its connection was closed.
const CLOSING_TIMEOUT_S: u32 = 120;
/// Receive buffer for events, octets.
const RCVBUF: usize = 16 << 20;
/// Entries that are changed with one request.
const BATCH: usize = 512;
/// Flows that are looked at for renewal between two looks for events.
const SCAN: usize = 16_384;

/// State shared by the thread and its owner.
#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    /// The ruleset tracks connections. Otherwise none is carried.
    is_tracked: AtomicBool,
    /// The ruleset may set time-outs of its own, which are not extended, or restrict the events of entries.
    sets_entries: AtomicBool,
    locals: ArcSwap<Locals>,
    carried: AtomicU64,
    /// How often the ruleset has changed.
    ruleset_changes: AtomicU64,
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
    pub(super) fn start(gate: FlowGate, locals: Locals) -> io::Result<FlowFollower> {
        let seed = RandomState::new().hash_one("carried flows");
        let (table, writer) = FlowTable::new(gate.flows_max(), seed);
        let shared = Arc::new(Shared::default());
        shared.locals.store(Arc::new(locals));
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("fr-ct".into()).spawn(move || {
            privilege::confine_flow_follower();
            follow(&own, writer, &gate);
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
        self.shared.locals.store(Arc::new(locals));
    }

    /// The workers apply another ruleset, which tracks connections, and may set time-outs or events of them.
    pub(super) fn set_ruleset(&self, is_tracked: bool, sets_entries: bool) {
        self.shared.sets_entries.store(sets_entries, Relaxed);
        self.shared.ruleset_changes.fetch_add(1, Relaxed);
        self.shared.is_tracked.store(is_tracked, Relaxed);
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
fn follow(shared: &Shared, mut writer: FlowWriter, gate: &FlowGate) {
    let mut said = None;
    while !shared.stopping.load(Relaxed) {
        if !shared.is_tracked.load(Relaxed) {
            thread::sleep(WAIT);
            continue;
        }
        let result = Follower::open(shared, &mut writer, gate).and_then(|mut it| it.run());
        writer.table().set_valid(0);
        writer.clear();
        let cleared = gate.clear();
        // As long as packets may be steered, the control thread withholds its heartbeat.
        shared.carried.store(u64::from(cleared.is_err()), Relaxed);
        let error = result.and(cleared).err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| error != said) {
            say!(
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

/// A flow that is carried.
#[derive(Debug, Clone, Copy)]
struct Carried {
    tuple: Tuple,
    keys: [xdp_prog::FlowKey; 2],
    /// The time-out that the entry had when it was carried first.
    timeout_s: u32,
    /// When the entry was last renewed, or verified.
    renewed_ns: u64,
    /// Whether the kernel sends events of the entry.
    has_events: bool,
    /// A RST has shortened the entry's time-out.
    is_shortened: bool,
    /// Whether `timeout_s` is from an event, and not what was left of it.
    is_timeout_fresh: bool,
    /// The entry's id (CTA_ID).
    id: Option<u32>,
}

/// The table, and what is known of the kernel's.
struct Follower<'a> {
    shared: &'a Shared,
    writer: &'a mut FlowWriter,
    gate: &'a FlowGate,
    events: Events,
    requests: NlSock,
    sysctls: Sysctls,
    /// By number.
    carried: Vec<Option<Carried>>,
    without_events: usize,
    /// Established, and to be carried when they have been for a moment; whether they have events.
    waiting: HashMap<Tuple, (Entry, bool)>,
    /// When, CLOCK_MONOTONIC, and which.
    due: VecDeque<(u64, Tuple)>,
    maintained_ns: u64,
    /// Connections were not carried for want of room.
    has_left_out: bool,
    /// The flow at which maintenance continues.
    cursor: usize,
    /// Connections that workers left to the kernel, with their ids: until the ruleset changes.
    refused: HashMap<Tuple, Option<u32>>,
    /// Entries of which the kernel is to send an event, if it can.
    asked: Vec<Tuple>,
    /// Such events have been asked for: time-outs in events may be what is left of them.
    has_asked: bool,
    /// How long reading the kernel's table took.
    compare_took: Duration,
    /// When it was last read because the ruleset had changed, and which change that was.
    compared: Instant,
    ruleset_change: u64,
    /// It is read once more, because the kernel had offloaded connections.
    looks_again: bool,
}

impl<'a> Follower<'a> {
    fn open(
        shared: &'a Shared,
        writer: &'a mut FlowWriter,
        gate: &'a FlowGate,
    ) -> io::Result<Follower<'a>> {
        let mut requests = NlSock::open(NETLINK_NETFILTER)?;
        if !conntrack::is_available(&mut requests)? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel has no nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)",
            ));
        }
        Ok(Follower {
            shared,
            writer,
            gate,
            events: Events::open(RCVBUF)?,
            requests,
            sysctls: Sysctls::read()?,
            carried: Vec::new(),
            without_events: 0,
            waiting: HashMap::new(),
            due: VecDeque::new(),
            maintained_ns: 0,
            has_left_out: false,
            cursor: 0,
            refused: HashMap::new(),
            asked: Vec::new(),
            has_asked: false,
            compare_took: Duration::ZERO,
            compared: Instant::now(),
            ruleset_change: 0,
            looks_again: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.resynchronise()?;
        while !self.shared.stopping.load(Relaxed) && self.shared.is_tracked.load(Relaxed) {
            let now_ns = monotonic_ns();
            let is_due = self.due.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns);
            let is_busy = is_due || self.cursor > 0 || !self.asked.is_empty();
            let wait = if is_busy { Duration::ZERO } else { WAIT };
            let mut events = Vec::new();
            match self.events.receive(wait, |event| events.push(event))? {
                Received::Overrun => {
                    self.resynchronise()?;
                    continue;
                }
                received => {
                    events.into_iter().try_for_each(|event| self.apply(event))?;
                    self.look_at_noted()?;
                    if received == Received::Drained {
                        self.writer.table().set_valid(now_ns);
                    }
                    self.carry_due()?;
                    self.ask();
                }
            }
            if self.cursor > 0 || now_ns.saturating_sub(self.maintained_ns) >= MAINTENANCE_NS {
                if self.cursor == 0 {
                    self.maintained_ns = now_ns;
                    self.verify()?;
                }
                self.maintain(now_ns)?;
            }
            self.shared.carried.store(self.writer.len() as u64, Relaxed);
        }
        Ok(())
    }

    /// Reads the whole table after events were lost. If that takes too long, nothing is carried meanwhile.
    fn resynchronise(&mut self) -> io::Result<()> {
        self.waiting.clear();
        self.asked.clear();
        self.due.clear();
        // Older than the dump.
        while self.events.receive(Duration::ZERO, |_| ())? != Received::Drained {
            if self.shared.stopping.load(Relaxed) {
                return Ok(());
            }
        }
        self.refused.clear();
        let found = self.compare(true)?;
        self.enqueue(found);
        // Connections that were being opened have no events either: as if the ruleset had changed, the table is
        // read once more.
        self.ruleset_change = self.shared.ruleset_changes.load(Relaxed).wrapping_sub(1);
        self.compared = Instant::now();
        Ok(())
    }

    /// Has entries carried of which it is not known whether they have events.
    fn enqueue(&mut self, Found { entries, more, .. }: Found) {
        let room = FLOWS_WITHOUT_EVENTS_MAX.saturating_sub(self.without_events);
        // Reading the table again every second would take too long.
        if self.compare_took > COMPARE_MAX || !more.is_empty() || entries.len() > room {
            self.asked = more;
            self.asked.extend(entries.iter().map(|entry| entry.original));
            return;
        }
        let now_ns = monotonic_ns();
        for entry in entries {
            if self.waiting.insert(entry.original, (entry, false)).is_none() {
                self.due.push_back((now_ns, entry.original));
            }
        }
    }

    /// Has the kernel send events of entries, with changes that change nothing. Entries that can have no events do
    /// not answer, and stay with the kernel.
    fn ask(&mut self) {
        self.has_asked |= !self.asked.is_empty();
        let rest = self.asked.len().saturating_sub(BATCH);
        let nothing = |tuple| Change { is_liberal: false, ..liberal(tuple, None) };
        let changes: Vec<Change> = self.asked.drain(rest..).map(nothing).collect();
        let _ = conntrack::update(&mut self.requests, &changes);
    }

    /// Compares the flows with the kernel's table: drops those that can no longer be carried, and returns the
    /// entries that can be.
    fn compare(&mut self, events_were_lost: bool) -> io::Result<Found> {
        let begun = Instant::now();
        let (mut seen, mut found) = (HashSet::new(), Found::default());
        let (shared, writer) = (self.shared, &mut *self.writer);
        let (carried, refused) = (&self.carried, &self.refused);
        let locals = shared.locals.load();
        let dumped = conntrack::dump(&mut self.requests, |entry| {
            found.has_offloaded |= is_offloaded(&entry);
            if !is_carriable(&entry, &locals) {
                return;
            }
            match writer.number(&flow_key(&entry.original)) {
                Some(number) if is_of(carried, writer, number, &entry) => {
                    writer.set(number, entry.status, entry.mark);
                    seen.insert(number);
                }
                // Another connection with these tuples; the flow is dropped.
                Some(_) => {}
                None if refused.get(&entry.original) == Some(&entry.id) => {}
                None => found.push(entry),
            }
        })?;
        drop(locals);
        // If messages are missing, events tell of those entries that have them.
        let is_whole = dumped.end == DumpEnd::Complete && dumped.skipped == 0;
        let is_doubtful = |it: &&Carried| is_whole || events_were_lost || !it.has_events;
        let doubtful = self.carried.iter().flatten().filter(is_doubtful);
        let gone = doubtful.map(|carried| carried.tuple);
        let is_gone = |tuple: &Tuple| {
            self.writer.number(&flow_key(tuple)).is_none_or(|number| !seen.contains(&number))
        };
        let gone: Vec<Tuple> = gone.filter(is_gone).collect();
        gone.iter().try_for_each(|tuple| self.drop_flow(tuple))?;
        self.compare_took = begun.elapsed();
        Ok(found)
    }

    /// Verifies flows of which the kernel sends no events, and, after the ruleset changed, carries those that
    /// its rules had left to the kernel.
    fn verify(&mut self) -> io::Result<()> {
        let change = self.shared.ruleset_changes.load(Relaxed);
        let has_room = self.has_left_out && self.writer.room() > 0;
        let rest = RULESET_REST.max(self.compare_took * COMPARE_REST);
        let is_changed =
            (change != self.ruleset_change || has_room) && self.compared.elapsed() >= rest;
        if self.without_events == 0 && !is_changed {
            return Ok(());
        }
        if self.compare_took > COMPARE_MAX {
            // The table is too large to be read every second.
            let unsure = self.carried.iter().flatten().filter(|carried| !carried.has_events);
            let unsure: Vec<Tuple> = unsure.map(|carried| carried.tuple).collect();
            unsure.iter().try_for_each(|tuple| self.drop_flow(tuple))?;
            if !is_changed {
                return Ok(());
            }
        }
        if is_changed {
            self.refused.clear();
        }
        let found = self.compare(false)?;
        if is_changed {
            self.compared = Instant::now();
            // The kernel takes connections out of a deleted flowtable later, and sends no event of that.
            self.looks_again = found.has_offloaded && !self.looks_again;
            if !self.looks_again {
                self.ruleset_change = change;
            }
            self.has_left_out = false;
            self.enqueue(found);
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) -> io::Result<()> {
        let (entry, is_destroyed) = match event {
            Event::Destroy(entry) => (entry, true),
            Event::New(entry) | Event::Update(entry) => (entry, false),
        };
        // Another zone has connections of its own.
        if entry.zone != 0 {
            return Ok(());
        }
        let locals = self.shared.locals.load();
        let number = self.writer.number(&flow_key(&entry.original));
        let number = match number {
            Some(number) if !is_of(&self.carried, self.writer, number, &entry) => {
                // Another connection with these tuples.
                let of = self.carried.get(number as usize).copied().flatten();
                of.map_or(Ok(()), |of| self.drop_flow(&of.tuple))?;
                None
            }
            number => number,
        };
        if is_destroyed {
            self.refused.remove(&entry.original);
        }
        // An event has the state of TCP only if it changed.
        let is_unchanged = entry.tcp.is_none() && entry.original.protocol == IPPROTO_TCP;
        let may_be_carried = !is_destroyed && may_be_carried(&entry, &locals);
        drop(locals);
        let is_known = number.is_some() || self.waiting.contains_key(&entry.original);
        if !may_be_carried || (is_unchanged && !is_known) {
            self.waiting.remove(&entry.original);
            return self.drop_flow(&entry.original);
        }
        match number {
            Some(number) => {
                self.writer.set(number, entry.status, entry.mark);
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
            None if self.refused.get(&entry.original) == Some(&entry.id) => {}
            None => match self.waiting.get_mut(&entry.original) {
                // An event has the state of TCP only if it changed.
                Some((known, has_events)) => {
                    *known = Entry { tcp: entry.tcp.or(known.tcp), ..entry };
                    *has_events = true;
                }
                None => {
                    self.waiting.insert(entry.original, (entry, true));
                    self.due.push_back((monotonic_ns() + CARRY_DELAY_NS, entry.original));
                }
            },
        }
        Ok(())
    }

    /// Carries the connections that have been established long enough.
    fn carry_due(&mut self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        let mut entries = Vec::new();
        while entries.len() < BATCH
            && let Some((due_ns, tuple)) = self.due.front()
            && *due_ns <= now_ns
        {
            entries.extend(self.waiting.remove(tuple));
            self.due.pop_front();
        }
        self.carry(&entries)
    }

    /// Makes entries ready, and has the workers carry their packets.
    fn carry(&mut self, entries: &[(Entry, bool)]) -> io::Result<()> {
        // Only what is carried is made liberal.
        let room = self.writer.room();
        self.has_left_out |= room < entries.len();
        let entries = entries.get(..room.min(entries.len())).unwrap_or(&[]);
        if entries.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> =
            entries.iter().map(|(entry, _)| liberal(entry.original, None)).collect();
        let results = conntrack::update(&mut self.requests, &changes);
        let now_ns = monotonic_ns();
        let sets_entries = self.shared.sets_entries.load(Relaxed);
        let locals = self.shared.locals.load();
        // Before any packet is steered.
        self.shared.carried.store((self.writer.len() + entries.len()) as u64, Relaxed);
        for ((entry, has_events), result) in entries.iter().zip(results) {
            // One that is gone, or that the kernel does not let change, is not carried.
            if result.is_err() {
                continue;
            }
            let tuples = [entry.original, entry.reply];
            let keys = tuples.each_ref().map(flow_key);
            let [Some(original), Some(reply)] = tuples.each_ref().map(gate_key) else { continue };
            let timeout_s = entry.timeout_s.unwrap_or(0);
            let expires_ns = now_ns + u64::from(timeout_s) * NS_PER_S;
            let (status, mark) = (entry.status, entry.mark);
            let is_masqueraded = is_masqueraded(entry, &locals);
            let desc = FlowDesc { keys, status, mark, expires_ns, is_masqueraded };
            let Some(number) = self.writer.insert(&desc) else {
                self.refuse(entry.original, entry.id);
                continue;
            };
            let carried = Carried {
                tuple: entry.original,
                keys: [original, reply],
                timeout_s,
                // Soon: the kernel may wait for an acknowledgement that is carried, and has shortened it.
                renewed_ns: 0,
                has_events: *has_events && !sets_entries,
                is_shortened: false,
                is_timeout_fresh: *has_events && !self.has_asked,
                id: entry.id,
            };
            let at = number as usize;
            if self.carried.len() <= at {
                self.carried.resize(at + 1, None);
            }
            if let Some(slot) = self.carried.get_mut(at) {
                *slot = Some(carried);
            }
            self.without_events += usize::from(!*has_events || sets_entries);
            let inserted = self.gate.insert(&[(original, number), (reply, number)])?;
            if inserted < 2 {
                self.refuse(entry.original, entry.id);
                self.drop_flow(&entry.original)?;
            }
        }
        Ok(())
    }

    /// Leaves a flow to the kernel.
    fn drop_flow(&mut self, tuple: &Tuple) -> io::Result<()> {
        let Some(number) = self.writer.remove(&flow_key(tuple)) else { return Ok(()) };
        let carried = self.carried.get_mut(number as usize).and_then(Option::take);
        let Some(carried) = carried else { return Ok(()) };
        self.without_events -= usize::from(!carried.has_events);
        self.gate.remove(&carried.keys).map(drop)
    }

    /// Leaves flows to the kernel that workers have closed, also in the XDP program, and shortens the time-outs of
    /// those that may be closed.
    fn look_at_noted(&mut self) -> io::Result<()> {
        let table = Arc::clone(self.writer.table());
        let (now_ns, mut shortened) = (monotonic_ns(), Vec::new());
        for number in table.take_noted() {
            let Some(Some(carried)) = self.carried.get_mut(number as usize) else { continue };
            let Carried { tuple, id, .. } = *carried;
            // Another flow may have the number by now.
            if table.is_closing(number) {
                self.refuse(tuple, id);
                self.drop_flow(&tuple)?;
            } else if table.take_reset(number)
                && (carried.is_timeout_fresh || !self.shared.sets_entries.load(Relaxed))
            {
                // As `nf_conntrack_tcp_packet`: until the next packet.
                carried.is_shortened = true;
                carried.renewed_ns = now_ns;
                self.writer.set_expires_ns(number, now_ns + u64::from(CLOSE_TIMEOUT_S) * NS_PER_S);
                shortened.push(liberal(tuple, Some(CLOSE_TIMEOUT_S)));
            }
        }
        // One that is gone needs none.
        let _ = conntrack::update(&mut self.requests, &shortened);
        Ok(())
    }

    /// Remembers that a connection stays with the kernel.
    fn refuse(&mut self, tuple: Tuple, id: Option<u32>) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        self.refused.insert(tuple, id);
    }

    /// Renews the time-outs of entries whose packets were carried, and verifies that they exist: of some of
    /// them at a time, because each change makes the kernel send an event to this thread.
    fn maintain(&mut self, now_ns: u64) -> io::Result<()> {
        if self.cursor == 0 {
            self.sysctls = Sysctls::read()?;
        }
        let has_own_timeouts = self.shared.sets_entries.load(Relaxed);
        let table = Arc::clone(self.writer.table());
        let mut changes = Vec::new();
        let mut at = self.cursor;
        let end = at + SCAN;
        while changes.len() < BATCH
            && at < end
            && let Some(slot) = self.carried.get_mut(at)
        {
            let number = at as u32;
            at += 1;
            let Some(carried) = slot else { continue };
            let timeout_s = match carried.tuple.protocol {
                // What the kernel had set when the connection was established.
                _ if has_own_timeouts && carried.is_timeout_fresh => carried.timeout_s,
                // Not known: it is left to the kernel when it expires.
                _ if has_own_timeouts => continue,
                IPPROTO_TCP => self.sysctls.tcp_timeout_established_s,
                _ => self.sysctls.udp_timeout_stream_s,
            };
            let interval_ns = match carried.has_events && !carried.is_shortened {
                true => (u64::from(timeout_s) * NS_PER_S / 8).min(RENEWAL_MAX_NS),
                false => 0,
            };
            let seen_ns = table.last_seen_ns(number);
            let is_due = seen_ns > carried.renewed_ns
                && now_ns >= carried.renewed_ns.saturating_add(interval_ns);
            if !is_due || table.is_closing(number) {
                continue;
            }
            carried.renewed_ns = now_ns;
            carried.is_shortened = false;
            // Counted from the last packet, as the kernel does.
            let idle_s = (now_ns.saturating_sub(seen_ns) / NS_PER_S) as u32;
            let timeout_s = timeout_s.saturating_sub(idle_s);
            // The kernel does not see the later acknowledgements, and would take a RST for invalid after 2 GiB.
            // Until workers know one of each direction, it knows the highest, and judges RSTs by it.
            let forgets_max_ack = table.knows_acks(number);
            let change = Change { forgets_max_ack, ..liberal(carried.tuple, Some(timeout_s)) };
            changes.push((number, now_ns + u64::from(timeout_s) * NS_PER_S, change));
        }
        self.cursor = if at < self.carried.len() { at } else { 0 };
        let requests: Vec<Change> = changes.iter().map(|(.., change)| *change).collect();
        let results = conntrack::update(&mut self.requests, &requests);
        let mut closed = Vec::new();
        for ((number, expires_ns, change), result) in changes.into_iter().zip(results) {
            if result.is_err() {
                self.drop_flow(&change.tuple)?;
            } else if table.is_closing(number) {
                // The kernel may have set a shorter time-out before.
                closed.push(Change { timeout_s: Some(CLOSING_TIMEOUT_S), ..change });
            } else {
                self.writer.set_expires_ns(number, expires_ns);
            }
        }
        // One that is gone needs none.
        let _ = conntrack::update(&mut self.requests, &closed);
        Ok(())
    }
}

/// Whether a flow is that of an entry: another one may have the same tuples, or the same reversed.
fn is_of(carried: &[Option<Carried>], writer: &FlowWriter, number: u32, entry: &Entry) -> bool {
    let carried = carried.get(number as usize).copied().flatten();
    // Ids may be used again, and NAT may translate the next connection differently.
    let is_translated_so =
        writer.get(number).is_some_and(|desc| desc.keys[1] == flow_key(&entry.reply));
    let is_it = |it: Carried| it.tuple == entry.original && it.id == entry.id;
    is_translated_so && carried.is_some_and(is_it)
}
