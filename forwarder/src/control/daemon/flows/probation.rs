//! Connections that never become assured: which of them are carried.
//!
//! The kernel makes an entry of ICMP echo, or of a tunnel without ports, for each exchange of two packets, and sends an
//! event when it has been replied to and another one when it is removed. Therefore
//!
//! - an entry is carried if packets of it are still seen some seconds after its first reply, or after it was read;
//! - while there are many such events, they are left out where the kernel sends them, and all these connections stay with
//!   the kernel: of echo, which anybody may send, or also of tunnels, if they have as many themselves.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use tracing::info;

use super::carry::Candidate;
use super::maintain;
use super::{BATCH, Follower, NS_PER_S, unchanged};
use crate::control::conntrack::{self, Entry, Tuple, Unassured};
use crate::control::daemon::flow_entry::{
    Locals, flow_key, is_carriable, is_local, is_never_assured,
};
use crate::wire::Protocol;
use crate::worker::clock::monotonic_ns;

/// How long an entry is on probation.
const PROBATION_NS: u64 = 4_000_000_000;
/// It has to be idle for less than about so many of these seconds then (times are rounded to seconds).
const LATER_S: u32 = 3;
/// Maximum number of entries on probation. Others have to wait until the table is read again.
const ENTRIES_MAX: usize = 16_384;
/// Events of such entries in one second, of echo or of tunnels, above which they are left out. Each costs some
/// microseconds.
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

impl Probed {
    /// Whether packets of it are still seen if `left_s` are left to it now. `timeout_s`: what a packet gives it if none
    /// had just been seen, and if that is known.
    fn is_used(&self, left_s: u32, timeout_s: Option<u32>) -> bool {
        let timeout_s = timeout_s.filter(|_| !self.is_fresh).unwrap_or(self.left_s);
        left_s.saturating_add(LATER_S) > timeout_s
    }
}

/// The entries on probation.
#[derive(Debug, Default)]
pub(super) struct Probation {
    entries: VecDeque<Probed>,
    /// Events in this second, of echo and of tunnels.
    echo_events: u32,
    tunnel_events: u32,
    /// Those of which events are received.
    received: Unassured,
    /// The others are left out until then, CLOCK_MONOTONIC.
    resumes_ns: u64,
}

impl Probation {
    /// Whether the probation of an entry has ended.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.entries.front().is_some_and(|probed| probed.due_ns <= now_ns)
    }

    /// Whether events of entries of a protocol are left out.
    fn is_suspended(&self, protocol: u8) -> bool {
        self.received < needed(protocol)
    }

    /// Counts an event of an entry. If there are too many: those of which events are received from now on.
    fn count(&mut self, protocol: u8) -> Option<Unassured> {
        if !is_never_assured(protocol) || self.is_suspended(protocol) {
            return None;
        }
        let (events, received) = match needed(protocol) {
            Unassured::All => (&mut self.echo_events, Unassured::Tunnels),
            _ => (&mut self.tunnel_events, Unassured::Ipsec),
        };
        *events += 1;
        (*events > EVENTS_MAX).then_some(received)
    }

    /// Ends all of them.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Of which entries events have to be received to carry those of a protocol. ESP and AH that pass the router are tunnels
/// among others, though their events are always received.
fn needed(protocol: u8) -> Unassured {
    match Protocol(protocol) {
        Protocol::ICMP | Protocol::ICMPV6 => Unassured::All,
        _ => Unassured::Tunnels,
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
        let is_suspended = self.probation.is_suspended(entry.original.protocol);
        let entries = &mut self.probation.entries;
        if !is_suspended && entries.len() < ENTRIES_MAX {
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
            // The ruleset may set others.
            let is_known = !self.shared.sets_entries.load(Relaxed);
            let key = flow_key(&probed.tuple);
            let timeout_s = is_known.then(|| maintain::timeout_s(&self.sysctls, &key, None));
            let is_used = probed.is_used(entry.timeout_s.unwrap_or(0), timeout_s);
            if is_used && is_carriable(&entry, &scope) && !self.is_refused(&entry) {
                let timeout_s = probed.is_fresh.then_some(probed.left_s);
                candidates.push(Candidate { entry, has_events: Some(has_events), timeout_s });
            }
        }
        self.carry(&candidates);
    }

    /// An event of an entry was received.
    pub(super) fn count_event(&mut self, entry: &Entry) {
        if let Some(received) = self.probation.count(entry.original.protocol) {
            self.suspend_probation(received);
        }
    }

    /// Leaves connections to the kernel of which no events are received from now on: nothing tells when their entries are
    /// removed.
    fn suspend_probation(&mut self, received: Unassured) {
        // If they cannot be left out, there are only more events.
        let _more_events = self.events.leave_out(self.own_numbers, received);
        self.probation.received = received;
        self.probation.resumes_ns = monotonic_ns() + REST_NS;
        let locals = self.shared.locals.load_full();
        let probation = &mut self.probation;
        let is_left = |received: Unassured, protocol| {
            is_never_assured(protocol) && received < needed(protocol)
        };
        probation.entries.retain(|probed| !is_left(received, probed.tuple.protocol));
        let numbers = (0..self.carried.len() as u32).filter(|number| {
            let desc = self.writer.get(*number);
            desc.is_some_and(|desc| {
                let [original, reply] = desc.keys.each_ref().map(Tuple::of_key);
                is_left(received, original.protocol) && is_on_probation(&original, &reply, &locals)
            })
        });
        let numbers: Vec<u32> = numbers.collect();
        let count = numbers.len();
        numbers.into_iter().for_each(|number| self.drop_number(number));
        self.refused.retain(|tuple, _| !is_left(received, tuple.protocol));
        self.retried.retain(|tuple| !is_left(received, tuple.protocol));
        let what = name(received);
        info!(
            "connections of {what} have more than {EVENTS_MAX} events per second: they are left to \
             the kernel for {} seconds ({count} were carried)",
            REST_NS / NS_PER_S
        );
    }

    /// A second has passed.
    pub(super) fn maintain_probation(&mut self, now_ns: u64) {
        (self.probation.echo_events, self.probation.tunnel_events) = (0, 0);
        let Probation { received, resumes_ns, .. } = self.probation;
        if received == Unassured::All || now_ns < resumes_ns {
            return;
        }
        let what = name(received);
        match self.events.leave_out(self.own_numbers, Unassured::All) {
            Ok(()) => {
                self.probation.received = Unassured::All;
                // Those that are in use are found by reading the table.
                self.has_left_out = true;
                info!("connections of {what} are carried again");
            }
            Err(error) => {
                // Their events are still missing.
                self.probation.resumes_ns = now_ns + REST_NS;
                info!("connections of {what} are still left to the kernel: {error}");
            }
        }
    }
}

/// What is left to the kernel.
fn name(received: Unassured) -> &'static str {
    match received {
        Unassured::Ipsec => "echo and tunnels",
        _ => "echo",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ICMP: u8 = Protocol::ICMP.0;
    const ESP: u8 = Protocol::ESP.0;

    /// What follows from one event more than may be.
    fn flood(probation: &mut Probation, protocol: u8) -> Option<Unassured> {
        for n in 0..EVENTS_MAX {
            assert_eq!(probation.count(protocol), None, "{n}");
        }
        probation.count(protocol)
    }

    #[test]
    fn a_flood_of_echo_leaves_tunnels_carried() {
        let mut probation = Probation::default();
        assert_eq!(flood(&mut probation, ICMP), Some(Unassured::Tunnels));
        probation.received = Unassured::Tunnels;
        for (protocol, expected) in
            [(ICMP, true), (Protocol::ICMPV6.0, true), (4, false), (41, false), (ESP, false)]
        {
            assert_eq!(probation.is_suspended(protocol), expected, "{protocol}");
        }
        // What is still in the receive buffer does not count, and those of tunnels count by themselves.
        assert_eq!(probation.count(ICMP), None);
        assert_eq!(flood(&mut probation, ESP), Some(Unassured::Ipsec));
        probation.received = Unassured::Ipsec;
        assert!([ICMP, 4, 41, ESP].iter().all(|protocol| probation.is_suspended(*protocol)));
        assert_eq!(probation.count(ESP), None);
    }

    #[test]
    fn a_flood_of_tunnels_leaves_all_to_the_kernel() {
        let mut probation = Probation::default();
        for n in 0..EVENTS_MAX / 2 {
            let counted = [41, ICMP, ESP].map(|protocol| probation.count(protocol));
            assert_eq!(counted, [None; 3], "{n}");
            // Those that are assured are not left out.
            assert_eq!([6, 17, 47].map(|protocol| probation.count(protocol)), [None; 3]);
        }
        assert_eq!(probation.count(ICMP), None);
        assert_eq!(probation.count(4), Some(Unassured::Ipsec));
    }

    #[test]
    fn an_entry_is_used_if_a_packet_came_less_than_3_seconds_ago() {
        let locals = std::net::Ipv4Addr::LOCALHOST.into();
        let key = crate::netfilter::conntrack::FlowKey::new(locals, locals, ESP, 0, 0);
        let probed =
            |left_s, is_fresh| Probed { due_ns: 0, tuple: Tuple::of_key(&key), left_s, is_fresh };
        // An event was sent at a packet.
        assert!(probed(30, true).is_used(28, Some(600)));
        assert!(!probed(30, true).is_used(27, Some(600)));
        // One that was read had been idle for 20 seconds; the last packet came then, or is as old.
        assert!(probed(10, false).is_used(28, Some(30)));
        assert!(!probed(10, false).is_used(27, Some(30)));
        assert!(!probed(10, false).is_used(8, Some(30)));
        // The time-out is not known.
        assert!(probed(10, false).is_used(8, None));
        assert!(!probed(10, false).is_used(6, None));
    }
}
