//! The kernel's table is read: after a start, after events were lost, once per second while there are entries that have
//! no events, and when connections were left out. It is read in parts, between which events are followed.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::carry::Candidate;
use super::{Follower, is_of};
use crate::control::conntrack::{self, Entry, Received};
use crate::control::daemon::flow_entry::{Scope, flow_key, is_carriable};
use crate::control::netlink::query::{DumpEnd, NlSock};

/// After the ruleset changed, connections are not tried again before this.
const RULESET_REST: Duration = Duration::from_secs(10);
/// The next trial because of a change waits for this multiple of the time that the last one took.
const REST: u32 = 50;
/// How long reading the kernel's table may take to be done every second.
pub(super) const READING_MAX: Duration = Duration::from_millis(200);
/// How often the table is read though nothing is known to be missing, and with how many entries that have no events it
/// is not: each has to be tried again.
const READING_INTERVAL: Duration = Duration::from_secs(60);
const WITHOUT_EVENTS_LEFT_MAX: usize = 10_000;
/// How long parts are compared until events are looked for.
const PART: Duration = Duration::from_millis(2);
/// Parts that were read and not compared yet.
const PARTS_MAX: usize = 8;
/// Entries in a datagram of the kernel, about.
const DATAGRAM: usize = 160;

/// A reading of the kernel's table: a thread of its own reads, and this one compares and carries.
#[derive(Debug)]
pub(super) struct Reading {
    parts: Receiver<Part>,
    /// Whether connections that can be carried are.
    is_to_carry: bool,
    /// By number, 64 in each word: flows that were read, or that an event was about, or that were entered since it
    /// began.
    seen: Vec<u64>,
}

/// What the thread has read.
#[derive(Debug)]
enum Part {
    /// Entries that can be carried.
    Entries(Vec<Entry>),
    /// That was all.
    End(io::Result<End>),
}

#[derive(Debug, Clone, Copy)]
struct End {
    /// No message is missing.
    is_whole: bool,
    /// How long the kernel took.
    took: Duration,
}

/// Reads the table until its end, or until nobody receives it.
fn read(parts: &Sender<Part>, scope: &Scope) {
    let end = read_all(parts, scope);
    let _not_received = parts.send(Part::End(end));
}

fn read_all(parts: &Sender<Part>, scope: &Scope) -> io::Result<End> {
    let mut socket = NlSock::open(NETLINK_NETFILTER)?;
    conntrack::begin_dump(&mut socket)?;
    let mut end = End { is_whole: true, took: Duration::ZERO };
    loop {
        let (begun, mut entries) = (Instant::now(), Vec::with_capacity(DATAGRAM));
        let (part, is_last) = conntrack::dump_part(&mut socket, |entry| {
            if is_carriable(&entry, scope) {
                entries.push(entry);
            }
        })?;
        end.is_whole &= part.skipped == 0 && part.end == DumpEnd::Complete;
        end.took += begun.elapsed();
        if parts.send(Part::Entries(entries)).is_err() || is_last {
            return Ok(end);
        }
    }
}

impl Reading {
    fn begin(is_to_carry: bool, scope: Scope) -> io::Result<Reading> {
        let (sender, parts) = bounded(PARTS_MAX);
        let thread = thread::Builder::new().name("fr-ct-read".into());
        thread.spawn(move || read(&sender, &scope))?;
        Ok(Reading { parts, is_to_carry, seen: Vec::new() })
    }

    /// What is known of a flow is not older than what is read of it.
    pub(super) fn saw(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.seen.len() <= at {
            self.seen.resize(at + 1, 0);
        }
        if let Some(word) = self.seen.get_mut(at) {
            *word |= 1 << (number % 64);
        }
    }

    fn has_seen(&self, number: u32) -> bool {
        let word = self.seen.get(number as usize / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }
}

impl Follower<'_> {
    /// Has the whole table read after events were lost. Until it has been, carried flows are not known to agree with
    /// the kernel's table.
    pub(super) fn resynchronise(&mut self) -> io::Result<()> {
        self.waiting.clear();
        self.due.clear();
        self.probation.clear();
        self.is_uncertain = !self.writer.is_empty();
        // Older than what is read.
        while self.events.receive(Duration::ZERO, |_| ())? != Received::Drained {
            if self.shared.stopping.load(Relaxed) {
                return Ok(());
            }
        }
        self.refused.clear();
        self.retried.clear();
        self.begin_reading()?;
        // Connections that were being opened have no events either: the table is read once more.
        self.has_left_out = true;
        Ok(())
    }

    /// Has the whole table read for connections that can be carried now.
    pub(super) fn begin_reading(&mut self) -> io::Result<()> {
        self.reading = Some(Reading::begin(true, self.scope())?);
        self.has_left_out = false;
        self.read_at = Instant::now();
        Ok(())
    }

    /// Compares some more of the table.
    pub(super) fn read_on(&mut self) -> io::Result<()> {
        let end = Instant::now() + PART;
        while let Some(reading) = &self.reading {
            match reading.parts.recv_deadline(end) {
                Ok(Part::Entries(entries)) => self.compare(entries),
                Ok(Part::End(end)) => self.end_reading(end?),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the thread that reads the table has ended"));
                }
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Carries the connections of entries that were read, unless they are.
    fn compare(&mut self, mut entries: Vec<Entry>) {
        let Some(mut reading) = self.reading.take() else { return };
        entries.retain(|entry| match self.writer.number(&flow_key(&entry.original)) {
            Some(number) if is_of(&self.carried, self.writer, number, entry) => {
                if !reading.has_seen(number) {
                    self.set(number, entry.status, entry.mark);
                    reading.saw(number);
                }
                false
            }
            // Another connection with these tuples; the flow is dropped.
            Some(_) => false,
            None => {
                let is_known = self.waiting.contains_key(&entry.original);
                reading.is_to_carry && !is_known && !self.is_refused(entry)
            }
        });
        self.reading = Some(reading);
        entries.retain(|entry| !self.begin_probation(entry, false));
        let candidates: Vec<Candidate> = entries.into_iter().map(Candidate::read).collect();
        self.carry(&candidates);
    }

    /// Drops the flows that the kernel's table no longer has, or not in a state in which they can be carried.
    fn end_reading(&mut self, end: End) {
        let Some(reading) = self.reading.take() else { return };
        let has_lost_events = std::mem::take(&mut self.is_uncertain);
        self.reading_took = end.took;
        for number in 0..self.carried.len() as u32 {
            let Some(Some(carried)) = self.carried.get(number as usize) else { continue };
            // If messages are missing, events tell of those that have them.
            let is_doubtful = end.is_whole || has_lost_events || !carried.has_events;
            if is_doubtful && !reading.has_seen(number) {
                self.drop_number(number);
            }
        }
    }

    /// Verifies flows of which the kernel sends no events, and, after the ruleset changed, has connections carried that
    /// its rules had left to the kernel.
    pub(super) fn verify(&mut self) -> io::Result<()> {
        if self.reading.is_some() || !self.retried.is_empty() {
            return Ok(());
        }
        if self.reading_took > READING_MAX && self.without_events > 0 {
            // The table is too large to be read every second.
            for number in 0..self.carried.len() as u32 {
                let carried = self.carried.get(number as usize).copied().flatten();
                if carried.is_some_and(|carried| !carried.has_events) {
                    self.drop_number(number);
                }
            }
            self.has_left_out = true;
        }
        let rest = |took: Duration| RULESET_REST.max(took * REST);
        let change = self.shared.ruleset_changes.load(Relaxed);
        if change != self.ruleset_change && self.retried_at.elapsed() >= rest(self.retrying_took) {
            (self.ruleset_change, self.retried_at) = (change, Instant::now());
            // The kernel does not tell what they are.
            self.has_left_out |= self.refused.values().any(|refused| !refused.has_events);
            self.reads_again = self.shared.has_flowtables.load(Relaxed);
            self.has_left_out |= self.reads_again;
            self.begin_retry();
        }
        self.has_left_out |= self.shared.has_new_locals.swap(false, Relaxed);
        // Of entries that other programs add there are no events.
        let is_old = self.read_at.elapsed() >= READING_INTERVAL
            && self.without_events_left < WITHOUT_EVENTS_LEFT_MAX;
        let is_wanted = (self.has_left_out || is_old) && self.writer.room() > 0;
        let is_to_carry = is_wanted && self.read_at.elapsed() >= rest(self.reading_took);
        if is_to_carry {
            self.has_left_out = std::mem::take(&mut self.reads_again);
            self.without_events_left = 0;
            self.read_at = Instant::now();
        }
        if is_to_carry || self.without_events > 0 {
            self.reading = Some(Reading::begin(is_to_carry, self.scope())?);
        }
        Ok(())
    }
}
