//! The self-check: parts of the kernel's state are dumped again in turn and compared, because not all of its changes cause
//! an event: router advertisements change lifetimes and preferences of routes, for example. A difference that no event
//! explains is counted, and mended.
//!
//! The thread `fr-check` makes the dumps, because the kernel may have it wait for others (RTNL). The control thread
//! replays them if it has received no event since it asked. A replay of more than [`OBJECTS_MAX`] objects would take it too
//! long: of so many routes the thread adds up [fingerprints](super::rib::Summing), and the family is dumped
//! again if one differs that has not changed meanwhile. So many rules, nexthop objects, neighbours or settings are not
//! checked. Links and addresses have events of all that matters.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::dump::{self, Dumps};
use super::follow::{Follower, Parts};
use super::parse::ParsedRoute;
use super::rib::{RibAddr, Summing, Sums};
use super::state::Family;
use super::{Changes, Mirror, MirrorError};
use crate::control::netlink::message::Message;
use crate::control::netlink::rtnl::Requests;
use crate::control::netlink::socket::{DumpEnd, SockError};
use crate::control::process::privilege;

/// Interval between the checks of two parts.
const INTERVAL: Duration = Duration::from_millis(160);
/// How often it is seen whether a dump is there.
const POLL: Duration = Duration::from_millis(10);
/// The thread rests for so many times as long as a dump took.
const REST: u32 = 200;
/// How often its rest is doubled.
const IN_A_ROW_MAX: u32 = 4;
/// A difference of fingerprints is confirmed so much later: the event may have been on its way.
const CONFIRM_TIME: Duration = Duration::from_millis(300);
/// Maximum age of a dump that is replayed.
const AGE_MAX: Duration = Duration::from_millis(500);
/// A dump of so many routes is replayed within some 10 ms.
const OBJECTS_MAX: usize = 8192;
/// Within this time of the expiry of a route, dumps do not tell whether it has expired.
const EXPIRY_MARGIN: Duration = Duration::from_millis(100);

/// The number of [`PARTS`].
pub const CHECKED_PARTS: usize = 7;

/// Parts that are checked, each with its number of objects.
const PARTS: [Part; CHECKED_PARTS] = [
    (
        |parts| parts.rules = true,
        |it| Family::ALL.iter().map(|family| it.state.rules(*family).len()).sum(),
    ),
    (|parts| parts.nexthops = true, |it| it.state.nexthops.len()),
    (|parts| parts.netconf = true, |it| it.state.netconf.len()),
    (|parts| parts.addr_labels = true, |_| 0),
    (|parts| parts.neighs = true, |it| it.state.neighs.len()),
    (|parts| parts.routes4 = true, |it| it.state.routes4.len()),
    (|parts| parts.routes6 = true, |it| it.state.routes6.len()),
];

type Part = (fn(&mut Parts), fn(&Follower) -> usize);

/// What the thread is asked for.
#[derive(Debug, Clone, Copy)]
enum Task {
    /// A dump of a part, to be replayed.
    Record(Parts),
    /// The fingerprints of all routes of a family.
    Sum(Family),
}

/// What the thread has made.
#[derive(Debug)]
enum Dumped {
    Recording(Recording),
    Sums(Sums),
}

#[derive(Debug)]
struct Answer {
    /// `None`: the dump failed or was interrupted.
    dumped: Option<Dumped>,
    took: Duration,
}

/// What is checked next, and when.
#[derive(Debug)]
pub(super) struct SelfCheck {
    turn: usize,
    pub(super) due: Instant,
    /// When a large table may be dumped next.
    large_due: Instant,
    asked: Option<Asked>,
    suspects: Option<Suspects>,
    /// How often in a row the routes of each family differed: the more often, the longer the thread rests, so that a
    /// difference that dumps do not mend does not cost a dump each time.
    in_a_row: [u32; 2],
    /// To and from the thread, if it has been started.
    channels: Option<(Sender<Task>, Receiver<Answer>)>,
}

/// What is being dumped.
#[derive(Debug, Clone, Copy)]
struct Asked {
    task: Task,
    at: Instant,
    /// Events that had been received.
    events: u64,
    /// Changes of the family's routes.
    changes: u64,
}

/// Fingerprints that differ.
#[derive(Debug)]
struct Suspects {
    family: Family,
    dumped: Sums,
    /// Changes of the routes before the dump.
    changes: u64,
}

impl SelfCheck {
    pub(super) fn new(now: Instant) -> SelfCheck {
        SelfCheck {
            turn: 0,
            due: now + INTERVAL,
            large_due: now,
            asked: None,
            suspects: None,
            in_a_row: [0, 0],
            channels: None,
        }
    }

    /// Asks the thread, and starts it if there is none. `false`: it cannot be asked.
    fn ask(&mut self, task: Task) -> bool {
        if self.channels.is_none() {
            let (asked, tasks) = bounded(1);
            let (answers, received) = bounded(1);
            let thread = thread::Builder::new().name("fr-check".into());
            if thread.spawn(move || serve(&tasks, &answers)).is_ok() {
                self.channels = Some((asked, received));
            }
        }
        self.channels.as_ref().is_some_and(|(asked, _)| asked.try_send(task).is_ok())
    }

    /// The thread's answer; `None`: it is still at it.
    fn answer(&mut self) -> Option<Answer> {
        let (_, answers) = self.channels.as_ref()?;
        match answers.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.channels = None;
                Some(Answer { dumped: None, took: Duration::ZERO })
            }
        }
    }
}

impl Mirror {
    /// Has a part of the state checked if it is time, and no events wait, or compares what has been dumped.
    pub(super) fn self_check(
        &mut self,
        now: Instant,
        changes: Changes,
    ) -> Result<Changes, MirrorError> {
        if now < self.self_check.due {
            return Ok(changes);
        }
        let Some(asked) = self.self_check.asked else {
            self.self_check.due = now + INTERVAL;
            if let Some(suspects) = self.self_check.suspects.take() {
                match changes.more {
                    // Among the events that wait may be those of the differences.
                    true => self.suspect_again(suspects, now),
                    false => self.confirm(suspects, now),
                }
            } else if !changes.more {
                self.begin_check(now);
            }
            return Ok(changes);
        };
        self.self_check.due = now + POLL;
        let Some(answer) = self.self_check.answer() else { return Ok(changes) };
        self.self_check.asked = None;
        self.self_check.due = now + INTERVAL;
        match asked.task {
            Task::Record(_) => self.self_check.due = now + INTERVAL.max(answer.took * REST),
            Task::Sum(family) => {
                let in_a_row = self.self_check.in_a_row[family as usize].min(IN_A_ROW_MAX);
                self.self_check.large_due = now + answer.took * (REST << in_a_row);
            }
        }
        match (answer.dumped, asked.task) {
            (Some(Dumped::Recording(recording)), Task::Record(part)) => {
                self.replay(recording, part, asked, now, changes)
            }
            (Some(Dumped::Sums(dumped)), Task::Sum(family)) => {
                self.count_compared();
                self.suspect(Suspects { family, dumped, changes: asked.changes }, now);
                Ok(changes)
            }
            _ => Ok(changes),
        }
    }

    fn replay(
        &mut self,
        mut recording: Recording,
        part: Parts,
        asked: Asked,
        now: Instant,
        changes: Changes,
    ) -> Result<Changes, MirrorError> {
        let is_current = !changes.more
            && self.follower.counters.events == asked.events
            && now.saturating_duration_since(asked.at) <= AGE_MAX
            && self.may_check(part, now);
        if !is_current {
            return Ok(changes);
        }
        // What was recorded cannot fail.
        let is_different = self.follower.compare(&mut recording, part, asked.at)?;
        self.count_compared();
        let more = self.drain(now)?;
        // Otherwise an event was on its way.
        if is_different && !more && self.follower.counters.events == asked.events {
            self.follower.counters.corrections += 1;
        }
        let after = self.settle(now, more)?;
        Ok(Changes {
            links: changes.links || after.links,
            local_addresses: changes.local_addresses || after.local_addresses,
            ..after
        })
    }

    fn count_compared(&mut self) {
        if let Some(compared) = self.follower.counters.compared.get_mut(self.self_check.turn) {
            *compared += 1;
        }
    }

    fn begin_check(&mut self, now: Instant) {
        self.self_check.turn = (self.self_check.turn + 1) % PARTS.len();
        let Some((mark, objects)) = PARTS.get(self.self_check.turn) else { return };
        let mut part = Parts::default();
        mark(&mut part);
        if !self.may_check(part, now) {
            return;
        }
        let is_small = objects(&self.follower) <= OBJECTS_MAX;
        let may_sum = !is_small && now >= self.self_check.large_due;
        let task = match part {
            part if is_small => Task::Record(part),
            Parts { routes4: true, .. } if may_sum => Task::Sum(Family::V4),
            Parts { routes6: true, .. } if may_sum => Task::Sum(Family::V6),
            _ => return,
        };
        let changes = match task {
            Task::Record(_) => 0,
            Task::Sum(family) => self.follower.state.fingerprints(family).changes(),
        };
        if self.self_check.ask(task) {
            let events = self.follower.counters.events;
            self.self_check.asked = Some(Asked { task, at: now, events, changes });
            self.self_check.due = now + POLL;
        }
    }

    /// Whether a part can be compared now.
    fn may_check(&self, part: Parts, now: Instant) -> bool {
        let expires = self.follower.route_expires;
        let is_near = expires.is_some_and(|at| at <= now + EXPIRY_MARGIN);
        !(self.follower.is_in_doubt() || part.routes6 && is_near)
    }

    /// The number of buckets that differ.
    fn differences(&self, suspects: &Suspects) -> usize {
        let fingerprints = self.follower.state.fingerprints(suspects.family);
        fingerprints.differences(&suspects.dumped, suspects.changes)
    }

    /// Notes the fingerprints of a dump if some differ.
    fn suspect(&mut self, suspects: Suspects, now: Instant) {
        match self.differences(&suspects) {
            0 => self.self_check.in_a_row[suspects.family as usize] = 0,
            _ => self.suspect_again(suspects, now),
        }
    }

    fn suspect_again(&mut self, suspects: Suspects, now: Instant) {
        self.self_check.suspects = Some(suspects);
        self.self_check.due = now + CONFIRM_TIME;
    }

    /// Has the routes dumped again if their fingerprints still differ.
    fn confirm(&mut self, suspects: Suspects, now: Instant) {
        if self.differences(&suspects) == 0 || self.follower.is_in_doubt() {
            return;
        }
        self.follower.counters.corrections += 1;
        self.follower.doubt(now, |parts| match suspects.family {
            Family::V4 => parts.routes4 = true,
            Family::V6 => parts.routes6 = true,
        });
        self.self_check.in_a_row[suspects.family as usize] += 1;
    }
}

/// Answers until nobody asks.
fn serve(tasks: &Receiver<Task>, answers: &Sender<Answer>) {
    privilege::drop_all();
    let mut requests = None;
    for task in tasks {
        let begun = Instant::now();
        let dumped = make(&mut requests, task);
        if dumped.is_err() {
            // Also what is left of an unfinished reply.
            requests = None;
        }
        if answers.send(Answer { dumped: dumped.ok(), took: begun.elapsed() }).is_err() {
            return;
        }
    }
}

fn make(requests: &mut Option<Requests>, task: Task) -> Result<Dumped, SockError> {
    let requests = match requests {
        Some(requests) => requests,
        None => requests.insert(Requests::open()?),
    };
    match task {
        Task::Record(part) => record(requests, part).map(Dumped::Recording),
        Task::Sum(Family::V4) => sum::<u32>(requests, Family::V4).map(Dumped::Sums),
        Task::Sum(Family::V6) => sum::<u128>(requests, Family::V6).map(Dumped::Sums),
    }
}

fn record(requests: &mut Requests, part: Parts) -> Result<Recording, SockError> {
    let mut recorder = Recorder { requests, recording: Recording::default() };
    // The same dumps as of the comparison.
    Follower::default().compare(&mut recorder, part, Instant::now())?;
    Ok(recorder.recording)
}

fn sum<A: RibAddr>(requests: &mut Requests, family: Family) -> Result<Sums, SockError> {
    let mut summing = Summing::<A>::default();
    let end = dump::routes(requests, family, &mut |route: ParsedRoute<A>| {
        summing.add((route.table, route.net), route.body);
    });
    match end?.0 {
        DumpEnd::Complete => Ok(summing.sums()),
        DumpEnd::Interrupted => Err(dump::interrupted("dump routes")),
    }
}

/// Dumps of the kernel, to be replayed once in their order.
#[derive(Debug, Default)]
struct Recording {
    octets: Vec<u8>,
    /// Type, flags, and end in `octets` of each message.
    messages: Vec<(u16, u16, usize)>,
    /// End in `messages` of each dump, and the errno of one that the kernel has refused.
    dumps: Vec<(usize, Option<i32>)>,
    /// How many have been replayed.
    replayed: usize,
}

impl Recording {
    fn push(&mut self, message: &Message<'_>) {
        self.octets.extend_from_slice(message.payload);
        self.messages.push((message.kind, message.flags, self.octets.len()));
    }
}

impl Dumps for Recording {
    fn dump(
        &mut self,
        what: &'static str,
        _: u16,
        _: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        let end_of =
            |dump: Option<usize>| dump.and_then(|n| self.dumps.get(n)).map_or(0, |(end, _)| *end);
        let (first, end) = (end_of(self.replayed.checked_sub(1)), end_of(Some(self.replayed)));
        let Some((_, errno)) = self.dumps.get(self.replayed) else {
            return Err(SockError::Io { what, source: io::ErrorKind::UnexpectedEof.into() });
        };
        self.replayed += 1;
        if let Some(errno) = errno {
            let source = io::Error::from_raw_os_error(*errno);
            return Err(SockError::Refused { what, source, text: String::new() });
        }
        let mut start = first.checked_sub(1).and_then(|n| self.messages.get(n)).map_or(0, |m| m.2);
        for &(kind, flags, end) in self.messages.get(first..end).unwrap_or_default() {
            let payload = self.octets.get(start..end).unwrap_or_default();
            each(&Message { kind, flags, seq: 0, payload });
            start = end;
        }
        Ok(DumpEnd::Complete)
    }
}

/// Records what the kernel answers.
struct Recorder<'a> {
    requests: &'a mut Requests,
    recording: Recording,
}

impl Dumps for Recorder<'_> {
    fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        let recording = &mut self.recording;
        let end = self.requests.dump(what, kind, header, |message| {
            recording.push(message);
            each(message);
        });
        let errno = match &end {
            Ok(_) => None,
            // A caller that goes on after the error gets the same error when this is replayed.
            Err(SockError::Refused { source, .. }) => source.raw_os_error(),
            Err(_) => return end,
        };
        recording.dumps.push((recording.messages.len(), errno));
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_replayed_in_their_order() {
        let mut recording = Recording::default();
        for (kind, payload) in [(24, &[1, 2][..]), (24, &[]), (32, &[3])] {
            recording.push(&Message { kind, flags: 2, seq: 9, payload });
            if kind == 32 || payload.is_empty() {
                recording.dumps.push((recording.messages.len(), None));
            }
        }
        recording.dumps.push((recording.messages.len(), Some(libc::ENOENT)));
        let mut replay = || {
            let mut all = Vec::new();
            let end = recording.dump("x", 0, &[], &mut |message| {
                all.push((message.kind, message.payload.to_vec()));
            });
            end.map(|_| all)
        };
        assert_eq!(replay().expect("the first"), [(24, vec![1, 2]), (24, vec![])]);
        assert_eq!(replay().expect("the second"), [(32, vec![3])]);
        let errno = |dump: Result<Vec<_>, SockError>| match dump {
            Err(SockError::Refused { source, .. }) => source.raw_os_error(),
            _ => None,
        };
        assert_eq!(errno(replay()), Some(libc::ENOENT), "the third was refused");
        assert!(matches!(replay(), Err(SockError::Io { .. })), "there is no fourth");
    }
}
