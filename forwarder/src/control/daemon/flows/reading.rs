//! The kernel's table is read: after a start, after events were lost, once per second while there are entries that have
//! no events, and when connections were left out. It is read in parts, between which events are followed.
//!
//! Three threads share the work, so that the kernel lists entries on one CPU while it changes others on another one:
//! `fr-ct-read` reads, `fr-ct` selects what is to be carried, `fr-ct-ready` makes these entries ready, and `fr-ct` enters
//! them. Whether an event about an entry that is being made ready is older than what the kernel answers is not known:
//! such an entry is tried again.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Follower, is_of, liberal};
use crate::control::conntrack::{self, Change, Entry, Received, Tuple};
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
/// Parts whose entries are being made ready.
const READYING_MAX: usize = 8;

/// A reading of the kernel's table: a thread of its own reads, and this one compares and carries.
#[derive(Debug)]
pub(super) struct Reading {
    parts: Receiver<Part>,
    /// Whether connections that can be carried are.
    is_to_carry: bool,
    /// By number, 64 in each word: flows that were read, or that an event was about, or that were entered since it
    /// began.
    seen: Vec<u64>,
    to_ready: Sender<Vec<Entry>>,
    ready: Receiver<Vec<Readied>>,
    /// Parts that were sent to be made ready, and those that are.
    sent: u64,
    taken: u64,
    /// Entries of the others.
    readying: usize,
    /// Entries that there was an event about, and how many parts had been sent then: they may have been in one of them.
    touched: HashMap<Tuple, u64>,
    /// The table has been read.
    end: Option<End>,
}

/// An entry as it was read, and what the kernel answered when it was made ready.
pub(super) type Readied = (Entry, io::Result<Option<Entry>>);

/// What comes next.
enum Next {
    /// Entries that were read.
    Entries(Vec<Entry>),
    /// Entries that are ready, and tuples of those that are to be tried again.
    Ready(Vec<Readied>, Vec<Tuple>),
    /// The table has been read, and nothing is being made ready.
    End(End),
    /// Nothing yet.
    Nothing,
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

/// Makes entries ready until nobody sends any more, or receives them.
fn make_ready(parts: &Receiver<Vec<Entry>>, ready: &Sender<Vec<Readied>>, socket: &Mutex<NlSock>) {
    // The thread of an earlier reading, which was given up, may have it for a moment.
    let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
    for entries in parts {
        let changes: Vec<Change> =
            entries.iter().map(|entry| liberal(entry.original, None)).collect();
        let results = conntrack::update_and_read(&mut socket, &changes);
        if ready.send(entries.into_iter().zip(results).collect()).is_err() {
            return;
        }
    }
}

fn has_ended(what: &str) -> io::Error {
    io::Error::other(format!("the thread that {what} has ended"))
}

impl Reading {
    /// `socket`: for the changes of the entries that are read.
    fn begin(is_to_carry: bool, scope: Scope, socket: &Arc<Mutex<NlSock>>) -> io::Result<Reading> {
        let (sender, parts) = bounded(PARTS_MAX);
        let thread = thread::Builder::new().name("fr-ct-read".into());
        thread.spawn(move || read(&sender, &scope))?;
        let (to_ready, unready) = bounded(READYING_MAX);
        let (readied, ready) = bounded(READYING_MAX);
        let socket = Arc::clone(socket);
        let thread = thread::Builder::new().name("fr-ct-ready".into());
        thread.spawn(move || make_ready(&unready, &readied, &socket))?;
        Ok(Reading::of(is_to_carry, parts, to_ready, ready))
    }

    fn of(
        is_to_carry: bool,
        parts: Receiver<Part>,
        to_ready: Sender<Vec<Entry>>,
        ready: Receiver<Vec<Readied>>,
    ) -> Reading {
        let (sent, taken, readying) = (0, 0, 0);
        let (seen, touched, end) = (Vec::new(), HashMap::new(), None);
        Reading { parts, is_to_carry, seen, to_ready, ready, sent, taken, readying, touched, end }
    }

    /// Has entries made ready.
    fn make_ready(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.sent += 1;
        self.readying += entries.len();
        // There is room: see `next`.
        self.to_ready.send(entries).map_err(|_| has_ended("makes entries ready"))
    }

    /// An event is about an entry.
    pub(super) fn touch(&mut self, original: &Tuple) {
        if self.sent != self.taken {
            self.touched.insert(*original, self.sent);
        }
    }

    /// Waits for what comes next until `end`.
    fn next(&mut self, end: Instant) -> io::Result<Next> {
        if let Some(end) = self.end
            && self.sent == self.taken
        {
            return Ok(Next::End(end));
        }
        let takes_parts = self.end.is_none() && self.sent - self.taken < READYING_MAX as u64;
        let parts = if takes_parts { &self.parts } else { &never() };
        let ready = if self.sent != self.taken { &self.ready } else { &never() };
        select! {
            recv(ready) -> readied => {
                let readied = readied.map_err(|_| has_ended("makes entries ready"))?;
                Ok(self.take(readied))
            }
            recv(parts) -> part => match part.map_err(|_| has_ended("reads the table"))? {
                Part::Entries(entries) => Ok(Next::Entries(entries)),
                Part::End(end) => {
                    self.end = Some(end?);
                    Ok(Next::Entries(Vec::new()))
                }
            },
            default(end.saturating_duration_since(Instant::now())) => Ok(Next::Nothing),
        }
    }

    /// The next part is ready.
    fn take(&mut self, readied: Vec<Readied>) -> Next {
        self.taken += 1;
        self.readying = self.readying.saturating_sub(readied.len());
        if self.touched.is_empty() {
            return Next::Ready(readied, Vec::new());
        }
        let taken = self.taken;
        let is_touched = |(entry, _): &Readied| {
            self.touched.get(&entry.original).is_some_and(|sent| *sent >= taken)
        };
        let (touched, readied): (Vec<_>, Vec<_>) = readied.into_iter().partition(is_touched);
        self.touched.retain(|_, sent| *sent > taken);
        Next::Ready(readied, touched.iter().map(|(entry, _)| entry.original).collect())
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
        self.reading = Some(Reading::begin(true, self.scope(), &self.ready_requests)?);
        self.has_left_out = false;
        self.read_at = Instant::now();
        Ok(())
    }

    /// Compares some more of the table, and enters what is ready.
    pub(super) fn read_on(&mut self) -> io::Result<()> {
        let end = Instant::now() + PART;
        while let Some(reading) = &mut self.reading {
            match reading.next(end)? {
                Next::Entries(entries) => self.compare(entries)?,
                Next::Ready(readied, touched) => {
                    self.enter_readied(readied);
                    self.retried.extend(touched);
                }
                Next::End(end) => self.end_reading(end),
                Next::Nothing => break,
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Has the connections of entries that were read made ready to be carried, unless they are carried.
    fn compare(&mut self, mut entries: Vec<Entry>) -> io::Result<()> {
        let Some(mut reading) = self.reading.take() else { return Ok(()) };
        let table = self.writer.table();
        entries.iter().for_each(|entry| table.prefetch(&flow_key(&entry.original)));
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
        entries.retain(|entry| !self.begin_probation(entry, false));
        entries.truncate(self.limit(entries.len(), reading.readying));
        let result = reading.make_ready(entries);
        self.reading = Some(reading);
        result
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
            self.reading = Some(Reading::begin(is_to_carry, self.scope(), &self.ready_requests)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn entry(number: u16) -> Entry {
        let tuple = |source: [u8; 4], destination: [u8; 4]| Tuple {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            protocol: 17,
            source_port: number,
            destination_port: number,
        };
        Entry {
            original: tuple([192, 0, 2, 1], [192, 0, 2, 2]),
            reply: tuple([192, 0, 2, 2], [192, 0, 2, 1]),
            status: 0,
            timeout_s: Some(1),
            mark: 0,
            zone: 0,
            id: Some(1),
            tcp: None,
            has_helper: false,
            is_seq_adjusted: false,
            has_synproxy: false,
            has_labels: false,
            has_master: false,
        }
    }

    fn numbers(entries: &[Tuple]) -> Vec<u16> {
        entries.iter().map(|tuple| tuple.source_port).collect()
    }

    #[test]
    fn entries_with_an_event_meanwhile_are_tried_again_and_the_end_comes_last() {
        let (read, parts) = bounded(PARTS_MAX);
        let (to_ready, unready) = bounded(READYING_MAX);
        let (readied, ready) = bounded(READYING_MAX);
        let mut reading = Reading::of(true, parts, to_ready, ready);
        let soon = || Instant::now() + Duration::from_millis(1);
        let whole = End { is_whole: true, took: Duration::ZERO };
        for n in 0..READYING_MAX as u16 {
            read.send(Part::Entries(vec![entry(2 * n), entry(2 * n + 1)])).expect("room");
            let Ok(Next::Entries(entries)) = reading.next(soon()) else { panic!("{n}") };
            reading.make_ready(entries).expect("room");
        }
        read.send(Part::End(Ok(whole))).expect("room");
        // As many as there may be are being made ready: nothing else is taken.
        assert!(matches!(reading.next(soon()), Ok(Next::Nothing)));
        reading.touch(&entry(3).original);
        reading.touch(&entry(999).original);
        for n in 0..READYING_MAX as u16 {
            let part = unready.recv().expect("a part");
            let answers = part.into_iter().map(|it| (it, Ok(Some(it)))).collect();
            readied.send(answers).expect("room");
            let next = loop {
                match reading.next(soon()).expect("no error") {
                    // The end was read.
                    Next::Entries(entries) => assert!(entries.is_empty()),
                    next => break next,
                }
            };
            let Next::Ready(ready, again) = next else { panic!("{n}") };
            let ready: Vec<Tuple> = ready.iter().map(|(it, _)| it.original).collect();
            let expected =
                if n == 1 { (vec![2], vec![3]) } else { (vec![2 * n, 2 * n + 1], vec![]) };
            assert_eq!((numbers(&ready), numbers(&again)), expected);
        }
        let end =
            (0..2).map(|_| reading.next(soon())).find(|next| matches!(next, Ok(Next::End(_))));
        assert!(end.is_some(), "everything was read and is ready");
        assert!(reading.touched.is_empty());
        drop(readied);
        assert!(reading.make_ready(vec![entry(1)]).is_ok());
        assert!(reading.next(soon()).is_err(), "the thread has ended");
    }
}
