//! How connections become carried flows: those that are established, and those that workers had left to the kernel
//! under another ruleset.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::reading::READING_MAX;
use super::{BATCH, Carried, Follower, NS_PER_S, Refused, gate_key, is_of, liberal, unchanged};
use crate::control::conntrack::{self, Change, Entry, IP_CT_TCP_FLAG_BE_LIBERAL, TcpInfo, Tuple};
use crate::control::daemon::flow_entry::{
    IPPROTO_TCP, flow_key, is_carriable, is_local, is_masqueraded,
};
use crate::control::netlink::query::NlSock;
use crate::netfilter::conntrack::{FlowDesc, FlowTable, TupleKind};
use crate::worker::clock::monotonic_ns;

/// Maximum number of flows of whose entries the kernel sends no events, and of connections while there are such flows:
/// they are verified by reading the table once per second.
const FLOWS_WITHOUT_EVENTS_MAX: usize = 50_000;

/// A connection that can be carried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) entry: Entry,
    /// Whether the kernel sends events of the entry; `None`: not known.
    pub(super) has_events: Option<bool>,
    /// The time-out that a packet gives it, if that is known; the entry has what was left.
    pub(super) timeout_s: Option<u32>,
}

impl Candidate {
    /// Of an entry from an event.
    pub(super) fn of_event(entry: Entry) -> Candidate {
        Candidate { entry, has_events: Some(true), timeout_s: entry.timeout_s }
    }

    /// Of an entry that was read.
    pub(super) fn read(entry: Entry) -> Candidate {
        Candidate { entry, has_events: None, timeout_s: None }
    }
}

/// An entry that was made ready to be carried.
#[derive(Debug)]
pub(super) struct Readied {
    /// As it was read before.
    pub(super) was: Entry,
    /// As it is; `None`: the kernel sends no events of it, and it may not be carried or is gone. An error: it was not
    /// changed.
    pub(super) now: io::Result<Option<Entry>>,
    /// Whether the kernel sends events of it.
    pub(super) has_events: bool,
}

/// Makes entries what they were before they were made ready, unless they are carried in `table`.
pub(super) fn undo<'e>(
    socket: &mut NlSock,
    table: &FlowTable,
    entries: impl IntoIterator<Item = &'e Entry>,
) {
    let is_carried = |entry: &&Entry| table.find(&flow_key(&entry.original)).is_some();
    let undone = entries.into_iter().filter(|entry| !is_carried(entry));
    let changes: Vec<Change> = undone.filter_map(unless_liberal).collect();
    // One that is gone needs none.
    let _ = conntrack::update(socket, &changes);
}

/// Makes entries ready. `may_lack_events`: those of which the kernel sends no events may be carried.
pub(super) fn make_ready(
    socket: &mut NlSock,
    entries: Vec<Entry>,
    may_lack_events: bool,
) -> Vec<Readied> {
    let changes: Vec<Change> = entries.iter().map(|entry| liberal(entry.original, None)).collect();
    let results = conntrack::update_and_read(socket, &changes);
    let readied = entries.into_iter().zip(results).map(|(was, now)| {
        let has_events = matches!(now, Ok(Some(_)));
        let now = match now {
            // What was read of it may be old, and another connection may have its tuple.
            Ok(None) if may_lack_events => {
                let read = conntrack::read(socket, &was.original).ok().flatten();
                Ok(read.filter(|now| now.id == was.id))
            }
            now => now,
        };
        Readied { was, now, has_events }
    });
    readied.collect()
}

impl Follower<'_> {
    /// Carries the connections that have been established long enough.
    pub(super) fn carry_due(&mut self) {
        let now_ns = monotonic_ns();
        let mut candidates = Vec::new();
        while candidates.len() < BATCH
            && let Some((due_ns, tuple)) = self.due.front()
            && *due_ns <= now_ns
        {
            let entry = self.waiting.remove(tuple);
            candidates.extend(entry.map(Candidate::of_event));
            self.due.pop_front();
        }
        self.carry(&candidates);
    }

    /// Makes entries ready, and has the workers carry their packets.
    pub(super) fn carry(&mut self, candidates: &[Candidate]) {
        let candidates = candidates.get(..self.limit(candidates.len(), 0)).unwrap_or(&[]);
        self.expect_more(candidates.len());
        let (known, unknown): (Vec<Candidate>, Vec<Candidate>) =
            candidates.iter().partition(|candidate| candidate.has_events.is_some());
        let change = |it: &Candidate| liberal(it.entry.original, None);
        let (tcp, others): (Vec<Candidate>, Vec<Candidate>) =
            known.iter().partition(|candidate| candidate.entry.original.protocol == IPPROTO_TCP);
        // Nothing has to be changed; events tell if they have gone meanwhile.
        for candidate in others {
            self.enter(&candidate.entry, candidate.has_events == Some(true), candidate.timeout_s);
        }
        let changes: Vec<Change> = tcp.iter().map(change).collect();
        let results = conntrack::update(&mut self.requests, &changes);
        for (candidate, result) in tcp.iter().zip(results) {
            // One that is gone, or that the kernel does not let change, is not carried.
            if result.is_ok() {
                self.enter(&candidate.entry, true, candidate.timeout_s);
            }
        }
        let tcp: Vec<Entry> = tcp.iter().map(|candidate| candidate.entry).collect();
        self.undo(&tcp);
        let unknown: Vec<Entry> = unknown.iter().map(|it| it.entry).collect();
        if !unknown.is_empty() {
            let may_lack_events = self.may_lack_events();
            let readied = make_ready(&mut self.requests, unknown, may_lack_events);
            self.enter_readied(readied);
        }
    }

    /// How many of `count` connections can be carried, if as many others are being made ready.
    pub(super) fn limit(&mut self, count: usize, readying: usize) -> usize {
        // Events that the ruleset may restrict are as good as none.
        let has_restricted_events = self.shared.sets_entries.load(Relaxed);
        if count == 0 || has_restricted_events && !self.may_lack_events() {
            return 0;
        }
        // Only what is carried is made liberal.
        let room = self.writer.room().saturating_sub(readying);
        self.has_left_out |= room < count;
        room.min(count)
    }

    /// Before packets of more flows are steered.
    fn expect_more(&self, flows: usize) {
        if flows > 0 {
            self.shared.carried.store((self.writer.len() + flows) as u64, Relaxed);
        }
    }

    /// Has the workers carry packets of entries of which it was not known whether they have events.
    pub(super) fn enter_readied(&mut self, readied: Vec<Readied>) {
        self.expect_more(readied.len());
        let scope = self.scope();
        // Each flow has places in two tables, which are in no cache.
        for entry in readied.iter().filter_map(|it| it.now.as_ref().ok()?.as_ref()) {
            for key in [&entry.original, &entry.reply].map(flow_key) {
                self.writer.table().prefetch(&key);
                self.gate.prefetch(&gate_key(key));
            }
        }
        let mut undone = Vec::new();
        for Readied { was, now, has_events } in readied {
            let Ok(now) = now else { continue };
            // Workers may have left it to the kernel since it was read.
            if self.is_refused(now.as_ref().unwrap_or(&was)) {
                continue;
            }
            let may_be_carried = has_events || self.may_lack_events();
            match now {
                Some(entry) if may_be_carried && is_carriable(&entry, &scope) => {
                    self.enter(&entry, has_events, None);
                }
                _ => self.without_events_left += usize::from(!has_events),
            }
            // If there was no room, for example.
            undone.push(was);
        }
        self.undo(&undone);
    }

    /// Makes entries what they were before they were made ready, unless they are carried.
    pub(super) fn undo(&mut self, entries: &[Entry]) {
        undo(&mut self.requests, self.writer.table(), entries);
    }

    /// Whether a flow can be carried of whose entry the kernel sends no events.
    pub(super) fn may_lack_events(&self) -> bool {
        self.sysctls.count as usize <= FLOWS_WITHOUT_EVENTS_MAX
            && self.without_events < FLOWS_WITHOUT_EVENTS_MAX
            && self.reading_took <= READING_MAX
    }

    /// Enters the flow of an entry that is ready. `fresh_s`: see [`Candidate::timeout_s`].
    fn enter(&mut self, entry: &Entry, has_events: bool, fresh_s: Option<u32>) {
        let has_events = has_events && !self.shared.sets_entries.load(Relaxed);
        let keys = [entry.original, entry.reply].each_ref().map(flow_key);
        let timeout_s = entry.timeout_s.unwrap_or(0);
        let expires_ns = monotonic_ns() + u64::from(timeout_s) * NS_PER_S;
        let (status, mark) = (entry.status, entry.mark);
        let locals = self.shared.locals.load();
        let is_masqueraded = is_masqueraded(entry, &locals);
        let is_gated = !is_local(&entry.original, &entry.reply, &locals);
        drop(locals);
        let desc = FlowDesc { keys, status, mark, expires_ns, is_masqueraded };
        let Some(number) = self.writer.insert(&desc) else {
            // The kernel may list an entry twice.
            let carried = self.writer.number(&keys[0]);
            if !carried.is_some_and(|number| is_of(&self.carried, self.writer, number, entry)) {
                self.refuse(entry.original, Refused { id: entry.id, has_events });
            }
            return;
        };
        let at = number as usize;
        if self.carried.len() <= at {
            self.carried.resize(at + 1, None);
        }
        if let Some(slot) = self.carried.get_mut(at) {
            *slot = Some(Carried {
                // Soon: the kernel may wait for an acknowledgement that is carried, and has shortened it.
                renewed_ns: 0,
                timeout_s: fresh_s.unwrap_or(timeout_s),
                id: entry.id,
                has_events,
                is_shortened: false,
                is_timeout_fresh: fresh_s.is_some(),
                is_gated,
            });
        }
        self.echoes += usize::from(keys[0].kind() == Some(TupleKind::Echo));
        if !is_gated {
            self.ungated.push(number);
        }
        self.without_events += usize::from(!has_events);
        if let Some(reading) = &mut self.reading {
            reading.saw(number);
        }
        if is_gated && !self.gate.insert(&keys.map(gate_key)) {
            self.refuse(entry.original, Refused { id: entry.id, has_events });
            // The gate has none of its keys.
            self.without_events -= usize::from(!has_events);
            self.echoes -= usize::from(keys[0].kind() == Some(TupleKind::Echo));
            self.writer.remove(&keys[0]);
            if let Some(slot) = self.carried.get_mut(at) {
                *slot = None;
            }
        }
    }

    /// Tries some of the connections again that workers had left to the kernel.
    pub(super) fn retry(&mut self) {
        if self.retried.is_empty() {
            return;
        }
        let begun = Instant::now();
        let rest = self.retried.len().saturating_sub(BATCH);
        let tuples: Vec<Tuple> = self.retried.drain(rest..).collect();
        let changes: Vec<Change> = tuples.into_iter().map(unchanged).collect();
        let results = conntrack::update_and_read(&mut self.requests, &changes);
        let scope = self.scope();
        let entries = results.into_iter().filter_map(|result| result.ok().flatten());
        let candidates: Vec<Candidate> = entries
            .filter(|entry| {
                is_carriable(entry, &scope) && !self.is_known(entry) && !self.is_refused(entry)
            })
            .map(Candidate::read)
            .collect();
        self.carry(&candidates);
        self.retrying_took += begun.elapsed();
    }

    /// Whether a connection is carried already, or will be.
    fn is_known(&self, entry: &Entry) -> bool {
        let is_carried = self.writer.number(&flow_key(&entry.original)).is_some();
        is_carried || self.waiting.contains_key(&entry.original)
    }

    /// Has connections tried again that workers had left to the kernel.
    pub(super) fn begin_retry(&mut self) {
        self.retrying_took = Duration::ZERO;
        self.retried = self.refused.drain().map(|(tuple, _)| tuple).collect();
    }
}

/// The change that makes an entry what it was before it was made ready; `None`: it was.
pub(super) fn unless_liberal(entry: &Entry) -> Option<Change> {
    let TcpInfo { flags_original, flags_reply, .. } = entry.tcp?;
    let was_liberal = flags_original & flags_reply & IP_CT_TCP_FLAG_BE_LIBERAL != 0;
    let change = Change { is_liberal: Some(false), ..liberal(entry.original, None) };
    (!was_liberal).then_some(change)
}
