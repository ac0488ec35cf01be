//! Connections that never become assured: which of them are carried.
//!
//! The kernel makes an entry of ICMP echo, or of a tunnel without ports, for each exchange of two packets, and sends an
//! event when it has been replied to and another one when it is removed. Therefore
//!
//! - an entry is carried if packets of it are still seen some seconds after its first reply, or after it was read;
//! - while there are many such events, they are left out where the kernel sends them, and all these connections stay with
//!   the kernel.

use std::collections::VecDeque;

use super::carry::Candidate;
use super::{BATCH, Follower, unchanged};
use crate::control::conntrack::{self, Entry, Tuple, Unassured};
use crate::control::daemon::flow_entry::{
    Locals, flow_key, is_carriable, is_local, is_never_assured,
};
use crate::worker::clock::monotonic_ns;

/// How long an entry is on probation.
const PROBATION_NS: u64 = 4_000_000_000;
/// How much later it must expire then than if there had been no packet, less what rounding to seconds takes: it has to be
/// idle for less than about 3 of the 4 seconds.
const LATER_S: u32 = 3;
/// Maximum number of entries on probation. Others have to wait until the table is read again.
const ENTRIES_MAX: usize = 16_384;
/// Events of such entries in one second, each of which costs some microseconds, above which they are left out.
const EVENTS_MAX: u32 = 2_000;
/// How long they are left out.
const REST_NS: u64 = 60_000_000_000;

/// An entry on probation.
#[derive(Debug, Clone, Copy)]
struct Probed {
    /// Until when, CLOCK_MONOTONIC.
    due_ns: u64,
    tuple: Tuple,
    /// The seconds that were left to it at the beginning.
    left_s: u32,
    /// A packet had just been seen.
    is_fresh: bool,
}

/// The entries on probation.
#[derive(Debug, Default)]
pub(super) struct Probation {
    entries: VecDeque<Probed>,
    /// Events in this second.
    events: u32,
    /// Events are left out until then, CLOCK_MONOTONIC.
    resumes_ns: Option<u64>,
}

impl Probation {
    /// Whether the probation of an entry has ended.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.entries.front().is_some_and(|probed| probed.due_ns <= now_ns)
    }

    /// Ends all of them.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Whether an entry is carried only after its probation: those of IPsec to the router, which are few, are not on it.
fn is_on_probation(tuple: &Tuple, reply: &Tuple, locals: &Locals) -> bool {
    is_never_assured(tuple.protocol) && !is_local(tuple, reply, locals)
}

impl Follower<'_> {
    /// Whether an entry, which can be carried, is only after its probation, which begins now unless there is none.
    /// `is_fresh`: a packet has just been seen.
    pub(super) fn begin_probation(&mut self, entry: &Entry, is_fresh: bool) -> bool {
        let locals = self.shared.locals.load();
        if !is_on_probation(&entry.original, &entry.reply, &locals) {
            return false;
        }
        drop(locals);
        let Probation { entries, resumes_ns, .. } = &mut self.probation;
        if resumes_ns.is_none() && entries.len() < ENTRIES_MAX {
            let due_ns = monotonic_ns() + PROBATION_NS;
            let left_s = entry.timeout_s.unwrap_or(0);
            entries.push_back(Probed { due_ns, tuple: entry.original, left_s, is_fresh });
        }
        true
    }

    /// Carries those of which packets are still seen.
    pub(super) fn end_probation(&mut self) {
        let now_ns = monotonic_ns();
        let mut ended = Vec::new();
        while ended.len() < BATCH && self.probation.is_due(now_ns) {
            ended.extend(self.probation.entries.pop_front());
        }
        // One may have been on it twice.
        ended.retain(|it| self.writer.number(&flow_key(&it.tuple)).is_none());
        if ended.is_empty() {
            return;
        }
        let changes: Vec<_> = ended.iter().map(|it| unchanged(it.tuple)).collect();
        let results = conntrack::update_and_read(&mut self.requests, &changes);
        let scope = self.scope();
        let mut candidates = Vec::new();
        for (probed, result) in ended.into_iter().zip(results) {
            let (entry, has_events) = match result {
                Ok(Some(entry)) => (entry, true),
                Ok(None) if self.may_lack_events() => {
                    match conntrack::read(&mut self.requests, &probed.tuple) {
                        Ok(Some(entry)) => (entry, false),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            let left_s = entry.timeout_s.unwrap_or(0);
            let is_used = left_s.saturating_add(LATER_S) > probed.left_s;
            if is_used && is_carriable(&entry, &scope) && !self.is_refused(&entry) {
                let timeout_s = probed.is_fresh.then_some(probed.left_s);
                candidates.push(Candidate { entry, has_events: Some(has_events), timeout_s });
            }
        }
        self.carry(&candidates);
    }

    /// An event of an entry was received.
    pub(super) fn count_event(&mut self, entry: &Entry) {
        if !is_never_assured(entry.original.protocol) || self.probation.resumes_ns.is_some() {
            return;
        }
        self.probation.events += 1;
        if self.probation.events > EVENTS_MAX {
            self.suspend_probation();
        }
    }

    /// Leaves such connections to the kernel: nothing tells when their entries are removed.
    fn suspend_probation(&mut self) {
        let _more_events = self.events.leave_out(self.own_numbers, Unassured::Ipsec);
        self.probation.clear();
        self.probation.resumes_ns = Some(monotonic_ns() + REST_NS);
        let locals = self.shared.locals.load_full();
        let numbers = (0..self.carried.len() as u32).filter(|number| {
            let desc = self.writer.get(*number);
            desc.is_some_and(|desc| {
                let [original, reply] = desc.keys.each_ref().map(Tuple::of_key);
                is_on_probation(&original, &reply, &locals)
            })
        });
        let numbers: Vec<u32> = numbers.collect();
        numbers.into_iter().for_each(|number| self.drop_number(number));
        self.refused.retain(|tuple, _| !is_never_assured(tuple.protocol));
        self.retried.retain(|tuple| !is_never_assured(tuple.protocol));
    }

    /// A second has passed.
    pub(super) fn maintain_probation(&mut self, now_ns: u64) {
        self.probation.events = 0;
        if self.probation.resumes_ns.is_some_and(|resumes_ns| resumes_ns <= now_ns) {
            self.probation.resumes_ns = None;
            let _more_events = self.events.leave_out(self.own_numbers, Unassured::All);
            // Those that are in use are found by reading the table.
            self.has_left_out = true;
        }
    }
}
