//! The traces of a worker.
//!
//! A packet that matches gets a record when the data path begins with it. The record is completed when it is
//! known whether the packet was sent. Without traces the cost is one comparison for each burst:
//! [`Traces::is_on`].

use std::time::{SystemTime, UNIX_EPOCH};

use super::Tracer;
use super::record::Record;
use super::ring::{RECORDS_MAX, Session};
use super::step::{FinalDisposition, Step};
use crate::capture::tap::TxDrops;
use crate::skb::{MAX_JUMBO, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// Maximum number of concurrent traces.
pub const TRACES_MAX: usize = 8;

/// A record that waits until its packet was sent.
#[derive(Debug)]
struct Open {
    /// Identifies its session.
    id: u64,
    record: Box<Record>,
    /// Position of the packet among those for its port, or among those for the kernel.
    place: usize,
}

/// A worker's traces.
#[derive(Debug, Default)]
pub struct Traces {
    /// At most [`TRACES_MAX`], for which room is allocated.
    sessions: Vec<Session>,
    /// Records of the current packet; the steps are written to the first one.
    current: Vec<(u64, Box<Record>)>,
    /// How the output of the current packet ended, if that is not what was intended.
    noted: Option<FinalDisposition>,
    open: Vec<Open>,
    /// The driver's drop counters before it was given packets to send.
    before: TxDrops,
    /// A multi-buffer packet as one slice, for a filter that reads beyond the first frame.
    scratch: Vec<u8>,
}

impl Traces {
    /// No trace.
    pub fn new() -> Traces {
        Traces {
            sessions: Vec::with_capacity(TRACES_MAX),
            current: Vec::with_capacity(TRACES_MAX),
            noted: None,
            open: Vec::with_capacity(TRACES_MAX * RECORDS_MAX),
            before: TxDrops::default(),
            scratch: Vec::with_capacity(MAX_JUMBO),
        }
    }

    /// Whether there is a trace.
    #[inline]
    pub fn is_on(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Begins a trace; returns it when there are [`TRACES_MAX`] already.
    pub fn attach(&mut self, session: Session) -> Option<Session> {
        if self.sessions.len() == TRACES_MAX {
            return Some(session);
        }
        self.sessions.push(session);
        None
    }

    /// Ends a trace. Dropping the session frees memory.
    pub fn detach(&mut self, id: u64) -> Option<Session> {
        let at = self.sessions.iter().position(|session| session.id() == id)?;
        Some(self.sessions.remove(at))
    }

    /// The data path begins with a received packet.
    pub fn begin(&mut self, skb: &SkBuff) {
        self.noted = None;
        for session in &self.sessions {
            if let Some(record) = session.record(skb, &mut self.scratch) {
                self.current.push((session.id(), record));
            }
        }
        if let Some((_, record)) = self.current.first_mut() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let len = skb.data().len() + skb.data_len();
            record.begin(skb.data(), len as u32, now.as_nanos() as u64);
        }
    }

    /// Sets what the numbers of the current packet's record refer to: the ifindex of its port, and the
    /// ruleset.
    pub fn set_origin(&mut self, ifindex: u32, nft: u64) {
        if let Some((_, record)) = self.current.first_mut() {
            (record.ifindex, record.nft) = (ifindex, nft);
        }
    }

    /// Sets how the current packet ends, unless its output ends otherwise ([`Traces::note`]).
    pub fn intend(&mut self, disposition: FinalDisposition) {
        self.noted = None;
        if let Some((_, record)) = self.current.first_mut() {
            record.disposition = disposition;
        }
    }

    /// The output of the current packet ended otherwise.
    #[inline]
    pub fn note(&mut self, disposition: FinalDisposition) {
        if self.is_traced() {
            self.noted = Some(disposition);
        }
    }

    /// How the current packet ends, as far as is known.
    pub fn disposition(&self) -> Option<FinalDisposition> {
        self.noted.or(self.current.first().map(|(_, record)| record.disposition))
    }

    /// The data path has ended with the current packet. `place`: its position among those for its port, or
    /// among those for the kernel.
    pub fn end(&mut self, place: usize) {
        let mut records = self.current.drain(..);
        let Some((id, mut first)) = records.next() else { return };
        if let Some(disposition) = self.noted.take() {
            first.disposition = disposition;
        }
        for (id, mut record) in records {
            record.copy(&first);
            self.open.push(Open { id, record, place });
        }
        self.open.push(Open { id, record: first, place });
    }

    /// The driver is about to be given packets. [`Traces::sent`] must follow.
    pub fn sending(&mut self, stats: &WorkerStats) {
        self.before = TxDrops::of(stats);
    }

    /// The driver took the first `put` packets for a port, and dropped the others.
    pub fn sent(&mut self, port: u16, put: usize, stats: &WorkerStats) {
        let reason = self.before.reason(stats);
        self.refused(port, put, reason);
    }

    /// All but the first `taken` packets for a port were dropped.
    pub fn refused(&mut self, port: u16, taken: usize, reason: DropReason) {
        for open in &mut self.open {
            if matches!(open.record.disposition, FinalDisposition::Sent { port: to, .. } if to == port)
                && open.place >= taken
            {
                open.record.disposition = FinalDisposition::Dropped(reason);
            }
        }
    }

    /// The packet at a position among those for the kernel was dropped.
    pub fn punt_failed(&mut self, place: usize) {
        for open in &mut self.open {
            if matches!(open.record.disposition, FinalDisposition::Kernel(_)) && open.place == place
            {
                open.record.disposition = FinalDisposition::Dropped(DropReason::PuntFailed);
            }
        }
    }

    /// Hands over the records: it is known what became of their packets.
    pub fn deliver(&mut self) {
        for Open { id, record, .. } in self.open.drain(..) {
            // The record of a trace that has ended meanwhile is freed.
            if let Some(session) = self.sessions.iter().find(|session| session.id() == id) {
                session.give(record);
            }
        }
    }
}

impl Tracer for Traces {
    #[inline]
    fn is_traced(&self) -> bool {
        !self.current.is_empty()
    }

    fn step(&mut self, step: Step) {
        if let Some((_, record)) = self.current.first_mut() {
            record.step(step);
        }
    }
}
