//! The kernel's table is read: after a start, after events were lost, once per second while there are entries that have
//! no events, and when connections were left out. It is read in parts, between which events are followed.
//!
//! Three threads share the work, so that the kernel lists entries on one CPU while it changes others on another one:
//! `fr-ct-read` reads, `fr-ct` selects what is to be carried, `fr-ct-ready` makes these entries ready, and `fr-ct` enters
//! them. Whether an event about an entry that is being made ready is older than what the kernel answers is not known:
//! such an entry is tried again.
//!
//! Entries that are ready and not entered are made what they were: by `fr-ct`, or, if a reading is given up, by its
//! `fr-ct-ready`.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::carry::{Readied, make_ready, undo};
use super::{Follower, is_of};
use crate::control::conntrack::{self, Entry, Received, Tuple};
use crate::control::daemon::flow_entry::{Scope, flow_key, is_carriable};
use crate::control::netlink::query::{DumpEnd, NlSock};
use crate::netfilter::conntrack::FlowTable;

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
    to_ready: Sender<Unready>,
    ready: Receiver<Vec<Readied>>,
    /// Parts that were sent to be made ready, and those that are.
    sent: u64,
    taken: u64,
    /// Entries of the others.
    readying: usize,
    /// Entries that there was an event about, or whose flow was dropped.
    touched: HashMap<Tuple, Touched>,
    /// The table has been read.
    end: Option<End>,
    /// Nothing is made ready any more when this is gone.
    _wanted: Arc<()>,
}

/// Entries that are to be made ready.
#[derive(Debug)]
struct Unready {
    entries: Vec<Entry>,
    /// Those of which the kernel sends no events may be carried.
    may_lack_events: bool,
}

/// What happened to an entry while others were being made ready.
#[derive(Debug, Clone, Copy)]
struct Touched {
    /// How many parts had been sent then: it may have been in one of them.
    sent: u64,
    /// Its flow was dropped: the kernel has not seen some of its packets.
    was_carried: bool,
}

/// What comes next.
enum Next {
    /// Entries that were read.
    Entries(Vec<Entry>),
    /// Entries that are ready.
    Ready {
        readied: Vec<Readied>,
        /// Others, that are to be tried again.
        again: Vec<Tuple>,
        /// Those of them that have to be made what they were.
        undone: Vec<Entry>,
    },
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

/// The thread that makes entries ready.
struct Maker {
    unready: Receiver<Unready>,
    readied: Sender<Vec<Readied>>,
    /// Where the reading takes those that are ready.
    untaken: Receiver<Vec<Readied>>,
    /// The reading has not been given up.
    is_wanted: Weak<()>,
    table: Arc<FlowTable>,
}

impl Maker {
    /// Makes entries ready until the reading ends; what it has not taken, is undone.
    fn run(&self, socket: &Mutex<NlSock>) {
        // The thread of an earlier reading, which was given up, may have it for a moment: what it undoes, is made ready
        // after that.
        let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        for Unready { entries, may_lack_events } in &self.unready {
            if self.is_wanted.strong_count() == 0 {
                break;
            }
            let readied = make_ready(&mut socket, entries, may_lack_events);
            if self.readied.send(readied).is_err() {
                break;
            }
        }
        for readied in self.untaken.try_iter() {
            let entries = readied.iter().filter(|it| it.now.is_ok()).map(|it| &it.was);
            undo(&mut socket, &self.table, entries);
        }
    }
}

fn has_ended(what: &str) -> io::Error {
    io::Error::other(format!("the thread that {what} has ended"))
}

impl Reading {
    /// `socket`: for the changes of the entries that are read. `table`: the carried flows.
    fn begin(
        is_to_carry: bool,
        scope: Scope,
        socket: &Arc<Mutex<NlSock>>,
        table: &Arc<FlowTable>,
    ) -> io::Result<Reading> {
        let (sender, parts) = bounded(PARTS_MAX);
        let thread = thread::Builder::new().name("fr-ct-read".into());
        thread.spawn(move || read(&sender, &scope))?;
        let (reading, maker) = Reading::of(is_to_carry, parts, table);
        let socket = Arc::clone(socket);
        let thread = thread::Builder::new().name("fr-ct-ready".into());
        thread.spawn(move || maker.run(&socket))?;
        Ok(reading)
    }

    fn of(is_to_carry: bool, parts: Receiver<Part>, table: &Arc<FlowTable>) -> (Reading, Maker) {
        let (to_ready, unready) = bounded(READYING_MAX);
        // The receivers are two, so that nothing is lost with the reading; there is always room.
        let (readied, ready) = bounded(READYING_MAX);
        let wanted = Arc::new(());
        let maker = Maker {
            unready,
            readied,
            untaken: ready.clone(),
            is_wanted: Arc::downgrade(&wanted),
            table: Arc::clone(table),
        };
        let reading = Reading {
            parts,
            is_to_carry,
            seen: Vec::new(),
            to_ready,
            ready,
            sent: 0,
            taken: 0,
            readying: 0,
            touched: HashMap::new(),
            end: None,
            _wanted: wanted,
        };
        (reading, maker)
    }

    /// Has entries made ready.
    fn make_ready(&mut self, entries: Vec<Entry>, may_lack_events: bool) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.sent += 1;
        self.readying += entries.len();
        // There is room: see `next`.
        let unready = Unready { entries, may_lack_events };
        self.to_ready.send(unready).map_err(|_| has_ended("makes entries ready"))
    }

    /// An event is about an entry, or, with `was_carried`, its flow is dropped.
    pub(super) fn touch(&mut self, original: &Tuple, was_carried: bool) {
        if self.sent != self.taken {
            let sent = self.sent;
            let touched = self.touched.entry(*original).or_insert(Touched { sent, was_carried });
            touched.sent = sent;
            touched.was_carried |= was_carried;
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
            return Next::Ready { readied, again: Vec::new(), undone: Vec::new() };
        }
        let taken = self.taken;
        let (mut again, mut undone) = (Vec::new(), Vec::new());
        let mut is_untouched = |it: &Readied| {
            let touched = self.touched.get(&it.was.original).filter(|it| it.sent >= taken);
            let Some(touched) = touched else { return true };
            again.push(it.was.original);
            if it.now.is_ok() && !touched.was_carried {
                undone.push(it.was);
            }
            false
        };
        let readied = readied.into_iter().filter(&mut is_untouched).collect();
        self.touched.retain(|_, touched| touched.sent > taken);
        Next::Ready { readied, again, undone }
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
        self.reading = Some(self.read_table(true)?);
        self.has_left_out = false;
        self.read_at = Instant::now();
        Ok(())
    }

    fn read_table(&self, is_to_carry: bool) -> io::Result<Reading> {
        Reading::begin(is_to_carry, self.scope(), &self.ready_requests, self.writer.table())
    }

    /// Compares some more of the table, and enters what is ready.
    pub(super) fn read_on(&mut self) -> io::Result<()> {
        let end = Instant::now() + PART;
        while let Some(reading) = &mut self.reading {
            match reading.next(end)? {
                Next::Entries(entries) => self.compare(entries)?,
                Next::Ready { readied, again, mut undone } => {
                    self.enter_readied(readied);
                    // What workers left to the kernel was carried.
                    undone.retain(|entry| !self.is_refused(entry));
                    self.undo(&undone);
                    self.retried.extend(again);
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
        let result = reading.make_ready(entries, self.may_lack_events());
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
            self.reading = Some(self.read_table(is_to_carry)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::super::carry::unless_liberal;
    use super::*;
    use crate::control::conntrack::Change;
    use crate::control::conntrack::tests::bare;
    use crate::control::daemon::flows::unchanged;
    use crate::control::netlink::test_netns;
    use crate::netfilter::conntrack::FlowDesc;

    fn entry(number: u16) -> Entry {
        let tuple = |source: [u8; 4], destination: [u8; 4]| Tuple {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            protocol: 17,
            source_port: number,
            destination_port: number,
        };
        let (original, reply) =
            (tuple([192, 0, 2, 1], [192, 0, 2, 2]), tuple([192, 0, 2, 2], [192, 0, 2, 1]));
        Entry { status: 0, timeout_s: Some(1), id: Some(1), ..bare(original, reply) }
    }

    fn numbers(entries: Vec<Tuple>) -> Vec<u16> {
        entries.iter().map(|tuple| tuple.source_port).collect()
    }

    #[test]
    fn entries_with_an_event_meanwhile_are_tried_again_and_the_end_comes_last() {
        let (read, parts) = bounded(PARTS_MAX);
        let (table, _writer) = FlowTable::new(1, 0);
        let (mut reading, maker) = Reading::of(true, parts, &table);
        let soon = || Instant::now() + Duration::from_millis(1);
        let whole = End { is_whole: true, took: Duration::ZERO };
        for n in 0..READYING_MAX as u16 {
            read.send(Part::Entries(vec![entry(2 * n), entry(2 * n + 1)])).expect("room");
            let Ok(Next::Entries(entries)) = reading.next(soon()) else { panic!("{n}") };
            reading.make_ready(entries, false).expect("room");
        }
        read.send(Part::End(Ok(whole))).expect("room");
        // As many as there may be are being made ready: nothing else is taken.
        assert!(matches!(reading.next(soon()), Ok(Next::Nothing)));
        reading.touch(&entry(3).original, false);
        reading.touch(&entry(5).original, true);
        reading.touch(&entry(5).original, false);
        reading.touch(&entry(999).original, false);
        for n in 0..READYING_MAX as u16 {
            let part = maker.unready.recv().expect("a part").entries.into_iter();
            let answers = part.map(|was| Readied { was, now: Ok(Some(was)), has_events: true });
            maker.readied.send(answers.collect()).expect("room");
            let next = loop {
                match reading.next(soon()).expect("no error") {
                    // The end was read.
                    Next::Entries(entries) => assert!(entries.is_empty()),
                    next => break next,
                }
            };
            let Next::Ready { readied, again, undone } = next else { panic!("{n}") };
            let readied = readied.iter().map(|it| it.was.original);
            let undone = undone.iter().map(|it| it.original);
            let [readied, undone] = [readied.collect(), undone.collect()].map(numbers);
            // What was carried stays liberal.
            let expected = match n {
                1 => (vec![2], vec![3], vec![3]),
                2 => (vec![4], vec![5], vec![]),
                n => (vec![2 * n, 2 * n + 1], vec![], vec![]),
            };
            assert_eq!((readied, numbers(again), undone), expected);
        }
        let end =
            (0..2).map(|_| reading.next(soon())).find(|next| matches!(next, Ok(Next::End(_))));
        assert!(end.is_some(), "everything was read and is ready");
        assert!(reading.touched.is_empty());
        assert!(reading.make_ready(vec![entry(1)], false).is_ok());
        drop(maker);
        assert!(reading.next(soon()).is_err(), "the thread has ended");
    }

    /// A TCP connection of `lo`, and its entry.
    fn connection(socket: &mut NlSock) -> ([TcpStream; 2], Entry) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (server, from) = listener.accept().expect("accepts");
        let mut found = None;
        let is_it =
            |it: &Entry| it.original.protocol == 6 && it.original.source_port == from.port();
        let _ = conntrack::dump(socket, |it| found = found.or(is_it(&it).then_some(it)));
        ([client, server], found.expect("an entry"))
    }

    /// Whether the kernel compares no sequence numbers with windows.
    fn is_liberal(socket: &mut NlSock, entry: &Entry) -> bool {
        let read = conntrack::read(socket, &entry.original).expect("an answer").expect("an entry");
        unless_liberal(&read).is_none()
    }

    fn in_netns(test: impl FnOnce(&mut NlSock) + Send + 'static) {
        test_netns::in_netns(move || {
            test_netns::run("ip link set lo up");
            test_netns::nft(
                "table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }",
            );
            test(&mut NlSock::open(NETLINK_NETFILTER).expect("opens"));
        });
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_entries_that_a_reading_does_not_take_are_as_they_were() {
        in_netns(|socket| {
            let (_streams, untaken) = connection(socket);
            let (_others, carried) = connection(socket);
            let (_read, parts) = bounded(PARTS_MAX);
            let (table, mut writer) = FlowTable::new(2, 0);
            let (mut reading, maker) = Reading::of(true, parts, &table);
            let requests = Mutex::new(NlSock::open(NETLINK_NETFILTER).expect("opens"));
            let thread = thread::spawn(move || maker.run(&requests));
            reading.make_ready(vec![untaken, carried], true).expect("room");
            while reading.ready.is_empty() {
                thread::yield_now();
            }
            for entry in [&untaken, &carried] {
                assert!(unless_liberal(entry).is_some() && is_liberal(socket, entry), "{entry:?}");
            }
            // By an event.
            let keys = [&carried.original, &carried.reply].map(flow_key);
            let (status, mark, expires_ns, is_masqueraded) = (carried.status, 0, u64::MAX, false);
            let desc = FlowDesc { keys, status, mark, expires_ns, is_masqueraded };
            writer.insert(&desc).expect("room");
            drop(reading);
            thread.join().expect("no panic");
            assert_eq!([untaken, carried].map(|it| is_liberal(socket, &it)), [false, true]);
        });
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_an_entry_without_events_is_read_again() {
        in_netns(|socket| {
            test_netns::run("sysctl -w net.netfilter.nf_conntrack_events=0");
            let (_streams, entry) = connection(socket);
            let change = Change { timeout_s: Some(77), ..unchanged(entry.original) };
            assert!(conntrack::update(socket, &[change])[0].is_ok());
            let other = Entry { id: entry.id.map(|id| !id), ..entry };
            for (was, may_lack_events) in [(entry, true), (entry, false), (other, true)] {
                let readied = make_ready(socket, vec![was], may_lack_events);
                let [Readied { now: Ok(now), has_events: false, .. }] = readied.as_slice() else {
                    panic!("{readied:?}")
                };
                let left_s = now.map(|it| it.timeout_s.expect("a time-out"));
                let is_read = may_lack_events && was == entry;
                assert_eq!(left_s.map(|left_s| left_s <= 77), is_read.then_some(true));
            }
        });
    }
}
